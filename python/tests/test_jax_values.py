"""thalweg.jax.Optimizer hands out values: they never change, for whoever keeps them or still computes with them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

jax = pytest.importorskip("jax")
jnp = jax.numpy

from thalweg.jax import Optimizer, _memory  # noqa: E402


def params(side: int = 8) -> dict[str, Any]:
    return {"b": jnp.zeros(4), "w": jnp.ones((side, side))}


def ones(like: Any) -> Any:
    return jax.tree_util.tree_map(jnp.ones_like, like)


@pytest.fixture
def looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether parameters are looked at, as large ones are, or copied."""
    monkeypatch.setattr(_memory, "LOOKED_AT_FROM", 0 if request.param else 1 << 60)
    return request.param


LARGE_AND_SMALL = pytest.mark.parametrize("looked_at", [True, False], ids=["large", "small"], indirect=True)


# ---- computations under way


@LARGE_AND_SMALL
@pytest.mark.parametrize("call", ["step", "closure", "engine", "requests"])
def test_a_computation_under_way_reads_the_weights_it_was_given(looked_at: bool, call: str) -> None:
    side = 400
    slow = jax.jit(lambda p: jnp.tanh(sum(jnp.sin(p["w"] @ (p["w"] + k) / side) for k in range(20)) @ p["w"]).sum())
    weights = [{"b": jnp.zeros(4), "w": jnp.full((side, side), 1 - k / 4)} for k in range(4)]
    want = [float(slow(w)) for w in weights]
    opt = Optimizer(weights[0], "sgd(lr=0.25)")
    grads = ones(weights[0])
    jax.block_until_ready(grads)
    later = []
    for _ in weights:
        later.append(slow(opt.params))  # dispatched, and its arrays let go
        if call == "step":
            opt.step(grads)
        elif call == "closure":
            opt.step(lambda params: (0.0, grads))
        elif call == "engine":
            opt.engine.step(jax.tree_util.tree_leaves(grads))
        else:
            for request in opt.engine.requests():
                request.answer(jax.tree_util.tree_leaves(grads))
    assert [float(x) for x in later] == want and opt.steps == 4


@LARGE_AND_SMALL
def test_what_is_computed_within_a_step_reads_the_weights_of_its_request(looked_at: bool) -> None:
    side = 300
    slow = jax.jit(lambda p: jnp.tanh(sum(jnp.sin(p["w"] @ (p["w"] + k) / side) for k in range(20)) @ p["w"]).sum())
    opt, later, want = Optimizer(params(side), "sam(0.5) | sgd(lr=0.25)"), [], []

    def closure(p: Any) -> Any:
        want.append(jnp.array(p["w"], copy=True))
        later.append(slow(p))
        return 0.0, {"b": jnp.ones(4), "w": p["w"] * 0.5}

    for _ in range(3):
        opt.step(closure)
    assert len(want) == 6
    for x, w in zip(later, want):
        assert float(x) == float(slow({"b": 0, "w": w}))
    assert (want[0] != want[1]).all()


# ---- arrays that are kept


KEPT: dict[str, Callable[[Any], Any]] = {
    "tree": lambda p: p,
    "asarray": lambda p: jax.tree_util.tree_map(jnp.asarray, p),
    "numpy": lambda p: jax.tree_util.tree_map(np.asarray, p),
    "dlpack": lambda p: jax.tree_util.tree_map(np.from_dlpack, p),
    "jit": lambda p: jax.jit(lambda x: x)(p),
}


@LARGE_AND_SMALL
@pytest.mark.parametrize("kept", [*KEPT])
def test_arrays_that_are_kept_do_not_change(looked_at: bool, kept: str) -> None:
    opt = Optimizer(params(), "sgd(lr=0.25)")
    all_kept = []
    for k in range(6):
        all_kept.append((1 - k / 4, KEPT[kept](opt.params)))
        opt.step(ones(opt.params))
    for value, tree in all_kept:
        assert (np.asarray(tree["w"]) == value).all() and (np.asarray(tree["b"]) == value - 1).all()
    assert (opt.params["w"] == -0.5).all() and (opt.arrays[1] == -0.5).all()


