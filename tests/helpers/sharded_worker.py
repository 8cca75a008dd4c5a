"""Runs on eight CPU devices what `test_sharding` compares: on one of them, and on meshes of them.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python sharded_worker.py CHECKPOINTS OUT

CHECKPOINTS/NAME are models; OUT/CASE.npz and OUT/layout.json are what came of them.
"""

import functools
import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsteer
from jaxsteer.analysis.derivatives import sensitivity
from jaxsteer.analysis.logit_lens import lens
from jaxsteer.analysis.projections import project
from jaxsteer.decoding import Outcome
from jaxsteer.decoding import generation as generating
from jaxsteer.decoding.samplers import Sampling, greedy, sampling
from jaxsteer.directions.activations import Trace, activation_moments
from jaxsteer.directions.learned import learn_directions, logprobs_under
from jaxsteer.directions.moments import difference_of_means
from jaxsteer.directions.raw_activations import read_activations, save_activations
from jaxsteer.directions.targets import make_targets
from jaxsteer.llama import attention, attention_cudnn
from jaxsteer.llama.attention import cudnn_attention
from jaxsteer.llama.attention_reference import attend
from jaxsteer.llama.cache import Shared
from jaxsteer.llama.model import Model
from jaxsteer.llama.packing import pack
from jaxsteer.llama.parameters import dotted, flatten
from jaxsteer.llama.sharding import (
    cache_sharding,
    make_mesh,
    mesh_of,
    rows_sharding,
    shard_batch,
    shard_model,
)
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.models import placement
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.scope import Scope
from jaxsteer.sweeps import chunks as sweeping
from jaxsteer.sweeps.fingerprints import weights_fingerprint

G = 5
MESHES = {"1x8": (1, 8), "2x4": (2, 4), "8x1": (8, 1)}
LENGTHS = (3, 8, 5, 1, 8, 2, 6, 7)
Found = dict[str, np.ndarray]
Collectives = list[tuple[str, list[int]]]

forward = jax.jit(jaxsteer.forward)
decode_step = jax.jit(jaxsteer.decode_step, static_argnames="sampler")


CAPTURE = Capture(layers=(1,), where=jaxsteer.scope.window(-1))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def prompts(model: Model) -> TokenBatch:
    rows = [rng().integers(model.config.vocab_size, size=n).tolist() for n in LENGTHS]
    return jaxsteer.left_pad(rows, length=9)


def three(batch: TokenBatch) -> TokenBatch:
    """So many prompts that two devices cannot share them equally."""
    return jax.tree.map(lambda x: x[:3], batch)


def vector(model: Model) -> np.ndarray:
    return rng().standard_normal(model.config.d_model)


def run_forward(model: Model, batch: TokenBatch) -> Found:
    """Logits and activations; one intervention a row."""
    steering = jaxsteer.add(
        vector(model), layer=0, coeff=np.linspace(-1, 1, 8), scope=jaxsteer.scope.everywhere()
    )
    capture = Capture(sites=("resid_post", "head_out"))
    out = forward(model, batch.tokens, mask=batch.mask, steering=steering, capture=capture)
    # Rows of padding hold numbers that nobody reads.
    real = np.asarray(batch.mask)
    found = {site: np.asarray(x)[:, real] for site, x in out.captured.items()}
    return found | {"logits": np.asarray(out.logits)[real]}


def settings() -> Sampling:
    """Four rows that take the likeliest token, four that sample from the likelier ones."""
    return sampling(8, temperature=[0.0] * 4 + [1.5] * 4, top_p=0.95, seed=3)


def run_generate(model: Model, batch: TokenBatch) -> Found:
    """Tokens, and the stream at the prompt's last one and those generated."""
    asked = {
        "steering": jaxsteer.add(vector(model), layer=1, coeff=1.0),
        "sampling_params": settings(),
        "capture": CAPTURE,
    }
    out = jaxsteer.generate(model, batch, max_new_tokens=G, **asked)
    captured = out.captured.values["resid_post"]
    assert captured.shape[2] == 1 + G
    return {"tokens": out.tokens, "logprobs": out.logprobs, "captured": captured}


