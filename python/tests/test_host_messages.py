"""What the messages say to whoever writes Python: calls in Python's spelling, keys and values that are refused, what a
closure has to return, and values of groups that differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from support import snapshot
from thalweg import _errors

ROOT = Path(__file__).parent.parent.parent


def arrays(count: int = 1) -> list[np.ndarray]:
    return [np.ones(3) for _ in range(count)]


def ones(opt: tw.Optimizer) -> list[np.ndarray]:
    return [np.ones_like(p) for p in opt.params]


# ---- calls


def evaluated() -> tw.Optimizer:
    opt = tw.Optimizer(arrays(), "sgd(lr=0.5) | ema(0.5)")
    opt.step(ones(opt))
    opt.eval()
    return opt


def within_a_step() -> tw.Optimizer:
    opt = tw.Optimizer(arrays(), "sam(0.5) | sgd(lr=0.5)")
    opt.kept = opt.requests()
    next(opt.kept)
    return opt


def named_calls(message: str) -> set[str]:
    return set(re.findall(r"\b(?:opt|request)\.(\w+)", message))


@pytest.mark.parametrize("make, call, kind, names", [
    (evaluated, lambda o: o.step(ones(o)), tw.SequenceError, {"train"}),
    (evaluated, lambda o: o.load_state_dict(o.state_dict()), tw.SequenceError, {"train"}),
    (lambda: tw.Optimizer(arrays(), "sgd(lr=0.5)"), lambda o: o.step(), tw.SequenceError, {"step", "bind_gradients"}),
    (lambda: tw.Optimizer(arrays(), "sam(0.5) | sgd(lr=0.5)"), lambda o: o.step(ones(o)), tw.NeedsError,
     {"step", "requests"}),
    (lambda: tw.Optimizer(arrays(), "polyak_sgd"), lambda o: o.step(ones(o)), tw.NeedsError, {"observe", "step"}),
    (within_a_step, lambda o: o.load_state_dict(within_a_step().state_dict()), tw.SequenceError,
     {"requests", "cancel"}),
    (lambda: tw.Optimizer(arrays(), "oasis"), lambda o: o.step(lambda: (1.0, ones(o))), tw.NeedsError,
     {"requests"}),
], ids=["step, evaluating", "load, evaluating", "no gradients", "sam", "no loss", "load in a step", "closure of oasis"])
def test_calls_are_those_of_python(make: Callable[[], tw.Optimizer], call: Callable[[tw.Optimizer], Any], kind: Any,
                                   names: set[str]) -> None:
    opt = make()
    with pytest.raises(kind) as caught:
        call(opt)
    assert named_calls(str(caught.value)) == names and caught.value.status == kind.status
    assert all(callable(getattr(opt, name)) for name in names)
    assert not re.search(r"set_mode|tw_|\bnext\b|(?<!\.)bind_gradients|add_parameters", str(caught.value))


def test_no_message_of_the_library_shows_a_name_of_c() -> None:
    """Every text of a refusal in the library's source, as Python shows it."""
    header = ROOT / "include" / "thalweg" / "thalweg.h"
    if not header.exists():
        pytest.skip("the library's source is not here")
    functions = set(re.findall(r"\btw_optimizer_(\w+_\w+)\(", header.read_text()))
    assert {"set_mode", "bind_gradients", "add_parameters", "answer_matrix"} <= functions
    texts = [text for file in sorted((ROOT / "Sources").rglob("*.swift"))
             for text in re.findall(r'(?:Failure|refused)\([^"\n]*"((?:[^"\\\n]|\\.)*)"', file.read_text())]
    assert len(texts) > 100
    # What only a C caller can do: structs of the wrong size, numbers for enumerations, functions of the process.
    c_only = ("struct_size", "TW_STATE_", "TW_MASTER_", "TW_NONFINITE_", "TW_MODE_", "TW_REQUEST_", "`allocate`")
    shown = [_errors.in_python(text.replace('\\"', '"')) for text in texts if not any(word in text for word in c_only)]
    plain = re.compile(r"(?<![\w.`])(" + "|".join(sorted(functions)) + r")\b|\btw_|\bTW_|\bNULL\b|\b(call|with) next\b")
    assert [text for text in shown if plain.search(text)] == []


