"""thalweg.jax.optimizer: a sentence inside jax.jit, its state a pytree, equal to the same steps outside."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support import need_calls_of_xla

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import thalweg as tw  # noqa: E402
import thalweg.jax as tj  # noqa: E402
from thalweg.jax import _transform  # noqa: E402

need_calls_of_xla()

RNG = np.random.default_rng(5)
SHAPES = {"b": (3,), "scalar": (), "w": (6, 4)}  # in JAX's order
GRADIENTS = [{k: RNG.normal(size=s).astype(np.float32) for k, s in SHAPES.items()} for _ in range(5)]


def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def outside(
    sentence: str, losses: Any = None, what: str = "loss", **options: Any
) -> tuple[dict[str, np.ndarray], tw.Optimizer]:
    arrays = {k: np.array(x) for k, x in start().items()}
    opt = tw.Optimizer(list(arrays.values()), sentence, names=[f"['{k}']" for k in arrays], **options)
    for k, gradient in enumerate(GRADIENTS):
        if losses is not None:
            opt.observe(what, float(np.float32(losses[k])))
        opt.step([gradient[name] for name in arrays])
    return arrays, opt


def equal(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


@pytest.mark.parametrize("sentence", [
    "adamw(lr=0.1)", "clip_global_norm(1.0) | adamw(lr=cosine(0.1, 10)) | ema(0.9)", "prodigy",
    "route(matrix=(muon(lr=0.1)), other=(adamw))", "gradient_accumulate(2) | adamw | ema | ema(0.5)",
    "schedule_free_adamw(lr=0.1)", "dog", "gradient_noise(0.1) | sgd(lr=0.1)", "route(matrix=(adamw | nm_sparsity(2, 4)), other=(lion))",
])
def test_the_same_bits_as_outside_jit(sentence: str) -> None:
    tx = tj.optimizer(sentence)
    step = jax.jit(tx.apply, donate_argnums=(1, 2))
    params, state = start(), tx.init(start())
    for gradient in GRADIENTS:
        params, state = step(gradient, state, params)
    arrays, opt = outside(sentence)
    assert equal(params, arrays) and state.steps == opt.steps
    averaged = tx.averaged(state, params)
    assert equal(params, arrays)
    opt.eval()
    assert equal(averaged, arrays)


@pytest.mark.parametrize("options", [{"state_dtype": "bf16"}, {"maximize": True}, {"seed": 2**63 + 5}])
def test_options(options: dict[str, Any]) -> None:
    sentence = "gradient_noise(0.1) | adamw(lr=0.1)"
    tx = tj.optimizer(sentence, **options)
    params, state = start(), tx.init(start())
    for gradient in GRADIENTS:
        params, state = jax.jit(tx.apply)(gradient, state, params)
    assert equal(params, outside(sentence, **options)[0])


def test_eight_bits_and_masters() -> None:
    params = {"w": jnp.ones((64, 128), jnp.bfloat16)}
    tx = tj.optimizer("adamw(lr=0.01)", state_dtype="q8", master="f32")
    state = jax.jit(tx.init)(params)
    assert state.tensors["adamw.exp_avg"]["['w']"].dtype == jnp.uint8
    arrays = [np.array(params["w"])]
    opt = tw.Optimizer(arrays, "adamw(lr=0.01)", state_dtype="q8", master="f32", names=["['w']"])
    for k in range(3):
        gradient = {"w": jax.random.normal(jax.random.key(k), (64, 128)).astype(jnp.bfloat16)}
        params, state = jax.jit(tx.apply)(gradient, state, params)
        opt.step([np.array(gradient["w"])])
    assert equal(params, {"w": arrays[0]})


def test_scan_and_updates() -> None:
    tx = tj.optimizer("adamw(lr=0.1)")
    stacked = jax.tree_util.tree_map(lambda *x: jnp.stack(x), *GRADIENTS)

    @jax.jit
    def run(params: Any) -> Any:
        def body(carry: Any, gradient: Any) -> Any:
            updates, state = tx.update(gradient, carry[1], carry[0])
            return (jax.tree_util.tree_map(jnp.add, carry[0], updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), stacked)[0]

    params, state = run(start())
    assert state.steps == len(GRADIENTS)
    for k, array in outside("adamw(lr=0.1)")[0].items():  # p + (p' - p) is p' to an ulp
        np.testing.assert_allclose(params[k], array, rtol=2e-6, atol=1e-6)


def test_a_step_twice_and_a_state_that_was_kept() -> None:
    """Nothing is remembered on the host: an old state gives the old step."""
    tx = tj.optimizer("adamw(lr=linear(lr=0.1, end=0, total=8)) | ema(0.9)")
    step = jax.jit(tx.apply)
    first = step(GRADIENTS[0], tx.init(start()), start())
    second = step(GRADIENTS[1], first[1], first[0])
    step(GRADIENTS[2], second[1], second[0])
    assert equal(step(GRADIENTS[1], first[1], first[0]), second)
    kept = pickle.loads(pickle.dumps(jax.tree_util.tree_map(np.asarray, first)))
    assert equal(jax.jit(copy.deepcopy(tx).apply)(GRADIENTS[1], kept[1], kept[0]), second)


@pytest.mark.parametrize("sentence, what", [
    ("sgd(lr=reduce_on_plateau(0.1, patience=1))", "metric"), ("polyak_sgd", "loss")])
def test_losses_are_watched(sentence: str, what: str) -> None:
    tx = tj.optimizer(sentence)
    losses = [1.0, 1.1, 1.2, 1.3, 1.4]
    expected, _ = outside(sentence, losses, what)
    assert not equal(expected, outside(sentence, [2.0 - x for x in losses], what)[0])
    for called in ("value", what):
        params, state = start(), tx.init(start())
        for gradient, loss in zip(GRADIENTS, losses):
            params, state = jax.jit(tx.apply)(gradient, state, params, **{called: loss})
        assert equal(params, expected)
    with pytest.raises(tw.ArgumentError, match=f"`value` and `{what}` are the same"):
        tx.apply(GRADIENTS[0], state, params, **{"value": 1.0, what: 2.0})


def test_values_that_are_traced() -> None:
    def step(lr: Any) -> Any:
        tx = tj.optimizer("sgd(lr=0.1)", lr=lr)
        return tx.apply(GRADIENTS[0], tx.init(start()), start())[0]

    for lr in (0.25, 1.0, 0.25):
        np.testing.assert_array_equal(jax.jit(step)(lr)["w"], start()["w"] - np.float32(lr) * GRADIENTS[0]["w"])
    assert equal(step(0.5), jax.jit(step)(0.5))
    fixed = tj.optimizer("adamw", values={"adamw.lr": 0.125})
    assert fixed.sentence == "adamw"
    assert equal(fixed.apply(GRADIENTS[0], fixed.init(start()), start())[0],
                 tj.optimizer("adamw(lr=0.125)").apply(GRADIENTS[0], fixed.init(start()), start())[0])


def test_a_scale_of_gradients() -> None:
    for scale in (0.25, jnp.float32(0.25)):
        tx = tj.optimizer("sgd(lr=1.0)", gradient_scale=scale)
        arrays, _ = outside("sgd(lr=1.0)", gradient_scale=0.25)
        params, state = start(), tx.init(start())
        for gradient in GRADIENTS:
            params, state = tx.apply(gradient, state, params)
        assert equal(params, arrays)
    with pytest.raises(tw.RangeError, match="gradient_scale"):
        tj.optimizer("sgd", gradient_scale=-1.0)


def test_a_function_or_a_dict_is_no_hyper_parameter() -> None:
    with pytest.raises(tw.ValueTypeError, match="`lr` is one number, got a function; .*inject_hyperparams.lambda"):
        tj.optimizer("sgd", lr=lambda step: 0.1)
    with pytest.raises(tw.ValueTypeError, match="`hyper` is one number, got a dict"):
        tj.optimizer("sgd", hyper={"lr": 0.1})


def test_many_models_by_vmap() -> None:
    tx = tj.optimizer("adamw(lr=0.1)")
    two = jax.tree_util.tree_map(lambda x: jnp.stack([x, x + 1]), start())
    step = jax.vmap(lambda p: tx.apply(GRADIENTS[0], tx.init(p), p)[0])
    for k in range(2):
        one = jax.tree_util.tree_map(lambda x: x[k], two)
        assert equal(jax.tree_util.tree_map(lambda x: x[k], jax.jit(step)(two)),
                     tx.apply(GRADIENTS[0], tx.init(one), one)[0])


def test_many_states_by_vmap() -> None:
    """Along other axes than the first, with gradients that are shared, and outside jit."""
    tx = tj.optimizer("sgd(lr=0.1, momentum=0.9)")
    params = [jax.tree_util.tree_map(lambda x: x + k, start()) for k in range(3)]
    states = [tx.apply(GRADIENTS[k], tx.init(params[k]), params[k])[1] for k in range(3)]
    last = lambda trees: jax.tree_util.tree_map(lambda *x: jnp.stack(x, -1), *trees)  # noqa: E731
    stepped = jax.vmap(tx.apply, in_axes=(None, -1, -1), out_axes=-1)(GRADIENTS[3], last(states), last(params))
    assert equal(stepped, last([tx.apply(GRADIENTS[3], s, p) for s, p in zip(states, params)]))
    same = jax.vmap(tx.apply, in_axes=(0, None, None))(
        jax.tree_util.tree_map(lambda *x: jnp.stack(x), *GRADIENTS[:2]), states[0], params[0])
    assert equal(jax.tree_util.tree_map(lambda x: x[1], same), tx.apply(GRADIENTS[1], states[0], params[0]))


def test_without_jit() -> None:
    tx = tj.optimizer("adamw(lr=0.1)")
    expected = jax.jit(tx.apply)(GRADIENTS[0], tx.init(start()), start())
    with jax.disable_jit():
        assert equal(tx.apply(GRADIENTS[0], tx.init(start()), start()), expected)


def test_a_step_has_no_derivative() -> None:
    tx = tj.optimizer("sgd(lr=0.1)")

    def after(params: Any) -> Any:
        return tx.apply(GRADIENTS[0], tx.init(params), params)[0]["w"].sum()

    with pytest.raises(tw.UnsupportedError, match="no derivative; jax.lax.stop_gradient"):
        jax.grad(after)(start())
    assert equal(jax.grad(lambda p: after(jax.lax.stop_gradient(p)) + p["w"].sum())(start())["w"], np.ones((6, 4)))


def test_beside_optax() -> None:
    optax = pytest.importorskip("optax")
    tx = tj.optimizer("sgd(lr=1.0)")
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    chain = optax.chain(optax.scale(0.5), tx)
    updates, _ = jax.jit(chain.update)(GRADIENTS[0], chain.init(start()), start())
    np.testing.assert_allclose(updates["w"], -0.5 * GRADIENTS[0]["w"], atol=1e-6)
    parts = optax.multi_transform({"ours": tx, "theirs": optax.sgd(0.5)}, {"b": "theirs", "scalar": "ours", "w": "ours"})
    updates, _ = jax.jit(parts.update)(GRADIENTS[0], parts.init(start()), start())
    np.testing.assert_allclose(updates["b"], -0.5 * GRADIENTS[0]["b"], rtol=1e-6)
    np.testing.assert_allclose(updates["w"], -GRADIENTS[0]["w"], atol=1e-6)
    injected = optax.inject_hyperparams(lambda lr: tj.optimizer("sgd", lr=lr))(lr=0.25)
    state = injected.init(start())
    for lr in (0.25, 1.0):
        state.hyperparams["lr"] = jnp.asarray(lr)
        updates, _ = jax.jit(injected.update)(GRADIENTS[0], state, start())
        np.testing.assert_allclose(updates["w"], -lr * GRADIENTS[0]["w"], atol=1e-6)
    with pytest.raises(ValueError, match="update needs the parameters"):
        tx.update(GRADIENTS[0], tx.init(start()))
    ours, theirs = tj.optimizer("adamw(lr=0.1, weight_decay=0.01)"), optax.adamw(0.1, weight_decay=0.01)
    a, b = start(), start()
    s, t = ours.init(a), theirs.init(b)
    for gradient in GRADIENTS:
        a, s = ours.apply(gradient, s, a)
        updates, t = theirs.update(gradient, t, b)
        b = optax.apply_updates(b, updates)
    for k in SHAPES:  # float32 rounding of five steps of 0.1
        np.testing.assert_allclose(a[k], b[k], atol=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(tw.NeedsError, match="outside"):
        tj.optimizer("sam(0.05) | adamw")
    with pytest.raises(tw.NeedsError, match="hessian_vector"):
        tj.optimizer("oasis")
    with pytest.raises(tw.UnknownNameError, match="momentun"):
        tj.optimizer("sgd", momentun=0.9)
    with pytest.raises(ValueError, match="`lr` is given in `values` and as a keyword"):
        tj.optimizer("sgd", lr=0.1, values={"lr": 0.1})
    with pytest.raises(tw.ShapeError, match="one real number"):
        tj.optimizer("sgd", lr=jnp.ones(2))
    with pytest.raises(tw.ShapeError, match="one real number, got complex64"):
        tj.optimizer("sgd", lr=jnp.asarray(1j))
    tx = tj.optimizer("adamw")
    params, state = start(), tx.init(start())
    with pytest.raises(tw.ArgumentError, match="`value` and `loss` are the same"):
        tx.apply(GRADIENTS[0], state, params, value=1.0, loss=2.0)
    with pytest.raises(tw.ShapeError, match="structure"):
        tx.apply({"w": jnp.ones((6, 4))}, state, params)
    with pytest.raises(tw.ShapeError, match=r"shape \(4, 6\)"):
        tx.apply({**GRADIENTS[0], "w": jnp.ones((4, 6))}, state, params)
    with pytest.raises(tw.DtypeError, match="int32"):
        tx.apply({**GRADIENTS[0], "w": jnp.ones((6, 4), jnp.int32)}, state, params)
    with pytest.raises(tw.DtypeError, match="int32"):
        tx.init({"w": jnp.ones(3, jnp.int32)})
    with pytest.raises(tw.ShapeError, match="another sentence"):
        tj.optimizer("lion").apply(GRADIENTS[0], state, params)
    with pytest.raises(tw.ShapeError, match="exp_avg"):
        tx.apply(GRADIENTS[0], state._replace(tensors={}), params)
    with pytest.raises(tw.ShapeError, match="matrix|rank"):
        tj.optimizer("muon").init({"b": jnp.ones(3)})


def test_what_the_library_refuses_when_it_runs() -> None:
    tx = tj.optimizer("adamw(lr=0.1)", nonfinite="error")
    params, state = start(), tx.init(start())
    bad = {**GRADIENTS[0], "w": jnp.full((6, 4), jnp.nan)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="NaN or infinite"):
        jax.block_until_ready(jax.jit(tx.apply)(bad, state, params))
    skips = tj.optimizer("adamw(lr=0.1)", nonfinite="skip")
    same, after = jax.jit(skips.apply)(bad, state, params)
    assert equal(same, params) and after.steps == 0 and after.skipped == 1
    nonsense = state._replace(numbers=state.numbers.at[0].set(7))
    with pytest.raises(jax.errors.JaxRuntimeError, match="numbers"):
        jax.block_until_ready(jax.jit(tx.apply)(GRADIENTS[0], nonsense, params))
    assert equal(jax.jit(tx.apply)(GRADIENTS[0], state, params)[0], tj.optimizer("adamw(lr=0.1)").apply(
        GRADIENTS[0], state, params)[0])


def test_empty_trees_and_tensors() -> None:
    tx = tj.optimizer("adamw")
    assert jax.jit(tx.apply)({}, tx.init({}), {})[0] == {}
    params = {"none": jnp.ones((0, 3)), "w": jnp.ones(2)}
    stepped, state = jax.jit(tx.apply)(params, tx.init(params), params)
    assert stepped["none"].shape == (0, 3) and state.steps == 1 and (stepped["w"] < 1).all()


def test_float64() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.linspace(0, 1, 5)}
        tx = tj.optimizer("adamw", lr=jnp.asarray(0.1))
        stepped, state = jax.jit(tx.apply)(params, tx.init(params), params)
        array = np.linspace(0, 1, 5)
        tw.Optimizer([array], "adamw(lr=0.1)").step([np.linspace(0, 1, 5)])
        assert stepped["w"].dtype == np.float64 and (np.asarray(stepped["w"]) == array).all()
        assert state.tensors["adamw.exp_avg"]["['w']"].dtype == np.float64


def test_numbers_that_nobody_watches() -> None:
    tx = tj.optimizer("adamw")
    params, state = start(), tx.init(start())
    with pytest.raises(tw.UnknownNameError, match="metric"):
        tx.apply(GRADIENTS[0], state, params, metric=1.0)
    with pytest.raises(tw.Error):
        tx.apply(GRADIENTS[0], state, params, **{"a\nb": 1.0})
    updates, _ = tx.update(GRADIENTS[0], state, params, metric=1.0, value_fn=lambda p: 0.0)
    assert equal(updates, tx.update(GRADIENTS[0], state, params)[0])
    with pytest.raises(tw.ShapeError, match="uint32"):
        tx.apply(GRADIENTS[0], state._replace(numbers=[0]), params)


@pytest.mark.parametrize("sentence, says", [
    ("polyak_sgd", "polyak_sgd needs the loss of every step: pass value=loss"),
    ("momo", "momo needs the loss of every step: pass value=loss"),
    ("gradient_accumulate(2, mode=weighted) | adamw", "needs the number of samples: pass samples=..."),
    ("route(matrix=(sgd), \"*b*\"=(polyak_sgd), other=(sgd))", "polyak_sgd needs the loss"),
])
def test_a_number_that_is_needed_is_missed_when_traced(sentence: str, says: str) -> None:
    tx = tj.optimizer(sentence)
    params, state = start(), tx.init(start())
    for step in (tx.apply, tx.update):
        for nothing in ({}, {"value": None}):
            with pytest.raises(tw.NeedsError) as caught:
                jax.jit(step).lower(GRADIENTS[0], state, params, **nothing)
            assert says in str(caught.value) and "observe" not in str(caught.value)
    what = {"samples": 8} if "samples" in says else {"value": 0.5}
    stepped, _ = jax.jit(tx.apply)(GRADIENTS[0], state, params, **what)
    assert "samples" in what or not equal(stepped, params)
    tx.averaged(state, params)  # is no step


def test_parameters_are_flattened_once_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    tx = tj.optimizer("adamw")
    params, state = start(), tx.init(start())
    flatten, calls = _transform.flatten, []
    monkeypatch.setattr(_transform, "flatten", lambda tree: calls.append(tree) or flatten(tree))
    for step in (tx.apply, tx.update, tx.averaged):
        calls.clear()
        jax.jit(step).lower(*((state, params) if step == tx.averaged else (GRADIENTS[0], state, params)))
        assert len(calls) == 1


@pytest.mark.parametrize("name, says", [
    ("AdamW", r"here it is thalweg\.jax\.optimizer\('adamw'\)$"), ("optimiser", "did you mean 'optimizer'"),
    ("cosine_decay_schedule", r"thalweg\.schedule\('cosine'\)"), ("_adamw", "attribute '_adamw'$")])
def test_names_that_are_not_here(name: str, says: str) -> None:
    with pytest.raises(AttributeError, match=says):
        getattr(tj, name)


def test_arguments_in_another_order_are_named() -> None:
    params = {"b": jnp.zeros(3), "w": jnp.ones((6, 4))}
    tx = tj.optimizer("adamw | ema(0.9)")
    state = tx.init(params)
    for call in (tx.apply, tx.update):
        with pytest.raises(tw.ArgumentError, match="grads is the state, state is a dict of 2 arrays, params is a dict"):
            call(state, params, params)
        with pytest.raises(tw.ArgumentError, match=r"\(grads, state, params\): grads is a dict .* params is the state"):
            call(params, params, state)
        with pytest.raises(tw.ArgumentError, match="state is a tuple of 0 arrays"):
            call(params, (), params)
    for look in (tx.averaged, tx.slots):
        with pytest.raises(tw.ArgumentError, match="params.: state is a dict of 2 arrays, params is the state"):
            look(params, state)
