"""A torch.optim.Optimizer for every optimizer of the library; those that torch has too with torch's own signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from .. import _classes, _groups, _registry, _sentence
from .._errors import ArgumentError, Error, UnsupportedError, error
from ._optimizer import Optimizer, listed, tensors_of
from ._view import View, plain

# How torch computes.  The first two change nothing here; what the others would, no step of ours can.
MEANINGLESS = {"foreach": None, "fused": None}
REFUSED = {
    "capturable": "steps run on the CPU, and no CUDA graph can hold one",
    "differentiable": "steps run in place, outside autograd",
}
KIND = inspect.Parameter


@dataclass(frozen=True)
class Twin:
    """An optimizer of torch.optim as a stage of ours.

    method  the stage; with a choice, a function of torch's arguments
    shown   see View; torch's arguments that are not here are settled when the optimizer is made
    fixed   hyper-parameters of the stage that follow from torch's arguments and cannot change
    """

    method: str | Callable[[Mapping[str, Any]], str]
    shown: Mapping[str, tuple[str, ...]]
    fixed: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda given: {})

    def stage(self, given: Mapping[str, Any]) -> _registry.Method:
        return _registry.method(self.method if isinstance(self.method, str) else self.method(given))


def _same(*names: str, **others: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {**{name: (name,) for name in names}, **others}


def _adam(given: Mapping[str, Any]) -> str:
    if given.get("decoupled_weight_decay"):
        return "adamw"
    return "amsgrad" if given["amsgrad"] else "adam"


def _muon(given: Mapping[str, Any]) -> dict[str, Any]:
    """torch's form: an average of gradients, products in bfloat16 (of float32 matrices; others keep their precision)."""
    tensors = list(tensors_of(given["params"]))
    for p in tensors:
        if p.ndim != 2:
            raise error(ArgumentError, f"Muon: parameters are matrices, and one has shape {tuple(p.shape)}; for the others "
                        "take another optimizer, or thalweg.torch.Optimizer(params, 'route(matrix=(muon), other=(adamw))')")
    single = all(p.dtype == torch.float32 for p in tensors)
    return {
        "ns_steps": given["ns_steps"],
        "ns_coefficients": list(given["ns_coefficients"]) * given["ns_steps"],
        "adjust_lr": given["adjust_lr_fn"] or "original",
        "momentum_form": "ema",
        "ns_precision": "bf16" if single else "working",
    }


BETAS = {"betas": ("beta1", "beta2")}
TWINS: dict[str, Twin] = {
    "SGD": Twin("sgd", _same("lr", "momentum", "dampening", "weight_decay", "nesterov")),
    "Adam": Twin(_adam, _same("lr", "eps", "weight_decay", **BETAS),
                 lambda g: {"amsgrad": g["amsgrad"]} if _adam(g) == "adamw" else {}),
    "AdamW": Twin("adamw", _same("lr", "eps", "weight_decay", **BETAS), lambda g: {"amsgrad": g["amsgrad"]}),
    "Adagrad": Twin("adagrad", _same("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")),
    "RMSprop": Twin("rmsprop", _same("lr", "alpha", "eps", "weight_decay", "momentum"),
                    lambda g: {"centered": g["centered"]}),
    "Adamax": Twin("adamax", _same("lr", "eps", "weight_decay", **BETAS)),
    "NAdam": Twin("nadam", _same("lr", "eps", "weight_decay", "momentum_decay", **BETAS),
                  lambda g: {"decoupled": g["decoupled_weight_decay"]}),
    "RAdam": Twin("radam", _same("lr", "eps", "weight_decay", **BETAS),
                  lambda g: {"decoupled": g["decoupled_weight_decay"]}),
    "Adadelta": Twin("adadelta", _same("lr", "rho", "eps", "weight_decay")),
    "Muon": Twin("muon", _same("lr", "weight_decay", "momentum", "nesterov", "eps"), _muon),
    "Rprop": Twin("rprop", _same("lr", etas=("eta_minus", "eta_plus"), step_sizes=("step_min", "step_max"))),
    "ASGD": Twin("asgd", _same("lr", "lambd", "alpha", "t0", "weight_decay")),
    "Adafactor": Twin("adafactor", _same("lr", "beta2_decay", "d", "weight_decay", eps=("eps1", "eps2"))),
    "SparseAdam": Twin("sparse_adam", _same("lr", "eps", **BETAS)),
    "LBFGS": Twin("lbfgs", _same("lr", "tolerance_grad", "tolerance_change"),
                  lambda g: {"max_iter": g["max_iter"], "max_eval": g["max_eval"], "history_size": g["history_size"],
                             "line_search": g["line_search_fn"] or "none"}),
}


