"""The layout "owners": a tensor is stepped whole by one rank, whatever the parts that the ranks have of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

import torch

from .. import _requests, _sentence
from .._errors import ArgumentError, DtypeError, UnsupportedError, error
from ._place import Place, place_of
from ._tensors import flat_bytes, is_sharded, local_part, slices, whereabouts

if TYPE_CHECKING:
    from ._ranks import Ranks


class Owners(Place):
    """Every tensor has an owner, which steps it whole; gradients go there, and parts of the tensor come back.

    Both ways are one all_to_all of bytes, whatever the number of tensors and their types.
    """

    def __init__(
        self, layout: str, ranks: Ranks, group: Any, sentence: str, everybody: Sequence[int] | None = None
    ) -> None:
        super().__init__(layout, ranks, group, sentence, everybody)
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
        return torch.empty(p.shape, dtype=p.dtype) if is_sharded(p) else local_part(p)

    def forget(self, given: int, held: int) -> None:
        super().forget(given, held)
        del self.owner[given:], self.parts[given:]

    def _present(self, held: torch.Tensor, index: int) -> torch.Tensor:
        return held if is_sharded(self.given[index]) else super()._present(held, index)

    def _described(self, opt: Any, options: dict[str, Any]) -> dict[str, Any]:
        described = super()._described(opt, options)
        described["parameter"] = {i: f"{p.dtype} {tuple(p.shape)}" for i, p in enumerate(self.given)}
        return described

    def _joined(self) -> None:
        everybody: list[Any] = [None] * self.size
        new = [whereabouts(p) for p in self.given[len(self.parts) :]]
        dist.all_gather_object(everybody, new, group=self.group)
        self.parts += [list(row) for row in zip(*everybody)]
        self._collect([local_part(p) for p in self.given], self.held)
        self._note()

    # ---- the two ways

    @torch.no_grad()
    def _collect(self, local: list[torch.Tensor | None], whole: list[torch.Tensor | None]) -> None:
        """Puts `local`, this rank's parts of sharded tensors, together in `whole` on their owners.  None: not there."""
        out = [[local[i] for i in self._sharded(owner) if local[i] is not None] for owner in range(self.size)]
        own = {i: t for i, t in zip(self.sources, whole) if i is not None and t is not None}
        mine = [i for i in self._sharded(self.rank) if local[i] is not None]
        into = [[own[i][slices(self.parts[i][rank])] for i in mine] for rank in range(self.size)]
        self._exchange(out, into)

    @torch.no_grad()
    def _deliver(self) -> None:
        """Gives every rank its parts of the tensors that others own."""
        targets = [local_part(p) for p in self.given]
        own = dict(zip(self.sources, self.held))
        out = [[own[i][slices(self.parts[i][rank])] for i in self._owned(self.rank) if self._travels(i, rank)]
               for rank in range(self.size)]
        into = [[targets[i] for i in self._owned(owner) if self._travels(i, self.rank)] for owner in range(self.size)]
        self._exchange(out, into)
        self._note()

    def _owned(self, rank: int) -> list[int]:
        return [i for i, owner in enumerate(self.owner) if owner == rank]

    def _sharded(self, owner: int) -> list[int]:
        return [i for i in self._owned(owner) if is_sharded(self.given[i])]

    def _travels(self, index: int, rank: int) -> bool:
        """Copies are where they are wanted already, on their owner."""
        return self.owner[index] != rank or is_sharded(self.given[index])

    def _exchange(self, out: list[list[torch.Tensor]], into: list[list[torch.Tensor]]) -> None:
        """Sends out[r] to rank r, and fills into[r] with what comes from there; when it fails, nothing is filled."""
        sent = [flat_bytes(tensors) for tensors in out]
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
        return [(p._version, local_part(p)._version) for p in self.given if is_sharded(p)]

    @contextlib.contextmanager
    def stepping(self, opt: Any, asking: bool) -> Iterator[None]:
        kept, self._before = self._kept, None
        try:
            with super().stepping(opt, asking):
                yield
                self._kept = "the others have stepped what they own, and handed out nothing"
                self._agree_to_deliver("the end")
        except BaseException:
            if self._before is not None:  # shown for a request
                with torch.no_grad():
                    for p, old in zip(self.given, self._before):
                        local_part(p).copy_(old)
                self._note()
            raise
        finally:
            self._kept, self._before = kept, None

    def _begin(self, opt: Any) -> None:
        if self._asks and self._before is None:  # some move the parameters before their first request
            self._before = [local_part(p).clone() for p in self.given]
        # Before the engine looks: owners need what was written into the parameters since the last step.
        grads = [] if self._asking else [p.grad for p in self.given]
        if not self._asking:
            self._check_types(grads)
        where = "its start, with requests" if self._asking else "its start"
        if self._meet(opt, where, grads, self._written() != self._versions):
            self._collect([local_part(p) for p in self.given], self.held)
            self._note()

    def _agree_to_deliver(self, where: str) -> None:
        """Gives every rank its parts once all have come so far."""
        if self.verify:
            self.agree({"place in the step": where})
        self._deliver()

    def switched(self) -> None:
        self._agree_to_deliver("a change of the mode")

    def _check_types(self, grads: list[torch.Tensor | None]) -> None:
        for i, (g, p) in enumerate(zip(grads, self.given)):
            if g is not None and (g.dtype != p.dtype or g.layout != p.layout):
                raise error(DtypeError, f"the gradient of parameter {i} is {g.dtype}, {g.layout}, the parameter "
                            f"{p.dtype}, {p.layout}: Ranks(\"owners\") takes gradients of the parameters' type")

    def gradients(self, opt: Any, parameters: list[torch.Tensor], where: str) -> list[torch.Tensor | None]:
        grads = [p.grad for p in parameters]
        if self._asking:
            self._check_types(grads)
            if self.verify:
                self._meet(opt, where, grads)
        local = [None if g is None else local_part(g) for g in grads]
        held: list[torch.Tensor | None] = []
        for t, i in zip(self.held, self.sources):
            if i is None:
                held.append(torch.zeros_like(t))
            elif grads[i] is None or not is_sharded(self.given[i]):
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
            self._agree_to_deliver(place_of(request))
