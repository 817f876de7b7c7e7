"""The penalties beyond the first ones: laws that hold for all of them, the checks of their cards, and public peers."""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import base, penalties_fields, penalties_groups, penalties_informed, penalties_matrices, penalties_terms
from reference.penalties_matrices import SpectralPenalty, SpectralReg, leading
from support import stage, write

MODULES = {m.__name__ for m in (penalties_fields, penalties_groups, penalties_matrices, penalties_terms)}
PENALTIES = [c for c in base.every(base.RegularizerReference) if c.__module__ in MODULES]
INFORMED = [c for c in base.every(base.ObjectiveReference) if c.__module__ == penalties_informed.__name__]
CASES = [pytest.param(c, s, id=f"{c.name}-{i}") for c in PENALTIES for i, s in enumerate(c.settings)]
CONVEX = {
    "huber_penalty", "log_cosh", "l21", "sparse_group_lasso", "l1_inf", "slope", "tv_1d", "fused_lasso", "spectral_penalty", "sobolev", "neg_entropy",
    "prox_cross_entropy", "sum_of_norms", "tv_nd",
}
ITERATED = {"sum_of_norms", "tv_nd"}  # a prox to a tolerance
SHAPES = [(7,), (4, 3), (3, 5), (2, 3, 2)]


def make(cls: type, setting: dict[str, Any]) -> tw.Regularizer:
    return tw.regularizer(stage(cls.name, setting))


def tensors(cls: type, setting: dict[str, Any], rng: np.random.Generator) -> list[np.ndarray]:
    ref = cls(**setting)
    return [ref.domain(rng.standard_normal(s)) for s in SHAPES if ref.takes(s)]


def cost(penalty: tw.Regularizer, u: np.ndarray, w: np.ndarray, t: float) -> float:
    return float(np.sum((u - w) ** 2) / 2 + t * penalty.value(u))


# ---- all of them


@pytest.mark.parametrize("cls", PENALTIES + INFORMED, ids=lambda c: c.name)
def test_names_and_defaults_are_the_references(cls: type) -> None:
    method = next(m for m in tw.methods() if m.name == cls.name)
    assert method.kind == cls.kind
    required = set(getattr(cls, "required", ()))
    assert {p.name for p in method.parameters} == required | set(cls.defaults)
    assert {p.name for p in method.parameters if p.required} == required
    for p in method.parameters:
        if not p.required:
            want = cls.defaults[p.name]
            same = float(p.default) == want if p.type in ("number", "integer") and want is not None else p.default == write(want)
            assert same, p.name


@pytest.mark.parametrize("cls, setting", CASES)
def test_the_gradient_is_the_slope_of_the_value(cls: type, setting: dict[str, Any]) -> None:
    """A central difference of step 1e-6 errs by 1e-16 |f| / 1e-6 and by the third derivative times 1e-12."""
    if not cls.has_gradient:
        pytest.skip("it has no gradient")
    if setting.get("floor") or (setting.get("variant") == "srip" and setting.get("power_iters", 2)):
        pytest.skip("the gradient holds the vectors of the iteration constant, or is cut")
    rng, mine = np.random.default_rng(1), make(cls, setting)
    for w in tensors(cls, setting, rng):
        d, h = rng.standard_normal(w.shape), 1e-6
        slope = (mine.value(w + h * d) - mine.value(w - h * d)) / (2 * h)
        assert np.sum(mine.gradient(w) * d) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("cls, setting", [c for c in CASES if c.values[0].has_prox and c.values[0].name not in ITERATED])
def test_the_prox_minimises(cls: type, setting: dict[str, Any]) -> None:
    if setting.get("eps"):
        pytest.skip("the prox is that of the exact value")
    rng, mine = np.random.default_rng(2), make(cls, setting)
    for w, t in itertools.product(tensors(cls, setting, rng), (0.1, 2.0, 8.0)):
        u = mine.prox(w.copy(), t)
        best = cost(mine, u, w, t)
        assert best <= cost(mine, w, w, t) + 1e-12
        others = [u + s * rng.standard_normal(w.shape) for s in (1e-4, 1e-2, 1.0) for _ in range(15)]
        others += [0 * u, w * (u != 0), np.where(rng.random(w.shape) < 0.3, w, u)]
        for v in others:
            assert cost(mine, v, w, t) >= best - 1e-12 * max(1.0, abs(best))


