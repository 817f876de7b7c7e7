"""What may stand for a number, and what may not: the same in NumPy, in torch and in JAX."""

from __future__ import annotations

import fractions
from typing import Any, Callable

import numpy as np
import pytest
from support import need_calls_of_xla

import thalweg as tw

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import thalweg.jax as twj  # noqa: E402
import thalweg.torch as twt  # noqa: E402

TREE = {"w": np.ones((2, 2), np.float32)}


def arrays() -> list[np.ndarray]:
    return [np.ones((2, 2), np.float32)]


def tensors() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 2))]


def by_group(lr: Any) -> float:
    opt = tw.Optimizer(arrays(), "adamw")
    opt.param_groups[0]["lr"] = lr
    return opt.get("lr")


def by_set(opt: Any, lr: Any) -> float:
    opt.set("lr", lr)
    return opt.get("lr")


def by_torch_group(lr: Any) -> float:
    opt = twt.Optimizer(tensors(), "adamw")
    opt.param_groups[0]["lr"] = lr
    opt.step()
    return opt.engine.get("lr")


def in_jit(lr: Any) -> float:
    """The rate by which the decay of AdamW shrinks a weight whose gradient is 0."""
    tx = twj.optimizer("adamw(weight_decay=1.0)", lr=lr)
    need_calls_of_xla()
    zeros = {"w": np.zeros((2, 2), np.float32)}
    params, _ = tx.apply(zeros, tx.init(TREE), TREE)
    return 1.0 - float(params["w"][0, 0])


HOSTS: dict[str, Callable[[Any], float]] = {
    "class": lambda lr: tw.AdamW(arrays(), lr=lr).get("lr"),
    "group": lambda lr: tw.Optimizer([{"params": arrays(), "lr": lr}], "adamw").param_groups[0]["lr"],
    "group later": by_group,
    "set": lambda lr: by_set(tw.Optimizer(arrays(), "adamw"), lr),
    "torch's class": lambda lr: twt.AdamW(tensors(), lr=lr).engine.get("lr"),
    "a class of torch": lambda lr: twt.Lion(tensors(), lr=lr).engine.get("lr"),
    "a group of torch": lambda lr: twt.Optimizer([{"params": tensors(), "lr": lr}], "adamw").engine.get("lr", "group0"),
    "a group of torch later": by_torch_group,
    "JAX outside jit": lambda lr: by_set(twj.Optimizer(TREE, "adamw"), lr),
    "JAX in jit": in_jit,
}
NUMBERS = {
    "text": "0.125", "float16": np.float16(0.125), "float32": np.float32(0.125), "float64": np.float64(0.125),
    "array": np.array(0.125), "tensor": torch.tensor(0.125), "double": torch.tensor(0.125, dtype=torch.float64),
    "of JAX": jax.numpy.float32(0.125), "fraction": fractions.Fraction(1, 8),
}
NONE = {"flag": True, "flag of NumPy": np.True_, "bytes": b"0.125", "complex": 1j, "object": object()}
NANS = {
    "nan": float("nan"), "nan of NumPy": np.float32("nan"), "array": np.array(np.nan), "tensor": torch.tensor(np.nan),
}


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("host", HOSTS)
def test_numbers(host: str, value: str) -> None:
    assert HOSTS[host](NUMBERS[value]) == 0.125


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("host", HOSTS)
def test_what_is_no_number(host: str, value: str) -> None:
    with pytest.raises(tw.ValueTypeError, match="lr.*(must be|is) (a|one) number"):
        HOSTS[host](NONE[value])


@pytest.mark.parametrize("value", NANS)
@pytest.mark.parametrize("host", HOSTS)
def test_nan(host: str, value: str) -> None:
    with pytest.raises(tw.RangeError, match="lr.*(must be|is) a number.*nan"):
        HOSTS[host](NANS[value])


def test_a_masked_number_is_none() -> None:
    with pytest.raises(tw.ValueTypeError, match="'lr' is a number"):
        tw.Optimizer(arrays(), "adamw").set("lr", np.ma.masked)


@pytest.mark.parametrize("wrong", ["1.0", None, np.ones(1)])
def test_options_and_what_is_told(wrong: Any) -> None:
    for make in (lambda: tw.AdamW(arrays(), gradient_scale=wrong), lambda: twt.AdamW(tensors(), gradient_scale=wrong)):
        with pytest.raises(tw.ValueTypeError, match="gradient_scale is a number, got"):
            make()
    for opt in (tw.Optimizer(arrays(), "polyak_sgd"), twt.Optimizer(tensors(), "polyak_sgd"),
                twj.Optimizer(TREE, "polyak_sgd")):
        with pytest.raises(tw.ValueTypeError, match="observe: 'loss' is a number, got"):
            opt.observe("loss", wrong)
        opt.observe("loss", np.array(1.0))
