"""Check a converted checkpoint against its source: the command of `jaxsteer.models`."""

from jaxsteer.models.verification import main
from jaxsteer.runtime import run

if __name__ == "__main__":
    run(main)
