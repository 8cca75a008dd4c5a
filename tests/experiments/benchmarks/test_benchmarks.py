import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import oracle
import pytest
from quick_compile import xla_flags

import jaxsteer
from experiments.benchmarks import (
    analyses,
    capture,
    cold_start,
    cpu,
    decode,
    distinct,
    learned,
    load,
    profile,
    score,
)
from experiments.benchmarks.machine import Compilations
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.llama.model import init
from jaxsteer.llama.packing import pack
from jaxsteer.planning.roofline import (
    Machine,
    decode_seconds,
    prefill_operations,
    step_seconds,
    weights_read,
)

ROOT = Path(__file__).parents[3]
# oracle.SHALLOW: D 16, F 24, N 4, K 2, H 4, V 61, two layers.
LAYER = 2 * 16 + 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 24
READ = 2 * LAYER + 16 + 16 * 61  # the final norm and the head; not the embedding


@pytest.fixture(scope="module")
def model():
    return oracle.random_model(oracle.SHALLOW)


def test_weights_read_leaves_out_the_embedding(model):
    assert weights_read(model) == (READ, 4 * READ)
    assert weights_read(pack(model)) == (READ, 4 * READ)


def test_floor_of_a_step_adds_reading_weights_and_cache(model):
    machine = Machine(bandwidth=1e3, rate=1e30)
    cache = 3 * 5 * 2 * (2 * 2 * 4) * 4  # rows, tokens, layers, keys and values, bytes
    assert step_seconds(model, machine, rows=3, tokens=5) == pytest.approx((4 * READ + cache) / 1e3)


def test_floor_of_a_step_counts_operations_where_they_take_longer(model):
    machine = Machine(bandwidth=1e30, rate=1e3)
    attention = 3 * 5 * 2 * 4 * (2 * 4) * 2  # rows, tokens, layers, heads, widths of k and v
    assert step_seconds(model, machine, rows=3, tokens=5) == pytest.approx(
        (2 * 3 * READ + attention) / 1e3
    )


def test_floor_of_a_run_is_the_sum_of_its_steps(model):
    machine = Machine(bandwidth=1e3, rate=1e9)
    steps = [step_seconds(model, machine, rows=2, tokens=7 + n) for n in range(1, 6)]
    total = decode_seconds(model, machine, rows=2, prompt=7, steps=5)
    assert total == pytest.approx(sum(steps))


def test_operations_of_a_prefill(model):
    head = 16 * 61
    attention = 2 * 2 * 2 * 4 * 4 * 10**2 / 2
    assert prefill_operations(model, rows=3, prompt=10) == pytest.approx(
        3 * (2 * (READ - head) * 10 + 2 * head + attention)
    )


def test_compilations_are_counted():
    compilations = Compilations()
    double = jax.jit(lambda x: 2 * x)
    double(jnp.arange(3))
    double(jnp.arange(3) + 1)
    before = compilations.count
    assert before >= 1
    double(jnp.arange(4))
    assert compilations.count == before + 1 + 1  # `arange` of another length compiles, too
    assert compilations.seconds > 0


