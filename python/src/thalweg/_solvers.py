"""Solvers: methods that run on their own, from named arrays to named results, and may ask on their way."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Never

import numpy as np

from . import _arrays, _registry, _sentence, _thalweg
from ._errors import ArgumentError, NeedsError, SequenceError, ShapeError, UnknownNameError, ValueTypeError, error
from ._objects import Card, Fixed

TYPES = {1: "<f4", 2: "<f8", 6: "<i8"}
# NaNs that no arithmetic makes, by size: what is wanted begins with one, so that an answer that was forgotten is seen.
UNFILLED = {4: np.uint32(0x7FD4_6861), 8: np.uint64(0x7FFD_6861_6C77_6567)}
Shapes = tuple[tuple[int, ...], ...]


class _Memory:
    """Memory of a run as NumPy sees it; the array that is made of it keeps the run alive."""

    def __init__(self, owner: Any, address: int, dtype: int, shape: tuple[int, ...], read_only: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3, "data": (address, read_only), "typestr": TYPES[dtype], "shape": shape,
        }


def _before(i: _registry.Input) -> int | None:
    """How many axes stand before "..."; None where that does not end the shape."""
    axes = [axis.strip() for axis in i.shape.strip("()").split(",") if axis.strip()]
    return len(axes) - 1 if axes and axes[-1] == "..." else None


def _split(array: np.ndarray, i: _registry.Input, shapes: Shapes | None) -> Any:
    """The parts of a vector that stands for several arrays, as views."""
    k = _before(i)
    if shapes is None or k is None:
        return array
    parts, at = [], 0
    for shape in shapes:
        n = int(np.prod(shape, dtype=np.int64))
        parts.append(array[..., at : at + n].reshape(array.shape[:k] + shape))
        at += n
    return parts


def _joined(name: str, value: Any, i: _registry.Input) -> tuple[Any, Shapes | None]:
    """One array of several, and their shapes; a number becomes an array without axes."""
    if isinstance(value, (int, float)):
        return np.float64(value), None
    if not isinstance(value, (list, tuple)) or not value or not all(_arrays.is_array(part) for part in value):
        return value, None
    k = _before(i)
    if k is None:
        raise error(ShapeError, f"{name!r} is one array {i.shape}, not several")
    parts = [np.asarray(part.detach() if hasattr(part, "detach") else part) for part in value]
    dtype = np.float64 if any(part.dtype == np.float64 for part in parts) else np.float32
    flat = [part.reshape(part.shape[:k] + (-1,)).astype(dtype, copy=False) for part in parts]
    return np.concatenate(flat, -1), tuple(part.shape[k:] for part in parts)


def _told(value: Any) -> str:
    """What came, in words."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an array of the shape {tuple(value.shape)}" if hasattr(value, "shape") else reprlib.repr(value)


# Results that count something, which the library keeps as floats like the others.
COUNTS = frozenset(("iterations", "evaluations", "steps", "rank", "trials", "products", "solves", "communications")
                   + ("jumps", "waits", "large", "chosen", "index", "back", "feasible", "remaining", "removed"))


