"""`jaxsteer.load`: a model from a checkpoint, a Hugging Face folder, the hub or a GGUF file.

Each tensor is read, converted and sent to its devices while the next ones are read.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsteer.checkpoints import checkpoint, end_tokens, named_ends
from jaxsteer.files import as_path, is_remote
from jaxsteer.huggingface import (
    Folder,
    GgufModel,
    Source,
    find_source,
    open_source,
    tensors_as_ours,
)
from jaxsteer.llama import (
    Model,
    ParamPath,
    abstract_model,
    abstract_params,
    arrange,
    dotted,
    flatten,
    from_params,
    nest,
    params_sharding,
    shard_model,
)
from jaxsteer.models.conversion import proved_tokenizer, target_dtype
from jaxsteer.models.loaded_model import Loaded
from jaxsteer.models.placement import place_all
from jaxsteer.tokenizers import difference, prompt_facts

_Beside = Callable[[Model], Loaded]  # puts what was read beside the weights to a model


class _Parts(NamedTuple):
    """How to read a model: what lies beside the weights, the weights, and their shapes alone."""

    companions: Callable[[], _Beside]
    weights: Callable[[Future[_Beside]], Model]
    shapes: Callable[[], Model]


def load(
    source: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    sharding: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    strict: bool = False,
    arranged: bool = True,
    warm: Callable[[Loaded], Any] | None = None,
) -> Loaded:
    """Load a model and its tokenizer.

    Args:
        source: a checkpoint that `jaxsteer.convert` or `jaxsteer.save` wrote, also in an object
            store (`gs://…`); a Hugging Face folder; a hub id such as `Qwen/Qwen2.5-7B-Instruct`,
            which is downloaded once; or a `.gguf` file of a Llama or Qwen model.
        mesh: split the model over it (`jaxsteer.make_mesh`); each device gets its part only.
        sharding: instead of a mesh, where the weights go: one `jax.sharding.Sharding` for all, or
            a tree of them shaped like `Model.params`. With neither, the first device.
        dtype: of the weights, `"bfloat16"` or `"float32"`. By default as stored; a GGUF file's are
            unpacked to float32.
        revision: branch, tag or commit on the hub.
        strict: refuse unusual fields and files instead of noting them.
        arranged: lay the weights out as this backend decodes fastest (`jaxsteer.arrange`): on GPUs
            some projections are joined. Without it, and with a `sharding`, they have the names and
            shapes of a checkpoint, as on CPUs. `jaxsteer.unpack` goes back.
        warm: called, while weights are read, with what will be returned, but its model is one of
            shapes: to compile what will be run (`jaxsteer.compile_generate`, `compile_sweep`). What
            it raises is raised when the weights are there.

    Returns:
        A `Loaded`, which unpacks as the pair `model, tokenizer`.

    Raises:
        FileNotFoundError: there is no such file, folder, or model on the hub.
        ValueError: the model is damaged, is none that is implemented, or cannot be split over the
            mesh. All problems are named, before a weight is read where that is possible.
    """
    if sharding is not None and mesh is not None:
        raise ValueError("load: got both sharding and mesh, expected at most one")
    if sharding is not None and warm is not None:
        raise ValueError("load: got both sharding and warm, expected a mesh, or neither")
    if not (mesh is None or isinstance(mesh, jax.sharding.Mesh)):
        got = type(mesh).__name__
        raise ValueError(f"mesh: got {got}, expected a jax.sharding.Mesh (jaxsteer.make_mesh)")
    if str(source).startswith(("http://", "https://")):
        find_source(source)  # says what is expected
    path = as_path(source)
    if is_remote(source) or (path / checkpoint.MANIFEST).is_file():
        parts = _from_checkpoint(path, dtype, mesh, sharding)
    else:
        _check_is_model(path)
        opened, origin = open_source(source, revision=revision, strict=strict)
        parts = _from_files(opened, origin, dtype, mesh, sharding)
    return _together(parts, warm, arranged=arranged and sharding is None)


def _check_is_model(path: Path) -> None:
    """Raise `ValueError` for a folder that is no model, naming what it lacks."""
    if not path.is_dir() or (path / "config.json").is_file():
        return
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files:
        raise ValueError(f"{path}: holds GGUF files, expected the name of one: {', '.join(files)}")
    if (path / "checkpoint" / checkpoint.MANIFEST).is_file():
        raise ValueError(f"{path}: is no model, but its folder checkpoint is one")


def _together(parts: _Parts, warm: Callable[[Loaded], Any] | None, *, arranged: bool) -> Loaded:
    """Read weights and companions beside each other, and run `warm` on shapes meanwhile."""

    def lay_out(model: Model) -> Model:
        return arrange(model, donate=True) if arranged else model

    def ahead(warm: Callable[[Loaded], Any]) -> None:
        warm(beside.result()(lay_out(parts.shapes())))

    with ThreadPoolExecutor(2) as pool:
        # Importing what makes a tokenizer takes seconds, in which weights can be read.
        beside = pool.submit(parts.companions)
        warmed = None if warm is None else pool.submit(ahead, warm)
        model = lay_out(parts.weights(beside))
        if warmed is not None:
            warmed.result()
    return beside.result()(model)


def _from_checkpoint(path: Path, dtype: Any, mesh: Any, sharding: Any) -> _Parts:
    manifest = checkpoint.read_manifest(path)
    stored = manifest.dtype if dtype is None else checkpoint.dtype_name(dtype)

    def companions() -> _Beside:
        about = {"path": str(path), **manifest.provenance}
        tokenizer = checkpoint.load_tokenizer(path)
        ends, notes = _ends_or_note(lambda: end_tokens(path, tokenizer))
        return lambda model: Loaded(model, tokenizer, ends, about, notes)

    def weights(_: Future[_Beside]) -> Model:
        return checkpoint.load_weights(path, dtype=dtype, mesh=mesh, sharding=sharding)

    def shapes() -> Model:
        return abstract_model(manifest.config, dtype=stored, mesh=mesh)

    return _Parts(companions, weights, shapes)


def _from_files(
    opened: Folder | GgufModel, source: Source, dtype: Any, mesh: Any, sharding: Any
) -> _Parts:
    config = opened.config
    target = target_dtype(opened, "keep" if dtype is None else checkpoint.dtype_name(dtype))
    if mesh is not None:
        sharding = params_sharding(config, mesh)

    def companions() -> _Beside:
        return _companions(opened, source, proved_tokenizer(opened), target)

    def weights(beside: Future[_Beside]) -> Model:
        placed = place_all(_leaves(opened, target, beside), sharding)
        in_order = ((path, placed[path]) for path, _ in flatten(abstract_params(config)))
        model = from_params(nest(in_order), config)
        return model if mesh is None else shard_model(model, mesh)

    def shapes() -> Model:
        return abstract_model(config, dtype=target, mesh=mesh)

    return _Parts(companions, weights, shapes)


def _companions(opened: Folder | GgufModel, source: Source, tokenizer: Any, dtype: str) -> _Beside:
    """End tokens and provenance from the files, and notes of what is unusual in them."""
    told: dict[str, Any] = {
        "path": str(opened.path),
        "source": source.name,
        "revision": source.revision,
        "source_dtypes": opened.dtypes,
        "unknown_config_fields": opened.unknown_fields,
    }
    notes = [f"unknown field {name}={x!r:.80}" for name, x in opened.unknown_fields.items()]
    if isinstance(opened, GgufModel):
        notes.append(f"unpacked from {', '.join(opened.dtypes)} to {dtype}")
    files, vocab_size = opened.companions, opened.config.vocab_size
    if tokenizer is None:
        notes.append("no tokenizer beside the weights")
    else:
        told |= prompt_facts(files, tokenizer, vocab_size=vocab_size)
        notes += filter(None, [difference(told["special_tokens"])])
    ends, note = _ends_or_note(lambda: named_ends(files, tokenizer, vocab_size=vocab_size))
    return lambda model: Loaded(model, tokenizer, ends, told, (*notes, *note))


def _ends_or_note(read: Callable[[], list[int]]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """End tokens; or none, and a note that says why."""
    try:
        return tuple(read()), ()
    except ValueError as error:
        return (), (str(error),)


def _leaves(
    opened: Folder | GgufModel, dtype: str, beside: Future[_Beside]
) -> Iterable[tuple[ParamPath, np.ndarray]]:
    """All tensors in our layout; raises at once for companions that fail their checks."""
    opened.check_tied()
    infinite = []
    for tensor, x, finite in tensors_as_ours(opened, dtype, contiguous=False):
        if beside.done():
            beside.result()
        if not finite:
            infinite.append(f"{tensor.name} ({dotted(tensor.path)})")
        yield tensor.path, x
    if infinite:
        raise ValueError(
            f"{opened.path}: NaN or infinite as {dtype} (convert it with allow_nonfinite=True):\n  "
            + "\n  ".join(infinite)
        )
