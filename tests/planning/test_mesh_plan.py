"""planning.mesh_plan: what fits where, and how long it takes; figures of chips by their names."""

import json
import math
import re
from dataclasses import replace

import jax.numpy as jnp
import oracle
import pytest

from jaxsteer.checkpoints.checkpoint import save
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.decoding import memory
from jaxsteer.decoding.memory import program_bytes
from jaxsteer.planning import chips
from jaxsteer.planning import mesh_plan as plan
from jaxsteer.planning.chip_memory import capture_bytes
from jaxsteer.planning.chips import TOPOLOGIES, Chip, Topology, find_topology
from jaxsteer.planning.mesh_plan import SWEEPS, Work, read_config
from jaxsteer.planning.mesh_plan import plan as make
from jaxsteer.planning.roofline import Machine, decode_seconds, prefill_operations, step_seconds
from jaxsteer.sweeps.chunk_sizes import chunk_shape

LLAMA_8B = LlamaConfig.llama31_8b()
LAYERS = 2  # are enough where only shapes are counted
SHORT = replace(LLAMA_8B, n_layers=LAYERS)


@pytest.mark.parametrize(
    ("name", "kind", "count", "shape"),
    [
        ("v4-8", "TPU v4", 4, "v4:2x2x1"),  # cores, two to a chip
        ("v5p-8", "TPU v5p", 4, "v5p:2x2x1"),
        ("v5p-16", "TPU v5p", 8, "v5p:2x2x2"),
        ("v5e-4", "TPU v5e", 4, "v5e:2x2"),
        ("v5e-8", "TPU v5e", 8, "v5e:2x4"),
        ("V5LitePod-8", "TPU v5e", 8, "v5e:2x4"),
        ("v5e-16", "TPU v5e", 16, "v5e:4x4"),
        ("v6e-4", "TPU v6e", 4, "v6e:2x2"),
        ("v6e-16", "TPU v6e", 16, "v6e:4x4"),
        ("H100", "NVIDIA H100", 1, None),
        ("h200-8", "NVIDIA H200", 8, None),
    ],
)
def test_names_that_people_use(name, kind, count, shape):
    found = find_topology(name)
    assert (found.chip.name, found.chips, found.shape) == (kind, count, shape)


def test_shapes_hold_as_many_chips_as_the_names_say():
    for topology in TOPOLOGIES.values():
        if topology.shape:
            sizes = topology.shape.partition(":")[2].split("x")
            assert math.prod(map(int, sizes)) == topology.chips, topology


def test_an_unknown_name_lists_those_that_are():
    with pytest.raises(ValueError, match=r"got 'v9-8', expected one of v4-8, .*h200-8, here"):
        find_topology("v9-8")


class Device:
    def __init__(self, kind, **stats):
        self.device_kind, self.stats = kind, stats

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("TPU v5 lite", chips.V5E), ("TPU v5", chips.V5P), ("TPU v6 lite", chips.V6E)],
)
def test_this_machine_is_known_by_its_devices(monkeypatch, kind, expected):
    monkeypatch.setattr(chips.jax, "devices", lambda: [Device(kind)] * 4)
    assert find_topology("this machine") == Topology("here", expected, 4)
    monkeypatch.setattr(chips.jax, "devices", lambda: [Device(kind, bytes_limit=9)])
    assert find_topology("here") == Topology("here", replace(expected, memory=9), 1)


def test_a_machine_that_nobody_publishes_is_measured(monkeypatch):
    monkeypatch.setattr(chips.jax, "devices", lambda: [Device("toaster", bytes_limit=7)])
    # With few passes, for somebody waits: enough for a bound, not for a benchmark.
    monkeypatch.setattr(chips, "read_bandwidth", lambda *, passes: 2e9 if passes < 5 else None)
    monkeypatch.setattr(chips, "matrix_rate", lambda *, products: 3e9 if products < 5 else None)
    chip = find_topology("here").chip
    assert (chip.name, chip.memory, chip.bandwidth, chip.rate) == ("toaster", 7, 2e9, 3e9)
    monkeypatch.setattr(chips.jax, "devices", lambda: [Device("cpu")] * 4)
    monkeypatch.setattr(chips, "_physical_bytes", lambda: 80 * 10**9)
    chip = find_topology("here").chip
    assert (chip.memory, chip.bandwidth, chip.rate) == (20 * 10**9, 0.5e9, 0.75e9)


