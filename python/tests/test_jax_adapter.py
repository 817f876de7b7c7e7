"""thalweg.jax.Optimizer: what is taken for gradients, buffers that are donated, copies."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

jax = pytest.importorskip("jax")
jnp = jax.numpy

from thalweg.jax import Optimizer, optimizer  # noqa: E402


@dataclasses.dataclass
class Model:
    """A module as equinox writes them: a pytree that can be called."""

    w: Any
    b: Any

    def __call__(self, *x: Any) -> Any:
        """As a closure it would give gradients of its own."""
        return 0.0, Model(jnp.zeros(2), jnp.zeros(1))


jax.tree_util.register_dataclass(Model, data_fields=["w", "b"], meta_fields=[])


def model() -> Model:
    return Model(jnp.ones(2, jnp.float32), jnp.zeros(1, jnp.float32))


def test_a_tree_like_the_parameters_is_gradients() -> None:
    opt = Optimizer(model(), "sgd(lr=0.5)")
    opt.step(Model(jnp.ones(2), jnp.ones(1)))
    assert (opt.params.w == 0.5).all() and (opt.params.b == -0.5).all()
    with pytest.raises(tw.ShapeError, match="structure"):
        opt.step({"w": jnp.ones(2)})


def test_functions_are_closures() -> None:
    def loss(m: Model) -> Any:
        return (m.w**2).sum() + m.b.sum()

    opt = Optimizer(model(), "sgd(lr=0.25)")
    assert opt.step(jax.value_and_grad(loss)) == 2.0
    assert opt.step(jax.jit(jax.value_and_grad(loss))) == 2 * 0.25 - 0.25
    lone = Optimizer(jnp.ones(3), "sgd(lr=0.5)")  # a lone array has the structure that JAX gives a function
    lone.step(jax.value_and_grad(lambda x: x.sum()))
    assert (lone.params == 0.5).all()
    lone.step(jnp.ones(3))
    assert (lone.params == 0).all()


@pytest.mark.parametrize(("sentence", "calls"), [("sgd(lr=0.5)", 1), ("momo", 1), ("sam(0.1) | sgd(lr=0.5)", 2)])
def test_how_often_a_closure_is_called(sentence: str, calls: int) -> None:
    opt, called = Optimizer(model(), sentence), []
    for _ in range(2):
        opt.step(lambda params: called.append(params) or (1.0, Model(jnp.ones(2), jnp.ones(1))))
    assert len(called) == 2 * calls and opt.steps == 2
    with pytest.raises(TypeError, match="not NoneType"):
        opt.step(called.append)
    assert len(called) == 2 * calls + 1 and opt.steps == 2
    opt.eval()
    with pytest.raises(tw.SequenceError, match=r"opt\.train\(\)"):
        opt.step(called.append)
    assert len(called) == 2 * calls + 1


def test_donated_parameters_come_back() -> None:
    opt = Optimizer({"w": jnp.ones(4)}, "sgd(lr=0.5)")
    double = jax.jit(lambda p: jax.tree_util.tree_map(lambda x: 2 * x, p), donate_argnums=0)
    given = opt.params
    jax.block_until_ready(double(given))
    if not given["w"].is_deleted():
        given["w"].delete()  # what donation does where the buffer can be used
    assert (opt.params["w"] == 1).all()
    opt.step({"w": jnp.ones(4)})
    assert (opt.params["w"] == 0.5).all() and (opt.arrays[0] == 0.5).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("sentence", ["adamw(lr=0.125)", "sgd(lr=linear(lr=1.0, end=0, total=8), momentum=0.5) | ema(0.5)"])
def test_copies_go_on_as_the_original(sentence: str, copied: Callable[[Any], Any]) -> None:
    opt = Optimizer(model(), sentence)
    grads = Model(jnp.asarray([0.5, -1.0]), jnp.ones(1))
    opt.step(grads)
    opt.note = "mine"
    twin = copied(opt)
    assert twin.note == "mine" and type(twin.params) is Model
    assert not np.shares_memory(twin.arrays[0], opt.arrays[0])
    for _ in range(3):
        before = np.array(twin.params.w)
        twin.step(grads)
        assert (np.asarray(twin.params.w) != before).any()
        opt.step(grads)
        for x, y, z in zip(jax.tree_util.tree_leaves(twin.params), jax.tree_util.tree_leaves(opt.params), twin.arrays):
            np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(x, z)
    assert twin.engine.names == opt.engine.names and twin.engine.steps == 4


def test_a_copy_in_evaluation_mode() -> None:
    opt = Optimizer({"w": jnp.ones(2)}, "sgd(lr=0.5) | ema(0.5)")
    for _ in range(3):
        opt.step({"w": jnp.ones(2)})
    opt.eval()
    twin = copy.deepcopy(opt)
    assert not twin.training and (twin.params["w"] == opt.params["w"]).all()
    twin.train()
    opt.train()
    assert twin.training and (twin.params["w"] == -0.5).all() and (opt.params["w"] == -0.5).all()


def test_what_is_computed_with_the_averages_has_them_when_they_have_gone() -> None:
    opt = Optimizer({"w": jnp.ones((600, 600))}, "sgd(lr=0.5) | ema(0.5)")
    for _ in range(2):
        opt.step({"w": jnp.ones((600, 600))})
    slow = jax.jit(lambda p: jnp.linalg.norm(p["w"] @ p["w"] @ p["w"] @ p["w"] @ p["w"]) * 0 + p["w"][-1, -1])
    assert slow(opt.params) == 0  # compiled, with the training weights
    with opt.averaged() as inside:
        assert inside is opt and not opt.training
        averaged = float(opt.params["w"][0, 0])
        later = slow(opt.params)
    assert averaged != 0 and later == averaged and opt.training and (opt.params["w"] == 0).all()
    with pytest.raises(tw.SequenceError, match=r"opt\.train\(\)"), opt.averaged():
        opt.step({"w": jnp.ones((600, 600))})


def test_state_and_hyper_parameters(tmp_path: Any) -> None:
    grads = Model(jnp.asarray([0.5, -1.0]), jnp.ones(1))
    opt = Optimizer(model(), "sgd(lr=0.5, momentum=0.5)")
    opt.set("lr", 0.25)
    opt.step(grads)
    assert opt.get("sgd.lr") == 0.25 and opt.steps == 1 and opt.skipped == 0
    opt.save(tmp_path / "run.safetensors")
    again, third = [Optimizer(opt.params, "sgd(lr=0.5, momentum=0.5)") for _ in range(2)]
    again.load(tmp_path / "run.safetensors")
    third.load_state_dict(opt.state_dict())
    for one in (opt, again, third):
        one.step(grads)
        assert one.steps == 2 and one.get("lr") == 0.25
        np.testing.assert_array_equal(one.params.w, opt.params.w)
    assert opt.memory_report().total > 0
    report = Optimizer(model(), "sgd(lr=0.5, momentum=0.5) | ema(0.5)").load_state_dict(opt.state_dict(), strict=False)
    assert report is not None and report.missing
    with pytest.raises(tw.UnknownNameError, match="did you mean `lr`"):
        opt.set("learning_rate", 0.1)


def test_masked_arrays_are_refused() -> None:
    masked = np.ma.masked_array(np.ones(3, np.float32), [0, 1, 0])
    with pytest.raises(tw.DtypeError, match="masked"):
        Optimizer({"w": masked}, "sgd(lr=0.5)")
    opt = Optimizer({"w": jnp.ones(3)}, "sgd(lr=0.5)")
    with pytest.raises(tw.DtypeError, match="masked"):
        opt.step({"w": masked})
    assert (opt.params["w"] == 1).all()


def test_traced_arrays_are_refused_with_what_to_take() -> None:
    outside, text = Optimizer({"w": jnp.ones(3)}, "sgd(lr=0.5)"), "traced array .* thalweg.jax.optimizer"
    for call in (lambda w: Optimizer({"w": w}, "sgd").params, lambda w: tw.SGD([w], lr=0.5),
                 lambda w: outside.step({"w": w})):
        with pytest.raises(tw.DtypeError, match=text):
            jax.jit(call)(jnp.ones(3))
    assert outside.steps == 0 and (outside.params["w"] == 1).all()


def test_requests_that_a_closure_cannot_know() -> None:
    opt = Optimizer({"w": jnp.ones(3)}, "oasis")
    with pytest.raises(tw.NeedsError, match="hessian_vector"):
        opt.step(jax.value_and_grad(lambda p: (p["w"] ** 2).sum()))
    assert (opt.params["w"] == 1).all() and opt.engine.steps == 0


def test_an_exception_at_the_second_request() -> None:
    opt = Optimizer({"w": jnp.ones(3)}, "sam(0.5) | sgd(lr=0.25)")
    calls = []

    def closure(params: Any) -> tuple[Any, Any]:
        calls.append(np.array(params["w"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0, {"w": 2 * params["w"]}

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert (calls[0] != calls[1]).all() and (opt.params["w"] == 1).all() and opt.engine.steps == 0


@pytest.mark.parametrize("alone", [True, False])
def test_losses_alone(alone: bool) -> None:
    opt = Optimizer({"w": jnp.zeros(4)}, "spsa(a=0.01)")
    opt.step(lambda params: params["w"].sum() if alone else (params["w"].sum(), None))
    assert bool((opt.params["w"] != 0).all())


def test_what_a_newcomer_gives_to_a_step() -> None:
    params = {"b": jax.numpy.zeros(2), "w": jax.numpy.ones((3, 2))}
    opt = Optimizer(params, "adamw")
    tx = optimizer("adamw")
    pair = jax.value_and_grad(lambda p: p["w"].sum() + p["b"].sum())(params)
    for call in (lambda: opt.step(pair), lambda: tx.apply(pair, tx.init(params), params)):
        with pytest.raises(tw.ShapeError, match="the gradients have .*this is .loss, grads., .*: pass the second"):
            call()
    with pytest.raises(AttributeError, match=r"'lr' is a hyper-parameter: opt.set\('lr', ...\) changes it"):
        opt.lr = 0.5
    with pytest.raises(AttributeError, match=r"'lr' is a hyper-parameter: opt.get\('lr'\) reads it"):
        opt.lr  # noqa: B018
    opt.note = "mine"
    opt.step(pair[1])
    assert opt.note == "mine" and opt.steps == 1


def test_a_build_without_the_call_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.jax import _call

    monkeypatch.setattr(_call.Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(tw.UnsupportedError, match="no call for XLA") as caught:
        _call.registered.__wrapped__()
    checkout = "THALWEG_LIBRARY_DIR=$PWD/build/lib pip install --force-reinstall --no-deps ./python"
    assert checkout in str(caught.value) and "--no-cache-dir thalweg, or" in str(caught.value)
    readme = Path(__file__).parents[2] / "README.md"
    assert not readme.exists() or f"\n    {checkout}\n" in readme.read_text()
