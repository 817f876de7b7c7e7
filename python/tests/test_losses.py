"""Objectives: laws and edge cases of their cards, and public peers where the variant is the same."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference.losses_distributions import directions, sliced
from reference.losses_embeddings import logsumexp, unit
from reference.losses_logits import softplus

RNG = np.random.default_rng


def value_and_grad(text: str, **inputs: Any) -> tuple[float, dict[str, Any]]:
    return tw.objective(text).value_and_grad(**inputs)


def slope(f: Callable[[np.ndarray], float], x: np.ndarray, d: np.ndarray, h: float = 1e-6) -> float:
    return (f(x + h * d) - f(x - h * d)) / (2 * h)


# ---- torch


def torch_of(loss: Callable[..., Any], x: np.ndarray, *rest: Any) -> tuple[float, np.ndarray]:
    """Value and gradient of `loss(x, ...)` by torch, in float64."""
    torch = pytest.importorskip("torch")
    t = torch.tensor(x, requires_grad=True)
    value = loss(t, *(torch.tensor(r) for r in rest))
    value.backward()
    return float(value.detach()), t.grad.numpy()


def same(mine: tuple[float, dict[str, Any]], name: str, peer: tuple[float, np.ndarray]) -> None:
    assert mine[0] == pytest.approx(peer[0], rel=1e-13, abs=1e-15)
    np.testing.assert_allclose(mine[1][name], peer[1], rtol=1e-11, atol=1e-15)


Z, Y, T = RNG(0).standard_normal((9, 4)), RNG(1).integers(0, 4, 9), RNG(2).dirichlet(np.ones(4), 9)
W = [0.5, 2.0, 0.25, 1.0]


def peers() -> list[Any]:
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    pm, a, b, c = RNG(3).choice(np.array([-1, 1]), 9), *(RNG(k).standard_normal((9, 4)) for k in (4, 5, 6))
    count, var = RNG(7).poisson(2.0, (9, 4)).astype(float), RNG(8).uniform(0.1, 2, (9, 4))
    kept = np.where(np.arange(9) % 3 == 0, -100, Y)
    t = torch.tensor(W, dtype=torch.float64)
    f = functional
    return [
        ("softmax_cross_entropy", {"z": Z, "y": Y}, "z", lambda z, y: f.cross_entropy(z, y), (Z, Y)),
        ("softmax_cross_entropy(0.1, weight=[0.5, 2, 0.25, 1])", {"z": Z, "y": kept}, "z",
         lambda z, y: f.cross_entropy(z, y, weight=t, label_smoothing=0.1), (Z, kept)),
        ("softmax_cross_entropy(0.2, weight=[0.5, 2, 0.25, 1])", {"z": Z, "t": T}, "z",
         lambda z, y: f.cross_entropy(z, y, weight=t, label_smoothing=0.2), (Z, T)),
        ("softmax_cross_entropy(reduction=sum)", {"z": Z, "y": Y}, "z", lambda z, y: f.cross_entropy(z, y, reduction="sum"), (Z, Y)),
        ("bce_with_logits([0.5, 2, 0.25, 1])", {"z": Z, "t": T, "weight": var}, "z",
         lambda z, y, w: f.binary_cross_entropy_with_logits(z, y, weight=w, pos_weight=t), (Z, T, var)),
        ("mse", {"p": a, "t": b}, "p", f.mse_loss, (a, b)),
        ("huber(0.7)", {"p": a, "t": b}, "p", lambda x, y: f.huber_loss(x, y, delta=0.7), (a, b)),
        ("huber(0.7)", {"p": a, "t": b}, "p", lambda x, y: 0.7 * f.smooth_l1_loss(x, y, beta=0.7), (a, b)),
        ("gaussian_nll(full=true)", {"m": a, "t": b, "var": var}, "m", lambda m, y, v: f.gaussian_nll_loss(m, y, v, full=True), (a, b, var)),
        ("gaussian_nll(eps=0.5)", {"m": a, "t": b, "var": var}, "var", lambda v, m, y: f.gaussian_nll_loss(m, y, v, eps=0.5), (var, a, b)),
        ("poisson_nll", {"z": a, "t": count}, "z", f.poisson_nll_loss, (a, count)),
        ("multi_margin(0.6, 2)", {"z": Z, "y": Y}, "z", lambda z, y: f.multi_margin_loss(z, y, p=2, margin=0.6), (Z, Y)),
        ("distillation_kl(3)", {"s": a, "t": b}, "s",
         lambda s, t: 9 * f.kl_div(f.log_softmax(s / 3, 1), f.softmax(t / 3, 1), reduction="batchmean"), (a, b)),
        ("saf(lam=0.4, temperature=2)", {"z": a, "past": b}, "z",
         lambda s, t: 1.6 * f.kl_div(f.log_softmax(s / 2, 1), f.softmax(t / 2, 1), reduction="batchmean"), (a, b)),
        ("triplet(swap=true)", {"a": a, "p": b, "n": c}, "p", lambda p, x, n: f.triplet_margin_loss(x, p, n, swap=True), (b, a, c)),
        ("triplet(0.5, p=3)", {"a": a, "p": b, "n": c}, "a", lambda x, p, n: f.triplet_margin_loss(x, p, n, margin=0.5, p=3), (a, b, c)),
        ("info_nce(0.2, symmetric=true)", {"q": a, "k": b}, "k",
         lambda k, q: sum(f.cross_entropy(s, torch.arange(9)) for s in (
             f.normalize(q) @ f.normalize(k).T / 0.2, f.normalize(k) @ f.normalize(q).T / 0.2)) / 2, (b, a)),
        ("alignment_uniformity(0.5, 2, t=3)", {"x": a, "y": b}, "x",
         lambda x, y: 0.5 * (f.normalize(x) - f.normalize(y)).norm(dim=1).pow(2).mean()
         + sum(torch.pdist(f.normalize(v)).pow(2).mul(-3).exp().mean().log() for v in (x, y)), (a, b)),
        ("gaussian_kl", {"mean": a, "log_var": b}, "log_var", lambda l, m: torch.distributions.kl_divergence(
            torch.distributions.Normal(m, (l / 2).exp()), torch.distributions.Normal(0.0, 1.0)).sum() / 9, (b, a)),
    ]


@pytest.mark.parametrize("k", range(19))
def test_torch(k: int) -> None:
    cases = peers()
    assert len(cases) == 19
    text, inputs, name, loss, arguments = cases[k]
    same(value_and_grad(text, **inputs), name, torch_of(loss, *arguments))


def test_torch_cosine_embedding() -> None:
    f = pytest.importorskip("torch").nn.functional
    x, y, t = RNG(0).standard_normal((9, 4)), RNG(1).standard_normal((9, 4)), RNG(2).choice(np.array([-1, 1]), 9)
    peer = torch_of(lambda a, b, s: f.cosine_embedding_loss(a, b, s, margin=0.1), x, y, t)
    mine = value_and_grad("cosine_embedding(0.1)", x=x, y=y, t=t)
    assert mine[0] == pytest.approx(peer[0], abs=1e-12)  # torch adds something of the order 1e-12 to the norms
    np.testing.assert_allclose(mine[1]["x"], peer[1], atol=1e-11)


def test_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    p, t = RNG(0).standard_normal(50), RNG(1).standard_normal(50)
    assert tw.objective("quantile(0.3)")(p=p, t=t) == pytest.approx(metrics.mean_pinball_loss(t, p, alpha=0.3), rel=1e-14)
    y = np.sign(t).astype(int)
    assert tw.objective("hinge")(s=p, y=y) == pytest.approx(metrics.hinge_loss(y, p), rel=1e-14)


@pytest.mark.parametrize("metric, peer", [
    ("accuracy", "accuracy_score"), ("precision", "precision_score"), ("recall", "recall_score"), ("f_beta", "fbeta_score"),
    ("balanced_accuracy", "balanced_accuracy_score"), ("jaccard", "jaccard_score"), ("mcc", "matthews_corrcoef")])
def test_anyloss_is_the_metric_of_hard_predictions(metric: str, peer: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = RNG(3).standard_normal(60), RNG(4).integers(0, 2, 60)
    want = getattr(metrics, peer)(y, z > 0, **({"beta": 2.0} if metric == "f_beta" else {}))
    assert 1 - tw.objective(f"anyloss({metric}, beta=2, amplify=1e9)")(z=z, y=y) == pytest.approx(want, rel=1e-14)


def test_one_dimensional_wasserstein_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = RNG(0).standard_normal((13, 1)), RNG(1).standard_normal((8, 1))
    mine = tw.objective("sliced_wasserstein(1)")(x=x, y=y, projections=np.ones((1, 1)))
    assert mine == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-13)


# ---- laws of the cards


def test_cross_entropy_laws() -> None:
    _, g = value_and_grad("softmax_cross_entropy(0.1)", z=Z, y=Y)
    np.testing.assert_allclose(g["z"].sum(1), 0, atol=1e-16)
    loss = tw.objective("softmax_cross_entropy")
    assert loss(z=Z + 100 * np.arange(9)[:, None], y=Y) == pytest.approx(loss(z=Z, y=Y), rel=1e-12)
    same(value_and_grad("focal_loss(0)", z=Z, y=Y), "z", (loss(z=Z, y=Y), loss.value_and_grad(z=Z, y=Y)[1]["z"]))
    value, g = loss.value_and_grad(z=Z, y=np.full(9, -100))
    assert value == 0 and not g["z"].any()
    # shifts and weights of the classes
    counts = np.full(4, 7.0)
    for text in ("logit_adjustment", "vector_scaling", "vs_loss"):
        same(value_and_grad(text, z=Z, y=Y, counts=counts), "z", (loss(z=Z, y=Y), loss.value_and_grad(z=Z, y=Y)[1]["z"]))
    counts = np.array([1.0, 5.0, 20.0, 3.0])
    same(value_and_grad("vector_scaling(0)", z=Z, y=Y, counts=counts), "z",
         (tw.objective("logit_adjustment")(z=Z, y=Y, counts=counts), value_and_grad("logit_adjustment", z=Z, y=Y, counts=counts)[1]["z"]))
    same(value_and_grad("vs_loss", z=Z, y=Y, counts=counts), "z",
         (tw.objective("vector_scaling")(z=Z, y=Y, counts=counts), value_and_grad("vector_scaling", z=Z, y=Y, counts=counts)[1]["z"]))


def test_absent_classes_are_masked() -> None:
    counts, y = np.array([3.0, 0.0, 2.0]), np.array([0, 2])
    z = np.array([[1.0, 900.0, 2.0], [0.5, -3.0, 0.0]])
    value, g = value_and_grad("logit_adjustment", z=z, y=y, counts=counts)
    assert value == pytest.approx(tw.objective("logit_adjustment")(z=z[:, ::2].copy(), y=y // 2, counts=counts[::2].copy()), rel=1e-14)
    assert not g["z"][:, 1].any()
    for text in ("logit_adjustment", "vector_scaling"):
        with pytest.raises(tw.RangeError, match="class 1, which is a label at element 0"):
            tw.objective(text)(z=z, y=np.array([1, 0]), counts=counts)
    for text in ("vs_loss", "ldam"):
        with pytest.raises(tw.RangeError, match="above 0, got 0 at element 1"):
            tw.objective(text)(z=z, y=y, counts=counts)
    with pytest.raises(tw.RangeError, match="label_smoothing"):
        tw.objective("logit_adjustment(label_smoothing=0.1)")(z=z, y=y, counts=counts)


def test_large_logits_are_exact() -> None:
    z = np.array([[800.0], [-800.0]])
    value, g = value_and_grad("bce_with_logits", z=z, t=np.array([[0.0], [1.0]]))
    assert value == 800 and g["z"].ravel().tolist() == [0.5, -0.5]
    assert tw.objective("dpo(1)")(**{k: np.array([v]) for k, v in (("chosen", -900.0), ("rejected", 0.0), ("ref_chosen", 0.0), ("ref_rejected", 0.0))}) == 900
    value, g = value_and_grad("focal_loss(0.5)", z=np.array([[0.0, 2000.0]]), y=np.array([1]))
    assert value == 0 and not g["z"].any()


def test_quantile_is_minimal_at_the_quantile() -> None:
    t = RNG(5).standard_normal(101)
    at = lambda c: tw.objective("quantile(0.3)")(p=np.full(101, c), t=t)  # noqa: E731
    best = np.quantile(t, 0.3)
    assert at(best) < min(at(best - 0.05), at(best + 0.05))
    assert value_and_grad("quantile(0.3)", p=t, t=t)[1]["p"].any() == False  # noqa: E712


def test_flooding() -> None:
    for loss, want in ((0.2, (0.8, -1.0)), (0.5, (0.5, 0.0)), (0.9, (0.9, 1.0))):
        value, g = value_and_grad("flooding(0.5)", loss=np.array(loss))
        assert (value, float(g["loss"])) == pytest.approx(want)


def test_entropies() -> None:
    for text in ("entropy_minimization", "entropy_minimization(diversity=0.5)", "tcm_loss"):
        for z in (np.zeros((3, 4)), np.tile([1e4, 0.0, 0.0, 0.0], (3, 1))):
            np.testing.assert_allclose(value_and_grad(text, z=z)[1]["z"], 0, atol=1e-16)
    assert tw.objective("tcm_loss(1e-12)")(z=1e4 * np.eye(4)) == pytest.approx(-math.log(4), rel=1e-10)
    assert tw.objective("domain_bce")(z=np.zeros(5), flag=np.array([1, 0, 1, 1, 0])) == pytest.approx(math.log(2), rel=1e-15)
    # the gradient tends to the difference of the centred logits over C
    s, t = Z - Z.mean(1, keepdims=True), Z[::-1] - Z[::-1].mean(1, keepdims=True)
    np.testing.assert_allclose(value_and_grad("distillation_kl(1e5)", s=s, t=t)[1]["s"], (s - t) / 36, atol=1e-6)


def test_tversky_is_dice() -> None:
    p, t = RNG(0).random((40, 3)), (RNG(1).random((40, 3)) < 0.5).astype(float)
    dice, tversky = value_and_grad("dice(smooth=2)", p=p, t=t), value_and_grad("tversky(0.5, 0.5, smooth=1)", p=p, t=t)
    same(tversky, "p", (dice[0], dice[1]["p"]))


def test_saf_turns_its_buffer() -> None:
    """Slot (epoch - delay) is what was written `delay` epochs before."""
    loss, rng = tw.objective("saf(start_epoch=2, delay=2)"), RNG(0)
    history, buffer = [rng.standard_normal((4, 3)) for _ in range(7)], np.zeros((4, 3, 3))
    for epoch, z in enumerate(history):
        value, g = loss.value_and_grad(z=z, buffer=buffer, epoch=np.array(epoch))
        want = tw.objective("saf")(z=z, past=history[epoch - 2]) if epoch > 2 else 0.0
        assert value == pytest.approx(want, rel=1e-14)
        buffer = g["buffer_next"]


def test_policy_gradient_of_itself_is_fine_tuning() -> None:
    logp = -RNG(0).random((3, 5))
    value, g = value_and_grad("unified_policy_gradient", logp=logp, advantage=np.ones((3, 5)))
    assert value == pytest.approx(-1, rel=1e-15) and np.all(g["logp"] == -1 / 15)
    idle = value_and_grad("unified_policy_gradient", logp=logp, advantage=np.ones((3, 5)), token_mask=np.zeros((3, 5), np.int64))
    assert idle[0] == 0 and not idle[1]["logp"].any()


# ---- losses of embeddings


def test_nt_xent_is_supcon_of_pairs() -> None:
    x, y = RNG(0).standard_normal((6, 4)), RNG(1).standard_normal((6, 4))
    a, b = value_and_grad("nt_xent(0.3)", x=x, y=y), value_and_grad("supcon(0.3)", x=np.concatenate([x, y]), y=np.tile(np.arange(6), 2))
    assert a[0] == pytest.approx(b[0], rel=1e-14)
    np.testing.assert_allclose(np.concatenate([a[1]["x"], a[1]["y"]]), b[1]["x"], atol=1e-15)
    # cosine neighbours with one positive a row
    rows, p = np.concatenate([x, y]), np.roll(np.eye(12), 6, axis=1)
    icon = value_and_grad("icon_embedding(kind=cosine, sigma=0.3)", x=rows, p=p)
    assert icon[0] == pytest.approx(a[0], rel=1e-13)
    np.testing.assert_allclose(icon[1]["x"], b[1]["x"], atol=1e-14)


def test_no_usable_anchor_costs_nothing() -> None:
    x, alone = RNG(0).standard_normal((5, 3)), np.arange(5)
    for text, inputs in (("supcon", {"y": alone}), ("circle", {"y": alone}), ("circle(mode=batch)", {"y": 0 * alone}), ("triplet_batch_hard", {"y": alone})):
        value, g = value_and_grad(text, x=x, **inputs)
        assert value == 0 and not g["x"].any(), text
    for text in ("nt_xent", "macl", "isogclr", "alignment_uniformity(align_weight=0)"):
        value, g = value_and_grad(text, x=x[:1], y=x[1:2])
        assert value == 0 and not g["x"].any(), text
    value, g = value_and_grad("info_nce(symmetric=true)", q=x[:1], k=x[1:2])
    assert value == 0 and not g["q"].any()


def test_a_row_of_zeros() -> None:
    """Its length counts as the constant 1e-12."""
    x = RNG(0).standard_normal((4, 3))
    x[1] = 0
    value, g = value_and_grad("nt_xent", x=x, y=x[::-1].copy())
    assert np.isfinite(value) and np.isfinite(g["x"]).all()


def frozen(loss: Callable[[np.ndarray], float], x: np.ndarray, g: np.ndarray, limit: float = 1e-6) -> None:
    d = RNG(11).standard_normal(x.shape)
    assert slope(loss, x, d) == pytest.approx(np.sum(g * d), rel=limit, abs=1e-8)


@pytest.mark.parametrize("mode", ["anchor", "batch"])
def test_circle_with_frozen_weights(mode: str) -> None:
    x, y, m, gamma = RNG(0).standard_normal((7, 4)), np.array([0, 0, 1, 1, 2, 0, 2]), 0.25, 8.0
    s0 = unit(x) @ unit(x).T
    ap, an = np.maximum(0, 1 + m - s0), np.maximum(0, s0 + m)
    mask = np.triu(np.ones((7, 7), bool), 1) if mode == "batch" else ~np.eye(7, dtype=bool)
    p, n = mask & (y[:, None] == y), mask & (y[:, None] != y)

    def loss(x: np.ndarray) -> float:
        s = unit(x) @ unit(x).T
        parts = [-gamma * ap * (s - 1 + m), p], [gamma * an * (s - m), n]
        a, b = (logsumexp(v.reshape(1, -1) if mode == "batch" else v, w.reshape(1, -1) if mode == "batch" else w) for v, w in parts)
        return float(np.mean(softplus(a + b)))

    value, g = value_and_grad(f"circle({m}, {gamma}, mode={mode})", x=x, y=y)
    assert value == pytest.approx(loss(x), rel=1e-13)
    frozen(loss, x, g["x"])


def test_circle_from_similarities_in_the_form_of_the_paper() -> None:
    m, gamma = 0.25, 6.0
    s_p, s_n = RNG(0).uniform(0, 1, (5, 1)), RNG(1).uniform(-0.2, 1, (5, 4))
    value, g = value_and_grad(f"circle_from_similarities({m}, {gamma})", s_p=s_p, s_n=s_n)
    z = np.exp(gamma * (s_p - 1) ** 2 - gamma * m**2) * np.sum(np.exp(gamma * (s_n**2 - m**2)), axis=1, keepdims=True)
    assert value == pytest.approx(np.mean(np.log1p(z)), rel=1e-13)
    own = np.exp(gamma * (s_n**2 - m**2))
    np.testing.assert_allclose(g["s_n"], z / (1 + z) * own / own.sum(1, keepdims=True) * gamma * (s_n + m) / 5, rtol=1e-12)


def test_macl_identities() -> None:
    pos, neg = RNG(0).uniform(0, 1, 5), RNG(1).uniform(-1, 1, (5, 7))
    tau = 0.1 * (1 + 0.5 * pos.mean())
    _, g = value_and_grad("macl_from_similarities", pos=pos, neg=neg)
    np.testing.assert_allclose(g["pos"], -1 / (5 * tau), rtol=1e-14)
    np.testing.assert_allclose(g["neg"].sum(1), 1 / (5 * tau), rtol=1e-13)
    # sure rows: 1 - P is no difference of rounded numbers
    value, g = value_and_grad("macl_from_similarities(0.01, 0)", pos=np.array([1.0]), neg=np.array([[-1.0]]))
    assert value == pytest.approx(1.0, rel=1e-12) and g["pos"][0] == pytest.approx(-100, rel=1e-12)
    with pytest.raises(tw.RangeError, match="temperature must be above 0"):
        tw.objective("macl_from_similarities(alpha=1, a0=0)")(pos=np.array([-1.0]), neg=np.zeros((1, 2)))


def test_isogclr_on_a_first_visit() -> None:
    """With s = g the gradient is that of sum tau log mean exp(S/tau) - S_pos; dtau that of tau log mean exp(S/tau) + rho tau."""
    x, y, tau = RNG(0).standard_normal((4, 3)), RNG(1).standard_normal((4, 3)), RNG(2).uniform(0.2, 0.6, 4)
    other = np.tile(np.arange(4), 2)
    valid = other[:, None] != other

    def loss(x: np.ndarray, tau: np.ndarray, rho: float = 0.0, pos: bool = True) -> np.ndarray:
        u = unit(np.concatenate([x, y]))
        t = np.tile(tau, 2)
        terms = t * (logsumexp(u @ u.T / t[:, None], valid) - np.log(6)) + rho * t
        return terms - pos * np.sum(u * np.roll(u, 4, axis=0), axis=1)

    _, g = value_and_grad("isogclr(beta_u=1, tau_lr=0, rho=0.2, grad_clip=1e9)", x=x, y=y, tau=tau)
    frozen(lambda v: float(np.sum(loss(v, tau)) / 4), x, g["x"])
    for k in range(4):
        e = np.eye(4)[k]
        want = slope(lambda t: float(np.sum(loss(x, t, 0.2, False))), tau, e) / 2
        assert g["u_next"][k] == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(g["tau_next"], tau, rtol=1e-15)


def test_care_of_a_rotation() -> None:
    x, q = RNG(0).standard_normal((6, 4)), np.linalg.qr(RNG(1).standard_normal((4, 4)))[0]
    assert tw.objective("care_equivariance")(x=x, y=x @ q) < 1e-28
    with pytest.raises(tw.ShapeError, match="6 rows cannot be cut into 4"):
        tw.objective("care(chunks=4)")(x=x, y=x)


def test_uniformity_of_the_sphere() -> None:
    """Of the circle: log of I_0(2t) exp(-2t); 3000 points put it off by some 1e-3."""
    special = pytest.importorskip("scipy.special")
    x = RNG(0).standard_normal((3000, 2))
    assert tw.objective("uniformity")(x=x) == pytest.approx(math.log(special.ive(0, 4.0)), abs=1e-2)


def test_tiles_meet() -> None:
    """More rows than a tile has: the same as torch on the whole matrix."""
    f, torch = pytest.importorskip("torch").nn.functional, pytest.importorskip("torch")
    q, k = RNG(0).standard_normal((2300, 5)), RNG(1).standard_normal((2300, 5))
    same(value_and_grad("info_nce(0.3)", q=q, k=k), "k",
         torch_of(lambda b, a: f.cross_entropy(f.normalize(a) @ f.normalize(b).T / 0.3, torch.arange(2300)), k, q))


def test_threads_do_not_change_a_bit() -> None:
    rng, bits, before = RNG(7), set(), tw.get_num_threads()
    x, y = (rng.standard_normal((900, 64)).astype(np.float32) for _ in range(2))
    z, c, p = rng.standard_normal((3000, 40)).astype(np.float32), rng.integers(0, 40, 3000), directions(rng, 70, 64)
    try:
        for threads in (1, 2, 5):
            tw.set_num_threads(threads)
            out = [value_and_grad(t, x=x, y=y) for t in ("nt_xent", "barlow_twins", "mmd", "alignment_uniformity", "tico")]
            out += [value_and_grad("softmax_cross_entropy(0.1)", z=z, y=c), value_and_grad("sliced_wasserstein", x=x, y=y, projections=p),
                    value_and_grad("tcm_loss", z=z)]
            bits.add(tuple((v, *(a.tobytes() for a in g.values())) for v, g in out))
    finally:
        tw.set_num_threads(before)
    assert len(bits) == 1


# ---- distributions


def test_gaussian_divergences_agree() -> None:
    m, lv = RNG(0).standard_normal(4), RNG(1).standard_normal(4)
    full = tw.objective("gaussian_kl_full")(m0=m, s0=np.diag(np.exp(lv)), m1=np.zeros(4), s1=np.eye(4))
    assert full == pytest.approx(tw.objective("gaussian_kl")(mean=m[None], log_var=lv[None]), rel=1e-13)
    with pytest.raises(tw.Error, match="`s0` is not positive definite"):
        tw.objective("gaussian_kl_full")(m0=m, s0=-np.eye(4), m1=m, s1=np.eye(4))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "multinomial"])
def test_vae_elbo_through_a_linear_decoder(likelihood: str) -> None:
    rng, loss = RNG(0), tw.objective(f"vae_elbo(0.7, {likelihood})")
    mu, lv, eps, w, x = (rng.standard_normal(s) for s in ((5, 2), (5, 2), (5, 2), (2, 4), (5, 4)))
    x = np.abs(x)

    def bound(mu: np.ndarray, lv: np.ndarray) -> float:
        return loss(mu=mu, logvar=lv, out=(mu + np.exp(lv / 2) * eps) @ w, x=x)

    out = (mu + np.exp(lv / 2) * eps) @ w
    dz = loss.value_and_grad(mu=mu, logvar=lv, out=out, x=x)[1]["out"] @ w.T
    g = loss.value_and_grad(mu=mu, logvar=lv, out=out, x=x, eps=eps, dz=dz)[1]
    frozen(lambda v: bound(v, lv), mu, g["mu"])
    frozen(lambda v: bound(mu, v), lv, g["logvar"])


def test_mcr2_of_one_group_is_zero() -> None:
    x = RNG(0).standard_normal((9, 4))
    value, g = value_and_grad("mcr2", x=x, pi=np.ones((9, 1)))
    assert abs(value) < 1e-14 and np.abs(g["x"]).max() < 1e-15


def test_distances_of_equal_samples() -> None:
    x, p = RNG(0).standard_normal((7, 3)), directions(RNG(1), 5, 3)
    assert abs(tw.objective("mmd")(x=x, y=x.copy())) < 1e-15
    value, g = value_and_grad("sliced_wasserstein", x=x, y=x[::-1].copy(), projections=p)
    assert value < 1e-8 and np.isfinite(g["x"]).all()
    value, g = value_and_grad("sliced_wasserstein", x=x, y=x.copy(), projections=p)
    assert value == 0 and not g["x"].any()
    a = x.T @ x
    assert abs(tw.objective("bures_wasserstein")(a=a, b=a)) < 1e-12
    with pytest.raises(tw.ShapeError, match="unbiased"):
        tw.objective("mmd(unbiased=true)")(x=x[:1], y=x)


def test_bures_wasserstein_maps_one_onto_the_other() -> None:
    """T A T = B for full rank; with a lower rank of B nothing overflows."""
    rng = RNG(0)
    a, b = (np.cov(rng.standard_normal((4, 30))) for _ in range(2))
    t = np.eye(4) - value_and_grad("bures_wasserstein", a=a, b=b)[1]["a"]
    np.testing.assert_allclose(t @ a @ t, b, atol=1e-12)
    low = np.outer(b[0], b[0])
    value, g = value_and_grad("bures_wasserstein", a=a, b=low)
    # of a line: |b0|^2 + tr A - 2 sqrt(b0' A b0)
    assert value == pytest.approx(np.trace(a) + b[0] @ b[0] - 2 * np.sqrt(b[0] @ a @ b[0]), rel=1e-12)
    np.testing.assert_allclose(np.eye(4) - g["a"], low / np.sqrt(b[0] @ a @ b[0]), atol=1e-12)


def test_augmented_slices_ascend() -> None:
    """w_ascent and b_ascent are the gradients of SW - lam (mean |g(x)| + mean |g(y)|)."""
    rng = RNG(0)
    x, y, w, b, p = rng.standard_normal((6, 3)), rng.standard_normal((4, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2), directions(rng, 9, 5)

    def j(w: np.ndarray, b: np.ndarray) -> float:
        g = [np.concatenate([v, v @ w.T + b], axis=1) for v in (x, y)]
        return sliced(*g, p, 2.0, True)[0] - 0.5 * sum(np.mean(np.linalg.norm(v, axis=1)) for v in g)

    g = value_and_grad("augmented_sliced_wasserstein", x=x, y=y, w=w, b=b, projections=p)[1]
    frozen(lambda v: j(v, b), w, g["w_ascent"])
    frozen(lambda v: j(w, v), b, g["b_ascent"])
    # a map to 0 adds nothing but zeros
    flat = tw.objective("augmented_sliced_wasserstein")(x=x, y=y, w=0 * w, b=0 * b, projections=p)
    padded = [np.concatenate([v, np.zeros((len(v), 2))], axis=1) for v in (x, y)]
    assert flat == pytest.approx(tw.objective("sliced_wasserstein")(x=padded[0], y=padded[1], projections=p), rel=1e-14)


def test_icon_is_zero_at_its_target() -> None:
    z = RNG(0).standard_normal((5, 5))
    q = np.exp(np.where(np.eye(5, dtype=bool), -np.inf, z))
    value, g = value_and_grad("icon_kl", z=z, p=q / q.sum(1, keepdims=True))
    assert abs(value) < 1e-15 and np.abs(g["z"]).max() < 1e-16


def test_sure_of_a_linear_denoiser_is_unbiased() -> None:
    """f = a y: the estimate tends to the mean squared error; its spread over 4000 draws of 50 is about 4e-3."""
    rng, clean = RNG(0), RNG(1).standard_normal(50)
    estimates, errors = [], []
    for _ in range(4000):
        y, b = clean + 0.5 * rng.standard_normal(50), rng.choice([-1.0, 1.0], 50)
        estimates.append(tw.objective("sure(0.5)")(f=0.6 * y, f2=0.6 * (y + 1e-3 * b), y=y, b=b))
        errors.append(np.mean((0.6 * y - clean) ** 2))
    assert np.mean(estimates) == pytest.approx(np.mean(errors), abs=1e-2)


def test_diffusion_nft_at_time_zero() -> None:
    x = RNG(0).standard_normal((6, 3, 4))
    _, g = value_and_grad("diffusion_nft", v=x[0], v_old=x[1], x_t=x[2], x0=x[3], t=np.zeros(3), advantage=np.ones(3))
    assert not g["v"].any()


# ---- bad use


@pytest.mark.parametrize("text, inputs, kind, message", [
    ("softmax_cross_entropy", {"z": Z, "y": Y, "t": T}, tw.NeedsError, "either labels `y` or probabilities `t`"),
    ("softmax_cross_entropy", {"z": Z}, tw.NeedsError, "either labels"),
    ("softmax_cross_entropy", {"z": Z, "y": Y + 4}, tw.RangeError, "labels from 0 to 3, got"),
    ("softmax_cross_entropy(weight=[1, 2])", {"z": Z, "y": Y}, tw.ShapeError, "`weight` has 2 numbers for 4 classes"),
    ("bce_with_logits([1, 2])", {"z": Z, "t": T}, tw.ShapeError, "`pos_weight` has 2 numbers"),
    ("focal_loss", {"z": Z, "t": T}, tw.NeedsError, "labels `y`"),
    ("focal_loss(mode=sigmoid)", {"z": Z, "y": Y}, tw.NeedsError, "targets `t`"),
    ("focal_loss(alpha=[0.5, 0.5])", {"z": Z, "y": Y}, tw.ShapeError, "`alpha` has 2 numbers"),
    ("hinge", {"s": Z[:, 0].copy(), "y": Y}, tw.RangeError, "-1 or 1"),
    ("gaussian_nll", {"m": Z, "var": -np.ones_like(Z), "t": T}, tw.RangeError, "`var` must be at least 0, got -1"),
    ("saf", {"z": Z}, tw.NeedsError, "`past` or `buffer`"),
    ("saf", {"z": Z, "buffer": np.zeros((9, 4, 4))}, tw.NeedsError, "`epoch`"),
    ("saf", {"z": Z, "buffer": np.zeros((9, 3, 4)), "epoch": np.array(1)}, tw.ShapeError, r"delay \+ 1 = 4"),
    ("vicreg", {"x": Z[:1], "y": Z[:1]}, tw.ShapeError, "at least 2"),
    ("center_loss", {"x": Z, "y": Y, "centers": np.ones((2, 4))}, tw.RangeError, "labels from 0 to 1"),
    ("simsiam", {"p": Z, "z": Z, "q": Z}, tw.NeedsError, "belong together"),
    ("icon_embedding", {"x": Z[:1], "p": np.ones((1, 1))}, tw.ShapeError, "no neighbour"),
    ("augmented_sliced_wasserstein", {"x": Z, "y": Z, "w": np.ones((2, 4)), "b": np.ones(2), "projections": np.ones((3, 5))}, tw.ShapeError, "6 columns"),
    ("isogclr", {"x": Z, "y": Z, "tau": np.zeros(9)}, tw.RangeError, "`tau` must be above 0"),
    ("ar_dae", {"r": Z, "u": Z, "step": np.array(-1)}, tw.RangeError, "at least 0, got -1"),
])
def test_inputs_that_do_not_fit(text: str, inputs: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        tw.objective(text)(**inputs)


@pytest.mark.parametrize("text, message", [
    ("softmax_cross_entropy(weight=[-1])", "`weight` must hold"), ("mmd([])", "bandwidths"), ("mmd([1, 0])", "bandwidths"),
    ("unified_policy_gradient(reduction=fixed_length)", "`length`"), ("isogclr(tau_min=0.9, tau_max=0.5)", "tau_min"),
    ("quantile(1)", "tau"), ("hinge(power=3)", "power"),
])
def test_hyper_parameters_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(tw.RangeError, match=message):
        tw.objective(text)


def test_values_without_a_gradient() -> None:
    bad = Z.copy()
    bad[2, 1] = np.nan
    for text, inputs in (("softmax_cross_entropy", {"z": bad, "y": Y}), ("mse", {"p": bad, "t": T}), ("nt_xent", {"x": bad, "y": Z}),
                         ("mmd", {"x": bad, "y": Z}), ("barlow_twins", {"x": bad, "y": Z}), ("circle", {"x": bad, "y": Y})):
        assert np.isnan(tw.objective(text)(**inputs)), text
        with pytest.raises(tw.NonfiniteError):
            value_and_grad(text, **inputs)


# ---- they can be minimised


@pytest.mark.parametrize("text, names", [
    ("supcon", "x"), ("circle(gamma=8)", "x"), ("multi_similarity", "x"), ("triplet_batch_hard", "x"), ("nt_xent", "xy"),
    ("barlow_twins", "xy"), ("vicreg", "xy"), ("alignment_uniformity", "xy"), ("mmd", "xy"), ("care", "xy"), ("macl", "xy")])
def test_gradient_steps_lower_it(text: str, names: str) -> None:
    rng = RNG(1)
    x = {"x": rng.standard_normal((16, 8)), "y": rng.standard_normal((16, 8)) if names == "xy" else rng.integers(0, 3, 16)}
    loss = tw.objective(text)
    first, g = loss.value_and_grad(**x)
    for _ in range(50):
        for name in names:
            x[name] -= 0.05 * g[name]
        last, g = loss.value_and_grad(**x)
    assert last < first and all(np.isfinite(v).all() for v in g.values())


def test_mpad_chooses_among_equal_pairs() -> None:
    """Of 0, 1, 2, 3 on a line three pairs are 1 apart: two of the six count, with the smallest projections."""
    x = np.arange(4.0)[:, None]
    value, g = value_and_grad("mpad_direction(40)", w=np.ones(1), x=x)
    assert value == 1 and g["w"][0] == 1
    # equal rows are 0 apart and have no slope
    value, g = value_and_grad("mpad_direction(50)", w=np.ones(2), x=np.array([[0.0, 0.0], [1.0, -1.0], [5.0, 5.0]]))
    assert value == 0 and not g["w"].any()


def test_no_matrix_of_similarities_is_held() -> None:
    """3000 rows in float32: the matrix would have 36 MB, a tile has 2, and the rows themselves 24 kB."""
    code = """
import resource, numpy as np, thalweg as tw
x, y = np.random.default_rng(0).standard_normal((2, 1500, 2)).astype(np.float32)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for text, inputs in (("nt_xent", dict(x=x, y=y)), ("uniformity", dict(x=np.concatenate([x, y])))):
    loss = tw.objective(text)
    loss.value_and_grad(**{k: v[:4] for k, v in inputs.items()})
    before = peak()
    loss.value_and_grad(**inputs)
    assert peak() - before < 16, (text, peak() - before)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
