r"""Label the sentences of traces by keywords, or by a language model behind an endpoint.

    python -m experiments.judges keywords TRACES --out labels.jsonl
    python -m experiments.judges llm TRACES --out labels.jsonl --url https://api.openai.com/v1 \
        --model gpt-4o --price-in 2.5 --price-out 10

TRACES is a run's `rollouts/traces.jsonl`, or a JSON list of traces with an id and a text. The model
is asked for some sentences at a time; before the first request stands what it will cost, and every
answer is kept in a file beside the labels, so that nothing is paid for twice. The key comes from an
environment variable and is written nowhere.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.judges.language_model import Estimate, Names, Traces, llm_judge, within
from experiments.judges.settings import Judge, read_section
from jaxsteer.analysis import (
    KEYWORDS,
    OTHER,
    Sentence,
    SentenceLabel,
    keyword_labels,
    split_sentences,
    write_labels,
)
from jaxsteer.files import MOST_DATA, as_path, check_regular, read_json, read_rows, write_atomic
from jaxsteer.runtime import guarded


def keyword_judge(traces: Traces, keywords: Sequence[str] = KEYWORDS) -> Names:
    """Label sentences with a keyword as backtracking, the others as other."""
    return {
        id: ["backtracking" if found else OTHER for found in keyword_labels(sentences, keywords)]
        for id, sentences in traces.items()
    }


def read_traces(path: Path) -> dict[str, list[Sentence]]:
    """The sentences of each trace of a file: JSON lines or a JSON list, compressed or not.

    The id stands under `id` or `question_id`, the text under `text` or `full_response`.

    Raises:
        FileNotFoundError, ValueError: for a file that is not there or holds something else.
    """
    check_regular(path)
    rows = read_rows(path) if path.suffix == ".jsonl" else read_json(path, most=MOST_DATA)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of traces")
    traces = {}
    for i, row in enumerate(rows):
        id, text = row.get("id", row.get("question_id")), row.get("text", row.get("full_response"))
        if not isinstance(id, str) or not isinstance(text, str):
            raise ValueError(f"{path}: trace {i}: expected a text 'id' and a text 'text'")
        if id in traces:
            raise ValueError(f"{path}: trace {i}: the id {id!r} is there twice")
        traces[id] = split_sentences(text)
    return traces


def sentence_labels(traces: Traces, names: Names) -> list[SentenceLabel]:
    """Labels as they stand in a file."""
    return [
        SentenceLabel(trace=id, start=sentence.start, stop=sentence.stop, label=name)
        for id, sentences in traces.items()
        for sentence, name in zip(sentences, names[id], strict=True)
    ]


def ask_user(estimated: Estimate) -> None:
    """Agree if somebody at the terminal says yes."""
    print(estimated)
    if not sys.stdin.isatty():
        raise ValueError("nobody is there to agree to the cost: pass --yes")
    if input("Go ahead? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("not agreed to, nothing was asked")


@guarded(resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _parser().parse_args(argv)
    traces = read_traces(args.traces)
    about: dict[str, Any] = {"judge": args.judge}
    if args.judge == "keywords":
        about["keywords"] = args.keywords
        names = keyword_judge(traces, args.keywords)
    else:
        judge = read_section(Judge, {name: getattr(args, name) for name in _JUDGE_OPTIONS})
        about |= {"url": judge.url, "model": judge.model}
        about["sentences_per_request"] = judge.sentences_per_request
        cache = args.cache or args.out.with_suffix(".cache.jsonl")
        agree = within(math.inf) if args.yes else ask_user
        names = llm_judge(traces, judge=judge, cache=cache, agree=agree)
    labels = sentence_labels(traces, names)
    counts = Counter(label.label for label in labels)
    write_labels(args.out, labels)
    about |= {"traces": len(traces), "sentences": len(labels), "labels": dict(counts)}
    write_atomic(args.out.with_suffix(".about.json"), json.dumps(about, indent=1).encode())
    told = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    print(f"{args.out}: {len(labels)} sentences of {len(traces)} traces: {told}")
    return 0


_JUDGE_OPTIONS = (
    "url",
    "model",
    "price_in",
    "price_out",
    "key_variable",
    "sentences_per_request",
    "concurrency",
    "timeout",
    "attempts",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.judges", description="Label the sentences of traces."
    )
    judges = parser.add_subparsers(dest="judge", required=True)
    words = judges.add_parser("keywords", help="sentences with a keyword backtrack")
    words.add_argument("--keywords", nargs="+", default=list(KEYWORDS), metavar="WORD")
    llm = judges.add_parser("llm", help="a language model behind an OpenAI-compatible endpoint")
    llm.add_argument("--url", required=True, help="as a rule ends in /v1")
    llm.add_argument("--model", required=True)
    llm.add_argument("--price-in", type=float, required=True, help="dollars, a million tokens")
    llm.add_argument("--price-out", type=float, required=True, help="dollars, a million tokens")
    llm.add_argument("--key-variable", default=Judge.key_variable, help="'' for no key")
    llm.add_argument("--cache", type=as_path, help="file of answers (default: beside the labels)")
    llm.add_argument("--yes", action="store_true", help="agree to the cost without being asked")
    for name in ("sentences_per_request", "concurrency", "attempts"):
        llm.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Judge, name))
    llm.add_argument("--timeout", type=float, default=Judge.timeout, help="seconds")
    for one in (words, llm):
        one.add_argument("traces", type=as_path, metavar="TRACES")
        one.add_argument("--out", type=as_path, required=True, metavar="FILE")
    return parser