@pytest.mark.parametrize("cls, setting", [c for c in CASES if c.values[0].name in CONVEX])
def test_convex_proxes_are_firmly_nonexpansive(cls: type, setting: dict[str, Any]) -> None:
    rng, mine = np.random.default_rng(3), make(cls, {**setting, **({"max_iter": 20000, "tol": 1e-13} if cls.name in ITERATED else {})})
    for _ in range(4):
        for x, y in zip(tensors(cls, setting, rng), tensors(cls, setting, rng)):
            d = mine.prox(2 * x, 1.3) - mine.prox(2 * y, 1.3)
            assert np.sum(d * d) <= 2 * np.sum(d * (x - y)) + 1e-9


@pytest.mark.parametrize("cls, setting", CASES)
def test_empty_tensors_and_numbers_that_are_not_finite(cls: type, setting: dict[str, Any]) -> None:
    mine, ref = make(cls, setting), cls(**setting)
    for shape in ((0,), (0, 3), (3, 0)):
        empty = np.zeros(shape)
        try:
            assert mine.value(empty) == 0 and mine.gradient(empty).shape == shape
        except tw.UnsupportedError:
            assert not cls.has_gradient
    shape = next(s for s in SHAPES if ref.takes(s))
    for bad in (np.nan, np.inf):
        w = ref.domain(np.ones(shape))
        w.flat[2] = bad
        before = w.copy()
        if issubclass(cls, tuple(c for c in PENALTIES if c.__module__ == penalties_terms.__name__ and c.name not in ("softmax_entropy", "prox_cross_entropy"))):
            if cls.has_gradient:
                g = mine.gradient(w)
                assert np.isnan(bad) <= np.isnan(g.flat[2]) or not setting.get("weight", 1)
                assert np.all(np.isfinite(np.delete(g.ravel(), 2)))
            u = mine.prox(w, 0.5)
            assert not np.isfinite(u.flat[2]) and np.all(np.isfinite(np.delete(u.ravel(), 2)))
        elif cls.has_prox and setting.get("weight", 1) and cls.name != "activation_l1":
            with pytest.raises(tw.NonfiniteError):
                mine.prox(w, 0.5)
            np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("cls", PENALTIES, ids=lambda c: c.name)
def test_in_a_pipeline(cls: type, dtype: Any) -> None:
    """One step of gradient descent with the penalty coupled, decoupled, and as a prox."""
    setting = cls.settings[1 if cls.name != "slope" else 2]
    ref, limit = cls(**setting), {np.float64: 1e-12, np.float32: 2e-5, np.float16: 4e-3}[dtype]
    shape = next(s for s in [(16, 9), *SHAPES, (5, 3)] if ref.takes(s))
    text, rng = stage(cls.name, setting), np.random.default_rng(4)
    start, g = ref.domain(rng.standard_normal(shape)).astype(dtype), (0.1 * rng.standard_normal(shape)).astype(dtype)
    w, d, lr = start.astype(np.float64), g.astype(np.float64), 0.05

    def step(sentence: str) -> np.ndarray:
        p = start.copy()
        with tw.Optimizer([p], sentence) as opt:
            opt.step([g])
        return p.astype(np.float64)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=limit, atol=limit * max(1.0, np.max(np.abs(b))))  # noqa: E731
    if cls.has_gradient:
        close(step(f"penalty({text}) | sgd(lr={lr})"), w - lr * (d + ref.first_gradient(w)))
        moved = w - lr * d
        if dtype is not np.float16:
            close(step(f"sgd(lr={lr}) | decoupled({text})"), moved - lr * ref.first_gradient(moved))
    else:
        with pytest.raises(tw.UnsupportedError, match="gradient"):
            step(f"penalty({text}) | sgd(lr={lr})")
    if cls.has_prox:
        if dtype is not np.float16:
            close(step(f"sgd(lr={lr}) | prox({text})"), ref.prox(w - lr * d, lr))
    else:
        with pytest.raises(tw.UnsupportedError, match="prox"):
            step(f"sgd(lr={lr}) | prox({text})")


# ---- sums of terms


