"""`jaxsteer.load`: a model from a checkpoint, a Hugging Face folder, the hub or a GGUF file.

Each tensor is read, converted and sent to its devices while the next ones are read.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    dotted,
    flatten,
    from_params,
    nest,
    params_sharding,
    shard_model,
)
from jaxsteer.models.conversion import proved_tokenizer, target_dtype
from jaxsteer.models.loaded_model import Loaded
from jaxsteer.runtime import hosts
from jaxsteer.tokenizers import difference, prompt_facts

_UNDER_WAY_BYTES = 1 << 29  # that may be on their way to devices, and are in memory until then
_PLACERS = 4  # threads that turn arrays and send them to devices, a core each


def load(
    source: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    sharding: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    strict: bool = False,
    warm: Callable[[Model], Any] | None = None,
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
        warm: called with the model of shapes while weights are read, to compile what will be run
            (`jaxsteer.compile_generate`). What it raises is raised when the weights are there.

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
        with _beside(warm, lambda: _shapes_of_checkpoint(path, dtype, mesh)):
            return _from_checkpoint(path, dtype=dtype, mesh=mesh, sharding=sharding)
    _check_is_model(path)
    opened, origin = open_source(source, revision=revision, strict=strict)
    target = _target(opened, dtype)
    with _beside(warm, lambda: abstract_model(opened.config, dtype=target, mesh=mesh)):
        return _from_files(opened, origin, dtype, mesh, sharding)


@contextlib.contextmanager
def _beside(warm: Callable[[Model], Any] | None, shapes: Callable[[], Model]) -> Iterator[None]:
    """Run `warm` on the model of shapes in a thread, and wait for it at the end."""
    if warm is None:
        yield
        return
    model = shapes()
    with ThreadPoolExecutor(1) as pool:
        warmed = pool.submit(warm, model)
        yield
        warmed.result()


def _shapes_of_checkpoint(path: Path, dtype: Any, mesh: Any) -> Model:
    about = checkpoint.read_manifest(path)
    stored = about.dtype if dtype is None else checkpoint.dtype_name(dtype)
    return abstract_model(about.config, dtype=stored, mesh=mesh)


def _check_is_model(path: Path) -> None:
    """Raise `ValueError` for a folder that is no model, naming what it lacks."""
    if not path.is_dir() or (path / "config.json").is_file():
        return
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files:
        raise ValueError(f"{path}: holds GGUF files, expected the name of one: {', '.join(files)}")
    if (path / "checkpoint" / checkpoint.MANIFEST).is_file():
        raise ValueError(f"{path}: is no model, but its folder checkpoint is one")


def _from_checkpoint(path: Path, *, dtype: Any, mesh: Any, sharding: Any) -> Loaded:
    model, tokenizer = checkpoint.load(path, dtype=dtype, mesh=mesh, sharding=sharding)
    about = {"path": str(path), **checkpoint.read_manifest(path).provenance}
    notes = []
    try:
        ends = tuple(end_tokens(path, tokenizer))
    except ValueError as error:
        ends, notes = (), [str(error)]
    return Loaded(model, tokenizer, ends, about, tuple(notes))


def _from_files(
    opened: Folder | GgufModel, source: Source, dtype: Any, mesh: Any, sharding: Any
) -> Loaded:
    config = opened.config
    target = _target(opened, dtype)
    if mesh is not None:
        sharding = params_sharding(config, mesh)
    with ThreadPoolExecutor(1) as pool:
        # Importing what makes a tokenizer takes seconds, in which weights can be read.
        tokenizer = pool.submit(proved_tokenizer, opened)
        placed = _place(_leaves(opened, target, tokenizer), sharding)
        in_order = ((path, placed[path]) for path, _ in flatten(abstract_params(config)))
        model = from_params(nest(in_order), config)
        if mesh is not None:
            model = shard_model(model, mesh)
    ends, told, notes = _about(opened, tokenizer.result(), target)
    provenance = {"path": str(opened.path), "source": source.name, "revision": source.revision}
    return Loaded(model, tokenizer.result(), ends, provenance | told, tuple(notes))


def _about(
    opened: Folder | GgufModel, tokenizer: Any, dtype: str
) -> tuple[tuple[int, ...], dict[str, Any], list[str]]:
    """End tokens, provenance of the files, and notes of what is unusual in them."""
    told: dict[str, Any] = {
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
    try:
        return tuple(named_ends(files, tokenizer, vocab_size=vocab_size)), told, notes
    except ValueError as error:
        return (), told, [*notes, str(error)]


def _target(opened: Folder | GgufModel, dtype: Any) -> str:
    return target_dtype(opened, "keep" if dtype is None else checkpoint.dtype_name(dtype))


def _leaves(
    opened: Folder | GgufModel, dtype: str, tokenizer: Future[Any]
) -> Iterable[tuple[ParamPath, np.ndarray]]:
    """All tensors in our layout; raises at once for a tokenizer that fails its check."""
    opened.check_tied()
    infinite = []
    for tensor, x, finite in tensors_as_ours(opened, dtype, contiguous=False):
        if tokenizer.done():
            tokenizer.result()
        if not finite:
            infinite.append(f"{tensor.name} ({dotted(tensor.path)})")
        yield tensor.path, x
    if infinite:
        raise ValueError(
            f"{opened.path}: NaN or infinite as {dtype} (convert it with allow_nonfinite=True):\n  "
            + "\n  ".join(infinite)
        )


def _place(leaves: Iterable[tuple[ParamPath, np.ndarray]], sharding: Any) -> dict[ParamPath, Any]:
    """Send each array to its devices as it comes; few are in memory at a time."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    one_for_all = isinstance(sharding, jax.sharding.Sharding)
    places = {} if one_for_all else dict(flatten(sharding))
    placed: dict[ParamPath, Future[jax.Array]] = {}
    under_way: deque[tuple[int, Future[jax.Array]]] = deque()

    def place(x: np.ndarray, where: Any) -> jax.Array:
        return jax.block_until_ready(hosts.place(x, where))

    with ThreadPoolExecutor(_PLACERS) as pool:
        for path, x in leaves:
            placed[path] = pool.submit(place, x, sharding if one_for_all else places[path])
            under_way.append((x.nbytes, placed[path]))
            del x
            while sum(size for size, _ in under_way) > _UNDER_WAY_BYTES:
                under_way.popleft()[1].result()
    return {path: future.result() for path, future in placed.items()}
