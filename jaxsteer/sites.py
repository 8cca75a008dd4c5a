"""Where in a block the residual stream can be read and steered, and what others call it."""

import re

# In the order in which a block reaches them. `resid_post` of block l is "layer l" of the
# literature counted from 0: Hugging Face's `hidden_states[l + 1]`.
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.hook_(\w+)")


def site_index(site: str) -> int:
    """Index of `site` in `SITES`; TransformerLens' `hook_` prefix is accepted.

    >>> site_index("resid_post"), site_index("hook_resid_pre")
    (4, 0)
    """
    name = site.removeprefix("hook_")
    if name not in SITES:
        raise ValueError(f"site: got {site!r}, expected one of {', '.join(SITES)}")
    return SITES.index(name)


def parse_hook_name(name: str) -> tuple[int, str]:
    """Layer and site of a TransformerLens hook name.

    >>> parse_hook_name("blocks.10.hook_resid_post")
    (10, 'resid_post')
    """
    match = _HOOK_NAME.fullmatch(name)
    if not match:
        raise ValueError(f"hook name: got {name!r}, expected blocks.<layer>.hook_<site>")
    return int(match[1]), SITES[site_index(match[2])]
