"""acoder_vr by its card: the lasso's optimum, and a linear rate where the regularizer is strongly convex."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw


def problem() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(0)
    data, y = rng.standard_normal((40, 8)), rng.standard_normal(40)
    return data, y, {
        "full_gradient": lambda w: data.T @ (data @ w - y) / 40,
        "sample_block": lambda w, t, first, length: data[int(t)] * (data[int(t)] @ w - y[int(t)]),
    }


def test_acoder_vr_reaches_the_lasso() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    data, y, functions = problem()
    coef = linear.Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000).fit(data, y).coef_
    value = lambda w: np.sum((y - data @ w) ** 2) / 80 + 0.05 * np.abs(w).sum()  # noqa: E731
    for more in ("", ", block=3, seed=4", ", inner=10"):
        r = tw.solver(f"acoder_vr(lipschitz=8, samples=40, max_iter=60, regularizer=l1(0.05){more})").run(x0=np.zeros(8), **functions)
        assert value(coef) - 1e-12 <= value(r.x) <= value(coef) + 1e-4, more
        early = tw.solver(f"acoder_vr(lipschitz=8, samples=40, max_iter=2, regularizer=l1(0.05){more})").run(x0=np.zeros(8), **functions)
        assert 0 <= r.residual < 0.1 * early.residual < np.inf, more


def test_acoder_vr_has_a_linear_rate() -> None:
    """With g = |w|^2/4 and gamma = 1/2: the error falls by a constant factor an epoch."""
    data, y, functions = problem()
    want = np.linalg.solve(data.T @ data / 40 + 0.5 * np.eye(8), data.T @ y / 40)
    errors = []
    for epochs in (10, 20, 40):
        r = tw.solver(f"acoder_vr(lipschitz=8, gamma=0.5, samples=40, max_iter={epochs}, regularizer=l2(0.5))").run(x0=np.zeros(8), **functions)
        errors.append(np.linalg.norm(r.x - want))
    assert errors[1] < 0.05 * errors[0] and errors[2] < 0.05**2 * errors[1]  # twice as many epochs


def test_acoder_vr_of_one_sample_asks_in_order() -> None:
    """Every epoch: one full gradient; every block: four points of the same sample."""
    data, y, functions = problem()
    asked: list[Any] = []

    def full(w: np.ndarray) -> np.ndarray:
        asked.append("full")
        return functions["full_gradient"](w)

    def block(w: np.ndarray, t: float, first: float, length: float) -> np.ndarray:
        asked.append((int(t), int(first), int(length)))
        return functions["sample_block"](w, t, first, length)

    tw.solver("acoder_vr(lipschitz=8, samples=40, inner=2, block=3, max_iter=2)").run(x0=np.zeros(8), full_gradient=full, sample_block=block)
    assert asked[0] == asked[1] == "full" and len(asked) == 1 + 2 * (1 + 2 * 3 * 4)
    cycle = asked[2 : 2 + 12]
    assert [c[1:] for c in cycle[::4]] == [(6, 2), (3, 3), (0, 3)]
    assert all(len(set(cycle[i : i + 4])) == 1 for i in (0, 4, 8))
