"""`python -m experiments.report`."""

import sys

from experiments.pipeline.run import command
from experiments.report.page import stage

sys.exit(command("report", "The last stages: figures, claims table, report and page.", stage))
