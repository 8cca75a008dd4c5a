"""Text that hybrids generate, and the judgement of the parts that a search found."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.grafting.response import NONE, Bench, Tuned
from experiments.grafting.verdict import BASE, GRAFTED, PUT_BACK, REASONING, RESPONDING, induces
from experiments.pipeline.run import Run
from experiments.pipeline.text import Prompt, encode_prompts
from experiments.stages import steer
from experiments.stages.outcome import CellOutcome, outcomes
from experiments.stages.text_scores import small_pair_grammar, whole_sentences
from jaxsteer.analysis import bootstrap_interval, graft, keyword_labels
from jaxsteer.files import read_rows
from jaxsteer.llama import bucket
from jaxsteer.runtime import hosts
from jaxsteer.sweeps import Cell


@dataclass(frozen=True)
class Writer:
    """Generates the text of hybrids with and without the direction, each once, into files."""

    run: Run
    folder: Path
    bench: Bench
    form: str
    coeff: float
    written: dict[tuple[str, Tuned], list[dict[str, Any]]] = field(default_factory=dict)

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split, "search" or "judge", equally many of either."""
        both = {"search": self.run.derive_prompts, "judge": self.run.evaluate_prompts}
        most = self.run.settings.grafting.prompts
        return both[split][: min(map(len, both.values()))][:most]

    def table(self, hybrids: Mapping[str, Tuned], split: str) -> list[CellOutcome]:
        """The outcomes of some hybrids, by name."""
        settings = self.run.settings
        rows = [row for name, tuned in hybrids.items() for row in self._rows(name, tuned, split)]
        grammar = small_pair_grammar if settings.report.coherence == "grammar" else None
        return outcomes(rows, keywords=settings.labels.keywords, grammar=grammar)

    def fitting(self, hybrids: Mapping[str, Tuned], split: str) -> dict[str, dict[str, list[int]]]:
        """Of the steered sentences with a keyword and without: how many fit the grammar, and all.

        What a hybrid says after its keyword may be no backtracking at all. Only for text that has
        a grammar.
        """
        keywords = self.run.settings.labels.keywords
        counts = {name: {"backtracking": [0, 0], "other": [0, 0]} for name in hybrids}
        for name, tuned in hybrids.items():
            for row in self._rows(name, tuned, split):
                if row["source"] == "none":
                    continue
                sentences = whole_sentences(row)
                marked = zip(sentences, keyword_labels(sentences, keywords), strict=True)
                for sentence, backtracks in marked:
                    of = counts[name]["backtracking" if backtracks else "other"]
                    of[0] += small_pair_grammar([sentence])[0]
                    of[1] += 1
        return counts

    def _rows(self, name: str, tuned: Tuned, split: str) -> list[dict[str, Any]]:
        if (split, tuned) not in self.written:
            self.written[split, tuned] = self._write(tuned, split)
        return [{**row, "target": name} for row in self.written[split, tuned]]

    def _write(self, tuned: Tuned, split: str) -> list[dict[str, Any]]:
        run, bench, tokenizer = self.run, self.bench, self.run.tokenizer("reasoning")
        encoded = {one: self._encode(tokenizer, one) for one in ("search", "judge")}
        digest = hashlib.sha256(" ".join(sorted(tuned)).encode()).hexdigest()[:12]
        folder = self.folder / f"{split}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        length = self.coeff * bench.length
        plain, steered = bench.directions[NONE], bench.directions["base"]
        steer.write_sweep(
            folder,
            graft(bench.base, bench.reasoning, tuned),
            tokenizer,
            target=digest,
            cells=[
                Cell({"source": "none", "coeff": 0.0, "length": 0.0}, plain),
                Cell({"source": "base", "coeff": self.coeff, "length": length}, steered),
            ],
            prompt_ids=[prompt.id for prompt in self.prompts(split)],
            prompts=encoded[split],
            length=bucket(max(len(ids) for rows in encoded.values() for ids in rows), step=16),
            # Either model's: a hybrid may end its text as the one does or as the other.
            stops=sorted({*run.stop_tokens("base"), *run.stop_tokens("reasoning")}),
            decoding=run.settings.decoding,
            form=self.form,
        )
        return hosts.from_writer(lambda: read_rows(folder / steer.FILE))

    def _encode(self, tokenizer: Any, split: str) -> list[list[int]]:
        return encode_prompts(
            tokenizer,
            self.prompts(split),
            role=REASONING,
            base_template=self.run.settings.prompts.base_template,
            form=self.form,
        )

    def induces(self, tuned: Tuned, everything: Tuned) -> bool | None:
        """What the text of a hybrid for the search's prompts says."""
        table = self.table({REASONING: everything, GRAFTED: tuned}, "search")
        return induces(table, GRAFTED, self.run.settings.report.margin)


def named_hybrids(
    everything: Tuned, responding: Tuned, chosen: Tuned, drawn: Sequence[Tuned]
) -> dict[str, Tuned]:
    """The hybrids whose text is judged, by name."""
    named = {BASE: Tuned(), REASONING: everything, RESPONDING: responding}
    if chosen != responding:
        named[GRAFTED] = chosen
    named[PUT_BACK] = everything - responding
    return named | {f"random {i}": some for i, some in enumerate(drawn)}


def judge_responses(
    bench: Bench,
    everything: Tuned,
    *,
    path: Sequence[str],
    responding: Tuned,
    drawn: Sequence[Tuned],
    texts: str,
) -> dict[str, Any]:
    """The responses of what the search found and of random sets, on the texts of the judgement."""

    def response(some: Tuned) -> dict[str, Any]:
        return asdict(bench.response(some, texts=texts))

    def both(some: Tuned) -> dict[str, Any]:
        return {
            "tuned": sorted(some),
            "grafted": response(some),
            "put_back": response(everything - some),
        }

    steps = [frozenset(path[: i + 1]) for i in range(len(path))]
    return {
        BASE: response(Tuned()),
        REASONING: response(everything),
        RESPONDING: both(responding),
        "path": [
            response(some) for some in tqdm(steps, desc="judged sets", unit="set", disable=not path)
        ],
        "random": [
            {**both(some), "difference": difference(bench, responding, some, texts=texts)}
            for some in tqdm(drawn, desc="random sets", unit="set", disable=not drawn)
        ],
    }


def difference(bench: Bench, one: Tuned, other: Tuned, *, texts: str) -> dict[str, float]:
    """The response of one set less that of another, with its 95% interval over the texts."""
    rises = [
        bench.mass(some, texts=texts, direction="base").mass - bench.mass(some, texts=texts).mass
        for some in (one, other)
    ]
    starts = bench.mass(one, texts=texts).starts
    low, high = bootstrap_interval(rises[0] - rises[1], starts, limits=(-1, 1))
    mean = float((rises[0] - rises[1]).sum() / starts.sum())
    return {"mean": mean, "low": low, "high": high}


def other_directions(bench: Bench, hybrids: Mapping[str, Tuned], *, texts: str) -> dict[str, Any]:
    """The responses of some hybrids to each direction there is."""
    return {
        name: {
            direction: asdict(bench.response(some, texts=texts, direction=direction))
            for direction in bench.directions
            if direction != NONE
        }
        for name, some in hybrids.items()
    }
