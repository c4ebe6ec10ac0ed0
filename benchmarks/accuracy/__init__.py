"""How well networks segment: trainings of a fixed number of steps, on public images, with several seeds.

    export PROSMA_DATA=folder               that holds hippocampus/ and usgra/
    python -m benchmarks.accuracy run       the cells that have no result yet, one after the other; Ctrl-C stops it,
                                            and the same command goes on where it was
    python -m benchmarks.accuracy table     a table of what is there; cells that are not say so

A cell is a row of the table, and a run one seed of it: its result is a JSON in results/, its training a folder of
`prosma-ops train` elsewhere.
"""
