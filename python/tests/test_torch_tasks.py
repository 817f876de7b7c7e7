"""Losses of several tasks given to thalweg.torch.Optimizer.backward: how many, and from several minibatches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

import thalweg.torch as twt  # noqa: E402

A, B = [[1.0, 2.0, -1.0], [0.5, -0.3, 0.7]], [[-2.0, 0.4, 0.3], [1.0, 1.5, -0.2]]
C = [[0.1, 0.2, 3.0], [-0.4, 1.0, 0.6]]
MINIBATCHES = [torch.tensor(rows, dtype=torch.float64) for rows in (A, B, C)]


def losses_of(p: torch.Tensor, batch: torch.Tensor) -> list[torch.Tensor]:
    """Of two tasks that are at odds."""
    return [((batch @ p) ** 2).mean(), ((batch @ p - 3.0).abs() ** 1.5).mean()]


def task_gradients(p: torch.Tensor, batch: torch.Tensor) -> list[torch.Tensor]:
    return [torch.autograd.grad(loss, p)[0] for loss in losses_of(p, batch)]


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([0.9, 0.4, -0.2], dtype=torch.float64))


def closure_over(opt: Any, p: torch.Tensor, set_to_none: bool = True) -> Any:
    batches = itertools.cycle(MINIBATCHES)

    def closure() -> Any:
        opt.zero_grad(set_to_none=set_to_none)
        losses = losses_of(p, next(batches))
        opt.backward(losses)
        return sum(losses)

    return closure


@pytest.mark.parametrize("set_to_none", [True, False])
def test_tasks_behind_accumulation(set_to_none: bool) -> None:
    """PCGrad of the mean gradient of every task, in plain arithmetic."""
    p, q = start(), start().detach()
    opt = twt.Optimizer([p], "gradient_accumulate(3) | pcgrad(tasks=2) | sgd(lr=0.01)")
    closure = closure_over(opt, p, set_to_none)
    conflicts = 0
    for _ in range(3):
        opt.step(closure)
        leaf = q.clone().requires_grad_()
        first, second = (sum(g) / 3 for g in zip(*(task_gradients(leaf, batch) for batch in MINIBATCHES)))
        dot = first @ second
        conflicts += bool(dot < 0)
        whole = first + second
        if dot < 0:
            whole = whole - dot / (second @ second) * second - dot / (first @ first) * first
        q = q - 0.01 * whole
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=0)
    assert conflicts


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("sentence", ["gradient_accumulate(3) | pcgrad(tasks=2) | sam(0.05) | adamw(lr=0.01)",
                                      "gradient_accumulate(3) | mgda(tasks=2) | sgd(lr=0.01)",
                                      "pcgrad(tasks=2) | sam(0.05) | sgd(lr=0.01)"])
def test_a_closure_does_what_the_loop_does(sentence: str, set_to_none: bool) -> None:
    p, q = start(), start()
    opt, loop = twt.Optimizer([p], sentence), twt.Optimizer([q], sentence)
    closure = closure_over(opt, p, set_to_none)
    if "accumulate" not in sentence:
        closure = lambda: (opt.zero_grad(set_to_none), opt.backward(losses_of(p, MINIBATCHES[0])))[1]  # noqa: E731
    for _ in range(2):
        opt.step(closure)
        seen: dict[int, torch.Tensor] = {}
        for request in loop.requests():
            batch = seen.setdefault(request.tag, MINIBATCHES[len(seen) % 3])
            request.answer([task_gradients(q, batch)[request.index]])
        assert torch.equal(p, q)


def test_the_number_of_losses_is_that_of_the_tasks() -> None:
    p = start()
    opt = twt.Optimizer([p], "gradient_accumulate(2) | pcgrad(tasks=2) | sgd")
    for count, words in ((3, "has 2 tasks, and backward was given 3"), (1, "given 1 loss$"),
                         (0, "has 2 tasks, .* given 0")):
        losses = [(p**2).sum() for _ in range(count)]
        with pytest.raises(tw.CountError, match=words):
            opt.backward(losses)
        with pytest.raises(tw.CountError, match=words):
            opt.step(lambda: opt.backward([(p**2).sum() for _ in range(count)]))
    assert p.grad is None
    with pytest.raises(tw.ValueTypeError, match="losses are tensors, one a task, got a float"):
        opt.backward([1.0, 2.0])
    for wrong, kind in (({"a": 1.0}, "dict"), (None, "NoneType"), ("ab", "str")):
        with pytest.raises(tw.ValueTypeError, match=f"losses are a list of tensors, one a task, not a {kind}"):
            opt.backward(wrong)
    with pytest.raises(tw.ShapeError, match=r"the loss of task 1 has the shape \(3,\), and is to be one number"):
        opt.backward([(p**2).sum(), p**2])
    with pytest.raises(tw.CountError, match="has 2 tasks, and backward was given 1"):
        opt.backward((p**2).sum())
    opt.backward(losses_of(p, MINIBATCHES[0]))
    torch.testing.assert_close(p.grad, sum(task_gradients(p, MINIBATCHES[0])))
    plain = twt.Optimizer([start()], "adamw")
    with pytest.raises(tw.CountError, match="one or more tasks, and backward was given 0"):
        plain.backward([])


def test_an_error_in_a_closure_of_tasks_leaves_the_next_step_alone() -> None:
    p, q = start(), start()
    opt, twin = (twt.Optimizer([x], "gradient_accumulate(3) | pcgrad(tasks=2) | sgd(lr=0.01)") for x in (p, q))
    calls = iter(range(100))

    def fails() -> Any:
        if next(calls) == 1:
            raise RuntimeError("no data")
        opt.backward(losses_of(p, MINIBATCHES[0]))

    with pytest.raises(RuntimeError, match="no data"):
        opt.step(fails)
    assert torch.equal(p, q)
    opt.step(closure_over(opt, p))
    twin.step(closure_over(twin, q))
    assert torch.equal(p, q)


def test_a_loss_without_a_graph_is_named() -> None:
    p = start()
    opt = twt.Optimizer([p], "pcgrad(tasks=2) | sgd(lr=0.01)")
    for losses in (lambda: [(p**2).sum(), torch.tensor(1.0)], lambda: [(p**2).sum(), torch.tensor(1)]):
        with pytest.raises(tw.ArgumentError, match="the loss of task 1 has no graph"):
            opt.step(lambda: opt.backward(losses()))
    with pytest.raises(tw.ArgumentError, match="the loss of task 0 has no graph .* or under no_grad"):
        opt.step(lambda: opt.backward([(p**2).sum().detach(), (p**2).sum()]))
    assert torch.equal(p, start())
