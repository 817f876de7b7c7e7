"""Parameter groups with the values of another optimizer's sentence: which key is refused, and what there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw

SGD = "there are: lr, momentum, dampening, nesterov, weight_decay"
ANOTHER = "look like the values of another optimizer"


def arrays() -> list[np.ndarray]:
    return [np.ones((2, 2), np.float32)]


def refused(make: Any) -> str:
    with pytest.raises(tw.UnknownNameError) as caught:
        make()
    return str(caught.value)


def test_of_numpy() -> None:
    said = refused(lambda: tw.Optimizer(tw.Optimizer(arrays(), "adamw").param_groups, "sgd"))
    assert "no hyper-parameter `beta1`; " + SGD in said and ANOTHER in said and "`beta2`, `eps` are none either" in said
    said = refused(lambda: tw.Optimizer([{"params": arrays(), "betas": (0.9, 0.99)}], "sgd"))
    assert said == f"parameter group 'group0': no hyper-parameter `betas`; {SGD}"
    said = refused(lambda: tw.Optimizer([{"params": arrays(), "muon.lr": 0.5}], "adamw"))
    assert "`muon.lr`: the pipeline has no stage `muon` (did you mean `lr`?); there are: lr, beta1" in said
    assert ANOTHER not in said
    opt = tw.Optimizer(arrays(), "adamw")
    assert "(did you mean `weight_decay`?); there are" in refused(lambda: opt.set("muon.weight_decay", 0.5))
    with pytest.raises(KeyError, match="there are: lr"):
        opt.param_groups[0]["muon.lr"]


def test_dicts_that_an_optimizer_of_torch_was_made_of() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": 0.5}]
    route = "route(matrix=(muon), other=(adamw))"
    thalweg.torch.Optimizer(groups, route)
    said = refused(lambda: thalweg.torch.Optimizer(groups, "sgd"))
    assert "`muon.lr`: the pipeline has no stage `muon` (did you mean `lr`?); " + SGD in said
    assert ANOTHER in said and "give each optimizer dicts of its own" in said
    fresh: list[Any] = [{"params": groups[0]["params"], "betas": (0.9, 0.99), "eps": 1e-8}]
    said = refused(lambda: thalweg.torch.Optimizer(fresh, "sgd"))
    assert "no hyper-parameter `betas`; " + SGD in said and "`eps` is none either" in said


@pytest.mark.parametrize("option, value", [
    ("maximize", True), ("nonfinite", "skip"), ("state_dtype", "bf16"), ("master", "f32"), ("gradient_scale", 0.5)])
def test_options_of_the_whole_optimizer(option: str, value: Any) -> None:
    """In a group they would be noted, and change nothing."""
    torch = pytest.importorskip("torch")
    import thalweg.torch

    words = f"`{option}` is one for all parameter groups: give it to the optimizer, {option}=..."
    group = {"params": arrays(), option: value}
    assert words in refused(lambda: tw.Optimizer([group], "adamw"))
    group = {"params": [torch.nn.Parameter(torch.ones(2, 2))], option: value}
    assert words in refused(lambda: thalweg.torch.Optimizer([dict(group)], "adamw"))
    opt = thalweg.torch.Optimizer([torch.nn.Parameter(torch.ones(2, 2))], "adamw")
    assert words in refused(lambda: opt.add_param_group(dict(group)))
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("name", [5, ["a"], b"a"])
def test_names_of_groups_are_text(name: Any) -> None:
    group = {"params": arrays(), "name": name}
    with pytest.raises(tw.ValueTypeError, match="parameter group 1: 'name' is a str, not"):
        tw.Optimizer([{"params": arrays()}, group], "adamw")
    with pytest.raises(tw.ValueTypeError, match="the parameter group: 'name' is a str, not"):
        tw.Optimizer(arrays(), "adamw").add_param_group(group)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_of_groups_are_utf8(name: str) -> None:
    group = {"params": arrays(), "name": name}
    with pytest.raises(tw.ArgumentError, match="the name of parameter group 0, .*: names are UTF-8"):
        tw.Optimizer([group], "adamw")
    opt = tw.Optimizer(arrays(), "adamw")
    with pytest.raises(tw.ArgumentError, match="the name of the parameter group, .*: names are UTF-8"):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1
