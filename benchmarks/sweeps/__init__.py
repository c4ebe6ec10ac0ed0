"""How the cost of each operator grows, how threads help, and what a call costs before anything is computed.

    python -m benchmarks.sweeps                     every operator, a quarter of an hour on two cores
    python -m benchmarks.sweeps transport --short   the first points of some sweeps

`benchmarks/sweeps/<operator>.py` names an operator's sweeps; `sweep.py` measures their points, `tiling.py` makes
problems of gigabytes whose results can be checked, `growth.py` fits exponents and prints, `start.py` measures imports
and first calls in fresh processes. Here are names alone, as `start.py` must not have imported torch before it measures.
"""

SWEEPS = "sweeps-"  # how the names of results files begin, before the operator's
THREADS, SMALL_SIZES = "threads", "small sizes"  # sweeps that every operator has

# The function of each operator that comes first.
PUBLIC = {
    "proximal_gate": "proximal_gate",
    "transport": "transport_plan",
    "codebook": "nearest_code",
    "logit_mixing": "mixed_logit_statistics",
}
