"""Write problems of the small pair: `python -m weights.small_problems FILE`."""

from jaxsteer.runtime import run
from weights.small_language.problems import main

if __name__ == "__main__":
    run(main)
