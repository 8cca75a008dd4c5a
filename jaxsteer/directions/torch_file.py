"""What PyTorch's `.pt` files hold, read without PyTorch and without unpickling.

    archive/data.pkl    a pickle: dictionaries, plain values, and where each tensor lies
    archive/data/0 …    the numbers of each storage

A pickle is a program for a small machine with a stack. Its instructions that build plain data are
carried out here; one that would import or call anything else is refused. What a file can make us
read, build or walk through is bounded beforehand.
"""

import math
import os
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsteer.files import MOST_BYTES, as_path, check_regular
from jaxsteer.runtime import wrong

Keys = tuple[Any, ...]

_STORAGES = {
    "torch FloatStorage": "<f4", "torch DoubleStorage": "<f8", "torch HalfStorage": "<f2",
    "torch BFloat16Storage": jnp.bfloat16, "torch LongStorage": "<i8", "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2", "torch CharStorage": "i1", "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}  # fmt: skip
_PLAIN = ("torch Size", "torch device", "__builtin__ set", "builtins set")  # kept as a text
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
)  # fmt: skip
_MOST_STEPS = 200_000  # of the pickle: some 20 a tensor
_MOST_LEVELS = 100  # of dictionaries, lists and tuples in each other
_MOST_VALUES = 1 << 17  # values, each as often as it is reached; so many letters are one more
_LETTERS = 64
_MOST_NUMBERS = 1 << 26  # of all tensors together
# Of the zip, and of instructions that find something else on the stack than they expect.
_DAMAGED = (
    zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError,
    AttributeError, IndexError, KeyError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class _Global:
    """What the pickle would import, by its module and name; it is only compared."""

    name: str


@dataclass(frozen=True)
class _Tensor:
    """A tensor of `size`: numbers of a storage, from the `offset`-th on, `stride` apart."""

    kind: str  # of the storage: its global
    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: str | os.PathLike[str]) -> dict[Keys, Any]:
    """The leaves of a file's dictionaries by their keys: arrays `[D]`, and other plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds anything but tensors `[D]` of real numbers and plain
            values.
    """
    path = as_path(path)
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > os.path.getsize(path):
                raise ValueError("its parts are compressed, or lie over each other")
            (pickle,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            data = pickle.removesuffix(".pkl")
            leaves = _leaves(_run(_member(archive, pickle, most=MOST_BYTES)))
            names = {leaf.storage for _, leaf in leaves if isinstance(leaf, _Tensor)}
            storages = {n: _member(archive, f"{data}/{n}", most=4 * _MOST_NUMBERS) for n in names}
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: not a file of tensors alone, or damaged: {reason}; no code in it was run"
        ) from None
    sizes = [math.prod(leaf.size) for _, leaf in leaves if isinstance(leaf, _Tensor)]
    if sum(sizes) > _MOST_NUMBERS:
        raise ValueError(f"{path}: tensors of more than {_MOST_NUMBERS:,} numbers together")
    return {
        keys: _numbers(leaf, storages[leaf.storage], f"{path}: direction {joined(keys)!r:.80}")
        if isinstance(leaf, _Tensor)
        else leaf
        for keys, leaf in leaves
    }


def joined(keys: Keys) -> str:
    """The keys that lead to a value, as its name."""
    return ".".join(map(str, keys))


def _member(archive: zipfile.ZipFile, name: str, *, most: int) -> bytes:
    """A file of the archive, which PyTorch never compresses."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{name}: compressed, or more than {most:,} bytes")
    return archive.read(info)


def _run(program: bytes) -> Any:
    """What a pickle builds, of plain data and descriptions of tensors."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        at = marks.pop()
        values = stack[at:]
        del stack[at:]
        return values

    op: Any
    arg: Any
    for step, (op, arg, _) in enumerate(pickletools.genops(program)):
        if step > _MOST_STEPS:
            raise ValueError(f"more than {_MOST_STEPS:,} instructions")
        match op.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (value,) = stack
                return value
            case "MARK":
                marks.append(len(stack))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _VALUES:
                stack.append(arg)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "TUPLE":
                stack.append(tuple(marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                marks.append(len(stack) - int(op.name[-1]))
                stack.append(tuple(marked()))
            case "APPEND" | "APPENDS":
                values = marked() if op.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                if op.name == "SETITEM":
                    marks.append(len(stack) - 2)
                values = marked()
                if not all(isinstance(key, str | float | int | None) for key in values[::2]):
                    raise ValueError("a key that is no text or number")  # hashing has no end either
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Global(arg))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Global(" ".join([module, name])))
            case "BINPERSID" if isinstance(stack[-1], tuple):
                pass  # the tuple says which storage
            case "BUILD":  # attributes of a dictionary, which do not matter
                stack.pop()
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case name:
                raise ValueError(f"the instruction {name}")
    raise ValueError("cut short")


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    match function, arguments:
        case _Global("torch._utils _rebuild_tensor_v2"), (
            ("storage", _Global(kind), str(storage), str(), int()),
            int(offset),
            tuple(size),
            tuple(stride),
            *_,
        ) if len(size) == len(stride) and _are_sizes((offset, *size, *stride)):
            return _Tensor(kind, storage, offset, size, stride)
        case _Global("torch._utils _rebuild_parameter"), (_Tensor() as tensor, *_):
            return tensor
        case _Global("collections OrderedDict"), ():
            return {}
        case _Global(name), tuple() if name in _PLAIN:
            return [name.split()[-1], arguments]
        case _Global(name), _:
            raise ValueError(f"it asks for {name.replace(' ', '.'):.80}, expected plain tensors")
    raise ValueError("it calls what is no name")


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def _leaves(content: Any) -> list[tuple[Keys, Any]]:
    """All values that are no dictionaries, each with the keys that lead to it."""
    leaves: list[tuple[Keys, Any]] = []
    left: list[tuple[Keys, Any, int, bool]] = [((), content, 0, True)]
    values = 0
    while left:
        keys, value, level, own = left.pop()
        values += 1 + (len(value) // _LETTERS if isinstance(value, str) else 0)
        if level > _MOST_LEVELS or values > _MOST_VALUES:
            raise ValueError("dictionaries or lists in each other without end")
        if isinstance(value, dict):
            left += reversed([((*keys, k), item, level + 1, own) for k, item in value.items()])
            continue
        if own:
            leaves.append((keys, value))
        if isinstance(value, list | tuple):  # to count what is in it
            left += [(keys, item, level + 1, False) for item in value]
    return leaves


def _numbers(tensor: _Tensor, storage: bytes, where: str) -> NDArray[Any]:
    """The numbers `[D]` of a tensor."""
    if tensor.kind not in _STORAGES:
        kind = tensor.kind.replace(" ", ".")
        raise ValueError(f"{where}: got numbers of {kind:.80}, expected plain real ones")
    if len(tensor.size) != 1:
        raise wrong(where, f"{tensor.size!r:.80}", "shape [D]")
    (size,), (stride,), dtype = tensor.size, tensor.stride, np.dtype(_STORAGES[tensor.kind])
    data = np.frombuffer(storage[: len(storage) // dtype.itemsize * dtype.itemsize], dtype)
    numbers = data[tensor.offset :: max(stride, 1)][:size]
    if len(numbers) < size or (size > 1 and not stride):
        raise ValueError(f"{where}: has {size:,} numbers, more than lie in the file")
    return numbers
