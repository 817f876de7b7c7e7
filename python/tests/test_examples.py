"""The example programs: each runs, draws its picture and keeps what it claims; and the claims are such as can be broken."""

from __future__ import annotations

import importlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

for needed in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(needed)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are small: threads of NumPy's BLAS would wait for one another."""
    import threadpoolctl  # scikit-learn brings it along

    with threadpoolctl.threadpool_limits(1):
        yield


def example(name: str) -> ModuleType:
    """The program as a module."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside the tests")
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> int:
    """The status that the program ends with; its picture must be a PNG of some size."""
    picture = tmp_path / "out" / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", str(picture)])
    status = example(name).main()
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", data[16:24])) > 400
    return status


def numbers(out: str, method: str) -> list[float]:
    """The numbers before the name of that method, in its row of the table."""
    cells = next(line.split() for line in out.splitlines() if method in line.split())
    return [float(cell.replace(",", "")) for cell in cells[: cells.index(method)]]


@pytest.mark.parametrize("name", ["regression_path", "hyperbolic_tree", "sparse_digits", "multitask_digits", "sam_digits"])
def test_quick_run_keeps_its_claims(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0: the program has compared its results, as the tests below show that it can."""
    status = run(name, monkeypatch, tmp_path, "--quick")
    text = capsys.readouterr()
    assert status == 0, text.err
    assert str(tmp_path) in text.out


def test_train_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "sgd(lr=0.05, momentum=0.9)"
    assert run("train_digits", monkeypatch, tmp_path, "--sentence", sentence, "--epochs", "4") == 0
    assert sentence in capsys.readouterr().out
    assert run("train_digits", monkeypatch, tmp_path, "--sentence", "sgd(lr=0)", "--epochs", "1") == 1
    assert "at or below 95% test accuracy: sgd(lr=0)" in capsys.readouterr().err


def test_matrix_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert run("matrix_methods", monkeypatch, tmp_path, "--quick") == 0
    out = capsys.readouterr().out
    loss, steps, *_, state = numbers(out, "adamw")
    assert loss < numbers(out, "galore")[0] + 1 and steps == 25
    # Muon keeps one momentum where AdamW has two averages, GaLore a quarter of them and its directions.
    assert numbers(out, "galore")[-1] < numbers(out, "muon")[-1] < state


@pytest.mark.parametrize("trainer", ["accelerate", "lightning", "transformers"])
def test_trainers(trainer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is resumed ends with the same weights; that another does not is seen."""
    torch = pytest.importorskip("torch")
    for needed in {trainer, "accelerate"} - ({"accelerate"} if trainer == "lightning" else set()):
        pytest.importorskip(needed)
    program = example("trainers_digits")
    monkeypatch.setattr(sys, "argv", ["trainers_digits", "--only", trainer, "--epochs", "4"])
    assert program.main() == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[0] == trainer and row[2:] == ["0", "yes"] and float(row[1].rstrip("%")) > 90

    def forgetful(data: object, epochs: int, folder: Path, resume: bool) -> tuple[object, float]:
        net = program.perceptron()
        with torch.no_grad():
            net[0].bias.add_(float(resume))
        return net, 0.0

    monkeypatch.setitem(program.RUNS, trainer, forgetful)
    assert program.main() == 1 and capsys.readouterr().out.endswith("NO\n")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside the tests")
    return subprocess.run([sys.executable, *words], cwd=EXAMPLES, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=550)


def test_distributed_digits() -> None:
    """Two processes, all that gradients and parameters can be exchanged by, federated averaging and DiLoCo too."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("torch has no torch.distributed")
    done = command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "distributed_digits.py",
                   "--epochs", "6")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert {"ddp", "owners", "zero", "fsdp2", "muon", "fedavg", "diloco"} <= rows.keys()
    assert rows["ddp"][1:3] == rows["owners"][1:3] == rows["zero"][1:3]  # the same steps, spread otherwise
    state = {name: int(rows[name][3].replace(",", "")) for name in ("ddp", "owners", "fsdp2")}
    assert state["ddp"] == 2 * state["fsdp2"] and state["owners"] < 0.6 * state["ddp"]


