"""What tests, `prosma-ops check` and the benchmarks share: the tolerance rule, the cases, the parity runner.

    from prosma_ops.testing import compare
    verdict = compare(result, float64_reference, eager_result)      # .ok, .error, .bound, .reason

`tolerance.py` states the rule; `<operator>.py` holds an operator's cases; `parity.py` runs them; `faults.py` plants
errors to show that they are found.
"""

from .case import Case, Problem, Suite
from .parity import Record, run
from .tolerance import Comparison, compare

__all__ = ["Case", "Comparison", "Problem", "Record", "Suite", "compare", "run"]
