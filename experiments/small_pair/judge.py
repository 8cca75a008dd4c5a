"""Judge the small pairs of several training seeds.

    python -m weights.train_small --out runs/pairs
    python -m experiments.small_pair --models runs/pairs --out runs/judged

For each seed: traces of the reasoning model, directions at every layer, then layer and
coefficient chosen on one prompt split (`select`) and everything judged on another (`eval`),
against baselines of the same length, in the reasoning, base and control models. Writes
`judged.json` and `judged.md`. Meant for an accelerator; it takes hours on a small CPU.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline.settings import Decoding, Labels
from experiments.pipeline.text import Prompt, encode_prompts
from experiments.small_pair.verdicts import choose, choose_negative, to_markdown, verdicts
from experiments.stages import derive, label, rollouts, steer
from experiments.stages.outcome import CellOutcome, outcomes
from experiments.stages.text_scores import small_pair_grammar, whole_sentences
from jaxsteer.analysis import KEYWORDS, OTHER, split_sentences
from jaxsteer.checkpoints import checkpoint, end_tokens
from jaxsteer.directions import activation_moments
from jaxsteer.directions import controls as dirs
from jaxsteer.directions import moments as stats
from jaxsteer.files import as_path, read_rows, sha256, write_atomic
from jaxsteer.llama import Model, bucket
from jaxsteer.models import convert
from jaxsteer.runtime import guarded
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell
from weights.small_language.grammar import KINDS, SLOTS
from weights.small_language.parser import parse_sentence
from weights.small_language.problems import prompts

BASE_TEMPLATE = " question : {prompt} solution :"
OTHER_KINDS = tuple(kind for kind in KINDS if kind not in ("backtracking", "narrative"))


@dataclass(frozen=True)
class Plan:
    """How much is run; the defaults are what the data sheet of the pair reports."""

    offsets: tuple[int, ...] = tuple(range(-13, -7))
    coeffs: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # in residual norms
    margin: float = 0.02  # coherence that may be lost when choosing; .03 is allowed when judged
    traces: int = 1024
    select: int = 512
    evaluate: int = 1024
    random: int = 6
    max_new_tokens: int = 128
    temperature: float = 1.0


@dataclass(frozen=True)
class Loaded:
    """One model of a pair."""

    role: str
    model: Model
    tokenizer: Any
    stops: list[int]  # ids after which its text has ended


def judge(models: Path, out: Path, plan: Plan) -> dict[str, Any]:
    """Choose and judge for one seed; `models` holds base, reasoning and control.

    Raises:
        ValueError: if `out` holds results of something else, or nothing stays coherent.
    """
    _claim(out, models, plan)
    loaded = {}
    for role in ("base", "reasoning", "control"):
        folder = out / f"checkpoint-{role}"
        if not folder.exists():
            convert(models / role, folder)
        model, tokenizer = checkpoint.load(folder, dtype="float32")
        loaded[role] = Loaded(role, model, tokenizer, end_tokens(folder, tokenizer))
    vectors, facts = _directions(loaded, out, plan)
    layers = range(loaded["base"].model.config.n_layers)
    norms = facts["residual_norm"]

    def cell(source: str, layer: int, coeff: float) -> Cell:
        vector = dirs.rescale(vectors[source][layer], norms[layer])
        labels = {"source": f"{source}@{layer}", "coeff": coeff, "length": abs(coeff)}
        return Cell(labels, add(vector, layer=layer, coeff=coeff))

    unsteered = Cell({"source": "none", "coeff": 0.0, "length": 0.0}, cell("base", 0, 0.0).steering)
    grid = [cell("base", layer, coeff) for layer in layers for coeff in plan.coeffs]
    table = _sweep(loaded["reasoning"], [unsteered, *grid], "select", plan.select, out, plan)
    layer, coeff = choose(table, plan.margin)
    # Its opposite, chosen on the same split: the cells are added to the sweep's file.
    grid += [cell("base", layer, -c) for c in plan.coeffs]
    table = _sweep(loaded["reasoning"], [unsteered, *grid], "select", plan.select, out, plan)
    negative = choose_negative(table, layer, plan.margin)

    baselines = [name for name in vectors if name not in ("base", "reasoning")]
    signed = [(source, c) for source in ("base", "reasoning") for c in (coeff, negative)]
    cells = [unsteered, *(cell(source, layer, c) for source, c in signed)]
    cells += [cell(source, layer, coeff) for source in baselines]
    curve = [cell("base", layer, c) for c in plan.coeffs if c != coeff]
    judged = {
        role: _sweep(loaded[role], chosen, "eval", plan.evaluate, out, plan)
        for role, chosen in (
            ("reasoning", cells + curve),
            ("base", cells[:5]),
            ("control", cells[:5] + curve),
        )
    }
    return {
        "plan": asdict(plan),
        "layer": layer,
        "coeff": coeff,
        "negative": negative,
        "facts": facts,
        "selection": [asdict(one) for one in table],
        "judged": {role: [asdict(one) for one in items] for role, items in judged.items()},
        "verdicts": verdicts(judged, layer, coeff, negative),
    }


def _claim(out: Path, models: Path, plan: Plan) -> None:
    """Note what a folder holds results of.

    Raises:
        ValueError: if it holds those of another plan or of other models.
    """
    hashes = {str(f.relative_to(models)): sha256(f) for f in sorted(models.glob("*/*.safetensors"))}
    wanted = json.loads(json.dumps({"plan": asdict(plan), "models": hashes}))
    file = out / "plan.json"
    if file.is_file() and json.loads(file.read_text()) != wanted:
        raise ValueError(f"{out}: holds results of another plan or other models; see plan.json")
    write_atomic(file, json.dumps(wanted, indent=1).encode())


def _directions(
    loaded: dict[str, Loaded], out: Path, plan: Plan
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Directions by source, each `[L, D]`, and what is known of them."""
    reasoning = loaded["reasoning"]
    problems = _prompts("dom", plan.traces)
    decoding = Decoding(max_new_tokens=plan.max_new_tokens, temperature=plan.temperature, seed=1)
    rollouts.write_rollouts(
        out,
        reasoning.model,
        reasoning.tokenizer,
        problems,
        stops=reasoning.stops,
        decoding=decoding,
    )
    counts = label.write_labels(out, out / rollouts.FILE, Labels(source="grammar"))
    traces = derive.read_traces(reasoning.tokenizer, out / rollouts.FILE, out / label.FILE)
    by_role = {
        role: activation_moments(
            loaded[role].model,
            traces,
            labels=(*KINDS, OTHER),
            offsets=plan.offsets,
            progress=f"activations, {role}",
        )
        for role in ("base", "reasoning")
    }
    vectors = {role: stats.window_direction(one, "backtracking") for role, one in by_role.items()}
    vectors["mean"] = stats.mean_activation(by_role["base"])
    for kind in OTHER_KINDS:
        # A kind that only opens a text has no window before it.
        if by_role["base"].count[KINDS.index(kind)].all():
            vectors[kind] = stats.window_direction(by_role["base"], kind)
    kinds = [
        [parse_sentence(s.text) for s in split_sentences(row["text"])]
        for row in read_rows(out / rollouts.FILE)
    ]
    layers, width = vectors["base"].shape
    for i, vector in enumerate(dirs.random_directions(plan.random, width)):
        vectors[f"random-{i}"] = np.tile(vector, (layers, 1))
    facts = {
        "counts": counts,
        "natural": natural_rates(kinds, read_rows(out / rollouts.FILE)),
        "residual_norm": stats.residual_norm(by_role["reasoning"]).tolist(),
        "cosine": stats.cosines(vectors["base"], vectors["reasoning"]).tolist(),
    }
    return vectors, facts


