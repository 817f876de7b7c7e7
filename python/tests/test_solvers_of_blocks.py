"""Laws of block descent, of mirror-prox on games, and of conjugate gradients on curved manifolds."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.solvers import spd


def quadratic(seed: int, n: int = 8):
    rng = np.random.default_rng(seed)
    H, c = spd(rng, n), rng.standard_normal(n)
    return H, c, {"gradient": lambda x: H @ x - c, "value": lambda x: float(x @ H @ x / 2 - c @ x), "second": lambda x: H}


@pytest.mark.parametrize("text", [
    "rule=random, block=3", "rule=gs, update=newton, block=2", "blocks=variable, block=3, rule=gs", "blocks=variable, block=3, rule=gsl, backtrack=true",
    "blocks=variable, block=3, rule=gsd, update=matrix", "blocks=variable, block=3, rule=gsq, update=matrix", "backtrack=true", "rule=cyclic, backtrack=true, block=2"])
def test_all_forms_reach_the_minimum(text: str) -> None:
    H, c, functions = quadratic(0)
    known = {} if "backtrack" in text and "gsd" not in text else {"hessian": H}
    got = tw.solver(f"bcd({text}, max_iter=20000, tol=1e-9)").run(x0=np.zeros(8), **known, **functions)
    assert got.converged
    np.testing.assert_allclose(got["x"], np.linalg.solve(H, c), atol=1e-7)


def test_the_first_prox_step_is_the_one_that_takes_off_most() -> None:
    """GS-q on the lasso: the decrease of the model, not the length of the step."""
    rng = np.random.default_rng(1)
    differs = 0
    for _ in range(40):
        H, L, g, x = np.diag(rng.uniform(0.2, 5, 6)), None, rng.standard_normal(6), rng.standard_normal(6)
        L, c = np.diag(H).copy(), H @ x - g
        new = np.sign(x - g / L) * np.maximum(np.abs(x - g / L) - 0.7 / L, 0)
        d = new - x
        fall = -(g * d + L / 2 * d**2 + 0.7 * (np.abs(new) - np.abs(x)))
        y = tw.solver("bcd(regularizer=l1(0.7), max_iter=1)").run(x0=x, lipschitz=L, gradient=lambda x: H @ x - c)["x"]
        moved = np.flatnonzero(y != x)
        assert list(moved) == [int(np.argmax(fall))]
        differs += int(np.argmax(L * d**2)) != moved[0]
    assert differs  # or this test says nothing


def test_variable_blocks_of_gsq_beat_those_of_the_gradient() -> None:
    falls = {}
    for rule in ("gs", "gsq"):
        total = 0.0
        for seed in range(20):
            H, c, functions = quadratic(seed)
            x = tw.solver(f"bcd(blocks=variable, block=3, rule={rule}, update=matrix, max_iter=1)").run(x0=np.zeros(8), hessian=H, gradient=functions["gradient"])["x"]
            assert np.count_nonzero(x) == 3
            total += functions["value"](x)
        falls[rule] = total
    assert falls["gsq"] < falls["gs"]


def test_backtracking_finds_the_curvature_and_newton_halves() -> None:
    got = tw.solver("bcd(backtrack=true, max_iter=1)").run(x0=np.array([1.0]), gradient=lambda x: 100 * x, value=lambda x: float(50 * x @ x))
    assert got["x"][0] == pytest.approx(1 - 100 / 128)  # 1, 2, ..., 128
    # f = sqrt(1 + x^2): the step of Newton overshoots beyond 1
    f = {"value": lambda x: float(np.sqrt(1 + x @ x)), "gradient": lambda x: x / np.sqrt(1 + x @ x), "second": lambda x: np.array([[(1 + x @ x) ** -1.5]])}
    got = tw.solver("bcd(rule=cyclic, update=newton, tol=1e-12)").run(x0=np.array([3.0]), **f)
    assert got.converged and abs(got["x"][0]) < 1e-11
    with pytest.raises(tw.NeedsError, match="lipschitz"):
        tw.solver("bcd").run(x0=np.zeros(2), gradient=lambda x: x)
    for text in ("bcd(blocks=variable, rule=cyclic)", "bcd(update=matrix, backtrack=true)", "bcd(regularizer=l1(1), update=newton)"):
        with pytest.raises(tw.RangeError):
            tw.solver(text)


def test_mirror_prox_plays_a_matrix_game_on_two_simplices() -> None:
    A = np.random.default_rng(2).standard_normal((5, 5))
    gaps = []
    for steps in (100, 400, 1600):
        z = tw.solver(f"mirror_prox(lr=0.25, max_iter={steps})").run(
            x0=np.full((2, 5), 0.2), operator=lambda z: np.stack([A @ z[1], -A.T @ z[0]]))["average"]
        np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-12)
        gaps.append(np.max(A.T @ z[0]) - np.min(A @ z[1]))
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] * 1600 < 4 * gaps[0] * 100 + 1  # 1/T
    with pytest.raises(tw.ShapeError, match="axis"):
        tw.solver("mirror_prox(axis=2)").run(x0=np.ones(3), operator=lambda z: z)


def test_conjugate_gradients_in_hyperbolic_space_and_on_definite_matrices() -> None:
    """The Frechet mean of two points is the middle of their geodesic; log det X + tr X^-1 A is least at A."""
    def distance(x, y):
        d = x - y
        return np.arccosh(1 + 2 * (d @ d) / ((1 - x @ x) * (1 - y @ y)))

    a, b = np.array([0.6, 0.2]), np.array([-0.1, 0.7])

    def spread(x):
        f = lambda x: distance(x, a) ** 2 + distance(x, b) ** 2  # noqa: E731
        h = 1e-6
        return f(x), np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(2)])

    got = tw.solver("riemannian_cg(poincare_ball, tol=1e-6, max_iter=60)").run(x0=np.array([0.01, 0.02]), value_gradient=spread)
    assert got.converged
    assert distance(got["x"], a) == pytest.approx(distance(got["x"], b), rel=1e-5)
    assert distance(got["x"], a) + distance(got["x"], b) == pytest.approx(distance(a, b), rel=1e-8)

    A = spd(np.random.default_rng(3), 5, 30.0)

    def divergence(x):
        if np.linalg.eigvalsh(x)[0] < 1e-12:  # the exponential of a long step rounds to the border
            return np.inf, 0 * x
        i = np.linalg.inv(x)
        return float(np.linalg.slogdet(x)[1] + np.trace(i @ A)), i - i @ A @ i

    got = tw.solver("riemannian_cg(spd, tol=1e-7, max_iter=200)").run(x0=np.eye(5), value_gradient=divergence)
    assert got.converged and got["iterations"] < 60
    np.testing.assert_allclose(got["x"], A, rtol=1e-5, atol=1e-5)


def test_one_row_of_gpm_is_the_power_step_on_the_sphere() -> None:
    rng = np.random.default_rng(4)
    Y, q = rng.standard_normal((4, 50)), rng.standard_normal(4)
    q /= np.linalg.norm(q)
    got = tw.solver("gpm(p=4, max_iter=3, tol=0)").run(data=Y, a0=q[None])["a"][0]
    for _ in range(3):
        q = Y @ (np.abs(Y.T @ q) ** 3 * np.sign(Y.T @ q))
        q /= np.linalg.norm(q)
    np.testing.assert_allclose(got, q, rtol=1e-12)
    with pytest.raises(tw.ShapeError, match="a0"):
        tw.solver("gpm").run(data=Y, a0=np.eye(5)[:, :4])


def test_the_dual_change_ends_the_max_margin_projection() -> None:
    """Rows of length 1e-4: their multipliers are large, and move on after the weights hardly do."""
    x, y = 1e-4 * np.array([[1.0, 0.2], [0.3, 1.0]]), np.array([1, 1])
    r = tw.solver("sequential_max_margin(tol=1e-2, max_iter=100000)").run(features=x, labels=y)
    assert r.converged and r["residual"] <= 1e-2
    exact = np.linalg.solve(x @ x.T, np.ones(2))
    assert np.max(np.abs(r["multipliers"] - exact)) < 0.1
