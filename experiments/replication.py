"""Check jaxsteer's metrics, directions and sentences against a published replication's data.

    python -m experiments.replication FOLDER [--tokenizer TOKENIZER]

FOLDER holds the files of an independent PyTorch replication of the paper: `prompts.json`,
`traces.json.gz`, `steering_results.json.gz` and `dom_layer10.safetensors`. Every keyword rate in
it, keywords over words, must come out of our metric as the same float. Its directions must load and
have the cosine it reports, and its traces must split into sentences whose spans cover them. With a
tokenizer (a Hugging Face folder, or the `tokenizer.model` that Meta publishes) the sentences'
tokens must hold them, too. Exits with 1 if anything does not hold.
"""

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxsteer.analysis import (
    keyword_counts,
    keyword_labels,
    keyword_matches_per_word,
    mean_se,
    repetition,
    split_sentences,
    token_spans,
)
from jaxsteer.directions import cosine, load_replication
from jaxsteer.files import MOST_DATA, as_path, read_json
from jaxsteer.runtime import guarded, run, wrong
from jaxsteer.tokenizers import R1_NAMED, load_tokenizer, meta_tokenizer

FILES = ("prompts.json", "traces.json.gz", "steering_results.json.gz", "dom_layer10.safetensors")
CELL = ("target", "source", "magnitude")

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What one check says, and what did not hold."""

    lines: list[str]
    failures: list[str]


def check_rates(rows: Sequence[Row], *, expected: int) -> Report:
    """Recompute the keyword rate of each row and compare floats and counts exactly.

    The replication reads Eq. 1 as keywords over words, and writes 0 for an empty generation, which
    has no rate.
    """
    wrong = []
    for i, row in enumerate(rows):
        n_keywords, n_words = keyword_counts(row["text"])
        rate = keyword_matches_per_word(row["text"]) if n_words else 0.0
        if (n_keywords, n_words, rate) != (row["wait_count"], row["n_words"], row["keyword_rate"]):
            where = ", ".join(str(row[field]) for field in (*CELL, "prompt_id"))
            wrong.append(
                f"row {i} ({where}): {row['wait_count']} / {row['n_words']} = "
                f"{row['keyword_rate']!r}, recomputed {n_keywords} / {n_words} = {rate!r}"
            )
    lines = [f"keyword rates: {len(rows) - len(wrong)}/{len(rows)} exact"]
    columns = [{row[field] for row in rows} for field in (*CELL, "prompt_id")]
    distinct = {tuple(row[field] for field in (*CELL, "prompt_id")) for row in rows}
    grid = math.prod(len(column) for column in columns)
    if not len(rows) == len(distinct) == grid == expected:
        wrong.append(
            f"steering results: {len(rows)} rows, {len(distinct)} of them distinct, in a grid of "
            f"{' x '.join(str(len(column)) for column in columns)}; expected {expected}"
        )
    return Report(lines, wrong)


def mean_rates(rows: Sequence[Row]) -> list[str]:
    """Tabulate the keyword rate of each cell: with empty generations as 0, and without them.

    Beside the rate stands the share of repeated word 4-grams: at high magnitudes the text
    collapses, and the rate then measures the collapse.
    """
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[field] for field in CELL), []).append(row)
    lines = [
        f"{'':41}{'empty as 0':>10}  {'without the empty':>17}",
        f"{'target':10}{'source':24}{'coeff':>6} {'mean':>10}  {'mean':>8} {'SE':>8}"
        f" {'n':>4} {'empty':>6} {'repetition':>11}",
    ]
    for (target, source, magnitude), group in cells.items():
        rates = [keyword_matches_per_word(row["text"]) for row in group]
        rate, all_rows = mean_se(rates), mean_se(np.nan_to_num(rates))
        repeated = mean_se([repetition(row["text"]) for row in group])
        lines.append(
            f"{target:10}{source:24}{magnitude:6g} {all_rows.mean:10.4f}  {rate.mean:8.4f} "
            f"{rate.se:8.4f} {rate.n:4} {rate.n_empty:6} {repeated.mean:11.3f}"
        )
    return lines


def check_directions(path: Path, *, expected: float) -> Report:
    """Load the replication's directions and compare the cosine of the unions to four decimals."""
    directions = load_replication(path)
    if missing := {"base.union", "reasoning.union"} - set(directions):
        return Report([], [f"{path.name}: no {sorted(missing)[0]}"])
    base, reasoning = directions["base.union"], directions["reasoning.union"]
    similarity = cosine(base, reasoning)
    lines = [
        f"directions: {len(directions)}, layer {base.layer}, {base.site}, width {base.width}; "
        f"norms of the unions: base {base.norm:.3f}, reasoning {reasoning.norm:.3f}",
        f"cosine of base.union and reasoning.union: {similarity:.4f}",
    ]
    if abs(similarity - expected) > 5e-5:
        return Report(lines, [f"{path.name}: cosine {similarity:.6f}, expected {expected}"])
    return Report(lines, [])


