"""thalweg.jax.Optimizer.requests: every kind, answered with pytrees; the bits are those of thalweg.Optimizer."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import thalweg as tw

jax = pytest.importorskip("jax")
jnp = jax.numpy

import thalweg.jax  # noqa: E402
from thalweg.jax import Optimizer  # noqa: E402

X = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
Y = (X @ np.float32([[1.0], [2.0], [-1.0]]) + 0.5).astype(np.float32)


def params() -> dict[str, Any]:
    return {"w": jnp.full((3, 1), 0.25), "b": jnp.zeros(1)}


def loss(p: Any, x: Any = X, y: Any = Y) -> Any:
    return ((jnp.tanh(x @ p["w"]) + p["b"] - y) ** 2).mean() + (p["b"] ** 4).sum()


def tasks(index: int) -> Any:
    return functools.partial(loss, x=X[8 * index : 8 * index + 8], y=Y[8 * index : 8 * index + 8])


def flat(sentence: str) -> tuple[tw.Optimizer, Any]:
    """The sentence on the leaves, and what makes the pytree of them."""
    leaves, tree = jax.tree_util.tree_flatten(params())
    opt = tw.Optimizer([np.array(x) for x in leaves], sentence)
    return opt, lambda: jax.tree_util.tree_unflatten(tree, [jnp.array(x, copy=True) for x in opt.params])


def test_several_tasks() -> None:
    opt, (other, tree) = Optimizer(params(), "pcgrad(tasks=2) | adamw(lr=0.1)"), flat("pcgrad(tasks=2) | adamw(lr=0.1)")
    for _ in range(3):
        losses = []
        for request in opt.requests():
            assert isinstance(request, tw.Request) and isinstance(request, thalweg.jax.Request)
            assert request.kind == "task_gradient" and request.count == 2 and request.wants_gradient
            value, grads = jax.value_and_grad(tasks(request.index))(opt.params)
            losses.append(value)
            request.answer(grads, value)
        for request in other.requests():
            value, grads = jax.value_and_grad(tasks(request.index))(tree())
            request.answer(jax.tree_util.tree_leaves(grads), float(value))
        assert len(losses) == 2
    for x, y in zip(opt.arrays, other.params):
        np.testing.assert_array_equal(x, y)
    assert opt.steps == 3 and "Request(task_gradient" in repr(request) and opt.engine.grads == [None, None]


@pytest.mark.parametrize("sentence", ["adahessian(lr=0.1)", "oasis", "sophia(lr=0.01)"])
def test_hessian_vector_products(sentence: str) -> None:
    gradient = jax.grad(loss)
    opt, (other, tree) = Optimizer(params(), sentence), flat(sentence)
    kinds = set()
    for _ in range(3):
        for request in opt.requests():
            kinds.add(request.kind)
            if request.kind == "hessian_vector":
                assert jax.tree_util.tree_structure(request.probe) == jax.tree_util.tree_structure(opt.params)
                request.answer(jax.jvp(gradient, (opt.params,), (request.probe,))[1])
            else:
                request.answer(gradient(opt.params), loss(opt.params))
        for request in other.requests():
            now = tree()
            if request.kind == "hessian_vector":
                probe = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(now), request.probe)
                grads = jax.jvp(gradient, (now,), (probe,))[1]
            else:
                grads = gradient(now)
            request.answer(jax.tree_util.tree_leaves(grads), float(loss(now)))
    assert "hessian_vector" in kinds and opt.steps == 3
    for x, y in zip(opt.arrays, other.params):
        np.testing.assert_array_equal(x, y)


def test_gradients_of_samples() -> None:
    opt = Optimizer(params(), "dp_sgd(noise_multiplier=0, expected_batch_size=16, clip=1e9) | sgd(lr=0.1)")
    each = jax.vmap(jax.grad(loss), (None, 0, 0))
    plain = Optimizer(params(), "sgd(lr=0.1)")
    for _ in range(2):
        for request in opt.requests():
            assert request.kind == "sample_gradients" and not request.wants_gradient
            request.answer_samples(each(opt.params, X[:, None], Y[:, None]))
        plain.step(jax.grad(loss)(plain.params))
    for x, y in zip(opt.arrays, plain.arrays):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert (opt.arrays[0] != 0).all()


def test_matrices() -> None:
    weights = {"w": jnp.ones((2, 3))}
    opt, other = Optimizer(weights, "tract(0.1) | sgd(lr=0.1)"), tw.Optimizer(
        [np.ones((2, 3), np.float32)], "tract(0.1) | sgd(lr=0.1)")
    for steps, grads in ((opt, {"w": jnp.ones((2, 3))}), (other, [np.ones((2, 3), np.float32)])):
        for request in steps.requests():
            if request.kind == "activations":
                request.answer_matrix(jnp.asarray(X[:4]), jnp.asarray(X[:4, :2]))
            else:
                request.answer(grads, 1.0)
    np.testing.assert_array_equal(opt.arrays[0], other.params[0])
    assert (opt.arrays[0] != 1).any()


def test_leaves_without_a_gradient() -> None:
    opt = Optimizer(params(), "pcgrad(tasks=2) | sgd(lr=0.5)")
    for request in opt.requests():
        request.answer({"w": jnp.ones((3, 1)), "b": None})
    assert (opt.params["b"] == 0).all() and (opt.params["w"] != 0.25).all()


def test_answers_that_do_not_fit() -> None:
    opt = Optimizer(params(), "sam(0.05) | sgd(lr=0.5)")
    grads = jax.grad(loss)(opt.params)

    def answered(*answer: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            for request in opt.requests():
                request.answer(*answer)

    answered({"w": grads["w"]}, error=tw.ShapeError, text="the gradients have the structure")
    answered((1.0, grads), error=tw.ShapeError, text="this is .loss, grads., .*: pass the second")
    answered(jnp.float32(1), grads, error=tw.ValueTypeError, text="takes .grads, loss., and was given .loss, grads.")
    answered(grads, "one", error=tw.ValueTypeError, text="the loss of an answer is one number")
    answered(error=tw.SequenceError, text=r"was not answered: .*opt\.engine\.bind_gradients")
    with pytest.raises(tw.NeedsError, match=r"answer every request in opt\.requests\(\)"):
        for request in opt.requests():
            opt.step(grads)
    for request in opt.requests():
        request.answer(grads)
        break
    assert opt.steps == 0 and (opt.params["w"] == 0.25).all() and (opt.params["b"] == 0).all()
    for request in opt.requests():
        request.answer(grads)
    assert opt.steps == 1


def test_the_loss_alone_and_the_loss_on_the_request() -> None:
    opt = Optimizer(params(), "spsa(a=0.01)")
    for request in opt.requests():
        assert request.wants_loss and not request.wants_gradient
        request.loss = loss(opt.params)
    assert opt.steps == 1 and (opt.params["w"] != 0.25).all()


def test_steps_that_are_skipped_are_told(caplog: pytest.LogCaptureFixture) -> None:
    opt = Optimizer(params(), "pcgrad(tasks=2) | sgd(lr=0.5)", nonfinite="skip", max_skips=2)

    def step() -> None:
        for request in opt.requests():
            request.answer(jax.tree_util.tree_map(lambda x: x * jnp.nan, opt.params))

    step()
    assert opt.skipped == 1 and "1 of 1 steps skipped" in caplog.text
    with pytest.raises(tw.NonfiniteError, match="in a row"):
        step()


def test_which_of_two_names() -> None:
    assert "thalweg.jax.optimizer" in (Optimizer.__doc__ or "") and "inside jit" in (Optimizer.__doc__ or "")
    assert "thalweg.jax.Optimizer" in (thalweg.jax.optimizer.__doc__ or "")
