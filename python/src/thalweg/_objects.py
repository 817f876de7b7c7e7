"""Regularizers, constraints and schedules on their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _arrays, _sentence, _thalweg


def _empty_like(value: Any, what: str) -> Any:
    """A new zero array of the kind of `value`."""
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if hasattr(value, "new_zeros"):  # torch
        return value.detach().new_zeros(value.shape)
    if not _arrays.is_array(value):
        raise TypeError(f"{what} is an array, not {type(value).__name__}")
    return np.zeros_like(np.asarray(value))


class Regularizer(_thalweg.Regularizer):
    """A penalty, from one stage: regularizer("group_lasso(1e-3, axis=row)")."""

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)

    def gradient(self, w: Any, out: Any = None, scale: float = 1.0) -> Any:
        """The gradient at w, in a new array; or added to `out`, times `scale`.  Returns the array."""
        if out is None:
            out = _empty_like(w, "w")
        self._gradient(w, scale, out)
        return out

    def prox(self, w: Any, t: float) -> Any:
        """w becomes argmin_u 1/2 |u - w|^2 + t * penalty(u), in place; t >= 0.  Returns w.

        UnsupportedError where the penalty has no prox.
        """
        self._prox(w, t)
        return w

    def __repr__(self) -> str:
        return f"regularizer({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


class Constraint(_thalweg.Constraint):
    """A set or a manifold, from one stage: constraint("simplex(1.0)")."""

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)

    def project(self, w: Any) -> Any:
        """w becomes the nearest point of the set, in place.  Returns w."""
        self._project(w)
        return w

    def tangent(self, w: Any, g: Any) -> Any:
        """g becomes the Riemannian gradient of the Euclidean gradient g at w, in place.  Returns g."""
        self._tangent(w, g)
        return g

    def retract(self, w: Any, u: Any) -> Any:
        """w becomes the point of the manifold that the tangent step u leads to, in place.  Returns w."""
        self._retract(w, u)
        return w

    def lmo(self, g: Any, out: Any = None) -> Any:
        """A point of the set that minimises <g, s>, in a new array or in `out`.  Returns the array."""
        if out is None:
            out = _empty_like(g, "g")
        self._lmo(g, out)
        return out

    def __repr__(self) -> str:
        return f"constraint({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


class Schedule(_thalweg.Schedule):
    """A function of the step, from one stage: schedule("cosine(lr=0.1, total=1000)")(k).

    It may stand for a hyper-parameter: SGD(params, lr=schedule(...)).
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)

    def __call__(self, step: int) -> float:
        """The value at a step, counted from 0.  RangeError for a negative one."""
        return self._value(step)

    def __repr__(self) -> str:
        return f"schedule({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


def regularizer(sentence: str) -> Regularizer:
    """The penalty that the sentence names: regularizer("l1(1e-4)").value(w)."""
    return Regularizer(sentence)


def constraint(sentence: str) -> Constraint:
    """The set that the sentence names: constraint("simplex(1.0)").project(w)."""
    return Constraint(sentence)


def schedule(sentence: str) -> Schedule:
    """The schedule that the sentence names: schedule("warmup_cosine(peak=1, warmup=10, total=100)")(5)."""
    return Schedule(sentence)


def random_normal(
    seed: int,
    stream: int = 0,
    step: int = 0,
    tensor: int = 0,
    n: int | None = None,
    offset: int = 0,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The standard normal draws that random methods use, in float64: elements offset ... offset + n of the stream of
    (seed, stream, step, tensor).  With `shape` they come in that shape."""
    if (n is None) == (shape is None):
        raise TypeError("random_normal() takes either n or shape")
    out = np.empty(n if shape is None else shape)
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 64), ("tensor", tensor, 32),
                              ("offset", offset, 64)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} is in 0 ... 2**{bits} - 1, not {value}")
    _thalweg._random_normal(seed, stream, step, tensor, offset, out)
    return out
