"""Programs compiled ahead of time for TPUs that are not there, by libtpu on any Linux machine.

Everything is shapes: no weight is made, and nothing runs. What the compiler says of memory is what
it will ask of the real chip; a program that does not fit is refused as it would be there.
"""

import os
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import (
    DecodeState,
    Request,
    decode_step,
    greedy,
    make_request,
    prefill,
    unfinished,
)
from jaxsteer.decoding.generation import _run
from jaxsteer.directions.activations import _add_batch, _sums_sharding
from jaxsteer.llama import (
    DATA,
    Model,
    TokenBatch,
    cache_sharding,
    heads_first,
    make_mesh,
    rows_sharding,
    tpu_attention,
)
from jaxsteer.llama import abstract_model as sharded_shapes
from jaxsteer.planning.chips import Topology
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell, stack_cells
from jaxsteer.sweeps.chunks import _run_cells

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Compiled:
    """What the compiler tells of one program, in bytes on one chip."""

    arguments: int  # weights and batch
    outputs: int  # without those that lie where arguments did
    temporaries: int
    code: int
    text: str  # the compiled program, in HLO

    @property
    def total(self) -> int:
        """All that has to be there at once, the code apart."""
        return self.arguments + self.outputs + self.temporaries


def available() -> bool:
    """Whether libtpu is installed."""
    return find_spec("libtpu") is not None


def version() -> str:
    """Of libtpu, which is installed."""
    return metadata.version("libtpu")


def devices(topology: Topology) -> list[Any]:
    """The chips of a topology, to compile for.

    Raises:
        ValueError: if it is none of TPUs.
        ImportError: if libtpu is not installed.
    """
    if topology.shape is None:
        raise ValueError(f"topology: got {topology.name}, expected one of TPUs")
    if not available():
        raise ImportError("libtpu is not installed: pip install 'jaxsteer[tpu]'")
    # No TPU is asked for: nor should libtpu look for one, or keep others from compiling meanwhile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {}
    if topology.shape.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on a VM
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.shape, **options
    ).devices
    assert len(described) == topology.chips, (topology, described)
    return list(described)


def abstract_model(
    config: LlamaConfig, mesh: Mesh | AbstractMesh, *, dtype: Any = jnp.bfloat16
) -> Model:
    """A model of shapes, split over a mesh by `shard_model`, laid out and attending as on a TPU.

    Raises:
        ValueError: if the model cannot be split over the mesh's `tensor` axis.
    """
    placed = sharded_shapes(config, dtype=dtype, mesh=mesh)
    return heads_first(placed.with_attention(tpu_attention))


def compile_generate(model: Model, mesh: Mesh, *, rows: int, prompt: int, new: int) -> Compiled:
    """The program of `generate`: prompts, then the loop."""
    batch, request = _inputs(model, mesh, rows=rows, prompt=prompt, new=new)
    return _compiled(_run.lower(model, batch, request, sampler=greedy))


def compile_sweep(
    model: Model, mesh: Mesh, *, cells: int, prompts: int, prompt: int, new: int
) -> Compiled:
    """The program of `sweep` for one chunk: cells that each add a vector, vmapped in the loop."""
    batch, request = _inputs(model, mesh, rows=prompts, prompt=prompt, new=new)
    zeros = np.zeros(model.config.d_model, np.float32)
    steering = stack_cells([Cell({}, add(zeros, layer=0, coeff=1.0))] * cells, model.config)
    whole = NamedSharding(mesh, P())
    where = jax.tree.map(lambda _: whole, (batch, request, steering))
    if prompts % mesh.shape[DATA] == 0:
        where = (*rows_sharding((batch, request), mesh), where[2])
    else:
        where = (*where[:2], rows_sharding(steering, mesh))
    batch, request, steering = _placed((batch, request, steering), where)
    return _compiled(
        _run_cells.lower(
            model,
            batch,
            replace(request, steering=steering),
            steer_prompt=False,
            sampler=greedy,
        )
    )


def compile_prefill(model: Model, mesh: Mesh, *, rows: int, prompt: int, new: int) -> Compiled:
    """Prompts into a cache with room for what is decoded."""
    batch, request = _inputs(model, mesh, rows=rows, prompt=prompt, new=new)
    program = jax.jit(prefill, static_argnames="sampler", out_shardings=Format(Layout.AUTO))
    return _compiled(program.lower(model, batch, request, sampler=greedy))


def compile_decode(model: Model, mesh: Mesh, *, rows: int, prompt: int, new: int) -> Compiled:
    """The loop alone, into which the state goes and out of which it comes in the same place."""
    batch, request = _inputs(model, mesh, rows=rows, prompt=prompt, new=new)

    def first(model: Model, batch: TokenBatch, request: Request) -> DecodeState:
        return prefill(model, batch, request, sampler=greedy)

    def decode(model: Model, state: DecodeState, request: Request) -> DecodeState:
        def body(state: DecodeState) -> DecodeState:
            return decode_step(model, state, request, sampler=greedy)

        return jax.lax.while_loop(unfinished, body, state)

    shapes = jax.eval_shape(first, model, batch, request)
    where = replace(rows_sharding(shapes, mesh), cache=cache_sharding(shapes.cache, mesh))
    # In whatever order the loop wants it, as in the program of `generate`, which makes it.
    free = jax.tree.map(lambda one: Format(Layout.AUTO, one), where)
    fixed = jax.tree.map(lambda x: x.format, (model, request))
    program = jax.jit(
        decode, donate_argnums=1, in_shardings=(fixed[0], free, fixed[1]), out_shardings=free
    )
    return _compiled(program.lower(model, shapes, request))


def compile_capture(
    model: Model,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    sentences: int,
    labels: int,
    offsets: int,
) -> Compiled:
    """The program of `activation_moments` for one batch: sums at all layers, on the device."""
    batch, _ = _inputs(model, mesh, rows=rows, prompt=length, new=1)
    config = model.config
    sums = jax.ShapeDtypeStruct((config.n_layers, 2, labels, offsets, config.d_model), jnp.float32)
    where = _sums_sharding(model, config.d_model)
    running = _placed((sums, sums), (where, where))
    events = (
        jax.ShapeDtypeStruct((rows, sentences, offsets), jnp.int32),
        jax.ShapeDtypeStruct((rows, sentences, labels), jnp.bool_),
    )
    events = _placed(events, rows_sharding(events, mesh))
    return _compiled(
        _add_batch.lower(
            running, model, batch, *events, site="resid_post", layers=None, where=where
        )
    )


def mesh_for(topology: Topology, *, data: int, tensor: int) -> Mesh:
    """The topology's chips as a mesh."""
    return make_mesh(data=data, tensor=tensor, devices=devices(topology))


def _inputs(
    model: Model, mesh: Mesh, *, rows: int, prompt: int, new: int
) -> tuple[TokenBatch, Request]:
    ones = np.ones((rows, prompt), np.int32)
    batch = TokenBatch(jnp.asarray(ones), jnp.asarray(ones, bool))
    request = make_request(model, batch, max_new_tokens=new)
    where = rows_sharding((batch, request), mesh)
    return _placed((batch, request), where)


def _placed(tree: Tree, shardings: Any) -> Tree:
    """Shapes of arrays, each with its sharding."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def _compiled(lowered: Any) -> Compiled:
    done = lowered.compile()
    memory = done.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        text=done.as_text(),
    )
