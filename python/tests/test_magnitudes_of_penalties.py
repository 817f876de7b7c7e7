"""Penalties of very large and very small numbers: what the formula gives as long as it is a number of the type."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


@pytest.mark.parametrize("size", [1e20, 1e30, 1e-25, 1e-30])
@pytest.mark.parametrize("text", ["l2(0.3)", "elastic_net(0.3)", "elastic_net(0.3, l1_ratio=1)", "l1(0.3)", "huber_penalty(0.3)", "log_cosh(0.3)"])
def test_values_of_floats_are_taken_in_double(text: str, size: float) -> None:
    """A square of 1e20 or of 1e-25 is out of the range of float32; the value, a double, is not."""
    w = (size * np.random.default_rng(0).standard_normal(9000)).astype(np.float32)  # more than one block
    want = tw.regularizer(text).value(w.astype(np.float64))
    assert 0 < want < np.inf
    assert tw.regularizer(text).value(w) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("dtype, size", [(np.float32, 1e-41), (np.float64, 1e-318), (np.float64, 1e-200), (np.float32, 1e-20)])
@pytest.mark.parametrize("text", ["group_lasso(0.3)", "group_lasso(0.3, axis=col)", "l21(0.3, axis=all)", "sparse_group_lasso(0.3, l1_ratio=0)"])
def test_directions_of_tiny_groups(text: str, dtype: type, size: float) -> None:
    w = np.zeros((3, 4), dtype)
    w[0], w[1, 2] = size * np.array([1.0, -2.0, 0.0, 2.0]), size
    w[2] = 1.0 if "col" not in text else 0.0
    if "all" in text:
        w[2] = 0.0
    x = np.where(w == 1, 0, w).astype(np.float64) / float(w[1, 2])  # small multiples of one another
    want = tw.regularizer(text).gradient(np.where(w == 1, 1.0, x))
    np.testing.assert_allclose(tw.regularizer(text).gradient(w), want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype, size", [(np.float32, 1e-41), (np.float64, 1e-318)])
def test_norm_loss_of_tiny_rows(dtype: type, size: float) -> None:
    w = size * np.array([[1, -2, 2], [0, 0, 0]], dtype)
    penalty, unit = tw.regularizer("norm_loss(weight=0.5, eps=0)"), np.array([[1, -2, 2], [0, 0, 0]]) / 3
    np.testing.assert_allclose(penalty.gradient(w), -unit, rtol=1e-5)
    np.testing.assert_allclose(penalty.prox(w.copy(), 1.0), unit / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-250, 1e-30, 1.0])
def test_a_strong_total_variation_leaves_the_mean(size: float) -> None:
    w = size * np.random.default_rng(1).standard_normal(50)
    np.testing.assert_allclose(tw.regularizer("tv_1d(1e4)").prox(w.copy(), 1.0), np.full(50, w.mean()), rtol=1e-12)
    at = np.max(np.abs(np.cumsum(w - w.mean())))  # below it the result has a jump
    u = tw.regularizer("tv_1d(1)").prox(w.copy(), 0.999 * at)
    assert np.ptp(u) > 1e-6 * size
    assert u.sum() == pytest.approx(w.sum(), rel=1e-10)
