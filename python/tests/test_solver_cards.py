"""What the cards of the solvers promise, and their public peers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.solvers import curves, spd
from reference.solvers_bilevel import Host, Quadratic


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- linear systems


def test_cg_solves_in_n_steps_and_follows_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    a, b = spd(rng(), 12), rng(1).standard_normal(12)
    exact = tw.solver("cg(rtol=1e-10)").run(b=b, product=lambda v: a @ v)
    assert exact.iterations <= 12
    np.testing.assert_allclose(exact.x, np.linalg.solve(a, b), atol=1e-9)
    for k in range(1, 8):
        x, _ = linalg.cg(a, b, rtol=0.0, maxiter=k)
        np.testing.assert_allclose(tw.solver(f"cg(rtol=0, max_iter={k})").run(b=b, product=lambda v: a @ v).x, x, atol=1e-14)
    truncated = tw.solver("cg(truncate=true)").run(b=b, product=lambda v: -v)
    assert truncated.outcome == "negative_curvature" and np.array_equal(truncated.x, b)


def test_pcg_follows_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    a, b = spd(rng(), 12) + np.diag(10.0 * np.arange(12)), rng(1).standard_normal(12)
    m = np.diag(1 / np.diag(a))
    for k in range(1, 8):
        x, _ = linalg.cg(a, b, rtol=0.0, maxiter=k, M=m)
        mine = tw.solver(f"pcg(rtol=0, max_iter={k})").run(b=b, product=lambda v: a @ v, precondition=lambda r: m @ r)
        np.testing.assert_allclose(mine.x, x, atol=1e-14)


def test_minres_follows_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    q, _ = np.linalg.qr(rng().standard_normal((15, 15)))
    a, b = q @ np.diag(np.concatenate([np.linspace(-3, -1, 7), np.linspace(1, 5, 8)])) @ q.T, rng(1).standard_normal(15)
    a = (a + a.T) / 2
    for k in range(2, 9):
        x, _ = linalg.minres(a, b, rtol=1e-30, maxiter=k)
        np.testing.assert_allclose(tw.solver(f"minres(rtol=0, max_iter={k})").run(b=b, product=lambda v: a @ v).x, x, atol=1e-12)
    np.testing.assert_allclose(tw.solver("minres(rtol=1e-11)").run(b=b, product=lambda v: a @ v).x, np.linalg.solve(a, b), atol=1e-9)


def test_minres_of_a_singular_system() -> None:
    result = tw.solver("minres(rtol=0)").run(b=np.array([0.0, 1.0]), product=lambda v: np.array([v[0], 0.0]))
    assert result.outcome == "max_iter" and np.all(np.isfinite(result.x))


def test_neumann_series_tends_to_the_inverse() -> None:
    a, b = spd(rng(), 8, 4.0), rng(1).standard_normal(8)
    result = tw.solver("neumann_ihvp(alpha=0.3, terms=400)").run(b=b, product=lambda v: a @ v)
    np.testing.assert_allclose(result.x, np.linalg.solve(a, b), atol=1e-12)


def test_fresh_products_have_other_tags() -> None:
    tags = [r.tag for r in _answered(tw.solver("neumann_ihvp(alpha=0.1, terms=3, fresh=true)").requests(b=np.ones(2)))]
    assert tags == [1, 2, 3]
    tags = [r.tag for r in _answered(tw.solver("neumann_ihvp(alpha=0.1, terms=3)").requests(b=np.ones(2)))]
    assert tags == [1, 1, 1]


def _answered(run):
    for request in run:
        request["product"] = request["vector"]
        yield request


# ---- line searches


def test_strong_wolfe_is_scipys() -> None:
    """The two differ only where the bracket runs backwards and its ends are measured with their sign: not in these."""
    search = pytest.importorskip("scipy.optimize._linesearch").scalar_search_wolfe2
    equal, rounds = 0, 0
    for seed in range(40):
        for f, d in curves(rng(seed)):
            for c2 in (0.9, 0.1):
                mine = tw.solver(f"strong_wolfe(c2={c2})").run(phi0=f(0.0), dphi0=d(0.0), value=f, slope=d)
                a, fa, _, da = search(f, d, f(0.0), derphi0=d(0.0), c2=c2)
                rounds += 1
                equal += a is not None and abs(mine.alpha - a) <= 1e-12 * max(1.0, a)
                if mine.outcome == "converged":
                    assert f(mine.alpha) <= f(0.0) + 1e-4 * mine.alpha * d(0.0)
                    assert abs(d(mine.alpha)) <= c2 * abs(d(0.0))
    assert equal >= 0.97 * rounds


def test_armijo_condition_holds() -> None:
    for f, d in curves(rng(2)):
        for options in ("", "interpolate=true, alpha0=30"):
            r = tw.solver(f"armijo({options})").run(phi0=f(0.0), dphi0=d(0.0), value=f)
            assert r.outcome == "converged" and f(r.alpha) <= f(0.0) + 1e-4 * r.alpha * d(0.0)


def test_golden_section_is_scipys() -> None:
    golden = pytest.importorskip("scipy.optimize").golden
    f = lambda a: (a - 0.7) ** 2 + np.exp(a)  # noqa: E731
    mine = tw.solver("golden_section").run(low=-2.0, high=3.0, value=f)
    assert mine.alpha == pytest.approx(golden(f, brack=(-2.0, 0.0, 3.0), tol=1e-10), abs=1e-7)
    assert tw.solver("golden_section(max_iter=3)").run(low=-2.0, high=3.0, value=f).outcome == "max_iter"


# ---- transport


def test_sinkhorn_marginals_and_limits() -> None:
    cost, a, b = rng().uniform(size=(6, 5)), np.full(6, 1 / 6), np.array([0.1, 0.2, 0.3, 0.3, 0.1])
    result = tw.solver("sinkhorn(epsilon=0.05)").run(cost=cost, a=a, b=b)
    assert result.converged
    np.testing.assert_allclose(result.plan.sum(1), a, atol=1e-14)
    np.testing.assert_allclose(result.plan.sum(0), b, atol=2e-9)
    far = tw.solver("sinkhorn(epsilon=0.05, max_iter=50)").run(cost=1e3 * cost, a=a, b=b)
    assert np.all(np.isfinite(far.plan)) and np.all(np.isfinite(far.f))
    flat = tw.solver("sinkhorn").run(cost=np.full((6, 5), 3.0), a=a, b=b)
    np.testing.assert_allclose(flat.plan, np.outer(a, b), atol=1e-15)
    warm = tw.solver("sinkhorn(epsilon=0.05, check_every=1)").run(result, cost=cost, a=a, b=b)
    assert warm.iterations == 1
    barred = np.where(np.arange(5) == 2, np.inf, cost)
    assert tw.solver("sinkhorn").run(cost=barred, a=a, b=b).outcome == "infeasible"


def test_sinkhorn_nears_the_optimum() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    cost = rng(3).uniform(size=(7, 7))
    rows, columns = optimize.linear_sum_assignment(cost)
    w = np.full(7, 1 / 7)
    result = tw.solver("sinkhorn(epsilon=0.002, max_iter=20000, tol=1e-8)").run(cost=cost, a=w, b=w)
    assert result.value == pytest.approx(cost[rows, columns].mean(), abs=2e-3)


def test_mirror_sinkhorn_nears_the_optimum() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    cost = rng(3).uniform(size=(5, 5))
    rows, columns = optimize.linear_sum_assignment(cost)
    w = np.full(5, 0.2)
    result = tw.solver("mirror_sinkhorn(max_iter=40000)").run(a=w, b=w, gradient=lambda p: cost)
    np.testing.assert_allclose(result.plan.sum(0), w, atol=1e-12)
    np.testing.assert_allclose(result.plan.sum(1), w, atol=1e-12)
    assert np.sum(cost * result.plan) == pytest.approx(cost[rows, columns].mean(), abs=2e-2)


# ---- proximal gradients, sparse regression


def test_fista_is_the_lasso() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = rng().standard_normal((40, 8)), rng(1).standard_normal(40)
    model = linear.Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y)
    smooth = lambda w: (np.sum((y - x @ w) ** 2) / 80, x.T @ (x @ w - y) / 40)  # noqa: E731
    result = tw.solver("fista(regularizer=l1(0.05), max_iter=3000, tol=1e-14)").run(
        x0=np.zeros(8), value_gradient=smooth, value=lambda w: smooth(w)[0])
    np.testing.assert_allclose(result.x, model.coef_, atol=1e-10)
    mine = tw.solver("lasso_cd(alpha=0.05, tol=1e-13)").run(design=x, targets=y)
    np.testing.assert_allclose(mine.w, model.coef_, atol=1e-11)
    net = linear.ElasticNet(alpha=0.1, l1_ratio=0.3, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y)
    np.testing.assert_allclose(tw.solver("lasso_cd(alpha=0.1, l1_ratio=0.3, tol=1e-13)").run(design=x, targets=y).w, net.coef_, atol=1e-11)


def test_lasso_path_is_sklearns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = rng().standard_normal((40, 8)), rng(1).standard_normal(40)
    mine = tw.solver("lasso_path(alphas=20, tol=1e-13)").run(design=x, targets=y)
    alphas, coefficients, _ = linear.lasso_path(x, y, alphas=mine.penalties, tol=1e-14, max_iter=100000)
    np.testing.assert_allclose(mine.penalties, alphas, rtol=1e-12)
    np.testing.assert_allclose(mine.w, coefficients.T, atol=1e-10)
    assert not np.any(mine.w[0])


def test_fista_rates() -> None:
    """k^-2 against k^-1 on a quadratic of many scales."""
    d = np.geomspace(1e-4, 1.0, 200)
    smooth = lambda x: (0.5 * np.sum(d * x * x), d * x)  # noqa: E731
    values = {}
    for accelerate in ("true", "false"):
        r = tw.solver(f"fista(backtrack=false, restart=none, accelerate={accelerate}, max_iter=100, tol=0)").run(
            x0=np.ones(200), value_gradient=smooth)
        values[accelerate] = smooth(r.x)[0]
        bound = 2 * 200 / 101**2 if accelerate == "true" else 200 / 200
        assert values[accelerate] <= bound
    assert values["true"] < 0.2 * values["false"]


def test_iht_finds_the_sparse_signal() -> None:
    x = rng().standard_normal((60, 20)) / np.sqrt(60)
    truth = np.zeros(20)
    truth[[3, 8, 15]] = 2.0, -1.0, 3.0
    lr = 1 / np.linalg.norm(x, 2) ** 2
    r = tw.solver(f"iht(k=3, lr={float(lr)!r}, max_iter=500)").run(x0=np.zeros(20), gradient=lambda w: x.T @ (x @ w - x @ truth))
    np.testing.assert_allclose(r.x, truth, atol=1e-6)


# ---- projections


def test_dykstra_is_the_nearest_point_and_pocs_a_feasible_one() -> None:
    half = lambda v: v - max(0.0, v[0] + v[1] - 1) / 2 * np.array([1.0, 1.0])  # noqa: E731
    quarter = lambda v: np.maximum(v, [0.4, -5.0])  # noqa: E731
    both = lambda v, k: (half, quarter)[int(k)](v)  # noqa: E731
    x0 = np.array([2.0, 3.0])
    near = tw.solver("dykstra(max_iter=500, tol=1e-15)").run(x0=x0, project=both)
    np.testing.assert_allclose(near.x, [0.4, 0.6], atol=1e-9)  # where both hold with equality: by its conditions
    some = tw.solver("pocs(max_iter=500, tol=1e-15)").run(x0=x0, project=both)
    assert some.x.sum() <= 1 + 1e-9 and some.x[0] >= 0.4 - 1e-9


def test_two_lines_meet() -> None:
    u, v = np.array([1.0, 0.0]), np.array([0.6, 0.8])
    lines = lambda x, k: (u * (u @ x), v * (v @ x))[int(k)]  # noqa: E731
    for sentence in ("douglas_rachford(max_iter=500, tol=1e-12)", "difference_map(max_iter=500, tol=1e-12)"):
        r = tw.solver(sentence).run(x0=np.array([3.0, -2.0]), project=lines)
        assert r.converged and np.linalg.norm(r.x) < 1e-10
    apart = lambda x, k: np.array([x[0], float(k)])  # noqa: E731
    assert tw.solver("douglas_rachford(max_iter=30)").run(x0=np.zeros(2), project=apart).residual == 1.0


# ---- spectra


def test_lanczos_finds_the_spectrum() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    a = rng().standard_normal((40, 40))
    a = a + a.T
    full = tw.solver("lanczos(steps=40)").run(start=rng(1).standard_normal(40), product=lambda v: a @ v)
    np.testing.assert_allclose(full.eigenvalues, np.linalg.eigvalsh(a), atol=1e-12)
    assert full.weights.sum() == pytest.approx(1.0, abs=1e-12)
    part = tw.solver("lanczos(steps=30, largest=2, smallest=1)").run(start=rng(1).standard_normal(40), product=lambda v: a @ v)
    w, z = linalg.eigsh(a, k=2, which="LA")
    np.testing.assert_allclose(part.eigenvalues[-2:], w, atol=1e-6)
    for mine, theirs in zip(part.vectors[:2], z.T[::-1]):
        assert abs(mine @ theirs) == pytest.approx(1.0, abs=1e-6)
        assert mine[np.argmax(np.abs(mine))] > 0
    one = tw.solver("lanczos(steps=9)").run(start=np.ones(9), product=lambda v: v)
    assert one.rank == 1 and one["eigenvalues"][0] == pytest.approx(1, abs=1e-14)


def test_power_iteration_keeps_signs_and_orthogonality() -> None:
    q, _ = np.linalg.qr(rng().standard_normal((12, 12)))
    a = q @ np.diag([-9.0, 7, 5, *np.linspace(-1, 1, 9)]) @ q.T
    r = tw.solver("power_iteration(probes=3, tol=1e-12, max_iter=2000)").run(like=np.zeros(12), product=lambda v: a @ v)
    np.testing.assert_allclose(r["eigenvalues"], [-9, 7, 5], atol=1e-8)
    np.testing.assert_allclose(r.vectors @ r.vectors.T, np.eye(3), atol=1e-12)
    null = tw.solver("power_iteration").run(like=np.zeros(4), product=lambda v: 0 * v)
    assert null["eigenvalues"][0] == 0 and null.converged
    flip = tw.solver("power_iteration(tol=1e-10, max_iter=30)").run(vectors0=np.ones((1, 2)), product=lambda v: v * [1.0, -1.0])
    assert flip.outcome in ("converged", "max_iter")


def test_traces() -> None:
    a = rng().standard_normal((30, 30))
    a = a + a.T
    r = tw.solver("hutchinson_trace(probes=400, seed=3)").run(like=np.zeros(30), product=lambda v: a @ v)
    assert abs(r.trace - np.trace(a)) < 5 * r.standard_error
    assert r.frobenius == pytest.approx(np.linalg.norm(a), rel=0.1)
    d = np.arange(30.0)
    exact = tw.solver("hutchinson_trace(probes=2)").run(like=np.zeros(30), product=lambda v: d * v)
    assert exact.trace == d.sum() and exact.standard_error == 0
    np.testing.assert_array_equal(tw.solver("hutchinson_diagonal(probes=1)").run(like=np.zeros(30), product=lambda v: d * v).diagonal, d)


def test_spectral_density() -> None:
    d = np.concatenate([np.linspace(0, 1, 45), [4.0, 5.0]])
    points = np.linspace(-2, 7, 4001)
    r = tw.solver("slq_density(probes=20, steps=47, sigma2=1e-3)").run(like=np.zeros(47), points=points, product=lambda v: d * v)
    assert np.trapezoid(r.density, points) == pytest.approx(1.0, abs=1e-6)
    assert r.trace == pytest.approx(d.sum(), rel=1e-10)  # signs: exact on a diagonal
    second = 47 * np.mean(np.sum(r.weights * r.nodes**2, 1))
    assert second == pytest.approx(np.sum(d * d), rel=1e-10)
    np.testing.assert_allclose(r.weights.sum(1), 1.0, atol=1e-12)


# ---- bilevel problems


def test_hypergradients_are_derivatives() -> None:
    q = Quadratic(rng(1))
    x = rng(2).standard_normal(3)
    ask = q.functions()
    functions = {k: ask[k] for k in ("upper_gradient", "lower_hvp", "lower_mixed")}
    for sentence in ("ift_hypergradient(inverse=cg, rtol=1e-12)", "ift_hypergradient(alpha=0.3, terms=300)"):
        r = tw.solver(sentence).run(x=x, y=q.best(x), **functions)
        np.testing.assert_allclose(r.hypergradient, q.hypergradient(x), atol=1e-9)
    F = lambda u: q.upper(u, q.best(u))[0]  # noqa: E731
    numeric = [(F(x + 1e-5 * e) - F(x - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
    np.testing.assert_allclose(q.hypergradient(x), numeric, atol=1e-7)
    zero = tw.solver("ift_hypergradient(terms=0, alpha=0.2)").run(x=x, y=q.best(x), **functions)
    same = tw.solver("ift_hypergradient(inverse=identity, alpha=0.2)").run(x=x, y=q.best(x), **functions)
    assert np.array_equal(zero.hypergradient, same.hypergradient)


@pytest.mark.parametrize("sentence, factor", [
    ("hoag(max_iter=400, m=0.4, inflate=1.2)", 1e-6),
    ("f2sa(max_iter=1500, lambda0=4, delta=0.05, c_alpha=0.02, a=0.3, c=0, xi=2)", 0.1), ("meha(max_iter=3000)", 0.1),
    ("soba(max_iter=3000)", 1e-6), ("bome(max_iter=1500, lr_inner=0.2)", 0.1),
])
def test_bilevel_methods_lower_the_hypergradient(sentence: str, factor: float) -> None:
    q = Quadratic(rng(4))
    x0 = 2 * rng(5).standard_normal(3)
    s = tw.solver(sentence)
    r = s.answer(s.requests(x0=x0, y0=np.zeros(5)), **q.functions())
    assert np.linalg.norm(q.hypergradient(r.x)) < factor * np.linalg.norm(q.hypergradient(x0))


def test_hoag_tolerances_never_rise() -> None:
    q, seen = Quadratic(rng(4)), []
    functions = q.functions()
    inner = functions["solve_lower"]
    functions["solve_lower"] = lambda x, y, tol: (seen.append(tol), inner(x, y, tol))[1]
    s = tw.solver("hoag(max_iter=30, decrease=quadratic)")
    s.answer(s.requests(x0=np.ones(3), y0=np.zeros(5)), **functions)
    assert all(b <= a for a, b in zip(seen, seen[1:])) and seen[0] == 1e-3


# ---- constraints


def kkt(multipliers: np.ndarray, x: np.ndarray, atol: float) -> None:
    """min |x - a|^2/2, x_0 + x_1 <= 1, x_2 = 0.5, a = (1, 1.5, -0.3): x = (0.25, 0.75, 0.5), lambda = 0.75, mu = -0.8."""
    np.testing.assert_allclose(x, [0.25, 0.75, 0.5], atol=atol)
    np.testing.assert_allclose(multipliers, [0.75, -0.8], atol=atol)


def test_multipliers_reach_the_kkt_pair() -> None:
    a = np.array([1.0, 1.5, -0.3])
    host = Host(a, rate=0.1)
    r = tw.solver("augmented_lagrangian(inequalities=1, equalities=1, inner_steps=200, growth=1, max_iter=60, tol=1e-10)").run(
        constraints=host.constraints, descend=host.descend)
    assert r.converged
    kkt(r.multipliers, host.x, 1e-8)
    for order in ("dual_first", "primal_first", "simultaneous"):
        host = Host(a, rate=0.1)
        r = tw.solver(f"primal_dual(inequalities=1, equalities=1, lr_dual=0.1, max_iter=4000, order={order})").run(
            constraints=lambda: (host.constraints(),) * 2, descend=host.descend)
        kkt(r.multipliers, host.x, 1e-8)
    host = Host(a)
    r = tw.solver("dual_ascent(inequalities=1, equalities=1, lr=0.4, max_iter=200)").run(minimise=host.minimise)
    kkt(r.multipliers, host.x, 1e-8)


def test_a_satisfied_inequality_restarts() -> None:
    s = tw.solver("primal_dual(inequalities=1, restart=true, max_iter=1)")
    r = s.run(multipliers0=np.array([5.0]), constraints=lambda: (np.array([-0.1]),) * 2, descend=lambda w: None)
    assert r.multipliers[0] == 0
    r = s.run(multipliers0=np.array([5.0]), constraints=lambda: (np.array([0.0]),) * 2, descend=lambda w: None)
    assert r.multipliers[0] == 5


# ---- the second batch


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


# ---- the third batch


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
        step = tw.solver(f"cubic_subproblem(cubic={M:.17g})").run(g=g, hessian=h).step
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
    linear = pytest.importorskip("sklearn.linear_model")
    data, y = rng().standard_normal((40, 8)), rng(1).standard_normal(40)
    coef = linear.Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000).fit(data, y).coef_
    gradient = lambda w: data.T @ (data @ w - y) / 40  # noqa: E731
    r = tw.solver("acoder(lipschitz=2, max_iter=3000, regularizer=l1(0.05))").run(
        x0=np.zeros(8), gradient=gradient, block_gradient=lambda w, first, length: gradient(w))
    value = lambda w: np.sum((y - data @ w) ** 2) / 80 + 0.05 * np.abs(w).sum()  # noqa: E731
    assert value(r.x) == pytest.approx(value(coef), abs=1e-6)


def test_gpm_recovers_a_dictionary() -> None:
    r = rng()
    d, _ = np.linalg.qr(r.standard_normal((6, 6)))
    codes = r.standard_normal((6, 4000)) * (r.uniform(size=(6, 4000)) < 0.2)
    start, _ = np.linalg.qr(r.standard_normal((6, 6)))
    found = tw.solver("gpm(p=4, max_iter=500)").run(data=d @ codes, a0=start).a @ d
    np.testing.assert_allclose(np.sort(np.abs(found), 1)[:, -1], 1.0, atol=1e-2)
