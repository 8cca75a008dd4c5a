"""`python -m experiments.report`."""

import sys

from experiments.pipeline.run import command
from experiments.report.stage import stage

sys.exit(command("report", "The last stage: figures, claims table and report.", stage))
