"""The state in torch's shape, `state[param][name]`, and its exchange with the optimizers of torch.optim.

A state dict of thalweg.torch holds for each parameter the tensors of its rule under the names of the library, which
are torch's where torch has the method ("exp_avg"), as they are stored; "step", as torch counts; "counters" (float64:
steps, number of its random draws, flags), "scalars" and "name", which only the library reads.  What belongs to the
whole run is "thalweg" of the first parameter (by name, where they have names): JSON in a uint8 tensor, padded with
spaces to a size that follows from the sentence and the number of groups (AdamW: 4 kB), so that
torch.distributed.checkpoint, which loads in place, finds the size that it saved.
"""

from __future__ import annotations

import base64
import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import _checkpoint, _groups, _optimizer, _sentence
from .._checkpoint import ACTIVE, STARTED, Entry
from .._errors import Error, FormatError, MismatchError, VersionError, error
from .._partial import LoadReport, scalars_alone
from ..distributed._tensors import local_part
from . import _checks

FORMAT = 2
HEAD, COUNTERS, SCALARS, NAME, STEPS = "thalweg", "counters", "scalars", "name", "step"
OURS = (HEAD, COUNTERS, SCALARS, NAME, STEPS, "packed")  # the last by thalweg.distributed
PADDING = 1 << 10
DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
# What converts: torch.optim's name, whether it counts the steps of a parameter, and the tensors that it may keep.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
CONVERTS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "SGD": (False, ("momentum_buffer",)),
    "Adam": (True, MOMENTS),
    "AdamW": (True, MOMENTS),
    "Adagrad": (True, ("sum",)),
    "RMSprop": (True, ("square_avg", "grad_avg", "momentum_buffer")),
    "Adamax": (True, ("exp_avg", "exp_inf")),
    "NAdam": (True, MOMENTS[:2]),
    "RAdam": (True, MOMENTS[:2]),
    "Adadelta": (True, ("square_avg", "acc_delta")),
    "Muon": (False, ("momentum_buffer",)),
}
FREE = ("mu_product",)  # numbers of torch's NAdam that are a scalar of ours


def tensor_of(entry: Entry) -> torch.Tensor:
    """A copy of an entry as a tensor."""
    if not entry.data.nbytes:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    raw = torch.from_numpy(np.frombuffer(entry.data, np.uint8).copy())
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)


def _entry(tensor: torch.Tensor, like: str | None = None) -> Entry:
    """A tensor as an entry, of the type `like` where that is given."""
    tensor = _checks.dense(tensor, "state").detach()
    tensor = tensor.to("cpu", DTYPES[like] if like else tensor.dtype).contiguous()
    dtype = next((name for name, dtype in DTYPES.items() if dtype == tensor.dtype), None)
    if dtype is None:
        raise error(FormatError, f"state is one of {', '.join(map(str, DTYPES.values()))}, not {tensor.dtype}")
    return Entry(dtype, tuple(tensor.shape), memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))


