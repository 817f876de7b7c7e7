"""Numbers of what an adapter holds may be schedules of the step: penalty(l1(weight=cosine(...))) and its kin."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

RISE = "linear(lr=0.1, total=5, end=0.9)"


def grads(k: int, n: int = 7) -> np.ndarray:
    return np.random.default_rng(k).standard_normal(n)


def soft(w: np.ndarray, t: float) -> np.ndarray:
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


USES = {
    "penalty(l2(weight={})) | sgd(0.1)": lambda w, g, x: w - 0.1 * (g + x * w),
    "sgd(0.1) | decoupled(l2(weight={}))": lambda w, g, x: (w - 0.1 * g) * (1 - 0.1 * x),
    "sgd(0.1) | prox(l1({}))": lambda w, g, x: soft(w - 0.1 * g, 0.1 * x),
    "sgd(0.1) | prox(group_lasso({}, axis=all, scale_by_size=false))": lambda w, g, x: (
        (w - 0.1 * g) * max(0.0, 1 - 0.1 * x / np.linalg.norm(w - 0.1 * g))),
    "sgd(0.1) | project(l2_ball({}))": lambda w, g, x: (w - 0.1 * g) * min(1.0, x / np.linalg.norm(w - 0.1 * g)),
    "sgd(0.1) | project(linf_ball({}))": lambda w, g, x: np.clip(w - 0.1 * g, -x, x),
    "penalty(l2_init(weight={})) | sgd(0.1)": None,
}


@pytest.mark.parametrize("sentence", USES)
def test_a_schedule_inside(sentence: str) -> None:
    """By hand; saved and resumed in the middle; in a group of its own; the sentence says it."""
    rates, rule = tw.schedule(RISE), USES[sentence]
    w = grads(99)
    start = w.copy()
    want = w.copy()
    text = sentence.format(RISE)
    opt = tw.Optimizer([w], text)
    assert RISE.split("(")[0] in opt.sentence
    for k in range(9):
        g = grads(k)
        want = rule(want, g, rates(k)) if rule else want - 0.1 * (g + rates(k) * (want - start))
        opt.step([g])
        np.testing.assert_allclose(w, want, rtol=1e-12)
        if k == 4:
            w = w.copy()
            other = tw.Optimizer([w], text)
            other.load_state_dict(opt.state_dict())
            opt = other


@pytest.mark.parametrize("rule", ["sgd(0.1)", "route(matrix=(sgd(0.1)), other=(sgd(0.1)))"])
def test_groups_and_branches_have_it_too(rule: str) -> None:
    w, v = np.ones(3), np.ones((2, 2))
    groups = [{"params": [w]}, {"params": [v], "lr": 0.5}] if rule.startswith("sgd") else [w, v]
    opt = tw.Optimizer(groups, f"penalty(l2({RISE})) | {rule}")
    rates = tw.schedule(RISE)
    a = b = 1.0
    for k in range(4):
        opt.step([np.zeros(3), np.zeros((2, 2))])
        a, b = a * (1 - 0.1 * rates(k)), b * (1 - (0.5 if rule.startswith("sgd") else 0.1) * rates(k))
    np.testing.assert_allclose(w, a, rtol=1e-12)
    np.testing.assert_allclose(v, b, rtol=1e-12)


def test_what_is_refused() -> None:
    w = np.ones(3)
    with pytest.raises(tw.ValueTypeError, match="a schedule of the step alone here, and reduce_on_plateau watches the run"):
        tw.Optimizer([w], "penalty(l1(reduce_on_plateau(0.1))) | sgd")
    with pytest.raises(tw.RangeError, match="l1_ratio"):
        tw.Optimizer([w], "penalty(elastic_net(l1_ratio=constant(2))) | sgd")
    opt = tw.Optimizer([w], "sgd(0.1) | prox(elastic_net(l1_ratio=linear(lr=0.5, total=4, end=1.5)))")
    for _ in range(3):
        opt.step([np.ones(3)])
    before = w.copy()
    with pytest.raises(tw.RangeError, match="elastic_net: `l1_ratio` must be"):
        opt.step([np.ones(3)])
    assert np.array_equal(before, w) and opt.steps == 3
    with pytest.raises(tw.ValueTypeError, match="plain number here"):
        tw.Optimizer([w], f"prox_sgd(regularizer=l1({RISE}))")
    with pytest.raises(tw.ValueTypeError):
        tw.regularizer(f"l1({RISE})")