def test_huber_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    w = 3 * np.random.default_rng(1).standard_normal(50)
    x = torch.from_numpy(w).requires_grad_()
    value = 0.7 * torch.nn.functional.huber_loss(x, torch.zeros_like(x), delta=0.8, reduction="sum")
    value.backward()
    mine = tw.regularizer("huber_penalty(0.7, delta=0.8)")
    assert mine.value(w) == pytest.approx(value.item(), rel=1e-13)
    np.testing.assert_allclose(mine.gradient(w), x.grad.numpy(), rtol=1e-13)
    # the prox is continuous where its branch changes, at delta (1 + t weight)
    edge = 0.8 * (1 + 2 * 0.7)
    u = mine.prox(np.array([edge * (1 - 1e-9), edge * (1 + 1e-9)]), 2.0)
    assert abs(u[1] - u[0]) < 1e-8


def test_log_cosh_far_and_near() -> None:
    mine = tw.regularizer("log_cosh(2, delta=1e-3)")
    assert mine.value(np.array([1e300])) == pytest.approx(2e-3 * 1e300, rel=1e-12)
    assert mine.gradient(np.array([1e300, -5.0])).tolist() == [2e-3, -2e-3]
    assert mine.value(np.array([1e-12])) == pytest.approx(1e-24, rel=1e-12)  # weight w^2/2, all digits
    for k in (1e-6, 1.0, 1e8):
        w = np.array([-3e4, -2.0, 1e-9, 0.7, 55.0])
        u = mine.prox(w.copy(), k)
        np.testing.assert_allclose(u + 2 * k * 1e-3 * np.tanh(u / 1e-3), w, rtol=1e-12)


def test_lp_closed_forms() -> None:
    rng = np.random.default_rng(2)
    w = 4 * rng.standard_normal(20_000)
    for weight in (0.01, 0.4, 3.0):
        half = tw.regularizer(f"lp({weight}, p=0.5)").prox(w.copy(), 1.0)
        a = np.abs(w)
        above = a > 1.5 * weight ** (2 / 3)
        angle = np.arccos(np.clip(weight / 4 * (a[above] / 3) ** -1.5, -1, 1))
        np.testing.assert_allclose(half[above], np.sign(w[above]) * 2 / 3 * a[above] * (1 + np.cos(2 * np.pi / 3 - 2 / 3 * angle)), rtol=1e-12)
        assert not half[~above].any()
        third = tw.regularizer(f"lp({weight}, p={2 / 3!r})").prox(w.copy(), 1.0)
        above = a > 2 * (2 * weight / 3) ** 0.75
        phi = np.arccosh(27 / 16 * w[above] ** 2 * (2 * weight) ** -1.5)
        s = 2 / np.sqrt(3) * (2 * weight) ** 0.25 * np.sqrt(np.cosh(phi / 3))
        np.testing.assert_allclose(third[above], np.sign(w[above]) * ((s + np.sqrt(2 * a[above] / s - s * s)) / 2) ** 3, rtol=1e-10)
        assert not third[~above].any()


def test_lp_with_an_exponent_a_column() -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((6, 3))
    mine = tw.regularizer("lp(0.3, p=[0.4, 1, 0.7])")
    single = [tw.regularizer(f"lp(0.3, p={p})") for p in (0.4, 1, 0.7)]
    assert mine.value(w) == pytest.approx(sum(s.value(w[:, k]) for k, s in enumerate(single)), rel=1e-13)
    np.testing.assert_allclose(mine.gradient(w), np.stack([s.gradient(w[:, k].copy()) for k, s in enumerate(single)], 1), rtol=1e-13)
    np.testing.assert_allclose(mine.prox(w.copy(), 0.5), np.stack([s.prox(w[:, k].copy(), 0.5) for k, s in enumerate(single)], 1), rtol=1e-13)
    with pytest.raises(tw.ShapeError, match="3 numbers.*4 columns"):
        mine.value(np.ones((2, 4)))
    for wrong in ("[]", "[0.5, 2]", "0", "1.5"):
        with pytest.raises(tw.RangeError, match="`p`"):
            tw.regularizer(f"lp(0.3, p={wrong})")


