"""thalweg.torch: linked rates in groups, closures and GradScaler, state dicts for torch where torch lacks a stage."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

import thalweg.torch  # noqa: E402

ROUTED = "route(matrix=(muon(lr=0.02, weight_decay=0.1)), other=(adamw(lr=0.001, weight_decay=0.2)))"


def stepped(model: Any, opt: Any) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()


def rates(opt: Any) -> list[float]:
    return [round(opt.param_groups[0][key], 9) for key in ("lr", "muon.lr", "adamw.lr")]


def test_rates_of_a_route_show_what_the_next_step_uses() -> None:
    model = torch.nn.Linear(3, 2)
    opt = thalweg.torch.Optimizer(model.parameters(), ROUTED)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    for k in range(3):
        assert rates(opt) == [0.02 / 2**k, 0.02 / 2**k, 0.001 / 2**k]
        stepped(model, opt)
        assert opt.engine.get("muon.lr") == 0.02 / 2**k
        scheduler.step()
    group = opt.param_groups[0]
    group["lr"] = 0.0
    assert rates(opt) == [0, 0, 0]
    stepped(model, opt)
    group["lr"] = 0.04
    assert rates(opt) == [0.04, 0.04, 0.002]
    group["adamw.lr"] = 0.5  # a rate of its own, beside the one for all
    assert rates(copy.deepcopy(opt)) == rates(opt) == [0.04, 0.04, 0.5]
    stepped(model, opt)
    assert rates(opt) == [0.04, 0.04, 0.5]
    group["muon.lr"] = 0.01
    assert rates(opt) == [0.01, 0.01, 0.5]
    group["muon.lr"] = 0.04  # never mind
    assert rates(opt) == [0.04, 0.04, 0.5]


def test_weight_decays_of_a_route_show_what_the_next_step_uses() -> None:
    model = torch.nn.Linear(3, 2)
    opt = thalweg.torch.Optimizer(model.parameters(), ROUTED)
    group = opt.param_groups[0]
    group["weight_decay"] = 0.3
    assert [opt.param_groups[0][f"{stage}.weight_decay"] for stage in ("muon", "adamw")] == [0.3, 0.3]
    group["weight_decay"] = 0.1
    assert [opt.param_groups[0][f"{stage}.weight_decay"] for stage in ("muon", "adamw")] == [0.1, 0.2]


def test_whole_numbers_in_groups() -> None:
    group = thalweg.torch.Optimizer(torch.nn.Linear(3, 2).parameters(), ROUTED).param_groups[0]
    assert group["ns_steps"] == 5 and type(group["ns_steps"]) is int


def test_a_group_is_a_dict() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = thalweg.torch.SGD([p], lr=0.1)
    with pytest.raises(TypeError, match=r"a dict, \{\"params\": \[...\]\}; got list"):
        opt.add_param_group([q])
    assert len(opt.param_groups) == 1


def test_grad_scaler_and_a_closure() -> None:
    """torch refuses closure=..., and lets the same by position pass: the closure's gradients would stay scaled."""
    model = torch.nn.Linear(3, 2)
    opt = thalweg.torch.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def closure() -> Any:
        opt.zero_grad()
        loss = model(torch.ones(4, 3)).sum()
        scaler.scale(loss).backward()
        return loss

    closure()
    before = copy.deepcopy(model.state_dict())
    torch.optim.lr_scheduler.StepLR(opt, 1)  # which wraps `step`
    with pytest.raises(tw.ArgumentError, match=r"GradScaler\.step takes no closure"):
        scaler.step(opt, closure)
    assert opt.engine.steps == 0 and all(bool((before[k] == v).all()) for k, v in model.state_dict().items())
    scaler.update()
    closure()
    scaler.step(opt)
    opt.engine.set("gradient_scale", 1 / scaler.get_scale())
    opt.step(closure)
    assert opt.engine.steps == 2
    torch.amp.GradScaler("cpu", enabled=False).step(opt, closure)  # which does nothing
    assert opt.engine.steps == 3


def test_state_for_torch_of_a_pipeline_that_keeps_more() -> None:
    model = torch.nn.Linear(3, 2)
    opt = thalweg.torch.Optimizer(model.named_parameters(), "clip_global_norm(1) | adamw(lr=0.1) | ema(0.9)")
    plain = thalweg.torch.Optimizer(copy.deepcopy(model).named_parameters(), "clip_global_norm(1) | adamw(lr=0.1)")
    for _ in range(3):
        stepped(model, opt)
        for p in plain.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        plain.step()
    with pytest.raises(tw.MismatchError, match="no place for the 'average' of ema: strict=False leaves it out"):
        opt.to_torch_state_dict()
    state, report = opt.to_torch_state_dict(strict=False)
    assert [*report.left] == ["weight/ema/average", "bias/ema/average"] and not report.missing
    assert report.taken == [f"{p}/adamw/{slot}" for p in ("weight", "bias") for slot in ("exp_avg", "exp_avg_sq")]
    expected = plain.to_torch_state_dict()["state"]
    for index, row in state["state"].items():
        assert row.keys() == expected[index].keys()
        for key, value in row.items():
            np.testing.assert_array_equal(value, expected[index][key])
    theirs = torch.optim.AdamW(model.parameters(), lr=0.1)
    theirs.load_state_dict(state)
    stepped(model, theirs)
    with pytest.raises(tw.MismatchError, match=r"torch\.optim has no optimizer"):
        thalweg.torch.Optimizer(model.parameters(), "lion(lr=0.1) | ema(0.9)").to_torch_state_dict(strict=False)


def test_a_closure_with_an_argument_gets_the_same_minibatch_twice() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    opt = thalweg.torch.Optimizer([p], "gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)")
    drawn: dict[int, int] = {}
    used = []

    def closure(request: tw.Request) -> Any:
        used.append(drawn.setdefault(request.tag, len(drawn)))
        opt.zero_grad()
        loss = (p * used[-1]).sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert sorted(used) == [0, 0, 1, 1] and opt.engine.steps == 1
