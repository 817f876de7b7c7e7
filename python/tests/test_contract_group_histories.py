"""Random histories of groups: made, grown, set, scaled, refused, copied, saved and loaded, beside a small model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import thalweg as tw

# ---- the model: the rate of one group


class Constant:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def at(self, step: int) -> float:
        return self.lr

    def observe(self, metric: float) -> None:
        pass

    def text(self) -> Any:
        return self.lr


class Line(Constant):
    """From lr to 0 in eight steps, counted from the optimizer's first."""

    def at(self, step: int) -> float:
        return self.lr * max(0.0, 1 - step / 8)

    def text(self) -> Any:
        return f"linear(lr={self.lr!r}, end=0, total=8)"


class Plateau(Constant):
    """Halved by every observation that is no improvement of 1e-4 on the best."""

    def __init__(self, lr: float) -> None:
        self.lr, self.start, self.best = lr, lr, np.inf

    def observe(self, metric: float) -> None:
        if metric < self.best * (1 - 1e-4):
            self.best = metric
        else:
            self.lr /= 2

    def text(self) -> Any:
        return f"reduce_on_plateau(lr={self.start!r}, patience=0, factor=0.5)"


RATES = st.sampled_from([0.5, 0.25, 0.125, 1.0])
MODELS = st.builds(lambda kind, lr: kind(lr), st.sampled_from([Constant, Constant, Line, Plateau]), RATES)
PLAIN = ("sgd(lr={})", "lr")
ROUTED = ("route(matrix=(sgd(lr={})), other=(signum(lr=0.3, momentum=0)))", "sgd.lr")


