"""Long inputs go other ways than short ones: samples of them first, scans side by side, scaling in place of logarithms.
The answers are the same. And a number comes out alike whatever its neighbours in a vector are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw

KINDS: dict[str, Any] = {
    "normal": lambda r, n: r.standard_normal(n),
    "small": lambda r, n: 1e-3 * r.standard_normal(n),
    "whole": lambda r, n: np.round(2 * r.standard_normal(n)),
    "zeros": lambda r, n: np.zeros(n),
    "heavy tails": lambda r, n: r.pareto(0.5, n),
    "two levels": lambda r, n: np.repeat([1.0, 0.0], [n // 2, n - n // 2]),
    "rising": lambda r, n: np.linspace(-1, 1, n),
    "falling": lambda r, n: np.linspace(1, -1, n),
    "trend": lambda r, n: 2 * r.standard_normal(n) + np.linspace(0, 5, n),
    "on an offset": lambda r, n: 1e4 + r.standard_normal(n),
}


def drawn(kind: str, n: int, dtype: type = np.float64) -> np.ndarray:
    return KINDS[kind](np.random.default_rng(len(kind) + n), n).astype(dtype)


# ---- simplices


def threshold(x: np.ndarray, total: float, cap: float = np.inf) -> float:
    """theta with sum min(max(x - theta, 0), cap) = total, by bisection."""
    low, high = x.min() - min(cap, total), x.max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(x - middle, 0, cap).sum() > total:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [1e-4, 0.3, 0.999])
def test_capped_simplex(kind: str, dtype: type, share: float) -> None:
    x = drawn(kind, 70_001, dtype)
    cap = 0.25
    total = share * len(x) * cap
    y = tw.constraint(f"capped_simplex({total!r}, {cap})").project(x.copy()).astype(np.float64)
    want = np.clip(x.astype(np.float64) - threshold(x.astype(np.float64), total, cap), 0, cap)
    # float32 rounds every entry; the reference knows theta to the rounding of the largest number
    near = (1e-6 if dtype is np.float32 else 1e-12) * max(1.0, abs(x).max())
    np.testing.assert_allclose(y, want, atol=near, rtol=0)
    assert abs(y.sum() - total) <= (1e-6 if dtype is np.float32 else 1e-11) * total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 100.0])
def test_simplex_and_l1_ball(kind: str, dtype: type, radius: float) -> None:
    x = drawn(kind, 5_003, dtype)
    exact = x.astype(np.float64)
    near = (1e-6 if dtype is np.float32 else 1e-12) * max(radius, abs(exact).max())
    want = np.maximum(exact - threshold(exact, radius), 0)
    np.testing.assert_allclose(tw.constraint(f"simplex({radius})").project(x.copy()), want, atol=near, rtol=0)
    if abs(exact).sum() > radius:
        exact = np.sign(exact) * np.maximum(abs(exact) - threshold(abs(exact), radius), 0)
    np.testing.assert_allclose(tw.constraint(f"l1_ball({radius})").project(x.copy()), exact, atol=near, rtol=0)


# ---- lines


def pooled(x: np.ndarray) -> np.ndarray:
    """Pool adjacent violators, one after the other."""
    blocks: list[list[float]] = []
    for value in x.astype(np.float64):
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            value, count = blocks.pop()
            blocks[-1][0] += value
            blocks[-1][1] += count
    return np.concatenate([np.full(int(count), value / count) for value, count in blocks])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 8191, 8193, 30_011])
def test_monotone(kind: str, dtype: type, n: int) -> None:
    x = drawn(kind, n, dtype)
    want = pooled(x)
    near = (2e-7 if dtype is np.float32 else 1e-13) * max(1.0, abs(x).max())
    y = tw.constraint("monotone").project(x.copy())
    np.testing.assert_allclose(y, want, atol=near, rtol=0)
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 50, 20_011])
@pytest.mark.parametrize("k", [1e-6, 0.1, 3.0, 1e3])
def test_tv_1d_is_optimal(kind: str, n: int, k: float) -> None:
    """The sums of x - u stay within k of 0, end there, and are k or -k where u rises or falls."""
    x = drawn(kind, n)
    u = tw.regularizer("tv_1d(1)").prox(x.copy(), k)
    z = np.cumsum((x - u).astype(np.longdouble)).astype(np.float64)
    rounding = 8 * n * np.finfo(float).eps * max(1.0, abs(x).max())
    assert abs(z[-1]) <= rounding
    assert abs(z).max() <= k + rounding
    jumps = np.diff(u)
    moved = abs(jumps) > rounding
    assert (abs(z[:-1] + k * np.sign(jumps))[moved] <= rounding).all()


# ---- transport


def logsum(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


def coupled(cost: np.ndarray, a: np.ndarray, b: np.ndarray, reg: float, sweeps: int) -> np.ndarray:
    """The card's sweeps, all in logarithms."""
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(sweeps):
        f = np.where(a > 0, -reg * logsum((g[None] - cost) / reg + log_b[None], 1), 0)
        g = np.where(b > 0, -reg * logsum((f[:, None] - cost) / reg + log_a[:, None], 0), 0)
    return a[:, None] * b[None] * np.exp((f[:, None] + g[None] - cost) / reg)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reg", [1e-3, 1e-2, 0.1, 10.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1), (61, 130), (300, 301)])
