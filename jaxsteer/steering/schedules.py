"""Schedules: how the coefficient changes over generated tokens.

A schedule is any array of factors on the coefficient, float `[G]`: the g-th factor is for the g-th
generated token, and the last one for all that follow. The first factor is also that of the prompt,
if the scope reaches there.
"""

import math

import numpy as np

from jaxsteer.steering.operation_arguments import whole_number


def linear_decay(steps: int, *, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """From `start` at the first generated token in a straight line to `end`, `steps` later.

    >>> linear_decay(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    whole_number("steps", steps, least=1)
    _check_factor("start", start)
    _check_factor("end", end)
    return np.linspace(start, end, steps + 1, dtype=np.float32)


def pulse(
    width: int, *, start: int = 0, period: int | None = None, steps: int | None = None
) -> np.ndarray:
    """1 on `width` tokens from the generated token `start` on, 0 elsewhere.

    With `period`, again every so many tokens, over the first `steps` generated tokens.

    >>> pulse(2, start=1).tolist()
    [0.0, 1.0, 1.0, 0.0]
    >>> pulse(1, period=3, steps=6).tolist()
    [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    whole_number("width", width, least=1)
    whole_number("start", start, least=0)
    if (period is None) != (steps is None):
        raise ValueError(f"pulse: got period={period} and steps={steps}, expected both or neither")
    if period is None or steps is None:
        period = steps = start + width
    whole_number("period", period, least=width)
    whole_number("steps", steps, least=1)
    token = np.arange(steps + 1) - start
    return ((token >= 0) & (token % period < width) & (token < steps - start)).astype(np.float32)


def _check_factor(name: str, value: float) -> None:
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, expected a finite number")
