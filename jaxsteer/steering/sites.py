"""Where in a block the residual stream can be read and steered, and what others call it."""

import re
from collections.abc import Iterable

import numpy as np

from jaxsteer.config import LlamaConfig

# In the order in which a block reaches them. `resid_post` of block l is "layer l" of the
# literature counted from 0: Hugging Face's `hidden_states[l + 1]`. `head_out` is what the
# attention heads give before the output projection, N heads of H side by side.
SITES = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post")

# TransformerLens' names, within a block.
_HOOKS = {f"hook_{site}": site for site in SITES if site != "head_out"}
_ALIASES = _HOOKS | dict.fromkeys(("attn.hook_z", "hook_z", "z"), "head_out")

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.(attn\.hook_z|hook_\w+)")


def site_index(site: str) -> int:
    """Index of `site` in `SITES`; TransformerLens' names are accepted.

    >>> site_index("resid_post"), site_index("hook_resid_pre"), site_index("z")
    (5, 0, 1)
    """
    name = _ALIASES.get(site, site) if isinstance(site, str) else site
    if name not in SITES:
        raise ValueError(f"site: got {site!r:.80}, expected one of {', '.join(SITES)}")
    return SITES.index(name)


def parse_hook_name(name: str) -> tuple[int, str]:
    """Layer and site of a TransformerLens hook name.

    >>> parse_hook_name("blocks.10.hook_resid_post"), parse_hook_name("blocks.3.attn.hook_z")
    ((10, 'resid_post'), (3, 'head_out'))
    """
    match = _HOOK_NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"hook name: got {name!r:.80}, expected blocks.<layer>.hook_<site> or "
            "blocks.<layer>.attn.hook_z"
        )
    return int(match[1]), SITES[site_index(match[2])]


def site_width(site: str, config: LlamaConfig) -> int:
    """Width of the stream at `site`: N · H at `head_out`, D elsewhere."""
    heads = SITES[site_index(site)] == "head_out"
    return config.n_heads * config.head_dim if heads else config.d_model


def check_layers(name: str, layers: Iterable[int], config: LlamaConfig) -> None:
    """Raise `ValueError` for layers that a model does not have; all of them in one message."""
    numbers = np.unique(np.asarray(list(layers), np.int64))
    wrong = numbers[(numbers < 0) | (numbers >= config.n_layers)]
    if wrong.size:
        raise ValueError(
            f"{name}: got {', '.join(map(str, wrong))}, expected 0 to {config.n_layers - 1} "
            "(layer l is the output of block l, counted from 0)"
        )
