"""A prox with a step for each element, of one that takes a single step."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _arrays
from ._errors import CountError, DtypeError, RangeError, ShapeError, UnsupportedError, ValueTypeError, error

TOLERANCE = 1e-9  # of the arithmetic, float64, and of proxes that iterate


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
    found = _by_parts(prox, point, steps, who)
    _confirm(prox, point, steps, found, who)
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


def _by_parts(prox: Prox, point: np.ndarray, steps: np.ndarray, who: object) -> np.ndarray:
    """What has one step goes through the prox by itself: whole rows where rows have one step, else elements."""
    firsts = [steps[(..., *[slice(0, 1)] * (point.ndim - k))] for k in range(point.ndim)]  # behind k axes
    axis = next((k for k, first in enumerate(firsts) if (steps == first).all()), point.ndim)
    each = steps.reshape((*steps.shape[:axis], -1))[..., 0].ravel()
    found = point.reshape((each.size, *point.shape[axis:])).copy()
    order = np.argsort(each, kind="stable")
    ends = np.flatnonzero(np.diff(each[order])) + 1
    for rows in np.split(order, ends):
        part = found[rows]
        try:
            prox(part, float(each[rows[0]]))
        except (CountError, RangeError, ShapeError) as problem:
            raise _depends(who) from problem
        found[rows] = part
    return found.reshape(point.shape)


def _confirm(prox: Prox, point: np.ndarray, steps: np.ndarray, found: np.ndarray, who: object) -> None:
    """The minimiser is a fixed point of a gradient step of the quadratic and the prox of the whole, for any step up to
    the least: of elements that depend on one another under several steps, parts do not make one."""
    moves = steps > 0
    least = float(steps[moves].min())
    again = np.where(moves, found + least / np.where(moves, steps, 1) * (point - found), found)
    prox(again, least)
    scale = np.abs(point[np.isfinite(point)]).max(initial=0)
    if not np.allclose(again[moves], found[moves], rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        raise _depends(who)


def _depends(who: object) -> Exception:
    return error(UnsupportedError, f"{who!r} has no prox with these steps: elements with different ones depend on one "
                 "another, or on their place. Pass one step, or one for each group of elements")
