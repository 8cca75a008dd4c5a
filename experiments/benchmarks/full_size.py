"""The whole way at full size with random weights: write, convert, verify, load, reproduce.

    python -m experiments.benchmarks.full_size --folder /data/full-size

A base model of Llama-3.1-8B's shape in four shards and a "reasoning" model a small perturbation
away are written, converted and checked; each source is removed when it was, so that at most 48 GB
lie on the disk. Each stage is a process of its own and one JSON line with its time, memory and
disk, in `full_size.jsonl` too. What is done is skipped, so the command can be given again after
each interruption, or stage by stage: `--stages write-base convert-base`.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.disk import forget, sequential_speed, used
from experiments.benchmarks.fake_llama import write_fake_llama
from jaxsteer.checkpoints import checkpoint
from jaxsteer.config import LlamaConfig, RopeScaling
from jaxsteer.files import append_rows, as_path, recover_rows
from jaxsteer.huggingface import n_bytes, open_folder
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.models import convert, different_tensors, layer_errors
from jaxsteer.runtime import seconds_by_part, without_accelerator, without_torch
from weights.small_language.problems import prompts_file
from weights.small_language.tokenizer import vocabulary

ROOT = Path(__file__).parents[2]
ROLES = ("base", "reasoning")
STAGES = (
    *(f"{what}-{role}" for role in ROLES for what in ("write", "convert", "verify", "remove")),
    "load",
    "reproduce",
)
PRESETS = {
    "llama31_8b": LlamaConfig.llama31_8b(),
    # Llama-3.2-1B's shape with a head of its own, 3 GB: for machines without 48 GB of room.
    "llama32_1b": LlamaConfig(
        vocab_size=128_256,
        d_model=2048,
        d_mlp=8192,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        max_positions=131_072,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0),
    ),
    # For trying the command: seconds on two cores.
    "tiny": replace(LlamaConfig.tiny(), vocab_size=len(vocabulary()) + 50, max_positions=512),
}
_RECORDS = "full_size.jsonl"


def write(folder: Path, role: str, config: LlamaConfig) -> dict[str, Any]:
    """Write a source."""
    source = folder / f"source-{role}"
    shutil.rmtree(source, ignore_errors=True)
    reasoning = role == "reasoning"
    write_fake_llama(source, config, shards=4, perturbed=0.05 if reasoning else 0.0, chat=reasoning)
    return {"bytes": used(source), "shards": 4}


def convert_one(folder: Path, role: str, config: LlamaConfig) -> dict[str, Any]:
    """Convert a source that is not in the system's cache, beside the disk's own speed."""
    source, target = folder / f"source-{role}", folder / f"model-{role}"
    size = n_bytes(config, "bfloat16")
    without_accelerator()  # as the command does
    write_speed, read_speed = sequential_speed(folder, min(size, 4_000_000_000))
    forget(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    with seconds_by_part() as parts:
        convert(source, target, overwrite=True, progress=True)
    seconds = time.perf_counter() - started
    best = size / read_speed + size / write_speed
    largest = max(2 * int(np.prod(t.shape)) for t in hf.tensors(config).values())
    return {
        "convert_s": round(seconds, 2),
        "disk_write_GB_s": round(write_speed / 1e9, 3),
        "disk_read_GB_s": round(read_speed / 1e9, 3),
        "share_of_disk_speed": round(best / seconds, 3),
        "largest_tensor_GB": round(largest / 1e9, 3),
        "memory_before_GB": round(before / 1e9, 2),
        "parts_s": {name: round(x, 2) for name, x in sorted(parts.items()) if name[0] != "/"},
    }


def verify_one(folder: Path, role: str, layers: int, tokens: int) -> dict[str, Any]:
    """Every tensor's hash; float32 for the first layers; bf16 for all, on what device there is."""
    source, target = open_folder(folder / f"source-{role}"), folder / f"model-{role}"
    different = different_tensors(source, target, "bfloat16")
    float32 = layer_errors(source, target, "bfloat16", tokens=tokens, layers=layers)
    bfloat16 = layer_errors(source, target, "bfloat16", tokens=tokens, compute="bfloat16")
    if different:
        raise ValueError(f"tensors differ: {', '.join(different)}")
    return {
        "tensors": len(hf.tensors(source.config)),
        "positions": min(tokens, source.config.max_positions),
        "float32_layers": layers,
        "float32_error": max(float32.values()),
        "bfloat16_error_by_layer": {name: round(x, 5) for name, x in bfloat16.items()},
    }


