"""The judges of sentences: keywords, and a language model with a cache, a price and a key."""

import gzip
import json
import logging
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from chat_server import by_keyword, chat_server, said, sentences_in

from experiments.judges import endpoint
from experiments.judges.command import keyword_judge, main, read_traces, sentence_labels
from experiments.judges.endpoint import EndpointError
from experiments.judges.language_model import Estimate, estimate, llm_judge, plan, within
from experiments.judges.prompt import BEHAVIOURS, CONTEXT, ask, read_answer
from experiments.judges.settings import Judge
from experiments.pipeline.settings import Labels
from experiments.stages.label import label_source, write_labels
from jaxsteer.analysis.labels import LABELS, labels_from_file
from jaxsteer.analysis.sentences import keyword_labels, split_sentences
from jaxsteer.files.jsonl import locked, read_rows

KEY = "sk-planted-0123456789abcdef"
TEXTS = {
    "a": "I add them. Wait, no.\n\nSo 5. " + "It goes on. " * 6,
    "b": "Hmm. Then wait.",
    "empty": "",
}
TRACES = {id: split_sentences(text) for id, text in TEXTS.items()}
EXPECTED = {
    id: ["backtracking" if flag else "deduction" for flag in keyword_labels(found, ("wait",))]
    for id, found in TRACES.items()
}


def judge(url: str, **values: Any) -> Judge:
    given = {"model": "m", "price_in": 1.0, "price_out": 2.0, "timeout": 5.0, "attempts": 3}
    return Judge(url=url, **{**given, "sentences_per_request": 4, **values})


def yes(found: Estimate) -> None:
    pass


@pytest.fixture(autouse=True)
def fast_and_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def traces_file(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in TEXTS.items()))
    return path


def test_behaviours_are_the_labels() -> None:
    assert tuple(BEHAVIOURS) == LABELS


def test_sentences_are_asked_for_in_parts_with_those_before_them() -> None:
    requests = plan(TRACES, judge("http://localhost/v1"))
    assert [(r.trace, r.first, r.stop) for r in requests] == [
        ("a", 0, 3),
        ("a", 3, 6),
        ("a", 6, 9),
        ("b", 0, 2),
    ]
    assert [sentences_in({"messages": r.messages}) for r in requests] == [
        [s.text for s in TRACES[r.trace][r.first : r.stop]] for r in requests
    ]
    shown = [r.messages[1]["content"].split("<sentences>")[0] for r in requests]
    assert shown[0] == shown[3] == ""
    assert shown[2].count("\n") == CONTEXT + 2
    assert "I add them." in shown[1]
    assert "I add them." not in shown[2]
    assert all(label in requests[0].messages[0]["content"] for label in LABELS)


def test_a_sentence_of_several_lines_is_one_line() -> None:
    text = ask(split_sentences("```\nx = 1\n\ny = 2\n```\nSo."), 0, 2)[1]["content"]
    assert "1. ``` x = 1 y = 2 ```\n2. So.\n</sentences>" in text


@pytest.mark.parametrize(
    "text",
    [
        '{"1": "deduction", "2": "adding-knowledge"}',
        '```json\n{"1": "Deduction", "2": "adding_knowledge"}\n```',
        '<think>{"1": "other"}</think>Sure: {"2": " Adding Knowledge ", "1": "DEDUCTION"} Done.',
    ],
)
def test_answers_are_read_however_they_are_dressed(text: str) -> None:
    assert read_answer(text, 2) == ["deduction", "adding-knowledge"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "it has no JSON object"),
        ('{"1": "deduction"', "it has no JSON object"),
        ('{"1": "deduction"}', "expected the keys 1 to 2, found no label for 2"),
        ('{"1": "other", "2": "other", "3": "other"}', "found more labels than sentences"),
        ('{"1": "other", "2": "doubt"}', "sentence 2: 'doubt' is none of the labels"),
        ('{"1": "other", "2": ["other"]}', "is none of the labels"),
        ('{"1":' * 50_000, "it has no JSON object"),
        ('{"1": "other", "2": ' + "[" * 900 + "]" * 900 + "}", "'list' is none of the labels"),
    ],
)
def test_answers_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answer(text, 2)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 500_000,
        "<think></think>" * 200_000,
        '{"a": 1, ' * 500_000,
        '{"a":' * 500_000,
        "{" * 3_000_000,
        '{"1": ' + "[" * 1_000_000,
        '{"1": ' + "9" * 1_000_000,
    ],
    ids="thoughts closed objects nested braces list digits".split(),
)
def test_answers_are_read_in_time_linear_in_their_length(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="it has no JSON object"):
        read_answer(text, 2)
    assert time.monotonic() - started < 5  # .3 s at most on a quiet machine; quadratic takes hours


