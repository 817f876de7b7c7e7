"""Parameter groups of a model: no decay where there is none to have, and smaller steps towards the input."""

from __future__ import annotations

from typing import Any

import torch

from .._errors import RangeError, error

NORMS = ("norm",)


def get_parameter_groups(
    model: torch.nn.Module, weight_decay: float = 0.0, layer_decay: float = 1.0, *, lr: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, of (name, parameter) pairs: those that need no gradient are left out.

    weight_decay  of weights; biases, and what belongs to a normalisation or has one dimension at most, get 0
    layer_decay   the step size of a layer is `lr` times this to the power of the layers behind it.  Layers are the members
                  of the longest ModuleList or Sequential of the model (its children where it has none): what comes
                  before them counts as one layer, what comes after has the whole `lr`
    lr            of the last layer; needed where layer_decay is not 1

    A group has "params", "weight_decay", with layer_decay "lr", and "role" ("weight", "bias", "norm", "embedding"),
    which route(...) goes by.  An output layer is "weight": to treat it apart name it, route("head.*"=(adamw), ...),
    or put it into a group with "role": "head".  RangeError for a decay below 0, or a layer_decay without lr.
    """
    if weight_decay < 0 or layer_decay <= 0:
        raise error(RangeError, f"weight_decay is at least 0 and layer_decay above 0, not {weight_decay} and {layer_decay}")
    if layer_decay != 1 and lr is None:
        raise error(RangeError, "layer_decay scales the step size: give lr= too, that of the last layer")
    layers = _layers(model) if layer_decay != 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        role = _role(model, name, p)
        decay = 0.0 if role in ("bias", "norm") or p.ndim < 2 else weight_decay
        key = (layers.get(name, last), role, decay)
        if key not in groups:
            groups[key] = {"params": [], "weight_decay": decay, "role": role}
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


def _layers(model: torch.nn.Module) -> dict[str, int]:
    """For each parameter the number of its layer, from the input."""
    stacks = [(path, m) for path, m in model.named_modules() if isinstance(m, (torch.nn.ModuleList, torch.nn.Sequential))]
    path, stack = max(stacks, key=lambda item: len(item[1]), default=("", model))
    members = [f"{path}.{child}." if path else f"{child}." for child, _ in stack.named_children()]
    names = [name for name, _ in model.named_parameters()]
    inside = {name: k + 1 for name in names for k, prefix in enumerate(members) if name.startswith(prefix)}
    reached, layers = 0, {}
    for name in names:
        reached = max(reached, inside.get(name, len(members) + 1 if reached else 0))
        layers[name] = inside.get(name, reached)
    used = sorted(set(layers.values()))
    return {name: used.index(layer) for name, layer in layers.items()}
