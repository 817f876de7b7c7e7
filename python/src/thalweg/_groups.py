"""Groups of parameters: read from what the caller gives, and shown as torch shows them."""

from __future__ import annotations

import reprlib
from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _arrays
from ._errors import ArgumentError, CountError, RangeError, UnknownNameError, ValueTypeError, error

if TYPE_CHECKING:
    from ._optimizer import Optimizer

# What a tensor is, where a method or route(...) needs more than its shape; None where the host does not say.
ROLES = {None: 0, "weight": 1, "bias": 2, "norm": 3, "embedding": 4, "head": 5}


class ParamGroup(MutableMapping[str, Any]):
    """One parameter group as a dict: reading asks the optimizer, writing changes the pipeline for this group alone.

    Keys are "params" (the arrays), the hyper-parameters that may change while running ("lr", or "adamw.lr" where two
    stages have an lr), and "betas" for (beta1, beta2, ...).  Any path that `Optimizer.get` knows may be asked for.
    A scheduled value is that of the next step; writing replaces the schedule.

    name  what `get` and `set` of the optimizer call it; "" for the group that was made of a plain list
    role  what its arrays are ("bias", ...), or None
    """

    __slots__ = ("_optimizer", "name", "role", "_start", "_stop")

    def __init__(self, optimizer: Optimizer, name: str, start: int, stop: int, role: str | None = None) -> None:
        for key, value in zip(self.__slots__, (optimizer, name, role, start, stop)):
            object.__setattr__(self, key, value)

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            return self._optimizer.params[self._start : self._stop]
        if key == "betas":
            paths = self._optimizer._betas()
            if not paths:
                raise KeyError(key)
            return tuple(self._optimizer.get(path, self.name) for path in paths)
        try:
            return self._optimizer.get(key, self.name)
        except UnknownNameError as problem:
            raise KeyError(str(problem)) from problem

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("params", "name", "role"):
            raise TypeError(f"{key!r} of a parameter group cannot be changed")
        self._optimizer._set_together({key: value}, self.name)

    def __delitem__(self, key: str) -> None:
        raise TypeError("a parameter group keeps its keys")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a parameter group has no attribute {name!r} that could be set: group[{name!r}] = ... "
                             "sets a hyper-parameter, and name and role cannot be changed")

    def __iter__(self) -> Iterator[str]:
        yield "params"
        yield from self._optimizer._live_paths()

    def __len__(self) -> int:
        return 1 + len(self._optimizer._live_paths())

    def __repr__(self) -> str:
        values = {key: self[key] for key in self if key != "params"}
        return f"ParamGroup({self.name!r}, {self._stop - self._start} parameters, {values})"


class Group(NamedTuple):
    name: str
    arrays: list[Any]
    names: list[str] | None
    overrides: dict[str, Any]
    role: str | None = None


def read_groups(params: Iterable[Any], names: Sequence[str] | None) -> list[Group]:
    if _arrays.is_array(params) or isinstance(params, (str, bytes)):
        raise TypeError(f"params is an iterable of arrays, not one {type(params).__name__}")
    if callable(getattr(params, "parameters", None)):
        raise TypeError(f"params is an iterable of arrays, not the model {type(params).__name__}: pass "
                        "model.parameters(), for gradients in `.grad` to an optimizer of thalweg.torch")
    if isinstance(params, Mapping):
        if "params" in params and not _arrays.is_array(params["params"]):
            raise TypeError("params is a list of parameter groups, not one of them: give [group]")
        if wrong := [key for key in params if not isinstance(key, str)]:
            raise TypeError(f"the keys of params are names, as str, not {type(wrong[0]).__name__}")
        params = params.items()
    items = list(params)
    if not items:
        raise error(ArgumentError, "params is empty: there is nothing to optimize")
    if isinstance(items[0], Group):
        return items
    if not isinstance(items[0], Mapping):
        arrays, given = _read_pairs(items)
        return [Group("", arrays, _merge_names(given, names, len(arrays)), {})]
    if names is not None:
        raise error(ArgumentError, "names go with plain params; in groups, write (name, array)")
    if not all(isinstance(item, Mapping) for item in items):
        raise TypeError("params mixes parameter groups (dicts) with arrays")
    groups: dict[str, Group] = {}
    used = {name for item in items if isinstance(name := item.get("name"), str)}
    for index, item in enumerate(items):
        group = read_group(item, item.get("name") or fresh_name(used, index), f"parameter group {index}")
        if group.name in groups:
            raise error(ArgumentError, f"two parameter groups are called {group.name!r}")
        groups[group.name] = group
        used.add(group.name)
    return [*groups.values()]


