"""Dicts of arrays as parameters and gradients; and what is said of NaN, aliases, and gradients that come and go."""

from __future__ import annotations

import copy
import re
import types
import warnings
from typing import Any

import numpy as np
import pytest

import thalweg as tw


def arrays() -> dict[str, np.ndarray]:
    return {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}


# ---- mappings


@pytest.mark.parametrize("wrap", [dict, types.MappingProxyType])
def test_dicts_of_arrays(wrap: Any) -> None:
    """The keys are the names; gradients in any order; the same arithmetic as with lists."""
    def by_name(p: dict[str, np.ndarray]) -> Any:
        return wrap({"b": 2 * p["b"], "w": 3 * p["w"]})

    def in_order(p: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [3 * p["w"], 2 * p["b"]]

    for sentence in ("adamw(lr=0.25)", "sam(0.5) | sgd(lr=0.25)"):
        given, twin = arrays(), arrays()
        pairs = [(tw.Optimizer(wrap(given), sentence), given, by_name),
                 (tw.Optimizer([*twin.values()], sentence), twin, in_order)]
        for opt, p, gradients in pairs:
            assert opt.step(lambda: (0.5, gradients(p))) == 0.5
            opt.step(lambda: gradients(p))
            for request in opt.requests():
                request.answer(gradients(p), 0.0)
            if sentence.startswith("adamw"):
                opt.step(gradients(p))
                opt.step(grads=gradients(p))
                opt.bind_gradients(gradients(p))
                opt.step()
                opt.step(wrap({"b": None, "w": p["w"].copy()}) if opt.names[0] else [p["w"].copy(), None])
        assert pairs[0][0].names == ["w", "b"] and pairs[1][0].names == [None, None]
        assert all(np.array_equal(given[name], twin[name]) for name in given) and (given["w"] != 1).all()


def test_dicts_that_do_not_fit() -> None:
    given = arrays()
    opt = tw.Optimizer(given, "sgd(lr=0.5)")
    for bad, says in (({"w": given["w"]}, "there is none of 'b'"),
                      ({**given, "c": given["b"]}, "no parameter is called 'c'"),
                      ({"w": given["w"], "c": given["b"]}, "none of 'b'.*is called 'c'")):
        with pytest.raises(tw.ArgumentError, match=f"gradients by name: .*{says}"):
            opt.step(bad)
    with pytest.raises(tw.ArgumentError, match="come by name, and the parameters have none"):
        tw.SGD([*given.values()], lr=0.5).step(given)
    with pytest.raises(TypeError, match=r"not one of them: give \[group\]"):
        tw.SGD({"params": [given["w"]]}, lr=0.5)
    with pytest.raises(TypeError, match="are names, as str, not int"):
        tw.SGD({1: given["w"]}, lr=0.5)
    with pytest.raises(tw.ArgumentError, match="params is empty"):
        tw.SGD({}, lr=0.5)
    assert (given["w"] == 1).all() and tw.SGD({"params": given["w"]}, lr=0.5).names == ["params"]


def test_names_of_a_dict_are_those_of_a_route() -> None:
    given = {"embed": np.ones((2, 2), np.float32), "head": np.ones((2, 2), np.float32)}
    opt = tw.Optimizer(given, 'route("em*"=(sgd(lr=0.5)), other=(sgd(lr=0.25)))')
    opt.step({"head": np.ones((2, 2), np.float32), "embed": np.ones((2, 2), np.float32)})
    assert given["embed"][0, 0] == 0.5 and given["head"][0, 0] == 0.75


# ---- messages


@pytest.mark.parametrize("make", [
    lambda g: tw.AdamW(g, lr=float("nan")), lambda g: tw.AdamW(g, lr=np.float32("nan")),
    lambda g: tw.Optimizer([{"params": g, "lr": float("nan")}], "adamw"),
    lambda g: tw.AdamW(g).set("lr", float("nan")), lambda g: tw.AdamW(g).param_groups[0].__setitem__("lr", np.nan),
    lambda g: tw.AdamW(g, betas=(0.9, float("nan"))),
])
def test_nan_is_no_value(make: Any) -> None:
    with pytest.raises(tw.RangeError, match=r"(`lr`|'lr'|`beta2`) (is|must be) a number in \[0, .*got nan"):
        make([np.ones(3, np.float32)])
    with pytest.raises(tw.Error, match="`lr` must be a number, got nan"):
        tw.Optimizer([np.ones(3, np.float32)], "adamw(lr=nan)")


@pytest.mark.parametrize("alias, ours", [("learning_rate", "lr"), ("b1", "beta1"), ("b2", "beta2"), ("epsilon", "eps"),
                                         ("wd", "weight_decay"), ("nu", "beta2")])
def test_aliases_are_known_wherever_a_name_is_given(alias: str, ours: str) -> None:
    w = [np.ones(3, np.float32)]
    opt = tw.AdamW(w)
    calls = [lambda: tw.AdamW(w, **{alias: 0.1}), lambda: tw.Optimizer(w, f"adamw({alias}=0.1)"),
             lambda: opt.get(alias), lambda: opt.set(alias, 0.1), lambda: tw.AdamW([{"params": w, alias: 0.1}])]
    for call in calls:
        with pytest.raises(tw.UnknownNameError, match=rf"`{alias}` \(did you mean `{ours}`\?\)"):
            call()
    with pytest.raises(KeyError, match=rf"did you mean `{ours}`"):
        opt.param_groups[0][alias]
    for name, method in (("AdamW", "adamw"), ("SGD", "sgd"), ("ScheduleFreeAdamW", "schedule_free_adamw")):
        with pytest.raises(tw.MethodError, match=rf"`{name}` \(did you mean `{method}`\?\)"):
            tw.Optimizer(w, name)


def test_gradients_that_come_and_go_within_a_step() -> None:
    """Nothing is lost in silence, and nothing has changed: with SAM, and over the minibatches of an accumulation."""
    for sentence in ("sam(0.5) | sgd(lr=0.5)", "gradient_accumulate(2) | sam(0.5) | sgd(lr=0.5)"):
        for first in (True, False):
            given = arrays()
            opt = tw.Optimizer(given, sentence)
            calls = [0]

            def closure() -> Any:
                calls[0] += 1
                there = (calls[0] == 1) == first
                return 0.0, {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32) if there else None}

            if first:
                kind, says = tw.SequenceError, r"gradient of parameter 1 \('b'\) is absent, but was there.*pass zeros"
            else:
                kind, says = tw.ArgumentError, r"a gradient of parameter 1 \('b'\), and the first answer.*leave zeros"
            with pytest.raises(kind, match=says):
                opt.step(closure)
            assert all((p == 1).all() for p in given.values()) and opt.steps == 0
            opt.step(lambda: (0.0, {"w": np.ones((2, 3), np.float32), "b": None}))
            assert opt.steps == 1 and (given["b"] == 1).all() and (given["w"] == 0.5).all()


