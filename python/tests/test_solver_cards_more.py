"""What the cards of the later solvers promise, and their public peers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.solvers import spd
from reference.solvers_bilevel import Quadratic


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_levenberg_marquardt_is_minpacks() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    t = np.linspace(0, 3, 40)
    data = 2 * np.exp(-1.1 * t) + 0.3 + 0.02 * rng().standard_normal(40)
    f = lambda x: x[0] * np.exp(-x[1] * t) + x[2] - data  # noqa: E731
    j = lambda x: np.stack([np.exp(-x[1] * t), -x[0] * t * np.exp(-x[1] * t), np.ones(40)], 1)  # noqa: E731
    x0 = np.array([1.0, 0.3, 0.0])
    best = optimize.least_squares(f, x0, j, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    for sentence in ("levenberg_marquardt", "levenberg_marquardt(scaling=identity)"):
        r = tw.solver(sentence).run(x0=x0, r0=f(x0), residual=f, jacobian=j)
        assert r.converged
        np.testing.assert_allclose(r.x, best, atol=1e-9)


def test_max_margin_is_the_projection() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x = rng().standard_normal((8, 3))
    y = np.where(x[:, 0] + 0.2 * x[:, 1] > 0, 1, -1)
    w0 = np.array([0.1, -0.5, 1.0])
    r = tw.solver("sequential_max_margin(max_iter=100000, tol=1e-12)").run(features=x, labels=y, w0=w0)
    best = optimize.minimize(lambda w: np.sum((w - w0) ** 2), w0, method="SLSQP", tol=1e-12,
                             constraints={"type": "ineq", "fun": lambda w: y * (x @ w) - 1}).x
    np.testing.assert_allclose(r.w, best, atol=1e-5)
    again = tw.solver("sequential_max_margin(tol=1e-9)").run(features=x, labels=y, w0=r.w)
    np.testing.assert_allclose(again.w, r.w, atol=1e-8)


def test_self_labels_are_an_entropic_plan() -> None:
    p = rng().uniform(0.05, 1, (40, 5)) * [4.0, 1, 1, 1, 1]
    p /= p.sum(1, keepdims=True)
    r = tw.solver("self_label(lam=4, tol=1e-10, max_iter=5000)").run(probabilities=p)
    plan = tw.solver("sinkhorn(epsilon=0.25, tol=1e-13, max_iter=20000)").run(cost=-np.log(p), a=np.full(40, 1 / 40), b=np.full(5, 0.2)).plan
    mine = np.exp(r.log_c[:, None] + r.log_r) * p**4
    np.testing.assert_allclose(mine / mine.sum(), plan, atol=1e-9)
    np.testing.assert_array_equal(r.labels, np.argmax(plan, 1))
    counts = np.bincount(r.labels.astype(int), minlength=5)
    assert counts.max() < np.bincount(np.argmax(p, 1), minlength=5).max()


def test_admm_is_the_lasso_and_its_dual_scales() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = rng().standard_normal((40, 8)), rng(1).standard_normal(40)
    coef = linear.Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y).coef_
    a, b = x.T @ x / 40, x.T @ y / 40
    functions = {"prox_f": lambda v, t: np.linalg.solve(np.eye(8) + t * a, v + t * b),
                 "prox_g": lambda v, t: np.sign(v) * np.maximum(np.abs(v) - 0.05 * t, 0)}
    for sentence in ("admm(max_iter=5000, tol=1e-12)", "admm(max_iter=5000, tol=1e-12, rho=100)"):
        r = tw.solver(sentence).run(z0=np.zeros(8), **functions)
        assert r.converged
        np.testing.assert_allclose(r.z, coef, atol=1e-9)


def test_mirror_prox_closes_the_gap_of_a_game() -> None:
    m = rng().uniform(size=(2, 6, 6))[0]
    F = lambda z: np.concatenate([m @ z[6:], -m.T @ z[:6]])  # noqa: E731
    gaps = []
    for steps in (200, 800):
        z, total = np.concatenate([np.full(6, 1 / 6)] * 2), np.zeros(12)
        # two simplexes: one run a player would not do, so the l2 geometry with projections
        def project(v):
            out = []
            for half in (v[:6], v[6:]):
                u = np.sort(half)[::-1]
                k = np.nonzero(u + (1 - np.cumsum(u)) / np.arange(1, 7) > 0)[0][-1]
                out.append(np.maximum(half + (1 - u[: k + 1].sum()) / (k + 1), 0))
            return np.concatenate(out)
        r = tw.solver(f"mirror_prox(geometry=l2, ask_project=true, lr=0.2, max_iter={steps})").run(x0=z, operator=F, project=project)
        x, y = r.average[:6], r.average[6:]
        gaps.append(np.max(m.T @ x) - np.min(m @ y))
    assert 0 <= gaps[1] <= 0.4 * gaps[0] and gaps[1] < 0.02


def test_ellipsoid_finds_the_median() -> None:
    t = np.array([0.3, -0.7, 1.1])
    r = tw.solver("ellipsoid(radius=3, max_iter=600)").run(
        center=np.zeros(3), subgradient=lambda x: (np.sum(np.abs(x - t)), np.sign(x - t)))
    np.testing.assert_allclose(r.x, t, atol=1e-3)
    assert r.value <= r.residual + 1e-3


def test_hutchpp_is_exact_on_what_the_sketch_spans() -> None:
    q, _ = np.linalg.qr(rng().standard_normal((30, 4)))
    a = q @ np.diag([5.0, -3, 2, 1]) @ q.T
    r = tw.solver("hutchpp_trace(probes=3, sketch=6)").run(like=np.zeros(30), product=lambda v: a @ v)
    assert r.trace == pytest.approx(5.0, abs=1e-10) and r.standard_error < 1e-10
    assert r.iterations == 6 + 4 + 3  # the sketch spans four columns


def test_maid_lowers_the_true_value_at_every_step() -> None:
    q, values = Quadratic(rng(4)), []
    F = lambda x: q.upper(x, q.best(x))[0]  # noqa: E731
    s = tw.solver("maid(mu=1, l_g=1, tol=1e-3, alpha0=0.1, max_iter=2000)")
    functions = {**q.functions(), "mixed_norm": lambda x, y: np.linalg.norm(q.B, 2),
                 "solve_lower": lambda x, y, eps: q.best(x) + 0.99 * eps * np.ones(5) / np.sqrt(5)}
    run = s.requests(x0=2 * rng(5).standard_normal(3), y0=np.zeros(5))
    for request in run:
        values.append(F(run.tensor("x")))
        request.answer(functions[request.name](*(request[n] for n in request.given)))
    steps = [b - a for a, b in zip(values, values[1:]) if a != b]
    assert run.outcome == "converged" and steps and max(steps) < 0
    assert np.linalg.norm(q.hypergradient(run.result.x)) < 5e-3


def test_darts_is_the_derivative_of_the_unrolled_step() -> None:
    q = Quadratic(rng(4))
    x, y, xi = rng(5).standard_normal(3), rng(6).standard_normal(5), 0.1
    value = lambda u: q.upper(u, y - xi * q.lower(u, y)[1])[0]  # noqa: E731
    numeric = [(value(x + 1e-5 * e) - value(x - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
    f = q.functions()
    r = tw.solver("darts_unrolled(xi=0.1)").run(x=x, y=y, lower_gradient=f["lower_gradient"], upper_gradient=f["upper_gradient"])
    np.testing.assert_allclose(r.hypergradient, numeric, atol=1e-7)


@pytest.mark.parametrize("sentence, bound", [("bo_rep(max_iter=2000, lr_x=0.003)", 0.05), ("sl_bamm(max_iter=3000, alpha0=1)", 0.5)])
def test_more_bilevel_methods_lower_the_hypergradient(sentence: str, bound: float) -> None:
    q, s = Quadratic(rng(4)), tw.solver(sentence)
    x0 = 2 * rng(5).standard_normal(3)
    r = s.answer(s.requests(x0=x0, y0=np.zeros(5)), **q.functions())
    assert np.linalg.norm(q.hypergradient(r.x)) < bound * np.linalg.norm(q.hypergradient(x0))


def test_segments_are_exact_for_a_long_signal() -> None:
    steps = np.repeat([0.0, 2.0, -1.0], [50, 30, 40]) + 0.1 * rng().standard_normal(120)
    r = tw.solver("potts_1d(nu=1)").run(y=steps)
    assert r.jumps == 2
    np.testing.assert_allclose(r.u[:50], steps[:50].mean(), atol=1e-12)
    smooth = tw.solver("mumford_shah_1d(alpha=20, nu=1)").run(y=steps + np.linspace(0, 1, 120))
    assert smooth.jumps == 2


def test_newton_for_transport_beats_sinkhorn() -> None:
    points = np.sort(rng().uniform(size=(2, 30)), 1)
    cost, w = (points[0][:, None] - points[1]) ** 2, np.full(30, 1 / 30)
    newton = tw.solver("sinkhorn_newton_sparse(eta=200, n_sinkhorn=20, n_newton=30, keep=0.3, tol=1e-10)").run(cost=cost, a=w, b=w)
    plain = tw.solver("sinkhorn(epsilon=0.005, max_iter=50, tol=0)").run(cost=cost, a=w, b=w)
    assert newton.converged and 1e3 * newton.residual < plain.residual
    full = tw.solver("sinkhorn(epsilon=0.005, max_iter=100000, tol=1e-13)").run(cost=cost, a=w, b=w)
    np.testing.assert_allclose(newton.plan, full.plan, atol=1e-10)


def test_cubic_steps_satisfy_their_conditions() -> None:
    r = rng()
    for k in range(40):
        q, _ = np.linalg.qr(r.standard_normal((7, 7)))
        w = r.standard_normal(7) * 3
        h, g, M = q @ np.diag(w) @ q.T, r.standard_normal(7), 10 ** r.uniform(-2, 2)
        h = (h + h.T) / 2
        if k % 4 == 0:  # the hard case: nothing along the lowest eigenvector
            lowest = q[:, np.argmin(w)]
            g = 1e-3 * (g - (g @ lowest) * lowest)
        step = tw.solver(f"cubic_subproblem(M={M:.17g})").run(g=g, hessian=h).step
        n = np.linalg.norm(step)
        scale = 1 + np.linalg.norm(h) * n
        assert np.linalg.norm(g + h @ step + M / 2 * n * step) <= 1e-7 * scale
        assert np.linalg.eigvalsh(h + M / 2 * n * np.eye(7)).min() >= -1e-7 * scale


def test_coordinate_methods_minimise() -> None:
    a, b = spd(rng(), 8), rng(1).standard_normal(8)
    x = np.linalg.solve(a, b)
    for seed, gamma in ((0, 0), (5, 1)):
        r = tw.solver(f"rcd(max_iter=6000, seed={seed}, gamma={gamma})").run(
            x0=np.zeros(8), lipschitz=np.diag(a).copy(), coordinate_gradient=lambda v, i: a[int(i)] @ v - b[int(i)])
        np.testing.assert_allclose(r.x, x, atol=1e-8)
        assert np.abs(a @ r.x - b).max() / 2 <= r.residual + 1e-13 <= 1e-7  # entries seen before the last steps
    linear = pytest.importorskip("sklearn.linear_model")
    data, y = rng().standard_normal((40, 8)), rng(1).standard_normal(40)
    coef = linear.Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000).fit(data, y).coef_
    gradient = lambda w: data.T @ (data @ w - y) / 40  # noqa: E731
    r = tw.solver("acoder(lipschitz=2, max_iter=3000, regularizer=l1(0.05))").run(
        x0=np.zeros(8), gradient=gradient, block_gradient=lambda w, first, length: gradient(w))
    value = lambda w: np.sum((y - data @ w) ** 2) / 80 + 0.05 * np.abs(w).sum()  # noqa: E731
    assert value(r.x) == pytest.approx(value(coef), abs=1e-6)
    short = tw.solver("acoder(lipschitz=2, max_iter=30, regularizer=l1(0.05))").run(
        x0=np.zeros(8), gradient=gradient, block_gradient=lambda w, first, length: gradient(w))
    assert r.residual < 1e-4 < 1e-3 < short.residual
    none = tw.solver("acoder(lipschitz=2, max_iter=0)").run(
        x0=np.zeros(8), gradient=gradient, block_gradient=lambda w, first, length: gradient(w))
    assert none.residual == np.inf  # nothing is known of the start


def test_mirror_prox_says_how_far_it_is() -> None:
    """The residual is that of the rule: |x - P(x - lr F(x))|/lr, 0 at the saddle point of a strongly monotone operator."""
    m = rng().standard_normal((4, 4))
    operator = lambda x: (m - m.T) @ x + x - 1  # noqa: E731
    for steps, low, high in ((5, 1e-2, 10), (2000, 0, 1e-9)):
        r = tw.solver(f"mirror_prox(geometry=l2, lr=0.1, max_iter={steps})").run(x0=np.zeros(4), operator=operator)
        assert low <= r.residual <= high
    assert np.linalg.norm(operator(r.x)) <= 1e-8


def test_gpm_recovers_a_dictionary() -> None:
    r = rng()
    d, _ = np.linalg.qr(r.standard_normal((6, 6)))
    codes = r.standard_normal((6, 4000)) * (r.uniform(size=(6, 4000)) < 0.2)
    start, _ = np.linalg.qr(r.standard_normal((6, 6)))
    found = tw.solver("gpm(p=4, max_iter=500)").run(data=d @ codes, a0=start).a @ d
    np.testing.assert_allclose(np.sort(np.abs(found), 1)[:, -1], 1.0, atol=1e-2)
