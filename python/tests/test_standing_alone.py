"""What stands alone, over the registry: what does not fit is refused by its name, copies answer the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import reference  # noqa: F401  (imports every module)
import thalweg as tw
from reference import base
from reference.solvers import SolverReference
from support import stage

SHAPES = [(3, 3), (4, 3), (3,), (7,), (2, 3, 2), (2, 2, 4, 4), (2, 4, 4), (2, 2, 3, 3)]
MAKERS = {"regularizer": tw.regularizer, "constraint": tw.constraint, "objective": tw.objective,
          "weighting": tw.weighting, "diagnostic": tw.diagnostic, "solver": tw.solver}
Case = tuple[Callable[[], Any], dict[str, Any]]


def _case(cls: type) -> Case:
    """What makes the object of a reference's first setting, and inputs that it takes."""
    setting, rng = cls.settings[0], np.random.default_rng(2)
    ref = cls(**setting)
    if issubclass(cls, SolverReference):
        case = ref.cases(rng)[0]
        setting, inputs = {**setting, **(case.setting or {})}, case.inputs
    elif issubclass(cls, base.WeightingReference):
        inputs = ref.sequences(rng)[0][0]
    elif issubclass(cls, (base.ObjectiveReference, base.DiagnosticReference)):
        inputs = ref.examples(rng)[0]
    else:
        w = rng.standard_normal(next(s for s in SHAPES if ref.takes(s)))
        inputs = {"w": ref.domain(w) if hasattr(ref, "domain") else w}
    return lambda: MAKERS[tw.method(cls.name).kind](stage(cls.name, setting)), inputs


def _call(thing: Any, inputs: dict[str, Any]) -> Any:
    if isinstance(thing, tw.Regularizer):
        rest = dict(inputs)
        w = rest.pop(next(iter(inputs)))
        return thing.value(w, **rest)
    if isinstance(thing, tw.Constraint):
        return thing.project(inputs["w"])
    if isinstance(thing, tw.Solver):
        return thing.requests(**inputs)
    return thing(**inputs)


def _bits(answer: Any) -> Any:
    if isinstance(answer, tw.SolverRun):
        return answer.save()
    if isinstance(answer, dict):
        return {k: _bits(v) for k, v in answer.items()}
    return np.asarray(answer).tobytes()


def _fresh(inputs: dict[str, Any], **instead: Any) -> dict[str, Any]:
    return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()} | instead


def _state(thing: Any) -> Any:
    return thing.state_dict() if hasattr(thing, "state_dict") else None


KINDS = (base.RegularizerReference, base.ConstraintReference, base.ObjectiveReference, base.WeightingReference,
         base.DiagnosticReference, SolverReference)
CLASSES = [c for kind in KINDS for c in base.every(kind)]
ALL = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.name)


def test_all_are_here() -> None:
    assert {c.name for c in CLASSES} == {m.name for kind in MAKERS for m in tw.methods(kind)}


@ALL
def test_what_is_no_array_of_numbers_is_refused_by_its_name(cls: type) -> None:
    make, inputs = _case(cls)
    thing, want = make(), _bits(_call(make(), _fresh(inputs)))
    for name, value in inputs.items():
        plain = np.asarray(value)
        wrong = ["text", object(), np.array([None, "text"], object), np.full(plain.shape, 1j),
                 np.full(plain.shape, "text")]
        for bad in [*wrong, plain.tolist()] if plain.ndim and not isinstance(value, list) else wrong:
            before = _state(thing)
            with pytest.raises(tw.Error, match=rf"(?<!\w){name}(?!\w)"):
                _call(thing, _fresh(inputs, **{name: bad}))
            assert _state(thing) == before
    assert _bits(_call(thing, _fresh(inputs))) == want


