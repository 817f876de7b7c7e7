"""A step of thalweg.torch as a loop over requests: what lies in `.grad` is the answer."""

from __future__ import annotations

import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

from thalweg.torch import Optimizer  # noqa: E402


def made(sentence: str) -> tuple[torch.nn.Parameter, Optimizer]:
    p = torch.nn.Parameter(torch.zeros(3))
    return p, Optimizer([p], sentence)


def test_gradients_of_the_loop_count() -> None:
    """Not those of the step before."""
    p, opt = made("sam(0.) | sgd(lr=0.1)")

    def backward(c: float) -> None:
        opt.zero_grad()
        (c * p.sum()).backward()

    backward(1.0)
    for _ in opt.requests():
        backward(1.0)
    count = 0
    for _ in opt.requests():
        backward(100.0)
        count += 1
    assert count == 2
    torch.testing.assert_close(p.detach(), torch.full((3,), -10.1))


def test_an_explicit_answer_wins() -> None:
    p, opt = made("sgd(lr=0.1)")
    for request in opt.requests():
        p.grad = torch.full((3,), 7.0)
        request.answer([torch.ones(3)])
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.1))


@pytest.mark.parametrize("sentence", ["pcgrad(tasks=2) | sgd", "gradient_accumulate(2) | pcgrad(tasks=2) | sgd"])
def test_no_gradients_of_any_task_are_an_error(sentence: str) -> None:
    p, opt = made(sentence)
    with pytest.raises(tw.SequenceError, match="no gradients for any of the 2 tasks"):
        for _ in opt.requests():
            opt.zero_grad()
            p.sum()  # and no backward
    assert opt.engine.steps == 0
    for _ in opt.requests():
        opt.zero_grad()
        p.sum().backward()
    for request in opt.requests():
        opt.zero_grad()
        request.answer([torch.ones(3)])
    assert opt.engine.steps == 2


def test_losses_alone_and_a_loop_that_is_left() -> None:
    p, opt = made("spsa(a=0.01)")
    for request in opt.requests():
        assert request.kind == "loss"
        request.loss = float(p.detach().sum())
    moved = p.detach().clone()
    assert bool((moved != 0).all())
    for request in opt.requests():
        break
    torch.testing.assert_close(p.detach(), moved, rtol=0, atol=0)


def test_a_schedulers_rate_counts() -> None:
    p, opt = made("sgd(lr=0.1)")
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for _ in range(2):
        for _ in opt.requests():
            p.grad = torch.ones(3)
        scheduler.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.15))


def test_an_observed_tensor_may_want_gradients(recwarn: pytest.WarningsRecorder) -> None:
    p, opt = made("polyak_sgd")
    opt.observe("loss", p.sum() + 1)
    assert not recwarn.list
