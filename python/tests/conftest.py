"""Makes `reference` and `support` importable, and keeps the number of threads from leaking between tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every test starts with the thread count that the process started with."""
    import thalweg

    before = thalweg.get_num_threads()
    yield
    thalweg.set_num_threads(before)
