"""Parameter groups, over the registry: what is set for one reaches it alone, and a later one is like the others."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, LARGER, Host, cases, same, shapes_of
from support import optimizers, sentence_of

METHODS = {m.name: m for m in optimizers()}
LIVE = [(m.name, p.name) for m in optimizers() for p in m.parameters if p.live and p.type in ("number", "integer")]


def others(name: str, path: str) -> list[float]:
    """Values in the range of a hyper-parameter that are not its present one, the likeliest to be taken first."""
    p = METHODS[name].parameter(path)
    assert p is not None
    now = Host(name).opt.get(path)
    tries = [now / 2, now * 2] if isinstance(now, float) and now else []
    tries += [0.3, 0.05, 0.6, (p.min + p.max) / 2, 2.0]
    if p.type == "integer":
        tries = [math.floor(x) for x in tries if math.isfinite(x)] + [2, 3, 1]
    inside = [
        x
        for x in tries
        if math.isfinite(x)
        and p.min <= x <= p.max
        and not (p.min_open and x == p.min)
        and not (p.max_open and x == p.max)
    ]
    return [float(x) for x in inside if x != now]


@cache
def another(name: str, path: str) -> float:
    """A value that the method takes in its sentence."""
    for value in others(name, path):
        try:
            Host(sentence_with(name, path, value), shapes_of(name)).step(0)
        except tw.Error:
            continue
        return value
    raise AssertionError(f"no other value of {name}.{path} is taken")


def sentence_with(name: str, path: str, value: float) -> str:
    whole = METHODS[name].parameter(path).type == "integer"  # type: ignore[union-attr]
    return sentence_of(METHODS[name], **{**LARGER.get(name, {}), path: str(int(value)) if whole else repr(value)})


@pytest.mark.parametrize("name, path", LIVE)
def test_set_before_the_first_step(name: str, path: str) -> None:
    """A live hyper-parameter that is set before the first step is that of the sentence.

    It is set for all, and for the only group; for a group it may be refused, where one value serves all tensors.
    """
    value = another(name, path)
    want = Host(sentence_with(name, path, value), shapes_of(name), seed=2)
    members = list(range(len(shapes_of(name))))
    hosts = [Host(name, seed=2), Host(name, groups=[("only", members, {})], seed=2)]
    for host in hosts:
        host.opt.set(path, value)
    try:
        hosts.append(Host(name, groups=[("only", members, {path: value})], seed=2))
    except tw.Error:
        pass
    for k in range(4):
        want.step(k)
        for host in hosts:
            host.step(k)
            same(host, want)


def parted(name: str) -> list[tuple[str, list[int], dict[str, Any]]]:
    count = len(shapes_of(name))
    return [("a", [i for i in range(count) if i != 1], {}), ("b", [1], {})]


# Their numbers go by the place of a tensor within its group.
COUNTED = {"grokadamw"}


@cache
def separable(name: str) -> bool:
    """True when a tensor moves as if the others were not there, and whatever its group."""
    if name in COUNTED:
        return False
    both, alone = Host(name), Host(name)
    for k in range(4):
        both.step(k)
        alone.step(k, absent=[1])
    return all(a.tobytes() == b.tobytes() for i, (a, b) in enumerate(zip(both.weights, alone.weights)) if i != 1)


@pytest.mark.parametrize("name, path", LIVE)
def test_set_for_one_group(name: str, path: str) -> None:
    """Group b moves as if all had the value, a as if none had; or the value is refused where one serves all tensors."""
    value = another(name, path)
    host = Host(name, groups=parted(name), seed=2)
    none, every = (Host(name, order=host.order, seed=2) for _ in range(2))
    for k in range(2):
        for h in (host, none, every):
            h.step(k)
    old = none.opt.get(path)
    try:
        every.opt.set(path, value)
    except tw.SequenceError:  # it needs state that is to be had until the first step alone: refused for a group too
        every = none
    try:
        host.opt.set(path, value, "b")
    except tw.Error:
        assert [host.opt.get(path, g) for g in "ab"] == [old, old]
        every = none
    else:
        assert every is not none
        assert [host.opt.get(path, g) for g in "ab"] == [old, value]
        assert [g[path] for g in host.opt.param_groups] == [old, value]
        if not separable(name):
            return
    twins = [none] if every is none else [none, every]
    for k in range(2, 5):
        try:
            host.step(k)
        except tw.RangeError as error:  # one number serves all tensors when a step is taken
            assert f"`{path}` must be the same in all parameter groups" in str(error)
            return
        for h in twins:
            h.step(k)
        for i, w in enumerate(host.weights):
            assert w.tobytes() == (every if i == 1 else none).weights[i].tobytes(), f"tensor {i} at step {k}"


# What one request asks for all tensors, so that no group can differ in it.
SHARED = ["sam(rho={}) | sgd(lr=0.1)", "fd_grad_reg(gamma={}) | sgd(lr=0.1)", "fd_grad_reg(eps={}) | sgd(lr=0.1)"]


@pytest.mark.parametrize("sentence", SHARED)
def test_values_of_what_asks_for_gradients(sentence: str) -> None:
    """Given in every group it is that of the sentence; given in one, either both obey their own, or it is refused."""
    key = sentence[sentence.index("(") + 1 : sentence.index("=")]
    shapes = [(3,), (2, 2)]
    want = Host(sentence.format(0.4), shapes)
    try:
        host = Host(sentence.format(0.1), shapes, groups=[("a", [0], {key: 0.4}), ("b", [1], {key: 0.4})])
    except tw.Error:
        host = Host(sentence.format(0.1), shapes, groups=[("a", [0], {}), ("b", [1], {})])
        for g in host.opt.param_groups:
            with pytest.raises(tw.Error):
                g[key] = 0.4
            assert g[key] == 0.1
        host.opt.set(key, 0.4)
    assert [g[key] for g in host.opt.param_groups] == [0.4, 0.4]
    for k in range(3):
        host.step(k)
        want.step(k)
        same(host, want)


# ---- a group that comes later


def later(name: str, between: Any = None) -> tuple[Host, Host]:
    """One host whose last tensor is added behind three steps, and one where it was there and had no gradient."""
    shapes = shapes_of(name)
    last = len(shapes) - 1
    whole = Host(name, seed=4)
    grown = Host(name, order=range(last), seed=4)
    for k in range(3):
        if k == 2 and between is not None:
            between(grown.opt)
            between(whole.opt)
        whole.step(k, absent=[last])
        grown.step(k)
    return whole, grown


@pytest.mark.parametrize("name", [name for name in cases() if name not in COUNTED])
def test_a_group_that_is_added_is_like_one_that_paused(name: str) -> None:
    """It has the sentence's values and schedules, where they stand, and starts from its weights of now."""
    whole, grown = later(name)
    last = len(shapes_of(name)) - 1
    grown.add([last], [whole.problem.start()[last]])
    for k in range(3, 7):
        whole.step(k)
        grown.step(k)
        same(grown, whole)
    shown = [{key: value for key, value in group.items() if key != "params"} for group in grown.opt.param_groups]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "lamb", "prodigy", "ema", "schedule_free", "sam"])
