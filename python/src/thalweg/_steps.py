"""The steps of a prox: a number, or one for each element."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from . import _arrays
from ._errors import DtypeError, RangeError, ShapeError, ValueTypeError, error


def read(step: Any, w: Any) -> float | np.ndarray:
    """A step as a number, or as an array of the shape of w where it has axes."""
    if isinstance(step, (int, float)) or not _arrays.is_array(step) or not getattr(step, "ndim", 0):
        return _number(step)
    if _arrays.is_masked(step):
        raise error(DtypeError, f"step: {_arrays.MASKED}")
    return _numbers(step, tuple(getattr(w, "shape", ())))


def _plain(array: Any) -> np.ndarray:
    """The array as NumPy's; torch's in float64, since some of its types are none of NumPy's."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    if array.is_complex() or str(array.dtype) == "torch.bool":
        raise error(ValueTypeError, f"step: real numbers are expected, got {array.dtype}")
    try:
        return array.detach().double().numpy()
    except (TypeError, RuntimeError) as problem:
        raise error(DtypeError, f"step: a dense tensor in CPU memory is expected: {problem}") from problem


def _number(step: Any) -> float:
    try:
        number = np.nan if isinstance(step, (str, bytes, bool)) else float(step)
    except OverflowError:
        number = np.inf
    except (TypeError, ValueError, RuntimeError):
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
