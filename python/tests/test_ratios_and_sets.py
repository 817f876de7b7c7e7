"""Laws of ratios, submodular differences and free discontinuities, from their cards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import thalweg as tw
from reference.solvers_ratios_and_sets import cut


@pytest.mark.parametrize("mode", ["fractional", "parametric"])
def test_a_rayleigh_quotient_falls_to_the_smallest_eigenvalue(mode: str) -> None:
    """x'Hx/2 over |x|: its square is not the quotient, so f = x'Hx/2 + 1/2 is least along the smallest eigenvector."""
    rng = np.random.default_rng(1)
    H = rng.standard_normal((5, 5))
    H = H @ H.T + 0.2 * np.eye(5)
    values = []

    def coordinate(x, i):
        values.append((x @ H @ x / 2 + 0.5) / np.linalg.norm(x))
        return float(x @ H @ x / 2 + 0.5), float(H[int(i)] @ x)

    got = tw.solver(f"fractional_cd(mode={mode}, denominator=quadratic, max_iter=3000, tol=1e-12)").run(
        x0=rng.standard_normal(5), curvature=np.diag(H).copy(), q=np.eye(5), coordinate=coordinate)
    assert np.all(np.diff(values) <= 1e-12)
    # (e r^2/2 + 1/2)/r is least at r = 1/sqrt(e), where it is sqrt(e)
    assert got["value"] == pytest.approx(np.sqrt(np.linalg.eigvalsh(H)[0]), rel=1e-6)


@pytest.mark.parametrize("text, extra", [("denominator=norm1, l1=0.3", {"a": np.random.default_rng(2).standard_normal((7, 4))}),
                                         ("denominator=top_k, k=2, l1=0.2, lo=-0.5, hi=2", {}), ("denominator=norm1, mode=parametric", {"a": np.eye(4)})])
def test_ratios_never_rise_and_no_coordinate_can_lower_them(text: str, extra: dict) -> None:
    rng = np.random.default_rng(3)
    H = rng.standard_normal((4, 4))
    H = H @ H.T + 0.3 * np.eye(4)
    l1, low, high = (0.3 if "0.3" in text else 0.2 if "0.2" in text else 0.0), (-0.5 if "lo=" in text else -np.inf), (2 if "hi=" in text else np.inf)
    g = (lambda x: np.sum(np.abs(extra["a"] @ x))) if extra else (lambda x: np.sum(np.sort(np.abs(x))[-2:]))
    ratio = lambda x: (x @ H @ x / 2 + 1 + l1 * np.sum(np.abs(x))) / g(x)  # noqa: E731
    seen = []

    def coordinate(x, i):
        seen.append(ratio(x))
        return float(x @ H @ x / 2 + 1), float(H[int(i)] @ x)

    got = tw.solver(f"fractional_cd({text}, max_iter=500)").run(x0=rng.uniform(-0.4, 1, 4), curvature=np.diag(H).copy(), coordinate=coordinate, **extra)
    assert np.all(np.diff(seen) <= 1e-10)
    x = got["x"]
    for i, e in itertools.product(range(4), np.linspace(-3, 3, 601)):
        y = x + e * np.eye(4)[i]
        if low <= y[i] <= high and g(y) > 1e-9:
            assert ratio(y) >= ratio(x) - 1e-5
    with pytest.raises(tw.RangeError, match="positive"):
        tw.solver("fractional_cd(denominator=top_k)").run(x0=np.zeros(2), curvature=np.ones(2), coordinate=lambda x, i: (1.0, 0.0))
    with pytest.raises(tw.NeedsError, match="`a`"):
        tw.solver("fractional_cd").run(x0=np.ones(2), curvature=np.ones(2), coordinate=lambda x, i: (1.0, 0.0))


def test_submodular_differences_end_in_local_minima_and_often_in_the_least() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(12):
        n = 6
        W, V = (np.triu(rng.uniform(0, 1, (n, n)), 1) for _ in range(2))
        F, G = cut(W + W.T, rng.standard_normal(n)), cut(V + V.T, rng.standard_normal(n))
        H = lambda s: F(s) - G(s)  # noqa: E731

        def chain(order):
            sets = np.tril(np.ones((n, n)))[:, np.argsort(np.asarray(order, int))]
            return np.array([F(s) for s in sets]), np.array([G(s) for s in sets])

        def flips(members):
            sets = np.abs(np.asarray(members) - np.eye(n))
            return np.array([F(s) for s in sets]), np.array([G(s) for s in sets])

        got = tw.solver("submodular_dca").run(x0=np.zeros(n), chain=chain, flips=flips)
        assert got.converged and got["value"] == pytest.approx(H(got["set"]), abs=1e-12) and got["value"] <= 0
        assert all(H(np.abs(got["set"] - e)) >= got["value"] - 1e-9 for e in np.eye(n))
        least = min(H(np.array(s, float)) for s in itertools.product((0, 1), repeat=n))
        hits += got["value"] <= least + 1e-9
    assert hits >= 8


def test_submodular_minimisation_is_exact() -> None:
    """With G = 0 one step finds the least set, as rho tends to nothing or is 0."""
    rng = np.random.default_rng(5)
    for rho in (0.0, 1e-3):
        for _ in range(6):
            n = 7
            W = np.triu(rng.uniform(0, 1, (n, n)), 1)
            F = cut(W + W.T, 1.5 * rng.standard_normal(n))
            sets = lambda order: np.tril(np.ones((n, n)))[:, np.argsort(np.asarray(order, int))]  # noqa: E731
            got = tw.solver(f"submodular_dca(rho={rho}, local=false, max_iter=3)").run(
                x0=np.zeros(n), chain=lambda o: (np.array([F(s) for s in sets(o)]), np.zeros(n)),
                flips=lambda m: (np.array([F(s) for s in np.abs(np.asarray(m) - np.eye(n))]), np.zeros(n)))
            assert got["value"] == pytest.approx(min(F(np.array(s, float)) for s in itertools.product((0, 1), repeat=n)), abs=1e-9)


def test_the_lifted_solver_cuts_where_the_exact_one_cuts() -> None:
    rng = np.random.default_rng(6)
    y = np.concatenate([np.zeros(6), np.full(5, 0.55), np.ones(5)]) + 0.02 * rng.standard_normal(16)
    y = (y - y.min()) / (y.max() - y.min())
    lam, nu = 20.0, 0.1
    got = tw.solver(f"fdr_lifted(lam={lam}, nu={nu}, levels=16, max_iter=6000, tol=1e-6)").run(f=y)
    exact = tw.solver(f"mumford_shah_1d(alpha={1 / lam}, nu={nu / lam})").run(y=y)
    assert exact["jumps"] == 2
    assert sorted(np.argsort(-np.abs(np.diff(got["u"])))[:2]) == sorted(np.argsort(-np.abs(np.diff(exact["u"])))[:2])
    np.testing.assert_allclose(got["u"], exact["u"], atol=1 / 16)  # to a label
    assert np.array_equal(np.flatnonzero(got["jumps"]), sorted(np.argsort(-np.abs(np.diff(exact["u"])))[:2]))


@pytest.mark.parametrize("n", [5000, 20040])
@pytest.mark.parametrize("name", ["simplex", "l1_ball"])
def test_most_entries_are_near_the_threshold(name: str, n: int) -> None:
    """After a step many entries lie side by side; a few at the end of a line raise the threshold above half of them."""
    x = np.where(np.arange(n) % 2 == 0, 0.01, 0.03)
    x[n // 64 * 64:] = 10
    signs = np.where(np.arange(n) % 3 == 0, -1, 1) if name == "l1_ball" else 1
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - 100) / np.arange(1, n + 1)
    theta = excess[np.flatnonzero(ordered > excess)[-1]]
    assert np.min(x) < theta < np.max(x)
    got = signs * x
    tw.constraint(f"{name}(100)").project(got)
    np.testing.assert_allclose(got, signs * np.maximum(x - theta, 0), rtol=0, atol=1e-11)  # sums of 20,000 numbers


@pytest.mark.parametrize("radius", [1.0, 1e308, 1e-300])
def test_the_simplex_reaches_over_the_range_of_doubles(radius: float) -> None:
    """Entries whose double overflows, and some that are next to nothing; of 100, so that whole stretches are skipped."""
    w = np.zeros(100)
    w[7], w[70] = 1.5 * radius, -radius
    tw.constraint(f"simplex(radius={radius})").project(w)
    expected = np.zeros(100)
    expected[7] = radius
    np.testing.assert_array_equal(w, expected)
