"""What a direction or a text shows.

Directions, traces and generated texts in; lens, projections, derivatives, log-probabilities, labels
and statistics out. Each has a file. Intervals and tests are in `metrics`, log-probabilities of
given texts in `scoring`, hybrids of two models in `grafting`.

Uses `directions` and the rooms that it uses.
"""

from jaxsteer.analysis.derivatives import sensitivity
from jaxsteer.analysis.grafting import graft, part_sizes, parts
from jaxsteer.analysis.labels import (
    LABELS,
    OTHER,
    SentenceLabel,
    labels_from_file,
    read_labels,
    write_labels,
)
from jaxsteer.analysis.logit_lens import LENSES, Lens, keyword_tokens, lens
from jaxsteer.analysis.metrics import (
    bootstrap_interval,
    holm,
    keyword_counts,
    keyword_matches_per_word,
    keyword_rate,
    mean_se,
    paired_difference,
    percentile_interval,
    ratio_se,
    repetition,
    wilson_interval,
)
from jaxsteer.analysis.projections import Auroc, auroc, excess_kurtosis, project_texts
from jaxsteer.analysis.scoring import rows_that_score, score, token_logprobs
from jaxsteer.analysis.sentences import (
    KEYWORDS,
    Sentence,
    keyword_labels,
    keyword_pattern,
    split_sentences,
    token_spans,
)

__all__ = [
    "KEYWORDS",
    "LABELS",
    "LENSES",
    "OTHER",
    "Auroc",
    "Lens",
    "Sentence",
    "SentenceLabel",
    "auroc",
    "bootstrap_interval",
    "excess_kurtosis",
    "graft",
    "holm",
    "keyword_counts",
    "keyword_labels",
    "keyword_matches_per_word",
    "keyword_pattern",
    "keyword_rate",
    "keyword_tokens",
    "labels_from_file",
    "lens",
    "mean_se",
    "paired_difference",
    "part_sizes",
    "parts",
    "percentile_interval",
    "project_texts",
    "ratio_se",
    "read_labels",
    "repetition",
    "rows_that_score",
    "score",
    "sensitivity",
    "split_sentences",
    "token_logprobs",
    "token_spans",
    "wilson_interval",
    "write_labels",
]
