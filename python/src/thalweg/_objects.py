"""Regularizers, constraints, objectives and schedules on their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Never, overload

import numpy as np

from . import _inputs, _registry, _sentence, _steps, _thalweg
from ._errors import ArgumentError, Error, MethodError, SentenceError, ValueTypeError, error
from ._hints import SEARCH


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
    # a function of the losses of tasks weighs them with its gradient
    weighs = kind == "weighting" and method.kind == "objective" and any(
        i.name == "losses" and i.differentiable for i in method.inputs)
    if method.kind != kind and not weighs:
        article, wanted = ("an" if word[0] in "aeiou" else "a" for word in (method.kind, kind))
        maker = "aggregate" if method.kind == "aggregator" else method.kind
        raise error(MethodError, f"`{method.name}` is {article} {method.kind}; {wanted} {kind} is wanted here: "
                    f"thalweg.{maker}({sentence!r}) makes it\n  {sentence}\n  ^")


def _of_kind(problem: Error, kind: str) -> Error:
    """A refusal of the library, which makes these three kinds by one function, in the words of that kind, and with the
    nearest name of it."""
    import difflib

    text = re.sub(r"\bobjective\b", kind, str(problem))
    text = re.sub(r"\ban (?=weighting|diagnostic)", "a ", text)
    unknown = re.match(rf"no {kind} `(\w+)`(?! \(did you)", text)
    near = difflib.get_close_matches(unknown[1], _registry.names(kind), 1) if unknown else []
    if unknown and near:
        text = f"{unknown[0]} (did you mean `{near[0]}`?){text[unknown.end():].removeprefix(SEARCH)}"
    return error(type(problem), text)


class Regularizer(Fixed, _thalweg.Regularizer):
    __slots__ = ("sentence", "inputs", "__weakref__")
    __doc__ = Card("""A penalty, from one stage: regularizer("group_lasso(1e-3, axis=row)").

    Some look at more than the weights; they take those arrays by name: value(w, delta=..., slope=...).
    """)

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)
        self.inputs = _inputs.inputs_of(sentence)

    @_inputs.named("w")
    def value(self, w: Any, /, **inputs: Any) -> float:
        """The penalty at the array w, of any shape that it takes, its weight included; w is only read.

        NeedsError names an input that is missing, ShapeError a shape that does not fit; of empty arrays it is 0.
        """
        return self._value_with(*_inputs.in_order(self, {**inputs, "w": w})) if inputs else self._value(w)

    def __call__(self, w: Any, /, **inputs: Any) -> float:
        """The value."""
        return self.value(w, **inputs)

    @_inputs.named("w")
    def gradient(self, w: Any, out: Any = None, scale: float = 1.0, **inputs: Any) -> Any:
        """scale times the gradient at w, in a new array of the shape of w; or added to `out`.  Returns the array.

        UnsupportedError where the penalty has no gradient; `out` is as before then.
        """
        if out is None:
            out = _inputs.empty_like(w, "w")
        else:
            _inputs.check_out(out, w, "w")
        if inputs:
            self._gradient_with(*_inputs.in_order(self, {**inputs, "w": w}), scale, out)
        else:
            self._gradient(w, scale, out)
        return out

    @_inputs.named("w")
    def prox(self, w: Any, step: Any = None, *, t: Any = None) -> Any:
        """w becomes argmin_u 1/2 |u - w|^2 + step * penalty(u), in place.  Returns w.

        step  at least 0; or an array of such numbers, of the shape of w or one that broadcasts to it (a step a row:
              (n, 1)): argmin_u sum_i (u_i - w_i)^2/(2 step_i) + penalty(u)
        t     the same, by its former name

        UnsupportedError where the penalty has no prox, or has an array of steps and elements that depend on one another
        (group_lasso, nuclear_norm); RangeError, ShapeError, ValueTypeError for steps that are none, NonfiniteError
        where the penalty needs finite numbers.  w is as before then.
        """
        if (step is None) == (t is None):
            raise error(ArgumentError, "prox: one step is expected, as in prox(w, step=0.1), got "
                        + ("none" if step is None else "both `step` and `t`"))
        steps = _steps.read(t if step is None else step, w)
        if isinstance(steps, float):
            self._prox(w, steps)
        else:
            self._prox_steps(w, steps)
        return w

    def __repr__(self) -> str:
        return f"regularizer({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


def _of_points(w: Any, found: tuple[int, bytes]) -> Any:
    """A float, or an array in the shape of the axes of w that number its points."""
    axes, numbers = found
    out = np.frombuffer(bytearray(numbers))
    return out.reshape(tuple(w.shape)[:axes]) if axes else float(out[0])


class Constraint(Fixed, _thalweg.Constraint):
    __slots__ = ("sentence", "__weakref__")
    __doc__ = Card("""A set or a manifold, from one stage: constraint("simplex(1.0)").""")

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        self._create(sentence)

    @_inputs.named("w")
    def project(self, w: Any) -> Any:
        """w becomes the nearest point of the set, in place.  Returns w.

        ShapeError for a shape that the set does not take, NonfiniteError where it needs finite numbers; w is as before
        then.  A set of lines (axis=...) takes each by itself.
        """
        self._project(w)
        return w

    @_inputs.named("w, g")
    def tangent(self, w: Any, g: Any) -> Any:
        """g becomes the Riemannian gradient of the Euclidean gradient g at w, in place.  Returns g.

        w is a point of the manifold (`project` makes one: it is not looked at here), g of its shape.  UnsupportedError
        for sets that are no manifolds.
        """
        self._tangent(w, g)
        return g

    egrad2rgrad = tangent

    @_inputs.named("w, u")
    def project_tangent(self, w: Any, u: Any) -> Any:
        """u, any vector, becomes its tangent part at w, in place.  Returns u.

        Not `tangent`, which also turns a gradient by the metric: both are one where the metric is that of the space
        around (sphere, oblique, grassmann, stiefel).
        """
        self._project_tangent(w, u)
        return u

    @_inputs.named("w, u")
    def retract(self, w: Any, u: Any) -> Any:
        """w becomes the point of the manifold that the tangent step u leads to, in place.  Returns w.

        w and u as in `tangent`.  The sentence names the retraction; `exp` is the exponential map whatever it names.
        """
        self._retract(w, u)
        return w

    @_inputs.named("w, u")
    def exp(self, w: Any, u: Any) -> Any:
        """w becomes the point that the geodesic from w along the tangent u leads to, in place.  Returns w.

        UnsupportedError where there is no closed form (stiefel); w is as before then.
        """
        self._exp(w, u)
        return w

    @_inputs.named("w, y")
    def log(self, w: Any, y: Any, out: Any = None) -> Any:
        """The tangent at w whose exponential is y, the shortest, in a new array or in `out`.  Returns the array.

        UnsupportedError where there is no closed form (stiefel); NumericError where many geodesics are the shortest
        (opposite points of a sphere).
        """
        if out is None:
            out = _inputs.empty_like(w, "w")
        else:
            _inputs.check_out(out, w, "w")
        self._log(w, y, out)
        return out

    @_inputs.named("w, y, u")
    def transport(self, w: Any, y: Any, u: Any) -> Any:
        """u, a tangent at w, becomes the tangent at y that it is carried to, in place.  Returns u.

        By parallel transport along the geodesic on sphere, spd, poincare_ball, lorentz and euclidean; elsewhere it is
        the tangent part of u at y.
        """
        self._transport(w, y, u)
        return u

    @_inputs.named("w, u, v")
    def inner(self, w: Any, u: Any, v: Any) -> Any:
        """<u, v> of tangents at w, in the metric there: a float, or an array with one number a point.

        An array holds several points in `oblique` (its rows), `poincare_ball` and `lorentz` (the lines along the last
        axis) and `euclidean` (every element); that of the whole is the sum.
        """
        return _of_points(w, self._inner(w, u, v))

    @_inputs.named("w, y")
    def distance(self, w: Any, y: Any) -> Any:
        """How long the shortest geodesic from w to y is: a float, or an array with one number a point, as `inner`.

        UnsupportedError where there is no closed form (stiefel).
        """
        return _of_points(w, self._distance(w, y))

    @_inputs.named("w")
    def check_point(self, w: Any) -> Any:
        """How far w is from where `project` puts it, 0 for a point of the manifold to rounding: a float, or an array
        with one number a point, as `inner`."""
        return _of_points(w, self._check_point(w))

    @_inputs.named("w, u")
    def check_tangent(self, w: Any, u: Any) -> Any:
        """How long the part of u is that is not tangent at w: a float, or an array with one number a point, as
        `inner`; of the size of the rounding of u for a tangent."""
        return _of_points(w, self._check_tangent(w, u))

    @_inputs.named("g")
    def lmo(self, g: Any, out: Any = None) -> Any:
        """A point s of the set that minimises <g, s>, in a new array of the shape of g or in `out`.  Returns the array.

        UnsupportedError where the set has no such oracle, or no lowest point.
        """
        if out is None:
            out = _inputs.empty_like(g, "g")
        else:
            _inputs.check_out(out, g, "g")
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
        self.inputs = _inputs.inputs_of(sentence)

    def __call__(self, *unnamed: Never, **inputs: Any) -> float:
        """The value.  NeedsError names an input that is missing, ShapeError an axis that does not fit."""
        _inputs.check_named(self, unnamed)
        return self._forward(None, *_inputs.in_order(self, _inputs.read_inputs(self, inputs)))

    def forward(self, cache: Cache | None = None, /, **inputs: Any) -> tuple[float, Cache]:
        """The value, and what `pullback` needs: in `cache`, or in a new one.  The arrays may change afterwards."""
        if cache is None:
            cache = Cache()
        return self._forward(cache, *_inputs.in_order(self, _inputs.read_inputs(self, inputs))), cache

    def pullback(self, cache: Cache, upstream: float = 1.0, /, **gradients: Any) -> dict[str, Any]:
        """Adds upstream * (gradient with respect to each input named) to the arrays given; returns them by name.

        A result (see `inputs`) is added to its array likewise.  NonfiniteError where the value has no gradient.
        """
        self._pullback(cache, upstream, *_inputs.in_order(self, gradients))
        return gradients

    def value_and_grad(self, *unnamed: Never, **inputs: Any) -> tuple[float, dict[str, Any]]:
        """The value, and new arrays: the gradient of every differentiable input, and the results, by name.

        NonfiniteError where the value is infinite or NaN, which has no gradient; such a call does not count.
        """
        _inputs.check_named(self, unnamed)
        inputs = _inputs.read_inputs(self, inputs)
        before = self._save()
        value, cache = self.forward(**inputs)
        sizes = self._sizes(inputs)
        out = {}
        for i in self.inputs:
            if i.differentiable and inputs.get(i.name) is not None:
                out[i.name] = _inputs.empty_like(inputs[i.name], i.name)
            elif i.result and all(axis in sizes for axis in _inputs.axes(i)):
                shape = sum((sizes[axis] for axis in _inputs.axes(i)), ())
                out[i.name] = _inputs.zeros_like_inputs(self.inputs, inputs, shape)
        try:
            return value, self.pullback(cache, 1.0, **out)
        except Error:
            self._load(before)
            raise

    def _sizes(self, inputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """The extents that the axes stand for in arrays that fit; "..." stands for several."""
        sizes = {axis: (int(axis),) for i in self.inputs for axis in _inputs.axes(i) if axis.isdigit()}
        for i in self.inputs:
            if inputs.get(i.name) is not None:
                shape, axes = tuple(inputs[i.name].shape), _inputs.axes(i)
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
        """Goes on from there.  FormatError for what is none, MismatchError for the state of another one; an error
        changes nothing."""
        self._load(_inputs.state_in(self, state_dict))

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

    def __call__(self, *unnamed: Never, **inputs: Any) -> Any:
        """The number, or the results by name.  NeedsError names an input that is missing."""
        if not any(i.result for i in self.inputs):
            return super().__call__(*unnamed, **inputs)
        names = {i.name for i in self.inputs if i.result}
        found = {k: v for k, v in self.value_and_grad(*unnamed, **inputs)[1].items() if k in names}
        return {k: float(v) if not v.shape else v for k, v in found.items()}


class Weighting(Objective):
    __slots__ = ()
    __doc__ = Card("""Weights of tasks or samples, from their losses: weighting("dwa")(losses=losses).

    Called, it gives the weights, an array like the losses; every call is one step of what it remembers (see
    state_dict).  An objective of the losses of tasks ("stch", "uncertainty_weighting", "imtl_l") is one too: its
    gradient for them are the weights.
    """)
    _kind = "weighting"

    def __call__(self, *unnamed: Never, **inputs: Any) -> Any:
        """The weights, in an array of the kind of the losses.  NeedsError names an input that is missing."""
        found = self.value_and_grad(*unnamed, **inputs)[1]
        return found["weights" if any(i.result and i.name == "weights" for i in self.inputs) else "losses"]


class Schedule(Fixed, _thalweg.Schedule):
    __slots__ = ("sentence", "__weakref__")
    __doc__ = Card("""A function of the step, from one stage: schedule("cosine(lr=0.1, total=1000)")(k).

    It may stand for a hyper-parameter: SGD(params, lr=schedule(...)).  The optimizer then has a schedule of its own,
    which goes on from what this one remembers at that moment (an observed metric, a batch size, an ended plateau); so
    do copies.  One that watches the run (reduce_on_plateau) is told by observe("metric", value), in a sentence by
    opt.observe("metric", value), and keeps its value until then.
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
        """Goes on from there.  FormatError for what is none, MismatchError for the state of another schedule; an
        error changes nothing."""
        self._load(_inputs.state_in(self, state_dict))

    def __repr__(self) -> str:
        return f"schedule({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,), self._save()

    def __setstate__(self, state: bytes) -> None:
        self._load(state)


