"""Stages that replace the decay or set the norm, behind AdamW, behind Adam with its coupled decay, and behind a matrix rule.

Plain float64 forms of the cards, step by step, on the direction u of the rule.  A stage hands its point over as an update, so that a
rounding of the weights comes on top: 1e-12 all the same after some twenty steps.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference.adam import Adam, AdamW
from support import Problem
from test_fidelity import worst

SHAPES = [(7,), (5, 3), (2, 3, 2, 2), ()]
STEPS = 20
LR, WD = 0.05, 0.4


def cautious(u: np.ndarray, p: np.ndarray, lr: float, wd: float, s: dict[str, Any], zero: str = "decay") -> np.ndarray:
    mask = u * p >= 0 if zero == "decay" else u * p > 0
    return p - lr * wd * mask * p - lr * u


def corrected(u: np.ndarray, p: np.ndarray, lr: float, wd: float, s: dict[str, Any], max_lr: float | None = None) -> np.ndarray:
    s.setdefault("peak", lr if max_lr is None else max_lr)
    return p * (1 - lr**2 / s["peak"] * wd) - lr * u


def relative(u: np.ndarray, p: np.ndarray, lr: float, wd: float, s: dict[str, Any]) -> np.ndarray:
    p = p * (1 - lr * wd)
    return p - lr * u * np.linalg.norm(p) / np.linalg.norm(u)


def hyperball(u: np.ndarray, p: np.ndarray, lr: float, wd: float, s: dict[str, Any], min_rank: int = 2, radius: float | None = None) -> np.ndarray:
    if p.ndim < min_rank:
        return p * (1 - lr * wd) - lr * u
    s.setdefault("R", np.linalg.norm(p) if radius is None else radius)
    u = u + wd * p
    p = p - lr * s["R"] * u / max(np.linalg.norm(u), 1e-12)
    return p * s["R"] / max(np.linalg.norm(p), 1e-12)


def brake(u: np.ndarray, p: np.ndarray, lr: float, wd: float, s: dict[str, Any], outward: float = 0.5, inward: float = 1.0, form: str = "norm",
          pin: bool = False, eps: float = 1e-15) -> np.ndarray:
    p = p * (1 - lr * wd)
    n0 = np.linalg.norm(p)
    if form == "norm":
        q = p - lr * u
        n1 = np.linalg.norm(q)
        d = n1 - n0
        return q * (n0 + (outward if d >= eps else inward if d <= -eps else 0.0) * d) / n1
    c = np.sum(u * p) / max(n0**2, eps)
    u = u + ((outward if c < 0 else inward) - 1) * c * p
    q = p - lr * u
    return q * max(n0 - lr * np.sum(u * p) / n0, eps) / np.linalg.norm(q) if pin else q


STAGES: list[tuple[str, Callable[..., np.ndarray], dict[str, Any]]] = [
    ("cautious_decay", cautious, {}), ("cautious_decay", cautious, {"zero": "keep"}),
    ("corrected_decay", corrected, {}), ("corrected_decay", corrected, {"max_lr": 0.2}),
    ("relative_update", relative, {}),
    ("hyperball", hyperball, {}), ("hyperball", hyperball, {"min_rank": 0, "radius": 1.5}),
    ("radial_brake", brake, {}), ("radial_brake", brake, {"outward": 0.0, "inward": 0.0}), ("radial_brake", brake, {"outward": 0.3, "inward": 0.6}),
    ("radial_brake", brake, {"form": "direction", "outward": 0.2}), ("radial_brake", brake, {"form": "direction", "pin": True, "inward": 0.7}),
]


def write(h: dict[str, Any]) -> str:
    return ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in h.items())


@pytest.mark.parametrize("coupled", [False, True], ids=["adamw", "adam"])
@pytest.mark.parametrize("name, stage, h", STAGES, ids=[f"{n}-{write(h)}" for n, _, h in STAGES])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_stage(name: str, stage: Callable[..., np.ndarray], h: dict[str, Any], coupled: bool, dtype: Any) -> None:
    problem = Problem(SHAPES, seed=4)
    params = [np.array(x.astype(dtype), np.float64) for x in problem.start()]
    mine = problem.start(dtype)
    rule = (Adam if coupled else AdamW)(lr=LR, weight_decay=WD)
    rule.start(params)
    states: list[dict[str, Any]] = [{} for _ in params]
    opt = tw.Optimizer(mine, f"{'adam' if coupled else 'adamw'}(lr={LR}, weight_decay={WD}) | {name}({write(h)})")
    for k in range(STEPS):
        lr = LR * (1 - 0.03 * k)
        opt.set("lr", lr)
        rule.h["lr"] = 1.0
        rule.h["weight_decay"] = WD if coupled else 0.0
        grads = problem.gradient(params, k)
        before = [p.copy() for p in params]
        rule.step(params, grads)
        for i, (p, b) in enumerate(zip(params, before)):
            p[...] = stage(b - p, b, lr, 0.0 if coupled else WD, states[i], **h)
        opt.step([np.asarray(g, dtype) for g in problem.gradient(mine, k)])
    assert np.max(worst(mine, params)) < (1e-12 if dtype is np.float64 else 5e-4)


def test_stages_do_not_touch_what_they_need_not() -> None:
    """No decay: cautious_decay and corrected_decay are nothing, bit for bit; nor a brake that keeps all."""
    for stage in ("cautious_decay", "corrected_decay", "radial_brake(outward=1)", "radial_brake(outward=1, form=direction)"):
        plain, other = Problem(SHAPES, seed=1), Problem(SHAPES, seed=1)
        a, b = plain.start(), other.start()
        one, two = tw.Optimizer(a, "adamw(lr=0.1, weight_decay=0)"), tw.Optimizer(b, f"adamw(lr=0.1, weight_decay=0) | {stage}")
        for k in range(5):
            one.step(plain.gradient(a, k))
            two.step(other.gradient(b, k))
        assert all(np.array_equal(x, y) for x, y in zip(a, b)), stage


def test_hyperball_keeps_the_norm_behind_a_matrix_rule() -> None:
    w = np.random.default_rng(0).standard_normal((6, 4))
    norm = np.linalg.norm(w)
    with tw.Optimizer([w], "muon(lr=0.02, weight_decay=0) | hyperball") as opt:
        for k in range(10):
            opt.step([np.random.default_rng(k).standard_normal((6, 4))])
            assert np.linalg.norm(w) == pytest.approx(norm, rel=1e-12)


def test_relative_update_moves_by_the_rate() -> None:
    w = np.random.default_rng(0).standard_normal(9)
    before = w.copy()
    with tw.Optimizer([w, np.zeros(3)], "sgd(lr=0.1) | relative_update") as opt:
        opt.step([np.random.default_rng(1).standard_normal(9), np.ones(3)])
        assert np.linalg.norm(w - before) == pytest.approx(0.1 * np.linalg.norm(before), rel=1e-12)
        assert not opt.params[1].any()


@pytest.mark.parametrize("sentence", [
    f"{rule} | {stage}" for stage in ("hyperball", "radial_brake", "lawn(part=norm)", "radial_brake(form=direction, pin=true)",
                                      "clip_update_rms(threshold=1)", "relative_update")
    for rule in ("sgd(lr={lr})", "adamw(lr={lr}, weight_decay=0.1)", "riemannian_sgd(lr={lr}, manifold=sphere)", "ranger(lr={lr})")
])
@pytest.mark.parametrize("lr", [3e-39, 1e-42, 1e-45])
def test_a_step_size_that_has_all_but_vanished_moves_nothing(sentence: str, lr: float) -> None:
    """A move over such a step size is infinite in float32: as with a step size of 0, there is none."""
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    w /= np.linalg.norm(w)
    at = w.copy()
    opt = tw.Optimizer([w], sentence.format(lr=lr))
    for _ in range(3):
        opt.step([np.ones_like(w)])
    np.testing.assert_allclose(w, at, rtol=0, atol=3e-7)  # the sphere divides by the norm each time


@pytest.mark.parametrize("stage", ["magma(mask_prob=0)", "cautious_decay(zero=keep)"])
@pytest.mark.parametrize("rule", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("lr, wd", [(1e-3, 0.01), (3e-4, 0.1), (1e-2, 0.3)])
def test_what_is_spared_of_the_decay_stays_to_the_bit(stage: str, rule: str, lr: float, wd: float) -> None:
    decay = f", weight_decay={wd}" + (", decoupled=true" if rule == "sgd" else "")
    for dtype in (np.float32, np.float64, np.float16):
        w = np.random.default_rng(0).standard_normal((32, 16)).astype(dtype)
        at = w.copy()
        opt = tw.Optimizer([w], f"{rule}(lr={lr}{decay}) | {stage}")
        for _ in range(50):
            opt.step([np.zeros_like(w)])
        np.testing.assert_array_equal(w, at)


@pytest.mark.parametrize("between", ["decoupled_weight_decay(0.9)", "hyperball", "lawn(part=norm)"])
@pytest.mark.parametrize("brake", ["radial_brake", "radial_brake(form=direction, pin=true)"])
def test_the_norm_behind_a_masked_decay_is_taken_right_behind_the_mask(between: str, brake: str) -> None:
    w = np.ones((3, 3))
    with pytest.raises(tw.MethodError, match="`radial_brake` measures the weights behind the decay that `cautious_decay` masks"):
        tw.Optimizer([w], f"adamw(weight_decay=0.1) | cautious_decay | {between} | {brake}")
    tw.Optimizer([w], f"adamw(weight_decay=0.1) | cautious_decay | {brake} | hyperball").close()
    tw.Optimizer([w], f"adamw(weight_decay=0.1) | {between} | {brake}").close()


@pytest.mark.parametrize("schedule", [
    "join([constant(0.01), warmup_cosine(peak=0.1, warmup=10, total=100)], [100000])",
    "join([warmup_cosine(peak=0.01, warmup=10, total=1000), warmup_cosine(peak=0.1, warmup=5, total=50)], [50000])",
])
def test_the_peak_of_a_part_that_comes_late_is_found(schedule: str) -> None:
    """Independent decay: weight_decay times the rate over its peak."""
    w, rate = np.ones((3, 3)), tw.schedule(schedule)
    opt = tw.Optimizer([w], f"sgd(lr={schedule}) | decoupled_weight_decay(0.5, mode=independent)")
    for _ in range(4):
        opt.step([np.zeros((3, 3))])
    want = np.prod([1 - 0.5 * rate(k) / 0.1 for k in range(4)])
    assert want < 1
    np.testing.assert_allclose(w, want, rtol=1e-9)
