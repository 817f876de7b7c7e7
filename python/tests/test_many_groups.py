"""Hundreds of parameter groups: what Python does for one of them does not grow with the number of the others."""

from __future__ import annotations

import sys
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw


def lines(work: Callable[[], Any]) -> int:
    """How many lines of Python run, those of torch too; a loop counts anew every time round."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def growth(work: Callable[[int], Callable[[], Any]]) -> float:
    """How much more is done for 160 groups than for 40: 4 where it is so much a group."""
    work(2)()  # what is found out once
    small, large = work(40), work(160)
    return lines(large) / lines(small)


def rates(n: int) -> list[float]:
    return [0.5 / (1 + k) for k in range(n)]


def in_numpy(n: int) -> tw.Optimizer:
    groups = [{"params": [np.ones(1)], "lr": lr} for lr in rates(n)]
    return tw.Optimizer(groups, "clip_value(1.0) | adamw")


def halve(opt: Any) -> None:
    for group in opt.param_groups:
        group["lr"] *= 0.5


def test_groups_in_numpy() -> None:
    assert growth(lambda n: lambda: in_numpy(n)) < 4.2

    def built(work: Callable[[Any], Any]) -> Callable[[int], Callable[[], Any]]:
        def at(n: int) -> Callable[[], Any]:
            opt = in_numpy(n)
            return lambda: work(opt)

        return at

    assert growth(built(lambda opt: [group["lr"] for group in opt.param_groups])) < 4.2
    assert growth(built(halve)) < 4.2
    opt = in_numpy(40)
    halve(opt)
    assert [group["lr"] for group in opt.param_groups] == [0.5 * lr for lr in rates(40)]


@pytest.mark.parametrize("make", ["AdamW", "adamw", "adamw(lr=cosine(1e-3, 1000))"])
def test_groups_in_torch(make: str) -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    def build(n: int) -> Any:
        params = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(n)]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, rates(n))]
        if make == "AdamW":
            return thalweg.torch.AdamW(groups)
        return thalweg.torch.Optimizer(groups, make)

    def loading(n: int) -> Callable[[], Any]:
        opt = build(n)
        state = opt.state_dict()
        return lambda: opt.load_state_dict(state)

    def changing(n: int) -> Callable[[], Any]:
        opt = build(n)

        def work() -> None:
            halve(opt)
            opt.step()

        return work

    assert growth(lambda n: lambda: build(n)) < 4.2
    assert growth(loading) < 4.2
    assert growth(changing) < 4.2
    opt = build(40)
    assert [group["lr"] for group in opt.param_groups] == rates(40)


def test_a_later_group_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    read: list[str] = []
    ask = tw.Optimizer._get_text

    def noted(self: Any, group: str, path: str) -> str:
        read.append(group)
        return ask(self, group, path)

    monkeypatch.setattr(tw.Optimizer, "_get_text", noted)
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(9)]
    opt = thalweg.torch.Optimizer([{"params": [p]} for p in params[:8]], "adamw(lr=cosine(0.5, 10))")
    opt.param_groups[1]["lr"] = 0.25
    opt.param_groups[2]["betas"] = (0.5, 0.75)
    read.clear()
    opt.add_param_group({"params": [params[8]], "lr": 0.125})
    assert {*read} == {"group8"}
    opt.step()
    rates = [group["lr"] for group in opt.param_groups]
    assert rates[1] == 0.25 and rates[8] == 0.125 and 0 < rates[0] < 0.5 and rates[0] == rates[7]
    assert opt.param_groups[2]["betas"] == opt.engine.param_groups[2]["betas"] == (0.5, 0.75)


def test_a_tensor_of_two_groups_is_refused_as_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    p, q = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q]}, {"params": [q, p]}]
    for make in (torch.optim.AdamW, thalweg.torch.AdamW, lambda g: thalweg.torch.Optimizer(g, "adamw")):
        with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
            make([dict(group) for group in groups])


def test_what_is_read_together_is_what_is_read_one_by_one() -> None:
    for method in tw.methods("optimizer"):
        try:
            opt = tw.Optimizer([{"params": [np.ones((2, 2))], "name": "a"}], method.name)
        except tw.Error:  # it has no default for something
            continue
        values, scheduled = opt._live_values("a")
        for path, value in values.items():
            one = opt.get(path, "a")
            assert repr(value) == repr(one), (method.name, path)
        assert not scheduled, method.name
    opt = tw.Optimizer([np.ones(1)], "adamw(lr=cosine(0.5, 10), eps=-0.0)")
    values, scheduled = opt._live_values("")
    assert scheduled == {"lr"} and values["lr"] == 0.5 and repr(values["eps"]) == repr(opt.get("eps", ""))