def regularizer(sentence: str, **settings: Never) -> Regularizer:
    """The penalty that the sentence names: regularizer("l1(1e-4)").value(w)."""
    _sentence.refuse_keywords(sentence, settings, "regularizer")
    return Regularizer(sentence)


def constraint(sentence: str, **settings: Never) -> Constraint:
    """The set that the sentence names: constraint("simplex(1.0)").project(w)."""
    _sentence.refuse_keywords(sentence, settings, "constraint")
    return Constraint(sentence)


def objective(sentence: str, **settings: Never) -> Objective:
    """The objective that the sentence names: objective("checkered_regression")(z=z, y=y)."""
    _sentence.refuse_keywords(sentence, settings, "objective")
    return Objective(sentence)


def weighting(sentence: str, **settings: Never) -> Weighting:
    """The weighting that the sentence names: weighting("dwa(temperature=2)")(losses=losses)."""
    _sentence.refuse_keywords(sentence, settings, "weighting")
    return Weighting(sentence)


def diagnostic(sentence: str, **settings: Never) -> Diagnostic:
    """The diagnostic that the sentence names: diagnostic("effective_rank")(x=x)."""
    _sentence.refuse_keywords(sentence, settings, "diagnostic")
    return Diagnostic(sentence)


def schedule(sentence: str, **settings: Never) -> Schedule:
    """The schedule that the sentence names: schedule("warmup_cosine(peak=1, warmup=10, total=100)")(5)."""
    _sentence.refuse_keywords(sentence, settings, "schedule")
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
