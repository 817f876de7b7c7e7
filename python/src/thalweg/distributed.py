"""A torch model on many processes: how it is spread over them, and its state for any number of ranks.

    fully_shard(model)                                                          # FSDP2: DTensor parameters
    opt = thalweg.torch.Optimizer(model.parameters(), "clip_global_norm(1) | adamw(lr=1e-3)")

    opt = thalweg.torch.Optimizer(ddp.parameters(), "sam(0.05) | muon(lr=0.02)", ranks=Ranks("owners"))

Norms, dot products and counts (clipping, LAMB, DoG, Prodigy, SAM) are those of the whole model: the ranks add them up
through their torch.distributed process group, in float64, so that a spread model steps as one in one piece, but for the
rounding of sums.  Losses that a method asks for, or that are observed, are averaged over the ranks.

Once for each request the ranks compare notes (one all_reduce of three integers): where their steps, hyper-parameters
or missing gradients differ, all of them get an ArgumentError, and nothing has changed.  When a rank dies, the
collective of the others raises within the time-out of their process group, and parameters and state are those of the
last step.  (In the layout "owners" a rank that dies while the parts of a finished step are handed out leaves each of
the others with its parts from before that step.)
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from . import _checkpoint, _optimizer, _requests, _sentence
from ._errors import (
    ArgumentError,
    CountError,
    DtypeError,
    Error,
    MismatchError,
    NeedsError,
    SequenceError,
    UnsupportedError,
    error,
)

__all__ = ["Ranks", "load_sharded_state_dict", "sharded_state_dict"]

LAYOUTS = ("copies", "elements", "tensors", "owners")
PACKED = "packed"  # of a tensor's state: the rank, and the number of ranks, whose shard has its 8-bit state
BYTES = ("name", "thalweg")  # of a tensor's state: texts
ALIKE = ("step", "counters", "scalars")  # of a tensor's state: numbers that all ranks have alike


@dataclass(frozen=True)
class Ranks:
    """How a model is spread over the processes of a group.

    layout         None: "elements" for DTensors, "copies" for other tensors; or
                   "copies"    every rank has the whole model and steps all of it (DistributedDataParallel); the ranks
                               check that they agree, and average losses
                   "elements"  every rank has a part of every tensor: the local shards of DTensors (FSDP2), or plain
                               tensors that are such parts, bound in the same order (an empty one where it has nothing);
                               methods that work on whole tensors (muon) are refused
                   "tensors"   every rank is given some of the tensors, each whole (ZeroRedundancyOptimizer)
                   "owners"    every rank is given the whole model, DTensors or copies, and the optimizer shares it out:
                               each tensor has an owner, which has its state, gets its gradient and steps it whole; then
                               all get their parts of it.  Every method works here that asks for gradients and losses;
                               DTensors cost the memory of a second copy of the tensors that a rank owns
    process_group  of torch.distributed; None: that of the DTensors' mesh, else the default one.  It has to carry CPU
                   tensors
    verify         compare notes once for each request
    sync           "tensors" only: called where a method has moved the parameters for a gradient (sam); it gives the
                   other ranks what this one has
    """

    layout: str | None = None
    process_group: Any = None
    verify: bool = True
    sync: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise error(ArgumentError, f"layout is None or one of {', '.join(map(repr, LAYOUTS))}, not {self.layout!r}")
        if self.sync is not None and not callable(self.sync):
            raise TypeError(f"sync must be callable, or None, got {type(self.sync).__name__}")


def place(ranks: Ranks | None, groups: list[dict[str, Any]], sentence: str) -> Place | None:
    """The place of this process among those that the parameters of `groups` are spread over; None: it is alone."""
    parameters = [p for group in groups for p in group["params"]]
    if ranks is None:
        if not any(map(_is_dtensor, parameters)):
            return None
        ranks = Ranks()
    if not isinstance(ranks, Ranks):
        raise TypeError(f"ranks is a thalweg.distributed.Ranks, or None, not {type(ranks).__name__}")
    if not (dist.is_available() and dist.is_initialized()):
        raise error(SequenceError, "torch.distributed is not initialized: call init_process_group first")
    layout = ranks.layout or ("elements" if any(map(_is_dtensor, parameters)) else "copies")
    kind = Owners if layout == "owners" else Place
    return kind(layout, ranks, _group_of(ranks.process_group, parameters, layout), sentence)


def _is_dtensor(tensor: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # where it was never imported, nothing is one
    return module is not None and isinstance(tensor, module.DTensor)


def _group_of(given: Any, parameters: list[Any], layout: str) -> Any:
    """The process group that the parts of the parameters are spread over."""
    spread: dict[Any, str] = {}
    for index, p in enumerate(parameters):
        where = None
        if _is_dtensor(p):
            if any(placement.is_partial() for placement in p.placements):
                raise error(ArgumentError, f"parameter {index} is a DTensor of sums not yet added ({p.placements}): "
                            "redistribute it first")
            axes = tuple(axis for axis, placement in enumerate(p.placements) if placement.is_shard())
            where = (p.device_mesh, axes) if axes else None
        if layout == "copies" and where is not None:
            raise error(ArgumentError, f"parameter {index} is sharded ({p.placements}), which Ranks(\"copies\") does "
                        "not know: leave `ranks` out, or pass Ranks(\"elements\") or Ranks(\"owners\")")
        spread.setdefault(where, f"parameter {index} is {'whole on every rank' if where is None else p.placements}")
    sharded = {where: text for where, text in spread.items() if where is not None}
    if len(sharded) > 1 or (layout == "elements" and sharded and None in spread):
        raise error(ArgumentError, f"the parameters are not spread alike ({'; '.join(spread.values())}): sums over the "
                    "ranks would count some of them twice; give each kind an optimizer of its own"
                    + ("" if len(sharded) > 1 else ", or pass ranks=thalweg.distributed.Ranks(\"owners\")"))
    if given is None and sharded:
        (mesh, axes), = sharded
        if len(axes) == 1:
            given = mesh.get_group(axes[0])
        elif mesh.size() != dist.get_world_size():
            raise error(ArgumentError, f"the parameters are sharded over {len(axes)} axes of {mesh}: pass the process "
                        "group of all these ranks, ranks=thalweg.distributed.Ranks(process_group=...)")
    group = dist.group.WORLD if given is None else given
    with contextlib.suppress(AttributeError):  # private, and only asked for a better message
        try:
            group._get_backend(torch.device("cpu"))
        except RuntimeError as problem:
            raise error(ArgumentError, "the process group carries no CPU tensors, where thalweg's numbers are: "
                        'init_process_group("cpu:gloo,cuda:nccl") makes one that does') from problem
    return group


class Place:
    """Where one process stands: what it is given, what it holds for the engine, and how it reaches the others.

    given  the tensors of all parameter groups, as torch has them
    held   those that the engine has, in its order: local shards, tensors of which this rank is the owner, ...
    """

    def __init__(self, layout: str, ranks: Ranks, group: Any, sentence: str) -> None:
        self.layout, self.group, self.verify, self.sync = layout, group, ranks.verify, ranks.sync
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sentence = sentence
        self.given: list[torch.Tensor] = []
        self.held: list[torch.Tensor] = []
        self.sources: list[int | None] = []  # which of `given` each of `held` is of; None: it stands for an empty group
        self._asks = False

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
        return _local(self.given[index])

    def forget(self, given: int, held: int) -> None:
        """Takes back what `hold` added."""
        del self.given[given:], self.held[held:], self.sources[held:]

    def follow(self, engine: _optimizer.Optimizer) -> None:
        """Binds local shards anew where torch has put them elsewhere (FSDP2 does, when it loads or casts a model)."""
        now = [tensor if i is None else self._present(tensor, i) for tensor, i in zip(self.held, self.sources)]
        if any(_lies(a) != _lies(b) for a, b in zip(now, self.held)):
            engine.rebind_parameters(now)
            self.held = now

    def _present(self, held: torch.Tensor, index: int) -> torch.Tensor:
        """What the engine should hold now of the tensor `index` of `given`; `held` until now."""
        return _local(self.given[index])

    # ---- state

    def shown(self, rows: list[dict[str, Any]]) -> list[torch.Tensor | None]:
        """Whose state the rows are, in the engine's order.  State of the shape of a shard becomes a DTensor, as torch's
        tools (torch.distributed.checkpoint) expect it."""
        for row, tensor, source in zip(rows, self.held, self.sources):
            if self.layout == "elements" and source is not None and _is_dtensor(self.given[source]):
                for key, value in [*row.items()]:
                    if key.endswith("fingerprints"):  # of this rank's shard alone; without them nothing is lost
                        del row[key]
                    elif value.shape == tensor.shape and value.dtype.is_floating_point and key not in ALIKE:
                        row[key] = _like(value, self.given[source])
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
                            'the same ranks, or use state_dtype="bf16", which fits any number of them')
        return {
            k: {key: _local(value) if isinstance(value, torch.Tensor) else value for key, value in row.items()}
            for k, row in rows.items()
        }

    # ---- agreement

    @contextlib.contextmanager
    def joining(self, opt: Any, options: dict[str, Any]) -> Iterator[None]:
        """Around what makes an optimizer, or adds a group to it: it works on all ranks, or there is an error on all."""
        before = len(self.given), len(self.held)
        asked = dict(options)
        try:
            if self.layout == "elements" and self.rank and "engine" not in opt.__dict__:
                # Draws are keyed by the seed and the position in the tensor, which begins anew on each rank.
                seed = _optimizer._seed(options.get("seed", 0))
                options["seed"] = (seed + self.rank * 0x9E37_79B9_7F4A_7C15) % 2**64
            yield
            self._connect(opt)
            mine = self._described(opt, asked)
        except Exception as problem:
            self.forget(*before)
            with contextlib.suppress(Exception):  # what went wrong here counts here
                self._agree({"failed": f"{type(problem).__name__}: {problem}"})
            raise
        try:
            self._agree(mine)
        except BaseException:
            self.forget(*before)
            raise

    def _connect(self, opt: Any) -> None:
        """Makes the engine add up its sums over the ranks."""
        self._asks = any(method.requests for _, method in opt.engine._stages())
        if self.layout == "copies":
            return
        try:
            opt.engine.set_reducer(self.reduce, "elements" if self.layout == "elements" else "tensors")
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
            known = [p.shape if _is_dtensor(p) or self.layout != "elements" else (p.ndim,) for p in self.given]
            pairs = enumerate(zip(self.given, known))
            described["parameter"] = {i: f"{p.dtype} {tuple(shape)}" for i, (p, shape) in pairs}
        return described

    def _agree(self, mine: dict[str, Any]) -> None:
        """Compares `mine` with that of all ranks; ArgumentError on every one of them where they differ."""
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.group)
        failed = {rank: other["failed"] for rank, other in enumerate(everybody) if "failed" in other}
        if failed:
            texts = "; on rank ".join(f"{rank}: {text}" for rank, text in failed.items())
            raise error(ArgumentError, f"there is no optimizer on rank {texts}")
        for key, value in everybody[0].items():
            for rank, other in enumerate(everybody):
                if other.get(key) != value:
                    what, here, there = _first_difference(key, value, other.get(key))
                    raise error(ArgumentError, f"the ranks disagree: {what} is {here} on rank 0 and {there} on rank "
                                f"{rank}")

    def _meet(self, opt: Any, grads: list[Any], changed: bool = False) -> bool:
        """Before an answer counts: are all ranks at the same point?  Returns whether one of them has `changed`."""
        missing = [i for i, g in enumerate(grads) if g is None] if self.layout != "tensors" else []
        settings = {i: {key: repr(value) for key, value in shown.items()} for i, shown in enumerate(opt._shown)}
        at = {"number of steps": opt.engine.steps, "group": settings, "list of parameters without gradient": missing}
        code = zlib.crc32(repr(at).encode())
        notes = torch.tensor([code, -code, int(changed)])
        dist.all_reduce(notes, op=dist.ReduceOp.MAX, group=self.group)
        if int(notes[0]) != -int(notes[1]):
            self._agree(at)
        return bool(notes[2])

    # ---- within a step

    @contextlib.contextmanager
    def stepping(self, opt: Any) -> Iterator[None]:
        """Around a step."""
        self.follow(opt.engine)
        try:
            yield
        except BaseException as problem:
            if not isinstance(problem, (Error, GeneratorExit)) and isinstance(problem, RuntimeError):
                problem.add_note("thalweg: the step was broken off; parameters and state are those from before it")
            raise

    def gradients(self, opt: Any, parameters: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """What lies in `.grad` of torch's tensors, for each that the engine has."""
        grads = [p.grad for p in parameters]
        if self.verify:
            self._meet(opt, grads)
        return [torch.zeros_like(t) if i is None else _local(grads[i]) for t, i in zip(self.held, self.sources)]

    def asked(self, opt: Any, requests: Iterator[_requests.Request]) -> Generator[_requests.Request, None, None]:
        """The requests of a step; at each all ranks have the parameters that it is about, and share the loss."""
        for request in requests:
            self._show(opt, request)
            yield request
            if request.wants_loss and request.loss is not None:
                request.loss = self.mean(request.loss)

    def _show(self, opt: Any, request: _requests.Request) -> None:
        if self.layout == "tensors" and self._asks:
            if self.sync is not None:
                self.sync()
            elif request.pass_ and any(m.kind == "perturbation" for _, m in opt.engine._stages()):
                raise error(NeedsError, f"{self.sentence}: the method moves the parameters for a gradient, and the "
                            "other ranks do not see it: pass ranks=Ranks(\"owners\") in place of "
                            "ZeroRedundancyOptimizer, or Ranks(\"tensors\", sync=...) with what gives them the "
                            "parameters of this one")

    def deliver(self) -> None:
        """Gives all ranks what this one has changed; where shards are stepped in place there is nothing to give."""

    # ---- numbers

    def reduce(self, sums: np.ndarray, maxima: np.ndarray) -> None:
        """Adds `sums` over the ranks, and takes the largest of `maxima`, in place; for Optimizer.set_reducer."""
        if sums.size:
            dist.all_reduce(torch.from_numpy(sums), group=self.group)
        if maxima.size:
            dist.all_reduce(torch.from_numpy(maxima), op=dist.ReduceOp.MAX, group=self.group)

    def mean(self, number: float) -> float:
        """The mean over the ranks of a number that each of them has."""
        total = torch.tensor([_requests.number_of(number)], dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return float(total) / self.size


class Owners(Place):
    """Every tensor has an owner, which steps it whole; gradients go there, and parts of the tensor come back.

    Both ways are one all_to_all of bytes, whatever the number of tensors and their types.
    """

    def __init__(self, layout: str, ranks: Ranks, group: Any, sentence: str) -> None:
        super().__init__(layout, ranks, group, sentence)
        self.owner: list[int] = []  # of each of `given`
        self.parts: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []  # by tensor and rank: offsets and shape
        self._versions: list[tuple[int, int]] = []
        self._before: list[torch.Tensor] | None = None

    def _named(self, names: list[str] | None) -> bool:
        if not names and (patterns := _sentence.name_patterns(self.sentence)):
            raise error(ArgumentError, f"route goes by names ({', '.join(patterns)}), and the parameters have none: "
                        "pass model.named_parameters()")
        return True  # by default that of its position in the whole model, as where there is one process

    def _choose(self, first: int) -> list[int]:
        load = [0] * self.size
        for index, owner in enumerate(self.owner):
            load[owner] += self.given[index].numel()
        new = range(first, len(self.given))
        self.owner += [0] * len(new)
        for index in sorted(new, key=lambda i: -self.given[i].numel()):  # the largest first: even shares
            self.owner[index] = load.index(min(load))
            load[self.owner[index]] += max(1, self.given[index].numel())
        return [index for index in new if self.owner[index] == self.rank]

    def _hold(self, index: int) -> torch.Tensor:
        p = self.given[index]
        return torch.empty(p.shape, dtype=p.dtype) if _is_sharded(p) else _local(p)

    def forget(self, given: int, held: int) -> None:
        super().forget(given, held)
        del self.owner[given:], self.parts[given:]

    def _present(self, held: torch.Tensor, index: int) -> torch.Tensor:
        return held if _is_sharded(self.given[index]) else super()._present(held, index)

    def _described(self, opt: Any, options: dict[str, Any]) -> dict[str, Any]:
        described = super()._described(opt, options)
        described["parameter"] = {i: f"{p.dtype} {tuple(p.shape)}" for i, p in enumerate(self.given)}
        return described

    def _agree(self, mine: dict[str, Any]) -> None:
        super()._agree(mine)
        if len(self.parts) < len(self.given) and "sentence" in mine:
            new = [_part(p) for p in self.given[len(self.parts) :]]
            everybody: list[Any] = [None] * self.size
            dist.all_gather_object(everybody, new, group=self.group)
            self.parts += [list(row) for row in zip(*everybody)]
            self._collect([_local(p) for p in self.given], self.held)
            self._note()

    # ---- the two ways

    @torch.no_grad()
    def _collect(self, local: list[torch.Tensor | None], whole: list[torch.Tensor | None]) -> None:
        """Puts `local`, this rank's parts of sharded tensors, together in `whole` on their owners.  None: not there."""
        out = [[local[i] for i in self._sharded(owner) if local[i] is not None] for owner in range(self.size)]
        own = {i: t for i, t in zip(self.sources, whole) if i is not None and t is not None}
        mine = [i for i in self._sharded(self.rank) if local[i] is not None]
        into = [[own[i][_slices(self.parts[i][rank])] for i in mine] for rank in range(self.size)]
        self._exchange(out, into)

    @torch.no_grad()
    def deliver(self) -> None:
        """Gives every rank its parts of the tensors that others own."""
        targets = [_local(p) for p in self.given]
        own = dict(zip(self.sources, self.held))
        out = [[own[i][_slices(self.parts[i][rank])] for i in self._owned(self.rank) if self._travels(i, rank)]
               for rank in range(self.size)]
        into = [[targets[i] for i in self._owned(owner) if self._travels(i, self.rank)] for owner in range(self.size)]
        self._exchange(out, into)
        self._note()

    def _owned(self, rank: int) -> list[int]:
        return [i for i, owner in enumerate(self.owner) if owner == rank]

    def _sharded(self, owner: int) -> list[int]:
        return [i for i in self._owned(owner) if _is_sharded(self.given[i])]

    def _travels(self, index: int, rank: int) -> bool:
        """Copies are where they are wanted already, on their owner."""
        return self.owner[index] != rank or _is_sharded(self.given[index])

    def _exchange(self, out: list[list[torch.Tensor]], into: list[list[torch.Tensor]]) -> None:
        """Sends out[r] to rank r, and fills into[r] with what comes from there; when it fails, nothing is filled."""
        sent = [_bytes(tensors) for tensors in out]
        sizes = [sum(t.numel() * t.element_size() for t in tensors) for tensors in into]
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        dist.all_to_all_single(received, torch.cat(sent), sizes, [len(s) for s in sent], group=self.group)
        at = 0
        for tensor in (t for tensors in into for t in tensors):
            size = tensor.numel() * tensor.element_size()
            piece = received[at : at + size].clone() if at % 8 else received[at : at + size]
            if size:
                tensor.copy_(piece.view(tensor.dtype).view(tensor.shape))
            at += size

    # ---- within a step

    def _note(self) -> None:
        """From here on a sharded tensor that has another version was written by somebody else."""
        self._versions = self._written()

    def _written(self) -> list[tuple[int, int]]:
        # What is written into a DTensor counts there alone, and what is written into its shard there.
        return [(p._version, _local(p)._version) for p in self.given if _is_sharded(p)]

    @contextlib.contextmanager
    def stepping(self, opt: Any) -> Iterator[None]:
        self._before = None
        try:
            with super().stepping(opt):
                # Before the engine looks: owners need what was written into the parameters since the last step.
                if self._meet(opt, [], self._written() != self._versions):
                    self._collect([_local(p) for p in self.given], self.held)
                    self._note()
                yield
                self.deliver()
        except BaseException:
            if self._before is not None:  # shown for a request
                with torch.no_grad():
                    for p, old in zip(self.given, self._before):
                        _local(p).copy_(old)
                self._note()
            raise
        finally:
            self._before = None

    def gradients(self, opt: Any, parameters: list[torch.Tensor]) -> list[torch.Tensor | None]:
        grads = [p.grad for p in parameters]
        if self.verify:
            self._meet(opt, grads)
        local = [None if g is None else _local(g) for g in grads]
        for i, (g, p) in enumerate(zip(local, self.given)):
            if g is not None and g.dtype != p.dtype:
                raise error(DtypeError, f"the gradient of parameter {i} is {g.dtype}, the parameter {p.dtype}: "
                            "Ranks(\"owners\") takes gradients of the parameters' type")
        held: list[torch.Tensor | None] = []
        for t, i in zip(self.held, self.sources):
            if i is None:
                held.append(torch.zeros_like(t))
            elif grads[i] is None or not _is_sharded(self.given[i]):
                held.append(local[i])
            else:
                held.append(torch.empty_like(t))
        self._collect(local, held)
        return held

    def _show(self, opt: Any, request: _requests.Request) -> None:
        if request.kind in ("hessian_vector", "logit_derivatives", "activations", "sample_gradients"):
            raise error(UnsupportedError, f"{self.sentence}: a request for {request.kind} shows or takes arrays of all "
                        "parameters, which no rank has in the layout \"owners\": use \"copies\" or \"elements\"")
        if self._asks:
            if self._before is None:
                self._before = [_local(p).clone() for p in self.given]
            self.deliver()


def _lies(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _first_difference(what: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Where two descriptions differ: what it is called, and what either says."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = object()
        key = next(key for key in (*a, *b) if a.get(key, missing) != b.get(key, missing))
        return _first_difference(f"{what} {key}", a.get(key), b.get(key))
    return what, a, b


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor, over the same memory; other tensors as they are."""
    if not _is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def _like(local: torch.Tensor, p: Any) -> torch.Tensor:
    """A DTensor with this local shard, cut as `p` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _is_sharded(tensor: torch.Tensor) -> bool:
    return _is_dtensor(tensor) and any(placement.is_shard() for placement in tensor.placements)


def _part(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which part of the whole tensor this rank has: offsets and shape."""
    if not _is_sharded(tensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def _slices(part: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[slice, ...]:
    return tuple(slice(first, first + count) for first, count in zip(*part))


def _bytes(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of any types, one behind the other."""
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors if t.numel()]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)


# ---- state for any number of ranks


def sharded_state_dict(opt: Any) -> dict[str, Any]:
    """The state of a thalweg.torch.Optimizer for torch.distributed.checkpoint, whatever the number of ranks.

        dcp.save({"model": model.state_dict(), "optimizer": sharded_state_dict(opt)}, checkpoint_id=path)

    {"state": {"NAME/STAGE/SLOT": tensor, ...}, "engine": bytes, "param_groups": str}: state of the shape of a sharded
    parameter is a DTensor like it; of tensors that others own there is nothing here.  Parameters go by the names that
    they were given with (named_parameters()), else by their positions.  `engine` has counters, hyper-parameters and
    schedules, `param_groups` the numbers and texts that schedulers keep there ("initial_lr").  Call it on all ranks,
    between steps.

    SequenceError inside a step or in evaluation mode.  UnsupportedError for 8-bit state of shards, which is packed by
    the shard, for plain tensors of the layout "elements" (which part a rank has is known to you alone), and where ranks
    have different tensors under one name; opt.state_dict() of every rank can be saved then, for the same ranks.
    """
    engine = opt.engine
    if engine._pending is not None:
        raise error(SequenceError, "a step is under way: answer its requests first")
    if not engine.training:
        raise error(SequenceError, "the parameters hold the evaluation weights: call opt.train() first")
    opt._push()
    blob = engine._save()
    entries = _checkpoint.read(blob)
    names = _checkpoint.tensor_names(entries)
    sources, positions = _sources(opt, names), {name: i for i, name in enumerate(names)}
    _check_names(opt, names, sources)
    state: dict[str, Any] = {}
    common: dict[str, _checkpoint.Entry] = {}
    lengths = _per_tensor(opt, entries, len(names))
    for key, entry in entries.items():
        where = positions.get(_checkpoint.owner(key, positions))
        if key == _checkpoint.NAMES or key.endswith("/engine/fingerprints"):
            continue
        if key in lengths:
            rows = entry.numbers().reshape(len(names), -1)
            for name, source, row in zip(names, sources, rows):
                if source is not None:
                    state[f"{name}/{key}"] = torch.from_numpy(row.copy())
        elif where is None:
            common[key] = entry
        elif sources[where] is not None:
            state[key] = _as_tensor(opt, key, entry, sources[where])
    notes = [
        {key: value for key, value in group.items() if key not in shown and _is_note(value)}
        for group, shown in zip(opt.param_groups, opt._shown)
    ]
    return {"state": state, "engine": bytes(_checkpoint.write(common)), "param_groups": json.dumps(notes)}


def load_sharded_state_dict(opt: Any, state_dict: dict[str, Any]) -> None:
    """Takes over what sharded_state_dict gave, on any number of ranks, for parameters that you load yourself.

        saved = {"model": model.state_dict(), "optimizer": sharded_state_dict(opt)}    # what to read, and where to
        dcp.load(saved, checkpoint_id=path)
        model.load_state_dict(saved["model"]); load_sharded_state_dict(opt, saved["optimizer"])

    Whole tensors are taken where this rank has a part of them.  FormatError, MismatchError and VersionError leave
    everything as it was on this rank.
    """
    try:
        state, engine = state_dict["state"], state_dict["engine"]
        groups = json.loads(state_dict["param_groups"])
    except (KeyError, TypeError, ValueError) as problem:
        words = "not a sharded state dict: it has no 'state', 'engine' and 'param_groups'"
        raise error(MismatchError, words) from problem
    if len(groups) != len(opt.param_groups):
        raise error(CountError, f"the state dict has {len(groups)} parameter groups, the optimizer "
                    f"{len(opt.param_groups)}")
    from .torch._state import DTYPES

    template = _checkpoint.read(opt.engine._save())
    common = _checkpoint.read(engine)
    names = _checkpoint.tensor_names(template)
    sources, positions = _sources(opt, names), {name: i for i, name in enumerate(names)}
    lengths = _per_tensor(opt, template, len(names))

    def value(key: str, place: dict[str, Any] = state) -> Any:
        if key not in place:
            raise error(MismatchError, f"the state dict has no {key!r}")
        return place[key]

    entries: dict[str, _checkpoint.Entry] = {}
    for key, entry in template.items():
        if key.endswith("/engine/fingerprints"):
            continue
        where = positions.get(_checkpoint.owner(key, positions))
        if key in lengths:
            rows = entry.numbers().reshape(len(names), -1)
            for i, (name, source) in enumerate(zip(names, sources)):
                if source is not None:
                    rows[i] = value(f"{name}/{key}").numpy()
            entries[key] = _checkpoint.of_numbers(rows)
        elif key == _checkpoint.NAMES or (where is not None and sources[where] is None):
            entries[key] = entry
        elif where is None:
            entries[key] = value(key, common)
        else:
            local = _cut(value(key), None if opt._ranks is None else opt._ranks.given[sources[where]], entry.shape)
            if local.dtype != DTYPES[entry.dtype] or tuple(local.shape) != entry.shape:
                raise error(MismatchError, f"{key!r} is {local.dtype} {tuple(local.shape)} in the state dict, "
                            f"{DTYPES[entry.dtype]} {entry.shape} here")
            data = memoryview(_bytes([local]).numpy())
            entries[key] = _checkpoint.Entry(entry.dtype, entry.shape, data)
    extra = next((key for key in common if key not in entries), None)
    if extra is not None:
        raise error(MismatchError, f"the state dict has {extra!r}, which this optimizer does not")
    opt.engine._load(_checkpoint.write(entries))
    opt._shown, opt._scaled = [], {}
    for group, saved in zip(opt.__dict__["param_groups"], groups):
        group.update(saved)
    opt._pull()


def _is_note(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _sources(opt: Any, names: list[str]) -> list[int | None]:
    return list(range(len(names))) if opt._ranks is None else opt._ranks.sources


def _check_names(opt: Any, names: list[str], sources: list[int | None]) -> None:
    """Where ranks have different tensors, their names have to be different too."""
    if opt._ranks is None or opt._ranks.layout != "tensors":
        return
    everybody: list[Any] = [None] * opt._ranks.size
    dist.all_gather_object(everybody, [n for n, i in zip(names, sources) if i is not None], group=opt._ranks.group)
    flat = [name for rank in everybody for name in rank]
    twice = next((name for name in flat if flat.count(name) > 1), None)
    if twice is not None:
        raise error(UnsupportedError, f"two ranks have a parameter {twice!r}: pass named_parameters(), or use "
                    "Ranks(\"owners\")")


def _per_tensor(opt: Any, entries: dict[str, _checkpoint.Entry], count: int) -> dict[str, int]:
    """The entries with numbers for each tensor, one behind the other, and how many for each."""
    from .torch._state import scalars_alone

    scalars = {key: entry.shape[0] // count for key, entry in entries.items() if key.endswith("/scalars")}
    whole = scalars_alone(opt.engine.sentence, scalars)
    return {_checkpoint.TENSORS: 3} | {key: width for key, width in scalars.items() if key not in whole}


def _as_tensor(opt: Any, key: str, entry: _checkpoint.Entry, source: int) -> torch.Tensor:
    from .torch._state import tensor_of

    tensor = tensor_of(entry)
    if opt._ranks is None or opt._ranks.layout != "elements":
        return tensor
    p = opt._ranks.given[source]
    if not _is_dtensor(p):
        raise error(UnsupportedError, f"{key!r}: the parameter is a plain tensor, and which part of the whole it is is "
                    "known to you alone: save opt.state_dict() of every rank, for the same ranks")
    if entry.dtype == "U8":
        raise error(UnsupportedError, f"{key!r}: 8-bit state is packed shard by shard, and fits no other number of "
                    'ranks: use state_dtype="bf16", or save opt.state_dict() of every rank, for the same ranks')
    if tuple(_local(p).shape) != entry.shape:
        return tensor  # numbers of the whole tensor, the same on all ranks
    return _like(tensor, p)


def _cut(value: torch.Tensor, p: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of `value` that this rank has of its parameter."""
    if _is_dtensor(value):
        return _local(value)
    if p is not None and _is_sharded(p) and tuple(value.shape) == tuple(p.shape) != shape:
        return value[_slices(_part(p))]
    return value
