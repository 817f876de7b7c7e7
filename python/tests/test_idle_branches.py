"""A branch of route(...) to which no tensor goes is said, once, from every host; other branches are not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import _notices

SHAPES = {"embed.weight": (5, 3), "body.weight": (3, 3), "body.bias": (3,), "head.weight": (2, 3), "scale": ()}
ROLES = {"embed.weight": "embedding", "body.bias": "bias", "head.weight": "head"}
MISSPELT = "route(matrices=(muon(lr=0.1)), other=(sgd(lr=1)))"
RIGHT = "route(matrix=(muon(lr=0.1)), other=(sgd(lr=1)))"


def groups() -> list[dict[str, Any]]:
    return [{"params": [(name, np.ones(shape))], "role": ROLES.get(name)} for name, shape in SHAPES.items()]


def said(make: Callable[[], Any]) -> list[str]:
    """The warnings of `make`, which all are at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("selector", [
    *_notices.SELECTORS, '"*.weight"', '"b?dy.*"', '"scale"', '"*"', '"[b]*"', '"nothing"'])
def test_branches_are_chosen_as_the_library_does(selector: str) -> None:
    given = groups()
    with _notices.quiet():
        opt = tw.Optimizer(given, f"route({selector}=(sgd(lr=0)), other=(sgd(lr=1)))" if selector != "other"
                           else "route(other=(sgd(lr=0)))")
    arrays = opt.params
    opt.step([np.ones_like(a) for a in arrays])
    assert [bool((a == 1).all()) for a in arrays] == [_notices.takes(selector, t) for t in _notices.tensors_of(opt)]


@pytest.mark.parametrize("sentence, words", [
    (MISSPELT, ['no tensor goes to "matrices"=(muon(', "no name fits ('embed.weight'", "write matrix=(...)", "(5, 3)"]),
    ("route(Embed=(sgd(lr=1)), other=(sgd(lr=1)))", ['"Embed"=(sgd(', "write embedding=(...)"]),
    ('route("*.norm"=(sgd(lr=1)), other=(sgd(lr=1)))', ['"*.norm"=(sgd(', "no name fits"]),
    ("route(norm=(sgd(lr=1)), other=(sgd(lr=1)))", ["norm=(sgd(", "no parameter has that role", '"role": "norm"']),
    ("route(other=(sgd(lr=1)), matrix=(muon(lr=0.1)))", ["matrix=(muon(", "other=(...) stands before it"]),
], ids=["misspelt", "capital", "pattern", "role", "order"])
def test_what_is_said(sentence: str, words: list[str]) -> None:
    text, = said(lambda: tw.Optimizer(groups(), sentence))
    assert all(word in text for word in words), text


def test_several_branches_are_one_warning() -> None:
    text, = said(lambda: tw.Optimizer(groups(), "route(matrices=(adamw), norm=(sgd(lr=1)), other=(sgd(lr=1)))"))
    assert '"matrices"=' in text and "norm=" in text


@pytest.mark.parametrize("sentence", [
    RIGHT, "route(matrix=(muon), embedding=(sgd(lr=1)), other=(adamw))", 'route("*"=(adamw), other=(muon))', "adamw"])
def test_nothing_is_said_where_every_branch_has_tensors(sentence: str) -> None:
    assert said(lambda: tw.Optimizer(groups(), sentence)) == []


def test_copies_do_not_say_it_again() -> None:
    made: list[Any] = []
    assert len(said(lambda: made.append(tw.Optimizer(groups(), MISSPELT)))) == 1
    assert said(lambda: copy.deepcopy(made[0])) == []


def test_unnamed_parameters_and_a_misspelt_selector() -> None:
    with pytest.raises(tw.ArgumentError, match=r"the parameters have none.*write matrix=\(\.\.\.\)"):
        tw.Optimizer([np.ones((2, 2))], MISSPELT)


def test_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    model = torch.nn.Linear(3, 2)
    for make in (thalweg.torch.Optimizer, thalweg.torch.InBackward):
        text, = said(lambda: make(model.named_parameters(), MISSPELT))
        assert '"matrices"=' in text and "'weight', 'bias'" in text and "(2, 3), (2,)" in text
        assert said(lambda: make(model.named_parameters(), RIGHT)) == []
    later = [{"params": [model.weight]}, {"params": [], "role": "bias"}]
    assert said(lambda: thalweg.torch.Optimizer(later, "route(bias=(sgd(lr=1)), other=(adamw))")) == []


def test_in_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    import thalweg.jax

    params = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    text, = said(lambda: thalweg.jax.Optimizer(params, MISSPELT))
    assert '"matrices"=' in text and "\"['b']\"" in text

    def whole(sentence: str) -> None:
        tx = thalweg.jax.optimizer(sentence)
        tx.apply(params, tx.init(params), params)

    text, = said(lambda: whole(MISSPELT))
    assert '"matrices"=' in text
    assert said(lambda: whole("route(matrix=(sgd(lr=0.1)), other=(adamw))")) == []
