"""Check a converted checkpoint against the Hugging Face folder that it came from.

    python -m weights.verify SRC DST [--tokens N] [--layers N]

Every tensor is compared by its hash, a tensor at a time. Then logits and every layer's output are
compared with those of transformers' own model in float64: the errors of this library's float32 may
not be above those of transformers' own float32 (`Errors` has the bound). Eight bytes a parameter
are needed: 64 GB for 8 billion. `--layers 4` takes the first four layers alone, as do both models
then, with the embedding and the head: 16 GB. Exit code 0: they agree; 1: they do not; 2: the check
could not be made.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxsteer.checkpoints import checkpoint
from jaxsteer.config import LlamaConfig
from jaxsteer.files import as_path
from jaxsteer.huggingface import Folder, find_source, open_folder
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.llama import Model, ParamPath, dotted, forward, from_params, nest, xla_attention
from jaxsteer.runtime import as_value_error, guarded
from jaxsteer.steering import Capture

TYPICAL = 2.0  # errors against float64 as multiples of transformers' own in float32
WORST = 32.0
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


@dataclass(frozen=True)
class Errors:
    """Relative errors of one layer's output against float64, at every position: `[P]` each.

    The error at one position is |x - x64| / |x64|, Euclidean over the width.

    Two bounds are kept. Typically (geometric mean over positions) ours may be twice transformers':
    on SmolLM2-135M it is 1.5 times at most, and another sample of positions changes that by 1%. The
    worst of ours may be 32 times the worst of theirs: a few positions of a real model enlarge any
    rounding a hundredfold, and whose rounding is enlarged more is chance. (The 99.9th percentile
    of 2,066 positions was 1.9 times theirs there, between 1.5 and 5.7 in resampled positions.) A
    wrong epsilon, rotary angle or order of weights is at every position, and far above both.
    """

    ours: np.ndarray
    theirs: np.ndarray

    @property
    def typical(self) -> float:
        """How large ours are typically, as a multiple of theirs."""
        tiny = 1e-9  # an error of zero, as of a single token's attention, has no logarithm
        ratio = np.log((self.ours + tiny) / (self.theirs + tiny))
        return float(np.exp(np.nan_to_num(ratio, nan=np.inf).mean()))

    @property
    def largest(self) -> tuple[float, float]:
        """The largest of ours, and of theirs; infinite where one is not a number."""
        both = (np.nan_to_num(x, nan=np.inf).max() for x in (self.ours, self.theirs))
        ours, theirs = map(float, both)
        return ours, theirs

    @property
    def passed(self) -> bool:
        """Whether both bounds are kept."""
        ours, theirs = self.largest
        return self.typical <= TYPICAL and ours <= WORST * theirs < np.inf


def float64_errors(
    folder: Folder, path: Path, dtype: str, *, tokens: int, layers: int | None = None
) -> dict[str, Errors]:
    """Errors of each layer's output and of the logits over `batteries`, by name.

    Args:
        folder: the source.
        path: the checkpoint.
        dtype: of the weights in the checkpoint.
        tokens: length of the longest sequence.
        layers: only the first so many, in both models.
    """
    import torch

    config = replace(folder.config, n_layers=layers or folder.config.n_layers)
    rows = batteries(config, tokens)
    model = _our_model(path, config, "float32")
    ours = [_our_outputs(model, row) for row in rows]
    del model
    theirs = _torch_model(folder, dtype, config.n_layers, "float32")
    single = [_their_outputs(theirs, row) for row in rows]
    for parameter in theirs.parameters():  # in place, so that both never stand in memory
        parameter.data = parameter.data.to(torch.float64)
    errors: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for row, our, their in zip(rows, ours, single, strict=True):
        for name, exact in _their_outputs(theirs, row).items():
            both = _relative(our[name], exact), _relative(their[name], exact)
            errors.setdefault(name, []).append(both)
    return {
        name: Errors(*(np.concatenate(x) for x in zip(*rows, strict=True)))
        for name, rows in errors.items()
    }


def layer_errors(
    folder: Folder,
    path: Path,
    dtype: str,
    *,
    tokens: int,
    layers: int | None = None,
    compute: str = "float32",
) -> dict[str, float]:
    """Largest relative difference to transformers of each layer's output and of the logits.

    Over `batteries`, with both models in the same dtype; for what is not to be judged, such as
    bfloat16.

    Args:
        folder: the source.
        path: the checkpoint.
        dtype: of the weights in the checkpoint.
        tokens: length of the longest sequence.
        layers: only the first so many, in both models.
        compute: dtype of weights and arithmetic, here and there.
    """
    config = replace(folder.config, n_layers=layers or folder.config.n_layers)
    model = _our_model(path, config, compute)
    theirs = _torch_model(folder, dtype, config.n_layers, compute)
    worst: dict[str, float] = {}
    for row in batteries(config, tokens):
        reference = _their_outputs(theirs, row)
        for name, ours in _our_outputs(model, row).items():
            # NaN must not pass as small, and max() would let it.
            error = np.nan_to_num(_relative(ours, reference[name]), nan=np.inf)
            worst[name] = max(worst.get(name, 0.0), float(error.max()))
    return worst


def batteries(config: LlamaConfig, tokens: int) -> list[np.ndarray]:
    """Token sequences `[1, T]`: one token, a short one, and one that reaches `tokens` positions."""
    rng = np.random.default_rng(0)
    length = min(tokens, config.max_positions)
    lengths = sorted({1, min(17, length), length})
    return [rng.integers(config.vocab_size, size=(1, n), dtype=np.int32) for n in lengths]


def _our_outputs(model: Model, row: np.ndarray) -> dict[str, np.ndarray]:
    """Each layer's output and the logits, `[T, D or V]`, by name."""
    with jax.default_matmul_precision("highest"):
        capture = Capture(sites=("resid_post",))
        out = jax.jit(lambda m, t: forward(m, t, capture=capture))(model, jnp.asarray(row))
    layers = np.asarray(out.captured["resid_post"], np.float32)[:, 0]
    outputs = {f"layer {layer}": x for layer, x in enumerate(layers)}
    return {**outputs, "logits": np.asarray(out.logits, np.float32)[0]}


