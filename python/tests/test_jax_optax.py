"""The state of thalweg.jax.optimizer, exchanged with Optax: a run moves in either direction."""

from typing import Any

import numpy as np
import pytest
from support import need_calls_of_xla

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402

import thalweg as tw  # noqa: E402
import thalweg.jax as tj  # noqa: E402
from thalweg.jax._optax import TWINS  # noqa: E402

need_calls_of_xla()

# Two float32 runs of the same rule: a few roundings of 6e-8 a step, of quantities of order 1, over six steps.
TOLERANCE = 3e-6
# Optax computes the length of radam's average in float32, where 1 - beta2^t cancels.
TOLERANCES = {"radam": 1e-4}
PAIRS = {
    "adabelief": ("adabelief(lr=0.1, eps=1e-8)", optax.adabelief(0.1, eps=1e-8, eps_root=0.0)),
    "adadelta": ("adadelta(lr=0.5, rho=0.9, eps=1e-6)", optax.adadelta(0.5, rho=0.9, eps=1e-6)),
    "adagrad": ("adagrad(lr=0.1, initial_accumulator_value=0.1, eps=0)",
                optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0)),
    "adam": ("adam(lr=0.1)", optax.adam(0.1)),
    "adamax": ("adamax(lr=0.1)", optax.adamax(0.1)),
    "adamw": ("adamw(lr=0.1, weight_decay=0.1)", optax.adamw(0.1, weight_decay=0.1)),
    "lion": ("lion(lr=0.01, beta1=0.9, beta2=0.99)", optax.lion(0.01, b1=0.9, b2=0.99, weight_decay=0.0)),
    "radam": ("radam(lr=0.1)", optax.radam(0.1)),
    "rmsprop": ("rmsprop(lr=0.1, alpha=0.9)", optax.rmsprop(0.1, decay=0.9, eps_in_sqrt=False)),
    "sgd": ("sgd(lr=0.1, momentum=0.9)", optax.sgd(0.1, momentum=0.9)),
}


def start(shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in (shapes or {"b": (3,), "w": (4, 5)}).items()}


def gradient(step: int, params: dict[str, Any]) -> dict[str, Any]:
    """Of numbers between 0.5 and 1.5, so that no denominator makes rounding large."""
    rng = np.random.default_rng(step)
    return {k: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32) for k, x in params.items()}


