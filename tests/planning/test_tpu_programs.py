"""A sweep compiled for TPUs that are not here: what runs there is what is tested here."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import gpu_aot, hlo, tpu_aot
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.llama import cudnn_attention, should_copy_prompts
from jaxsteer.planning import tpu_programs as aot
from jaxsteer.planning.chips import find_topology
from jaxsteer.planning.mesh_plan import Work, plan

ROOT = Path(__file__).parents[2]
# Two layers, narrow, of a shape that eight chips share: a key/value head each.
NARROW = LlamaConfig(
    vocab_size=4096,
    d_model=1024,
    d_mlp=2048,
    n_layers=2,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    max_positions=4096,
)
# A layer's keys do not fit into a chip's fast memory, where small caches are kept throughout.
WORK = Work(rows=1280, prompt=128, new=896, prompts=32)

LOOP = """HloModule program

%body.1 (p: (f32[4,8], s32[])) -> (f32[4,8], s32[]) {
  %p = (f32[4,8]{1,0}, s32[]) parameter(0)
  %cache = f32[4,8]{1,0} get-tuple-element(%p), index=0
  %reduced = f32[4,2]{1,0} all-reduce(%x), to_apply=%add
  %updated = f32[4,8]{1,0} fusion(%cache, %reduced), kind=kLoop, calls=%in_place
  %near = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]) copy-start(%updated)
  %read = f32[4,8]{1,0:S(1)} copy-done(%near)
  %changed = f32[4,8]{1,0} WRITES
  ROOT %result = (f32[4,8]{1,0}, s32[]) tuple(%changed, %i)
}

%in_place (a: f32[4,8], b: f32[4,2]) -> f32[4,8] {
  %inner = f32[4,8]{1,0} select(%a, %b, %c)
  ROOT %dus = f32[4,8]{1,0} dynamic-update-slice(%a, %b, %i, %j)
}

%chosen (a: f32[4,8]) -> f32[4,8] {
  ROOT %select.1 = f32[4,8]{1,0} select(%a, %a, %a)
}

%cond (p: (f32[4,8], s32[])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %outside = f32[4,8]{1,0} copy(%a)
  %loop = (f32[4,8]{1,0}, s32[]) while(%t), condition=%cond, body=%body.1
}
"""


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("dynamic-update-slice(%updated, %x, %i, %j)", {}),
        ("copy(%updated)", {"copy": 1}),
        ("fusion(%updated), kind=kLoop, calls=%chosen", {"fusion of select": 1}),
        ("copy-done(%other)", {"written back": 1}),
    ],
)
def test_what_a_loop_writes_anew(line, written):
    text = LOOP.replace("WRITES", line)
    [loop] = hlo.loops(text)
    assert hlo.rewritten(text, loop, elements=32) == written
    assert hlo.rewritten(text, loop, elements=33) == {}
    assert hlo.collectives(loop) == {("all-reduce", (4, 2)): 1}


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(aot, "available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'jaxsteer\[tpu\]'"):
        aot.devices(find_topology("v5e-8"))
    assert tpu_aot.main([]) == 2


def test_gpus_have_no_compiler_here():
    with pytest.raises(ValueError, match="got h100, expected one of TPUs"):
        aot.devices(find_topology("h100"))


def test_a_program_that_is_too_large_is_a_problem(monkeypatch):
    """And so are caches that are written anew and all-reduces that are too many."""
    found = plan(NARROW, find_topology("v5e-8"), WORK, mesh=(1, 8))
    text = LOOP.replace("WRITES", "copy(%updated)").replace("f32[4,2]", "f32[4,1024]")
    text = text.replace("f32[4,8]", "f32[1280,1024,1,128]")
    facts, problems = tpu_aot.check_loop(found, text)
    assert facts == {"all_reduces": 1, "whole_caches_written": 1}
    assert problems == [
        "all-reduces of the stream: 1, expected 5",
        "writes a whole cache in each step: copy × 1",
    ]


def test_kernels_of_a_gpu_are_those_that_the_rule_for_copies_asks_for():
    """`gpu_aot`, whose compiler is not installed here; and how kernels are told in a loop."""
    for case in gpu_aot.CASES:
        copies = should_copy_prompts(
            cudnn_attention, prompt_length=case.prompt, new_tokens=case.new
        )
        decodes = copies or case.cells == 1
        assert case.kernels == {gpu_aot.DECODING if decodes else gpu_aot.MERGED}
    call = 'custom-call(%updated), custom_call_target="__cudnn$fmhaSoftmax", api_version=2'
    (loop,) = hlo.loops(LOOP.replace("WRITES", call))
    assert [one.target for one in loop if one.target] == [gpu_aot.MERGED]


def no_compiler() -> str | None:
    """Why nothing can be compiled here, if it cannot: libtpu is built for one platform."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "there is no libtpu for this platform"
    return None


@pytest.mark.skipif(no_compiler() is not None, reason=str(no_compiler()))
def test_a_sweep_compiled_for_eight_chips():
    """The kernel for prompts, two all-reduces a layer, caches in place, memory by the formula.

    And what `plan --compile` says of plain rows.
    """
    code = (
        "from experiments.benchmarks import tpu_aot\n"
        "from jaxsteer.planning import find_topology\n"
        "from jaxsteer.planning.mesh_plan import Work, compiled_footprint, plan\n"
        "from test_tpu_programs import NARROW, WORK\n"
        "found = tpu_aot.check('narrow', NARROW, 'v5e-8', 'sweep', WORK)\n"
        "print(found.facts)\n"
        "assert found.problems == [], found.problems\n"
        "assert found.facts['all_reduces'] == 2 * 2 + 1\n"
        "work = Work(rows=64, prompt=128, new=64)\n"
        "made = plan(NARROW, find_topology('v5e-8'), work, mesh=(1, 8))\n"
        "memory, _ = compiled_footprint(made)\n"
        "assert 1 < memory.total / (made.memory.weights + made.memory.cache) < 2, memory\n"
    )
    path = os.pathsep.join(
        [
            str(ROOT),
            str(ROOT / "tests" / "planning"),
            str(ROOT / "tests" / "helpers"),
            os.environ.get("PYTHONPATH", ""),
        ]
    )
    as_users = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | as_users,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
