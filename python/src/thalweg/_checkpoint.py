"""The frame of a checkpoint taken apart and put together again: what resharding needs.

The layout is that of safetensors: 8 bytes with the length of a JSON header, the header, and the bytes of the entries.
The header's metadata has a hash of all that, which the library checks when it loads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from ._errors import FormatError, error

_WORD = (1 << 64) - 1
_LANES = (0xCBF2_9CE4_8422_2325, 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9)
_PRIME = 0x100_0000_01B3


class Entry(NamedTuple):
    """One array of a checkpoint: its element type ("F32", "F64", "BF16", "U8", ...), its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Any


def read(blob: Any) -> dict[str, Entry]:
    """The entries of a checkpoint by name, in its order; their bytes are views of `blob`.  FormatError when it is none."""
    view = memoryview(blob)
    try:
        (length,) = struct.unpack("<Q", view[:8])
        header = json.loads(bytes(view[8 : 8 + length]))
        body = view[8 + length :]
        return {
            name: Entry(entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise error(FormatError, f"not a usable thalweg checkpoint: {problem}") from problem


def write(entries: Mapping[str, Entry]) -> bytes:
    """A checkpoint of these entries, which the library takes.

    The hash is a chain from word to word, which Python walks slowly: some seconds for 100 MB.
    """
    table, at = [], 0
    for name, entry in entries.items():
        size = memoryview(entry.data).nbytes
        shape = ",".join(map(str, entry.shape))
        table.append(f'{_quoted(name)}:{{"dtype":"{entry.dtype}","shape":[{shape}],"data_offsets":[{at},{at + size}]}}')
        at += size
    text = ",".join(table)
    body = b"".join(bytes(entry.data) for entry in entries.values())
    code = _digest(body, _digest(text.encode(), 1))
    header = f'{{"__metadata__":{{"format":"thalweg","version":"2","hash":"{code:016x}"}},{text}}}'.encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def _quoted(name: str) -> str:
    """A name as the library writes it in JSON: everything but quotes, backslashes and controls as it is."""
    escaped = (f"\\{c}" if c in '"\\' else f"\\u{ord(c):04x}" if ord(c) < 32 else c for c in name)
    return f'"{"".join(escaped)}"'


def _digest(data: bytes, seed: int) -> int:
    """FNV-1a over 8-byte words in four lanes; bytes that are left over go into the first."""
    a, b, c, d = (seed ^ lane for lane in _LANES)
    whole = len(data) // 32 * 32
    for p, q, r, s in struct.iter_unpack("<4Q", data[:whole]):
        a = ((a ^ p) * _PRIME) & _WORD
        a ^= a >> 29
        b = ((b ^ q) * _PRIME) & _WORD
        b ^= b >> 29
        c = ((c ^ r) * _PRIME) & _WORD
        c ^= c >> 29
        d = ((d ^ s) * _PRIME) & _WORD
        d ^= d >> 29
    for byte in data[whole:]:
        a = ((a ^ (byte | 0x100)) * _PRIME) & _WORD
        a ^= a >> 29
    return _mix(a, _mix(b, _mix(c, (d + len(data)) & _WORD)))


def _mix(key: int, counter: int) -> int:
    z = (key + counter * 0x9E37_79B9_7F4A_7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _WORD
    return z ^ (z >> 31)
