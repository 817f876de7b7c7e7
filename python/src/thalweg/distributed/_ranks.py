"""What the caller says of how a model is spread, and the place that follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

import torch

from .._errors import ArgumentError, SequenceError, error
from ._line import line_of
from ._owners import Owners
from ._place import Place
from ._tensors import is_dtensor

LAYOUTS = ("copies", "elements", "tensors", "owners")


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
    verify         compare notes once for each request, and when state of which each rank has a part is loaded or saved.
                   False: where the ranks differ, or one fails, nobody tells the others, and they wait for the time-out
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
        if dist.is_available() and self.process_group is not None:
            if self.process_group == dist.GroupMember.NON_GROUP_MEMBER:  # what torch gives the ranks that are not in it
                raise error(ArgumentError, "process_group is one that this rank is no member of")
            if not isinstance(self.process_group, dist.ProcessGroup):
                raise TypeError("process_group is one of torch.distributed, or None, not a "
                                f"{type(self.process_group).__name__}")


@contextlib.contextmanager
def placing(ranks: Any) -> Iterator[None]:
    """Around what has to go well before a rank has its place: on failure the others learn that it does not come, where
    the process group is known without parameters."""
    try:
        yield
    except BaseException as problem:
        known = isinstance(ranks, Ranks) and (ranks.process_group is not None or ranks.layout in ("copies", "tensors"))
        if known and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD if ranks.process_group is None else ranks.process_group
            with contextlib.suppress(Exception):
                line_of(group).leave(f"there is no optimizer on rank {dist.get_rank(group)}: "
                                     f"{type(problem).__name__}: {problem}")
        raise


def place(ranks: Ranks | None, groups: list[dict[str, Any]], sentence: str) -> Place | None:
    """The place of this process among those that the parameters of `groups` are spread over; None: it is alone."""
    parameters = [p for group in groups for p in group["params"]]
    if ranks is None:
        if not any(map(is_dtensor, parameters)):
            return None
        ranks = Ranks()
    if not isinstance(ranks, Ranks):
        raise TypeError(f"ranks is a thalweg.distributed.Ranks, or None, not {type(ranks).__name__}")
    if not (dist.is_available() and dist.is_initialized()):
        raise error(SequenceError, "torch.distributed is not initialized: call init_process_group first")
    layout = ranks.layout or ("elements" if any(map(is_dtensor, parameters)) else "copies")
    kind = Owners if layout == "owners" else Place
    group, everybody = _group_of(ranks.process_group, parameters, layout)
    return kind(layout, ranks, group, sentence, everybody)


def _group_of(given: Any, parameters: list[Any], layout: str) -> tuple[Any, list[int] | None]:
    """The process group that the parts of the parameters are spread over; and all ranks, where several groups have the
    same parts."""
    spread: dict[Any, str] = {}
    for index, p in enumerate(parameters):
        where = None
        if is_dtensor(p):
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
    everybody = None
    if given is None and sharded:
        (mesh, axes), = sharded
        if len(axes) == 1:
            given = mesh.get_group(axes[0])
            everybody = sorted(mesh.mesh.flatten().tolist()) if mesh.ndim > 1 else None
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
    return group, everybody
