"""Floors and rooms: imports go down floors, and within a floor only to rooms listed before."""

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "jaxsteer": {"jaxsteer"},
    "weights": {"jaxsteer", "weights"},
    "experiments": {"jaxsteer", "weights", "experiments"},
}
FILES = {floor: sorted((ROOT / floor).rglob("*.py")) for floor in BELOW}
FLOORS_OF_ROOMS = ("jaxsteer", "experiments")
MOST_FILES = 14  # of a room, its sign apart


def module_of(file: Path) -> str:
    """`jaxsteer.llama.model`; a room itself is `jaxsteer.llama`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for files in FILES.values() for file in files}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every import, in functions and for types, too; a module has name ""."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, "") if inner in MODULES else (node.module, alias.name)


def room_of(module: str) -> str:
    """The second part of a module's name; "" for a floor itself and for its commands."""
    return "" if module.count(".") == 0 else module.split(".")[1]


def rooms_of(floor: str) -> list[str]:
    """The rooms in the order of the floor's sign."""
    sign = importlib.import_module(floor).__doc__ or ""
    return re.findall(r"^    (\w+)  +\S", sign, flags=re.MULTILINE)


@pytest.mark.parametrize("floor", BELOW)
def test_imports_go_down_only(floor: str) -> None:
    wrong = {
        f"{module_of(file)} imports {module}"
        for file in FILES[floor]
        for module, _ in imports(file)
        if module.split(".")[0] in {*BELOW, "tests"} - BELOW[floor]
    }
    assert not wrong


@pytest.mark.parametrize("floor", FLOORS_OF_ROOMS)
def test_the_sign_lists_every_room_once(floor: str) -> None:
    folders = {file.parent.name for file in (ROOT / floor).glob("*/__init__.py")}
    assert sorted(rooms_of(floor)) == sorted(folders)


@pytest.mark.parametrize("floor", FLOORS_OF_ROOMS)
def test_rooms_use_those_above_them_only(floor: str) -> None:
    order = rooms_of(floor)
    commands = [file.stem for file in (ROOT / floor).glob("*.py")]
    allowed = {room: order[: i + 1] for i, room in enumerate(order)}
    allowed["benchmarks"] = [*order, *commands]  # they measure commands
    wrong = [
        f"{module_of(file)} imports {module}"
        for file in FILES[floor]
        for module, _ in imports(file)
        if file.parent != ROOT / floor
        and module.split(".")[0] == floor
        and room_of(module) not in allowed[room_of(module_of(file))]
    ]
    assert not wrong


@pytest.mark.parametrize("floor", BELOW)
def test_no_circle_between_files(floor: str) -> None:
    graph = {module_of(file): {module for module, _ in imports(file)} for file in FILES[floor]}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_other_rooms_import_from_the_room_and_not_from_its_files() -> None:
    wrong = [
        f"{module_of(file)} imports {name} from {module}"
        for file in FILES["jaxsteer"]
        for module, name in imports(file)
        if module.startswith("jaxsteer.")
        and module.count(".") > 1  # a file of a room
        and name not in ("", "main")
        and not name.startswith("_")
        and room_of(module) != room_of(module_of(file))
    ]
    assert not wrong


def packages() -> list[ModuleType]:
    names = [
        module_of(file) for files in FILES.values() for file in files if file.stem == "__init__"
    ]
    return [importlib.import_module(name) for name in names]


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_no_exported_name_hides_a_module(package: ModuleType) -> None:
    folder = Path(str(package.__file__)).parent
    for file in folder.glob("[!_]*.py"):
        value = getattr(package, file.stem, None)
        assert value is None or isinstance(value, ModuleType), f"{package.__name__}.{file.stem}"


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_a_room_has_few_files(package: ModuleType) -> None:
    files = [f for f in Path(str(package.__file__)).parent.glob("*.py") if f.stem != "__init__"]
    assert len(files) <= MOST_FILES or package.__name__ == "experiments.benchmarks"


def test_the_heart_is_read_in_an_hour() -> None:
    """The files that rooms.md lists, in order: model, steering, generate, sweep."""
    section = (ROOT / "docs/how/rooms.md").read_text().split("\n## ")[2]
    assert section.startswith("The heart")
    heart = [ROOT / "jaxsteer" / name for name in re.findall(r"^\| `(\S+\.py)` ", section, re.M)]
    assert len(heart) > 10
    assert sum(len(file.read_text().splitlines()) for file in heart) <= 2500


def test_pytorch_is_for_tests_and_comparisons_only() -> None:
    # Imported when asked for: to compare with.
    allowed = {
        "jaxsteer.models.verification",
        "experiments.benchmarks.cpu",
        "experiments.benchmarks.distinct",
        "experiments.benchmarks.sweep_transformers",
        "experiments.real_files",
    }
    users = {
        module_of(file)
        for files in FILES.values()
        for file in files
        if any(module.split(".")[0] == "torch" for module, _ in imports(file))
    }
    assert users == allowed
