"""Examples of a method in Python and in C, written from what the registry says of it.

The Python ones run: `python_example` tries what it wrote on small arrays, and gives only the call where no input that
can be made from the declared shapes is one that the method takes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from functools import cache
from types import FrameType

import numpy as np

import thalweg

from .. import _sentence
from .._classes import class_name
from .._registry import Input, Method, Parameter

# Where each kind may stand in a sentence; {} is the stage itself.
PLACES = {
    "optimizer": ("{}",),
    "transform": ("{} | sgd(lr=0.1)",),
    "perturbation": ("{} | sgd(lr=0.1)",),
    "aggregator": ("{} | sgd(lr=0.1)",),
    "update": ("sgd(lr=0.1) | {}",),
    "average": ("sgd(lr=0.1) | {}",),
    "mask": ("sgd(lr=0.1) | {}",),
    "schedule": ("sgd(lr={})",),
    "routing": ("{}",),
    "regularizer": ("sgd(lr=0.1) | prox({})", "penalty({}) | sgd(lr=0.1)"),
    "constraint": ("sgd(lr=0.1) | project({})", "sgd(lr=0.1) | manifold({})"),
}
# Stages that need more than a value for what is required.
STAGES = {
    "affine": "affine(A=[1, 1, 1], b=[0.5])",
    "batch_ladder": "batch_ladder(boundaries=[100, 200], batches=[32, 64, 128], lr=0.1)",
    "coordinate_clip": "coordinate_clip(fraction=0.1)",
    "dp_noise_for_epsilon": "dp_noise_for_epsilon(epsilon=2, rate=0.01, delta=1e-5)",
    "halfspace": "halfspace(a=[1, 1, 1], b=0.5)",
    "hyperplane": "hyperplane(a=[1, 1, 1], b=0.5)",
    "join": "join(schedules=[constant(lr=0.1), cosine(lr=0.1, total=100)], boundaries=[50])",
    "manifold": "manifold(on=stiefel)",
    "prox_cross_entropy": "prox_cross_entropy(target=[1, 0, 0])",
    "gradient_noise_scale": "gradient_noise_scale(b_small=32, b_big=256)",
    "riemannian_cg": "riemannian_cg(set=sphere)",
    "rho_schedule": "rho_schedule(lr=cosine(lr=0.1, total=100))",
    "route": "route(matrix=(muon(lr=0.02)), other=(adamw(lr=0.001)))",
    "xgd": "xgd(lr=0.1, q=[0.5, 0.5])",
}
# Values by name that one would write; other required hyper-parameters get any value that fits.
VALUES = {
    "lr": "0.1", "peak": "0.1", "total": "1000", "warmup": "100", "warmup_steps": "100", "rank": "2",
    "noise_multiplier": "1.1", "expected_batch_size": "64", "batch_size": "64", "clip": "1.0", "max_norm": "1.0",
    "max_value": "1.0", "delta": "1e-5", "n_byzantine": "0",
}
# A solver that asks more often than this does not get where it goes on the arrays of an example.
MOST_ANSWERS = 5000
# Inputs that not every array will do for: by method and name; {} are the extents.
SIGNS, IDENTITY, MASSES = "2 * rng.integers(0, 2, {}) - 1", "np.eye(4)", "np.full(4, 0.25)"
TRANSPORTS = ("class_ot", "mirror_sinkhorn", "ot_sinkhorn", "round_transport", "sinkhorn", "sinkhorn_newton_sparse")
ARRAYS = {
    ("softmax_cross_entropy", "t"): "None",
    ("focal_loss", "t"): "None",
    ("hinge", "y"): SIGNS,
    ("sequential_max_margin", "labels"): SIGNS,
    ("checkered_regression", "y"): SIGNS,
    ("cosine_embedding", "t"): SIGNS,
    ("convex_relu_objective", "patterns"): "rng.integers(0, 2, {}).astype(float)",
    ("binomial_ure", "n"): "np.full({}, 4)",
    ("compound_binomial", "n"): "np.full({}, 4)",
    ("compound_binomial", "x"): "rng.integers(0, 5, {}).astype(float)",
    ("inverse_root", "a"): IDENTITY,
    ("rcd", "lipschitz"): "np.ones({})",
    ("armijo", "dphi0"): "-1.0",
    ("strong_wolfe", "dphi0"): "-1.0",
    ("projection_dpp", "u"): IDENTITY,
    ("gaussian_kl_full", "s0"): IDENTITY,
    ("gaussian_kl_full", "s1"): IDENTITY,
    ("local_ode_reg", "times"): "np.linspace(0, 1, 4)",
    ("dsgd", "points0"): "np.ones((2, 4))",
    ("stn_range_map", "low"): "np.zeros(4)",
    ("stn_range_map", "high"): "np.ones(4)",
    **{(name, side): MASSES for name in TRANSPORTS for side in "ab"},
}


def sample(parameter: Parameter) -> str:
    """A value that a required hyper-parameter takes, as a sentence writes it."""
    if parameter.type == "pipeline":
        return "(sgd(lr=0.1))"
    if parameter.type == "regularizer":
        return "l1(0.001)"
    if parameter.type == "constraint":
        return "l2_ball(1)"
    if parameter.type == "schedule":
        return "constant(lr=0.1)"
    if parameter.type == "choice":
        return parameter.choices[0]
    if parameter.type == "flag":
        return "false"
    if parameter.type == "list":
        return "[0.5, 0.25]"
    low = parameter.min if math.isfinite(parameter.min) else 0.0
    high = parameter.max if math.isfinite(parameter.max) else low + 4.0
    if parameter.type == "integer":
        return str(int(min(max(math.ceil(low) + 1, 2), math.floor(high))))
    return repr(low + (high - low) * (0.025 if high - low > 1 else 0.5))


def stage(m: Method) -> str:
    """The method as one stage, with a value for all that it requires."""
    if m.name in STAGES:
        return STAGES[m.name]
    return _sentence.write_stage(m, _required(m))


def _required(m: Method) -> dict[str, str]:
    """A value for each hyper-parameter that the method requires."""
    return {p.name: VALUES.get(p.name, sample(p)) for p in m.parameters if p.required}


@cache
def sentence(m: Method) -> str:
    """A whole sentence with the method in it, the first of its kind's places that it fits; "" where it fits none."""
    places = PLACES.get(m.kind, ())
    return next((s for s in (place.format(stage(m)) for place in places) if len(places) == 1 or _reads(s)), "")


