"""Labels of sentences by a language model: what is asked, what it costs, and what is kept."""

import hashlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.judges.endpoint import EndpointError, Message, RefusedError, complete, read_key
from experiments.judges.prompt import ask, ask_again, read_answer
from experiments.judges.settings import Judge
from jaxsteer.analysis import LABELS, Sentence
from jaxsteer.files import append_rows, locked, recover_rows

BYTES_PER_TOKEN = 3.0  # below the 3.5 of reasoning traces in Llama-3's vocabulary: rather too dear
TOKENS_PER_LABEL = 10  # of an answer; 8 in Llama-3's vocabulary
READINGS = 3  # how often a model may be told that its answer cannot be read

Traces = Mapping[str, Sequence[Sentence]]
Names = dict[str, list[str]]  # for each trace, the label of each sentence


@dataclass(frozen=True)
class Request:
    """A question for the labels of sentences `first` to `stop` (half-open) of a trace."""

    trace: str
    first: int
    stop: int
    messages: list[Message]
    key: str  # what the cache knows it by: a hash of the endpoint, the model and the messages


@dataclass(frozen=True)
class Estimate:
    """What is left to ask, and what that will cost if answers are as long as expected."""

    requests: int
    cached: int
    tokens_in: int
    tokens_out: int
    dollars: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests ({self.cached} more are in the cache), about "
            f"{self.tokens_in} tokens in and {self.tokens_out} out: ${self.dollars:.2f}"
        )


def llm_judge(
    traces: Traces,
    *,
    judge: Judge,
    cache: Path,
    agree: Callable[[Estimate], None],
) -> Names:
    """Labels of every sentence by a language model.

    Args:
        traces: the sentences of each trace.
        judge: the endpoint and how it is asked.
        cache: a JSON lines file that answers are appended to and taken from. It holds labels and
            hashes of what was asked, no text.
        agree: is given the estimate before anything is asked, and raises ValueError to refuse it.

    Raises:
        ValueError: for a key that cannot be, or if `agree` refuses.
        EndpointError: if requests failed for good. The others are done and kept: the same call
            asks for the rest.
        FileExistsError: if another process works with the cache.
    """
    requests = plan(traces, judge)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with locked(cache, busy=f"{cache}: another process is asking with this cache"):
        kept: dict[str, Any] = {
            row.get("key", ""): row.get("labels") for row in recover_rows(cache)
        }
        known: Names = {
            r.key: kept[r.key] for r in requests if _fits(kept.get(r.key), r.stop - r.first)
        }
        left = [request for request in requests if request.key not in known]
        if left:
            read_key(judge)
            agree(estimate(left, judge, cached=len(requests) - len(left)))
            known |= _ask_all(left, judge, cache)
    names: Names = {id: [] for id in traces}
    for request in requests:  # a trace's are in order
        names[request.trace] += known[request.key]
    return names


def _fits(labels: Any, n: int) -> bool:
    """Whether they are labels of `n` sentences, which a file may not hold that others wrote."""
    return isinstance(labels, list) and len(labels) == n and all(one in LABELS for one in labels)


def plan(traces: Traces, judge: Judge) -> list[Request]:
    """All requests, in order: each trace in parts of about equal size."""
    requests = []
    for id, sentences in traces.items():
        parts = math.ceil(len(sentences) / judge.sentences_per_request)
        cuts = [len(sentences) * i // parts for i in range(parts + 1)] if parts else []
        for first, stop in itertools.pairwise(cuts):
            messages = ask(sentences, first, stop)
            asked = json.dumps([judge.url, judge.model, messages])
            key = hashlib.sha256(asked.encode()).hexdigest()
            requests.append(Request(id, first, stop, messages, key))
    return requests


def estimate(requests: Sequence[Request], judge: Judge, *, cached: int = 0) -> Estimate:
    """Tokens and dollars of the requests, the latter in whole cents, rounded up."""
    size = sum(len(m["content"].encode()) for r in requests for m in r.messages)
    tokens_in = math.ceil(size / BYTES_PER_TOKEN)
    tokens_out = TOKENS_PER_LABEL * sum(r.stop - r.first for r in requests)
    cents = (tokens_in * judge.price_in + tokens_out * judge.price_out) / 1e4
    return Estimate(len(requests), cached, tokens_in, tokens_out, math.ceil(cents) / 100)


def within(max_cost: float) -> Callable[[Estimate], None]:
    """Agrees to an estimate up to `max_cost` dollars, and says it."""

    def agree(estimated: Estimate) -> None:
        print(f"  {estimated}")
        if estimated.dollars > max_cost:
            raise ValueError(
                f"max_cost: the estimate is ${estimated.dollars:.2f}, "
                f"and ${max_cost:.2f} are allowed"
            )

    return agree


def _ask_all(requests: Sequence[Request], judge: Judge, cache: Path) -> Names:
    """Ask side by side and keep each answer as it comes; returns labels by the requests' keys."""
    stop = threading.Event()
    known: Names = {}
    failed: list[str] = []
    with ThreadPoolExecutor(judge.concurrency) as pool:
        running = {pool.submit(_labels, request, judge, stop): request for request in requests}
        try:
            for future in tqdm(as_completed(running), total=len(running), desc="judge"):
                request = running[future]
                try:
                    row = future.result()
                except RefusedError:
                    raise
                except EndpointError as error:
                    failed.append(f"{request.trace}, sentences {request.first}+: {error}")
                    continue
                append_rows(cache, [row])
                known[request.key] = row["labels"]
        finally:
            stop.set()  # wakes those that wait to try again
            pool.shutdown(cancel_futures=True)
    if failed:
        raise EndpointError(
            f"{len(failed)} of {len(requests)} requests failed; the others are kept, and the same "
            f"command asks for the rest. The first: {failed[0]}"
        )
    return known


def _labels(request: Request, judge: Judge, stop: threading.Event) -> dict[str, Any]:
    """The cache's row for a request: its labels, and the tokens that they took."""

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise EndpointError("stopped")

    messages, tokens_in, tokens_out, problem = request.messages, 0, 0, ""
    for _ in range(READINGS):
        answer = complete(judge, messages, sleep=sleep)
        tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
        try:
            if not answer.whole:
                raise ValueError("it was cut at the longest answer that the endpoint gives")
            labels = read_answer(answer.text, request.stop - request.first)
        except ValueError as error:
            problem = str(error)
            messages = ask_again(request.messages, answer.text[:4000], problem)
            continue
        return {
            "key": request.key,
            "model": judge.model,
            "labels": labels,
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
        }
    raise EndpointError(f"{READINGS} answers could not be read, the last one: {problem}")