@pytest.mark.parametrize("text, bends", [("mcp(0.3, gamma=2)", [0.6]), ("scad(0.3, a=3)", [0.3, 0.9])])
def test_concave_penalties_are_continuous(text: str, bends: list[float]) -> None:
    mine = tw.regularizer(text)
    for b, h in itertools.product(bends, (1e-9,)):
        assert abs(mine.value(np.array([b + h])) - mine.value(np.array([b - h]))) < 1e-8
        assert abs(mine.gradient(np.array([b + h])) - mine.gradient(np.array([b - h]))) < 1e-8
    assert mine.prox(np.array([5.0, -5.0]), 0.7).tolist() == [5.0, -5.0]  # large entries are not shrunk


def test_l0_keeps_what_pays() -> None:
    mine = tw.regularizer("l0(0.5)")
    w = np.array([0.9, -1.1, 1.0, 0.0, 3.0])
    assert mine.value(w) == 2.0
    assert mine.prox(w.copy(), 1.0).tolist() == [0.0, -1.1, 0.0, 0.0, 3.0]  # a tie goes to zero


def test_neg_entropy_is_lamberts_function() -> None:
    special = pytest.importorskip("scipy.special")
    mine = tw.regularizer("neg_entropy(0.7)")
    w = np.linspace(-20, 60, 400)
    np.testing.assert_allclose(mine.prox(w.copy(), 2.0), 1.4 * special.lambertw(np.exp(w / 1.4 - 1) / 1.4).real, rtol=1e-12)
    far = np.array([-800.0, -300.0, 0.0, 1e-300, 700.0])
    u = mine.prox(far.copy(), 1 / 0.7)
    assert np.all(u >= 0) and np.all(np.isfinite(u))
    np.testing.assert_allclose((u + np.log(np.maximum(u, 1e-320)))[2:], far[2:] - 1, rtol=1e-12)
    assert mine.value(np.zeros(3)) == 0 and mine.gradient(np.zeros(1))[0] == -np.inf
    assert mine.value(np.array([-1.0])) == np.inf


def test_softmax_entropy_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    z = 30 * np.random.default_rng(5).standard_normal((4, 2, 6))
    x = torch.from_numpy(z).requires_grad_()
    value = torch.distributions.Categorical(logits=x).entropy().sum()
    value.backward()
    mine = tw.regularizer("softmax_entropy")
    assert mine.value(z) == pytest.approx(value.item(), rel=1e-11)
    np.testing.assert_allclose(mine.gradient(z), x.grad.numpy(), rtol=1e-8, atol=1e-14)
    assert mine.value(np.zeros((3, 8))) == pytest.approx(3 * math.log(8))
    assert np.all(np.isfinite(mine.gradient(np.array([[0.0, 2000.0]]))))


def test_prox_cross_entropy_is_stationary() -> None:
    rng = np.random.default_rng(6)
    for k in (0.1, 5.0, 200.0):
        z, y = 5 * rng.standard_normal((4, 7)), rng.dirichlet(np.ones(7))
        mine = tw.regularizer(stage("prox_cross_entropy", {"target": y, "lam": k, "steps": 60}))
        u = mine.prox(z.copy(), 1.0)
        np.testing.assert_allclose(u - z + mine.gradient(u), 0, atol=1e-11 * max(1, k))
    targets = rng.dirichlet(np.ones(7), 4)
    each = tw.regularizer(stage("prox_cross_entropy", {"target": targets.tolist()}))
    one = [tw.regularizer(stage("prox_cross_entropy", {"target": y.tolist()})) for y in targets]
    assert each.value(z) == pytest.approx(sum(o.value(row) for o, row in zip(one, z)), rel=1e-13)
    with pytest.raises(tw.ShapeError, match="7 numbers"):
        one[0].value(np.ones((3, 5)))


# ---- groups and orders