@pytest.mark.parametrize("odd", ["", "weights of 0", "small weights", "forbidden"])
def test_transport_by_scaling(dtype: type, reg: float, shape: tuple[int, int], odd: str) -> None:
    rng = np.random.default_rng(shape[0])
    cost, a, b = rng.random(shape) ** 2, rng.random(shape[0]) + 0.1, rng.random(shape[1]) + 0.1
    if odd == "weights of 0":
        a[1::5] = b[2::7] = 0
    if odd == "small weights":
        a[1::5] *= 1e-12
    if odd == "forbidden":
        cost[rng.random(shape) < 0.1] = np.inf
        np.fill_diagonal(cost, 0)
        cost[:, 0] = np.minimum(cost[:, 0], 1)
        cost[0] = np.minimum(cost[0], 1)
    a, b = a / a.sum(), b / b.sum()
    cost, a, b = (v.astype(dtype) for v in (cost, a, b))
    solver = tw.solver(f"ot_sinkhorn({reg}, max_iter=25, tol=0)")
    plan = solver.run(cost=cost, a=a, b=b).plan
    want = coupled(*(v.astype(np.float64) for v in (cost, a, b)), reg, 25)
    # what the rounding of potentials in float32, of the size of a cost, is over reg
    near = 1e-10 if dtype is np.float64 else max(3e-6, 1e-6 / reg)
    np.testing.assert_allclose(plan, want, atol=near * want.max(), rtol=0)


