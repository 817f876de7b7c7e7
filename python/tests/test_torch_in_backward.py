"""Steps inside the backward pass: the same parameters as after it, and no gradient left."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from torch_support import torch

import thalweg as tw
import thalweg.torch as twt


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def backward(net: Any, k: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(k))
    net(x).square().sum().backward()


@pytest.mark.parametrize("make", ["adamw(lr=0.1)", twt.SGD], ids=["sentence", "class"])
def test_as_a_step_after_the_backward_pass(make: Any) -> None:
    net, other = network(), network()
    options = {} if isinstance(make, str) else dict(lr=0.1, momentum=0.9)
    whole = twt.Optimizer(net.parameters(), make) if isinstance(make, str) else make(net.parameters(), **options)
    parts = twt.InBackward(other.named_parameters(), make, **options)
    for k in range(4):
        if k == 2:
            for group in (*whole.param_groups, *parts.param_groups):
                group["lr"] = 0.05
            state = parts.state_dict()
            parts.load_state_dict(state)
        backward(net, k)
        whole.step()
        whole.zero_grad()
        backward(other, k)
        assert all(p.grad is None for p in other.parameters())
    for p, q in zip(net.parameters(), other.parameters()):
        assert torch.equal(p, q)
    parts.remove()
    backward(other, 9)
    assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize("sentence, why", [
    ("clip_global_norm(1.0) | adamw", "clip_global_norm needs all"), ("prodigy", "prodigy needs all"),
    ("sam(0.1) | sgd", "sam asks"), ("gradient_accumulate(2) | sgd", "gradient_accumulate asks"),
])
def test_what_needs_all_gradients_is_refused(sentence: str, why: str) -> None:
    with pytest.raises(tw.UnsupportedError, match=why):
        twt.InBackward(network().parameters(), sentence)


def test_another_number_of_parameters_is_refused() -> None:
    parts = twt.InBackward(network().parameters(), "sgd")
    with pytest.raises(tw.CountError, match="4"):
        parts.load_state_dict({"optimizers": []})


def test_a_refused_parameter_leaves_no_hooks() -> None:
    net = network()
    net[2].weight = torch.nn.Parameter(torch.ones(2, 4, device="meta"))
    with pytest.raises(tw.DtypeError, match="meta"):
        twt.InBackward(net.parameters(), "sgd(lr=0.1)")
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    with pytest.raises(tw.ArgumentError, match="given twice"):
        twt.InBackward([net[0].weight, net[0].weight], "sgd(lr=0.1)")
    with pytest.raises(TypeError, match="number 0 is a int"):
        twt.InBackward([{"params": [3]}], "sgd(lr=0.1)")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "file"])
def test_copies_step_their_own_parameters(clone: Any) -> None:
    net = network()
    parts = twt.InBackward(net.parameters(), "adamw(lr=0.1)")
    backward(net, 0)
    other, parts_too = clone((net, parts))
    backward(net, 1)
    assert not torch.equal(net[0].weight, other[0].weight)
    backward(other, 1)
    for p, q in zip(net.parameters(), other.parameters()):
        assert torch.equal(p, q) and q.grad is None
    parts_too.remove()
    gone, _ = clone((other, parts_too))
    backward(gone, 1)
    assert all(p.grad is not None for p in gone.parameters())


def test_schedulers_take_it() -> None:
    net, other = network(), network()
    whole, parts = twt.AdamW(net.parameters(), lr=0.1), twt.InBackward(other.parameters(), twt.AdamW, lr=0.1)
    assert isinstance(parts, torch.optim.Optimizer)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=6) for opt in (whole, parts)]
    for k in range(5):
        for scheduler, opt, model in zip(schedulers, (whole, parts), (net, other)):
            opt.zero_grad()
            backward(model, k)
            opt.step()
            scheduler.step()
    assert {g["lr"] for g in parts.param_groups} == {whole.param_groups[0]["lr"]} != {0.1}
    for p, q in zip(net.parameters(), other.parameters()):
        assert torch.equal(p, q) and torch.equal(whole.state[p]["exp_avg"], parts.state[q]["exp_avg"])
    with pytest.raises(tw.UnsupportedError, match="another InBackward"):
        parts.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    scheduled = twt.InBackward(network().parameters(), "sgd(lr=linear(lr=1.0, end=0, total=4))")
    assert twt.SentenceLR(scheduled).get_last_lr() == [1.0] * 4


def test_a_step_with_a_closure_is_its_backward_pass() -> None:
    net, other = network(), network()
    whole, parts = twt.SGD(net.parameters(), lr=0.1), twt.InBackward(other.parameters(), twt.SGD, lr=0.1)

    def closure() -> Any:
        loss = other(torch.ones(5, 3)).square().sum()
        loss.backward()
        return loss

    loss = net(torch.ones(5, 3)).square().sum()
    loss.backward()
    whole.step()
    with torch.no_grad():
        assert parts.step(closure).item() == loss.item()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))


def test_groups_of_a_model() -> None:
    net, other = network(), network()
    whole = twt.AdamW(twt.get_parameter_groups(net, 0.5), lr=0.1)
    parts = twt.InBackward(twt.get_parameter_groups(other, 0.5), twt.AdamW, lr=0.1)
    sentence = twt.InBackward(twt.get_parameter_groups(network(), 0.5), "adamw(lr=0.1)")
    assert [g["weight_decay"] for g in parts.param_groups] == [0.5, 0.5, 0.0, 0.0]
    assert [g["weight_decay"] for g in sentence.param_groups] == [0.5, 0.5, 0.0, 0.0]
    backward(net, 0)
    whole.step()
    backward(other, 0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))
    named = twt.InBackward(dict(network().named_parameters()), "sgd")
    assert [g["param_names"] for g in named.param_groups] == [["0.weight"], ["0.bias"], ["2.weight"], ["2.bias"]]
    with pytest.raises(TypeError, match=r"pass model\.parameters\(\)"):
        twt.InBackward(network(), "sgd")
    with pytest.raises(TypeError, match="number 1 is a str"):
        twt.InBackward([{"params": [torch.nn.Parameter(torch.ones(2)), "w"]}], "sgd")
