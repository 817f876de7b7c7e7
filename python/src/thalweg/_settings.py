"""The hyper-parameters of a running optimizer: read and set by path, with errors that say what there is."""

from __future__ import annotations

import contextlib
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import _notices, _options, _registry, _sentence, _thalweg
from ._errors import (
    ArgumentError,
    Error,
    MethodError,
    NonfiniteError,
    RangeError,
    SentenceError,
    UnknownNameError,
    ValueTypeError,
    error,
)
from ._groups import beta_names
from ._hints import familiar

# What a schedule may watch.
WATCHED = ("metric", "loss", "batch_size", "gradient_norm")


class Settings(_thalweg.Optimizer):
    """What thalweg.Optimizer knows of its hyper-parameters."""

    _layout: list[tuple[str, int, int]]
    # What the sentence has, once that was asked: its stages, and what may change in them.
    _staged: list[tuple[str, _registry.Method]] | None = None
    _parameters: dict[str, _registry.Parameter] | None = None
    # Whether a rule of the sentence needs the loss, once that was asked.
    _needs_loss: bool | None = None
    _loss_is_told = False

    def get(self, path: str, group: str | None = None) -> Any:
        """A hyper-parameter or a measured value: "lr", "adamw.lr", "adamw#1.lr", "clip_global_norm.norm".

        group  its name ("" is that of a plain list; where there is none, what the sentence says); None: that of a plain
               list where there is one, else the value that all groups have

        A scheduled value is that of the next step.  Numbers come as float, whole ones (ns_steps) as int, the rest as
        Python values or text.
        UnknownNameError when there is none, or when two stages have one and the stage is not named.  ArgumentError,
        with the values, when no group is named and theirs differ.
        """
        if group is not None:
            return self._value(path, group)
        names = [name for name, _, _ in self._layout]
        if not names or "" in names:
            return self._value(path, group)
        values = {name: self._value(path, name) for name in names}
        first = values[names[0]]
        if not all(_equal(value, first) for value in values.values()):
            raise error(ArgumentError, f"the parameter groups have different values of {path!r} ({_listed(values)}): "
                        f"name one, as in opt.get({path!r}, {names[-1]!r})")
        return first

    def observe(self, what: str, value: float, /) -> None:
        value = _options.number(f"observe: {what!r}", value)
        if what == "loss" and not self._loss_is_told:
            self._loss_is_told = True
            # (a loop may tell every sentence the loss; one that watches something else was meant to be told that)
            others = [] if self._watches_loss() else self._seen_by_schedules()
            if others:
                _notices.say_unwatched(self._text, "loss", others)
        try:
            super().observe(what, value)
        except UnknownNameError as problem:
            first, line, rest = str(problem).partition("\n")
            raise error(UnknownNameError, first + self._what_is_watched() + line + rest) from None
        self._loss_is_told = True  # (who knows what is watched may tell the loss, too)

    observe.__doc__ = _thalweg.Optimizer.observe.__doc__

    def _watches_loss(self) -> bool:
        """Whether a rule or a schedule looks at the loss, which the library takes in every sentence."""
        if self._needs_loss is None:
            try:
                super().observe("loss", math.nan)  # changes nothing: the refusal names the rule that needs it
            except NonfiniteError as problem:
                self._needs_loss = "needs a finite one" in str(problem)
        return bool(self._needs_loss) or "loss" in self._seen_by_schedules()

    def _what_is_watched(self) -> str:
        """The numbers that are watched, for the end of a sentence."""
        seen = self._seen_by_schedules() + (["loss"] if self._watches_loss() else [])
        listed = " and ".join(f"`{what}`" for what in dict.fromkeys(seen))
        return f"; there is {listed}" if listed else ""

    def _seen_by_schedules(self) -> list[str]:
        """The numbers that schedules of hyper-parameters watch."""
        found = []
        for path, parameter in self._live().items():
            for name in [name for name, _, _ in self._layout] or [None]:
                text = self._get_text(name, path) if parameter.type in ("number", "schedule") else ""
                if not isinstance(_registry.read_value(text), str) or not text:
                    continue
                schedule = _thalweg.Schedule()
                schedule._create(text)
                for what in WATCHED:
                    with contextlib.suppress(Error):
                        schedule.observe(what, 1.0)
                        found.append(what)
        return found

    def _value(self, path: str, group: str | None) -> Any:
        parameter = self._parameter(path)
        try:
            if parameter is None or parameter.type in ("number", "integer"):
                with contextlib.suppress(ValueTypeError):
                    value = self._get_number(group, path)
                    whole = parameter is not None and parameter.type == "integer" and value.is_integer()
                    return int(value) if whole else value
            return _registry.read_value(self._get_text(group, path))
        except UnknownNameError as problem:
            raise error(UnknownNameError, self._explain(problem, {path: None}, False)) from None

    def _parameter(self, path: str) -> _registry.Parameter | None:
        """What the registry says of a hyper-parameter, with or without its stage; None for a measured value."""
        if (live := self._live().get(path)) is not None:
            return live
        stage, _, name = path.rpartition(".")
        methods = [method for label, method in self._stages() if stage in ("", label)]
        return next((p for method in methods for p in method.parameters if p.name == name), None)

    def _live_values(self, group: str | None) -> tuple[dict[str, Any], set[str]]:
        """All hyper-parameters of a group that may change, as `get` gives them, and the paths of those that a schedule
        changes.  (Asked for together: there may be thousands of groups.)"""
        values: dict[str, Any] = {}
        scheduled = set()
        for path, parameter in self._live().items():
            text = self._get_text(group, path)
            value = _registry.read_value(text)
            if isinstance(value, str) and parameter.type in ("number", "integer"):
                value = self._value(path, group)
                if parameter.type == "number":
                    scheduled.add(path)
            elif parameter.type == "number" and value is not None:
                value = float(text)
            values[path] = value
        return values, scheduled

    def set(self, path: str, value: Any, group: str | None = None) -> None:
        """Changes a hyper-parameter while running: for one group ("" is that of a plain list), or (None) for all groups
        and those added later.

        A str is taken as it would stand in a sentence: opt.set("lr", "cosine(lr=0.1, total=1000)").  A schedule counts
        the steps from the first of the optimizer, not from this call: after 300 steps it goes on at step 300.
        RangeError, ValueTypeError or UnknownNameError when it does not fit; nothing changes then.
        """
        with self._explaining({path: value}):
            plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            large = isinstance(value, int) and abs(value) > _sentence.LARGEST
            if plain and value == value and not large:  # what is not a number is explained below
                self._set_number(group, path, float(value))
            else:
                self._set_text(group, path, self._written_value(path, value))

    def _set_together(self, values: Mapping[str, Any], group: str | None) -> None:
        """Changes several hyper-parameters, "betas" among them: all of them, or none when one is refused."""
        with self._explaining(values):
            self._set_texts(group, *self._written(values))

    def _written(self, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Paths, and values as a sentence writes them."""
        for key in values:
            if not isinstance(key, str):
                raise error(ValueTypeError, f"the name of a hyper-parameter is a str, not {reprlib.repr(key)}")
            if key in _options.OF_ALL:  # (the library takes the scale from any group)
                raise error(UnknownNameError, _options.of_all(key))
        spread = self._spread(values)
        return list(spread), [self._written_value(path, value) for path, value in spread.items()]

    def _written_value(self, path: str, value: Any) -> str:
        try:
            return _sentence.write_value(value)
        except (ValueTypeError, RangeError) as problem:
            wanted = self._expected(path, value)
            raise error(type(problem), f"{path!r} is {wanted}, got {reprlib.repr(value)}") from None

    def _expected(self, path: str, got: Any = None) -> str:
        """What a hyper-parameter may be, in words."""
        stage, _, name = path.rpartition(".")
        if path == "betas" and not self._own_betas():
            return "a tuple of 2 or 3 numbers"
        parameter = self._live().get(path)
        for own, method in self._stages() if parameter is None else ():
            if stage in ("", own):
                parameter = parameter or method.parameter(name)
        return "a number" if parameter is None else _registry.expected(parameter, got)

    @contextlib.contextmanager
    def _explaining(self, values: Mapping[str, Any], where: str = "") -> Iterator[None]:
        """Errors say which key of `values` is refused, what there is, and what was expected."""
        try:
            yield
        except (UnknownNameError, ValueTypeError, RangeError, MethodError, SentenceError) as problem:
            text = self._explain(problem, values, bool(where)) if values else str(problem)
            if text == str(problem) and not (where and values):
                raise
            raise error(type(problem), f"{where}: {text}" if where else text) from None

    def _explain(self, problem: Error, values: Mapping[str, Any], in_group: bool) -> str:
        text = str(problem)
        if isinstance(problem, UnknownNameError):
            unknown = re.match(r"no hyper-parameter `([^`]*)`|`([^`]*)`: the pipeline has no stage `", text)
            name = "" if unknown is None else unknown[1] or unknown[2]
            if name not in values and "betas" in values and re.fullmatch(r"beta\d", name):
                name, text = "betas", "no hyper-parameter `betas`"
            return self._explain_name(text, name, values, in_group) if name in values else text
        if isinstance(problem, (MethodError, SentenceError)):
            # A str that does not read as a value.  The library, which is given text only, cannot tell which key has it.
            for key, value in values.items():
                for part in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(part, str) and (f"`{part.strip()}`" in text or f"\n  {part.strip()}" in text):
                        return f"{key!r} is {self._expected(key)}, got {reprlib.repr(value)}: {text}"
        return text

    def _explain_name(self, text: str, name: str, values: Mapping[str, Any], in_group: bool) -> str:
        """What there is, in place of the hyper-parameter `name` among `values`."""
        if name in _options.OF_ALL:
            return _options.of_all(name)
        import difflib

        known = self._live_paths() + (["betas"] if in_group and self._betas() else [])
        if "did you mean" not in text:
            last = name.rpartition(".")[2]
            near = next((path for path in known if path.rpartition(".")[2] == last), familiar(last, known))
            near = near or next(iter(difflib.get_close_matches(name, known, 1)), None)
            text += f" (did you mean `{near}`?)" if near else ""
        text += f"; there are: {', '.join(known)}"
        own = {*known, *(p.name for _, method in self._stages() for p in method.parameters)}
        others = [f"`{key}`" for key in values if key != name and key not in own]
        if others:
            more = f"{', '.join(others[:4])}{', ...' if others[4:] else ''} {'are' if others[1:] else 'is'} none either"
            text += (f".  {more}: these look like the values of another optimizer, which its param_groups and the "
                     "dicts that it was made of have; give each optimizer dicts of its own")
        return text

    def _spread(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with "betas" written out as beta1, beta2, ..., but where a method has a list of that name."""
        spread: dict[str, Any] = {}
        for key, value in values.items():
            if key == "betas" and not self._own_betas():
                spread.update(zip(beta_names(value), value))
            else:
                spread[key] = value
        return spread

    def _stages(self) -> list[tuple[str, _registry.Method]]:
        """The stages by the names that paths have, and their methods: the same for as long as the optimizer lives."""
        if self._staged is None:
            known, names = _registry.by_name(), _sentence.stages(self.sentence)
            self._staged = [(s, known[n]) for s in names if (n := s.partition("#")[0]) in known]
        return self._staged

    if not TYPE_CHECKING:  # (who checks types is told by the checker)

        def __getattr__(self, name: str) -> NoReturn:
            """What there is not: where it is a hyper-parameter, AttributeError names the ways to read it."""
            if not name.startswith("_"):
                with contextlib.suppress(Error):  # (closed, or not made yet)
                    if name in {path.rpartition(".")[2] for path in self._live_paths()}:
                        raise AttributeError(f"{name!r} is a hyper-parameter: optimizer.get({name!r}) or "
                                             f"optimizer.param_groups[0][{name!r}] read it")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(self, name):
            if name in {path.rpartition(".")[2] for path in self._live_paths()}:
                raise AttributeError(f"{name!r} is a hyper-parameter: optimizer.set({name!r}, ...) or "
                                     f"optimizer.param_groups[0][{name!r}] = ... change it")
        super().__setattr__(name, value)

    def _live(self) -> dict[str, _registry.Parameter]:
        """The hyper-parameters that may change while running, by path: those of all stages, of route(...) too."""
        if self._parameters is None:
            stages = self._stages()
            owners: dict[str, int] = {}
            for _, method in stages:
                for p in method.parameters:
                    owners[p.name] = owners.get(p.name, 0) + 1
            self._parameters = {
                p.name if owners[p.name] == 1 else f"{stage}.{p.name}": p
                for stage, method in stages
                for p in method.parameters
                if p.live
            }
        return self._parameters

    def _live_paths(self) -> list[str]:
        return list(self._live())

    def _own_betas(self) -> bool:
        """Whether "betas" is a hyper-parameter of a stage, not a word for its beta1, beta2, ..."""
        return not self._betas() and any(method.parameter("betas") for _, method in self._stages())

    def _betas(self) -> list[str]:
        live = self._live_paths()
        return [name for name in ("beta1", "beta2", "beta3") if name in live]

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self._get_number(None, "steps"))

    @property
    def skipped(self) -> int:
        """How many steps the non-finite policy refused."""
        return int(self._get_number(None, "skipped"))


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)


def _listed(values: Mapping[str, Any]) -> str:
    """"0.1 in 'a', 'b'; 0.2 in 'c'": values by group, a few of them."""
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(repr(value), []).append(repr(name))
    parts = [f"{value} in {', '.join(names[:4])}{', ...' if names[4:] else ''}" for value, names in by_value.items()]
    return "; ".join(parts[:4]) + ("; ..." if parts[4:] else "")