@cache
def shape(m: Method) -> tuple[int, ...]:
    """The shape of a parameter that the method takes in its example: (4, 3), or (3,) where that does not fit."""
    return next((s for s in ((4, 3), (3,), (4, 4), (4, 2), (8, 8)) if _reads(sentence(m), s)), (4, 3))


def _reads(text: str, extents: tuple[int, ...] = (4, 3)) -> bool:
    try:
        thalweg.Optimizer([np.zeros(extents, np.float32)], text).close()
    except thalweg.Error:
        return False
    return True


@cache
def state_bytes(m: Method) -> float | None:
    """Bytes of state for each element of a float32 matrix of 64 x 64; None for what stands in no sentence."""
    text, w = sentence(m), np.zeros((64, 64), np.float32)
    if not text:
        return None
    try:
        with thalweg.Optimizer([w], text) as opt:
            return opt.memory_report().total / w.size
    except thalweg.Error:
        return None


@cache
def watched(m: Method) -> tuple[str, ...]:
    """The numbers that opt.observe tells the method, which its sentence (with the defaults) names where it is told
    another; the loss that it asks for in its requests among them."""
    if not sentence(m):
        return ()
    with thalweg.Optimizer([np.zeros(shape(m), np.float32)], sentence(m)) as opt:
        try:
            opt.observe("nothing of this name", 1.0)
        except thalweg.UnknownNameError as problem:
            return tuple(dict.fromkeys(re.findall(r"`(\w+)`", str(problem))))
    return ()


# ---- Python

