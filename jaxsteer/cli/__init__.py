"""The command `jaxsteer`: what the other rooms do, in a terminal.

Options and files in; texts, tables and files out. An error is one line.

Uses all rooms; nothing uses it.
"""

from jaxsteer.cli.commands import main

__all__ = ["main"]
