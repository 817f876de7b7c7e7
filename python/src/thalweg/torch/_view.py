"""How param_groups shows the hyper-parameters of a sentence: torch's keys, and what stands behind each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import _groups, _optimizer
from .._errors import ArgumentError, error


@dataclass(frozen=True)
class View:
    """What a class with torch's signature shows.

    method  the optimizer whose hyper-parameters are shown
    shown   torch's key: the hyper-parameters behind it, several for a tuple ("betas": ("beta1", "beta2"))
    fixed   torch's keys that are settled when the optimizer is made, and their values ("amsgrad": False)
    notes   torch's keys that mean nothing here, and their values ("foreach": None)
    """

    method: str
    shown: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Keys:
    """The keys of param_groups for one sentence.

    joined  key: the paths of the engine behind it.  One path: another name for it; several: a tuple
    hidden  paths of the engine that are not shown
    fixed   keys that cannot change, with their values
    """

    def __init__(self, engine: _optimizer.Optimizer, view: View | None) -> None:
        self.joined: dict[str, tuple[str, ...]] = {}
        self.hidden: frozenset[str] = frozenset()
        self.fixed: dict[str, Any] = dict(view.fixed) if view else {}
        self.notes: dict[str, Any] = dict(view.notes) if view else {}
        live = engine._live()
        if view is None:
            betas = tuple(engine._betas())
            if betas[:2] == ("beta1", "beta2"):  # as torch, whose schedulers look for it
                self.joined["betas"] = betas
            return
        stage, method = next((name, m) for name, m in engine._stages() if m.name == view.method)

        def path(name: str) -> str:
            return name if name in live else f"{stage}.{name}"

        own = {path(p.name) for p in method.parameters if path(p.name) in live}
        self.joined = {key: tuple(path(name) for name in names) for key, names in view.shown.items()}
        self.joined = {key: paths for key, paths in self.joined.items() if paths != (key,)}
        self.hidden = frozenset(own - {path(name) for names in view.shown.values() for name in names})

    def show(self, values: dict[str, Any], scheduled: set[str]) -> None:
        """Puts keys in place of paths."""
        for key, paths in self.joined.items():
            if all(path in values for path in paths):
                parts = tuple(values.pop(path) for path in paths)
                values[key] = parts if len(parts) > 1 else parts[0]
                if scheduled & set(paths):
                    scheduled.add(key)
        for path in self.hidden:
            values.pop(path, None)

    def value(self, group: _groups.ParamGroup, key: str) -> Any:
        """What the engine has now for a key."""
        parts = tuple(group[path] for path in self.joined.get(key, (key,)))
        return parts if len(parts) > 1 else parts[0]

    def spread(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Puts paths in place of keys, and leaves out what is fixed.  ArgumentError where that is another value, or a tuple
        has another length."""
        out: dict[str, Any] = {}
        for key, value in values.items():
            if key in self.fixed:
                if not same(value, self.fixed[key]):
                    raise error(ArgumentError, f"{key!r} is settled when the optimizer is made, for all parameter groups: it "
                                f"is {self.fixed[key]!r} here, and a group has {value!r}")
                continue
            paths = self.joined.get(key, (key,))
            if len(paths) == 1:
                out[paths[0]] = value
            elif not isinstance(value, (tuple, list)) or len(value) != len(paths):
                if key == "betas":  # the library's own words
                    out.update(zip(_groups.beta_names(value), value))
                    continue
                raise error(ArgumentError, f"{key!r} is a tuple of {len(paths)} numbers, not {value!r}")
            else:
                out.update(zip(paths, value))
        return out


def plain(value: Any) -> Any:
    """A value of a group as a number, where it is a tensor."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    return value


def same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(plain(a) == plain(b))
    except (TypeError, ValueError, RuntimeError):
        return False


def differences(groups: Iterable[dict[str, Any]], shown: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is in each group of `groups` otherwise than in `shown`."""
    return [
        {key: plain(group[key]) for key, old in values.items() if key in group and not same(group[key], old)}
        for group, values in zip(groups, shown)
    ]


def show(group: dict[str, Any], key: str, value: Any) -> Any:
    """Puts a value into a group, in place where the caller keeps a tensor there.  Returns what can then be read."""
    current = group.get(key)
    if isinstance(current, torch.Tensor) and current.numel() == 1 and isinstance(value, (int, float)):
        if current.item() != value:
            with torch.no_grad():
                current.fill_(value)
        return current.item()
    if isinstance(current, tuple) and isinstance(value, tuple) and same(current, value):
        return value  # the caller's tensors stay
    group[key] = value
    return value
