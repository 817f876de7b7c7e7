"""The checkpoint of the library taken apart, and put together again.

A checkpoint (safetensors layout) is what `Optimizer._save` writes and `Optimizer._load` reads.  Taken apart it is a
table of entries by name; what belongs to a tensor is called NAME/STAGE/SLOT, as in "layer.weight/0.adamw/exp_avg", the
rest STAGE/scalars and engine/...  (Checkpoint.swift says what they hold).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import _thalweg
from ._errors import FormatError, error

NAMES, STEP, TENSORS, SETTINGS = "engine/names", "engine/step", "engine/tensors", "engine/settings"
STARTED, ACTIVE = 1, 2  # flags of a tensor in engine/tensors: (step, number of its random draws, flags)


class Entry(NamedTuple):
    """One entry: its type as safetensors calls it (F64, F32, BF16, F16, U8), its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def numbers(self) -> np.ndarray:
        """A copy of an F64 entry."""
        return np.frombuffer(self.data, np.float64).copy()

    def text(self) -> str:
        """What a U8 entry says, where it is a text."""
        return bytes(self.data).decode()


def of_numbers(values: Any) -> Entry:
    """An F64 entry of a list of numbers."""
    array = np.ascontiguousarray(values, np.float64).reshape(-1)
    return Entry("F64", array.shape, memoryview(array).cast("B"))


def read(data: bytes) -> dict[str, Entry]:
    """The entries of a checkpoint, which share its memory.  FormatError where it is none."""
    import json

    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        return {
            name: Entry(row["dtype"], tuple(row["shape"]), body[slice(*row["data_offsets"])])
            for name, row in header.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise error(FormatError, f"not a checkpoint of thalweg: {problem}") from problem


def digest(data: bytes) -> str:
    """The digest that a checkpoint says it has; "" where it says none."""
    import json

    header = json.loads(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]))
    return str(header.get("__metadata__", {}).get("hash", ""))


def write(entries: Mapping[str, Entry]) -> bytearray:
    """A checkpoint of these entries."""
    rows, at = [], 0
    for name, entry in entries.items():
        shape = ",".join(map(str, entry.shape))
        end = at + entry.data.nbytes
        rows.append(f'{_escape(name)}:{{"dtype":"{entry.dtype}","shape":[{shape}],"data_offsets":[{at},{end}]}}')
        at = end
    table = ",".join(rows).encode()
    start = b'{"__metadata__":{"format":"thalweg","version":"2","hash":"'
    mark = 8 + len(start)
    header = start + b"0" * 16 + b'"},' + table + b"}"
    header += b" " * (-len(header) % 8)
    out = bytearray(8 + len(header) + at)
    out[:8] = len(header).to_bytes(8, "little")
    out[8 : 8 + len(header)] = header
    at = 8 + len(header)
    with memoryview(out) as whole:
        for entry in entries.values():
            whole[at : at + entry.data.nbytes] = entry.data.cast("B") if entry.data.nbytes else b""
            at += entry.data.nbytes
        whole[mark : mark + 16] = f"{_thalweg._digest(table, whole[8 + len(header) :]):016x}".encode()
    return out


def _escape(name: str) -> str:
    """A name as the library writes it in JSON."""
    quoted = re.sub(r'["\\]', r"\\\g<0>", name)
    return '"' + re.sub(r"[\x00-\x1f]", lambda c: f"\\u{ord(c[0]):04x}", quoted) + '"'


def owner(entry: str, names: Mapping[str, Any]) -> str | None:
    """The name of the tensor that an entry belongs to, or None."""
    for parts in (2, 3):  # NAME/STAGE/SLOT, NAME/STAGE/SLOT/before; a name may have slashes
        name = entry.rsplit("/", parts)[0]
        if entry.count("/") >= parts and name in names:
            return name
    return None


def tensor_names(entries: Mapping[str, Entry]) -> list[str]:
    """The names of the tensors, in the order that everything of them follows."""
    return entries[NAMES].text().split("\0")[:-1]
