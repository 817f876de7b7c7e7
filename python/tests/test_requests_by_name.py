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
