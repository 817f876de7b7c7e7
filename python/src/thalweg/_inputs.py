"""The named arrays of what stands alone: put in order, made anew for what comes back, refused where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _arrays, _registry, _sentence
from ._errors import (
    DtypeError,
    Error,
    FormatError,
    Method,
    NonfiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    ValueTypeError,
    error,
    reworded,
)

SMALL_INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "uint32")


def read_inputs(thing: Any, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with arrays in place of Python's numbers for inputs without axes, and int64 in place of small integers.

    A number does not make the arithmetic wider than the arrays do.
    """
    real = [v for v in given.values() if getattr(v, "shape", ()) and dtype_name(v).startswith(("float", "bfloat"))]
    wide = not real or any(dtype_name(v) == "float64" for v in real)
    read = dict(given)
    for i in thing.inputs:
        value = given.get(i.name)
        if isinstance(value, (bool, int, float)) and not axes(i) and not i.result:
            whole = i.integer and not isinstance(value, float)
            if whole and not -(2**63) <= value < 2**63:
                raise error(RangeError, f"{i.name}: a whole number of 64 bits is expected, got {value}")
            read[i.name] = np.array(value, np.int64 if whole else np.float64 if wide else np.float32)
        elif i.integer and not i.result and dtype_name(value) in SMALL_INTEGERS:
            torch = hasattr(value, "new_zeros")
            read[i.name] = value.long() if torch else np.asarray(value).astype(np.int64)
    return read


def dtype_name(value: Any) -> str:
    """"float32", of NumPy, torch and JAX; "" for what has no dtype."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]


def empty_like(value: Any, what: str) -> Any:
    """A new zero array of the kind of `value`."""
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if hasattr(value, "new_zeros"):  # torch
        return value.detach().new_zeros(value.shape)
    if not _arrays.is_array(value):
        raise error(DtypeError, f"{what}: {_arrays.refusal(value)}")
    return np.zeros_like(np.asarray(value))


def named(arrays: str) -> Callable[[Method], Method]:
    """For methods of a regularizer or a set: errors say which it is, and NaN which arrays it may be in."""

    def words(self: Any, problem: Error) -> str:
        text = re.sub(r"^this (regularizer|set)\b", lambda _: repr(self), str(problem))
        spoken = not isinstance(problem, NonfiniteError) or text.startswith(f"{arrays}: ")
        return text if spoken else f"{arrays}: {text}"

    return reworded(words)


def check_out(out: Any, value: Any, what: str) -> None:
    """Refuses an `out` of another shape than the array `what`; what has no shape is the extension's to refuse."""
    shapes = [getattr(a, "shape", None) for a in (out, value)]
    if None not in shapes and tuple(shapes[0]) != tuple(shapes[1]):
        raise error(ShapeError, f"out: the shape of `{what}`, {tuple(shapes[1])}, is expected, got {tuple(shapes[0])}")


def state_in(thing: Any, state_dict: Any) -> Any:
    """The bytes in what state_dict() gave."""
    state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if state is None or not _arrays._has_buffer(state):
        got = f"a dict of {', '.join(map(repr, state_dict)) or 'nothing'}" if isinstance(state_dict, Mapping) else (
            _arrays._article(state_dict))
        got = got if state is None else f"{{'state': {_arrays._article(state)}}}"
        raise error(FormatError, f"{thing!r}: what its state_dict() gave is expected, {{'state': bytes}}, got {got}")
    return state


def inputs_of(sentence: str) -> tuple[_registry.Input, ...]:
    """The declared inputs of the method that a sentence of one stage names."""
    return _registry.by_name()[_sentence.stages(sentence)[0]].inputs


def check_named(thing: Any, unnamed: tuple[Any, ...]) -> None:
    """Refuses arguments without a name."""
    if unnamed:
        names = ", ".join(f"{i.name}=..." for i in thing.inputs if not i.result and not i.optional)
        raise error(ValueTypeError, f"{thing!r} takes its inputs by name, as in ({names}); got {len(unnamed)} without")


def in_order(thing: Any, given: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """The names of the inputs of an object, and the given arrays in that order, None where there is none."""
    names = tuple(i.name for i in thing.inputs)
    for name in given:
        if name not in names:
            known = ", ".join(f"{i.name} ({i.meaning})" for i in thing.inputs if not i.result) or "none"
            raise error(UnknownNameError, f"{thing!r} has no input {name!r}; it has: {known}")
    return names, tuple(given.get(name) for name in names)


def zeros_like_inputs(declared: tuple[_registry.Input, ...], given: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """A zero array of that shape, of the kind and dtype of the real inputs; float64 where there is none."""
    like = next((given[i.name] for i in declared if not i.integer and given.get(i.name) is not None), None)
    if like is None:
        return np.zeros(shape)
    return like.new_zeros(shape) if hasattr(like, "new_zeros") else np.zeros(shape, np.asarray(like).dtype)


def axes(i: _registry.Input) -> list[str]:
    return [axis.strip() for axis in i.shape.strip("()").split(",") if axis.strip()]
