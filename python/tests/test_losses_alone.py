"""A method that asks for losses and never for a gradient: spsa."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from support import SHAPES, Problem

SENTENCES = ["spsa", "spsa(low=-0.4, high=0.7, clip_perturbed=true)", "clip_global_norm(0.5) | spsa", "spsa | ema(0.9)"]


def answer(opt: tw.Optimizer, problem: Problem, params: list[np.ndarray], k: int) -> list[tw.Request]:
    asked = []
    for request in opt.requests():
        assert request.kind == "loss"
        asked.append((request.kind, request.tag))
        request.loss = problem.loss(params, k)
    return asked


@pytest.mark.parametrize("sentence", SENTENCES)
def test_no_gradient_is_ever_bound(sentence: str) -> None:
    """The same bits as with gradients that nobody reads, NaN among them."""
    problem = Problem(SHAPES, seed=1)
    ends = []
    for bound in (False, True):
        params = problem.start()
        opt = tw.Optimizer(params, sentence, seed=5)
        if bound:
            opt.bind_gradients([np.full_like(p, np.nan) for p in params])
        for k in range(12):
            assert len(answer(opt, problem, params, k)) == 2
        ends.append([p.tobytes() for p in params])
    assert ends[0] == ends[1]
    assert ends[0] != [p.tobytes() for p in problem.start()]


def test_both_losses_are_of_one_minibatch() -> None:
    problem = Problem([(3,)])
    params = problem.start()
    opt = tw.Optimizer(params, "spsa")
    tags = [[tag for _, tag in answer(opt, problem, params, k)] for k in range(3)]
    assert all(a == b for a, b in tags) and len({a for a, _ in tags}) == 3


def test_the_points_lie_around_the_parameters() -> None:
    w = np.array([0.5, -2.0, 1.0])
    start = w.copy()
    opt = tw.Optimizer([w], "spsa(c=0.25)")
    seen = []
    for request in opt.requests():
        seen.append(w - start)
        request.loss = float(np.sum(w))
    np.testing.assert_array_equal(np.abs(seen[0]), 0.25)
    np.testing.assert_array_equal(seen[0], -seen[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "bfloat16"])
@pytest.mark.parametrize("at", [1, 2])
def test_broken_off_at_each_request(dtype: Any, at: int) -> None:
    """The first step, which starts the tensors, and a later one."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    problem = Problem(SHAPES, seed=2)
    params = problem.start(dtype)
    opt = tw.Optimizer(params, "spsa | ema(0.9)")
    for k in range(3):
        before, state = [p.tobytes() for p in params], opt.state_dict()["state"]
        requests = opt.requests()
        for _ in range(at):
            next(requests).loss = 1.0
        requests.close()
        assert [p.tobytes() for p in params] == before
        assert opt.state_dict()["state"] == state
        answer(opt, problem, params, k)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(loss: float) -> None:
    w = np.ones(5)
    opt = tw.Optimizer([w], "spsa")
    with pytest.raises(tw.Error, match="spsa needs .* loss"):
        for request in opt.requests():
            request.loss = loss
    np.testing.assert_array_equal(w, 1)
    assert opt.steps == 0


def test_a_tensor_that_is_marked_absent_stays() -> None:
    problem = Problem([(4,), (3,)])
    params = problem.start()
    opt = tw.Optimizer(params, "spsa")
    opt.bind_gradients([None, np.zeros(3)])
    kept = params[0].copy()
    for request in opt.requests():
        np.testing.assert_array_equal(params[0], kept)
        request.loss = problem.loss(params, 0)
    np.testing.assert_array_equal(params[0], kept)
    assert np.any(params[1] != problem.start()[1])


def test_every_group_has_its_own_numbers() -> None:
    """A group whose step size is small hardly moves; its quotient takes its own c."""
    a, b = np.zeros(50), np.zeros(50)
    opt = tw.Optimizer([{"params": [a], "c": 0.5}, {"params": [b], "a": 1e-9}], "spsa")
    seen = []
    for request in opt.requests():
        seen.append((a.copy(), b.copy()))
        request.loss = float(a.sum() + b.sum())
    np.testing.assert_array_equal(np.abs(seen[0][0]), 0.5)
    np.testing.assert_array_equal(np.abs(seen[0][1]), 0.1)
    difference = sum(x.sum() - y.sum() for x, y in zip(*seen))
    np.testing.assert_allclose(a, -0.1 * difference / 1.0 * np.sign(seen[0][0]), rtol=1e-13)
    assert np.max(np.abs(b)) < 1e-6


def test_maximize_climbs() -> None:
    ends = {}
    for maximize in (False, True):
        w = np.zeros(20)
        opt = tw.Optimizer([w], "spsa(a=0.01)", maximize=maximize, seed=3)
        for _ in range(50):
            for request in opt.requests():
                request.loss = float(np.sum(w))
        ends[maximize] = w.sum()
    assert ends[True] > 1 and np.isclose(ends[True], -ends[False])


def test_converges_on_a_quadratic() -> None:
    rng = np.random.default_rng(0)
    target, w = rng.standard_normal(10), np.zeros(10)
    opt = tw.Optimizer([w], "spsa(a=0.1, c=0.01, A=50)", seed=1)
    for _ in range(2000):
        for request in opt.requests():
            request.loss = float(0.5 * np.sum((w - target) ** 2))
    assert np.linalg.norm(w - target) < 0.05 * np.linalg.norm(target)


def test_the_box_holds() -> None:
    w = np.zeros(30)
    opt = tw.Optimizer([w], "spsa(a=1, low=-0.2, high=0.1, clip_perturbed=true)")
    for _ in range(30):
        for request in opt.requests():
            assert w.min() >= -0.2 and w.max() <= 0.1
            request.loss = float(-np.sum(w))
        assert w.min() >= -0.2 and w.max() <= 0.1
    assert {w.min(), w.max()} == {-0.2, 0.1}
    with pytest.raises(tw.Error, match="low"):
        tw.Optimizer([w], "spsa(low=1, high=0)")
