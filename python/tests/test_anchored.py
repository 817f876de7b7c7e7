"""Regularizers of several inputs inside pipelines, which give them their weights alone: anchors are those of the start."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

SHAPES = [(5,), (4, 6), (), (3, 2, 2)]
LR = 0.1
Pull = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def matched(w: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """The sorted initial values in the order of w; equal entries of w keep their order."""
    m = np.empty(w.size)
    m[np.argsort(w.ravel(), kind="stable")] = np.sort(initial.ravel())
    return m.reshape(w.shape)


def anchored(weight: float) -> tuple[Pull, Pull]:
    return (lambda w, a, t: weight * (w - a)), (lambda w, a, t: (w + t * weight * a) / (1 + t * weight))


def wasserstein(weight: float, mean: bool = False) -> tuple[Pull, Pull]:
    c = lambda w: weight / w.size if mean else weight  # noqa: E731
    gradient = lambda w, a, t: 2 * c(w) * (w - matched(w, a))  # noqa: E731
    return gradient, lambda w, a, t: (w + 2 * t * c(w) * matched(w, a)) / (1 + 2 * t * c(w))


CASES = {
    "l2_init(0.7)": anchored(0.7), "l2_init(0)": anchored(0.0), "wasserstein_init(0.3)": wasserstein(0.3),
    "wasserstein_init(0.3, reduction=mean)": wasserstein(0.3, True),
}


def gradients(seed: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(dtype) for s in SHAPES]


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("use", ["penalty", "prox", "decoupled"])
@pytest.mark.parametrize("name", CASES)
def test_the_anchor_is_the_start(name: str, use: str, dtype: Any, tolerance: float) -> None:
    """By hand, saved and resumed in the middle, a tensor that starts late."""
    sentence = f"penalty({name}) | sgd({LR})" if use == "penalty" else f"sgd({LR}) | {use}({name})"
    gradient, prox = CASES[name]
    mine = gradients(0, dtype)
    want, anchors = [w.astype(np.float64) for w in mine], [w.astype(np.float64) for w in mine]
    opt = tw.Optimizer(mine, sentence)
    for k in range(12):
        if k == 2:  # written before its first step: the anchor of a tensor is where it starts
            mine[1] += dtype(1)
            want[1] += 1
            anchors[1] = want[1].copy()
        grads = gradients(k + 1, dtype)
        if k < 3:
            grads[1] = None  # type: ignore[call-overload]
        for w, a, g in zip(want, anchors, grads):
            if g is None:
                continue
            w -= LR * (g + (gradient(w, a, LR) if use == "penalty" else 0))
            if use == "prox":
                w[...] = prox(w, a, np.float64(LR))
            elif use == "decoupled":
                w -= LR * gradient(w, a, LR)
        opt.step(grads)
        if k == 6:
            mine = [w.copy() for w in mine]
            other = tw.Optimizer(mine, sentence)
            other.load_state_dict(opt.state_dict())
            opt = other
    for m, w in zip(mine, want):
        np.testing.assert_allclose(m, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("use", ["penalty", "prox", "decoupled"])
def test_a_match_is_kept_for_some_steps(use: str) -> None:
    """Made at the first step of a tensor and every third from there, whatever it is saved between."""
    stage = "wasserstein_init(0.3, every=3)"
    sentence = f"penalty({stage}) | sgd({LR})" if use == "penalty" else f"sgd({LR}) | {use}({stage})"
    rng = np.random.default_rng(7)
    mine = [rng.standard_normal(6)]
    want, initial, match = mine[0].copy(), mine[0].copy(), np.zeros(6)
    opt, plain = tw.Optimizer(mine, sentence), mine[0].copy()
    other = tw.Optimizer([plain], sentence.replace(", every=3", ""))
    for k in range(8):
        g = 8 * rng.standard_normal(6)  # which changes the order at every step
        moved = want - LR * g
        if k % 3 == 0:
            match = matched(want if use == "penalty" else moved, initial)
        at = want if use == "penalty" else moved
        t = 2 * LR * 0.3
        want = (moved + t * match) / (1 + t) if use == "prox" else moved - t * (at - match)
        opt.step([g])
        other.step([g])
        np.testing.assert_allclose(mine[0], want, rtol=1e-12, atol=1e-12)
        if k in (3, 4):
            mine = [mine[0].copy()]
            again = tw.Optimizer(mine, sentence)
            again.load_state_dict(opt.state_dict())
            opt = again
    assert not np.allclose(plain, mine[0])


@pytest.mark.parametrize("name, inputs", [("l2_init(0.7)", "anchor"), ("wasserstein_init(0.3)", "initial")])
def test_a_pipeline_adds_what_the_handle_says(name: str, inputs: str) -> None:
    rng = np.random.default_rng(3)
    w, g = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    start = w.copy()
    opt = tw.Optimizer([w], f"penalty({name}) | sgd(1)")
    opt.step([g])
    np.testing.assert_allclose(w, start - g, rtol=1e-14)  # at the anchor nothing pulls
    before = w.copy()
    opt.step([g])
    pull = tw.regularizer(name).gradient(before, **{inputs: start})
    np.testing.assert_allclose(w, before - g - pull, rtol=1e-13)


def test_relevance_takes_the_gradient_of_its_place() -> None:
    rng = np.random.default_rng(4)
    w, g = rng.standard_normal(9), rng.standard_normal(9)
    g[2] = 0
    before = w.copy()
    tw.Optimizer([w], "clip_value(0.5) | penalty(relevance_reg(gamma=0.2, alpha=0.3)) | sgd(1)").step([g])
    clipped = np.clip(g, -0.5, 0.5)
    pull = tw.regularizer("relevance_reg(gamma=0.2, alpha=0.3)").gradient(before, grad=clipped)
    np.testing.assert_allclose(w, before - clipped - pull, rtol=1e-13)
    for use in ("prox", "decoupled"):
        with pytest.raises(tw.UnsupportedError, match=r"write penalty\(relevance_reg\) before the rule"):
            tw.Optimizer([w], f"sgd | {use}(relevance_reg)")


def test_the_anchor_composes() -> None:
    """With a source, a master copy, state in 16 bits, and a route whose other pipeline has none."""
    ml = pytest.importorskip("ml_dtypes")
    w, v = np.linspace(-1, 1, 64).astype(ml.bfloat16), np.ones(3, np.float32)
    opt = tw.Optimizer([("w", w), ("b", v)], "sam(0.05) | route(w=(penalty(l2_init(100)) | sgd(1e-3)), other=(sgd(0.01)))",
                       master="f32", state_dtype="bf16")
    start = w.astype(np.float32)
    g = [np.full(64, 0.5, np.float32).astype(ml.bfloat16), np.ones(3, np.float32)]
    opt.bind_gradients(g)
    for _ in range(60):
        for _request in opt.requests():
            pass
    # the pull of 100 (w - start) balances 0.5
    np.testing.assert_allclose(w.astype(np.float32), start - 0.005, atol=1e-2)
    np.testing.assert_allclose(v, 0.4, atol=1e-5)
