"""Two accelerators against one: the same tokens and logits, and the time of a decode step.

    python -m experiments.benchmarks.two_gpus
    python -m experiments.benchmarks.two_gpus --only step --minutes 2
    python -m experiments.benchmarks.two_gpus --only step --preset llama31_70b --mesh 1x2

Prints a JSON line a case, with the seconds since the start; exit code 1 if a check fails. When the
minutes are over, no further case is begun, and the exit code is 3. On meshes (1, 2) and (2, 1),
against the first device:

    attention   the kernel of this machine in bf16 on a mesh, of a decode step: rows with one cursor
                and with a cursor each, and cells of a sweep whose rows are split, or which are
    float32     prefill's logits, and the tokens of `generate` and of a sweep: to 1e-5, and equal
    bfloat16    prefill's logits: no further from those in float32 on one device than 1.5 times what
                bf16 on one device is; how many greedy tokens are equal is printed, not judged
    step        milliseconds of a decode step with `--preset`, packed, in bf16, and seconds of
                prefill; their floors. `--mesh` chooses from one, 1x2 and 2x1: random weights are
                made on the mesh, so that a model fits which is too large for one device
"""

import functools
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.decode import time_case
from experiments.benchmarks.machine import config_of, preset_parser, say
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import generate
from jaxsteer.llama import (
    Model,
    TokenBatch,
    default_attention,
    forward,
    from_params,
    init,
    left_pad,
    make_mesh,
    pack,
    pad_vocabulary,
    shard_model,
    sharding_of,
    spread_rows,
    xla_attention,
)
from jaxsteer.planning import prefill_operations, step_seconds, this_machine
from jaxsteer.runtime import compile_cache
from jaxsteer.steering import add
from jaxsteer.sweeps import grid, sweep

PARTS = ("attention", "models", "step")
MESHES = {"1x2": (1, 2), "2x1": (2, 1)}
STEP_MESHES = ("one", *MESHES)
_FLOAT32 = 1e-5  # relative, of logits
_ATTENTION = 1e-2  # relative, of one kernel in bf16 against the same kernel
_FURTHER = 1.5  # than bf16 on one device, from float32
_forward = jax.jit(forward)


def small(preset: LlamaConfig) -> LlamaConfig:
    """A model of the preset's heads that is checked in seconds."""
    return replace(
        preset,
        d_model=min(preset.d_model, 1024),
        d_mlp=min(preset.d_mlp, 2048),
        n_layers=min(preset.n_layers, 2),
        vocab_size=min(preset.vocab_size, 8192),
    )


def meshes() -> dict[str, Mesh]:
    """The two ways to use the first two devices."""
    return {
        name: make_mesh(data=data, tensor=tensor, devices=jax.devices()[:2])
        for name, (data, tensor) in MESHES.items()
    }


def attention_cases(config: LlamaConfig) -> Iterator[dict[str, Any]]:
    """The kernel alone, with rows, cursors and cells as decoding has them."""
    attend = default_attention(jnp.dtype(jnp.bfloat16), config.head_dim)
    N, K, H, S = config.n_heads, config.n_kv_heads, config.head_dim, 64
    random = np.random.default_rng(0)
    for lead, cursors in (((4,), False), ((4,), True), ((3, 4), False), ((4, 3), False)):
        q, k, v = (
            jnp.asarray(random.standard_normal((*lead, *shape)), jnp.bfloat16)
            for shape in ((1, N, H), (S, K, H), (S, K, H))
        )
        # Left padding, and slots behind the cursor that were never written.
        valid = np.arange(S) >= random.integers(0, 8, lead)[..., None]
        start = random.integers(S // 2, S, lead[-1:] if cursors else ()).astype(np.int32)

        def one(q: Any, k: Any, v: Any, valid: Any, start: Any) -> jax.Array:
            return attend(q, k, v, valid=valid, start=start)

        program = jax.jit(jax.vmap(one, (0, 0, 0, 0, None)) if len(lead) == 2 else one)
        expected = program(q, k, v, valid, start)
        for name, mesh in meshes().items():
            data = mesh.shape["data"]
            rows: list[str | None] = [None] * len(lead)
            rows[-1 if lead[-1] % data == 0 else 0] = "data"
            heads = P(*rows, None, "tensor", None)
            specs = heads, heads, heads, P(*rows, None), P(rows[-1]) if cursors else P()
            placed = [
                jax.device_put(x, NamedSharding(mesh, spec))
                for x, spec in zip((q, k, v, valid, start), specs, strict=True)
            ]
            off = _off(program(*placed), expected)
            yield {
                "case": "attention",
                "kernel": getattr(attend, "__name__", str(attend)),
                "mesh": name,
                "rows": list(lead),
                "a_cursor_each": cursors,
                "off": off,
                "ok": off < _ATTENTION,
            }


def model_cases(config: LlamaConfig) -> Iterator[dict[str, Any]]:
    """A small model in float32 and in bf16."""
    exact = init(config, seed=1).with_attention(xla_attention)
    random = np.random.default_rng(0)
    lengths = random.integers(5, 33, 8)
    batch = left_pad([random.integers(0, config.vocab_size, n).tolist() for n in lengths])
    with jax.default_matmul_precision("highest"):
        expected = _results(exact, batch)
        for name, mesh in meshes().items():
            results = _results(shard_model(exact, mesh), batch)
            off = _off(results["logits"], expected["logits"])
            same = all(np.array_equal(results[k], expected[k]) for k in ("tokens", "sweep"))
            yield {
                "case": "float32",
                "mesh": name,
                "off": off,
                "tokens_equal": same,
                "ok": off < _FLOAT32 and same,
            }
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact.params)
    attention = default_attention(jnp.dtype(jnp.bfloat16), config.head_dim)
    model = Model(half, config, attention)
    alone = _results(model, batch)
    limit = _FURTHER * _off(alone["logits"], expected["logits"])
    for name, mesh in meshes().items():
        results = _results(shard_model(model, mesh), batch)
        off = _off(results["logits"], expected["logits"])
        yield {
            "case": "bfloat16",
            "mesh": name,
            "off": off,
            "at_most": limit,
            "tokens_equal_share": float(np.mean(results["tokens"] == alone["tokens"])),
            "sweep_equal_share": float(np.mean(results["sweep"] == alone["sweep"])),
            "ok": off <= limit,
        }


