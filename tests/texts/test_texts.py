"""jaxsteer.texts: strings in and texts out are the pure functions, with labels and ends."""

import contextlib
import dataclasses
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsteer as js
from jaxsteer.steering import Capture
from jaxsteer.texts.cells import sweep_cells
from jaxsteer.texts.layer_directions import residual_norms
from jaxsteer.texts.prompts import encode_prompts
from jaxsteer.texts.report import page_of

SMALL_PAIR = Path(__file__).parents[2] / "weights" / "small"
PROMPTS = ["lea has 15 candles .", "maybe 3 plus 4 is 7 ."]
CHAT = [{"role": "user", "content": "how many candles does lea have now ?"}]
NEW = 6


@pytest.fixture(scope="module")
def lm() -> js.LanguageModel:
    """The small reasoning model, with its tokenizer and two of its layers."""
    loaded = js.load(SMALL_PAIR / "reasoning", dtype="float32")
    config = dataclasses.replace(loaded.model.config, n_layers=2)
    layers = {i: loaded.model.params["layers"][i] for i in range(2)}
    params = {**loaded.model.params, "layers": layers}
    model = dataclasses.replace(loaded.model, params=params, config=config)
    return dataclasses.replace(loaded, model=model)


@pytest.fixture(scope="module")
def vector(lm: js.LanguageModel) -> np.ndarray:
    return np.random.default_rng(0).normal(size=lm.model.config.d_model).astype(np.float32) * 20


def test_a_call_that_load_is_given_to_warm_compiles_what_it_runs_later(
    tmp_path, vector, compiled
) -> None:
    """The sweep's program and the passes for a direction and for lengths, once each; no file."""
    file = tmp_path / "texts.jsonl"

    def work(lm: js.LanguageModel) -> js.Table:
        found = js.direction(lm, PROMPTS, PROMPTS[::-1] * 2)
        return lm.sweep(
            PROMPTS, {"given": vector, "found": found}, layers=[1], coeffs=[0, 0.1],
            unit="residual", metrics=[js.words, js.perplexity], max_new_tokens=NEW, out=file,
        )  # fmt: skip

    def programs() -> list[int]:
        return [sum(name in each for each in compiled) for name in ("_run_to_end", "_pass")]

    def ahead(lm: js.LanguageModel) -> None:
        table = work(lm)
        assert (len(table.texts), len(table.lines), file.exists()) == (0, 0, False)
        assert programs() == [1, 2]  # lengths of the stream, and its last tokens

    lm = js.load(SMALL_PAIR / "reasoning", dtype="float32", warm=ahead)
    assert len(work(lm).texts) == 2 * 3
    assert programs() == [1, 2]


def test_texts_are_those_of_the_pure_function(lm, vector) -> None:
    out = lm.generate(
        PROMPTS, steering=js.add(vector, layer=1, coeff=[0, 1]), samples=2, temperature=1.0,
        max_new_tokens=NEW, seed=3,
    )  # fmt: skip
    assert len(out) == 2 * 2 * 2
    batch = encode_prompts(lm.tokenizer, PROMPTS, samples=2).batch
    for coeff in (0.0, 1.0):
        pure = js.generate(
            lm.model,
            batch,
            max_new_tokens=NEW,
            steering=js.add(vector, layer=1, coeff=coeff),
            sampling_params=js.sampling(4, temperature=1.0, seed=3),
            stop_tokens=lm.end_tokens,
        )
        cell = out.where(coeff=coeff)
        assert [list(row.tokens) for row in cell] == pure.rows()
        assert [(row.prompt, row.sample) for row in cell] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [r.tokens for r in out.where(coeff=0.0)] != [r.tokens for r in out.where(coeff=1.0)]


def test_a_text_ends_at_the_models_own_end_token(lm) -> None:
    greedy = lm.generate(PROMPTS[0], max_new_tokens=NEW)[0]
    assert greedy.end == "length"
    assert len(greedy.tokens) == NEW
    ended = lm.generate(PROMPTS[0], max_new_tokens=NEW, stop_tokens=[greedy.tokens[2]])[0]
    first = greedy.tokens.index(greedy.tokens[2])
    assert (ended.end, ended.tokens) == ("end token", greedy.tokens[: first + 1])
    assert ended.text == lm.tokenizer.decode(greedy.tokens[:first])


