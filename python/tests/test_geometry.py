"""The geometry of manifolds: tangents, metrics, exponential maps, logarithms, transport, distances, checks of points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import manifolds
from test_laws_of_sets import MANIFOLDS, name_of, tall

import thalweg as tw

Array = np.ndarray
GEODESIC = {"sphere", "oblique", "grassmann", "spd", "lorentz", "poincare_ball", "euclidean"}  # have a closed form
PARALLEL = {"sphere", "spd", "lorentz", "poincare_ball", "euclidean"}  # transport keeps inner products

every = pytest.mark.parametrize("sentence, shapes", [(s, shapes) for s, _, shapes in MANIFOLDS], ids=[s for s, _, _ in MANIFOLDS])


class Draw:
    """A manifold, points and tangents on it."""

    def __init__(self, sentence: str, shape: tuple[int, ...], seed: int, dtype: Any = np.float64) -> None:
        self.name, self.m = name_of(sentence), tw.constraint(sentence)
        self.shape, self.dtype, self.rng = shape, dtype, np.random.default_rng(seed)

    def vector(self, size: float = 1.0) -> Array:
        return (size * self.rng.standard_normal(self.shape)).astype(self.dtype)

    def point(self) -> Array:
        w = self.vector()
        if self.name == "poincare_ball":
            w = (0.9 * w / np.maximum(1.0, 2 * np.linalg.norm(w, axis=-1, keepdims=True))).astype(self.dtype)
        if self.name == "spd":
            w = (w @ w.T + np.eye(len(w))).astype(self.dtype)
        return self.m.project(w)

    def tangent(self, x: Array, size: float = 1.0) -> Array:
        """Of this length in the metric at x."""
        u = self.m.project_tangent(x, self.vector())
        return (size / np.sqrt(np.sum(self.m.inner(x, u, u))) * u).astype(self.dtype)


def draws(sentence: str, shapes: Any, dtype: Any = np.float64) -> list[Draw]:
    return [Draw(sentence, shape, seed, dtype) for shape in shapes for seed in range(2)]


def metric(sentence: str, x: Array, u: Array, v: Array) -> Array:
    """The inner products from their definitions."""
    name, c = name_of(sentence), 2.0 if "c=2" in sentence else 0.3 if "c=0.3" in sentence else 1.0
    if name == "oblique":
        return np.sum((u * v).reshape(len(x) if x.ndim > 1 else 1, -1), axis=1).reshape(x.shape[:1] if x.ndim > 1 else ())
    if name == "euclidean":
        return u * v
    if name == "poincare_ball":
        return (2 / (1 - c * np.sum(x * x, -1))) ** 2 * np.sum(u * v, -1)
    if name == "lorentz":
        return np.sum(u[..., 1:] * v[..., 1:], -1) - u[..., 0] * v[..., 0]
    if name == "spd":
        return np.trace(np.linalg.solve(x, u) @ np.linalg.solve(x, v))
    flat = np.sum(u * v)
    return flat - np.sum((tall(x).T @ tall(u)) * (tall(x).T @ tall(v))) / 2 if "canonical" in sentence else flat


@every
def test_points_and_tangents_are_seen(sentence: str, shapes: Any) -> None:
    """Points have an error of 0, others that of their distance; tangents one of rounding, the rest as long as it is."""
    for d in draws(sentence, shapes):
        x, u = d.point(), d.vector()
        assert np.all(d.m.check_point(x) == 0)
        off = x + 0.1 * d.vector()
        near = d.m.project(off.copy())
        axes = np.ndim(d.m.check_point(x))
        apart = np.sqrt(np.sum(((off - near) ** 2).reshape(x.shape[:axes] + (-1,)), -1))
        np.testing.assert_allclose(d.m.check_point(off), apart, rtol=1e-12)
        part = d.m.project_tangent(x, u.copy())
        assert np.max(d.m.check_tangent(x, part)) <= 1e-13 * np.linalg.norm(x) ** 2 * np.linalg.norm(u)
        rest = np.sqrt(np.sum(((u - part) ** 2).reshape(x.shape[:axes] + (-1,)), -1))
        np.testing.assert_allclose(d.m.check_tangent(x, u), rest, rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(d.m.project_tangent(x, part.copy()), part, rtol=1e-12, atol=1e-13 * np.linalg.norm(x) ** 2 * np.linalg.norm(u))


@every
def test_inner_products(sentence: str, shapes: Any) -> None:
    for d in draws(sentence, shapes):
        x = d.point()
        u, v = d.tangent(x), d.tangent(x)
        found = d.m.inner(x, u, v)
        np.testing.assert_allclose(found, metric(sentence, x, u, v), rtol=1e-11, atol=1e-12)
        assert np.all(d.m.inner(x, u, u) >= 0) and np.array_equal(found, d.m.inner(x, v, u))


@every
def test_gradients_are_those_of_the_metric(sentence: str, shapes: Any) -> None:
    """<rgrad, u> is the derivative along u: by central differences along the retraction, which leaves as u does."""
    h = 1e-5  # the error of a central difference is of the order of h^2 and of rounding/h
    for d in draws(sentence, shapes):
        x, a = d.point(), d.vector()
        u, g = d.tangent(x, 0.5), d.m.egrad2rgrad(x, a + np.cos(x))
        ends = [d.m.retract(x.copy(), s * h * u) for s in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), u, atol=1e-7 * max(1, np.linalg.norm(x) ** 2))
        slope = (np.sum(a * ends[0] + np.sin(ends[0])) - np.sum(a * ends[1] + np.sin(ends[1]))) / (2 * h)
        assert np.sum(d.m.inner(x, g, u)) == pytest.approx(slope, abs=1e-7 * max(1, np.linalg.norm(x) ** 2) * np.linalg.norm(a))
        assert np.all(d.m.check_tangent(x, g) <= 1e-12 * np.linalg.norm(x) ** 2 * np.linalg.norm(g))


@every
def test_exponential_maps_and_logarithms(sentence: str, shapes: Any) -> None:
    """exp and log are inverse, and distances are lengths of logarithms, from both ends."""
    for d in draws(sentence, shapes):
        x = d.point()
        if d.name not in GEODESIC:
            y, u = x.copy(), np.zeros_like(x)
            for call in (lambda: d.m.exp(y, u), lambda: d.m.log(x, y), lambda: d.m.distance(x, y)):
                with pytest.raises(tw.UnsupportedError, match="no closed form"):
                    call()
            continue
        for size in (1e-9, 1e-3, 0.7):
            u = d.tangent(x, size)
            y = d.m.exp(x.copy(), u)
            assert np.all(d.m.check_point(y) <= 4e-15 * np.linalg.norm(y))  # rounding
            scale = np.linalg.norm(x)
            back = d.m.log(x, y)
            # a point has errors of rounding, and so have tangents to it
            np.testing.assert_allclose(back, u, rtol=0, atol=2e-13 * scale**2)
            length = np.sqrt(d.m.inner(x, back, back))
            np.testing.assert_allclose(d.m.distance(x, y), length, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(d.m.distance(y, x), d.m.distance(x, y), rtol=1e-10, atol=1e-14)
            assert np.sqrt(np.sum(d.m.distance(x, y) ** 2)) == pytest.approx(size, rel=1e-10, abs=1e-13 * scale**2)
        z = d.point()
        if d.name == "grassmann":  # another basis of the same subspace
            z = d.m.project(z.reshape(len(z), -1) if z.ndim == 2 else z)
            end = d.m.exp(x.copy(), d.m.log(x, z))
            e, f = tall(end), tall(z)
            np.testing.assert_allclose(e @ e.T, f @ f.T, atol=1e-12)
        else:
            np.testing.assert_allclose(d.m.exp(x.copy(), d.m.log(x, z)), z, atol=1e-11 * np.linalg.norm(x) ** 2)
        assert np.all(d.m.distance(x, x) <= 1e-14) and np.all(d.m.distance(x, z) >= 0)
        y = d.point()
        assert np.all(d.m.distance(x, z) <= d.m.distance(x, y) + d.m.distance(y, z) + 1e-12)
        # the exponential map is there whatever the retraction
        step = d.tangent(x, 0.4)
        own = tw.constraint("grassmann(retraction=exp)") if d.name == "grassmann" else d.m
        if "retraction=project" not in sentence and "second" not in sentence:
            assert np.array_equal(d.m.exp(x.copy(), step), own.retract(x.copy(), step))


@every
def test_transport(sentence: str, shapes: Any) -> None:
    """What is carried is tangent where it arrives; parallel transport keeps inner products, and comes back."""
    for d in draws(sentence, shapes):
        x = d.point()
        y = d.m.retract(x.copy(), d.tangent(x, 0.6))
        u, v = d.tangent(x), d.tangent(x)
        p, q = (d.m.transport(x, y, t.copy()) for t in (u, v))
        assert np.all(d.m.check_tangent(y, p) <= 1e-12 * max(1, np.linalg.norm(y)) ** 2 * np.linalg.norm(p))
        np.testing.assert_allclose(d.m.transport(x, x, u.copy()), u, atol=1e-12 * np.linalg.norm(x) ** 2)
        if d.name in PARALLEL:
            for a, b, c, e in ((u, v, p, q), (u, u, p, p)):
                np.testing.assert_allclose(d.m.inner(y, c, e), d.m.inner(x, a, b), rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(d.m.transport(y, x, p.copy()), u, rtol=1e-9, atol=1e-11 * np.linalg.norm(x) ** 2)
            way = d.m.log(x, y)  # a geodesic carries its own direction along
            back = d.m.log(y, x)
            np.testing.assert_allclose(d.m.transport(x, y, way.copy()), -back, rtol=1e-8, atol=1e-11 * np.linalg.norm(x) ** 2)
        else:
            np.testing.assert_array_equal(p, d.m.project_tangent(y, u.copy()))


@every
def test_float32_is_float64_rounded(sentence: str, shapes: Any) -> None:
    """The same numbers to the rounding of the storage, whose error the metric and the condition of points magnify."""
    for d in draws(sentence, shapes, np.float32):
        x, w = d.point(), d.m
        y, u = d.m.retract(x.copy(), d.tangent(x, 0.5)), d.tangent(x)
        wide = [a.astype(np.float64) for a in (x, y, u)]
        scale = 1e-5 * max(1, np.linalg.norm(x) ** 2)
        np.testing.assert_allclose(w.inner(x, u, u), w.inner(wide[0], wide[2], wide[2]), rtol=scale, atol=scale)
        np.testing.assert_allclose(w.transport(x, y, u.copy()), w.transport(*wide[:2], wide[2].copy()), rtol=scale, atol=scale)
        if d.name in GEODESIC:
            np.testing.assert_allclose(w.distance(x, y), w.distance(*wide[:2]), rtol=scale, atol=scale)
            np.testing.assert_allclose(w.log(x, y), w.log(*wide[:2]), rtol=scale, atol=scale)
        assert np.all(w.check_point(x) == 0)


@pytest.mark.parametrize("angle", [1e-12, 1e-7, 1e-3, 1.0, 3.0, np.pi - 1e-9])
def test_distances_on_the_sphere_near_and_far(angle: float) -> None:
    """Along a great circle, where arccos(<x, y>) has lost half of the digits."""
    for radius in (1.0, 3.0):
        sphere = tw.constraint(f"sphere(radius={radius})")
        x, y = radius * np.array([1.0, 0, 0]), radius * np.array([np.cos(angle), np.sin(angle), 0])
        assert sphere.distance(x, y) == pytest.approx(radius * angle, rel=1e-12, abs=1e-15)
        u = sphere.log(x, y)
        # the direction between points that are nearly opposite is as uncertain as their rounding over pi - angle
        np.testing.assert_allclose(u, [0, radius * angle, 0], rtol=1e-12, atol=1e-15 * radius / min(1, np.pi - angle))


def test_opposite_points_have_no_logarithm() -> None:
    x = np.array([0.6, 0.8, 0.0])
    with pytest.raises(tw.NumericError, match="sphere: a point has no logarithm at its opposite"):
        tw.constraint("sphere").log(x, -x)
    assert tw.constraint("sphere").distance(x, -x) == pytest.approx(np.pi, rel=1e-15)


@pytest.mark.parametrize("a, b", [(0.5, 0.5 + 1e-9), (0.0, 1e-10), (8.0, 8.0 + 1e-6), (8.0, -8.0), (11.0, 10.0), (0.3, -0.2), (1e-9, -1e-9)])
def test_hyperbolic_distances_near_and_far(a: float, b: float) -> None:
    """Points at the distances a and b along one line through the origin are |a - b| apart. What is tested is the formula:
    a point at the distance a from the origin has an error of its own of rounding times exp(a), for a to the ball's edge."""
    way = np.array([0.6, 0.8])
    for c in (1.0, 0.5):
        r = np.sqrt(c)
        ball, sheet = tw.constraint(f"poincare_ball(c={c}, eps=1e-15)"), tw.constraint(f"lorentz(c={c})")
        p, q = (np.tanh(t / 2) / r * way for t in (a, b))
        tolerance = 4e-16 * np.exp(max(abs(a), abs(b))) / r
        assert ball.distance(p, q) == pytest.approx(abs(a - b) / r, rel=1e-12, abs=tolerance)
        p, q = (np.concatenate([[np.cosh(t)], np.sinh(t) * way]) / r for t in (a, b))
        assert sheet.distance(p, q) == pytest.approx(abs(a - b) / r, rel=1e-12, abs=4e-16 * max(abs(a), abs(b), 1))


