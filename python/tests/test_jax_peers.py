"""Inside jit beside Optax inside jit, step by step, in float64; and a checkpoint of Orbax."""

from typing import Any

import numpy as np
import pytest
from support import need_calls_of_xla

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402

import thalweg as tw  # noqa: E402
import thalweg.jax as tj  # noqa: E402

contrib = pytest.importorskip("optax.contrib")
need_calls_of_xla()

SCHEDULED = "clip_global_norm(0.5) | adamw(lr=linear(lr=0.1, end=0.01, total=10), weight_decay=0.2)"
B = dict(b1=0.8, b2=0.95)
PEERS: dict[str, Any] = {
    "sgd(lr=0.1, momentum=0.9, nesterov=true)": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw(lr=0.05, beta1=0.8, beta2=0.95, weight_decay=0.2)": optax.adamw(0.05, **B, weight_decay=0.2),
    "adam(lr=0.05, beta1=0.8, beta2=0.95)": optax.adam(0.05, **B),
    "lion(lr=0.05, beta1=0.7, beta2=0.9, weight_decay=0.2)": optax.lion(0.05, b1=0.7, b2=0.9, weight_decay=0.2),
    "adabelief(lr=0.05, beta1=0.8, beta2=0.95, eps_root=1e-3)": optax.adabelief(0.05, **B, eps=1e-16, eps_root=1e-3),
    "yogi(lr=0.05, beta1=0.8, beta2=0.95)": optax.yogi(0.05, **B),
    "lamb(lr=0.05, beta1=0.8, beta2=0.95, weight_decay=0.2)": optax.lamb(0.05, **B, weight_decay=0.2),
    "lars(lr=0.5, trust_coefficient=0.05, weight_decay=0.2, momentum=0.5, denominator=update, skip_1d=false)":
        optax.lars(0.5, weight_decay=0.2, trust_coefficient=0.05, momentum=0.5),
    "adamax(lr=0.05, beta1=0.8, beta2=0.95)": optax.adamax(0.05, **B),
    "radam(lr=0.05)": optax.radam(0.05),
    "adagrad(lr=0.1, initial_accumulator_value=0.1, eps=0)": optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
    "adadelta(lr=0.5, rho=0.7, eps=1e-3, weight_decay=0.2)": optax.adadelta(0.5, rho=0.7, eps=1e-3, weight_decay=0.2),
    "rmsprop(lr=0.05, alpha=0.8, eps=0.01, eps_in_sqrt=true, centered=true)":
        optax.rmsprop(0.05, decay=0.8, eps=0.01, centered=True),
    "ademamix(lr=0.05, beta1=0.8, beta2=0.95, beta3=0.99, alpha=2.0, weight_decay=0.2)":
        contrib.ademamix(0.05, **B, b3=0.99, alpha=2.0, weight_decay=0.2),
    "dowg(r_eps=0.05, eps=0.1)": contrib.dowg(1.0, init_estim_sq_dist=0.05**2, eps=0.1),
    "prodigy(d0=1e-2, use_bias_correction=true, weight_decay=0.2)":
        contrib.prodigy(1.0, estim_lr0=1e-2, weight_decay=0.2),
    "polyak_sgd(max_lr=0.7, f_min=0.1, eps=0.3)": optax.polyak_sgd(max_learning_rate=0.7, f_min=0.1, eps=0.3),
    SCHEDULED: optax.chain(optax.clip_by_global_norm(0.5),
                           optax.adamw(optax.linear_schedule(0.1, 0.01, 10), weight_decay=0.2)),
}
# optax.radam computes the length of its average in float32, where 1 - beta2^t cancels; Optax's schedules are float32.
TOLERANCES = {"radam(lr=0.05)": 1e-4, SCHEDULED: 1e-7}


def loss(params: Any, k: Any) -> Any:
    """A sum of squares that turns from step to step, away from 0 so that no denominator makes rounding large."""
    leaves = jax.tree_util.tree_leaves(params)
    return sum(jnp.sum((2 + jnp.sin(k + i)) * (x + 3) ** 2) / 10 for i, x in enumerate(leaves))


@pytest.mark.parametrize("sentence", PEERS)
def test_every_step_is_that_of_optax(sentence: str) -> None:
    """value_and_grad, update and the new parameters in one jitted function, here and there; nine steps."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        start = {k: jnp.asarray(rng.normal(size=s)) for k, s in {"b": (3,), "w": (4, 5)}.items()}

        def made(step: Any) -> Any:
            return jax.jit(lambda params, state, k: step(*jax.value_and_grad(loss)(params, k), params, state))

        tx, twin = tj.optimizer(sentence), optax.with_extra_args_support(PEERS[sentence])
        watches = "polyak" in sentence

        def ours(value: Any, grads: Any, params: Any, state: Any) -> Any:
            return tx.apply(grads, state, params, value=value) if watches else tx.apply(grads, state, params)

        def theirs(value: Any, grads: Any, params: Any, state: Any) -> Any:
            updates, state = twin.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        runs = [[made(ours), start, tx.init(start)], [made(theirs), start, twin.init(start)]]
        tolerance = TOLERANCES.get(sentence, 1e-9)
        for k in range(9):
            for one in runs:
                one[1:] = one[0](*one[1:], float(k))
            for name in start:
                mine, other = (run[1][name] for run in runs)
                np.testing.assert_allclose(mine, other, tolerance, tolerance, err_msg=f"step {k}")
        assert all(bool((runs[0][1][name] != start[name]).all()) for name in start)


@pytest.mark.parametrize("sentence, options", [
    ("clip_global_norm(1.0) | adamw(lr=cosine(1e-2, 1000)) | ema(0.99)", {}), ("adamw(lr=0.1)", dict(state_dtype="q8")),
    ("route(matrix=(muon(lr=0.1)), other=(adamw))", dict(master="f32")), ("adamw(lr=0.1) | ema(0.9)", dict(pack=True)),
])
def test_a_checkpoint_of_orbax(sentence: str, options: dict[str, Any], tmp_path: Any) -> None:
    """Parameters and state are saved together, and what is restored goes on with the same bits."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    tx = tj.optimizer(sentence, **options)
    step = jax.jit(tx.apply)
    params = {"b": jnp.zeros(4, jnp.bfloat16), "w": jnp.ones((3, 4)), "many": jnp.ones((40, 50))}
    grads = jax.tree_util.tree_map(lambda x: jnp.linspace(-1, 1, x.size).reshape(x.shape).astype(x.dtype), params)
    params, state = step(grads, tx.init(params), params)
    whole = {"params": params, "state": state}
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "saved", whole)
        saver.wait_until_finished()
        shapes = jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole)
        restored = saver.restore(tmp_path / "saved", shapes)
    ends = [step(grads, w["state"], w["params"]) for w in (whole, restored)]
    for a, b in zip(*map(jax.tree_util.tree_leaves, ends), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert restored["state"].steps == 1 and ends[1][1].steps == 2
    other = tj.optimizer(sentence, **{**options, "pack": not options.get("pack")})
    goes_on = jax.jit(other.apply)(grads, other.repack(restored["state"], params), restored["params"])
    assert bool(goes_on[1].packed) != bool(ends[0][1].packed)
    for a, b in zip(*(jax.tree_util.tree_leaves(end[0]) for end in (ends[0], goes_on)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
