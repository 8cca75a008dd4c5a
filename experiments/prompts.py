"""Write reasoning problems of the paper's ten kinds, with answers, from templates and a seed.

    python -m experiments.prompts --out prompts.json

The paper's 300 problems were written by a language model; these are drawn from templates, so that
anybody can make them, and more of them, and so that their answers are known: each is found twice,
by a formula and by trying or counting (`experiments/problems`), and the two must agree.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from experiments.problems.chances import COUNTING, PROBABILITY, SETS
from experiments.problems.logic import LOGIC
from experiments.problems.numbers import ARITHMETIC, INEQUALITIES, NUMBER_THEORY, SEQUENCES
from experiments.problems.problem import Problem, Template
from experiments.problems.quantities import ALGEBRA, GEOMETRY
from jaxsteer.files import as_path, write_atomic
from jaxsteer.runtime import guarded, run

KINDS: Mapping[str, tuple[Template, ...]] = {
    "logic": LOGIC,
    "geometry": GEOMETRY,
    "probability": PROBABILITY,
    "arithmetic": ARITHMETIC,
    "counting": COUNTING,
    "number-theory": NUMBER_THEORY,
    "sets": SETS,
    "sequences": SEQUENCES,
    "inequalities": INEQUALITIES,
    "algebra-word-problems": ALGEBRA,
}
"""The paper's kinds of prompts, and the templates of each."""

_TRIES = 1000  # to draw one that is not there yet


def make_prompts(*, per_kind: int = 30, held_out: int = 2, seed: int = 0) -> list[dict[str, str]]:
    """Problems as `{id, kind, prompt, answer, split}`, the kinds in turn.

    So the first so many of a split are of all kinds.


    Args:
        per_kind: how many of each kind; its templates take turns.
        held_out: how many of each kind are in the split "eval", the others in "dom".
        seed: of the drawing. A kind's problems do not depend on the other kinds.

    Raises:
        ValueError: for numbers that cannot be, templates that have not so many different problems,
            or an answer that its check does not confirm.
    """
    if not 0 < held_out < per_kind:
        raise ValueError(f"held_out: got {held_out}, expected 1 to per_kind - 1 = {per_kind - 1}")
    rows = []
    for kind, templates in KINDS.items():
        rng = random.Random(f"{seed} {kind}")  # seeded by the text's hash, alike on every machine
        texts: set[str] = set()
        chosen: list[Problem] = []
        for i in range(per_kind):
            problem = _new(rng, templates[i % len(templates)], texts)
            if problem.answer != problem.check:
                raise ValueError(
                    f"{kind}: answer {problem.answer}, its check finds {problem.check}: "
                    f"{problem.text}"
                )
            texts.add(problem.text)
            chosen.append(problem)
        held = set(rng.sample(range(per_kind), held_out))
        rows += [
            {
                "id": f"{kind}-{i:03}",
                "kind": kind,
                "prompt": one.text,
                "answer": one.answer,
                "split": "eval" if i in held else "dom",
            }
            for i, one in enumerate(chosen)
        ]
    seen: Counter[tuple[str, str]] = Counter()
    ranks = []
    for row in rows:
        ranks.append(seen[row["kind"], row["split"]])
        seen[row["kind"], row["split"]] += 1
    return [row for _, row in sorted(zip(ranks, rows, strict=True), key=lambda pair: pair[0])]


def prompts_file(rows: Sequence[Mapping[str, str]]) -> bytes:
    """The rows as a JSON list with one of them a line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n".encode()


def _new(rng: random.Random, template: Template, texts: set[str]) -> Problem:
    """A problem whose text is not in `texts`."""
    for _ in range(_TRIES):
        problem = template(rng)
        if problem.text not in texts:
            return problem
    raise ValueError(f"per_kind: {template.__name__} has no more different problems")


@guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prompts",
        description="Write reasoning problems of ten kinds, with answers.",
    )
    parser.add_argument("--out", type=as_path, required=True, metavar="FILE", help="a JSON list")
    parser.add_argument("--per-kind", type=int, default=30, help="problems of each kind (30)")
    parser.add_argument("--held-out", type=int, default=2, help="of which held out (2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rows = make_prompts(per_kind=args.per_kind, held_out=args.held_out, seed=args.seed)
    write_atomic(args.out, prompts_file(rows))
    held = sum(row["split"] == "eval" for row in rows)
    print(f"{args.out}: {len(rows)} problems of {len(KINDS)} kinds, {held} of them held out")
    return 0


if __name__ == "__main__":
    run(main)
