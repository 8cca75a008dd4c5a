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
        assert f"models.{role}: got 'gs://bucket/{role}', expected a path on a disk: copy" in said


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.toml: no such settings file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[models\n", "not valid TOML: Expected"),
        (b"a = \xff\n", "not valid TOML: .*utf-8"),
        (b"a = " + b"[" * 9000, "not valid TOML: nested too deep"),
        (b"a = " + b"9" * 5000, "not valid TOML: Exceeds the limit"),
        (b"#" * 20_000, "got 20000 bytes, expected at most 16384"),
    ],
)
def test_invalid_toml(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"bad\.toml: {message}") as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)


def test_all_wrong_keys_and_types_are_said_at_once(file: Path) -> None:
    text = message(
        file,
        models={"bass": "x", "base": None},
        rollouts={"max_new_token": 3, "max_new_tokens": "many"},
        direction={"layer": 1.0, "offsets": [-3, 0.5]},
        steering={"random_directions": True, "coeffs": []},
        plot={"colour": "red"},
    )
    for line in (
        "models.bass: unknown key, expected base",
        "models.base: missing",
        "rollouts.max_new_token: unknown key, expected max_new_tokens",
        "rollouts.max_new_tokens: got 'many', expected a valid integer",
        "direction.layer: got 1.0, expected a valid integer",
        "direction.offsets.1: got 0.5, expected a valid integer",
        "steering.random_directions: got True, expected a valid integer",
        "steering.coeffs: got [], expected distinct numbers",  # a value, beside wrong keys
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
        ("models", "dtype", "float16", "'float32' or 'bfloat16'"),
        ("prompts", "base_template", "Problem:", "a text with {prompt} in it"),
        ("prompts", "base_format", "prose", "'chat' or 'continuation'"),
        ("prompts", "reasoning_format", "", "'chat' or 'continuation'"),
        ("prompts", "evaluate_split", "dom", "another one than derive_split"),
        ("prompts", "derive_limit", 0, "greater than or equal to 1"),
        ("prompts", "evaluate_limit", -2, "greater than or equal to 1"),
        ("prompts", "base_evaluate_limit", 0, "greater than or equal to 1"),
        ("figure2", "offsets", [-3, -2], "some below 0 and some not"),
        ("figure2", "offsets", [-31, 2], "some of activations.offsets"),
        ("figure2", "coeff", 0.0, "a number other than 0"),
        ("figure2", "layer_stride", 0, "greater than or equal to 1"),
        ("figure2", "prompts", 1, "greater than or equal to 2"),
        ("labels", "keywords", [], "at least 1 item"),
        ("labels", "keywords.1", " ", "a text that is not blank"),
        ("labels", "source", "judge", "'keywords' or 'grammar'"),
        ("activations", "offsets", [], "distinct"),
        ("direction", "layer", -1, "greater than or equal to 0"),
        ("direction", "offsets", [], "distinct"),
        ("direction", "offsets", [-3, -3], "distinct"),
        ("direction", "site", "resid", "one of resid_pre"),
        ("steering", "coeffs", [], "distinct numbers"),
        ("steering", "coeffs.0", 0.0, "a number other than 0"),
        ("steering", "coeffs", [0.5, 0.5], "distinct"),
        ("steering", "baseline_coeffs", [0.7], "some of steering.coeffs"),
        ("steering", "unit", "metres", "'vector' or 'residual'"),
        ("steering", "random_directions", -1, "greater than or equal to 0"),
        ("report", "coherence", "nice", "'repetition' or 'grammar'"),
        ("report", "margin", 3.0, "less than or equal to 1"),
        ("rollouts", "max_new_tokens", 0, "greater than or equal to 1"),
        ("rollouts", "rows_per_chunk", 0, "greater than or equal to 1"),
        ("decoding", "temperature", -0.5, "0, or .001 to 100"),
        ("decoding", "top_p", 0.0, "greater than or equal to 0.000001"),
        # What would fail in the middle of a run: overflows of int32, of float32, of memory.
        ("direction", "offsets.0", -(2**40), "greater than or equal to -100000"),
        ("direction", "offsets", [-3, 39, 40], "less than rollouts.max_new_tokens from 0"),
        ("steering", "coeffs.1", 1e300, "1e-6 to 1e6 in size"),
        ("steering", "coeffs.1", 1e-40, "1e-6 to 1e6 in size"),
        ("steering", "coeffs", [0.1, 0.1 + 1e-12], "distinct"),
        ("figure2", "coeff", 1e300, "1e-6 to 1e6 in size"),
        ("steering", "random_directions", 10**9, "less than or equal to 1000"),
        ("steering", "baselines.0", "nosie", "'mean', 'noise', 'self' or 'behaviour'"),
        ("analyses", "random_directions", 10**9, "less than or equal to 1000"),
        ("analyses", "folds", 21, "at most groups"),
        ("search", "steps", 2**63, "less than or equal to 10000"),
        ("search", "other_layers", [1], "without the steered one"),
        ("search", "coeff", -0.5, "one of steering.coeffs above 0"),
        ("grafting", "tokens", 1, "greater than or equal to 2"),
        ("decoding", "max_new_tokens", 2**31, "less than or equal to 1000000"),
        ("decoding", "temperature", 1e-320, "0, or .001 to 100"),
        ("decoding", "top_p", 1e-320, "greater than or equal to 0.000001"),
        ("decoding", "seed", 2**32, "less than 4294967296"),
        ("models", "base", "/a\0b", "a path"),
        ("decoding", "seed", -1, "greater than or equal to 0"),
    ],
)
def test_values_that_cannot_be(
    file: Path, section: str, key: str, value: object, expected: str
) -> None:
    name, _, place = key.partition(".")  # a wrong item of a list is put there alone
    items = [0.5] * int(place) + [value] if place else value
    text = message(file, **{section: {name: items}})
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
        ("price_in", "price", "labels.judge.price: unknown key, expected price_in"),
        ('"m"', "3", "labels.judge.model: got 3, expected a valid string"),
        ("2.5", "-1", "labels.judge.price_in: got -1, expected greater than or equal to 0"),
        ("//host", "//me:pass@host", "labels.judge.url: got something else, expected an address"),
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


