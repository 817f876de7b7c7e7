"""The sets beyond the first ones: laws that hold for all of them, the checks of their cards, and public peers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import base, manifolds, sets, sets_matrices
from support import stage, write

MODULES = {m.__name__ for m in (manifolds, sets, sets_matrices)}
SETS = [c for c in base.every(base.ConstraintReference) if c.__module__ in MODULES]
CASES = [pytest.param(c, s, id=f"{c.name}-{i}") for c in SETS for i, s in enumerate(c.settings)]
MANIFOLDS = [c for c in CASES if hasattr(c.values[0], "retract")]
CURVED = {"l0_ball", "low_rank", "graph_max", "graph_relu", "graph_sum_relu", "graph_dot", "sphere", "oblique", "grassmann", "poincare_ball", "lorentz", "spd"}
NEAREST = {"lorentz"}  # `project` there gives a point, not the nearest
SHAPES = [(7,), (3,), (4, 3), (3, 5), (3, 3), (2, 3, 2)]


def make(cls: type, setting: dict[str, Any]) -> tw.Constraint:
    return tw.constraint(stage(cls.name, setting))


def shapes(cls: type, setting: dict[str, Any]) -> list[tuple[int, ...]]:
    ref, axis = cls(**setting), setting.get("axis")
    return [s for s in SHAPES if ref.takes(s) and (axis is None or -len(s) <= axis < len(s)) and (cls is not sets.CappedSimplex or min(s) >= 2)]


def inner(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))


# ---- all of them


@pytest.mark.parametrize("cls", SETS, ids=lambda c: c.name)
def test_names_and_defaults_are_the_references(cls: type) -> None:
    method = next(m for m in tw.methods("constraint") if m.name == cls.name)
    required = set(getattr(cls, "required", ()))
    assert {p.name for p in method.parameters} == required | set(cls.defaults)
    assert {p.name for p in method.parameters if p.required} == required
    for p in method.parameters:
        if not p.required:
            want = cls.defaults[p.name]
            same = float(p.default) == want if p.type in ("number", "integer") and want is not None else p.default == write(want)
            assert same, p.name


@pytest.mark.parametrize("cls, setting", CASES)
def test_projections_are_nearest(cls: type, setting: dict[str, Any]) -> None:
    """Convex sets: <w - P, z - P> <= 0 for feasible z, and no expansion; others: no feasible z is nearer."""
    if setting.get("projection") == "sinkhorn" or setting.get("iters") == 50 or cls.name in NEAREST:
        pytest.skip("not the nearest point")
    rng, mine = np.random.default_rng(1), make(cls, setting)
    for shape in shapes(cls, setting):
        feasible = [mine.project(s * rng.standard_normal(shape)) for s in (0.05, 0.5, 1.0, 3.0) for _ in range(12 if cls.limit == 1 else 3)]
        for scale in (0.1, 1.0, 5.0):
            w = scale * rng.standard_normal(shape)
            p = mine.project(w.copy())
            for z in feasible:
                if cls.name in CURVED:
                    assert np.sum((w - p) ** 2) <= np.sum((w - z) ** 2) + 1e-9
                else:
                    assert inner(w - p, z - p) <= 1e-8
            if cls.name not in CURVED:
                v = w + rng.standard_normal(shape)
                assert np.linalg.norm(mine.project(v.copy()) - p) <= np.linalg.norm(v - w) + 1e-9


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls, setting", CASES)
def test_linear_minimisation(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    rng, mine, ref = np.random.default_rng(2), make(cls, setting), cls(**setting)
    limit = 1e-11 if dtype is np.float64 else 1e-5
    for shape in shapes(cls, setting):
        g = rng.standard_normal(shape).astype(dtype)
        if cls is sets.DoublyStochastic:
            continue  # test_assignments
        if not cls.bounded:
            with pytest.raises((tw.UnsupportedError, tw.RangeError), match="oracle|unbounded"):
                mine.lmo(g)
            continue
        s = mine.lmo(g)
        np.testing.assert_allclose(s, ref.lmo(g.astype(np.float64)), rtol=limit, atol=limit)
        np.testing.assert_allclose(mine.project(s.copy()), s, rtol=limit, atol=limit)
        for _ in range(30):
            z = mine.project((3 * rng.standard_normal(shape)).astype(dtype))
            assert inner(g, s) <= inner(g, z) + 10 * limit
        zero = mine.lmo(np.zeros(shape, dtype))
        np.testing.assert_allclose(mine.project(zero.copy()), zero, rtol=limit, atol=limit)


@pytest.mark.parametrize("cls, setting", CASES)
def test_points_inside_keep_their_bits_and_bad_numbers_change_nothing(cls: type, setting: dict[str, Any]) -> None:
    if setting.get("projection") == "sinkhorn" or setting.get("iters") == 50:
        pytest.skip("its result is no fixed point")
    rng, mine = np.random.default_rng(3), make(cls, setting)
    entries = cls in (sets.NonNegative, sets.WeightClip, sets.LinfBall)
    exact = not cls.name.startswith("graph") and cls.name not in ("affine", "doubly_stochastic", "lorentz")
    for shape in shapes(cls, setting):
        w = rng.standard_normal(shape)
        p = mine.project(w.copy())
        again = mine.project(p.copy())
        assert again.tobytes() == p.tobytes() if exact else np.allclose(again, p, rtol=0, atol=1e-13)
        for bad in (np.nan, np.inf):
            w = rng.standard_normal(shape)
            w.flat[1] = bad
            before = w.copy()
            if entries:
                assert np.isnan(mine.project(w).flat[1]) == np.isnan(bad)
            else:
                with pytest.raises(tw.NonfiniteError):
                    mine.project(w)
                np.testing.assert_array_equal(w, before)
    empty = np.zeros((0, 3)) if cls.shapes == "matrix" else np.zeros(0)
    if cls(**setting).takes((7,)) and not getattr(cls, "required", ()):
        assert mine.project(empty).shape == empty.shape


# ---- manifolds


@pytest.mark.parametrize("cls, setting", MANIFOLDS)
def test_retractions(cls: type, setting: dict[str, Any]) -> None:
    """They end on the set, move by u to first order, and leave the point alone for u = 0."""
    rng, mine, ref = np.random.default_rng(4), make(cls, setting), cls(**setting)
    for shape in shapes(cls, setting):
        x = mine.project((0.15 if cls is manifolds.PoincareBall else 0.4) * rng.standard_normal(shape))
        u = ref.proj(x, (0.05 if cls is manifolds.SPD else 0.5) * rng.standard_normal(shape))  # the smallest eigenvalue is 0.1
        y = mine.retract(x.copy(), u)
        whole = make(cls, {**setting, "eps": 1e-10}) if cls is manifolds.SPD else mine
        np.testing.assert_allclose(whole.project(y.copy()), y, atol=1e-12)
        h = 1e-6
        away = (mine.retract(x.copy(), h * u) - mine.retract(x.copy(), -h * u)) / (2 * h)
        if cls is manifolds.Grassmann:
            np.testing.assert_allclose(away, u, atol=1e-8)
        else:
            np.testing.assert_allclose(away, u, atol=1e-8 * max(1, np.abs(u).max()))
        if cls.name not in ("grassmann", "spd", "lorentz") and setting.get("retraction") != "project":
            assert mine.retract(x.copy(), 0 * u).tobytes() == x.tobytes()
        np.testing.assert_allclose(mine.retract(x.copy(), 0 * u), x, atol=1e-14)


def metric(cls: type, ref: Any, x: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    if cls is manifolds.PoincareBall:
        return float(np.sum((2 / (1 - ref.c * ref._dot(x, x))) ** 2 * a * b))
    if cls is manifolds.Lorentz:
        return float(np.sum(ref.dot(a, b)))
    if cls is manifolds.SPD:
        return float(np.trace(np.linalg.solve(x, a) @ np.linalg.solve(x, b)))
    return inner(a, b)


@pytest.mark.parametrize("cls, setting", MANIFOLDS)
def test_the_tangent_gradient_is_the_gradient_in_the_metric(cls: type, setting: dict[str, Any]) -> None:
    rng, mine, ref = np.random.default_rng(5), make(cls, setting), cls(**setting)
    for shape in shapes(cls, setting):
        if cls is manifolds.SPD and len(shape) > 2:
            continue
        x, e = mine.project(0.4 * rng.standard_normal(shape)), rng.standard_normal(shape)
        g = mine.tangent(x, e.copy())
        v = ref.proj(x, rng.standard_normal(shape))
        assert metric(cls, ref, x, g, v) == pytest.approx(inner(e, v), rel=1e-9, abs=1e-10)
        if cls is not manifolds.Grassmann and cls is not manifolds.PoincareBall:
            np.testing.assert_allclose(ref.proj(x, g), g, atol=1e-11)


def test_the_smallest_eigenvector_on_the_sphere() -> None:
    rng = np.random.default_rng(6)
    a = rng.standard_normal((8, 8))
    a = a + a.T
    for retraction in ("exp", "project"):
        x = rng.standard_normal(8)
        x /= np.linalg.norm(x)
        with tw.Optimizer([x], f"sgd(lr=0.05) | manifold(sphere(retraction={retraction}))") as opt:
            for _ in range(2000):
                opt.step([2 * a @ x])
        assert x @ a @ x == pytest.approx(np.linalg.eigvalsh(a)[0], rel=1e-10)
        assert np.linalg.norm(x) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_steps_stay_in_the_ball_of_poincare(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    x = (0.1 * rng.standard_normal((20, 3))).astype(dtype)
    with tw.Optimizer([x], "sgd(lr=1) | manifold(poincare_ball)") as opt:
        for _ in range(30):
            opt.step([(-50 * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)])
    edge = 1 - (1e-5 if dtype is np.float64 else 4e-3)
    assert np.all(np.linalg.norm(x, axis=1) <= edge * (1 + 1e-6)) and np.all(np.linalg.norm(x, axis=1) > 0.95)


def test_exponential_maps_are_geodesics() -> None:
    """exp moves by the length of the step: the distance of the ball, the hyperboloid, and the positive definite cone."""
    rng = np.random.default_rng(8)
    for c in (0.5, 2.0):
        ball, x = manifolds.PoincareBall(c=c), 0.2 * rng.standard_normal((6, 3))
        u = 0.1 * rng.standard_normal((6, 3))
        y = tw.constraint(f"poincare_ball(c={c})").retract(x.copy(), u)
        d = 2 / np.sqrt(c) * np.arctanh(np.sqrt(c) * np.linalg.norm(ball.add(-x, y), axis=1))
        np.testing.assert_allclose(d, 2 / (1 - c * np.sum(x * x, 1)) * np.linalg.norm(u, axis=1), rtol=1e-10)
        sheet = manifolds.Lorentz(c=c)
        p = sheet.project(rng.standard_normal((6, 4)))
        v = sheet.proj(p, rng.standard_normal((6, 4)))
        q = tw.constraint(f"lorentz(c={c})").retract(p.copy(), v)
        far = np.arccosh(-c * sheet.dot(p, q)) / np.sqrt(c)
        np.testing.assert_allclose(far, np.sqrt(sheet.dot(v, v)), rtol=1e-7)
    linalg = pytest.importorskip("scipy.linalg")
    x = tw.constraint("spd(eps=0.2)").project(rng.standard_normal((5, 5)))
    u = manifolds.sym(rng.standard_normal((5, 5)))
    y = tw.constraint("spd").retract(x.copy(), u)
    np.testing.assert_allclose(y, x @ linalg.expm(np.linalg.solve(x, u)), rtol=1e-8, atol=1e-10)
    assert y.tobytes() == y.T.copy().tobytes()
    with pytest.raises(tw.NumericError, match="positive definite"):
        tw.constraint("spd").retract(-np.eye(3), np.zeros((3, 3)))


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-3, 0.2, 0.3, 0.6, 4.0])
def test_steps_of_every_length_on_matrices(length: float) -> None:
    """Short ones are series and triangular factors, long ones eigenvalues and singular values: no seam between them."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(18)
    draw = rng.standard_normal((6, 6))
    x = draw @ draw.T + 0.1 * np.eye(6)
    root = linalg.sqrtm(x)
    u = manifolds.sym(rng.standard_normal((6, 6)))
    u = root @ (length * u / np.linalg.norm(u)) @ root
    y = tw.constraint("spd").retract(x.copy(), u)
    np.testing.assert_allclose(y, x @ linalg.expm(np.linalg.solve(x, u)), rtol=1e-12, atol=1e-12 * np.abs(y).max())
    # a momentum of two steps is carried along: E·b·Eᵀ, E = (y x⁻¹)^½
    point, twice = x.copy(), x.copy()
    g = -np.linalg.solve(x, np.linalg.solve(x, u).T)
    with tw.Optimizer([point], "riemannian_sgd(lr=1, momentum=0.5, manifold=spd, stabilize=none)") as opt:
        opt.step([g])
        np.testing.assert_allclose(point, y, rtol=1e-10, atol=1e-10 * np.abs(y).max())
        opt.step([0 * g])
    turn = linalg.sqrtm(y @ np.linalg.inv(x)).real
    twice = y @ linalg.expm(0.5 * np.linalg.solve(y, turn @ u @ turn.T))
    np.testing.assert_allclose(point, twice, rtol=1e-8, atol=1e-9 * np.abs(twice).max())

    x = np.linalg.qr(rng.standard_normal((9, 4)))[0]
    u = manifolds.sym(rng.standard_normal((9, 9)))[:, :4]
    u = length * (u - x @ manifolds.sym(x.T @ u)) / np.linalg.norm(u)
    q, r = np.linalg.qr(x + u)
    left, _, right = np.linalg.svd(x + u, full_matrices=False)
    for retraction, wanted in (("qr", q * np.sign(np.diag(r))), ("polar", left @ right)):
        y = tw.constraint(f"stiefel(retraction={retraction})").retract(x.copy(), u)
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-14)
        np.testing.assert_allclose(y.T @ y, np.eye(4), rtol=0, atol=4e-15)


