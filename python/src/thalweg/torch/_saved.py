"""The state of thalweg.torch.Optimizer: shown, saved and loaded in torch's shape."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, overload

import torch

from .. import _checkpoint
from .._checkpoint import Entry
from .._errors import ArgumentError, FormatError, MismatchError, UnsupportedError, error, of_adapter
from .._partial import LoadReport, load_partly
from .._saved import mentioning_parts
from . import _checks, _state
from ._shown import Grouped
from ._view import differences


class Saved(Grouped):
    """The state of thalweg.torch.Optimizer."""

    _filled: tuple[Any, ...] | None
    # By parameter: what was shown, and how often each tensor had been written then.
    _filling: list[tuple[torch.Tensor, dict[str, tuple[Any, int]]]]

    @property
    def state(self) -> Any:
        """By parameter: its state as tensors, copies as of now, under the names of the library, and "step".

        What is written into them, put in their place or taken out before the next step counts there, as in torch: a row
        that is deleted or cleared begins anew.  Tensors that were kept from before an earlier step are yours alone, and
        so are those that are looked at within a step (in a closure).  Write to the tensors themselves: torch does not
        count what goes through `.data` or `.numpy()`, and it is not seen.
        """
        if "state" not in self.__dict__:
            raise AttributeError("state")
        whole = self.__dict__["state"]
        if "engine" not in self.__dict__ or self.engine.closed:
            return whole
        now = (self.engine.steps, self.engine.skipped, self.engine._edits, self.engine.training)
        if self._filled != now or self.engine._pending is not None:
            self._adopt()
            self._empty()
            with torch.inference_mode(False):  # tensors that count how often they are written
                rows = _state.take_apart(self.engine, self._notes())
                held = self.engine.params if self._ranks is None else self._ranks.shown(rows)
            shown = [(p, row) for p, row in zip(held, rows) if p is not None]  # None stands for a group without tensors
            for p, row in zip(held, rows):
                if p is None and shown and _state.HEAD in row:
                    shown[0][1][_state.HEAD] = row[_state.HEAD]
            for p, row in shown:
                whole.setdefault(p, {}).update(row)
                self._filling.append((p, {key: (value, _state.writes(value)) for key, value in row.items()}))
            # What is shown within a step is that of a step which is not done: writing there changes nothing.
            self._filled = now if self.engine._pending is None else None
        return whole

    @state.setter
    def state(self, state: Any) -> None:
        if "engine" in self.__dict__:
            self.state  # noqa: B018 (what the new one has otherwise, or not at all, counts)
        else:
            self._filled, self._filling = None, []
        self.__dict__["state"] = state

    def _empty(self) -> None:
        """Lets go of the copies in `state`."""
        whole = self.__dict__["state"]
        for p, shown in self._filling:
            if p in whole:
                for key in shown:
                    whole[p].pop(key, None)
                if not whole[p]:
                    del whole[p]
        self._filled, self._filling = None, []

    def _adopt(self) -> None:
        """Takes over what was put into `state`, written there or taken out since it was shown: what the caller changes,
        and rows of another optimizer, as ZeroRedundancyOptimizer loads them.  MismatchError, FormatError."""
        whole = self.__dict__["state"]
        if self._filled is None or self.engine._pending is not None:
            return  # (what was shown within a step is None)
        changed = {p: shown for p, shown in self._filling if _state.is_changed(whole.get(p, {}), shown)}
        if not changed:
            return
        own = _state.take_apart(self.engine, self._notes())
        held = self.engine.params if self._ranks is None else self._ranks.shown(own)
        marks = {p: whole.get(p, {}).get(_state.COUNTERS) for p in changed}
        assigned = {p for p, mark in marks.items() if mark is not None and mark is not changed[p][_state.COUNTERS][0]}
        head = _state.find_head(dict(enumerate(whole[p] for p in held if p in assigned)))
        if head is None and len(assigned) == sum(p is not None for p in held):
            raise error(MismatchError, "no row that was put into `state` has what belongs to the whole run: the state "
                        "is of another number of ranks, for which thalweg.distributed.sharded_state_dict is")
        head = head or _state.find_head(dict(enumerate(own)))
        assert head is not None
        rows = dict(enumerate(own))
        anew = []
        for k, p in enumerate(held):
            if p in assigned:
                rows[k] = whole[p]
            elif p in changed:
                mended = _state.mended(whole.get(p, {}), changed[p], own[k], f"{self.engine.names[k] or k}")
                rows[k] = own[k] if mended is None else mended
                anew += [k] if mended is None else []
        if anew:
            head = _state.begin_anew(self.engine, rows, anew, head)
        if self._ranks is not None:
            rows = self._ranks.local_rows(rows)
        self.engine._load(_state.put_together(self.engine, rows, head))
        for p in changed:
            kept = {key: v for key, v in whole.get(p, {}).items() if not (_state.is_ours(key) or key in head["stages"])}
            whole.pop(p, None)
            if kept:
                whole[p] = kept
        self._empty()
        self._pull()

    def _push(self) -> None:
        self._adopt()
        super()._push()

    def _notes(self) -> dict[str, Any]:
        """What a state dict holds beside the engine: what is different in param_groups when it is loaded, somebody has
        changed."""
        return {"shown": [dict(shown) for shown in self._shown],
                "empty": {str(index): values for index, values in self._unbound.items()},
                "scaled": {str(index): list(pair) for index, pair in self._scaled.items()}}

    @contextlib.contextmanager
    def _without_hooks(self, *kinds: str) -> Iterator[None]:
        """Inside, torch finds no hooks of these kinds: they are called where all of the state can be seen."""
        hooks = {kind: getattr(self, kind) for kind in kinds}
        for kind in kinds:
            setattr(self, kind, {})
        try:
            yield
        finally:
            for kind in kinds:
                setattr(self, kind, hooks[kind])

    @of_adapter
    def state_dict(self) -> dict[str, Any]:
        """The state in torch's shape, {"state": {index: {name: tensor}}, "param_groups": [...]}: tensors and plain
        values, which torch.load(weights_only=True) and torch.distributed.checkpoint read.

        As in torch it does not hold the parameters: save model.state_dict() beside it.  torch.optim's own optimizers
        read what to_torch_state_dict() gives.
        """
        for hook in tuple(self._optimizer_state_dict_pre_hooks.values()):
            hook(self)
        self._push()
        with self._without_hooks("_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks"):
            whole = super().state_dict()
        whole["state"] = {key: dict(row) if isinstance(row, dict) else row for key, row in whole["state"].items()}
        self._empty()
        for hook in tuple(self._optimizer_state_dict_post_hooks.values()):
            whole = hook(self, whole) or whole
        return whole

    @of_adapter
    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], strict: bool = True
    ) -> LoadReport | None:
        """Takes over what state_dict returned, for the same model, whose parameters you load yourself, and the values
        in its param_groups that were changed since.  Nothing changes when it does not fit.

        It also takes the state dict of torch.optim's SGD, Adam, AdamW, Adagrad, RMSprop, Adamax, NAdam, RAdam,
        Adadelta and Muon, for the same rule here: the run goes on where that one stood.  (SGD and Muon count no steps;
        schedules in the sentence then begin at the first.)  Load the model before, where there are master copies.

        strict  False: what fits is taken, though tensors or stages of the sentence are others, as of
                thalweg.Optimizer.load_state_dict; the LoadReport says what, and why the rest was not.  Of torch.optim
                that is the state of the same optimizer, for more tensors, or fewer.  Tensors are matched by name, or,
                where the parameters were given without names (here or there), by position.  param_groups stay as they
                are

        Where each process has a part of the state (DTensors, Ranks("elements"), "tensors", "owners"), all of them call
        this and wait for each other: where the state does not fit on one of them, or is of another step, there is an
        error on all, and nothing has changed on any.  (Files may be read one after the other before.)  Nobody waits
        where a process has the whole state, without `ranks` or with Ranks("copies"), nor with verify=False: one may
        load alone.

        MismatchError where it does not fit, CountError where the parameter groups are others.
        """
        with self._together("load_state_dict", self._ranks is not None and self._ranks.parted):
            return self._load(state_dict, strict)

    def _load(self, state_dict: dict[str, Any], strict: bool) -> LoadReport | None:
        if not isinstance(state_dict, dict):
            raise error(ArgumentError, f"not a state_dict of an optimizer, but a {type(state_dict).__name__}")
        whole = state_dict.copy()
        for hook in tuple(self._optimizer_load_state_dict_pre_hooks.values()):
            whole = hook(self, whole) or whole
        if not isinstance(whole.get("param_groups"), list) or not isinstance(whole.get("state"), dict):
            raise error(ArgumentError, "not a state_dict of an optimizer: it has no 'state' and 'param_groups'")
        _checks.form(whole["param_groups"])
        if self._unbound:
            self._bind_late()
        if not strict:
            return self._load_partly(whole)
        with mentioning_parts() if self._ranks is None and self._has_parts(whole) else contextlib.nullcontext():
            self._load_whole(whole)
        return None

    def _has_parts(self, whole: dict[str, Any]) -> bool:
        """Whether strict=False takes some of a state dict: that of thalweg.torch, or of the same one of torch.optim."""
        from ._classes import name_in_torch

        keys = {key for row in whole["state"].values() if isinstance(row, Mapping) for key in row}
        slots = _state.CONVERTS.get(name_in_torch(self.engine), (False, ()))[1]
        return _state.COUNTERS in keys or bool(keys) and keys <= {*slots, *_state.FREE, _state.STEPS}

    def _check_method(self, groups: list[dict[str, Any]], rows: Mapping[int, Any]) -> None:
        """MismatchError where a state dict of torch.optim without any state, as before its first step, is that of
        another method, by what its groups have."""
        from ._classes import hypers_in_torch, name_in_torch

        if not any(rows.values()):
            name = name_in_torch(self.engine)
            theirs = hypers_in_torch(name) if name in _state.CONVERTS else frozenset({"maximize"})
            _checks.same_optimizer(groups, theirs | self._settings, theirs & _checks.TELLING, self.engine._text)

    def _load_whole(self, whole: dict[str, Any]) -> None:
        """Takes all of a state dict whose hooks have been called."""
        groups, old = whole["param_groups"], whole.get("thalweg")
        _checks.groups(groups, self.param_groups)
        # What the groups call the parameters, torch calls their state: numbers; torch.distributed.checkpoint: names.
        called = {key: index for index, key in enumerate(key for group in groups for key in group["params"])}
        order = self._engine_order()
        rows = {order[called[key]]: row for key, row in whole["state"].items() if key in called}
        for row in rows.values():
            if not isinstance(row, dict):
                raise error(ArgumentError, f"not a state_dict: the state of a parameter is a dict, not {row!r}")
        self._check_fixed(groups)
        if self._ranks is not None:
            rows = self._ranks.held_rows(rows, lambda: _state.take_apart(self.engine, {}))
            for k, source in enumerate(self._ranks.sources):
                if source is None:  # what stands for an empty group is of now, not what was saved
                    rows[k] = {key: value for key, value in rows[k].items() if key != _state.HEAD}
        head = None if old is not None else _state.find_head(rows)
        own = head is not None or old is not None
        if old is not None:  # an earlier version kept everything in one tensor
            if not isinstance(old, Mapping):
                raise error(FormatError, f"{_checks.UNUSABLE}: its 'thalweg' is a {type(old).__name__}")
            data = dict(old)
            if isinstance(data.get("state"), torch.Tensor):
                data["state"] = data["state"].numpy().tobytes()
            notes: dict[str, Any] = data
        elif head is not None:
            data, notes = _state.put_together(self.engine, rows, head), head["notes"]
        else:
            self._check_method(groups, rows)
            data, notes = _state.from_torch(self.engine, rows, self.engine.params), {}
        shown, empty, scaled = _checks.notes(notes, len(groups))
        changes = None if own and shown is None else differences(groups, shown if own else self._shown_of())
        parted = self._ranks if self._ranks is not None and self._ranks.parted else None
        before = self.engine._save() if parted is not None or changes is None or any(changes) else b""
        kept = self.__dict__["param_groups"], self.__dict__["state"], self._shown, self._scaled, self._unbound
        self._empty()
        stages = () if head is None else head["stages"]
        theirs: dict[Any, Any] = {}  # what the caller kept beside our state
        for key, row in whole["state"].items() if own else ():
            if isinstance(row, dict):
                row = {name: v for name, v in row.items() if not (_state.is_ours(name) or name in stages)}
            if row != {}:
                theirs[key] = row
        try:
            with self._without_hooks("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks"):
                super().load_state_dict({"state": theirs, "param_groups": groups})
            self._shown = []
            if old is not None:
                self.engine.load_state_dict(data)
            else:
                self.engine._load(data)
            self._scaled = scaled
            if empty is not None:
                self._unbound, self._standing_in = empty, {}
            if changes is None or any(changes):
                self._set_differences(groups, changes)
            if parted is not None:
                parted.agree_on_state(self)
                parted.done()
        except BaseException:
            groups, state, self._shown, self._scaled, self._unbound = kept
            self.__dict__.update(param_groups=groups, state=state)
            self._standing_in = {}
            if before:
                self.engine._load(before)
            raise
        self._pull()
        for hook in tuple(self._optimizer_load_state_dict_post_hooks.values()):
            hook(self)

    def _load_partly(self, whole: dict[str, Any]) -> LoadReport:
        """Takes what fits of a state dict whose hooks have been called."""
        if self._ranks is not None:
            raise error(UnsupportedError, "strict=False is for a model on one process: load the state there, and save "
                        "it for the ranks with thalweg.distributed.sharded_state_dict")
        places: dict[Any, int] = {}
        names: list[str] = []
        for group in whole["param_groups"]:
            for key in group["params"]:
                places[key] = len(places)
            names += group.get("param_names", ())
        order = dict(enumerate(self._engine_order()))
        rows = {order.get(places[key], places[key]): row for key, row in whole["state"].items()
                if key in places and isinstance(row, dict)}
        head = _state.find_head(rows)
        if head is not None:
            entries = _state.in_part(self.engine, rows, head)
        else:
            self._check_method(whole["param_groups"], rows)
            entries = self._from_torch_in_part(rows, [order.get(k, k) for k in range(len(places))], names)
        report = load_partly(self.engine, entries)
        self._empty()
        self._pull()
        for hook in tuple(self._optimizer_load_state_dict_post_hooks.values()):
            hook(self)
        return report

    def _from_torch_in_part(self, rows: dict[int, Any], indices: list[int], names: list[str]) -> dict[str, Entry]:
        """The entries of a state dict of torch.optim, whose parameters have these indices here and these names."""
        from ._classes import name_in_torch

        name = name_in_torch(self.engine)
        if name not in _state.CONVERTS:
            raise error(MismatchError, "the state dict is none of thalweg.torch, and torch.optim has no optimizer that "
                        f"{self.engine._text!r} goes on from; there are {', '.join(_state.CONVERTS)}")
        if len(names) == len(indices) and None not in self.engine.names:
            called = dict(zip(indices, names))
        else:
            mine = _checkpoint.tensor_names(_checkpoint.read(self.engine._save()))
            called = {k: mine[k] if k < len(mine) else f"parameter {k}" for k in indices}
        return _state.from_torch_in_part(self.engine, name, rows, called, self.engine.params)

    def _check_fixed(self, groups: list[dict[str, Any]]) -> None:
        """ArgumentError where a group says otherwise than what was settled when the optimizer was made."""
        for group in groups:
            self._keys.spread({key: group[key] for key in self._keys.fixed if key in group})

    def _shown_of(self) -> list[dict[str, Any]]:
        """What the engine has now, as param_groups shows it."""
        return [self._read(*self._place(index))[0] for index in range(len(self._places))]

    def _engine_order(self) -> list[int]:
        """For each tensor, counted over param_groups, where the engine has it."""
        if self._ranks is not None:
            return list(range(len(self._ranks.given)))
        spans = [self.engine._layout[where][1:] for where in self._places if where is not None]
        return [index for first, stop in spans for index in range(first, stop)]

    @overload
    def to_torch_state_dict(self, strict: Literal[True] = True) -> dict[str, Any]: ...
    @overload
    def to_torch_state_dict(self, strict: Literal[False]) -> tuple[dict[str, Any], LoadReport]: ...
    @of_adapter
    def to_torch_state_dict(self, strict: bool = True) -> Any:
        """The state dict for the optimizer of torch.optim that this is: SGD, Adam, AdamW, Adagrad, RMSprop, Adamax,
        NAdam, RAdam, Adadelta or Muon, which its load_state_dict takes.

        strict  False: what other stages of the sentence keep (ema) is left out, and the answer is (state dict,
                LoadReport), whose `left` says what that is.  Load them from state_dict() when the run comes back

        MismatchError where torch has no such optimizer, or (strict) another stage of the sentence keeps state.
        """
        from ._classes import groups_of_torch, name_in_torch

        self._push()
        name = name_in_torch(self.engine)
        if name not in _state.CONVERTS:
            raise error(MismatchError, f"torch.optim has no optimizer that goes on from {self.engine._text!r}; "
                        f"there are {', '.join(_state.CONVERTS)}")
        report = LoadReport()
        whole = {"state": _state.to_torch(self.engine, name, self.engine.params, None if strict else report),
                 "param_groups": groups_of_torch(self, name)}
        return whole if strict else (whole, report)

    def _set_differences(self, groups: list[dict[str, Any]], changes: list[dict[str, Any]] | None) -> None:
        """Changes what somebody has changed in the groups of a state_dict; None: an earlier version saved it without a
        note of what it showed, and what schedules change is left to them."""
        reads = [self._read(*self._place(index)) for index in range(len(self._places))]
        if changes is None:
            changes = differences(groups, [{k: v for k, v in values.items() if k not in by} for values, by in reads])
        self._shown = [values for values, _ in reads]
        wanted = {i: {k: v for k, v in c.items() if k in self._shown[i]} for i, c in enumerate(changes)}
        self._set({index: changed for index, changed in wanted.items() if changed})
        self._shown = []

    def __getstate__(self) -> dict[str, Any]:
        if self._ranks is not None and self._ranks.layout != "copies":
            raise error(UnsupportedError, "a copy of this optimizer would step the part of this rank as if it were the "
                        "whole model: make another with the same `ranks`, and load state_dict() there")
        self._push()
        self._empty()
        own = ("engine", "_shown", "_scheduled", "_seen", "_rates", "_scaled", "_sentence_values", "_keys", "_decays",
               "_norms", "_watching", "_sparse", "_settings", "_standards", "_places", "_unbound")
        return {"defaults": self.defaults, **{key: self.__dict__[key] for key in ("state", "param_groups", *own)},
                "_seen": -1, "_ahead": {}, "_filled": None, "_filling": [], "_standing_in": {}, "_tasks": {},
                "_asking": None}