class SolverRequest(Mapping[str, Any]):
    """What a run needs now: arrays by name, those that are given and those that are wanted.

    name      the kind: "product", "gradient", ...
    given     names of what is shown (read-only arrays, and numbers)
    wanted    names of what is to be filled, in place: request["product"][...] = A @ request["vector"];
              or by assignment: request["product"] = A @ request["vector"], request["loss"] = 0.5
    tag       equal tags mean: the same minibatch, the same dropout

    The arrays are those of the run: what they hold changes when the run goes on.  Where the inputs were lists of
    arrays, so are they.
    """

    def __init__(self, name: str, tag: int, fields: dict[str, Any], given: int) -> None:
        self.name, self.tag = name, tag
        self.given, self.wanted = tuple(fields)[:given], tuple(fields)[given:]
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        array = self._fields[name]
        return float(array) if isinstance(array, np.ndarray) and array.ndim == 0 and name in self.given else array

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.wanted:
            raise error(UnknownNameError, f"{self.name!r} wants {', '.join(self.wanted)}, not {name!r}")
        array = self._fields[name]
        if not isinstance(array, list):
            return self._fill(name, array, value)
        if not isinstance(value, (list, tuple)) or len(value) != len(array):
            raise error(ArgumentError, f"{self._about(name)} is a list of {len(array)} arrays, got {_told(value)}")
        for part, given in zip(array, value):
            self._fill(name, part, given)

    def _fill(self, name: str, array: np.ndarray, value: Any) -> None:
        given = value
        try:
            value = np.asarray(value.detach() if hasattr(value, "detach") else value)
        except ValueError:  # parts of different shapes
            raise error(ShapeError, f"{self._about(name)} has the shape {array.shape}, got {_told(given)}") from None
        if value.dtype.kind not in "biufV":  # V: 16-bit types that NumPy does not know itself
            raise error(ValueTypeError, f"{self._about(name)} takes real numbers, got {reprlib.repr(given)}")
        if value.shape != array.shape:
            raise error(ShapeError, f"{self._about(name)} has the shape {array.shape}, got {value.shape}")
        array[...] = value

    def _about(self, name: str) -> str:
        """What an answer is told by: the function's name is that of the request, its parts have names of their own."""
        return repr(name) if name == self.name else f"{self.name}: {name!r}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def answer(self, values: Any) -> None:
        """Fills what is wanted: from one value, from several in order, or by name."""
        if not self.wanted:
            return
        if isinstance(values, Mapping):
            for name in self.wanted:
                if name not in values:
                    raise error(ArgumentError, f"{self.name!r}: {name!r} is missing in the answer")
                self[name] = values[name]
            return
        if len(self.wanted) == 1:
            values = (values,)
        if not isinstance(values, (tuple, list)) or len(values) != len(self.wanted):
            raise error(ArgumentError, f"{self.name!r} wants {', '.join(self.wanted)}: a tuple of {len(self.wanted)}, "
                        f"got {_told(values)}")
        for name, value in zip(self.wanted, values):
            self[name] = value

    def __repr__(self) -> str:
        return f"<request {self.name}: {', '.join(self.given)} -> {', '.join(self.wanted)}>"


class SolverResult(Mapping[str, Any]):
    """What a run found: arrays (copies) and numbers (counts as int), as result["x"] or result.x; result.outcome says
    how it ended."""

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

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        def short(value: Any) -> str:
            if isinstance(value, (int, float)):
                return repr(value)
            return f"array{value.shape}" if hasattr(value, "shape") else "list"

        return f"<{self.outcome}: {', '.join(f'{k}={short(v)}' for k, v in self._values.items())}>"


