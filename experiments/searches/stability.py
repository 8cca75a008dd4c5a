"""Whether traces that are resampled from a backtracking sentence on backtrack there again.

    python -m experiments.stability --out runs/small
    python -m experiments.stability --out runs/small --samples 4 --boundaries 60

A sentence with a keyword need not be one that the model was about to write: of 541 keyword
boundaries in a recent study (arXiv 2604.02113) 93% were unstable. Here the text before each
boundary is given to the reasoning model `--samples` times, and a boundary's *stability* is the
share of the continuations whose first sentence has a keyword; *stable* is at least one half.

Leaves in the run's folder

    resamples/       `resamples.jsonl`, a row a continuation, of the run's traces and, on the small
                     pair, of texts whose hidden state is known
    stability/       `stability.{json,md,png,svg}`: how many are stable; how well stability tells
                     the hidden state; the direction of the stable events beside that of all, in
                     effect, cosine and coherence
                     `labels.jsonl`: the stable ones alone as backtracking, for `labels.file`
                     `directions.safetensors`: by all, the stable, weighted by stability

The continuations of a boundary share the keys and values of its prefix.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from experiments.pipeline import machines
from experiments.pipeline.run import Run, open_run, stage_parser
from experiments.pipeline.settings import Settings
from experiments.pipeline.stage_runner import fingerprint, locked
from experiments.pipeline.text import decode
from experiments.searches import stability_figure, stable_directions
from experiments.searches.stable_directions import between, three
from experiments.stages import derive, label, presence, rollouts, steer
from jaxsteer.analysis import (
    SentenceLabel,
    auroc,
    bootstrap_interval,
    keyword_labels,
    split_sentences,
    write_labels,
)
from jaxsteer.decoding import rows_that_fit, sampling
from jaxsteer.directions import Trace
from jaxsteer.files import append_rows, read_rows, recover_rows, write_atomic, write_json
from jaxsteer.llama import Model, bucket, left_pad
from jaxsteer.queues import generate_queue
from jaxsteer.runtime import begin, end, guarded, preemption

FILE = "resamples.jsonl"
STEM = stability_figure.STEM
STABLE = 0.5  # of the continuations, from which on a boundary is stable
SEED = 17


@dataclass(frozen=True)
class Choice:
    """What is resampled."""

    samples: int
    boundaries: int | None  # of the run's traces, drawn at random; all if not given
    known: int  # texts whose hidden state is known
    tokens: int  # of a continuation at most, enough for its first sentence
    temperature: float


@dataclass(frozen=True)
class Boundary:
    """A place where a trace starts to backtrack."""

    trace: str
    sentence: int
    prefix: Sequence[int]  # tokens before the sentence, the prompt's among them
    doubt: bool | None = None  # the hidden state there, where it is known


def boundaries_of(traces: dict[str, Trace], most: int | None = None) -> list[Boundary]:
    """Every backtracking sentence that has a token of its own, or so many of them at random."""
    boundaries = [
        Boundary(id, i, trace.tokens[:start])
        for id, trace in traces.items()
        for i, (start, positive) in enumerate(zip(trace.starts, trace.positive, strict=True))
        if positive and trace.prompt_length <= start < len(trace.tokens)
    ]
    if most is None or most >= len(boundaries):
        return boundaries
    chosen = np.random.default_rng(SEED).choice(len(boundaries), most, replace=False)
    return [boundaries[i] for i in sorted(chosen)]


def known_boundaries(count: int, *, room: int) -> list[Boundary]:
    """Boundaries of the small pair's grammar where the hidden state is known.

    In the control's texts backtracking is placed by a coin, so some of it comes under doubt and
    some does not. Each text gives its first backtracking sentence. `room` are the tokens that a
    prefix may have.
    """
    from weights.small_language.corpus import frame
    from weights.small_language.text import CONTROL, documents
    from weights.small_language.tokenizer import encode

    boundaries: list[Boundary] = []
    for number, document in enumerate(documents(40 * count, CONTROL, split="eval")):
        places = [i for i, s in enumerate(document.sentences) if s.backtracking]
        if len(boundaries) == count:
            break
        if not places or not places[0]:
            continue
        head, _ = frame(document, chat=True)
        before = " ".join(s.text for s in document.sentences[: places[0]])
        prefix = encode(f"{head} {before}")
        if len(prefix) <= room:
            doubt = document.sentences[places[0]].doubt
            boundaries.append(Boundary(f"known-{number}", places[0], prefix, doubt))
    return boundaries


def resample(
    folder: Path,
    model: Model,
    tokenizer: Any,
    boundaries: Sequence[Boundary],
    *,
    choice: Choice,
    stops: Sequence[int],
    keywords: Sequence[str],
) -> None:
    """Continue every boundary `samples` times and append a row each to `resamples.jsonl`.

    A row: `trace`, `sentence`, `sample`, `text` (of the continuation), `again` (whether its first
    sentence has a keyword), `doubt`. Goes on after a kill.
    """
    file, samples = folder / FILE, choice.samples
    written = {(r["trace"], r["sentence"], r["sample"]) for r in recover_rows(file)}
    left = [
        row
        for row in range(len(boundaries) * samples)
        if (*_key(boundaries[row // samples]), row % samples) not in written
    ]
    bar = tqdm(total=len(left), desc="resamples", unit="text")
    with preemption.deferred(), bar:
        for row, tokens in _continued(model, boundaries, left, choice=choice, stops=stops):
            boundary = boundaries[row // samples]
            text = decode(tokenizer, boundary.prefix, tokens, stops)
            first = split_sentences(text)[:1]
            outcome = {
                "trace": boundary.trace,
                "sentence": boundary.sentence,
                "sample": row % samples,
                "again": any(keyword_labels(first, keywords)),
                "doubt": boundary.doubt,
                "text": text,
            }
            append_rows(file, [outcome])
            bar.update()
            preemption.stop_if_asked(f"{bar.n} of {len(left)} continuations are in {file}")


def _key(boundary: Boundary) -> tuple[str, int]:
    return boundary.trace, boundary.sentence


def _continued(
    model: Model,
    boundaries: Sequence[Boundary],
    left: Sequence[int],
    *,
    choice: Choice,
    stops: Sequence[int],
) -> Iterator[tuple[int, list[int]]]:
    """Number and new tokens of each row in `left`; row r is of boundary `r // samples`.

    The continuations of a boundary share its prefix, so boundaries of which some are left are
    continued as often as ever, and what was written before is dropped.
    """
    if not left:
        return
    samples, wanted = choice.samples, set(left)
    asked = sorted({row // samples for row in left})
    numbers = [i * samples + sample for i in asked for sample in range(samples)]
    prefixes = [boundaries[i].prefix for i in asked]
    length = bucket(max(map(len, prefixes)), step=16)
    slots = rows_that_fit(model, prompt_length=length, new_tokens=choice.tokens)
    rows = generate_queue(
        model,
        left_pad(prefixes, length=length),
        slots=min(slots, len(numbers), 256),
        samples=samples,
        max_new_tokens=choice.tokens,
        sampling_params=sampling(
            len(numbers), temperature=choice.temperature, seed=SEED, row=numbers
        ),
        stop_tokens=stops,
    )
    for row in rows:
        if numbers[row.index] in wanted:
            yield numbers[row.index], row.tokens


def counts_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[bool]]:
    """By trace and sentence, which continuations backtrack again."""
    counts: dict[tuple[str, int], list[bool]] = {}
    for row in rows:
        counts.setdefault((row["trace"], row["sentence"]), []).append(row["again"])
    return counts


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How stable boundaries are, with 95% intervals over the traces."""
    again = counts_of(rows)
    traces = [trace for trace, _ in again]
    shares = np.array([np.mean(one) for one in again.values()])
    low, high = bootstrap_interval(shares, groups=traces, limits=(0, 1), n_resamples=2000)
    return {
        "boundaries": len(shares),
        "samples": max(map(len, again.values())),
        "again": {"value": float(shares.mean()), "low": low, "high": high, "n": len(set(traces))},
        "stable": presence.share(shares >= STABLE, np.array(traces)),
        "never": presence.share(shares == 0, np.array(traces)),
        "histogram": _histogram(shares),
    }


