"""What is said where a model is spread over processes, and `ranks` does not say so."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch.distributed as dist

import torch

from .. import _notices
from .._errors import ArgumentError, UnsupportedError, error


def look_alone(opt: Any, parameters: list[torch.Tensor]) -> None:
    """Of an optimizer without `ranks` in a world of several processes.

    FSDP's flat slices       parts of tensors: what needs whole ones, and sums over them, is an error (at once, or in
                             the first step); what goes element by element steps as ever
    ZeroRedundancyOptimizer  some of the tensors: a sum over them is used as it is, and a warning says so once
    others                   the whole model, as far as anybody can tell: a warning where the method reads losses
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    engine = opt.engine
    if any(map(_is_slice, parameters)):
        write = "pass ranks=thalweg.distributed.Ranks(\"elements\")"

        counted = 0

        def refuse(sums: np.ndarray, maxima: np.ndarray) -> None:
            nonlocal counted
            if counted != len(engine.params):  # how many elements they have: every step begins so, if tensors came
                counted = len(engine.params)
                return
            raise error(ArgumentError, f"{engine._text}: the parameters are slices that FSDP has cut, and a number of "
                        f"whole tensors or of the whole model is wanted, to which each process has a part: {write}")

        try:
            engine.set_reducer(refuse, "elements")
        except UnsupportedError as problem:
            raise error(UnsupportedError, f"{problem}.  FSDP has cut the parameters into slices: take fully_shard, "
                        "with ranks=thalweg.distributed.Ranks(\"owners\"), where a rank gathers what it owns"
                        ) from problem
    elif _is_in_zero():

        def say(sums: np.ndarray, maxima: np.ndarray) -> None:
            if not said:
                said.append(True)
                _notices.say_alone(f"{engine._text}: a number of the whole model is that of the tensors which "
                                   "ZeroRedundancyOptimizer has given this process: pass it functools.partial("
                                   f"thalweg.torch.{type(opt).__name__}, ..., "
                                   "ranks=thalweg.distributed.Ranks(\"tensors\"))")

        said: list[bool] = []
        engine.set_reducer(say, "tensors")
    elif engine._watches_loss() or any("loss" in r for _, m in engine._stages() for r in m.requests):
        _notices.say_alone(f"{engine._text}: the method goes by the loss, of which each of the {dist.get_world_size()} "
                           "processes has its own: where they train one model (DistributedDataParallel), pass "
                           "ranks=thalweg.distributed.Ranks(\"copies\"), which averages it, or their weights differ")


def _is_slice(p: Any) -> bool:
    """Whether FullyShardedDataParallel has cut a parameter.  Its marks are private: where they are gone, nothing is
    said."""
    whole = getattr(p, "_unpadded_unsharded_size", None)
    if whole is not None:
        return bool(p.numel() < whole.numel())
    return bool(getattr(p, "_fsdp_flattened", False)) and p.ndim == 1


def _is_in_zero() -> bool:
    """Whether it is ZeroRedundancyOptimizer that makes the optimizer."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
