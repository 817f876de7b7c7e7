"""Gradients that are cleared and freed, and parameters and gradients that are given other memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

from torch_support import assert_equal, parameter, step  # noqa: E402

from thalweg.torch import Optimizer  # noqa: E402


# ---- clearing


def test_grow_then_clear() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    step(opt)
    opt.add_param_group({"params": [q]})
    opt.zero_grad()
    opt.engine.release_gradients()
    step(opt)
    assert (p.item(), q.item()) == (-1.0, -0.5)


@pytest.mark.parametrize("clear", ["opt", "model", "grad"])
def test_gradients_are_freed(clear: str) -> None:
    model = torch.nn.Linear(4, 4)
    opt = Optimizer(model.parameters(), "adamw(lr=0.1)")
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        opt.step()
        alive = [weakref.ref(p.grad) for p in model.parameters()]
        storage = [p.grad.untyped_storage() for p in model.parameters()]
        counts = [s._use_count() if hasattr(s, "_use_count") else 0 for s in storage]
        if clear == "opt":
            opt.zero_grad()
        elif clear == "model":
            model.zero_grad()
        else:
            for p in model.parameters():
                p.grad = None
        gc.collect()
        assert [seen() for seen in alive] == [None, None]
        for s, count in zip(storage, counts):
            if count:
                assert s._use_count() < count
    before = [p.detach().clone() for p in model.parameters()]
    opt.step()  # no gradients: nothing moves, as in torch
    opt.engine.step()
    assert_equal(list(model.parameters()), before)


def test_memory_of_freed_gradients_is_never_read() -> None:
    """What was a gradient is gone; every call that may look at it finds it absent."""
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p, q], "sgd(lr=0.5) | ema(0.5)")
    step(opt)
    p.grad = None
    for call in (opt.eval, opt.train, lambda: opt.engine.load_state_dict(opt.engine.state_dict()), opt.engine.zero_grad):
        call()
    assert opt.engine.grads[0] is None and (q.grad == 0).all()
    q.grad += 1
    opt.engine.step()  # the one that is still there counts
    assert (p.item(), q.item()) == (-0.5, -1.0)


@pytest.mark.parametrize("to_none", [True, False])
def test_loops_with_both_kinds_of_zero_grad(to_none: bool) -> None:
    out = []
    for make in (lambda p: Optimizer(p, "sgd(lr=0.125, momentum=0.5)"), lambda p: torch.optim.SGD(p, lr=0.125, momentum=0.5)):
        p, q = parameter(1.0, 2.0), parameter(3.0)
        opt = make([p, q])
        for k in range(5):
            opt.zero_grad(set_to_none=to_none)
            ((p**2).sum() + (q.sum() if k != 2 else 0)).backward()  # once without q
            opt.step()
        out.append([p, q])
    assert_equal(*out)


# ---- memory that moves


def test_parameters_and_gradients_may_be_given_other_memory() -> None:
    def build(make: Callable[[Any], Any]) -> list[torch.Tensor]:
        p = torch.nn.Parameter(torch.arange(4.0).reshape(2, 2))
        opt = make([p])
        g = torch.arange(4.0).reshape(2, 2)
        p.grad = g.clone()
        opt.step()
        p.data = p.data.t()  # the same address
        opt.step()
        p.grad = g.clone()
        opt.step()
        p.grad.t_()
        opt.step()
        with torch.no_grad():
            p.t_()
        opt.step()
        p.grad.data = torch.arange(16.0)[::4].reshape(2, 2)
        opt.step()
        storage = torch.arange(32.0)
        p.grad.data = storage[:4].reshape(2, 2)
        opt.step()
        p.grad.data = storage[:16:4].reshape(2, 2)  # the same address
        opt.step()
        return [p]

    assert_equal(build(lambda p: Optimizer(p, "sgd(lr=0.5)")), build(lambda p: torch.optim.SGD(p, lr=0.5)))


def test_other_shapes_and_types_under_the_same_object_are_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 3))
    opt = Optimizer([p], "sgd(lr=0.5)")
    step(opt)
    same = p.data
    for other, kind in ((same.view(3, 2), tw.ShapeError), (same.view(6), tw.ShapeError), (same.double(), tw.DtypeError)):
        p.data = other
        p.grad = None
        with pytest.raises(kind, match="parameter 0"):
            opt.engine.step([torch.ones_like(p)])
    p.data = same
    p.grad = torch.ones(2, 3)
    opt.step()
    assert (p == -1).all()


def test_channels_last() -> None:
    out = []
    for make in (lambda p: Optimizer(p, "adamw(lr=0.125)"), lambda p: torch.optim.AdamW(p, lr=0.125)):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).double()
        opt = make(model.parameters())
        for k in range(3):
            if k == 1:
                model.to(memory_format=torch.channels_last)
            opt.zero_grad()
            model(torch.randn(2, 3, 5, 5, dtype=torch.float64)).square().sum().backward()
            opt.step()
        out.append(list(model.parameters()))
    assert_equal(*out, rtol=1e-12, atol=1e-12)


def test_other_tensors_in_a_group_are_refused() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5, momentum=0.5)")
    step(opt)
    opt.param_groups[0]["params"][0] = q
    q.grad = torch.ones_like(q)
    with pytest.raises(tw.ArgumentError, match="rebind_parameters"):
        opt.step()
    opt.engine.rebind_parameters([q])
    opt.step()
    assert (p.item(), q.item()) == (-0.5, -0.75)


def test_views_that_negate_are_refused() -> None:
    lazy = torch.zeros(3, dtype=torch.complex64).conj().imag
    assert lazy.is_neg()
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = lazy
    opt = Optimizer([p], "sgd(lr=0.5)")
    with pytest.raises(tw.DtypeError, match="resolve_neg"):
        opt.step()
    p.grad = lazy.resolve_neg()
    opt.step()


def test_storages_of_gradients_may_be_resized_between_steps() -> None:
    p = torch.nn.Parameter(torch.ones(64))
    opt = Optimizer([p], "sgd(lr=0.5)")
    for k in range(3):
        p.grad = torch.ones(64)
        opt.step()
    p.grad.untyped_storage().resize_(0)
    p.grad = torch.ones(64)
    opt.step()
    assert (p == -1).all()


def test_storages_that_are_freed_are_no_tensors() -> None:
    """NumPy makes other memory for a tensor whose storage was freed: its steps went there, and its numbers came from there."""
    gone = torch.ones(10)
    gone.untyped_storage().resize_(0)
    with pytest.raises(tw.DtypeError, match="parameter 0: the storage of the tensor was resized to 0 bytes, and its elements need 40"):
        tw.Optimizer([gone], "sgd(lr=0.5)")
    short = torch.ones(12)
    short.untyped_storage().resize_(40)
    with pytest.raises(tw.DtypeError, match="resized to 40 bytes, and its elements need 48"):
        tw.Optimizer([short], "sgd(lr=0.5)")
    p = torch.nn.Parameter(torch.ones(10))
    opt = Optimizer([p], "sgd(lr=0.5)")
    for k in range(2):
        p.grad = torch.ones(10)
        opt.step()
        p.grad.untyped_storage().resize_(0)
        with pytest.raises(tw.DtypeError, match="gradient 0: the storage"):
            opt.step()
    assert (p == 0).all() and opt.engine.steps == 2
    empty = torch.ones(0, 3)
    tw.Optimizer([empty], "sgd(lr=0.5)").step([torch.ones(0, 3)])


@pytest.mark.parametrize("grad", [
    lambda: torch.ones(16)[::2], lambda: torch.ones(1).expand(8), lambda: torch.ones(8, dtype=torch.bfloat16),
    lambda: torch.ones(8, dtype=torch.float16), lambda: torch.ones(8, dtype=torch.float64), lambda: torch.ones(8, requires_grad=True),
    lambda: torch.nn.Parameter(torch.ones(8)), lambda: torch.ones(2, 8).select(0, 1),
])
def test_gradients_of_any_kind_after_the_first(grad) -> None:
    w = np.zeros(8, np.float32)
    opt = tw.Optimizer([w], "sgd(lr=1)")
    opt.step([torch.ones(8)])
    opt.step([grad()])
    assert (w == -2).all()


@pytest.mark.parametrize("grad, said", [
    (lambda: torch.ones(8, dtype=torch.int32), "int32"), (lambda: torch.ones(8, dtype=torch.complex64), "complex64"),
    (lambda: torch.ones(8, device="meta"), "meta"), (lambda: torch.ones(8).to_sparse(), "sparse"), (lambda: torch.ones(7), "shape"),
    (lambda: torch.zeros(8, dtype=torch.complex64).conj().imag, "resolve_neg"),
])
def test_gradients_that_are_none_after_the_first(grad, said: str) -> None:
    w = np.zeros(8, np.float32)
    opt = tw.Optimizer([w], "sgd(lr=1)")
    opt.step([torch.ones(8)])
    with pytest.raises(tw.Error, match=said):
        opt.step([grad()])
    opt.step([torch.ones(8)])
    assert (w == -2).all()
