"""A prox with a step for each element, of one that takes a single step."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _arrays
from ._errors import CountError, DtypeError, RangeError, ShapeError, UnsupportedError, ValueTypeError, error

TOLERANCE = 1e-11  # of sums in another order, in float64
FACTORS = [(1.0, 1.0), *((a, b) for big in (1e3, 1e9) for one in (big, -big) for a, b in ((one, 1.0), (1.0, one)))]
Prox = Callable[[Any, float], None]


def apply(prox: Prox, w: Any, step: Any, who: object) -> None:
    """w becomes argmin_u sum_i (u_i - w_i)^2/(2 step_i) + penalty(u), in place; where step_i is 0, u_i is w_i."""
    if isinstance(step, (int, float)) or not _arrays.is_array(step) or not getattr(step, "ndim", 0):
        return prox(w, _number(step))
    if _arrays.is_masked(step):
        raise error(DtypeError, f"step: {_arrays.MASKED}")
    prox(w, 0.0)  # changes nothing, and refuses what it does not take
    held = w.detach() if hasattr(w, "detach") else np.asarray(w)
    point = np.array(_plain(held), np.float64)
    steps = _numbers(step, point.shape)
    if not steps.size:
        return None
    if (steps == steps.flat[0]).all():
        return prox(w, float(steps.flat[0]))
    rows, each = _rows(point, steps)
    values, part_of = np.unique(each, return_inverse=True)
    try:
        tried = {float(np.median(each[each > 0])), float(values[-1])}
        independent = _independent(prox, point, rows, part_of, tried)
        found = _by_parts(prox, rows, values, part_of).reshape(point.shape) if independent else None
    except (CountError, RangeError, ShapeError):  # parts of another shape than the whole
        found = None
    if found is None:
        raise error(UnsupportedError, f"{who!r} has no prox with these steps: elements with different ones depend on "
                    "one another, or on their place. Pass one step, or one for each group of elements")
    held[...] = held.new_tensor(found) if hasattr(held, "new_tensor") else found
    return None


def _plain(array: Any) -> np.ndarray:
    """The array as NumPy's; torch's in float64, since some of its types are none of NumPy's."""
    return array.detach().double().numpy() if hasattr(array, "detach") else np.asarray(array)


def _number(step: Any) -> float:
    try:
        number = np.nan if isinstance(step, str) else float(step)
    except (TypeError, ValueError):
        number = np.nan
    if number != number and not isinstance(step, float):
        raise error(ValueTypeError, "step: a number of at least 0 is expected, or an array of them, got "
                    f"{reprlib.repr(step)}")
    if not 0 <= number < np.inf:
        raise error(RangeError, f"step: a finite number of at least 0 is expected, got {number}")
    return number


def _numbers(step: Any, shape: tuple[int, ...]) -> np.ndarray:
    steps = _plain(step)
    if steps.dtype.kind not in "iufV":  # V: 16-bit types that NumPy does not know itself
        raise error(ValueTypeError, f"step: real numbers are expected, got {steps.dtype}")
    try:
        steps = np.broadcast_to(steps.astype(np.float64), shape)
    except ValueError:
        raise error(ShapeError, f"step: a number is expected, or a shape that broadcasts to that of w, {shape}; got "
                    f"{steps.shape}") from None
    wrong = np.argwhere(~((steps >= 0) & (steps < np.inf)))
    if len(wrong):
        at = tuple(map(int, wrong[0]))
        raise error(RangeError, f"step: finite numbers of at least 0 are expected, got {steps[at]} at {at}")
    return steps


def _rows(point: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The point as the largest rows that have one step each, whole rows or single elements; and those steps."""
    firsts = [steps[(..., *[slice(0, 1)] * (point.ndim - k))] for k in range(point.ndim)]  # behind k axes
    axis = next((k for k, first in enumerate(firsts) if (steps == first).all()), point.ndim)
    each = steps.reshape((*steps.shape[:axis], -1))[..., 0].ravel()
    return point.reshape((each.size, *point.shape[axis:])), each


def _by_parts(prox: Prox, rows: np.ndarray, values: np.ndarray, part_of: np.ndarray) -> np.ndarray:
    """What has one step goes through the prox together."""
    found, order = rows.copy(), np.argsort(part_of, kind="stable")
    for value, some in zip(values, np.split(order, np.flatnonzero(np.diff(part_of[order])) + 1), strict=True):
        part = found[some]
        prox(part, float(value))
        found[some] = part
    return found


@np.errstate(over="ignore", invalid="ignore")  # of what is tried, not of what is found
def _independent(prox: Prox, point: np.ndarray, rows: np.ndarray, part_of: np.ndarray, steps: set[float]) -> bool:
    """Whether the whole comes out of the prox as its parts do, each by itself.

    Parts are put into two halves by a bit of their number: of any two there is a bit in which they differ.  They are
    tried as they are, and one half much larger than the other, so that none hides below a threshold, or between others.
    """
    for bit, step, factors in itertools.product(range(int(part_of.max()).bit_length()), steps, FACTORS):
        half = (part_of >> bit) & 1 == 1
        halves = [factor * rows[some] for factor, some in zip(factors, (half, ~half), strict=True)]
        whole = np.empty_like(rows)
        whole[half], whole[~half] = halves
        scale = np.abs(whole[np.isfinite(whole)]).max(initial=0)
        whole = whole.reshape(point.shape)
        for array in (whole, *halves):
            prox(array, step)
        for some, alone in zip((half, ~half), halves, strict=True):
            together = whole.reshape(rows.shape)[some]
            if not np.allclose(together, alone, rtol=TOLERANCE, atol=1e-3 * TOLERANCE * scale, equal_nan=True):
                return False
    return True