def test_what_is_in_pythons_spelling_stays() -> None:
    for name in _errors.CALLS:
        once = _errors.in_python(f"call tw_optimizer_{name} or {name} first")
        assert "tw_" not in once and _errors.in_python(once) == once
        assert _errors.in_python(f"no parameter group `{name}`") == f"no parameter group `{name}`"
    for text in ("call opt.train() first", "call opt.step(grads), or opt.bind_gradients(grads) first"):
        assert _errors.in_python(text) == text


# ---- keys and values of groups


@pytest.mark.parametrize("key, near", [("lrr", "lr"), ("weightdecay", "weight_decay"), ("lr_beta", None)])
def test_unknown_keys_are_named(key: str, near: str | None) -> None:
    opt = tw.Optimizer(arrays(), "adamw(lr=0.5)")
    before = snapshot(opt)
    for call in (lambda: tw.Optimizer([{"params": arrays(), key: 0.1}], "adamw"),
                 lambda: tw.AdamW([{"params": arrays(), key: 0.1}]),
                 lambda: opt.add_param_group({"params": arrays(), key: 0.1}),
                 lambda: opt.param_groups[0].update({key: 0.1}), lambda: opt.set(key, 0.1)):
        with pytest.raises(tw.UnknownNameError, match=rf"`{key}`.*there are: lr, beta1") as caught:
            call()
        assert near is None or f"did you mean `{near}`" in str(caught.value)
    assert snapshot(opt) == before and len(opt.param_groups) == 1
    with pytest.raises(tw.ValueTypeError, match="is a str, not 3"):
        opt.add_param_group({"params": arrays(), 3: 0.1})


@pytest.mark.parametrize("key, value, expected, got", [
    ("lr", "abc", "a number", "'abc'"), ("lr", "0.1 x", "a number", "'0.1 x'"), ("lr", "", "a number", "''"),
    ("lr", [0.1], "a number", "[0.1]"), ("lr", True, "a number", "true"), ("lr", None, "a number", "none"),
    ("lr", {}, "a number", "{}"), ("lr", np.ones(2), "a number", "array([1., 1.])"), ("lr", 1j, "a number", "1j"),
    ("adamw.lr", {}, "a number", "{}"), ("betas", 0.9, "a tuple", "0.9"),
    ("betas", ("a", 0.5), "a tuple", "('a', 0.5)"),
    ("betas", (0.5, {}), "a number", "{}"),
])
def test_values_of_a_wrong_form_are_named(key: str, value: Any, expected: str, got: str) -> None:
    opt = tw.Optimizer(arrays(), "adamw(lr=0.5)")
    before = snapshot(opt)
    for call in (lambda: tw.Optimizer([{"params": arrays(), key: value}], "adamw"),
                 lambda: opt.add_param_group({"params": arrays(), key: value}),
                 lambda: opt.param_groups[0].update({key: value})):
        with pytest.raises(tw.Error) as caught:
            call()
        text = str(caught.value)
        name = "beta2" if got == "{}" and key == "betas" else key.removeprefix("adamw.")
        assert isinstance(caught.value, (ValueError, TypeError)) and name in text and expected in text and got in text
    assert snapshot(opt) == before and len(opt.param_groups) == 1 and opt.get("lr") == 0.5


def test_schedules_in_groups_are_values() -> None:
    opt = tw.Optimizer([{"params": arrays(), "lr": "linear(lr=1, end=0, total=4)"}], "sgd(lr=0.5)")
    opt.step(ones(opt))
    assert opt.get("lr") == 0.75
    with pytest.raises(tw.UnknownNameError, match="cosine.*`totl`.*total") as caught:
        opt.set("lr", "cosine(lr=1, totl=4)")
    assert "momentum" not in str(caught.value)  # it is the schedule that has no such hyper-parameter


# ---- the value of all groups


