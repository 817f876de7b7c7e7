"""The state of a spread model, for any number of ranks."""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist

import torch

from .. import _checkpoint
from .._errors import CountError, MismatchError, SequenceError, UnsupportedError, error
from ._tensors import dtensor_like, flat_bytes, is_dtensor, is_sharded, local_part, slices, whereabouts


def sharded_state_dict(opt: Any) -> dict[str, Any]:
    """The state of a thalweg.torch.Optimizer for torch.distributed.checkpoint, whatever the number of ranks.

        dcp.save({"model": model.state_dict(), "optimizer": sharded_state_dict(opt)}, checkpoint_id=path)

    {"state": {"NAME/STAGE/SLOT": tensor, ...}, "engine": bytes, "param_groups": str}: state of the shape of a sharded
    parameter is a DTensor like it; of tensors that others own there is nothing here.  Parameters go by the names that
    they were given with (named_parameters()), else by their positions.  `engine` has counters, hyper-parameters and
    schedules, `param_groups` the numbers and texts that schedulers keep there ("initial_lr").  Call it on all ranks,
    between steps: where it fails on one that has a part of the state, there is an error on all.

    SequenceError inside a step or in evaluation mode.  UnsupportedError for 8-bit state of shards, which is packed by
    the shard, for plain tensors of the layout "elements" (which part a rank has is known to you alone), and where ranks
    have different tensors under one name; opt.state_dict() of every rank can be saved then, for the same ranks.
    """
    parted = opt._ranks is not None and opt._ranks.parted
    with opt._together("sharded_state_dict", parted):
        return _give(opt, parted)


def _give(opt: Any, parted: bool) -> dict[str, Any]:
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
    if parted:
        opt._ranks.agree_on_state(opt)
    _check_names(opt, names, sources)
    _check_shards(opt, entries, positions, sources)
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
            state[key] = _as_tensor(opt, entry, sources[where])
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

    Whole tensors are taken where this rank has a part of them.  Call it on all ranks: where each of them has a part of
    the state, FormatError, MismatchError or VersionError on one rank is an error on all, and leaves everything as it
    was on all.
    """
    parted = opt._ranks is not None and opt._ranks.parted
    with opt._together("load_sharded_state_dict", parted):
        _take(opt, state_dict, parted)


def _take(opt: Any, state_dict: dict[str, Any], parted: bool) -> None:
    try:
        state, engine = state_dict["state"], state_dict["engine"]
        groups = json.loads(state_dict["param_groups"])
    except (KeyError, TypeError, ValueError) as problem:
        words = "not a sharded state dict: it has no 'state', 'engine' and 'param_groups'"
        raise error(MismatchError, words) from problem
    if len(groups) != len(opt.param_groups):
        raise error(CountError, f"the state dict has {len(groups)} parameter groups, the optimizer "
                    f"{len(opt.param_groups)}")
    from ..torch._state import DTYPES

    before = opt.engine._save()
    template = _checkpoint.read(before)
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
            data = memoryview(flat_bytes([local]).numpy())
            entries[key] = _checkpoint.Entry(entry.dtype, entry.shape, data)
    extra = next((key for key in common if key not in entries), None)
    if extra is not None:
        raise error(MismatchError, f"the state dict has {extra!r}, which this optimizer does not")
    try:
        opt.engine._load(_checkpoint.write(entries))
        if parted:
            opt._ranks.agree_on_state(opt)
            opt._ranks.done()
    except BaseException:
        opt.engine._load(before)
        raise
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


def _check_shards(
    opt: Any, entries: dict[str, _checkpoint.Entry], positions: dict[str, int], sources: list[int | None]
) -> None:
    """UnsupportedError, on all ranks, for state of shards on one of them that fits no other shards.  (Shards of 4,096
    elements are in 8 bits, and the smaller one of the last rank is not.)"""
    if opt._ranks is None or opt._ranks.layout != "elements":
        return
    mine = None
    for key, entry in entries.items():
        source = None if (k := positions.get(_checkpoint.owner(key, positions))) is None else sources[k]
        if source is None or key.endswith("/engine/fingerprints"):
            continue
        if not is_dtensor(opt._ranks.given[source]):
            mine = (f"{key!r}: the parameter is a plain tensor, and which part of the whole it is is known to you "
                    "alone: save opt.state_dict() of every rank, for the same ranks")
        elif entry.dtype == "U8":
            mine = (f'{key!r}: 8-bit state is packed shard by shard, and fits no other number of ranks: use '
                    'state_dtype="bf16", or Ranks("owners"), which keeps tensors whole, or save opt.state_dict() of '
                    "every rank, for the same ranks")
    everybody: list[Any] = [None] * opt._ranks.size
    dist.all_gather_object(everybody, mine, group=opt._ranks.group)
    found = next((text for text in everybody if text is not None), None)
    if found is not None:
        raise error(UnsupportedError, found)


def _per_tensor(opt: Any, entries: dict[str, _checkpoint.Entry], count: int) -> dict[str, int]:
    """The entries with numbers for each tensor, one behind the other, and how many for each."""
    from .._partial import scalars_alone

    scalars = {key: entry.shape[0] // count for key, entry in entries.items() if key.endswith("/scalars")}
    whole = scalars_alone(opt.engine.sentence, scalars)
    return {_checkpoint.TENSORS: 3} | {key: width for key, width in scalars.items() if key not in whole}


def _as_tensor(opt: Any, entry: _checkpoint.Entry, source: int) -> torch.Tensor:
    from ..torch._state import tensor_of

    tensor = tensor_of(entry)
    if opt._ranks is None or opt._ranks.layout != "elements":
        return tensor
    p = opt._ranks.given[source]
    if tuple(local_part(p).shape) != entry.shape:
        return tensor  # numbers of the whole tensor, the same on all ranks
    return dtensor_like(tensor, p)


def _cut(value: torch.Tensor, p: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of `value` that this rank has of its parameter."""
    if is_dtensor(value):
        return local_part(value)
    if p is not None and is_sharded(p) and tuple(value.shape) == tuple(p.shape) != shape:
        return value[slices(whereabouts(p))]
    return value
