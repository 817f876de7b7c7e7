"""The place of one process among those that a model is spread over."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist

import torch

from .. import _optimizer, _options, _requests
from .._errors import Error, MismatchError, NeedsError, UnsupportedError, error
from ._line import COMPARE, MAX, SUM, agreed, is_agreed, line_of
from ._tensors import dtensor_like, is_dtensor, lies, local_part

if TYPE_CHECKING:
    from ._ranks import Ranks

PACKED = "packed"  # of a tensor's state: the rank, and the number of ranks, whose shard has its 8-bit state
BYTES = ("name", "thalweg")  # of a tensor's state: texts
ALIKE = ("step", "counters", "scalars")  # of a tensor's state: numbers that all ranks have alike
# What all ranks call, and what a rank on which it fails tells the others.
CALLS = {
    "Optimizer": "there is no optimizer",
    "add_param_group": "no parameter group was added",
    "step": "the step was broken off",
    "observe": "nothing was observed",
    "train": "the mode was not changed",
    "eval": "the mode was not changed",
    "load_state_dict": "nothing was loaded",
    "load_sharded_state_dict": "nothing was loaded",
    "sharded_state_dict": "no state was given",
}


class Place:
    """Where one process stands: what it is given, what it holds for the engine, and how it reaches the others.

    given  the tensors of all parameter groups, as torch has them
    held   those that the engine has, in its order: local shards, tensors of which this rank is the owner, ...
    line   to the ranks that step together: those of the group, and of other groups that have the same parts (HSDP)
    """

    def __init__(
        self, layout: str, ranks: Ranks, group: Any, sentence: str, everybody: Sequence[int] | None = None
    ) -> None:
        self.layout, self.group, self.verify, self.sync = layout, group, ranks.verify, ranks.sync
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.line = line_of(group, everybody)
        self.number = -1  # of this optimizer among those that all ranks have made
        self.call: str | None = None  # what all ranks are in
        self._awaited = False  # whether others may wait for this rank until it is done
        self._kept = "this call has changed nothing on the others"
        self.sentence = sentence
        self.given: list[torch.Tensor] = []
        self.held: list[torch.Tensor] = []
        self.sources: list[int | None] = []  # which of `given` each of `held` is of; None: it stands for an empty group
        self._asks = self._asking = False  # whether the sentence, and the present step, has requests
        self._some_empty = False  # whether a rank has nothing of a tensor, and so no gradient to speak of

    @property
    def parted(self) -> bool:
        """Whether each rank has a part of the state, so that all of them load and save it together."""
        return self.verify and self.layout != "copies"

    @property
    def gathers(self) -> bool:
        """Whether the parameters of a rank are with others, and come from there."""
        return self.layout == "owners"

    @property
    def whole(self) -> bool:
        """Whether `given` are the tensors of the whole model, in their shapes."""
        return self.layout != "tensors" and (self.layout != "elements" or any(map(is_dtensor, self.given)))

    # ---- what the engine gets

    @torch.no_grad()
    def hold(self, names: list[str] | None, tensors: Iterable[torch.Tensor]) -> list[Any]:
        """The members of a parameter group as the engine has them here, with their names."""
        first = len(self.given)
        self.given += tensors
        chosen = self._choose(first)
        if not chosen:  # the group exists on all ranks, also where none of its tensors is
            tensor = torch.empty(0, dtype=self.given[first].dtype if len(self.given) > first else torch.float32)
            self.held.append(tensor)
            self.sources.append(None)
            return [(f"~{first}", tensor)] if self._named(names) else [tensor]
        held = [self._hold(index) for index in chosen]
        self.held += held
        self.sources += chosen
        if not self._named(names):
            return held
        return [(names[i - first] if names else str(i), tensor) for i, tensor in zip(chosen, held)]

    def _named(self, names: list[str] | None) -> bool:
        return bool(names)

    def _choose(self, first: int) -> list[int]:
        return list(range(first, len(self.given)))

    def _hold(self, index: int) -> torch.Tensor:
        return local_part(self.given[index])

    def forget(self, given: int, held: int) -> None:
        """Takes back what `hold` added."""
        del self.given[given:], self.held[held:], self.sources[held:]

    def follow(self, engine: _optimizer.Optimizer) -> None:
        """Binds local shards anew where torch has put them elsewhere (FSDP2 does, when it loads or casts a model)."""
        now = [tensor if i is None else self._present(tensor, i) for tensor, i in zip(self.held, self.sources)]
        if any(lies(a) != lies(b) for a, b in zip(now, self.held)):
            engine.rebind_parameters(now)
            self.held = now

    def _present(self, held: torch.Tensor, index: int) -> torch.Tensor:
        """What the engine should hold now of the tensor `index` of `given`; `held` until now."""
        return local_part(self.given[index])

    # ---- state

    def shown(self, rows: list[dict[str, Any]]) -> list[torch.Tensor | None]:
        """Whose state the rows are, in the engine's order.  State of the shape of a shard becomes a DTensor, as torch's
        tools (torch.distributed.checkpoint) expect it."""
        for row, tensor, source in zip(rows, self.held, self.sources):
            if self.layout == "elements" and source is not None and is_dtensor(self.given[source]):
                for key, value in [*row.items()]:
                    if key.endswith("fingerprints"):  # of this rank's shard alone; without them nothing is lost
                        del row[key]
                    elif value.shape == tensor.shape and value.dtype.is_floating_point and key not in ALIKE:
                        row[key] = dtensor_like(value, self.given[source])
                    elif value.dtype == torch.uint8 and key not in BYTES:
                        row[PACKED] = torch.tensor([self.rank, self.size])
        return [None if source is None else self.given[source] for source in self.sources]

    def held_rows(self, rows: dict[int, Any], own: Callable[[], list[dict[str, Any]]]) -> dict[int, Any]:
        """The rows of a state dict, by the position in torch's groups, for what the engine has, in its order."""
        mine = own() if None in self.sources else []
        placed = {k: mine[k] if source is None else rows.get(source) for k, source in enumerate(self.sources)}
        return self.local_rows({k: row for k, row in placed.items() if row is not None})

    def local_rows(self, rows: dict[int, Any]) -> dict[int, Any]:
        """Rows of state with this rank's parts of DTensors.  MismatchError for 8-bit state of another rank's part."""
        for row in rows.values():
            if PACKED in row and row[PACKED].tolist() != [self.rank, self.size]:
                rank, size = row[PACKED].tolist()
                raise error(MismatchError, f"8-bit state of shards is packed by the shard, and this is of rank {rank} "
                            f"of {size}, on rank {self.rank} of {self.size}: save opt.state_dict() of every rank for "
                            'the same ranks, or use state_dtype="bf16" or Ranks("owners"), which fit any number')
        return {
            k: {key: local_part(value) if isinstance(value, torch.Tensor) else value for key, value in row.items()}
            for k, row in rows.items()
        }

    # ---- agreement

    @contextlib.contextmanager
    def together(self, call: str, always: bool = False) -> Iterator[None]:
        """Around one of CALLS: where it fails on this rank, the others, which may wait for it, get an error too.  They
        need not be here yet: this rank waits for nobody.

        always  though the caller wants nothing compared
        """
        if self.call is not None:  # a part of another call, which fails with it
            yield
            return
        self.call, self._awaited = call, self.verify or always
        try:
            yield
        except BaseException as problem:
            if self._awaited and not is_agreed(problem):
                self.line.leave(f"{CALLS[call]} on rank {self.line.rank}: {_said(problem)}")
            raise
        finally:
            self.call = None

    def done(self) -> None:
        """What the ranks have called has happened, on all of them: nobody waits for this one any more."""
        self._awaited = False

    @contextlib.contextmanager
    def joining(self, opt: Any, options: dict[str, Any]) -> Iterator[None]:
        """Around what makes an optimizer, or adds a group to it: it works on all ranks, or there is an error on all."""
        before = len(self.given), len(self.held)
        asked = dict(options)
        with self.together("add_param_group" if "engine" in opt.__dict__ else "Optimizer", always=True):
            try:
                if self.layout == "elements" and self.rank and "engine" not in opt.__dict__:
                    # Draws are keyed by the seed and the position in the tensor, which begins anew on each rank.
                    seed = _options.seed(options.get("seed", 0))
                    options["seed"] = (seed + self.rank * 0x9E37_79B9_7F4A_7C15) % 2**64
                yield
                self._connect(opt)
                empty = self.layout == "elements" and any(not is_dtensor(p) and not p.numel() for p in self.given)
                self._some_empty = self.agree(self._described(opt, asked), empty)
                if self.number < 0:
                    self.number = self.line.optimizers
                    self.line.optimizers += 1
                self._joined()
            except BaseException:
                self.forget(*before)
                raise

    def _joined(self) -> None:
        """When all ranks have an optimizer, or its new group."""

    def _connect(self, opt: Any) -> None:
        """Makes the engine add up its sums over the ranks."""
        self._asks = any(method.requests for _, method in opt.engine._stages())
        if self.layout == "copies":
            return
        try:
            # (parts of one tensor have other seeds already)
            shards, rank = ("elements", 0) if self.layout == "elements" else ("tensors", self.rank)
            opt.engine.set_reducer(self.reduce, shards, rank)
        except UnsupportedError as problem:
            raise error(UnsupportedError, f"{problem}.  Here: pass ranks=thalweg.distributed.Ranks(\"owners\"), where "
                        "every tensor is gathered by the rank that owns it") from problem

    def _described(self, opt: Any, options: dict[str, Any]) -> dict[str, Any]:
        """What has to be the same on all ranks."""
        described: dict[str, Any] = {
            "layout": self.layout,
            "sentence": opt.engine.sentence,
            "option": {key: repr(value) for key, value in sorted(options.items())},
            "parameter groups": len(opt.engine._layout),
        }
        if self.layout != "tensors":
            described["number of parameters"] = len(self.given)
            known = [p.shape if is_dtensor(p) or self.layout != "elements" else (p.ndim,) for p in self.given]
            pairs = enumerate(zip(self.given, known))
            described["parameter"] = {i: f"{p.dtype} {tuple(shape)}" for i, (p, shape) in pairs}
        return described

    def agree(self, mine: Mapping[str, Any], changed: bool = False) -> bool:
        """Compares `mine` with that of all ranks; ArgumentError on every one of them where they differ, or where one
        has failed.  Returns whether one of them has `changed`."""
        mine = {"call": self.call, "number of the optimizer": self.number, **mine}
        code = zlib.crc32(repr(mine).encode())
        notes = np.array([code, -code, changed], np.float64)
        self._exchange_numbers(COMPARE, notes)
        if notes[0] == -notes[1]:
            return bool(notes[2])
        everybody = self.line.gather(mine)
        for rank, other in enumerate(everybody):
            if repr(other) != repr(everybody[0]):
                what, here, there = _first_difference("", everybody[0], other)
                raise agreed(f"the ranks disagree: {what} is {here} on rank 0 and {there} on rank {rank}")
        raise agreed("the ranks disagree")

    def agree_on_group(self, opt: Any, described: Mapping[str, Any]) -> None:
        """Compares a parameter group that is to be added; ArgumentError as of `agree`."""
        values = {key: repr(value) for key, value in described.items() if key != "params"}
        self.agree({**self._described(opt, {}), "group": values})

    def agree_on_state(self, opt: Any) -> None:
        """Compares where the optimizers of all ranks stand; ArgumentError as of `agree`."""
        self.agree({"number of steps": opt.engine.steps, "training mode": opt.engine.training})

    def _meet(self, opt: Any, where: str, grads: list[Any], changed: bool = False) -> bool:
        """Within a step: are all ranks at the same point?  Returns whether one of them has `changed`."""
        missing = [i for i, g in enumerate(grads) if g is None] if self.layout != "tensors" else []
        if self._some_empty and grads:
            missing = self._missing(grads)
        settings = {i: {key: repr(value) for key, value in shown.items()} for i, shown in enumerate(opt._shown)}
        engine = opt.engine
        return self.agree({
            "number of steps": engine.steps, "training mode": engine.training, "place in the step": where,
            "gradient_scale": engine._get_number(None, "gradient_scale"), "group": settings,
            "list of parameters without gradient": missing,
        }, changed)

    def _missing(self, grads: list[Any]) -> list[int]:
        """Which parameters have no gradient, as the ranks say that have something of them."""
        flags = np.zeros((2, len(grads)))
        for i, (p, g) in enumerate(zip(self.given, grads)):
            if local_part(p).numel():
                flags[int(g is None), i] = 1
        self._exchange_numbers(MAX, flags.reshape(-1))
        for i in np.flatnonzero(flags.all(0)):
            raise agreed(f"the ranks disagree: parameter {i} has a gradient on one rank, and on another none")
        return [int(i) for i in np.flatnonzero(flags[1])]

    # ---- within a step

    @contextlib.contextmanager
    def stepping(self, opt: Any, asking: bool) -> Iterator[None]:
        """Around a step.

        asking  it answers requests: the caller computes gradients within it, for which all ranks have to be there
        """
        self._asking = asking
        try:
            self.follow(opt.engine)
            self._begin(opt)
            yield
        except BaseException as problem:
            if not isinstance(problem, (Error, GeneratorExit)) and isinstance(problem, RuntimeError):
                problem.add_note("thalweg: the step was broken off; parameters and state are those from before it")
            raise

    def _begin(self, opt: Any) -> None:
        """At the start of a step.  One without requests meets when its gradients are there."""
        if self._asking and self.verify:
            self._meet(opt, "its start, with requests", [])

    def gradients(self, opt: Any, parameters: list[torch.Tensor], where: str) -> list[torch.Tensor | None]:
        """What lies in `.grad` of torch's tensors, for each that the engine has.  The ranks meet over it."""
        grads = [p.grad for p in parameters]
        pairs = zip(self.held, self.sources)
        held: list[Any] = [torch.zeros_like(t) if i is None or grads[i] is None and self._some_empty and not t.numel()
                           else local_part(grads[i]) for t, i in pairs]
        opt.engine._answer(held)  # what is no gradient is refused before the others go on
        if self.verify:
            self._meet(opt, where, grads)
        return held

    def asked(self, opt: Any, requests: Iterator[_requests.Request]) -> Generator[_requests.Request, None, None]:
        """The requests of a step; at each all ranks have the parameters that it is about, and share the loss."""
        for request in requests:
            self._show(opt, request)
            yield request
            if self.verify and not (request.wants_gradient or request.wants_loss):
                self._meet(opt, place_of(request), [])
            if request.wants_loss and request.loss is not None:
                request.loss = self.mean(request.loss)

    def _show(self, opt: Any, request: _requests.Request) -> None:
        if self.layout == "tensors" and self._asks:
            if self.sync is not None:
                if self.verify:
                    self.agree({"place in the step": place_of(request)})
                self.sync()
            elif request.pass_ and any(m.kind == "perturbation" for _, m in opt.engine._stages()):
                raise error(NeedsError, f"{self.sentence}: the method moves the parameters for a gradient, and the "
                            "other ranks do not see it: pass ranks=Ranks(\"owners\") in place of "
                            "ZeroRedundancyOptimizer, or Ranks(\"tensors\", sync=...) with what gives them the "
                            "parameters of this one")

    def switched(self) -> None:
        """When the mode was changed: gives all ranks what this one has changed; where they step in place, nothing."""

    # ---- numbers

    def reduce(self, sums: np.ndarray, maxima: np.ndarray) -> None:
        """Adds `sums` over the ranks, and takes the largest of `maxima`, in place; for Optimizer.set_reducer."""
        for kind, numbers in ((SUM, sums), (MAX, maxima)):
            if numbers.size:
                self._exchange_numbers(kind, numbers)
        sums /= self.line.size / self.size  # of as many copies of the model

    def mean(self, number: float) -> float:
        """The mean over the ranks of a number that each of them has."""
        total = np.array([_requests.number_of(number)])
        self._exchange_numbers(SUM, total)
        return float(total[0]) / self.line.size

    def _exchange_numbers(self, kind: int, numbers: np.ndarray) -> None:
        self.line.exchange(kind, numbers, self.call or "engine", self._kept)


def place_of(request: _requests.Request) -> str:
    """Where in a step a request stands."""
    return f"{request.kind} of pass {request.pass_}"


def _said(problem: BaseException) -> str:
    if isinstance(problem, GeneratorExit):
        return "the loop over its requests was left"
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def _first_difference(what: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Where two descriptions differ: what it is called, and what either says."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = object()
        key = next(key for key in (*a, *b) if repr(a.get(key, missing)) != repr(b.get(key, missing)))
        return _first_difference(f"{what} {key}".lstrip(), a.get(key), b.get(key))
    return what, a, b
