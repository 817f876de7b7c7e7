"""The README says what is there."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw

README = Path(__file__).parents[2] / "README.md"


def test_counts_are_those_of_the_registry() -> None:
    table = re.search(r"<!-- counts: begin -->(.*?)<!-- counts: end -->", README.read_text(), re.S)
    assert table
    written = {k: int(n) for k, n in re.findall(r"^\| (\w+) \| (\d+) \|", table[1], re.M)}
    counted = collections.Counter(m.kind for m in tw.methods())
    assert written == {**counted, "all": sum(counted.values())}


def test_the_python_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    plain = [code for code in blocks if "import torch" not in code and "import jax" not in code]
    assert len(plain) == len(blocks) - 2 == 2
    scope: dict[str, object] = {}
    for code in plain:
        exec(code, scope)  # noqa: S102
    w = scope["w"]
    assert isinstance(w, np.ndarray) and np.all(w < 0)


def test_the_torch_example_runs() -> None:
    pytest.importorskip("torch")
    code = next(c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "import torch" in c)
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102
    assert scope["opt"].engine.steps == 1


def test_the_jax_example_runs() -> None:
    pytest.importorskip("jax")
    code = next(c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "import jax" in c)
    scope: dict[str, Any] = {}
    try:
        exec(code, scope)  # noqa: S102
    except tw.UnsupportedError as problem:
        pytest.skip(str(problem))
    assert scope["state"].steps == 1