def test_positive_definite_by_a_hair() -> None:
    """A point that Cholesky's factor does not see as positive definite steps by its eigenvalues."""
    rng = np.random.default_rng(19)
    q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x = manifolds.sym((q * np.logspace(-15.5, 0, 8)) @ q.T)
    try:
        y = tw.constraint("spd").retract(x.copy(), 1e-3 * x)
    except tw.NumericError as problem:
        assert "least eigenvalue" in str(problem)
    else:
        np.testing.assert_allclose(y, np.exp(1e-3) * x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_monotone_at_the_ends_of_the_range(dtype: Any) -> None:
    top = np.finfo(dtype).max
    for x in ([top, -top, top / 2], [top, top, -top], [1e-30, 2e-30, 1e-30], [3, 2, 1, 0], [-top, 0, top]):
        w = np.array(x, dtype)
        y = tw.constraint("monotone").project(w.copy())
        assert np.all(np.isfinite(y)) and np.all(np.diff(y.astype(np.float64)) >= 0)
        wanted = sets.Monotone().project(w.astype(np.longdouble))
        np.testing.assert_allclose(y.astype(np.longdouble), wanted, rtol=4 * np.finfo(dtype).eps, atol=0)


def test_grassmann_ignores_the_basis() -> None:
    rng = np.random.default_rng(9)
    x, g = np.linalg.qr(rng.standard_normal((7, 3)))[0], rng.standard_normal((7, 3))
    r = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    for retraction in ("polar", "qr", "exp"):
        mine = tw.constraint(f"grassmann({retraction})")
        y = mine.retract(x.copy(), mine.tangent(x, g.copy()))
        z = mine.retract(x @ r, mine.tangent(x @ r, g @ r))
        np.testing.assert_allclose(y @ y.T, z @ z.T, atol=1e-13)


def test_zero_projects_to_the_first_basis_vector() -> None:
    assert tw.constraint("sphere(radius=2)").project(np.zeros((2, 3))).ravel().tolist() == [2, 0, 0, 0, 0, 0]
    w = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(tw.constraint("oblique").project(w), [[1, 0], [0.6, 0.8]], rtol=1e-15)


def test_geoopt_has_the_same_manifolds() -> None:
    geoopt, torch = pytest.importorskip("geoopt"), pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    pairs = [(geoopt.manifolds.SphereExact(), "sphere"), (geoopt.PoincareBallExact(c=1.0), "poincare_ball(eps=1e-5)"), (geoopt.Lorentz(k=1.0), "lorentz")]
    for theirs, text in pairs:
        mine = tw.constraint(text)
        x, e = mine.project(0.4 * rng.standard_normal(5)), rng.standard_normal(5)
        g = mine.tangent(x, e.copy())
        np.testing.assert_allclose(g, theirs.egrad2rgrad(torch.from_numpy(x), torch.from_numpy(e)).numpy(), rtol=1e-9, atol=1e-12)
        y = theirs.expmap(torch.from_numpy(x), torch.from_numpy(0.2 * g)).numpy()
        np.testing.assert_allclose(mine.retract(x.copy(), 0.2 * g), y, rtol=1e-9, atol=1e-12)


# ---- single sets


def test_optax_projects_the_same() -> None:
    projections = pytest.importorskip("optax").projections
    w = (2 * np.random.default_rng(11).standard_normal(9)).astype(np.float32)
    pairs = [("non_negative", projections.projection_non_negative(w)), ("l1_ball(1.5)", projections.projection_l1_ball(w, 1.5)),
             ("linf_ball(0.7)", projections.projection_linf_ball(w, 0.7)), ("weight_clip(0.3)", projections.projection_box(w, -0.3, 0.3))]
    for text, want in pairs:
        np.testing.assert_allclose(tw.constraint(text).project(w.copy()), np.asarray(want), rtol=2e-6, atol=2e-7)  # in float32


def test_isotonic_regression_is_sklearns() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng, mine = np.random.default_rng(12), tw.constraint("monotone")
    for n in (1, 2, 50, 3000):
        x = rng.standard_normal(n) + 0.001 * np.arange(n)
        np.testing.assert_allclose(mine.project(x.copy()), isotonic.isotonic_regression(x), rtol=1e-9, atol=1e-12)
    rising = np.sort(rng.standard_normal(20))
    assert mine.project(rising.copy()).tobytes() == rising.tobytes()


def test_the_capped_simplex_at_its_ends() -> None:
    w = np.array([3.0, -1.0, 0.5, 0.5])
    assert tw.constraint("capped_simplex(0)").project(w.copy()).tolist() == [0] * 4
    assert tw.constraint("capped_simplex(2, cap=0.5)").project(w.copy()).tolist() == [0.5] * 4
    # a large cap is the simplex
    np.testing.assert_allclose(tw.constraint("capped_simplex(1, cap=9)").project(w.copy()), tw.constraint("simplex").project(w.copy()), atol=1e-15)
    with pytest.raises(tw.ShapeError, match="4 entries of at most 0.2"):
        tw.constraint("capped_simplex(1, cap=0.2)").project(w)
    for k in (1e6, 1e10):  # the result is as exact as its own size, not as that of the numbers
        u = tw.constraint("capped_simplex(1, cap=0.6)").project(w + k)
        assert u.sum() == pytest.approx(1, abs=1e-14)


def test_assignments() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng, mine = np.random.default_rng(13), tw.constraint("doubly_stochastic")
    for n in (1, 2, 3, 5, 6, 40):
        for integers in (False, True):
            g = rng.integers(-3, 3, (n, n)).astype(np.float64) if integers else rng.standard_normal((n, n))
            p = mine.lmo(g)
            assert np.all((p == 0) | (p == 1)) and np.all(p.sum(0) == 1) and np.all(p.sum(1) == 1)
            rows, columns = optimize.linear_sum_assignment(g)
            assert inner(g, p) == pytest.approx(g[rows, columns].sum(), abs=1e-12)
            if n <= 6:
                assert inner(g, p) == pytest.approx(sets_matrices.least_cost(g), abs=1e-12)
    with pytest.raises(tw.ShapeError, match="square"):
        mine.project(np.ones((2, 3)))


def test_sinkhorn_scales_rows_and_columns() -> None:
    m = np.random.default_rng(14).standard_normal((5, 5))
    p = tw.constraint("doubly_stochastic(iters=500, temperature=0.5, projection=sinkhorn)").project(m.copy())
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-14)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-9)
    rest = np.log(p) - m / 0.5  # a_i + b_j
    np.testing.assert_allclose(rest - rest[:1] - rest[:, :1] + rest[0, 0], 0, atol=1e-11)


