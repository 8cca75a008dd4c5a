"""Compile decoding programs for an H200 that is not here, and look at what their loops do.

    pip install "jax[cuda13]"
    python -m experiments.benchmarks.gpu_aot

Llama-8B shapes with few layers (`--layers`): rows with prompts of their own, rows on one long
prompt, and Figure 3 of the paper as vmapped cells behind short prompts. No GPU is needed. Nothing
is tuned, so this says nothing of speed. One JSON line a program. Asserted, for exit code 0:

    nothing in the loop writes a layer's keys or values anew
    cuDNN's kernel for decoding attends, and only on a long prompt that rows share the one whose
    parts are merged (`llama.should_copy_prompts`)
    the formula of `jaxsteer.plan` is no less than what the compiler counts
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported: no GPU is looked for

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from experiments.benchmarks import hlo
from experiments.benchmarks.machine import config_of, say
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import program_bytes, sweep_bytes
from jaxsteer.llama import Model, abstract_model, cudnn_attention, make_mesh
from jaxsteer.planning import tpu_programs as aot
from jaxsteer.runtime import compile_cache

DECODING, MERGED = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaSoftmax"  # cuDNN's kernels
CUDNN = 92_000  # the version that programs are made for
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


@dataclass(frozen=True)
class Case:
    """Rows of a prompt and new tokens each: cells × prompts, or with one cell prompts alone."""

    name: str
    cells: int
    prompts: int
    prompt: int
    new: int
    kernels: set[str]  # of the loop


CASES = (
    Case("own prompts", 1, 160, 512, 900, {DECODING}),
    Case("cells on a long prompt", 100, 1, 1536, 512, {MERGED}),
    Case("figure 3", 16, 20, 128, 1500, {DECODING}),
)


@contextlib.contextmanager
def without_a_gpu() -> Iterator[None]:
    """JAX asks the GPU for cuDNN's version and its own kind before it lowers an attention."""
    with (
        mock.patch.object(cudnn, "check_cudnn_version", return_value=CUDNN),
        mock.patch.object(cudnn, "check_compute_capability", return_value=True),
    ):
        yield


def shapes(config: LlamaConfig) -> tuple[Model, jax.sharding.Mesh]:
    """A model of shapes on one H200, attending by cuDNN."""
    described = topologies.get_topology_desc("h200", "cuda", target_config=H200, topology="1x1x1")
    mesh = make_mesh(data=1, tensor=1, devices=list(described.devices))
    return abstract_model(config, dtype="bfloat16", mesh=mesh).with_attention(cudnn_attention), mesh


def check(case: Case, config: LlamaConfig) -> dict[str, object]:
    """Compile one case; its line, with what is not as it should be."""
    model, mesh = shapes(config)
    sizes = {"prompt": case.prompt, "new": case.new}
    asked: dict[str, Any] = {"prompt_length": case.prompt, "new_tokens": case.new}
    rows = case.cells * case.prompts
    if case.cells == 1:
        made = aot.compile_generate(model, mesh, rows=rows, **sizes)
        formula = program_bytes(model, rows=rows, prompt_rows=rows, **asked)
    else:
        made = aot.compile_sweep(model, mesh, cells=case.cells, prompts=case.prompts, **sizes)
        formula = sweep_bytes(model, cells=case.cells, prompts=case.prompts, **asked)
    loop = hlo.loops(made.text)[-1]
    targets = [one.target for one in loop if one.target is not None]
    kernels = Counter(target for target in targets if target.startswith("__cudnn$fmha"))
    elements = rows * case.new * config.n_kv_heads * config.head_dim
    written = hlo.rewritten(made.text, loop, elements=elements)
    held = made.temporaries + made.outputs
    problems = [f"writes a whole cache in each step: {kind} × {n}" for kind, n in written.items()]
    if set(kernels) != case.kernels:
        problems.append(f"kernels: got {sorted(kernels)}, expected {sorted(case.kernels)}")
    if formula < held:
        problems.append(f"the formula is {formula / 1e9:.2f} GB, less than {held / 1e9:.2f}")
    return {
        "case": case.name,
        "rows": rows,
        **sizes,
        "layers": config.n_layers,
        "kernels_a_layer": {name: n / config.n_layers for name, n in kernels.items()},
        "program_GB": held / 1e9,
        "formula_GB": formula / 1e9,
        "problems": problems,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu_aot")
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config = replace(config_of("llama31_8b"), n_layers=args.layers)
    with without_a_gpu():
        lines = [check(case, config) for case in CASES]
    for line in lines:
        say(line)
    return 1 if any(line["problems"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
