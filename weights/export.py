"""Write a checkpoint as a Hugging Face folder: the command of `jaxsteer.models`."""

from jaxsteer.models.exporting import main
from jaxsteer.runtime import run, without_accelerator

if __name__ == "__main__":
    without_accelerator()
    run(main)
