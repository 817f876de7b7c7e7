"""A class for every optimizer of the library: AdamW(params, lr=1e-3) writes the sentence "adamw(lr=0.001)"."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from . import _registry, _sentence
from ._errors import ArgumentError, Error, UnknownNameError, error
from ._groups import beta_names
from ._hints import STAGES, clipping
from ._optimizer import Optimizer

# Spellings that capitalising each word would miss.  Words, or whole names.
SPELLINGS = {
    "a_dog": "ADoG",
    "acprop": "ACProp",
    "adabelief": "AdaBelief",
    "adabound": "AdaBound",
    "adahessian": "AdaHessian",
    "adalomo": "AdaLomo",
    "adamp": "AdamP",
    "adamuon": "AdaMuon",
    "adamw": "AdamW",
    "ademamix": "AdEMAMix",
    "adopt": "ADOPT",
    "aggmo": "AggMo",
    "ai": "AI",
    "amsgrad": "AMSGrad",
    "asgd": "ASGD",
    "bc": "BC",
    "came": "CAME",
    "cbo": "CBO",
    "cg": "CG",
    "cm": "CM",
    "cma_es": "CMAES",
    "coap": "COAP",
    "dadapt": "DAdapt",
    "dct": "DCT",
    "diffgrad": "DiffGrad",
    "diloco": "DiLoCo",
    "dlrt": "DLRT",
    "dog": "DoG",
    "dowg": "DoWG",
    "dp": "DP",
    "egn": "EGN",
    "fedopt": "FedOpt",
    "fosi": "FOSI",
    "ftrl": "FTRL",
    "galore": "GaLore",
    "gd": "GD",
    "gda": "GDA",
    "gr": "GR",
    "grokadamw": "GrokAdamW",
    "harpg": "HARPG",
    "kfac": "KFAC",
    "kl": "KL",
    "lamb": "LAMB",
    "laprop": "LaProp",
    "lars": "LARS",
    "lbfgs": "LBFGS",
    "lomo": "LOMO",
    "lra": "LRA",
    "madgrad": "MADGRAD",
    "mars": "MARS",
    "mezo": "MeZO",
    "mfac": "MFAC",
    "momo": "MoMo",
    "nadam": "NAdam",
    "ngd": "NGD",
    "nigt": "NIGT",
    "normuon": "NorMuon",
    "novograd": "NovoGrad",
    "nupi": "NuPI",
    "o2nc": "O2NC",
    "oasis": "OASIS",
    "omd": "OMD",
    "optex": "OptEx",
    "polargrad": "PolarGrad",
    "proxskip": "ProxSkip",
    "psgd": "PSGD",
    "qhadam": "QHAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "saga": "SAGA",
    "sania": "SANIA",
    "sara": "SARA",
    "sarah": "SARAH",
    "scaffold": "SCAFFOLD",
    "sga": "SGA",
    "sgd": "SGD",
    "sgdm": "SGDM",
    "sgdp": "SGDP",
    "sgld": "SGLD",
    "singd": "SINGD",
    "sm3": "SM3",
    "snsm": "SNSM",
    "soap": "SOAP",
    "spider": "SPIDER",
    "spsa": "SPSA",
    "storm": "STORM",
    "svrg": "SVRG",
    "tdlrt": "TDLRT",
    "u_dog": "UDoG",
    "uap": "UAP",
    "vip": "VIP",
    "vr": "VR",
    "xgd": "XGD",
    "xmat": "XMat",
    "zo": "ZO",
}

# What stands alone has a function of the package by the name of its kind.
ALONE = ("constraint", "diagnostic", "objective", "regularizer", "schedule", "solver", "weighting")


@cache
def common() -> tuple[inspect.Parameter, ...]:
    """The options of Optimizer, which every class has."""
    parameters = inspect.signature(Optimizer.__init__).parameters.values()
    return tuple(p for p in parameters if p.kind is p.KEYWORD_ONLY)


def class_name(method: str) -> str:
    """The class of an optimizer: adamw is AdamW, schedule_free_sgd is ScheduleFreeSGD."""
    if method in SPELLINGS:
        return SPELLINGS[method]
    return "".join(SPELLINGS.get(word, word[:1].upper() + word[1:]) for word in method.split("_"))


def has_betas(method: _registry.Method) -> bool:
    return method.parameter("beta1") is not None and method.parameter("beta2") is not None


def signature(method: _registry.Method) -> inspect.Signature:
    """(params, the hyper-parameters in the library's order, *, betas, before, after, the options of Optimizer)."""
    kind = inspect.Parameter
    own = {p.name for p in method.parameters}
    positional = [kind("params", kind.POSITIONAL_OR_KEYWORD)]
    keyword_only = []
    defaulted = False
    for p in method.parameters:
        defaulted |= not p.required
        default = kind.empty if p.required else _registry.literal(p)
        if p.required and defaulted:
            keyword_only.append(kind(p.name, kind.KEYWORD_ONLY))
        else:
            positional.append(kind(p.name, kind.POSITIONAL_OR_KEYWORD, default=default))
    if has_betas(method) and "betas" not in own:
        keyword_only.append(kind("betas", kind.KEYWORD_ONLY, default=None))
    for name in ("before", "after"):
        if name not in own:
            keyword_only.append(kind(name, kind.KEYWORD_ONLY, default=""))
    keyword_only += [p for p in common() if p.name not in own]
    return inspect.Signature(positional + keyword_only)


def read_call(
    method: _registry.Method, full: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any],
) -> tuple[Any, str, dict[str, Any]]:
    """The parameters, the sentence and the other options of a call of a method's class, whose signature is `full`."""
    own = {p.name for p in method.parameters}
    try:
        given = full.bind(*args, **kwargs).arguments
    except TypeError as problem:
        for name in kwargs:
            if name not in full.parameters:
                _refuse_name(method, name, kwargs[name], [*full.parameters])
        raise TypeError(f"{class_name(method.name)}: {problem}") from None
    values = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    betas = rest.pop("betas", None)
    if betas is not None:
        for name, beta in zip(beta_names(betas), betas):
            if name in values:
                raise error(ArgumentError, f"{class_name(method.name)}: both betas and {name} are given")
            values[name] = beta
    stage = _sentence.write_stage(method, values)
    sentence = _sentence.join(rest.pop("before", ""), stage, rest.pop("after", ""))
    return rest.pop("params"), sentence, rest


