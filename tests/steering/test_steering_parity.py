"""Steering against a forward hook in transformers: the same tokens, greedily, in float32."""

import numpy as np
import pytest
import torch
from oracle import torch_twin
from steering_helpers import OPERATIONS, D, one_program

from jaxsteer.decoding.generation import generate
from jaxsteer.steering import interventions, scope

LAYER, COUNT = 1, 8
HOOKED = ("resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")
VECTORS = np.random.default_rng(5).standard_normal((3, D)).astype(np.float32)


def intervention(operation: str, **where):
    """What jaxsteer is asked for."""
    if operation == "add":
        return interventions.add(VECTORS[0], coeff=1.5, **where)
    if operation == "ablate":
        return interventions.ablate(VECTORS, coeff=2.0, **where)
    if operation == "clamp":
        return interventions.clamp(VECTORS[0], -4.0, **where)
    return interventions.replace(VECTORS[0], coeff=0.75, **where)


def changed(operation: str, x: torch.Tensor) -> torch.Tensor:
    """The same, as people write it in a hook."""
    vectors = torch.tensor(VECTORS)
    if operation == "add":
        return x + 1.5 * vectors[0]
    if operation == "ablate":
        q, _ = torch.linalg.qr(vectors.T)
        return x - 2.0 * (x @ q) @ q.T
    if operation == "clamp":
        unit = vectors[0] / vectors[0].norm()
        return x + (-4.0 - x @ unit)[..., None] * unit
    return 0.25 * x + 0.75 * vectors[0]


def hooked(twin, site: str, change):
    """Let `change` act on a site of one layer of transformers' model."""

    def before(module, args, kwargs):
        return (change(args[0]), *args[1:]), kwargs

    def after(module, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    block = twin.model.layers[LAYER]
    if site in ("resid_pre", "head_out"):
        module = block if site == "resid_pre" else block.self_attn.o_proj
        return module.register_forward_pre_hook(before, with_kwargs=True)
    module = {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[site]
    return module.register_forward_hook(after)


@pytest.fixture(scope="module")
def twin(small):
    return torch_twin(small)


def greedy_by_transformers(twin, batch) -> np.ndarray:
    with torch.no_grad():
        tokens = twin.generate(
            torch.tensor(np.asarray(batch.tokens), dtype=torch.long),
            attention_mask=torch.tensor(np.asarray(batch.mask), dtype=torch.long),
            do_sample=False,
            max_new_tokens=COUNT,
        )
    return tokens[:, batch.tokens.shape[1] :].numpy()


@pytest.fixture(scope="module")
def unsteered(twin, batch) -> np.ndarray:
    return greedy_by_transformers(twin, batch)


def check(small, batch, twin, unsteered, site: str, operation: str, where: str, **options) -> None:
    """Both steer and both give the same, which is not what they give without."""
    scoped = {"generated": scope.generated(), "everywhere": scope.everywhere()}[where]
    one = intervention(operation, layer=LAYER, site=site, scope=scoped, **options)
    shaped = one_program(one, thinking=False)
    found = generate(small, batch, max_new_tokens=COUNT, steering=shaped).tokens

    def change(x: torch.Tensor) -> torch.Tensor:
        if where == "generated" and x.shape[1] > 1:  # the prefill
            return x
        new = changed(operation, x)
        if options.get("preserve_norm"):
            new = new * x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)
        return new

    handle = hooked(twin, site, change)
    expected = greedy_by_transformers(twin, batch)
    handle.remove()
    np.testing.assert_array_equal(found, expected)
    assert (found != unsteered).mean() > 0.2
    if where == "generated":  # the first token's logits were made at the prompt's end
        np.testing.assert_array_equal(found[:, 0], unsteered[:, 0])


@pytest.mark.parametrize("site", HOOKED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_at_every_site(small, batch, twin, unsteered, operation, site):
    check(small, batch, twin, unsteered, site, operation, "everywhere")


@pytest.mark.parametrize("site", HOOKED)
def test_only_what_is_generated_is_steered(small, batch, twin, unsteered, site):
    check(small, batch, twin, unsteered, site, "add", "generated")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_length_of_the_stream_is_kept(small, batch, twin, unsteered, operation):
    check(small, batch, twin, unsteered, "resid_post", operation, "everywhere", preserve_norm=True)
