"""The state of an optimizer: looked at, counted, saved and loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _checkpoint
from ._errors import Error, FileError, FormatError, MismatchError, UnknownNameError, VersionError, error
from ._settings import Settings

if TYPE_CHECKING:
    from ._partial import LoadReport

STORAGE = {0: "f64", 1: "f32", 2: "bf16", 3: "q8"}
STATE_FORMAT = 1


class StateRow(NamedTuple):
    """The memory of one state slot of one tensor; `tensor` is -1 for what belongs to the whole group."""

    tensor: int
    stage: str
    slot: str
    count: int
    storage: str
    bytes: int


class MemoryReport(NamedTuple):
    """What the state costs: one row a slot and tensor, and the sum in bytes."""

    rows: list[StateRow]
    total: int

    def __str__(self) -> str:
        lines = [f"{'tensor':>6}  {'state':<28} {'elements':>12}  {'stored':<6} {'bytes':>14}"]
        for row in self.rows:
            tensor = "all" if row.tensor < 0 else str(row.tensor)
            name = f"{row.stage}.{row.slot}"
            lines.append(f"{tensor:>6}  {name:<28} {row.count:>12,}  {row.storage:<6} {row.bytes:>14,}")
        lines.append(f"{'':>6}  {'total':<28} {'':>12}  {'':<6} {self.total:>14,}")
        return "\n".join(lines)


class State:
    """What `opt.state` is: called, the whole state; indexed, that of one parameter, by its name or position.

        opt.state()                    # {"adamw.exp_avg": [one array a parameter], ...}
        opt.state["w"]                 # {"adamw.exp_avg": array, ...}

    Arrays are copies in float64.  They have the shape of their parameter where they have its size.
    """

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Saved) -> None:
        self._optimizer = optimizer

    def __call__(self) -> dict[str, list[np.ndarray | None]]:
        """None stands for a parameter without that state; a list with one array is state of the whole group."""
        count = len(self._optimizer.names)
        state: dict[str, list[np.ndarray | None]] = {}
        for name, tensor, values in self._optimizer._read_state():
            if tensor < 0:
                state.setdefault(name, []).append(values)
            else:
                state.setdefault(name, [None] * count)[tensor] = values
        return state

    def __getitem__(self, which: str | int) -> dict[str, np.ndarray]:
        """UnknownNameError for what is no parameter."""
        names = self._optimizer.names
        if isinstance(which, str) and which in names:
            index = names.index(which)
        elif isinstance(which, int) and -len(names) <= which < len(names):
            index = which % len(names)
        else:
            known = ", ".join(repr(name) for name in names if name is not None)
            there = f"; there are {known}" if known else "; they have no names, and go by position, opt.state[0]"
            raise error(UnknownNameError, f"no parameter {which!r}{there}; the whole state is opt.state()")
        return {name: values for name, _, values in self._optimizer._read_state(index)}

    def __repr__(self) -> str:
        return f"<state of {self._optimizer!r}: opt.state() is a copy of it, opt.state[0] that of a parameter>"


@contextlib.contextmanager
def mentioning_parts() -> Iterator[None]:
    """A refusal of what belongs to another model says that a part of it can be taken."""
    try:
        yield
    except MismatchError as problem:
        first, line, rest = str(problem).partition("\n")
        if "strict=False" not in first:
            problem.args = (f"{first}; strict=False takes what fits{line}{rest}",)
        raise


class Saved(Settings):
    """What thalweg.Optimizer keeps of earlier steps."""

    @property
    def state(self) -> State:
        """A copy of the state in float64: `opt.state()`, or of one parameter `opt.state["w"]`."""
        return State(self)

    def _read_state(self, of: int | None = None) -> Iterator[tuple[str, int, np.ndarray]]:
        """The state in float64, as (name, parameter or -1, array): all of it, or that of one parameter."""
        shapes = self._shapes()
        for index, (stage, slot, tensor, count, _, _) in enumerate(self._state_rows()):
            if of is None or tensor == of:
                values = np.empty(count)
                self._state_read(index, values)
                fits = tensor >= 0 and values.size == _size(shapes[tensor])
                yield f"{stage}.{slot}", tensor, values.reshape(shapes[tensor]) if fits else values

    @property
    def scratch(self) -> int:
        """Bytes that steps have asked the system for beside the state, and keep for those to come.

        From the third step on with the same tensors it stays as it is: such steps ask for no memory.  What is large of it
        goes back with `eval()`, the rest with the optimizer.
        """
        return self._scratch()

    def memory_report(self) -> MemoryReport:
        """What the state costs, known before it is allocated."""
        rows = [
            StateRow(tensor, stage, slot, count, STORAGE.get(storage, str(storage)), size)
            for stage, slot, tensor, count, size, storage in self._state_rows()
        ]
        return MemoryReport(rows, sum(row.bytes for row in rows))

    def state_dict(self) -> dict[str, Any]:
        """The whole state as plain values: {"format": 1, "sentence": str, "state": bytes}.

        It does not hold the parameters: save those beside it.  (Copies and pickles of the optimizer do hold them.)
        """
        return {"format": STATE_FORMAT, "sentence": self.sentence, "state": self._save()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadReport | None:
        """Takes over what state_dict returned: the state, for parameters that you load yourself.

        strict  False: what fits is taken, though tensors or stages of the sentence are others, and the LoadReport says
                what was taken, what was left, and why.  Tensors are matched by name, state by stage and slot; hyper-
                parameters, schedules and the mode stay those that are here; the count of steps is taken.  A tensor of
                whose update rule something is missing keeps its whole state

        FormatError, VersionError, MismatchError leave everything as it was.
        """
        try:
            number, state = state_dict["format"], state_dict["state"]
        except (KeyError, TypeError, IndexError) as problem:
            raise error(FormatError, "not a state_dict of thalweg: it has no 'format' and 'state'") from problem
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise error(FormatError, f"not a state_dict of thalweg: its format is {number!r}")
        if number > STATE_FORMAT:
            raise error(VersionError, f"a state_dict of format {number}; this version knows {STATE_FORMAT}")
        try:
            if not strict:
                return self._load_partly(state)
            with mentioning_parts():
                return self._load(state)
        except (TypeError, BufferError) as problem:
            if isinstance(problem, Error):
                raise
            what = f"the 'state' of the state_dict is a {type(state).__name__}, not bytes"
            raise error(FormatError, what) from problem

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file (safetensors layout), atomically: written beside it, synced, renamed.

        It does not hold the parameters: save those beside it.  (Copies and pickles of the optimizer do hold them.)
        """
        self._save_file(path)

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> LoadReport | None:
        """Reads what save wrote: the state, for parameters that you load yourself.

        strict  as for load_state_dict

        FileError, FormatError, VersionError, MismatchError leave everything as it was.
        """
        if strict:
            with mentioning_parts():
                return self._load_file(path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as problem:
            raise error(FileError, f"{os.fspath(path)}: {problem.strerror or problem}") from problem
        return self._load_partly(data)

    def _load_partly(self, data: bytes) -> LoadReport:
        from ._partial import load_partly  # (which needs this module)

        entries = _checkpoint.read(data)
        if _checkpoint.digest(_checkpoint.write(entries)) != _checkpoint.digest(data):
            raise error(FormatError, "the checkpoint is damaged: its bytes are not those that were written")
        return load_partly(self, entries)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