def test_offload_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row for each, with the peak of its memory; a DeepSpeed that does not load is said, and ends nothing."""
    pytest.importorskip("torch")
    (tmp_path / "deepspeed" / "ops").mkdir(parents=True)
    for folder in (tmp_path / "deepspeed", tmp_path / "deepspeed" / "ops"):
        (folder / "__init__.py").touch()
    (tmp_path / "deepspeed" / "ops" / "adam.py").write_text("raise RuntimeError('no compiler')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = command("offload_step.py", "--elements", "1000000", "--steps", "1")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("thalweg", "torch", "DeepSpeed"))]
    numbers = {row[:24].strip(): row[24:].split() for row in rows}
    assert len(numbers) == 5 and numbers["DeepSpeed CPU Adam"] == "does not load: no compiler".split()
    assert float(numbers["thalweg, 8-bit state"][1]) < 2.1 < float(numbers["thalweg, f32 state"][1]) == 8
    assert all(float(cells[0]) > 0 and int(cells[2]) > 100 for name, cells in numbers.items() if name[0] != "D")


def test_paths_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lasso of 1.001 times the penalty is not scikit-learn's."""
    program = example("regression_path")
    x, y, _ = program.data()
    alphas = np.array([10.0, 5.0])
    right = program.beside(program.path("lasso", "l1({alpha})", x, y, alphas), x, y, alphas, 1.0)
    wrong = program.beside(program.path("lasso", "l1({alpha})", x, y, 1.001 * alphas), x, y, alphas, 1.0)
    assert right.error < program.CLOSE < 1e-4 < wrong.error


def test_geometry_of_the_disc() -> None:
    """Gradients of the distances by central differences; points of a geodesic are as far apart as their ways say."""
    program = example("hyperbolic_tree")
    x = np.random.default_rng(0).uniform(-0.6, 0.6, (5, 2))
    for measure in (program.in_disc, program.in_plane):
        for k in range(2):
            h = np.zeros((5, 2))
            h[1, k] = 1e-6
            slope = (measure(x + h)[0] - measure(x - h)[0])[1] / 2e-6
            np.testing.assert_allclose(measure(x)[1][1, :, k], slope, atol=1e-8)
    line = program.geodesic(x[0], x[1])
    np.testing.assert_allclose(line[[0, -1]], x[:2], atol=1e-12)
    d = program.in_disc(line)[0]
    np.testing.assert_allclose(np.diag(d, 1).sum(), d[0, -1], rtol=1e-9)


def test_tree_of_exceptions() -> None:
    program = example("hyperbolic_tree")
    names, parents = program.exceptions()
    d = program.tree_distances(parents)
    at = names.index
    assert d[at("BaseException"), at("Exception")] == 1 and d[at("KeyError"), at("OverflowError")] == 4
    np.testing.assert_array_equal(d, d.T)


def test_gradient_of_the_perceptron() -> None:
    common = example("common")
    rng = np.random.default_rng(0)
    model = common.MLP((5, 7, 6, 4), rng, norm=True)
    for i, (p, g) in enumerate(zip(model.params, model.grads)):
        model.params[i], model.grads[i] = p + 0.1 * rng.standard_normal(p.shape), g.astype(float)
    data = common.Data(rng.standard_normal((9, 5)), rng.integers(0, 4, 9))
    model.loss(data)
    gradients = [g.copy() for g in model.grads]
    for p, g in zip(model.params, gradients):
        at = tuple(rng.integers(0, n) for n in p.shape)
        start, sides = p[at], []
        for h in (1e-6, -1e-6):
            p[at] = start + h
            sides.append(model.loss(data))
        p[at] = start
        assert g[at] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8)


def test_bytes_of_small_matrices() -> None:
    program = example("sparse_digits")
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    assert program.stored(w) == 4 * 64 * 32
    assert program.stored(w * (np.arange(32) % 4 == 0)) == 4 * 64 * 8 + 64 * 32 // 8
    assert program.stored(np.outer(w[:, 0], w[0])) == 4 * (64 + 32)


def test_combined_gradients() -> None:
    """Two tasks that pull apart: the sum goes against one, UPGrad against none."""
    program = example("multitask_digits")
    g = [[np.array([1.0, 0.0])], [np.array([-4.0, 1.0])], [np.array([0.0, 1.0])]]
    against = {}
    for name, stage in program.METHODS.items():
        d = program.combined(stage, np.full(3, 1 / 3), g)[0]
        against[name] = min(float(d @ x[0]) for x in g)
    assert against["equal weights"] == pytest.approx(-1) and against["UPGrad"] > -1e-3
