"""Convert a Hugging Face folder into a checkpoint: the command of `jaxsteer.models`."""

from jaxsteer.models.conversion import main
from jaxsteer.runtime import run, without_accelerator, without_torch

if __name__ == "__main__":
    without_accelerator()
    without_torch()
    run(main)