def test_affine_sets() -> None:
    rng = np.random.default_rng(15)
    A, b, w = rng.standard_normal((3, 8)), rng.standard_normal(3), rng.standard_normal(8)
    u = tw.constraint(stage("affine", {"A": A.tolist(), "b": b.tolist()})).project(w.copy())
    np.testing.assert_allclose(A @ u, b, atol=1e-12)
    np.testing.assert_allclose((u - w) - A.T @ np.linalg.lstsq(A.T, u - w, rcond=None)[0], 0, atol=1e-12)
    contrary = {"A": [[1.0, 1.0], [1.0, 1.0]], "b": [0.0, 2.0]}
    with pytest.raises(tw.RangeError, match="contradict each other.*`b` is 1.414"):
        tw.constraint(stage("affine", contrary))
    both = tw.constraint(stage("affine", {**contrary, "least_squares": True}))
    np.testing.assert_allclose(both.project(np.array([0.0, 0.0])), [0.5, 0.5], atol=1e-14)
    with pytest.raises(tw.RangeError, match="5 numbers"):
        tw.constraint("affine(A=[1, 2, 3, 4, 5], b=[1, 2])")
    with pytest.raises(tw.ShapeError, match="`A`"):
        both.project(np.ones(3))
    with pytest.raises(tw.ShapeError, match="`a`"):
        tw.constraint("halfspace(a=[1, 2], b=0)").project(np.ones(3))


