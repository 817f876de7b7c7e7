"""Regularizers, constraints, objectives and schedules on their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from . import _arrays, _registry, _sentence, _thalweg
from ._errors import Error, MethodError, RangeError, SentenceError, UnknownNameError, ValueTypeError, error


class Card:
    """The __doc__ of a class whose objects stand for one method each: of an object it is the card of its method."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: Any, owner: Any = None) -> str:
        if instance is None:
            return self._text
        try:
            name = _sentence.stages(instance.sentence)[0]
        except AttributeError:  # not made yet
            return self._text
        return str(_registry.by_name()[name])


class Fixed:
    """For objects that are what their sentence says: an attribute that they do not have is refused, not made."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError:
            if hasattr(type(self), name):
                raise
            text: Any = getattr(self, "sentence", "")
            method = text.partition("(")[0].strip()
            raise AttributeError(f"{self!r} has no attribute {name!r}, and takes no new ones: hyper-parameters stand "
                                 f"in the sentence, as in \"{method}({name}=...)\"") from None


def _check_kind(sentence: str, kind: str) -> None:
    """Refuses a method of another kind, which the library would take: it makes these three by one function."""
    method = _registry.by_name()[_sentence.stages(sentence)[0]]
    if method.kind != kind:
        article, wanted = ("an" if word[0] in "aeiou" else "a" for word in (method.kind, kind))
        raise error(MethodError, f"`{method.name}` is {article} {method.kind}; {wanted} {kind} is wanted here: "
                    f"thalweg.{method.kind}({sentence!r}) makes it\n  {sentence}\n  ^")


def _of_kind(problem: Error, kind: str) -> Error:
    """A refusal of the library, which makes these three kinds by one function, in the words of that kind, and with the
    nearest name of it."""
    import difflib

    text = re.sub(r"\bobjective\b", kind, str(problem))
    text = re.sub(r"\ban (?=weighting|diagnostic)", "a ", text)
    unknown = re.match(rf"no {kind} `(\w+)`(?! \(did you)", text)
    near = difflib.get_close_matches(unknown[1], _registry.names(kind), 1) if unknown else []
    if unknown and near:
        text = f"{unknown[0]} (did you mean `{near[0]}`?){text[unknown.end():]}"
    return error(type(problem), text)


def _read_inputs(thing: Any, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with arrays in place of Python's numbers for inputs without axes, and int64 in place of small integers.

    A number does not make the arithmetic wider than the arrays do.
    """
    real = [v for v in given.values() if getattr(v, "shape", ()) and _dtype_name(v).startswith(("float", "bfloat"))]
    wide = not real or any(_dtype_name(v) == "float64" for v in real)
    read = dict(given)
    for i in thing.inputs:
        value = given.get(i.name)
        if isinstance(value, (bool, int, float)) and not _axes(i) and not i.result:
            whole = i.integer and not isinstance(value, float)
            if whole and not -(2**63) <= value < 2**63:
                raise error(RangeError, f"{i.name}: a whole number of 64 bits is expected, got {value}")
            read[i.name] = np.array(value, np.int64 if whole else np.float64 if wide else np.float32)
        elif i.integer and not i.result and _dtype_name(value) in SMALL_INTEGERS:
            torch = hasattr(value, "new_zeros")
            read[i.name] = value.long() if torch else np.asarray(value).astype(np.int64)
    return read


SMALL_INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "uint32")


