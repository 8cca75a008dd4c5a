"""Made-up sweeps for the claims: texts by cell, and the evidence that they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims.claims import Claim, claims
from experiments.claims.evidence import Evidence
from experiments.stages.outcome import outcomes_of, scores_by_cell
from jaxsteer.analysis.sentences import KEYWORDS

Cells = dict[tuple[str, str, float], Sequence[str]]  # target, source, coefficient -> texts

CALM = "it is so far . we are here . they were all there . you and him go by ."
WAIT = f"wait . {CALM}"  # one sentence of five
BROKEN = "no no no no no no no no no no . " * 4
SHARE = 0.2  # of WAIT


def texts(share: float, n: int = 64, other: str = CALM) -> list[str]:
    """So many texts, a share of them with a backtracking sentence, spread evenly."""
    return [WAIT if int((i + 1) * share) > int(i * share) else other for i in range(n)]


def evidence_of(cells: Mapping[tuple[str, str, float], Sequence[str]], **fields: Any) -> Evidence:
    """The evidence of a sweep with these texts, each of which stopped by itself."""
    rows = [
        {"target": t, "source": s, "coeff": c, "prompt": str(i), "text": text, "stopped": True}
        for (t, s, c), written in cells.items()
        for i, text in enumerate(written)
    ]
    scores = scores_by_cell(rows, keywords=KEYWORDS, grammar=None)
    table = outcomes_of(scores, {key: abs(key[2]) for key in scores})
    facts = {"cosine": [0.1, 0.74], "n_backtracking": [131, 131], "n_sentences": [4000, 4000]}
    defaults = {"margin": 0.05, "layer": 1, "directions": facts}
    return Evidence(table=table, scores=scores, **{**defaults, **fields})


def by_id(evidence: Evidence) -> dict[str, Claim]:
    """The rows of the claims table."""
    rows = claims(evidence)
    table = {row.id: row for row in rows}
    assert len(table) == len(rows)
    return table
