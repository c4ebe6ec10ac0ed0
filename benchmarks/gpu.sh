#!/usr/bin/env bash
# Build for the GPU present, test, check and measure on it (`make gpu`). Needs no network and no virtual environment: a
# Python with torch >= 2.10, pytest, pytest-benchmark, pybind11, cmake and ninja, and nvcc for the CUDA kernels.
#
#     benchmarks/gpu.sh [build] [tests] [check] [bench] [tune] [profile] [sanitize]      no names: all of them, in this order
#
#     PYTHON=python3   the interpreter          FORCE=1      repeat stages that are finished
#     DEVICE=cpu       rehearse the stages on a machine without a GPU, in short form
#     MINUTES=9        stages are stopped when this is used up
#
# Each stage leaves benchmarks/results/<device>/<stage>.json (a rehearsal: benchmarks/results/local/<device>). A stage
# that has passed on these very sources is not run again, so an interrupted run goes on where it stopped.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
FORCE=${FORCE:-0}
DEADLINE=$((SECONDS + ${MINUTES:-9} * 60))
ALL=(build tests check bench tune profile sanitize)
STAGES=("$@")
[ $# -eq 0 ] && STAGES=("${ALL[@]}")
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
[ -d /usr/local/cuda/bin ] && export PATH=$PATH:/usr/local/cuda/bin

fail() {
    echo "gpu.sh: $*" >&2
    exit 1
}

run_module() {
    "$PYTHON" -m benchmarks.gpu "$@"
}

command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not there"
"$PYTHON" -c 'import torch' 2>/dev/null || fail "$PYTHON has no torch; set PYTHON to one that has torch >= 2.10"
case $DEVICE in
    cuda) "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "there is no GPU here that $PYTHON's torch can use. DEVICE=cpu rehearses the stages without one." ;;
    cpu) ;;
    *) fail "DEVICE is '$DEVICE'; it must be cuda or cpu" ;;
esac
for stage in "${STAGES[@]}"; do
    [[ " ${ALL[*]} " == *" $stage "* ]] || fail "there is no stage '$stage'; the stages are: ${ALL[*]}"
done

SLUG=$("$PYTHON" -m benchmarks.gpu slug --device "$DEVICE") || fail "benchmarks.gpu does not run"
RESULTS=benchmarks/results/$SLUG
[ "$DEVICE" = cpu ] && RESULTS=benchmarks/results/local/$SLUG
WORK=build/gpu/$SLUG
mkdir -p "$RESULTS" "$WORK"

# The library goes beside the package's Python files, where `import prosma_ops` finds it without an installation.
stage_build() {
    local cuda=OFF options=()
    if [ "$DEVICE" = cuda ] && command -v nvcc >/dev/null; then
        cuda=ON
        options+=("-DCMAKE_CUDA_ARCHITECTURES=$(run_module architecture)")
    elif [ "$DEVICE" = cuda ]; then
        echo "nvcc is not on PATH: no CUDA C++ kernels; Triton serves the GPU"
    fi
    command -v ninja >/dev/null && options+=(-G Ninja)
    cmake -S . -B "$WORK/cmake" -DCMAKE_BUILD_TYPE=Release -DPROSMA_CUDA=$cuda \
        -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" \
        -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" "${options[@]}" &&
        cmake --build "$WORK/cmake" --parallel &&
        cmake --install "$WORK/cmake" --prefix "$DESTINATION"
}

stage_tests() {
    local selection=(-m gpu)
    [ "$DEVICE" = cpu ] && selection=(tests/test_benchmarks.py)
    "$PYTHON" -m pytest -q -p no:cacheprovider "${selection[@]}" --junitxml="$WORK/tests.xml"
}

stage_check() {
    "$PYTHON" -m prosma_ops check --device "$DEVICE" --json "$WORK/check.json"
}

stage_bench() {
    local short=()
    [ "$DEVICE" = cpu ] && short=(--short)
    "$PYTHON" -m benchmarks --device "$DEVICE" --output "$RESULTS" "${short[@]}"
}

# The table by which `auto` chooses between CUDA C++ and Triton, for the package to be installed with.
stage_tune() {
    if [ "$DEVICE" = cpu ]; then
        echo "there is no GPU: nothing to choose between"
    else
        "$PYTHON" -m benchmarks.tune
    fi
}

stage_profile() {
    run_module profile --device "$DEVICE" --output "$WORK/profile.json"
}

stage_sanitize() {
    run_module sanitize --device "$DEVICE" --output "$WORK/sanitize.json"
}

# The longest a stage may take, in seconds.
declare -A LIMIT=([build]=150 [tests]=120 [check]=120 [bench]=270 [tune]=60 [profile]=90 [sanitize]=90)

DESTINATION=.
# A rehearsal leaves the library that is installed here alone.
[ "$DEVICE" = cpu ] && DESTINATION=$WORK/installed
export PYTHON DEVICE RESULTS WORK DESTINATION
export -f run_module stage_build stage_tests stage_check stage_bench stage_tune stage_profile stage_sanitize

status=0
for stage in "${STAGES[@]}"; do
    # Building again costs seconds where nothing changed, and a library that is missing would spoil the rest.
    if [ "$FORCE" != 1 ] && [ "$stage" != build ] && run_module finished "$stage" --results "$RESULTS"; then
        echo "== $stage: finished before"
        continue
    fi
    left=$((DEADLINE - SECONDS))
    [ "$left" -lt 10 ] && { echo "== $stage: no time left"; status=1; continue; }
    limit=${LIMIT[$stage]}
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $stage (at most $limit s)"
    start=$SECONDS
    timeout --kill-after=10 "$limit" bash -c "stage_$stage" 2>&1 | tee "$WORK/$stage.log"
    code=${PIPESTATUS[0]}
    run_module record "$stage" --device "$DEVICE" --status "$code" --seconds $((SECONDS - start)) \
        --work "$WORK" --results "$RESULTS" || status=1
    [ "$code" -eq 0 ] || status=1
done
run_module table --results "$RESULTS"
exit $status
