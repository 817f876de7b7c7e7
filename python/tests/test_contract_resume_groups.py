"""Checkpoints of runs with groups: values, schedules and their memories, set at any time, come back for every group."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, Host, cases, copies, same, shapes_of

CUTS = (1, 3, 5)
STEPS = 7
ABSENT = {2: [0], 4: [1]}


def grouped(name: str, overrides: Any = ({}, {}), turned: bool = False) -> list[tuple[str, list[int], dict[str, Any]]]:
    """Two groups, the second with the first matrix; `turned` binds groups and tensors the other way round."""
    count = len(shapes_of(name))
    one = 2 if count > 3 else 1
    rows = [("rest", [i for i in range(count) if i != one], dict(overrides[0])), ("matrix", [one], dict(overrides[1]))]
    return [(n, members[::-1], o) for n, members, o in rows[::-1]] if turned else rows


def rate_of(opt: tw.Optimizer) -> str | None:
    """The first live number that is not zero: a step size, where there is one."""
    for key in opt.param_groups[0]:
        if key == "params":
            continue
        try:
            value = opt.get(key, opt.param_groups[0].name)
        except tw.Error:
            continue
        if key.endswith("lr") and isinstance(value, float) and value > 0:
            return key
    return None


@cache
def alike(name: str, key: str) -> bool:
    """True where the value must be the same in all groups: it is refused for one, or the next step is."""
    host = Host(name, groups=grouped(name))
    try:
        host.opt.set(key, host.opt.get(key, "rest") / 2, "matrix")
        host.step(0)
    except tw.Error:
        return True
    return False


def change(host: Host, k: int, key: str | None, together: bool) -> None:
    """What the host sets while running, for single groups where they may differ."""
    if key is None:
        return
    for at, group, value in (
        (1, "rest", 0.75),
        (2, "matrix", "linear(lr={}, end=0.01, total=9)"),
        (4, "rest", "cosine(lr={}, total=9, end=0.01)"),
    ):
        if at == k:
            now = host.opt.get(key, group)
            host.opt.set(
                key, now * value if isinstance(value, float) else value.format(now), None if together else group
            )


@pytest.mark.parametrize("name", cases())
def test_values_that_were_set_while_running(name: str, tmp_path: Path) -> None:
    """Numbers and schedules of single groups, saved and loaded into an optimizer of the same sentence."""
    straight = Host(name, groups=grouped(name), seed=5)
    key = rate_of(straight.opt)
    together = key is not None and alike(name, key)
    others: list[Host] = []
    for k in range(STEPS):
        for host in [straight, *others]:
            change(host, k, key, together)
        if k in CUTS:
            for turned in (False, True):
                twin = Host(name, groups=grouped(name, turned=turned), start=straight.weights, seed=5)
                if turned:
                    straight.opt.save(tmp_path / "state")
                    twin.opt.load(tmp_path / "state")
                else:
                    twin.opt.load_state_dict(straight.opt.state_dict())
                others.append(twin)
            others += [straight.adopted(opt) for opt in copies(straight.opt).values()]
            for twin in others:
                if key is not None:
                    assert [twin.opt.get(key, g) for g in ("rest", "matrix")] == [
                        straight.opt.get(key, g) for g in ("rest", "matrix")
                    ]
        for host in [straight, *others]:
            host.step(k, ABSENT.get(k, ()))
        for host in others:
            same(host, straight)


def two(second: Any = None, **options: Any) -> tw.Optimizer:
    row = {"params": [("b", np.zeros(2))]} | ({} if second is None else {"lr": second})
    return tw.SGD([{"params": [("a", np.zeros(2))]}, row], lr=0.1, **options)


def rates(opt: tw.Optimizer) -> list[float]:
    """What a step moves each group by."""
    before = [p.copy() for p in opt.params]
    opt.step([np.ones(2), np.ones(2)])
    return [float((b - p)[0]) for b, p in zip(before, opt.params)]


def shown(opt: tw.Optimizer) -> list[float]:
    return [g["lr"] for g in opt.param_groups]


@pytest.mark.parametrize("made", [None, 0.5, "linear(lr=0.5, end=0, total=10)"])
def test_what_was_set_wins_over_what_was_made(made: Any) -> None:
    """0.05 for the second group, whatever it had been given."""
    opt = two(made)
    opt.param_groups[1]["lr"] = 0.05
    twin = two(made)
    twin.load_state_dict(opt.state_dict())
    assert shown(twin) == [0.1, 0.05]
    np.testing.assert_allclose(rates(twin), [0.1, 0.05], rtol=1e-14)


def test_one_dict_is_a_group_too() -> None:
    opt = tw.SGD([{"params": [("a", np.zeros(2))]}], lr=0.1)
    opt.param_groups[0]["lr"] = 0.05
    twin = tw.SGD([{"params": [("a", np.zeros(2))]}], lr=0.1)
    twin.load_state_dict(opt.state_dict())
    assert shown(twin) == [0.05] and twin.get("lr", "group0") == 0.05


def test_what_was_set_for_all_is_the_sentence_of_later_groups() -> None:
    """In the resumed run as in the straight one: a group that is added behind the load has it."""
    opt = two()
    opt.set("lr", 0.01)
    twin = two()
    twin.load_state_dict(opt.state_dict())
    for o in (opt, twin):
        o.add_param_group({"params": [np.zeros(2)]})
        assert shown(o) == [0.01, 0.01, 0.01]


def test_groups_that_were_added_on_the_way() -> None:
    """Their schedules stand where they stood; the program that resumes makes the same groups first."""

    def make() -> tw.Optimizer:
        opt = tw.SGD([("a", np.zeros(2))], lr="linear(lr=1, end=0, total=10)")
        return opt

    opt = make()
    for _ in range(4):
        opt.step([np.ones(2)])
    opt.add_param_group({"params": [("b", np.zeros(2))]})
    np.testing.assert_allclose(shown(opt), [0.6, 0.6], rtol=1e-14)
    twin = make()
    twin.add_param_group({"params": [("b", np.zeros(2))]})
    twin.load_state_dict(opt.state_dict())
    for want in (0.6, 0.5, 0.4):
        for o in (opt, twin):
            np.testing.assert_allclose(rates(o), [want, want], rtol=1e-12)


MEMORIES = {
    "reduce_on_plateau(lr=1, patience=0, factor=0.5)": ("metric", [1.0, 2.0, 2.0], [2.0, 0.5, 3.0], 0.25),
    "reduce_on_plateau(lr=1, patience=1, factor=0.5, cooldown=1)": ("metric", [1.0, 2.0, 2.0], [2.0, 2.0, 2.0], 0.5),
    "batch_lr_scaling(lr=1, rule=linear)": ("batch_size", [8.0, 32.0], [16.0, 64.0], 4.0),
}


@pytest.mark.parametrize("where", ["sentence", "all", "group", "dict"])
@pytest.mark.parametrize("schedule", MEMORIES)
def test_memories_of_schedules(schedule: str, where: str, tmp_path: Path) -> None:
    """What was observed before the checkpoint counts behind it, for the schedules that were there."""
    what, first, then, value = MEMORIES[schedule]

    def full() -> tw.Optimizer:
        if where != "sentence":
            return two(schedule if where == "dict" else None)
        return tw.SGD([{"params": [("a", np.zeros(2))]}, {"params": [("b", np.zeros(2))]}], lr=schedule)

    opt = full()
    if where in ("all", "group"):
        opt.set("lr", schedule, "group1" if where == "group" else None)
    want = [0.1 if where in ("group", "dict") else value, value]
    for x in first:
        opt.observe(what, x)
    assert shown(opt) == want
    twins = [full(), full(), *copies(opt).values()]
    twins[0].load_state_dict(opt.state_dict())
    opt.save(tmp_path / "state")
    twins[1].load(tmp_path / "state")
    for x in then:
        assert [shown(t) for t in twins] == [shown(opt)] * 4
        for o in [opt, *twins]:
            o.observe(what, x)
        moves = rates(opt)
        for t in twins:
            assert rates(t) == moves


def test_a_decay_that_has_begun() -> None:
    """wsd: the decay that a command began goes on; 1 at step 2, begun, then down over four steps."""
    sentence = "sgd(lr=wsd(lr=1, warmup_steps=0, stable_steps=100, decay_steps=4))"
    opt = tw.Optimizer([{"params": [("a", np.zeros(2))]}, {"params": [("b", np.zeros(2))]}], sentence)
    for _ in range(2):
        rates(opt)
    opt.command("wsd.begin_decay")
    moves = [rates(opt) for _ in range(2)]
    assert all(a == b for a, b in moves) and moves[1][0] < 1
    twins = [
        tw.Optimizer([{"params": [("a", np.zeros(2))]}, {"params": [("b", np.zeros(2))]}], sentence),
        *copies(opt).values(),
    ]
    twins[0].load_state_dict(opt.state_dict())
    for _ in range(3):
        want = rates(opt)
        for t in twins:
            assert rates(t) == want


def test_a_value_of_a_route_comes_back_for_its_group() -> None:
    def make() -> tw.Optimizer:
        return tw.Optimizer(
            [{"params": [("a", np.zeros((2, 2)))]}, {"params": [("b", np.zeros((2, 2))), ("c", np.zeros(2))]}],
            "route(matrix=(sgd(lr=0.1)), other=(signum(lr=0.2, momentum=0)))",
        )

    opt = make()
    opt.set("sgd.lr", 0.5, "group1")
    opt.set("signum.lr", 0.25, "group1")
    twin = make()
    twin.load_state_dict(opt.state_dict())
    assert [twin.get("sgd.lr", g) for g in ("group0", "group1")] == [0.1, 0.5]
    twin.step([np.ones((2, 2)), np.ones((2, 2)), np.ones(2)])
    np.testing.assert_allclose([p.flat[0] for p in twin.params], [-0.1, -0.5, -0.25], rtol=1e-14)


def test_every_case_has_its_groups() -> None:
    assert all(len(grouped(name)[0][1]) >= 2 for name in CASES)
