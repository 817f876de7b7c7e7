"""A number that nobody watches is refused, by every host; what is watched is said."""

from __future__ import annotations

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
    for what in ("loss", "metric"):
        if what in watched:
            opt.observe(what, 1.0)
            continue
        with pytest.raises(tw.UnknownNameError, match=f"no stage of this pipeline watches `{what}`") as refused:
            opt.observe(what, 1.0)
        assert all(f"`{other}`" in str(refused.value) for other in watched)


def test_a_schedule_that_is_set_later() -> None:
    opt = tw.Optimizer([{"params": [np.ones(2)], "name": "a"}, {"params": [np.ones(2)], "name": "b"}], "sgd(lr=0.1)")
    with pytest.raises(tw.UnknownNameError):
        opt.observe("loss", 1.0)
    opt.set("lr", "timestep_curriculum(num_clusters=3, patience=2)", "b")
    opt.observe("loss", 1.0)


def test_a_loss_that_is_no_number() -> None:
    with pytest.raises(tw.NonfiniteError, match="polyak_sgd needs a finite one"):
        made("polyak_sgd").observe("loss", float("nan"))


def test_in_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(tw.UnknownNameError, match="watches `loss`"):
        thalweg.torch.AdamW([p]).observe("loss", torch.tensor(1.0))
    thalweg.torch.Optimizer([p], "polyak_sgd").observe("loss", torch.tensor(1.0))


def test_in_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    import thalweg.jax

    params = {"w": jnp.ones(3)}
    with pytest.raises(tw.UnknownNameError, match="watches `loss`"):
        thalweg.jax.Optimizer(params, "adamw").observe("loss", 1.0)
    tx = thalweg.jax.optimizer("adamw")
    state = tx.init(params)
    with pytest.raises(tw.UnknownNameError, match="watches `loss`"):
        tx.apply(params, state, params, value=jnp.float32(1))
    updates, _ = tx.update(params, state, params, value=jnp.float32(1))  # Optax hands it to all of a chain
    assert updates["w"].shape == (3,)
