"""The schedulers of torch drive thalweg.torch.Optimizer as they drive torch.optim."""

from __future__ import annotations

import re
import warnings
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler

from torch_support import assert_equal, parameter, step, twins  # noqa: E402

from thalweg.torch import Optimizer, SentenceLR  # noqa: E402


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


def test_a_scheduler_over_the_schedule_of_the_sentence_is_said_once() -> None:
    """The rate that it scales is the first of the warm-up: 0."""
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=warmup_cosine(peak=0.1, warmup=4, total=20))")
    scheduler = schedulers.LambdaLR(opt, lambda k: 1 - k / 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            step(opt)
            scheduler.step()
    assert p.item() == 1.0 and len(caught) == 1
    assert re.search(r"has ended it: lr=0, .*SentenceLR\(opt\)", str(caught[0].message))


def test_a_scheduler_that_leaves_the_rates_and_a_rate_of_ones_own_are_no_news() -> None:
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=0.1, end=0, total=20))")
    step(opt)
    opt.param_groups[0]["lr"] = 0.05
    step(opt)
    other = Optimizer([p], "sgd(lr=linear(lr=0.1, end=0, total=20))")
    scheduler = SentenceLR(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(other)
        scheduler.step()
        step(other)
