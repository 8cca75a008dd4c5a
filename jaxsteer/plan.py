"""What of a model fits on which chips: `python -m jaxsteer.plan`; the work is `planning`."""

from jaxsteer.planning.mesh_plan import main
from jaxsteer.runtime import run

if __name__ == "__main__":
    run(main)
