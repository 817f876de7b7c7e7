"""Penalties of embeddings, anchors, gradients, solver stages and nets: the checks of their cards, and public peers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import thalweg as tw
from reference import penalties_informed as R


def test_flops_like_even_columns() -> None:
    even, uneven = np.full((3, 4), 0.25), np.zeros((3, 4))
    uneven[:, 1] = 1.0  # the same L1 norm
    mine, l1 = tw.regularizer("flops_reg"), tw.regularizer("activation_l1")
    assert l1.value(even) == l1.value(uneven) == 1
    assert mine.value(even) == pytest.approx(0.25) and mine.value(uneven) == pytest.approx(1.0)
    row = np.array([[1.0, -2.0, 3.0]])
    assert mine.value(row) == pytest.approx(14)
    with pytest.raises(tw.ShapeError, match="rank 2"):
        mine.value(np.ones(3))


def test_least_volume_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(1).standard_normal((8, 5))
    z[:, 2] = 3.0  # a dead column counts log(eta)
    mine = tw.regularizer("least_volume(0.7, eta=0.3)")
    x = torch.from_numpy(z)
    assert mine.value(z) == pytest.approx(0.7 * torch.exp(torch.log(x.std(0) + 0.3).mean()).item(), rel=1e-13)
    g = mine.gradient(z)
    assert not g[:, 2].any() and np.all(np.isfinite(g))
    with pytest.raises(tw.ShapeError, match="1 samples"):
        mine.value(np.ones((1, 3)))
    assert tw.regularizer("least_volume(1, eta=0.3, ddof=0)").value(np.ones((1, 3))) == pytest.approx(0.3)


def test_anchors() -> None:
    rng = np.random.default_rng(2)
    w, a = rng.standard_normal((2, 5, 3))
    mine, l2 = tw.regularizer("l2_init(0.3)"), tw.regularizer("l2(0.3)")
    assert mine.value(w, anchor=0 * a) == pytest.approx(l2.value(w), rel=1e-14)
    np.testing.assert_allclose(mine.gradient(w, anchor=0 * a), l2.gradient(w), rtol=1e-14)
    assert mine.value(w, anchor=w) == 0
    with pytest.raises(tw.RangeError, match="precision.*-1"):
        mine.value(w, anchor=a, precision=np.full_like(w, -1.0))
    with pytest.raises(tw.NeedsError, match="anchor"):
        mine.value(w)
    with pytest.raises(tw.ShapeError):
        mine.value(w, anchor=a.T)
    with pytest.raises(tw.NeedsError, match="laplacian_smoothness needs .* which a pipeline cannot give it"):
        tw.Optimizer([w.copy()], "penalty(laplacian_smoothness) | sgd(lr=0.1)")


def test_wasserstein_is_the_best_matching() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(3)
    w, a = rng.standard_normal((2, 12))
    rows, columns = optimize.linear_sum_assignment((w[:, None] - a[None]) ** 2)
    mine = tw.regularizer("wasserstein_init(1)")
    assert mine.value(w, initial=a) == pytest.approx(np.sum((w[rows] - a[columns]) ** 2), rel=1e-13)
    assert mine.value(rng.permutation(a), initial=a) == 0
    order = rng.permutation(12)
    np.testing.assert_array_equal(mine.gradient(w[order], initial=a), mine.gradient(w, initial=a)[order])
    # equal entries keep their order: the first takes the smaller value
    assert mine.gradient(np.array([1.0, 0.5, 1.0]), initial=np.array([3.0, 1.0, 2.0])).tolist() == [-2.0, -1.0, -4.0]
    with pytest.raises(tw.NonfiniteError):
        mine.value(np.array([1.0, np.nan]), initial=np.ones(2))


def test_relevance_of_weights_without_gradient_is_decay() -> None:
    w = np.random.default_rng(4).standard_normal(20)
    mine = tw.regularizer("relevance_reg(0.3, alpha=0.1)")
    np.testing.assert_allclose(mine.gradient(w, grad=0 * w), 0.6 * w, rtol=1e-14)
    assert np.abs(mine.gradient(w, grad=np.full(20, 100.0))).max() < 1e-300


def test_laplacian_by_pairs() -> None:
    rng = np.random.default_rng(5)
    f, x, lam = rng.standard_normal((7, 2)), rng.standard_normal((7, 3)), rng.uniform(0, 2, 7)
    s = np.exp(-np.sum((x[:, None] - x[None]) ** 2, -1))
    pairs = sum((lam[i] + lam[j]) / 2 * s[i, j] * np.sum((f[i] - f[j]) ** 2) for i, j in itertools.combinations(range(7), 2))
    mine = tw.regularizer("laplacian_smoothness")
    assert mine.value(f, similarity=s, lam=lam) == pytest.approx(pairs, rel=1e-13)
    assert mine.value(np.ones((7, 2)), similarity=s) == 0
    with pytest.raises(tw.RangeError, match="similarity"):
        mine.value(f, similarity=-s)


# ---- neural ODEs

A = [[], [0.161], [-0.008480655492356989, 0.335480655492357], [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
     [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525]]


def tsit5(f, u: np.ndarray, dt: float) -> np.ndarray:
    k: list[np.ndarray] = []
    for row in [*A, R.A6[:5], R.A7[:6]]:
        k.append(f(u + dt * sum((a * x for a, x in zip(row, k)), 0 * u)))
    return np.array(k)


def test_the_estimated_error_has_order_five() -> None:
    """One step of half the size has an error 32 times smaller, so E dt falls by 64, and the step itself is of order 5."""
    f, u = (lambda y: np.array([y[1], -np.sin(y[0])])), np.array([1.0, 0.3])
    mine = tw.objective("ode_error_reg(atol=1, rtol=1e-12, weight=1)")
    values, gaps = [], []
    for dt in (0.4, 0.2, 0.1):
        k = tsit5(f, u, dt)
        values.append(mine(k=k[None], u0=u[None], dt=np.array([dt])))
        fine = u.copy()
        for _ in range(64):
            kk = tsit5(f, fine, dt / 64)
            fine = fine + dt / 64 * np.tensordot(R.A7, kk, 1)
        gaps.append(np.abs(u + dt * np.tensordot(R.A7, k, 1) - fine).max())
    assert 40 < values[0] / values[1] < 100 and 40 < values[1] / values[2] < 100
    assert gaps[0] / gaps[1] > 40 and gaps[1] / gaps[2] > 40  # 64 at least: the leading term is small here


def test_a_step_that_stands_still_counts_nothing() -> None:
    k, u0, dt = np.zeros((2, 7, 3)), np.ones((2, 3)), np.array([0.1, 0.2])
    for text in ("ode_error_reg(atol=1e-3, rtol=1e-3)", "ode_stiffness_reg"):
        value, g = tw.objective(text).value_and_grad(k=k, u0=u0, dt=dt)
        assert value == 0 and not g["k"].any() and not g["u0"].any()
    k[0] = np.inf
    for text in ("ode_error_reg(atol=1e-3, rtol=1e-3)", "ode_stiffness_reg"):
        value, g = tw.objective(text).value_and_grad(k=k, u0=u0, dt=dt)
        assert value == 0 and not g["k"].any()


def test_stiffness_of_a_linear_equation_is_its_rate() -> None:
    """With f(u) = -r u, k7 - k6 = -r (g7 - g6)."""
    for r in (0.5, 40.0):
        u = np.array([1.0, 2.0])
        k = tsit5(lambda y: -r * y, u, 0.01)
        value = tw.objective("ode_stiffness_reg(1, stability=2)")(k=k[None], u0=u[None], dt=np.array([0.01]))
        assert value == pytest.approx(r / 2, rel=1e-9)


# ---- nets


@pytest.mark.parametrize("q", [1.0, 2.0, 0.5])
def test_path_norm_by_all_paths(q: float) -> None:
    rng = np.random.default_rng(6)
    w1, w2, w3 = rng.standard_normal((3, 2)), rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    b1, b3 = rng.standard_normal(3), rng.standard_normal(2)
    paths = sum(abs(w3[i, j] * w2[j, k] * w1[k, l]) ** q for i in range(2) for j in range(4) for k in range(3) for l in range(2))
    paths += sum(abs(w3[i, j] * w2[j, k] * b1[k]) ** q for i in range(2) for j in range(4) for k in range(3)) + np.sum(np.abs(b3) ** q)
    mine = tw.objective(f"path_norm({q}, weight=1)")
    assert mine(w1=w1, b1=b1, w2=w2, w3=w3, b3=b3) == pytest.approx(paths ** (1 / q), rel=1e-12)


def test_path_norm_does_not_see_a_rescaled_neuron() -> None:
    rng = np.random.default_rng(7)
    w1, w2 = rng.standard_normal((3, 2)), rng.standard_normal((2, 3))
    mine = tw.objective("path_norm(1, weight=1)")
    before = mine(w1=w1, w2=w2)
    w1[1] *= 7
    w2[:, 1] /= 7
    assert mine(w1=w1, w2=w2) == pytest.approx(before, rel=1e-13)
    big = {f"w{l}": np.full((3, 3), 1e60) for l in range(1, 6)}  # the largest h is 3e300 * 3^4
    assert mine(**big) == pytest.approx(3.0**6 * 1e300, rel=1e-12)
    tiny = tw.objective("path_norm(2, weight=1)").value_and_grad(**{f"w{l}": np.full((3, 3), 1e-50) for l in range(1, 7)})
    assert tiny[0] == pytest.approx(3.0**3.5 * 1e-300, rel=1e-10) and tiny[1]["w1"][0, 0] == pytest.approx(3.0**1.5 * 1e-250, rel=1e-10)
    with pytest.raises(tw.NeedsError, match="`w2` is missing"):
        mine(w1=w1, w3=w2)
    with pytest.raises(tw.ShapeError, match="n1"):
        mine(w1=w1, w2=np.ones((2, 4)))
