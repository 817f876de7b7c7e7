"""Solvers: beside their references, saved at every request, badly used; and the methods by their cards and peers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import base
from reference.solvers import Case, SolverReference, operator, spd
from support import stage

REFERENCES = base.every(SolverReference)
RUNS = [pytest.param(c, s, id=f"{c.name}-{i}") for c in REFERENCES for i, s in enumerate(c.settings)]


def cast(inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Arrays in another type; numbers stay what they are."""
    return {k: v.astype(dtype) if isinstance(v, np.ndarray) and v.ndim and v.dtype.kind == "f" else v for k, v in inputs.items()}


def made(cls: type, setting: dict[str, Any], case: Case) -> tuple[tw.Solver, SolverReference]:
    full = {**setting, **(case.setting or {})}
    return tw.solver(stage(cls.name, full)), cls(**full)


def same(result: tw.SolverResult, want: dict[str, Any], limit: float) -> None:
    assert result.outcome == want["outcome"]
    for name, value in want.items():
        if name == "outcome":
            continue
        mine, value = np.asarray(result[name], np.float64), np.asarray(value, np.float64)
        assert mine.shape == value.shape, name
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(value), err_msg=name)
        with np.errstate(invalid="ignore"):
            error = np.where(mine == value, 0.0, np.abs(mine - value))  # equal infinities
        assert np.all(np.isnan(value) | (error <= limit * np.maximum(1.0, np.abs(value)))), (name, mine, value)


def bits(result: tw.SolverResult) -> dict[str, bytes]:
    return {k: np.asarray(v).tobytes() for k, v in result.items()} | {"outcome": result.outcome.encode()}


# ---- beside the references


def test_every_solver_has_a_reference() -> None:
    assert {m.name for m in tw.methods("solver")} == {c.name for c in REFERENCES}


@pytest.mark.parametrize("cls, setting", RUNS)
def test_results(cls: type, setting: dict[str, Any]) -> None:
    for case in cls().cases(np.random.default_rng(3)) if not getattr(cls, "required", ()) else cls(**setting).cases(np.random.default_rng(3)):
        mine, ref = made(cls, setting, case)
        result = mine.answer(mine.requests(**case.inputs), **case.functions())
        same(result, ref.solve({k: np.array(v, np.float64) if np.ndim(v) else v for k, v in case.inputs.items()}, case.functions()), ref.limit)
        assert set(result) <= {i.name for i in mine.inputs if i.result}


@pytest.mark.parametrize("cls, setting", RUNS)
def test_results_in_float32(cls: type, setting: dict[str, Any]) -> None:
    """The decisions may fall otherwise near a tolerance: results are compared where both ended the same way."""
    compared = 0
    for case in cls(**setting).cases(np.random.default_rng(3)):
        mine, ref = made(cls, setting, case)
        narrow = cast(case.inputs, np.float32)
        result = mine.answer(mine.requests(**narrow), **case.functions())
        want = ref.solve(cast(narrow, np.float64), case.functions())
        for i in mine.inputs:
            if i.result and i.name in result and i.shape != "()":
                wide = any(np.ndim(v) for v in case.inputs.values())
                assert result[i.name].dtype == np.float32 or not wide
        if result.outcome == want["outcome"] and want.get("iterations", 0) in (0, result.get("iterations")):
            same(result, want, ref.limit32)
            compared += 1
    assert compared or any("tol" in k for k in {**cls.defaults, **setting})


