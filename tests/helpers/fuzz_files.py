"""Fuzz target: the readers of foreign files, which may say `ValueError` and nothing else.

    python tests/helpers/fuzz_files.py [--seconds 60] [--seed 0]

Files of `tests/corpus` are cut, spliced, and changed in bytes, numbers and words; each result is
given to every reader. A file that makes one fail otherwise is written beside the corpus, under
`crash-`; once the reader is mended, it belongs into the corpus.
"""

import argparse
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from jaxsteer.directions.direction_files import load_directions
from jaxsteer.directions.foreign_files import load_pt, load_replication
from jaxsteer.directions.gguf import load_gguf
from jaxsteer.files.safetensors_header import parse_header, read_header

CORPUS = Path(__file__).parents[1] / "corpus"


def _load_pt(file: Path) -> object:
    return load_pt(file, layer=1)


READERS: tuple[Callable[[Path], object], ...] = (
    read_header,
    load_directions,
    load_replication,
    load_gguf,
    _load_pt,
)
_WORDS = (
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BF16"', b"NaN",
    b"[]", b"{}", b"null", b"true", b"-1", b"1e999", b"9" * 5000, b"\\ud800", b"direction.1",
    b"GGUF", b"general.alignment", b"controlvector", b"\x00", b"\xff" * 8,
    b"PK\3\4", b"ctorch\nFloatStorage\n", b"K\1", b"R", b"\x85", b"\x86", b"}", b"s",
)  # fmt: skip
_NUMBERS = (0, 1, 7, 8, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def corpus() -> list[bytes]:
    """The files that every run starts from."""
    return [file.read_bytes() for file in sorted(CORPUS.iterdir())]


def mutants(seeds: list[bytes], random: random.Random) -> Iterator[bytes]:
    """Files that are like the seeds, without end."""
    while True:
        data = bytearray(random.choice(seeds))
        for _ in range(random.choice((1, 1, 2, 4, 16))):
            at = random.randrange(len(data) + 1)
            kind = random.randrange(6)
            if kind == 0 and data:  # one bit
                data[at % len(data)] ^= 1 << random.randrange(8)
            elif kind == 1:  # a number of 1, 4 or 8 bytes
                width = random.choice((1, 4, 8))
                number = random.choice(_NUMBERS) % 256**width
                data[at : at + width] = number.to_bytes(width, "little")
            elif kind == 2:  # a word
                data[at:at] = random.choice(_WORDS)
            elif kind == 3:  # a part is left out
                del data[at : at + random.choice((1, 8, 64))]
            elif kind == 4:  # cut
                del data[at:]
            else:  # a part of another file
                other = random.choice(seeds)
                start = random.randrange(len(other) + 1)
                data[at:at] = other[start : start + random.choice((4, 32, 256))]
        yield bytes(data)


def check(data: bytes, folder: Path) -> None:
    """Give a file to every reader.

    Raises:
        Exception: whatever a reader raised that is no `ValueError`.
    """
    file = folder / "file"
    file.write_bytes(data)
    for reader in (*READERS, _header_of, _pickle_of):
        try:
            reader(file)
        except ValueError as error:
            if not str(error):
                raise AssertionError(f"{reader.__name__}: an error without a message") from error


def _header_of(file: Path) -> object:
    """The file's bytes as the JSON text of a header, to get past the length before it."""
    text = file.read_bytes()
    return parse_header(len(text), text, 8 + len(text))


def _pickle_of(file: Path) -> object:
    """The file's bytes as the pickle of a `.pt` file, to get past the zip's checksum."""
    archive = file.with_suffix(".pt")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("v/data.pkl", file.read_bytes())
        opened.writestr("v/data/0", bytes(16))
    return load_pt(archive, layer=1)


def fuzz(seconds: float, seed: int) -> int:
    """Run for a while; returns how many files were tried.

    Raises:
        AssertionError: naming the file that a reader failed on.
    """
    end = time.monotonic() + seconds
    count = 0
    with tempfile.TemporaryDirectory() as name:
        for data in mutants(corpus(), random.Random(seed)):
            if time.monotonic() > end:
                break
            try:
                check(data, Path(name))
            except Exception as error:
                crash = CORPUS.parent / f"crash-{abs(hash(data)):x}"
                crash.write_bytes(data)
                raise AssertionError(f"{crash}: {type(error).__name__}: {error}") from error
            count += 1
    return count


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of foreign files.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        print(f"{fuzz(args.seconds, args.seed):,} files, each reader said no more than ValueError")
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
