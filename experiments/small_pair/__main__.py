"""`python -m experiments.small_pair`."""

from experiments.small_pair.judge import main
from jaxsteer.runtime import run

run(main)