def _their_outputs(model: Any, row: np.ndarray) -> dict[str, np.ndarray]:
    """The same of transformers' model, in its dtype or float32, whichever is larger."""
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, x: Any) -> None:
        wide = x if x.dtype == torch.float64 else x.float()
        outputs[name] = wide[0].cpu().numpy()

    def hook(name: str) -> Any:
        return lambda _module, _inputs, x: keep(name, x[0] if isinstance(x, tuple) else x)

    handles = [
        layer.register_forward_hook(hook(f"layer {i}"))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        with torch.no_grad():
            keep("logits", model(torch.from_numpy(row.astype(np.int64)).to(model.device)).logits)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _relative(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|x - reference| / |reference| at each position."""
    return np.linalg.norm(x - reference, axis=-1) / np.linalg.norm(reference, axis=-1)


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

    with as_value_error(folder.path, "transformers does not load it"):
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
    parser.add_argument("--json", action="store_true", help="print JSON, and the rest to stderr")
    args = parser.parse_args(argv)
    for name in ("tokens", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: got {value}, expected at least 1")
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(_NO_TORCH)
    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        facts = _report(as_path(args.dst), str(args.src), args.tokens, args.layers)
    if args.json:
        print(json.dumps(facts, indent=1))
    return 0 if facts["passed"] else 1


def _report(path: Path, src: str, tokens: int, layers: int | None) -> dict[str, Any]:
    """Print what was compared; returns it, JSON-ready."""
    manifest = checkpoint.read_manifest(path)
    folder = open_folder(find_source(src, revision=manifest.provenance.get("revision")).folder)
    if folder.config != manifest.config:
        print(f"FAIL: the configs differ:\n  {folder.config}\n  {manifest.config}")
        return {"passed": False, "configs_differ": True}
    if layers is not None and layers > folder.config.n_layers:
        raise ValueError(f"layers: got {layers}, expected at most {folder.config.n_layers}")
    different = different_tensors(folder, path, manifest.dtype)
    count = len(hf.tensors(folder.config))
    print(f"tensors: {count - len(different)} of {count} are the source's as {manifest.dtype}")
    for name in different:
        print(f"  differs: {name}")
    errors = float64_errors(folder, path, manifest.dtype, tokens=tokens, layers=layers)
    for name, error in errors.items():
        ours, theirs = error.largest
        print(
            f"{name}: largest relative error {ours:.1e} (transformers' float32 {theirs:.1e}), "
            f"typically x {error.typical:.2f} of theirs"
        )
    passed = not different and all(error.passed for error in errors.values())
    typical = max(error.typical for error in errors.values())
    worst = max(error.largest[0] / error.largest[1] for error in errors.values())
    print(
        f"{'PASS' if passed else 'FAIL'}: errors to float64 in multiples of transformers' own in "
        f"float32: typically {typical:.2f}, allowed {TYPICAL:g}; the worst {worst:.2f}, allowed "
        f"{WORST:g}"
    )
    return {
        "passed": passed,
        "configs_differ": False,
        "tensors": count,
        "different_tensors": different,
        "errors": {name: _facts(error) for name, error in errors.items()},
    }


def _facts(error: Errors) -> dict[str, float | None]:
    """The largest errors and the typical ratio; None for what is not finite."""
    ours, theirs = error.largest
    facts = {"largest": ours, "largest_of_transformers": theirs, "typical_ratio": error.typical}
    return {name: float(x) if np.isfinite(x) else None for name, x in facts.items()}
