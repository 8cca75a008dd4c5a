"""Directions from raw activations at events: principal component of differences, logistic probe.

Both stand beside the difference of means (`jaxsteer.directions`), of which they are relatives: the
component weighs the differences by where they vary most, the probe by what tells the two sides
apart; with ever stronger regularisation the probe points along the difference of means.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike


def first_component(positive: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """First principal component of paired differences, float32 `[D]` of length 1.

    `positive` and `reference` are `[n, D]`; row i of both belong together: an event and another
    sentence of the same trace, say. The differences are not centred, so that what they have in
    common counts (as where pairs are ordered at random, whose mean is 0). The sign is that of the
    mean difference.

    >>> first_component([[1.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]).tolist()
    [1.0, 0.0]

    Raises:
        ValueError: for other shapes, numbers that are not finite, differences that are all 0, or
            a component at right angles to the mean difference, which has no sign.
    """
    left, right = _activations("positive", positive), _activations("reference", reference)
    if left.shape != right.shape:
        raise ValueError(f"reference: got {right.shape}, expected {left.shape} as positive has")
    difference = left - right
    if not difference.any():
        raise ValueError("positive: got what reference is, expected differences")
    _, _, components = np.linalg.svd(difference, full_matrices=False)
    along = float(difference.mean(axis=0) @ components[0])
    if along == 0:
        raise ValueError("positive: the component is at right angles to the mean difference")
    # + 0.0: no negative zeros.
    return (np.sign(along) * components[0] + 0.0).astype(np.float32)


def logistic_probe(
    positive: ArrayLike, negative: ArrayLike, *, l2: float = 0.1, steps: int = 200
) -> np.ndarray:
    """Weights of an L2-regularised logistic regression, float32 `[D]` in log-odds per unit.

    `positive` `[n, D]` against `negative` `[m, D]`; both sides weigh the same, whatever their
    numbers. Minimises the mean of both sides' mean log-losses plus `l2 / 2` times the squared
    length of the weights, where activations are centred and in units of their standard deviation
    (one number for all coordinates, so that no coordinate is favoured). An intercept is fitted and
    not returned. By L-BFGS, in float32.

    Raises:
        ValueError: for other shapes, numbers that are not finite, activations that do not vary, or
            `l2` or `steps` that are not above 0.
    """
    left, right = _activations("positive", positive), _activations("negative", negative)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"negative: got width {right.shape[1]}, expected {left.shape[1]}")
    if not (np.isfinite(l2) and l2 > 0):
        raise ValueError(f"l2: got {l2}, expected a number above 0")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    centre = (left.mean(axis=0) + right.mean(axis=0)) / 2
    deviation = np.sqrt((((left - centre) ** 2).mean() + ((right - centre) ** 2).mean()) / 2)
    if deviation == 0:
        raise ValueError("positive: got activations that do not vary, expected some that do")
    sides = [jnp.asarray((x - centre) / deviation, jnp.float32) for x in (left, right)]
    weights = np.asarray(_fit(*sides, jnp.float32(l2), steps=steps), np.float64)
    return (weights / deviation).astype(np.float32)


@functools.partial(jax.jit, static_argnames="steps")
def _fit(positive: jax.Array, negative: jax.Array, l2: jax.Array, *, steps: int) -> jax.Array:
    """Weights `[D]` in the units of the given activations."""
    exact = jax.lax.Precision.HIGHEST

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, intercept = params
        up = jnp.matmul(positive, weights, precision=exact) + intercept
        down = jnp.matmul(negative, weights, precision=exact) + intercept
        wrong = jnp.mean(jax.nn.softplus(-up)) + jnp.mean(jax.nn.softplus(down))
        return wrong / 2 + l2 / 2 * jnp.sum(weights**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_: int, carry: tuple) -> tuple:
        params, state = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    start = (jnp.zeros(positive.shape[1]), jnp.zeros(()))
    params, _ = jax.lax.fori_loop(0, steps, step, (start, solver.init(start)))
    return params[0]


def _activations(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: got shape {array.shape}, expected [n, D]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got NaN or infinity, expected finite activations")
    return array
