"""The README says what is there."""

from __future__ import annotations

import collections
import re
import shlex
import shutil
import subprocess
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


def _run(compiler: str, flags: list[str], source: Path) -> list[str]:
    """What a program prints that was compiled against the header and the library of the package."""
    header, library = README.parent / "include", Path(tw.__file__).parent / "lib" / "libthalweg.so.1"
    if shutil.which(compiler) is None or not header.is_dir() or not library.is_file():
        pytest.skip(f"{compiler}, the header or the library is not here")
    # (the library by its place, whatever name it has for the loader)
    link = source.with_name("libthalweg.so.1")
    shutil.copyfile(library, link)
    where = ["-I", header, source, link, f"-Wl,-rpath,{source.parent}", "-o", "program"]
    done = subprocess.run([compiler, *flags, *where], cwd=source.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    return subprocess.run(["./program"], cwd=source.parent, capture_output=True, text=True, check=True).stdout.split()


def _example(language: str) -> tuple[str, str]:
    """The first line of an example, which includes a header, and the rest."""
    code = re.search(rf"```{language}\n(.*?)```", README.read_text(), re.S)
    assert code
    include, _, rest = code[1].partition("\n")
    return include, rest


def test_the_c_example_runs(tmp_path: Path) -> None:
    source = tmp_path / "train.c"
    source.write_text("\n".join(_example("c")))  # as it is printed
    values = _run("gcc", ["-std=c99", "-Wall", "-Werror"], source)
    assert len(values) == 3 and float(values[0]) < 0.1  # it began at 1: a hundred steps of 0.01, and some decay


def test_the_cpp_example_runs(tmp_path: Path) -> None:
    include, body = _example("cpp")
    source = tmp_path / "train.cpp"
    source.write_text(f"""{include}
#include <cstdio>
#include <vector>
double loss_and_gradient(uint64_t, std::vector<float>& w, std::vector<float>& g) {{
  for (std::size_t i = 0; i < w.size(); i++) g[i] = w[i] - 1;
  return 1;
}}
int main() {{
{body}std::printf("%g", w[0]);
}}
""")
    words = _run("g++", ["-std=c++17", "-Wall"], source)
    assert "must be at least 0, got -1" in " ".join(words) and abs(float(words[-1]) - 1e-3) < 1e-6


def test_links_lead_somewhere() -> None:
    if not (README.parent / "Makefile").exists():
        pytest.skip("the README stands alone")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README.read_text())
    missing = [t for t in targets if not t.startswith("https://") and not (README.parent / t).exists()]
    assert len(targets) > 10 and not missing


def test_commands_are_read() -> None:
    from thalweg.command import parser

    commands = re.findall(r"^    python -m thalweg (.*)$", README.read_text(), re.M)
    assert len(commands) == 5
    for command in commands:
        parser().parse_args(shlex.split(command, comments=True))


def test_sentences_are_read() -> None:
    """The indented ones, and those of the table."""
    written = re.findall(r"^    ([a-z_]+\(.*? \| [^#\n]*)", README.read_text(), re.M)
    assert len(written) == 5
    for sentence in written:
        shapes = [np.zeros((4, 4), np.float32), np.zeros(4, np.float32)]
        tw.Optimizer(shapes, sentence.strip()).close()