def test_hyperboloid_far_out_along_and_across() -> None:
    """sinh(t)^2 overflows no digits: at 12 and at 17 from the origin, where <x, x> is lost in rounding."""
    sheet = tw.constraint("lorentz")
    for radius in (12.0, 17.0):
        for turn in (1e-9, 1e-4, 0.1, 3.1):
            x, y = (np.array([np.cosh(radius), np.sinh(radius) * np.cos(t), np.sinh(radius) * np.sin(t)]) for t in (0, turn))
            want = 2 * np.arcsinh(np.sinh(radius) * np.sin(turn / 2))
            assert sheet.distance(x, y) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_transport_to_what_is_no_point(dtype: Any) -> None:
    """On the hyperboloid the formula divides by 1 + c<x, y>, 2 and more for points: 0 is refused, and u is as it was."""
    sheet = tw.constraint("lorentz")
    x, u = np.array([1, 0, 0], dtype), np.array([0, 1, 2], dtype)
    with pytest.raises(tw.NonfiniteError, match="w, y, u"):
        sheet.transport(x, -x, u)
    assert u.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(sheet.transport(x, x, u), [0, 1, 2])


@pytest.mark.parametrize("sentence", ["lorentz", "sphere", "oblique", "poincare_ball", "grassmann", "spd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logarithm_of_what_is_no_number(sentence: str, bad: float) -> None:
    """On the hyperboloid the first coordinate is not read, and may say so as any other."""
    m = tw.constraint(sentence)
    for at in range(3):
        for k in range(2):
            pair = [np.eye(3) / 2 if sentence in ("spd", "grassmann") else np.array([[0.6, 0.3, 0.4]]) for _ in range(2)]
            pair[k][0, at] = bad
            with pytest.raises(tw.NonfiniteError, match="w, y"):
                m.log(*pair)


def test_subspaces_close_by_and_orthogonal() -> None:
    """Principal angles of 1e-9 and of a right angle, in one pair of planes."""
    t = 1e-9
    x = np.eye(5)[:, :2]
    y = np.stack([np.cos(t) * x[:, 0] + np.sin(t) * np.eye(5)[:, 2], np.eye(5)[:, 3]], 1)
    grassmann = tw.constraint("grassmann")
    assert grassmann.distance(x, y) == pytest.approx(np.hypot(t, np.pi / 2), rel=1e-14)
    near = np.stack([y[:, 0], x[:, 1]], 1)
    assert grassmann.distance(x, near) == pytest.approx(t, rel=1e-7)
    assert grassmann.distance(x, x @ np.array([[0.6, -0.8], [0.8, 0.6]])) <= 1e-15


def test_positive_definite_matrices_far_apart_and_close() -> None:
    """Of diagonal matrices the distance is that of the logarithms."""
    spd, x = tw.constraint("spd"), np.diag([1e-6, 1.0, 1e5])
    for factor in (np.array([3.0, 1e4, 1e-4]), 1 + 1e-9 * np.array([1.0, 2.0, -3.0])):
        y = x * factor
        assert spd.distance(x, y) == pytest.approx(np.linalg.norm(np.log(factor)), rel=1e-7)
        np.testing.assert_allclose(np.diag(spd.log(x, y)), np.diag(x) * np.log(factor), rtol=1e-7)


def test_what_is_refused() -> None:
    sphere, x = tw.constraint("sphere"), np.array([0.6, 0.8])
    with pytest.raises(tw.UnsupportedError, match="not a manifold"):
        tw.constraint("simplex").distance(x, x)
    with pytest.raises(tw.ShapeError, match="w and y differ in shape"):
        sphere.distance(x, np.zeros(3))
    with pytest.raises(tw.ShapeError, match="w and u differ in shape"):
        sphere.transport(x, x, np.zeros(3))
    with pytest.raises(tw.NonfiniteError, match="w, u, v"):
        sphere.inner(x, x, np.array([np.nan, 0]))
    with pytest.raises(tw.ShapeError, match="square"):
        tw.constraint("spd").check_point(np.zeros((2, 3)))
    out = np.ones(2)
    with pytest.raises(tw.NumericError):
        sphere.log(x, -x, out=out)
    assert out.tolist() == [1, 1]
    for empty in (np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 0, 4))):
        assert tw.constraint("poincare_ball").distance(empty, empty).shape == empty.shape[:-1]
    assert tw.constraint("euclidean").inner(x, x, x).shape == (2,) and isinstance(sphere.inner(x, x, x), float)
    assert tw.constraint("euclidean").distance(np.array(2.0), np.array(-1.0)) == 3.0


