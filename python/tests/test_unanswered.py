"""A request that nobody answers, a number that nobody watches, a gradient that comes or goes: each is heard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw

SAM = "sam(0.05) | sgd(lr=0.1)"


def made(sentence: str) -> tuple[list[np.ndarray], list[np.ndarray], tw.Optimizer]:
    params = [np.ones((2, 2)), np.ones(2)]
    return params, [np.ones_like(p) for p in params], tw.Optimizer(params, sentence)


def walk(opt: Any, answers: list[Any]) -> None:
    for request, grads in zip(opt.requests(), answers, strict=False):
        if grads is not None:
            request.answer(grads)


# ---- requests


@pytest.mark.parametrize("sentence, first, unanswered", [
    (SAM, 0, "Request(gradient, pass 0, tag"), (SAM, 1, "Request(gradient, pass 1, tag"),
    ("adamw", 0, "Request(gradient, pass 0, tag"), ("pcgrad(tasks=2) | sgd(lr=1)", 1, "task 1 of 2")])
def test_a_loop_that_answers_nothing_after_a_step(sentence: str, first: int, unanswered: str) -> None:
    params, grads, opt = made(sentence)
    walk(opt, [grads] * 3)
    before = [p.copy() for p in params]
    with pytest.raises(tw.SequenceError, match=r"was not answered: call request\.answer") as caught:
        walk(opt, [grads] * first + [None] * 3)
    assert unanswered in str(caught.value)
    assert all((p == q).all() for p, q in zip(params, before)) and opt.steps == 1
    walk(opt, [grads] * 3)
    assert opt.steps == 2


def test_a_loop_after_step_of_gradients() -> None:
    _, grads, opt = made("adamw")
    opt.step(grads)
    with pytest.raises(tw.SequenceError, match="was not answered"):
        walk(opt, [None])


def test_bound_gradients_may_be_filled() -> None:
    params, grads, opt = made(SAM)
    opt.bind_gradients(grads)
    for _ in range(2):
        for _ in opt.requests():
            for g in grads:
                g[...] = 2
    assert opt.steps == 2
    np.testing.assert_allclose(params[1], 1 - 2 * 0.1 * 2)
    walk(opt, [grads, grads])
    with pytest.raises(tw.SequenceError, match="was not answered"):
        walk(opt, [None])


def test_a_closure_that_gives_no_gradients_after_one_that_did() -> None:
    _, grads, opt = made(SAM)
    opt.step(lambda: (1.0, grads))
    with pytest.raises(tw.SequenceError, match=r"gave no gradients for Request\(gradient, pass 0"):
        opt.step(lambda: 1.0)


def test_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    p = torch.nn.Parameter(torch.ones(3))
    opt = thalweg.torch.Optimizer([p], SAM)
    for _ in opt.requests():
        opt.zero_grad(set_to_none=False)  # the same tensor, written anew
        (p * p).sum().backward()
    with pytest.raises(tw.SequenceError, match=r"Request\(gradient, pass 1, tag .* was not answered"):
        for _ in opt.requests():
            pass
    assert opt.engine.steps == 1
    for request in opt.requests():
        request.answer([torch.ones(3)])
    for _ in opt.requests():
        p.grad = None
        (p * p).sum().backward()
    assert opt.engine.steps == 3


# ---- gradients that come or go


def test_bound_gradients_that_come_late() -> None:
    params, grads, opt = made(SAM)
    opt.bind_gradients([None, grads[1]])
    with pytest.raises(tw.ArgumentError, match="has a gradient of parameter 0, and the first answer"):
        for request in opt.requests():
            if request.pass_:
                opt.bind_gradients(grads)
    assert opt.steps == 0 and (params[1] == 1).all()
