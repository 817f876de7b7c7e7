"""A step that is broken off leaves no trace: every method that asks more than once, every request, every way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import given, CASES, Host, many, same, shapes_of
from support import LOSSES_ALONE

STEPS = 3  # taken before the step that is broken off: methods with a previous point ask for it by then

HABITS = ["bound", "arrays", "released", "zeroed"]


def answer(host: Host, request: tw.Request, k: int, habit: str) -> None:
    """In the bound gradients, or with arrays of the host's own."""
    host.answer(request, k)
    if habit == "arrays" and request.wants_gradient:
        request.answer([g.copy() for g in host.grads], request.loss)


def leave(host: Host, habit: str) -> None:
    """What the host has done to its gradients when the step breaks."""
    if habit == "released":
        host.opt.release_gradients()
    elif habit == "zeroed":
        for g in host.grads:
            g[...] = 0
    elif habit == "arrays":
        host.opt.bind_gradients([None] * len(host.grads))


class Given(Exception):
    """What a host raises."""


def by_exception(host: Host, at: int, habit: str, k: int) -> None:
    """In the body of the loop."""
    with contextlib.suppress(Given), contextlib.closing(host.opt.requests()) as loop:
        for n, request in enumerate(loop):
            if n == at:
                leave(host, habit)
                raise Given
            answer(host, request, k, habit)


def by_break(host: Host, at: int, habit: str, k: int) -> None:
    """The loop is left and forgotten."""
    for n, request in enumerate(host.opt.requests()):
        if n == at:
            leave(host, habit)
            break
        answer(host, request, k, habit)


def by_throw(host: Host, at: int, habit: str, k: int) -> None:
    """A signal that arrives while the generator itself runs."""
    loop = host.opt.requests()
    with pytest.raises(KeyboardInterrupt):
        for n, request in enumerate(loop):
            if n == at:
                leave(host, habit)
                loop.throw(KeyboardInterrupt())
            answer(host, request, k, habit)


def by_cancel(host: Host, at: int, habit: str, k: int) -> None:
    loop = host.opt.requests()
    for n, request in enumerate(loop):
        if n == at:
            leave(host, habit)
            host.opt.cancel()
            break
        answer(host, request, k, habit)
    loop.close()


def by_closure(host: Host, at: int, habit: str, k: int) -> None:
    """KeyboardInterrupt inside a closure."""
    asked = iter(range(1000))

    def closure(request: tw.Request) -> None:
        if next(asked) == at:
            leave(host, habit)
            raise KeyboardInterrupt
        answer(host, request, k, habit)

    with pytest.raises(KeyboardInterrupt):
        host.opt.step(closure)


WAYS: dict[str, Callable[[Host, int, str, int], None]] = {
    "exception": by_exception,
    "break": by_break,
    "throw": by_throw,
    "cancel": by_cancel,
    "closure": by_closure,
}


def made(name: str, steps: int = STEPS, **options: Any) -> Host:
    host = Host(name, seed=6, **options)
    for k in range(steps):
        host.step(k)
    return host


def requests(name: str, k: int) -> int:
    return made(name, k).step(k)


def unchanged(host: Host, view: dict[str, Any], why: str) -> None:
    now = host.view()
    assert [key for key in view if now[key] != view[key]] == [], why
    assert now.keys() == view.keys(), why


def goes_on(host: Host, name: str, steps: int, **options: Any) -> None:
    """The next two steps are those of a host that was never disturbed."""
    twin = made(name, steps, **options)
    for k in (steps, steps + 1):
        host.step(k)
        twin.step(k)
        same(host, twin)


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", many())
def test_broken_off(name: str, way: str, steps: int) -> None:
    """At every request, after every habit; at the first step too, before which there is no state."""
    host = made(name, steps)
    view = host.view() if steps else {f"t{i}": w.tobytes() for i, w in enumerate(host.weights)}
    for at in range(min(requests(name, steps), 4)):
        for habit in HABITS:
            host.bind()
            host.tell(steps)
            WAYS[way](host, at, habit, steps)
            if steps:
                unchanged(host, view, f"request {at}, {habit}")
            else:
                for i, w in enumerate(host.weights):
                    assert w.tobytes() == view[f"t{i}"], f"request {at}, {habit}"
    goes_on(host, name, steps)


def later_gradients(name: str) -> Iterator[int]:
    """The requests behind the first that are answered in the gradients."""
    host = made(name)
    host.bind()
    host.tell(STEPS)
    for n, request in enumerate(host.opt.requests()):
        if n and request.wants_gradient:
            yield n
        host.answer(request, STEPS)


