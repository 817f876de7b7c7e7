"""Memory that an optimizer writes and JAX reads: an array that was handed out never changes.

JAX takes arrays as values, and reads them at times of its own: a computation that was dispatched may begin after the
step that follows it.  So nothing is written that somebody outside still looks at.

- Small parameters are copied when they are handed out, all of them by one jitted function: making a JAX array that
  looks at memory costs more (50 us each; the copies 3 us each).
- Large ones are looked at, without a copy.  Before a step their looks are taken back.  Where somebody else still has
  one (an array kept outside, a computation under way), the parameter moves to other memory: one copy, which the step
  then changes.  The runtime of XLA keeps what a look is made of until the last array and the last computation are done
  with it; a weak reference to that says when.
- Within a step that asks, and in evaluation mode, the library cannot move parameters: there large ones are copied, too.
"""

from __future__ import annotations

import gc
import sys
import time
import weakref
from typing import Any

import jax
import numpy as np

from .. import _arrays
from .._errors import DtypeError, LayoutError, error

ALIGNMENT = 64
#: Arrays of so many bytes and more are looked at.
LOOKED_AT_FROM = 1 << 19
#: How long a step waits for computations that end just now, before it copies what they read: as long as the copy takes.
BYTES_PER_SECOND = 4e9


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A new NumPy array, not initialised, whose memory JAX can borrow."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Any) -> np.ndarray:
    """A copy of an array (JAX, NumPy, ...) whose memory JAX can borrow."""
    if _arrays.is_masked(array):
        raise error(DtypeError, _arrays.MASKED)
    if _arrays.is_traced(array):
        raise error(DtypeError, _arrays.TRACED)
    source = np.asarray(array)
    copy = aligned_empty(source.shape, source.dtype)
    copy[...] = source
    return copy


def view(array: np.ndarray) -> jax.Array:
    """A JAX array on the CPU that looks at the memory of an aligned NumPy array, without a copy.

    It shows what is written there later, and so may computations that were dispatched before.
    """
    looking = jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
    if array.size and looking.unsafe_buffer_pointer() != array.ctypes.data:
        raise error(LayoutError, f"JAX copies a {array.dtype} array of shape {array.shape} where it should look at it")
    return looking


class Look:
    """What a JAX array looks through: it lives for as long as an array, or a computation, has to do with the memory.

    (A view of an array would not do: NumPy has views of views refer to the first array.)
    """

    __slots__ = ("__array_interface__", "__weakref__", "array")

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = {
            "shape": (array.nbytes,), "typestr": "|u1", "data": (array.ctypes.data, False), "version": 3}


class Block:
    """Memory of one large parameter, and who looks at it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._looking: jax.Array | None = None
        self._looks: list[weakref.ref[Look]] = []

    def shown(self) -> jax.Array:
        """A JAX array that looks at the memory; the same one until it is taken back, or was donated."""
        if self._looking is None or self._looking.is_deleted():
            look = Look(self.array)
            self._looks.append(weakref.ref(look))
            self._looking = view(np.asarray(look).view(self.array.dtype).reshape(self.array.shape))
        return self._looking

    def take_back(self) -> bool:
        """Lets go of the array that was shown.  True where somebody outside has that one."""
        looking, self._looking = self._looking, None
        return looking is not None and sys.getrefcount(looking) > 2

    @property
    def held(self) -> bool:
        """Whether somebody may still look, as far as the runtime has told."""
        if self._looks:
            self._looks = [look for look in self._looks if look() is not None]
        return bool(self._looks)


class Memory:
    """The parameters of one optimizer.

    arrays  what the optimizer writes; `release` may put others in their places
    """

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self._blocks = {i: Block(a) for i, a in enumerate(arrays) if a.nbytes >= LOOKED_AT_FROM}
        self._spare: dict[int, Block] = {}  # memory that the last step, or one like it, had to leave
        self._used: set[int] = set()
        self._small = [i for i in range(len(arrays)) if i not in self._blocks]
        self._sources = [view(arrays[i]) for i in self._small]
        self._copying: list[jax.Array] = []
        for block in self._blocks.values():
            block.shown()  # (LayoutError now where JAX would copy)

    def shown(self, movable: bool) -> list[jax.Array]:
        """The parameters as JAX arrays that do not change.

        movable  the parameters can go elsewhere before something is written
        """
        with jax.ensure_compile_time_eval():  # (somebody may look while JAX traces)
            return self._shown(movable)

    def _shown(self, movable: bool) -> list[jax.Array]:
        shown: list[Any] = [None] * len(self.arrays)
        for first in range(0, len(self._small), COPIED_AT_ONCE):
            copies, last = _copied(self._sources[first : first + COPIED_AT_ONCE])
            self._copying.append(last)
            for i, copy in zip(self._small[first:], copies):
                shown[i] = copy
        for i, block in self._blocks.items():
            if movable:
                shown[i] = block.shown()
            else:
                other = self._other(i)
                shown[i] = other.shown()
                other.take_back()
        return shown

    def wait(self) -> None:
        """Before something is written: the copies that were handed out are made."""
        if self._copying:
            jax.block_until_ready(self._copying)
            self._copying.clear()

    def release(self) -> bool:
        """Before a step: afterwards nobody looks at `arrays`.  True where some of them are others now."""
        self.wait()
        moving, ending = [], {}
        for i, block in self._blocks.items():
            if block.take_back():
                moving.append(i)
            elif block.held:
                ending[i] = block
        if ending:
            self._await(ending)
            moving += ending
        for i in moving:
            left, self._blocks[i] = self._blocks[i], self._other(i)
            self.arrays[i], self._spare[i] = self._blocks[i].array, left
        for i in [i for i in self._spare if i not in self._used]:
            del self._spare[i]
        self._used.clear()
        return bool(moving)

    def _other(self, i: int) -> Block:
        """A copy of a parameter in memory that nobody looks at."""
        spare = self._spare.get(i)
        if spare is not None and spare.held:
            _collect()
        if spare is None or spare.held:
            array = self.arrays[i]
            spare = Block(aligned_empty(array.shape, array.dtype))
        np.copyto(spare.array, self.arrays[i])
        self._spare[i] = spare
        self._used.add(i)
        return spare

    @staticmethod
    def _await(ending: dict[int, Block]) -> None:
        """Takes out what nobody looks at any more.

        The gradients are there before the computation that made them has put away what it read.
        """
        until = time.perf_counter() + sum(block.array.nbytes for block in ending.values()) / BYTES_PER_SECOND
        while True:
            _collect()
            for i in [i for i, block in ending.items() if not block.held]:
                del ending[i]
            if not ending or time.perf_counter() > until:
                return
            time.sleep(2e-5)


#: More results of one call take longer to compile, and no less time each.
COPIED_AT_ONCE = 512


@jax.jit
def _copied(arrays: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """Copies, and an array that nobody else has: it is there when they are."""
    return [jax.numpy.copy(x) for x in arrays], jax.numpy.ravel(arrays[0])[:1]


def _collect() -> None:
    """Lets the runtime of XLA give up the objects of Python that it is done with: it does so when Python collects."""
    gc.collect(0)
