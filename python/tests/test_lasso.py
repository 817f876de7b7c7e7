"""lasso_cd and lasso_path: columns that are not read, designs in any layout, runs that are saved."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from reference.solvers_first_order import elastic_net

import thalweg as tw


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Columns of different lengths; in every third problem they go together."""
    rng = np.random.default_rng(seed)
    n, p = rng.integers(1, 40, 2)
    x = rng.standard_normal((n, p)) * 10.0 ** rng.uniform(-3, 3, p)
    if seed % 3 == 0:
        x += 5 * rng.standard_normal((n, 1)) * 10.0 ** rng.uniform(-3, 3, p)
    if seed % 5 == 0:
        x[:, rng.integers(p)] = 0
    return x, x @ (rng.standard_normal(p) * (rng.random(p) < 0.3)) + rng.standard_normal(n), rng


LAYOUTS = {
    "rows": lambda x: x, "columns": np.asfortranarray, "every second": lambda x: np.repeat(x, 2, 0)[::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(40))
def test_the_steps_are_those_of_plain_sweeps(seed: int, layout: str) -> None:
    x, y, rng = problem(seed)
    alpha = float(rng.choice([0.01, 0.1, 0.5]) * np.abs(x.T @ y).max() / len(y))
    l1, limit = float(rng.choice([1.0, 0.5])), int(rng.choice([1, 3, 10, 300]))
    start = rng.standard_normal(x.shape[1]) * (rng.random(x.shape[1]) < 0.5)
    want, sweeps, _ = elastic_net(x, y, start.copy(), alpha, l1, 1e-9, limit)
    solver = tw.solver(f"lasso_cd({alpha!r}, l1_ratio={l1}, tol=1e-9, max_iter={limit})")
    got = solver.run(design=LAYOUTS[layout](x), targets=y, w0=start)
    assert got.iterations == sweeps
    # sums of at most 40 terms, over a few hundred sweeps; correlated columns lose some digits
    np.testing.assert_allclose(got.w, want, rtol=1e-7, atol=1e-9 * np.abs(want).max(initial=1e-300))


@pytest.mark.parametrize("seed", range(10))
def test_a_path_is_its_points(seed: int) -> None:
    x, y, _ = problem(seed)
    path = tw.solver("lasso_path(alphas=7, path_eps=0.05, tol=1e-10)").run(design=x, targets=y)
    w = np.zeros(x.shape[1])
    for alpha, point in zip(path.penalties, path.w):
        w, _, _ = elastic_net(x, y, w.copy(), alpha, 1.0, 1e-10, 1000)
        np.testing.assert_allclose(point, w, rtol=1e-6, atol=1e-8 * np.abs(path.w).max(initial=1e-300))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_most_columns_are_not_read_and_the_answer_is_right(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 300)).astype(dtype)
    y = (x[:, :5] @ np.arange(1.0, 6) + 0.1 * rng.standard_normal(200)).astype(dtype)
    alpha = 0.1
    w = np.float64(tw.solver(f"lasso_cd({alpha}, tol=1e-7)").run(design=x, targets=y).w)
    slope = np.float64(x).T @ (np.float64(y) - np.float64(x) @ w) / len(y)
    near = 1e-4 if dtype == np.float32 else 1e-6
    assert (np.abs(slope[w == 0]) <= alpha + near).all() and (w == 0).sum() > 250
    np.testing.assert_allclose(slope[w != 0], alpha * np.sign(w[w != 0]), atol=near)


@pytest.mark.parametrize("name", ["lasso_cd(0.1)", "lasso_path(alphas=3)"])
def test_the_design_is_shown_as_it_came_and_goes_with_the_run(name: str) -> None:
    x, y, _ = problem(1)
    run = tw.solver(name).requests(design=np.asfortranarray(x), targets=y)
    np.testing.assert_array_equal(run.tensor("design"), x)
    saved = tw.solver(name).resume(run.save())
    np.testing.assert_array_equal(saved.tensor("design"), x)
    other = copy.copy(run)
    for each in (run, saved, other):
        assert list(each) == []
        np.testing.assert_array_equal(each.result.w, run.result.w)
        np.testing.assert_array_equal(each.tensor("design"), x)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(tw.ShapeError, match="axis n has 3 elements in `targets` and 4 in `design`"):
        tw.solver("lasso_cd(0.1)").run(design=np.ones((4, 2)), targets=np.ones(3))
    with pytest.raises(tw.ShapeError, match="axis p has 4 elements in `w0` and 2 in `design`"):
        tw.solver("lasso_cd(0.1)").run(design=np.ones((4, 2)), targets=np.ones(4), w0=np.ones(4))


def test_what_is_shown_of_the_design_stays_until_the_next_run() -> None:
    x, y, _ = problem(1)
    run = tw.solver("lasso_cd(0.1)").requests(design=x, targets=y)
    first = run._array(run._tensor("design"))
    second = run._array(run._tensor("design"))
    run.tensor("w")
    assert list(run) == []
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(first, x)
