"""How the cost of each operator grows, how threads help, and what a call costs before anything is computed.

    python -m benchmarks.sweeps                     every operator, a quarter of an hour on two cores
    python -m benchmarks.sweeps transport --short   the first points of some sweeps

`benchmarks/sweeps/<operator>.py` names an operator's sweeps; `sweep.py` measures their points, `tiling.py` makes
problems of gigabytes whose results can be checked, `growth.py` fits exponents and prints, `start.py` measures imports
and first calls in fresh processes.
"""