def test_transport_by_scaling_is_the_same_for_any_threads() -> None:
    rng = np.random.default_rng(5)
    cost, w = rng.random((400, 400), np.float32), np.full(400, 1 / 400, np.float32)
    plans = []
    before = tw.get_num_threads()
    try:
        for threads in (1, 2, 3):
            tw.set_num_threads(threads)
            plans.append(tw.solver("ot_sinkhorn(0.05, max_iter=30, tol=0)").run(cost=cost, a=w, b=w).plan)
    finally:
        tw.set_num_threads(before)
    assert all(np.array_equal(plans[0], p) for p in plans[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
def test_a_plan_keeps_what_its_potentials_lose(dtype: type, offset: float) -> None:
    """Costs on an offset have potentials as large, which rounding makes useless; the plan and the residual are right."""
    cost, a, b = np.array([[0, 1], [1, 0]], dtype) + dtype(offset), np.array([0.5, 0.5], dtype), np.array([0.3, 0.7], dtype)
    for solver, axis, w in (("ot_sinkhorn()", 1, a), ("sinkhorn(0.1, tol=1e-6)", 0, b)):
        r = tw.solver(solver).run(cost=cost, a=a, b=b)
        off = np.linalg.norm(r.plan.astype(np.float64).sum(axis) - w)
        # float32 rounds four entries of the plan
        assert r.outcome == "converged" and abs(off - r.residual) <= (1e-7 if dtype is np.float32 else 1e-15)


def test_transport_starts_at_an_earlier_result() -> None:
    cost, a, b = np.random.default_rng(2).random((3, 2)), np.array([0.5, 0, 0.5]), np.array([0.4, 0.6])
    solver = tw.solver("sinkhorn(0.1)")
    first = solver.run(cost=cost, a=a, b=b)
    assert first.f[1] == -np.inf
    again = solver.run(cost=cost, a=a, b=b, f0=first.f, g0=first.g)
    assert again.outcome == "converged" and again.iterations <= first.iterations
    assert solver.run(cost=cost, a=a, b=b, f0=np.array([np.nan, 0, 0])).outcome == "nonfinite"


# ---- numbers at the ends of their range


def test_capped_simplex_where_large_numbers_swallow_the_cap() -> None:
    for sentence, x, want in (
        ("capped_simplex(0.5, 3)", [1e17, 0, 0], [0.5, 0, 0]), ("capped_simplex(0.5, 0.75)", [1e16, 0, 0], [0.5, 0, 0]),
        ("capped_simplex(0.5, 0.75)", [1e30, 1e30, 0], [0.25, 0.25, 0]), ("capped_simplex(1.5, 1)", [1e30, 0.25, 0.25], [1, 0.25, 0.25]),
        ("capped_simplex(1, 1e6)", list(2.0 ** np.arange(130)), [0] * 129 + [1]),
    ):  # fmt: skip
        np.testing.assert_allclose(tw.constraint(sentence).project(np.array(x)), want, rtol=1e-12)


def test_long_steps_and_small_scales() -> None:
    x = np.array([[0.6, 0, 0.8]])
    step = np.array([[0.0, 1e160, 0]])
    np.testing.assert_allclose(tw.constraint("sphere(retraction=project)").retract(x.copy(), step), [[0, 1, 0]], atol=1e-12)
    end = tw.constraint("poincare_ball(retraction=project)").retract(x.copy(), step)
    np.testing.assert_allclose(end, [[0, 1 - 1e-5, 0]], atol=1e-12)
    with pytest.raises(tw.NumericError):
        tw.constraint("lorentz").project(np.array([[1.0, 1e160, 0]]))
    for size in (1e160, 1e-170):
        w = np.array([0.0, 1, 3, 2])
        u = tw.regularizer(f"tv_nd({0.2 * size!r})").prox(w * size, 1.0) / size
        np.testing.assert_allclose(u, [0.2, 1, 2.6, 2.2], rtol=1e-5)
        assert tw.regularizer("tv_nd(1)").value(w * size) == pytest.approx(4 * size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight, delta, t", [(1, 1, 1e39), (1, 1e10, 1e30), (1e30, 1e10, 1e-30), (1, 1e39, 1), (2, 1e-39, 1)])
def test_log_cosh_at_its_ends(dtype: type, weight: float, delta: float, t: float) -> None:
    x = np.array([0, 1, -2, 0.25], dtype)
    rule, k = tw.regularizer(f"log_cosh({weight!r}, delta={delta!r})"), weight * t
    y = x.astype(np.float64)
    near = 1e-6 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(rule.gradient(x), weight * (y if delta > 1 else delta * np.tanh(y / delta)), rtol=near, atol=1e-38)
    # u/delta is so small, or so large, that tanh is its argument or its sign
    want = y / (1 + k) if delta >= 1 else y - k * delta * np.sign(y)
    np.testing.assert_allclose(rule.prox(x.copy(), t), want, rtol=near, atol=1e-36)


def test_monotone_on_an_offset_does_not_fall() -> None:
    e = 1e15
    y = tw.constraint("monotone").project(np.array([e + 1, e, e, e + 1, e, e, e]))
    assert (np.diff(y) >= 0).all()


# ---- vectors


@pytest.mark.parametrize("sentence", ["log_cosh(2, delta=0.7)", "lp(0.3)", "lp(0.3, p=0.7)", "l0(0.5)", "scad(0.3)"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [1e-3, 0.5, 1e4])
def test_a_number_does_not_depend_on_its_neighbours(sentence: str, dtype: type, t: float) -> None:
    rng = np.random.default_rng(8)
    x = (rng.standard_normal(101) * 10.0 ** rng.integers(-6, 7, 101)).astype(dtype)
    x[[3, 40, 77]] = [0, np.inf, np.nan]
    rule = tw.regularizer(sentence)
    alone = np.concatenate([rule.prox(v.copy(), t) for v in x.reshape(-1, 1)])
    np.testing.assert_array_equal(rule.prox(x.copy(), t), alone)
    if not sentence.startswith("l0"):
        alone = np.concatenate([rule.gradient(v.copy()) for v in x.reshape(-1, 1)])
        np.testing.assert_array_equal(rule.gradient(x.copy()), alone)


def test_l0_counts() -> None:
    assert tw.regularizer("l0(0.5)").value(np.array([0, -0.0, 1, np.inf, -1e-300])) == 1.5
    assert np.isnan(tw.regularizer("l0").value(np.array([np.nan, 1])))


def test_l0_has_no_gradient() -> None:
    w = np.ones(3)
    with pytest.raises(tw.UnsupportedError, match="l0 has no gradient; use its prox"):
        tw.regularizer("l0").gradient(w)
    opt = tw.Optimizer([w], "penalty(l0) | sgd(0.1)")
    with pytest.raises(tw.UnsupportedError, match="l0 has no gradient"):
        opt.step([np.ones(3)])
    assert (w == 1).all()
