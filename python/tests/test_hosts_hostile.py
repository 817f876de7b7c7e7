"""What is refused in the hosts: nothing is lost by it, and the error says what is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any, Callable

import numpy as np
import pytest
from torch_support import parameter, step, torch

import thalweg as tw
import thalweg.torch as twt
from thalweg.torch import Optimizer


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def loss(net: Any) -> Any:
    return net(torch.ones(5, 3)).square().sum()


def in_head(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def do(saved: dict[str, Any]) -> None:
        row = next(row for row in saved["state"].values() if "thalweg" in row)
        head = json.loads(row["thalweg"].numpy().tobytes())
        change(head)
        row["thalweg"] = torch.frombuffer(bytearray(json.dumps(head).encode()), dtype=torch.uint8)

    return do


def in_row(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"][0].__setitem__(key, value)


def in_group(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["param_groups"][0].__setitem__(key, value)


# What is done to a state dict: what the error says.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no notes": (in_head(lambda head: head.pop("notes")), "no notes"),
    "notes of another shape": (in_head(lambda head: head.update(notes="x")), "no notes"),
    "groups that showed nothing": (in_head(lambda head: head["notes"].update(shown=[])), "1 parameter groups"),
    "groups that are numbers": (in_head(lambda head: head["notes"].update(shown=5)), "notes of its parameter groups"),
    "a group that is no number": (in_head(lambda head: head["notes"].update(empty={"x": 1})), "parameter groups"),
    "rates that are no pair": (in_head(lambda head: head["notes"].update(scaled={"0": 1})), "parameter groups"),
    "state nowhere": (in_row("exp_avg", torch.ones(4, 3, device="meta")), "'0.weight': 'exp_avg'.*meta"),
    "sparse state": (in_row("exp_avg", torch.ones(4, 3).to_sparse()), "'0.weight': 'exp_avg'.*sparse"),
    "complex state": (in_row("exp_avg", torch.ones(4, 3) * 1j), "'0.weight': 'exp_avg'.*complex"),
    "a name that is none": (in_row("name", torch.tensor([255], dtype=torch.uint8)), "no 'name'"),
    "a name as text": (in_row("name", "0.weight"), "no 'name'"),
    "counters of nothing": (in_row("counters", torch.full((3,), torch.nan)), "counters"),
    "no params": (lambda saved: saved["param_groups"][0].pop("params"), "parameter group 0 is a dict with a list"),
    "params that are no list": (in_group("params", 5), "parameter group 0"),
    "params that are no keys": (in_group("params", [[0], [1], [2], [3]]), "parameter group 0"),
    "a group that is a number": (lambda saved: saved["param_groups"].__setitem__(0, 5), "parameter group 0.*not 5"),
}
# What strict=False does not look at.
UNSEEN = ("groups that", "a group that is no", "rates")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_dict_that_is_nearly_right_changes_nothing(wrong: str, strict: bool) -> None:
    if not strict and wrong.startswith(UNSEEN):
        strict = True
    net = network()
    opt = Optimizer(net.named_parameters(), "adamw(lr=0.1)")
    for _ in range(2):
        step(opt)
    saved = copy.deepcopy(opt.state_dict())
    change, said = WRONG[wrong]
    change(saved)
    step(opt)
    before, groups = opt.engine._save(), copy.copy(opt.param_groups[0])
    with pytest.raises(tw.Error, match=said):
        opt.load_state_dict(saved, strict=strict)
    assert opt.engine._save() == before and opt.param_groups[0] == groups
    step(opt)


def test_an_earlier_state_dict_that_is_none() -> None:
    opt = Optimizer([parameter(1.0)], "adamw")
    with pytest.raises(tw.FormatError, match="'thalweg' is a int"):
        opt.load_state_dict({**opt.state_dict(), "thalweg": 5})


def test_in_backward_takes_all_or_nothing() -> None:
    parts = twt.InBackward(network().named_parameters(), "adamw(lr=0.1)")
    saved = copy.deepcopy(parts.state_dict())
    for opt in parts.optimizers:
        step(opt)
    before = [opt.engine._save() for opt in parts.optimizers]
    saved["optimizers"][2]["state"][0]["exp_avg"] = torch.ones(5)
    with pytest.raises(tw.MismatchError, match="exp_avg"):
        parts.load_state_dict(saved)
    assert [opt.engine._save() for opt in parts.optimizers] == before
    for wrong in (None, {}, {"optimizers": None}, {"state": {}, "param_groups": []}):
        with pytest.raises(tw.ArgumentError, match="'optimizers'"):
            parts.load_state_dict(wrong)


def test_what_is_written_within_a_step_does_not_come_back() -> None:
    net, other = network(), network()
    opt = Optimizer(net.named_parameters(), "gradient_accumulate(1) | sam(0.05) | adamw")
    plain = Optimizer(other.named_parameters(), "gradient_accumulate(1) | sam(0.05) | adamw")

    def closure(opt: Any, net: Any, write: bool) -> Any:
        if write:
            opt.state[net[0].weight]["exp_avg"].fill_(9.0)
        opt.zero_grad()
        value = loss(net)
        value.backward()
        return value

    for _ in range(3):
        opt.step(lambda: closure(opt, net, True))
        plain.step(lambda: closure(plain, other, False))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))
    assert torch.equal(opt.state[net[0].weight]["exp_avg"], plain.state[other[0].weight]["exp_avg"])


@pytest.mark.parametrize("key, value, said", [
    ("step", "x", "'step'"), ("step", torch.tensor([1.0, 2.0]), "'step'"), ("step", torch.tensor(-1.0), "'step'"),
    ("step", torch.tensor(torch.nan), "'step'"), ("exp_avg", torch.ones(2) * 1j, "'exp_avg'.*complex"),
    ("exp_avg", torch.ones(2).to_sparse(), "'exp_avg'.*sparse"),
    ("exp_avg", torch.ones(2, device="meta"), "'exp_avg'.*meta"),
])
def test_state_that_is_written_and_no_use(key: str, value: Any, said: str) -> None:
    p = parameter(1.0, 2.0)
    opt = Optimizer([("w", p)], "adamw")
    step(opt)
    before, values = opt.engine._save(), p.detach().clone()
    opt.state[p][key] = value
    with pytest.raises(tw.Error, match=f"'w'.*{said}"):
        step(opt)
    assert opt.engine._save() == before and torch.equal(p, values)


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_a_participant_that_fails_leaves_the_parameters(problem: type[BaseException]) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    opt = Optimizer(net.named_parameters(), "fedavg(participants=2) | sgd(lr=1)")

    def participant(index: int, count: int) -> None:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1.0)
        if index:
            raise problem

    batch = torch.ones(5, 3), torch.ones(5, 2)
    with pytest.raises(problem):
        opt.step(twt.Answers(opt, net, torch.nn.functional.mse_loss, batch, participant=participant))
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_a_closed_optimizer_says_so() -> None:
    opt = Optimizer([parameter(1.0)], "adamw")
    opt.engine.close()
    with pytest.raises(tw.HandleError, match="closed"):
        opt.step()


def test_a_step_within_a_step_is_out_of_order() -> None:
    w = np.ones(3)
    opt = tw.Optimizer([w], "sam(0.05) | adamw")
    with pytest.raises(tw.SequenceError, match="is over: the loop that asked for it has gone on"):
        for request in opt.requests():
            next(opt.requests())
            request.answer([np.ones(3)])


def test_autograd_knows_of_weights_that_come_back_after_an_exception() -> None:
    p = parameter(1.0, 2.0)
    opt = Optimizer([p], "sgd(lr=0.1) | ema(0.9)")
    step(opt)
    with pytest.raises(KeyError), opt.averaged():
        looked_at = p._version
        raise KeyError
    assert p._version > looked_at


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_the_library_cannot_take(name: str) -> None:
    for make in (lambda: tw.Optimizer([("w", np.ones(2)), (name, np.ones(2))], "sgd(lr=1)"),
                 lambda: tw.Optimizer([np.ones(2), np.ones(2)], "sgd(lr=1)", names=["w", name]),
                 lambda: Optimizer([("w", parameter(1.0)), (name, parameter(1.0))], "sgd(lr=1)")):
        with pytest.raises(tw.ArgumentError, match="name of parameter 1"):
            make()
    with pytest.raises(tw.ValueTypeError, match="name of parameter 1 is a str, not None"):
        tw.Optimizer([np.ones(2), np.ones(2)], "sgd(lr=1)", names=["w", None])
    assert tw.Optimizer([("größe", np.ones(2))], "sgd(lr=1)").names == ["größe"]


def test_numbers_beyond_all_floats() -> None:
    opt = tw.Optimizer([np.ones(2)], "sgd(lr=1)")
    for change in (lambda: opt.set("lr", 10**400), lambda: opt.param_groups[0].update(lr=10**400)):
        with pytest.raises(tw.RangeError, match="'lr' is a number"):
            change()
    assert opt.get("lr") == 1


@pytest.mark.parametrize("steps, problem, said", [
    (10**400, tw.RangeError, "inf"), (True, tw.ValueTypeError, "True"), (b"1", tw.ValueTypeError, "b'1'"),
    (torch.tensor(1j), tw.ValueTypeError, "tensor"), (torch.ones(3) * 1j, tw.ValueTypeError, "complex"),
    (torch.ones(3, dtype=torch.bool), tw.ValueTypeError, "bool"), (torch.ones(3).to_sparse(), tw.DtypeError, "dense"),
    (torch.ones(3, device="meta"), tw.DtypeError, "dense"),
])
def test_steps_of_a_prox_that_are_none(steps: Any, problem: type[tw.Error], said: str) -> None:
    with pytest.raises(problem, match=f"step: .*{said}"):
        tw.regularizer("l1(0.1)").prox(np.ones(3), step=steps)
