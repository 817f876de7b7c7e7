"""Weights that the host writes, and then saves, copies, evaluates or breaks off a step before the next one has seen them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import thalweg as tw

ONES = np.ones(4, np.float32)
SENTENCES = [
    "schedule_free_sgd(lr=0.1)",
    "schedule_free_adamw(lr=0.1)",
    "sgd(lr=0.1) | lookahead(k=3)",
    "dog",
    "prodigy",
    "o2nc",
    "nigt(lr=0.1)",
    "optimistic_omd(lr=0.1)",
    "sgd(lr=0.1) | nm_sparsity(2, 4)",
]


def stepped(sentence: str) -> tuple[Any, np.ndarray]:
    w = np.array([1, 2, 3, 4], np.float32)
    opt = tw.Optimizer([w], sentence)
    for _ in range(2):
        opt.step([ONES])
    return opt, w


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_write_before_a_copy_is_seen_by_the_copy(sentence: str) -> None:
    opt, w = stepped(sentence)
    w[:] = [10, 9, 8, 11]
    twin = copy.deepcopy(opt)
    for _ in range(3):
        opt.step([ONES])
        twin.step([ONES])
    assert twin.params[0].tobytes() == w.tobytes()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_write_before_a_copy_within_the_step(sentence: str) -> None:
    opt, w = stepped(sentence)
    w[:] = [10, 9, 8, 11]
    twin: Any = None
    for request in opt.requests():
        twin = copy.deepcopy(opt)
        request.answer([ONES])
    for request in twin.requests():
        request.answer([ONES])
    assert twin.params[0].tobytes() == w.tobytes()


@pytest.mark.parametrize("how", ["break", "skip", "copy and cancel"])
def test_hidden_weights_survive_a_step_that_is_broken_off(how: str) -> None:
    """Behind a mask: what the host wrote is seen, and what it could not see stays."""
    results = []
    for disturbed in (False, True):
        w = np.array([1, 2, 3, 4], np.float32)
        g = np.full(4, 0.1, np.float32)
        opt = tw.Optimizer([w], "sgd(lr=0.1) | nm_sparsity(2, 4)", nonfinite="skip")
        opt.step([g])
        w *= np.float32(0.5)
        before = w.copy()
        if disturbed and how == "break":
            for _ in opt.requests():
                break
        elif disturbed and how == "skip":
            opt.step([g * np.float32(np.nan)])
        elif disturbed:
            twin: Any = None
            for _ in opt.requests():
                twin = copy.deepcopy(opt)
                break
            twin.cancel()
            np.testing.assert_array_equal(twin.params[0], before)
            opt, w = twin, twin.params[0]
        if disturbed:
            np.testing.assert_array_equal(w, before)
        opt.step([g])
        results.append(w.tobytes())
    assert results[0] == results[1]


def test_evaluation_weights_follow_a_write() -> None:
    opt, w = stepped("schedule_free_sgd(lr=0.1)")
    w[:] = [5, 6, 7, 8]
    opt.eval()
    np.testing.assert_array_equal(w, [5, 6, 7, 8])
    opt.train()
    np.testing.assert_array_equal(w, [5, 6, 7, 8])


@pytest.mark.parametrize("grown", [False, True])
def test_groups_that_were_added_fit_groups_that_were_there(grown: bool) -> None:
    """And the other way round: by position, whatever their names."""

    def made(grown: bool) -> Any:
        a, b = np.zeros(2), np.zeros(2)
        if not grown:
            return tw.Optimizer([{"params": [("a", a)]}, {"params": [("b", b)]}], "sgd(lr=0.1)")
        opt = tw.Optimizer([("a", a)], "sgd(lr=0.1)")
        opt.add_param_group({"params": [("b", b)]})
        return opt

    first = made(grown)
    first.param_groups[1]["lr"] = 0.01
    other = made(not grown)
    other.load_state_dict(first.state_dict())
    other.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(other.params[0], [-0.1, -0.1])
    np.testing.assert_array_equal(other.params[1], [-0.01, -0.01])