@cache
def signature(name: str) -> inspect.Signature:
    """The signature of a class: torch's own where torch has it, else that of the registry; then what only we have."""
    twin = getattr(torch.optim, name, None) if name in TWINS else None
    if twin is None:
        full = _classes.signature(_registry.method(_classes.class_names()[name]))
        parameters = [p for p in full.parameters.values() if p.name != "names"]  # torch: (name, tensor) pairs
        more = [KIND(key, KIND.KEYWORD_ONLY, default=None) for key in MEANINGLESS]
        more += [KIND(key, KIND.KEYWORD_ONLY, default=False) for key in REFUSED]
    else:
        parameters = [p.replace(annotation=KIND.empty) for p in inspect.signature(twin).parameters.values()]
        more = [KIND(key, KIND.KEYWORD_ONLY, default="") for key in ("before", "after")]
        more += [p.replace(annotation=KIND.empty) for p in _classes.common() if p.name != "names"]
    more.append(KIND("ranks", KIND.KEYWORD_ONLY, default=None))
    taken = {p.name for p in parameters}
    return inspect.Signature(parameters + [p for p in more if p.name not in taken])


@cache
def _torch_defaults(name: str) -> dict[str, Any]:
    """What torch's optimizer of that name has in its groups; some of it is no argument of it."""
    shape = (1, 1) if name == "Muon" else (1,)
    return dict(getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(shape))]).defaults)


def hypers_in_torch(name: str) -> frozenset[str]:
    """What torch's optimizer of that name has in its groups."""
    return frozenset(_torch_defaults(name))


def _refuse(name: str, given: dict[str, Any]) -> None:
    if given.get("fused") and given.get("foreach"):
        raise error(ArgumentError, f"{name}: fused and foreach cannot both be True, as in torch; here they change nothing")
    for key, why in REFUSED.items():
        if given.get(key):
            raise error(UnsupportedError, f"{name}: {key}=True: {why}")


# Hyper-parameters of ours that torch calls otherwise, and that are settled when the optimizer is made.
SPELT = {"line_search": "line_search_fn", "adjust_lr": "adjust_lr_fn"}


def _instead(twin: Twin, method: _registry.Method, key: str, value: Any) -> str:
    """What to write for a hyper-parameter of the stage that torch's signature does not have."""
    theirs = next((theirs for theirs, names in twin.shown.items() if key in names), SPELT.get(key))
    if theirs is not None:
        return f"torch's arguments are taken here, of which {theirs!r} stands for {key!r}"
    try:
        written = _sentence.write_stage(method, {key: value})
    except Error:
        written = f"{method.name}({key}=...)"
    return (f"{key!r} is no argument of torch.optim's, which are taken here; "
            f'write thalweg.torch.Optimizer(params, "{written}") for it')


