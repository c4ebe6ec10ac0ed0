"""`python -m prosma_ops` is `prosma-ops`."""

import sys

from .cli import main

sys.exit(main())