def test_what_was_set_for_all_holds_for_later_groups(name: str) -> None:
    """A number, and a schedule with a memory."""
    for value in (0.02, "reduce_on_plateau(lr=0.08, patience=0, factor=0.5)"):

        def change(opt: tw.Optimizer) -> None:
            opt.set("lr", value)
            if isinstance(value, str):
                opt.observe("metric", 1)

        whole, grown = later(name, change)
        last = len(shapes_of(name)) - 1
        grown.add([last], [whole.problem.start()[last]])
        rates = [group["lr"] for group in grown.opt.param_groups]
        assert rates[0] == rates[1] == whole.opt.get("lr")
        for k in range(3, 6):
            for host in (whole, grown):
                if isinstance(value, str):
                    host.opt.observe("metric", 3)
                host.step(k)
            same(grown, whole)


@pytest.mark.parametrize("plain", [True, False], ids=["list", "dict"])
@pytest.mark.parametrize("value", [0.7, "linear(lr=0.7, end=0.1, total=6)"])
def test_own_values_of_a_later_group(value: Any, plain: bool) -> None:
    """They are its own from then on; the first group's overrides are not handed on."""
    w, v, u = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = tw.Optimizer([w] if plain else [{"params": [w], "lr": 0.5}], "sgd(lr=0.1)")
    one = np.ones(1)
    opt.step([one])
    opt.add_param_group({"params": [v], "lr": value})
    opt.add_param_group({"params": [u]})
    opt.step([one, one, one])
    first = 0.1 if plain else 0.5
    scheduled = value if isinstance(value, float) else 0.7 + (0.1 - 0.7) * 1 / 6  # the second step is number 1
    np.testing.assert_allclose([w[0], v[0], u[0]], [-2 * first, -scheduled, -0.1], rtol=1e-14)
    opt.param_groups[0]["lr"] = 0.02
    opt.param_groups[2]["lr"] *= 3
    before = np.array([w[0], v[0], u[0]])
    opt.step([one, one, one])
    scheduled = value if isinstance(value, float) else 0.7 + (0.1 - 0.7) * 2 / 6
    np.testing.assert_allclose([w[0], v[0], u[0]] - before, [-0.02, -scheduled, -0.3], rtol=1e-12)


