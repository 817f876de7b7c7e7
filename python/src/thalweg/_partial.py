"""State of another model or another sentence, as far as it fits; a report says what was taken, and what not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import _checkpoint, _registry, _sentence
from ._checkpoint import ACTIVE, STARTED, Entry
from ._errors import FormatError, MismatchError, error
from ._optimizer import Optimizer, bare

ENGINE = "engine"  # the stage of what the library keeps of a tensor beside the stages: float32 masters
NUMPY = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "F16": np.dtype("<f2")}


@dataclass(frozen=True)
class LoadReport:
    """What load_state_dict(..., strict=False) did, and to_torch_state_dict(strict=False) of thalweg.torch.

    taken    the state that was taken, as "TENSOR/STAGE/SLOT", or "STAGE/scalars" for numbers of the whole run
    left     what was saved (for torch: is here) and not taken: why
    missing  what this optimizer has and was not saved, or did not fit: why.  It is as it was before; an average that
             is new starts from the parameters as they stand
    """

    taken: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether everything was taken, and nothing is missing."""
        return not self.left and not self.missing

    def __str__(self) -> str:
        lines = [f"taken: {len(self.taken)}, left: {len(self.left)}, missing: {len(self.missing)}"]
        for title, rows in (("left", self.left), ("missing", self.missing)):
            lines += [f"  {title:<8} {name}: {why}" for name, why in rows.items()]
        return "\n".join(lines)


