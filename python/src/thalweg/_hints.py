"""What was meant by who comes from elsewhere: hyper-parameters, stages, schedules and classes of other libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Hyper-parameters too far from our names for a search by letters: the first that there is.
HYPER = {
    "learning_rate": ("lr", "peak"), "step_size": ("lr",), "eta": ("lr",), "base_lr": ("lr",),
    "epsilon": ("eps",), "wd": ("weight_decay",), "l2": ("weight_decay",),
    "b1": ("beta1", "momentum"), "b2": ("beta2",), "b3": ("beta3",), "nu": ("beta2",),
    "beta": ("momentum", "beta1"), "mu": ("momentum", "beta1"), "total_steps": ("total",), "warmup_steps": ("warmup",),
    "init_value": ("start", "lr"), "peak_value": ("peak",), "end_value": ("end",), "decay_steps": ("total", "every"),
    "transition_steps": ("total", "every"), "decay_rate": ("gamma",), "T_max": ("total",), "eta_min": ("end",),
}
# Keywords of training loops elsewhere: the stage in front of the rule that they mean.
CLIPPING = {
    **dict.fromkeys(("max_grad_norm", "max_norm", "grad_clip", "gradient_clip", "gradient_clip_val", "clip_grad_norm",
                     "grad_clip_norm", "grad_norm_clip", "clip_norm", "clipnorm", "global_clipnorm"),
                    "clip_global_norm"),
    **dict.fromkeys(("clip_value", "clipvalue", "clip_grad_value", "grad_clip_value"), "clip_value"),
}
RATE = "the rate of the update rule, as in `sgd(lr=0.1)`"
DECAY = "`weight_decay` of the update rule, as in `adamw(weight_decay=0.01)`; behind a rule, `decoupled_weight_decay`"
ROUTE = "a pipeline for each kind of tensor, as in `route(matrix=(muon), other=(adamw))`"
SKIPPED = 'an option beside the sentence, nonfinite="skip": such steps are left out'
SIGN = "`signum(momentum=0)`, which has its rate in it"
# Stages and schedules of Optax and torch: the method that is meant, or (with a blank) what is written in its place.
# Optax's scale_by_x is `x` here, where nothing else is said.
STAGES = {
    "clip": "`clip_value` of every entry, or `clip_global_norm`",
    "clip_by_global_norm": "clip_global_norm", "clip_by_block_rms": "clip_block_rms",
    "adaptive_grad_clip": "agc", "clip_grad_norm": "clip_global_norm", "clip_grad_norm_": "clip_global_norm",
    "clip_grad_value": "clip_value", "clip_grad_value_": "clip_value",
    "scale": RATE, "scale_by_learning_rate": RATE, "scale_by_backtracking_linesearch": "a solver: tw.solver(...)",
    "scale_by_schedule": "a schedule as the rate of the update rule, as in `sgd(lr=cosine(0.1, 1000))`",
    "scale_by_rms": "rmsprop", "scale_by_rss": "adagrad", "scale_by_belief": "adabelief", "scale_by_sign": SIGN,
    "scale_by_stddev": "`rmsprop(centered=true)`, which has its rate in it", "scale_by_trust_ratio": "lamb",
    "scale_by_polyak": "polyak_sgd", "scale_by_optimistic_gradient": "optimistic_sgd",
    "add_decayed_weights": DECAY, "weight_decay": DECAY, "add_noise": "gradient_noise",
    "apply_every": "gradient_accumulate", "MultiSteps": "gradient_accumulate",
    "trace": "the momentum of the update rule, as in `sgd(lr=0.1, momentum=0.9)`",
    "centralize": "gradient_centralization", "zero_nans": SKIPPED, "apply_if_finite": SKIPPED,
    "keep_params_nonnegative": "`project(non_negative)` behind the update rule",
    "masked": ROUTE, "multi_transform": ROUTE, "partition": ROUTE,
    "differentially_private_aggregate": "dp_sgd", "dpsgd": "dp_sgd", "optimistic_gradient_descent": "optimistic_sgd",
    "noisy_sgd": "`gradient_noise | sgd`", "sign_sgd": SIGN, "nadamw": "nadam", "adamaxw": "adamax",
    "constant_schedule": "constant", "linear_schedule": "linear", "polynomial_schedule": "polynomial",
    "exponential_decay": "exponential", "cosine_decay_schedule": "cosine", "sgdr_schedule": "cosine_restarts",
    "warmup_cosine_decay_schedule": "warmup_cosine", "warmup_constant_schedule": "warmup",
    "warmup_exponential_decay_schedule": "`warmup(100, exponential(0.1, gamma=0.99))`",
    "piecewise_constant_schedule": "step_decay", "join_schedules": "join", "cosine_onecycle_schedule": "one_cycle",
    "linear_onecycle_schedule": "`one_cycle(lr=0.1, total=1000, anneal=linear)`",
    "CosineAnnealingLR": "cosine", "CosineAnnealingWarmRestarts": "cosine_restarts", "ConstantLR": "constant",
    "ExponentialLR": "exponential", "LinearLR": "linear", "MultiStepLR": "step_decay", "OneCycleLR": "one_cycle",
    "PolynomialLR": "polynomial", "ReduceLROnPlateau": "reduce_on_plateau", "SequentialLR": "join",
    "StepLR": "step_decay", "step": "step_decay", "multistep": "step_decay", "cosine_annealing": "cosine",
    "AveragedModel": "swa",
}
# What ends a message about a method that there is not, where no name is near.
KINDS = ("method|optimizer|transform|update|perturbation|aggregator|average|schedule|regularizer|constraint|objective|"
         "weighting|diagnostic|solver")
SEARCH = "; `python -m thalweg methods WORD` lists those that have a word"
UNKNOWN = r"no (?:method|optimizer|schedule|transform|update|average) `(\w+)`(?: \(did you mean `(\w+)`\?\))?"
# What is meant rather than another name that is as near, the most common first.
COMMON = (
    "adamw", "adam", "sgd", "muon", "lion", "rmsprop", "adagrad", "lamb", "adafactor", "nadam", "radam", "adamax",
    "soap", "shampoo", "lbfgs", "sam", "ema", "swa", "clip_global_norm", "gradient_accumulate", "lookahead", "cosine",
    "linear", "warmup_cosine", "warmup", "one_cycle", "constant", "exponential", "step_decay", "polynomial",
)
# What stands before a value in parentheses: the method, and the name of the value.
OPENED = re.compile(r"(\w+)\s*\((?:[^()]|\([^()]*\))*?(\w+)\s*=\s*\(\s*$")


def familiar(name: str, known: Iterable[str]) -> str | None:
    """The hyper-parameter among `known` ("lr", "adamw.lr") that goes by `name` in other libraries, or None."""
    by_name: dict[str, str] = {}
    for path in known:
        by_name.setdefault(path.rpartition(".")[2], path)
    return next((by_name[ours] for ours in HYPER.get(name, ()) if ours in by_name), None)


def clipping(keyword: str, value: Any) -> str:
    """The stage that a keyword of clipping means, as it is written; "" for another keyword."""
    number = float(value) if isinstance(value, (int, float)) and value > 0 else 1.0
    return f"{CLIPPING[keyword]}({number!r})" if keyword in CLIPPING else ""


def with_hint(message: str) -> str:
    """The message with what was meant, where somebody wrote what another library, or Python, has in its place."""
    first, line, rest = message.partition("\n")
    if first.startswith("expected a method name at position"):
        return first + _of_parentheses(rest) + line + rest
    if first == "`ema` must stand after the update rule":  # Optax's is of the gradients
        return f"{first}; the average of the gradients is `gradient_ema`{line}{rest}"
    if found := re.search(UNKNOWN, first):
        hint = _of_stage(found[1]) or _of_common(found[1], found[2], found[0].split()[1])
        if hint:
            return first.replace(found[0], found[0].partition(" (")[0] + hint, 1) + line + rest
    if found := re.search(rf"\bno ({KINDS}) `(\w+)`$", first):
        return first + (_of_part(found[2], found[1]) or _of_stage(found[2]) or SEARCH) + line + rest
    elsewhere = r"(?:it cannot be a stage of a pipeline|an? (\w+) is wanted here)"
    if found := re.search(rf"`(\w+)` is an? (\w+); {elsewhere}$", first):
        return first + _of_place(found[1], found[2], found[3]) + line + rest
    if re.fullmatch(r"(gradient|product|participant's parameter) \d+.* and parameter \d+.* share memory", first):
        return f"{first}; opt.release_gradients() lets go of gradients of a step that is over" + line + rest
    if re.fullmatch(r"\w+: `\w+` is given twice", first):
        return f"{first}: a value without a name goes to the first place, whatever stands before it" + line + rest
    if found := re.search(r"must be a number.*, got \"([-+.\de_]+)\"$", first):
        return f"{first}: write {found[1]} without quotes" + line + rest
    if found := re.match(r"(\w+): `(\w+)` must be .*, got ((\w+)(?:\(.*\))?)$", first):
        hint = _of_lines(found[1], found[2], found[3]) or _of_held(found[1], found[3], found[4])
        return first + hint + line + rest
    if found := re.fullmatch(r"(\w+) takes at most \d+ arguments, got \d+", first):
        return first + _of_surplus(found[1], rest) + line + rest
    found = re.search(r"(no hyper-parameter `(\w+)`)(?: \(did you mean `\w+`\?\))?; (?:it has|there are): (.*)", first)
    if found is None:
        return message
    names = found[3].split(", ")
    if found[2] == "betas" and {"beta1", "beta2"} <= {*names}:
        values = re.search(r"betas\s*=\s*\[([^\]]*)\]", rest)
        hint = f" (write {_betas(values[1] if values else '')})"
    elif "did you mean" not in first and (near := familiar(found[2], names) or _beginning(found[2], names)):
        hint = f" (did you mean `{near}`?)"
    else:
        return message
    return first[: found.end(1)] + hint + first[found.start(3) - len("; it has: ") :] + line + rest


def _of_stage(name: str) -> str:
    """The hint for a stage or a schedule that there is not; "" where nothing is known of it."""
    from . import _registry
    from ._classes import class_names  # (which need the module of the errors)

    meant = STAGES.get(name) or class_names().get(name)
    if meant is None and name.startswith("scale_by_"):
        meant = name.removeprefix("scale_by_")
        meant = meant if meant in _registry.names("optimizer") else None
    if meant is None:
        return ""
    return f" (here it is {meant})" if " " in meant or "`" in meant else f" (did you mean `{meant}`?)"


def _beginning(word: str, names: Iterable[str]) -> str | None:
    """The name of which `word` is the beginning, if it is one of three letters and there is one alone."""
    found = [name for name in names if name.startswith(word)]
    return found[0] if len(word) > 2 and len(found) == 1 else None


def _of_part(word: str, kind: str) -> str:
    """The hint for a word that names of methods of that kind begin with; "" where none does."""
    from . import _registry

    found = [m.name for m in _registry.methods(None if kind == "method" else kind) if m.name.startswith(word + "_")]
    if len(word) < 3 or not 0 < len(found) <= 4:
        return ""
    return f" (did you mean {' or '.join(f'`{name}`' for name in found)}?)"


def _of_place(name: str, kind: str, wanted: str | None = None) -> str:
    """The hint for a method of that kind in a place for another; "" where it has none of its own."""
    from . import _registry
    from ._classes import ALONE

    known = _registry.by_name()
    twins = [t for t in (f"{name}_penalty", f"{name}_ball") if t in known and known[t].kind == wanted]
    if twins:
        return f": `{twins[0]}` is one"
    if (kind, wanted) == ("constraint", "regularizer"):
        return f"; a set stands in `project({name})`, behind the rule"
    if (kind, wanted) == ("regularizer", "constraint"):
        return f"; a penalty stands in `prox({name})`, `penalty(...)` or `decoupled(...)`"
    if kind in ALONE:
        return f": thalweg.{kind}({name!r}) makes one"
    return f': thalweg.Optimizer(params, "{name}") makes one' if kind == "optimizer" else ""


def _of_held(method: str, text: str, name: str) -> str:
    """The hint for a method that was given by its place, where another hyper-parameter takes one of its kind; or ""."""
    from . import _registry

    known = _registry.by_name()
    if method not in known or name not in known:
        return ""
    takes = next((p.name for p in known[method].parameters if p.type == known[name].kind), None)
    if takes is None and known[name].kind == "optimizer" and known[method].kind in ("update", "average"):
        return f"; it stands behind the rule: {text} | {method}"
    return f": write {takes}={text}" if takes else ""


def _of_lines(method: str, name: str, value: str) -> str:
    """The hint for lines of a matrix that are called rows or columns, where an axis goes by its number; or ""."""
    from . import _registry

    known = _registry.by_name().get(method)
    parameter = known.parameter(name) if known else None
    if parameter is None or parameter.type != "integer" or not parameter.meaning.startswith("the axis of the "):
        return ""
    axis = {"row": 1, "rows": 1, "col": 0, "cols": 0, "column": 0, "columns": 0}.get(value.lower())
    return "" if axis is None else f"; each {'row' if axis else 'column'} of a matrix by itself: {name}={axis}"


def _of_surplus(method: str, shown: str) -> str:
    """The hint for more settings than a method has: what it has, and (at the caret) which it does not; or ""."""
    from . import _registry, _sentence

    known = _registry.by_name().get(method)
    if known is None:
        return ""
    names = [p.name for p in known.parameters]
    sentence, _, caret = shown.partition("\n")
    inside = _sentence.inside(sentence[len(caret) - 1 :].partition("(")[2], 0)
    held, *others = [written for name, written in _sentence.arguments(inside) if name is None] or [""]
    if len(names) == 1 and others and known.parameters[0].type in ("regularizer", "constraint"):
        return f": write {method}({held}({', '.join(others)}))"
    stray = [f"`{name}`" for name, _ in _sentence.arguments(inside) if name and name not in names]
    return f"; it has: {', '.join(names) or 'none'}" + (f", and no {', '.join(stray)}" if stray else "")


def _of_common(name: str, suggested: str | None, kind: str) -> str:
    """The hint for a common name that is as near to `name` as the library's suggestion; "" where there is none."""
    if suggested is None:
        return ""
    from . import _thalweg

    kinds = dict(_thalweg._names())
    fits = [known for known in COMMON if kind in ("method", kinds.get(known))]
    best = min([*fits, suggested], key=lambda known: _distance(name.lower(), known))
    return f" (did you mean `{best}`?)"


