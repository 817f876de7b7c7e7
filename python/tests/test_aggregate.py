"""Aggregators on gradients that are there already: the same numbers as in a sentence."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw

NAMES = [m.name for m in tw.methods() if m.kind == "aggregator" and "task_gradient" in m.requests]
SETTINGS = {"krum": "n_byzantine=1"}
ROWS = {"bloop": 2, "prograd": 2, "odice": 3}  # the others take any number of tasks


def jacobian(name: str, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS.get(name, 5), 12)).astype(dtype)


def sentence(name: str) -> str:
    settings = SETTINGS.get(name, "")
    return f"{name}({settings})" if settings else name


def stepped(name: str, J: np.ndarray) -> np.ndarray:
    """The update of SGD behind the aggregator."""
    x = np.ones(J.shape[1:], J.dtype)
    tasks = "" if name in ROWS else f"tasks={len(J) - (name == 'pareto_da')}"  # which asks for one that is of no task
    inside = ", ".join(part for part in (tasks, SETTINGS.get(name, "")) if part)
    opt = tw.Optimizer([x], f"{name}({inside}) | sgd(lr=1)")
    for request in opt.requests():
        request.answer([J[request.index]])
    return 1 - x


@pytest.mark.parametrize("name", NAMES)
def test_as_in_a_sentence(name: str) -> None:
    J = jacobian(name)
    before = J.copy()
    combined = tw.aggregate(sentence(name))(J)
    assert combined.shape == (12,) and combined.dtype == np.float64
    np.testing.assert_allclose(combined, stepped(name, J), rtol=1e-12, atol=4e-16)  # 1 - (1 - g) rounds at 1
    np.testing.assert_array_equal(J, before)


COMBINE = r"""
#include <thalweg/thalweg.hpp>
#include <cstdio>
int main(int count, char** words) {  // a sentence, its rows, and so on; doubles in and out
  std::vector<double> jacobian(5 * 12), combined(12);
  if (std::fread(jacobian.data(), 8, jacobian.size(), stdin) != jacobian.size()) return 1;
  for (int i = 1; i + 1 < count; i += 2) {
    thalweg::Aggregator aggregate(words[i]);
    for (int call = 0; call < 2; ++call) {  // the second with what is remembered of the first
      aggregate(thalweg::Tensor(jacobian.data(), {std::stol(words[i + 1]), 12}), thalweg::Tensor(combined));
      std::fwrite(combined.data(), 8, combined.size(), stdout);
      double residual = 0;
      try {
        residual = aggregate.get("residual");
      } catch (const thalweg::Error&) {  // the method tells none
      }
      std::fwrite(&residual, 8, 1, stdout);
    }
  }
}
"""


def test_cpp_has_the_same_bits(tmp_path: Path) -> None:
    """thalweg::Aggregator, which is inline in thalweg.hpp, over every method."""
    include, library = Path(__file__).parents[2] / "include", Path(tw.__file__).parent / "lib" / "libthalweg.so.1"
    compiler = shutil.which("c++")
    if compiler is None or not include.is_dir() or not library.exists():
        pytest.skip("no compiler, or header and library are not where a checkout has them")
    (tmp_path / "combine.cpp").write_text(COMBINE)
    subprocess.run([compiler, "-std=c++17", "-I", include, "combine.cpp", library, "-o", "combine"], cwd=tmp_path, check=True)
    words = [word for name in NAMES for word in (sentence(name), str(len(jacobian(name))))]
    done = subprocess.run([tmp_path / "combine", *words], input=jacobian("").tobytes(), capture_output=True, check=True,
                          env=os.environ | {"LD_LIBRARY_PATH": str(library.parent)})
    combined = np.frombuffer(done.stdout).reshape(len(NAMES), 2, 13)
    for name, got in zip(NAMES, combined, strict=True):
        aggregate = tw.aggregate(sentence(name))
        for row in got:
            np.testing.assert_array_equal(row[:12], aggregate(jacobian(name)), err_msg=name)
            with contextlib.suppress(tw.UnknownNameError):
                assert row[12] == aggregate.get("residual")


ALONE = r"""
#include <thalweg/thalweg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define MUST(call) do { if ((call) != TW_OK) { fprintf(stderr, "%s: %s\n", #call, tw_last_error()); exit(1); } } while (0)

