"""The type stubs are what the registry says."""

from __future__ import annotations

import ast
import re
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


def test_defaults_have_the_type_that_is_written() -> None:
    """What a type checker says of the stubs themselves."""
    wrong, looked_at = [], 0
    for node in ast.walk(ast.parse(_stubs.generate())):
        if not isinstance(node, ast.FunctionDef):
            continue
        plain = node.args.args[len(node.args.args) - len(node.args.defaults) :]
        given = [*zip(plain, node.args.defaults), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
        for argument, default in given:
            if not isinstance(default, ast.Constant) or default.value is ...:
                continue
            written = ast.unparse(argument.annotation)
            choices = re.search(r"_Literal\[(.*)\]", written)
            known = ast.literal_eval(f"[{choices[1]}]") if choices else []
            kind = "None" if default.value is None else type(default.value).__name__
            looked_at += 1
            if default.value not in known and kind not in written and not (kind == "int" and "float" in written):
                wrong.append(f"{argument.arg}: {written} = {default.value!r}")
    assert not wrong and looked_at > 1000


def test_check_and_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from thalweg.__main__ import main

    file = tmp_path / "x.pyi"
    assert main(["stubs", "--check", str(file)]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert main(["stubs", "--write", str(file)]) == 0
    assert main(["stubs", "--check", str(file)]) == 0
