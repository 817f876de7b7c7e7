"""Copies, pickles, state_dict and hooks of thalweg.torch.Optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, Callable

import pytest

import thalweg as tw

torch = pytest.importorskip("torch")

from torch_support import assert_equal, parameter, step  # noqa: E402

from thalweg.torch import Optimizer  # noqa: E402


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


def changed_format(head: Any) -> Any:
    return torch.tensor([*bytes(head.tolist()).replace(b'"format": 2', b'"format": 9')], dtype=torch.uint8)


@pytest.mark.parametrize("spoil", [
    lambda s: s["param_groups"][1].update(lr=-5.0),
    lambda s: s["param_groups"][0].update(momentum="no such thing"),
    lambda s: s["param_groups"].pop(),
    lambda s: s["state"][0].update(momentum_buffer=s["state"][0]["momentum_buffer"][:-1]),
    lambda s: s["state"][1].pop("momentum_buffer"),
    lambda s: s["state"][1].pop("counters"),
    lambda s: s["state"].pop(1),
    lambda s: s["state"][0].update(thalweg=s["state"][0]["thalweg"][9:]),
    lambda s: s["state"][0].update(thalweg=changed_format(s["state"][0]["thalweg"])),
    lambda s: s.pop("state"),
    lambda s: s.update(thalweg={"format": 99, "state": b""}),
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


def as_before(opt: Any) -> dict[str, Any]:
    """The state_dict of an earlier version: everything in one tensor."""
    inner = opt.engine.state_dict()
    inner["state"] = torch.frombuffer(bytearray(inner["state"]), dtype=torch.uint8)
    return {"state": {}, "param_groups": opt.state_dict()["param_groups"], "thalweg": inner}


def test_files_without_a_note_of_what_was_shown() -> None:
    """An earlier version kept the values of groups in param_groups alone, and the first value of a schedule there."""
    opt, other = make_groups(), make_groups()
    run_on(opt)
    state = as_before(opt)
    state["param_groups"][1]["lr"] = 0.125
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.5, 0.125]
    scheduled = Optimizer([parameter(1.0)], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    run_on(scheduled, 4)
    state = as_before(scheduled)
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
        assert state["state"][1]["momentum_buffer"].dtype == torch.float64
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


def test_the_callers_own_notes_in_the_state_are_kept() -> None:
    p = parameter(0.0)
    opt, other = Optimizer([p], "sgd(lr=0.5)"), Optimizer([parameter(0.0)], "sgd(lr=0.5)")
    opt.state[p]["mine"] = torch.ones(1)
    step(opt)
    other.load_state_dict(opt.state_dict())
    assert other.state[other.param_groups[0]["params"][0]]["mine"] == 1
