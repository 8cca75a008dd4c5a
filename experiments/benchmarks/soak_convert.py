"""The conversion, to be killed by `soak`, and what must hold after each kill."""

import hashlib
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.soak_kill import Aim, Ended, Job, Lost, Place, run_unharmed
from jaxsteer.checkpoints import checkpoint
from jaxsteer.config import LlamaConfig
from jaxsteer.files import sha256
from jaxsteer.llama import abstract_params, dotted
from weights.small_language.folder import write_model
from weights.small_language.tokenizer import vocabulary

# About 40 MB, so that there is a while to be killed in.
CONFIG = replace(
    LlamaConfig.tiny(),
    vocab_size=len(vocabulary()),
    d_model=512,
    d_mlp=2048,
    n_layers=5,
    n_heads=8,
    n_kv_heads=4,
    head_dim=64,
)


def convert_jobs(folder: Path, place: Place) -> Callable[[Path], Job] | None:
    """Conversion: to a new place, and over another model's checkpoint, by turns."""
    folder.mkdir()
    sources = [folder / "source-0", folder / "source-1"]
    old = folder / "old" / "dst"  # the second model
    prints, seconds = [], 0.0
    for seed, source in enumerate(sources):
        write_model(source, _random_params(seed), CONFIG, chat=False)
        ended = run_unharmed(["weights.convert", str(source), str(old), "--overwrite"], place)
        if ended is None:
            return None
        seconds = ended.seconds
        prints.append(_weights_fingerprint(old))
    hashes = {file: sha256(file) for source in sources for file in source.iterdir()}

    def in_lane(work: Path) -> Job:
        return _convert_job(work, sources[0], old, prints=prints, hashes=hashes, seconds=seconds)

    return in_lane


def _convert_job(
    work: Path,
    source: Path,
    old: Path,
    *,
    prints: list[str],
    hashes: dict[Path, str],
    seconds: float,
) -> Job:
    work.mkdir()
    target, building = work / "dst", work / ".dst.building"
    left = [0]  # when it was last changed, where an earlier kill left it
    remains = [False]  # whether an earlier kill came while the old one was removed

    def changed() -> int:
        try:
            return building.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def begun(_said: str) -> bool:
        return changed() not in (0, left[0])

    def prepare(attempt: int) -> None:
        for name in ("dst", ".dst.old"):  # or the next one would put it back
            shutil.rmtree(work / name, ignore_errors=True)
        if attempt % 2:
            shutil.copytree(old, target)
        left[0], remains[0] = changed(), (work / ".dst.removing").exists()

    def check(attempt: int, ended: Ended) -> str:
        names = {path.name for path in work.iterdir()}
        # What an earlier kill left is cleared away only by one that comes so far as to write.
        clean = ended.code == 0 or (ended.code > 0 and not left[0])
        if ended.code == -signal.SIGTERM and begun(""):
            raise Lost("SIGTERM was not heeded while it was writing")
        if ended.code == 0 and "written" in ended.said and "written" not in ended.said_before:
            raise Lost("SIGTERM was not heeded: it went on to the end")
        allowed = {"dst"} if clean else {"dst", ".dst.building"}
        place = target
        if attempt % 2 and "dst" not in names and ".dst.old" in names:
            place = work / ".dst.old"  # killed between two renames; the next run puts it back
            allowed = {".dst.old", ".dst.building"}
        if ended.code < 0 and attempt % 2 and place == target:
            allowed |= {".dst.old", ".dst.removing"}  # killed while it removed the old one
        if remains[0] and ended.code != 0:
            allowed.add(".dst.removing")
        if not names <= allowed:
            raise Lost(f"left behind: {sorted(names - allowed)}")
        if any(sha256(file) != one for file, one in hashes.items()):
            raise Lost("the source has changed")
        if place.name not in names:
            if attempt % 2:
                raise Lost("the checkpoint that was there is gone")
            return "nothing" if ".dst.building" not in names else "nothing but a half-built one"
        try:
            which = prints.index(_weights_fingerprint(place))
        except ValueError as error:
            raise Lost(f"{place}: {error}") from None
        if which == 1 and not attempt % 2:
            raise Lost("a checkpoint of nowhere")
        return ("the new one" if which == 0 else "the old one") + f", whole ({place.name})"

    def argv(attempt: int) -> list[str]:
        options = ["--overwrite"] if attempt % 2 else []
        return ["weights.convert", str(source), str(target), *options]

    return Job(
        argv,
        prepare,
        check,
        seconds=lambda: 1.05 * seconds,
        aim=lambda _: Aim("the first file", begun, 0.1 * seconds),
        stage=lambda _: "writing" if begun("") else "reading, or done",
    )


def _random_params(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = abstract_params(CONFIG)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.02, shapes)


def _weights_fingerprint(path: Path) -> str:
    """A hash of all weights of a checkpoint; reading it checks every file of it, too."""
    total = hashlib.sha256()
    for name, x in sorted((dotted(p), x) for p, x in checkpoint.read_leaves(path)):
        total.update(name.encode() + x.tobytes())
    return total.hexdigest()
