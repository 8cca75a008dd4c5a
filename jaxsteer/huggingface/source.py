"""Where a model comes from: a folder on this machine, or a repository of the Hugging Face Hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from jaxsteer.files import as_path, is_gguf
from jaxsteer.huggingface.folder import Folder, open_folder
from jaxsteer.huggingface.gguf_model import GgufModel, open_gguf
from jaxsteer.huggingface.unusable_weights import check_pointers

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model"]
# The same weights once more, in their makers' own formats.
_TWICE = ["original/*", "consolidated*.safetensors"]


@dataclass(frozen=True)
class Source:
    """A folder, and what it is called when its place on this machine does not matter."""

    folder: Path
    name: str
    revision: str | None  # commit on the hub


def find_source(source: str | Path, *, revision: str | None = None) -> Source:
    """The folder that `source` names; a hub id (`owner/name`) is downloaded, or resumed.

    Raises:
        FileNotFoundError: no such folder, and no hub id either.
        ValueError: a URL, a revision of a folder, or the hub has no such model, does not give it
            to this user, or cannot be reached.
    """
    if not str(source):
        raise ValueError("source: got an empty text, expected a folder or a hub id like owner/name")
    if "://" in str(source):  # not repeated in the message: a URL can hold a password
        raise ValueError("source: got a URL, expected a folder or a hub id like owner/name")
    folder = as_path(source)
    if folder.exists():
        if revision is not None:
            raise ValueError(
                f"revision: got {revision!r} for the folder {source}, expected none: only a model "
                "of the hub has revisions"
            )
        return Source(folder, folder.resolve().name, None)
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{source}: no such folder, and not a hub id like owner/name")
    return _download(str(source), revision)


def open_source(
    source: str | Path, *, revision: str | None = None, strict: bool = False
) -> tuple[Folder | GgufModel, Source]:
    """Open what a folder, a hub id or the name of a `.gguf` file stands for, from headers alone.

    Raises:
        FileNotFoundError, ValueError: as `find_source`, `open_folder` and `open_gguf`.
    """
    if "://" not in str(source) and (path := as_path(source)).is_file():
        check_pointers(path)
        if is_gguf(path):
            return open_gguf(path, strict=strict), Source(path.parent, path.name, None)
    origin = find_source(source, revision=revision)
    return open_folder(origin.folder, strict=strict), origin


def _download(repo: str, revision: str | None) -> Source:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_TWICE
        )
    except GatedRepoError:
        raise ValueError(
            f"{repo}: gated, and you have no access yet. Ask for it at {page}, then log in "
            "with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{repo}: no such folder here, and no such model on the hub (or a private one; log "
            f"in with: hf auth login). See {page}"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"{repo}: revision: got {revision!r}, which the hub does not have. See {page}"
        ) from None
    except HFValidationError as error:  # about the name alone
        raise ValueError(f"{repo}: no such folder here, and no hub id: {error}") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{repo}: no such folder here, and the hub could not be asked: no network, "
            f"HF_HUB_OFFLINE is set, or the hub itself has an error. See {page}"
        ) from None
    except Exception as error:  # of whichever HTTP library the hub's client stands on
        # Without the error itself: its text can hold a signed address, or the request's headers.
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = type(error).__name__ + (f" {status}" if isinstance(status, int) else "")
        raise ValueError(
            f"{repo}: download failed: {kind}. Files that are complete are kept: the same command "
            f"goes on from here. See {page}"
        ) from None
    # Snapshots live in a folder named after the commit.
    path = Path(folder)
    return Source(path, repo, path.name if path.parent.name == "snapshots" else revision)