enum { N = 12, MOST = 5 };
static tw_tensor matrix(double *p, int64_t *shape, int32_t ndim) {
  tw_tensor t = {0};
  t.data = p, t.dtype = TW_F64, t.ndim = ndim, t.shape = shape;
  return t;
}
static tw_tensor absent(void) {
  tw_tensor t = {0};
  t.flags = TW_TENSOR_ABSENT;
  return t;
}
/* out: the value, the gradient, 1 and the weights, 1, residual and iterations, or 0 where there are none */
static void call(tw_objective *o, double *J, int64_t rows, double *out) {
  tw_cache *cache = NULL;
  int64_t shape[2] = {rows, N}, n = N;
  tw_tensor in = matrix(J, shape, 2), wanted[6];
  for (int i = 0; i < 6; i += 1) wanted[i] = absent();
  MUST(tw_cache_create(&cache));
  MUST(tw_objective_forward(o, &in, 1, cache, out));
  wanted[2] = matrix(out + 1, &n, 1);
  MUST(tw_objective_pullback(o, cache, 1.0, wanted, 3));
  wanted[2] = absent();
  wanted[3] = matrix(out + 2 + N, &rows, 1);
  tw_status s = tw_objective_pullback(o, cache, 1.0, wanted, 4);
  if (s == TW_OK) out[1 + N] = 1;
  else if (s != TW_ERROR_NEEDS) MUST(s);
  wanted[3] = absent();
  wanted[4] = matrix(out + 3 + N + MOST, NULL, 0);
  wanted[5] = matrix(out + 4 + N + MOST, NULL, 0);
  s = tw_objective_pullback(o, cache, 1.0, wanted, 6);
  if (s == TW_OK) out[2 + N + MOST] = 1;
  else if (s != TW_ERROR_NEEDS) MUST(s);
  MUST(tw_cache_destroy(cache));
}
int main(int count, char **words) { /* a sentence, its rows, and so on */
  double J[MOST * N];
  if (fread(J, 8, MOST * N, stdin) != MOST * N) return 1;
  for (int i = 1; i + 1 < count; i += 2) {
    tw_objective *o = NULL, *other = NULL;
    int64_t rows = atoi(words[i + 1]), bad[2] = {rows, N - 1};
    double out[3][5 + N + MOST] = {{0}}, value = 0;
    size_t size = 0;
    MUST(tw_objective_create(words[i], &o));
    call(o, J, rows, out[0]);
    MUST(tw_objective_save(o, NULL, 0, &size));
    void *saved = malloc(size);
    MUST(tw_objective_save(o, saved, size, &size));
    MUST(tw_objective_create(words[i], &other));
    MUST(tw_objective_load(other, saved, size));
    call(o, J, rows, out[1]); /* with what is remembered of the first call, here and in the other */
    call(other, J, rows, out[2]);
    tw_tensor in = matrix(J, bad, 2);
    if (tw_objective_forward(o, &in, 1, NULL, &value) != TW_ERROR_SHAPE) return 2;
    int64_t good[2] = {rows, N}; /* losses that nothing looks at; a task with a NaN */
    tw_tensor two[2] = {matrix(J, good, 2), matrix(J, &rows, 1)};
    if (tw_objective_forward(o, two, 2, NULL, &value) != TW_ERROR_ARGUMENT) return 3;
    double before = J[N + 1];
    J[N + 1] = 0.0 / 0.0;
    if (tw_objective_forward(o, two, 1, NULL, &value) != TW_ERROR_NONFINITE || !strstr(tw_last_error(), "task 1")) return 4;
    J[N + 1] = before;
    fwrite(out, 8, sizeof out / 8, stdout);
    free(saved);
    MUST(tw_objective_destroy(o));
    MUST(tw_objective_destroy(other));
  }
  return 0;
}
"""
WITHOUT_WEIGHTS = {"coordinate_median", "trimmed_mean", "median_gd", "graddrop", "and_mask", "sam_gs", "gcond", "bloop", "prograd"}


def test_the_objective_handle_of_c_combines(tmp_path: Path) -> None:
    """Every aggregator as tw_objective: gradient, weights, how well it converged; memory saved and taken up."""
    include, library = Path(__file__).parents[2] / "include", Path(tw.__file__).parent / "lib" / "libthalweg.so.1"
    compiler = shutil.which("cc")
    if compiler is None or not include.is_dir() or not library.exists():
        pytest.skip("no compiler, or header and library are not where a checkout has them")
    (tmp_path / "alone.c").write_text(ALONE)
    subprocess.run([compiler, "-std=c99", "-Wall", "-Werror", "-I", include, "alone.c", library, "-o", "alone"], cwd=tmp_path,
                   check=True)
    words = [word for name in NAMES for word in (sentence(name), str(len(jacobian(name))))]
    done = subprocess.run([tmp_path / "alone", *words], input=jacobian("").tobytes(), capture_output=True, check=True,
                          env=os.environ | {"LD_LIBRARY_PATH": str(library.parent)})
    found = np.frombuffer(done.stdout).reshape(len(NAMES), 3, 5 + 12 + 5)
    for name, (first, second, resumed) in zip(NAMES, found, strict=True):
        aggregate, J = tw.aggregate(sentence(name)), jacobian(name)
        for row in (first, second):
            g = aggregate(J)
            np.testing.assert_array_equal(row[1:13], g, err_msg=name)
            assert row[0] == pytest.approx(np.linalg.norm(g), rel=1e-12)
            assert bool(row[13]) == (name not in WITHOUT_WEIGHTS), name
            if row[13]:  # sums of other orders
                np.testing.assert_allclose(row[14 : 14 + len(J)] @ J, g, rtol=1e-9, atol=1e-12 * np.abs(J).max())
            try:
                told = [1, aggregate.get("residual"), aggregate.get("iterations")]
            except tw.UnknownNameError:
                told = [0, 0, 0]
            np.testing.assert_array_equal(row[19:], told, err_msg=name)
        np.testing.assert_array_equal(second, resumed)


def test_what_is_known() -> None:
    J = np.array([[1.0, 0.0], [-0.5, 1.0]])
    # pcgrad: each less its part along the other that it is against; the sum
    first, second = J[0] - (J[0] @ J[1]) / (J[1] @ J[1]) * J[1], J[1] - (J[1] @ J[0]) / (J[0] @ J[0]) * J[0]
    np.testing.assert_allclose(tw.aggregate("pcgrad(reduction=sum)")(J), first + second, rtol=1e-14)
    np.testing.assert_array_equal(tw.aggregate("coordinate_median")(np.array([[1.0, 9], [2, 7], [4, 8]])), [2, 8])


def test_tensors_of_a_model_share_the_weights() -> None:
    J = jacobian("upgrad")
    whole = tw.aggregate("upgrad")(J)
    parts = tw.aggregate("upgrad")([J[:, :4].reshape(5, 2, 2), J[:, 4:]])
    assert [p.shape for p in parts] == [(2, 2), (8,)]
    np.testing.assert_allclose(np.concatenate([p.ravel() for p in parts]), whole, rtol=1e-12)


def test_what_is_remembered_belongs_to_the_object() -> None:
    """gradvac's averages of similarities: the second call differs from a first one, as it does in a run."""
    J = jacobian("gradvac")
    mine, x = tw.aggregate("gradvac(beta=0.5)"), np.zeros(12)
    opt = tw.Optimizer([x], "gradvac(tasks=5, beta=0.5) | sgd(lr=1)")
    for _ in range(3):
        x[...] = 0
        for request in opt.requests():
            request.answer([J[request.index]])
        np.testing.assert_array_equal(mine(J), 0 - x)
    assert not np.array_equal(mine(J), tw.aggregate("gradvac(beta=0.5)")(J))