def _distance(a: str, b: str) -> int:
    """The number of slips between two names: a letter wrong, missing or too many, or two neighbours exchanged."""
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a):
        new = [i + 1]
        for j, y in enumerate(b):
            slips = min(row[j] + (x != y), row[j + 1] + 1, new[j] + 1)
            if i and j and (x, a[i - 1]) == (b[j - 1], y):
                slips = min(slips, before[j - 1] + 1)
            new.append(slips)
        before, row = row, new
    return row[-1]


def _of_parentheses(shown: str) -> str:
    """The hint for numbers in parentheses, which are for pipelines, at the caret under a sentence; or ""."""
    sentence, _, caret = shown.partition("\n")
    at = len(caret) - 1
    opened = OPENED.search(sentence[:at])
    values = re.match(r"[-+\d.e_,\s]+(?=\))", sentence[at:])
    if opened is None or values is None:
        return ""
    from . import _registry

    method, name = _registry.by_name().get(opened[1]), opened[2]
    numbers = [part.strip() for part in values[0].split(",") if part.strip()]
    if name == "betas" and not (method and method.parameter("betas")):
        return f"; write {_betas(values[0])}"
    if len(numbers) == 1 and "," not in values[0]:
        return f"; write {name}={numbers[0]}"
    return f"; a list is written {name}=[{', '.join(numbers)}]"


def _betas(values: str) -> str:
    """betas as they are written in a sentence."""
    numbers = [part.strip() for part in values.split(",") if part.strip()] or ["...", "..."]
    return ", ".join(f"beta{k + 1}={x}" for k, x in enumerate(numbers))
