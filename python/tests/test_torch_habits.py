"""What people who come from torch.optim take for granted, tried on thalweg.torch.Optimizer.

Right values are torch.optim's own where it has the method, and arithmetic in plain numbers elsewhere.  Steps of sgd are a
product and a difference in float32 (or float64), the same here and there, so they are compared bit by bit.
"""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler

from thalweg.torch import Optimizer  # noqa: E402


def parameter(*values: float, dtype: Any = torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def step(opt: Any, gradient: float = 1.0) -> None:
    """A step in which every gradient is `gradient`."""
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, gradient)
    opt.step()


def twins(sentence: str, make: Callable[[Any], Any], count: int = 2) -> tuple[list[Any], list[Any]]:
    """(ours, theirs) on equal parameters, each as (optimizer, parameters)."""
    out = []
    for build in (lambda p: Optimizer(p, sentence), make):
        params = [parameter(1.0 + i, -2.0) for i in range(count)]
        out.append([build(params), params])
    return out[0], out[1]


def assert_equal(ours: list[Any], theirs: list[Any], **tolerance: float) -> None:
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), **(tolerance or {"rtol": 0.0, "atol": 0.0}))


# ---- groups


def test_the_first_group_is_one_of_several() -> None:
    """A value for the group of a plain list stays there when another group has come."""
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.1)")
    opt.add_param_group({"params": [q], "lr": 0.75})
    opt.param_groups[0]["lr"] = 0.25
    step(opt)
    assert (p.item(), q.item()) == (-0.25, -0.75)
    assert [g["lr"] for g in opt.param_groups] == [0.25, 0.75]
    assert [g["lr"] for g in opt.engine.param_groups] == [0.25, 0.75]


def test_groups_under_schedulers_are_as_in_torch() -> None:
    def build(make: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
        p, q = parameter(1.0), parameter(1.0)
        opt = make([p])
        opt.add_param_group({"params": [q], "lr": 0.5})
        scheduler = schedulers.LambdaLR(opt, [lambda k: 0.5**k, lambda k: 1.0])
        for _ in range(4):
            step(opt)
            scheduler.step()
        return opt, [p, q]

    ours, theirs = build(lambda p: Optimizer(p, "sgd(lr=0.25)")), build(lambda p: torch.optim.SGD(p, lr=0.25))
    assert_equal(ours[1], theirs[1])
    assert [g["lr"] for g in ours[0].param_groups] == [g["lr"] for g in theirs[0].param_groups]


def test_a_later_group_starts_from_the_sentence() -> None:
    """Not from what the first group was given: torch takes `defaults`, which are those of the constructor."""
    for make in (lambda p: Optimizer(p, "sgd(lr=0.1, weight_decay=0.5)"),
                 lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5)):
        opt = make([{"params": [parameter(1.0)], "lr": 0.5}])
        opt.param_groups[0]["weight_decay"] = 0.0
        opt.add_param_group({"params": [parameter(1.0)]})
        assert [(g["lr"], g["weight_decay"]) for g in opt.param_groups] == [(0.5, 0.0), (0.1, 0.5)]
        assert opt.defaults["lr"] == 0.1
        opt.defaults["lr"] = 0.25
        opt.add_param_group({"params": [parameter(1.0)]})
        assert opt.param_groups[2]["lr"] == 0.25


def test_a_later_group_has_the_schedule() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    for k in range(4):
        assert opt.param_groups[0]["lr"] == 1 - k / 8
        step(opt)
    opt.add_param_group({"params": [q]})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]
    step(opt)
    step(opt)
    assert q.item() == -(0.5 + 0.375) and [g["lr"] for g in opt.param_groups] == [0.25, 0.25]
    assert "lr" not in opt.defaults  # torch would hand a number to groups that come later


def test_what_is_shown_is_what_the_next_step_uses() -> None:
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=1.0, end=0, total=4))")
    group = opt.param_groups[0]
    step(opt)
    assert group["lr"] == 0.75
    group["lr"] *= 0.5  # half of the present rate, for good
    before = p.item()
    step(opt)
    step(opt)
    assert p.item() - before == -2 * 0.375 and group["lr"] == 0.375
    opt.engine.set("lr", "linear(lr=1.0, end=0, total=8)")
    assert opt.param_groups[0]["lr"] == 1 - 3 / 8
    group["lr"] = "constant(lr=0.125)"
    step(opt)
    assert opt.param_groups[0]["lr"] == 0.125


