"""experiments.pipeline.machines: what `--mesh` and `--hosts` mean, and what they refuse.

Commands on several hosts: the parts of it are tried in `test_hosts`.
"""

import argparse
import signal

import pytest

from experiments import reproduce
from experiments.benchmarks import two_gpus
from experiments.pipeline.machines import _address, add_options, together
from jaxsteer.runtime import guarded, preemption


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(argv)


def test_one_device_without_options_and_a_mesh_with_one():
    with together(options()) as mesh:
        assert mesh is None
    with together(options("--mesh", "1x1")) as mesh:
        assert mesh is not None
        assert dict(mesh.shape) == {"data": 1, "tensor": 1}


def test_where_the_others_are():
    assert _address("auto") == ()
    assert _address("10.0.0.1:1234,4,3") == ("10.0.0.1:1234", 4, 3)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--mesh", "4"], "--mesh: got 4, expected DATAxTENSOR, as in 2x4"),
        (["--mesh", "64x64"], "mesh: data=64 × tensor=64 needs 4096 devices"),
        (["--hosts", "10.0.0.1"], "--hosts: got 10.0.0.1, expected auto or ADDRESS:PORT,NUMBER"),
        (["--hosts", "10.0.0.1:1234,4,4"], "with an index below the number"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(capsys, argv, said):
    def work() -> None:
        with together(options(*argv)):
            raise AssertionError("went on")

    assert guarded(resumes=True)(work)() == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err


def test_a_run_is_on_a_disk(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--out", "gs://bucket/run"])
    assert "got gs://bucket/run, expected a folder on a disk" in capsys.readouterr().err


def test_sigterm_ends_a_command_in_good_order(capsys):
    def work() -> None:
        with together(options()):
            signal.raise_signal(signal.SIGTERM)

    assert guarded(resumes=True)(work)() == preemption.EXIT_CODE
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_two_accelerators_are_needed_for_the_comparison(capsys):
    assert two_gpus.main([]) == 2
    assert "found 1 device, expected two" in capsys.readouterr().err