ANSWERS = {
    "hessian_vector": ("request.answer(request.probe)", "the Hessian of 0.5 |w|^2 is the identity"),
    "sample_gradients": ("request.answer_samples([np.stack([w, w])])", "two samples"),
    "activations": ("request.answer_matrix(x, d)", "inputs of the layer, gradients behind it"),
    "logit_derivatives": ("request.answer_matrix(x @ request.probe[0].T, x @ w.T)", "along the probe, and the logits"),
    "participant": ("request.answer([w + 0.1 * (request.index + 1)])", "the parameters of participant `index`"),
    "task_gradient": ("request.answer([w + request.index], loss)", "one gradient a task"),
}


def _optimizer_example(m: Method) -> str:
    """An optimizer, or a stage of one, at work on 0.5 |w|^2."""
    lines = ["import numpy as np", "import thalweg as tw", "",
             f"w = np.random.default_rng(0).standard_normal({shape(m)}).astype(np.float32)"]
    if m.kind == "optimizer" and m.name not in STAGES:
        given = [f"{name}={_python(value)}" for name, value in _required(m).items()]
        lr = m.parameter("lr")
        if lr is not None and not lr.required and lr.default != "none":
            given.insert(0, f"lr={lr.default}")
        make = f"tw.{class_name(m.name)}({', '.join(['[w]', *given])})"
    else:
        make = f'tw.Optimizer([w], "{sentence(m)}")'
    kinds = _kinds_asked(m) | set(m.requests)
    if {"activations", "logit_derivatives"} & kinds:
        rows, columns = shape(m)[0], shape(m)[-1]
        lines.append(f"x, d = np.ones((8, {columns}), np.float32), np.full((8, {rows}), 0.1, np.float32)")
    lines += [f"opt = {make}", "for _ in range(10):"]
    lines += [f'    opt.observe("{what}", {_observation(what)})' for what in _told(m)]
    if not m.requests and kinds <= {"gradient"} and not _asks_again(m):
        lines.append("    opt.step([w.copy()])                  # the gradient of 0.5 |w|^2")
        return "\n".join(lines)
    lines += ["    for request in opt.requests():            # as often as the method asks",
              "        loss = 0.5 * float((w * w).sum())"]
    branch = "if"
    for kind in sorted(kinds & set(ANSWERS)):
        answer, why = ANSWERS[kind]
        lines += [f'        {branch} request.kind == "{kind}":', f"            {answer}  # {why}"]
        branch = "elif"
    plain = "request.answer(None, loss)" if kinds == {"loss"} else "request.answer([w.copy()], loss)"
    if branch == "if":
        lines.append(f"        {plain}")
    elif kinds - set(ANSWERS):
        lines += ["        else:", f"            {plain}"]
    return "\n".join(lines)


def _told(m: Method) -> list[str]:
    """What an example tells the method: not the loss, which answers its requests."""
    return [what for what in watched(m) if what != "loss"]


def _observation(what: str) -> float:
    """A number for what a method wants to be told."""
    return {"sample": 0, "batch_size": 64}.get(what, 0.5)


def _python(text: str) -> str:
    """A value of a sentence as Python writes it."""
    if re.fullmatch(r"[-+0-9.e\[\], ]*", text):
        return text
    return {"true": "True", "false": "False", "none": "None"}.get(text, repr(text))


@cache
def _asked(m: Method) -> tuple[tuple[str, int], ...]:
    """(kind, pass) of the requests of twelve steps of its sentence, answered with what fits."""
    extents = shape(m)
    w = np.random.default_rng(0).standard_normal(extents).astype(np.float32)
    x, d = np.ones((8, extents[-1]), np.float32), np.full((8, extents[0]), 0.1, np.float32)
    seen = []
    try:
        opt = thalweg.Optimizer([w], sentence(m))
        for _ in range(12):
            for what in _told(m):
                opt.observe(what, _observation(what))
            for request in opt.requests():
                seen.append((request.kind, request.pass_))
                if request.kind == "sample_gradients":
                    request.answer_samples([np.stack([w, w])])
                elif request.kind == "activations":
                    request.answer_matrix(x, d)
                elif request.kind == "logit_derivatives":
                    request.answer_matrix(x @ request.probe[0].T, x @ w.T)
                else:
                    answer = request.probe[0] if request.kind == "hessian_vector" else w
                    request.answer([answer.copy()], 0.5 * float((w * w).sum()))
    except thalweg.Error:
        pass  # what was asked until then is what there is to see
    return tuple(seen)