@LARGE_AND_SMALL
def test_arrays_of_evaluation_and_of_requests_do_not_change(looked_at: bool) -> None:
    opt = Optimizer(params(), "sam(0.5) | sgd(lr=0.25) | ema(0.5)")
    seen = []

    def closure(p: Any) -> Any:
        seen.append((p, np.array(p["w"])))
        return 0.0, ones(p)

    for k in range(3):
        opt.step(closure)
        before = opt.params
        values = np.array(before["w"])
        with opt.averaged():
            inside = opt.params
            averages = np.array(inside["w"])
        seen += [(before, values), (inside, averages)]
        assert k == 0 or (averages != values).all()
        assert (opt.params["w"] == values).all()
    with pytest.raises(KeyError):
        opt.step(lambda p: seen.append((p, np.array(p["w"]))) or {}["nothing"])
    for tree, values in seen:
        np.testing.assert_array_equal(tree["w"], values)
    assert opt.steps == 3


@LARGE_AND_SMALL
def test_a_state_from_within_a_step_goes_on(looked_at: bool) -> None:
    grads = ones(params())
    first = Optimizer(params(), "sam(0.5) | sgd(lr=0.25)")
    loop = first.requests()
    next(loop).answer(grads, 1.0)
    at = next(loop)
    state, there = first.state_dict(), first.params
    assert at.pass_ == 1 and (there["w"] != 1).all()
    twin = Optimizer(there, "sam(0.5) | sgd(lr=0.25)")
    twin.load_state_dict(state)
    kept = twin.params
    values = np.array(kept["w"])
    for request in twin.requests():
        request.answer(grads, 1.0)
    assert twin.steps == 1 and (kept["w"] == values).all() and (there["w"] == values).all()
    at.answer(grads, 1.0)
    assert next(loop, None) is None and (first.params["w"] == twin.params["w"]).all()


@LARGE_AND_SMALL
@pytest.mark.parametrize("sentence", [
    "adamw(lr=0.1)", "schedule_free_adamw(lr=0.1)", "sgd(lr=0.1) | lookahead(k=2)", "prodigy", "sgd(lr=0.1) | ema(0.9)",
    "sam(0.1) | adamw(lr=0.1)", "adamw(lr=0.1) | magnitude_pruning(0.5)",
])  # fmt: skip
def test_keeping_arrays_changes_no_bit(looked_at: bool, sentence: str) -> None:
    one, other = (Optimizer(params(), sentence) for _ in range(2))
    gradient = jax.jit(jax.value_and_grad(lambda p: ((p["w"] @ p["w"] - 3) ** 2).sum() + ((p["b"] - 1) ** 4).sum()))
    kept = []
    for k in range(7):
        kept.append(one.params)
        one.step(gradient)
        other.step(gradient)
        if k == 3:
            one, other = pickle.loads(pickle.dumps(one)), copy.deepcopy(other)
    for x, y in zip(one.arrays, other.arrays):
        np.testing.assert_array_equal(x, y)
    assert one.training


def test_16_bit_masters_follow_parameters_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "LOOKED_AT_FROM", 0)
    one, other = (Optimizer({"w": jnp.ones(64, jnp.bfloat16)}, "sgd(lr=0.001)", master="f32") for _ in range(2))
    kept = []
    for _ in range(8):
        kept.append(one.params)
        assert kept[-1]["w"].dtype == jnp.bfloat16
        one.step(ones(kept[-1]))
        other.step(ones(kept[-1]))
    np.testing.assert_array_equal(one.arrays[0], other.arrays[0])
    assert (one.arrays[0] != 1).all()


# ---- what it costs