class Groups(RuleBasedStateMachine):
    """One weight a group, whose gradient is 1: how far it moves is its rate."""

    @initialize(
        model=MODELS,
        plain=st.booleans(),
        form=st.sampled_from([PLAIN, ROUTED]),
        own=st.lists(st.none() | MODELS, min_size=1, max_size=2),
    )
    def made(self, model: Constant, plain: bool, form: tuple[str, str], own: list[Constant | None]) -> None:
        sentence, self.path = form
        self.sentence = sentence.format(model.text())
        self.base, self.step = model, 0
        if plain:
            own = [None]
        self.opt = self.first(plain, own)
        self.plain, self.own = plain, own
        self.models = [copy.deepcopy(model) if m is None else m for m in own]

    def first(self, plain: bool, own: list[Constant | None]) -> tw.Optimizer:
        rows = [[("w0", np.zeros((1, 1)))]] if plain else [self.group(i, m) for i, m in enumerate(own)]
        return tw.Optimizer(rows[0] if plain else rows, self.sentence)  # type: ignore[arg-type]

    def group(self, index: int, model: Constant | None) -> dict[str, Any]:
        row: dict[str, Any] = {"params": [(f"w{index}", np.zeros((1, 1)))], "name": f"g{index}"}
        return row if model is None else row | {self.path: model.text()}

    def rates(self) -> list[float]:
        return [m.at(self.step) for m in self.models]

    # ---- what a host does

    @rule(model=st.none() | MODELS)
    def add(self, model: Constant | None) -> None:
        if len(self.models) < 4:
            self.opt.add_param_group(self.group(len(self.models), model))
            self.models.append(copy.deepcopy(self.base) if model is None else model)

    @rule(which=st.integers(0, 3), model=MODELS, by_name=st.booleans())
    def set_one(self, which: int, model: Constant, by_name: bool) -> None:
        which %= len(self.models)
        group = self.opt.param_groups[which]
        if by_name:
            self.opt.set(self.path, model.text(), "" if which == 0 and self.plain else f"g{which}")
        else:
            group[self.path] = model.text()
        self.models[which] = model

    @rule(which=st.integers(0, 3), factor=st.sampled_from([0.5, 2.0, 0.75]))
    def scale(self, which: int, factor: float) -> None:
        """The value of now, scaled, in place of what was there."""
        which %= len(self.models)
        self.opt.param_groups[which][self.path] *= factor
        self.models[which] = Constant(self.models[which].at(self.step) * factor)

    @rule(model=MODELS)
    def set_all(self, model: Constant) -> None:
        self.opt.set(self.path, model.text())
        self.base = model
        self.models = [copy.deepcopy(model) for _ in self.models]

    @rule(
        which=st.integers(0, 3),
        bad=st.sampled_from([-1.0, float("nan"), float("-inf"), "linear(lr=-1, end=0, total=8)", "no_such(1)"]),
    )
    def refuse(self, which: int, bad: Any) -> None:
        which %= len(self.models)
        with pytest.raises(tw.Error):
            self.opt.param_groups[which][self.path] = bad
        with pytest.raises(tw.Error):
            self.opt.set(self.path, bad)
        with pytest.raises(tw.Error):
            self.opt.add_param_group({"params": [("late", np.zeros((1, 1)))], "name": "late", self.path: bad})
        with pytest.raises(tw.Error):
            self.opt.add_param_group(
                {"params": [("late", np.zeros((1, 1)))], "name": "late", self.path: 0.5, "no_such_path": 1.0}
            )
        with pytest.raises(tw.Error):
            self.opt.load_state_dict({"format": 1, "state": self.opt.state_dict()["state"][:-1]})
        assert len(self.opt.params) == len(self.models)

    @rule(metric=st.sampled_from([1.0, 2.0, 0.5]))
    def observe(self, metric: float) -> None:
        """Observations reach every schedule that is in use; where there is none, they are refused."""
        if any(isinstance(m, Plateau) for m in self.models):
            self.opt.observe("metric", metric)
            for m in [self.base, *self.models]:
                m.observe(metric)

    @rule()
    def take_step(self) -> None:
        before = [p.copy() for p in self.opt.params]
        self.opt.step([np.ones((1, 1)) for _ in before])
        moved = [float((b - p)[0, 0]) for b, p in zip(before, self.opt.params)]
        np.testing.assert_allclose(moved, self.rates(), rtol=1e-9, atol=1e-12)
        self.step += 1

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copied(self, how: str) -> None:
        """What follows is done by the copy."""
        self.opt = copy.deepcopy(self.opt) if how == "deepcopy" else pickle.loads(pickle.dumps(self.opt))

    @rule()
    def resumed(self) -> None:
        """What follows is done by an optimizer that the same program made anew: its groups, and no value set later."""
        fresh = self.first(self.plain, self.own)
        for i in range(len(self.own), len(self.models)):
            fresh.add_param_group(self.group(i, None))
        for new, old in zip(fresh.params, self.opt.params):
            new[...] = old
        fresh.load_state_dict(self.opt.state_dict())
        self.opt = fresh

    # ---- what a host may rely on

    @invariant()
    def shows_what_is_used(self) -> None:
        if hasattr(self, "models"):
            shown = [group[self.path] for group in self.opt.param_groups]
            np.testing.assert_allclose(shown, self.rates(), rtol=1e-12)
            assert self.opt.steps == self.step
            for group in self.opt.param_groups:
                assert self.path in group and group.get(self.path) == group[self.path]


