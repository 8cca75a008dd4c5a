"""`python -m experiments.small_pair`."""

import sys

from experiments.small_pair.judge import main

sys.exit(main())
