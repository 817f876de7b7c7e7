"""Laws over the registry of sets, manifolds and penalties: tangents, retractions, projections, Moreau's identity."""

from __future__ import annotations

import itertools
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import thalweg as tw

Array = np.ndarray
Shape = tuple[int, ...]
Equation = Callable[[Array], Array]

laws = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
sizes = st.sampled_from([0.1, 1.0, 10.0])


# ---- manifolds


def tall(x: Array) -> Array:
    x = x.reshape(len(x), -1)
    return x if x.shape[0] >= x.shape[1] else x.T


def on_sphere(radius: float) -> Equation:
    return lambda x: np.atleast_1d(np.sum(x * x) - radius**2)


def on_rows(x: Array) -> Array:
    x = x.reshape(len(x), -1) if x.ndim > 1 else x[None]
    return np.sum(x * x, axis=1) - 1


def orthonormal(x: Array) -> Array:
    return tall(x).T @ tall(x) - np.eye(tall(x).shape[1])


def on_hyperboloid(c: float) -> Equation:
    return lambda x: np.sum(x[..., 1:] ** 2, axis=-1) - x[..., 0] ** 2 + 1 / c


def symmetric(x: Array) -> Array:
    return x - x.T


def free(x: Array) -> Array:
    return np.zeros(1)


VECTORS: list[Shape] = [(5,), (4, 3), (2, 3, 2)]
MATRICES: list[Shape] = [(5, 3), (3, 5), (4, 4), (3, 2, 2)]
# The sentence, what is 0 at its points (of degree two at most: a central difference is its derivative), its shapes.
MANIFOLDS: list[tuple[str, Equation, list[Shape]]] = [
    ("sphere", on_sphere(1), VECTORS), ("sphere(radius=2.5, retraction=project)", on_sphere(2.5), VECTORS),
    ("oblique", on_rows, VECTORS), ("oblique(retraction=project)", on_rows, VECTORS),
    *((f"stiefel(metric={m}, retraction={r})", orthonormal, MATRICES)
      for m in ("euclidean", "canonical") for r in ("qr", "polar", "cayley")),
    *((f"grassmann(retraction={r})", orthonormal, [(5, 3), (3, 5), (3, 2, 2)]) for r in ("polar", "qr", "exp")),
    ("lorentz", on_hyperboloid(1), VECTORS), ("lorentz(c=0.3)", on_hyperboloid(0.3), VECTORS),
    ("poincare_ball(eps=4e-3)", free, VECTORS), ("poincare_ball(c=2, eps=4e-3, retraction=project)", free, VECTORS),
    ("spd(eps=0.1)", symmetric, [(3, 3), (5, 5)]), ("spd(retraction=second, eps=0.1)", symmetric, [(3, 3), (5, 5)]),
    ("euclidean", free, VECTORS),
]  # fmt: skip


def name_of(sentence: str) -> str:
    return sentence.partition("(")[0]


def membership(sentence: str, x: Array, ulp: float) -> bool:
    """What inequalities say, beside the equations."""
    name = name_of(sentence)
    if name == "lorentz":
        return bool(np.all(x[..., 0] > 0))
    if name == "poincare_ball":
        edge = (1 - 4e-3) / np.sqrt(2 if "c=2" in sentence else 1)
        return bool(np.all(np.linalg.norm(x, axis=-1) <= edge * (1 + 4 * ulp)))
    return name != "spd" or bool(np.array_equal(x, x.T) and np.linalg.eigvalsh(x.astype(np.float64))[0] > 0)


def test_every_manifold_is_here() -> None:
    found = set()
    for m in tw.methods("constraint"):
        if any(p.required for p in m.parameters):
            continue
        try:
            tw.constraint(m.name).tangent(np.eye(3), np.zeros((3, 3)))
            found.add(m.name)
        except tw.UnsupportedError:
            pass
    assert found == {name_of(s) for s, _, _ in MANIFOLDS}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sentence, zero, shapes", MANIFOLDS, ids=[s for s, _, _ in MANIFOLDS])