def test_decode_benchmark_prints_a_line_for_each_case(capsys, monkeypatch):
    monkeypatch.setattr(decode, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(decode, "matrix_rate", lambda: 1e11)
    monkeypatch.setattr(decode.compile_cache, "turn_off", lambda: None)
    only = ["greedy", "capture, one"]
    assert decode.main(["--preset", "tiny", "--case", "2,16,4", "--only", *only]) == 0
    machine, *cases = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert machine["read_GB_s"] == 10
    assert [case["case"] for case in cases] == ["greedy", "capture, one layer raw"]
    added = cases[1]["step_ms"] / cases[0]["step_ms"] - 1
    assert cases[1]["added_share"] == pytest.approx(added, rel=0.1, abs=0.1)
    for case in cases:
        assert case["ratio"] == pytest.approx(case["step_ms"] / case["floor_ms"], rel=1e-2)
        assert case["compilations"] == 1
        assert case["tokens_per_s"] == pytest.approx(2e3 / case["step_ms"], rel=1e-2)


def test_capture_benchmark_times_the_pass_and_its_parts(capsys, monkeypatch):
    monkeypatch.setattr(capture, "matrix_rate", lambda: 1e8)
    monkeypatch.setattr(capture.compile_cache, "turn_off", lambda: None)
    assert capture.main(["--preset", "tiny", *"--rows 2 --length 64 --batches 4".split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["offsets"], found["labels"], found["matrix_TFLOP_s"]) == (35, 7, 0.0)
    shares = [
        found[name]["share_of_matrix_rate"] / found[name]["tokens_per_s"]
        for name in ("forward", "sums", "pipeline")
    ]
    # Each is as many operations a token.
    assert shares == pytest.approx([shares[0]] * 3, rel=0.02)
    assert all(found[name]["tokens_per_s"] > 0 for name in ("forward", "pipeline"))


def test_learning_benchmark_times_a_step_and_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr(learned, "matrix_rate", lambda: 1e8)
    monkeypatch.setattr(learned.compile_cache, "turn_off", lambda: None)
    sizes = "--rows 2 --length 64 --directions 2 --steps 1".split()
    assert learned.main(["--preset", "tiny", *sizes]) == 0
    found = json.loads(capsys.readouterr().out)
    # Seconds are printed to four digits.
    assert found["tokens_per_s"] == pytest.approx(2 * 2 * 64 / found["seconds_a_step"], rel=1e-3)
    assert found["expected_GB_a_direction"] >= 0


def test_score_benchmark_counts_the_head_of_every_token(capsys, monkeypatch):
    monkeypatch.setattr(score, "matrix_rate", lambda: 1e8)
    monkeypatch.setattr(score.compile_cache, "turn_off", lambda: None)
    assert score.main(["--preset", "tiny", *"--texts 3 --length 32 --rows 2".split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["texts"], found["length"], found["rows"]) == (3, 32, 2)
    config = LlamaConfig.tiny()
    whole = prefill_operations(pack(init(config)), rows=1, prompt=32)
    whole += 2 * 31 * config.vocab_size * config.d_model
    seconds = 32 / found["tokens_per_s"]
    assert found["share_of_matrix_rate"] * 1e8 * seconds == pytest.approx(whole, rel=0.02)


@pytest.fixture(scope="module")
def both_engines():
    model = oracle.random_model(replace(oracle.SHALLOW, d_model=32, head_dim=8))
    return model, oracle.torch_twin(model)


def test_cpu_benchmark_finds_equal_tokens(both_engines):
    found = cpu.compare(*both_engines, layer=1, rows=2, prompt=8, steps=5, repeats=1)
    assert found["same_tokens"]
    faster = found["transformers_ms"] / found["jaxsteer_ms"]
    assert found["times_faster"] == pytest.approx(faster)


def test_cpu_benchmark_knows_what_the_products_take(both_engines):
    model, _ = both_engines
    sizes = {"rows": 2, "prompt": 8, "steps": 4}
    least = cpu.least_ms(model, Machine(math.inf, 1e9), **sizes)
    weights = sum(x.size for x in jax.tree.leaves(model.params["layers"]) if x.ndim > 1)
    # Two operations for each weight of the layers, row and token of prompt and steps.
    assert least * 4 > 2 * 2 * (8 + 4) * weights / 1e9 * 1e3
    assert least == pytest.approx(2 * cpu.least_ms(model, Machine(math.inf, 2e9), **sizes))


def test_cpu_benchmark_notices_unsteered_tokens(both_engines, monkeypatch):
    monkeypatch.setattr(cpu, "add", lambda *args, **options: None)
    found = cpu.compare(*both_engines, layer=1, rows=2, prompt=8, steps=5, repeats=1)
    assert not found["same_tokens"]


def test_cpu_benchmark_compares_sampling_to_greedy():
    found = cpu.compare_sampling(LlamaConfig.tiny(), rows=2, prompt=8, steps=3, repeats=1)
    assert found["vocabulary"] == LlamaConfig.tiny().vocab_size
    assert found["times_greedy"] == pytest.approx(found["top_p_ms"] / found["greedy_ms"])


def test_profile_says_that_it_needs_a_gpu(capsys):
    assert profile.main(["--preset", "tiny"]) == 2
    assert "NVIDIA GPUs only" in capsys.readouterr().err


def test_analyses_benchmark_times_each_of_them(capsys):
    few = "--texts 2 --length 64 --sensitivity-layers 2 --sensitivity-texts 1"
    assert analyses.main(["--preset", "tiny", *few.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["projection_tokens_per_s"] > 0
    for name in ("lens", "projections", "sensitivity"):
        assert found[name]["first_s"] >= found[name]["again_s"] >= 0


def test_distinct_benchmark_steers_each_row_by_its_configuration(capsys, monkeypatch):
    monkeypatch.setattr(distinct, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(distinct, "matrix_rate", lambda: 1e11)
    monkeypatch.setattr(distinct.compile_cache, "turn_off", lambda: None)
    few = "--preset tiny --rows 6 --prompt 8 --steps 3 --counts 1 6 --repeats 1"
    assert distinct.main([*few.split(), "--engine", "jaxsteer"]) == 0
    _, *cases = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(case["operations"], case["configurations"]) for case in cases] == [
        ("none", 0), ("add", 1), ("add", 6), ("all operations", 1), ("all operations", 6),
    ]  # fmt: skip
    assert cases[2]["compilations"] == 0  # other data of the program before
    ratio = cases[2]["step_ms"] / cases[0]["step_ms"]
    assert cases[2]["times_none"] == pytest.approx(ratio, rel=1e-2)
    steering = distinct.steer(LlamaConfig.tiny(), rows=6, count=3, operations=True)
    assert steering.layer[:, 0].tolist() == 2 * [0, 1, 2]
    assert steering.vector.shape == (6, LlamaConfig.tiny().d_model)


def test_distinct_benchmark_hooks_each_layer_for_transformers():
    sizes = {"rows": 4, "prompt": 8, "steps": 3, "counts": [4]}
    cases = list(distinct.measure_transformers(LlamaConfig.tiny(), **sizes))
    assert [case["configurations"] for case in cases] == [0, 4]
    assert cases[1]["times_none"] == pytest.approx(cases[1]["step_ms"] / cases[0]["step_ms"])


def test_a_folder_beside_its_checkpoint(tmp_path, capsys, monkeypatch):
    def here(module, *argv):  # in place of processes, which import JAX for seconds each
        if module == "weights.convert":
            return jaxsteer.convert(*argv)
        return json.dumps(load.load_once(Path(argv[-1])))

    monkeypatch.setattr(load, "command", here)
    assert load.main(["--work", str(tmp_path), "--preset", "tiny"]) == 0
    _, *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    asked = [("folder", True), ("folder", False), ("checkpoint", True), ("checkpoint", False)]
    assert [(row["kind"], row["cold"]) for row in rows] == asked
    assert all(row["seconds"] > 0 and row["device"] == "cpu" for row in rows)
    expected = rows[1]["seconds"] / rows[3]["seconds"]
    assert last["folder_over_checkpoint_warm"] == pytest.approx(expected, abs=1e-3)


def test_a_process_from_its_start_to_the_last_token(tmp_path, capsys, monkeypatch):
    def here(module, *argv, **environment):  # in place of processes
        if module == "weights.convert":
            return jaxsteer.convert(*argv)
        path, started = argv[-2:]
        return json.dumps(cold_start.run_once(Path(path), "tiny", float(started)))

    monkeypatch.setattr(load, "command", here)
    monkeypatch.setattr(cold_start, "command", here)
    given = ["--work", str(tmp_path), "--preset", "tiny", "--kinds", "checkpoint"]
    assert cold_start.main(given) == 0
    *_, cold, kept = map(json.loads, capsys.readouterr().out.splitlines())
    assert [cold["case"], kept["case"]] == ["cold", "kept"]
    parts = ("imported_s", "loaded_and_compiled_s", "sweep_s")
    assert cold["seconds"] == pytest.approx(sum(cold[part] for part in parts), rel=1e-2)
    assert cold["rows"] == 12  # 4 cells × 3 prompts
    assert kept["compilations"] < cold["compilations"]  # in one process: what ran before is there


def test_steps_on_two_devices():
    """The command of two GPUs, on two devices of a CPU, with weights made where they belong."""
    code = (
        "import sys\n"
        "from experiments.benchmarks import two_gpus\n"
        "from jaxsteer.planning import chips\n"
        "two_gpus.this_machine = lambda: chips.find_topology('h200-2')\n"
        "sys.exit(two_gpus.main(sys.argv[1:]))\n"
    )
    asked = ["--only", "step", "--preset", "tiny", "--case", "2,8,3", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(2), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    _, *cases, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["case"] == "done"
    assert [case["mesh"] for case in cases] == ["one", "1x2", "2x1"]
    assert all(case["step_ms"] > 0 and case["prefill_floor_s"] > 0 for case in cases)
