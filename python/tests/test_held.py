"""Optimizers that hold a set or a regularizer: matrix manifolds, laws of transport, public peers, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import constraints, held, manifolds
from support import stage

MATRICES = [
    constraints.Stiefel(), constraints.Stiefel(metric="canonical", retraction="cayley"), manifolds.Grassmann(),
    manifolds.Lorentz(), manifolds.Lorentz(c=0.3), manifolds.SPD(), manifolds.SPD(retraction="second"),
]
RULES = [
    held.RiemannianSGD(lr=0.05, momentum=0.8, stabilize=4), held.RiemannianSGD(lr=0.05, momentum=0.8, nesterov=True),
    held.RiemannianAdam(lr=0.05), held.RiemannianAdam(lr=0.02, amsgrad=True, beta2=0.5, stabilize=3),
    held.RiemannianAdagrad(lr=0.05, weight_decay=0.1),
]


def start(m: Any, rng: np.random.Generator) -> np.ndarray:
    shape = (4, 4) if m.name == "spd" else (6, 3)
    a = rng.standard_normal(shape)
    return a @ a.T + np.eye(4) if m.name == "spd" else m.project(a)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.name}-{RULES.index(r)}")
@pytest.mark.parametrize("m", MATRICES, ids=lambda m: f"{m.name}-{MATRICES.index(m)}")
def test_on_manifolds_of_matrices(rule: held.Riemannian, m: Any) -> None:
    """Twenty steps beside the reference; some twenty decompositions of rounded matrices lie between the two."""
    rng = np.random.default_rng(3)
    ref = type(rule)(**{**rule.h, "manifold": m})
    x = start(m, rng)
    mine = x.copy()
    ref.start([x])
    opt = tw.Optimizer([mine], stage(ref.name, ref.h))
    for _ in range(20):
        g = 0.3 * rng.standard_normal(x.shape)
        ref.step([x], [g])
        opt.step([g])
    np.testing.assert_allclose(mine, x, atol=1e-10, rtol=1e-10)


TRANSPORTS = ["sphere", "poincare_ball", "poincare_ball(c=0.4)", "lorentz(c=2)", "spd"]


@pytest.mark.parametrize("sentence", TRANSPORTS)
def test_closed_transports_keep_lengths(sentence: str) -> None:
    """With a fixed beta2 of nearly 1 the momentum alone moves: its length in the metric falls by beta1 a step."""
    rng = np.random.default_rng(4)
    m = next(c for c in (manifolds.Sphere(), manifolds.PoincareBall(c=0.4 if "0.4" in sentence else 1.0),
                         manifolds.Lorentz(c=2.0), manifolds.SPD()) if sentence.startswith(c.name))
    x = start(m, rng) if m.name != "poincare_ball" else 0.3 * rng.standard_normal((5, 3)) / np.sqrt(3)
    opt = tw.Optimizer([x], f"riemannian_sgd(lr=0.1, momentum=0.5, manifold={sentence}, stabilize=none)")
    opt.step([rng.standard_normal(x.shape)])
    before = np.array(held.squares(m, x, opt.state()["riemannian_sgd.momentum_buffer"][0]))
    opt.step([np.zeros_like(x)])
    after = np.array(held.squares(m, x, opt.state()["riemannian_sgd.momentum_buffer"][0]))
    np.testing.assert_allclose(after, 0.25 * before, rtol=1e-8)


@pytest.mark.parametrize("name", ["PoincareBallExact", "Lorentz", "EuclideanStiefel", "SphereExact"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_riemannian_adam_is_geoopts(name: str, amsgrad: bool) -> None:
    geoopt, torch = pytest.importorskip("geoopt"), pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    theirs = getattr(geoopt, name)()
    sentence = {"PoincareBallExact": "poincare_ball", "Lorentz": "lorentz", "EuclideanStiefel": "stiefel",
                "SphereExact": "sphere"}[name]
    shape = (7,) if sentence == "sphere" else (6, 3)
    x = tw.constraint(sentence).project(0.3 * rng.standard_normal(shape))
    p = geoopt.ManifoldParameter(torch.tensor(x), manifold=theirs)
    peer = geoopt.optim.RiemannianAdam([p], lr=0.05, amsgrad=amsgrad)
    opt = tw.Optimizer([x], f"riemannian_adam(lr=0.05, amsgrad={str(amsgrad).lower()}, manifold={sentence}, stabilize=none)")
    for _ in range(10):
        g = rng.standard_normal(shape)
        p.grad = torch.tensor(g)
        peer.step()
        opt.step([g])
    np.testing.assert_allclose(x, p.detach().numpy(), atol=1e-10)


def test_adam_is_the_euclidean_case() -> None:
    rng = np.random.default_rng(6)
    a, b = np.ones((4, 3)), np.ones((4, 3))
    mine, adam = tw.Optimizer([a], "riemannian_adam(lr=0.1)"), tw.Optimizer([b], "adam(lr=0.1)")
    for _ in range(20):
        g = rng.standard_normal(a.shape)
        mine.step([g])
        adam.step([g])
    np.testing.assert_allclose(a, b, rtol=1e-13)


def test_a_zero_gradient_leaves_a_point_bit_for_bit() -> None:
    for sentence in ("sphere", "oblique", "poincare_ball"):
        x = tw.constraint(sentence).project(0.4 * np.random.default_rng(7).standard_normal((4, 3)))
        before = x.tobytes()
        tw.Optimizer([x], f"riemannian_adam(lr=0.1, manifold={sentence})").step([np.zeros_like(x)])
        assert x.tobytes() == before


def test_what_is_no_manifold_is_refused() -> None:
    with pytest.raises(tw.UnsupportedError, match="riemannian_adam: `manifold` must be a manifold, got l2_ball"):
        tw.Optimizer([np.ones(3)], "riemannian_adam(manifold=l2_ball(1))")
    with pytest.raises(tw.MethodError, match="no constraint `sphare` .did you mean `sphere`"):
        tw.Optimizer([np.ones(3)], "riemannian_adam(manifold=sphare)")
    with pytest.raises(tw.ShapeError, match="stiefel"):
        tw.Optimizer([np.ones(3)], "riemannian_adam(manifold=stiefel)").step([np.ones(3)])
    with pytest.raises(tw.UnsupportedError, match="gor has no prox"):
        tw.Optimizer([np.ones(3)], "prox_adam(gor)")
    with pytest.raises(tw.TypeError_ if hasattr(tw, "TypeError_") else tw.Error, match="`regularizer` must be a regularizer"):
        tw.Optimizer([np.ones(3)], "prox_adam(0.1)")


def test_a_step_that_fails_changes_nothing() -> None:
    x = np.eye(4)
    opt = tw.Optimizer([x], "riemannian_adam(lr=0.1, manifold=spd)")
    opt.step([np.ones((4, 4))])
    before, state = x.tobytes(), opt.state_dict()["state"]
    x[0, 0] = -5.0
    broken = x.tobytes()
    with pytest.raises(tw.Error, match="not positive definite"):
        opt.step([np.ones((4, 4))])
    assert x.tobytes() == broken
    x[...] = np.frombuffer(before).reshape(4, 4)
    assert opt.state_dict()["state"] == state


def test_lasso_by_prox_adam() -> None:
    """Its fixed points are those of the lasso: the support and the optimality conditions."""
    rng = np.random.default_rng(8)
    a = rng.standard_normal((60, 12))
    truth = np.where(np.arange(12) < 4, 2.0, 0.0)
    b = a @ truth + 0.1 * rng.standard_normal(60)
    x = np.zeros(12)
    opt = tw.Optimizer([x], "prox_adam(l1(0.2), lr=0.01)")
    for _ in range(8000):
        opt.step([a.T @ (a @ x - b) / 60])
    slope = a.T @ (a @ x - b) / 60
    assert list(np.flatnonzero(x)) == [0, 1, 2, 3]
    np.testing.assert_allclose(slope[:4], -0.2, atol=2e-3)
    assert np.all(np.abs(slope[4:]) <= 0.2)


def test_the_smallest_eigenvector_by_riemannian_adam() -> None:
    rng = np.random.default_rng(9)
    a = rng.standard_normal((8, 8))
    a = a + a.T
    x = rng.standard_normal(8)
    opt = tw.Optimizer([x], "riemannian_adam(lr=warmup_cosine(peak=0.1, warmup=1, total=1500), manifold=sphere)")
    for _ in range(1500):
        opt.step([2 * a @ x])
    assert x @ a @ x == pytest.approx(np.linalg.eigvalsh(a)[0], rel=1e-5)
    assert np.linalg.norm(x) == pytest.approx(1, abs=1e-13)
