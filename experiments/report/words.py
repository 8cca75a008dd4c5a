"""What the report says in words and small tables of figures whose numbers are large."""

from typing import Any


def words_of(name: str, numbers: dict[str, Any]) -> list[str]:
    """Lines of Markdown from a figure's JSON; none for figures that are not known here."""
    known = {
        "figure5": _logit_lens,
        "figure6": _projections,
        "cosines": _cosines,
        "appendix-c": _judges,
    }
    return known[name](numbers) if name in known else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def _between(one: dict[str, Any], value: str = "value", digits: int = 3) -> str:
    """A value with its interval; a dash where it has no meaning."""
    numbers = [one[key] for key in (value, "low", "high")]
    if numbers[0] is None:
        return "–"
    middle, *ends = ["?" if x is None else f"{x:.{digits}f}" for x in numbers]
    return f"{middle} [{ends[0]}, {ends[1]}]"


def _token(text: str) -> str:
    """A token in a cell of a table, in which no bar, back quote or new line may stand.

    >>> _token(" wait"), _token("|"), _token(chr(10))
    ('`wait`', '`U+7C`', '`U+A`')
    """
    plain = text.strip()
    if not plain or set(plain) & set("|`") or not plain.isprintable():
        plain = " ".join(f"U+{ord(c):X}" for c in text)
    return f"`{plain}`"


def _logit_lens(numbers: dict[str, Any]) -> list[str]:
    rows = []
    for direction, by_model in numbers["directions"].items():
        for model, one in by_model.items():
            best = min(one["keywords"], key=lambda word: word["rank"], default=None)
            random = numbers["random"][model]
            rows.append(
                [
                    f"`{direction}`",
                    model,
                    ", ".join(_token(token) for token, _ in one["top"]),
                    f"{_token(best['token'])}: {best['rank']}" if best else "–",
                    str(one["vocab_size"]),
                    f"{random['median']:.0f} [{random['low']:.0f}, {random['high']:.0f}]",
                ]
            )
    head = [
        "direction", "unembedding of", "top tokens", "best keyword: rank from 0", "of",
        "the same of random directions",
    ]  # fmt: skip
    return _table(head, rows)


def _projections(numbers: dict[str, Any]) -> list[str]:
    rows = [
        [
            model,
            _between(one, "mean"),
            f"{one['n_events']} and {one['n_other']}",
            _between(numbers["dense"][model]["share_above_events"], "share"),
        ]
        for model, one in numbers["auroc"].items()
    ]
    head = [
        "model", "AUROC", "sentences that backtrack, and others",
        "share of all tokens above the median before backtracking",
    ]  # fmt: skip
    exceptions = (
        f"Of the backtracking sentences {_between(numbers['without_direction'], 'share')} come "
        f"without the direction (n = {numbers['without_direction']['n']}; a perfect detector "
        "leaves 0, chance .5). Of as many sentences where it is strongest "
        f"{_between(numbers['without_backtracking'], 'share')} do not backtrack "
        f"(n = {numbers['without_backtracking']['n']}; 0, by chance "
        f"{1 - numbers['prevalence']:.3f})."
    )
    return [*_table(head, rows), "", exceptions]


def _cosines(numbers: dict[str, Any]) -> list[str]:
    one, random = numbers["cosine"], numbers["random"]["mean"]
    halves = ", ".join(
        f"{found['halves']:.3f} ({model} model)"
        for model, found in numbers["reliability"].items()
        if found["halves"] is not None
    )
    by_chance = "" if random is None else f"; of as many other sentences at random {random:.3f}"
    return [
        f"At layer {one['layer']} the cosine is {_between(one)} (n = {one['n']}){by_chance}. "
        f"Between the directions of two halves of the traces it is {halves or 'unknown'}."
    ]


def _judges(numbers: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            str(one["n"]),
            str(one["n_keywords"]),
            str(one["n_judge"]),
            *(_between(one[measure]) for measure in ("precision", "recall", "f1", "kappa")),
        ]
        for name, one in numbers["texts"].items()
    ]
    head = ["texts", "sentences", "keywords", "judge", "precision", "recall", "F1", "Cohen's κ"]
    return [f"The better judge: {numbers['judge']}.", "", *_table(head, rows)]