@ALL
def test_shapes_and_numbers_that_may_not_fit(cls: type) -> None:
    """An answer, or one of the package's errors; then the array keeps its bits, and what is remembered is as before."""
    make, inputs = _case(cls)
    thing = make()
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray):
            continue
        wrong = [value[None, None, None], np.zeros((0, *value.shape)), np.zeros((*value.shape, 0))]
        if value.dtype.kind == "f":
            wrong += [np.full(value.shape, number) for number in (np.nan, np.inf, -1.0, 0.0, 1e300)]
        for bad in wrong:
            before, bits = _state(thing), bad.tobytes()
            try:
                _call(thing, _fresh(inputs) | {name: bad})
            except tw.Error:
                assert bad.tobytes() == bits and _state(thing) == before
            else:
                assert bad.tobytes() == bits or isinstance(thing, tw.Constraint)
                thing = make()  # it may remember what it saw


@ALL
def test_copies_and_pickles_answer_the_same(cls: type) -> None:
    make, inputs = _case(cls)
    thing = make()
    _call(thing, _fresh(inputs))
    twins = [copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))]
    if hasattr(thing, "state_dict"):
        twins.append(make())
        twins[-1].load_state_dict(thing.state_dict())
    before = _state(thing)
    answers = [_bits(_call(twin, _fresh(inputs))) for twin in twins]
    assert _state(thing) == before  # what copies see is their own
    assert answers == [_bits(_call(thing, _fresh(inputs)))] * len(twins)
    assert {repr(twin) for twin in twins} == {repr(thing)}


@ALL
def test_closed(cls: type) -> None:
    make, inputs = _case(cls)
    thing = make()
    if isinstance(thing, tw.Solver):
        assert not hasattr(thing, "close")  # it holds nothing; its runs do, as long as they are referenced
        return
    thing.close()
    assert thing.closed
    with pytest.raises(tw.HandleError, match=rf"this {type(thing).__name__} is closed"):
        _call(thing, _fresh(inputs))


@pytest.mark.parametrize("make", [tw.objective, tw.weighting, tw.diagnostic, tw.schedule, tw.aggregate])
@pytest.mark.parametrize(
    "wrong", [None, {}, {"stat": b""}, {"state": None}, {"state": "text"}, b"", {"state": b""}, []], ids=repr)
def test_what_is_no_state_dict(make: Any, wrong: Any) -> None:
    names = {tw.objective: "info_nce", tw.weighting: "gradnorm", tw.diagnostic: "effective_rank",
             tw.schedule: "cosine(lr=1, total=9)", tw.aggregate: "gradvac"}
    thing = make(names[make])
    before = thing.state_dict()
    with pytest.raises(tw.FormatError):
        thing.load_state_dict(wrong)
    assert thing.state_dict() == before


