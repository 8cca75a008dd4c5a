"""Write the names that a shell completes."""

import json

from jaxsteer.cli.commands import jaxsteer
from jaxsteer_command import NAMES, names_of

if __name__ == "__main__":
    NAMES.write_text(json.dumps(names_of(jaxsteer), indent=1) + "\n")