@pytest.mark.parametrize("way", ["answered", "unbound", "released"])
@pytest.mark.parametrize("name", many())
def test_a_gradient_that_is_absent_later(name: str, way: str) -> None:
    """Stochastic depth, experts: at the first request the tensor had a gradient.  Refused, and nothing happened."""
    host = made(name)
    view = host.view()
    for at in list(later_gradients(name))[:3]:
        host.bind()
        host.tell(STEPS)
        with pytest.raises((tw.SequenceError, tw.NeedsError)):
            for n, request in enumerate(host.opt.requests()):
                host.answer(request, STEPS)
                rest: list[Any] = [None if i == 1 else g for i, g in zip(host.order, host.grads)]
                if n == at and way == "answered":
                    request.answer(rest, request.loss)
                elif n == at and way == "unbound":
                    host.opt.bind_gradients(rest)
                elif n == at:
                    host.opt.release_gradients()
        unchanged(host, view, f"request {at}")
    goes_on(host, name, STEPS)


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", [n for n in many() if n not in LOSSES_ALONE and not given(n)])
def test_a_number_that_is_none(name: str, bad: float, policy: str) -> None:
    """At every request that is answered in the gradients."""
    host = made(name, nonfinite=policy)
    view = host.view()
    for at in [0, *later_gradients(name)][:4]:
        skipped = host.opt.skipped
        host.bind()
        host.tell(STEPS)

        def step() -> None:
            for n, request in enumerate(host.opt.requests()):
                host.answer(request, STEPS)
                if n == at:
                    host.grads[-1].flat[0] = bad

        if policy == "error":
            with pytest.raises(tw.NonfiniteError):
                step()
        else:
            step()
            assert host.opt.skipped == skipped + 1
        unchanged(host, view, f"request {at}")
    goes_on(host, name, STEPS, nonfinite=policy)


# A stage behind the update that refuses what is not finite.
BEHIND = ["prox(group_lasso(0.01))", "project(simplex)", "prox(nuclear_norm(0.01))"]
BEFORE = [
    "sam(0.1) | sgd(lr=0.1)",
    "fd_grad_reg(0.1) | adamw(lr=0.1)",
    "svrg(lr=0.1, inner=2)",
    "harpg(lr=0.1)",
    "u_dog",
    "oasis",
    "mars(lr=0.1, exact=true)",
    "spider(lr=0.1)",
    "sga_uap(inner_steps=2)",
    "pcgrad(tasks=2) | sgd(lr=0.1)",
    "rolling_ball(n_projection=2)",
    "tract(0.1) | sgd(lr=0.1)",
]


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("before", BEFORE)
def test_a_stage_behind_that_fails(before: str, behind: str) -> None:
    """With a NaN at any request, which the policy lets through; the parameters are those from before the step."""
    shapes = [(5, 3), (4, 6)]
    try:
        host = Host(f"{before} | {behind}", shapes)
        twin = Host(f"{before} | {behind}", shapes)
        count = [(host.step(k), twin.step(k)) for k in range(STEPS)][-1][0] + 1
    except (tw.MethodError, tw.ShapeError):
        pytest.skip("the two do not go together")
    view, failed = host.view(), 0
    for at in range(count):
        host.bind()
        try:
            for n, request in enumerate(host.opt.requests()):
                host.answer(request, STEPS)
                if n == at and request.wants_gradient:
                    host.grads[0].flat[0] = np.nan
                elif n == at:
                    raise Given
        except (tw.NonfiniteError, tw.NumericError, tw.NeedsError, Given):
            failed += 1
            unchanged(host, view, f"request {at}")
        else:  # what the NaN reached is not what the stage looks at
            host.write(twin.weights)
            host.opt.load_state_dict(twin.opt.state_dict())
    assert failed
    host.step(STEPS)
    twin.step(STEPS)
    same(host, twin)


@pytest.mark.parametrize("how", ["close", "del", "with"])
@pytest.mark.parametrize("name", many())
def test_closed_inside_a_step(name: str, how: str) -> None:
    """The weights are the host's, and it keeps them."""
    for at in range(1, min(requests(name, STEPS), 4)):
        host = made(name)
        weights, before = host.weights, [w.tobytes() for w in host.weights]
        host.bind()
        host.tell(STEPS)
        loop = host.opt.requests()
        for _ in range(at):
            host.answer(next(loop), STEPS)
        next(loop)
        if how == "close":
            host.opt.close()
        elif how == "with":
            host.opt.__exit__(None, None, None)
        else:
            loop = None  # type: ignore[assignment]
            del host.opt
        assert [w.tobytes() for w in weights] == before, f"request {at}"


@pytest.mark.parametrize("name", many())
def test_loading_inside_a_step(name: str) -> None:
    """It is refused, and the step goes on as if it had not been tried."""
    host, twin = made(name), made(name)
    state = host.opt.state_dict()
    host.bind()
    host.tell(STEPS)
    for n, request in enumerate(host.opt.requests()):
        with pytest.raises(tw.SequenceError):
            host.opt.load_state_dict(state)
        host.answer(request, STEPS)
    twin.step(STEPS)
    same(host, twin)


def test_numbers_by_hand() -> None:
    """sam(0.5) at x = 1 goes to 1.5 and comes back; fd_grad_reg with g = 2x, eps = 0.01 to 1.02."""
    for sentence, away in (("sam(0.5) | sgd(lr=0.1)", 1.5), ("fd_grad_reg(eps=0.01) | sgd(lr=0.1)", 1.02)):
        w, seen = np.ones(1), []
        opt = tw.Optimizer([w], sentence)

        def closure() -> tuple[float, list[np.ndarray]]:
            seen.append(float(w[0]))
            opt.release_gradients()
            if len(seen) == 2:
                raise KeyboardInterrupt
            return float(w[0] ** 2), [2 * w]

        with pytest.raises(KeyboardInterrupt):
            opt.step(closure)
        np.testing.assert_allclose(seen, [1, away], rtol=1e-12)
        assert w[0] == 1


def test_every_shape_of_case_is_tried() -> None:
    assert (
        {len(shapes_of(name)) for name in many()} == {4} and len(many()) > 20 and all(name in CASES for name in many())
    )
