"""An environment of its own for each peer, made from pinned requirements and kept.

PyTorch, of which all of them need the same release, is installed once: the others see it through a
path file. An environment is made anew when its requirements change.
"""

import subprocess
import sys
import venv
from pathlib import Path

from jaxsteer.files import write_atomic

# With these, pip takes the CPU build of PyTorch where an index offers it; see pyproject.toml.
PIP = ("--retries", "1", "--extra-index-url", "https://download.pytorch.org/whl/cpu")
TORCH = ("torch==2.13.0", "numpy==2.4.6")
PEERS = {
    "transformers": ("transformers==5.24.0",),
    "steering-vectors": ("steering-vectors==0.12.2", "transformers==4.57.6"),
    "repeng": ("repeng==0.4.0", "transformers==4.57.6"),
    "transformer-lens": ("transformer-lens==4.3.0", "transformers==5.17.0"),
    "nnsight": ("nnsight==0.8.1", "transformers==5.24.0"),
    "pyvene": ("pyvene==0.1.8", "transformers==4.57.6"),
}
_DONE = "requirements.txt"


def python_of(peer: str, folder: Path) -> Path:
    """The interpreter that has a peer, after making its environment if there is none.

    Raises:
        CalledProcessError: pip fails, which has said why.
    """
    base = _environment("torch", TORCH, folder, below=None)
    return _environment(peer, PEERS[peer], folder, below=base)


def _environment(name: str, packages: tuple[str, ...], folder: Path, *, below: Path | None) -> Path:
    home = folder / name
    python, done = home / "bin" / "python", home / _DONE
    wanted = "\n".join(packages) + "\n"
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"{name}: installing {', '.join(packages)}", file=sys.stderr, flush=True)
    venv.create(home, clear=True, with_pip=True)
    if below is not None:
        write_atomic(_packages(home) / "torch.pth", f"{_packages(below.parents[1])}\n".encode())
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PIP, *packages], check=True)
    write_atomic(done, wanted.encode())
    return python


def _packages(home: Path) -> Path:
    return next((home / "lib").glob("python3.*")) / "site-packages"