def test_points_and_tangents_hold_equations(sentence: str, zero: Equation, shapes: list[Shape], dtype: Any) -> None:
    """Equations hold to a few ulp of the squares in them, derivatives along tangents to as many of the products."""
    mine, ulp, rng = tw.constraint(sentence), float(np.finfo(dtype).eps), np.random.default_rng(1)
    for shape, size, _ in itertools.product(shapes, (0.3, 2.0), range(3)):
        w = (size * rng.standard_normal(shape)).astype(dtype)
        x = mine.project(w.copy())
        wide = x.astype(np.float64)
        square = max(1.0, np.sum(wide**2))
        assert np.abs(zero(wide)).max() <= 8 * ulp * square and membership(sentence, x, ulp)
        if name_of(sentence) == "poincare_ball":
            x = wide = (0.5 * x).astype(dtype)  # on from inside: the metric grows without bound towards the edge
        g = mine.tangent(x.copy(), rng.standard_normal(shape).astype(dtype)).astype(np.float64)
        assert np.linalg.norm(g) > 1e-2
        slope = (zero(wide + g) - zero(wide - g)) / 2
        assert np.abs(slope).max() <= 32 * ulp * np.linalg.norm(wide) * np.linalg.norm(g) * square
        if name_of(sentence) == "grassmann":  # a move within the subspace is none
            assert np.abs(tall(wide).T @ tall(g)).max() <= 32 * ulp * np.linalg.norm(g)
        for length in (1e-3, 0.5, 3.0):
            u = (length / np.linalg.norm(g) * g).astype(dtype)
            if name_of(sentence) == "spd":
                u = (0.3 * u + 0.3 * u.T).astype(dtype)  # its exponential grows, and its equation with it
            y = mine.retract(x.copy(), u)
            wide_y = y.astype(np.float64)
            assert np.abs(zero(wide_y)).max() <= 32 * ulp * max(1.0, np.sum(wide_y**2)) and membership(sentence, y, ulp)
            assert not np.array_equal(y, x)


@pytest.mark.parametrize("sentence, zero, shapes", MANIFOLDS, ids=[s for s, _, _ in MANIFOLDS])
def test_retractions_are_of_first_order(sentence: str, zero: Equation, shapes: list[Shape]) -> None:
    """R(x, h u) = x + h u + O(h^2): over h^2 the rest stays what it is, until rounding of 1e-15 is seen behind it."""
    mine, rng = tw.constraint(sentence), np.random.default_rng(2)
    for shape in shapes:
        x = mine.project(0.4 * rng.standard_normal(shape))
        x *= 0.5 if name_of(sentence) == "poincare_ball" else 1
        u = mine.tangent(x, rng.standard_normal(shape))
        u /= np.linalg.norm(u)
        np.testing.assert_allclose(mine.retract(x.copy(), 0 * u), x, rtol=0, atol=1e-14)
        rests = [np.linalg.norm(mine.retract(x.copy(), h * u) - x - h * u) / h**2 for h in (1e-2, 1e-3, 1e-4)]
        for h, rest in zip((1e-3, 1e-4), rests[1:]):
            assert abs(rest - rests[0]) <= 0.1 * rests[0] + 4e-15 / h**2
        assert rests[0] < 20  # the curvature, of points of size one


# ---- convex sets

ROWS: list[Shape] = [(7,), (4, 3)]
SQUARE: list[Shape] = [(4, 4)]
CONVEX: list[tuple[str, list[Shape]]] = [
    ("box(-0.2, 0.5)", ROWS), ("weight_clip(0.3)", ROWS), ("non_negative", ROWS), ("linf_ball(0.7)", ROWS),
    ("euclidean", ROWS), ("l2_ball(0.7)", ROWS), ("l2_ball(0.7, axis=-1)", ROWS), ("max_norm(0.8)", ROWS),
    ("l1_ball(1.5)", ROWS), ("l1_ball(0.5, axis=0)", ROWS), ("simplex(1.5)", ROWS), ("simplex(axis=-1)", ROWS),
    ("capped_simplex(1, cap=0.6)", ROWS), ("monotone", ROWS),
    ("nuclear_ball(1.2)", [(4, 3), (3, 5)]), ("spectral_ball(0.8)", [(4, 3), (3, 5)]),
    ("psd_cone", SQUARE), ("psd_cone(0.1)", SQUARE), ("second_order_cone", ROWS),
    ("conic_projection(nonneg)", ROWS), ("conic_projection(soc)", ROWS), ("conic_projection(psd)", SQUARE),
    ("halfspace(a=[1, 2, -1], b=0.5)", [(3,)]), ("hyperplane(a=[1, 2, -1], b=0.5)", [(3,)]),
    ("affine(A=[1, 2, -1, 0, 1, 1], b=[0.5, -1])", [(3,)]),
    ("graph_identity", [(4,), (3, 4)]), ("graph_sum", [(4,), (3, 4)]),
    ("doubly_stochastic(iters=20000, tol=1e-13)", SQUARE),
    ("poincare_ball(eps=0.1)", ROWS),  # a smaller ball
]  # fmt: skip
CURVED = {
    "graph_dot", "graph_max", "graph_relu", "graph_sum_relu", "l0_ball", "low_rank", "sphere", "oblique", "stiefel",
    "grassmann", "lorentz", "spd", "norm_lmo",  # an oracle alone
}  # fmt: skip