def run_directions(model: Model, batch: TokenBatch) -> Found:
    rows = [np.asarray(t)[m].tolist() for t, m in zip(batch.tokens, batch.mask, strict=True)]
    names = ("even", "odd")
    traces = [
        Trace(row, 0, range(len(row)), [names[i % 2] for i in range(len(row))]) for row in rows
    ]
    moments = activation_moments(model, traces, labels=names, offsets=[-1, 0], length=9)
    return {"directions": difference_of_means(moments, "even"), "squares": moments.squares}


def run_sweep(model: Model, batch: TokenBatch, scope: Scope) -> Found:
    cells = jaxsteer.grid({"v": vector(model)}, layers=[0, 1], coeffs=[0.0, 2.0], scope=scope)
    capture = Capture(directions=vector(model)[None])
    chunks = jaxsteer.sweep(model, batch, cells, max_new_tokens=G, capture=capture)
    found = {
        (*result.cell.labels.values(), result.prompt): result
        for chunk in chunks
        for result in chunk
    }
    ordered = [found[key] for key in sorted(found)]
    shape = len(cells), -1, G
    return {
        "tokens": np.array([r.tokens for r in ordered]).reshape(shape),
        "logprobs": np.array([r.logprobs for r in ordered]).reshape(shape),
        "captured": np.array([r.captured.values["resid_post"] for r in ordered]),
    }


def run_queue(model: Model, batch: TokenBatch) -> Found:
    """Eight prompts, two slots to each part of the data axis."""
    request = jaxsteer.make_request(
        model,
        batch,
        max_new_tokens=G,
        steering=jaxsteer.add(vector(model), layer=1, coeff=1.0),
        sampling_params=settings(),
        capture=CAPTURE,
    )
    rows = jaxsteer.generate_queue(model, batch, request, slots=4, max_new_tokens=G)
    ordered = sorted(rows, key=lambda row: row.index)
    return {
        "tokens": np.array([row.tokens for row in ordered]),
        "logprobs": np.array([row.logprobs for row in ordered]),
        "captured": np.stack([r.captured.values["resid_post"] for r in ordered], axis=1),
    }


def run_learned(model: Model, batch: TokenBatch) -> Found:
    """Two steps through the model, a direction at each layer, and what they do to the texts."""
    rows = [np.asarray(t)[m].tolist() for t, m in zip(batch.tokens, batch.mask, strict=True)]
    texts = [row for row in rows if len(row) > 4]
    targets = make_targets(texts, [2] * len(texts), [[(4, len(row))] for row in texts])
    options = {"norm": 1.0, "steps": 2, "rows_per_step": 4, "remat": False}
    found = learn_directions(model, targets, layers=[0, 1], seeds=[0], **options)
    read = logprobs_under(model, targets, found.vectors, [0, 1], rows_at_once=4)
    return {"vectors": found.vectors, "losses": found.losses, "logprobs": read}