def _kinds_asked(m: Method) -> set[str]:
    return {kind for kind, _ in _asked(m)}


def _asks_again(m: Method) -> bool:
    """Whether a step asks more than once."""
    return any(number > 0 for _, number in _asked(m))


def _axes_of(i: Input) -> list[str]:
    return [axis.strip() for axis in i.shape.strip("()").split(",") if axis.strip()]


def _extents(i: Input, size: int = 4) -> tuple[int, ...]:
    """Extents for a declared shape: 4 for each named axis, (4, 4) for "..."."""
    found: list[int] = []
    for axis in _axes_of(i):
        found += [size, size] if axis == "..." else [int(axis)] if axis.isdigit() else [size]
    return tuple(found)


def _array(i: Input) -> str:
    extents = _extents(i)
    if not extents:
        return "1" if i.integer else "0.5"
    return f"rng.integers(0, 2, {extents})" if i.integer else f"rng.random({extents}) + 0.1"


def _inputs(m: Method, optional: bool = False) -> list[Input]:
    return [i for i in m.inputs if not i.result and (optional or not i.optional)]


def _call_example(m: Method, optional: bool = False, without: frozenset[str] = frozenset()) -> str:
    """An objective, a weighting, a diagnostic, a solver: named arrays in, results out.

    optional  the inputs that may be left out are there too
    without   requests of a solver that get no answer
    """
    inputs = _inputs(m, optional)
    lines = ["import numpy as np", "import thalweg as tw", "", "rng = np.random.default_rng(0)"]
    lines += [f"{i.name} = {ARRAYS.get((m.name, i.name), _array(i)).format(_extents(i))}" for i in inputs]
    given = ", ".join(f"{i.name}={i.name}" for i in inputs)
    if m.kind == "solver":
        return "\n".join([*lines, *_solver_lines(m, given, without)])
    if m.kind == "objective":
        lines.append(f'value, gradients = tw.objective("{stage(m)}").value_and_grad({given})')
    else:
        lines.append(f'found = tw.{m.kind}("{stage(m)}")({given})')
    return "\n".join(lines)


def _solver_lines(m: Method, given: str, without: frozenset[str]) -> list[str]:
    """A run; what it asks for is answered on 0.5 |x|^2, where that is an answer."""
    lines, names = [], []
    for ask in m.asks:
        if ask.name in without:
            continue
        shown = ", ".join(i.name for i in ask.given)
        parts = [_answer_of(i, ask.given) for i in ask.wanted]
        lines += [f"def {ask.name}({shown}):  # {ask.meaning}", f"    return {', '.join(parts)}"]
        names.append(f"{ask.name}={ask.name}")
    call = ", ".join(filter(None, [given, *names]))
    return [*lines, f'result = tw.solver("{stage(m)}").run({call})']


def _answer_of(wanted: Input, given: tuple[Input, ...]) -> str:
    """The gradient of 0.5 |x|^2 where the shape is that of a given array, its value where a number is wanted."""
    like = next((i for i in given if i.shape == wanted.shape and _axes_of(i)), None)
    if like is not None:
        return like.name
    first = next((i for i in given if _axes_of(i)), None)
    if not _axes_of(wanted) and first is None and given:  # along a line, with phi(0) = 0.5 and phi'(0) = -1
        return f"{given[0].name} - 1" if wanted.name == "slope" else f"0.5 * (1 - {given[0].name}) ** 2"
    if not _axes_of(wanted) and first is not None and any(i.name == "index" for i in given):
        return f"float({first.name}[int(index)])"
    if len(_axes_of(wanted)) == 1 and first is not None and _axes_of(first)[0] == _axes_of(wanted)[0] != "...":
        return f"0.5 * ({first.name} * {first.name}).reshape(len({first.name}), -1).sum(1)"  # one a row
    if len(set(_axes_of(wanted))) == 1 and len(_axes_of(wanted)) == 2:
        return f"np.eye({_extents(wanted)[0]})"
    if not _axes_of(wanted):
        return f"0.5 * float(({first.name} * {first.name}).sum())" if first is not None else "0.0"
    return f"np.ones({_extents(wanted)})"