def test_every_set_is_convex_or_curved() -> None:
    assert {m.name for m in tw.methods("constraint")} == {name_of(s) for s, _ in CONVEX} | CURVED


@pytest.mark.parametrize("sentence, shapes", CONVEX, ids=[s for s, _ in CONVEX])
@laws
@given(seed=seeds, size=sizes)
def test_projections_on_convex_sets(sentence: str, shapes: list[Shape], seed: int, size: float) -> None:
    """<w - P, z - P> <= 0 for feasible z, P P = P, |Pv - Pw|^2 <= <Pv - Pw, v - w>, each to some ulp of the products;
    alternating projections stop at 1e-13 of a step, some 1e-9 before their limit."""
    mine, rng = tw.constraint(sentence), np.random.default_rng(seed)
    limit = 1e-6 if sentence.startswith("doubly") else 1e-12
    for shape in shapes:
        v, w = size * rng.standard_normal((2, *shape))
        p, q = mine.project(v.copy()), mine.project(w.copy())
        scale = max(1.0, np.sum(v * v), np.sum(w * w))
        assert np.sum((p - q) ** 2) <= np.sum((p - q) * (v - w)) + limit * scale
        assert np.sum((w - q) * (p - q)) <= limit * scale
        np.testing.assert_allclose(mine.project(q.copy()), q, rtol=0, atol=limit * np.sqrt(scale))


@pytest.mark.parametrize("sentence", ["sphere", "stiefel", "l0_ball(2)", "low_rank(1)", "graph_max"])
def test_projections_on_curved_sets_are_not_nonexpansive(sentence: str) -> None:
    """What tells the law apart: some pair of near points is pulled away from another."""
    mine, rng = tw.constraint(sentence), np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        v = 0.3 * rng.standard_normal((3, 3))
        w = v + 0.05 * rng.standard_normal((3, 3))
        worst = max(worst, np.linalg.norm(mine.project(v.copy()) - mine.project(w.copy())) / np.linalg.norm(v - w))
    assert worst > 1.2


# ---- convex penalties

PENALTIES = [
    "l1(0.3)", "l2(0.7)", "elastic_net(0.5, l1_ratio=0.4)", "group_lasso(0.2)", "group_lasso(0.3, axis=col)",
    "group_lasso(0.3, axis=all)", "l21(0.4)", "l1_inf(0.3)", "slope(0.2)", "nuclear_norm(0.4)",
    "sparse_group_lasso(0.3)", "huber_penalty(0.5, delta=0.3)", "log_cosh(0.5)", "tv_1d(0.2)",
    "fused_lasso(0.1, tv_weight=0.2)",
    "sobolev(weight=0.4)", "spectral_penalty(0.2)",
]  # fmt: skip


@pytest.mark.parametrize("sentence", PENALTIES)
@laws
@given(seed=seeds, size=sizes, step=st.sampled_from([0.1, 1.0, 4.0]))
def test_proxes_are_firmly_nonexpansive(sentence: str, seed: int, size: float, step: float) -> None:
    """And their moves are subgradients: penalty(z) >= penalty(p) + <(w - p)/step, z - p>."""
    penalty, rng = tw.regularizer(sentence), np.random.default_rng(seed)
    v, w, z = size * rng.standard_normal((3, 4, 3))
    p, q = penalty.prox(v.copy(), step), penalty.prox(w.copy(), step)
    scale = 1e-11 * max(1.0, np.sum(v * v), np.sum(w * w)) / min(step, 1)
    assert np.sum((p - q) ** 2) <= np.sum((p - q) * (v - w)) + scale
    for other in (p, z, 0 * z, q + 1e-4 * z, q - 1e-4 * z):
        assert penalty.value(other) >= penalty.value(q) + np.sum((w - q) / step * (other - q)) - scale


# ---- Moreau's identity

# A norm of weight 0.3, the ball of its dual norm, and what its radius is multiplied by.
DUALS: list[tuple[str, str, float]] = [
    ("l1(0.3)", "linf_ball({r})", 1), ("nuclear_norm(0.3, rtol=0)", "spectral_ball({r})", 1),
    ("l21(0.3)", "l2_ball({r}, axis=-1)", 1), ("l21(0.3)", "max_norm({r})", 1),
    ("l21(0.3, axis=col)", "l2_ball({r}, axis=0)", 1),
    ("l21(0.3, axis=all)", "l2_ball({r})", 1),
    ("group_lasso(0.3)", "l2_ball({r}, axis=-1)", np.sqrt(3)),
    ("group_lasso(0.3, scale_by_size=false, axis=col)", "l2_ball({r}, axis=0)", 1),
    ("group_lasso(0.3, axis=all)", "l2_ball({r})", np.sqrt(12)),
    ("l1_inf(0.3)", "l1_ball({r}, axis=-1)", 1), ("l1_inf(0.3, axis=col)", "l1_ball({r}, axis=0)", 1),
    ("l1_inf(0.3, axis=all)", "l1_ball({r})", 1),
    ("slope(0.3, seq=[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])", "l1_ball({r})", 1),
    ("slope(0.3, seq=[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])", "linf_ball({r})", 1),
]  # fmt: skip