def natural_rates(
    kinds: Sequence[Sequence[str | None]], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Backtracking right after a sentence with a hedge and after a confident one, unsteered.

    Args:
        kinds: of every sentence of each row.
        rows: the traces. A last sentence that was cut off counts as none.
    """
    hedges = {p for slot in SLOTS.values() for p in slot.hedges}
    confident = {p for slot in SLOTS.values() for p in slot.confident}
    counts = {"hedged": [0, 0], "confident": [0, 0]}
    for row_kinds, row in zip(kinds, rows, strict=True):
        texts = [f" {s.text} " for s in whole_sentences(row)]
        for before, kind in zip(texts, row_kinds[1 : len(texts)], strict=False):
            has = [any(f" {p} " in before for p in phrases) for phrases in (hedges, confident)]
            if has[0] == has[1]:
                continue
            counted = counts["hedged" if has[0] else "confident"]
            counted[0] += kind == "backtracking"
            counted[1] += 1
    return {name: hits / max(total, 1) for name, (hits, total) in counts.items()}


def _prompts(split: str, count: int) -> list[Prompt]:
    return [Prompt(p.id, p.text) for p in prompts(count, 0, split)]  # type: ignore[arg-type]


def _sweep(
    target: Loaded, cells: Sequence[Cell], split: str, count: int, out: Path, plan: Plan
) -> list[CellOutcome]:
    problems = _prompts(split, count)
    ids = encode_prompts(target.tokenizer, problems, role=target.role, base_template=BASE_TEMPLATE)
    folder = out / f"{split}-{target.role}"
    folder.mkdir(parents=True, exist_ok=True)
    steer.write_sweep(
        folder,
        target.model,
        target.tokenizer,
        target=target.role,
        cells=cells,
        prompt_ids=[p.id for p in problems],
        prompts=ids,
        length=bucket(max(map(len, ids)), step=16),
        stops=target.stops,
        decoding=Decoding(
            max_new_tokens=plan.max_new_tokens,
            temperature=plan.temperature,
            seed=2,
            rows_per_chunk=plan.evaluate * 8,
        ),
    )
    return _score(read_rows(folder / steer.FILE))


def _score(rows: list[dict[str, Any]]) -> list[CellOutcome]:
    """`outcomes`, a process for each cell: judging text is slow Python."""
    plain = [row for row in rows if row["source"] == "none"]
    cells = {(row["source"], row["coeff"]) for row in rows} - {("none", 0.0)}
    parts = [
        plain + [row for row in rows if (row["source"], row["coeff"]) == cell]
        for cell in sorted(cells)
    ]
    # Spawned, because a fork would copy JAX's threads in an unknown state.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        tables = list(pool.map(_outcomes, parts))
    return [tables[0][0], *(table[1] for table in tables)]


def _outcomes(rows: list[dict[str, Any]]) -> list[CellOutcome]:
    return outcomes(rows, keywords=KEYWORDS, grammar=small_pair_grammar)


@guarded()
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.small_pair")
    parser.add_argument(
        "--models", type=as_path, required=True, help="folder of weights.train_small"
    )
    parser.add_argument("--out", type=as_path, required=True)
    for name in ("traces", "select", "evaluate", "max_new_tokens"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Plan(), name))
    parser.add_argument("--offsets", type=int, nargs="+", default=Plan().offsets)
    args = parser.parse_args(argv)
    plan = Plan(
        offsets=tuple(args.offsets),
        traces=args.traces,
        select=args.select,
        evaluate=args.evaluate,
        max_new_tokens=args.max_new_tokens,
    )
    seeds = sorted(args.models.glob("seed*"))
    if not seeds:
        raise FileNotFoundError(f"{args.models}: no seed folders of weights.train_small")
    judged = {}
    for models in seeds:
        judged[models.name.removeprefix("seed")] = judge(models, args.out / models.name, plan)
        print(to_markdown(judged), flush=True)
    write_atomic(args.out / "judged.json", json.dumps(judged, indent=1).encode())
    write_atomic(args.out / "judged.md", to_markdown(judged).encode())
    return 0