def _start_twin(self: Any, name: str, full: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    twin, mirrored = TWINS[name], inspect.signature(getattr(torch.optim, name)).parameters
    try:
        bound = full.bind(*args, **kwargs)
    except TypeError as problem:
        method = _registry.method(twin.method if isinstance(twin.method, str) else name.lower())
        for key, value in kwargs.items():
            if key not in full.parameters and method.parameter(key) is not None:
                raise TypeError(f"{name}: {_instead(twin, method, key, value)}") from None
            if key not in full.parameters:
                _classes._refuse_name(method, key, value, [*full.parameters])
        raise TypeError(f"{name}: {problem}") from None
    bound.apply_defaults()
    given = bound.arguments
    if isinstance(given["params"], torch.Tensor):
        raise TypeError(f"{name}: params is an iterable of tensors or of dicts, not one tensor: give [tensor]")
    given["params"] = list(listed(given["params"]))  # it may be an iterator, and is looked at twice
    for index, group in enumerate(given["params"]):
        if isinstance(group, dict):
            _groups.check_group(group, f"parameter group {index}")
            if not isinstance(group["params"], torch.Tensor):
                group["params"] = list(group["params"])
    _refuse(name, given)
    if name == "LBFGS" and given["max_eval"] is None:
        given["max_eval"] = given["max_iter"] * 5 // 4
    method = twin.stage(given)
    shown = {key: names for key, names in twin.shown.items() if key in given}
    values: dict[str, Any] = {}
    for key, names in shown.items():
        parts = given[key] if len(names) > 1 else (given[key],)
        if not isinstance(parts, (tuple, list)) or len(parts) != len(names):
            raise error(ArgumentError, f"{name}: {key!r} is a tuple of {len(names)} numbers, not {parts!r}")
        values.update({path: plain(part) for path, part in zip(names, parts)})
    values.update(twin.fixed(given))
    notes = {key: given[key] for key in (*MEANINGLESS, *REFUSED) if key in mirrored}
    fixed = {key: given[key] for key in mirrored if key not in (*shown, *notes, "params")}
    fixed.update({key: value for key, value in _torch_defaults(name).items() if key not in mirrored})
    self._viewed = View(method.name, shown, fixed, notes)
    sentence = _sentence.join(given["before"], _sentence.write_stage(method, values), given["after"])
    options = {p.name: given[p.name] for p in _classes.common() if p.name in given}
    options["ranks"] = given["ranks"]
    Optimizer.__init__(self, given["params"], sentence, **options)
    # Tensors are kept as torch keeps them: schedulers fill them.
    for key in shown:
        if isinstance(given[key], torch.Tensor):
            self.defaults[key] = given[key]
            for group in self.param_groups:
                if not isinstance(group[key], torch.Tensor) and group[key] == plain(given[key]):
                    group[key] = given[key]


def name_in_torch(engine: Any) -> str:
    """What torch.optim calls the optimizer of a sentence; "" where it has none, or there are several."""
    stages = [(name, m) for name, m in engine._stages() if m.kind == "optimizer"]
    if len(stages) != 1:
        return ""
    stage, method = stages[0]
    if method.name == "muon" and engine._get_text(engine._layout[0][0], f"{stage}.momentum_form") != "ema":
        return ""  # its buffer is another multiple
    if method.name == "amsgrad":
        return "Adam"
    return next((name for name in _classes.class_names() if name in TWINS and _classes.class_names()[name] == method.name), "")


def groups_of_torch(self: Optimizer, name: str) -> list[dict[str, Any]]:
    """The param_groups of a state dict of torch.optim's optimizer `name`."""
    engine = self.engine
    stage, method = next((s, m) for s, m in engine._stages() if m.kind == "optimizer")
    twin, groups = TWINS[name], []
    for index, group in enumerate(self.param_groups):
        holder, called = self._place(index)
        where = self._places[index]
        first, stop = (0, 0) if where is None else engine._layout[where][1:]

        def own(path: str) -> Any:
            return holder.get(f"{stage}.{path}", called) if method.parameter(path) is not None else None

        values = dict(_torch_defaults(name))
        for key, names in twin.shown.items():
            if key in values:
                values[key] = own(names[0]) if len(names) == 1 else tuple(own(n) for n in names)
        for key, value in (("amsgrad", method.name == "amsgrad" or own("amsgrad")), ("centered", own("centered")),
                           ("decoupled_weight_decay", method.name == "adamw" or own("decoupled")),
                           ("maximize", engine._options["maximize"])):
            if key in values:
                values[key] = bool(value)
        values.update({key: plain(value) for key, value in group.items() if key != "params" and key in values})
        values.update({key: value for key, value in group.items() if key in ("initial_lr", "param_names", "name")})
        groups.append({**values, "params": [*range(first, stop)]})
    return groups


def make_class(name: str) -> type[Optimizer]:
    """The class called `name`."""
    full, method = signature(name), _registry.method(_classes.class_names()[name])
    mirrors = name in TWINS and hasattr(torch.optim, name)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if mirrors:
            _start_twin(self, name, full, args, kwargs)
            return
        params, sentence, options = _classes.read_call(method, full, args, kwargs)
        _refuse(name, options)
        for key in (*MEANINGLESS, *REFUSED):
            options.pop(key, None)
        Optimizer.__init__(self, params, sentence, **options)

    own = KIND("self", KIND.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = full.replace(parameters=[own, *full.parameters.values()])  # type: ignore[attr-defined]
    return type(
        name,
        (Optimizer,),
        {
            "__init__": __init__,
            "__signature__": full,
            "__doc__": document(name, method, mirrors),
            "__module__": "thalweg.torch",
            "__qualname__": name,
            "method": method.name,
        },
    )


def _as_torch_has_it(name: str, method: _registry.Method) -> _registry.Method:
    """The method with the hyper-parameters that torch's arguments stand for, and torch's defaults."""
    mirrored, defaults = inspect.signature(getattr(torch.optim, name)).parameters, {}
    for key, names in TWINS[name].shown.items():
        if key in mirrored:
            default = mirrored[key].default
            defaults.update(zip(names, default if len(names) > 1 else (default,)))
    kept = (p._replace(default=_sentence.write_value(defaults[p.name])) for p in method.parameters if p.name in defaults)
    return method._replace(parameters=tuple(kept))


def document(name: str, method: _registry.Method, mirrors: bool) -> str:
    """The text of a class."""
    first = f"\n\nArguments and defaults are those of torch.optim.{name}; " if mirrors else "\n\nOf torch's arguments "
    if mirrors:
        method = _as_torch_has_it(name, method)
    return (
        _registry.describe(method)
        + first
        + "foreach and fused change nothing, capturable and differentiable are refused.\n"
        + "Beside them: the options of thalweg.torch.Optimizer (state_dtype, nonfinite, ranks, ...), and\n"
        + '    before, after  further stages of the sentence, as before="clip_global_norm(1.0)", after="ema(0.999)"\n'
    )


def optimizer_class(name: str) -> type[Optimizer] | None:
    """The class of that name, made when it is first looked at; None where no optimizer is called so."""
    spelt = _classes.spelling(name)
    return None if spelt is None else _class_of(spelt)


_class_of = cache(make_class)
