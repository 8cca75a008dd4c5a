"""Bytes on a disk or in a bucket: whole or not there, checked, and growing row by row.

Paths and bytes in; files that are complete, and rows and arrays that are checked, out. `atomic`
writes, `jsonl` appends rows, `untrusted` reads what strangers wrote.

Uses `runtime`.
"""

from jaxsteer.files.atomic import (
    absolute,
    as_path,
    check_regular,
    is_remote,
    open_regular,
    sha256,
    write_atomic,
    write_json,
)
from jaxsteer.files.directories import check_free, new_directory, without_wildcards
from jaxsteer.files.gguf_header import GgufHeader, GgufTensor, is_gguf, read_gguf_header
from jaxsteer.files.integrity import check_files, check_while, checksums
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
from jaxsteer.files.safetensors_header import LONGEST_NAME, Entry, read_header
from jaxsteer.files.untrusted import (
    MOST_BYTES,
    MOST_DATA,
    inside,
    is_plain_name,
    load_json,
    read_json,
    read_json_object,
    read_whole,
)

__all__ = [
    "LONGEST_NAME",
    "MOST_BYTES",
    "MOST_DATA",
    "Entry",
    "GgufHeader",
    "GgufTensor",
    "absolute",
    "append_rows",
    "as_path",
    "check_files",
    "check_free",
    "check_regular",
    "check_while",
    "checksums",
    "encode_rows",
    "inside",
    "is_gguf",
    "is_plain_name",
    "is_remote",
    "load_json",
    "locked",
    "new_directory",
    "open_regular",
    "parse_rows",
    "read_gguf_header",
    "read_header",
    "read_json",
    "read_json_object",
    "read_rows",
    "read_tensors",
    "read_whole",
    "recover_rows",
    "sha256",
    "sort_rows",
    "tensor_bytes",
    "without_wildcards",
    "write_atomic",
    "write_json",
]
