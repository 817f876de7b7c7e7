"""What the cards of the solvers and aggregators say, sentence by sentence, where it was once not so."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8])
def test_exact_al_sqp_measures_dependence_against_the_jacobian(size: float) -> None:
    def run(J: np.ndarray) -> tw.SolverResult:
        return tw.solver("exact_al_sqp(max_iter=1, sketch_steps=10)").run(
            x0=np.ones(3), multipliers0=np.zeros(2), problem=lambda x: (float(x @ x), 2 * x, J @ x, J),
            lagrangian_hessian=lambda x, l: 2 * np.eye(3))

    assert run(size * np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])).outcome != "nonfinite"
    with pytest.raises(tw.NumericError, match="not independent"):
        run(size * np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))


def test_infinite_constraints_end_primal_dual_and_leave_the_multipliers() -> None:
    values = iter([1.0, np.inf, -1.0])

    def constraints() -> tuple[np.ndarray, np.ndarray]:
        c = np.array([next(values)])
        return c, c

    found = tw.solver("primal_dual(inequalities=1, lr_dual=0.5)").run(constraints=constraints, descend=lambda weights: None)
    assert found.outcome == "nonfinite" and found.multipliers == pytest.approx([0.5])


def test_infinite_constraints_end_augmented_lagrangian() -> None:
    values = iter([1.0, 1.0, np.inf])
    found = tw.solver("augmented_lagrangian(inequalities=1, inner_steps=1)").run(
        constraints=lambda: np.array([next(values)]), descend=lambda weights: None)
    assert found.outcome == "nonfinite" and found.multipliers == pytest.approx([1.0])


@pytest.mark.parametrize("last", [np.nan, np.inf, 100.0])
def test_strong_wolfe_leaves_no_step_that_has_not_fallen(last: float) -> None:
    found = tw.solver("strong_wolfe(c2=0.5, max_iter=3)").run(
        phi0=0.0, dphi0=-1.0, value=lambda a: -float(a) if a <= 4 else last, slope=lambda a: -1.0)
    assert (found.outcome, found.alpha, found.phi, found.dphi) == ("max_iter", 4.0, -4.0, -1.0)


def test_a_slope_that_is_nan_ends_strong_wolfe() -> None:
    found = tw.solver("strong_wolfe").run(phi0=1.0, dphi0=-2.0, value=lambda a: (a - 1) ** 2, slope=lambda a: float("nan"))
    assert (found.outcome, found.alpha) == ("nonfinite", 0.0)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_minres_ends_at_a_singular_system_without_a_solution(kind: type) -> None:
    A = np.diag([1.0, 0.0]).astype(kind)
    found = tw.solver("minres(rtol=1e-8)").run(b=np.ones(2, kind), product=lambda v: A @ v)
    assert found.outcome == "max_iter" and np.abs(found.x).max() < 10
    for seed in range(10):  # here rounding fills the null space step by step
        draw = np.random.default_rng(seed)
        n = int(draw.integers(5, 40))
        q, values, b = np.linalg.qr(draw.standard_normal((n, n)))[0], draw.standard_normal(n), draw.standard_normal(n).astype(kind)
        values[: n // 3] = 0
        A = (q * values @ q.T).astype(kind)
        found = tw.solver("minres(rtol=1e-8)").run(b=b, product=lambda v, A=A: A @ v)
        assert found.outcome == "max_iter"
        assert np.linalg.norm(A @ found.x - b) <= 1.1 * np.linalg.norm(q[:, : n // 3].T @ b)


def test_douglas_rachford_makes_as_many_steps_as_it_says() -> None:
    sets = (lambda x: x - max(x @ [1, 2] - 1, 0) / 5 * np.array([1.0, 2.0]),
            lambda x: np.array([3.0, 0.0]) + (x - [3, 0]) * min(1, 0.5 / np.linalg.norm(x - [3, 0])))
    x0 = np.array([5.0, 4.0])
    found = tw.solver("douglas_rachford(max_iter=1)").run(x0=x0, project=lambda point, set: sets[int(set)](point))
    z = 0.5 * x0 + 0.5 * (2 * sets[1](2 * sets[0](x0) - x0) - (2 * sets[0](x0) - x0))
    np.testing.assert_allclose(found.z, z, rtol=1e-14)
    np.testing.assert_allclose(found.x, sets[0](z), rtol=1e-14)
    found = tw.solver("difference_map(max_iter=1)").run(x0=x0, project=lambda point, set: sets[int(set)](point))
    np.testing.assert_allclose(found.z, x0 + sets[0](2 * sets[1](x0) - x0) - sets[1](x0), rtol=1e-14)


@pytest.mark.parametrize("relax", [0.3, 1.8, 1.95])
def test_net_trim_converges_with_every_relaxation(relax: float) -> None:
    X, w = np.random.default_rng(41).standard_normal((8, 40)), np.zeros(8)
    w[[1, 4, 6]] = [1.0, -2.0, 0.7]
    y = np.maximum(X.T @ w, 0)
    found = tw.solver(f"net_trim(relax={relax}, max_iter=20000, tol=1e-9)").run(x=X, y=y)
    best = tw.solver("net_trim(max_iter=20000, tol=1e-9)").run(x=X, y=y)
    assert found.outcome == "converged"
    np.testing.assert_allclose(found.w, best.w, atol=1e-6)


@pytest.mark.parametrize("l1_ratio", [0.4, 1.0])
def test_the_weight_of_a_column_of_zeros_is_0(l1_ratio: float) -> None:
    X = np.ones((4, 2))
    X[:, 1] = 0
    found = tw.solver(f"lasso_cd(alpha=0.3, l1_ratio={l1_ratio})").run(design=X, targets=np.ones(4), w0=np.ones(2))
    assert found.outcome == "converged" and found.w[1] == 0 and found.w[0] > 0


def test_bcd_needs_no_more_than_the_bounds_of_blocks() -> None:
    found = tw.solver("bcd(rule=gsl, block=2, max_iter=2)").run(
        x0=np.ones(4), block_lipschitz=np.array([4.0, 2.0]), gradient=lambda point: point)
    np.testing.assert_allclose(found.x, [0.75, 0.75, 0.5, 0.5])
    with pytest.raises(tw.NeedsError, match="gsd"):
        tw.solver("bcd(rule=gsd, block=2)").run(x0=np.ones(4), block_lipschitz=np.array([4.0, 4.0]), gradient=lambda point: point)


# ---- aggregators


@pytest.mark.parametrize("alpha", [300.0, 1e4, 1e6])
def test_fairgrad_with_a_large_alpha_is_max_min(alpha: float) -> None:
    """w >= 0, G w >= 1, w'(G w - 1) = 0 in the limit, by enumeration of the positive weights."""
    draw = np.random.default_rng(0)
    J = draw.standard_normal((6, 12)) + 0.5 * draw.standard_normal((1, 12))
    G = J @ J.T
    for bits in range(1, 64):
        on = [i for i in range(6) if bits >> i & 1]
        w = np.zeros(6)
        w[on] = np.linalg.solve(G[np.ix_(on, on)], np.ones(len(on)))
        if w.min() >= 0 and (G @ w).min() >= 1 - 1e-9:
            break
    d = tw.aggregate(f"fairgrad(alpha={alpha})")(J)
    assert np.abs(d - w @ J).max() <= 10 / alpha * np.abs(w @ J).max()