def check_group(item: Mapping[str, Any], called: str) -> None:
    """ArgumentError where a parameter group has no "params"."""
    if "params" not in item:
        keys = ", ".join(map(repr, item)) or "nothing"
        name = f" ({item['name']!r})" if item.get("name") else ""
        raise error(ArgumentError, f"{called}{name} has no 'params', the list of its parameters; it has {keys}")


def read_group(item: Mapping[str, Any], name: str, called: str = "the parameter group") -> Group:
    check_group(item, called)
    overrides = dict(item)
    params = overrides.pop("params")
    name = overrides.pop("name", None) or name
    if not isinstance(name, str):
        raise error(ValueTypeError, f"{called}: 'name' is a str, not {reprlib.repr(name)}")
    _check_text(name, f"the name of {called}")
    role = overrides.pop("role", None)
    if not isinstance(role, (str, type(None))) or role not in ROLES:
        known = ", ".join(repr(known) for known in ROLES if known)
        raise error(ArgumentError, f"parameter group {name!r}: 'role' is one of {known}, or None, not {role!r}")
    members = [params] if _arrays.is_array(params) else list(params)
    if not members:
        raise error(ArgumentError, f"parameter group {name!r} is empty")
    arrays, names = _read_pairs(members)
    return Group(name, arrays, names, overrides, role)


def _read_pairs(items: list[Any]) -> tuple[list[Any], list[str] | None]:
    """Arrays and names of a list of arrays or of (name, array)."""
    pairs = [isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in items]
    if not any(pairs):
        return items, None
    if not all(pairs):
        raise TypeError(f"parameter {pairs.index(False)}: some parameters come as (name, array), this one does not")
    return [array for _, array in items], _checked([name for name, _ in items])


def _merge_names(given: list[str] | None, names: Sequence[str] | None, count: int) -> list[str] | None:
    if names is None:
        return given
    if given is not None:
        raise error(ArgumentError, "the parameters have names already: leave out names=")
    if len(names) != count:
        raise error(CountError, f"names: {len(names)} names for {count} parameters")
    return _checked(list(names))


def _checked(names: list[Any]) -> list[str]:
    """Names that the library can take.  ValueTypeError, ArgumentError."""
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise error(ValueTypeError, f"the name of parameter {index} is a str, not {reprlib.repr(name)}")
        _check_text(name, f"the name of parameter {index}")
    return names


def _check_text(name: str, called: str) -> None:
    if "\0" in name or not name.isascii() and name != name.encode("utf-8", "replace").decode():
        raise error(ArgumentError, f"{called}, {reprlib.repr(name)}, has a character that is none of Unicode's or is "
                    "NUL: names are UTF-8")


def fresh_name(used: Container[str | None], index: int) -> str:
    """A name that none of the names used is: that of the group `index`, where it is free."""
    while f"group{index}" in used:
        index += 1
    return f"group{index}"


def beta_names(betas: Any) -> list[str]:
    try:
        count = len(betas)
    except TypeError:
        raise error(ValueTypeError, f"betas is a tuple of 2 or 3 numbers, not {betas!r}") from None
    if count not in (2, 3):
        raise error(RangeError, f"betas is a tuple of 2 or 3 numbers, not {betas!r}")
    return [f"beta{i + 1}" for i in range(count)]
