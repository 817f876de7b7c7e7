"""A checkpoint may hold any number where a counter was: loading it and going on ends in an error or in a step."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest

import thalweg as tw
from contract import Host, cases

MASK = (1 << 64) - 1


def mix(a: int, b: int) -> int:
    z = a + b * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def digest(data: bytes, seed: int) -> int:
    """The hash of the format: FNV-1a over words of eight bytes, in four lanes."""

    def stir(a: int, w: int) -> int:
        x = (a ^ w) * 0x100000001B3 & MASK
        return x ^ x >> 29

    h = [seed ^ k for k in (0xCBF29CE484222325, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]
    whole = len(data) // 32 * 32
    for at in range(0, whole, 32):
        h = [stir(a, w) for a, w in zip(h, struct.unpack_from("<4Q", data, at))]
    for b in data[whole:]:
        h[0] = stir(h[0], b | 0x100)
    return mix(h[0], mix(h[1], mix(h[2], h[3] + len(data) & MASK)))


def sealed(header: bytes, body: bytes) -> bytes:
    """The file with the hash that belongs to it."""
    head = re.match(rb'\{"__metadata__":\{[^}]*"hash":"[0-9a-f]{16}"\},', header)
    assert head is not None
    table = header[head.end() :].rstrip()[:-1]
    hash_ = digest(body, digest(table, 1))
    fresh = re.sub(rb'"hash":"[0-9a-f]{16}"', b'"hash":"%016x"' % hash_, head.group()) + header[head.end() :]
    return struct.pack("<Q", len(fresh)) + fresh + body


def with_numbers(data: bytes, value: float) -> bytes | None:
    """The checkpoint with every number of every stage replaced; None where it has none."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], bytearray(data[8 + size :])
    found = False
    for name, entry in json.loads(header).items():
        if name.endswith("/scalars"):
            first, last = entry["data_offsets"]
            body[first:last] = np.full((last - first) // 8, value).tobytes()
            found = found or last > first
    return sealed(header, bytes(body)) if found else None


def test_an_untouched_file_is_sealed_as_it_was() -> None:
    host = Host("adamw")
    host.step(0)
    data = host.opt.state_dict()["state"]
    size = struct.unpack("<Q", data[:8])[0]
    assert sealed(data[8 : 8 + size], data[8 + size :]) == data


@pytest.mark.parametrize("name", cases())
@pytest.mark.filterwarnings("ignore")
def test_any_number_for_a_counter(name: str) -> None:
    host = Host(name)
    for k in range(2):
        host.step(k)
    data, loaded = host.opt.state_dict()["state"], 0
    for value in (np.nan, -1.0, 7.0, 1e300, np.inf):
        tampered = with_numbers(data, value)
        if tampered is None:
            return
        twin = Host(name)
        try:
            twin.opt.load_state_dict({"format": 1, "state": tampered})
            loaded += 1
            for k in range(2, 4):
                twin.step(k)
        except tw.Error as error:
            assert "hash" not in str(error)
