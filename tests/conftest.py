"""Products in full float32, and the small model and prompts that most tests share."""

import os
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from oracle import SHALLOW, SMALL, random_model, random_rows
from pipeline_helpers import Finished, finished_run

from jaxsteer import compile_cache
from jaxsteer.model import Model
from jaxsteer.tokens import TokenBatch, left_pad


def pytest_configure() -> None:
    # libtpu is there to compile with, and need not look for a TPU first, in every process.
    if find_spec("libtpu") and not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    # Tests neither read nor leave programs in the user's folder; nor do processes they start.
    os.environ[compile_cache.VARIABLE] = "off"
    compile_cache.turn_off()
    # Tolerances of the tests are those of float32; some backends multiply in less by default.
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def small() -> Model:
    """Three layers, width 16; see `oracle.random_model` for its weights."""
    return random_model(SMALL)


@pytest.fixture(scope="session")
def shallow() -> Model:
    """The same with two layers."""
    return random_model(SHALLOW)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Three prompts of unequal length."""
    return random_rows((3, 8, 5), SMALL.vocab_size)


@pytest.fixture(scope="session")
def batch(prompts: list[list[int]]) -> TokenBatch:
    """`prompts`, left-padded to 9: even the longest has a slot of padding."""
    return left_pad(prompts, length=9)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of the whole pipeline on a tiny pair, for all tests to read and to copy."""
    return finished_run(tmp_path_factory.mktemp("finished"))