@pytest.mark.parametrize("short", [1e-5, 1e-7, 1e-10])
def test_short_rows_are_no_reason_to_cut_weights(short: float) -> None:
    J = np.array([[1.0, 0.0], [0.0, short]])
    np.testing.assert_allclose(tw.aggregate("nash_mtl")(J), [0.5**0.5, 0.5**0.5], rtol=1e-9)
    np.testing.assert_allclose(tw.aggregate("fairgrad")(J), [1, 1], rtol=1e-9)
    np.testing.assert_allclose(tw.aggregate("fairgrad(alpha=5)")(J), [1, short ** (-2 / 3)], rtol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_a_task_without_a_gradient_leaves_the_others_their_weights(alpha: float) -> None:
    J = np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(tw.aggregate(f"fairgrad(alpha={alpha})")(J), [2 * 4 ** (-alpha / (1 + alpha)), 0], rtol=1e-9)


# ---- squares that overflow


def test_squares_that_overflow_leave_the_solution_of_before() -> None:
    found = tw.solver("cg").run(b=np.full(3, 1e200), product=lambda v: v * np.array([1.0, 2.0, 3.0]))
    assert found.outcome == "nonfinite" and not found.x.any()
    found = tw.solver("ift_hypergradient(solver=cg)").run(
        x=np.ones(2), y=np.ones(2), upper_gradient=lambda x, y: (x, 1e160 * y),
        lower_hvp=lambda x, y, vector: vector * np.array([1.0, 2.0]), lower_mixed=lambda x, y, vector: vector)
    assert found.outcome == "nonfinite" and not found.q.any()
    found = tw.solver("bome(max_iter=3, inner=1)").run(
        x0=np.ones(2), y0=np.ones(2), upper_gradient=lambda x, y: (x, y),
        lower_gradient=lambda x, y: (1e160 * y, y.copy()), lower_value=lambda x, y: 0.0)
    assert found.outcome == "nonfinite" and np.array_equal(found.x, np.ones(2)) and np.array_equal(found.y, np.ones(2))


# ---- weightings and objectives


@pytest.mark.parametrize("rho", [1e-9, 1e-12, 1e-15, 1e-17])
def test_esrm_weights_are_even_for_a_small_rho(rho: float) -> None:
    q = tw.weighting(f"spectral_risk(kind=esrm, param={rho}, shift_cost=0)")(losses=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(q, 1 / 3, rtol=1e-8)


@pytest.mark.parametrize("cost", [1e-6, 1e-8, 1e-12])
def test_spectral_weights_add_up_to_1_whatever_their_cost(cost: float) -> None:
    losses = np.random.default_rng(0).standard_normal(50) * 10
    assert tw.weighting(f"spectral_risk(penalty=kl, shift_cost={cost})")(losses=losses).sum() == pytest.approx(1, abs=1e-13)


def test_drrho_contrastive_takes_rate_and_temperature_with_the_batch() -> None:
    draw, indices = np.random.default_rng(2), np.arange(3)
    one, other = tw.objective("drrho_contrastive(samples=3, tau=0.3, gamma=0.6)"), tw.objective("drrho_contrastive(samples=3)")
    for _ in range(2):
        s = draw.uniform(-1, 1, (3, 3))
        assert other(s=s, indices=indices, rate=0.6, scale=0.3) == one(s=s, indices=indices)
    with pytest.raises(tw.RangeError, match="rate"):
        other(s=s, indices=indices, rate=0.0)
