"""Pytrees of parameters and gradients, as thalweg.jax.optimizer reads them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError, DtypeError, ShapeError, error

FLOATS = ("float32", "float64", "float16", "bfloat16")


class Flat(NamedTuple):
    """Parameters: their paths, their arrays, and what puts them together again."""

    names: tuple[str, ...]
    leaves: list[jax.Array]
    tree: Any


def flatten(params: Any) -> Flat:
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = tuple(jax.tree_util.keystr(path) for path, _ in paths)
    if len(set(names)) < len(names):
        raise error(ArgumentError, f"two parameters have one path: {sorted(names)}")
    if any("\n" in name for name in names):
        raise error(ArgumentError, "the path of a parameter has a line break")
    return Flat(names, [jnp.asarray(leaf) for _, leaf in paths], tree)


def check_order(call: str, **given: Any) -> None:
    """ArgumentError, with what every argument got, where the state is none, or another argument is one."""

    def is_state(x: Any) -> bool:
        return hasattr(x, "numbers") and hasattr(x, "tensors")

    def what(x: Any) -> str:
        count = len(jax.tree_util.tree_leaves(x))
        return "the state" if is_state(x) else f"a {type(x).__name__} of {count} array{'s' if count != 1 else ''}"

    if any(is_state(x) != (name == "state") for name, x in given.items()):
        got = ", ".join(f"{name} is {what(x)}" for name, x in given.items())
        raise error(ArgumentError, f"{call}({', '.join(given)}): {got}; the state is what init(params) or the last "
                    "step gave")


def leaves_like(grads: Any, tree: Any) -> list[Any]:
    """The leaves of gradients that have the structure of the parameters.  ShapeError for those that do not."""
    leaves, structure = jax.tree_util.tree_flatten(grads)
    if structure == tree:
        return leaves
    hint = ""
    if isinstance(grads, tuple) and len(grads) == 2 and jax.tree_util.tree_structure(grads[1]) == tree:
        hint = "; this is (loss, grads), as value_and_grad gives them: pass the second"
    raise error(ShapeError, f"the gradients have the structure {structure}, the parameters {tree}{hint}")


def forms(leaves: list[Any]) -> tuple[tuple[tuple[int, ...], ...], tuple[np.dtype, ...]]:
    for x in leaves:
        if x.dtype.name not in FLOATS:
            raise error(DtypeError, f"parameters are {', '.join(FLOATS)}, got {x.dtype.name} of shape {x.shape}")
    return tuple(x.shape for x in leaves), tuple(x.dtype for x in leaves)


def like(gradient: Any, parameter: jax.Array) -> jax.Array:
    try:
        gradient = jnp.asarray(gradient)
    except TypeError as problem:
        raise error(DtypeError, f"a gradient of shape {parameter.shape} is expected: {problem}") from problem
    if gradient.shape != parameter.shape:
        raise error(ShapeError, f"a gradient has the shape {gradient.shape}, its parameter {parameter.shape}")
    if gradient.dtype == parameter.dtype:
        return gradient
    if not jnp.issubdtype(gradient.dtype, jnp.floating) or jnp.promote_types(
        gradient.dtype, parameter.dtype
    ) != parameter.dtype:
        raise error(DtypeError, f"a gradient is {gradient.dtype.name}, its parameter {parameter.dtype.name}: cast it")
    return gradient.astype(parameter.dtype)
