"""How every message of bad input reads: `name: got X, expected Y`."""

_LONGEST = 200  # letters of what was got


def wrong(name: str, got: object, expected: str) -> ValueError:
    """The error to raise for an argument or field; what was got is cut where it is long.

    >>> wrong("layer", 32, "0 to 31")
    ValueError('layer: got 32, expected 0 to 31')
    """
    text = str(got)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return ValueError(f"{name}: got {text}, expected {expected}")