def test_observed_metrics_are_shown() -> None:
    opt = Optimizer([parameter(0.0)], "sgd(lr=reduce_on_plateau(lr=1.0, patience=0, factor=0.5))")
    group = opt.param_groups[0]
    for _ in range(3):
        opt.observe("metric", 1.0)
    assert group["lr"] == opt.engine.get("lr") < 1.0


def test_routed_rules_have_keys_that_work() -> None:
    w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    opt = Optimizer([w, b], "route(matrix=(sgd(lr=0.5)), other=(adamw(lr=0.25)))")
    group = opt.param_groups[0]
    assert group["sgd.lr"] == 0.5 and group["adamw.lr"] == 0.25
    group["adamw.lr"] = 0.0
    step(opt)
    assert (w == 0.5).all() and (b == 1).all()
    group["sgd.lr"] = 0.0
    group["adamw.lr"] = 0.125
    step(opt)
    assert (w == 0.5).all() and (b != 1).all()
    # Two rules of one name are told apart as in the paths of the engine.
    twice = Optimizer([w, b], "clip_value(9) | route(matrix=(sgd(lr=0.5)), other=(sgd(lr=0.25))) | ema(0.5)")
    assert twice.param_groups[0]["sgd.lr"] == 0.5 and twice.param_groups[0]["sgd#1.lr"] == 0.25


def test_schedulers_scale_all_rates_of_a_routed_sentence() -> None:
    w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    opt = Optimizer([w, b], "route(matrix=(sgd(lr=0.5)), other=(adamw(lr=0.25)))")
    scheduler = schedulers.LambdaLR(opt, lambda k: [0.0, 0.5, 1.0][k])  # from 0, as warmups do
    rates = []
    for _ in range(3):
        step(opt)
        rates.append((opt.engine.get("sgd.lr"), opt.engine.get("adamw.lr"), opt.param_groups[0]["lr"]))
        if len(rates) < 3:
            scheduler.step()
    assert rates == [(0.0, 0.0, 0.0), (0.25, 0.125, 0.25), (0.5, 0.25, 0.5)]
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1.0})
    assert [opt.param_groups[1][key] for key in ("lr", "sgd.lr", "adamw.lr")] == [1.0, 1.0, 0.5]


def test_a_refused_group_changes_nothing() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    for bad in ({"params": [q], "lr": -1.0}, {"params": [q], "learning_rate": 0.1},
                {"params": [q], "lr": 0.25, "weight_decay": -1.0}):
        given = dict(bad)
        with pytest.raises((tw.RangeError, tw.UnknownNameError)):
            opt.add_param_group(bad)
        assert bad == given and len(opt.param_groups) == len(opt.engine.param_groups) == 1
        assert len(opt.engine.params) == 1
    step(opt)
    opt.add_param_group({"params": [q], "lr": 0.25})
    step(opt)
    assert (p.item(), q.item()) == (-1.0, -0.25)


def test_a_refused_value_is_refused_until_it_is_mended() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([{"params": [p]}, {"params": [q]}], "sgd(lr=0.5)")
    opt.param_groups[1]["lr"] = -1.0
    for _ in range(2):
        with pytest.raises(tw.RangeError):
            step(opt)
    assert p.item() == q.item() == 0 and opt.engine.steps == 0
    opt.param_groups[1]["lr"] = 0.25
    step(opt)
    assert (p.item(), q.item()) == (-0.5, -0.25)


def test_values_that_are_right_together() -> None:
    """nesterov needs momentum: the order of the keys does not matter, and a refusal leaves both."""
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=1.0, momentum=0.5)")
    group = opt.engine.param_groups[0]
    group["momentum"] = 0.0
    with pytest.raises(tw.Error):
        opt.engine._set_together({"lr": 0.5, "nesterov": True}, "")
    assert group["lr"] == 1.0 and not group["nesterov"]
    opt.engine._set_together({"nesterov": True, "momentum": 0.25}, "")
    assert group["nesterov"] and group["momentum"] == 0.25
    adam = Optimizer([p], "adamw(lr=1.0, beta1=0.5, beta2=0.75)").engine
    with pytest.raises(tw.RangeError):
        adam.param_groups[0]["betas"] = (0.25, 2.0)
    assert adam.param_groups[0]["betas"] == (0.5, 0.75)