Groups.TestCase.settings = settings(
    max_examples=60, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Groups.TestCase


# ---- histories that went wrong, in short


def moved(opt: tw.Optimizer) -> list[float]:
    before = [p.copy() for p in opt.params]
    opt.step([np.ones_like(p) for p in before])
    return [float((b - p).flat[0]) for b, p in zip(before, opt.params)]


def two() -> tw.Optimizer:
    return tw.SGD([{"params": [("a", np.zeros(1))]}, {"params": [("b", np.zeros(1))], "lr": 0.5}], lr=0.1)


def test_a_group_that_is_set_after_all() -> None:
    """The order of the settings is kept by copies."""
    opt = two()
    opt.set("lr", 0.5)
    opt.param_groups[1]["lr"] = 0.2
    for twin in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        np.testing.assert_allclose(moved(twin), [0.5, 0.2], rtol=1e-15)


def test_what_was_loaded_is_newer_than_what_was_set() -> None:
    saved = tw.SGD([("a", np.zeros(1))], lr=0.01).state_dict()
    opt = tw.SGD([("a", np.zeros(1))], lr=1.0)
    opt.set("lr", 0.5)
    opt.load_state_dict(saved)
    for twin in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert twin.get("lr") == 0.01 and moved(twin) == [0.01]


@pytest.mark.parametrize("group", [None, "group1"])
def test_a_schedule_that_was_set_keeps_its_memory(group: str | None) -> None:
    """1, then two observations that are no better: 0.25."""
    opt = two()
    opt.set("lr", "reduce_on_plateau(lr=1, patience=0, factor=0.5)", group)
    for metric in (1.0, 2.0, 2.0):
        opt.observe("metric", metric)
    fresh = two()
    fresh.load_state_dict(opt.state_dict())
    want = [0.25, 0.25] if group is None else [0.1, 0.25]
    for twin in (fresh, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt):
        assert [g["lr"] for g in twin.param_groups] == want
        twin.observe("metric", 2.0)
        np.testing.assert_allclose(moved(twin), [w / 2 if w == 0.25 else w for w in want], rtol=1e-15)


def test_a_value_that_one_group_refuses_stays_out_of_the_others() -> None:
    """Nesterov's form needs a momentum: of three groups the second has none."""
    rows = [{"params": [np.zeros(1)], "momentum": m} for m in (0.9, 0.0, 0.9)]
    opt, twin = (tw.SGD([dict(row, params=[np.zeros(1)]) for row in rows], lr=0.1, momentum=0.5) for _ in range(2))
    moved(opt), moved(twin)
    with pytest.raises(tw.Error):
        opt.set("nesterov", True)
    assert [g["nesterov"] for g in opt.param_groups] == [g["nesterov"] for g in twin.param_groups]
    for _ in range(3):
        assert moved(opt) == moved(twin)


BAD_GROUPS = {
    "range": {"lr": -1.0},
    "name": {"lrr": 0.1},
    "second value": {"lr": 0.1, "momentum": -3.0},
    "used name": {"name": "group0"},
    "used parameter name": {"params": [("a", np.zeros(2))]},
    "dtype": {"params": [("c", np.zeros(2)), ("d", np.zeros(2, np.int32))]},
    "betas": {"betas": (0.9,)},
}


@pytest.mark.parametrize("wrong", BAD_GROUPS)
def test_a_group_that_is_refused_is_not_there(wrong: str) -> None:
    opt, twin = two(), two()
    moved(opt), moved(twin)
    before = opt.state_dict()["state"]
    row = {"params": [("c", np.zeros(2))], **BAD_GROUPS[wrong]}
    try:
        opt.add_param_group(row)
    except (tw.Error, TypeError, KeyError, ValueError):
        pass
    else:
        assert wrong == "used name"  # the tensors may join a group that is there
        return
    assert len(opt.params) == 2 and len(opt.param_groups) == 2
    assert opt.state_dict()["state"] == before
    assert moved(opt) == moved(twin)
    opt.add_param_group({"params": [("c", np.zeros(2))], "lr": 0.25})
    np.testing.assert_allclose(moved(opt), [0.1, 0.5, 0.25], rtol=1e-15)


def test_a_checkpoint_that_is_refused_changes_no_group() -> None:
    """Neither one of other tensors nor a damaged one."""

    def make(second: str) -> tw.Optimizer:
        groups = [{"params": [("a", np.zeros(1))]}, {"params": [(second, np.zeros(1))], "lr": 0.3}]
        opt = tw.SGD(groups, lr=0.1, momentum=0.5)
        moved(opt)
        return opt

    opt, twin, other = make("b"), make("b"), make("c")
    before = opt.state_dict()["state"]
    for data in (other.state_dict()["state"], before[:-3], b"", bytes(len(before))):
        with pytest.raises(tw.Error):
            opt.load_state_dict({"format": 1, "state": data})
        assert opt.state_dict()["state"] == before
    assert moved(opt) == moved(twin)
