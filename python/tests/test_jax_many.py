"""thalweg.jax.optimizer with many tensors: what is stepped in place, and state that lies together."""

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from test_jax_transform import GRADIENTS, equal, outside, start  # noqa: E402

import thalweg as tw  # noqa: E402
import thalweg.jax as tj  # noqa: E402
from thalweg.jax import _call  # noqa: E402


def test_hundreds_of_tensors_are_stepped_in_place() -> None:
    """None is copied: the call then has effects beside its results, lest XLA compiles for minutes."""
    params = {f"t{i:03}": jnp.full(1 + i % 3, i, jnp.float32) for i in range(300)}
    tx = tj.optimizer("adamw(lr=0.1)")
    arrays = [np.array(x) for x in params.values()]
    opt = tw.Optimizer(arrays, "adamw(lr=0.1)")
    step = jax.jit(tx.apply, donate_argnums=(1, 2))
    lowered = step.lower(params, tx.init(params), params)
    assert lowered.as_text().count("output_operand_alias<") == len(params) + 2 > _call.IN_PLACE
    assert " copy(" not in lowered.compile().as_text()
    stepped, state = jax.tree_util.tree_map(jnp.copy, params), tx.init(params)
    for _ in range(2):
        stepped, state = step(params, state, stepped)
        opt.step([np.array(x) for x in params.values()])
    assert equal(stepped, dict(zip(params, arrays)))
    before = jax.tree_util.tree_map(np.array, (stepped, state))
    again = [jax.jit(tx.apply)(params, state, stepped) for _ in range(2)]  # nothing was donated, and nothing is changed
    assert equal((stepped, state), before) and equal(*again)
    opt.step([np.array(x) for x in params.values()])
    assert equal(again[0][0], dict(zip(params, arrays)))
    assert jax.make_jaxpr(tx.apply)(params, state, stepped).effects == set()  # jit's quick calls are for such alone


@pytest.mark.parametrize("donated", [(), (0,), (0, 1)])
def test_hundreds_of_tensors_in_loops_and_branches(donated: tuple[int, ...]) -> None:
    params = {f"t{i:03}": jnp.full(1 + i % 3, i, jnp.float32) for i in range(300)}
    grads = jax.tree_util.tree_map(np.array, params)
    tx = tj.optimizer("sgd(lr=0.1, momentum=0.9)")
    start, expected = (params, tx.init(params)), (params, tx.init(params))
    before = jax.tree_util.tree_map(np.array, start)
    for _ in range(3):
        expected = tx.apply(grads, expected[1], expected[0])

    def run(params: Any, state: Any, more: Any) -> Any:
        step = lambda carry, _: (tx.apply(grads, carry[1], carry[0]), None)  # noqa: E731
        carry = jax.lax.scan(step, (params, state), length=2)[0]
        return jax.lax.cond(more, lambda: step(carry, None)[0], lambda: (params, state))

    jitted = jax.jit(run, donate_argnums=donated)
    given = jax.tree_util.tree_map(jnp.copy, (start, start))
    assert equal(jitted(*given[0], True), expected) and equal(jitted(*given[1], False), before)
    assert all(k in donated or equal(given[0][k], before[k]) for k in range(2))


def test_hundreds_of_tensors_on_several_devices() -> None:
    """XLA partitions no call with effects: there the largest buffers are stepped in place."""
    subprocess.run([sys.executable, "-c", """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import thalweg.jax
from thalweg.jax import _call

mesh = jax.make_mesh((2,), ("x",))
params = {f"t{i:03}": jnp.full(1 + i % 3, i, jnp.float32) for i in range(300)}
tx = thalweg.jax.optimizer("adamw(lr=0.1)")
state = tx.init(params)
there = jax.device_put((params, state), NamedSharding(mesh, PartitionSpec()))
step = jax.jit(tx.apply, donate_argnums=(1, 2))
expected = jax.jit(tx.apply)(params, state, params)
given = jax.tree_util.tree_map(np.array, params), there[1], there[0]
assert step.lower(*given).as_text().count("output_operand_alias<") == _call.IN_PLACE
for a, b in zip(jax.tree_util.tree_leaves(expected), jax.tree_util.tree_leaves(step(*given)), strict=True):
    assert np.array_equal(a, b)
"""], check=True, timeout=120, env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"})


def test_small_state_of_many_tensors_lies_together() -> None:
    rng = np.random.default_rng(3)
    shapes = [(3,), (), (2, 5), (0,)] * 40 + [(200, 100)]
    params = {f"p{k:03}": jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in enumerate(shapes)}
    arrays = [np.array(x) for x in params.values()]
    tx = tj.optimizer("adamw(lr=0.1) | ema(0.9)")
    opt = tw.Optimizer(arrays, "adamw(lr=0.1) | ema(0.9)", names=[f"['{k}']" for k in params])
    state = jax.jit(tx.init)(params)
    assert len(state.tensors) == 3 and all(len(slot) == 1 for slot in state.tensors.values())  # of the large one
    step = jax.jit(tx.apply, donate_argnums=(1, 2))
    for _ in range(3):
        grads = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in params.items()}
        params, state = step(grads, state, params)
        opt.step(list(grads.values()))
    assert equal(params, dict(zip(params, arrays)))
    slots, theirs = tx.slots(state, params), opt.state()
    for slot, rows in theirs.items():
        for name, row in zip(params, rows):
            assert np.array_equal(np.asarray(slots[slot][f"['{name}']"], np.float64), row), (slot, name)
    with pytest.raises(tw.ShapeError, match="packed bytes"):
        tx.apply(grads, state._replace(packed={}), params)