def test_cells_by_name_and_interventions_that_act_together(lm, vector) -> None:
    both = [js.add(vector, layer=0, coeff=1.0), js.add(vector, layer=1, coeff=[0, 1])]
    out = lm.generate(CHAT, steering={"plain": None, "both": both}, max_new_tokens=2)
    assert [(r.labels["name"], len(r.tokens)) for r in out] == [
        ("plain", 2),
        ("both", 2),
        ("both", 2),
    ]
    three = js.add(vector, layer=0, coeff=[0, 1, 2])
    with pytest.raises(ValueError, match=r"steering: got \[2, 3\] rows"):
        lm.generate(CHAT, steering=[both[1], three], max_new_tokens=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts: got"),
        ({"prompts": "a", "samples": 0}, "samples: got 0"),
        ({"prompts": "a", "samples": 2}, "at temperature 0"),
        (
            {"prompts": ["a", "a b"], "samples": 2, "temperature": 1.0, "max_new_tokens": 999},
            r"prompts\[1\]: got a prompt of 3 tokens and 999 new ones",
        ),
    ],
)
def test_what_cannot_be_asked(lm, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        lm.generate(**arguments)


def test_coefficient_0_is_one_cell_and_baselines_are_as_long(lm, vector) -> None:
    batch = encode_prompts(lm.tokenizer, PROMPTS).batch
    cells = sweep_cells(
        lm.model, batch, {"v": vector}, layers=[0, 1], coeffs=[-2, 0, 2],
        baselines=["random", "noise"],
    )  # fmt: skip
    assert [c.labels for c in cells if c.labels["coeff"] == 0] == [
        {"source": "none", "layer": None, "coeff": 0.0}
    ]
    assert len(cells) == 1 + 2 * 2 * 3
    added = [c for c in cells if c.labels["source"] in ("v", "random")]
    lengths = [float(np.linalg.norm(c.steering.vector)) for c in added]
    np.testing.assert_allclose(lengths, np.linalg.norm(vector), rtol=1e-5)


@pytest.mark.parametrize("layers", [[2], [0, -1], [0.5]])
@pytest.mark.parametrize("options", [{}, {"unit": "residual"}, {"tokens": True}])
def test_layers_that_the_model_does_not_have_are_named(lm, vector, layers, options) -> None:
    with pytest.raises(ValueError, match=rf"layers: got {layers[-1]}, expected 0 to 1"):
        lm.sweep(PROMPTS, vector, layers=layers, coeffs=[1], metrics=[js.repetition], **options)


def test_a_direction_is_added_at_its_own_site(lm, vector) -> None:
    batch = encode_prompts(lm.tokenizer, PROMPTS).batch
    v = js.Direction(vector, 1, "attn_out", "v", {})
    cells = sweep_cells(
        lm.model, batch, v, layers=None, coeffs=[1], baselines=["random", "noise"]
    )  # fmt: skip
    assert {(c.steering.sites, int(c.steering.layer[0, 0])) for c in cells} == {(("attn_out",), 1)}
    with pytest.raises(ValueError, match=r"unit: got 'residual' for \['attn_out'\]"):
        sweep_cells(lm.model, batch, v, layers=None, coeffs=[1], unit="residual")


def test_a_unit_is_the_length_of_the_stream_at_the_layer(lm, vector) -> None:
    batch = encode_prompts(lm.tokenizer, PROMPTS).batch
    out = jax.jit(js.forward)(lm.model, batch.tokens, mask=batch.mask, capture=Capture())
    behind_first = np.cumsum(batch.mask, axis=1) > 1
    stream = np.asarray(out.captured["resid_post"])[:, behind_first]  # [L, tokens, D]
    expected = np.sqrt((stream**2).sum(-1).mean(1))
    np.testing.assert_allclose(residual_norms(lm.model, batch), expected, rtol=1e-5)
    cells = sweep_cells(lm.model, batch, vector, layers=[1], coeffs=[0.5], unit="residual")
    np.testing.assert_allclose(np.linalg.norm(cells[0].steering.vector), expected[1], rtol=1e-5)


def test_coefficients_of_generate_count_the_same_unit_as_those_of_a_sweep(lm, vector) -> None:
    asked = {"unit": "residual", "max_new_tokens": NEW, "temperature": 1.0, "seed": 5}
    swept = lm.sweep(PROMPTS, vector, layers=[1], coeffs=[0, 0.5], **asked).texts
    out = lm.generate(PROMPTS, steering=js.add(vector, layer=1, coeff=[0, 0.5]), **asked)
    assert [row.tokens for row in out] == [row.tokens for row in swept]
    assert out.about["unit"] == "residual"
    plain = lm.generate(PROMPTS, **asked)
    assert [row.tokens for row in plain] == [row.tokens for row in out.where(coeff=0.0)]


@pytest.mark.parametrize(
    "steering",
    [
        js.add(np.ones(256), layer="all", coeff=1.0),
        js.add(np.ones(256), layer=[[0, 1]], coeff=1.0),
        js.add(np.ones(256), layer=2, coeff=1.0),
        js.add(np.ones(256), layer=1, coeff=1.0, site="attn_out"),
        js.ablate(np.ones(256), layer=1),
        js.noise(1.0, layer=1, coeff=1.0, width=256),
    ],
)
def test_only_an_addition_at_one_layer_is_in_residual_norms(lm, steering) -> None:
    with pytest.raises(ValueError, match="unit: got 'residual', expected an addition to resid"):
        lm.generate(PROMPTS, steering=steering, unit="residual")
    with pytest.raises(ValueError, match="unit: got 'norms', expected 'vector' or 'residual'"):
        lm.generate(PROMPTS, steering=steering, unit="norms")


@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_direction_is_the_difference_of_means(lm, position) -> None:
    texts = ["maybe 3 plus 4 is 8 .", "perhaps 5 .", "i think 9 maybe"]
    others = ["clearly 3 plus 4 is 7 .", "exactly 5 cups"]
    v = js.direction(lm, texts, others, position=position)
    read = []
    for text in [*texts, *others]:
        ids = np.array([js.encode(lm.tokenizer, text).ids])
        stream = js.forward(lm.model, ids, capture=Capture()).captured["resid_post"][:, 0]
        read.append(stream[:, -1] if position == "last" else stream[:, 1:].mean(axis=1))
    expected = np.mean(read[:3], axis=0) - np.mean(read[3:], axis=0)  # [L, D]
    np.testing.assert_allclose(v.vectors, expected, atol=1e-4 * np.abs(expected).max())
    assert v[1].layer == 1
    assert np.array_equal(v[1].vector, v.vectors[1])
    with pytest.raises(IndexError, match="layer: got 2, expected 0 to 1"):
        v[2]


def test_a_direction_that_tells_texts_apart_is_said_to_be_reliable(lm) -> None:
    texts = [f"maybe {n} cups , i think ." for n in range(2, 8)]
    others = [f"clearly {n} cups , of course ." for n in range(2, 8)]
    v = js.direction(lm, texts, others, position="mean")
    assert v.auroc[1] == 1
    assert v.reliability[1] > 0.8
    mixed = js.direction(lm, [*texts[:3], *others[:3]], [*texts[3:], *others[3:]], position="mean")
    assert mixed.reliability[1] < 0.5


def test_texts_are_written_and_read_back(lm, tmp_path) -> None:
    out = lm.generate(PROMPTS, max_new_tokens=2)
    out.save(tmp_path / "texts.jsonl")
    back = js.Texts.load(tmp_path / "texts.jsonl")
    assert [r.text for r in back] == [r.text for r in out]
    assert back.about == out.about
    assert back.about["prompts"]  # the rule for what is put before a prompt
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"expected what `Texts.save` or a sweep"):
        js.Texts.load(tmp_path / "other.jsonl")
    about, *rows = [json.loads(x) for x in (tmp_path / "texts.jsonl").read_text().splitlines()]
    for lines, message in (
        ([about, rows[0] | {"text": 5}], "line 2: text: got 5"),
        ([about, rows[0] | {"labels": []}], r"line 2: labels: got \[\]"),
        ([{"about": {"model": 5}}, *rows], "line 1: about: expected an object"),
    ):
        (tmp_path / "other.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        with pytest.raises(ValueError, match=rf"other\.jsonl, {message}"):
            js.Texts.load(tmp_path / "other.jsonl")


def test_a_sweep_keeps_its_tokens_for_the_page(lm, vector, tmp_path) -> None:
    sweep = {"layers": [1], "coeffs": [0, 0.5], "samples": 2, "max_new_tokens": NEW, "seed": 3}
    table = lm.sweep(PROMPTS, vector, **sweep, metrics=[js.contains("a", "the")], tokens=True)
    plain = lm.sweep(PROMPTS, vector, **sweep)
    assert [r.tokens for r in table.texts] == [r.tokens for r in plain.texts]
    assert all(r.token_ends == r.projections == [] for r in plain.texts)
    norm = residual_norms(lm.model, encode_prompts(lm.tokenizer, PROMPTS, samples=2).batch)[1]
    for row in table.texts:
        cut = [row.text[a:b] for a, b in pairwise([0, *row.token_ends])]
        assert "".join(cut) == row.text
        ended = row.end == "end token"
        words = [lm.tokenizer.decode([token]) for token in row.tokens]
        assert [piece.strip() for piece in cut] == words[: len(words) - ended] + [""] * ended
    row = table.texts[-1]  # projections are of the stream as it was when the text was written
    prompt = js.encode(lm.tokenizer, PROMPTS[row.prompt]).ids
    ids = np.array([[*prompt, *row.tokens]])
    out = js.forward(
        lm.model, ids, capture=Capture(), steering=js.add(vector, layer=1, coeff=0.5),
        prompt_length=np.array([len(prompt)]),
    )  # fmt: skip
    stream = np.asarray(out.captured["resid_post"])[1, 0, len(prompt) :]
    expected = stream @ vector / np.linalg.norm(vector) / norm
    known = [i for i, x in enumerate(row.projections) if x is not None]
    assert known[: NEW - 1] == list(range(min(NEW - 1, len(row.tokens))))
    found = np.array([row.projections[i] for i in known])
    np.testing.assert_allclose(found, expected[known], atol=2e-3)
    table.texts.save(tmp_path / "texts.jsonl")
    assert js.Texts.load(tmp_path / "texts.jsonl").rows == table.texts.rows


def test_the_page_of_a_sweep_has_its_texts_and_lines_that_write_them(lm, vector) -> None:
    table = lm.sweep(
        PROMPTS, vector, layers=[1], coeffs=[0, 0.5], samples=2, max_new_tokens=NEW,
        metrics=[js.contains("a", "the"), js.repetition], baselines=["random"], tokens=True,
    )  # fmt: skip
    page = page_of(table.texts, table.metrics, title="t")
    assert [(c.series, c.coeff) for c in page.cells] == [
        ("", 0.0), ("direction, layer 1", 0.5), ("random, layer 1", 0.5),
    ]  # fmt: skip
    assert [one.main for one in page.series] == [True, False]
    assert page.effect == "contains a or the"
    assert len(page.texts) == len(table.texts) == 12
    means = [line.mean for line in table.lines if line.metric == page.effect]
    assert [cell.effect.mean for cell in page.cells] == means
    text, row = page.texts[5], table.texts[5]
    assert (text.text, text.row, text.cell) == (row.text, row.prompt * 2 + row.sample, 1)
    assert all(text.text[a:b].lower() in ("a", "the") for a, b in text.marks)
    assert page.cells[2].python is None
    lines = page.cells[1].python.replace("$TEXT", repr(row.prompt_text))
    assert 'dtype="float32")' in lines  # as which the sweep has loaded it
    head, _, rest = lines.replace("$ROW", str(text.row)).partition("lm = js.load(")
    assert "# v: the vector of 'direction' at layer 1" in head
    names = {"lm": lm, "v": vector}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("import jaxsteer as js\n" + rest.partition("\n")[2], names)
    assert printed.getvalue().strip().startswith(row.text)
    bare = page_of(js.Texts((text_of(0.0, "a"), text_of(1.0, "b"))), (), title="t")
    assert bare.cells[0].python is None
    assert "recorded no projections" in bare.tint


def test_texts_without_end_are_refused_before_memory_is_asked_for(lm) -> None:
    with pytest.raises(ValueError, match=r"samples: got 1000000000 of 2 prompts, more than a"):
        lm.generate(PROMPTS[:2], samples=10**9, temperature=1.0)


def text_of(coeff: float, words: str) -> js.texts.Text:
    return text(coeff, 0, 0, words)


def test_a_sweep_in_a_file_is_the_one_in_memory(lm, vector, tmp_path) -> None:
    asked = {
        "layers": [1], "coeffs": [1, 0], "samples": 2, "max_new_tokens": 3,
        "metrics": [js.contains("maybe"), js.perplexity],
    }  # fmt: skip
    table = lm.sweep(PROMPTS, vector, **asked)
    out = tmp_path / "sweep.jsonl"
    filed = lm.sweep(PROMPTS, vector, **asked, out=out)
    assert filed.texts == table.texts
    assert filed.to_dicts() == table.to_dicts()
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # as a kill leaves it
    assert lm.sweep(PROMPTS, vector, **asked, out=out).texts == table.texts
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    with pytest.raises(ValueError, match="made with another configuration"):
        lm.sweep(PROMPTS, vector, **asked | {"max_new_tokens": 2}, out=out)
    table.texts.save(tmp_path / "texts.jsonl")
    assert js.Table.of(js.Texts.load(tmp_path / "texts.jsonl"), asked["metrics"]) == table


def test_perplexity_is_what_the_unsteered_model_makes_of_a_text(lm, vector) -> None:
    steered = js.add(vector, layer=1, coeff=[0, 1])
    out = lm.score(lm.generate(PROMPTS[:1], steering=steered, max_new_tokens=3))
    prompt = js.encode(lm.tokenizer, PROMPTS[0]).ids
    for row in out:
        ids = np.array([[*prompt, *row.tokens]])
        logprobs = jax.nn.log_softmax(js.forward(lm.model, ids).logits[0])
        expected = [
            float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(row.tokens)
        ]
        np.testing.assert_allclose(row.plain_logprobs, expected, atol=1e-4)
        assert js.perplexity(row) == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)
    assert out[1].logprobs != out[1].plain_logprobs


