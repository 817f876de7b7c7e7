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
    # on the sphere geoopt projects the first moment onto the next tangent space; ours moves in parallel, which keeps its
    # length: 1e-3 of it in a step of 0.05, so 5e-5 of the point
    limit = 1e-3 if sentence == "sphere" else 1e-10
    np.testing.assert_allclose(x, p.detach().numpy(), rtol=0, atol=limit)


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


def directions(G: np.ndarray, rank: int) -> np.ndarray:
    """The leading right singular vectors in rows, of each the entry of largest magnitude positive."""
    P = np.linalg.svd(G)[2][:rank]
    return P * np.sign(P[np.arange(rank), np.argmax(np.abs(P), axis=1)])[:, None]


@pytest.mark.parametrize("inner", ["sgd(momentum=0.9)", "adam(eps=1e-3)", "lion", "adagrad(eps=0.1)"])
def test_galore_with_another_rule_inside(inner: str) -> None:
    """The rule runs on the projected gradients as on a model of its own; a vector has no subspace."""
    rng = np.random.default_rng(10)
    w, b, rank, lr, scale, wd = rng.standard_normal((7, 4)), rng.standard_normal(5), 2, 0.1, 0.5, 0.05
    want, bias = w.copy(), b.copy()
    opt = tw.Optimizer([w, b], f"galore(lr={lr}, rank={rank}, update_proj_gap=3, scale={scale}, weight_decay={wd}, inner=({inner}))")
    name = inner.partition("(")[0]
    there = [np.zeros((7, rank)), np.zeros(5)]  # a model whose steps of size 1 are minus the directions
    rule = tw.Optimizer(there, inner.replace(name, f"{name}(lr=1)") if "(" not in inner else inner.replace("(", "(lr=1, ", 1))
    P = None
    for k in range(8):
        G, g = rng.standard_normal(w.shape), rng.standard_normal(b.shape)
        P = directions(G, rank) if k % 3 == 0 else P
        for t in there:
            t[...] = 0
        rule.step([G @ P.T, g])
        want += lr * scale * (1 - lr * wd) * there[0] @ P - lr * wd * want
        bias += lr * (1 - lr * wd) * there[1] - lr * wd * bias
        opt.step([G, g])
    np.testing.assert_allclose(w, want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(b, bias, rtol=1e-10, atol=1e-12)


def test_galore_with_a_rule_inside_resumes() -> None:
    rng = np.random.default_rng(11)
    grads = [rng.standard_normal((6, 5)) for _ in range(6)]
    sentence = "galore(lr=0.1, rank=2, update_proj_gap=4, inner=(adam(beta1=0.5)))"
    straight, cut = np.ones((6, 5)), np.ones((6, 5))
    a, b = tw.Optimizer([straight], sentence), tw.Optimizer([cut], sentence)
    for g in grads[:3]:
        a.step([g])
        b.step([g])
    c = tw.Optimizer([cut], sentence)
    c.load_state_dict(b.state_dict())
    for g in grads[3:]:
        a.step([g])
        c.step([g])
    assert straight.tobytes() == cut.tobytes()


def test_rules_that_cannot_be_held() -> None:
    for inner, words in (("lamb", "lamb is none"), ("prodigy", "prodigy is none"), ("muon", "muon is none"), ("schedule_free_sgd", "none")):
        with pytest.raises(tw.Error, match=words):
            tw.Optimizer([np.ones((3, 3))], f"galore(rank=1, inner=({inner}))")
    with pytest.raises(tw.Error, match="`inner` must be one rule, got 2 stages"):
        tw.Optimizer([np.ones((3, 3))], "galore(rank=1, inner=(clip_value(1) | sgd))")
    with pytest.raises(tw.Error, match="no optimizer `adom`"):
        tw.Optimizer([np.ones((3, 3))], "galore(rank=1, inner=(adom))")