def test_the_last_object_counts() -> None:
    assert read_answer('{"1": "other"} or rather {"labels": {"1": "deduction"}}', 1) == [
        "deduction"
    ]
    assert read_answer('{"1": "deduction"} {so} {"', 1) == ["deduction"]
    assert read_answer('{"1": "deduction"} <think> never closed', 1) == ["deduction"]


def test_labels_come_in_order_and_are_asked_for_once(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache.jsonl"
    seen: list[Estimate] = []
    with chat_server(by_keyword) as chat:
        found = llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=seen.append)
        assert found == EXPECTED
        assert len(chat.bodies) == len(read_rows(cache)) == 4
        assert (seen[0].requests, seen[0].cached) == (4, 0)
        # The same again, in parts that are known and a trace that is new.
        assert llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=seen.append) == found
        assert len(chat.bodies) == 4
        assert len(seen) == 1
        more = {**TRACES, "c": split_sentences("Wait.")}
        found = llm_judge(more, judge=judge(chat.url), cache=cache, agree=seen.append)
        assert found == {**EXPECTED, "c": ["backtracking"]}
        assert (seen[1].requests, seen[1].cached, len(chat.bodies)) == (1, 4, 5)
        # Another model is another judge.
        llm_judge(TRACES, judge=judge(chat.url, model="n"), cache=cache, agree=yes)
        assert len(chat.bodies) == 9
    assert not any(text in cache.read_text() for text in ("I add them", KEY, "http"))


def test_requests_run_side_by_side_up_to_the_limit(tmp_path: Path) -> None:
    def slow(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.05)
        return by_keyword(body)

    many = {str(i): TRACES["b"] for i in range(12)}
    with chat_server(slow) as chat:
        settings = judge(chat.url, concurrency=3)
        found = llm_judge(many, judge=settings, cache=tmp_path / "c.jsonl", agree=yes)
        assert chat.most_at_once == 3
    assert list(found) == list(many)


def test_failures_on_the_way_do_not_show(tmp_path: Path) -> None:
    bad = [(429, {"Retry-After": "0"}, b""), (500, {}, b""), (200, {}, b"<html>")]

    def flaky(body: dict[str, Any], n: int) -> Any:
        return bad[n % 4] if n % 4 < 3 else by_keyword(body)

    with chat_server(flaky) as chat:
        settings = judge(chat.url, attempts=9, concurrency=1)
        found = llm_judge(TRACES, judge=settings, cache=tmp_path / "c.jsonl", agree=yes)
        assert len(chat.bodies) == 16
    assert found == EXPECTED


def test_a_model_is_told_what_is_wrong_with_its_answer(tmp_path: Path) -> None:
    def at_second(body: dict[str, Any], n: int) -> Any:
        cut = '{"1": "deduction", "2":'
        return by_keyword(body) if len(body["messages"]) > 2 else said(cut, finish="length")

    cache = tmp_path / "c.jsonl"
    with chat_server(at_second) as chat:
        traces = {"b": TRACES["b"]}
        assert llm_judge(traces, judge=judge(chat.url), cache=cache, agree=yes) == {
            "b": EXPECTED["b"]
        }
    told = chat.bodies[1]["messages"]
    assert [m["role"] for m in told] == ["system", "user", "assistant", "user"]
    assert "it was cut at the longest answer" in told[3]["content"]
    row = read_rows(cache)[0]
    assert (row["tokens_in"], row["tokens_out"]) == (200, 40)  # both answers are paid for