def make_class(method: _registry.Method) -> type[Optimizer]:
    """The class of one optimizer method."""
    full = signature(method)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        params, sentence, options = read_call(method, full, args, kwargs)
        Optimizer.__init__(self, params, sentence, **options)

    __init__.__signature__ = full.replace(  # type: ignore[attr-defined]
        parameters=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *full.parameters.values()]
    )
    name = class_name(method.name)
    return type(
        name,
        (Optimizer,),
        {
            "__init__": __init__,
            "__signature__": full,
            "__doc__": document(method),
            "__module__": "thalweg",
            "__qualname__": name,
            "method": method.name,
        },
    )


def document(method: _registry.Method) -> str:
    return (
        _registry.describe(method)
        + "\n\nParameters\n    params, and the options of thalweg.Optimizer (state_dtype, nonfinite, ...)\n"
        + '    before, after  further stages of the sentence, as before="clip_global_norm(1.0)", after="ema(0.999)"\n'
        + ("    betas          (beta1, beta2) or (beta1, beta2, beta3)\n" if has_betas(method) else "")
    )


def _refuse_name(method: _registry.Method, name: str, value: Any, known: list[str]) -> None:
    """Raises the library's UnknownNameError for a hyper-parameter that the method does not have, with the nearest name
    of all arguments of the class."""
    from . import _thalweg

    if name in ("foreach", "fused", "capturable", "differentiable"):
        raise TypeError(f"{class_name(method.name)}: {name!r} is torch's: thalweg.torch.{class_name(method.name)} takes it")
    try:
        written = _sentence.write_value(value)
    except Error:
        written = "..."
    try:
        # Names alone are looked at, and whatever stands for a value may not be one.
        _thalweg.Optimizer()._create(f"{method.name}({name}=0)", 1, 0, 0, 0, 0, 0, 1.0, 0)
    except UnknownNameError as problem:
        text = str(problem).replace(f"\n  {method.name}({name}=0)\n", f"\n  {method.name}({name}={written})\n")
        import difflib

        if stage := clipping(name, value):
            place = f"gradients are clipped in front of the rule, before=\"{stage}\""
            first, line, rest = text.partition("\n")
            raise error(UnknownNameError, f"{first}; {place}{line}{rest}") from None
        near = difflib.get_close_matches(name, known, 1)
        if near and "did you mean" not in text:
            text = text.replace(f"`{name}`", f"`{name}` (did you mean `{near[0]}`?)", 1)
        raise error(UnknownNameError, text) from None


def suggestion(name: str, names: list[str]) -> str:
    """What an attribute of the package that there is not may have meant, in words; "" where nothing is near."""
    import difflib

    known = _registry.by_name().get(STAGES.get(name, name.lower()))
    if known is not None and known.kind != "optimizer":
        place = "a stage of a sentence, as in thalweg.Optimizer(params, sentence)"
        if known.kind in ALONE:
            place = f"thalweg.{known.kind}({known.name!r})"
        if known.kind == "schedule":
            place += f', or a value in a sentence, as in "sgd(lr={known.name}(...))"'
        return f"; {known.name} is {'an' if known.kind[0] in 'aeiou' else 'a'} {known.kind}: {place}"
    by_letters = {n.lower(): n for n in names}
    wanted = class_name(known.name) if known else name
    near = difflib.get_close_matches(wanted.lower(), by_letters, 1 if known else 3)
    near.sort(key=lambda n: not name.lower().startswith(n))
    return f"; did you mean {' or '.join(repr(by_letters[n]) for n in near)}?" if near else ""


@cache
def class_names() -> dict[str, str]:
    """The names of the classes of all optimizers, and the methods that they stand for."""
    return {class_name(name): name for name in _registry.names("optimizer")}


def spelling(name: str) -> str | None:
    """The name of a class as it is spelt now (Adamp was what AdamP is); None where no optimizer is called so."""
    if name in class_names():
        return name
    return {n.lower(): n for n in class_names()}.get(name.lower()) if name[:1].isupper() else None


def optimizer_class(name: str) -> type[Optimizer] | None:
    """The class of that name, made when it is first looked at; None where no optimizer is called so."""
    spelt = spelling(name)
    return None if spelt is None else _class_of(class_names()[spelt])


@cache
def _class_of(method: str) -> type[Optimizer]:
    return make_class(_registry.method(method))
