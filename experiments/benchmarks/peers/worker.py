"""Run a peer's blocks of code in the peer's own environment, as asked on standard input.

    python worker.py transformers.md

The first line is JSON with the data that all peers get; each further line is a block to run. `run`
defines a function, which is called and timed. An answer is a line of JSON. Imports only the
standard library: whatever else is there is the peer's.
"""

import json
import linecache
import re
import sys
import time
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^## (\w+)\n.*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)


def blocks_of(text: str) -> dict[str, str]:
    r"""The Python of a peer's page by heading.

    >>> blocks_of("## one\nwords\n```python\nx = 1\n```\n")
    {'one': 'x = 1\n'}
    """
    return dict(_BLOCK.findall(text))


def padded(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids padded on the left, and which of them are no padding.

    >>> padded([[5, 8], [7]])
    ([[5, 8], [0, 7]], [[1, 1], [0, 1]])
    """
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    return ids, [[0] * (longest - len(row)) + [1] * len(row) for row in rows]


def answer(blocks: dict[str, str], names: dict[str, Any], wanted: str) -> dict[str, Any]:
    """Run one block; of `run`, the seconds and the tokens."""
    if wanted not in names["done"]:
        lines = blocks[wanted].splitlines(keepends=True)  # some peers read their caller's source
        linecache.cache[wanted] = len(blocks[wanted]), None, lines, wanted
        exec(compile(blocks[wanted], wanted, "exec"), names)
        names["done"].add(wanted)
    if wanted != "run":
        return {"done": wanted}
    started = time.perf_counter()
    tokens = names["run"]()
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def main() -> None:
    """Answer until standard input ends."""
    blocks = blocks_of(Path(sys.argv[1]).read_text())
    out, sys.stdout = sys.stdout, sys.stderr  # peers print what they like
    names: dict[str, Any] = {"done": set()} | json.loads(sys.stdin.readline())
    names["IDS"], names["MASK"] = padded(names["ROWS"])
    for line in sys.stdin:
        try:
            found = answer(blocks, names, line.strip())
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
