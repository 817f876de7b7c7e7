"""The options of an optimizer beside its sentence: what they may be, and how the library numbers them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from ._errors import ArgumentError, RangeError, ValueTypeError, error

STATE_DTYPES = {"f32": 1, "bf16": 2, "q8": 3}
MASTERS = {None: 0, "none": 0, "f32": 1, "stochastic": 2}
SHARDS = {"tensors": 1, "elements": 2}
# Options that people write into a parameter group, and that are those of the whole optimizer.
OF_ALL = frozenset(("state_dtype", "master", "nonfinite", "max_skips", "maximize", "zero_gradients", "gradient_scale")
                   + ("consume_gradients",))
NONFINITE = {"propagate": 0, "skip": 1, "error": 2}


def of_all(name: str) -> str:
    """The refusal of such an option in a group."""
    return f"`{name}` is one for all parameter groups: give it to the optimizer, {name}=..."


def choice(name: str, value: Any, choices: Mapping[Any, int]) -> int:
    try:
        return choices[value]
    except (KeyError, TypeError):
        allowed = ", ".join(repr(choice) for choice in choices)
        raise error(ArgumentError, f"{name} is one of {allowed}, not {value!r}") from None


def is_complex(value: Any) -> bool:
    """Whether a value has an imaginary part, which float() would leave out with a warning, or without one."""
    return isinstance(value, complex) or "complex" in str(getattr(value, "dtype", ""))


def number(name: str, value: Any) -> float:
    """A number, of whatever type has one.  ValueTypeError for text and what is none."""
    try:
        if not isinstance(value, (str, bytes)) and not is_complex(value):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise error(ValueTypeError, f"{name} is a number, got {reprlib.repr(value)}")


def max_skips(value: Any, nonfinite: str) -> int | None:
    if value is not None and nonfinite != "skip":
        raise error(ArgumentError, f"max_skips is for nonfinite='skip', and nonfinite is {nonfinite!r}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise error(RangeError, f"max_skips is a whole number from 1 on, or None, not {value!r}")
    return value


def seed(value: Any) -> int:
    try:
        number = int(value.__index__())
    except AttributeError:
        raise error(ValueTypeError, f"seed is an integer, not {type(value).__name__}") from None
    if not 0 <= number < 2**64:
        raise error(RangeError, f"seed is in 0 ... 2**64 - 1, not {number}")
    return number
