"""The rotary settings of a `config.json`, and the fields of `RopeScaling`, both ways."""

import math
from collections.abc import Mapping
from typing import Any

from jaxsteer.config.json_values import is_positive, short

# Keys of the rotary settings of each kind: those it must have, and those it may have.
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        set(),
    ),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
            "attn_factor",  # of other programs; transformers does not read it, nor do we
        },
    ),
}  # fmt: skip
_ROPE_WRITTEN = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}


def read_rope(hf: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None, list[str]]:
    """Rotary base, scaling and problems, from `rope_parameters` or the two fields before it.

    `hf` has its family's defaults. transformers 5 writes `rope_parameters`; version 4 wrote
    `rope_theta` and `rope_scaling`.
    """
    given = [where for where in ("rope_parameters", "rope_scaling") if hf.get(where)]
    readings = [_read_rope_field(hf, where) for where in given or ["rope_scaling"]]
    for reading in readings:
        if reading[2]:
            return reading
    if any(reading != readings[0] for reading in readings):
        problem = "rope_scaling: got other settings than rope_parameters, expected equal ones"
        return 0.0, None, [problem]
    return readings[0]


def write_rope(theta: float, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `rope_parameters` of transformers 5; the inverse of `read_rope`."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling["kind"]
    rope = {"rope_type": kind, "rope_theta": theta} | {k: scaling[k] for k in _ROPE_WRITTEN[kind]}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling["original_max_positions"]
    return rope


def _read_rope_field(
    hf: Mapping[str, Any], where: str
) -> tuple[float, dict[str, Any] | None, list[str]]:
    settings = hf.get(where) or {}
    if not isinstance(settings, dict):
        return 0.0, None, [f"{where}: got {short(settings)}, expected an object"]
    rope = dict(settings)
    thetas = [x for x in (rope.pop("rope_theta", None), hf.get("rope_theta")) if x is not None]
    theta = thetas[0] if thetas else 10_000.0
    kinds = [rope.pop(key, None) for key in ("rope_type", "type")]  # `type` is older
    kinds = [kind for kind in kinds if kind is not None]
    if len(kinds) > 1 and kinds[0] != kinds[1]:
        return theta, None, [f"{where}: got rope_type and type {short(kinds)}, expected one kind"]
    kind = kinds[0] if kinds else "default"
    partial = rope.pop("partial_rotary_factor", 1.0)
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        known = ", ".join(_ROPE_KEYS)
        return theta, None, [f"{where}.rope_type: got {short(kind)}, expected one of {known}"]
    required, optional = _ROPE_KEYS[kind]
    problems = [f"{where}.{key}: missing" for key in sorted(required - set(rope))]
    problems += [
        f"{where}.{key}: got {short(rope[key])}, expected no such key with {kind}"
        for key in sorted(set(rope) - required - optional)
    ]
    if partial not in (1.0, None):
        problems.append(f"{where}.partial_rotary_factor: got {short(partial)}, expected 1.0")
    if thetas and theta != thetas[-1]:
        problems.append(
            f"{where}.rope_theta: got {short(theta)}, expected rope_theta={short(thetas[-1])}"
        )
    for key in sorted(set(rope) & (required | optional)):
        right = isinstance(rope[key], bool) if key == "truncate" else is_positive(rope[key])
        if not right and not (rope[key] is None and kind == "yarn"):
            problems.append(f"{where}.{key}: got {short(rope[key])}, expected more than 0")
    if problems or kind == "default":
        return theta, None, problems
    try:
        return theta, _scaling(hf, kind, rope), []
    except ValueError as error:
        return theta, None, [f"{where}: {error}"]


def _scaling(hf: Mapping[str, Any], kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RopeScaling`, as transformers understands the settings of a kind."""
    if kind == "linear":
        return {"kind": kind, "factor": rope["factor"]}
    largest, outer = hf["max_position_embeddings"], hf.get("original_max_position_embeddings")
    original = rope.get("original_max_position_embeddings") or outer or largest
    if outer not in (None, original):
        raise ValueError(
            f"got original_max_position_embeddings={short(original)}, and {short(outer)} beside "
            "it, expected one number"
        )
    scaling = {"kind": kind, "factor": rope["factor"], "original_max_positions": original}
    if kind == "dynamic":
        if original != largest:
            raise ValueError(
                f"got original_max_position_embeddings={short(original)}, expected "
                f"max_position_embeddings={short(largest)}, from which dynamic scaling counts"
            )
        return scaling
    if kind == "llama3":
        return scaling | {name: rope[name] for name in ("low_freq_factor", "high_freq_factor")}
    if scaling["factor"] is None:
        scaling["factor"] = largest / original
    return scaling | {
        "beta_fast": rope.get("beta_fast") or 32,
        "beta_slow": rope.get("beta_slow") or 1,
        "attention_factor": _attention_factor(scaling["factor"], rope),
        "truncate": rope.get("truncate") is not False,
    }


def _attention_factor(factor: float, rope: Mapping[str, Any]) -> float:
    """By how much yarn scales rotated queries and keys (arXiv 2309.00071, eq. 22)."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)
