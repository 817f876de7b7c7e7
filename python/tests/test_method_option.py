"""pytest --method NAME, which `make check` gives: whole words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
"""Several methods, as tract; a module's docstring selects nothing."""
import pytest

@pytest.mark.parametrize("name", ["tract", "sgd", "extract", "tract_more"])
def test_contract(name):
    for other in ("tract", "adamw"):
        pass

@pytest.mark.parametrize("sentence", ["sam(0.1) | tract(0.5)|sgd", "subtract | sgd"], ids=["a", "b"])
def test_given(sentence): ...

@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_strings(dtype):
    def inner():
        return f"tract({dtype}) | sgd"

@pytest.mark.parametrize("dtype", ["f32"])
def test_of_another(dtype):
    return "contract(tract_more)"

def test_docstring():
    """What tract does."""

def test_tract_alone(): ...
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("selected")
    shutil.copy(Path(__file__).with_name("conftest.py"), made)
    (made / "test_several.py").write_text(MODULE)
    (made / "test_tract.py").write_text("def test_of_the_module(): ...\n")
    return made


def collected(folder: Path, *options: str) -> tuple[set[str], int]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return {line.split("::")[1] for line in done.stdout.splitlines() if "::" in line}, done.returncode


def test_a_method_is_a_whole_word(folder: Path) -> None:
    want = {"test_contract[tract]", "test_given[a]", "test_strings[f32]", "test_strings[f64]", "test_docstring",
            "test_of_the_module"}
    assert collected(folder, "--method", "tract") == (want, 0)
    every = {f"test_contract[{name}]" for name in ("tract", "sgd", "extract", "tract_more")}
    assert collected(folder, "--method", "adamw") == (every, 0)  # none by its id, all by what stands in the test


def test_several_methods_and_none(folder: Path) -> None:
    both, _ = collected(folder, "--method", "extract", "--method", "subtract")
    assert both == {"test_contract[extract]", "test_given[b]"}
    assert collected(folder, "--method", "ract") == (set(), 5)  # as pytest says it where nothing is selected
    assert len(collected(folder)[0]) == 12