@pytest.mark.parametrize("cls", REFERENCES, ids=lambda c: c.name)
def test_inputs_that_are_not_finite_give_no_answer(cls: type) -> None:
    """Refused by name, or the end is `nonfinite`; but what lends its shape alone, and costs that forbid a pair."""
    case = cls(**cls.settings[0]).cases(np.random.default_rng(3))[0]
    for name, value in case.inputs.items():
        if not (isinstance(value, np.ndarray) and value.ndim and value.dtype.kind == "f") or name == "like":
            continue
        for bad in (np.nan, np.inf):
            if name == "cost" and bad > 0:
                continue
            inputs = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in case.inputs.items()}
            inputs[name].reshape(-1)[value.size // 2] = bad
            mine, _ = made(cls, cls.settings[0], case)
            try:
                outcome = mine.answer(mine.requests(**inputs), **case.functions()).outcome
            except tw.Error:
                continue
            assert outcome == "nonfinite", (name, bad)


@pytest.mark.parametrize("cls, setting", RUNS)
def test_goes_on_after_every_request_with_the_same_bits(cls: type, setting: dict[str, Any]) -> None:
    for case in cls(**setting).cases(np.random.default_rng(4)):
        mine, _ = made(cls, setting, case)
        want = mine.answer(mine.requests(**case.inputs), **case.functions())
        functions, run, moved = case.functions(), mine.requests(**case.inputs), 0
        while True:
            # saved before the request is answered, and taken up in a solver that never saw the inputs
            try:
                request = next(run)
            except StopIteration:
                break
            if moved < 400:
                again = tw.solver(mine.sentence).resume(run.save())
                run, request = again, next(again)
                moved += 1
            request.answer(functions[request.name](*(request[name] for name in request.given)))
        assert bits(run.result) == bits(want)
        done = tw.solver(mine.sentence).resume(run.save())
        assert bits(done.result) == bits(want)
        assert list(done) == []


@pytest.mark.parametrize("cls, setting", RUNS)
def test_an_answer_that_is_not_finite_ends_the_run(cls: type, setting: dict[str, Any]) -> None:
    mine, case = None, cls(**setting).cases(np.random.default_rng(5))[0]
    mine, _ = made(cls, setting, case)
    for kind in mine.asks:
        if kind.takes_nonfinite or not kind.wanted:
            continue
        functions = case.functions()
        broken = functions[kind.name]

        def spoilt(*given: Any) -> Any:
            values = broken(*given)
            spoil = lambda v: np.full(np.shape(v), np.nan)  # noqa: E731
            return tuple(spoil(v) for v in values) if isinstance(values, tuple) else spoil(values)

        run = mine.requests(**case.inputs)
        asked = False
        for request in run:
            asked |= request.name == kind.name
            request.answer((spoilt if request.name == kind.name else functions[request.name])(*(request[n] for n in request.given)))
        assert (run.outcome == "nonfinite") == asked
        if asked:
            assert all(np.all(np.isfinite(v)) or name not in ("x", "y", "w") for name, v in run.result.items())


# ---- the handle


def test_declarations() -> None:
    for m in tw.methods("solver"):
        names = [i.name for i in m.inputs] + [a.name for a in m.asks]
        assert len(set(names)) == len(names), m.name
        assert m.requests == tuple(a.name for a in m.asks)
        assert not any(hasattr(tw.SolverResult, i.name) for i in m.inputs if i.result), m.name
        for a in m.asks:
            assert a.meaning and all(not i.optional and not i.result for i in a.given + a.wanted)
        assert m.summary and m.source and m.rule
        given = {p.name: "sphere" if p.type == "constraint" else 1 for p in m.parameters if p.required}
        assert tw.solver(stage(m.name, given)).inputs == m.inputs


def test_the_loop_by_hand() -> None:
    a, b = spd(np.random.default_rng(0), 9), np.arange(9.0)
    s = tw.solver("cg(rtol=1e-12)")
    run = s.requests(b=b)
    for request in run:
        assert request.name == "product" and request.given == ("vector",) and request.wanted == ("product",)
        assert not request["vector"].flags.writeable
        with pytest.raises(ValueError):
            request["vector"][0] = 1
        request["product"][...] = a @ request["vector"]
    np.testing.assert_allclose(a @ run.result.x, b, atol=1e-10)
    assert run.result.converged and run.outcome == "converged"
    assert bits(run.result) == bits(s.run(b=b, product=lambda v: a @ v))


def test_warm_start() -> None:
    a, b = spd(np.random.default_rng(0), 30, 100.0), np.arange(30.0)
    s = tw.solver("cg(rtol=1e-10)")
    cold = s.run(b=b, product=lambda v: a @ v)
    warm = s.run(cold, b=b + 1e-6, product=lambda v: a @ v)
    assert warm.iterations < cold.iterations - 3
    assert s.run(b=b, x0=cold.x, product=lambda v: a @ v).iterations == 0


def test_pickles_and_copies_go_their_own_ways() -> None:
    a, b = spd(np.random.default_rng(0), 9), np.arange(9.0)
    run = tw.solver("cg(rtol=1e-9)").requests(b=b)
    next(run)["product"] = a @ b
    request = next(run)
    others = [copy.copy(run), copy.deepcopy(run), pickle.loads(pickle.dumps(run))]
    request["product"] = a @ request["vector"]
    for request in run:
        request["product"] = a @ request["vector"]
    for other in others:
        for request in other:
            request["product"] = a @ request["vector"]
        assert bits(other.result) == bits(run.result)
    s = pickle.loads(pickle.dumps(tw.solver("cg")))
    assert s.sentence == "cg" and s.asks


def test_arrays_of_a_request_outlive_the_run() -> None:
    run = tw.solver("cg").requests(b=np.arange(5.0))
    vector = next(run)["vector"]
    del run
    np.testing.assert_array_equal(vector, np.arange(5.0))


def test_inputs_are_copied_and_may_be_strided() -> None:
    a, wide = spd(np.random.default_rng(0), 5), np.arange(20.0).reshape(5, 4)
    want = tw.solver("cg").run(b=wide[:, 1].copy(), product=lambda v: a @ v)
    b = wide[:, 1]
    run = tw.solver("cg").requests(b=b)
    wide[...] = np.nan
    for request in run:
        request["product"] = a @ request["vector"]
    assert bits(run.result) == bits(want)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    a = torch.tensor(spd(np.random.default_rng(0), 5), dtype=torch.float32)
    result = tw.solver("cg").run(b=torch.ones(5), product=lambda v: a @ torch.tensor(v))
    assert result.converged and result.x.dtype == np.float32


def test_any_number_of_threads() -> None:
    """40,000 unknowns are several blocks."""
    rng = np.random.default_rng(0)
    d, b, before = rng.uniform(1, 5, 40_000), rng.standard_normal(40_000), tw.get_num_threads()
    cost, weights = rng.uniform(size=(120, 90)), np.full(120, 1 / 120)
    found = []
    try:
        for threads in (1, 3):
            tw.set_num_threads(threads)
            found.append([
                bits(tw.solver("cg(rtol=1e-9)").run(b=b, product=lambda v: d * v)),
                bits(tw.solver("lanczos(steps=5)").run(start=b.astype(np.float32), product=lambda v: d.astype(np.float32) * v)),
                bits(tw.solver("sinkhorn(max_iter=20)").run(cost=cost, a=weights, b=np.full(90, 1 / 90))),
            ])
    finally:
        tw.set_num_threads(before)
    assert found[0] == found[1]


def test_misuse() -> None:
    s, b, ok = tw.solver("cg"), np.ones(3), lambda v: v
    for call, kind, message in (
        (lambda: tw.solver("adam"), tw.MethodError, "a solver is wanted"),
        (lambda: tw.solver("cg(rtoll=1)"), tw.UnknownNameError, "rtol"),
        (lambda: tw.solver("cg(rtol=-1)"), tw.RangeError, "at least 0"),
        (lambda: tw.solver("strong_wolfe(c1=0.3, c2=0.2)"), tw.RangeError, "above `c1`"),
        (lambda: s.run(product=ok), tw.NeedsError, "`b`"),
        (lambda: s.run(b=b), tw.NeedsError, r"product\(vector\) -> product"),
        (lambda: s.run(b=b, x=b, product=ok), tw.ArgumentError, "is a result"),
        (lambda: s.run(b=b, y=b, product=ok), tw.UnknownNameError, "no input 'y'"),
        (lambda: s.run(b=b, x0=np.ones(4), product=ok), tw.ShapeError, "differ in their leading axes"),
        (lambda: s.run(b=np.ones(0), product=ok), tw.ShapeError, "is empty"),
        (lambda: s.run(b=np.ones(3, np.int64), product=ok), tw.DtypeError, "real numbers"),
        (lambda: s.run(b=b, product=lambda v: v[:2]), ValueError, "shape"),
        (lambda: s.resume(b"x" * 40), tw.FormatError, "checkpoint"),
        (lambda: s.resume(tw.solver("cg(rtol=1e-3)").requests(b=b).save()), tw.MismatchError, "rtol"),
        (lambda: tw.solver("hutchinson_trace").run(product=ok), tw.NeedsError, "not known from the inputs"),
        (lambda: tw.solver("lanczos").run(start=np.zeros(3), product=ok), tw.RangeError, "not zero"),
        (lambda: tw.solver("sinkhorn").run(cost=np.ones((2, 2)), a=b[:2], b=2 * b[:2]), tw.RangeError, "same positive sum"),
        (lambda: tw.solver("golden_section").run(low=2.0, high=1.0, value=ok), tw.RangeError, "in order"),
        (lambda: tw.solver("lanczos(steps=8999999999999999)").run(start=b, product=ok), None, ""),
        (lambda: tw.solver("hutchinson_trace(probes=8999999999999999)").run(vectors0=np.ones((2, 3)), product=ok), None, ""),
        (lambda: tw.solver("power_iteration(num=8999999999999999)").run(like=b, product=ok), tw.AllocationError, "larger than any"),
    ):
        if kind is None:
            assert call().converged
            continue
        with pytest.raises(kind, match=message):
            call()
    run = s.requests(b=b)
    with pytest.raises(tw.UnknownNameError, match="no tensor"):
        run.tensor("nothing")
    with pytest.raises(tw.UnknownNameError, match="wants product"):
        next(run)["vector"] = b


def test_saved_runs_that_were_changed_are_refused() -> None:
    run = tw.solver("cg").requests(b=np.arange(6.0))
    next(run)
    data = run.save()
    for k in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[k] ^= 0x21
        try:
            again = tw.solver("cg").resume(bytes(spoilt))
        except tw.Error as problem:
            assert isinstance(problem, (tw.FormatError, tw.VersionError, tw.MismatchError)), k
        else:
            assert again.save() == data, k  # the number of the version, which only says what may be in the file
    for k in range(0, len(data), 11):
        with pytest.raises(tw.FormatError):
            tw.solver("cg").resume(data[:k])


def test_lists_of_arrays_are_one_vector() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (), (4,)]
    b = [np.asarray(rng.standard_normal(s)) for s in shapes]
    a = spd(rng, 11)

    def product(parts: list[np.ndarray]) -> list[np.ndarray]:
        assert [p.shape for p in parts] == shapes
        flat = a @ np.concatenate([p.ravel() for p in parts])
        return [flat[:6].reshape(2, 3), flat[6], flat[7:]]

    s = tw.solver("cg(rtol=1e-12)")
    result = s.run(b=b, product=product)
    flat = s.run(b=np.concatenate([p.ravel() for p in b]), product=lambda v: a @ v)
    assert [x.shape for x in result.x] == shapes
    np.testing.assert_array_equal(np.concatenate([x.ravel() for x in result.x]), flat.x)
    assert s.run(result, b=b, product=product).iterations == 0

    run = s.requests(b=b)
    next(run)["product"] = product(b)
    for again in (pickle.loads(pickle.dumps(run)), s.resume(run.save(), like=b)):
        for request in again:
            request["product"] = product(request["vector"])
        assert [x.tobytes() for x in again.result.x] == [x.tobytes() for x in result.x]

    top = tw.solver("power_iteration(num=2, tol=1e-9, iters=2000)").run(like=b, product=product)
    assert [v.shape for v in top.vectors] == [(2, *s) for s in shapes]
    np.testing.assert_allclose(top.eigenvalues, np.sort(np.linalg.eigvalsh(a))[::-1][:2], atol=1e-4)
    for call, message in ((lambda: s.run(b=b, x0=b[:2], product=product), "shapes"), (lambda: s.run(b=b, product=lambda v: v[:2]), "list of 3"),
                          (lambda: tw.solver("soba").requests(x0=b, y0=b), "one array")):
        with pytest.raises((tw.ShapeError, tw.ArgumentError), match=message):
            call()


