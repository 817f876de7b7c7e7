"""Parameter groups of a model: no decay where there is none to have, and smaller steps towards the input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .. import _options
from .._errors import ArgumentError, RangeError, ValueTypeError, error

NORMS = ("norm",)


def get_parameter_groups(
    model: torch.nn.Module, weight_decay: float | None = None, layer_decay: float = 1.0, *, lr: float | None = None,
    head: str | Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, of (name, parameter) pairs: those that need no gradient are left out.

    weight_decay  of weights; None: they keep that of the sentence or of the class.  Biases, and what belongs to a
                  normalisation or has one dimension at most, get 0 in either case
    layer_decay   the step size of a layer is `lr` times this to the power of the layers behind it.  Layers are the
                  members of the longest ModuleList or Sequential of the model (its children where it has none): what
                  comes before them counts as one layer, what comes after has the whole `lr`
    lr            of the last layer; needed where layer_decay is not 1.  Of a sentence with several rules it is the rate
                  of the first, and the others change by the same factor: "route(matrix=(muon(lr=0.02)), ...)", lr=0.02
    head          the output layer: the name of its module ("classifier"), or several names.  Wherever it stands, it has
                  the whole `lr`, and its weights have the role "head"

    A group has "params", "weight_decay" (where it is given, or 0), with lr "lr", and "role" ("weight", "bias", "norm",
    "embedding", "head"), which route(...) goes by: Muon's matrix=(...) leaves embeddings and heads to other=(...).
    RangeError for a decay or an lr below 0, or a layer_decay without lr; ValueTypeError for what is no number;
    ArgumentError for a head that the model does not have; TypeError for what is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is the torch.nn.Module whose parameters are grouped, not {type(model).__name__}: "
                        "roles are read from its modules")
    if weight_decay is not None and not 0 <= (weight_decay := _options.number("weight_decay", weight_decay)) < math.inf:
        raise error(RangeError, f"weight_decay is at least 0, not {weight_decay}")
    layer_decay = _options.number("layer_decay", layer_decay)
    if not 0 < layer_decay < math.inf:
        raise error(RangeError, f"layer_decay is above 0, not {layer_decay}")
    if lr is not None and not 0 <= (lr := _options.number("lr", lr)) < math.inf:
        raise error(RangeError, f"lr is at least 0, not {lr}")
    if layer_decay != 1 and lr is None:
        raise error(RangeError, "layer_decay scales the step size: give lr= too, that of the last layer")
    heads = _heads(model, head)
    layers = _layers(model, heads) if layer_decay != 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        role = _role(model, name, p)
        if role == "weight" and _is_in(name, heads):
            role = "head"
        decay = 0.0 if role in ("bias", "norm") or p.ndim < 2 else weight_decay
        key = (layers.get(name, last), role, decay)
        if key not in groups:
            groups[key] = {"params": [], "role": role}
            if decay is not None:
                groups[key]["weight_decay"] = decay
            if lr is not None:
                groups[key]["lr"] = lr * layer_decay ** (last - key[0])
        groups[key]["params"].append((name, p))
    return list(groups.values())


def _role(model: torch.nn.Module, name: str, p: torch.Tensor) -> str:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if any(word in type(module).__name__.lower() for word in NORMS):
        return "norm"
    if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
        return "embedding"
    return "bias" if "bias" in own else "weight"


def _heads(model: torch.nn.Module, head: Any) -> list[str]:
    """The names of the modules of the output layer."""
    heads = [head] if isinstance(head, str) else list(head) if isinstance(head, Iterable) else [head]
    if not all(isinstance(name, str) for name in heads):
        raise error(ValueTypeError, f"head is the name of a module of the model, or several, not {type(head).__name__}")
    # tied to an embedding, it is a parameter by that name alone
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for one in heads:
        if not any(_is_in(name, [one]) for name in names):
            known = ", ".join(name for name, _ in model.named_children())
            raise error(ArgumentError, f"head: the model has no parameters in a module {one!r}; it has {known}")
    return heads


def _is_in(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _layers(model: torch.nn.Module, heads: list[str]) -> dict[str, int]:
    """For each parameter the number of its layer, from the input; that of the heads is the last."""

    def members_of(path: str, stack: torch.nn.Module) -> list[str]:
        prefixes = (f"{path}.{child}." if path else f"{child}." for child, _ in stack.named_children())
        return [prefix for prefix in prefixes if not _is_in(prefix, heads)]

    stacks = [members_of(*item) for item in model.named_modules()
              if isinstance(item[1], (torch.nn.ModuleList, torch.nn.Sequential))]
    members = max(stacks, key=len, default=[]) or members_of("", model)
    names = [name for name, _ in model.named_parameters()]
    inside = {name: k + 1 for name in names for k, prefix in enumerate(members) if name.startswith(prefix)}
    inside = {**inside, **{name: len(members) + 1 for name in names if _is_in(name, heads)}}
    reached, layers = 0, {}
    for name in names:
        if not _is_in(name, heads):
            reached = max(reached, inside.get(name, len(members) + 1 if reached else 0))
        layers[name] = inside.get(name, reached)
    used = sorted(set(layers.values()))
    return {name: used.index(layer) for name, layer in layers.items()}
