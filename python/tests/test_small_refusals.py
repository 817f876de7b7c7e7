"""Refusals that name what was meant: kinds, dtypes, groups, near names, numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw


@pytest.mark.parametrize("name, meant", [
    ("adamv", "adamw"), ("Adamv", "adamw"), ("adamx", "adamw"), ("lionn", "lion"), ("adampp", "adamp")])
def test_of_names_that_are_as_near_the_common_one(name: str, meant: str) -> None:
    with pytest.raises(tw.MethodError, match=rf"no method `{name}` \(did you mean `{meant}`\?\)"):
        tw.Optimizer([np.ones(3)], name)


def test_a_schedule_is_no_answer_for_a_rule() -> None:
    with pytest.raises(tw.MethodError, match=r"no schedule `cosin` \(did you mean `cosine`\?\)"):
        tw.SGD([np.ones(3)], lr="cosin(0.1, 100)")


@pytest.mark.parametrize("make, kind, name, near", [
    (tw.weighting, "weighting", "dwaa", "dwa"), (tw.diagnostic, "diagnostic", "effective_rnk", "effective_rank"),
    (tw.objective, "objective", "mseee", "mse")])
def test_weightings_and_diagnostics_name_their_kind(make: Callable[..., Any], kind: str, name: str, near: str) -> None:
    article = "an" if kind == "objective" else "a"
    with pytest.raises(tw.MethodError, match=rf"^no {kind} `{name}` \(did you mean `{near}`\?\)\n  {name}\n"):
        make(name)
    with pytest.raises(tw.MethodError, match=f"^`adamw` is an optimizer; {article} {kind} is wanted here"):
        make("adamw")
    with pytest.raises(tw.SentenceError, match=f"^one {kind} is expected, got 2 stages"):
        make(f"{near} | {near}")


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "object", "bool", "int16"])
def test_element_types_go_by_their_names(dtype: str) -> None:
    with pytest.raises(tw.DtypeError, match=f"element type {dtype} is not supported"):
        tw.Optimizer([np.zeros(3, dtype)], "adamw")


def test_complex_arrays_of_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(tw.DtypeError, match="element type complex64 is not supported"):
        tw.Optimizer([jnp.zeros(3, "complex64")], "adamw")


@pytest.mark.parametrize("group, words", [
    ({"param": [np.ones(3)], "lr": 0.1}, r"group 1 has no 'params', .* it has 'param', 'lr'"),
    ({"name": "head"}, r"group 1 \('head'\) has no 'params', .* it has 'name'"), ({}, "it has nothing")])
def test_a_group_without_parameters(group: dict[str, Any], words: str) -> None:
    with pytest.raises(tw.ArgumentError, match=words):
        tw.Optimizer([{"params": [np.ones(2)]}, group], "adamw")
    with pytest.raises(tw.ArgumentError, match=words.replace(" 1", "")):
        tw.AdamW([np.ones(2)]).add_param_group(group)


def test_a_group_of_torch_without_parameters() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    wrong = {"param": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1}
    words = "parameter group 0 has no 'params', the list of its parameters; it has 'param', 'lr'"
    for make in (thalweg.torch.AdamW, thalweg.torch.Lion, lambda groups: thalweg.torch.Optimizer(groups, "adamw"),
                 lambda groups: thalweg.torch.InBackward(groups, "adamw")):
        with pytest.raises(tw.ArgumentError, match=words):
            make([wrong])
    opt = thalweg.torch.AdamW([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(tw.ArgumentError, match="parameter group 1 has no 'params'"):
        opt.add_param_group(wrong)
    assert len(opt.param_groups) == 1


def test_a_number_that_is_none_is_no_schedule() -> None:
    nan, w = float("nan"), [np.ones(3)]
    opt = tw.AdamW(w)
    for call in (lambda: tw.AdamW(w, lr=nan), lambda: tw.Optimizer(w, "adamw(lr=nan)"), lambda: opt.set("lr", nan),
                 lambda: tw.Optimizer([{"params": w, "lr": nan}], "adamw")):
        with pytest.raises(tw.Error, match="(must be|is) a number.*, got nan") as refused:
            call()
        assert "schedule" not in str(refused.value)


def test_whole_numbers_are_whole() -> None:
    opt = tw.Muon([np.ones((3, 3))])
    shown = opt.param_groups[0]["ns_steps"], opt.get("ns_steps"), opt.get("muon.ns_steps")
    assert shown == (5, 5, 5) and {type(value) for value in shown} == {int} and type(opt.get("lr")) is float


def test_a_schedule_is_not_shorter_than_its_warm_up() -> None:
    for name in ("warmup_cosine", "warmup_linear"):
        with pytest.raises(tw.RangeError, match="`total` counts the warm-up too: .* got 5 and 10"):
            tw.schedule(f"{name}(0.1, 10, 5)")
        assert tw.schedule(f"{name}(0.1, 10, 10)")(10) == 0
    with pytest.raises(tw.Error, match="`lr` could be muon.lr or adamw.lr: name one of them"):
        tw.Optimizer([np.ones((3, 3)), np.ones(3)], "route(matrix=(muon), other=(adamw))").get("lr")
