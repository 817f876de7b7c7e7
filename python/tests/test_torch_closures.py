"""Closures and interruptions, GradScaler, gradient clipping and named parameters with thalweg.torch.Optimizer."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

from torch_support import assert_equal, parameter, step  # noqa: E402

from thalweg.torch import Optimizer  # noqa: E402


# ---- closures and interruptions


def closure_of(opt: Any, p: torch.Tensor, clear: Callable[[], None], at: int | None = None,
               problem: BaseException | None = None) -> Callable[[], torch.Tensor]:
    calls = [0]

    def closure() -> torch.Tensor:
        clear()
        calls[0] += 1
        loss = (p**2).sum()
        if problem is not None and calls[0] == at:
            raise problem
        loss.backward()
        return loss

    return closure


ASKING = ["sam(0.5) | sgd(lr=0.125)", "fd_grad_reg | sgd(lr=0.125)", "mars(exact=true)", "sgd(lr=0.125)"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), RuntimeError("no data")], ids=["interrupt", "error"])
@pytest.mark.parametrize("kind", ["opt", "model", "zeros"])
@pytest.mark.parametrize("sentence", ASKING)
def test_interrupted_at_every_request(sentence: str, kind: str, problem: BaseException) -> None:
    """However the closure clears its gradients: weights and state are as before, and the next step is that of a twin."""
    def make() -> tuple[Optimizer, torch.nn.Parameter, Callable[[], None]]:
        p = parameter(1.0, -2.0, 3.0)
        opt = Optimizer([p], sentence)
        clear = {"opt": opt.zero_grad, "model": lambda: setattr(p, "grad", None),
                 "zeros": lambda: opt.zero_grad(set_to_none=False)}[kind]
        for _ in range(2):
            opt.step(closure_of(opt, p, clear))
        return opt, p, clear

    for at in (1, 2):
        opt, p, clear = make()
        twin, q, clear_twin = make()
        before, state = p.detach().clone(), opt.engine.state_dict()["state"]
        try:
            opt.step(closure_of(opt, p, clear, at, problem))
        except type(problem):
            assert torch.equal(p.detach(), before) and opt.engine.state_dict()["state"] == state
            opt.step(closure_of(opt, p, clear))
        twin.step(closure_of(twin, q, clear_twin))
        assert_equal([p], [q])


def test_a_gradient_that_is_missing_at_the_second_request() -> None:
    p, q = parameter(1.0), parameter(1.0)
    opt = Optimizer([p, q], "sam(0.5) | sgd(lr=0.1)")
    calls = [0]

    def closure() -> torch.Tensor:
        opt.zero_grad()
        calls[0] += 1
        loss = (p**2).sum() + ((q**2).sum() if calls[0] == 1 else 0.0)
        loss.backward()
        return loss

    with pytest.raises(tw.SequenceError, match="absent"):
        opt.step(closure)
    assert (p.item(), q.item()) == (1.0, 1.0)


def test_closures_that_are_not_told_what_is_asked_for() -> None:
    p = parameter(1.0, 2.0)
    opt = Optimizer([p], "oasis")
    before = p.detach().clone()
    with pytest.raises(tw.NeedsError, match="hessian_vector"):
        opt.step(closure_of(opt, p, opt.zero_grad))
    assert torch.equal(p.detach(), before) and opt.engine.steps == 0


def test_closures_return_their_loss_and_autograd_notices() -> None:
    p = parameter(3.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    version = p._version
    loss = opt.step(closure_of(opt, p, opt.zero_grad))
    assert loss.item() == 9.0 and p._version > version
    version = p._version
    with opt.averaged():
        pass
    assert p._version > version


# ---- mixed precision, averages


def test_grad_scaler() -> None:
    """unscale_ and step of a GradScaler: a step with an infinite gradient is left out."""
    model = torch.nn.Linear(2, 1)
    opt = Optimizer(model.parameters(), "sgd(lr=0.5)")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    reference = [p.detach().clone() for p in model.parameters()]
    x = torch.tensor([[1.0, 2.0]])
    scaler.scale(model(x).sum()).backward()
    scaler.unscale_(opt)
    gradients = [p.grad.clone() for p in model.parameters()]
    scaler.step(opt)
    scaler.update()
    for p, old, g in zip(model.parameters(), reference, gradients):
        torch.testing.assert_close(p.detach(), old - 0.5 * g)
    assert gradients[1].item() == 1.0
    opt.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(model(x * math.inf).sum()).backward()
    scaler.step(opt)
    scaler.update()
    assert_equal(list(model.parameters()), before)
    assert scaler.get_scale() == 4.0 and opt.engine.steps == 1


def test_gradient_clipping_of_torch() -> None:
    model = torch.nn.Linear(4, 1)
    opt = Optimizer(model.parameters(), "sgd(lr=1.0)")
    before = [p.detach().clone() for p in model.parameters()]
    (100 * model(torch.ones(1, 4)).sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    moved = sum(float(((p.detach() - old) ** 2).sum()) for p, old in zip(model.parameters(), before))
    assert moved == pytest.approx(1.0, rel=1e-5)


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    opt = Optimizer(model.named_parameters(), 'route("*bias"=(sgd(lr=0.0)), other=(sgd(lr=0.5)))')
    assert opt.engine.names == ["weight", "bias"] and opt.param_groups[0]["param_names"] == ["weight", "bias"]
    bias = model.bias.detach().clone()
    step(opt)
    assert torch.equal(model.bias.detach(), bias)


# ---- sparse gradients


@pytest.mark.parametrize("name, options", [
    ("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adagrad", {"lr": 0.1}), ("SparseAdam", {}),
    ("SparseAdam", {"lr": 0.1, "betas": (0.5, 0.75), "maximize": True}),
])
def test_sparse_gradients_where_torch_takes_them(name: str, options: dict[str, Any]) -> None:
    import thalweg.torch as twt

    tables = []
    for library in (twt, torch.optim):
        torch.manual_seed(0)
        table = torch.nn.Embedding(5, 2, sparse=True)
        opt = getattr(library, name)(list(table.parameters()), **options)
        for i in range(3):
            opt.zero_grad()
            table(torch.tensor([0, i, i])).square().sum().backward()
            opt.step()
        tables.append(table.weight)
    assert_equal(*([t] for t in tables), rtol=1e-6, atol=1e-7)
    other = twt.Adam(table.parameters())
    with pytest.raises(tw.DtypeError, match="sparse"):
        other.step()


def test_a_closure_that_forgets_backward() -> None:
    p = parameter(1.0, 2.0)
    opt = Optimizer([p], "sam(0.05) | sgd(lr=0.1)")
    (p * p).sum().backward()
    with pytest.raises(tw.SequenceError, match=r"pass 1, .* was not answered.* call backward\(\) in the closure"):
        opt.step(lambda: (p * p).sum())
    assert opt.engine.steps == 0 and p.tolist() == [1.0, 2.0]
    plain = Optimizer([p], "sgd(lr=0.1)")  # one request: the gradient that is there, as in torch
    plain.step(lambda: (p * p).sum())
    assert plain.engine.steps == 1


@pytest.mark.parametrize("sentence", [*ASKING, "gradient_accumulate(2) | sam(0.05) | adamw(lr=0.1)"])
@pytest.mark.parametrize("way", ["closure", "told", "loop"])
def test_no_gradient_at_all_is_an_error(way: str, sentence: str) -> None:
    """Where a loss was computed and nothing was differentiated: nothing changes, and the next step is that of a twin."""
    p, q = parameter(1.0, 2.0), parameter(1.0, 2.0)
    opt, twin = Optimizer([p], sentence), Optimizer([q], sentence)

    def forgetful(request: Any = None) -> torch.Tensor:
        opt.zero_grad()
        return (p * p).sum()

    def take() -> None:
        if way != "loop":
            opt.step(forgetful if way == "closure" else lambda request: forgetful())
        else:
            for request in opt.requests():
                request.loss = forgetful().item()

    for _ in range(2):
        with pytest.raises(tw.SequenceError, match=r"gave no gradients for Request\(\w+, pass 0.* call backward\(\) in the"):
            take()
        assert opt.engine.steps == 0 and p.tolist() == [1.0, 2.0]
    opt.step(closure_of(opt, p, opt.zero_grad))
    twin.step(closure_of(twin, q, twin.zero_grad))
    assert_equal([p], [q])


def test_where_no_gradient_is_no_mistake() -> None:
    p, still = parameter(1.0, 2.0), parameter(1.0)
    opt = Optimizer([p, still], "sam(0.05) | sgd(lr=0.1)")
    opt.step(closure_of(opt, p, opt.zero_grad))  # one that is not used
    assert still.item() == 1.0 and p.tolist() != [1.0, 2.0]
    before = p.tolist()

    def skipped() -> None:
        """As Lightning's, where training_step returned None."""
        opt.zero_grad()

    opt.step(skipped)
    plain = Optimizer([p], "sgd(lr=0.1)")
    opt.zero_grad()
    plain.step()  # without a closure all gradients may be absent, as in torch
    frozen = Optimizer([still], "sgd(lr=0.1)")
    still.requires_grad_(False)
    frozen.step(lambda: (p * p).sum())
    assert p.tolist() == before and still.item() == 1.0
    alone = Optimizer([p], "spsa(a=0.01)")  # asks for losses
    alone.step(lambda: (p * p).sum())
    assert p.tolist() != before


