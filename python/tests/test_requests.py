"""Reverse communication: what is asked, in which order, and what happens when the host does not follow."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from support import Problem, sentence_of, shapes_for, snapshot, take_step

REQUESTS = set("gradient loss loss_and_gradient hessian_vector task_gradient previous_gradient logit_derivatives activations sample_gradients participant".split())


@pytest.fixture
def w() -> np.ndarray:
    return np.array([1.0, -2.0, 3.0])


@pytest.fixture
def sam(w: np.ndarray) -> tw.Optimizer:
    opt = tw.Optimizer([w], "sam(0.5) | sgd(lr=0.1, momentum=0.9)")
    opt.bind_gradients([np.zeros(3)])
    return opt


def test_one_gradient(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.5)
    before = w.copy()
    kinds = []
    for request in opt.requests():
        kinds.append((request.kind, request.pass_))
        request.answer([np.ones(3)])
    assert kinds == [("gradient", 0)]
    np.testing.assert_array_equal(w, before - 0.5)
    assert opt.steps == 1


def test_sam_sees_the_perturbed_point(sam: tw.Optimizer, w: np.ndarray) -> None:
    start, points, tags = w.copy(), [], []
    for request in sam.requests():
        assert request.kind == "gradient"
        points.append(w.copy())
        tags.append(request.tag)
        sam.grads[0][:] = w
    norm = np.linalg.norm(start)
    np.testing.assert_array_equal(points[0], start)
    np.testing.assert_allclose(points[1], start + 0.5 * start / norm, rtol=1e-12)
    np.testing.assert_allclose(w, start - 0.1 * points[1], rtol=1e-12)
    assert tags[0] == tags[1]  # the same minibatch
    for request in sam.requests():
        assert request.tag != tags[0]
        sam.grads[0][:] = w


def test_steps_that_ask_for_more_need_requests(sam: tw.Optimizer) -> None:
    before = snapshot(sam)
    with pytest.raises(tw.NeedsError, match="sam"):
        sam.step()
    assert snapshot(sam) == before


@pytest.mark.parametrize("after", [1, 2])
def test_breaking_off(sam: tw.Optimizer, w: np.ndarray, after: int) -> None:
    before = snapshot(sam)
    count = 0
    loop = sam.requests()
    for _ in loop:
        count += 1
        if count == after:
            break
        sam.grads[0][:] = w
    loop.close()
    assert snapshot(sam) == before and sam.steps == 0


def test_a_new_step_cancels_an_abandoned_one(sam: tw.Optimizer, w: np.ndarray) -> None:
    start = w.copy()
    abandoned = sam.requests()
    next(abandoned)
    sam.grads[0][:] = w
    next(abandoned)
    assert not np.array_equal(w, start)
    for _ in sam.requests():
        sam.grads[0][:] = 1.0
    with pytest.raises((RuntimeError, StopIteration)):
        next(abandoned)
    assert sam.steps == 1
    np.testing.assert_allclose(w, start - 0.1, rtol=1e-12)


def test_cancel(sam: tw.Optimizer, w: np.ndarray) -> None:
    before = snapshot(sam)
    requests = sam.requests()
    next(requests)
    sam.grads[0][:] = w
    next(requests)
    sam.cancel()
    assert snapshot(sam) == before
    with pytest.raises(tw.Error):
        sam.cancel()  # nothing is under way


def test_stepping_inside_a_step(sam: tw.Optimizer, w: np.ndarray) -> None:
    requests = sam.requests()
    next(requests)
    with pytest.raises((tw.SequenceError, tw.NeedsError)):
        sam.step()
    with pytest.raises(tw.SequenceError):
        sam.eval()
    requests.close()


def test_loss_that_is_not_given() -> None:
    found = [m for m in tw.methods("optimizer") if {"loss", "loss_and_gradient"} & set(m.requests)]
    # theirs is the loss of a trial that fails; robust_subgm asks for one in some of its settings
    tries = {"newton_cg", "nonlinear_cg", "saddle_free_newton", "robust_subgm"}
    for m in found:
        w = [np.ones(s) for s in shapes_for(m)]
        opt = tw.Optimizer(w, sentence_of(m))
        opt.bind_gradients([np.ones_like(x) for x in w])
        before = snapshot(opt)
        if m.name in tries:
            continue
        with pytest.raises(tw.NeedsError, match="loss"):
            for request in opt.requests():
                pass
        assert snapshot(opt) == before


def test_closure_is_called_as_often_as_asked(sam: tw.Optimizer, w: np.ndarray) -> None:
    kinds = []

    def closure(request: tw.Request) -> tuple[float, list[np.ndarray]]:
        kinds.append(request.kind)
        return float(w @ w), [w.copy()]

    loss = float(w @ w)
    assert sam.step(closure) == loss
    assert kinds == ["gradient", "gradient"]


@pytest.mark.parametrize("m", [m for m in tw.methods() if m.kind in ("optimizer", "perturbation")], ids=lambda m: m.name)
def test_what_is_asked_is_declared(m: tw.Method) -> None:
    """The kinds of request that come in practice, and a step that is cancelled at each of them."""
    sentence = sentence_of(m) + ("" if m.kind == "optimizer" else " | sgd(lr=0.1)")
    shapes = shapes_for(m) if m.kind == "optimizer" else [(3,), (2, 2)]
    problem = Problem(shapes, steps=8)
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence)
    opt.bind_gradients(grads)
    take_step(opt, problem, 0, params, grads)
    before = snapshot(opt)
    count = 0
    loop = opt.requests()
    for request in loop:
        assert request.kind in REQUESTS
        if request.kind == "hessian_vector":
            assert [p.shape for p in request.probe] == [p.shape for p in params]
            assert not request.probe[0].flags.writeable
        problem.answer(request, params, grads, 1)
        count += 1
    assert count >= 1 and opt.steps == 2
    # the same step, broken off at its i-th request, leaves no trace
    after = snapshot(opt)
    for i in range(count):
        opt.load_state_dict({"format": 1, "state": before[1]})
        for p, old in zip(params, before[0]):
            p[...] = np.frombuffer(old, p.dtype).reshape(p.shape)
        loop = opt.requests()
        for k, request in enumerate(loop):
            if k == i:
                break
            problem.answer(request, params, grads, 1)
        loop.close()
        assert snapshot(opt) == before
    take_step(opt, problem, 1, params, grads)
    assert snapshot(opt) == after


def test_nonfinite_answers_inside_a_step(w: np.ndarray) -> None:
    for policy in ("skip", "error"):
        opt = tw.Optimizer([w], "sam(0.5) | adamw(lr=0.1)", nonfinite=policy)
        opt.bind_gradients([np.ones(3)])
        for second in (False, True):
            params = w.copy()
            state = opt.state()

            def step() -> None:
                for k, _ in enumerate(opt.requests()):
                    opt.grads[0][:] = np.nan if k == second else 1.0

            if policy == "error":
                with pytest.raises(tw.NonfiniteError):
                    step()
            else:
                step()
            np.testing.assert_array_equal(w, params)
            assert all(np.array_equal(a, b) for n in state for a, b in zip(state[n], opt.state()[n]))
        assert opt.steps == 0
