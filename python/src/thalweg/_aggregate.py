"""Aggregators of gradients that are there already, without an optimizer around them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _registry, _sentence
from ._errors import CountError, DtypeError, MethodError, RangeError, ShapeError, error
from ._objects import Card, Fixed
from ._optimizer import Optimizer


class Aggregator(Fixed):
    __slots__ = ("sentence", "_optimizer", "_at")
    __doc__ = Card("""One gradient made of those of several tasks or workers: aggregate("upgrad")(jacobian).

    The number of tasks is that of the rows, unless the sentence says it.  What a method remembers of earlier calls
    (gradvac, nash_mtl, gcond, ...) belongs to the object: one for each run, called once a step.
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
        self._optimizer: Optimizer | None = None
        self._at: list[np.ndarray] = []

    def __repr__(self) -> str:
        return f"thalweg.aggregate({self.sentence!r})"

    def __call__(self, jacobian: Any, losses: Sequence[float] | None = None) -> Any:
        """The combined gradient.

        jacobian  (tasks, parameters), or a list of (tasks, shape...), one for each tensor of a model; float32 or
                  float64, torch tensors too.  Its rows are read where they lie, in the order in which the method asks
        losses    of the tasks, for methods that ask for them

        An array like a row, or a list of them.  CountError where the rows are not the tasks of the sentence or of
        earlier calls, NonfiniteError where a method meets a NaN; nothing that is remembered has changed then.
        """
        several = isinstance(jacobian, (list, tuple))
        given = list(jacobian) if several else [jacobian]
        parts = [np.asarray(part.detach() if hasattr(part, "detach") else part) for part in given]
        tasks = self._check(parts, losses)
        if self._optimizer is None:
            self._make(parts, tasks)
        elif [a.shape for a in self._at] != [part.shape[1:] for part in parts] or self._at[0].dtype != parts[0].dtype:
            raise error(ShapeError, f"{self!r} was called with other tensors before: "
                        f"{[f'{a.dtype} {a.shape}' for a in self._at]} behind the tasks, "
                        f"{[f'{p.dtype} {p.shape[1:]}' for p in parts]} now")
        assert self._optimizer is not None
        for at in self._at:
            at[...] = 0
        for k, loss in enumerate(losses if losses is not None else ()):
            self._optimizer.observe(f"loss_{k}", float(loss))
        with contextlib.closing(self._optimizer.requests()) as requests:
            for request in requests:
                if request.count != tasks:
                    raise error(CountError, f"{self!r} is for {request.count} tasks, got {tasks} rows")
                request.answer([part[request.index] for part in parts], stay=True)
        # plain SGD with a rate of 1, from 0
        steps = [0 - at for at in self._at]
        combined = [g.new_tensor(s) if hasattr(g, "new_tensor") else s for s, g in zip(steps, given, strict=True)]
        return combined if several else combined[0]

    @staticmethod
    def _checked(sentence: str) -> str:
        """The sentence, if it is of one stage."""
        if len(_sentence.stages(sentence)) != 1:
            raise error(RangeError, f"an aggregator is one stage, got {sentence!r}")
        return sentence

    def _check(self, parts: list[np.ndarray], losses: Sequence[float] | None) -> int:
        if not parts or any(part.ndim == 0 for part in parts) or len({len(part) for part in parts}) != 1:
            raise error(ShapeError, "expected one row a task in every array, got shapes "
                        f"{[part.shape for part in parts]}")
        if len({part.dtype for part in parts}) != 1 or parts[0].dtype not in (np.float32, np.float64):
            raise error(DtypeError, "expected arrays that are all float32 or all float64, got "
                        f"{[str(p.dtype) for p in parts]}")
        if len(parts) > 1 and all(part.ndim == 1 for part in parts):
            raise error(ShapeError, f"expected one array (tasks, shape...) for each tensor, got {len(parts)} arrays of "
                        f"shapes {[part.shape for part in parts]}: stack gradients, one a task, to one array "
                        "(np.stack(gradients), torch.stack)")
        tasks = len(parts[0])
        if tasks == 0:
            raise error(CountError, "expected at least one task, got none")
        if losses is not None and len(losses) != tasks:
            raise error(CountError, f"expected {tasks} losses, one a task, got {len(losses)}")
        return tasks

    def _make(self, parts: list[np.ndarray], tasks: int) -> None:
        self._at = [np.zeros(part.shape[1:], part.dtype) for part in parts]
        name, _, inside = self.sentence.strip().removesuffix(")").partition("(")
        settings = _sentence.settings(inside)
        said = any(key in ("tasks", None) for key in settings)  # without a name it is the first
        if said or all(p.name != "tasks" for p in _registry.by_name()[name.strip()].parameters):
            self._optimizer = Optimizer(self._at, f"{self.sentence} | sgd(lr=1)")
            return

        def made(tasks: int) -> Optimizer:
            text = f"tasks={tasks}" + (f", {inside}" if settings else "")
            return Optimizer(self._at, f"{name}({text}) | sgd(lr=1)")

        self._optimizer = made(tasks)
        with contextlib.closing(self._optimizer.requests()) as requests:
            more = next(iter(requests)).count - tasks  # pareto_da asks for one gradient that is of no task
        if more:
            self._optimizer = made(tasks - more)


def aggregate(sentence: str) -> Aggregator:
    """An aggregator on its own: aggregate("upgrad")(jacobian)."""
    return Aggregator(sentence)