def test_a_closure_that_cannot_know_the_minibatch_is_told_once() -> None:
    import warnings

    def made(sentence: str) -> tuple[Any, Any]:
        p = torch.nn.Parameter(torch.ones(3))
        opt = Optimizer([p], sentence)

        def closure() -> Any:
            opt.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss.detach()

        return opt, closure

    opt, closure = made("gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)")
    with pytest.warns(UserWarning, match="give it one argument, the request") as said:
        opt.step(closure)
        opt.step(closure)
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt, closure = made("gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)")
        opt.step(lambda request: closure())
        opt, _ = made("gradient_accumulate(2) | pcgrad(tasks=2) | sgd(lr=0.1)")
        weight = opt.param_groups[0]["params"][0]
        for _ in range(2):
            opt.step(lambda: opt.backward([weight.sum(), weight.square().sum()]))
        for sentence in ("sam(0.05) | sgd", "gradient_accumulate(2) | sgd(lr=0.1)", "lbfgs", "sam(0.05) | oasis"):
            opt, closure = made(sentence)
            try:
                opt.step(closure)
            except tw.NeedsError:
                pass
    w = np.ones(3, np.float32)
    with pytest.warns(UserWarning, match="give it one argument, the request"):
        tw.Optimizer([w], "gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)").step(lambda: (1.0, [w.copy()]))
