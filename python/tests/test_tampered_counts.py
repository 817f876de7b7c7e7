"""A checkpoint may hold any number where a counter was: loading it and going on ends in an error or in a step."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import thalweg as tw
from contract import Host, cases


def with_numbers(data: bytes, value: float) -> bytes | None:
    """The checkpoint with every number of every stage replaced; None where it has none."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    body, found = bytearray(data), False
    for name, entry in header.items():
        if name.endswith("/scalars"):
            first, last = (8 + size + at for at in entry["data_offsets"])
            body[first:last] = np.full((last - first) // 8, value).tobytes()
            found = found or last > first
    return bytes(body) if found else None


@pytest.mark.parametrize("name", cases())
@pytest.mark.filterwarnings("ignore")
def test_any_number_for_a_counter(name: str) -> None:
    host = Host(name)
    for k in range(2):
        host.step(k)
    data = host.opt.state_dict()["state"]
    for value in (np.nan, -1.0, 7.0, 1e300, np.inf):
        tampered = with_numbers(data, value)
        if tampered is None:
            return
        twin = Host(name)
        try:
            twin.opt.load_state_dict({"format": 1, "state": tampered})
            for k in range(2, 4):
                twin.step(k)
        except tw.Error:
            pass