def test_names_and_values_from_the_file_are_escaped_and_cut(file: Path) -> None:
    long = "x" * 10_000
    file.write_text(SETTINGS + f'[labels]\nsource = "{long}"\n"\\u001b[31m" = 1\n')
    with pytest.raises(ValueError) as caught:
        load_settings(file)
    assert r"labels.\x1b[31m: unknown key" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_are_replaced_as_in_toml(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    changes = ["steering.coeffs = [1, 2]", "steering.baseline_coeffs=[]", "models.base='other'"]
    settings = load_settings(file, changes)
    assert settings.steering.coeffs == [1.0, 2.0]
    assert settings.models.base == "/other"  # of the current folder, not of the file's
    assert settings.models.reasoning == str(file.parent / "reasoning")
    assert settings.steering.random_directions == 2
    file.write_text(SETTINGS + JUDGE)
    judge = load_settings(file, ["labels.judge.attempts=2"]).labels.judge
    assert judge is not None
    assert (judge.attempts, judge.model) == (2, "m")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("models.dtype=float32", r"--set: got 'models.dtype=float32', expected as "),
        ("decoding.seed", "--set: got 'decoding.seed', expected as"),
        ("decoding.sede=3", "decoding.sede: unknown key, expected seed"),
        ("seed=3", "seed: unknown key, expected one of models"),
        ("decoding=3", "decoding: got 3, expected a table"),
        ("decoding.seed=-3", "decoding.seed: got -3, expected"),
    ],
)
def test_changes_that_cannot_be(file: Path, change: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_settings(file, [change])
    assert expected in str(caught.value)


def test_numbers_that_are_none_are_refused(file: Path) -> None:
    """TOML has nan and inf, with which a stage would never be valid."""
    path = file.with_name("nan.toml")
    text = SETTINGS.replace("[-0.5, 0.5, 1.0]", "[0.5, nan]").replace(
        "margin = 0.9", "margin = nan"
    )
    path.write_text(text.replace("temperature = 1.0", "temperature = inf"))
    with pytest.raises(ValueError) as caught:
        load_settings(path)
    for name in ("steering.coeffs.1", "report.margin", "rollouts.temperature"):
        assert f"{name}: got" in str(caught.value)