@pytest.mark.parametrize("norm, ball, factor", DUALS, ids=[f"{n}-{b}" for n, b, _ in DUALS])
@laws
@given(seed=seeds, size=sizes, step=st.sampled_from([0.01, 1.0, 7.0]))
def test_a_prox_and_the_projection_on_the_dual_ball_sum_up(
    norm: str, ball: str, factor: float, seed: int, size: float, step: float
) -> None:
    """w = prox(w, t) + P(w) with the ball of radius t times the weight; singular vectors are good to 1e-14."""
    w = size * np.random.default_rng(seed).standard_normal((4, 3))
    u = tw.regularizer(norm).prox(w.copy(), step)
    p = tw.constraint(ball.format(r=repr(float(0.3 * step * factor)))).project(w.copy())
    np.testing.assert_allclose(u + p, w, rtol=0, atol=1e-13 * size)
    # of dual norms the product is met
    assert step * tw.regularizer(norm).value(u) == pytest.approx(np.sum(u * p), rel=1e-9, abs=1e-12 * size**2)


@pytest.mark.parametrize("cone, whole", [
    ("non_negative", None), ("second_order_cone", None), ("psd_cone", symmetric), ("conic_projection(nonneg)", None),
    ("conic_projection(soc)", None), ("conic_projection(psd)", symmetric),
])
@laws
@given(seed=seeds, size=sizes)
def test_a_cone_and_its_polar_sum_up(cone: str, whole: Any, seed: int, size: float) -> None:
    """These are their own duals: w = P(w) - P(-w), and the two are orthogonal."""
    w = size * np.random.default_rng(seed).standard_normal((4, 4) if whole else (5,))
    p, n = (tw.constraint(cone).project(s * w) for s in (1, -1))
    np.testing.assert_allclose(p - n, (w + w.T) / 2 if whole else w, rtol=0, atol=1e-14 * size * 4)
    assert abs(np.sum(p * n)) <= 1e-13 * np.sum(w * w)


@laws
@given(seed=seeds, n=st.integers(2, 30), size=sizes)
def test_what_a_monotone_projection_leaves_is_in_the_polar_cone(seed: int, n: int, size: float) -> None:
    """Sums of the residual from any place to the end are at most 0, all together 0; the residual is orthogonal."""
    w = size * np.random.default_rng(seed).standard_normal(n)
    p = tw.constraint("monotone").project(w.copy())
    tails = np.cumsum((w - p)[::-1])
    limit = 1e-14 * n * size * 4
    assert np.all(np.diff(p) >= 0) and np.all(tails <= limit) and abs(tails[-1]) <= limit
    assert abs(np.sum((w - p) * p)) <= 1e-13 * np.sum(w * w)


@laws
@given(seed=seeds, size=sizes, step=st.sampled_from([0.2, 1.0, 5.0]), weight=st.sampled_from([0.1, 1.0, 3.0]))
def test_squares_are_conjugates_of_squares(seed: int, size: float, step: float, weight: float) -> None:
    """w = prox(w, t) + t prox*(w/t, 1/t), where the conjugate of a/2 |w|^2 is 1/(2a) |w|^2."""
    w = size * np.random.default_rng(seed).standard_normal((4, 3))
    u = tw.regularizer(f"l2({weight})").prox(w.copy(), step)
    v = tw.regularizer(f"l2({1 / weight})").prox(w / step, 1 / step)
    np.testing.assert_allclose(u + step * v, w, rtol=0, atol=4e-15 * size)


@laws
@given(seed=seeds, size=sizes, delta=st.sampled_from([0.2, 1.0, 3.0]))
def test_hubers_penalty_is_the_envelope_of_the_l1_norm(seed: int, size: float, delta: float) -> None:
    """min over u of |w - u|^2/2 + delta |u|_1, and its gradient is w minus the prox."""
    w = size * np.random.default_rng(seed).standard_normal((4, 3))
    huber, norm = tw.regularizer(f"huber_penalty(1, delta={delta})"), tw.regularizer(f"l1({delta})")
    u = norm.prox(w.copy(), 1.0)
    assert huber.value(w) == pytest.approx(np.sum((w - u) ** 2) / 2 + norm.value(u), rel=1e-13)
    np.testing.assert_allclose(huber.gradient(w), w - u, rtol=0, atol=1e-15 * max(1, size) * 4)
