"""Requests say what they show and want, and answers may go by these names: the same bits as by position."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from thalweg._registry import request_kinds

A = np.diag([1.0, 2.0, 3.0, 4.0])
X = np.arange(12.0).reshape(3, 4) / 10
D = np.arange(6.0).reshape(3, 2) / 10 - 0.2


def test_every_kind_is_declared() -> None:
    kinds = {k.name: k for k in request_kinds()}
    assert list(kinds)[:3] == ["gradient", "loss", "loss_and_gradient"] and len(kinds) == 10
    asked = {r.split(" ")[0] for m in tw.methods() if m.kind != "solver" for r in m.requests}
    for name, kind in kinds.items():
        assert kind.meaning and kind.wanted and name == name.lower()
    assert [i.name for i in kinds["hessian_vector"].given] == ["probe"]
    assert [(i.name, i.shape) for i in kinds["activations"].wanted] == [
        ("inputs", "(rows, in)"), ("output_gradients", "(rows, out)")]
    assert asked, "methods tell what they ask for"


def gradient(w: np.ndarray) -> np.ndarray:
    return w @ A


def by_position(r: tw.Request, w: np.ndarray) -> None:
    if r.kind == "activations":
        r.answer_matrix(X, D)
    elif r.kind == "logit_derivatives":
        r.answer_matrix(X @ r.probe[0].T, X @ w.T)
    elif r.kind == "sample_gradients":
        r.answer_samples([D[:, :, None] * X[:, None, :]])
    elif r.kind == "hessian_vector":
        r.answer([r.probe[0] @ A])
    elif r.kind == "loss":
        r.answer(loss=float(np.sum(w * gradient(w)) / 2))
    elif r.kind == "participant":
        r.answer([w - 0.01 * (1 + r.index) * gradient(w)])
    else:
        r.answer([gradient(w) * (1 + r.index)], float(np.sum(w * gradient(w)) / 2))


def by_name(r: tw.Request, w: np.ndarray) -> None:
    answers: dict[str, Callable[[], Any]] = {
        "gradients": lambda: [gradient(w) * (1 + r.index)], "loss": lambda: float(np.sum(w * gradient(w)) / 2),
        "products": lambda: [r.probe[0] @ A], "derivatives": lambda: X @ r.probe[0].T, "logits": lambda: X @ w.T,
        "inputs": lambda: X, "output_gradients": lambda: D, "samples": lambda: [D[:, :, None] * X[:, None, :]],
        "parameters": lambda: [w - 0.01 * (1 + r.index) * gradient(w)],
    }
    r.answer(**{i.name: answers[i.name]() for i in r.declared.wanted})


SENTENCES = (
    "sgd(lr=0.1)", "sam(0.05) | adamw(lr=0.01)", "adahessian(lr=0.01)", "sophia(lr=0.01)", "kfac(lr=0.01)",
    "dp_sgd(noise_multiplier=1, expected_batch_size=3) | sgd(lr=0.1)", "pcgrad | sgd(lr=0.1)", "newton_cg", "spsa",
    "fedavg | sgd(lr=1)", "storm", "sgd(lr=0.1) | ghost_step",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_same_bits_by_name(sentence: str) -> None:
    kinds, runs = set(), []
    for answer in (by_position, by_name):
        w = (np.arange(8.0).reshape(2, 4) - 3) / 4
        with tw.Optimizer([w], sentence) as opt:
            for _ in range(4):
                for r in opt.requests():
                    kinds.add(r.kind)
                    answer(r, w)
        runs.append(w)
    assert kinds and np.array_equal(runs[0], runs[1]) and np.isfinite(runs[0]).all()


@pytest.mark.filterwarnings("ignore")
def test_every_kind_was_answered() -> None:
    """The sentences above ask for every kind that there is."""
    seen = set()
    for sentence in SENTENCES:
        w = np.ones((2, 4))
        with tw.Optimizer([w], sentence) as opt:
            for _ in range(2):
                for r in opt.requests():
                    seen.add(r.kind)
                    by_position(r, w)
    assert seen == {k.name for k in request_kinds()}


def test_names_that_are_not_wanted() -> None:
    w, g = np.ones((2, 4)), np.ones((2, 4))
    with tw.Optimizer([w], "adahessian") as opt:
        for r in opt.requests():
            if r.kind == "hessian_vector":
                with pytest.raises(tw.UnknownNameError, match=r"hessian_vector wants `products` \(\.\.\.,?\), not `gradients`"):
                    r.answer(gradients=[g])
                r.answer(products=[g])
            else:
                with pytest.raises(tw.UnknownNameError, match="beside grads"):
                    r.answer([g], gradients=[g])
                r.answer(gradients=[g], loss=1.0)
    with tw.Optimizer([w], "kfac") as opt:
        for r in opt.requests():
            if r.kind == "activations":
                with pytest.raises(tw.NeedsError, match="wants `output_gradients`"):
                    r.answer(inputs=X)
                r.answer(output_gradients=D, inputs=X)
            else:
                r.answer(gradients=[g])


def waiting_for(kind: str, sentence: str, n: int = 1, **options: Any) -> tuple[tw.Optimizer, Any, tw.Request]:
    """An optimizer, with gradients that are bound, whose loop stands at the first request of that kind."""
    opt = tw.Optimizer([np.ones((2, 4)) for _ in range(n)], sentence, **options)
    opt.bind_gradients([np.ones((2, 4)) for _ in range(n)])
    requests = opt.requests()
    return opt, requests, next(r for r in requests if r.kind == kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, sentence, given, name", [
    ("gradient", "sgd(lr=0.1)", {"gradients": None}, "gradients"),
    ("hessian_vector", "adahessian", {"products": None}, "products"),
    ("sample_gradients", SENTENCES[5], {"samples": None}, "samples"),
    ("activations", "kfac", {"inputs": None, "output_gradients": D}, "inputs"),
    ("activations", "kfac", {"inputs": X, "output_gradients": None}, "output_gradients"),
    ("logit_derivatives", "sgd(lr=0.1) | ghost_step", {"derivatives": None, "logits": None}, "derivatives"),
])
def test_none_is_no_answer(kind: str, sentence: str, given: dict[str, Any], name: str) -> None:
    """Nor are the gradients that are bound since an earlier request."""
    opt, _, request = waiting_for(kind, sentence)
    with pytest.raises(tw.NeedsError, match=f"{kind} wants `{name}`"):
        request.answer(**given)


@pytest.mark.filterwarnings("ignore")
def test_messages_call_answers_by_their_names() -> None:
    _, _, request = waiting_for("hessian_vector", "adahessian", names=["w"])
    for bad, problem, words in (
        ([np.ones(8)], tw.ShapeError, r"^product 0 \(`w`\) has shape \[8\]"), ([], tw.CountError, "^expected 1 products, .* got 0"),
        ([np.ones((2, 4), int)], tw.DtypeError, r"^product 0 .*int64"), (3, TypeError, "^products are given as a list"),
        (request._optimizer.params, tw.OverlapError, "^product 0 .*parameter 0.*release_gradients"),
    ):  # fmt: skip
        with pytest.raises(problem, match=words):
            request.answer(products=bad)
    for bad, problem, words in ((np.nan, tw.NonfiniteError, "^product 0 .* NaN"), (None, tw.SequenceError, "^product 0 is absent")):
        _, requests, request = waiting_for("hessian_vector", "adahessian")
        request.answer(products=[None if bad is None else np.full((2, 4), bad)])
        with pytest.raises(problem, match=words):
            next(requests)
    _, _, request = waiting_for("participant", "fedavg | sgd(lr=1)")
    with pytest.raises(tw.ShapeError, match=r"^participant's parameter 0 has shape \[8\]"):
        request.answer(parameters=[np.ones(8)])
    _, _, request = waiting_for("activations", "kfac")
    for given, problem, words in (
        ({"inputs": X.astype(int), "output_gradients": D}, tw.DtypeError, "^inputs: element type int64"),
        ({"inputs": X, "output_gradients": D[None]}, tw.ShapeError, "^output_gradients must have two axes"),
    ):  # fmt: skip
        with pytest.raises(problem, match=words):
            request.answer(**given)
    _, _, request = waiting_for("sample_gradients", SENTENCES[5], names=["w"])
    for bad in (D, "text", 3):
        with pytest.raises(TypeError, match="^samples are given as a list"):
            request.answer(samples=bad)
    request.answer(samples={"w": D[:, :, None] * X[:, None, :]})


def test_a_loss_is_a_number() -> None:
    for bad in ("1", b"1", 10**400, 1j, [1.0]):
        _, _, request = waiting_for("loss_and_gradient", "polyak_sgd")
        before = request.loss
        with pytest.raises(tw.ValueTypeError, match="the loss of an answer is one number"):
            request.answer(gradients=[np.ones((2, 4))], loss=bad)
        assert request.loss is before
    with tw.SGD([np.ones(2)], lr=0.1) as opt, pytest.raises(tw.ValueTypeError, match="gradient_scale is a number"):
        tw.SGD([np.ones(2)], lr=0.1, gradient_scale=10**400)
    assert opt.closed


def test_a_step_that_was_cancelled_takes_no_answer() -> None:
    """Neither does its loop go on, with another step."""
    opt, requests, request = waiting_for("hessian_vector", "adahessian")
    opt.cancel()
    with pytest.raises(tw.SequenceError, match="is over"):
        request.answer(products=[np.ones((2, 4))])
    with pytest.raises(tw.SequenceError, match="the step was cancelled"):
        next(requests)
    for request in opt.requests():
        request.answer([np.ones((2, 4))])
    assert opt.steps == 1