def test_geoopt_measures_the_same() -> None:
    """Distances, logarithms, transport and inner products in float64, of points well inside."""
    geoopt, torch = pytest.importorskip("geoopt"), pytest.importorskip("torch")
    pairs = [("sphere", geoopt.manifolds.SphereExact(), (5,)), ("poincare_ball", geoopt.PoincareBallExact(c=1.0), (4, 3)),
             ("lorentz", geoopt.Lorentz(k=1.0), (4, 3)), ("spd", geoopt.SymmetricPositiveDefinite("AIM"), (4, 4))]
    for sentence, theirs, shape in pairs:
        d = Draw(sentence, shape, 5)
        x = d.point()
        y, u, v = d.m.exp(x.copy(), d.tangent(x, 0.8)), d.tangent(x), d.tangent(x)
        tx, ty, tu, tv = map(torch.from_numpy, (x, y, u, v))
        np.testing.assert_allclose(d.m.distance(x, y), theirs.dist(tx, ty).numpy(), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(d.m.log(x, y), theirs.logmap(tx, ty).numpy(), rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(d.m.inner(x, u, v), theirs.inner(tx, tu, tv, keepdim=True).numpy().reshape(np.shape(d.m.inner(x, u, v))), rtol=1e-9, atol=1e-10)
        if sentence != "sphere":  # where theirs is the tangent part
            np.testing.assert_allclose(d.m.transport(x, y, u.copy()), theirs.transp(tx, ty, tu).numpy(), rtol=1e-8, atol=1e-9)


def test_pymanopt_measures_the_same() -> None:
    theirs = pytest.importorskip("pymanopt.manifolds")
    for sentence, m, shape in (("grassmann", theirs.Grassmann(6, 2), (6, 2)), ("spd", theirs.SymmetricPositiveDefinite(4), (4, 4)),
                               ("sphere", theirs.Sphere(5), (5,)), ("stiefel", theirs.Stiefel(6, 2), (6, 2))):  # fmt: skip
        d = Draw(sentence, shape, 6)
        x = d.point()
        y, u, v = d.m.retract(x.copy(), d.tangent(x, 0.8)), d.tangent(x), d.tangent(x)
        assert d.m.inner(x, u, v) == pytest.approx(m.inner_product(x, u, v), rel=1e-9, abs=1e-10)
        np.testing.assert_allclose(d.m.project_tangent(x, d.vector() * 0 + 1), m.to_tangent_space(x, m.projection(x, np.ones(shape))), atol=1e-10)
        if sentence != "stiefel":
            assert d.m.distance(x, y) == pytest.approx(m.dist(x, y), rel=1e-7)
            np.testing.assert_allclose(d.m.log(x, y), m.log(x, y), atol=1e-8)


def test_the_references_agree() -> None:
    """The tangent parts of the float64 references that the generic tests run on."""
    for cls in (manifolds.Sphere, manifolds.Oblique, manifolds.Grassmann, manifolds.SPD, manifolds.Lorentz):
        d = Draw(cls.name, (4, 4) if cls is manifolds.SPD else (4, 3), 7)
        x, u = d.point(), d.vector()
        np.testing.assert_allclose(d.m.project_tangent(x, u.copy()), cls(**cls.defaults).proj(x, u), rtol=1e-12, atol=1e-13)