@pytest.mark.parametrize("sentence, options", [
    ("adamw(lr=0.1) | ema(0.9)", {}), ("adamw(lr=0.1)", {"state_dtype": "bf16"}),
    ("adamw(lr=0.1)", {"state_dtype": "q8"}),
    ("route(matrix=(muon(lr=0.1)), other=(adamw))", {}), ("sgd", {})])
def test_packed_or_not(sentence: str, options: dict[str, Any]) -> None:
    """The same bits, and either state becomes the other on the way, here or as a checkpoint."""
    runs = {pack: tj.optimizer(sentence, pack=pack, **options) for pack in (True, False)}
    steps = {pack: jax.jit(tx.apply, donate_argnums=(1, 2)) for pack, tx in runs.items()}
    held = {pack: (start(), tx.init(start())) for pack, tx in runs.items()}
    for k, gradient in enumerate(GRADIENTS):
        held = {pack: steps[pack](gradient, state, params) for pack, (params, state) in held.items()}
        (params, packed), (same, plain) = held[True], held[False]
        assert equal(params, same) and packed.tensors == {} and plain.packed == {}
        assert bool(packed.packed) == (sentence != "sgd")
        if packed.packed:
            assert equal(runs[True].repack(plain, params), packed)
            assert equal(jax.jit(runs[False].repack)(packed, params), plain)
            assert runs[True].repack(packed, params) is packed
            assert equal(runs[False].slots(packed, params), plain.tensors)
            assert equal(runs[True].slots(plain, params), plain.tensors)
        if k == 2:  # each goes on as the other
            held = {pack: (x, runs[pack].repack(jax.tree_util.tree_map(np.asarray, held[not pack][1]), x))
                    for pack, (x, _) in held.items()}
    assert equal(params, outside(sentence, **options)[0])
    if plain.tensors:
        with pytest.raises(tw.ShapeError, match="packed bytes: .* another `pack` .see repack."):
            runs[True].apply(GRADIENTS[0], plain, params)
        with pytest.raises(tw.ShapeError, match="another `pack` .see repack."):
            runs[False].apply(GRADIENTS[0], packed, params)


def test_packed_state_in_scan_and_vmap() -> None:
    tx, plain = tj.optimizer("adamw(lr=0.1)", pack=True), tj.optimizer("adamw(lr=0.1)", pack=False)
    two = jax.tree_util.tree_map(lambda x: jnp.stack([x, x + 1]), start())
    stacked = jax.tree_util.tree_map(lambda *x: jnp.stack(x), *GRADIENTS)

    def run(tx: Any) -> Any:
        def one(params: Any) -> Any:
            step = lambda carry, gradient: (tx.apply(gradient, carry[1], carry[0]), None)  # noqa: E731
            return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

        return jax.jit(jax.vmap(one))(two)

    (params, packed), (same, state) = run(tx), run(plain)
    assert equal(params, same) and packed.packed["bytes"].shape[0] == 2
    assert equal(jax.vmap(plain.repack)(packed, params), state)


def test_pack_says_yes_no_or_nothing() -> None:
    for wrong in ("yes", 2, 1.5):
        with pytest.raises(tw.ValueTypeError, match="`pack` is True, False or None, got"):
            tj.optimizer("adamw", pack=wrong)
    tx = pickle.loads(pickle.dumps(tj.optimizer("adamw", pack=True)))
    assert tx.init(start()).packed and equal(tx.repack(tx.init({}), {}), tx.init({}))
    many = [jnp.ones(1)] * 200
    assert not tj.optimizer("adamw", pack=False).init(many).packed and tj.optimizer("adamw").init(many).packed


def test_packed_state_of_other_parameters_is_refused() -> None:
    """Counters and names are not among the packed bytes; their number is all that slots and repack can go by."""
    tx, plain = tj.optimizer("adamw", pack=True), tj.optimizer("adamw", pack=False)
    small, large = {"a": jnp.ones(4)}, {"a": jnp.ones(4), "b": jnp.ones(3)}
    for read in (tx.slots, plain.slots, plain.repack):
        for state, params in ((tx.init(large), small), (tx.init(small), large)):
            with pytest.raises(tw.ShapeError, match="packed bytes: it is the state of another sentence"):
                read(state, params)
    with pytest.raises(tw.ArgumentError, match=r"repack\(state, params\): state is a dict of 1 array, params is"):
        tx.repack(small, tx.init(small))
