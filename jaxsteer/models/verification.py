"""Check a converted checkpoint against the Hugging Face folder that it came from.

    python -m weights.verify SRC DST [--tokens N] [--layers N]

Every tensor is compared by its hash, a tensor at a time. Then logits and every layer's output are
compared with those of transformers' own model, both in float32, which takes both models'
memory: 64 GB for 8 billion parameters. `--layers 4` takes the first four layers alone, as do both
models then, with the embedding and the head: 16 GB. Exit code 0: they agree; 1: they do not; 2:
the check could not be made.
"""

import argparse
import hashlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxsteer.checkpoints import checkpoint
from jaxsteer.config import LlamaConfig
from jaxsteer.huggingface import Folder, find_source, open_folder
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.llama import Model, ParamPath, dotted, forward, from_params, nest, xla_attention
from jaxsteer.runtime import guarded
from jaxsteer.steering import Capture

TOLERANCE = 1e-4  # float32 on both sides, sums in another order; wrong rotary angles give > 1e-2
_AT_ONCE = 8  # tensors compared side by side; a layer of a Llama has nine
_NO_TORCH = (
    "verify compares with transformers, which needs PyTorch; install its CPU build: "
    "pip install torch --index-url https://download.pytorch.org/whl/cpu"
)


def different_tensors(folder: Folder, path: Path, dtype: str) -> list[str]:
    """Tensors of the checkpoint at `path` whose SHA-256 is not the source's, cast alike.

    Both are hashed in Hugging Face's layout, some tensors at a time.
    """
    by_path = {t.path: t for t in hf.tensors(folder.config).values()}

    def differs(leaf: tuple[ParamPath, np.ndarray]) -> str | None:
        leaf_path, x = leaf
        tensor = by_path[leaf_path]
        source = hf.cast(folder.read(tensor.name), dtype)
        same = _sha256(source) == _sha256(tensor.to_hf(x))
        return None if same else f"{tensor.name} ({dotted(leaf_path)})"

    leaves = checkpoint.read_leaves(path)
    different = []
    with (
        ThreadPoolExecutor(_AT_ONCE) as pool,  # hashing lets go of the interpreter's lock
        tqdm(total=len(by_path), unit="tensor") as bar,
    ):
        while some := list(islice(leaves, _AT_ONCE)):
            different += [name for name in pool.map(differs, some) if name]
            bar.update(len(some))
    return different