def test_a_direction_of_all_layers_is_added_at_the_layer_that_is_given() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    v = js.LayerDirections(vectors, np.ones(2), np.ones(2), np.ones(2), "v")
    assert np.array_equal(js.add(v, layer=1, coeff=2).vector, [vectors[1]])
    assert np.array_equal(js.add(v, layer=[[1], [0]], coeff=2).vector, vectors[::-1])
    for layer, message in (
        ("all", "got 'all', expected a number"),
        ([0, 1], r"got \[0, 1\], expected a number, or \[\[3\], \[4\]\] for one per row"),
        ([[0, 1]], r"got \[\[0, 1\]\], expected a number"),
        (2, "got 2, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=f"layer: {message}"):
            js.add(v, layer=layer, coeff=2)
    with pytest.raises(ValueError, match="layer: got None, expected a number"):
        js.add(v, coeff=2)


def text(coeff: float, prompt: int, sample: int, words: str) -> js.texts.Text:
    return js.texts.Text({"coeff": coeff}, prompt, "p", sample, words, [1], [0.0], "length")


def test_samples_of_a_prompt_are_averaged_before_prompts_are_compared() -> None:
    rows = [text(0.0, p, s, "a b") for p in range(3) for s in range(2)]
    rows += [text(1.0, p, s, "wait a" if s < p else "a") for p in range(3) for s in range(2)]
    plain, steered = js.measure(js.Texts(tuple(rows)), [js.contains("WAIT")])
    assert (plain.mean, steered.mean, steered.prompts) == (0.0, pytest.approx(0.5), 3)
    assert steered.difference == pytest.approx(0.5)
    assert plain.difference is None


def test_texts_without_a_number_are_counted_apart() -> None:
    rows = (text(0.0, 0, 0, "a b c d"), text(0.0, 1, 0, "a"))  # too short for 4-grams
    (line,) = js.measure(js.Texts(rows), [js.repetition])
    assert (line.mean, line.prompts, line.empty) == (0.0, 1, 1)


def test_what_differs_from_the_unsteered_text_is_marked() -> None:
    out = js.Texts((text(0.0, 0, 0, "a <b> c"), text(1.0, 0, 0, "a <b> d e")))
    assert "a &lt;b&gt; <b>d e</b>" in out._repr_html_()
    assert "coeff 1" in repr(out)


def test_texts_of_a_prompt_stand_together() -> None:
    out = js.Texts(tuple(text(c, p, 0, f"{c} {p}") for c in (0.0, 1.0) for p in range(2)))
    assert repr(out).splitlines() == [
        "prompt 0: p",
        "  coeff 0: 0.0 0 (1 tokens, cut)",
        "  coeff 1: 1.0 0 (1 tokens, cut)",
        "prompt 1: p",
        "  coeff 0: 0.0 1 (1 tokens, cut)",
        "  coeff 1: 1.0 1 (1 tokens, cut)",
    ]


def test_a_table_of_two_prompts_has_no_nan_and_says_why() -> None:
    rows = [text(c, p, 0, "wait a b c d" if c else "a b c d") for c in (0.0, 1.0) for p in (0, 1)]
    table = js.Table.of(js.Texts(tuple(rows)), [js.contains("wait"), js.words])
    lines = repr(table).splitlines()
    assert "nan" not in repr(table)
    assert lines[2].split()[:6] == ["1", "contains", "wait", "1.000", "[0.224,", "1.000]"]
    assert lines[4].split() == ["1", "words", "5.000", "–", "+1.000", "–", "0.500", "2"]
    assert lines[5:] == [
        "n = 2 prompts: intervals over so few say little.",
        "–: no interval, because all prompts agree, or there is one or none.",
    ]
    assert "<td" in table._repr_html_()
    assert "words" in table._repr_html_()


def test_differences_have_intervals_over_prompts() -> None:
    rows = [text(0.0, p, 0, "a") for p in range(20)]
    rows += [text(1.0, p, 0, "wait" if p % 4 else "a") for p in range(20)]
    plain, steered = js.measure(js.Texts(tuple(rows)), [js.contains("wait")])
    assert plain.difference_low is None
    assert steered.difference == pytest.approx(0.75)
    assert 0.4 < steered.difference_low < 0.75 < steered.difference_high < 1
    assert steered.p < 0.01


def test_a_metric_may_take_the_whole_result() -> None:
    @js.on_result
    def tokens(row: js.texts.Text) -> float:
        return len(row.tokens)

    (line,) = js.measure(js.Texts((text(0.0, 0, 0, "a"),)), [tokens])
    assert (line.metric, line.mean) == ("tokens", 1.0)
    with pytest.raises(ValueError, match=r"perplexity: got texts that were not scored"):
        js.measure(js.Texts((text(0.0, 0, 0, "a"),)), [js.perplexity])


def test_a_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install \"jaxsteer\[notebook\]\""):
        js.Texts((text(0.0, 0, 0, "a"),)).to_pandas()


def test_a_plot_has_a_line_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    rows = [text(c, p, 0, "wait" if c else "a") for c in (0.0, 1.0) for p in (0, 1)]
    figure = js.Table.of(js.Texts(tuple(rows)), [js.contains("wait")]).plot()
    assert figure.axes[0].get_ylabel() == "contains wait"
    assert len(figure.axes[0].containers) == 1


def test_what_a_model_wrote_does_not_steer_a_terminal() -> None:
    row = js.texts.Text(
        {"vector": "\x1b[2J", "coeff": 0.0}, 0, "p\x1b", 0, "a\x1b]0;b\x07\u202e", [1], [0.0], "eos"
    )
    texts = js.Texts((row,))
    shown = repr(texts) + repr(js.Table.of(texts, [js.repetition]))
    assert "\\x1b]0;b\\x07\\u202e" in shown
    assert not [char for char in shown if not char.isprintable() and char != "\n"]
