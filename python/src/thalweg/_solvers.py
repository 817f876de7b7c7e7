"""Solvers: methods that run on their own, from named arrays to named results, and may ask on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _registry, _sentence, _thalweg
from ._errors import ArgumentError, NeedsError, UnknownNameError, error

TYPES = {1: "<f4", 2: "<f8", 6: "<i8"}


class _Memory:
    """Memory of a run as NumPy sees it; the array that is made of it keeps the run alive."""

    def __init__(self, owner: Any, address: int, dtype: int, shape: tuple[int, ...], read_only: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3, "data": (address, read_only), "typestr": TYPES[dtype], "shape": shape,
        }


class SolverRequest(Mapping[str, Any]):
    """What a run needs now: arrays by name, those that are given and those that are wanted.

    name      the kind: "product", "gradient", ...
    given     names of what is shown (read-only arrays, and numbers)
    wanted    names of what is to be filled, in place: request["product"][...] = A @ request["vector"];
              numbers are assigned: request["loss"] = 0.5
    tag       equal tags mean: the same minibatch, the same dropout
    """

    def __init__(self, name: str, tag: int, fields: dict[str, np.ndarray], given: int) -> None:
        self.name, self.tag = name, tag
        self.given, self.wanted = tuple(fields)[:given], tuple(fields)[given:]
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        array = self._fields[name]
        return float(array) if array.ndim == 0 and name in self.given else array

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.wanted:
            raise error(UnknownNameError, f"{self.name!r} wants {', '.join(self.wanted)}, not {name!r}")
        array = self._fields[name]
        value = np.asarray(value)
        if value.shape != array.shape:
            raise ValueError(f"{name!r} has the shape {array.shape}, got {value.shape}")
        array[...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def answer(self, values: Any) -> None:
        """Fills what is wanted: from one value, from several in order, or by name."""
        if isinstance(values, Mapping):
            for name in self.wanted:
                if name not in values:
                    raise error(ArgumentError, f"{self.name!r}: {name!r} is missing in the answer")
                self[name] = values[name]
            return
        if not self.wanted:
            return
        if len(self.wanted) == 1:
            values = (values,)
        if not isinstance(values, (tuple, list)) or len(values) != len(self.wanted):
            raise error(ArgumentError, f"{self.name!r} wants {', '.join(self.wanted)}: a tuple of {len(self.wanted)}")
        for name, value in zip(self.wanted, values):
            self[name] = value

    def __repr__(self) -> str:
        return f"<request {self.name}: {', '.join(self.given)} -> {', '.join(self.wanted)}>"


class SolverResult(Mapping[str, Any]):
    """What a run found: arrays (copies) and numbers, as result["x"] or result.x, and how it ended, as result.outcome."""

    def __init__(self, outcome: str, values: dict[str, Any]) -> None:
        self.outcome = outcome
        self._values = values

    @property
    def converged(self) -> bool:
        """True when the outcome is "converged"."""
        return self.outcome == "converged"

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"a result has no {name!r}; it has: {', '.join(values)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        parts = [f"{k}={v if isinstance(v, float) else f'array{v.shape}'}" for k, v in self._values.items()]
        return f"<{self.outcome}: {', '.join(parts)}>"


class SolverRun(_thalweg.Solver):
    """One run of a solver: an iterator of the requests that it makes.  Solver.requests and Solver.resume make it.

    It can be saved, copied and pickled at every request; it goes on from there with the same bits.
    """

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self._create(solver.sentence)
        self._waits = False
        self.outcome = ""

    def __iter__(self) -> SolverRun:
        return self

    def __next__(self) -> SolverRequest:
        request = self._ask(not self._waits)
        self._waits = False
        if request is None:
            raise StopIteration
        return request

    def _ask(self, goes_on: bool) -> SolverRequest | None:
        method = self.solver.method
        name, tag, self.outcome, rows = self._next(method.name, goes_on)
        if not name:
            return None
        fields = {row[0]: self._array(row) for row in rows}
        given = next(len(a.given) for a in method.asks if a.name == name)
        return SolverRequest(name, tag, fields, given)

    def _array(self, row: tuple[Any, ...]) -> np.ndarray:
        return np.asarray(_Memory(self, *row[1:]))

    def tensor(self, name: str) -> Any:
        """A result or a part of the state as it stands now: a number, or a copy of the array."""
        array = self._array(self._tensor(name))
        return float(array) if array.ndim == 0 else array.copy()

    @property
    def result(self) -> SolverResult:
        """The results as they stand now; `outcome` is "" while the run goes on."""
        found = self._names()
        names = [i.name for i in self.solver.inputs if i.result and i.name in found]
        return SolverResult(self.outcome, {name: self.tensor(name) for name in names})

    def _names(self) -> set[str]:
        """The results that there are: some need an input that may be left out."""
        there = set()
        for i in self.solver.inputs:
            if i.result:
                try:
                    self._tensor(i.name)
                    there.add(i.name)
                except UnknownNameError:
                    pass
        return there

    def save(self) -> bytes:
        """The run as bytes, inputs and all, to go on with by Solver.resume."""
        return self._save()

    def __reduce__(self) -> tuple[Any, ...]:
        return _resume, (self.solver, self._save())

    def __copy__(self) -> SolverRun:
        return _resume(self.solver, self._save())

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverRun:
        return _resume(self.solver, self._save())


def _plain(value: Any) -> Any:
    """Numbers become arrays without axes."""
    return np.float64(value) if isinstance(value, (int, float)) else value


def _resume(solver: Solver, data: Any) -> SolverRun:
    run = SolverRun(solver)
    run._load(data)
    run._waits = run._ask(False) is not None
    return run


class Solver:
    """A method that runs on its own, from one stage: solver("cg(rtol=1e-8)").run(b=b, product=lambda v: A @ v).

    `inputs` lists the arrays that it takes and finds, `asks` the kinds of request that it makes.  float64 where an input
    is, or where no input is an array; else float32.
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        _thalweg.Solver._create(_Check(), sentence)
        self.method = _registry.by_name()[_sentence.stages(sentence)[0]]
        self.inputs, self.asks = self.method.inputs, self.method.asks

    def requests(self, start: Mapping[str, Any] | None = None, /, **inputs: Any) -> SolverRun:
        """A run that has begun; iterate over it and fill what each request wants; `result` then holds what it found.

            run = solver.requests(b=b)
            for request in run:
                request["product"] = A @ request["vector"]
            x = run.result.x

        `start` is the result of an earlier run: what is called x there begins as the input x0, if that is not given.
        """
        names = tuple(i.name for i in self.inputs)
        given = dict(inputs)
        for name in given:
            if name not in names:
                raise error(
                    UnknownNameError, f"{self!r} has no input {name!r}; it has: {', '.join(names)}"
                    + (f"; it asks for: {', '.join(a.name for a in self.asks)}" if self.asks else ""))
        for name in names:
            if start is not None and name.endswith("0") and name[:-1] in start:
                given.setdefault(name, start[name[:-1]])
        run = SolverRun(self)
        run._begin(names, tuple(_plain(given.get(name)) for name in names))
        return run

    def run(self, start: Mapping[str, Any] | None = None, /, **arguments: Any) -> SolverResult:
        """A whole run.  Arrays by name, and one function for each kind of request that the method makes.

        A function takes what the request gives, in order, and returns what it wants: one value, a tuple in order, or a
        dict.  NeedsError names what is missing.
        """
        functions = {a.name: arguments.pop(a.name) for a in self.asks if a.name in arguments}
        run = self.requests(start, **arguments)
        return self.answer(run, **functions)

    def answer(self, run: SolverRun, /, **functions: Callable[..., Any]) -> SolverResult:
        """Carries a run to its end; a function for each kind of request."""
        for request in run:
            function = functions.get(request.name)
            if function is None:
                kind = next(a for a in self.asks if a.name == request.name)
                given, wanted = (", ".join(i.name for i in side) for side in (kind.given, kind.wanted))
                raise error(NeedsError, f"{self!r} asks for {kind.name}({given}) -> {wanted}: {kind.meaning}")
            request.answer(function(*(request[name] for name in request.given)))
        return run.result

    def resume(self, data: Any) -> SolverRun:
        """A run that was saved; its first request is the one that waited.  MismatchError for another solver's."""
        return _resume(self, data)

    def __repr__(self) -> str:
        return f"solver({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


class _Check(_thalweg.Solver):
    """Made and dropped, so that a wrong sentence is refused at once."""


def solver(sentence: str) -> Solver:
    """The solver that the sentence names: solver("cg(rtol=1e-8)").run(b=b, product=lambda v: A @ v)."""
    return Solver(sentence)