def test_a_copied_group_is_taken() -> None:
    """{**opt.param_groups[0], "params": [...]}, as code that moves tensors between groups writes it."""
    opt = Optimizer([parameter(0.0)], "sam(rho=0.5) | sgd(lr=0.5)")
    schedulers.ConstantLR(opt, 1.0)
    opt.add_param_group({**opt.param_groups[0], "params": [parameter(0.0)]})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]


def test_names_of_groups_are_notes() -> None:
    opt = Optimizer([{"params": [parameter(0.0)], "name": "a", "lr": 0.5}, {"params": [parameter(0.0)], "name": "a", "lr": 0.25}],
                    "sgd(lr=1.0)")
    assert [g["name"] for g in opt.param_groups] == ["a", "a"] and [g["lr"] for g in opt.param_groups] == [0.5, 0.25]
    step(opt)
    assert [g["params"][0].item() for g in opt.param_groups] == [-0.5, -0.25]


def test_tensor_rates() -> None:
    """A tensor as lr is kept, filled in place by schedulers, and read at every step."""
    for make in (lambda p: Optimizer(p, "sgd(lr=1.0)"), lambda p: torch.optim.SGD(p, lr=1.0)):
        p, rate = parameter(0.0), torch.tensor(0.5)
        opt = make([{"params": [p], "lr": rate}])
        scheduler = schedulers.ExponentialLR(opt, 0.5)
        step(opt)
        assert p.item() == -0.5
        scheduler.step()
        assert opt.param_groups[0]["lr"] is rate and rate.item() == 0.25
        step(opt)
        assert p.item() == -0.75


# ---- schedulers


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.25, 1.0, 4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, 10),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 3), schedulers.ExponentialLR(o, 0.9)], [3]),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, 4),
}