def _results(model: Model, batch: TokenBatch) -> dict[str, np.ndarray]:
    """Logits of the prompts, and greedy tokens of `generate` and of a sweep."""
    vector = np.random.default_rng(2).standard_normal(model.config.d_model)
    placed = spread_rows(batch, model)
    logits = np.asarray(_forward(model, placed.tokens, mask=placed.mask).logits)
    steering = add(vector, layer=1, coeff=0.2)
    out = generate(model, batch, max_new_tokens=16, steering=steering)
    cells = grid({"v": vector}, layers=[0, 1], coeffs=[0.0, 0.2])
    three = jax.tree.map(lambda x: x[:3], batch)  # which two devices cannot share: cells are split
    rows = [
        result.tokens
        for some in (batch, three)
        for chunk in sweep(model, some, cells, max_new_tokens=8)
        for result in chunk
    ]
    return {
        "logits": logits[np.asarray(batch.mask)],
        "tokens": out.tokens,
        "sweep": np.array(rows),
    }


def random_model(config: LlamaConfig, mesh: Mesh | None) -> Model:
    """Packed random weights in bf16, each made where it belongs: no device ever holds more."""
    shapes = jax.eval_shape(lambda: pack(init(config, dtype=jnp.bfloat16)).params)
    if mesh is None:
        where = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        shapes = jax.eval_shape(lambda x: pad_vocabulary(x, config, mesh.shape["tensor"]), shapes)
        where = sharding_of(shapes, mesh)
    # One program for all weights of a shape and place.
    draw = functools.cache(lambda shape, where: jax.jit(_drawn(shape), out_shardings=where))
    seeds = itertools.count()
    params = jax.tree.map(lambda x, to: draw(x.shape, to)(next(seeds)), shapes, where)
    return jax.block_until_ready(from_params(params, config))


def _drawn(shape: tuple[int, ...]) -> Callable[[int], jax.Array]:
    def draw(seed: int) -> jax.Array:
        if len(shape) == 1:  # a norm's scale, or a bias
            return jnp.ones(shape, jnp.bfloat16)
        return 0.02 * jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)

    return draw


def step_cases(
    config: LlamaConfig, cases: list[list[int]], names: Sequence[str], *, repeats: int
) -> Iterator[dict[str, Any]]:
    """Milliseconds of a decode step on one device and both meshes, of those in `names`."""
    chip = this_machine().chip.machine
    alone: dict[int, float] = {}
    for name, mesh in {"one": None, **meshes()}.items():
        if name not in names:
            continue
        model = random_model(config, mesh)
        for rows, prompt, steps in cases:
            if mesh is not None and rows % mesh.shape["data"]:
                continue  # every device would do all of it
            asked = {"rows": rows, "prompt": prompt, "steps": steps}
            tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt))
            batch = left_pad(tokens.tolist(), length=prompt)
            times = time_case(model, batch, steps=steps, options={}, repeats=repeats)
            times["tokens_per_s"] = rows / times["step_ms"] * 1e3
            sizes = {"rows": rows, "tokens": prompt + steps / 2, **(mesh.shape if mesh else {})}
            floor = 1e3 * step_seconds(model, chip, **sizes)
            times |= {"floor_ms": floor, "of_floor": times["step_ms"] / floor}
            times["prefill_floor_s"] = prefill_operations(model, rows=rows, prompt=prompt) / (
                chip.rate * (1 if mesh is None else mesh.size)
            )
            if name == "one":
                alone[rows] = times["step_ms"]
            if rows in alone:
                times["speedup"] = alone[rows] / times["step_ms"]
            yield {"case": "step", "mesh": name, **asked, **times}
        del model
        jax.clear_caches()
        gc.collect()  # the next model takes its place in memory


def _off(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value."""
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("two_gpus")
    parser.add_argument(
        "--case", nargs="+", metavar="ROWS,PROMPT,STEPS", default=["1,512,128", "160,512,128"]
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--mesh", nargs="+", choices=STEP_MESHES, default=STEP_MESHES)
    parser.add_argument("--minutes", type=float, default=10, help="begin no case after that")
    args = parser.parse_args(argv)
    started = time.monotonic()
    compile_cache.turn_off()
    if jax.device_count() < 2:
        print(f"found {jax.device_count()} device, expected two", file=sys.stderr)
        return 2
    preset = config_of(args.preset)
    cases = [[int(number) for number in case.split(",")] for case in args.case]
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__}), flush=True)
    parts = {
        "attention": lambda: attention_cases(preset),
        "models": lambda: model_cases(small(preset)),
        "step": lambda: step_cases(preset, cases, args.mesh, repeats=args.repeats),
    }
    right = True
    for result in itertools.chain.from_iterable(parts[name]() for name in args.only):
        right &= result.get("ok", True)
        seconds = time.monotonic() - started
        say(result | {"seconds": seconds})
        if seconds > 60 * args.minutes:
            say({"case": "stopped", "seconds": seconds, "ok": right})
            return 3 if right else 1
    say({"case": "done", "seconds": time.monotonic() - started, "ok": right})
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
