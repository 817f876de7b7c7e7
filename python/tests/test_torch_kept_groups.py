"""Parameter groups that are empty for now, and keys in groups that are the caller's own."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from torch_support import assert_equal, parameter, step, torch

import thalweg as tw
import thalweg.torch as twt
from thalweg.torch import Optimizer


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- empty groups


def split(first: list[Any], second: list[Any]) -> list[dict[str, Any]]:
    return [{"params": first, "weight_decay": 0.5}, {"params": second, "weight_decay": 0.0, "lr": 0.25}]


@pytest.mark.parametrize("where", [0, 1])
def test_an_empty_group_is_as_in_torch(where: int) -> None:
    """Steps, what is shown, and the state dict are those of torch's optimizer with the same groups."""
    out = []
    for make in (twt.SGD, torch.optim.SGD):
        p = parameter(1.0, -2.0)
        opt = make(split([p], []) if where else split([], [p]), lr=0.5, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        for k in range(3):
            step(opt, 1.0 + k)
            scheduler.step()
        out.append((p, opt))
    (p, ours), (q, theirs) = out
    assert_equal([p], [q])
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {k: a[k] for k in ("lr", "weight_decay", "momentum", "initial_lr")} == {k: b[k] for k in a if k in (
            "lr", "weight_decay", "momentum", "initial_lr")}
    groups = ours.to_torch_state_dict()["param_groups"]
    assert [g["params"] for g in groups] == [g["params"] for g in theirs.state_dict()["param_groups"]]
    assert [g["lr"] for g in groups] == [g["lr"] for g in theirs.param_groups]
    theirs.load_state_dict(ours.to_torch_state_dict())
    ours.load_state_dict(theirs.state_dict())
    step(ours)
    step(theirs)
    assert_equal([p], [q])


def test_an_empty_group_is_saved_and_has_its_parameters_later() -> None:
    """By hand: three steps of p, of which q, r and s take part in the last two; q with the rate of its group."""
    def made() -> tuple[Optimizer, Any]:
        p = parameter(0.0)
        opt = Optimizer(split([], [p]), "sgd(lr=1.0, momentum=0.5)")
        opt.add_param_group({"params": [], "lr": 0.125, "name": "late"})
        return opt, p

    opt, p = made()
    step(opt)
    assert p.item() == -0.25 and [g["lr"] for g in opt.param_groups] == [1.0, 0.25, 0.125]
    opt.param_groups[0]["lr"] = 0.75
    opt.param_groups[0]["note"] = "mine"
    saved = through_a_file(opt.state_dict())
    other, q = made()
    q.data.copy_(p.data)
    other.load_state_dict(saved)
    assert [g["lr"] for g in other.param_groups] == [0.75, 0.25, 0.125] and other.param_groups[0]["note"] == "mine"
    for o, tensor in ((opt, p), (other, q), (copy.deepcopy(opt), None)):
        if tensor is None:
            tensor = o.param_groups[1]["params"][0]
        first, last = parameter(0.0), parameter(0.0)
        o.param_groups[0]["params"].append(first)
        o.param_groups[2]["params"].append(last)
        step(o)
        assert (first.item(), tensor.item(), last.item()) == (-0.75, -0.25 - 0.25 * 1.5, -0.125)
        assert [g["weight_decay"] for g in o.param_groups] == [0.5, 0.0, 0.0]
        assert o.engine.param_groups[2].name == "late"
    # Their order here is another than in the engine: the state still finds its tensors.
    with pytest.raises(tw.CountError):
        made()[0].load_state_dict(opt.state_dict())
    again = copy.deepcopy(opt)
    step(again)
    again.load_state_dict(through_a_file(opt.state_dict()))
    for mine, theirs in zip(again.param_groups, opt.param_groups):
        mine["params"][0].data.copy_(theirs["params"][0].data)
    step(opt)
    step(again)
    assert_equal([g["params"][0] for g in again.param_groups], [g["params"][0] for g in opt.param_groups])
    assert [opt.state[g["params"][0]]["momentum_buffer"].item() for g in opt.param_groups] == [1.125, 1.75, 1.5]


def test_schedules_are_shown_by_an_empty_group_too() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([{"params": [p]}, {"params": []}], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    for k in range(4):
        assert [g["lr"] for g in opt.param_groups] == [1 - k / 8] * 2
        step(opt)
    opt.param_groups[1]["params"].append(q)
    step(opt)
    assert q.item() == -0.5 and [g["lr"] for g in opt.param_groups] == [0.375, 0.375]


def test_what_an_empty_group_may_not_have() -> None:
    p = parameter(1.0)
    for bad, kind in (({"lr": -1.0}, tw.RangeError), ({"lrr": 0.1}, tw.UnknownNameError)):
        with pytest.raises(kind, match="lr"):
            Optimizer([{"params": [p]}, {"params": [], **bad}], "sgd(lr=0.5)")
        opt = Optimizer([p], "sgd(lr=0.5)")
        with pytest.raises(kind, match="lr"):
            opt.add_param_group({"params": [], **bad})
        assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match="every parameter group is empty"):
        Optimizer([{"params": []}, {"params": []}], "sgd(lr=0.5)")
    opt = Optimizer([{"params": [p]}, {"params": []}], "sgd(lr=0.5)")
    opt.param_groups[1]["lr"] = -1.0
    with pytest.raises(tw.RangeError):
        step(opt)
    opt.param_groups[1]["lr"] = 0.25
    step(opt)
    assert p.item() == 0.5
    opt.param_groups[0]["params"].append(parameter(1.0))
    with pytest.raises(tw.ArgumentError, match="others than were given"):
        step(opt)


def test_the_trainer_of_hugging_face_with_one_group_empty(tmp_path: Any) -> None:
    """A model of a bias alone: nothing to decay."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(3))

    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], weight_decay=0.1)
    kinds = (twt.AdamW, dict(lr=0.01))
    opt = transformers.Trainer(Net(), arguments, optimizer_cls_and_kwargs=kinds).create_optimizer()
    opt = getattr(opt, "optimizer", opt)
    assert [(len(g["params"]), g["weight_decay"]) for g in opt.param_groups] == [(0, 0.1), (1, 0.0)]
    step(opt)


# ---- own keys


@pytest.mark.parametrize("cls", [lambda g: Optimizer(g, "adamw(lr=0.5)"), lambda g: twt.AdamW(g, lr=0.5)])
def test_own_keys_are_kept_saved_and_loaded(cls: Any) -> None:
    def made() -> tuple[Any, Any]:
        p = parameter(1.0, -2.0)
        opt = cls([{"params": [p], "name": "head", "lr_scale": 0.5, "my_note": "a", "lr": 0.25}])
        opt.add_param_group({"params": [parameter(1.0)], "layer": 3, "my_note": ["b", 1]})
        return opt, p

    opt, p = made()
    q = parameter(1.0, -2.0)
    twin = cls([{"params": [q], "lr": 0.25}])
    for o in (opt, twin):
        step(o)
    assert_equal([p], [q])
    opt.param_groups[0]["lr_scale"] = 0.75
    saved = through_a_file(opt.state_dict())
    other = made()[0]
    other.load_state_dict(saved)
    for o in (opt, other, copy.deepcopy(opt)):
        first, second = o.param_groups
        assert (first["name"], first["lr_scale"], first["my_note"], first["lr"]) == ("head", 0.75, "a", 0.25)
        assert (second["layer"], second["my_note"], second["lr"]) == (3, ["b", 1], 0.5)
        assert "layer" not in first and "lr_scale" not in o.engine.param_groups[0]


@pytest.mark.parametrize("key", ["lrr", "learning_rate", "beta_1", "wd", "momentum", "adamw.lrs", "weightdecay"])
def test_what_looks_like_a_hyper_parameter_is_refused(key: str) -> None:
    with pytest.raises(tw.UnknownNameError, match=key):
        Optimizer([{"params": [parameter(1.0)], key: 0.5}], "adamw(lr=0.5)")
