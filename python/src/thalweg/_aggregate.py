"""Aggregators of gradients that are there already, without an optimizer around them."""

from __future__ import annotations

import contextlib
import copy
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Never

import numpy as np

from . import _arrays, _registry, _sentence
from ._errors import (
    CountError,
    DtypeError,
    Error,
    FormatError,
    MethodError,
    MismatchError,
    RangeError,
    SequenceError,
    ShapeError,
    ValueTypeError,
    error,
)
from ._objects import Card, Fixed
from ._optimizer import Optimizer, bare


class Aggregator(Fixed):
    __slots__ = ("sentence", "_name", "_optimizer", "_at", "_tasks")
    __doc__ = Card("""One gradient made of those of several tasks or workers: aggregate("upgrad")(jacobian).

    The number of tasks is that of the rows, unless the sentence says it.  What a method remembers of earlier calls
    (gradvac, nash_mtl, gcond, ...) belongs to the object: one for each run, called once a step.  state_dict() has it,
    and so have copies and pickles.
    """)

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        name = _sentence.stages(self._checked(sentence))[0]
        method = _registry.by_name().get(name)
        if method is None:
            Optimizer([np.zeros(1)], f"{sentence} | sgd")  # which says what it is not
            raise error(MethodError, f"no method `{name}`")
        if method.kind != "aggregator" or "task_gradient" not in method.requests:
            raise error(MethodError, f"`{method.name}` does not combine the gradients of tasks; `python -m thalweg "
                        "methods --need task_gradient` lists what does")
        with contextlib.suppress(RangeError), contextlib.closing(bare(f"{self.sentence} | sgd(lr=1)")):
            pass  # what does not fit the standard number of tasks may fit that of the rows
        self._name = method.name
        self._optimizer: Optimizer | None = None
        self._at: list[np.ndarray] = []
        self._tasks = 0

    def __repr__(self) -> str:
        return f"thalweg.aggregate({self.sentence!r})"

    def __call__(self, jacobian: Any, losses: Sequence[float] | None = None) -> Any:
        """The combined gradient.

        jacobian  (tasks, parameters), or a list of (tasks, shape...), one for each tensor of a model; float32 or
                  float64, torch tensors too.  Its rows are read where they lie, in the order in which the method asks
        losses    of the tasks, for methods that ask for them

        An array like a row, or a list of them.  CountError where the rows are not the tasks of the sentence or of
        earlier calls, NonfiniteError where a method meets a NaN, NeedsError where the losses are missing,
        UnknownNameError where the method takes none; nothing that is remembered has changed then.
        """
        several = isinstance(jacobian, (list, tuple))
        given = list(jacobian) if several else [jacobian]
        parts = [_read(part) for part in given]
        tasks = self._check(parts)
        values = None if losses is None else _losses(losses, tasks)
        fresh = self._optimizer is None
        if fresh:
            at = [np.zeros(part.shape[1:], part.dtype) for part in parts]
            self._optimizer, self._at, self._tasks = self._made(at, tasks), at, tasks
        elif [(a.shape, a.dtype) for a in self._at] != [(part.shape[1:], part.dtype) for part in parts]:
            raise error(ShapeError, f"{self!r} was called with other tensors before: "
                        f"{[f'{a.dtype} {a.shape}' for a in self._at]} behind the tasks, "
                        f"{[f'{p.dtype} {p.shape[1:]}' for p in parts]} now")
        for at in self._at:
            at[...] = 0
        try:
            self._combine(parts, tasks, values)
        except Error as problem:
            if fresh:  # a first call that is refused settles nothing
                self._optimizer, self._at, self._tasks = None, [], 0
            if "loss_0" not in str(problem):
                raise
            wants = "needs the losses of the tasks, as losses=[...]" if values is None else "takes no losses"
            raise error(type(problem), f"{self!r} {wants}") from problem
        # plain SGD with a rate of 1, from 0
        steps = [0 - at for at in self._at]
        combined = [g.new_tensor(s) if hasattr(g, "new_tensor") else s for s, g in zip(steps, given, strict=True)]
        return combined if several else combined[0]

    def _combine(self, parts: list[np.ndarray], tasks: int, losses: list[float] | None) -> None:
        assert self._optimizer is not None
        for k, loss in enumerate(losses or ()):
            self._optimizer.observe(f"loss_{k}", loss)
        with contextlib.closing(self._optimizer.requests()) as requests:
            for request in requests:
                if request.count != tasks:
                    raise error(CountError, f"{self!r} is for {request.count} tasks, got {tasks} rows")
                request.answer([part[request.index] for part in parts], stay=True)

    def get(self, name: str) -> float:
        """A number that the method tells of the last call: "residual", by how much the conditions of an exact answer are
        missed (0 to 1; of a method that iterates, where `thalweg.method(name)` says so), "iterations", "stationary".

        SequenceError before the first call, UnknownNameError where there is no such number.
        """
        if self._optimizer is None:
            raise error(SequenceError, f"{self!r} has not been called: there is no {name!r} of its last call yet")
        return float(self._optimizer.get(f"{self._name}.{name}"))

    def state_dict(self) -> dict[str, Any]:
        """What it remembers of its calls, as plain values: the sentence, the number of tasks, the tensors behind them
        ([dtype, extents...]) and {"state": bytes}; before the first call there are no tasks and no state."""
        tensors = [[str(a.dtype), *a.shape] for a in self._at]
        state = b"" if self._optimizer is None else self._optimizer._save()
        return {"sentence": self.sentence, "tasks": self._tasks, "tensors": tensors, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from there.  FormatError for what is none, MismatchError for the state of another sentence; an error
        changes nothing."""
        try:
            sentence, tasks, state = state_dict["sentence"], state_dict["tasks"], state_dict["state"]
            at = [np.zeros([int(n) for n in extents], dtype) for dtype, *extents in state_dict["tensors"]]
            memoryview(state).release()
            if isinstance(tasks, bool) or not isinstance(tasks, int) or (tasks > 0) != bool(at):
                raise ValueError(f"{tasks!r} tasks of {len(at)} tensors")
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            raise error(FormatError, f"{self!r}: what its state_dict() gave is expected: {problem!r}") from problem
        if sentence != self.sentence:
            raise error(MismatchError, f"what was saved is of {sentence!r}, this aggregator is {self.sentence!r}")
        optimizer = None
        if at:
            optimizer = self._made(at, tasks)
            optimizer._load(state)
        self._optimizer, self._at, self._tasks = optimizer, at, tasks

    def __copy__(self) -> Aggregator:
        return copy.deepcopy(self)  # what is remembered is the copy's own

    @staticmethod
    def _checked(sentence: str) -> str:
        """The sentence, if it is of one stage."""
        if len(_sentence.stages(sentence)) != 1:
            raise error(RangeError, f"an aggregator is one stage, got {sentence!r}")
        return sentence

    @staticmethod
    def _check(parts: list[np.ndarray]) -> int:
        shapes = [part.shape for part in parts]
        if not parts or any(part.ndim == 0 for part in parts) or len({len(part) for part in parts}) != 1:
            raise error(ShapeError, f"jacobian: expected one row a task in every array, got shapes {shapes}")
        if len({part.dtype for part in parts}) != 1 or parts[0].dtype not in (np.float32, np.float64):
            raise error(DtypeError, "jacobian: expected arrays that are all float32 or all float64, got "
                        f"{[str(p.dtype) for p in parts]}")
        if len(parts) > 1 and all(part.ndim == 1 for part in parts):
            raise error(ShapeError, f"jacobian: expected one array (tasks, shape...) for each tensor, got {len(parts)} "
                        f"arrays of shapes {shapes}: stack gradients, one a task, to one array (np.stack(gradients), "
                        "torch.stack)")
        if len(parts[0]) == 0:
            raise error(CountError, f"jacobian: expected at least one task, got none: shapes {shapes}")
        return len(parts[0])

    def _made(self, at: list[np.ndarray], tasks: int) -> Optimizer:
        """What combines the rows for tensors like `at`."""
        name, _, inside = self.sentence.strip().removesuffix(")").partition("(")
        settings = _sentence.arguments(inside)
        said = any(key in ("tasks", None) for key, _ in settings)  # without a name it is the first
        if said or all(p.name != "tasks" for p in _registry.by_name()[name.strip()].parameters):
            return Optimizer(at, f"{self.sentence} | sgd(lr=1)", nonfinite="error")

        def made(tasks: int) -> Optimizer:
            text = f"tasks={tasks}" + (f", {inside}" if settings else "")
            return Optimizer(at, f"{name}({text}) | sgd(lr=1)", nonfinite="error")

        optimizer = made(tasks)
        with contextlib.closing(optimizer.requests()) as requests:
            more = next(iter(requests)).count - tasks  # pareto_da asks for one gradient that is of no task
        return made(tasks - more) if more else optimizer


def _read(part: Any) -> np.ndarray:
    if _arrays.is_masked(part):
        raise error(DtypeError, f"jacobian: {_arrays.MASKED}")
    try:
        array = np.asarray(part.detach() if hasattr(part, "detach") else part)
    except (TypeError, ValueError) as problem:  # types that NumPy does not know, other devices, rows of several lengths
        text = f"jacobian: {_arrays._article(part)} is no array of float32 or float64: {problem}"
        raise error(DtypeError, text) from problem
    if array.dtype == object:
        raise error(DtypeError, f"jacobian: {_arrays._article(part)} is not an array")
    return array


def _losses(losses: Any, tasks: int) -> list[float]:
    try:
        values = [float(loss) for loss in losses]
    except (TypeError, ValueError, OverflowError):
        text = f"losses: {tasks} numbers are expected, one a task, got {reprlib.repr(losses)}"
        raise error(ValueTypeError, text) from None
    if len(values) != tasks:
        raise error(CountError, f"expected {tasks} losses, one a task, got {len(values)}")
    for k, value in enumerate(values):
        if not math.isfinite(value):
            raise error(RangeError, f"losses: finite numbers are expected, got {value} of task {k}")
    return values


def aggregate(sentence: str, **settings: Never) -> Aggregator:
    """An aggregator on its own: aggregate("upgrad")(jacobian)."""
    _sentence.refuse_keywords(sentence, settings, "aggregate")
    return Aggregator(sentence)