def remove(folder: Path, role: str) -> dict[str, Any]:
    """Remove a source, to have room for the next."""
    shutil.rmtree(folder / f"source-{role}")
    return {}


def load(folder: Path) -> dict[str, Any]:
    """Load a checkpoint to the first device, twice: the second time it is in the cache."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        model, _ = checkpoint.load(folder / "model-base")
        jax.block_until_ready(model.params)
        times.append(round(time.perf_counter() - started, 2))
        del model
    return {"device": jax.devices()[0].device_kind, "first_s": times[0], "warm_s": times[1]}


def reproduce(folder: Path, config: LlamaConfig, prompts: int, new_tokens: int) -> dict[str, Any]:
    """The main command on the pair, with so many held-out prompts."""
    from experiments.reproduce import main as command

    (folder / "prompts.json").write_text(prompts_file({"dom": prompts, "eval": prompts}))
    layer = config.n_layers * 10 // 32
    settings = f"""
[models]
base = "model-base"
reasoning = "model-reasoning"
dtype = "bfloat16"
[prompts]
file = "prompts.json"
base_template = " question : {{prompt}} solution :"
[rollouts]
max_new_tokens = {new_tokens}
temperature = 1.0
[direction]
layer = {layer}
[steering]
unit = "residual"
coeffs = [-0.5, 0.25, 0.5, 1.0]
random_directions = 2
baseline_coeffs = [0.5]
[decoding]
max_new_tokens = {new_tokens}
temperature = 1.0
[report]
coherence = "grammar"
"""
    (folder / "settings.toml").write_text(settings)
    code = command(["--out", str(folder / "run"), "--config", str(folder / "settings.toml")])
    if code:
        raise ValueError(f"experiments.reproduce ended with {code}")
    stages = sorted((folder / "run").glob("*/stage.json"))
    return {
        "prompts": prompts,
        "stage_s": {f.parent.name: json.loads(f.read_bytes())["seconds"] for f in stages},
    }


def run_stage(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Do the work of one stage in this process; what there is to say of it."""
    folder, config = args.folder, PRESETS[args.preset]
    what, _, role = stage.partition("-")
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "write": lambda: write(folder, role, config),
        "convert": lambda: convert_one(folder, role, config),
        "verify": lambda: verify_one(folder, role, args.layers, args.tokens),
        "remove": lambda: remove(folder, role),
        "load": lambda: load(folder),
        "reproduce": lambda: reproduce(folder, config, args.prompts, args.new_tokens),
    }
    return work[what]()


def measured(stage: str, argv: list[str], folder: Path) -> dict[str, Any]:
    """Run one stage in a process of its own.

    Raises:
        ValueError: when it fails.
    """
    started = time.perf_counter()
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch needs some
    result = folder / f".{stage}.json"
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.benchmarks.full_size", *argv, "--inside", stage],
        cwd=ROOT,
        env=environment if stage.startswith("verify") else None,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{stage}: ended with {process.returncode}")
    result_of_stage = json.loads(result.read_bytes())
    result.unlink()
    return {
        "stage": stage,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_GB": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "disk_GB": round(used(folder) / 1e9, 2),
        **result_of_stage,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.full_size")
    parser.add_argument("--folder", type=as_path, required=True, help="48 GB at full size")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="llama31_8b")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--layers", type=int, default=2, help="in float32 (default 2)")
    parser.add_argument("--tokens", type=int, default=2048, help="longest sequence in verify")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--inside", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.inside:
        if args.inside.startswith("convert"):
            without_torch()  # as the command does
        try:
            figures = run_stage(args.inside, args)
        except (ValueError, OSError) as error:
            print(f"full_size: {args.inside}: {error}", file=sys.stderr)
            return 1
        (args.folder / f".{args.inside}.json").write_text(json.dumps(figures))
        return 0
    records = args.folder / _RECORDS
    done = {row["stage"] for row in recover_rows(records)}
    for stage in args.stages:
        if stage in done:
            print(f"{stage}: done already", flush=True)
            continue
        try:
            row = {"preset": args.preset, **measured(stage, argv, args.folder.absolute())}
        except ValueError as error:
            print(f"full_size: {error}", file=sys.stderr)
            return 1
        append_rows(records, [row])
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