def test_a_model_of_torch() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3).double(), torch.randn(20, 4).double(), torch.randn(20, 3).double()
    params = list(model.parameters())
    loss = torch.nn.functional.mse_loss(model(x), y)
    grads = torch.autograd.grad(loss, params, create_graph=True)

    def product(parts: list[np.ndarray]) -> list[Any]:
        return torch.autograd.grad(grads, params, [torch.tensor(p) for p in parts], retain_graph=True)

    top = tw.solver("power_iteration(tol=1e-10, iters=500)").run(like=params, product=product)
    step = tw.solver("cg(rtol=1e-12)").run(b=list(grads), product=product)
    with torch.no_grad():
        for p, d in zip(params, step.x):
            p -= torch.tensor(d)
    final = torch.autograd.grad(torch.nn.functional.mse_loss(model(x), y), params)
    assert all(g.abs().max() < 1e-12 for g in final)  # one Newton step solves least squares
    assert top.eigenvalues[0] > 0


def test_what_counts_is_an_int() -> None:
    a = np.diag(np.arange(1.0, 6.0))
    run = tw.solver("cg(rtol=1e-10)").requests(b=np.ones(5))
    for request in run:
        assert type(run.result.iterations) is int
        request["product"] = a @ request["vector"]
    result = run.result
    assert type(result.iterations) is int and type(result["residual"]) is float
    assert type(run.tensor("iterations")) is int and "iterations=5" in repr(result)
    again = tw.solver("cg(rtol=1e-10)").run(result, b=np.ones(5), product=lambda v: a @ v)
    assert repr(again.iterations) == "0"
    simplex = tw.solver("nelder_mead(max_iter=9)").run(x0=np.ones(2), point_value=lambda x: float(x @ x))
    assert (type(simplex.iterations), type(simplex.evaluations)) == (int, int)


@pytest.mark.parametrize("sentence", ["lasso_cd(alpha=0.1)", "lasso_path"])
@pytest.mark.parametrize("where", ["design", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lasso_of_numbers_that_are_none_is_no_answer(sentence: str, where: str, value: float) -> None:
    data = {"design": np.random.default_rng(0).standard_normal((6, 3)), "targets": np.arange(6.0)}
    data[where].flat[0] = value
    assert tw.solver(sentence).run(**data).outcome == "nonfinite"