def test_a_product_of_zeros_where_there_is_no_gradient() -> None:
    """A parameter that takes no part: its products are zeros, as differentiating twice gives them."""
    given = arrays()
    opt = tw.Optimizer(given, "oasis")
    kinds = []
    for request in opt.requests():
        kinds.append(request.kind)
        product = request.kind == "hessian_vector"
        request.answer({"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32) if product else None}, 0.0)
    assert "hessian_vector" in kinds and kinds[0] != "hessian_vector"
    assert (given["b"] == 1).all() and (given["w"] != 1).all()


def test_what_a_closure_and_a_step_lack() -> None:
    w = [np.ones(3, np.float32)]
    for closure in (lambda: 1.0, lambda: None, lambda: (1.0, None)):
        with pytest.raises(tw.SequenceError, match=r"the closure gave no gradients.*must return \(loss, grads\)"):
            tw.Optimizer(w, "sam(0.5) | sgd(lr=0.5)").step(closure)
    bound = tw.Optimizer(w, "sgd(lr=0.5)")
    bound.bind_gradients([np.ones(3, np.float32)])
    assert bound.step(lambda: 1.0) == 1.0 and (w[0] == 0.5).all()
    with pytest.raises(tw.NeedsError, match=r"sam asks for more than the gradient.*opt\.step\(closure\)"):
        tw.Optimizer(w, "sam(0.5) | sgd(lr=0.5)").step([np.ones(3, np.float32)])
    resting = tw.Optimizer(w, "sgd(lr=0.5) | ema(0.5)")
    resting.step([np.ones(3, np.float32)])
    resting.eval()
    for step in (lambda: resting.step([np.ones(3, np.float32)]), lambda: resting.step(lambda: (0.0, [w[0].copy()]))):
        with pytest.raises(tw.SequenceError, match=r"in evaluation mode; call opt\.train\(\) first"):
            step()


def test_nan_that_clipping_spreads_is_told_of_once() -> None:
    bad = [np.array([1.0, np.nan, 1.0], np.float32)]
    good = [np.ones(3, np.float32)]
    for how in (lambda o: o.step(bad), lambda o: o.step(lambda: (0.0, bad)),
                lambda o: [r.answer(bad) for r in o.requests()]):
        opt = tw.Optimizer([np.ones(3, np.float32)], "clip_global_norm(1.0) | sgd(lr=0.5)")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opt.step(good)
        with pytest.warns(RuntimeWarning, match="step 2 .*NaN or Inf in a gradient has become weights.*skip") as told:
            how(opt)
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            how(opt)
            quiet = tw.Optimizer([np.ones(3, np.float32)], "clip_global_norm(1.0) | sgd(lr=0.5)", nonfinite="skip")
            how(quiet)
            assert quiet.skipped == 1


def test_what_torch_refuses_together() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    for cls in (torch.optim.AdamW, twt.AdamW, twt.SGD, twt.Lion):
        with pytest.raises(RuntimeError, match="fused.*foreach.* cannot (both )?be"):
            cls([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True, foreach=True)
        if cls is not torch.optim.AdamW:
            cls([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True)


def test_skipped_steps_are_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = np.array([np.nan, 1], np.float32), np.ones(2, np.float32)
    opt = tw.Optimizer([np.ones(2, np.float32)], "sgd(lr=0.5)", nonfinite="skip")
    with caplog.at_level("WARNING", "thalweg"):
        for _ in range(9):
            opt.step([bad])
            opt.step([good])
    said = [record.getMessage() for record in caplog.records]
    counts = [text.partition(": ")[2].partition(" steps")[0] for text in said]
    assert counts == ["1 of 1", "2 of 3", "4 of 7", "8 of 15"]
    assert opt.skipped == opt.steps == 9


@pytest.mark.parametrize("way", ["gradients", "closure", "requests"])
@pytest.mark.parametrize("sentence", ["sgd(lr=0.5)", "gradient_accumulate(2) | sgd(lr=0.5)"])
def test_too_many_skipped_steps_in_a_row_are_an_error(way: str, sentence: str) -> None:
    bad, good = np.array([np.nan, 1], np.float32), np.ones(2, np.float32)
    opt = tw.Optimizer([np.ones(2, np.float32)], sentence, nonfinite="skip", max_skips=3)

    def take(grad: np.ndarray) -> None:
        if way == "closure":
            opt.step(lambda: (0.0, [grad]))
        elif way == "requests":
            for request in opt.requests():
                request.answer([grad])
        else:
            opt.step([grad])

    for grad in (bad, bad, good, bad, bad):  # (of a window of two, a minibatch that is not finite is left out)
        take(grad)
    assert opt.skipped == 4
    opt = copy.deepcopy(opt)  # a copy, or what was loaded, counts from there
    take(bad)
    take(bad)
    with pytest.raises(tw.NonfiniteError, match=r"3 steps skipped in a row \(max_skips\)"):
        take(bad)
    assert opt.skipped == 7
    with pytest.raises(tw.NonfiniteError, match="4 steps skipped"):
        take(bad)
    take(good)
    take(bad)
    assert opt.skipped == 9 and opt.steps == (1 if "accumulate" in sentence else 2)


def test_what_max_skips_may_be() -> None:
    w = [np.ones(2, np.float32)]
    with pytest.raises(tw.ArgumentError, match="nonfinite='skip'"):
        tw.Optimizer(w, "sgd", max_skips=3)
    for wrong in (0, 1.5, True):
        with pytest.raises(tw.RangeError, match="from 1 on"):
            tw.AdamW(w, nonfinite="skip", max_skips=wrong)


# ---- what is given in place of arrays


def test_a_model_is_no_list_of_arrays() -> None:
    class Model:
        def parameters(self) -> list[Any]:
            return []

    with pytest.raises(TypeError, match=r"not the model Model: pass model\.parameters\(\)"):
        tw.Optimizer(Model(), "adamw")


def test_arrays_of_jax_cannot_change() -> None:
    jnp = pytest.importorskip("jax").numpy
    with pytest.raises(tw.LayoutError, match=r"read-only; arrays of JAX are, and thalweg\.jax\.Optimizer"):
        tw.AdamW([jnp.ones(3)])
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(tw.LayoutError, match="read-only$"):
        tw.AdamW([frozen])


def test_a_function_is_no_schedule() -> None:
    with pytest.raises(tw.ValueTypeError, match="what changes is a schedule"):
        tw.AdamW([np.ones(3, np.float32)], lr=lambda step: 0.1)


@pytest.mark.parametrize("keyword, stage", [
    ("max_grad_norm", "clip_global_norm(1.0)"), ("clipnorm", "clip_global_norm(1.0)"),
    ("clip_value", "clip_value(1.0)"),
])
def test_keywords_of_clipping_name_the_stage(keyword: str, stage: str) -> None:
    w = np.ones(3, np.float32)
    with pytest.raises(tw.UnknownNameError, match=re.escape(f'before="{stage}"')):
        tw.Lion([w], **{keyword: 1.0})
    with pytest.raises(TypeError, match=re.escape(f'"{stage} | ..."')):
        tw.Optimizer([w], "sgd", **{keyword: 1.0})
    tw.Lion([w], before=stage).close()  # as the message has it


def test_a_bare_array_is_no_list_of_gradients() -> None:
    """A closure may return it for one parameter; elsewhere, and for several, the message says what to write."""
    w, g = np.ones(3, np.float32), np.ones(3, np.float32)
    one, two = tw.Optimizer([w], "sgd"), tw.Optimizer([w, w.copy()], "sgd")
    assert one.step(lambda: (2.0, g)) == 2.0
    for opt in (one, two):
        asked = opt.requests()
        for call, says in ((lambda: opt.step(g), r"opt\.step\(\[g\]\)"),
                           (lambda: opt.bind_gradients(g), r"opt\.bind_gradients\(\[g\]\)"),
                           (lambda: next(asked).answer(g), r"request\.answer\(\[g\]\)")):
            with pytest.raises(TypeError, match=f"^gradients are given as a list.*: write {says}$"):
                call()
    for closure in (lambda: (2.0, g), lambda: g):
        with pytest.raises(TypeError, match=r"^gradients are given as a list.*\(loss, \[g, \.\.\.\]\)"):
            two.step(closure)
    mixed = tw.Optimizer([np.ones(()), np.ones(3)], "sgd")
    mixed.step(lambda: (np.ones(()), np.ones(3)))  # two gradients, the first of a number
    assert mixed.steps == 1