def layer_errors(
    folder: Folder,
    path: Path,
    dtype: str,
    *,
    tokens: int,
    layers: int | None = None,
    compute: str = "float32",
) -> dict[str, float]:
    """Largest relative error of each layer's output and of the logits over `batteries`.

    The error at one position is |ours - theirs| / |theirs|, Euclidean over the width.

    Args:
        folder: the source.
        path: the checkpoint.
        dtype: of the weights in the checkpoint.
        tokens: length of the longest sequence.
        layers: only the first so many, in both models.
        compute: dtype of weights and arithmetic, here and there. Only `"float32"` proves anything
            to four digits.
    """
    config = replace(folder.config, n_layers=layers or folder.config.n_layers)
    model = _our_model(path, config, compute)
    theirs = _torch_model(folder, dtype, config.n_layers, compute)
    worst: dict[str, float] = {}
    for row in batteries(config, tokens):
        for name, ours, reference in _outputs(model, theirs, row):
            error = np.linalg.norm(ours - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
            # NaN must not pass as small, and max() would let it.
            largest = float(np.max(np.nan_to_num(error, nan=np.inf)))
            worst[name] = max(worst.get(name, 0.0), largest)
    return worst


def batteries(config: LlamaConfig, tokens: int) -> list[np.ndarray]:
    """Token sequences `[1, T]`: one token, a short one, and one that reaches `tokens` positions."""
    rng = np.random.default_rng(0)
    length = min(tokens, config.max_positions)
    lengths = sorted({1, min(17, length), length})
    return [rng.integers(config.vocab_size, size=(1, n), dtype=np.int32) for n in lengths]


def _outputs(
    model: Model, theirs: Any, row: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, ours and transformers' of each layer's output and the logits, `[T, D or V]`."""
    import torch

    with jax.default_matmul_precision("highest"):
        capture = Capture(sites=("resid_post",))
        out = jax.jit(lambda m, t: forward(m, t, capture=capture))(model, jnp.asarray(row))
    seen: list[np.ndarray] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0].float().cpu().numpy())

    handles = [layer.register_forward_hook(keep) for layer in theirs.model.layers]
    try:
        with torch.no_grad():
            tokens = torch.from_numpy(row.astype(np.int64)).to(theirs.device)
            logits = theirs(tokens).logits[0].float().cpu().numpy()
    finally:
        for handle in handles:
            handle.remove()
    ours = np.asarray(out.captured["resid_post"], np.float32)
    for layer, reference in enumerate(seen):
        yield f"layer {layer}", ours[layer, 0], reference
    yield "logits", np.asarray(out.logits, np.float32)[0], logits


def _our_model(path: Path, config: LlamaConfig, compute: str) -> Model:
    """The checkpoint's model, or its first layers, with the exact attention on every machine."""
    if config.n_layers == checkpoint.read_manifest(path).config.n_layers:
        model, _ = checkpoint.load(path, dtype=compute)
    else:
        model = from_params(
            nest(
                (leaf_path, jnp.asarray(x, compute))
                for leaf_path, x in checkpoint.read_leaves(path, layers=config.n_layers)
            ),
            config,
        )
    return model.with_attention(xla_attention)


def _torch_model(folder: Folder, dtype: str, layers: int, compute: str) -> Any:
    """Transformers' model or its first layers, its weights rounded to the checkpoint's dtype."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder.path), trust_remote_code=False)
    config.num_hidden_layers = layers
    model = AutoModelForCausalLM.from_pretrained(
        str(folder.path),
        config=config,
        dtype=getattr(torch, compute),
        attn_implementation="eager",
        trust_remote_code=False,
    )
    for parameter in model.parameters():  # not the rotary frequencies, which stay float32
        parameter.data = parameter.data.to(getattr(torch, dtype)).to(getattr(torch, compute))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _sha256(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).view(np.uint8).data).hexdigest()


@guarded("verify", failed=2)
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.verify", description="Compare a checkpoint with its source."
    )
    parser.add_argument("src", help="Hugging Face folder or hub id")
    parser.add_argument("dst", help="what weights.convert made of it")
    parser.add_argument("--tokens", type=int, default=2048, help="longest sequence (default 2048)")
    parser.add_argument("--layers", type=int, help="run the first N layers (default: all)")
    args = parser.parse_args(argv)
    for name in ("tokens", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: got {value}, expected at least 1")
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(_NO_TORCH)
    return _report(Path(args.dst), str(args.src), args.tokens, args.layers)


def _report(path: Path, src: str, tokens: int, layers: int | None) -> int:
    manifest = checkpoint.read_manifest(path)
    folder = open_folder(find_source(src, revision=manifest.provenance.get("revision")).folder)
    if folder.config != manifest.config:
        print(f"FAIL: the configs differ:\n  {folder.config}\n  {manifest.config}")
        return 1
    if layers is not None and layers > folder.config.n_layers:
        raise ValueError(f"layers: got {layers}, expected at most {folder.config.n_layers}")
    different = different_tensors(folder, path, manifest.dtype)
    count = len(hf.tensors(folder.config))
    print(f"tensors: {count - len(different)} of {count} are the source's as {manifest.dtype}")
    for name in different:
        print(f"  differs: {name}")
    errors = layer_errors(folder, path, manifest.dtype, tokens=tokens, layers=layers)
    for name, error in errors.items():
        print(f"{name}: largest relative error {error:.1e}")
    worst = max(errors.values())
    passed = not different and worst <= TOLERANCE
    verdict = "PASS" if passed else "FAIL"
    print(f"{verdict}: largest error {worst:.1e}, allowed {TOLERANCE:.0e}")
    return 0 if passed else 1
