# Every target sets up what it needs in .venv and needs nothing before it. `make help` lists them.
# `make gpu` alone uses the Python it finds: a GPU machine brings its own torch, and often has no network.

PYTHON ?= python3
# Named in every install together with the extras, or pip may replace torch by another build of gigabytes.
TORCH ?= torch==2.13.0
EXTRAS := triton,test,lint
# In .venv rather than in pip's isolated environment, which is new each time, and with it everything compiled.
BUILD_TOOLS := "scikit-build-core>=1.0" "pybind11>=3.0" cmake ninja

# Broken C++ must not hide behind the pure-Python fallback.
PROSMA_REQUIRE_NATIVE ?= 1
export PROSMA_REQUIRE_NATIVE

VENV := .venv
RUN := $(VENV)/bin/python
# torch is part of the name, so that another TORCH= installs anew.
INSTALLED := $(VENV)/.installed-$(shell printf %s '$(TORCH)' | tr -c 'a-zA-Z0-9.' '-')

# A process a core, each with whole files, as the tests of a file share what they compute, in the order of
# tests/conftest.py, which has long files first. A test has one thread. Without the last option a run whose process
# crashed would wait for it for ever.
SIDE_BY_SIDE := --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# What `make demo` writes.
DEMO := build/demo

.PHONY: help install demo test test-slow bench sweeps tables check lint format gpu cuda-version clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

install: $(INSTALLED) ## .venv with the package, editable, and every tool

# build/editable is kept, so that a change to one kernel compiles that kernel only.
$(INSTALLED): pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)" $(BUILD_TOOLS)
	$(RUN) -m pip install --quiet --no-build-isolation --config-settings=build-dir=build/editable "$(TORCH)" \
		--editable ".[$(EXTRAS)]"
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(INSTALLED) ## small cases against float64, a short benchmark, two trainings, and build/demo/report.html
	mkdir -p $(DEMO)
	$(VENV)/bin/prosma-ops check --size tiny --json $(DEMO)/parity.json
	$(RUN) -m benchmarks --short --output $(DEMO)/speeds
	$(VENV)/bin/prosma-ops demo --out $(DEMO) --parity $(DEMO)/parity.json --speeds $(DEMO)/speeds/*.json

test: $(INSTALLED) ## the tests, without the slow ones
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(INSTALLED) ## the slow tests: long compiles, builds of the package, training
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m slow

check: $(INSTALLED) ## every operator, backend, dtype and layout against the float64 reference
	$(VENV)/bin/prosma-ops check

bench: $(INSTALLED) ## every operator against its rivals, with the floors; see BENCHMARKS.md
	$(RUN) -m benchmarks

sweeps: $(INSTALLED) ## how cost grows with every parameter and with threads, and plots of it: a quarter of an hour
	$(RUN) -m benchmarks.sweeps

tables: $(INSTALLED) ## what README and BENCHMARKS.md say was measured, from what is kept in benchmarks/results
	$(RUN) -m benchmarks.tables

lint: $(INSTALLED) ## ruff, mypy, the tables of README and BENCHMARKS.md, and the schemas of the workflows and of CITATION.cff
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -m benchmarks.tables --check
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(INSTALLED) ## what `make lint` asks of the layout
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

gpu: ## build for the GPU present, test, check and measure on it; needs no network and no .venv
	PYTHON="$(PYTHON)" bash benchmarks/gpu.sh

cuda-version: ## the version's name with CUDA 13 in it, for wheels beside the CPU's
	sed -i -E 's/^(__version__ = "[^"]+)"/\1+cu130"/' prosma_ops/__init__.py

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
