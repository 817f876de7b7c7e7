"""An adapter whose framework is missing or too old says what to install; the package itself needs neither."""

from __future__ import annotations

import subprocess
import sys

import pytest

MISSING = "import sys; sys.modules[{1!r}] = None; import thalweg; thalweg.Optimizer; import thalweg.{0}"
OLD = {
    "torch": "import torch\ndef one(tensor): tensor.add_(1)\ntorch.autograd.graph.increment_version = one\n"
             "torch.__version__ = '1.13.0'",
    "jax": "import jax\nsys.modules.pop('jax.ffi', None)\nvars(jax).pop('ffi', None)\n"
           "vars(jax).pop('__getattr__', None)\njax.__version__ = '0.3.1'",
}


def ends(code: str) -> str:
    """The last line that a program which must fail leaves behind."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("adapter, package", [("torch", "torch"), ("distributed", "torch"), ("jax", "jax")])
def test_a_framework_that_is_not_there(adapter: str, package: str) -> None:
    says = ends(MISSING.format(adapter, package))
    assert f"thalweg.{adapter} needs {package}, which cannot be imported" in says and f"pip install {package}" in says


@pytest.mark.parametrize("package, version", [("torch", "1.13.0"), ("jax", "0.3.1")])
def test_a_framework_that_is_too_old(package: str, version: str) -> None:
    pytest.importorskip(package)
    says = ends(f"import sys\n{OLD[package]}\nimport thalweg.{package}")
    assert says.endswith(f"thalweg.{package} needs a newer {package} than {version}: pip install --upgrade {package}")
