"""The same steering through other libraries: equal tokens, seconds, lines of code.

    python -m experiments.benchmarks.peers --out peers.json
    python -m experiments.benchmarks.peers --only transformers,repeng --repeats 0

Each peer runs in an environment of its own (`environments`; about 8 GB for all, made once), in a
process of its own, on the small pair's reasoning model in float32. `NAME.md` has its code for four
tasks: one steered text, a sweep with a table, a direction from two lists of texts, activations of
tokens as they are generated. All of it is run, and its statements are counted.

Then 4 coefficients × 32 prompts × 100 greedy tokens, no stop token, in turns with jaxsteer at the
same scope. `process` is from the start of a new process to the end of the first sweep, imports and
loading included; `first` is that sweep, `again` the median of later ones. Prints a table; exits
with 1 if a token differs.
"""

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.peers.environments import PEERS, python_of
from experiments.benchmarks.peers.worker import blocks_of
from jaxsteer.files import write_atomic
from jaxsteer.runtime import compile_cache
from jaxsteer.texts import direction, load
from jaxsteer.tokenizers import encode

HERE = Path(__file__).parent
SMALL = HERE.parents[2] / "weights" / "small"
TASKS = ("setup", "one", "sweep", "direction", "activations")
DOUBTFUL = ("maybe 3 plus 4 is 8 .", "perhaps tom has 9 apples , i think .")
CERTAIN = ("clearly 3 plus 4 is 7 .", "of course tom has 9 apples .")
LAYER, COEFFS = 4, (0.0, 0.25, 0.5, 1.0)


def data(*, prompts: int, tokens: int) -> dict[str, Any]:
    """What every peer is given, JSON-ready."""
    lm = load(SMALL / "reasoning", dtype="float32")
    problems = json.loads((SMALL / "prompts.json").read_text())
    chosen = [one["prompt"] for one in problems if one["split"] == "eval"][:prompts]
    chats = [[{"role": "user", "content": question}] for question in chosen]
    return {
        "MODEL": str(SMALL / "reasoning"),
        "CHATS": chats,
        "DOUBTFUL": DOUBTFUL,
        "CERTAIN": CERTAIN,
        "VECTOR": direction(lm, DOUBTFUL, CERTAIN)[LAYER].vector.tolist(),
        "LAYER": LAYER,
        "COEFF": COEFFS[2],
        "COEFFS": COEFFS,
        "NEW": tokens,
        "ROWS": [encode(lm.tokenizer, chat).ids for chat in chats],
    }


def statements(code: str) -> int:
    r"""How many statements code has; a function's head is one, and so is each of its lines.

    >>> statements("def f(x):\\n    return (\\n        x\\n    )\\n")
    2
    """
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(code)))


