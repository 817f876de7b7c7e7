"""The state of `optimizer`: the pytree, and where each of its buffers lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ShapeError, error

#: How a buffer of state is typed in JAX: by the library's number for its storage.
STORAGE = {0: np.dtype(np.float64), 1: np.dtype(np.float32), 2: jnp.dtype(jnp.bfloat16), 3: np.dtype(np.uint8)}
#: From so many buffers of state on, those of at most PACKED bytes lie in one, where `pack` does not say.
PACK_FROM, PACKED = 256, 65_536
ALIGNMENT = 64
OTHERS = "it is the state of another sentence, of other parameters, or with another `pack` (see repack)"


class State(NamedTuple):
    """The state of a run: a pytree of arrays, and nothing besides.

    numbers  uint32 (2k,): counters, scalars, what schedules remember, as the bits of k float64; all 0 before the first
             step
    tensors  {"adamw.exp_avg": {"['w']": array, ...}, ...}: by stage and slot, then by the path of the parameter.
             Arrays have the shape of their parameter where they have its size; 8-bit state is bytes
    packed   {}; or {"bytes": uint8 array} with the small ones (`pack`), for each of which JAX would need microseconds a
             step: Transformation.slots(state, params) shows all of them by name
    """

    numbers: jax.Array
    tensors: dict[str, dict[str, jax.Array]]
    packed: dict[str, jax.Array] = {}  # noqa: RUF012

    @property
    def steps(self) -> int:
        """How many steps were taken; for concrete arrays (outside jit)."""
        return self._head(1)

    @property
    def skipped(self) -> int:
        """How many steps the non-finite policy refused; for concrete arrays."""
        return self._head(2)

    def _head(self, index: int) -> int:
        return int(np.ascontiguousarray(self.numbers).view(np.float64)[index]) if self.numbers.size else 0


class Layout(NamedTuple):
    """What a sentence keeps for tensors of certain names and shapes."""

    numbers: int
    rows: tuple[Row, ...]
    packed: int  # bytes


class Row(NamedTuple):
    """A buffer of state; `place` is where it lies among the packed ones, -1 where it is an array of its own."""

    slot: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    place: int = -1

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def placed(layout: Layout, packs: bool) -> Layout:
    """The same rows, the small ones packed or each by itself."""
    rows, size = [], 0
    for row in layout.rows:
        place = size if packs and row.bytes <= PACKED else -1
        if place >= 0:
            size += -(-max(row.bytes, 1) // ALIGNMENT) * ALIGNMENT
        rows.append(row._replace(place=place))
    return Layout(layout.numbers, tuple(rows), size)


def laid(layout: Layout, state: State) -> Layout:
    """How the rows lie in this state, whichever `pack` it was made with.  ShapeError for another number of bytes."""
    there = placed(layout, bool(state.packed))
    if there.packed:
        packed_bytes(state, there.packed)
    return there


def of_state(state: State, row: Row) -> jax.Array:
    if row.place >= 0:
        part = jax.lax.dynamic_slice(state.packed["bytes"], (row.place,), (row.bytes,))
        if row.dtype == np.uint8:
            return part
        return jax.lax.bitcast_convert_type(part.reshape(*row.shape, row.dtype.itemsize), row.dtype)
    try:
        x = state.tensors[row.slot][row.name]
        form = x.shape, x.dtype
    except (KeyError, TypeError, AttributeError):
        raise error(ShapeError, f"the state has no {row.slot} for {row.name}: {OTHERS}") from None
    if form != (row.shape, row.dtype):
        raise error(ShapeError, f"{row.slot} of {row.name} is {x.dtype} {x.shape} in the state, expected {row.dtype} "
                    f"{row.shape}")
    return x


def packed_bytes(state: State, size: int) -> jax.Array:
    x = state.packed.get("bytes") if isinstance(state.packed, Mapping) else None
    if x is None or x.dtype != np.uint8 or x.shape != (size,):
        raise error(ShapeError, f"the state has no {size} packed bytes: {OTHERS}")
    return x
