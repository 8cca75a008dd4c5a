"""Bytes on a disk or in a bucket: whole or not there, checked, and growing row by row.

Paths and bytes in; files that are complete, and rows and arrays that are checked, out.

Uses `runtime`.
"""

from jaxsteer.files.atomic import absolute, as_path, is_remote, sha256, write_atomic, write_json
from jaxsteer.files.directories import check_free, new_directory
from jaxsteer.files.gguf_header import GgufTensor, is_gguf, read_gguf_header
from jaxsteer.files.integrity import check_files, check_together, checksums
from jaxsteer.files.jsonl import (
    append_rows,
    encode_rows,
    locked,
    parse_rows,
    read_rows,
    recover_rows,
    sort_rows,
)
from jaxsteer.files.safetensors_file import read_tensors, tensor_bytes
from jaxsteer.files.safetensors_header import Entry, load_json, read_header

__all__ = [
    "Entry",
    "GgufTensor",
    "absolute",
    "append_rows",
    "as_path",
    "check_files",
    "check_free",
    "check_together",
    "checksums",
    "encode_rows",
    "is_gguf",
    "is_remote",
    "load_json",
    "locked",
    "new_directory",
    "parse_rows",
    "read_gguf_header",
    "read_header",
    "read_rows",
    "read_tensors",
    "recover_rows",
    "sha256",
    "sort_rows",
    "tensor_bytes",
    "write_atomic",
    "write_json",
]