def _alone_example(m: Method, extents: tuple[int, ...]) -> str:
    """A regularizer, a constraint, a schedule on its own."""
    if m.kind == "schedule":
        lines = ["import thalweg as tw", "", f'schedule = tw.schedule("{stage(m)}")']
        if not watched(m):
            return "\n".join([*lines, "values = [schedule(k) for k in range(0, 1000, 200)]"])
        what = watched(m)[0]
        call = f'schedule.observe("{what}", {_observation(what)})'
        return "\n".join([*lines, "values = []", "for k in range(0, 1000, 200):",
                          f'    {call}  # in a sentence: opt.observe("{what}", ...)', "    values.append(schedule(k))"])
    others = [i for i in _inputs(m) if i.name != "w"]
    if others:
        extents = next((_extents(i) for i in m.inputs if i.name == "w"), extents)
    lines = ["import numpy as np", "import thalweg as tw", "", "rng = np.random.default_rng(0)",
             f"w = rng.random({extents}) + 0.1"]
    lines += [f"{i.name} = {_array(i)}" for i in others]
    given = "".join(f", {i.name}={i.name}" for i in others)
    if m.kind == "constraint":
        return "\n".join([*lines, f'constraint = tw.constraint("{stage(m)}")', "w = constraint.project(w)  # in place"])
    return "\n".join([*lines, f'penalty = tw.regularizer("{stage(m)}")',
                      f"value, gradient = penalty.value(w{given}), penalty.gradient(w{given})"])


# What some of a kind can do besides: shown where it runs, the first of these.
BESIDES = {
    "regularizer": ["w = penalty.prox(w, step=0.1)  # in place"],
    "constraint": ["u = constraint.tangent(w, rng.standard_normal(w.shape))  # of a gradient, in place\n"
                   "w = constraint.retract(w, -0.1 * u)  # in place",
                   "s = constraint.lmo(rng.standard_normal(w.shape))  # the point of the set farthest against it"],
}


def candidates(m: Method) -> Iterator[str]:
    """Programs that show the method, the best first."""
    if m.kind in ("objective", "weighting", "diagnostic", "solver"):
        for optional in (False, True):
            without: frozenset[str] = frozenset()
            while True:
                program = _call_example(m, optional, without)
                yield program
                ended = runs(program)
                unasked = re.search(r"never asked for '(\w+)'", str(ended))
                if unasked is None:
                    break
                without |= {unasked[1]}
            if not isinstance(ended, (thalweg.NeedsError, thalweg.ShapeError)):
                break
    elif m.kind in ("regularizer", "constraint", "schedule"):
        for extents in ((4, 3), (4, 4), (4, 2), (2, 3, 3, 2)) if m.name not in STAGES else ((3,),):
            program = _alone_example(m, extents)
            yield from (f"{program}\n{more}" for more in BESIDES.get(m.kind, ()))
            yield program
            yield program.replace("project(w)", "retract(w, 0.1 * w)")
        if m.kind == "regularizer":
            head = _alone_example(m, (4, 3)).partition("value, gradient = ")[0]
            yield f"{head}w = penalty.prox(w, 1.0)"
    else:
        program = _optimizer_example(m)
        if m.kind == "aggregator" and "task_gradient" in m.requests:
            for tasks in ("[w, -0.5 * w, 0.1 * w]", "[w, -0.5 * w]"):
                yield f'{program}\ncombined = tw.aggregate("{stage(m)}")(np.stack({tasks}))  # alone: one row a task'
        yield program


@cache
def runs(program: str) -> Exception | None:
    """The exception that the program ends with, or None."""
    answers = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal answers
        answers += event == "call" and frame.f_code.co_filename == "example"
        if answers > MOST_ANSWERS:
            raise RuntimeError(f"it asks more than {MOST_ANSWERS} times")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with np.errstate(all="ignore"):
            exec(compile(program, "example", "exec"), {"__name__": "example"})  # noqa: S102 (it was written above)
    except Exception as problem:  # whatever it is, the program is no example
        return problem
    finally:
        sys.setprofile(before)
    return None