def truth(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How well stability tells the hidden state, where that is known; one boundary per text."""
    again = counts_of(rows)
    doubt = {(row["trace"], row["sentence"]): row["doubt"] for row in rows}
    if not again:
        return None
    shares = [float(np.mean(one)) for one in again.values()]
    states = [doubt[key] for key in again]
    by_state = {
        name: [s for s, d in zip(shares, states, strict=True) if d == state]
        for name, state in (("under_doubt", True), ("without", False))
    }
    return {
        "auroc": asdict(auroc(shares, states)),
        "again": {name: float(np.mean(one)) if one else None for name, one in by_state.items()},
        "histogram": {name: _histogram(one) for name, one in by_state.items()},
    }


def _histogram(shares: ArrayLike) -> list[int]:
    return np.histogram(shares, stability_figure.EDGES)[0].tolist()


def resampled(run: Run, choice: Choice) -> Path:
    """The folder with `resamples.jsonl`."""
    traces, labels, settings = rollouts.stage(run), label.stage(run), run.settings

    def work(folder: Path) -> None:
        model, tokenizer = run.load("reasoning")
        marked = _marked(run, traces, labels)
        boundaries = boundaries_of(marked, choice.boundaries)
        if _has_grammar(settings):
            room = model.config.max_positions - choice.tokens
            boundaries += known_boundaries(choice.known, room=room)
        resample(
            folder,
            model,
            tokenizer,
            boundaries,
            choice=choice,
            stops=run.stop_tokens("reasoning"),
            keywords=settings.labels.keywords,
        )

    inputs = {
        "model": run.model_fingerprint("reasoning"),
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "choice": asdict(choice),
    }
    return run.stage("resamples", inputs, work)


def _marked(run: Run, traces: Path, labels: Path) -> dict[str, Trace]:
    files = traces / rollouts.FILE, labels / label.FILE
    ids = [row["id"] for row in read_rows(files[0])]
    marked = derive.read_traces(run.tokenizer("reasoning"), *files)
    return dict(zip(ids, marked, strict=True))


def _has_grammar(settings: Settings) -> bool:
    return settings.report.coherence == "grammar"


def stage(run: Run, choice: Choice) -> Path:
    """The folder with `stability.{json,md,png,svg}`, labels and directions."""
    traces, labels, directions = rollouts.stage(run), label.stage(run), derive.stage(run)
    drawn, main = resampled(run, choice), steer.stage(run)["reasoning"]

    def work(folder: Path) -> None:
        rows = list(read_rows(drawn / FILE))
        own = [row for row in rows if row["doubt"] is None]
        shares = {key: float(np.mean(one)) for key, one in counts_of(own).items()}
        _write_labels(folder, labels / label.FILE, shares)
        numbers = {
            "traces": summary(own),
            "known": truth([row for row in rows if row["doubt"] is not None]),
            "stable_from": STABLE,
            "choice": asdict(choice),
        }
        marked = _marked(run, traces, labels)
        numbers["directions"] = stable_directions.compare(
            run, folder, marked, shares, directions=directions, main=main, stable=STABLE
        )
        write_json(folder / f"{STEM}.json", numbers)
        stability_figure.draw(numbers, folder)
        write_atomic(folder / f"{STEM}.md", ("\n".join(words(numbers)) + "\n").encode())

    inputs = {
        "resamples": fingerprint(drawn),
        "directions": fingerprint(directions),
        "sweep": fingerprint(main),
        "texts": stable_directions.inputs(run),
        "stable": STABLE,
    }
    return run.stage(STEM, inputs, work)


def _write_labels(folder: Path, sentences: Path, shares: dict[tuple[str, int], float]) -> None:
    """The stable boundaries as backtracking, all other sentences as other."""
    write_labels(
        folder / "labels.jsonl",
        (
            SentenceLabel(
                row["id"],
                start,
                stop,
                "backtracking" if shares.get((row["id"], i), 0.0) >= STABLE else "other",
            )
            for row in read_rows(sentences)
            for i, (start, stop, _) in enumerate(row["sentences"])
        ),
    )


def words(numbers: dict[str, Any]) -> list[str]:
    """What came out, as Markdown."""
    one, known = numbers["traces"], numbers["known"]
    lines = [
        "# Stability of backtracking boundaries",
        "",
        f"Of {one['boundaries']} keyword boundaries, each resampled {one['samples']} times, the "
        f"first sentence backtracks again in {between(one['again'], 'value')} of the "
        f"continuations; {between(one['stable'], 'share')} of the boundaries are stable (at "
        f"least {numbers['stable_from']:g}), {between(one['never'], 'share')} never backtrack "
        "again. Intervals are 95% over traces.",
        "",
    ]
    if known:
        area = known["auroc"]
        lines += [
            f"Where the hidden state is known ({area['n_events']} boundaries under doubt, "
            f"{area['n_other']} without), stability tells it with an AUROC of "
            f"{between(area)}: {three(known['again']['under_doubt'])} of the continuations "
            f"backtrack again under doubt, {three(known['again']['without'])} without.",
            "",
        ]
    return [*lines, *stable_directions.words(numbers["directions"])]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected at least 1")
    return value


@guarded(resumes=True)
def main(argv: list[str] | None = None) -> None:
    """Command line; returns the exit code."""
    parser = stage_parser("stability", "Whether keyword boundaries backtrack again.")
    parser.add_argument("--samples", type=_positive, default=10, help="of each boundary (10)")
    parser.add_argument("--boundaries", type=_positive, help="so many at random (default: all)")
    parser.add_argument(
        "--known", type=_positive, default=200, help="texts with a known hidden state (200)"
    )
    parser.add_argument("--tokens", type=_positive, default=24, help="of a continuation (24)")
    parser.add_argument(
        "--temperature", type=float, help="default: the rollouts', or 1 if those are greedy"
    )
    args = parser.parse_args(argv)
    with machines.together(args) as mesh:
        run = open_run(args.out, args.config, mesh=mesh)
        own = run.settings.rollouts.temperature or 1.0
        choice = Choice(
            samples=args.samples,
            boundaries=args.boundaries,
            known=args.known,
            tokens=args.tokens,
            temperature=own if args.temperature is None else args.temperature,
        )
        with locked(run.out):
            folder = stage(run, choice)
    print((folder / f"{STEM}.md").read_text())


if __name__ == "__main__":
    begin()
    end(main())