def test_groups_at_their_limits() -> None:
    rng = np.random.default_rng(7)
    w = rng.standard_normal((5, 4))
    same = [
        ("l21(0.3, axis=col)", "group_lasso(0.3, axis=col, scale_by_size=false)"), ("sparse_group_lasso(0.3, l1_ratio=1)", "l1(0.3)"),
        ("sparse_group_lasso(0.3, l1_ratio=0, axis=all)", "group_lasso(0.3, axis=all)"), ("slope(0.3, seq=[1, 1, 1, 1, 1, 1, 1, 1])", "l1(0.3)"),
        ("slope(0.3, seq=[1, 0, 0, 0, 0, 0, 0, 0])", "l1_inf(0.3, axis=all)"), ("l1_inf(0.3)", "l1(0.3)"),
    ]
    for left, right in same:
        x = w.reshape(-1, 1) if left == "l1_inf(0.3)" else w if "seq" not in left else w.ravel()[:8].copy()
        a, b = tw.regularizer(left), tw.regularizer(right)
        assert a.value(x) == pytest.approx(b.value(x), rel=1e-13)
        np.testing.assert_allclose(a.gradient(x), b.gradient(x), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(a.prox(x.copy(), 1.3), b.prox(x.copy(), 1.3), rtol=1e-12, atol=1e-14)
    assert not tw.regularizer("l1_inf(100)").prox(w.copy(), 1.0).any()
    for wrong in ("[1, 2]", "[1, -1]", "[]"):
        with pytest.raises(tw.RangeError, match="`seq`"):
            tw.regularizer(f"slope(0.3, seq={wrong})")
    with pytest.raises(tw.ShapeError, match="2 numbers"):
        tw.regularizer("slope(0.3, seq=[1, 0.5])").value(w)


def test_sum_of_norms() -> None:
    mine = tw.regularizer("sum_of_norms(1, max_iter=5000, tol=1e-14)")
    a, b = np.array([1.0, 2.0, 0.0]), np.array([4.0, -2.0, 0.0])  # at distance 5
    for k in (0.5, 2.4, 2.5, 7.0):
        e = (a - b) / 5
        want = [(a + b) / 2] * 2 if k >= 2.5 else [a - k * e, b + k * e]
        np.testing.assert_allclose(mine.prox(np.stack([a, b]), k), want, atol=1e-11)
    rng = np.random.default_rng(8)
    x = rng.standard_normal((6, 3))
    np.testing.assert_allclose(mine.prox(x.copy(), 10.0), np.broadcast_to(x.mean(0), x.shape), atol=1e-10)
    np.testing.assert_allclose(mine.prox(x + 3.0, 0.1), mine.prox(x.copy(), 0.1) + 3.0, atol=1e-11)
    assert not mine.gradient(np.ones((4, 2))).any() and mine.value(np.ones((1, 5))) == 0
    # only rows 0 and 1 know each other
    c = np.zeros((6, 6))
    c[0, 1] = c[1, 0] = 1
    some = tw.regularizer(stage("sum_of_norms", {"coef": c.tolist(), "max_iter": 5000, "tol": 1e-14}))
    u = some.prox(x.copy(), 100.0)
    np.testing.assert_allclose(u[0], u[1], atol=1e-11)
    assert u[2:].tobytes() == x[2:].tobytes()
    for wrong in ("[0, 1, 1]", "[0, 1, 2, 0]", "[0, -1, -1, 0]"):
        with pytest.raises(tw.RangeError, match="`coef`"):
            tw.regularizer(f"sum_of_norms(coef={wrong})")
    with pytest.raises(tw.ShapeError, match="`coef`"):
        some.value(np.ones((5, 2)))


# ---- neighbours


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_tv_1d_by_its_dual_certificate(scale: float) -> None:
    """z = cumsum(w - u) stays within lam, and is -lam times the sign of the jump where u jumps; the prox keeps the sum."""
    rng, mine = np.random.default_rng(9), tw.regularizer("tv_1d(1)")
    for n in (2, 3, 10, 4000):
        w = scale * (rng.standard_normal(n).cumsum() + rng.standard_normal(n))
        for lam in (0.01 * scale, scale, 100 * scale):
            u = mine.prox(w.copy(), lam)
            z = np.cumsum(w - u)
            slack = 1e-11 * scale * n
            assert np.all(np.abs(z) <= lam + slack) and abs(z[-1]) <= slack
            jump = np.abs(np.diff(u)) > 1e-9 * scale
            np.testing.assert_allclose(z[:-1][jump], -lam * np.sign(np.diff(u))[jump], atol=slack)
    constant = np.full(9, 0.1)
    np.testing.assert_allclose(mine.prox(constant.copy(), 3.0), constant, rtol=1e-15)


@pytest.mark.parametrize("isotropic", ["true", "false"])
def test_tv_nd_by_its_duality_gap(isotropic: str) -> None:
    rng = np.random.default_rng(10)
    mine = tw.regularizer(f"tv_nd(1, isotropic={isotropic}, max_iter=20000, tol=1e-10)")
    for shape in ((6, 5), (3, 4, 5), (40,)):
        w, t = rng.standard_normal(shape), 0.4
        u = mine.prox(w.copy(), t)
        gap = np.sum((u - w) ** 2) / 2 + t * mine.value(u) - np.sum(w * w) / 2 + np.sum(u * u) / 2
        assert abs(gap) < 1e-7 * np.sum(w * w)
        assert u.sum() == pytest.approx(w.sum(), abs=1e-10)
    line = rng.standard_normal(40)
    np.testing.assert_allclose(mine.prox(line.copy(), 0.4), tw.regularizer("tv_1d(1)").prox(line.copy(), 0.4), atol=1e-7)


def test_truncated_quadratic_counts_an_edge_once() -> None:
    w = np.zeros((6, 4))
    w[3:] = 10.0
    mine = tw.regularizer("truncated_quadratic(2, nu=0.5)")
    assert mine.value(w) == 4 * 0.5 and not mine.gradient(w).any()
    assert mine.value(0.1 * w / 10) == pytest.approx(4 * 2 * 0.01)


def test_sobolev() -> None:
    rng, w = np.random.default_rng(11), np.random.default_rng(12).standard_normal((6, 35))
    assert tw.regularizer("sobolev(0, weight=0.6)").value(w) == pytest.approx(0.3 * np.sum(w * w), rel=1e-13)
    # along one axis: the sum over the lines
    lines, one = tw.regularizer("sobolev(1.5, axes=[1])"), tw.regularizer("sobolev(1.5)")
    assert lines.value(w) == pytest.approx(sum(one.value(row) for row in w), rel=1e-12)
    x = np.arange(64) * 2 * np.pi / 64
    wave = np.cos(5 * x)
    np.testing.assert_allclose(tw.regularizer("sobolev(2, homogeneous=true)").gradient(wave), 5.0**4 * wave, atol=1e-8)  # m reaches 1e6
    np.testing.assert_allclose(one.prox(wave.copy(), 0.1), wave / (1 + 0.1 * 26**1.5), atol=1e-13)
    for n in (1, 2, 3, 13, 97, 128, 1000):
        v = rng.standard_normal(n)
        want = np.fft.ifft((1 + np.fft.fftfreq(n, 1 / n) ** 2) * np.fft.fft(v)).real
        np.testing.assert_allclose(tw.regularizer("sobolev").gradient(v), want, rtol=1e-10, atol=1e-11 * n * n)
    for wrong, error in (("[0.5]", tw.RangeError), ("[]", tw.RangeError), ("[2]", tw.ShapeError), ("[0, -2]", tw.ShapeError)):
        with pytest.raises(error, match="axes|axis"):
            tw.regularizer(f"sobolev(1, axes={wrong})").value(w)


# ---- matrices


def test_orthogonality_and_gor() -> None:
    rng = np.random.default_rng(13)
    q = np.linalg.qr(rng.standard_normal((9, 4)))[0]
    for variant in ("soft", "mutual_coherence", "srip", "srip, power_iters=0"):
        for w in (q, q.T.copy()):
            assert tw.regularizer(f"orthogonality(1, variant={variant})").value(w) < 1e-14
    w = rng.standard_normal((4, 6))
    mine = tw.regularizer("orthogonality(1)")
    assert mine.value(0 * w) == 4 and not mine.gradient(0 * w).any()
    assert tw.regularizer("orthogonality(1, short_side=false)").value(0 * w) == 6
    assert tw.regularizer("orthogonality(1, variant=srip, power_iters=0)").value(w) == pytest.approx(np.linalg.norm(w @ w.T - np.eye(4), 2), rel=1e-12)
    assert tw.regularizer("gor(1, num_groups=1)").value(w) == pytest.approx(mine.value(w), rel=1e-13)
    np.testing.assert_allclose(tw.regularizer("gor(1, num_groups=1)").gradient(w), mine.gradient(w), rtol=1e-12)
    groups = tw.regularizer("gor(1, num_groups=2, min_group_size=2)")
    assert groups.value(w[[1, 0, 3, 2]]) == pytest.approx(groups.value(w), rel=1e-13)
    assert groups.value(w[[0, 2, 1, 3]]) != pytest.approx(groups.value(w), rel=1e-3)
    with pytest.raises(tw.ShapeError, match="5 rows.*2 groups"):
        groups.value(np.ones((5, 3)))


def test_spectral_penalties() -> None:
    rng = np.random.default_rng(14)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    mine = tw.regularizer("spectral_reg(1)")
    assert mine.value(q) < 1e-28 and np.abs(mine.gradient(q)).max() < 1e-13
    assert not mine.gradient(np.zeros((3, 2))).any() and mine.value(np.zeros((3, 2))) == 1
    w = (q * [3.0, 1, 1, 1, 1, 1]) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for name in ("spectral_penalty", "spectral_reg"):
        for text in (f"{name}(1)", f"{name}(1, n_iter=3)"):
            assert not tw.regularizer(text).gradient(np.zeros((3, 2))).any()
            zero = np.zeros((3, 2))
            tw.Optimizer([zero], f"penalty({text}) | sgd(lr=1)").step([np.zeros((3, 2))])
            assert not zero.any()
    b = np.array([0.5, 2.0])
    np.testing.assert_allclose(tw.regularizer("spectral_reg(1, k=1)").gradient(b), 2 * b)
    assert tw.regularizer("spectral_reg(1, include_bias=false)").value(b) == 0


@pytest.mark.parametrize("cls", [SpectralPenalty, SpectralReg], ids=lambda c: c.name)
@pytest.mark.parametrize("n_iter", [0, 1, 3])
@pytest.mark.parametrize("place", ["penalty({}) | sgd(lr=0.1)", "sgd(lr=0.1) | decoupled({})"])
def test_spectral_penalties_keep_their_vector(cls: type, n_iter: int, place: str) -> None:
    """The power iterations of a step begin where those of the step before ended, in a run that was saved too."""
    rng, ref = np.random.default_rng(15), cls(weight=0.2, n_iter=n_iter)
    start, sentence = rng.standard_normal((6, 2, 4)), place.format(f"{cls.name}(0.2, n_iter={n_iter})")
    w, mine, u = start.copy(), start.copy(), None
    opt = tw.Optimizer([mine], sentence)
    for k in range(12):
        g = 0.1 * rng.standard_normal(w.shape)
        w -= 0.1 * g if place.startswith("sgd") else 0.0
        sigma, u, v = leading(w.reshape(6, 8), n_iter, u)
        w -= 0.1 * ref.along(w, sigma, u, v) + (0.0 if place.startswith("sgd") else 0.1 * g)
        if k == 5:
            state, opt = opt.state_dict(), tw.Optimizer([mine], sentence)
            opt.load_state_dict(state)
        opt.step([g])
        np.testing.assert_allclose(mine, w, rtol=1e-11, atol=1e-12)


DOUBLE = 2  # TW_F64


class Tensor(ctypes.Structure):
    """tw_tensor of the C interface: Python's has no roles."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("ndim", ctypes.c_int32), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.c_void_p), ("flags", ctypes.c_uint32), ("role", ctypes.c_uint32), ("reserved", ctypes.c_uint64 * 3)]


def test_spectral_reg_pulls_scales_to_one() -> None:
    c = ctypes.CDLL("libthalweg.so.1")  # (by its name: the one that is loaded already)
    b, g = np.array([0.5, 2.0, 1.0]), np.zeros(3)
    shape, made, value = (ctypes.c_int64 * 1)(3), ctypes.c_void_p(), ctypes.c_double()
    view = lambda x, role: Tensor(x.ctypes.data, DOUBLE, 1, shape, None, 0, role)  # noqa: E731
    assert c.tw_regularizer_create(b"spectral_reg(1)", ctypes.byref(made)) == 0
    for role, rest in ((2, 0.0), (3, 1.0)):  # a bias, a scale
        g[:] = 0
        assert c.tw_regularizer_value(made, ctypes.byref(view(b, role)), ctypes.byref(value)) == 0
        assert value.value == pytest.approx(np.sum((b - rest) ** 2) ** 2)
        assert c.tw_regularizer_gradient(made, ctypes.byref(view(b, role)), ctypes.c_double(1), ctypes.byref(view(g, role))) == 0
        np.testing.assert_allclose(g, 4 * np.sum((b - rest) ** 2) * (b - rest))
    assert c.tw_regularizer_destroy(made) == 0