class SolverRun(_thalweg.Solver):
    """One run of a solver: an iterator of the requests that it makes.  Solver.requests and Solver.resume make it.

    It can be saved, copied and pickled at every request; it goes on from there with the same bits.
    """

    def __init__(self, solver: Solver, shapes: Shapes | None = None) -> None:
        self.solver = solver
        self.outcome = ""
        self._asked: set[str] = set()
        self._open: list[tuple[str, str, np.ndarray]] = []
        self._shapes = shapes
        self._waits = False
        self._create(solver.sentence)

    def __iter__(self) -> SolverRun:
        return self

    def __next__(self) -> SolverRequest:
        if not self._waits and (unfilled := self._unfilled()) is not None:
            kind, name = unfilled
            raise error(SequenceError, f"{self.solver!r}: the request {kind!r} was not answered: {name!r} was not "
                        "filled")
        request = self._ask(not self._waits)
        self._waits = False
        if request is None:
            raise StopIteration
        return request

    def _unfilled(self) -> tuple[str, str] | None:
        """The request that waits, and what of it holds no answer."""
        return next(((kind, name) for kind, name, bits in self._open if bits[0] == UNFILLED[bits.dtype.itemsize]), None)

    def _ask(self, goes_on: bool) -> SolverRequest | None:
        kind, tag, self.outcome, rows = self._next(goes_on)
        self._open = []
        if kind < 0:
            return None
        asked = self.solver.asks[kind]
        self._asked.add(asked.name)
        tensors = asked.given + asked.wanted
        arrays = [self._array(row) for row in rows]
        for i, array in list(zip(tensors, arrays))[len(asked.given) :]:
            if array.size and array.dtype.kind == "f":
                bits = array.reshape(-1)[:1].view(f"u{array.itemsize}")
                bits[0] = UNFILLED[array.itemsize]
                self._open.append((asked.name, i.name, bits))
        fields = {i.name: _split(array, i, self._shapes) for i, array in zip(tensors, arrays)}
        return SolverRequest(asked.name, tag, fields, len(asked.given))

    def _array(self, row: tuple[Any, ...]) -> np.ndarray:
        return np.asarray(_Memory(self, *row))

    def tensor(self, name: str) -> Any:
        """A result or a part of the state as it stands now: a number, or a copy of the array."""
        array = self._array(self._tensor(name))
        if array.ndim:
            return array.copy()
        value = float(array)
        return int(value) if name in COUNTS and value.is_integer() else value

    @property
    def result(self) -> SolverResult:
        """The results as they stand now; `outcome` is "" while the run goes on."""
        values = {}
        for i in self.solver.inputs:
            if i.result:
                try:
                    value = self.tensor(i.name)
                except UnknownNameError:  # it comes from an input that was left out
                    continue
                values[i.name] = value if isinstance(value, (int, float)) else _split(value, i, self._shapes)
        return SolverResult(self.outcome, values)

    def save(self) -> bytes:
        """The run as bytes, inputs and all, to go on with by Solver.resume.

        Lists of arrays are one vector there: resume(data, like=arrays) takes it apart again, and pickles and copies of
        the run keep the shapes.
        """
        return self._save()

    def __reduce__(self) -> tuple[Any, ...]:
        return _resume, (self.solver, self._save(), self._shapes)

    def __copy__(self) -> SolverRun:
        return _resume(self.solver, self._save(), self._shapes)

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverRun:
        return self.__copy__()


def _resume(solver: Solver, data: Any, shapes: Shapes | None) -> SolverRun:
    run = SolverRun(solver, shapes)
    run._load(data)
    run._waits = run._ask(False) is not None
    return run


class _Check(_thalweg.Solver):
    """Made and dropped, so that a wrong sentence is refused at once."""