@pytest.mark.parametrize("sentence, says", [
    ("halfspace(a=[0, 0], b=-1)", "halfspace: `b`.*empty"), ("hyperplane(a=[0, 0], b=1)", "hyperplane: `b`.*empty"),
    ("affine(A=[0, 0], b=[1])", "affine:.*empty: `b`"), ("affine(A=[1, 1, 2, 2], b=[1, 3])", "affine:.*empty: `b`"),
    ("box(lo=2, hi=1)", "box: `lo`"), ("box(lo=[0, 3], hi=[1, 2])", "box: `lo`"), ("box(lo=inf, hi=inf)", "box: `lo`.*empty"),
    ("box(lo=-inf, hi=[1, -inf])", "box: `lo`.*empty"), ("capped_simplex(-1)", "`total`"), ("capped_simplex(1, cap=0)", "`cap`"), ("simplex(0)", "`radius`"),
])  # fmt: skip
def test_empty_sets_are_refused_when_they_are_made(sentence: str, says: str) -> None:
    with pytest.raises(tw.RangeError, match=says):
        tw.constraint(sentence)
    with pytest.raises(tw.RangeError, match=says):
        tw.Optimizer([np.zeros(2)], f"sgd(lr=0.1) | project({sentence})")


def test_whole_spaces_and_consistent_equations_are_sets() -> None:
    w = np.array([3.0, -1.0])
    for sentence in ("halfspace(a=[0, 0], b=1)", "hyperplane(a=[0, 0], b=0)", "affine(A=[0, 0], b=[0])", "box(lo=-inf, hi=inf)"):
        assert tw.constraint(sentence).project(w.copy()).tolist() == w.tolist()
    third = 1 / 3  # rounding is no contradiction
    u = tw.constraint(f"affine(A=[{third}, {third}, 1, 1, 0.1, 0.1], b=[{third}, 1, 0.1])").project(w.copy())
    np.testing.assert_allclose(u, [2.5, -1.5], rtol=1e-12)


