"""Hybrids of two models: which leaves come from where, and that they cost nothing."""

from collections import Counter
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxsteer.analysis.grafting import graft, part_of, part_sizes, parts
from jaxsteer.llama.model import Model
from jaxsteer.llama.packing import pack
from jaxsteer.llama.parameters import flatten

CONFIG = oracle.SHALLOW


def pair(config=CONFIG, packed: bool = False) -> tuple[Model, Model]:
    models = [oracle.random_model(config, seed=seed) for seed in (1, 2)]
    return tuple(pack(model) if packed else model for model in models)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changed", [{}, {"tie_embeddings": True}, {"qkv_bias": True}])
def test_parts_partition_the_weights(changed, packed):
    into, source = pair(replace(CONFIG, **changed), packed)
    names = parts(into.config)
    taken = Counter()
    for name in names:
        hybrid = graft(into, source, [name])
        for (path, leaf), (_, ours), (_, theirs) in zip(
            flatten(hybrid.params), flatten(into.params), flatten(source.params), strict=True
        ):
            assert leaf is ours or leaf is theirs  # shared, not copied
            taken[path] += leaf is theirs
            assert (leaf is theirs) == (part_of(path) == name)
    assert set(taken.values()) == {1}
    assert part_sizes(into).keys() == set(names)
    assert sum(part_sizes(into).values()) == sum(x.size for x in jax.tree.leaves(into.params))
    chex.assert_trees_all_equal(graft(into, source, names).params, source.params)
    chex.assert_trees_all_equal(graft(into, source, []).params, into.params)


def test_a_part_is_what_its_name_says():
    into, source = pair()
    hybrid = graft(into, source, ["layers.1.mlp", "head"])
    here, theirs, ours = hybrid.params, source.params, into.params
    assert here["layers"][1]["mlp"] == theirs["layers"][1]["mlp"]
    assert here["layers"][1]["mlp_norm"] == theirs["layers"][1]["mlp_norm"]
    assert here["layers"][1]["attn"] == ours["layers"][1]["attn"]
    assert here["layers"][1]["attn_norm"] == ours["layers"][1]["attn_norm"]
    assert here["layers"][0] == ours["layers"][0]
    assert here["final_norm"] == theirs["final_norm"]
    assert here["lm_head"] == theirs["lm_head"]
    assert here["embed"] == ours["embed"]


def test_grafting_the_rest_back_is_grafting_the_other_way_round():
    into, source = pair()
    some = {"embed", "layers.0.attn"}
    rest = set(parts(CONFIG)) - some
    chex.assert_trees_all_equal(graft(into, source, some).params, graft(source, into, rest).params)


def test_all_hybrids_run_in_one_program():
    into, source = pair()
    tokens = jnp.asarray(oracle.random_rows([6], CONFIG.vocab_size))
    before = oracle.run._cache_size()
    logits = [
        np.asarray(oracle.run(graft(into, source, names), tokens).logits)
        for names in ([], ["embed"], ["layers.1.attn", "head"], parts(CONFIG))
    ]
    assert oracle.run._cache_size() - before <= 1
    np.testing.assert_array_equal(logits[-1], np.asarray(oracle.run(source, tokens).logits))
    assert len({array.tobytes() for array in logits}) == len(logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: oracle.random_model(replace(CONFIG, n_layers=1)), r"n_layers 1 \(expected 2\)"),
        (pack, "got a model that is packed"),
        (
            lambda m: replace(m, params=jax.tree.map(lambda x: x.astype("bfloat16"), m.params)),
            "got bfloat16 at embed.embedding, expected float32",
        ),
    ],
)
def test_models_that_differ_are_refused(change, message):
    into, source = pair()
    with pytest.raises(ValueError, match=message):
        graft(into, change(source), ["head"])


def test_an_unknown_part_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'layers\.2\.mlp'.*layers\.0\.attn to layers\.1\.mlp"):
        graft(*pair(), ["layers.2.mlp"])


def test_the_order_of_the_dicts_does_not_matter():
    """A model that went through `tree_map` has its keys sorted, one from a file has not."""
    into, source = pair()
    turned = replace(source, params=dict(reversed(source.params.items())))
    expected = graft(into, source, ["embed", "head"]).params
    chex.assert_trees_all_equal(graft(into, turned, ["embed", "head"]).params, expected)