def run_reading(model: Model, batch: TokenBatch) -> Found:
    """What reads a model's stream and logits: six programs, of which most have a text a row."""
    v = vector(model)
    rows = [np.asarray(t)[m].tolist() for t, m in zip(batch.tokens, batch.mask, strict=True)]
    lengths = np.array(LENGTHS)
    steering = jaxsteer.add(v, layer=0, coeff=1.0)
    scores = jaxsteer.score(
        model, rows, steering=steering, prompt_lengths=[n // 2 for n in LENGTHS], rows_per_batch=8
    )
    said = lens(model, [v, -v], [1, 2], top=3)
    slopes = sensitivity(
        model,
        batch,
        v[None, None],
        [1],
        prompt_length=np.zeros(8, int),
        positions=lengths[:, None] - 1,
        tokens=[1, 2],
    )
    projected = project(model, batch, v[None], [1])[:, np.asarray(batch.mask)]
    texts = {str(i): row for i, row in enumerate(rows)}
    with tempfile.TemporaryDirectory() as folder:
        last = {name: [len(text) - 1] for name, text in texts.items()}
        save_activations(folder, model, texts, last, rows_per_shard=8)
        (shard,) = read_activations(folder)
    return {
        "scores": np.concatenate(scores),
        "lens": said.logits,
        "top": said.top_tokens,
        "slopes": slopes,
        "projected": projected,
        "saved": shard.activations["resid_post"],
    }


def run_stream(model: Model, batch: TokenBatch) -> Found:
    """Step by step, two ways to steer side by side; a part of one model in the other's place."""
    v = vector(model)
    ways = [
        jaxsteer.when(jaxsteer.clamp(v, 1.0, layer=0, preserve_norm=True), v, above=0.0),
        jaxsteer.noise(3.0, layer=1, coeff=1.0, width=model.config.d_model),
    ]
    flipped = replace(model, params=jax.tree.map(lambda x: -x, model.params))
    hybrid = jaxsteer.graft(model, flipped, ["layers.1.mlp"])
    steps = jaxsteer.stream(
        hybrid,
        batch,
        max_new_tokens=G,
        steering=jaxsteer.rows(ways * 4),
        sampling_params=settings(),
    )
    return {"tokens": np.stack(list(steps))}


def run_samples(model: Model, batch: TokenBatch) -> Found:
    """Rows that share their prompts, or copy them: four on each of two, eight on a single one."""
    tokens = []
    for count, copy in ((2, False), (1, False), (2, True)):
        few = jax.tree.map(lambda x, count=count: np.asarray(x)[1 : 1 + count], batch)
        with mock.patch.object(generating, "should_copy_prompts", return_value=copy):
            jax.clear_caches()  # of programs that share, or copy
            steps = jaxsteer.stream(
                model,
                TokenBatch(*map(jax.numpy.asarray, (few.tokens, few.mask))),
                samples=8 // count,
                max_new_tokens=G,
                steering=jaxsteer.add(vector(model), layer=1, coeff=1.0),
                sampling_params=settings(),
            )
            tokens.append(np.stack(list(steps)))
    return {"tokens": np.concatenate(tokens)}


def in_blocks(model: Model, batch: TokenBatch) -> Collectives:
    """Of prompts that run in blocks of four rows at most."""
    request = jaxsteer.make_request(model, batch, max_new_tokens=G)
    prefill = functools.partial(jaxsteer.prefill, max_new_tokens=G, sampler=greedy)
    blocks = jax.jit(functools.partial(prefill, block_tokens=4 * batch.tokens.shape[1]))
    return collectives(blocks.lower(model, batch, request))


def in_decode(model: Model, batch: TokenBatch) -> Collectives:
    """Of a step that is lowered for shapes, with a cache where `cache_sharding` puts it."""
    request = jaxsteer.make_request(model, batch, max_new_tokens=G)
    prefill = functools.partial(jaxsteer.prefill, max_new_tokens=G, sampler=greedy)
    state = jax.eval_shape(prefill, model, batch, request)
    mesh = mesh_of(model)
    assert mesh is not None
    where = replace(rows_sharding(state, mesh), cache=cache_sharding(state.cache, mesh))
    state = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, where
    )
    return collectives(decode_step.lower(model, state, request, sampler=greedy))


def collectives(lowered: jax.stages.Lowered) -> Collectives:
    """Kind and shape of each collective in the compiled program."""
    text = lowered.compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return [
        (kind, [int(n) for n in shape.split(",") if n])
        for made, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", made)
    ]


