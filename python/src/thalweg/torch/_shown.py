"""What param_groups shows of the engine, and what goes back to it: one direction before a step, the other behind it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import _checkpoint, _groups, _notices, _optimizer, _options, distributed
from .._errors import ArgumentError, of_adapter
from .._hints import familiar
from .._optimizer import bare
from ._checks import HYPERS
from ._view import Keys, View, plain, same, show

# What torch's own code and its schedulers keep in a group beside the hyper-parameters of the optimizer.
NOT_OURS = frozenset(
    ("params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_lr", "max_momentum", "base_momentum")
    + ("swa_lr", "differentiable", "foreach", "fused", "capturable")
)


class Grouped(torch.optim.Optimizer):
    """The parameter groups of thalweg.torch.Optimizer, over the engine inside."""

    engine: _optimizer.Optimizer
    _ranks: distributed.Place | None = None
    # What a class with torch's signature says otherwise than the sentence; see _view.
    _viewed: View | None = None
    # What the constructor of Optimizer fills in.
    _keys: Keys
    _rates: list[str]
    _decays: list[str]
    _shown: list[dict[str, Any]]
    _scheduled: list[tuple[int, str]]
    _seen: int
    _scaled: dict[int, tuple[dict[str, float], dict[str, float]]]
    # By group and key: what is shown of a change that the engine does not have yet.
    _ahead: dict[tuple[int, str], Any]
    _sentence_values: dict[str, Any]
    # What the constructor was given for all groups that do not say otherwise.
    _standards: Mapping[str, Any] = {}
    _settings: frozenset[str]
    # While the constructor adds groups: the tensors of those before.
    _members: set[int]
    # By group: where it is among those of the engine; None while it is empty, which the engine knows no groups to be.
    _places: list[int | None]
    # By group that is empty: what it says otherwise than the sentence, by the paths of the engine.
    _unbound: dict[int, dict[str, Any]]
    # By group that is empty: the sentence without parameters, with these values.  Made anew where it is missing.
    _standing_in: dict[int, _optimizer.Optimizer]

    def _joining(self, options: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Around what has to go well on all ranks, or on none."""
        return contextlib.nullcontext() if self._ranks is None else self._ranks.joining(self, options)

    def _together(self, call: str, where: bool = True, **how: bool) -> contextlib.AbstractContextManager[None]:
        """Around what all ranks call, if there are some and `where` that is so: they learn where it fails on one."""
        return self._ranks.together(call, **how) if self._ranks is not None and where else contextlib.nullcontext()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, as for torch.optim; they show what the next step uses."""
        if "param_groups" not in self.__dict__:  # a wrapper (Lightning's) that asks the optimizer inside it
            raise AttributeError("param_groups")
        groups: list[dict[str, Any]] = self.__dict__["param_groups"]
        if "engine" in self.__dict__ and not self.engine.closed:
            if self.engine._edits != self._seen:
                self._pull()
            if self._rates or self._decays:
                self._show_ahead(groups)
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    def _describe(self, group: dict[str, Any], given: Iterable[str], names: set[str]) -> dict[str, Any]:
        """A parameter group of torch as one of thalweg, with the values given; its name goes to `names`."""
        described = {key: plain(group[key]) for key in group if key in given and self._is_setting(key)}
        if same(described.get("weight_decay"), 0) and not self._decay_known():  # true of every rule without one
            del described["weight_decay"]
        called = group.get("param_names")
        if self._ranks is not None:
            described["params"] = self._ranks.hold(called, group["params"])
        else:
            described["params"] = list(zip(called, group["params"])) if called else list(group["params"])
        name = group.get("name")
        if not isinstance(name, str) or not name or name in names:  # in torch a name is any note of the caller's
            name = _groups.fresh_name(names, len(names))
        names.add(name)
        described["name"] = name
        return self._keys.spread(described)

    def _is_setting(self, key: Any) -> bool:
        """Whether a key that a group is given with is for the engine, which may refuse it; others are the caller's."""
        if not isinstance(key, str) or key in NOT_OURS:
            return False
        if key in self._settings or key in HYPERS or key in _options.OF_ALL or "." in key:
            return True
        known = sorted({path.rpartition(".")[2] for path in self._settings})
        return familiar(key, known) is not None or bool(difflib.get_close_matches(key, known, 1, 0.8))

    def _decay_known(self) -> bool:
        return any(path.rpartition(".")[2] == "weight_decay" for path in self._settings)

    # ---- groups that are empty

    def _place(self, index: int) -> tuple[_optimizer.Optimizer, str]:
        """What has the values of a group: the engine, or what stands in for it, and the name of the group there."""
        where = self._places[index]
        if where is not None:
            return self.engine, self.engine._layout[where][0]
        if index not in self._standing_in:
            self._standing_in[index] = self._stand_in(self._unbound[index], self.__dict__["param_groups"][index])
        return self._standing_in[index], ""

    def _stand_in(self, values: dict[str, Any], group: dict[str, Any]) -> _optimizer.Optimizer:
        """A sentence without parameters that has the values of a group.  It refuses those that do not fit."""
        engine = bare(self.engine._text)
        with engine._explaining(values, f"parameter group {group.get('name', '(empty)')!r}"):
            engine._set_texts(None, *engine._written(values))
        return engine

    def _at_this_step(self, engine: _optimizer.Optimizer) -> None:
        """Lets the schedules of a stand-in stand where those of the engine are."""
        entries = _checkpoint.read(engine._save())
        numbers = entries[_checkpoint.STEP].numbers()
        if numbers[0] != self.engine.steps:
            numbers[0] = self.engine.steps
            engine._load(_checkpoint.write({**entries, _checkpoint.STEP: _checkpoint.of_numbers(numbers)}))

    def _bind(self, index: int, described: dict[str, Any]) -> None:
        """Gives a new group to the engine, or keeps its values where it is empty."""
        if described["params"]:
            self.engine.add_param_group(described)
            self._places[index:] = [len(self.engine._layout) - 1]
            return
        values = {key: value for key, value in described.items() if key not in ("params", "name", "role")}
        self._standing_in[index] = self._stand_in(values, described)
        self._unbound[index] = values
        self._places[index:] = [None]

    def _try(self, described: dict[str, Any]) -> None:
        """Refuses what the engine would, without giving it the group."""
        members = [m if isinstance(m, tuple) else (None, m) for m in described["params"]]
        like = [torch.zeros_like(p) if name is None else (name, torch.zeros_like(p)) for name, p in members]
        options: dict[str, Any] = self.engine._options
        with _notices.quiet():
            _optimizer.Optimizer([{**described, "params": like}], self.engine._text, **options).close()

    def _bind_late(self) -> None:
        """Gives groups to the engine that were empty and are no longer."""
        groups = self.__dict__["param_groups"]
        for index, group in enumerate(groups[: len(self._places)]):
            if self._places[index] is None and group["params"]:
                described = self._describe(group, {"role"}, {name for name, _, _ in self.engine._layout})
                self.engine.add_param_group({**self._unbound[index], **described})
                del self._unbound[index]
                self._standing_in.pop(index, None)
                self._places[index] = len(self.engine._layout) - 1

    def _bound(self) -> list[dict[str, Any]]:
        """The groups that the engine has, in its order."""
        pairs = zip(self._places, self.__dict__["param_groups"])
        return [group for _, group in sorted((p for p in pairs if p[0] is not None), key=lambda pair: pair[0])]

    # ---- what is shown, and what is passed on

    def _note(self, groups: list[dict[str, Any]]) -> None:
        """Shows what torch shows and no step changes."""
        for group in groups:
            for key, value in {**self._keys.fixed, **self._keys.notes}.items():
                group.setdefault(key, value)

    def _read(self, engine: _optimizer.Optimizer, name: str) -> tuple[dict[str, Any], set[str]]:
        """What a group of the engine has, as param_groups shows it; and the keys of what a schedule changes."""
        values, scheduled = engine._live_values(name)
        self._keys.show(values, scheduled)
        if self._rates and (values[self._rates[0]] or not any(values[path] for path in self._rates)):
            values["lr"] = values[self._rates[0]]
            if scheduled & set(self._rates):
                scheduled.add("lr")
        if self._decays:
            values["weight_decay"] = values[self._decays[0]]
        return values, scheduled & values.keys()

    def _pull(self, first: int = 0) -> None:
        """Shows what the engine has, but for what the caller has changed and no step has used yet; of the groups from
        `first` on, where those before have not changed."""
        self._scheduled = [(index, key) for index, key in self._scheduled if index < first]
        for index, group in zip(range(first, len(self._places)), self.__dict__["param_groups"][first:]):
            engine, name = self._place(index)
            if engine is not self.engine:
                self._at_this_step(engine)
            values, scheduled = self._read(engine, name)
            old = self._shown[index] if index < len(self._shown) else {}
            for key in self._paths(group, values) if not old else ():
                del group[key]  # it is shown without the stage
            for key, value in values.items():
                current = group.get(key)
                if key not in group or key not in old or not self._is_changed(index, key, current, old[key]):
                    values[key] = show(group, key, value)
                elif same(current, value):
                    values[key] = plain(current)
            self._shown[index : index + 1] = [values]
            self._scheduled += [(index, key) for key in scheduled]
        self._seen = self.engine._edits
        if not first:
            self._ahead.clear()

    @staticmethod
    def _paths(group: dict[str, Any], shown: Mapping[str, Any]) -> list[str]:
        """The keys of a group that name a stage, as "adamw.lr", where the value is shown without it."""
        return [k for k in group
                if isinstance(k, str) and "." in k and k not in shown and k.rpartition(".")[2] in shown]

    def _is_changed(self, index: int, key: str, current: Any, shown: Any) -> bool:
        """Whether the caller has written `current` into a group that showed `shown`."""
        if same(current, shown):
            return False
        return (index, key) not in self._ahead or not same(current, self._ahead[index, key])

    def _show_ahead(self, groups: list[dict[str, Any]]) -> None:
        """Shows what the next step makes of a change: the rates of all rules where "lr" was changed, and "lr" where
        that of the first rule was; of weight decays likewise."""
        for index, (group, shown) in enumerate(zip(groups, self._shown)):
            for key, paths in (("lr", self._rates), ("weight_decay", self._decays)):
                if not paths or key not in shown:
                    continue
                changed = [k for k in (key, *paths) if self._is_changed(index, k, group.get(k, shown[k]), shown[k])]
                values = {k: shown[k] for k in (key, *paths) if (index, k) in self._ahead}
                if key in changed:
                    value = plain(group[key])
                    values.update(self._rates_of(index, value)[1] if key == "lr" else dict.fromkeys(paths, value))
                elif paths[0] in changed:
                    values[key] = plain(group[paths[0]])
                for k in values.keys() - {*changed}:
                    self._ahead[index, k] = show(group, k, values[k])

    def _refresh(self) -> None:
        """Shows the present values of schedules."""
        if self.engine._edits != self._seen:
            self._pull()
            return
        mirrors: dict[int, _groups.ParamGroup] = {}
        for index, key in self._scheduled:
            group, shown = self.__dict__["param_groups"][index], self._shown[index]
            if index not in mirrors:
                engine, name = self._place(index)
                if engine is not self.engine:
                    self._at_this_step(engine)
                mirrors[index] = _groups.ParamGroup(engine, name, 0, 0)
            mirror = mirrors[index]
            value = mirror[self._rates[0]] if key == "lr" and self._rates else self._keys.value(mirror, key)
            untouched = same(group.get(key, shown[key]), shown[key])
            shown[key] = show(group, key, value) if untouched else value

    def _push(self) -> None:
        """Passes on what was changed in param_groups."""
        if self._unbound:
            self._bind_late()
        if self.engine._edits != self._seen:
            self._pull()
        changes: dict[int, dict[str, Any]] = {}
        for index, shown in enumerate(self._shown):
            group = self.__dict__["param_groups"][index]
            for key, old in shown.items():
                new = group.get(key, old)
                if new is not old and self._is_changed(index, key, new, old):
                    changes.setdefault(index, {})[key] = plain(new)
        paths = [(i, k) for i, shown in enumerate(self._shown)
                 for k in self._paths(self.__dict__["param_groups"][i], shown)]
        if paths:
            named: dict[int, dict[str, Any]] = {}
            for index, key in paths:
                named.setdefault(index, {})[key] = plain(self.__dict__["param_groups"][index][key])
            self._set(named)
            for index, key in paths:
                del self.__dict__["param_groups"][index][key]
            self._pull()
            changes = {i: {k: v for k, v in c.items() if not any(p[0] == i and p[1].endswith(f".{k}") for p in paths)}
                       for i, c in changes.items()}
            changes = {i: c for i, c in changes.items() if c}
        if self._keys.fixed:
            self._check_fixed(self.__dict__["param_groups"])
        if not changes:
            return
        self._set(changes)
        for index, changed in changes.items():  # "initial_lr" is what a scheduler of torch leaves, and goes by
            first = self.__dict__["param_groups"][index].get("initial_lr")
            if first is not None and (index, "lr") in self._scheduled and not isinstance(changed.get("lr", ""), str):
                _notices.say_overruled(self.engine._text, plain(changed["lr"]), plain(first))
                break
        for index, changed in changes.items():
            self._shown[index].update(changed)
        rates = {"lr", *self._rates} if self._rates else set()
        linked = rates | ({"weight_decay", *self._decays} if self._decays else set())
        if any(isinstance(value, str) or key in linked for c in changes.values() for key, value in c.items()):
            self._pull()
            return
        self._scheduled = [(index, key) for index, key in self._scheduled if key not in changes.get(index, ())]
        self._seen = self.engine._edits

    def _set(self, changes: dict[int, dict[str, Any]]) -> None:
        """Changes hyper-parameters in the engine: of each group (by index) all, or none when one is refused."""
        changes = {index: self._keys.spread(self._spread_rate(index, c)) for index, c in changes.items()}
        together: dict[str, Any] = {}
        bound = [changed for index, changed in changes.items() if self._places[index] is not None]
        if len(bound) == len(self.engine._layout) > 1:
            first, *others = bound
            together = {k: v for k, v in first.items() if all(k in c and same(c[k], v) for c in others)}
        for index, changed in changes.items():
            engine, name = self._place(index)
            if engine is not self.engine:
                engine._set_together(changed, None)
                self._unbound[index].update(changed)
                self._filled = ()
                continue
            try:
                self.engine._set_together(changed, name)
            except ArgumentError:
                if not together:
                    raise
                # What is one value for all groups, a loop over the groups has given to each of them.
                self.engine._set_together(together, None)
                self.engine._set_together(changed, name)

    def _spread_rate(self, index: int, changed: dict[str, Any]) -> dict[str, Any]:
        """`changed` with the rates of all rules in place of the "lr" that stands for them."""
        changed = self._spread_decay(changed)
        if "lr" not in changed or not self._rates:
            return changed
        self._scaled[index] = self._rates_of(index, changed["lr"])
        return {**self._scaled[index][1], **{key: value for key, value in changed.items() if key != "lr"}}

    def _rates_of(self, index: int, new: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """The rates of all rules before they were changed together, and as "lr" makes them."""
        now = {path: self._shown[index][path] for path in self._rates}
        # Shares are those before the first scaling: a scheduler that passes 0 must not lose them.
        base, scaled = self._scaled.get(index, (now, None))
        if scaled != now:
            base = now
        first = base[self._rates[0]]
        if isinstance(new, str) or not first:
            return base, dict.fromkeys(self._rates, new)
        return base, {path: rate * (new / first) for path, rate in base.items()}

    def _spread_decay(self, changed: dict[str, Any]) -> dict[str, Any]:
        """`changed` with the weight decays of all rules in place of the "weight_decay" that stands for them."""
        if "weight_decay" not in changed or not self._decays:
            return changed
        rest = {key: value for key, value in changed.items() if key != "weight_decay"}
        return {**dict.fromkeys(self._decays, changed["weight_decay"]), **rest}

    @of_adapter
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch: {"params": [...], "lr": 0.1, "role": "bias"}.

        What the group does not say is as in the sentence, schedules included.  It may be empty, and keys of your own
        stay in it.

        UnknownNameError for a key that looks like a hyper-parameter and is none here.  When a key, a tensor or a value
        is refused, nothing changes.
        """
        with self._together("add_param_group", always=True):
            self._add_param_group(param_group)

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group is a dict, {{\"params\": [...]}}; got {type(param_group).__name__}")
        _groups.check_group(param_group, f"parameter group {len(self.__dict__.get('param_groups', ()))}")
        if "engine" not in self.__dict__:
            self._add_first(param_group)
            return
        self._push()
        before = dict(param_group)
        count = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            # torch fills in `defaults`; what counts is what the caller gave, here or by changing them.
            given = {key for key in param_group if key in before or key in self._standards or self._is_new_default(key)}
            with self._joining({}):
                described = self._describe(param_group, given, {name for name, _, _ in self.engine._layout})
                described = self._spread_given(described)
                if self._ranks is not None:  # the engine never lets go of a group
                    self._try(described)
                    self._ranks.agree_on_group(self, described)
                self._bind(count, described)
            self._note([param_group])
        except BaseException:
            del self.__dict__["param_groups"][count:]
            param_group.clear()
            param_group.update(before)
            raise
        self._pull(count)

    def _add_first(self, param_group: dict[str, Any]) -> None:
        """One of the groups that the optimizer is made of.

        torch goes through all earlier groups for shared tensors at every one, so it is shown none of them.
        """
        groups = self.__dict__["param_groups"]
        self.__dict__["param_groups"] = []
        super().add_param_group(param_group)
        members = {id(p) for p in param_group["params"]}
        if not members.isdisjoint(self._members):
            raise ValueError("some parameters appear in more than one parameter group")
        self._members |= members
        groups.append(param_group)
        self.__dict__["param_groups"] = groups

    def _is_new_default(self, key: str) -> bool:
        missing = object()
        old = self._sentence_values.get(key, missing)
        return key in self.defaults and old is not missing and not same(self.defaults[key], old)

    def _spread_given(self, described: dict[str, Any]) -> dict[str, Any]:
        """A new group's values with the rates of all rules in place of the "lr" that stands for them."""
        described = self._spread_decay(described)
        if "lr" not in described or not self._rates:
            return described
        new, first = described.pop("lr"), self._sentence_values.get(self._rates[0])
        if isinstance(new, str) or not first or any(path not in self._sentence_values for path in self._rates):
            rates = dict.fromkeys(self._rates, new)
        else:
            rates = {path: self._sentence_values[path] * (new / first) for path in self._rates}
        return {**rates, **described}
