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
