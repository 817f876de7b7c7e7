"""The caret under a sentence points at what is meant, in schedules, lists, routes and objects too."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw


def pointed_at(call: Callable[[], Any]) -> str:
    """What stands in the sentence from the caret on."""
    with pytest.raises(tw.Error) as caught:
        call()
    _, sentence, caret = str(caught.value).split("\n")
    assert caret.strip() == "^"
    return sentence[len(caret) - 1 :]


@pytest.mark.parametrize("sentence, at", [
    ("clip_value(1) | sgd(momentum=0.9, lr=cosin(lr=1, total=4))", "cosin("),
    ("clip_value(1) | sgd(lr=cosine(lr=1, totl=4))", "totl"),
    ("clip_value(1) | sgd(momentum=0.9, lr=cosine(lr=1))", "cosine("),
    ("clip_value(1) | sgd(momentum=0.9, lr=cosine(lr=1, total=-4))", "total=-4"),
    ("sgd(lr=warmup(10, cosin(lr=1, total=4)))", "cosin("),
    ("sgd(lr=join([linear(0, end=0.1, total=10), cosin(0.1, total=10)], boundaries=[10]))", "cosin("),
    ("sgd(lr=join([linear(0, end=0.1, total=10), cosine(0.1)], boundaries=[10]))", "cosine("),
    ("sgd(lr=join([linear(0, end=0.1, total=10), cosine(0.1, 10)], boundaries=[10, 5]))", "join("),
    ("sgd | penalty(l1(weigt=1))", "weigt"), ("sgd | project(l1(1))", "l1("), ("sgd | prox(l11(1))", "l11("),
    ("adamw(lr=0.1, lr=0.2)", "lr=0.2"), ("sgd(0.1, lr=0.2)", "lr=0.2"),
    ("route(matrix=(muon), othr=(adamw))", "othr"), ("route(matrix=(muon), other=3)", "other=3"),
    ("route(matrix=(muon), (adamw))", "(adamw)"), ("route(matrix=(muon), other=(adamw(lrr=1)))", "lrr"),
    ("adamw |\n ema(decay=2)", "decay=2"), ("adamw |\r\n ema(decay=2)", "decay=2"),
    ("adamw(lr=1, betas=(0.9,\n0.999))", "0.9, 0.999))"),
    ('route("größe"=(sgd(lr=-1)), other=(sgd))', "lr=-1"),
])
def test_sentences(sentence: str, at: str) -> None:
    assert pointed_at(lambda: tw.Optimizer([np.ones((3, 3), np.float32)], sentence)).startswith(at)


def test_objects() -> None:
    for call, at in ((lambda: tw.schedule("warmup(10, cosine(lr=1, total=-4))"), "total=-4"),
                     (lambda: tw.schedule("warmup(10, cosin(lr=1, total=4))"), "cosin("),
                     (lambda: tw.regularizer("l1(weigt=3)"), "weigt"), (lambda: tw.solver("cg(rtoll=1)"), "rtoll"),
                     (lambda: tw.constraint("l2_bal(1)"), "l2_bal(")):
        assert pointed_at(call).startswith(at)


def test_values_that_are_set() -> None:
    opt = tw.Optimizer([np.ones(3)], "sgd")
    for value, at in (("cosine(lr=1, totl=4)", "totl"), ("warmup(10, cosin(lr=1, total=4))", "cosin(")):
        assert pointed_at(lambda value=value: opt.set("lr", value)).startswith(at)
    assert opt.get("lr") == 0.001