# ours, torch's, and what "the same" is: sgd does the same operations in the same order, rmsprop and adam round otherwise
METHODS = {
    "sgd": ("sgd(lr=0.1)", lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd momentum": ("sgd(lr=0.1, momentum=0.9)", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "rmsprop": ("rmsprop(lr=0.1)", lambda p: torch.optim.RMSprop(p, lr=0.1)),
    "adamw": ("adamw(lr=0.1)", lambda p: torch.optim.AdamW(p, lr=0.1)),
}


def test_every_scheduler_is_tried() -> None:
    known = {name for name, c in vars(schedulers).items()
             if isinstance(c, type) and issubclass(c, schedulers.LRScheduler) and not name.startswith("_")}
    assert known - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_followed(name: str, method: str) -> None:
    """Ten steps of every scheduler with gradients that change: weights and shown values are those of torch.optim.

    float64, so that what differs in the order of operations stays below 1e-12.
    """
    ours, theirs = twins(*METHODS[method])
    rng = np.random.default_rng(7)
    gradients = rng.standard_normal((10, 2, 2))
    pairs = [(opt, params, SCHEDULERS[name](opt)) for opt, params in (ours, theirs)]
    for k in range(10):
        for opt, params, scheduler in pairs:
            for p, g in zip(params, gradients[k]):
                p.grad = torch.from_numpy(g.copy())
            opt.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        for key in ("lr", "momentum", "betas"):
            if key in theirs[0].param_groups[0]:
                assert ours[0].param_groups[0][key] == theirs[0].param_groups[0][key]
    assert_equal(ours[1], theirs[1], rtol=1e-12, atol=1e-12)


def test_state_that_comes_too_late() -> None:
    """After the first step momentum cannot be had any more; the message says what to do, and nothing has changed."""
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    step(opt)
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(tw.SequenceError, match="momentum.*sentence"):
        step(opt)
    assert p.item() == -0.5
    opt.param_groups[0]["momentum"] = 0.0
    step(opt)
    assert p.item() == -1.0


def test_a_scheduler_and_a_group_that_comes_while_it_runs() -> None:
    out = []
    for make in (lambda p: Optimizer(p, "sgd(lr=0.5)"), lambda p: torch.optim.SGD(p, lr=0.5)):
        p, q = parameter(1.0), parameter(1.0)
        opt = make([p])
        scheduler = schedulers.ExponentialLR(opt, 0.5)
        for k in range(6):
            if k == 3:
                opt.add_param_group({"params": [q], "lr": 0.25, "initial_lr": 0.25})
                scheduler.base_lrs.append(0.25)
                opt.zero_grad()
            step(opt, 0.5)
            scheduler.step()
        out.append((p.item(), q.item(), [g["lr"] for g in opt.param_groups]))
    assert out[0] == out[1]


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


# ---- copies and state_dict


def run_on(opt: Any, steps: int = 3) -> list[torch.Tensor]:
    for k in range(steps):
        step(opt, 1.0 + k)
    return [p.detach() for group in opt.param_groups for p in group["params"]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("sentence", [
    "adamw(lr=0.125)", "sgd(lr=linear(lr=1.0, end=0, total=8), momentum=0.5)", "sgd(lr=0.5) | ema(0.5)",
    "route(matrix=(sgd(lr=0.5)), other=(adamw(lr=0.25)))",
])
def test_copies_go_on_as_the_original(sentence: str, copied: Callable[[Any], Any]) -> None:
    opt = Optimizer([parameter(1.0)], sentence)
    opt.add_param_group({"params": [parameter(2.0)]})
    opt.param_groups[0]["lr"] = 0.25
    run_on(opt)
    opt.param_groups[1]["lr"] = 0.75  # not used by any step yet
    twin = copied(opt)
    assert twin.param_groups[0]["params"][0] is not opt.param_groups[0]["params"][0]
    assert_equal(run_on(twin), run_on(opt))
    for a, b in zip(twin.param_groups, opt.param_groups):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}
    twin.add_param_group({"params": [parameter(1.0)]})
    opt.add_param_group({"params": [parameter(1.0)]})
    assert_equal(run_on(twin), run_on(opt))


def test_a_copy_of_model_and_optimizer_belongs_together() -> None:
    model = torch.nn.Linear(2, 2)
    opt = Optimizer(model.parameters(), "sgd(lr=0.5)")
    model2, opt2 = copy.deepcopy((model, opt))
    before = [p.detach().clone() for p in model.parameters()]
    model2(torch.ones(1, 2)).sum().backward()
    opt2.step()
    assert_equal(list(model.parameters()), before)
    assert all((p.detach() != q).any() for p, q in zip(model2.parameters(), before))
    assert opt2.param_groups[0]["params"][0] is model2.weight


def make_groups() -> Optimizer:
    opt = Optimizer([{"params": [parameter(1.0)]}, {"params": [parameter(2.0)], "lr": 0.75}], "sgd(lr=0.5, momentum=0.5)")
    return opt


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_holds_all_groups() -> None:
    opt, other = make_groups(), make_groups()
    opt.param_groups[1]["lr"] = 0.125
    opt.param_groups[0]["weight_decay"] = 0.25
    run_on(opt)
    other.load_state_dict(through_file(opt.state_dict()))
    for a, b in zip(opt.param_groups, other.param_groups):
        b["params"][0].data = a["params"][0].data.clone()
    assert [g["lr"] for g in other.param_groups] == [0.5, 0.125]
    assert_equal(run_on(other), run_on(opt))


def test_a_schedule_is_resumed() -> None:
    """With a group that came after some steps: nothing that the caller did not change is taken for a change."""
    def make() -> Optimizer:
        return Optimizer([parameter(1.0)], "sgd(lr=linear(lr=1.0, end=0, total=16))")

    opt = make()
    run_on(opt, 4)
    opt.add_param_group({"params": [parameter(1.0)]})
    state = through_file(opt.state_dict())
    other = make()
    other.add_param_group({"params": [parameter(1.0)]})
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.75, 0.75]
    for a, b in zip(opt.param_groups, other.param_groups):
        b["params"][0].data = a["params"][0].data.clone()
    assert_equal(run_on(other), run_on(opt))
    assert [g["lr"] for g in other.param_groups] == [1 - 7 / 16] * 2


def test_changed_state_dicts_are_taken() -> None:
    opt, other = make_groups(), make_groups()
    run_on(opt)
    state = opt.state_dict()
    state["param_groups"][1]["lr"] = 0.0625
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.5, 0.0625]
    assert other.engine.param_groups[1]["lr"] == 0.0625


