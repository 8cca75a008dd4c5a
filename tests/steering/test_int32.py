"""Whole numbers that int32 cannot hold are refused on the host: a cast would wrap them round."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from oracle import SHALLOW

from jaxsteer.analysis import lens, score
from jaxsteer.decoding import make_request
from jaxsteer.directions import Trace, make_targets
from jaxsteer.directions.activations import check_traces, event_positions
from jaxsteer.llama import Model, left_pad
from jaxsteer.steering import Capture, add, check_capture, int32s, scope

WRAPS = 2**32 + 1  # as int32 it is 1
TEXTS = [[1, 2, 3]]
TRACE = Trace(tokens=[1, 2, 3], prompt_length=1, starts=[1], labels=["x"])


def request(model: Model, **asked: object) -> object:
    return make_request(model, left_pad(TEXTS), **{"max_new_tokens": 4, **asked})


CALLS: dict[str, Callable[[Model], object]] = {
    "max_new_tokens: got 2147483648": lambda m: request(m, max_new_tokens=2**31),
    "max_new_tokens: got 4294967297": lambda m: request(m, max_new_tokens=WRAPS),
    "max_new_tokens: got 1000000000": lambda m: request(m, max_new_tokens=10**30, max_tokens=1),
    "max_tokens: got 4294967297": lambda m: request(m, max_tokens=np.int64(WRAPS)),
    "stop_tokens: got id 4294967297": lambda m: request(m, stop_tokens=[WRAPS]),
    "think_tokens: got id 4294967297": lambda m: request(m, think_tokens=(1, WRAPS)),
    r"prompts\[0\]: got ids 1 to 4294967297": lambda m: left_pad([[1, WRAPS]]),
    "layer: got 4294967297": lambda m: add([1.0], layer=WRAPS, coeff=1.0),
    "window: start: got 4294967297": lambda m: scope.window(WRAPS),
    "positions: got 4294967297": lambda m: scope.positions([WRAPS]),
    "capture.positions: got 4294967297": lambda m: check_capture(
        Capture(positions=np.array([[WRAPS]])), m.config
    ),
    "tokens: got 4294967297": lambda m: lens(m, np.ones((1, 16)), tokens=np.array([WRAPS])),
    "prompt_lengths: got 4294967297": lambda m: score(
        m, TEXTS, steering=add(np.ones(16), layer=0, coeff=1.0), prompt_lengths=np.array([WRAPS])
    ),
    r"prompt_lengths\[0\]: got 4, expected at most 3": lambda m: score(
        m, TEXTS, steering=add(np.ones(16), layer=0, coeff=1.0), prompt_lengths=[4]
    ),
    "prompt_lengths: got -1": lambda m: make_targets(TEXTS, [-1], [[(1, 2)]]),
    "offsets: got 4294967297": lambda m: check_traces([TRACE], labels=["x"], offsets=[WRAPS]),
    "max_positions: got 4,294,967,297": lambda m: replace(SHALLOW, max_positions=WRAPS),
    "vocab_size: got 4,294,967,297": lambda m: replace(SHALLOW, vocab_size=WRAPS),
}


@pytest.mark.parametrize("message", CALLS)
def test_what_int32_cannot_hold_is_refused(shallow: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CALLS[message](shallow)


def test_offsets_at_the_edge_do_not_wrap() -> None:
    positions, _ = event_positions([TRACE], ["x"], [2**31 - 1, -(2**31), 1], (1, 1))
    assert positions.tolist() == [[[-1, -1, 2]]]


@pytest.mark.parametrize("values", [[1.0], ["a"], [2**70], [True]])
def test_what_is_no_whole_number(values: list[object]) -> None:
    with pytest.raises(ValueError, match=r"n: got .*, expected whole numbers"):
        int32s("n", values)
