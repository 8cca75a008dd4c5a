"""`python -m experiments.judges`."""

import sys

from experiments.judges.command import main

sys.exit(main())
