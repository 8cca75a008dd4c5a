"""Folders that look like models but are not: what they are and what to do, in one line."""

from pathlib import Path
from typing import Any

from jaxsteer.files import read_json_object

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # at most, by Git LFS's specification
_ADAPTER = "adapter_config.json"


def check_pointers(*files: Path) -> None:
    """Raise `ValueError` for pointers, which Git leaves in a clone without Git LFS."""
    pointers = [file for file in files if is_pointer(file)]
    if pointers:
        names = ", ".join(file.name for file in pointers[:3])
        more = f" and {len(pointers) - 3} more" if len(pointers) > 3 else ""
        raise ValueError(
            f"{pointers[0].parent}: got Git LFS pointers in place of {names}{more}; fetch the "
            "files: git lfs pull"
        )


def is_pointer(file: Path) -> bool:
    """Whether a file is a pointer of Git LFS."""
    if not file.is_file() or file.stat().st_size > _POINTER_BYTES:
        return False
    return file.read_bytes().startswith(_POINTER)


def why_no_weights(folder: Path, *, single: str, index: str) -> ValueError | FileNotFoundError:
    """The error for a folder that has neither `single` nor `index`."""
    if (folder / _ADAPTER).is_file():
        return ValueError(
            f"{folder}: is an adapter (LoRA) of {_base(folder)}, expected a whole model; merge it "
            f"first, with peft: AutoPeftModelForCausalLM.from_pretrained('{folder}')"
            ".merge_and_unload().save_pretrained('NEW')"
        )
    shards = sorted(file.name for file in folder.glob("*-of-*.safetensors"))
    if shards:
        return FileNotFoundError(
            f"{folder}: {len(shards)} shards ({shards[0]} …) without {index}, which says what is "
            "in them; fetch it from where they came from"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return FileNotFoundError(
            f"{folder}: got weights in {', '.join(others[:3])}, expected {single} or {index}"
        )
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return ValueError(
            f"{folder}: only pickled weights ({', '.join(pickles)}), and a pickle can run code "
            "when it is read. If you trust them, rewrite them as safetensors:\n  "
            'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[X.from_pretrained('{folder}').save_pretrained('NEW') for X in (M, T)]\""
        )
    return FileNotFoundError(f"{folder}: no weights, expected {single} or {index}")


def _base(folder: Path) -> str:
    """The model that an adapter belongs to, as its config says."""
    try:
        about: Any = read_json_object(folder / _ADAPTER).get("base_model_name_or_path")
    except ValueError:
        about = None
    return about[:100] if isinstance(about, str) and about else "another model"
