"""jaxsteer.tokenizers.render: templates of strangers, in bounded time and memory."""

import time
from pathlib import Path
from typing import Any

import pytest
from hf_folders import byte_tokenizer, write_tokenizer

from jaxsteer.tokenizers import chat, load_tokenizer, render

MESSAGES = [{"role": "user", "content": "the sum"}, {"role": "assistant", "content": "seven"}]
GOOD = {
    "loops": "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% generation %}{{ messages[1].content }}{% endgeneration %}",
    "names": "{{ bos_token }}{{ messages|tojson }}{{ eos_token }}",
    "blocks": "{%- if add_generation_prompt %}\n    go\n{%- endif %}\n  x",
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path, byte_tokenizer())
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", GOOD)
def test_texts_are_those_of_transformers(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = GOOD[name]
    theirs = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert render(tokenizer, MESSAGES) == theirs


BAD = {
    "raises": ("{{ raise_exception('no\\nway') }}", "TemplateError: no way"),
    "is no template": ("{% for %}", "TemplateSyntaxError"),
    "fails": ("{{ messages[9].content.x }}", "UndefinedError"),
    "escapes": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "never ends": (
        "{% set xs = range(99999)|list %}{% for a in xs %}{% for b in xs %}{% for c in xs %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "it is not done after 1 seconds",
    ),
    "eats memory": ("{{ 'x' * 10**10 }}", "it takes more than 1,073,741,824 bytes of memory"),
    "writes much": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "99,980,001 char"),
}


@pytest.mark.parametrize("name", BAD)
def test_templates_that_cannot_be_are_one_line(
    tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(tokenizer_with(tokenizer, GOOD["names"]), MESSAGES)  # the process runs
    monkeypatch.setattr(chat, "SECONDS", 1.0 if name == "never ends" else 60.0)
    template, message = BAD[name]
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:
        render(tokenizer_with(tokenizer, template), MESSAGES)
    assert f"{tokenizer.name_or_path}: chat template: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if name == "never ends":
        assert time.monotonic() - started < 10
    # The next one is not troubled by it.
    assert render(tokenizer_with(tokenizer, "{{ messages[1].content }}"), MESSAGES) == "seven"


def tokenizer_with(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_one_of_several_templates(tokenizer: Any) -> None:
    tokenizer.chat_template = {"tool_use": "b", "default": "a"}
    assert render(tokenizer, MESSAGES) == "a"


def test_loading_begins_what_renders_where_there_is_a_template(tmp_path: Path) -> None:
    """It imports transformers while this process does."""
    chat.stop()
    write_tokenizer(tmp_path, byte_tokenizer())
    load_tokenizer(tmp_path)
    assert not chat._running
    (tmp_path / "chat_template.jinja").write_text("{{ messages[1].content }}")
    tokenizer = load_tokenizer(tmp_path)
    (begun,) = chat._running.values()
    assert render(tokenizer, MESSAGES) == render(tokenizer, MESSAGES) == "seven"
    assert list(chat._running.values()) == [begun]
    begun.kill()
    begun.wait()
    assert render(tokenizer, MESSAGES) == "seven"  # by another one


def test_one_that_cannot_begin_is_told_when_a_text_is_wanted(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.stop()
    monkeypatch.setattr(chat.sys, "executable", "/no/such/python")
    chat.begin()
    with pytest.raises(ValueError, match="the process that renders it has ended"):
        render(tokenizer_with(tokenizer, GOOD["names"]), MESSAGES)