def theirs(twin: Any, state: Any, params: Any, steps: range) -> tuple[Any, Any]:
    for step in steps:
        updates, state = twin.update(gradient(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def ours(tx: Any, state: Any, params: Any, steps: range) -> tuple[Any, Any]:
    for step in steps:
        params, state = tx.apply(gradient(step, params), state, params)
    return params, state


def close(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    for x, y in zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_every_twin_is_tried() -> None:
    assert PAIRS.keys() == TWINS.keys()


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_run_moves_in_both_directions(name: str) -> None:
    sentence, twin = PAIRS[name]
    tx = tj.optimizer(sentence)
    whole = theirs(twin, twin.init(start()), start(), range(9))[0]
    params, state = theirs(twin, twin.init(start()), start(), range(3))
    mine = tj.from_optax(tx, state, params)
    params, mine = ours(tx, mine, params, range(3, 6))
    counted = any("count" in getattr(s, "_fields", ()) for s in state)
    assert mine.steps == (6 if counted else 4)
    params, _ = theirs(twin, tj.to_optax(tx, mine, params, like=twin.init(params)), params, range(6, 9))
    close(params, whole, TOLERANCES.get(name, TOLERANCE))


def test_chains_schedules_and_hyper_parameters() -> None:
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    inner = optax.inject_hyperparams(optax.adamw)(schedule, weight_decay=0.1)
    twin = optax.chain(optax.clip_by_global_norm(1.0), inner)
    tx = tj.optimizer("clip_global_norm(1.0) | adamw(lr=linear(lr=0.1, end=0, total=10), weight_decay=0.1)")
    whole = theirs(twin, twin.init(start()), start(), range(9))[0]
    params, state = theirs(twin, twin.init(start()), start(), range(3))
    params, mine = ours(tx, tj.from_optax(tx, state, params), params, range(3, 6))
    back = tj.to_optax(tx, mine, params, like=state)
    assert jax.tree_util.tree_structure(back) == jax.tree_util.tree_structure(state)
    close(theirs(twin, back, params, range(6, 9))[0], whole)


def test_masters_and_narrow_moments() -> None:
    params = {k: x.astype(jnp.bfloat16) for k, x in start().items()}
    twin = optax.adam(0.1, mu_dtype=jnp.bfloat16)
    state = twin.init(params)
    _, state = twin.update({k: jnp.ones_like(x) for k, x in params.items()}, state, params)
    tx = tj.optimizer("adam(lr=0.1)", master="f32", state_dtype="bf16")
    mine = tj.from_optax(tx, state, params)
    assert mine.tensors["engine.master"]["['w']"].dtype == jnp.float32
    assert (mine.tensors["engine.master"]["['w']"] == params["w"].astype(jnp.float32)).all()
    back = tj.to_optax(tx, mine, params, like=state)
    assert (back[0].mu["w"] == state[0].mu["w"]).all() and back[0].mu["w"].dtype == jnp.bfloat16


def test_small_state_of_many_tensors() -> None:
    params = start({f"p{k:03}": (2,) for k in range(200)})
    twin, tx = optax.adam(0.1), tj.optimizer("adam(lr=0.1)")
    params, state = theirs(twin, twin.init(params), params, range(1))
    mine = tj.from_optax(tx, state, params)
    assert mine.packed
    assert (tx.slots(mine, params)["adam.exp_avg"]["['p150']"] == state[0].mu["p150"]).all()
    plain = tj.from_optax(tj.optimizer("adam(lr=0.1)", pack=False), state, params)
    assert not plain.packed and (tx.repack(plain, params).packed["bytes"] == mine.packed["bytes"]).all()
    for either in (mine, plain):
        assert (tj.to_optax(tx, either, params, like=state)[0].nu["p199"] == state[0].nu["p199"]).all()


def test_a_run_that_has_not_begun_and_a_count_that_is_given() -> None:
    tx, twin = tj.optimizer("sgd(lr=linear(lr=1.0, end=0, total=10), momentum=0.5)"), optax.sgd(0.1, momentum=0.5)
    assert tj.from_optax(tx, twin.init(start()), start(), steps=0).steps == 0
    assert tj.from_optax(tx, twin.init(start()), start(), steps=4).steps == 4
    adam = tj.optimizer("adam(lr=0.1)")
    fresh = tj.from_optax(adam, optax.adam(0.1).init(start()), start())
    close(ours(adam, fresh, start(), range(2))[0], ours(adam, adam.init(start()), start(), range(2))[0])


@pytest.mark.parametrize("sentence, twin, text", [
    ("adamw(lr=0.1)", optax.lion(0.1), "ScaleByAdamState, and the state has none; it has .*ScaleByLionState"),
    ("nadam(lr=0.1)", optax.nadam(0.1), "no twin"),
    ("adamw(lr=0.1) | ema(0.9)", optax.adamw(0.1), "ema.average of .* no place"),
    ("gradient_accumulate(2) | adamw", optax.adamw(0.1), "no place"),
    ("adamw(lr=0.1)", optax.chain(optax.scale_by_adam(), optax.scale_by_adam()), "2 of ScaleByAdamState"),
    ("adamw(lr=0.1)", optax.flatten(optax.scale_by_adam()), "structure"),
    ("rmsprop(lr=0.1, momentum=0.9)", optax.rmsprop(0.1, momentum=0.9), "no place"),
    ("rmsprop(lr=0.1)", optax.rmsprop(0.1, momentum=0.9), r"TraceState\.trace of Optax's state"),
    ("sgd(lr=0.1)", optax.sgd(0.1, momentum=0.9), r"TraceState\.trace of Optax's state"),
    ("adamw(lr=0.1)", optax.MultiSteps(optax.adamw(0.1), 2), r"MultiStepsState\."),
])
def test_what_does_not_fit(sentence: str, twin: Any, text: str) -> None:
    with pytest.raises(tw.MismatchError, match=text):
        tj.from_optax(tj.optimizer(sentence), twin.init(start()), start())


def test_shapes_and_eight_bits() -> None:
    other = optax.adamw(0.1).init(start({"b": (3,), "w": (5, 4)}))
    with pytest.raises(tw.MismatchError, match=r"shape \(5, 4\) in Optax's state, \(4, 5\) here"):
        tj.from_optax(tj.optimizer("adamw(lr=0.1)"), other, start())
    large = start({"w": (64, 128)})
    with pytest.raises(tw.MismatchError, match="8 bits"):
        tj.from_optax(tj.optimizer("adamw(lr=0.1)", state_dtype="q8"), optax.adamw(0.1).init(large), large)
    tx = tj.optimizer("adamw(lr=0.1)")
    with pytest.raises(tw.MismatchError, match=r"TraceState\.trace of Optax's state"):
        plain = tj.optimizer("sgd(lr=0.1)")
        tj.to_optax(plain, plain.init(start()), start(), like=optax.sgd(0.1, momentum=0.9).init(start()))
    with pytest.raises(tw.MismatchError, match="`like` has none"):
        tj.to_optax(tx, tx.init(start()), start(), like=optax.lion(0.1).init(start()))


def test_parameters_without_axes() -> None:
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    theirs = optax.adamw(1e-2)
    grads = {"w": jnp.arange(3.0), "b": jnp.array(2.0)}
    updates, state = theirs.update(grads, theirs.init(params), params)
    params = optax.apply_updates(params, updates)
    ours = tj.optimizer("adamw(lr=1e-2, weight_decay=1e-4)")
    ours_params, _ = ours.apply(grads, tj.from_optax(ours, state, params), params)
    updates, state = theirs.update(grads, state, params)
    for name, want in optax.apply_updates(params, updates).items():
        np.testing.assert_allclose(ours_params[name], want, rtol=1e-6, atol=1e-7)
    with pytest.raises(tw.ValueTypeError, match="thalweg.jax.optimizer"):
        tj.from_optax(theirs, state, params)  # type: ignore[arg-type]
