"""What the operators are measured on, and against what.

    python -m benchmarks                     everything on this machine's CPU, both allocator settings, and the tables
    python -m benchmarks --short             the most telling rows, in about a minute
    python -m benchmarks --device cuda       the same on a GPU
    python -m benchmarks.models              whole networks: inference, training steps, memory
    python -m benchmarks.report RESULTS.json the tables of an earlier run; --markdown for the README
    pytest benchmarks                        one allocator setting, the one that pytest was started with

A new operator adds `benchmarks/<operator>.py` with `works(device)` and the one test that races them, as
`proximal_gate.py` has them; everything else finds the file by that name.
"""
