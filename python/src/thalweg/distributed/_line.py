"""What the ranks tell each other beside tensors: a few numbers, and that one of them has failed."""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

import torch

from .._errors import ArgumentError, error

# The kinds of messages: comparing notes, sums, largest numbers.
COMPARE, SUM, MAX = range(3)
KINDS = ("comparing notes", "adding numbers up", "looking for the largest number")
# A message: whether its rank has failed, for each kind whether it is of that kind, and numbers.  All are of one size,
# so that the note of a rank that has failed meets whatever the others say; 4 kB take no longer than one number.
HEAD = 1 + len(KINDS)
WIDTH = 512
MOMENT = 0.5  # seconds, for those who wait already to read a note
TEXT = 600  # bytes of what a rank says of its failure

_lines: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Line]] = weakref.WeakKeyDictionary()


def line_of(group: Any, ranks: Sequence[int] | None = None) -> Line:
    """The line of the ranks of a process group, or of more `ranks` (of the world); all of them have to ask for it where
    it is the first time."""
    members = tuple(ranks or dist.get_process_group_ranks(group))
    line = _lines.get(group, {}).get(members)
    if line is None:
        line = Line(group, members)
        if line.group is not group:
            _lines.setdefault(group, {})[members] = line
    return line


class Line:
    """Messages among ranks, over a group of their own: whatever collective of the model the others are in, a rank that
    fails leaves a note here, does not wait for anybody, and its note is what they read next.

    group    of the model, whose time-out counts
    members  its ranks in the world, or more
    """

    def __init__(self, group: Any, members: Sequence[int]) -> None:
        self.group = group
        backend = group._get_backend(torch.device("cpu"))
        if backend.name() == "gloo":  # others make no group without the ranks that are not in it
            self.group = dist.new_group(list(members), timeout=backend.options._timeout, backend="gloo",
                                        use_local_synchronization=True)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.optimizers = 0  # that all ranks have made
        self._left: tuple[Any, ...] = ()  # what was sent last and nobody waits for

    def exchange(self, kind: int, numbers: np.ndarray, doing: str, kept: str) -> None:
        """Adds `numbers` (float64) up over the ranks, or takes the largest, in place.

        doing, kept  what this rank is at, and what an error here leaves behind, for its message

        ArgumentError, on all ranks, where one has failed, or is at something else.
        """
        message = torch.zeros(WIDTH, dtype=torch.float64, device="cpu")
        message[1 + kind] = math.inf
        values = torch.from_numpy(numbers)
        first, rest = values[: WIDTH - HEAD], values[WIDTH - HEAD :]
        there = message[HEAD : HEAD + len(first)]
        there.copy_(first)
        op = dist.ReduceOp.SUM if kind == SUM else dist.ReduceOp.MAX
        dist.all_reduce(message, op=op, group=self.group)
        failed, *kinds = message[:HEAD].tolist()
        if failed:
            texts = [text.partition("\n") for text in self._texts("") if text]  # the sentence, with a mark, follows
            raise agreed("; ".join([*(text[0] for text in texts), kept]) + "".join(a + b for _, a, b in texts))
        if sum(map(bool, kinds)) > 1:
            everybody = self.gather(f"{doing} ({KINDS[kind]})")
            texts = [f"rank {rank} is in {text}" for rank, text in enumerate(everybody)]
            raise agreed(f"the ranks disagree: {', '.join(texts)}")
        first.copy_(there)
        if len(rest):
            dist.all_reduce(rest, op=op, group=self.group)

    def gather(self, mine: Any) -> list[Any]:
        """What every rank has; plain values."""
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.group)
        return everybody

    def leave(self, text: str) -> None:
        """Leaves a note that this rank has failed, for whatever the others say next.  Those who wait already are given
        a moment to read it, should this process end at once; nobody else is waited for."""
        message = torch.zeros(WIDTH, dtype=torch.float64, device="cpu")
        message[0] = math.inf
        with contextlib.suppress(Exception):  # without a connection they find out by themselves
            first = dist.all_reduce(message, group=self.group, async_op=True)
            second, parts = self._send(text, wait=False)
            self._left = message, parts, first, second
            end = time.monotonic() + MOMENT
            while not (first.is_completed() and second.is_completed()) and time.monotonic() < end:
                time.sleep(0.005)

    def _texts(self, mine: str) -> list[str]:
        _, parts = self._send(mine, wait=True)
        return [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts]

    def _send(self, text: str, wait: bool) -> tuple[Any, list[torch.Tensor]]:
        mine = torch.frombuffer(bytearray(text.encode()[:TEXT].ljust(TEXT, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        return dist.all_gather(parts, mine, group=self.group, async_op=not wait), parts


def agreed(text: str) -> Exception:
    """An error that all ranks get, so that none has to tell the others."""
    problem = error(ArgumentError, text)
    problem._agreed = True  # type: ignore[attr-defined]
    return problem


def is_agreed(problem: BaseException) -> bool:
    return bool(getattr(problem, "_agreed", False))