def test_one_that_never_answers_well_does_not_lose_the_others(tmp_path: Path) -> None:
    def stubborn(body: dict[str, Any], n: int) -> Any:
        return said("no idea") if sentences_in(body)[0] == "Hmm." else by_keyword(body)

    cache = tmp_path / "c.jsonl"
    with chat_server(stubborn) as chat:
        with pytest.raises(EndpointError, match=r"1 of 4 requests failed.*b, sentences 0\+: 3 ans"):
            llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes)
        assert len(read_rows(cache)) == 3
        chat.answer, before = by_keyword, len(chat.bodies)
        assert llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes) == EXPECTED
        assert len(chat.bodies) == before + 1


def test_a_refusal_stops_everything_at_once(tmp_path: Path) -> None:
    many = {str(i): TRACES["b"] for i in range(50)}
    with chat_server(lambda body, n: (401, {}, b"wrong key")) as chat:
        settings = judge(chat.url, concurrency=2)
        with pytest.raises(EndpointError, match="HTTP 401: wrong key"):
            llm_judge(many, judge=settings, cache=tmp_path / "c.jsonl", agree=yes)
        assert len(chat.bodies) < 10


def test_a_kill_in_the_middle_of_a_line_costs_one_answer(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    with chat_server(by_keyword) as chat:
        llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes)
        cache.write_bytes(cache.read_bytes()[:-10])
        assert llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes) == EXPECTED
        assert len(chat.bodies) == 5


def test_rows_of_a_cache_that_do_not_fit_are_asked_for_again(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    with chat_server(by_keyword) as chat:
        llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes)
        rows = read_rows(cache)
        rows[0]["labels"] = rows[0]["labels"][1:]
        rows[1]["labels"] = 3
        del rows[2]["key"]
        cache.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert llm_judge(TRACES, judge=judge(chat.url), cache=cache, agree=yes) == EXPECTED
        assert len(chat.bodies) == 4 + 3


