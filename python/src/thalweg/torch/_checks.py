"""What is refused as a state dict, or as a part of one."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch

from .._errors import ArgumentError, CountError, FormatError, MismatchError, error

UNUSABLE = "not a usable state_dict of thalweg.torch"
# What is a hyper-parameter in torch.optim is none of the caller's notes, also where the sentence does not have it.
HYPERS = frozenset(
    ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize", "alpha", "rho")
    + ("centered", "lr_decay", "initial_accumulator_value", "momentum_decay", "decoupled_weight_decay", "lambd", "etas")
    + ("step_sizes", "beta2_decay", "ns_steps", "ns_coefficients", "adjust_lr_fn")
)
# Those by which optimizers are told apart that have taken no step; torch has always written them.
TELLING = frozenset(
    ("betas", "momentum", "dampening", "nesterov", "amsgrad", "alpha", "rho", "centered", "lr_decay", "momentum_decay"))


def dense(value: Any, what: str) -> torch.Tensor:
    """FormatError for what is no tensor of real numbers that lie in memory."""
    if not isinstance(value, torch.Tensor):
        raise error(FormatError, f"{what} is a tensor, not {reprlib.repr(value)}")
    if value.is_complex() or value.is_quantized or value.layout is not torch.strided or value.is_meta:
        raise error(FormatError, f"{what} is a dense tensor of real numbers, not one of {value.dtype}, {value.layout}, "
                    f"on {value.device}")
    return value


def steps(value: Any, name: str) -> float:
    """A number of steps that was written into `state`.  MismatchError."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = -1.0
    if not (0 <= number < 2**53 and number.is_integer()):
        raise error(MismatchError, f"parameter {name!r}: `state` has {reprlib.repr(value)} as 'step', where a whole "
                    "number of at least 0 is expected")
    return number


def notes(noted: Mapping[str, Any], groups: int) -> tuple[Any, dict[int, Any] | None, dict[int, Any]]:
    """What was noted beside the engine, of so many groups: what each showed (None: nothing was noted); by group, what
    those have that are empty (None: likewise), and the rates before and since they were changed together.
    FormatError."""
    try:
        shown = noted.get("shown")
        shown = None if shown is None else [dict(values) for values in shown]
        empty = {int(index): dict(values) for index, values in noted["empty"].items()} if "empty" in noted else None
        scaled = {int(index): (dict(base), dict(now)) for index, (base, now) in noted.get("scaled", {}).items()}
        if not (shown is None or len(shown) == groups) or {*(empty or ()), *scaled} - {*range(groups)}:
            raise ValueError(f"there are {groups} parameter groups")
    except (AttributeError, TypeError, ValueError) as problem:
        raise error(FormatError, f"{UNUSABLE}: what it notes of its parameter groups is {reprlib.repr(dict(noted))}: "
                    f"{problem}") from problem
    return shown, empty, scaled


def bytes_of_ours(value: Any) -> bytes:
    """The bytes of a tensor that only the library reads.  FormatError where torch.optim has made it numbers."""
    if isinstance(value, torch.Tensor) and value.dtype != torch.uint8:
        raise error(FormatError, "this state_dict of thalweg.torch went through an optimizer of torch.optim, whose "
                    f"load_state_dict has made what only thalweg reads numbers ({value.dtype}): load into torch's "
                    "optimizer what opt.to_torch_state_dict() gives; its state_dict() then comes back as torch's")
    return value.cpu().numpy().tobytes()


def form(groups: Sequence[Any]) -> None:
    """ArgumentError for what are no parameter groups of a state dict."""
    for index, group in enumerate(groups):
        keys = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(keys, (list, tuple)) or not all(isinstance(key, (int, str)) for key in keys):
            raise error(ArgumentError, f"not a state_dict of an optimizer: parameter group {index} is a dict with a "
                        f"list of numbers or names as 'params', not {reprlib.repr(group)}")


def same_optimizer(groups: Sequence[Mapping[str, Any]], known: Set[str], expected: Set[str], text: str) -> None:
    """MismatchError where a state dict of torch.optim is that of another optimizer, by the keys of its groups.

    known     the hyper-parameters that there are
    expected  those that it has to have
    """
    for group in groups:
        other, lacks = sorted((group.keys() & HYPERS) - known), sorted(expected - group.keys())
        if other or lacks:
            has = (f"has {', '.join(other)}, which {text!r} does not have" if other else
                   f"does not have {', '.join(lacks)}, which {text!r} has")
            raise error(MismatchError, f"the state dict is that of another optimizer of torch.optim: a group {has}")



def groups(theirs: Sequence[Mapping[str, Any]], mine: Sequence[Mapping[str, Any]]) -> None:
    """CountError where a state dict has other parameter groups."""
    if [len(g["params"]) for g in theirs] != [len(g["params"]) for g in mine]:
        raise error(CountError, "the state_dict has other parameter groups: "
                    f"{[len(g['params']) for g in theirs]} parameters, {[len(g['params']) for g in mine]} here; "
                    "strict=False takes what fits")