def test_losses() -> None:
    J = jacobian("mgda")
    a, b = tw.aggregate("mgda(normalize=loss)"), tw.aggregate("mgda(normalize=none)")
    losses = np.array([1.0, 2, 4, 8, 16])
    np.testing.assert_allclose(a(J, losses=losses), b(J / losses[:, None]), rtol=1e-9)


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    J = torch.randn(3, 7, requires_grad=True)
    combined = tw.aggregate("upgrad")(J)
    assert isinstance(combined, torch.Tensor) and combined.dtype is torch.float32 and not combined.requires_grad
    np.testing.assert_array_equal(combined.numpy(), tw.aggregate("upgrad")(J.detach().numpy()))


@pytest.mark.parametrize("call, problem, words", [
    (lambda: tw.aggregate("adamw"), tw.MethodError, "does not combine"),
    (lambda: tw.aggregate("fedavg(participants=3)"), tw.MethodError, "does not combine"),
    (lambda: tw.aggregate("upgrad | sgd"), tw.RangeError, "one stage"),
    (lambda: tw.aggregate("upgrad(tasks=3)")(np.ones((4, 2))), tw.CountError, "3 tasks, got 4"),
    (lambda: tw.aggregate("upgrad")(np.ones((0, 2))), tw.CountError, "at least one"),
    (lambda: tw.aggregate("upgrad")(np.float64(1)), tw.ShapeError, "one row a task"),
    (lambda: tw.aggregate("upgrad")([np.ones((2, 2)), np.ones((3, 2))]), tw.ShapeError, "one row a task"),
    (lambda: tw.aggregate("upgrad")(np.ones((2, 2), int)), tw.DtypeError, "int64"),
    (lambda: tw.aggregate("upgrad")(np.ones((2, 2)), losses=[1.0]), tw.CountError, "2 losses"),
    (lambda: tw.aggregate("upgrad")(np.full((2, 2), np.nan)), tw.NonfiniteError, "NaN"),
    (lambda: tw.aggregate("upgrad("), tw.SentenceError, "expected"),
    (lambda: tw.aggregate("upgrad(no=1)"), tw.UnknownNameError, "`no`"),
    (lambda: tw.aggregate("upgrad")(np.ma.masked_array(np.ones((2, 2)), [[0, 1], [0, 0]])), tw.DtypeError, "jacobian: a masked array")])
