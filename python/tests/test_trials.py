"""Trials whose loss is not finite are steps that fail: the search goes on nearer, as the methods' cards say."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


def barrier(x: np.ndarray) -> float:
    """x - log x summed: 1 is the minimiser, and left of 0 there is no value."""
    return float(np.sum(x - np.log(x))) if np.all(x > 0) else float("nan")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sentence", [
    "lbfgs(lr=1, max_iter=4, line_search=strong_wolfe)", "nonlinear_cg", "newton_cg", "saddle_free_newton(lr=1)",
])
def test_a_trial_without_a_value_is_passed_over(sentence: str, bad: float) -> None:
    x = np.array([3.0, 0.4, 5.0])
    optimizer = tw.Optimizer([x], sentence)
    failed = 0

    def closure(request):
        nonlocal failed
        value = barrier(x)
        if not np.isfinite(value):
            failed += 1
            return bad, [np.full(3, np.nan)]
        if request.kind == "hessian_vector":
            return value, [request.probe[0] / x**2]
        return value, [1 - 1 / x]

    start = barrier(x)
    for _ in range(12):
        before = barrier(x)
        optimizer.step(closure)
        assert np.all(np.isfinite(x)) and barrier(x) <= before + 1e-12
    assert barrier(x) < start - 1
    assert failed > 0 or sentence != "newton_cg"


def test_the_first_loss_of_a_step_must_be_finite() -> None:
    x = np.array([3.0])
    optimizer = tw.Optimizer([x], "lbfgs(line_search=strong_wolfe)")
    with pytest.raises(tw.Error, match="loss"):
        optimizer.step(lambda request: (float("nan"), [np.ones(1)]))
    assert x[0] == 3.0