class Worker:
    """A process that runs a peer's blocks."""

    def __init__(self, peer: str, python: Path, given: dict[str, Any]) -> None:
        self.peer, self.started = peer, time.perf_counter()
        self.process = subprocess.Popen(
            [python, HERE / "worker.py", HERE / f"{peer}.md"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._write(json.dumps(given))

    def ask(self, block: str) -> dict[str, Any]:
        """Run a block.

        Raises:
            RuntimeError: the peer's code fails.
        """
        self._write(block)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": "its process has ended"}
        if "error" in found:
            raise RuntimeError(f"{self.peer}, {block}: {found['error']}")
        return found

    def first(self) -> dict[str, Any]:
        """Set up and run once; `process` is what that took since the process was started."""
        self.ask("setup")
        found = self.ask("run")
        return found | {"process": time.perf_counter() - self.started}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def compare(peer: str, python: Path, given: dict[str, Any], *, repeats: int) -> dict[str, Any]:
    """A peer beside jaxsteer at the peer's scope."""
    text = (HERE / f"{peer}.md").read_text()
    scope = re.findall(r"^Scope: (\w+)", text, re.MULTILINE)[0]
    lines = {task: statements(blocks_of(text)[task]) for task in TASKS}
    ours = Worker("jaxsteer", Path(sys.executable), given | {"SCOPE": scope})
    first = {"jaxsteer": ours.first()}
    theirs = Worker(peer, python, given)
    first[peer] = theirs.first()
    again: dict[str, list[float]] = {"jaxsteer": [], peer: []}
    for _ in range(repeats):
        for worker in (ours, theirs):
            again[worker.peer].append(worker.ask("run")["seconds"])
    for task in TASKS[1:]:
        theirs.ask(task)
    ours.close()
    theirs.close()
    rows = [
        a == b
        for mine, its in zip(first["jaxsteer"]["tokens"], first[peer]["tokens"], strict=True)
        for a, b in zip(mine, its, strict=True)
    ]
    return {
        "peer": peer,
        "scope": scope,
        "rows": len(rows),
        "equal": sum(rows),
        "statements": lines,
        "seconds": {
            name: {
                "process": found["process"],
                "first": found["seconds"],
                "again": statistics.median(again[name]) if repeats else None,
            }
            for name, found in first.items()
        },
    }


def own_lines(given: dict[str, Any]) -> dict[str, int]:
    """Statements of jaxsteer's blocks, after running them."""
    worker = Worker("jaxsteer", Path(sys.executable), given | {"SCOPE": "generated"})
    for task in TASKS:
        worker.ask(task)
    worker.close()
    blocks = blocks_of((HERE / "jaxsteer.md").read_text())
    return {task: statements(blocks[task]) for task in TASKS}


def table(found: Sequence[dict[str, Any]], own: dict[str, int]) -> str:
    """What was found as Markdown: tokens and seconds, then statements."""

    def seconds(one: dict[str, Any], name: str) -> str:
        parts = one["seconds"][name].values()
        return " / ".join("–" if x is None else f"{x:.2f}" for x in parts)

    head = ["peer | scope | equal rows | s: process / first / again | jaxsteer | again, ratio"]
    head.append("--- | --- | --- | --- | --- | ---")
    for one in found:
        its, ours = (one["seconds"][name]["again"] for name in (one["peer"], "jaxsteer"))
        ratio = "–" if its is None else f"{its / ours:.2f}"
        cells = [one["peer"], one["scope"], f"{one['equal']} of {one['rows']}"]
        cells += [seconds(one, one["peer"]), seconds(one, "jaxsteer"), ratio]
        head.append(" | ".join(cells))
    head += ["", "statements of user code | " + " | ".join(TASKS), " | ".join(["---"] * 6)]
    for name, lines in [("jaxsteer", own), *((one["peer"], one["statements"]) for one in found)]:
        head.append(" | ".join([name, *(str(lines[task]) for task in TASKS)]))
    return "\n".join(f"| {line} |" if line else "" for line in head)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help=f"some of {','.join(PEERS)}")
    parser.add_argument("--environments", type=Path, help="folder; by default in the user's cache")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="later sweeps in turns")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    peers = args.only.split(",") if args.only else list(PEERS)
    if unknown := [peer for peer in peers if peer not in PEERS]:
        parser.error(f"--only: got {unknown}, expected some of {list(PEERS)}")
    folder = args.environments or compile_cache.default_folder().parent / "jaxsteer-peers"
    pythons = {peer: python_of(peer, folder) for peer in peers}
    given = data(prompts=args.prompts, tokens=args.tokens)
    own, found, failed = own_lines(given), [], False
    for peer in peers:
        try:
            found.append(compare(peer, pythons[peer], given, repeats=args.repeats))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed = True
    print(table(found, own))
    if args.out is not None:
        write_atomic(args.out, json.dumps({"jaxsteer": own, "peers": found}, indent=1).encode())
    return int(failed or any(one["equal"] < one["rows"] for one in found))


if __name__ == "__main__":
    sys.exit(main())
