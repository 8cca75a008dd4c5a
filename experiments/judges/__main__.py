"""`python -m experiments.judges`."""

from experiments.judges.command import main
from jaxsteer.runtime import run

run(main)
