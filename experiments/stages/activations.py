"""Save the activations of a run's traces: at offsets from sentences, or of every token.

    python -m experiments.activations --out runs/small --layers 4
    python -m experiments.activations --out runs/small --layers 2 4 --all-tokens --models base

Both models read the traces of the reasoning model, as for the directions. A folder
`activations-{model}` for each holds shards (`directions.raw_activations` reads them, too), the
sentences' first tokens and labels being in `sentences.jsonl` beside them. Activations are large:
one token of one layer takes 8 KB at the width of an 8B model in bfloat16.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.pipeline import machines
from experiments.pipeline.run import Run, open_run, stage_parser
from experiments.pipeline.stage_runner import fingerprint, locked
from experiments.stages import derive, label, rollouts
from jaxsteer.directions import Trace, save_activations
from jaxsteer.files import read_rows, write_atomic
from jaxsteer.runtime import begin, end, guarded

SENTENCES = "sentences.jsonl"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is saved."""

    sites: Sequence[str]
    layers: Sequence[int] | None  # all if not given
    offsets: Sequence[int] | None  # from sentences; every token behind the prompt if not given
    rows_per_shard: int = 64


def positions_of(trace: Trace, offsets: Sequence[int] | None) -> list[int]:
    """Tokens of a trace at the offsets from its sentences, or all of them, behind the prompt.

    >>> positions_of(Trace(list(range(9)), 2, [2, 5], ["other"] * 2), [-2, 1])
    [3, 6]
    """
    behind = range(trace.prompt_length, len(trace.tokens))
    if offsets is None:
        return list(behind)
    return sorted({start + o for start in trace.starts for o in offsets} & set(behind))


def save_role(run: Run, role: str, choice: Choice) -> Path:
    """The folder with one model's activations."""
    traces, labels = rollouts.stage(run), label.stage(run)
    provenance: dict[str, Any] = {
        "model": role,
        "models": {role: run.model_fingerprint(role)},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "label_source": label.label_source(run.settings.labels),
        "offsets": None if choice.offsets is None else list(choice.offsets),
    }

    def work(folder: Path) -> None:
        tokenizer = run.tokenizer("reasoning")
        marked = derive.read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        ids = [row["id"] for row in read_rows(traces / rollouts.FILE)]
        read = {id: (t, positions_of(t, choice.offsets)) for id, t in zip(ids, marked, strict=True)}
        kept = {id: at for id, (_, at) in read.items() if at}
        rows = [
            {"id": id, "starts": list(read[id][0].starts), "labels": list(read[id][0].labels)}
            for id in kept
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(folder / SENTENCES, lines.encode())
        save_activations(
            folder,
            run.load(role)[0],
            {id: read[id][0].tokens for id in kept},
            kept,
            sites=choice.sites,
            layers=choice.layers,
            rows_per_shard=choice.rows_per_shard,
            provenance=provenance,
            progress=f"activations, {role} model",
        )

    inputs = {
        **provenance,
        "sites": list(choice.sites),
        "layers": None if choice.layers is None else list(choice.layers),
        "rows_per_shard": choice.rows_per_shard,
    }
    return run.stage(f"activations-{role}", inputs, work)


@guarded(resumes=True)
def main(argv: list[str] | None = None) -> None:
    """Command line; returns the exit code."""
    parser = stage_parser("activations", "Save activations of a run's traces.")
    parser.add_argument("--models", nargs="+", choices=("base", "reasoning"), default=["base"])
    parser.add_argument("--sites", nargs="+", help="default: the direction's")
    parser.add_argument("--layers", type=int, nargs="+", help="default: the direction's")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--offsets", type=int, nargs="+", help="default: the direction's window")
    where.add_argument("--all-tokens", action="store_true", help="of the trace, not of the prompt")
    parser.add_argument("--rows-per-shard", type=int, default=Choice.rows_per_shard)
    args = parser.parse_args(argv)
    with machines.together(args) as mesh:
        run = open_run(args.out, args.config, mesh=mesh)
        direction = run.settings.direction
        choice = Choice(
            sites=args.sites or [direction.site],
            layers=args.layers or [direction.layer],
            offsets=None if args.all_tokens else args.offsets or direction.offsets,
            rows_per_shard=args.rows_per_shard,
        )
        with locked(run.out):
            for role in args.models:
                print(save_role(run, role, choice))


if __name__ == "__main__":
    begin()
    end(main())
