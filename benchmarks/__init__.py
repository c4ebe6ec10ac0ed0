"""What the operators are measured on, and against what.

    python -m benchmarks                     everything on this machine's CPU, both allocator settings, and the tables
    python -m benchmarks --short             the most telling rows, in about a minute
    python -m benchmarks --device cuda       the same on a GPU
    python -m benchmarks --base REV          the files at hand against another revision
    python -m benchmarks.sweeps              how cost grows with each parameter, and what threads save
    python -m benchmarks.models              whole networks: inference, training steps, memory
    python -m benchmarks.report RESULTS.json the tables of an earlier run; --markdown for the README
    python -m benchmarks.plots RESULTS.json  its plots
    pytest benchmarks                        one allocator setting, the one that pytest was started with

A new operator adds `benchmarks/<operator>.py` with `works(device)` and the one test that races them, as
`proximal_gate.py` has them, and `benchmarks/sweeps/<operator>.py`; everything else finds the files by that name.
BENCHMARKS.md says how to read what they write.
"""
