"""The type stubs are what the registry says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import thalweg as tw
from thalweg import _stubs

SOURCE = Path(__file__).parent.parent / "src" / "thalweg" / "__init__.pyi"


def test_stubs_are_fresh() -> None:
    assert SOURCE.read_text() == _stubs.generate(), "run `python -m thalweg stubs --write python/src/thalweg/__init__.pyi`"


def test_stubs_are_python_and_complete() -> None:
    tree = ast.parse(_stubs.generate())
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    assert set(tw.__all__) <= names


def test_check_and_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from thalweg.__main__ import main

    file = tmp_path / "x.pyi"
    assert main(["stubs", "--check", str(file)]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert main(["stubs", "--write", str(file)]) == 0
    assert main(["stubs", "--check", str(file)]) == 0