def test_gradients_may_be_released_behind_a_new_group() -> None:
    opt = tw.SGD([np.zeros(2)], lr=0.1)
    opt.step([np.ones(2)])
    opt.add_param_group({"params": [np.zeros(3)]})
    opt.release_gradients()
    opt.step([np.ones(2), np.ones(3)])
    np.testing.assert_allclose(opt.params[1], -0.1)
    np.testing.assert_allclose(opt.params[0], -0.2)


# ---- routes


ROUTED = "route(matrix=(sgd(lr=0.1)), other=(signum(lr=0.2, momentum=0)))"


def test_hyper_parameters_of_a_route() -> None:
    """Both pipelines show their own, and what is written is what the next step uses; a bare `lr` could be either."""
    matrix, vector, other = np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2))
    opt = tw.Optimizer([{"params": [matrix, vector]}, {"params": [other]}], ROUTED)
    grads = [np.full((2, 2), 2.0), np.full(2, 2.0), np.full((2, 2), 2.0)]

    def moved() -> list[float]:
        before = [matrix[0, 0], vector[0], other[0, 0]]
        opt.step(grads)
        return [before[0] - matrix[0, 0], before[1] - vector[0], before[2] - other[0, 0]]

    first, second = opt.param_groups
    assert {"sgd.lr", "signum.lr"} <= set(first)
    assert (first["sgd.lr"], first["signum.lr"], second["sgd.lr"]) == (0.1, 0.2, 0.1)
    np.testing.assert_allclose(moved(), [0.2, 0.2, 0.2], rtol=1e-14)
    first["sgd.lr"] = 0.05
    second["sgd.lr"] = 0.3
    first["signum.lr"] *= 2
    assert [g["sgd.lr"] for g in opt.param_groups] == [0.05, 0.3]
    np.testing.assert_allclose(moved(), [0.1, 0.4, 0.6], rtol=1e-14)
    opt.set("sgd.lr", 0.01)
    np.testing.assert_allclose(moved(), [0.02, 0.4, 0.02], rtol=1e-12)
    with pytest.raises(KeyError):
        first["lr"]
    with pytest.raises((KeyError, tw.Error)):
        first["lr"] = 0.0
    np.testing.assert_allclose(moved(), [0.02, 0.4, 0.02], rtol=1e-12)


@pytest.mark.parametrize(
    "name", [n for n in cases() if not any(word in CASES[n] for word in ("plateau", "warmup_cosine", "one_cycle", "greedy", "ladder"))]
)
def test_every_key_that_is_shown_can_be_read_and_written(name: str) -> None:
    """A group is a mapping: what it lists it gives, and a number that it gives may be given back without effect.

    Schedules are left out: writing the value of now would stop them.
    """
    host, want = Host(name, groups=parted(name), seed=1), Host(name, groups=parted(name), seed=1)
    choices = {p.name for m in tw.methods() for p in m.parameters if p.type == "choice"}
    for k in range(2):
        host.step(k)
        want.step(k)
    for group in host.opt.param_groups:
        for key, value in dict(group).items():
            if isinstance(value, float) and key.rpartition(".")[2] not in choices:
                host.opt.set(key, value)
                assert group[key] == value
    for k in range(2, 4):
        host.step(k)
        want.step(k)
    same(host, want)