@pytest.mark.parametrize("call, text", [
    (lambda x: tw.objective("info_nce")(x, x),
     r"objective\('info_nce'\) takes its inputs by name, as in \(q=..., k=...\); got 2"),
    (lambda x: tw.objective("info_nce").value_and_grad(x, k=x), r"\(q=..., k=...\); got 1"),
    (lambda x: tw.weighting("gradnorm")(x[0], x[0]), r"\(losses=..., norms=...\)"),
    (lambda x: tw.diagnostic("effective_rank")(x), r"\(x=...\)"),
    (lambda x: tw.diagnostic("marchenko_pastur(ratio=0.5)")(x), "by name"),
])
def test_inputs_without_a_name(call: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        call(np.ones((4, 3)))


# ---- regularizers and sets


PROXES = [c for c in base.every(base.RegularizerReference) if getattr(c, "has_prox", True)]


@pytest.mark.parametrize("step", [
    -0.1, np.nan, np.inf, "0.1", 1j, None, [0.1], np.full(2, 0.1), np.full((2, 2, 2), 0.1),
    np.array([[0.1, -1, 0.1]] * 4), np.array([[0.1, 0.1, np.nan]]), np.full((4, 3), "a"),
], ids=repr)
def test_steps_that_are_none(step: Any) -> None:
    w = np.arange(12.0).reshape(4, 3)
    for keyword in ("step", "t"):
        with pytest.raises((tw.Error, TypeError), match="step"):
            tw.regularizer("l1(0.5)").prox(w, **{keyword: step})
    assert (w == np.arange(12.0).reshape(4, 3)).all()


def test_spellings_of_a_step() -> None:
    w, l1 = np.array([3.0, -0.5, 1.0]), tw.regularizer("l1(0.5)")
    want = l1.prox(w.copy(), 0.4)
    steps = [0.4, np.float64(0.4), np.array(0.4), np.full(3, 0.4), np.array([0.4])]
    same = [l1.prox(w.copy(), t=0.4), *(l1.prox(w.copy(), step=step) for step in steps)]
    assert all(u.tobytes() == want.tobytes() for u in same)
    with pytest.raises(tw.DtypeError, match="step: a masked array"):
        l1.prox(w, step=np.ma.array([0.1, 0.2, 0.3], mask=[0, 1, 0]))
    with pytest.raises(tw.ArgumentError, match="both"):
        l1.prox(w, 0.4, t=0.4)


@pytest.mark.parametrize("cls", PROXES, ids=lambda c: c.name)
def test_steps_of_the_elements(cls: type) -> None:
    """A step each, some of them 0: what every element gets alone; or a refusal, where they depend on one another."""
    make, inputs = _case(cls)
    w, rng, penalty = inputs["w"], np.random.default_rng(4), make()
    steps = rng.choice([0.0, 0.1, 0.35, 0.8], w.shape)
    before = w.copy()
    try:
        u = penalty.prox(w, step=steps)
    except tw.UnsupportedError as problem:
        assert repr(penalty) in str(problem) and (w == before).all()
        return
    assert u is w and (w[steps == 0] == before[steps == 0]).all()
    for t in (0.1, 0.35, 0.8):
        np.testing.assert_allclose(w[steps == t], penalty.prox(before.copy(), t)[steps == t], rtol=1e-9, atol=1e-12)


def test_which_take_a_step_an_element() -> None:
    rng, w = np.random.default_rng(5), np.random.default_rng(6).standard_normal((4, 3))
    steps, rows = rng.uniform(0.1, 2, (4, 3)), rng.uniform(0.1, 2, (4, 1))
    u, want = tw.regularizer("l1(0.5)").prox(w.copy(), step=steps), np.sign(w) * np.maximum(abs(w) - 0.5 * steps, 0)
    np.testing.assert_allclose(u, want, rtol=1e-14)
    u, want = tw.regularizer("l2(0.5)").prox(w.copy(), step=steps[0]), w / (1 + 0.5 * steps[0])
    np.testing.assert_allclose(u, want, rtol=1e-14)
    u, want = tw.regularizer("l2(0.5)").prox(w.copy(), step=rows), w / (1 + 0.5 * rows)
    np.testing.assert_allclose(u, want, rtol=1e-14)
    for text in ("group_lasso(0.3)", "nuclear_norm(0.3)", "tv_1d(0.3)", "fused_lasso(0.3)", "slope(0.3)",
                 "l1_inf(0.3, axis=row)"):
        u = w.copy()
        with pytest.raises(tw.UnsupportedError, match="depend on one another"):
            tw.regularizer(text).prox(u, step=steps)
        assert (u == w).all()
    with pytest.raises(tw.UnsupportedError, match="no prox"):
        tw.regularizer("gor").prox(w.copy(), step=steps)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_steps_and_types(dtype: Any) -> None:
    """Strided arrays, and steps of another type; what is subtracted is rounded once, in the type of the arithmetic."""
    rng = np.random.default_rng(7)
    wide = rng.standard_normal((5, 8)).astype(dtype)
    w, steps = wide[::2, ::3], rng.uniform(0.1, 1, (3, 3)).astype(np.float32)
    want = np.sign(w) * np.maximum(abs(w.astype(np.float64)) - 0.5 * steps.astype(np.float64), 0)
    kept = wide[1::2].copy()
    tw.regularizer("l1(0.5)").prox(w, step=steps)
    np.testing.assert_allclose(wide[::2, ::3], want.astype(dtype), rtol=0, atol=4 * np.finfo(dtype).eps)
    assert (wide[1::2] == kept).all()
    frozen = np.broadcast_to(np.ones(3, dtype), (2, 3))
    with pytest.raises(tw.LayoutError, match="w.*read-only"):
        tw.regularizer("l1(0.5)").prox(frozen, step=np.array([[0.1], [0.2]]))


@pytest.mark.filterwarnings("error")
def test_steps_and_numbers_that_are_not_finite() -> None:
    """As with one step: a penalty of single elements keeps them to themselves, one of groups refuses them."""
    w, steps = np.array([np.nan, np.inf, 1e308, -1.0]), np.array([1.0, 2.0, 1.0, 0.5])
    np.testing.assert_array_equal(tw.regularizer("l1(0.5)").prox(w.copy(), step=steps), [np.nan, np.inf, 1e308, -0.75])
    rows = np.array([[1.0, np.nan], [3.0, 4.0]])
    with pytest.raises(tw.NonfiniteError):
        tw.regularizer("group_lasso(0.5)").prox(rows, step=0.1)
    np.testing.assert_array_equal(rows, [[1, np.nan], [3, 4]])


def test_steps_of_torch() -> None:
    torch = pytest.importorskip("torch")
    w, steps = torch.tensor([3.0, -0.5, 1.0], requires_grad=True), torch.tensor([1.0, 0.5, 0.0])
    for dtype in (torch.float32, torch.bfloat16):
        u = w.detach().clone().to(dtype)
        assert tw.regularizer("l1(0.5)").prox(u, step=steps) is u and u.tolist() == [2.5, -0.25, 1.0]
    tw.regularizer("l1(0.5)").prox(w, step=steps)
    assert w.tolist() == [2.5, -0.25, 1.0]


@pytest.mark.parametrize("call, kind, text", [
    (lambda w: tw.regularizer("gor").prox(w, step=0.1), tw.UnsupportedError, r"^regularizer\('gor'\) has no prox"),
    (lambda w: tw.constraint("simplex").tangent(w, w), tw.UnsupportedError,
     r"^constraint\('simplex'\) is not a manifold"),
    (lambda w: tw.regularizer("nuclear_norm").value(w * np.nan), tw.NonfiniteError, "^w: .*NaN"),
    (lambda w: tw.regularizer("group_lasso").prox(w * np.nan, step=0.1), tw.NonfiniteError, "^w: .*NaN"),
    (lambda w: tw.constraint("simplex").project(w * np.inf), tw.NonfiniteError, "^w: .*NaN"),
    (lambda w: tw.constraint("simplex").lmo(w * np.nan), tw.NonfiniteError, "^g: .*NaN"),
    (lambda w: tw.constraint("sphere").tangent(w, w * np.nan), tw.NonfiniteError, "^w, g: .*NaN"),
    (lambda w: tw.constraint("sphere").retract(w, w * np.nan), tw.NonfiniteError, "^w, u: .*NaN"),
])
def test_errors_say_which_regularizer_and_which_array(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(np.ones((4, 3)))


def test_out_is_named() -> None:
    w = np.ones((4, 3))
    for call in (lambda out: tw.regularizer("l1").gradient(w, out=out),
                 lambda out: tw.constraint("simplex").lmo(w, out=out)):
        for out, kind in ((np.zeros(3), tw.ShapeError), (np.zeros((4, 3), int), tw.DtypeError), ([0.0], tw.DtypeError)):
            with pytest.raises(kind, match="^out: "):
                call(out)
        with pytest.raises(tw.DtypeError, match="^[wg]: an object of type list"):
            tw.regularizer("l1").gradient([1.0])
            tw.constraint("simplex").lmo([1.0])


MANIFOLDS = [c for c in base.every(base.ConstraintReference) if hasattr(c, "retract")]


@pytest.mark.parametrize("cls", MANIFOLDS, ids=lambda c: c.name)
def test_tangents_that_do_not_fit(cls: type) -> None:
    make, inputs = _case(cls)
    point = make().project(inputs["w"])
    for call, name in ((make().tangent, "g"), (make().retract, "u")):
        for bad, kind in ((np.zeros((5, 5)), tw.ShapeError), (point.tolist(), tw.DtypeError),
                          (point.astype(int), tw.DtypeError), (None, tw.DtypeError)):
            w = point.copy()
            with pytest.raises(kind, match=rf"(?<!\w){name}(?!\w)"):
                call(w, bad)
            assert (w == point).all()
        closed = make()
        closed.close()
        with pytest.raises(tw.HandleError, match="Constraint is closed"):
            getattr(closed, call.__name__)(point.copy(), point.copy())


# ---- solvers


A, B = np.diag([1.0, 2.0, 4.0]), np.ones(3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_request_that_was_not_answered_is_seen(dtype: Any) -> None:
    run = tw.solver("cg(rtol=1e-3)").requests(b=B.astype(dtype))
    for k, request in enumerate(run):
        if k == 1:
            text = r"solver\('cg.*'product' was not answered: 'product' was not filled"
            with pytest.raises(tw.SequenceError, match=text):
                next(run)  # nothing has changed: it can be answered now
        request["product"][...] = A @ request["vector"]
    assert run.result.converged
    np.testing.assert_allclose(run.result.x, [1, 0.5, 0.25], rtol=1e-3)
    run = tw.solver("golden_section").requests(low=0.0, high=1.0)
    next(run)
    with pytest.raises(tw.SequenceError, match="value"):
        next(run)
    run = tw.solver("cg").requests(b=B)
    next(run)["product"][...] = np.nan  # an answer, if a bad one
    assert list(run) == [] and run.outcome == "nonfinite"


def quadratic(x: np.ndarray) -> tuple[float, np.ndarray]:
    return 0.5 * float(x @ A @ x), A @ x


@pytest.mark.parametrize("run, kind, text", [
    (lambda s: s.run(b=B, product=A), tw.ArgumentError,
     r"product is a function of \(vector\), not an object of type ndarray"),
    (lambda s: s.run(b=[1.0, 2.0], product=lambda v: v), tw.DtypeError,
     r"b: .* list is not an array .*; np\.array\(...\) makes one"),
    (lambda s: s.run(b=B, product=None), tw.ArgumentError, r"product is a function of \(vector\)"),
    (lambda s: s.run(b=B, x0=s.run(b=B, product=lambda v: A @ v), product=lambda v: A @ v), tw.ArgumentError,
     r"x0 is an array, not a whole result: .*x0=result\.x"),
    (lambda s: s.run(b=B, product=lambda v: (A @ v, 0.0)), tw.ShapeError,
     r"'product' has the shape \(3,\), got a tuple of 2"),
    (lambda s: s.run(b=[B, B], product=lambda v: B), tw.ArgumentError,
     r"'product' is a list of 2 arrays, got an array of the shape \(3,\)"),
    (lambda s: tw.solver("fista").run(x0=B, value_gradient=lambda x: quadratic(x)[::-1], value=quadratic),
     tw.ShapeError, r"value_gradient: 'value' has the shape \(\), got \(3,\)"),
    (lambda s: tw.solver("fista").run(x0=B, value_gradient=lambda x: A @ x, value=quadratic), tw.ArgumentError,
     r"wants value, gradient: a tuple of 2, got an array of the shape \(3,\)"),
    (lambda s: tw.solver("fista").run(x0=B, value_gradient=quadratic, value=quadratic), tw.ShapeError,
     r"'value' has the shape \(\), got a tuple of 2"),
])
def test_answers_and_functions_are_told_by_name(run: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        run(tw.solver("cg"))


def test_a_run_that_broke_off_goes_on_with_the_request_that_waits() -> None:
    s, calls = tw.solver("cg"), []

    def product(v: np.ndarray) -> np.ndarray:
        calls.append(v.copy())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return A @ v

    run = s.requests(b=B)
    with pytest.raises(KeyboardInterrupt):
        s.answer(run, product=product)
    result = s.answer(run, product=product)
    assert (calls[1] == calls[2]).all()
    assert result.x.tobytes() == s.run(b=B, product=lambda v: A @ v).x.tobytes()
    assert "x" in dir(result) and result.x is result["x"]


# ---- settings as keywords


@pytest.mark.parametrize("make, sentence, settings, shown", [
    (tw.regularizer, "l1", {"weight": 0.1}, "l1(weight=0.1)"),
    (tw.constraint, "simplex", {"axis": -1}, "simplex(axis=-1)"),
    (tw.objective, "info_nce(0.2)", {"symmetric": True}, "info_nce(temperature=0.2, symmetric=true)"),
    (tw.weighting, "dwa", {"temperature": 2}, "dwa(temperature=2)"),
    (tw.diagnostic, "effective_rank", {"rtol": 0.1}, "effective_rank(rtol=0.1)"),
    (tw.solver, "cg", {"rtol": 1e-8}, "cg(rtol=1e-08)"), (tw.aggregate, "upgrad", {"tasks": 3}, "upgrad(tasks=3)"),
    (tw.schedule, "cosine(0.1, 100)", {"end": 0.01}, "cosine(lr=0.1, total=100, end=0.01)"),
])
def test_settings_belong_in_the_sentence(make: Any, sentence: str, settings: dict[str, Any], shown: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(sentence, **settings)
    text = str(caught.value)
    assert text.startswith(f"{make.__name__}() got an unexpected keyword argument")
    assert text.endswith(f'as in "{shown}"')
    make(shown)


# ---- aggregators


J = np.random.default_rng(8).standard_normal((3, 5))


@pytest.mark.parametrize("name", [m.name for m in tw.methods("aggregator") if "task_gradient" in m.requests])
def test_aggregators_are_saved_and_copied(name: str) -> None:
    rows = J[:2] if name in ("bloop", "prograd") else J  # those for one task and another
    name = "krum(n_byzantine=0)" if name == "krum" else name  # which wants to know
    mine = tw.aggregate(name)
    empty = tw.aggregate(name)
    empty.load_state_dict(mine.state_dict())
    mine(rows)
    loaded = tw.aggregate(name)
    loaded.load_state_dict(pickle.loads(pickle.dumps(mine.state_dict())))
    twins = [copy.copy(mine), copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), loaded]
    answers = [twin(2 * rows).tobytes() for twin in twins]
    assert answers == [mine(2 * rows).tobytes()] * 4
    assert empty(rows).tobytes() == tw.aggregate(name)(rows).tobytes()


def test_states_of_other_aggregators() -> None:
    mine, other = tw.aggregate("gradvac(beta=0.5)"), tw.aggregate("gradvac(beta=0.5)")
    mine(J), other(J)
    state = mine.state_dict()
    for key, wrong, kind in (("sentence", "gradvac", tw.MismatchError), ("tasks", 2, tw.MismatchError),
                             ("tensors", [["float64", 4]] * 2, tw.MismatchError), ("tasks", 0, tw.FormatError),
                             ("tensors", [["text", 4]], tw.FormatError),
                             ("state", state["state"][:-5], tw.FormatError)):
        with pytest.raises(kind):
            mine.load_state_dict({**state, key: wrong})
    assert mine(J).tobytes() == other(J).tobytes()


@pytest.mark.parametrize("call, kind, text", [
    (lambda: tw.aggregate("upgrad")(J, losses=[1, 2, 3]), tw.UnknownNameError, "upgrad.*takes no losses"),
    (lambda: tw.aggregate("mgda(normalize=loss)")(J), tw.NeedsError,
     r"mgda.*needs the losses of the tasks, as losses=\[...\]"),
    (lambda: tw.aggregate("mgda(normalize=loss)")(J, losses=[1, np.nan, 3]), tw.RangeError,
     "losses: finite.*got nan of task 1"),
    (lambda: tw.aggregate("mgda(normalize=loss)")(J, losses="abc"), tw.ValueTypeError, "losses: 3 numbers"),
    (lambda: tw.aggregate("mgda(normalize=loss)")(J, losses=1.0), tw.ValueTypeError, "losses: 3 numbers"),
    (lambda: tw.aggregate("upgrad")(None), tw.DtypeError, "jacobian: .*NoneType"),
    (lambda: tw.aggregate("upgrad")("text"), tw.ShapeError, "jacobian: "),
    (lambda: tw.aggregate("upgrad")([[1.0, 2.0], [1.0]]), tw.ShapeError, "jacobian: "),
    (lambda: tw.aggregate("upgrad")(J.astype(np.float16)), tw.DtypeError, "jacobian: .*float16")])
def test_refused_jacobians_and_losses(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_a_first_call_that_is_refused_settles_nothing() -> None:
    mine = tw.aggregate("upgrad")
    with pytest.raises(tw.NonfiniteError):
        mine(np.full((3, 5), np.nan))
    assert mine(J[:2, :4]).tobytes() == tw.aggregate("upgrad")(J[:2, :4]).tobytes()
