"""`python -m jaxsteer`, the same as the command `jaxsteer`."""

from jaxsteer.cli import main

if __name__ == "__main__":
    main()