@cache
def python_example(m: Method) -> tuple[str, bool]:
    """(program, whether it runs as it stands).  One that does not is the call alone, for arrays that fit."""
    first = ""
    for program in candidates(m):
        first = first or program
        if runs(program) is None:
            return program, True
    lines = [line for line in first.splitlines() if "tw." in line or "opt." in line]
    shapes = [f"# {i.name} {i.shape}: {i.meaning}" for i in _inputs(m)]
    return "\n".join(["import thalweg as tw", "", *shapes, *lines]), False


# ---- C


def c_example(m: Method) -> str:
    """The calls in C, from making the handle to its end; status checks are left out."""
    given = [i.name for i in m.inputs if not i.result]
    if m.kind == "schedule":
        told = [f'tw_schedule_observe(schedule, "{what}", {_observation(what)});' for what in watched(m)[:1]]
        return _c_lines("schedule", m, ["double lr;", *told, "tw_schedule_value(schedule, 10, &lr);"])
    if m.kind == "constraint":
        return _c_lines("constraint", m, ["tw_constraint_project(constraint, &w);"])
    if m.kind == "regularizer":
        if not [i for i in _inputs(m) if i.name != "w"]:
            calls = ["tw_regularizer_value(regularizer, &w, &value);",
                     "tw_regularizer_gradient(regularizer, &w, 1.0, &g);"]
        else:
            calls = [f"/* inputs: {', '.join(given)} */",
                     f"tw_regularizer_value_with(regularizer, inputs, {len(m.inputs)}, &value);"]
        return _c_lines("regularizer", m, ["double value;", *calls])
    if m.kind in ("objective", "weighting", "diagnostic"):
        return _c_lines("objective", m, [
            "tw_cache *cache;",
            "double value;",
            "tw_cache_create(&cache);",
            f"/* inputs, gradients: {', '.join(i.name for i in m.inputs)} */",
            f"tw_objective_forward(objective, inputs, {len(m.inputs)}, cache, &value);",
            f"tw_objective_pullback(objective, cache, 1.0, gradients, {len(m.inputs)});",
            "tw_cache_destroy(cache);",
        ])
    if m.kind == "solver":
        declared, found = [], []
        for i in [i for i in m.inputs if i.result][:1]:
            if _axes_of(i):
                found = [f'tw_solver_tensor(solver, "{i.name}", &w);']
            else:
                declared, found = ["double value;"], [f'tw_solver_number(solver, "{i.name}", &value);']
        asks = ", ".join(a.name for a in m.asks)
        return _c_lines("solver", m, [
            *declared,
            "tw_solver_request request = {sizeof request};",
            f"/* inputs: {', '.join(given)} */",
            f"tw_solver_begin(solver, inputs, {len(given)});",
            "while (tw_solver_next(solver, &request) == TW_MORE) {",
            f"  /* {asks}: request.given in, request.wanted out */" if asks else "  /* asks nothing */",
            "}",
            *found,
        ])
    asked = sorted(_kinds_asked(m))
    step = ["tw_optimizer_step(optimizer);"]
    if asked != ["gradient"] or _asks_again(m):
        step = ["tw_request request = {sizeof request};", "while (tw_optimizer_next(optimizer, &request) == TW_MORE) {",
                f"  /* {', '.join(asked)}: answer at the parameters as they stand now */", "}"]
    return "\n".join([
        "tw_optimizer *optimizer;",
        f"tw_optimizer_create({_c_text(sentence(m))}, NULL, &optimizer);",
        "tw_optimizer_add_parameters(optimizer, &w, 1, NULL, NULL);",
        "tw_optimizer_bind_gradients(optimizer, &g, 1);",
        *(f'tw_optimizer_observe(optimizer, "{what}", {_observation(what)});' for what in _told(m)),
        *step,
        "tw_optimizer_destroy(optimizer);",
    ])


def _c_lines(kind: str, m: Method, calls: list[str]) -> str:
    """Calls between making a handle of the method and its end."""
    make = f"tw_{kind}_create({_c_text(stage(m))}, &{kind});"
    return "\n".join([f"tw_{kind} *{kind};", make, *calls, f"tw_{kind}_destroy({kind});"])


def _c_text(text: str) -> str:
    """A text as C writes it."""
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"'



