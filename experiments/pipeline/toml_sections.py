"""Tables of a TOML file as frozen dataclasses; what does not fit is said by its name."""

import dataclasses
import types
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Section = TypeVar("Section")


def read_section(kind: type[Section], raw: dict[str, Any], where: str, problems: list[str]) -> Any:
    """A dataclass from a table, sections within sections; None if anything in it is wrong.

    Args:
        kind: the dataclass.
        raw: the table.
        where: the table's name with a full stop, for messages; "" for the file itself.
        problems: grows by every key that is unknown, missing or of the wrong type.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems += [
        f"{where}{name}: unknown key, expected one of {', '.join(fields)}"
        for name in sorted(raw.keys() - fields.keys())
    ]
    values = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], where + name, problems)
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = read_section(hints[name], {}, f"{where}{name}.", problems)
        elif spec.default is spec.default_factory is dataclasses.MISSING:
            problems.append(f"{where}{name}: missing")
    return None if problems else kind(**values)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return read_section(hint, value, f"{where}.", problems)  # type: ignore[arg-type]
        problems.append(f"{where}: got {value!r}, expected a table")
        return None
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if dataclasses.is_dataclass(options[0]):  # a section that may be left out
        return _value(options[0], value, where, problems)
    for option in options:
        if get_origin(option) is list:
            item = get_args(option)[0]
            if isinstance(value, list) and all(_fits(item, v) for v in value):
                return [item(v) for v in value]
        elif option is not type(None) and _fits(option, value):
            return option(value)
    names = " or ".join(_kind_name(o) for o in options if o is not type(None))
    problems.append(f"{where}: got {value!r}, expected {names}")
    return None


def _kind_name(kind: Any) -> str:
    return str(kind) if get_origin(kind) else kind.__name__


def _fits(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