def test_a_plan_takes_of_a_cpu_what_a_sweep_does(monkeypatch):
    """Whatever the weights are: here they alone are more than that."""
    chip = replace(chips.V5E, name="cpu", memory=30 * 10**9, share=memory.CPU_BYTES)
    found = make(SHORT, Topology("here", chip, 1), Work(rows=10**6, prompt=64, new=64))
    program = found.memory.total - found.memory.weights
    assert found.memory.weights > memory.CPU_BYTES
    assert 0.9 * memory.USABLE * memory.CPU_BYTES < program < memory.USABLE * memory.CPU_BYTES


def test_the_floor_of_a_step_on_a_mesh():
    """Twice the chips, half of what each reads and computes; then what they send each other."""
    model = oracle.random_model(oracle.SHALLOW)
    machine = Machine(bandwidth=1e3, rate=1e6, link=1e5)
    alone = step_seconds(model, machine, rows=8, tokens=5)
    assert step_seconds(model, machine, rows=16, tokens=5, data=2) == alone
    sums = 2 * oracle.SHALLOW.n_layers + 1
    sent = sums * 2 * (1 / 2) * 8 * oracle.SHALLOW.d_model * 4
    shared = step_seconds(model, machine, rows=8, tokens=5, tensor=2)
    assert shared == pytest.approx(alone / 2 + sent / 1e5)


def test_figure_3_on_an_h200_as_it_was_measured():
    """27.7 s with nothing left to compile, each cell with its prompts for itself: RESULTS.md."""
    found = make(LLAMA_8B, find_topology("h200"), SWEEPS["figure3"])
    assert found.fits
    sizes = {"rows": 320, "prompt": 128, "steps": 1500}
    private = decode_seconds(found.model, found.topology.chip.machine, **sizes)
    prompts = prefill_operations(found.model, rows=20, prompt=128) / found.topology.chip.rate
    measured = (private + prompts) * plan.MEASURED_OVER_FLOOR
    assert measured == pytest.approx(27.7, rel=0.02)
    assert 0.8 * (private + prompts) < found.seconds() < private


def test_rows_that_share_a_prompt_hold_and_read_it_once():
    """Twice the prompts hold and read one prompt more; the activations that are kept add up."""
    one = Work(rows=1000, prompt=1536, new=512, prompts=1)
    found, two = (make(LLAMA_8B, find_topology("h200"), replace(one, prompts=n)) for n in (1, 2))
    assert found.fits
    assert not make(LLAMA_8B, find_topology("h200"), replace(one, prompts=None)).fits
    prompt = 1536 * 32 * 2 * 8 * 128 * 2
    assert found.memory.cache == 1000 * 513 * prompt // 1536 + prompt
    assert found.memory.temporaries > 0
    assert two.memory.cache - found.memory.cache == prompt
    read = prompt / found.topology.chip.bandwidth
    assert two.step_seconds() - found.step_seconds() == pytest.approx(read)
    captured = capture_bytes(LLAMA_8B, "bfloat16", tokens=512, layers=32, directions=8)
    assert captured == 512 * (32 * 8 * 4 + 4)
    more = plan.footprint(found.model, replace(found.work, captured=captured))
    assert more.total - found.memory.total == 1000 * captured
    with pytest.raises(ValueError, match="capture: got 33 layers, expected 1 to 32"):
        capture_bytes(LLAMA_8B, "bfloat16", tokens=512, layers=33)