def _stage_of_slots(keys: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The stage of each slot that only one stage has."""
    found: dict[str, set[str]] = {}
    for stage, slot in keys:
        found.setdefault(slot, set()).add(stage)
    return {slot: next(iter(stages)) for slot, stages in found.items() if len(stages) == 1 and slot not in OURS}


def take_apart(engine: _optimizer.Optimizer, notes: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The state of the engine, a dict of tensors for each parameter, in their order.

    notes  what is kept beside it, of plain values
    """
    entries = _checkpoint.read(engine._save())
    alone = scalars_alone(engine.sentence, entries)
    names = _checkpoint.tensor_names(entries)
    place = {name: index for index, name in enumerate(names)}
    owners = {key: _checkpoint.owner(key, place) for key in entries}
    parts = {key: key[len(name) + 1 :].split("/", 1) for key, name in owners.items() if name is not None}
    stages = _stage_of_slots((stage, slot) for stage, slot in parts.values())
    rows: list[dict[str, torch.Tensor]] = [{} for _ in names]
    rest: dict[str, Entry] = {}
    scalars: dict[str, np.ndarray] = {}
    for key, entry in entries.items():
        if owners[key] is not None:
            stage, slot = parts[key]
            rows[place[owners[key]]][slot if stages.get(slot) == stage else f"{stage}/{slot}"] = tensor_of(entry)
        elif key.endswith("/scalars") and key not in alone:
            scalars[key] = entry.numbers().reshape(len(names), -1)
        elif key not in (_checkpoint.NAMES, _checkpoint.TENSORS):
            rest[key] = entry
    counters = entries[_checkpoint.TENSORS].numbers().reshape(-1, 3)
    for index, (row, name) in enumerate(zip(rows, engine.names)):
        row[STEPS] = torch.tensor(float(counters[index, 0]))
        row[COUNTERS] = torch.from_numpy(counters[index].copy())
        if scalars:
            row[SCALARS] = torch.from_numpy(np.concatenate([values[index] for values in scalars.values()]))
        if name is not None:
            row[NAME] = torch.from_numpy(np.frombuffer(name.encode(), np.uint8).copy())
    head: dict[str, Any] = {
        "format": FORMAT, "sentence": engine.sentence, "stages": stages, "notes": notes,
        "scalars": {key: values.shape[1] for key, values in scalars.items()},
        "entries": {k: [e.dtype, e.shape, base64.b64encode(e.data).decode()] for k, e in rest.items()},
    }
    fixed = stages, {k: entry for k, entry in head["entries"].items() if not k.startswith("engine/")}
    text = json.dumps(head).encode()
    text = text.ljust(_room(engine, fixed, len(text)))
    # With names on the first by name: that one is the same in whatever order the parameters are given.
    first = min(range(len(names)), key=names.__getitem__) if all(NAME in row for row in rows) else 0
    rows[first][HEAD] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    return rows


def _room(engine: _optimizer.Optimizer, fixed: Any, used: int) -> int:
    """The size of what belongs to the whole run, where `used` bytes are.  Settings take more room or less as they
    change; the size goes by how many there are.

    fixed  what has the same size in every step
    """
    each = sum(3 * (len(stage) + len(p.name)) + 80 for stage, m in engine._stages() for p in m.parameters)
    text = re.sub(r"[\d.e+-]", "", engine._text)  # (a run may go on with other numbers)
    room = 1024 + 3 * len(text) + (len(engine._layout) + 2) * each + len(json.dumps(fixed))
    if used > room:  # (long memories of schedules)
        room = 1 << (2 * used).bit_length()
    return -(-room // PADDING) * PADDING


def writes(value: Any) -> int:
    """How often a tensor has been written; of a DTensor, as such or by its local part."""
    part = local_part(value)
    return int(value._version) + (0 if part is value else int(part._version))


def is_changed(row: Mapping[str, Any], shown: Mapping[str, tuple[Any, int]]) -> bool:
    """Whether a row of the state is no longer as it was shown."""
    return any(row.get(key) is not value or writes(value) != count for key, (value, count) in shown.items())


def mended(
    row: Mapping[str, Any], shown: Mapping[str, tuple[Any, int]], own: Mapping[str, Any], name: str
) -> dict[str, Any] | None:
    """A row of the state that the caller has changed, with what only the library reads; None: nothing is left of it,
    and the parameter begins anew.  MismatchError where a part is missing, or has another shape.

    row    as it is now
    shown  what was there, and how often it had been written
    own    what the library has
    """
    slots = [key for key in shown if key not in OURS and not key.endswith("fingerprints")]
    if all(row.get(key) is None for key in slots or [STEPS]):
        return None
    out = dict(own)
    for key in slots:
        value = row.get(key)
        if not isinstance(value, torch.Tensor) or value.shape != shown[key][0].shape:
            got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else reprlib.repr(value)
            raise error(MismatchError, f"parameter {name!r}: `state` has {got} as {key!r}, where a tensor of shape "
                        f"{tuple(shown[key][0].shape)} was; delete all of {', '.join(slots)} to begin anew")
        out[key] = _checks.dense(value, f"parameter {name!r}: the {key!r} in `state`").to(shown[key][0].dtype)
    counters = own[COUNTERS].clone()
    value, count = shown[STEPS]
    if row.get(STEPS) is not value or writes(value) != count:
        counters[0] = _checks.steps(row.get(STEPS, 0), name)
    if not int(counters[2]) & STARTED:  # what is there before the first step is no longer made by it
        counters[2] = STARTED | ACTIVE
    return {**out, COUNTERS: counters}


def begin_anew(
    engine: _optimizer.Optimizer, rows: dict[int, dict[str, Any]], which: Sequence[int], head: dict[str, Any]
) -> dict[str, Any]:
    """Puts the state of an optimizer that has not begun into some of the rows.  Returns what belongs to the whole run,
    whose numbers begin anew with the last parameter; steps and schedules go on."""
    _, groups, text, options, _ = engine.__reduce__()[1]
    first, *others = [_groups.Group(name, [torch.zeros_like(p) for p in params], names, {}, role)
                      for name, params, names, role in groups]
    with _optimizer.Optimizer([first], text, **options) as fresh:
        for group in others:
            fresh._bind_group(group)
        made = take_apart(fresh, {})
    theirs = find_head(dict(enumerate(made)))
    assert theirs is not None
    for k in which:
        rows[k] = {key: value for key, value in made[k].items() if key != HEAD}
    if len(which) == len(made):
        alone = scalars_alone(engine.sentence, theirs["entries"])
        head = {**head, "entries": {**head["entries"], **{key: theirs["entries"][key] for key in alone}}}
    return head


def is_ours(key: Any) -> bool:
    """Whether a key of a parameter's state is the library's in every sentence."""
    return isinstance(key, str) and (key in OURS or "/" in key)


def find_head(state: Mapping[int, Any]) -> dict[str, Any] | None:
    """What belongs to the whole run; None in a state dict of torch.  FormatError, VersionError."""
    for row in state.values():
        if isinstance(row, Mapping) and HEAD in row:
            try:
                head = json.loads(_checks.bytes_of_ours(row[HEAD]))
                number = head["format"]
            except Error:
                raise
            except (AttributeError, ValueError, KeyError, TypeError, RuntimeError) as problem:
                raise error(FormatError, f"{_checks.UNUSABLE}: {problem}") from problem
            if not isinstance(number, int) or number != FORMAT:
                kind = VersionError if isinstance(number, int) and number > FORMAT else FormatError
                raise error(kind, f"a state_dict of format {number}; this version knows {FORMAT}")
            wrong = [key for key in ("stages", "notes", "scalars", "entries") if not isinstance(head.get(key), dict)]
            if wrong:
                raise error(FormatError, f"{_checks.UNUSABLE}: {HEAD!r} has no {', '.join(wrong)}")
            return head
    return None


def put_together(engine: _optimizer.Optimizer, state: Mapping[int, Any], head: dict[str, Any]) -> bytearray:
    """The checkpoint for the engine of what take_apart made.  FormatError, MismatchError."""
    names = _checkpoint.tensor_names(_checkpoint.read(engine._save()))
    if sorted(state) != list(range(len(names))):
        raise error(
            MismatchError, f"the state_dict has the state of {len(state)} parameters, this optimizer has {len(names)}"
        )
    order = _order([state[index] for index in range(len(names))], names)
    return _checkpoint.write(_entries([state[index] for index in order], names, head))


def in_part(engine: _optimizer.Optimizer, state: Mapping[int, Any], head: dict[str, Any]) -> dict[str, Entry]:
    """The entries of what take_apart made, of another model: tensors go by their names, or, where the engine has none,
    by their positions.  FormatError."""
    rows = {index: row for index, row in sorted(state.items()) if COUNTERS in row}
    if all(NAME in row for row in rows.values()) and any(name is not None for name in engine.names):
        names = [_name(row) for row in rows.values()]
    else:
        mine = _checkpoint.tensor_names(_checkpoint.read(engine._save()))
        names = [mine[index] if index < len(mine) else f"parameter {index}" for index in rows]
    return _entries([*rows.values()], names, head)


def _entries(rows: Sequence[Mapping[str, Any]], names: list[str], head: dict[str, Any]) -> dict[str, Entry]:
    """The entries of a checkpoint with these tensors.  FormatError."""
    try:
        entries = {
            key: Entry(dtype, tuple(shape), memoryview(base64.b64decode(data)))
            for key, (dtype, shape, data) in head["entries"].items()
        }
        entries[_checkpoint.NAMES] = _of_text("".join(f"{name}\0" for name in names))
        counters = np.array([row[COUNTERS].double().numpy() for row in rows])
        if not np.isfinite(counters).all():
            raise ValueError(f"{COUNTERS!r} has numbers that are not finite")
        entries[_checkpoint.TENSORS] = _checkpoint.of_numbers(counters)
        at = 0
        for key, width in head["scalars"].items():
            entries[key] = _checkpoint.of_numbers([row[SCALARS].double().numpy()[at : at + width] for row in rows])
            at += width
        for name, row in zip(names, rows):
            for key, value in row.items():
                if "/" in key or key in head["stages"]:
                    path = key if "/" in key else f"{head['stages'][key]}/{key}"
                    entries[f"{name}/{path}"] = _entry(_checks.dense(value, f"parameter {name!r}: {key!r}"))
    except Error:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
        raise error(FormatError, f"{_checks.UNUSABLE}: {problem!r}") from problem
    return entries


def _name(row: Mapping[str, Any]) -> str:
    try:
        return str(row[NAME].cpu().numpy().tobytes().decode())
    except (AttributeError, ValueError, RuntimeError) as problem:
        raise error(FormatError, f"{_checks.UNUSABLE}: {reprlib.repr(row[NAME])} is no {NAME!r}") from problem


def _order(rows: Sequence[Mapping[str, Any]], names: list[str]) -> list[int]:
    """For each tensor, by name, its row; their order where they have no names."""
    if not all(NAME in row for row in rows):
        return list(range(len(rows)))
    place = {_name(row): index for index, row in enumerate(rows)}
    for name in names:
        if name not in place:
            there = ", ".join(map(repr, place))
            raise error(MismatchError, f"the state_dict has no parameter {name!r}; it has {there}")
    return [place[name] for name in names]


def _of_text(text: str) -> Entry:
    data = text.encode()
    return Entry("U8", (len(data),), memoryview(data))


def from_torch(
    engine: _optimizer.Optimizer, state: Mapping[int, Any], params: Sequence[torch.Tensor]
) -> bytearray:
    """The checkpoint for the engine of the `state` of a state dict of torch.optim.  MismatchError where the rules have
    other state."""
    entries = _checkpoint.read(engine._save())
    names = _checkpoint.tensor_names(entries)
    place = {name: index for index, name in enumerate(names)}
    wanted: list[dict[str, str]] = [{} for _ in names]
    for key in entries:
        owner = _checkpoint.owner(key, place)
        if owner is not None:
            wanted[place[owner]][key.rsplit("/", 1)[1]] = key
    counters = entries[_checkpoint.TENSORS].numbers().reshape(-1, 3)
    most = max((_steps(row) for row in state.values()), default=0)
    scalars = {k: e.numbers().reshape(len(names), -1) for k, e in entries.items() if k.endswith(".nadam/scalars")}
    for index, name in enumerate(names):
        row = {key: value for key, value in state.get(index, {}).items() if value is not None}
        steps = _steps(row)
        counters[index] = (steps, counters[index, 1], (STARTED | ACTIVE) if steps else 0)
        for slot, key in wanted[index].items():
            if slot == "fingerprints":
                del entries[key]
            elif slot == "master":
                entries[key] = _entry(params[index].reshape(entries[key].shape), "F32")
            elif steps:
                entries[key] = _converted(entries[key], row, slot, name)
        left = [key for key in row if key not in wanted[index] and key not in (STEPS, *FREE)]
        if left:
            raise error(MismatchError, f"parameter {name!r}: the state of torch's optimizer has {', '.join(left)}, for "
                        f"which {engine._text!r} has no place; it has {', '.join(wanted[index]) or 'no state'}")
        if scalars and steps and "mu_product" not in row:
            raise error(MismatchError, f"parameter {name!r}: the state of torch's optimizer has no 'mu_product'; it "
                        f"has {', '.join(row)}")
        for values in scalars.values():
            values[index, 0] = float(row["mu_product"]) if steps else 1.0
    entries.update({key: _checkpoint.of_numbers(values) for key, values in scalars.items()})
    entries[_checkpoint.TENSORS] = _checkpoint.of_numbers(counters)
    step = entries[_checkpoint.STEP].numbers()
    step[0] = step[9] = most
    entries[_checkpoint.STEP] = _checkpoint.of_numbers(step)
    return _checkpoint.write(entries)


def from_torch_in_part(
    engine: _optimizer.Optimizer, name: str, state: Mapping[int, Any], called: Mapping[int, str],
    params: Sequence[torch.Tensor],
) -> dict[str, Entry]:
    """The entries of a checkpoint with the `state` of torch.optim's optimizer `name`, of another model: tensors go by
    the names of `called`.  MismatchError where it is the state of another optimizer."""
    mine = _checkpoint.read(engine._save())
    place = {its: index for index, its in enumerate(_checkpoint.tensor_names(mine))}
    keys = {key: owner for key in mine if (owner := _checkpoint.owner(key, place)) is not None}
    stages = _stage_of_slots(key[len(owner) + 1 :].split("/", 1) for key, owner in keys.items())
    rule = next(f"{k}.{s}" for k, (s, m) in enumerate(engine._stages()) if m.kind == "optimizer")
    scalars = next((key for key in mine if key.endswith(".nadam/scalars")), None)
    entries = {"engine/sentence": mine["engine/sentence"]}
    draws = mine[_checkpoint.TENSORS].numbers().reshape(-1, 3)[:, 1]
    counters, products = [], []
    for index, its in called.items():
        row = {key: value for key, value in state.get(index, {}).items() if value is not None}
        other = [key for key in row if key not in (STEPS, *FREE, *CONVERTS[name][1])]
        if other or (scalars and row and "mu_product" not in row):
            raise error(MismatchError, f"the state dict is that of another optimizer than torch.optim.{name}: it has "
                        f"{', '.join(row)} for {its!r}")
        steps = _steps(row)
        counters.append((steps, draws[place[its]] if its in place else 0, (STARTED | ACTIVE) if steps else 0))
        products.append(float(row.get("mu_product", 1.0)))
        for slot in row.keys() & {*CONVERTS[name][1]} if steps else ():
            path = f"{its}/{stages.get(slot, rule)}/{slot}"
            wide = path not in mine or mine[path].dtype == "U8"
            entries[path] = _entry(row[slot], "F32" if wide else mine[path].dtype)
        if (master := f"{its}/engine/master") in mine:
            entries[master] = _entry(params[place[its]].reshape(mine[master].shape), "F32")
    entries[_checkpoint.NAMES] = _of_text("".join(f"{its}\0" for its in called.values()))
    entries[_checkpoint.TENSORS] = _checkpoint.of_numbers(counters)
    if scalars:
        entries[scalars] = _checkpoint.of_numbers(products)
    step = mine[_checkpoint.STEP].numbers()
    step[0] = step[9] = max((row[0] for row in counters), default=0)
    step[1], step[2], step[10] = 0, -1, 0  # none was skipped; between two steps of training
    entries[_checkpoint.STEP] = _checkpoint.of_numbers(step)
    return entries


def _steps(row: Mapping[str, Any]) -> int:
    """The steps of a parameter; torch's SGD and Muon count none: 1 where there is a momentum."""
    if STEPS in row:
        return int(row[STEPS])
    return int(any(value is not None for value in row.values()))


def _converted(entry: Entry, row: Mapping[str, Any], slot: str, name: str) -> Entry:
    value = row.get(slot)
    if value is None:
        raise error(MismatchError, f"parameter {name!r}: the state of torch's optimizer has no {slot!r}; it has "
                    f"{', '.join(row)}")
    if entry.dtype == "U8":
        raise error(MismatchError, f"parameter {name!r}: a state of torch's cannot be stored in 8 bits as it is; make "
                    "the optimizer with state_dtype 'f32' or 'bf16'")
    if tuple(_checks.dense(value, f"parameter {name!r}: {slot!r}").shape) != entry.shape:
        raise error(MismatchError, f"parameter {name!r}: {slot!r} has shape {tuple(value.shape)} in the state of "
                    f"torch's optimizer, {entry.shape} here")
    return _entry(value, entry.dtype)


def to_torch(
    engine: _optimizer.Optimizer, name: str, params: Sequence[torch.Tensor], report: LoadReport | None = None
) -> dict[int, dict[str, torch.Tensor]]:
    """The state of the engine as torch.optim's optimizer `name` keeps it.

    report  is told what other stages have besides, which is left out; None: MismatchError where there is any
    """
    entries = _checkpoint.read(engine._save())
    names = _checkpoint.tensor_names(entries)
    place = {name: index for index, name in enumerate(names)}
    counters = entries[_checkpoint.TENSORS].numbers().reshape(-1, 3)
    products = next((e.numbers() for key, e in entries.items() if key.endswith(".nadam/scalars")), None)
    widened = engine.state() if any(e.dtype == "U8" and _checkpoint.owner(k, place) for k, e in entries.items()) else {}
    counts, slots = CONVERTS[name]
    stages = _sentence.stages(engine.sentence)
    rule = next(k for k, (_, method) in enumerate(engine._stages()) if method.kind == "optimizer")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for index, (steps, _, _) in enumerate(counters):
        if steps or name == "Adagrad":  # which has its sum from the beginning
            state[index] = {STEPS: torch.tensor(float(steps))} if counts else {}
            if products is not None:
                state[index]["mu_product"] = torch.tensor(float(products[index]))
    for key, entry in entries.items():
        owner = _checkpoint.owner(key, place)
        if owner is None:
            continue
        stage, slot = key[len(owner) + 1 :].split("/", 1)
        if stage == "engine":
            continue
        index, (number, _, method) = place[owner], stage.partition(".")
        path = f"{owner}/{stages[int(number)]}/{slot}"
        if slot not in slots or (int(number) != rule and report is not None):
            if report is None:
                raise error(MismatchError, f"torch.optim.{name} has no place for the {slot!r} of {method}: "
                            "strict=False leaves it out")
            report.left[path] = f"torch.optim.{name} has no place for it"
            continue
        if index not in state:
            continue
        if report is not None:
            report.taken.append(path)
        if entry.dtype == "U8":
            value = torch.from_numpy(np.array(widened[f"{method}.{slot}"][index]))
        else:
            value = tensor_of(entry)
        if name == "Adagrad" and not counters[index, 0]:
            value = torch.full_like(value, engine.param_groups[_group_of(engine, index)]["initial_accumulator_value"])
        state[index][slot] = value.to(params[index].dtype).reshape(params[index].shape)
    return {index: row for index, row in state.items() if row}


def _group_of(engine: _optimizer.Optimizer, index: int) -> int:
    return next(k for k, (_, start, stop) in enumerate(engine._layout) if start <= index < stop)


def scalars_of_the_run(engine: _optimizer.Optimizer) -> list[str]:
    """The methods of a sentence that keep numbers of the whole model."""
    found = scalars_alone(engine.sentence, _checkpoint.read(engine._save()))
    return sorted(key.split("/")[0].partition(".")[2] for key in found)