class Table:
    """A checkpoint by tensor, stage and slot.  Stages go by their names in paths ("adamw", "adamw#1")."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        if not {_checkpoint.NAMES, _checkpoint.TENSORS, _checkpoint.STEP, "engine/sentence"} <= entries.keys():
            raise error(FormatError, "a part of a state cannot be taken from a checkpoint of an earlier version, which "
                        "has tensors by position: load it whole, and save it again")
        self.entries = dict(entries)
        self.sentence = entries["engine/sentence"].text()
        self.stages = _sentence.stages(self.sentence)
        self.names = _checkpoint.tensor_names(entries)
        self.counters = entries[_checkpoint.TENSORS].numbers().reshape(-1, 3)
        self.step = entries[_checkpoint.STEP].numbers()
        self.alone = {self._stage(key.split("/")[0]) for key in scalars_alone(self.sentence, entries)}
        # By tensor, stage and slot: the key of the entry.
        self.slots: dict[str, dict[str, dict[str, str]]] = {name: {} for name in self.names}
        self.scalars: dict[str, str] = {}
        for key in entries:
            name = _checkpoint.owner(key, self.slots)
            if name is not None:
                stage, slot = key[len(name) + 1 :].split("/", 1)
                if slot != "fingerprints":
                    self.slots[name].setdefault(self._stage(stage), {})[slot] = key
            elif key.endswith("/scalars"):
                self.scalars[self._stage(key.split("/")[0])] = key

    def _stage(self, numbered: str) -> str:
        number = numbered.partition(".")[0]
        return self.stages[int(number)] if number.isdigit() and int(number) < len(self.stages) else numbered

    def rules(self) -> set[str]:
        """The update rules."""
        return {stage for stage in self.stages if _kind(stage) == "optimizer"}

    def widths(self, stage: str) -> int:
        """How many numbers of a stage there are for each tensor, or (`alone`) for the whole run."""
        count = self.entries[self.scalars[stage]].shape[0]
        return count if stage in self.alone else count // max(1, len(self.names))


def _kind(stage: str) -> str:
    method = _registry.by_name().get(stage.partition("#")[0])
    return "" if method is None else method.kind


def load_partly(optimizer: Optimizer, saved: Mapping[str, Entry]) -> LoadReport:
    """Takes from a checkpoint what fits.  FormatError, MismatchError and SequenceError leave everything as it was."""
    theirs = Table(saved)
    if theirs.step[2] >= 0 or theirs.step[10] == 1:
        where = "within a step" if theirs.step[2] >= 0 else "in evaluation mode"
        raise error(MismatchError, f"the state was saved {where}: load it whole, into an optimizer like the one "
                    "that it is of, and save it between two steps of training")
    mine, report = Table(_checkpoint.read(optimizer._save())), LoadReport()
    merged = {key: entry for key, entry in mine.entries.items() if not key.endswith("/engine/fingerprints")}
    place = {name: index for index, name in enumerate(theirs.names)}
    taken: set[str] = set()  # names of tensors
    new_averages: list[str] = []  # keys
    for index, name in enumerate(mine.names):
        if name not in place:
            report.missing[name] = f"no tensor of that name was saved{_known(theirs.names)}"
            continue
        why = _take_tensor(mine, theirs, name, merged, report)
        if why:
            report.missing[name] = why
            report.left[name] = why
            continue
        taken.add(name)
        report.taken.append(f"{name}/{ENGINE}/steps")
        if (marks := f"{name}/{ENGINE}/fingerprints") in theirs.entries:  # the engine knows which are of use
            merged[marks] = theirs.entries[marks]
        fresh = mine.counters[index, 0] == 0
        steps, key, flags = theirs.counters[place[name]]
        # What keys the random draws of a tensor must not be that of another one.
        key = key if theirs.names == mine.names else mine.counters[index, 1]
        mine.counters[index] = (steps, key, int(flags) & (STARTED | ACTIVE))
        if fresh and int(flags) & STARTED:
            new_averages += [key for stage, slots in mine.slots[name].items() for slot, key in slots.items()
                             if _kind(stage) == "average" and f"{name}/{stage}/{slot}" in report.missing]
    for name in theirs.names:
        if name not in mine.slots:
            report.left[name] = f"this optimizer has no tensor of that name{_known(mine.names)}"
    _take_scalars(mine, theirs, taken, merged, report)
    if taken:
        mine.step[[0, 1, 9]] = theirs.step[[0, 1, 9]]
        report.taken.append(f"{ENGINE}/step")
    if new_averages:
        merged.update(_at_parameters(optimizer, mine, merged, new_averages))
    merged[_checkpoint.STEP] = _checkpoint.of_numbers(mine.step)
    merged[_checkpoint.TENSORS] = _checkpoint.of_numbers(mine.counters)
    optimizer._load(_checkpoint.write(merged))
    return report


def _take_tensor(
    mine: Table, theirs: Table, name: str, merged: dict[str, Entry], report: LoadReport
) -> str:
    """Takes the state of a tensor, stage by stage; returns why nothing of it is taken, or "".

    Of a stage all slots are taken, or none.  Without those of the update rule nothing is: its other state would be
    counted as that of a tensor in its first steps.
    """
    if not mine.rules() & theirs.rules():
        return f"the update rule is another one: {_listed(mine.rules())} here, {_listed(theirs.rules())} was saved"
    here, there = mine.slots[name], theirs.slots[name]
    found: dict[str, Entry] = {}
    refused: dict[str, str] = {}  # stages of ours: why
    for stage, slots in here.items():
        if stage not in there:
            has = stage in theirs.stages or stage == ENGINE
            refused[stage] = f"nothing of `{stage}` was saved for it" if has else f"the saved sentence has no `{stage}`"
            continue
        fitting = {}
        for slot, key in slots.items():
            if slot not in there[stage]:
                refused[stage] = f"no {slot!r} was saved; there is {', '.join(there[stage])}"
                break
            entry = _fitted(theirs.entries[there[stage][slot]], mine.entries[key])
            if isinstance(entry, str):
                refused[stage] = f"{slot!r} {entry}"
                break
            fitting[key] = entry
        else:
            found.update(fitting)
    rules = {stage for stage in here if _kind(stage) == "optimizer"}
    kept = rules or {stage for stage in there if _kind(stage) == "optimizer"}
    for stage in kept:
        if stage in refused:
            return f"{stage}: {refused[stage]}"
        if stage not in here:
            return f"the update rule keeps nothing of it here, and state of `{stage}` was saved"
    merged.update(found)
    report.taken.extend(f"{name}/{s}/{slot}" for s, slots in here.items() for slot in slots if slots[slot] in found)
    for stage, why in refused.items():
        report.missing.update({f"{name}/{stage}/{slot}": why for slot in here[stage]})
    for stage, slots in there.items():
        for slot in slots:
            if stage not in here:
                report.left[f"{name}/{stage}/{slot}"] = f"the sentence here keeps no `{stage}` of it"
            elif stage in refused or slot not in here[stage]:
                report.left[f"{name}/{stage}/{slot}"] = refused.get(stage, f"{stage} has no {slot!r} here")
    return ""


def _take_scalars(mine: Table, theirs: Table, taken: set[str], merged: dict[str, Entry], report: LoadReport) -> None:
    """Numbers of stages: those of the whole run, and those of the tensors that were taken."""
    place = {name: index for index, name in enumerate(theirs.names)}
    for stage, key in mine.scalars.items():
        label = f"{stage}/scalars"
        if stage not in theirs.scalars:
            report.missing[label] = f"the saved sentence has none of `{stage}`"
            continue
        if not taken or mine.widths(stage) != theirs.widths(stage) or (stage in mine.alone) != (stage in theirs.alone):
            counts = f"{theirs.widths(stage)} numbers were saved, {mine.widths(stage)} are here"
            report.missing[label] = report.left[label] = counts if taken else "no tensor fits"
            continue
        values = theirs.entries[theirs.scalars[stage]].numbers()
        if stage not in mine.alone:
            width = mine.widths(stage)
            rows, values = values.reshape(-1, width), mine.entries[key].numbers().reshape(-1, width)
            for index, name in enumerate(mine.names):
                if name in taken:
                    values[index] = rows[place[name]]
        merged[key] = _checkpoint.of_numbers(values)
        report.taken.append(label)
    for stage in theirs.scalars.keys() - mine.scalars.keys():
        report.left[f"{stage}/scalars"] = f"the sentence here has none of `{stage}`"


def _fitted(entry: Entry, like: Entry) -> Entry | str:
    """An entry as `like` is stored, or why that cannot be."""
    if "U8" in (entry.dtype, like.dtype) and (entry.dtype != like.dtype or entry.shape != like.shape):
        if entry.dtype == like.dtype:
            return f"has {entry.shape[0]} bytes in the saved state, {like.shape[0]} here"
        return f"is stored as {_stored(entry)} in the saved state, as {_stored(like)} here"
    if entry.shape != like.shape:
        return f"has shape {entry.shape} in the saved state, {like.shape} here"
    if entry.dtype == like.dtype:
        return entry
    if entry.dtype == "BF16":
        wide = (np.frombuffer(entry.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        wide = np.frombuffer(entry.data, NUMPY[entry.dtype])
    if like.dtype == "BF16":  # to the nearest, ties to even
        bits = np.ascontiguousarray(wide, np.float32).view(np.uint32)
        out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    else:
        out = np.ascontiguousarray(wide, NUMPY[like.dtype])
    return Entry(like.dtype, like.shape, memoryview(out.view(np.uint8)))


def _stored(entry: Entry) -> str:
    return "8 bits" if entry.dtype == "U8" else entry.dtype.lower()


def _at_parameters(
    optimizer: Optimizer, mine: Table, merged: Mapping[str, Entry], keys: Iterable[str]
) -> dict[str, Entry]:
    """State of averages that begin now: the parameters, or the masters where there are some."""
    out: dict[str, Entry] = {}
    # lookahead keeps the parameters as they stand, in the type that averages are kept in.
    with contextlib.closing(Optimizer(optimizer.params, "sgd | lookahead", names=mine.names)) as reader:
        there = Table(_checkpoint.read(reader._save()))
    for key in keys:
        name = _checkpoint.owner(key, mine.slots)
        assert name is not None
        entry = there.entries[there.slots[name]["lookahead"]["slow"]]
        if "master" in mine.slots[name].get(ENGINE, {}):
            entry = merged[mine.slots[name][ENGINE]["master"]]
        fitted = _fitted(entry, mine.entries[key])
        if not isinstance(fitted, str):
            out[key] = fitted
    return out


def scalars_alone(sentence: str, entries: Iterable[str]) -> frozenset[str]:
    """The entries STAGE/scalars of the whole run: an optimizer without parameters has them too."""
    if not any(key.endswith("/scalars") for key in entries):
        return frozenset()
    with contextlib.closing(bare(sentence)) as empty:
        saved = _checkpoint.read(empty._save())
    return frozenset(key for key, entry in saved.items() if key.endswith("/scalars") and entry.shape[0])


def _listed(stages: Iterable[str]) -> str:
    return ", ".join(f"`{stage}`" for stage in sorted(stages)) or "none"


def _known(known: list[str]) -> str:
    """" (there are ...)": a few of the names that there are."""
    shown = ", ".join(map(repr, known[:3])) + (", ..." if len(known) > 3 else "")
    return f" (there are {shown})" if known else ""