@pytest.mark.parametrize("name", ["psd_cone", "monotone", "second_order_cone", "euclidean", "spd", "low_rank(1)", "halfspace(a=[1, 1], b=0)", "graph_sum"])
def test_frank_wolfe_wants_a_linear_minimisation_when_it_is_made(name: str) -> None:
    with pytest.raises(tw.UnsupportedError, match=r"`set` must have a linear minimisation.*" + name.partition("(")[0]):
        tw.Optimizer([np.zeros((2, 2))], f"frank_wolfe(set={name})")
    with pytest.raises(tw.UnsupportedError):  # and the set says the same
        tw.constraint(name).lmo(np.ones((1, 2)) if "half" in name else np.ones((2, 2)))


def test_every_set_with_a_minimiser_is_taken_by_frank_wolfe() -> None:
    rng = np.random.default_rng(31)
    for m in tw.methods("constraint"):
        if any(p.required for p in m.parameters):
            continue
        try:
            tw.constraint(m.name).lmo(np.abs(rng.standard_normal((3, 3))))
        except (tw.UnsupportedError, tw.ShapeError):
            continue
        tw.Optimizer([np.full((3, 3), 0.1)], f"frank_wolfe(set={m.name})").step([np.abs(rng.standard_normal((3, 3)))])


def test_graphs_hold_their_operation() -> None:
    rng = np.random.default_rng(16)
    for scale, n in itertools.product((0.1, 1.0, 20.0), (3, 5, 9)):
        x = scale * rng.standard_normal((200, n))
        holds = {
            "graph_sum": lambda y: y[:, :-1].sum(1), "graph_max": lambda y: y[:, :-1].max(1), "graph_sum_relu": lambda y: np.maximum(y[:, :-1].sum(1), 0),
            "graph_dot(root_steps=80)": lambda y: np.sum(y[:, : n // 2] * y[:, n // 2 : -1], axis=1),
        }
        for text, f in holds.items():
            y = tw.constraint(text).project(x.copy())
            np.testing.assert_allclose(y[:, -1], f(y), atol=1e-12 * max(1, scale**2))
    y = tw.constraint("graph_relu").project(rng.standard_normal((200, 2)))
    np.testing.assert_allclose(y[:, 1], np.maximum(y[:, 0], 0))
    assert tw.constraint("graph_relu").project(np.array([[-1.0, 1.0], [-0.1, 1.0]])).tolist() == [[-1.0, 0.0], [0.45, 0.45]]


def test_the_product_graph_is_not_beaten_by_a_search() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(17)
    for _ in range(4):
        x = rng.standard_normal(5)
        y = tw.constraint("graph_dot").project(x.copy())
        cost = lambda v: np.sum((v - x[:4]) ** 2) + (v[:2] @ v[2:] - x[4]) ** 2  # noqa: E731
        best = min(optimize.minimize(cost, 2 * rng.standard_normal(4), method="Nelder-Mead").fun for _ in range(15))
        assert np.sum((y - x) ** 2) <= best + 1e-6
    # a = b with a large product: the multiplier ends at its bound
    assert np.all(np.isfinite(tw.constraint("graph_dot").project(np.array([0.0, 0.0, 5.0]))))


def test_ranks_and_counts_that_do_not_fit() -> None:
    with pytest.raises(tw.ShapeError, match="`k` is 4"):
        tw.constraint("l0_ball(4)").project(np.ones(3))
    with pytest.raises(tw.ShapeError, match="`rank` is 3"):
        tw.constraint("low_rank(3)").project(np.ones((2, 5)))
    assert tw.constraint("l0_ball(2)").project(np.array([1.0, -1.0, 1.0])).tolist() == [1, -1, 0]  # the lower index on ties


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_projection_on_spd_is_a_point_that_a_step_starts_from(dtype: type) -> None:
    """Rounded entries move eigenvalues by up to n/2 ulp of the largest one: eps = 1e-10 alone would not keep them above 0."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        w = rng.standard_normal((5, 5)).astype(dtype)
        tw.constraint("spd").project(w)
        assert np.linalg.eigvalsh(w.astype(np.float64))[0] > 0
        again = w.copy()
        tw.constraint("spd").project(again)
        assert np.array_equal(again, w)
        tw.Optimizer([w], "riemannian_sgd(lr=0.01, manifold=spd)").step([rng.standard_normal((5, 5)).astype(dtype)])
