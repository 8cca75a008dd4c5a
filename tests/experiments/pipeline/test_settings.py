"""Settings: everything that is wrong is said by name, at once, and nothing is taken silently."""

from pathlib import Path

import pytest
from pipeline_helpers import SETTINGS, change

from experiments.pipeline import settings as settings_module
from experiments.pipeline.settings import Settings, load_settings
from jaxsteer.analysis.sentences import KEYWORDS

CONFIGS = Path(settings_module.__file__).parents[1] / "configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS)
    return path


def message(file: Path, **sections: dict) -> str:
    """What is said about settings with some values changed."""
    with pytest.raises(ValueError) as caught:
        load_settings(change(file, "changed.toml", **sections))
    return str(caught.value)


@pytest.mark.parametrize("name", ["small.toml", "llama8b.toml"])
def test_configs_of_the_repository_load(name: str) -> None:
    settings = load_settings(CONFIGS / name)
    assert isinstance(settings, Settings)
    assert settings.direction.offsets == [-13, -12, -11, -10, -9, -8]
    assert settings.labels.keywords == list(KEYWORDS)
    assert any(c < 0 for c in settings.steering.coeffs)
    assert settings.steering.baseline_coeffs


def test_paths_are_relative_to_the_file_and_need_not_exist(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    changed = change(
        file, "other.toml", models={"base": "../there/base"}, labels={"file": "/absolute/l.jsonl"}
    )
    settings = load_settings(changed)
    assert Path(settings.models.base) == file.parent / "../there/base"
    assert Path(settings.prompts.file) == file.parent / "prompts.json"
    assert settings.labels.file == "/absolute/l.jsonl"
    assert load_settings(change(file, "no.toml", models={"control": None})).models.control is None


def test_numbers_get_their_kind(file: Path) -> None:
    settings = load_settings(
        change(
            file, "c.toml", steering={"coeffs": [1, -2], "unit": "vector", "baseline_coeffs": [1]}
        )
    )
    assert settings.steering.coeffs == [1.0, -2.0]
    assert all(type(c) is float for c in settings.steering.coeffs)


def test_models_in_a_store_are_to_be_copied_first(file: Path) -> None:
    said = message(file, models={"base": "gs://bucket/base", "control": "gs://bucket/control"})
    for role in ("base", "control"):
        assert f"models.{role}: got gs://bucket/{role}, expected a path on a disk: copy it" in said


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.toml: no such settings file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("text", [b"[models\n", b"a = \xff\n"])
def test_invalid_toml(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML"):
        load_settings(path)


def test_all_wrong_keys_and_types_are_said_at_once(file: Path) -> None:
    text = message(
        file,
        models={"bass": "x", "base": None},
        rollouts={"max_new_token": 3, "max_new_tokens": "many"},
        direction={"layer": 1.0, "offsets": [-3, 0.5]},
        steering={"random_directions": True},
        plot={"colour": "red"},
    )
    for line in (
        "models.bass: unknown key, expected one of base, reasoning, control, dtype",
        "models.base: missing",
        "rollouts.max_new_token: unknown key",
        "rollouts.max_new_tokens: got 'many', expected int",
        "direction.layer: got 1.0, expected int",
        "direction.offsets: got [-3, 0.5], expected list[int]",
        "steering.random_directions: got True, expected int",
        "plot: unknown key, expected one of models, prompts",
    ):
        assert line in text
    assert text.startswith(f"{file.with_name('changed.toml')}:")


def test_a_missing_section_is_named_by_what_it_must_hold(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("direction = 3\n")
    with pytest.raises(ValueError) as caught:
        load_settings(path)
    for line in ("models.base: missing", "decoding.max_new_tokens: missing", "prompts.file: mis"):
        assert line in str(caught.value)
    assert "direction: got 3, expected a table" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("models", "dtype", "float16", "float32 or bfloat16"),
        ("prompts", "base_template", "Problem:", "a text with {prompt} in it"),
        ("prompts", "base_format", "prose", "chat or continuation"),
        ("prompts", "reasoning_format", "", "chat or continuation"),
        ("prompts", "evaluate_split", "dom", "another one than derive_split"),
        ("prompts", "derive_limit", 0, "at least 1"),
        ("prompts", "evaluate_limit", -2, "at least 1"),
        ("prompts", "base_evaluate_limit", 0, "at least 1"),
        ("figure2", "offsets", [-3, -2], "some below 0 and some not"),
        ("figure2", "offsets", [-31, 2], "some of activations.offsets"),
        ("figure2", "coeff", 0.0, "a finite number but 0"),
        ("figure2", "layer_stride", 0, "at least 1"),
        ("figure2", "prompts", 1, "at least 2"),
        ("labels", "keywords", [], "at least one word"),
        ("labels", "keywords", ["wait", " "], "none empty"),
        ("labels", "source", "judge", "keywords or grammar"),
        ("activations", "offsets", [], "distinct"),
        ("direction", "layer", -1, "at least 0"),
        ("direction", "offsets", [], "distinct"),
        ("direction", "offsets", [-3, -3], "distinct"),
        ("direction", "site", "resid", "one of resid_pre"),
        ("steering", "coeffs", [], "distinct finite numbers without 0"),
        ("steering", "coeffs", [0.0, 0.5], "without 0"),
        ("steering", "coeffs", [0.5, 0.5], "distinct"),
        ("steering", "baseline_coeffs", [0.7], "some of steering.coeffs"),
        ("steering", "unit", "metres", "vector or residual"),
        ("steering", "random_directions", -1, "at least 0"),
        ("report", "coherence", "nice", "repetition or grammar"),
        ("report", "margin", 3.0, "0 to 1"),
        ("rollouts", "max_new_tokens", 0, "at least 1"),
        ("rollouts", "rows_per_chunk", 0, "at least 1"),
        ("decoding", "temperature", -0.5, "at least 0"),
        ("decoding", "top_p", 0.0, "above 0, at most 1"),
        ("decoding", "seed", -1, "0 to 2"),
    ],
)
def test_values_that_cannot_be(
    file: Path, section: str, key: str, value: object, expected: str
) -> None:
    text = message(file, **{section: {key: value}})
    assert f"{section}.{key}: got {value!r}, expected" in text
    assert expected in text


JUDGE = """
[labels.judge]
url = "https://host/v1"
model = "m"
price_in = 2.5
price_out = 10
"""


def test_a_judge_is_a_section_that_may_be_left_out(file: Path) -> None:
    assert load_settings(file).labels.judge is None
    file.write_text(SETTINGS + JUDGE)
    judge = load_settings(file).labels.judge
    assert judge is not None
    assert (judge.url, judge.price_out, judge.max_cost) == ("https://host/v1", 10.0, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("price_in = 2.5", "", "labels.judge.price_in: missing"),
        ("price_in", "price", "labels.judge.price: unknown key, expected one of url, model"),
        ('"m"', "3", "labels.judge.model: got 3, expected str"),
        ("2.5", "-1", "labels.judge.price_in: got -1.0, expected dollars, at least 0"),
        ("//host", "//me:pass@host", "labels.judge.url: got 'something else', expected an address"),
        (
            "[labels.judge]",
            '[labels]\nfile = "l.jsonl"\n[labels.judge]',
            "labels come from one source",
        ),
        ("[labels.judge]", '[labels]\nsource = "grammar"\n[labels.judge]', "no source beside a"),
        (JUDGE, "[labels]\njudge = 3", "labels.judge: got 3, expected a table"),
    ],
)
def test_judges_that_cannot_be(file: Path, old: str, new: str, expected: str) -> None:
    file.write_text(SETTINGS + JUDGE.replace(old, new))
    with pytest.raises(ValueError) as caught:
        load_settings(file)
    assert expected in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_numbers_that_are_none_are_refused(file: Path) -> None:
    """TOML has nan and inf, with which a stage would never be valid."""
    path = file.with_name("nan.toml")
    text = SETTINGS.replace("[-0.5, 0.5, 1.0]", "[0.5, nan]").replace(
        "margin = 0.9", "margin = nan"
    )
    path.write_text(text.replace("temperature = 1.0", "temperature = inf"))
    with pytest.raises(ValueError) as caught:
        load_settings(path)
    for name in ("steering.coeffs", "report.margin", "rollouts.temperature"):
        assert f"{name}: got" in str(caught.value)
