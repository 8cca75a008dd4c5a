"""The command `jaxsteer`: what the other rooms do, in a terminal.

Options and files in; texts, tables and files out. An error is one line. Most commands
have a file of their name; `convert`, `verify` and `export` are in `models`, `plan` and `doctor` in
`machine`. Options of several commands are in `options`; `inputs` reads what they refer to.

Uses all rooms; nothing uses it.
"""

from jaxsteer.cli.commands import main

__all__ = ["main"]
