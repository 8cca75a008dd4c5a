"""Products in full float32, and the small model and prompts that most tests share."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src import compiler
from oracle import SHALLOW, SMALL, random_model, random_rows
from pipeline_helpers import Finished, finished_run
from quick_compile import plain_options

from jaxsteer.llama.model import Model
from jaxsteer.llama.tokens import TokenBatch, left_pad
from jaxsteer.runtime import compile_cache

QUICK = "jax_disable_most_optimizations"
# Each program that XLA compiles for a CPU maps some. Linux allows a process 65,530; XLA, refused
# one, ends the process (segmentation fault).
MOST_MAPS = 20_000


def pytest_configure() -> None:
    gpu = Path("/dev/nvidiactl").exists()
    # libtpu is there to compile with, and need not look for a TPU first, in every process.
    if find_spec("libtpu") and not gpu:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    # Tests neither read nor leave programs in the user's folder; nor do processes they start.
    os.environ[compile_cache.VARIABLE] = "off"
    compile_cache.turn_off()
    # Tolerances of the tests are those of float32; some backends multiply in less by default.
    jax.config.update("jax_default_matmul_precision", "highest")
    # PyTorch's threads wait for each other by spinning, which takes the time of other processes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Compiling is most of the work, and half of it if little is optimised. All files are optimised
    # with JAX_DISABLE_MOST_OPTIMIZATIONS=0, and those marked `optimised` always.
    if not gpu:
        quick = os.environ.setdefault(QUICK.upper(), "1")  # for processes that tests start, too
        jax.config.update(QUICK, quick == "1")
        compile_plainly()


def compile_plainly() -> None:
    """Give XLA the options of `quick_compile` for programs that are not optimised.

    Not in `XLA_FLAGS`, which would hold for files marked `optimised`, too.
    """
    plain, get_options = plain_options(), compiler.get_compile_options

    def options(*args: Any, **named: Any) -> Any:
        if jax.config.values[QUICK]:
            named["env_options_overrides"] = plain | (named.get("env_options_overrides") or {})
        return get_options(*args, **named)

    compiler.get_compile_options = options


@pytest.fixture(scope="module", autouse=True)
def optimised(request: pytest.FixtureRequest) -> None:
    """Files marked `optimised` compile as users do: how sums are rounded depends on it."""
    marked = request.node.get_closest_marker("optimised") is not None
    quick = os.environ.get(QUICK.upper()) == "1" and not marked
    if jax.config.values[QUICK] != quick or memory_maps() > MOST_MAPS:
        jax.clear_caches()  # of what other files compiled
        jax.config.update(QUICK, quick)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of the programs compiled while a test runs, of which none is there from other tests."""
    names: list[str] = []

    def listen(event: str, _: float, **about: object) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(str(about.get("fun_name", "")))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def memory_maps() -> int:
    """Pieces of memory that this process has mapped; 0 where the system does not tell."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share a process; so do all `optimised` files, and all that read `finished`.

    The words in a file decide. Marks (`--dist loadgroup`) do nothing: pytest-xdist 3.8 appends the
    group to the node id of a test, which cannot be changed under pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            text = (config.rootpath / file).read_text()
            return next((word for word in ("mark.optimised", "finished.out") if word in text), file)

    return Scheduling(config, log)