def test_two_at_one_cache(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    with locked(cache, busy=""), pytest.raises(FileExistsError, match="another process"):
        llm_judge(TRACES, judge=judge("http://localhost:1/v1"), cache=cache, agree=yes)


def test_the_estimate_is_tokens_times_prices() -> None:
    settings = judge("http://localhost/v1")
    requests = plan(TRACES, settings)
    found = estimate(requests, settings)
    size = sum(len(m["content"].encode()) for r in requests for m in r.messages)
    assert found.tokens_in == -(-size // 3)
    assert found.tokens_out == 10 * 11
    assert found.dollars == 0.01
    dear = estimate(requests, judge("http://localhost/v1", price_in=100.0, price_out=1000.0))
    exact = (found.tokens_in * 100.0 + 110 * 1000.0) / 1e6
    assert exact <= dear.dollars < exact + 0.01


def test_nothing_is_asked_before_the_cost_is_agreed_to(tmp_path: Path) -> None:
    with chat_server(by_keyword) as chat:
        settings = judge(chat.url, price_in=1e4)
        with pytest.raises(ValueError, match=r"max_cost: the estimate is \$\d+\.\d\d, and \$0\.00"):
            llm_judge(TRACES, judge=settings, cache=tmp_path / "c.jsonl", agree=within(0.0))
        assert chat.bodies == []


def test_keyword_judge_names_what_the_keywords_flag() -> None:
    assert keyword_judge(TRACES)["b"] == ["backtracking", "backtracking"]
    assert keyword_judge(TRACES, ["wait"])["b"] == ["other", "backtracking"]
    assert keyword_judge(TRACES)["empty"] == []


def test_the_command_by_keywords(traces_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = traces_file.with_name("labels.jsonl")
    assert main(["keywords", str(traces_file), "--out", str(out)]) == 0
    assert labels_from_file(out, TRACES) == keyword_judge(TRACES)
    about = json.loads(out.with_suffix(".about.json").read_text())
    assert about["labels"] == {"other": 8, "backtracking": 3}
    assert "11 sentences of 3 traces: 8 other, 3 backtracking" in capsys.readouterr().out


def test_the_command_asks_before_it_spends(
    traces_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = traces_file.with_name("labels.jsonl")
    with chat_server(by_keyword) as chat:
        command = ["llm", str(traces_file), "--out", str(out), "--url", chat.url, "--model", "m"]
        command += ["--price-in", "2.5", "--price-out", "10"]
        assert main(command) == 1
        assert "pass --yes" in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda question: "n")
        assert main(command) == 1
        assert "nothing was asked" in capsys.readouterr().err
        assert chat.bodies == []
        assert not out.exists()
        assert main([*command, "--yes"]) == 0
        assert labels_from_file(out, TRACES) == EXPECTED
        assert f"{chat.url}" in out.with_suffix(".about.json").read_text()
    assert "2 requests (0 more are in the cache), about " in capsys.readouterr().out


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_planted_key_is_nowhere(
    traces_file: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    def echoes(body: dict[str, Any], n: int) -> Any:
        return by_keyword(body) if status == 200 else (status, {}, f"not with {KEY}!".encode())

    caplog.set_level(logging.DEBUG)
    with chat_server(echoes) as chat:
        out = traces_file.with_name("labels.jsonl")
        command = ["llm", str(traces_file), "--out", str(out), "--url", chat.url, "--model", "m"]
        command += ["--price-in", "1", "--price-out", "1", "--yes", "--attempts", "2"]
        assert main(command) == (0 if status == 200 else 1)
        assert chat.headers[0]["Authorization"] == f"Bearer {KEY}"
        if status != 200:
            with pytest.raises(EndpointError) as caught:
                llm_judge(TRACES, judge=judge(chat.url), cache=out.with_name("c"), agree=yes)
            told = "".join(traceback.format_exception(caught.value, chain=True))
            assert "[key]" in told
            assert KEY not in told + repr(caught.value.__context__) + repr(caught.value.__cause__)
    written = [f for f in traces_file.parent.rglob("*") if f.is_file()]
    assert len(written) >= 2
    assert not [f.name for f in written if KEY.encode() in f.read_bytes()]
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err + caplog.text


def test_a_run_takes_its_labels_from_a_judge(traces_file: Path) -> None:
    folder = traces_file.parent / "labels"
    folder.mkdir()
    with chat_server(by_keyword) as chat:
        labels = Labels(judge=judge(chat.url, max_cost=0.01))
        cache = traces_file.with_name("cache.jsonl")
        assert write_labels(folder, traces_file, labels, cache=cache) == {
            "traces": 3,
            "sentences": 11,
            "backtracking": 2,
        }
        assert label_source(labels) == f"m at {chat.url}"
        assert json.loads((folder / "counts.json").read_text())["source"] == f"m at {chat.url}"
        dear = Labels(judge=judge(chat.url, price_in=1e6, model="n"))
        with pytest.raises(ValueError, match="max_cost"):
            write_labels(folder, traces_file, dear, cache=cache)
    rows = {row["id"]: row for row in read_rows(folder / "sentences.jsonl")}
    assert {id: row["labels"] for id, row in rows.items()} == EXPECTED
    assert [positive for *_, positive in rows["b"]["sentences"]] == [False, True]


def test_traces_of_several_kinds_of_files(tmp_path: Path, traces_file: Path) -> None:
    assert read_traces(traces_file) == TRACES
    rows = [{"question_id": id, "full_response": text} for id, text in TEXTS.items()]
    packed = tmp_path / "traces.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert read_traces(packed) == TRACES
    assert len(sentence_labels(TRACES, EXPECTED)) == 11


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b"{", "not JSON"),
        ("t.json", b"{}", "expected a list of traces"),
        ("t.json.gz", b"[]", "not compressed by gzip"),
        ("t.json", b'[{"id": "a"}]', "trace 0: expected a text 'id' and a text 'text'"),
        ("t.json", b'[{"id": "a", "text": ""}, {"id": "a", "text": ""}]', "'a' is there twice"),
        ("t.jsonl", None, "no such file"),
        ("t.json", None, "no such file"),
    ],
)
def test_traces_that_cannot_be_used(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_traces(tmp_path / name)
