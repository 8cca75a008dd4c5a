"""README and docs: every name is there, every command starts, every block of Python runs."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from quick_compile import xla_flags

import jaxsteer
from jaxsteer.cli import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(?:python|\{code-cell\} ipython3)\n(.*?)```", re.DOTALL)
NAME = re.compile(r"(?<![\w./-])(?:jaxsteer|js)((?:\.[A-Za-z_]\w*)+)")
MODULE = re.compile(r"python -m ((?:jaxsteer|weights|experiments)(?:\.\w+)*)")
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SETTINGS = re.compile(r"```toml\n# (\w+\.toml)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(((?!https?:)[^)#]+)")
# In a process of its own: a mesh needs eight devices, which are fixed when JAX starts.
MESH = ROOT / "docs" / "guides" / "chips-and-hosts.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_is_there_under_a_bare_import(page: Path) -> None:
    for dotted in set(NAME.findall(page.read_text())):
        here = jaxsteer
        for part in dotted[1:].split("."):
            if (ROOT / f"jaxsteer/{part}.py").is_file() or part in ("json", "toml"):
                break  # a command, or a file
            assert hasattr(here, part), f"jaxsteer{dotted}"
            here = getattr(here, part)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for module in set(MODULE.findall(text)):
        assert importlib.util.find_spec(module), module
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_contents() -> None:
    docs = ROOT / "docs"
    listed = re.findall(r"^[a-z]+/[\w-]+$", (docs / "index.md").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*/*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_of_the_command_line_is_there(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in SETTINGS.findall(page.read_text()):
        Path(name).write_text(text)
    lines = "\n".join(SHELL.findall(page.read_text())).replace("\\\n", " ").splitlines()
    for line in lines:
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "jaxsteer":  # raises for an option that is not there
            commands.jaxsteer.commands[words[0]].make_context(words[0], words[1:])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text()) and p != MESH], ids=name_of
)
def test_blocks_of_a_page_run_one_after_the_other(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    here = tmp_path
    if page.parent.name == "notebooks":  # Jupyter runs one where it stands
        here = tmp_path / page.parent.relative_to(ROOT)
        here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, name_of(page), "exec"), names)


def test_blocks_for_a_mesh_run_on_eight_devices(tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(BLOCK.findall(MESH.read_text()))],
        cwd=tmp_path,
        env=os.environ
        | {"XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