def test_large_parameters_are_looked_at_and_move_only_for_whoever_keeps_them() -> None:
    opt = Optimizer({"w": jnp.ones(1 << 18)}, "sgd(lr=0.25)")  # a megabyte, without any setting
    gradient = jax.jit(jax.value_and_grad(lambda p: (p["w"] ** 2).sum()))
    place = opt.arrays[0].ctypes.data
    assert opt.params["w"].unsafe_buffer_pointer() == place and opt.params["w"] is opt.params["w"]

    def still() -> bool:
        return opt.arrays[0].ctypes.data == opt.params["w"].unsafe_buffer_pointer() == place

    opt.step(ones(opt.params))
    assert still()
    opt.step(lambda p: (0.0, ones(p)))
    assert still()
    kept = opt.params
    left = weakref.ref(opt._memory._blocks[0])
    opt.step(ones(kept))
    assert not still() and (kept["w"] == 0.5).all() and (opt.params["w"] == 0.25).all()
    place = opt.arrays[0].ctypes.data
    for _ in range(2):
        opt.step(ones(kept))
    assert still() and left() is None  # the memory is theirs alone now
    opt.step(gradient)
    del kept
    for k in range(4):  # two places in turn
        again = opt.params
        opt.step(ones(again))
    assert len({a.ctypes.data for a in opt.arrays} | {again["w"].unsafe_buffer_pointer()}) == 2


def test_a_copy_is_made_where_a_computation_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step does not wait for what has nothing to do with it."""
    monkeypatch.setattr(_memory, "LOOKED_AT_FROM", 0)
    opt = Optimizer({"w": jnp.ones(64)}, "sgd(lr=0.25)")
    places = [opt.params["w"].unsafe_buffer_pointer()]
    look = opt._memory._blocks[0]._looks[0]()  # as a computation has one
    opt.step({"w": jnp.ones(64)})
    places.append(opt.params["w"].unsafe_buffer_pointer())
    assert places[0] != places[1] and (look.array == 1).all()
    del look
    gc.collect()
    assert (opt.params["w"] == 0.75).all()


# ---- where arrays are looked at


@LARGE_AND_SMALL
def test_parameters_read_while_jax_traces_are_constants(looked_at: bool) -> None:
    opt = Optimizer(params(), "sgd(lr=0.25)")

    @jax.jit
    def f(x: Any) -> Any:
        inside = opt.params["w"]
        assert not isinstance(inside, jax.core.Tracer)
        return x + inside.sum()

    assert f(1.0) == 65
    opt.step(ones(opt.params))
    assert f(1.0) == 65 and f(jnp.ones(2))[0] == 49  # traced anew


@LARGE_AND_SMALL
def test_donated_parameters(looked_at: bool) -> None:
    opt = Optimizer(params(), "sgd(lr=0.25)")
    double = jax.jit(lambda p: jax.tree_util.tree_map(lambda x: 2 * x, p), donate_argnums=0)
    results = []
    for _ in range(4):
        results.append(double(opt.params))
        opt.step(ones(results[0]))
    assert [float(r["w"][0, 0]) for r in results] == [2, 1.5, 1, 0.5] and (opt.params["w"] == 0).all()


@LARGE_AND_SMALL
def test_what_is_written_between_steps_counts(looked_at: bool) -> None:
    opt = Optimizer(params(), "sgd(lr=0.25)")
    kept = opt.params
    opt.step(ones(kept))
    for array in opt.arrays:
        array[...] = 3
    assert (opt.params["w"] == 3).all() and (kept["w"] == 1).all()
    opt.step(ones(kept))
    assert (opt.params["w"] == 2.75).all() and (opt.params["b"] == 2.75).all()


def test_parameters_of_the_engine_beside_those_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "LOOKED_AT_FROM", 0)
    opt, more = Optimizer({"w": jnp.ones(64)}, "sgd(lr=0.25)"), np.zeros(3, np.float32)
    opt.engine.add_param_group({"params": [more], "name": "more"})
    kept = opt.params
    opt.engine.step([np.ones(64, np.float32), np.ones(3, np.float32)])
    assert (kept["w"] == 1).all() and (opt.params["w"] == 0.75).all() and (more == -0.25).all()


def test_arrays_that_jax_does_not_borrow_are_refused_at_once() -> None:
    for size in (3, 1 << 18):
        if not jax.config.jax_enable_x64:
            with pytest.raises(tw.LayoutError, match="float64"):
                Optimizer({"w": np.ones(size)}, "sgd(lr=0.25)")
