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
