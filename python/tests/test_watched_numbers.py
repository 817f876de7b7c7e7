"""A number that nobody watches is refused, but for the loss, which loops tell every sentence: where another number is
watched, that is one warning; what is watched is said."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import thalweg as tw


def made(sentence: str) -> tw.Optimizer:
    return tw.Optimizer([np.ones(3)], sentence)


@pytest.mark.parametrize("sentence, watched", [
    ("adamw", ()), ("sam(0.05) | sgd(lr=0.1)", ()), ("sgd(lr=reduce_on_plateau(0.1))", ("metric",)),
    ("polyak_sgd", ("loss",)), ("momo(lr=0.1)", ("loss",)), ("gradient_accumulate(2) | polyak_sgd", ("loss",)),
    ("clip_global_norm(max_norm=1) | sgd(lr=timestep_curriculum(num_clusters=3, patience=2))", ("metric", "loss")),
])
def test_what_nobody_watches(sentence: str, watched: tuple[str, ...]) -> None:
    opt = made(sentence)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        opt.observe("loss", 1.0)
        opt.observe("loss", 0.5)
    if watched and "loss" not in watched:
        assert [str(w.message).partition(": ")[2] for w in heard] == ["no stage watches `loss`; there is `metric`"]
        assert heard[0].filename == __file__
    else:
        assert not heard
    if "metric" in watched:
        opt.observe("metric", 1.0)
        return
    with pytest.raises(tw.UnknownNameError, match="no stage of this pipeline watches `metric`") as refused:
        opt.observe("metric", 1.0)
    assert all(f"`{other}`" in str(refused.value) for other in watched)


def test_who_tells_the_metric_may_tell_the_loss() -> None:
    opt = made("sgd(lr=reduce_on_plateau(0.1))")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.observe("metric", 1.0)
        opt.observe("loss", 1.0)


def test_a_loss_that_is_no_number() -> None:
    with pytest.raises(tw.NonfiniteError, match="polyak_sgd needs a finite one"):
        made("polyak_sgd").observe("loss", float("nan"))


def test_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    p = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="there is `metric`"):
        thalweg.torch.Optimizer([p], "sgd(lr=reduce_on_plateau(0.1))").observe("loss", torch.tensor(1.0))
    thalweg.torch.Optimizer([p], "polyak_sgd").observe("loss", torch.tensor(1.0))


def test_in_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    import thalweg.jax

    params = {"w": jnp.ones(3)}
    thalweg.jax.Optimizer(params, "adamw").observe("loss", 1.0)
    tx = thalweg.jax.optimizer("adamw")
    state = tx.init(params)
    tx.apply(params, state, params, value=jnp.float32(1))
    with pytest.raises(tw.UnknownNameError, match="watches `metric`"):
        tx.apply(params, state, params, metric=jnp.float32(1))
    updates, _ = tx.update(params, state, params, metric=jnp.float32(1))  # Optax hands it to all of a chain
    assert updates["w"].shape == (3,)


def test_a_schedule_without_settings_is_named_too() -> None:
    with pytest.raises(tw.UnknownNameError, match="watches `metric`; there is `batch_size`"):
        tw.Optimizer([np.ones(3)], "sgd(lr=batch_lr_scaling)").observe("metric", 1.0)