def with_a_kernel(mesh: Mesh, rows: tuple[int, ...], *, cursors: bool) -> dict[str, Any]:
    """Attention that the compiler cannot split: how far off it is, and its collectives.

    XLA's stands for the kernel. `rows` is `[B]`, or `[C, B]` for cells that are vmapped.
    """
    T, S, N, K, H = 1, 6, 8, 4, 4
    draw = rng()
    q, k, v = (draw.standard_normal((*rows, *x)) for x in ((T, N, H), (S, K, H), (S, K, H)))
    valid = draw.random((*rows, S)) < 0.8
    start = draw.integers(1, S, rows[-1:] if cursors else ())
    arrays = [np.asarray(x, np.float32) for x in (q, k, v)] + [valid, np.asarray(start, np.int32)]

    def cells(attend: Any) -> Any:
        return jax.vmap(attend, in_axes=(0, 0, 0, 0, None)) if len(rows) == 2 else attend

    def plain(q: Any, k: Any, v: Any, valid: Any, start: Any) -> jax.Array:
        return attention.xla_attention(q, k, v, valid=valid, start=start)

    lead = [None] * len(rows)
    lead[-1 if rows[-1] % 2 == 0 else 0] = "data"
    heads = P(*lead, None, "tensor", None)
    where = [heads, heads, heads, P(*lead, None), P(lead[-1]) if cursors else P()]
    placed = [
        jax.device_put(x, NamedSharding(mesh, to)) for x, to in zip(arrays, where, strict=True)
    ]
    with mock.patch.object(attention_cudnn, "_cudnn_rows", plain):
        program = jax.jit(
            cells(lambda q, k, v, valid, start: cudnn_attention(q, k, v, valid=valid, start=start))
        ).lower(*placed)
    found = np.asarray(program.compile()(*placed))
    off = float(np.max(np.abs(found - np.asarray(cells(plain)(*arrays)))))
    return {"off": off, "collectives": collectives(program)}


def behind_a_prefix(mesh: Mesh, rows: tuple[int, ...], prefixes: int) -> dict[str, Any]:
    """The same of rows, or cells of rows, that share prefixes; XLA stands for the kernel."""
    S, N, K, H = 6, 8, 4, 4
    draw = rng()
    own = [draw.standard_normal((*rows, *x)) for x in ((1, N, H), (S, K, H), (S, K, H))]
    shared = [draw.standard_normal((prefixes, S, K, H)) for _ in range(2)]
    arrays = [np.asarray(x, np.float32) for x in own + shared]
    length = jax.numpy.asarray(draw.integers(1, S, prefixes), np.int32)
    slots, start = np.ones((rows[-1], S), bool), np.int32(3)

    def cells(attend: Any) -> Any:
        def one(q: Any, k: Any, v: Any, kp: Any, vp: Any) -> jax.Array:
            prefix = Shared(kp, vp, length)
            return attend(q, k, v, valid=slots, start=jax.numpy.asarray(start), prefix=prefix)

        return jax.vmap(one, in_axes=(0, 0, 0, None, None)) if len(rows) == 2 else one

    def stand_in(q: Any, k: Any, v: Any, *, lengths: jax.Array, causal: bool) -> Any:
        assert not causal
        return attend(q, k, v, (jax.numpy.arange(k.shape[1]) < lengths[:, None])[:, None])

    lead = [None] * len(rows)
    lead[-1 if rows[-1] % 2 == 0 else 0] = "data"
    heads = P(*lead, None, "tensor", None)
    once = P(lead[-1] if prefixes > 1 else None, None, "tensor", None)
    placed = [
        jax.device_put(x, NamedSharding(mesh, to))
        for x, to in zip(arrays, [heads] * 3 + [once] * 2, strict=True)
    ]
    with mock.patch.object(attention_cudnn, "flash", stand_in):
        program = jax.jit(cells(cudnn_attention)).lower(*placed)
    found = np.asarray(program.compile()(*placed))
    off = float(np.max(np.abs(found - np.asarray(cells(attention.xla_attention)(*arrays)))))
    return {"off": off, "collectives": collectives(program)}


def part(x: jax.Array) -> list[int]:
    """The shape of what one device holds of an array."""
    return list(x.sharding.shard_shape(x.shape))


def recording(module: Any, name: str, layout: dict[str, Any]) -> Any:
    """Let a compiled function note what one device holds of its cache, which it keeps to itself."""
    whole = getattr(module, name.removeprefix("_"))

    def record(*args: Any, **options: Any) -> Any:
        state = jax.jit(whole, static_argnames=tuple(options))(*args, **options)
        layout[name] = part(state.cache.k[0])
        return Outcome.of(state)

    return mock.patch.object(module, name, record)