@pytest.mark.parametrize("spoil", [
    lambda s: s["param_groups"][1].update(lr=-5.0),
    lambda s: s["param_groups"][0].update(momentum="no such thing"),
    lambda s: s["param_groups"].pop(),
    lambda s: s["thalweg"].update(state=s["thalweg"]["state"][:-9]),
    lambda s: s.pop("thalweg"),
    lambda s: s["thalweg"].update(format=99),
])
def test_a_refused_state_dict_changes_nothing(spoil: Callable[[dict[str, Any]], Any]) -> None:
    opt, other = make_groups(), make_groups()
    run_on(opt)
    run_on(other, 1)
    other.param_groups[0]["lr"] = 0.25
    other.state["note"] = 1
    twin = copy.deepcopy(other)
    state = copy.deepcopy(opt.state_dict())
    spoil(state)
    with pytest.raises(tw.Error):
        other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.25, 0.75] and other.state["note"] == 1
    assert other.engine.steps == 1
    assert_equal(run_on(other), run_on(twin))


def test_files_without_a_note_of_what_was_shown() -> None:
    """An earlier version kept the values of groups in param_groups alone, and the first value of a schedule there."""
    opt, other = make_groups(), make_groups()
    run_on(opt)
    state = opt.state_dict()
    del state["thalweg"]["shown"]
    state["param_groups"][1]["lr"] = 0.125
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.5, 0.125]
    scheduled = Optimizer([parameter(1.0)], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    run_on(scheduled, 4)
    state = scheduled.state_dict()
    del state["thalweg"]["shown"]
    state["param_groups"][0]["lr"] = 1.0
    again = Optimizer([parameter(1.0)], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == 0.5
    step(again)
    assert again.param_groups[0]["lr"] == 0.375


def test_state_dict_hooks_see_everything() -> None:
    opt, other = make_groups(), make_groups()
    calls: list[str] = []

    def before_saving(o: Any) -> None:
        calls.append("pre")
        o.param_groups[1]["lr"] = 0.625  # what a hook changes is saved

    def after_saving(o: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("post")
        assert state["thalweg"]["state"].dtype == torch.uint8
        return {**state, "mine": 1}

    run_on(opt)
    opt.register_state_dict_pre_hook(before_saving)
    opt.register_state_dict_post_hook(after_saving)
    state = opt.state_dict()
    assert calls == ["pre", "post"] and state["mine"] == 1

    def before_loading(o: Any, given: dict[str, Any]) -> dict[str, Any]:
        assert given["param_groups"] == "elsewhere"
        return state

    def after_loading(o: Any) -> None:
        calls.append(f"loaded {o.engine.steps} {o.param_groups[1]['lr']}")

    other.register_load_state_dict_pre_hook(before_loading)
    other.register_load_state_dict_post_hook(after_loading)
    other.load_state_dict({"param_groups": "elsewhere"})
    assert calls[-1] == "loaded 3 0.625" and [g["lr"] for g in other.param_groups] == [0.5, 0.625]


def test_step_hooks() -> None:
    opt = Optimizer([parameter(0.0)], "sgd(lr=0.5)")
    seen: list[str] = []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append(f"post {o.engine.steps}"))
    step(opt)
    assert seen == ["pre", "post 1"]


def test_the_state_of_torch_is_left_to_the_caller() -> None:
    p = parameter(0.0)
    opt, other = Optimizer([p], "sgd(lr=0.5)"), Optimizer([parameter(0.0)], "sgd(lr=0.5)")
    assert opt.state[p] == {} and len(opt.state_dict()["state"]) == 1
    opt.state[p]["mine"] = torch.ones(1)
    other.load_state_dict(opt.state_dict())
    assert other.state[other.param_groups[0]["params"][0]]["mine"] == 1


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


def test_swa_utilities() -> None:
    model = torch.nn.Linear(2, 1).double()
    opt = Optimizer(model.parameters(), "sgd(lr=0.5)")
    average = torch.optim.swa_utils.AveragedModel(model)
    scheduler = torch.optim.swa_utils.SWALR(opt, swa_lr=0.125, anneal_epochs=2)
    points = []
    for _ in range(4):
        opt.zero_grad()
        model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
        opt.step()
        scheduler.step()
        average.update_parameters(model)
        points.append(model.weight.detach().clone())
    assert opt.param_groups[0]["lr"] == 0.125
    torch.testing.assert_close(average.module.weight.detach(), torch.stack(points).mean(0))


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
