"""What a message says to who comes from torch, Optax or plain Python: keywords, tuples, names of elsewhere."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import _hints


def arrays() -> list[np.ndarray]:
    return [np.ones((3, 2), np.float32)]


# ---- settings as keywords


KEYWORDS = [
    ("adamw", {"lr": 1e-3}, ': settings belong in the sentence, as in "adamw(lr=0.001)"'),
    ("adamw(0.1) | ema(0.9)", {"lr": 0.5, "weight_decay": 0}, '"adamw(lr=0.5, weight_decay=0) | ema(0.9)"'),
    ("adamw", {"betas": (0.9, 0.99)}, '"adamw(beta1=0.9, beta2=0.99)"'),
    ("adamw", {"learning_rate": np.float64(0.25)}, '"adamw(lr=0.25)"'),
    ("clip_global_norm(1.0) | sgd", {"max_norm": 3, "lr": "cosine(0.1, 9)"},
     '"clip_global_norm(max_norm=3) | sgd(lr=cosine(0.1, 9))"'),
    ("route(matrix=(muon(0.1)), other=(adamw))", {"lr": 0.5}, 'as in "muon(lr=0.5)"'),
    ("adamw", {"lr": object()}, '"adamw(lr=...)"'),
    ("adamw", {"stat_dtype": "q8"}, "; did you mean 'state_dtype'?"),
    ("adamw", {"lrr": 0.1}, "; did you mean 'lr', in the sentence?"),
    ("adamw", {"lr": 0.1, "colour": 1}, "\"adamw(lr=0.1)\"; no stage of the sentence has 'colour'"),
]


@pytest.mark.parametrize("sentence, keywords, says", KEYWORDS, ids=[f"{s}, {[*k]}" for s, k, _ in KEYWORDS])
def test_settings_as_keywords_are_shown_in_the_sentence(sentence: str, keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=r"got (an )?unexpected keyword arguments? '") as caught:
        tw.Optimizer(arrays(), sentence, **keywords)
    assert str(caught.value).endswith(says) and all(repr(key) in str(caught.value) for key in keywords)


def test_the_sentence_that_is_shown_can_be_used() -> None:
    for sentence, keywords, _ in KEYWORDS[:5]:
        with pytest.raises(TypeError) as caught:
            tw.Optimizer(arrays(), sentence, **keywords)
        tw.Optimizer(arrays(), str(caught.value).split('as in "')[1].rstrip('"'))


def test_settings_as_keywords_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    # What groups show is taken; what is settled when the optimizer is made stands in the sentence.
    with pytest.raises(TypeError, match=r'as in "adamw\(amsgrad=true\)"'):
        twt.Optimizer([torch.nn.Parameter(torch.ones(2))], "adamw", amsgrad=True)


def test_settings_as_keywords_outside_jit() -> None:
    pytest.importorskip("jax")
    import thalweg.jax as tj

    with pytest.raises(TypeError, match=r'as in "adamw\(lr=0.001\)"'):
        tj.Optimizer({"w": np.ones(2, np.float32)}, "adamw", lr=1e-3)


def test_a_sentence_that_is_none_is_refused_with_keywords_too() -> None:
    with pytest.raises(TypeError, match="'lr'"):
        tw.Optimizer(arrays(), 3, lr=0.1)
    with pytest.raises(TypeError, match="'lr'"):
        tw.Optimizer(arrays(), "adamw((", lr=0.1)


# ---- tuples


@pytest.mark.parametrize("sentence, kind, says", [
    ("adamw(betas=(0.9, 0.999))", tw.SentenceError, "; write beta1=0.9, beta2=0.999\n"),
    ("clip_value(1) | ademamix(betas=( .9,1e-1 , 0.5)) | ema", tw.SentenceError,
     "; write beta1=.9, beta2=1e-1, beta3=0.5\n"),
    ("adamw(betas=[0.9, 0.999])", tw.UnknownNameError, "`betas` (write beta1=0.9, beta2=0.999); it has: lr, beta1"),
    ("adamw(betas=0.9)", tw.UnknownNameError, "`betas` (write beta1=..., beta2=...); it has: lr, beta1"),
    ("sgd(lr=step_decay(0.1, milestones=(10, 20)))", tw.SentenceError, "; a list is written milestones=[10, 20]\n"),
    ("clip_value(1) | aggmo(0.1, betas=(0, 0.9))", tw.SentenceError, "; a list is written betas=[0, 0.9]\n"),
    ("sgd(lr=(0.1))", tw.SentenceError, "; write lr=0.1\n"),
])
def test_tuples_of_python(sentence: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as caught:
        tw.Optimizer(arrays(), sentence)
    assert says in str(caught.value) and f"\n  {sentence}\n" in str(caught.value)


@pytest.mark.parametrize("sentence", ["penalty((0.5, x))", "sgd(lr=(0.1", "(0.1)", "route(matrix=(), other=(sgd))"])
def test_other_mistakes_have_no_such_hint(sentence: str) -> None:
    with pytest.raises(tw.SentenceError) as caught:
        tw.Optimizer(arrays(), sentence)
    assert "write" not in str(caught.value) and "list" not in str(caught.value)


# ---- names of elsewhere


def test_every_name_that_a_hint_gives_is_there() -> None:
    known = {m.name for m in tw.methods()}
    assert not known & _hints.STAGES.keys()
    for name, meant in _hints.STAGES.items():
        if re.fullmatch(r"\w+", meant):
            assert meant in known, name
        for written in re.findall(r"`(.*?)`", meant):
            if written in known or any(m.parameter(written) for m in tw.methods("optimizer")):
                continue
            kind = tw.method(re.match(r"\w+", written)[0]).kind
            form = {"schedule": f"sgd(lr={written})", "update": f"sgd | {written}"}.get(kind, written)
            tw.Optimizer(arrays(), form)


@pytest.mark.parametrize("name, says", [
    ("clip_by_global_norm", "did you mean `clip_global_norm`"), ("scale_by_adam", "did you mean `adam`"),
    ("scale_by_lion", "did you mean `lion`"), ("add_decayed_weights", "`weight_decay` of the update rule"),
    ("scale", "the rate of the update rule"), ("scale_by_schedule", "`sgd(lr=cosine(0.1, 1000))`"),
    ("warmup_cosine_decay_schedule", "did you mean `warmup_cosine`"), ("apply_every", "did you mean `gradient_acc"),
    ("trace", "`sgd(lr=0.1, momentum=0.9)`"), ("zero_nans", 'nonfinite="skip"'), ("AdamW", "did you mean `adamw`"),
    ("centralize", "did you mean `gradient_centralization`"), ("keep_params_nonnegative", "`project(non_negative)`"),
    ("CosineAnnealingLR", "did you mean `cosine`"), ("clip_grad_norm_", "did you mean `clip_global_norm`"),
])
def test_stages_of_elsewhere(name: str, says: str) -> None:
    for sentence in (f"{name}(1) | sgd", f"sgd(lr={name}(1))"):
        with pytest.raises(tw.MethodError) as caught:
            tw.Optimizer(arrays(), sentence)
        first = str(caught.value).split("\n")[0]
        assert says in first and f"`{name}` (" in first and first.count("did you mean") <= 1


@pytest.mark.parametrize("name, says", [
    ("clip_by_global_norm", "; clip_global_norm is a transform: a stage of a sentence"), ("scale_by_rms", "'RMSprop'"),
    ("CosineAnnealingLR", "; cosine is a schedule: thalweg.schedule('cosine'), or a value in a sentence, as in \"sgd("),
    ("trace", "no attribute 'trace'"),
])
def test_attributes_of_elsewhere(name: str, says: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(tw, name)
    assert says in str(caught.value)


@pytest.mark.parametrize("schedule, name, ours", [
    ("cosine(lr=0.1, decay_steps=10)", "decay_steps", "total"), ("cosine(0.1, T_max=10)", "T_max", "total"),
    ("cosine(0.1, 10, eta_min=0)", "eta_min", "end"), ("linear(init_value=0.1, total=10)", "init_value", "lr"),
    ("warmup_cosine(peak_value=0.1)", "peak_value", "peak"), ("exponential(0.1, decay_rate=1)", "decay_rate", "gamma"),
    ("exponential(0.1, 0.9, transition_steps=5)", "transition_steps", "every"),
])
def test_arguments_of_schedules_of_elsewhere(schedule: str, name: str, ours: str) -> None:
    with pytest.raises(tw.UnknownNameError, match=rf"`{name}` \(did you mean `{ours}`\?\)"):
        tw.Optimizer(arrays(), f"sgd(lr={schedule})")


def test_an_average_of_gradients() -> None:
    with pytest.raises(tw.MethodError, match="must stand after the update rule; .*`gradient_ema`"):
        tw.Optimizer(arrays(), "ema(0.9) | sgd")
    with pytest.raises(tw.MethodError, match="no method `scale_by_nothing`; .*\n"):
        tw.Optimizer(arrays(), "scale_by_nothing | sgd")


@pytest.mark.parametrize("call, kind", [
    (lambda: tw.Optimizer(arrays(), "kriging"), "method"), (lambda: tw.Optimizer(arrays(), "sgd(lr=kriging(3))"), "schedule"),
    (lambda: tw.Optimizer(arrays(), "penalty(kriging)"), "regularizer"), (lambda: tw.method("kriging"), "method"),
    *((lambda make=getattr(tw, kind): make("kriging"), kind)
      for kind in ("objective", "solver", "regularizer", "constraint", "schedule", "weighting", "diagnostic")),
])
def test_where_no_name_is_near_the_search_is_named(call: Any, kind: str) -> None:
    with pytest.raises(tw.MethodError) as caught:
        call()
    first = str(caught.value).split("\n")[0]
    assert first.endswith(f"no {kind} `kriging`; `python -m thalweg methods WORD` lists those that have a word")
    with pytest.raises(tw.MethodError) as caught:
        tw.weighting("dwaa")
    assert "did you mean" in str(caught.value) and "WORD" not in str(caught.value)


# ---- methods in the place of a number


@pytest.mark.parametrize("sentence, says", [
    ("fista(l1(0.5))", "got l1(0.5): write regularizer=l1(0.5)"), ("fista(l1)", "got l1: write regularizer=l1"),
    ("fista(mu=l1(0.5))", "got l1(0.5): write regularizer=l1(0.5)"), ("cg(l1)", "got l1"), ("cg(five)", "got five"),
])
def test_a_method_by_its_place_is_told_its_name(sentence: str, says: str) -> None:
    with pytest.raises(tw.ValueTypeError) as caught:
        tw.solver(sentence)
    assert str(caught.value).splitlines()[0].endswith(says)


@pytest.mark.parametrize("old, name", [
    ("Adamp", "AdamP"), ("Madgrad", "MADGRAD"), ("NewtonCg", "NewtonCG"), ("Sm3", "SM3")])
def test_classes_are_spelt_as_in_their_papers(old: str, name: str) -> None:
    assert getattr(tw, old) is getattr(tw, name) and old not in tw.__all__  # an earlier version's
    assert getattr(tw, name).__name__ == name


# ---- settings that a stage does not have


@pytest.mark.parametrize("make, sentence, says", [
    (tw.constraint, "max_norm(1, axis=row)", "max_norm takes at most 1 arguments, got 2; it has: max_norm, "
                                             "and no `axis`"),
    (tw.constraint, "box(0, 1, axis=row)", "; it has: lo, hi, and no `axis`"),
    (tw.regularizer, "l2(0.1, axis=col)", "; it has: weight, and no `axis`"),
    (tw.regularizer, "l1(0.1, 0.2)", "l1 takes at most 1 arguments, got 2; it has: weight"),
    (tw.constraint, "simplex(axis=row)", "in [-64, 63], or none, got row; each row of a matrix by itself: axis=1"),
    (tw.constraint, "l1_ball(1.0, axis=columns)", "got columns; each column of a matrix by itself: axis=0"),
    (tw.regularizer, "group_lasso(0.1, axis=rows)", "`axis` must be one of row, col, all, got rows"),
])
def test_settings_beyond_those_that_there_are(make: Any, sentence: str, says: str) -> None:
    with pytest.raises(tw.Error) as caught:
        make(sentence)
    first, shown, caret = str(caught.value).split("\n")
    assert first.endswith(says) and shown == f"  {sentence}" and caret.endswith("^")
    if make is tw.constraint:
        inside = f"route(matrix=(sgd | project({sentence})), bias=(adamw(lr=0.5)))"
        with pytest.raises(tw.Error, match=re.escape(says) + r"\n  route"):
            tw.Optimizer(arrays(), inside)


def test_the_axes_that_the_hints_name() -> None:
    w = np.array([[3.0, 1.0], [2.0, 5.0]])
    assert tw.constraint("simplex(axis=1)").project(w.copy()).sum(1).tolist() == [1.0, 1.0]
    assert tw.constraint("simplex(axis=0)").project(w.copy()).sum(0).tolist() == [1.0, 1.0]
    assert tw.constraint("simplex(axis=1)").project(w.copy()).tolist() == [[1.0, 0.0], [0.0, 1.0]]


# ---- which branch of route(...) takes a tensor


def test_branches_are_chosen_as_the_library_chooses_them() -> None:
    from thalweg import _notices

    patterns = ["*", "a*", "*.w?", "a.w", "?", "*w*b*", "A*", "é*", "a.??"]
    names = ["a.w", "a.w1", "b.w2", "ab", "a", "A", "é", "w.b", "a.é"]
    for selector in [*_notices.SELECTORS, *(f'"{pattern}"' for pattern in patterns)]:
        for shape in ((), (1,), (2, 2), (2, 1, 2)):
            for role in (None, "weight", *_notices.ROLES):
                for name in names if selector.startswith('"') else names[:1]:
                    try:
                        tw.Optimizer([{"params": [(name, np.ones(shape))], "role": role}], f"route({selector}=(sgd))")
                        takes = True
                    except tw.MethodError as problem:
                        assert "fits no pipeline" in str(problem)
                        takes = False
                    said = _notices.takes(selector, _notices.Tensor(name, shape, role))
                    assert said == takes, (selector, name, shape, role)


@pytest.mark.parametrize("sentence, said", [
    ("sgd | project(poincare)", "did you mean `poincare_ball`?"),
    ("sgd | prox(nuclear)", "did you mean `nuclear_norm`?"),
    ("sgd(lr=step(0.1, 10))", "did you mean `step_decay`?"),
    ("sgd(lr=cosine_annealing(0.1, 10))", "did you mean `cosine`?"),
    ("clip(1) | sgd", "`clip_value` of every entry, or `clip_global_norm`"),
    ("sgd | prox(l1, 0.1)", "write prox(l1(0.1))"),
    ("adamw | lookahead(adamw)", "it stands behind the rule: adamw | lookahead"),
    ("cma_es", "thalweg.solver('cma_es') makes one"),
    ('adamw(lr="1e-3")', "write 1e-3 without quotes"),
    ("adamw(lr=0,001)", "a value without a name goes to the first place"),
])
def test_what_was_meant(sentence: str, said: str) -> None:
    with pytest.raises(tw.Error) as caught:
        tw.Optimizer(arrays(), sentence)
    assert said in str(caught.value).split("\n")[0]


def test_words_of_other_places() -> None:
    with pytest.raises(tw.MethodError, match=r'thalweg.Optimizer\(params, "lbfgs"\) makes one'):
        tw.solver("lbfgs")
    with pytest.raises(tw.UnknownNameError, match="did you mean `temperature`"):
        tw.objective("info_nce(temp=0.1)")
    with pytest.raises(TypeError, match="'foreach' is torch's: thalweg.torch.AdamW takes it"):
        tw.AdamW(arrays(), foreach=True)
    with pytest.raises(tw.UnknownNameError, match=r"design \(X, one row a sample\), targets \(y\)"):
        tw.solver("lasso_cd(0.1)").run(X=np.ones((3, 2)), y=np.ones(3))
    with pytest.raises(TypeError, match=r"step\(\[...\]\), or as grads=\[...\]"):
        tw.Optimizer(arrays(), "sgd").step(grad=arrays())
    with pytest.raises(tw.DtypeError, match=r"of several tasks as the answers to opt.requests\(\)"):
        tw.Optimizer(arrays(), "pcgrad(tasks=2) | sgd").step([arrays(), arrays()])
    with pytest.raises(tw.ArgumentError, match="no kind 'optimizers' of methods; there are: aggregator, average"):
        tw.methods("optimizers")


@pytest.mark.parametrize("sentence, said", [
    ("adamw(beta1=0.8, 0.1)", "adamw: 0.1 has no name and stands behind a value that has one; it is taken as lr=0.1"),
    ("sgd(lr=linear(1e-3, 0, 100))", "linear: with a total of 0 it stands at its end from the first step"),
])
def test_what_is_hardly_meant_is_said(sentence: str, said: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(said)):
        tw.Optimizer(arrays(), sentence)


def test_private_noise_from_a_seed_that_everybody_knows_is_said():
    private = "dp_sgd(noise_multiplier={}, expected_batch_size=2) | sgd"
    with pytest.warns(UserWarning, match="seed 0, which everybody knows"):
        tw.Optimizer([np.ones(2)], private.format(1.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tw.Optimizer([np.ones(2)], private.format(1.1), seed=5)
        tw.Optimizer([np.ones(2)], private.format(0))  # no noise
        tw.Optimizer([np.ones(2)], "sgd")


@pytest.mark.parametrize("sentence, says", [
    ("penalty(huber) | sgd(0.1)", "a regularizer is wanted here: `huber_penalty` is one"),
    ("sgd(0.1) | project(l1)", "a constraint is wanted here: `l1_ball` is one"),
    ("sgd(0.1) | prox(simplex)", r"a regularizer is wanted here; a set stands in `project\(simplex\)`, behind the rule"),
    ("sgd(0.1) | project(group_lasso)", r"a constraint is wanted here; a penalty stands in `prox\(group_lasso\)`"),
    ("penalty(mse) | sgd(0.1)", r"thalweg\.objective\('mse'\) makes one"),
])  # fmt: skip
def test_a_method_in_the_place_of_another_kind(sentence: str, says: str) -> None:
    with pytest.raises(tw.MethodError, match=says):
        tw.Optimizer(arrays(), sentence)