def on_mesh(name: str, mesh: Mesh, checkpoints: Path, layout: Any) -> dict[str, Found]:
    model, _ = jaxsteer.load(checkpoints / "plain", mesh=mesh)
    layout["weights"] = {dotted(path): part(x) for path, x in flatten(model.params)}
    for label, place in (("folder", placement.place), ("turned", placement.place_as_it_lies)):
        with mock.patch.object(placement, "place", place):  # CPUs turn nothing on their own
            folder, _ = jaxsteer.load(checkpoints / "folder", mesh=mesh)
        layout[f"{label}_is_the_same"] = all(
            a.sharding == b.sharding and bool((a == b).all())
            for a, b in zip(jax.tree.leaves(folder), jax.tree.leaves(model), strict=True)
        )
    batch = shard_batch(prompts(model), mesh)
    found = {
        "forward": run_forward(model, batch),
        "generate": run_generate(model, batch),
        "directions": run_directions(model, batch),
    }
    layout["print"] = weights_fingerprint(model)
    if name == "1x8":
        jaxsteer.save(checkpoints / "saved", model)
        few, _ = jaxsteer.load(checkpoints / "few", mesh=mesh)
        found["few"] = run_forward(few, batch)
        whole, _ = jaxsteer.load(checkpoints / "few")
        found["few_packed"] = run_forward(shard_model(pack(whole), mesh), batch)
    if name == "2x4":
        found["generated"] = run_sweep(model, three(batch), jaxsteer.scope.generated())
        found["queue"] = run_queue(model, batch)
        found["learned"] = run_learned(model, batch)
        found["reading"] = run_reading(model, batch)
        found["stream"] = run_stream(model, batch)
        found["samples"] = run_samples(model, batch)
        whole, _ = jaxsteer.load(checkpoints / "plain")
        packed = shard_model(pack(whole), mesh)
        found["packed"] = run_forward(packed, batch)
        jaxsteer.save(checkpoints / "saved_packed", packed)
    else:
        found["everywhere"] = run_sweep(model, batch, jaxsteer.scope.everywhere())
    if name == "2x4":
        layout["kernel"] = [
            with_a_kernel(mesh, rows, cursors=cursors)
            for rows, cursors in (((4,), True), ((3, 4), True), ((4, 3), False))
        ]
        layout["prefix"] = [
            behind_a_prefix(mesh, rows, prefixes)
            for rows, prefixes in (((4,), 2), ((4,), 1), ((3, 4), 4), ((4, 3), 3))
        ]
    if name != "8x1":
        layout["in_decode"] = in_decode(model, batch)
    else:
        layout["in_blocks"] = in_blocks(model, batch)
    return found


def on_one(checkpoints: Path) -> dict[str, Found]:
    model, _ = jaxsteer.load(checkpoints / "plain")
    few, _ = jaxsteer.load(checkpoints / "few")
    batch = prompts(model)
    return {
        "forward": run_forward(model, batch),
        "generate": run_generate(model, batch),
        "directions": run_directions(model, batch),
        "generated": run_sweep(model, three(batch), jaxsteer.scope.generated()),
        "everywhere": run_sweep(model, batch, jaxsteer.scope.everywhere()),
        "few": run_forward(few, batch),
        "learned": run_learned(model, batch),
        "reading": run_reading(model, batch),
        "stream": run_stream(model, batch),
        "samples": run_samples(model, batch),
    }


def main(checkpoints: Path, out: Path) -> None:
    jaxsteer.compile_cache.turn_off()
    jax.config.update("jax_default_matmul_precision", "highest")
    results = {"one": on_one(checkpoints)}
    layouts: dict[str, Any] = {name: {} for name in MESHES}
    for name, (data, tensor) in MESHES.items():
        mesh, layout = make_mesh(data=data, tensor=tensor), layouts[name]
        with recording(generating, "_run", layout), recording(sweeping, "_run_cells", layout):
            results[name] = on_mesh(name, mesh, checkpoints, layout)
    for name, cases in results.items():
        for case, found in cases.items():
            np.savez(out / f"{name}-{case}.npz", **found)
    (out / "layout.json").write_text(json.dumps(layouts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