def test_get_without_a_group_is_what_all_groups_have() -> None:
    opt = tw.Optimizer([{"params": arrays(), "lr": 0.25, "name": "body"}, {"params": arrays(), "lr": 0.25}],
                       "clip_global_norm(1.0) | sgd(lr=0.5)")
    assert opt.get("lr") == 0.25 and opt.get("lr", "") == 0.5 and opt.get("momentum") == 0.0
    opt.set("lr", 0.125, group="body")
    says = r"'lr' \(0.125 in 'body'; 0.25 in 'group1'\).*opt.get\('lr', 'group1'\)"
    with pytest.raises(tw.ArgumentError, match=says):
        opt.get("lr")
    assert [opt.get("lr", g.name) for g in opt.param_groups] == [0.125, 0.25]
    opt.step(ones(opt))
    assert opt.get("clip_global_norm.norm") == np.sqrt(6) and opt.get("steps") == 1
    opt.set("lr", 0.75)
    assert opt.get("lr") == 0.75
    for bad in ("lrr", "adamw.lr"):
        with pytest.raises(tw.UnknownNameError):
            opt.get(bad)


def test_a_plain_list_and_a_group_that_came_later() -> None:
    opt = tw.Optimizer(arrays(), "sgd(lr=0.5)")
    assert opt.get("lr") == 0.5
    opt.add_param_group({"params": arrays()})
    assert opt.get("lr") == 0.5
    opt.add_param_group({"params": arrays(), "lr": 0.25})
    assert opt.get("lr") == opt.get("lr", "") == 0.5


# ---- closures


ASKS_FOR_THE_LOSS = ["polyak_sgd", "sania", "rolling_ball(projection_lr=1e-5)"]


@pytest.mark.parametrize("sentence", ASKS_FOR_THE_LOSS)
def test_a_closure_without_the_loss_that_is_asked_for(sentence: str) -> None:
    opt = tw.Optimizer(arrays(), sentence)
    opt.bind_gradients(ones(opt))
    before = snapshot(opt)
    for answer in (None, ones(opt), (None, ones(opt))):
        with pytest.raises(tw.NeedsError, match=r"the closure must return \(loss, grads\)"):
            opt.step(lambda: answer)
    with pytest.raises(tw.ValueTypeError, match="one number, not 'much'"):
        opt.step(lambda: ("much", ones(opt)))
    with pytest.raises(tw.NeedsError, match="request.loss"):
        for request in opt.requests():
            request.answer(ones(opt))
    assert snapshot(opt) == before and opt.steps == 0
    for request in opt.requests():
        break
    if sentence == "polyak_sgd":
        assert opt.step(lambda: (1.0, ones(opt))) == 1.0 and opt.steps == 1


def test_a_closure_that_returns_nothing_where_the_loss_is_not_asked_for() -> None:
    opt = tw.Optimizer(arrays(), "sam(0.5) | sgd(lr=0.5)")
    grads = [np.zeros(3)]
    opt.bind_gradients(grads)

    def closure() -> None:
        grads[0][...] = 1.0

    assert opt.step(closure) is None
    assert (opt.params[0] == 0.5).all()


def test_a_choice_is_read_by_its_whole_path_too() -> None:
    opt = tw.Optimizer([np.ones((2, 2), np.float32)], "muon(momentum_form=ema)")
    assert opt.get("momentum_form") == opt.get("muon.momentum_form") == "ema"


def test_what_a_newcomer_gets_wrong() -> None:
    """Settings of a step, gradients that are not stacked, and an answer the wrong way round."""
    w = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"not loss=\.\.\.: .*opt\.observe\('loss', value\)"):
        tw.Optimizer([w], "sgd").step([w.copy()], loss=1.0)  # type: ignore[call-arg]
    with pytest.raises(tw.ShapeError, match="stack gradients, one a task"):
        tw.aggregate("upgrad")([np.ones(4), np.zeros(4)])
    with pytest.raises(tw.MethodError, match="did you mean `upgrad`"):
        tw.aggregate("upgrd")
    for swapped in (lambda: ([w.copy()], 0.5), lambda: (w.copy(), 0.5)):
        with pytest.raises(tw.ValueTypeError, match=r"returns \(loss, grads\), and this one \(grads, loss\)"):
            tw.Optimizer([w], "sam(0.05) | sgd").step(swapped)