def test_refusals(call: object, problem: type[Exception], words: str) -> None:
    with pytest.raises(problem, match=words):
        call()  # type: ignore[operator]


def test_a_refused_call_leaves_the_object_as_it_was() -> None:
    mine, other, J = tw.aggregate("gradvac(beta=0.5)"), tw.aggregate("gradvac(beta=0.5)"), jacobian("gradvac")
    np.testing.assert_array_equal(mine(J), other(J))
    for bad, problem in ((np.full_like(J, np.nan), tw.NonfiniteError), (J[:4], tw.CountError), (J[:, :3], tw.ShapeError)):
        with pytest.raises(problem):
            mine(bad)
    np.testing.assert_array_equal(mine(J), other(J))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_is_not_finite_is_named(name: str, bad: float) -> None:
    J = jacobian(name)
    J[-1, 3] = bad
    with pytest.raises(tw.NonfiniteError, match=f"of task {len(J) - 1} has 1 elements"):
        tw.aggregate(sentence(name))(J)


@pytest.mark.parametrize("scales", [(1e30, 1e-30, 1, 1e10, 1e-10), (1e-30, 1e30, 1e-10, 1, 1)])
@pytest.mark.parametrize("name", ["prograd", "sam_gs"])
def test_float32_of_unlike_sizes_is_float64_rounded(name: str, scales: tuple[float, ...]) -> None:
    """Quotients of lengths leave the range of floats, where the products with the gradients do not."""
    J = (np.abs(jacobian(name)) * np.array(scales)[: ROWS.get(name, 5), None]).astype(np.float32)
    want = tw.aggregate(sentence(name))(J.astype(np.float64))
    assert np.isfinite(want).all() and np.abs(want).max() < 3e38
    np.testing.assert_allclose(tw.aggregate(sentence(name))(J), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_sam_gs_of_the_smallest_numbers() -> None:
    """Their lengths are below all normal floats, and the power of two that lifts them is above them."""
    assert np.isfinite(tw.aggregate("sam_gs")(np.full((3, 12), 1e-45, np.float32))).all()
