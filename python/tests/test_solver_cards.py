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
    r = tw.solver("power_iteration(num=3, tol=1e-12, iters=2000)").run(like=np.zeros(12), product=lambda v: a @ v)
    np.testing.assert_allclose(r["eigenvalues"], [-9, 7, 5], atol=1e-8)
    np.testing.assert_allclose(r.vectors @ r.vectors.T, np.eye(3), atol=1e-12)
    null = tw.solver("power_iteration").run(like=np.zeros(4), product=lambda v: 0 * v)
    assert null["eigenvalues"][0] == 0 and null.converged
    flip = tw.solver("power_iteration(tol=1e-10, iters=30)").run(vectors0=np.ones((1, 2)), product=lambda v: v * [1.0, -1.0])
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
    for sentence in ("ift_hypergradient(solver=cg, rtol=1e-12)", "ift_hypergradient(alpha=0.3, terms=300)"):
        r = tw.solver(sentence).run(x=x, y=q.best(x), **functions)
        np.testing.assert_allclose(r.hypergradient, q.hypergradient(x), atol=1e-9)
    F = lambda u: q.upper(u, q.best(u))[0]  # noqa: E731
    numeric = [(F(x + 1e-5 * e) - F(x - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
    np.testing.assert_allclose(q.hypergradient(x), numeric, atol=1e-7)
    zero = tw.solver("ift_hypergradient(terms=0, alpha=0.2)").run(x=x, y=q.best(x), **functions)
    same = tw.solver("ift_hypergradient(solver=identity, alpha=0.2)").run(x=x, y=q.best(x), **functions)
    assert np.array_equal(zero.hypergradient, same.hypergradient)


@pytest.mark.parametrize("sentence, factor", [
    ("hoag(max_iter=400, M=0.4, inflate=1.2)", 1e-6),
    ("f2sa(max_iter=1500, lambda0=4, delta=0.05, c_alpha=0.02, a=0.3, c=0, xi=2)", 0.1), ("meha(max_iter=3000)", 0.1),
    ("soba(max_iter=3000)", 1e-6), ("bome(max_iter=1500, lr_y=0.2)", 0.1),
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