class Solver(Fixed):
    __slots__ = ("sentence", "method", "inputs", "asks", "__weakref__")
    __doc__ = Card("""A method that runs on its own, from one stage.

        solver("cg(rtol=1e-8)").run(b=b, product=lambda v: A @ v)

    `inputs` lists the arrays that it takes and finds, `asks` the kinds of request that it makes.  float64 where an
    input is, or where no input is an array; else float32.

    An input of the shape (...,) may be a list of arrays, as the parameters of a model are: they are one vector then,
    and what the functions are given, what they return and what is found are such lists too.

    help(solver("cg")) shows what there is about that method.
    """)

    def __init__(self, sentence: str) -> None:
        self.sentence = _sentence.check_text(sentence)
        _Check()._create(sentence)
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
        declared = {i.name: i for i in self.inputs}
        if start is not None and not isinstance(start, Mapping):
            example = next((i.name for i in self.inputs if not i.result), "x0")
            raise error(
                ArgumentError, f"{self!r}: the argument without a name is the result of an earlier run, not "
                f"{_arrays._article(start)}: give inputs by name, as {example}=...; {self._takes()}")
        for name, value in inputs.items():
            if name not in declared:
                raise error(UnknownNameError, f"{self!r} has no input {name!r}; {self._takes()}")
            if isinstance(value, SolverResult):
                raise error(ArgumentError, f"{self!r}: {name} is an array, not a whole result: give one of its arrays, "
                            f"as {name}=result.{next(iter(value))}, or the result itself without a name")
            if declared[name].result and callable(value) and not _arrays.is_array(value):
                raise error(ArgumentError, f"{self!r}: {name!r} is a result, and no function is asked for by that "
                            f"name; {self._takes()}")
        for name in declared:
            if start is not None and name.endswith("0") and name[:-1] in start:
                inputs.setdefault(name, start[name[:-1]])
        arrays, shapes = [], None
        for name, i in declared.items():
            array, own = _joined(name, inputs.get(name), i)
            if own is not None and shapes is not None and own != shapes:
                raise error(ShapeError, f"the arrays of {name!r} have the shapes {own}, not {shapes}")
            shapes = own if shapes is None else shapes
            arrays.append(array)
        run = SolverRun(self, shapes)
        run._begin(tuple(declared), tuple(arrays))
        return run

    def run(self, start: Mapping[str, Any] | None = None, /, **arguments: Any) -> SolverResult:
        """A whole run.  Arrays by name, and one function for each kind of request that the method makes.

            result = solver.run(b=b, product=lambda vector: A @ vector)
            result = solver.run(result, b=b, product=...)          # from where that one ended

        `start` is the result of an earlier run: what is called x there begins as the input x0, if that is not given.
        `result.outcome` says how it ended ("converged", "max_iter", "nonfinite", ...): an end at max_iter, or at an
        answer or an input that is not finite, is no exception.

        A function takes what the request gives, in order, and returns what it wants: one value, a tuple in order, or a
        dict.  NeedsError names what is missing; ArgumentError a function that the settings keep the run from asking
        for.
        """
        functions = {a.name: arguments.pop(a.name) for a in self.asks if a.name in arguments}
        for a in self.asks:
            if a.name in functions and not callable(functions[a.name]):
                given = ", ".join(i.name for i in a.given)
                raise error(ArgumentError, f"{self!r}: {a.name} is a function of ({given}), "
                            f"not {_arrays._article(functions[a.name])}")
        run = self.requests(start, **arguments)
        result = self.answer(run, **functions)
        # What its settings rule out was meant to be asked for; what a path of the run does not need was not.
        idle = [name for name in functions if name not in run._asked and self._would_ask(name)]
        # A run that ends where it starts, or breaks off, has not come to all of its requests.
        if idle and result.outcome in ("converged", "max_iter") and result._values.get("iterations", 1) > 0:
            raise error(ArgumentError, f"{self!r} never asked for {idle[0]!r}: leave the function out"
                        + self._would_ask(idle[0]))
        return result

    def _takes(self) -> str:
        """The inputs and the functions there are, in words."""
        names = ", ".join(f"{i.name} ({i.meaning})" for i in self.inputs if not i.result) or "none"
        return f"inputs: {names}" + (f"; functions: {', '.join(a.name for a in self.asks)}" if self.asks else "")

    def _would_ask(self, kind: str) -> str:
        """The hyper-parameters that make the method ask, in words."""
        names = [f"{p.name}=true" for p in self.method.parameters if p.name == f"ask_{kind}"] or [
            f"{p.name}=asked" for p in self.method.parameters
            if "asked" in p.choices and kind.rpartition("_")[2] in p.meaning.lower() and f"{p.name}=asked" not in repr(self)]
        return f", or have it asked for with {self.method.name}({', '.join(names)})" if names else ""

    def answer(self, run: SolverRun, /, **functions: Callable[..., Any]) -> SolverResult:
        """Carries a run to its end, with a function for each kind of request; the one that waits is answered first."""
        run._waits = run._waits or run._unfilled() is not None
        for request in run:
            function = functions.get(request.name)
            if function is None:
                kind = next(a for a in self.asks if a.name == request.name)
                given, wanted = (", ".join(i.name for i in side) for side in (kind.given, kind.wanted))
                raise error(NeedsError, f"{self!r} asks for {kind.name}({given}) -> {wanted}: {kind.meaning}")
            request.answer(function(*(request[name] for name in request.given)))
        return run.result

    def resume(self, data: Any, like: list[Any] | None = None) -> SolverRun:
        """A run that was saved; its first request is the one that waited.  MismatchError for another solver's.

        like  arrays of the shapes of the lists that it began with, if it did: the bytes do not hold them, and without
              `like` requests and results are flat arrays
        """
        return _resume(self, data, None if like is None else tuple(tuple(part.shape) for part in like))

    def __repr__(self) -> str:
        return f"solver({self.sentence!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence,)


def solver(sentence: str, **settings: Never) -> Solver:
    """The solver that the sentence names: solver("cg(rtol=1e-8)").run(b=b, product=lambda v: A @ v)."""
    _sentence.refuse_keywords(sentence, settings, "solver")
    return Solver(sentence)