def _dtype_name(value: Any) -> str:
    """"float32", of NumPy, torch and JAX; "" for what has no dtype."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]


def _inputs_of(sentence: str) -> tuple[_registry.Input, ...]:
    """The declared inputs of the method that a sentence of one stage names."""
    return _registry.by_name()[_sentence.stages(sentence)[0]].inputs


def _in_order(thing: Any, given: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """The names of the inputs of an object, and the given arrays in that order, None where there is none."""
    names = tuple(i.name for i in thing.inputs)
    for name in given:
        if name not in names:
            raise error(UnknownNameError, f"{thing!r} has no input {name!r}; it has: {', '.join(names) or 'none'}")
    return names, tuple(given.get(name) for name in names)


class Regularizer(Fixed, _thalweg.Regularizer):
    __slots__ = ("sentence", "inputs", "__weakref__")
    __doc__ = Card("""A penalty, from one stage: regularizer("group_lasso(1e-3, axis=row)").

    Some look at more than the weights; they take those arrays by name: value(w, delta=..., slope=...).
    """)

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)
        self.inputs = _inputs_of(sentence)

    def value(self, w: Any, /, **inputs: Any) -> float:
        """The penalty at the array w, its weight included.  NeedsError names an input that is missing."""
        return self._value_with(*_in_order(self, {**inputs, "w": w})) if inputs else self._value(w)

    def gradient(self, w: Any, out: Any = None, scale: float = 1.0, **inputs: Any) -> Any:
        """The gradient at w, in a new array; or added to `out`, times `scale`.  Returns the array."""
        if out is None:
            out = _arrays.zeros_like(w, "w")
        if inputs:
            self._gradient_with(*_in_order(self, {**inputs, "w": w}), scale, out)
        else:
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


class Constraint(Fixed, _thalweg.Constraint):
    __slots__ = ("sentence", "__weakref__")
    __doc__ = Card("""A set or a manifold, from one stage: constraint("simplex(1.0)").""")

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
            out = _arrays.zeros_like(g, "g")
        self._lmo(g, out)
        return out

    def __repr__(self) -> str:
        return f"constraint({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


class Cache(_thalweg.Cache):
    """What a forward pass of an objective keeps for its pull-backs; the next forward pass fills it anew."""

    def __init__(self) -> None:
        self._create()


class Objective(Fixed, _thalweg.Objective):
    __slots__ = ("sentence", "inputs", "__weakref__")
    __doc__ = Card("""A scalar function of named arrays, from one stage: objective("checkered_regression")(z=z, y=y).

    `inputs` lists the arrays: names, shapes, which of them have a gradient.  float64 where one of them is, else
    float32.  Those without axes may be Python's numbers.

    The value is a float, which autograd knows nothing of, torch tensors given or not: gradients come from
    `value_and_grad(...)`, or from `forward` and `pullback`.
    """)
    _kind = "objective"

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        try:
            self._create(sentence)
        except (MethodError, SentenceError) as problem:
            raise _of_kind(problem, self._kind) from None
        _check_kind(sentence, self._kind)
        self.inputs = _inputs_of(sentence)

    def __call__(self, **inputs: Any) -> float:
        """The value.  NeedsError names an input that is missing, ShapeError an axis that does not fit."""
        return self._forward(None, *_in_order(self, _read_inputs(self, inputs)))

    def forward(self, cache: Cache | None = None, /, **inputs: Any) -> tuple[float, Cache]:
        """The value, and what `pullback` needs: in `cache`, or in a new one.  The arrays may change afterwards."""
        if cache is None:
            cache = Cache()
        return self._forward(cache, *_in_order(self, _read_inputs(self, inputs))), cache

    def pullback(self, cache: Cache, upstream: float = 1.0, /, **gradients: Any) -> dict[str, Any]:
        """Adds upstream * (gradient with respect to each input named) to the arrays given; returns them by name.

        A result (see `inputs`) is added to its array likewise.  NonfiniteError where the value has no gradient.
        """
        self._pullback(cache, upstream, *_in_order(self, gradients))
        return gradients

    def value_and_grad(self, **inputs: Any) -> tuple[float, dict[str, Any]]:
        """The value, and new arrays: the gradient of every differentiable input, and the results, by name."""
        inputs = _read_inputs(self, inputs)
        value, cache = self.forward(**inputs)
        sizes = self._sizes(inputs)
        out = {}
        for i in self.inputs:
            if i.differentiable and inputs.get(i.name) is not None:
                out[i.name] = _arrays.zeros_like(inputs[i.name], i.name)
            elif i.result and all(axis in sizes for axis in _axes(i)):
                out[i.name] = _zeros_like_inputs(self.inputs, inputs, sum((sizes[axis] for axis in _axes(i)), ()))
        return value, self.pullback(cache, 1.0, **out)

    def _sizes(self, inputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """The extents that the axes stand for in arrays that fit; "..." stands for several."""
        sizes = {axis: (int(axis),) for i in self.inputs for axis in _axes(i) if axis.isdigit()}
        for i in self.inputs:
            if inputs.get(i.name) is not None:
                shape, axes = tuple(inputs[i.name].shape), _axes(i)
                if "..." in axes:
                    first = axes.index("...")
                    end = len(shape) - (len(axes) - first - 1)
                    sizes["..."] = shape[first:end]
                    shape = shape[:first] + shape[end:]
                sizes.update((axis, (n,)) for axis, n in zip((a for a in axes if a != "..."), shape))
        return sizes

    def state_dict(self) -> dict[str, bytes]:
        """What it remembers of its forward passes, as {"state": bytes}."""
        return {"state": self._save()}

    def load_state_dict(self, state_dict: dict[str, bytes]) -> None:
        """Goes on from there.  MismatchError for the state of another one; an error changes nothing."""
        self._load(state_dict["state"])

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,), self._save()

    def __setstate__(self, state: bytes) -> None:
        self._load(state)


class Diagnostic(Objective):
    __slots__ = ()
    __doc__ = Card("""Numbers about arrays, from one stage: diagnostic("effective_rank")(x=x).

    Called, it gives its number; or, where it has named results (`inputs` lists them), a dict of them by name, those
    without axes as floats.  Some remember earlier calls: every call counts, and state_dict() has what they keep.
    """)
    _kind = "diagnostic"

    def __call__(self, **inputs: Any) -> Any:
        """The number, or the results by name.  NeedsError names an input that is missing."""
        if not any(i.result for i in self.inputs):
            return super().__call__(**inputs)
        names = {i.name for i in self.inputs if i.result}
        found = {k: v for k, v in self.value_and_grad(**inputs)[1].items() if k in names}
        return {k: float(v) if not v.shape else v for k, v in found.items()}


class Weighting(Objective):
    __slots__ = ()
    __doc__ = Card("""Weights of tasks or samples, from their losses: weighting("dwa")(losses=losses).

    Called, it gives the weights, an array like the losses; every call is one step of what it remembers (see
    state_dict).
    """)
    _kind = "weighting"

    def __call__(self, **inputs: Any) -> Any:
        """The weights, in an array of the kind of the losses.  NeedsError names an input that is missing."""
        return self.value_and_grad(**inputs)[1]["weights"]


def _zeros_like_inputs(declared: tuple[_registry.Input, ...], given: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """A zero array of that shape, of the kind and dtype of the real inputs; float64 where there is none."""
    like = next((given[i.name] for i in declared if not i.integer and given.get(i.name) is not None), None)
    if like is None:
        return np.zeros(shape)
    return like.new_zeros(shape) if hasattr(like, "new_zeros") else np.zeros(shape, np.asarray(like).dtype)


def _axes(i: _registry.Input) -> list[str]:
    return [axis.strip() for axis in i.shape.strip("()").split(",") if axis.strip()]


class Schedule(Fixed, _thalweg.Schedule):
    __slots__ = ("sentence", "__weakref__")
    __doc__ = Card("""A function of the step, from one stage: schedule("cosine(lr=0.1, total=1000)")(k).

    It may stand for a hyper-parameter: SGD(params, lr=schedule(...)).  The optimizer then has a schedule of its own,
    which goes on from what this one remembers at that moment (an observed metric, a batch size, an ended plateau); so
    do copies.
    """)

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)

    @overload
    def __call__(self, step: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, step: Sequence[int] | np.ndarray) -> np.ndarray: ...
    def __call__(self, step: Any) -> Any:
        """The value at a step, counted from 0; for an array of steps (np.arange(1000), a range) an array of its shape.

        ValueTypeError for what is no whole number, RangeError for a negative one.
        """
        if hasattr(step, "__index__") and not getattr(step, "ndim", 0):
            return self._value(step)
        steps = np.asarray(step)
        if steps.size and steps.dtype.kind not in "iu":
            raise error(ValueTypeError, "a step is a whole number, or an array of them, not a "
                        f"{type(step).__name__} ({steps.dtype})")
        return np.array([self._value(int(k)) for k in steps.flat], np.float64).reshape(steps.shape)

    def state_dict(self) -> dict[str, bytes]:
        """What it remembers of the run, as {"state": bytes}."""
        return {"state": self._save()}

    def load_state_dict(self, state_dict: dict[str, bytes]) -> None:
        """Goes on from there.  MismatchError for the state of another schedule; an error changes nothing."""
        self._load(state_dict["state"])

    def __repr__(self) -> str:
        return f"schedule({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,), self._save()

    def __setstate__(self, state: bytes) -> None:
        self._load(state)


def regularizer(sentence: str) -> Regularizer:
    """The penalty that the sentence names: regularizer("l1(1e-4)").value(w)."""
    return Regularizer(sentence)


def constraint(sentence: str) -> Constraint:
    """The set that the sentence names: constraint("simplex(1.0)").project(w)."""
    return Constraint(sentence)


def objective(sentence: str) -> Objective:
    """The objective that the sentence names: objective("checkered_regression")(z=z, y=y)."""
    return Objective(sentence)


def weighting(sentence: str) -> Weighting:
    """The weighting that the sentence names: weighting("dwa(temperature=2)")(losses=losses)."""
    return Weighting(sentence)


def diagnostic(sentence: str) -> Diagnostic:
    """The diagnostic that the sentence names: diagnostic("effective_rank")(x=x)."""
    return Diagnostic(sentence)


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