def test_weights_and_cache_are_what_a_chip_holds():
    found = make(SHORT, find_topology("v5e-8"), Work(rows=64, prompt=128, new=128), mesh=(2, 4))
    count = 2 * SHORT.vocab_size * 4096 + LAYERS * (
        4096 * (2 * 32 + 2 * 8) * 128 + 3 * 4096 * 14336
    )
    norms = (2 * LAYERS + 1) * 4096
    assert found.memory.weights == 2 * (count // 4 + norms)
    assert found.memory.cache == 32 * 256 * LAYERS * 2 * (8 // 4) * 128 * 2


def test_heads_that_are_repeated_are_counted():
    config = replace(LlamaConfig.r1_distill_qwen_1_5b(), n_layers=LAYERS)  # two key/value heads
    work = Work(rows=8, prompt=128, new=128)
    twice = make(config, find_topology("v5e-4"), work, mesh=(1, 4)).memory.cache
    assert twice == 8 * 256 * LAYERS * 2 * 1 * 128 * 2


@pytest.mark.parametrize("topology", ["v5e-8", "v4-8", "h100", "h200-2"])
def test_the_largest_batch_fits_and_one_more_does_not(topology):
    work = Work(rows=10**6, prompt=512, new=1024)
    found = make(LLAMA_8B, find_topology(topology), work)
    room = plan.room_for_programs(found.topology.chip, found.memory.weights)
    assert room < (1 - plan._MARGIN) * found.topology.chip.memory - found.memory.weights + 1

    def total(rows):
        one = plan.footprint(found.model, replace(work, rows=rows))
        return one.total - one.weights

    assert not found.fits
    assert found.memory == plan.footprint(found.model, found.at_once)
    assert total(found.largest) <= room < total(found.largest + found.data)
    assert found.largest % found.data == 0
    assert found.batch <= found.largest
    # Batches are of equal size, and none is too many.
    count = -(-work.rows // found.batch)
    assert (count - 1) * found.batch < work.rows <= count * found.batch


def test_a_sweep_of_which_no_cell_fits_splits_its_prompts():
    small = Topology("small", replace(chips.V5E, memory=int(3.3e9)), 1)
    found = make(SHORT, small, SWEEPS["figure3"])
    assert 1 < found.largest < 20
    assert found.at_once.cells == 1
    assert found.batch == found.at_once.prompts <= found.largest
    assert found.parts == 16 * math.ceil(20 / found.batch)


@pytest.mark.parametrize("topology", ["v5e-4", "v5p-8", "v4-256", "h100"])
def test_a_sweep_runs_in_the_chunks_that_it_would_choose(topology):
    """As many cells as fit, of all prompts; every topology's chunk is one of `sweep`."""
    work = replace(SWEEPS["figure3"], rows=31 * 20, new=30_000)  # cells that nothing divides
    found = make(SHORT, find_topology(topology), work)
    cells, prompts = found.at_once.cells, found.at_once.prompts
    room = plan.room_for_programs(found.topology.chip, found.memory.weights)

    def fits(C, B):
        one = plan.footprint(found.model, replace(work, rows=C * B, prompts=B))
        return one.total - one.weights <= room

    assert (cells, prompts) == chunk_shape(31, 20, fits, found.data)
    assert found.batch == cells * prompts
    assert found.parts == -(-31 // cells)
    step = found.seconds() / found.parts / work.new
    assert 0.8 * found.step_seconds() < step < 1.2 * found.step_seconds()


def test_the_mesh_is_the_fastest_that_fits():
    work = Work(rows=64, prompt=128, new=128)
    best = make(LLAMA_8B, find_topology("v5e-8"), work)
    others = [make(LLAMA_8B, find_topology("v5e-8"), work, mesh=(8 // t, t)) for t in (1, 2, 4, 8)]
    assert others[0].largest == 0  # 16 GB of weights on 16 GB
    fitting = [one for one in others if one.largest]
    assert best.seconds() == min(one.seconds() for one in fitting)


def test_what_does_not_fit_at_all():
    small = replace(chips.V5E, memory=10**9)
    found = make(SHORT, Topology("small", small, 1), Work(rows=1, prompt=1, new=1))
    assert found.largest == 0
    assert not found.fits
    assert found.at_once.rows == 1  # which is what the figures are of
    assert any(line.startswith("does not fit") for line in plan.lines(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": (3, 2)}, "mesh: got 3 × 2, expected 8 chips"),
        ({"mesh": (0, 8)}, "mesh: got 0 × 8, expected 8 chips"),
        ({"work": Work(rows=0, prompt=1, new=1)}, "rows: got 0, expected at least 1"),
        ({"config": replace(LlamaConfig.llama32_3b(), n_layers=1), "mesh": (1, 8)}, None),
        (
            {"config": replace(SHORT, d_mlp=SHORT.d_mlp + 1), "mesh": (1, 8)},
            "tensor: got 8, expected one",
        ),
    ],
)
def test_what_cannot_be_planned(options, message):
    asked = {"config": SHORT, "work": Work(rows=8, prompt=64, new=64)} | options
    config, work = asked.pop("config"), asked.pop("work")
    if message is None:
        make(config, find_topology("v5e-8"), work, **asked)
        return
    with pytest.raises(ValueError, match=message):
        make(config, find_topology("v5e-8"), work, **asked)


def test_the_formula_is_the_one_that_sizes_chunks():
    found = make(SHORT, find_topology("v6e-4"), Work(rows=32, prompt=128, new=64), mesh=(1, 4))
    needed = program_bytes(found.model, rows=32, prompt_rows=32, prompt_length=128, new_tokens=64)
    assert found.memory.cache + found.memory.temporaries == needed


def test_models_by_preset_checkpoint_and_published_config(tmp_path):
    assert read_config("llama31_8b") == LLAMA_8B
    save(tmp_path / "model", oracle.random_model(oracle.SHALLOW))
    assert read_config(str(tmp_path / "model")) == oracle.SHALLOW
    (tmp_path / "hf").mkdir()
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(LLAMA_8B.to_hf()))
    assert read_config(str(tmp_path / "hf")) == read_config(str(file)) == LLAMA_8B


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a folder, a config.json, or one of llama2_7b"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"model_type": "bert"}', 'model_type: got "bert"'),
    ],
)
def test_what_is_no_model(tmp_path, capsys, content, message):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    assert plan.main([str(file), "v5e-8"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_says_it_all(tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SHORT.to_hf()))
    assert plan.main([str(file), "v5e-8", "--sweep", "figure3"]) == 0
    text = capsys.readouterr().out
    assert "v5e-8: 8 chips TPU v5e" in text
    assert "320 rows, prompt 128, new 1500; each chip, by calculation:" in text
    for name in ("mesh", "weights", "cache", "temporaries", "headroom", "largest batch that fits"):
        assert name in text
    assert "sweep figure3: at least" in text
    shared = ["--rows", "99999", "--prompts", "1", "--capture", "2", "--directions", "4"]
    assert plan.main([str(file), "h100", *shared]) == 0
    assert "of 99999 rows, prompt 512" in capsys.readouterr().out
    assert plan.main([str(file), "v5e-8", "--sweep", "figure3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["chips"], facts["rows"]) == (8, 320)
    assert 0 < facts["weights_bytes"] < facts["chip_bytes"]
    assert facts["seconds"] > facts["step_seconds"] > 0
    assert plan.main([str(file), "h100", "--compile"]) == 2
    assert "got h100, expected a topology of TPUs" in capsys.readouterr().err
    assert plan.main([str(file), "v5e-8", "--rows", "99999", "--mesh", "4x2"]) == 0
    text = capsys.readouterr().out
    (rows,) = re.findall(r"(\d+) of 99999 rows, prompt 512", text)
    (parts,) = re.findall(r"the 99999 run in (\d+) parts", text)
    assert int(parts) > 1
    assert (int(parts) - 1) * int(rows) < 99999 <= int(parts) * int(rows)
    for wrong in ("8", "2x", "ax4"):
        with pytest.raises(SystemExit):
            plan.main([str(file), "v5e-8", "--mesh", wrong])
        assert f"got {wrong}, expected DATAxTENSOR, as in 2x4" in capsys.readouterr().err


def test_a_chip_of_float32():
    """Twice the bytes, on a chip that is made up."""
    chip = Chip(name="made up", memory=10**12, bandwidth=1e12, rate=1e15, link=1e12)
    work = Work(rows=8, prompt=64, new=64)
    half, full = (
        make(SHORT, Topology("x", chip, 1), work, dtype=dtype)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert full.memory.weights == 2 * half.memory.weights
    assert full.memory.cache == 2 * half.memory.cache
