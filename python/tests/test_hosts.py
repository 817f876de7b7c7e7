"""What a NumPy host may rely on: groups one by one, refusals that change nothing, copies, arrays that are not what they seem."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

COPIES = [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]


def ones(n: int = 2) -> np.ndarray:
    return np.ones(n)


# ---- groups


def test_the_group_of_a_plain_list_is_one_of_several() -> None:
    a, b = ones(), ones()
    opt = tw.SGD([a], lr=0.5)
    opt.add_param_group({"params": [b], "lr": 0.25})
    first, second = opt.param_groups
    first["lr"] = 0.125
    first["weight_decay"] = 0.5
    assert (second["lr"], second["weight_decay"]) == (0.25, 0.0) and first.name == ""
    opt.step([ones(), ones()])
    np.testing.assert_array_equal(a, 1 - 0.125 * (1 + 0.5 * 1.0))
    np.testing.assert_array_equal(b, 0.75)
    opt.set("lr", 1.0, "")
    assert [g["lr"] for g in opt.param_groups] == [1.0, 0.25]
    opt.set("lr", 2.0)
    opt.add_param_group({"params": [ones()]})
    assert [g["lr"] for g in opt.param_groups] == [2.0, 2.0, 2.0]


def test_a_later_group_has_the_sentence_and_its_schedules() -> None:
    a, b = np.zeros(1), np.zeros(1)
    opt = tw.Optimizer([a], "sgd(lr=linear(lr=1.0, end=0, total=4), weight_decay=0.5)")
    opt.param_groups[0]["weight_decay"] = 0.0
    opt.step([np.ones(1)])
    opt.add_param_group({"params": [b]})
    assert (opt.param_groups[1]["lr"], opt.param_groups[1]["weight_decay"]) == (0.75, 0.5)
    for _ in range(2):
        opt.step([np.ones(1), np.ones(1)])
    assert b[0] == -0.75 - 0.5 * (1 - 0.5 * 0.75) and a[0] == -2.25


def test_names_of_groups_are_unique() -> None:
    with pytest.raises(tw.ArgumentError, match="'head'"):
        tw.SGD([{"params": [ones()], "name": "head"}, {"params": [ones()], "name": "head"}], lr=0.1)
    opt = tw.SGD([{"params": [ones()], "name": "group1"}, {"params": [ones()]}], lr=0.1)
    assert len({g.name for g in opt.param_groups}) == 2
    with pytest.raises(tw.ArgumentError, match="'group1'"):
        opt.add_param_group({"params": [ones()], "name": "group1"})


def test_routed_rules_have_their_keys() -> None:
    w, b = np.ones((2, 2)), ones()
    opt = tw.Optimizer(
        [("w", w), ("b", b)],
        'clip_value(9) | route("w=(x)"=(sgd(lr=9)), matrix=(clip_value(8) | sgd(lr=0.5)), other=(sgd(lr=0.25, momentum=0.5)))'
        " | ema(0.5)",
    )
    group = opt.param_groups[0]
    assert [group[f"sgd{k}.lr"] for k in ("", "#1", "#2")] == [9, 0.5, 0.25] and "sgd#1.lr" in list(group)
    group["sgd#2.lr"] = 0.125
    opt.step([np.ones((2, 2)), ones()])
    assert (w == 0.5).all() and (b == 0.875).all()


@pytest.mark.parametrize("bad", [
    {"lr": -1.0}, {"lr": 0.25, "weight_decay": -1.0}, {"rate": 0.1}, {"lr": "linear(lr=1"}, {"lr": [1, 2]}, {"lr": 0.1, "nesterov": 7},
])
def test_a_refused_group_changes_nothing(bad: dict[str, Any]) -> None:
    a, b = ones(), ones()
    opt = tw.SGD([a], lr=0.5, momentum=0.5)
    opt.step([ones()])
    twin_a = a.copy()
    twin = tw.SGD([twin_a], lr=0.5, momentum=0.5)
    twin.load_state_dict(opt.state_dict())
    with pytest.raises(tw.Error):
        opt.add_param_group({"params": [b], **bad})
    assert len(opt.param_groups) == len(opt.params) == 1 and opt.grads is not None
    opt.step([ones()])
    twin.step([ones()])
    np.testing.assert_array_equal(a, twin_a)
    opt.add_param_group({"params": [b], "lr": 0.25, "name": "group1"})  # the name is still to be had
    opt.step([ones(), ones()])
    np.testing.assert_array_equal(b, 0.75)


def test_several_values_are_changed_together() -> None:
    opt = tw.AdamW([ones()], lr=0.1, betas=(0.5, 0.75))
    with pytest.raises(tw.RangeError, match="beta2"):
        opt.param_groups[0]["betas"] = (0.25, 2.0)
    assert opt.param_groups[0]["betas"] == (0.5, 0.75)
    opt.param_groups[0]["betas"] = (0.25, 0.875)
    assert opt.param_groups[0]["betas"] == (0.25, 0.875)


def test_growing_then_releasing() -> None:
    a, b = ones(), ones()
    opt = tw.SGD([a], lr=0.5)
    opt.step([ones()])
    opt.add_param_group({"params": [b]})
    assert opt.grads is None
    with pytest.raises(tw.CountError):
        opt.step([ones()])
    opt.release_gradients()
    opt.step()  # absent, all of them
    assert (a == 0.5).all() and (b == 1).all()
    opt.step([ones(), ones()])
    assert (a == 0).all() and (b == 0.5).all()


# ---- copies


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_copies_have_what_was_set_last(copied: Callable[[Any], Any]) -> None:
    def run(opt: Any) -> list[np.ndarray]:
        for _ in range(3):
            opt.step([ones() for _ in opt.params])
        return [np.array(p) for p in opt.params]

    # set for all, then for one
    opt = tw.SGD([{"params": [ones()]}, {"params": [ones()], "lr": 0.1}], lr=1.0)
    opt.set("lr", 0.5)
    opt.param_groups[1]["lr"] = 0.25
    twin = copied(opt)
    assert [g["lr"] for g in twin.param_groups] == [0.5, 0.25]
    for x, y in zip(run(twin), run(opt)):
        np.testing.assert_array_equal(x, y)
    # set, then overwritten by a state
    opt = tw.SGD([ones()], lr=1.0)
    opt.set("lr", 0.5)
    opt.load_state_dict(tw.SGD([ones()], lr=0.125).state_dict())
    assert copied(opt).get("lr") == 0.125
    # a schedule with a memory, set while running; and one for a group alone
    opt = tw.SGD([{"params": [ones()]}, {"params": [ones()]}], lr=1.0)
    opt.set("lr", "reduce_on_plateau(lr=1, patience=0, factor=0.5)", "group1")
    opt.step([ones(), ones()])
    for _ in range(3):
        opt.observe("metric", 1.0)
    twin = copied(opt)
    assert [g["lr"] for g in twin.param_groups] == [g["lr"] for g in opt.param_groups] == [1.0, 0.25]
    for x, y in zip(run(twin), run(opt)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_copies_in_evaluation_mode(copied: Callable[[Any], Any]) -> None:
    w = ones()
    opt = tw.Optimizer([w], "sgd(lr=0.5) | ema(0.5)")
    for _ in range(3):
        opt.step([ones()])
    trained = w.copy()
    opt.eval()
    assert not opt.training and (w != trained).all()
    twin = copied(opt)
    assert not twin.training
    np.testing.assert_array_equal(twin.params[0], w)
    with pytest.raises(tw.SequenceError):
        twin.step([ones()])
    twin.train()
    assert twin.training
    np.testing.assert_array_equal(twin.params[0], trained)
    other = tw.Optimizer([w.copy()], "sgd(lr=0.5) | ema(0.5)")
    other.load_state_dict(opt.state_dict())
    assert not other.training
    with other.averaged():
        pass
    assert not other.training
    other.train()
    np.testing.assert_array_equal(other.params[0], trained)


# ---- arrays


def test_masked_arrays_are_refused_everywhere() -> None:
    """Their mask would be lost: as parameters, gradients, shadows, answers, and in objects."""
    masked = np.ma.masked_array(np.ones((2, 2)), np.eye(2, dtype=bool))
    w = np.ones((2, 2))
    opt = tw.SGD([w], lr=0.5)
    tests: list[Callable[[], Any]] = [
        lambda: tw.SGD([masked], lr=0.5),
        lambda: opt.step([masked]),
        lambda: opt.bind_gradients([masked]),
        lambda: opt.step(lambda: (1.0, [masked])),
        lambda: opt.rebind_parameters([masked]),
        lambda: opt.bind_shadow([masked.astype(np.float16)]),
        lambda: opt.add_param_group({"params": [masked]}),
        lambda: tw.regularizer("l1(1)").value(masked),
        lambda: tw.regularizer("l1(1)").gradient(w, masked),
        lambda: tw.regularizer("l1(1)").gradient(masked),
        lambda: tw.constraint("l2_ball(1)").project(masked),
        lambda: tw.objective("checkered_regression")(z=masked, y=np.ones(2)),
        lambda: tw.schedule("norm_test(max_batch=8)").observe_samples(masked),
    ]
    for test in tests:
        with pytest.raises(tw.DtypeError, match="masked"):
            test()
    assert (w == 1).all() and (masked.data == 1).all()
    opt.step([masked.filled(0)])
    np.testing.assert_array_equal(w, [[1, 0.5], [0.5, 1]])


def test_other_classes_made_of_arrays_are_taken(tmp_path: Any) -> None:
    count = itertools.count()
    for make in (lambda: np.asmatrix(np.ones((2, 2))), lambda: np.memmap(tmp_path / str(next(count)), np.float64, "w+", shape=(2, 2)),
                 lambda: np.rec.array(np.ones((2, 2)))):
        w, g = make(), make()
        w[...], g[...] = 1, 1
        opt = tw.SGD([w], lr=0.5)
        opt.step([g])
        opt.step([g])
        assert (np.asarray(w) == 0).all()


@pytest.mark.parametrize("interface", ["__dlpack__", "__array_interface__"])
def test_exporters_are_asked_again(interface: str) -> None:
    """The same object may lend other memory the next time."""

    class Exporter:
        def __init__(self) -> None:
            self.array = np.ones(2)

    if interface == "__dlpack__":
        Exporter.__dlpack__ = lambda self, **options: self.array.__dlpack__(**options)
        Exporter.__dlpack_device__ = lambda self: self.array.__dlpack_device__()
    else:
        Exporter.__array_interface__ = property(lambda self: self.array.__array_interface__)
    w, g = np.zeros(2), Exporter()
    grads = [g]
    opt = tw.SGD([w], lr=1.0)
    opt.step(grads)
    g.array = np.full(2, 4.0)
    opt.step(grads)
    np.testing.assert_array_equal(w, -5.0)


# ---- closures and interruptions


def test_closures_that_are_not_told_what_is_asked_for() -> None:
    w = ones()
    opt = tw.Optimizer([w], "oasis")
    state = opt.state_dict()["state"]
    with pytest.raises(tw.NeedsError, match="Request"):
        opt.step(lambda: (1.0, [w.copy()]))
    assert (w == 1).all() and opt.state_dict()["state"] == state and opt.steps == 0


@pytest.mark.parametrize("problem", [KeyboardInterrupt, KeyError])
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("sentence", ["sam(0.5) | adamw(lr=0.125)", "fd_grad_reg | sgd(lr=0.125)", "rolling_ball", "u_dog", "spider(lr=0.125)",
                                      "svrg(lr=0.125, inner=3)", "sga_uap(inner_steps=3)", "oasis"])
def test_interrupted_at_every_request(sentence: str, released: bool, problem: type[BaseException]) -> None:
    """Parameters, state, and the next step are those of an optimizer that was not interrupted."""
    def step(opt: Any, w: np.ndarray, stop: int | None) -> int:
        asked = 0
        for request in opt.requests():
            if released:
                opt.release_gradients()
            asked += 1
            if asked == stop:
                raise problem
            g = w * (2.0 if request.kind != "hessian_vector" else 0.0)
            if request.kind == "hessian_vector":
                g = 2.0 * request.probe[0]
            request.answer([g] if request.wants_gradient else None, float((w**2).sum()))
        return asked

    for at in range(1, 40):
        w, v = np.array([1.0, -2.0]), np.array([1.0, -2.0])
        opt, twin = tw.Optimizer([w], sentence), tw.Optimizer([v], sentence)
        try:
            for o, x in ((opt, w), (twin, v)):
                for _ in range(2):
                    step(o, x, None)
        except tw.SequenceError:
            pytest.skip("the method does not take this answer")
        before, state = w.copy(), opt.state_dict()["state"]
        try:
            step(opt, w, at)
        except problem:
            np.testing.assert_array_equal(w, before)
            assert opt.state_dict()["state"] == state
            step(opt, w, None)
            last = False
        else:
            last = True
        step(twin, v, None)
        np.testing.assert_array_equal(w, v)
        if last:
            assert at > 1
            return
    raise AssertionError("the step never ended")
