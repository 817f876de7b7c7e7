"""What thalweg.torch and thalweg.jax say to their users: groups that are refused, closures, calls in their spelling."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

from torch_support import parameter, step  # noqa: E402

import thalweg.torch  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402

ROUTED = "route(matrix=(muon(lr=0.5)), other=(adamw(lr=0.125)))"


def matrix() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2, 2))


# ---- groups


@pytest.mark.parametrize("key, value, kind, says", [
    ("lrr", 1e-4, tw.UnknownNameError, "`lrr`.*did you mean `lr`.*there are: lr, momentum"),
    ("weightdecay", 0.1, tw.UnknownNameError, "`weightdecay`.*did you mean `weight_decay`"),
    ("lr", "abc", tw.MethodError, "'lr' is a number.*got 'abc'"),
    ("lr", [0.1], tw.ValueTypeError, r"`lr` must be a number.*got \[0.1\]"),
    ("lr", torch.ones(2), tw.ValueTypeError, r"'lr' is a number.*got tensor\(\[1., 1.\]\)"),
    ("nesterov", "yes", tw.ValueTypeError, "`nesterov` must be true or false, got yes"),
    ("lr", -1.0, tw.RangeError, "`lr` must be at least 0, got -1"),
])
def test_what_a_group_may_not_have(key: str, value: Any, kind: Any, says: str) -> None:
    for groups in ([{"params": [parameter(0.0)], key: value}],
                   [{"params": [parameter(0.0)]}, {"params": [parameter(0.0)], key: value}]):
        with pytest.raises(kind, match=says):
            Optimizer(groups, "sgd(lr=0.5)")
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    given = {"params": [parameter(0.0)], key: value}
    with pytest.raises(kind, match=says):
        opt.add_param_group(given)
    assert list(given) == ["params", key] and given[key] is value
    assert len(opt.param_groups) == len(opt.engine.param_groups) == 1
    step(opt)
    assert p.item() == -0.5
    opt.add_param_group({"params": [parameter(0.0)], "lr": 0.25})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.25]


TORCHS = {"initial_lr": 0.5, "max_lr": 1.0, "min_lr": 0.0, "base_lr": 0.1, "max_momentum": 0.9, "base_momentum": 0.8,
          "swa_lr": 0.1, "foreach": None, "fused": None, "capturable": False, "differentiable": False}


def test_what_torch_keeps_in_groups_is_taken() -> None:
    p = parameter(0.0)
    opt = Optimizer([{"params": [p], **TORCHS}], "sgd(lr=0.5)")
    opt.add_param_group({"params": [parameter(0.0)], **TORCHS})
    opt.param_groups[0]["note"] = "mine"
    opt.param_groups[0]["lr_decay"] = 0.5
    step(opt)
    state = opt.state_dict()
    opt.load_state_dict(state)
    assert p.item() == -0.5 and opt.param_groups[0]["note"] == "mine" and opt.param_groups[1]["max_lr"] == 1.0


@pytest.mark.parametrize("lr, rates", [(1.0, (1.0, 0.25)), (torch.tensor(1.0), (1.0, 0.25)), (0.0, (0.0, 0.0)),
                                       ("constant(lr=0.25)", (0.25, 0.25))])
def test_the_rate_of_a_group_of_a_routed_sentence(lr: Any, rates: tuple[float, float]) -> None:
    """In the constructor as in add_param_group: all rules keep their shares."""
    first = Optimizer([{"params": [matrix(), parameter(1.0)], "lr": lr}], ROUTED)
    several = Optimizer([{"params": [matrix()]}, {"params": [matrix(), parameter(1.0)], "lr": lr}], ROUTED)
    later = Optimizer([matrix()], ROUTED)
    later.add_param_group({"params": [matrix(), parameter(1.0)], "lr": lr})
    for opt in (first, several, later):
        group = opt.param_groups[-1]
        assert (group["lr"], group["muon.lr"], group["adamw.lr"]) == (rates[0], *rates)
        assert (opt.engine.get("muon.lr", ""), opt.engine.get("adamw.lr", "")) == (0.5, 0.125)
        assert opt.defaults["lr"] == 0.5
        step(opt)
    for a, b in zip(first.param_groups[0]["params"], later.param_groups[1]["params"], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(tw.RangeError, match="lr"):
        Optimizer([{"params": [matrix()], "lr": -1.0}], ROUTED)
    own = Optimizer([{"params": [matrix()], "lr": 1.0, "adamw.lr": 0.75}], ROUTED).param_groups[0]
    assert (own["muon.lr"], own["adamw.lr"]) == (1.0, 0.75)
    with pytest.raises(tw.UnknownNameError, match="muon.eps or adamw.eps"):
        Optimizer([{"params": [matrix()], "eps": 1.0}], ROUTED)


# ---- closures


@pytest.mark.parametrize("sentence", ["polyak_sgd", "sania", "rolling_ball(projection_lr=1e-5)"])
@pytest.mark.parametrize("told", [False, True])
def test_a_closure_that_returns_none_where_the_loss_is_asked_for(sentence: str, told: bool) -> None:
    p = parameter(1.0, -2.0)
    opt = Optimizer([p], sentence)
    p.grad = torch.ones_like(p)  # of an earlier backward pass: no step is taken with it
    before, state = p.detach().clone(), opt.engine.state_dict()["state"]
    with pytest.raises(tw.NeedsError, match="closure must return it, and returned None"):
        opt.step((lambda request: None) if told else (lambda: None))
    assert torch.equal(p.detach(), before) and opt.engine.state_dict()["state"] == state and opt.engine.steps == 0


@pytest.mark.parametrize("sentence", ["sgd(lr=0.5)", "sam(0.5) | sgd(lr=0.5)"])
def test_a_closure_that_returns_none_elsewhere(sentence: str) -> None:
    p, q = parameter(1.0, -2.0), parameter(1.0, -2.0)
    opt, twin = Optimizer([p], sentence), Optimizer([q], sentence)

    def closure(opt: Any, p: Any) -> Any:
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        assert opt.step(lambda: [closure(opt, p), None][1]) is None
        assert twin.step(lambda: closure(twin, q)) is not None
    assert torch.equal(p, q)


def test_a_loss_that_is_no_number() -> None:
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    p.grad = torch.ones_like(p)
    for loss in (torch.ones(2), (1.0, "logits"), "much"):
        with pytest.raises(tw.ValueTypeError, match="the loss that the closure returns is one number, not"):
            opt.step(lambda: loss)
    assert p.item() == 1.0 and opt.engine.steps == 0


# ---- calls


def test_calls_are_those_of_the_torch_adapter() -> None:
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=0.5) | ema(0.5)")
    step(opt)
    state = opt.state_dict()
    opt.eval()
    with pytest.raises(tw.SequenceError, match=r"call opt\.train\(\) first"):
        opt.step()
    with pytest.raises(tw.SequenceError, match=r"call opt\.train\(\) first"):
        opt.load_state_dict(state)
    asking = Optimizer([p], "sam(0.5) | sgd(lr=0.5)")
    with pytest.raises(tw.NeedsError, match=r"opt\.step\(closure\).* opt\.requests\(\)"):
        asking.step()

    def closure() -> None:
        asking.load_state_dict(asking.state_dict())

    with pytest.raises(tw.SequenceError, match=r"opt\.requests\(\), or call opt\.engine\.cancel\(\)"):
        asking.step(closure)
    with pytest.raises(tw.NeedsError, match=r"opt\.observe\(.*opt\.step\(closure\)"):
        Optimizer([p], "polyak_sgd").step()
    with pytest.raises(tw.NeedsError, match=r"opt\.requests\(\)"):
        Optimizer([p], "oasis").step(lambda: 1.0)


def test_calls_are_those_of_the_jax_adapter() -> None:
    jnp = pytest.importorskip("jax").numpy
    from thalweg.jax import Optimizer as JaxOptimizer

    grads = {"w": jnp.ones(3)}
    opt = JaxOptimizer({"w": jnp.ones(3)}, "sgd(lr=0.5) | ema(0.5)")
    opt.step(lambda params: (None, grads))  # the loss is not asked for
    assert (opt.params["w"] == 0.5).all()
    opt.eval()
    with pytest.raises(tw.SequenceError, match=r"call opt\.train\(\) first"):
        opt.step(grads)
    with pytest.raises(tw.NeedsError, match=r"opt\.step\(closure\).* opt\.requests\(\)"):
        JaxOptimizer({"w": jnp.ones(3)}, "sam(0.5) | sgd(lr=0.5)").step(grads)
    needy = JaxOptimizer({"w": jnp.ones(3)}, "polyak_sgd")
    with pytest.raises(tw.NeedsError, match=r"opt\.observe\(.*opt\.step\(closure\)"):
        needy.step(grads)
    with pytest.raises(tw.NeedsError, match=r"must return \(loss, grads\)"):
        needy.step(lambda params: (None, grads))
    with pytest.raises(TypeError, match=r"closure\(params\) returns \(loss, grads\), not dict"):
        needy.step(lambda params: grads)
    with pytest.raises(tw.NeedsError, match=r"closure\(params\) cannot know.*opt\.requests\(\)"):
        JaxOptimizer({"w": jnp.ones(3)}, "oasis").step(lambda params: (1.0, grads))
    assert needy.engine.steps == 0 and (np.asarray(needy.params["w"]) == 1).all()


@pytest.mark.parametrize("name, keywords, said", [
    ("LBFGS", {"line_search": "strong_wolfe"}, "'line_search_fn' stands for 'line_search'"),
    ("Muon", {"adjust_lr": "original"}, "'adjust_lr_fn' stands for 'adjust_lr'"),
    ("Adam", {"beta1": 0.9}, "'betas' stands for 'beta1'"),
    ("Rprop", {"eta_minus": 0.45}, "'etas' stands for 'eta_minus'"),
    ("Muon", {"ns_precision": "bf16"}, 'thalweg.torch.Optimizer(params, "muon(ns_precision=bf16)")'),
    ("SGD", {"decoupled": True}, 'thalweg.torch.Optimizer(params, "sgd(decoupled=true)")'),
])
def test_a_hyper_parameter_that_torch_calls_otherwise_or_does_not_have(name: str, keywords: dict, said: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: .*{re.escape(said)}"):
        getattr(thalweg.torch, name)([torch.nn.Parameter(torch.ones(2, 2))], **keywords)


def test_the_text_of_a_class_has_what_torch_has() -> None:
    text = thalweg.torch.Muon.__doc__
    assert "momentum_form" not in text.partition("Hyper-parameters")[2].partition("\n\n")[0]
    assert "default 0.95" in text  # torch's
    assert "default none" not in text
