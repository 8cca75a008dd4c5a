"""runtime.compile_cache: programs are found again, and only where nobody else could put them."""

import importlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxsteer.runtime import compile_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache_off_afterwards() -> Iterator[None]:
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    compile_cache.turn_off()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.fixture
def hits() -> Iterator[list[str]]:
    """One entry for each program that came from the disk."""
    found: list[str] = []

    def listen(event: str, **details: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def compile_again() -> None:
    jax.clear_caches()
    jax.jit(lambda x: jnp.sin(x) * 3.25 + 1)(jnp.ones(7)).block_until_ready()


def test_a_program_is_kept_and_found_again(tmp_path: Path, hits: list[str]) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    own = compile_cache.use(tmp_path / "programs")
    compile_again()
    assert list(own.iterdir())
    assert not hits
    compile_again()
    assert hits
    count = len(hits)
    compile_cache.turn_off()
    compile_again()
    assert len(hits) == count
    other = compile_cache.use(tmp_path / "others")  # moved in the middle of a process
    compile_again()
    assert list(other.iterdir())
    assert len(hits) == count


def test_programs_below_a_second_are_kept_unless_somebody_set_the_limit(tmp_path, monkeypatch):
    name = "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.delenv(name.upper(), raising=False)
    for before, after in ((1.0, 0.3), (0.0, 0.0), (2.0, 2.0)):
        jax.config.update(name, before)
        compile_cache.use(tmp_path / "programs")
        assert jax.config.values[name] == after
    jax.config.update(name, 1.0)
    monkeypatch.setenv(name.upper(), "1.0")
    compile_cache.use(tmp_path / "programs")
    assert jax.config.values[name] == 1.0


@pytest.mark.parametrize("size", [0, 300])
def test_a_program_that_is_half_written_is_compiled_again_once(
    tmp_path: Path, hits: list[str], recwarn: pytest.WarningsRecorder, size: int
) -> None:
    """After a kill or with a full disk; JAX would complain at each start and never replace it."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    own = compile_cache.use(tmp_path)
    compile_again()
    programs = {file: file.read_bytes() for file in own.glob("*-cache")}
    for file, whole in programs.items():
        file.write_bytes(whole[:size])
    assert programs
    for _ in range(2):
        compile_cache.use(tmp_path)
        compile_again()
    assert hits
    assert {file for file in own.glob("*-cache") if file.stat().st_size > size} == set(programs)
    assert not [str(one.message) for one in recwarn if "cache" in str(one.message)]


def test_without_jax_private_function_programs_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax._src.compilation_cache", None)
    monkeypatch.setattr(compile_cache, "_set", lambda folder: None)
    try:
        found = importlib.reload(compile_cache)
        file = found.use(tmp_path) / "one-cache"
        file.write_bytes(b"half")
        found.use(tmp_path)
        assert file.exists()
    finally:
        monkeypatch.undo()
        importlib.reload(compile_cache)


def test_programs_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []
    monkeypatch.setattr(compile_cache, "decompress_executable", looked_at.append)
    own = compile_cache.use(tmp_path)
    (own / "a-cache").write_bytes(b"a")
    os.utime(own / ".checked", ns=(1, 1))
    for _ in range(3):
        compile_cache.use(tmp_path)
    os.utime(own / "a-cache", ns=(5, 5))
    os.utime(own / ".checked", ns=(9, 9))
    (own / "b-cache").write_bytes(b"b")
    compile_cache.use(tmp_path)
    assert looked_at.count(b"b") == 1
    assert 1 <= looked_at.count(b"a") <= 2


def test_the_folder_is_the_users_alone(tmp_path: Path) -> None:
    own = compile_cache.use(tmp_path / "a" / "programs")
    assert own.parent == tmp_path / "a" / "programs"
    assert stat.S_IMODE(own.parent.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(own)
    assert compile_cache.use(tmp_path / "a" / "programs") == own


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match=f"others may write to it .mode {mode:o}., expected"):
        compile_cache.use(tmp_path)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {owner}, expected {owner + 1}"):
        compile_cache.use(tmp_path)
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    with pytest.warns(UserWarning, match="compiled programs are not kept: .*belongs to user"):
        compile_cache.turn_on_by_default()
    assert jax.config.jax_compilation_cache_dir is None


def plant(folder: Path, kind: str) -> str:
    """Change a folder of programs as somebody could who gets there; what is said of it."""
    program = folder / "cpu" / "a-cache"
    if kind == "link":
        (folder / "cpu" / "b-cache").symlink_to(program)
        return "b-cache: is a link or a device"
    if kind == "pipe":
        os.mkfifo(folder / "cpu" / "b-cache")
        return "b-cache: is a link or a device"
    if kind == "folder":
        (folder / "cpu").chmod(0o777)
        return r"cpu: others may write to it \(mode 777\), expected 700"
    if kind == "file":
        program.chmod(0o602)
        return r"a-cache: others may write to it \(mode 602\)"
    if kind == "group":
        folder.chmod(0o750)
        program.chmod(0o660)
        return r"a-cache: others may write to it \(mode 660\)"
    folder.parent.chmod(0o777)
    return r"others may write to it \(mode 777\): programs in it would be run"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "file", "group", "above"])
def test_what_lies_deeper_is_looked_at_too(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "programs"
    (folder / "cpu").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "cpu" / "a-cache").write_bytes(b"program")
    (folder / "cpu" / "a-cache").chmod(0o664)  # a usual umask; the group does not get there
    compile_cache.use(folder)
    compile_cache.turn_off()
    with pytest.raises(PermissionError, match=plant(folder, kind)):
        compile_cache.use(folder)
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_planted_program_is_not_run(tmp_path: Path) -> None:
    own = compile_cache.use(tmp_path / "programs")
    (own / "a-cache").write_bytes(b"program")
    os.chown(own / "a-cache", 12345, 12345)
    with pytest.raises(PermissionError, match="a-cache: belongs to user 12345, expected 0"):
        compile_cache.use(tmp_path / "programs")


def test_a_home_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.turn_on_by_default()
    assert jax.config.jax_compilation_cache_dir is None
    assert not recwarn.list


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "home/.cache/jaxsteer"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "xdg/jaxsteer"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/jaxsteer"),
        ({"JAXSTEER_COMPILE_CACHE": "{tmp}/mine"}, "mine"),
        ({"JAXSTEER_COMPILE_CACHE": "~/mine"}, "home/mine"),
        ({"JAXSTEER_COMPILE_CACHE": "off"}, None),
    ],
)
def test_where_programs_are_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: str | None,
) -> None:
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    compile_cache.turn_on_by_default()
    found = jax.config.jax_compilation_cache_dir
    assert (found and Path(found).parent) == (expected and tmp_path / expected)


def test_importing_turns_it_on_but_not_over_the_users_own(tmp_path: Path) -> None:
    script = "import jax, jaxsteer; print(jax.config.jax_compilation_cache_dir)"

    def directory(**variables: str) -> str:
        unset = ("JAXSTEER_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR")
        environment = {k: v for k, v in os.environ.items() if k not in unset}
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment | {"XDG_CACHE_HOME": str(tmp_path)} | variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert Path(directory()).parent == tmp_path / "jaxsteer"
    assert directory(JAX_COMPILATION_CACHE_DIR="/elsewhere") == "/elsewhere"
