"""The call of XLA that a step is, as a primitive of JAX: results are the first of its operands, stepped."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .._errors import UnsupportedError, error

TARGET = "thalweg_step"
#: Of calls with more results than this XLA is told that they have effects beside them, since it then does not ask what
#: could be fused into them: it would compare all operands with all results for each operand (jaxlib 0.10, 2,000
#: tensors: 50 s).  Programs for several devices have no such calls, and step the largest of so many in place.
IN_PLACE = 256

_step = Primitive(TARGET)
_step.multiple_results = True


def step(operands: Sequence[jax.Array], kept: int, **attributes: Any) -> list[jax.Array]:
    """The first `kept` operands behind the step, in their memory where XLA does not need them any more.

    attributes  text, and tuples of integers
    """
    return _step.bind(*operands, kept=kept, attributes=tuple(attributes.items()))


@functools.cache
def registered() -> str:
    """The name of the call, once XLA knows it."""
    found = sorted(Path(__file__).resolve().parent.parent.glob("_xla*.so"))
    if not found:
        raise error(
            UnsupportedError, "this build of thalweg has no call for XLA: it is made when jaxlib's headers are there "
            "at install.  Install thalweg again beside jax: pip install --force-reinstall --no-deps --no-cache-dir "
            "thalweg, or in a checkout THALWEG_LIBRARY_DIR=$PWD/build/lib pip install --force-reinstall --no-deps "
            "./python; or use thalweg.jax.Optimizer outside jit")
    handler = ctypes.CDLL(str(found[0])).thalweg_xla_step
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return TARGET


@functools.lru_cache(maxsize=64)
def _compiled(kept: int, attributes: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(functools.partial(_step.bind, kept=kept, attributes=attributes))


@_step.def_impl
def _outside_jit(*operands: Any, kept: int, attributes: tuple[tuple[str, Any], ...]) -> Any:
    with jax.disable_jit(False):
        return _compiled(kept, attributes)(*operands)


@_step.def_abstract_eval
def _results(*operands: Any, kept: int, **_: Any) -> list[Any]:
    return [x.update(weak_type=False) for x in operands[:kept]]


def _lowered(ctx: Any, *operands: Any, kept: int, attributes: tuple[tuple[str, Any], ...]) -> Any:
    sizes = [-x.size * x.dtype.itemsize for x in ctx.avals_in[:kept]]
    places: Sequence[int] = range(kept)
    effects = kept > IN_PLACE and getattr(ctx.module_context.axis_context, "num_devices", 0) == 1
    if not effects:
        places = sorted(places, key=sizes.__getitem__)[:IN_PLACE]
    rule = jax.ffi.ffi_lowering(
        registered(), has_side_effect=effects, operand_output_aliases={i: i for i in sorted(places)})
    given = {k: np.array(v, np.int64) if isinstance(v, tuple) else v for k, v in attributes}
    return rule(ctx, *operands, **given)


def _one_after_the_other(operands: Any, axes: Any, **params: Any) -> Any:
    """Under vmap: a scan over the models."""
    mapped = [k for k, axis in enumerate(axes) if axis is not None]

    def one(parts: list[jax.Array]) -> list[jax.Array]:
        given = dict(zip(mapped, parts))
        return _step.bind(*(given.get(k, x) for k, x in enumerate(operands)), **params)

    results = jax.lax.map(one, [jnp.moveaxis(operands[k], axes[k], 0) for k in mapped])
    return results, [0] * len(results)


def _no_derivative(*_: Any, **__: Any) -> NoReturn:
    raise error(UnsupportedError, "a step of thalweg.jax.optimizer has no derivative; jax.lax.stop_gradient of its "
                "operands takes it as a constant")


mlir.register_lowering(_step, _lowered, platform="cpu")
# (By name: the stand-ins for JAX with which Sphinx reads this have no items.)
ad.primitive_jvps.__setitem__(_step, _no_derivative)
batching.primitive_batchers.__setitem__(_step, _one_after_the_other)