def check_sentences(traces: Sequence[Row], prompts: Sequence[Row], *, expected: int) -> Report:
    """Split each trace and see that the spans cover it and that each trace has its prompt."""
    counts, flagged, failures = [], 0, []
    for trace in traces:
        text = trace["full_response"]
        sentences = split_sentences(text)
        held = all(text[s.start : s.stop] == s.text for s in sentences)
        ordered = all(a.stop <= b.start for a, b in itertools.pairwise(sentences))
        visible = sum(not c.isspace() for c in text)
        covered = sum(not c.isspace() for s in sentences for c in s.text)
        if not (held and ordered and covered == visible):
            failures.append(f"trace {trace['question_id']}: the sentences do not cover the text")
        counts.append(len(sentences))
        flagged += sum(keyword_labels(sentences))
    if len(traces) != expected:
        failures.append(f"traces: {len(traces)}, expected {expected}")
    if {trace["question_id"] for trace in traces} != {prompt["id"] for prompt in prompts}:
        failures.append("traces: not one for each prompt")
    closed = sum("</think>" in trace["full_response"] for trace in traces)
    lines = [
        f"prompts: {len(prompts)} in {len({p['category'] for p in prompts})} categories, "
        + ", ".join(f"{n} {split}" for split, n in Counter(p["split"] for p in prompts).items()),
        f"traces: {len(traces)}, {closed} of them with </think>",
    ]
    if counts:
        lines.append(
            f"sentences: {sum(counts)}, {min(counts)} to {max(counts)} a trace, median "
            f"{np.median(counts):g}; {flagged} hold a keyword"
        )
    return Report(lines, failures)


def check_tokens(traces: Sequence[Row], tokenizer: Any) -> Report:
    """Encode each trace and see that its sentences' tokens hold them, and little else.

    A sentence's tokens may begin with the white space before it and end with the characters after
    it that its last token holds; they must be those whose offsets overlap it.
    """
    failures, n_tokens, before, empty = [], 0, 0, 0
    for trace in traces:
        text, sentences = trace["full_response"], split_sentences(trace["full_response"])
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        n_tokens += len(ids)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            failures.append(f"trace {trace['question_id']}: encoded and decoded it is another text")
            continue
        for sentence, (first, stop) in zip(sentences, token_spans(offsets, sentences), strict=True):
            inside = [
                i for i, (a, b) in enumerate(offsets) if a < sentence.stop and b > sentence.start
            ]
            held = tokenizer.decode(ids[first:stop], clean_up_tokenization_spaces=False)
            empty += first == stop
            before += offsets[first][0] < sentence.start if first < stop else 0
            if inside != list(range(first, stop)) or sentence.text not in held:
                failures.append(
                    f"trace {trace['question_id']}: sentence {sentence.start}:{sentence.stop} has "
                    f"the tokens {first}:{stop}, which say {held!r}"
                )
    n = sum(len(split_sentences(trace["full_response"])) for trace in traces)
    line = (
        f"tokens: {n_tokens}; of {n} sentences {before} begin inside a token, as with the space "
        f"before a word, {empty} have none"
    )
    return Report([line], failures)


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a Hugging Face folder, or of Meta's `tokenizer.model`.

    Raises:
        ValueError, OSError: if it does not load.
    """
    if path.is_file():
        return meta_tokenizer(path, renamed=R1_NAMED)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return load_tokenizer(path)


def check(
    folder: Path, *, rows: int, traces: int, cosine: float, tokenizer: Path | None = None
) -> list[Report]:
    """Run every check on the folder's files; see `main` for the numbers expected.

    Raises FileNotFoundError, naming all the files that are missing, or ValueError.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}")
    results = read_json(folder / "steering_results.json.gz", most=MOST_DATA)
    if not isinstance(results, dict) or "rows" not in results:
        raise ValueError("steering_results.json.gz: expected an object with rows")
    keys = (*CELL, "prompt_id", "keyword_rate", "n_words", "wait_count", "text")
    steered = records(results["rows"], keys, "steering_results.json.gz")
    told = records(
        read_json(folder / "traces.json.gz", most=MOST_DATA),
        ("question_id", "full_response"),
        "traces.json.gz",
    )
    prompts = records(
        read_json(folder / "prompts.json", most=MOST_DATA),
        ("id", "category", "split"),
        "prompts.json",
    )
    loaded = read_tokenizer(tokenizer) if tokenizer else None
    return [
        check_rates(steered, expected=rows),
        Report(mean_rates(steered), []),
        check_directions(folder / "dom_layer10.safetensors", expected=cosine),
        check_sentences(told, prompts, expected=traces),
        *([check_tokens(told, loaded)] if loaded is not None else []),
    ]


def records(content: Any, keys: Sequence[str], name: str) -> list[Row]:
    """Return `content` if it is a list of objects with these keys; ValueError otherwise."""
    if not isinstance(content, list):
        raise wrong(name, type(content).__name__, "a list")
    for i, row in enumerate(content):
        if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
            raise ValueError(f"{name}: record {i} has no {missing[0]!r}")
    return content


@guarded()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.replication",
        description="Check jaxsteer against the data of a PyTorch replication of the paper.",
    )
    parser.add_argument("folder", type=as_path, metavar="FOLDER", help="the replication's files")
    parser.add_argument("--rows", type=int, default=640, help="steered texts expected (640)")
    parser.add_argument("--traces", type=int, default=300, help="traces expected (300)")
    parser.add_argument(
        "--cosine", type=float, default=0.7941, help="cosine of the unions expected (0.7941)"
    )
    parser.add_argument(
        "--tokenizer", type=as_path, help="also check tokens: a Hugging Face folder, or Meta's file"
    )
    options = parser.parse_args(arguments)
    reports = check(
        options.folder,
        rows=options.rows,
        traces=options.traces,
        cosine=options.cosine,
        tokenizer=options.tokenizer,
    )
    for report in reports:
        print("\n".join(report.lines))
    failures = [failure for report in reports for failure in report.failures]
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"{len(failures)} failed" if failures else "all checks hold")
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
