"""What a request says of the minibatch, and what it asks for beside it: tags, losses, observed numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, Host, cases, same

# Where a step wants more than one minibatch: the curvature at a point between, and the steps of an inner run.
SEVERAL = {"dp_sgd", "harpg", "sga_uap", "sga_uap_3", "accumulate_sam", "accumulate_friendly", "routed_accumulate"}


def tags(host: Host, k: int) -> list[int]:
    host.bind()
    host.tell(k)
    found = []
    for request in host.opt.requests():
        found.append(request.tag)
        host.answer(request, k)
    return found


@pytest.mark.parametrize("name", cases())
def test_tags_tell_steps_apart(name: str) -> None:
    """Every step has its own; within a step they are equal but where the method wants another minibatch."""
    host = Host(name)
    seen: set[int] = set()
    for k in range(5):
        found = tags(host, k)
        assert not seen & set(found)
        assert len(set(found)) == 1 or name in SEVERAL
        seen |= set(found)


@pytest.mark.parametrize(
    "rest",
    ["sgd(lr=0.1)", "adamw(lr=0.1) | ema(0.9)", "polyak_sgd", "route(matrix=(muon(lr=0.1)), other=(adamw(lr=0.1)))"],
)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_tags_of_an_accumulation_window(every: int, rest: str) -> None:
    """Each call is another minibatch, whether it ends in a step or not; after a resume and in a copy too."""
    sentence = f"gradient_accumulate(every={every}) | {rest}"
    shapes = [(3,), (2, 2)]
    host, seen = Host(sentence, shapes), []
    for k in range(2 * every + 1):
        seen += tags(host, k)
    twin = Host(sentence, shapes, start=host.weights)
    twin.opt.load_state_dict(host.opt.state_dict())
    for k in range(7, 7 + every):
        ours, theirs = tags(host, k), tags(twin, k)
        assert ours == theirs
        seen += ours
        same(host, twin)
    assert len(set(seen)) == len(seen) == 3 * every + 1
    assert host.opt.steps == (3 * every + 1) // every


def test_a_skipped_step_was_a_minibatch() -> None:
    opt = tw.Optimizer([np.ones(2)], "sgd(lr=0.1)", nonfinite="skip")
    seen = []
    for value in (1, np.nan, np.nan, 1):
        for request in opt.requests():
            seen.append(request.tag)
            request.answer([np.full(2, float(value))])
    assert len(set(seen)) == 4 and opt.skipped == 2


def test_a_flush_ends_the_window() -> None:
    """Two of four calls, then the step with their mean; a new window begins.  A flush needs no gradients."""
    for resumed in (False, True):
        w = np.zeros(2)
        opt = tw.Optimizer([("w", w)], "gradient_accumulate(every=4) | sgd(lr=1)")
        for value in (1.0, 3.0):
            opt.step([np.full(2, value)])
        if resumed:
            state, w = opt.state_dict(), np.zeros(2)
            opt = tw.Optimizer([("w", w)], "gradient_accumulate(every=4) | sgd(lr=1)")
            opt.load_state_dict(state)
        opt.command("gradient_accumulate.flush")
        np.testing.assert_allclose(w, -2, rtol=1e-15)
        for value in (1.0, 1.0, 1.0, 5.0):
            np.testing.assert_allclose(w, -2, rtol=1e-15)
            opt.step([np.full(2, value)])
        np.testing.assert_allclose(w, -4, rtol=1e-15)
        assert opt.steps == 2


# ---- losses


def quadratic(w: np.ndarray) -> tuple[float, np.ndarray]:
    return float(0.5 * w @ w), w.copy()


OPENED = ["pcgrad(tasks=2)", "upgrad(tasks=2)"]
NEEDING = ["polyak_sgd", "sania"]


@pytest.mark.parametrize("rule", NEEDING)
@pytest.mark.parametrize("opening", OPENED)
def test_the_loss_is_asked_for(opening: str, rule: str) -> None:
    """Of a stage that needs it, behind a source that opens with gradients of tasks; each task is half of |x|^2/2 here.

    Gradients that do not conflict are summed by pcgrad: the step is that of the whole gradient in one piece.
    """
    w, v = np.array([3.0, 4.0]), np.array([3.0, 4.0])
    opt = tw.Optimizer([w], f"{opening} | {rule}")
    plain = tw.Optimizer([v], rule)
    for _ in range(3):
        kinds, seen = [], []
        for request in opt.requests():
            kinds.append(request.kind)
            seen.append(request.tag)
            loss, g = quadratic(w)
            if request.wants_loss:
                request.loss = loss
            if request.wants_gradient:
                request.answer([g / 2])
        assert sum("loss" in kind for kind in kinds) == 1 and kinds.count("task_gradient") == 2
        assert len(set(seen)) == 1
        loss, g = quadratic(v)
        for request in plain.requests():
            request.answer([g], loss)
        assert np.all(np.isfinite(w))
    if opening.startswith("pcgrad"):  # gradients that do not conflict are summed
        np.testing.assert_allclose(w, v, rtol=1e-12)


@pytest.mark.parametrize("rule", NEEDING)
@pytest.mark.parametrize("opening", [*OPENED, "sam(0.1)", "tract(0.1)", "gradient_accumulate(every=1)"])
def test_a_loss_that_is_not_given(opening: str, rule: str) -> None:
    """NeedsError, and nothing has happened; a NaN for a loss does not reach the rule either."""
    w = np.ones((2, 3))
    for given in (None, np.nan):
        opt = tw.Optimizer([w], f"{opening} | {rule}")
        with pytest.raises((tw.NeedsError, tw.NonfiniteError)):
            for request in opt.requests():
                if request.kind == "activations":
                    request.answer_matrix(np.ones((4, 3)), np.ones((4, 2)))
                    continue
                if request.wants_gradient:
                    request.answer([w.copy()])
                if request.wants_loss and given is not None:
                    request.loss = given
        assert np.all(w == 1) and opt.steps == 0


def test_an_observed_loss_is_not_asked_for_again() -> None:
    """Told before the step, or answered: the same step."""
    w, v = np.array([3.0, 4.0]), np.array([3.0, 4.0])
    told, asked = tw.Optimizer([w], "polyak_sgd"), tw.Optimizer([v], "polyak_sgd")
    for _ in range(3):
        loss, g = quadratic(w)
        told.observe("loss", loss)
        told.step([g])
        for request in asked.requests():
            request.answer([v.copy()], quadratic(v)[0])
        np.testing.assert_array_equal(w, v)


# ---- what is observed counts for one step


def run(opt: tw.Optimizer, gradient: float = 1.0) -> None:
    for request in opt.requests():
        request.answer([np.full(p.shape, gradient) for p in opt.params])
        if request.wants_loss:
            request.loss = 0.5


def test_an_observed_loss_serves_one_step() -> None:
    for policy, first in (("propagate", 1.0), ("skip", np.nan)):
        opt = tw.Optimizer([np.ones(2)], "polyak_sgd", nonfinite=policy)
        opt.bind_gradients([np.full(2, first)])
        opt.observe("loss", 0.5)
        opt.step()
        opt.grads[0][:] = 1
        with pytest.raises(tw.NeedsError):
            opt.step()  # that of the step before, taken or skipped, is gone
        opt.observe("loss", 0.5)
        opt.step()
        assert opt.steps == (2 if policy == "propagate" else 1)


def test_an_observed_sample_serves_one_step() -> None:
    """saga falls back to t mod n; with the samples 2, -, - the rows written are 2, 1, 2."""
    opt = tw.Optimizer([np.ones(2)], "saga(lr=0.1, n=3)")
    opt.observe("sample", 2)
    for value in (1.0, 2.0, 3.0):
        run(opt, value)
    tables = [opt.state()[f"saga.table_{i}"][0].tolist() for i in range(3)]
    assert tables == [[0, 0], [2, 2], [3, 3]]


def test_the_number_of_samples_serves_one_call() -> None:
    """(1*2 + 3*6)/(2 + 6) = 2.5 for the gradients 1 and 3 of 2 and 6 samples; the third call has no number."""
    w = np.zeros(2)
    opt = tw.Optimizer([w], "gradient_accumulate(every=2, mode=weighted) | sgd(lr=1)")
    for value, samples in ((1.0, 2), (3.0, 6)):
        opt.observe("samples", samples)
        run(opt, value)
    np.testing.assert_allclose(w, -2.5, rtol=1e-15)
    with pytest.raises(tw.NeedsError):
        run(opt)
    np.testing.assert_allclose(w, -2.5, rtol=1e-15)


def test_a_metric_is_an_event() -> None:
    """It is counted once, however many steps follow, and how many groups there are."""
    opt = tw.SGD(
        [{"params": [np.zeros(1)]}, {"params": [np.zeros(1)]}], lr="reduce_on_plateau(lr=1, patience=0, factor=0.5)"
    )
    for metric, want in ((2.0, 1.0), (None, 1.0), (2.0, 0.5), (None, 0.5), (1.0, 0.5), (3.0, 0.25)):
        if metric is not None:
            opt.observe("metric", metric)
        before = [p.copy() for p in opt.params]
        run(opt)
        assert [float((b - p)[0]) for b, p in zip(before, opt.params)] == [want, want]


# ---- closures


@pytest.mark.parametrize(
    "name", [n for n in CASES if n.split("_")[0] in ("dal", "oasis", "harpg", "sania") and n != "sania"]
)
def test_a_closure_that_cannot_know_what_is_asked(name: str) -> None:
    """One without an argument gives a gradient, which is no product with the curvature: refused, nothing happened."""
    host = Host(name)
    for k in range(2):
        host.step(k)
    view = host.view()
    host.bind()

    def closure() -> tuple[float, Any]:
        return host.loss(2), [host.problem.gradient(host.weights, 2)[i] for i in host.order]

    with pytest.raises(tw.NeedsError):
        host.opt.step(closure)
    now = host.view()
    assert [key for key in view if now[key] != view[key]] == []
