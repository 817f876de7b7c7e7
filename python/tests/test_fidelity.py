"""The library beside the references of `reference/`: every method, every setting, several shapes and dtypes.

Tolerances come from the arithmetic.  In float64 both sides round every operation to 1.1e-16; thirty steps of some twenty operations
on numbers of order one give some 1e-13, and nothing here amplifies that tenfold: 1e-12.  In float32 the same count times 6e-8 gives
some 1e-5: 5e-5 for nine elements in ten.  The worst element may lie where a division by a small root, a sign or a clip amplifies it
another tenfold: 5e-4.  The same limits hold for every instruction set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference  # noqa: F401  (imports every module)
import thalweg as tw
from reference import base
from support import MATRIX_SHAPES, Problem, stage

SHAPES = [(), (7,), (33,), (5, 3), (2, 3, 2, 2)]
STEPS = 30
SEED = 11
REGISTERED = {m.name: m for m in tw.methods()}

# Methods that estimate a distance from x - x0 while it is a millionth of x: in float32, six of the seven digits are gone.
CANCELLING = {"prodigy", "u_dog"}


def cases(kind: type) -> list[Any]:
    """(reference, setting) pairs of the references of a kind that the registry has."""
    return [
        pytest.param(cls, setting, id=f"{cls.name}-{i}")
        for cls in base.every(kind)
        if cls.name in REGISTERED
        for i, setting in enumerate(cls.settings)
    ]


def test_every_optimizer_has_a_reference() -> None:
    have = {c.name for c in base.every(base.OptimizerReference)}
    assert {m.name for m in tw.methods("optimizer")} <= have


def draws(step: int, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [tw.random_normal(SEED, 0, step, i, int(np.prod(s, dtype=int))).reshape(s) for i, s in enumerate(shapes)]


def sentence(cls: type, setting: dict[str, Any]) -> str:
    text = stage(cls.name, setting)
    inner = getattr(cls, "inner", None)
    return f"{text} | {inner}" if inner else text


def on_the_set(text: str, params: list[np.ndarray]) -> list[np.ndarray]:
    """spherical_langevin starts on the sphere; the host puts it there before the first gradient."""
    if text.startswith("spherical_langevin"):
        for p in params:
            p /= np.linalg.norm(p)
    return params


def reference_run(cls: type, setting: dict[str, Any], problem: Problem, dtype: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    ref = cls(**setting)
    params = [np.array(x.astype(dtype), np.float64) for x in on_the_set(cls.name, problem.start())]
    ref.start(params)
    for k in range(STEPS):
        def at(point: list[np.ndarray], k: int = k) -> list[np.ndarray]:
            return [np.asarray(g).astype(dtype).astype(np.float64) for g in problem.gradient(point, k)]

        extra: dict[str, Any] = {}
        if "loss" in cls.needs:
            extra["loss"] = problem.loss(params, k)
        if "loss_at" in cls.needs:
            extra["loss_at"] = lambda point, k=k: problem.loss(point, k)
        if "task_gradients" in cls.needs:
            extra["task_gradients"] = lambda count, k=k: task_gradients(problem, params, k, count, dtype)
        ref.step(params, at(params), gradient_at=at, hvp=lambda point, v: problem.product(v),
                 normal=lambda step: draws(step, problem.shapes), **extra)
    return params, ref.evaluation_weights(params)


def task_gradients(problem: Problem, params: list[np.ndarray], k: int, count: int, dtype: Any = np.float64) -> list[list[np.ndarray]]:
    return [[np.asarray(g).astype(dtype).astype(np.float64) for g in problem.gradient(params, k, task)] for task in range(count)]


def library_run(text: str, problem: Problem, dtype: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    params = on_the_set(text, problem.start(dtype))
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, text, seed=SEED)
    opt.bind_gradients(grads)
    for k in range(STEPS):
        for request in opt.requests():
            problem.answer(request, params, grads, k)
    trained = [p.copy() for p in params]
    opt.eval()
    evaluated = [p.copy() for p in params]
    opt.train()
    for a, b in zip(params, trained):
        assert a.tobytes() == b.tobytes(), "switching to the evaluation weights and back changed the training weights"
    return trained, evaluated


def worst(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """|a - b| relative to the tensor's size, for every element."""
    out = []
    for a, b in zip(left, right, strict=True):
        scale = max(1.0, float(np.max(np.abs(b), initial=0)))
        out.append(np.ravel(np.abs(np.asarray(a, np.float64) - b) / scale))
    return np.concatenate(out)


@pytest.mark.parametrize("cls, setting", cases(base.OptimizerReference))
def test_optimizer_float64(cls: type, setting: dict[str, Any]) -> None:
    problem = Problem(MATRIX_SHAPES if cls.shapes == "matrix" else SHAPES, seed=3)
    want, want_eval = reference_run(cls, setting, problem, np.float64)
    got, got_eval = library_run(sentence(cls, setting), problem, np.float64)
    assert np.max(worst(got, want)) < 1e-12
    assert np.max(worst(got_eval, want_eval)) < 1e-12


@pytest.mark.parametrize("cls, setting", cases(base.OptimizerReference))
def test_optimizer_float32(cls: type, setting: dict[str, Any]) -> None:
    problem = Problem(MATRIX_SHAPES if cls.shapes == "matrix" else SHAPES, seed=3)
    want, _ = reference_run(cls, setting, problem, np.float32)
    got, _ = library_run(sentence(cls, setting), problem, np.float32)
    error = worst(got, want)
    slack = 400 if cls.name in CANCELLING else 1
    assert np.quantile(error, 0.9) < 5e-5 * slack
    assert np.max(error) < 5e-4 * slack


@pytest.mark.parametrize("cls, setting", cases(base.OptimizerReference))
def test_large_tensors_go_through_the_same_rule(cls: type, setting: dict[str, Any]) -> None:
    """Several blocks and a tail: 3 steps, the first and the last elements and everything between."""
    shape = (97, 131) if cls.shapes == "matrix" else (min(12_707, cls.most_elements),)
    problem = Problem([shape], seed=5, steps=4)
    ref = cls(**setting)
    params, mine = on_the_set(cls.name, problem.start()), on_the_set(cls.name, problem.start())
    ref.start(params)
    grads = [np.zeros_like(p) for p in mine]
    opt = tw.Optimizer(mine, sentence(cls, setting), seed=SEED)
    opt.bind_gradients(grads)
    for k in range(3):
        extra: dict[str, Any] = {"loss": problem.loss(params, k)} if "loss" in cls.needs else {}
        if "loss_at" in cls.needs:
            extra["loss_at"] = lambda p, k=k: problem.loss(p, k)
        if "task_gradients" in cls.needs:
            extra["task_gradients"] = lambda count, k=k: task_gradients(problem, params, k, count)
        ref.step(params, problem.gradient(params, k), gradient_at=lambda p, k=k: problem.gradient(p, k), hvp=lambda p, v: problem.product(v),
                 normal=lambda step: draws(step, [shape]), **extra)
        for request in opt.requests():
            problem.answer(request, mine, grads, k)
    assert np.max(worst(mine, params)) < 1e-12


# ---- schedules


@pytest.mark.parametrize("cls, setting", cases(base.ScheduleReference))
def test_schedule(cls: type, setting: dict[str, Any]) -> None:
    if cls.name in ("reduce_on_plateau", "greedy"):
        pytest.skip("it watches a metric: test_schedules_that_watch_a_metric")
    ref, mine = cls(**setting), tw.schedule(stage(cls.name, setting))
    for k in [*range(0, 60), 99, 100, 101, 499, 1000]:
        np.testing.assert_allclose(mine(k), ref.value(k), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["reduce_on_plateau", "greedy"])
def test_schedules_that_watch_a_metric(name: str) -> None:
    cls = next(c for c in base.every(base.ScheduleReference) if c.name == name)
    for setting in cls.settings:
        rng = np.random.default_rng(1)
        ref, mine = cls(**setting), tw.schedule(stage(cls.name, setting))
        for k in range(120):
            x = float(1 / (1 + 0.1 * k) + 0.2 * rng.standard_normal())
            ref.observe(x)
            mine.observe("metric", x)
            assert mine(k) == pytest.approx(ref.value(k), rel=1e-15)


# ---- regularizers and constraints

PENALTY_SHAPES = [(), (7,), (33,), (5, 3), (3, 5), (2, 3, 2, 2), (16, 9)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls, setting", cases(base.RegularizerReference))
def test_regularizer(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    ref, mine = cls(**setting), tw.regularizer(stage(cls.name, setting))
    limit = 1e-12 if dtype is np.float64 else 1e-5
    rng = np.random.default_rng(2)
    for shape in PENALTY_SHAPES:
        if not ref.takes(shape):
            with pytest.raises(tw.ShapeError):
                mine.value(np.ones(shape))
            continue
        w = np.asarray(rng.standard_normal(shape)).astype(dtype)
        if w.size > 3:
            w.flat[1] = 0
        w = np.asarray(ref.domain(w)).astype(dtype)
        wide = w.astype(np.float64)
        assert mine.value(w) == pytest.approx(ref.value(wide), rel=limit, abs=limit)
        if cls.has_gradient:
            assert np.max(worst([mine.gradient(w)], [ref.gradient(wide)])) < limit
        else:
            with pytest.raises(tw.UnsupportedError, match="gradient"):
                mine.gradient(w)
        if not cls.has_prox:
            with pytest.raises(tw.UnsupportedError, match="prox"):
                mine.prox(w.copy(), 0.1)
            continue
        for t in (0.0, 0.1, 1.7):
            u = w.copy()
            mine.prox(u, t)
            want = ref.prox(wide, t)
            assert np.max(worst([u], [want])) < limit
            assert t != 0 or u.tobytes() == w.tobytes()
            # exact zeros, but for entries that lie on the threshold to rounding
            assert not np.any((u != 0) & (want == 0) & (np.abs(u) > limit))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls, setting", cases(base.ConstraintReference))
def test_constraint(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    ref, mine = cls(**setting), tw.constraint(stage(cls.name, setting))
    limit = (1e-11 if dtype is np.float64 else 2e-5) * cls.limit
    rng = np.random.default_rng(4)
    for shape in PENALTY_SHAPES:
        if not ref.takes(shape):
            with pytest.raises(tw.ShapeError):
                mine.project(np.ones(shape, dtype))
            continue
        if setting.get("axis") is not None and not -len(shape) <= int(setting["axis"]) < len(shape):
            continue
        for scale in (1.0, 0.01, 100.0):
            w = np.asarray(scale * rng.standard_normal(shape)).astype(dtype)
            u = w.copy()
            mine.project(u)
            assert np.max(worst([u], [ref.project(w.astype(np.float64))])) < limit
            again = u.copy()
            mine.project(again)
            assert np.max(worst([again], [u.astype(np.float64)])) < (1e-14 if dtype is np.float64 else 1e-6) * max(1.0, cls.limit)
        if hasattr(ref, "retract"):
            x = np.asarray(ref.project(rng.standard_normal(shape))).astype(dtype)
            g = rng.standard_normal(shape).astype(dtype)
            y = g.copy()
            mine.tangent(x, y)
            assert np.max(worst([y], [ref.egrad2rgrad(x.astype(np.float64), g.astype(np.float64))])) < 10 * limit
            move = (0.3 * ref.proj(x.astype(np.float64), g.astype(np.float64))).astype(dtype)
            z = x.copy()
            mine.retract(z, move)
            assert np.max(worst([z], [ref.retract(x.astype(np.float64), move.astype(np.float64))])) < 10 * limit


# ---- transforms and averages around plain gradient descent


@pytest.mark.parametrize("cls, setting", cases(base.TransformReference))
def test_transform(cls: type, setting: dict[str, Any]) -> None:
    if cls.name in ("tract", "gradient_accumulate", "cautious"):
        pytest.skip("has its own test")
    shapes = MATRIX_SHAPES if cls.shapes == "matrix" else SHAPES
    problem = Problem(shapes, seed=6)
    ref = cls(**setting)
    params = problem.start()
    mine = problem.start()
    grads = [np.zeros_like(p) for p in mine]
    opt = tw.Optimizer(mine, f"{stage(cls.name, setting)} | sgd(lr=0.1)", seed=SEED)
    opt.bind_gradients(grads)
    for k in range(STEPS):
        g = ref.transform(problem.gradient(params, k), params=params, normal=lambda step: draws(step, shapes))
        for p, d in zip(params, g):
            p -= 0.1 * d
        for a, b in zip(grads, problem.gradient(mine, k)):
            a[...] = b
        opt.step()
    assert np.max(worst(mine, params)) < 1e-11


def test_gradient_accumulate() -> None:
    cls = next(c for c in base.every(base.TransformReference) if c.name == "gradient_accumulate")
    for setting in cls.settings:
        problem = Problem(SHAPES, seed=6)
        ref = cls(**setting)
        params, mine = problem.start(), problem.start()
        grads = [np.zeros_like(p) for p in mine]
        opt = tw.Optimizer(mine, f"{stage(cls.name, setting)} | sgd(lr=0.1, momentum=0.5)")
        opt.bind_gradients(grads)
        buffers: list[np.ndarray] | None = None
        for k in range(STEPS):
            samples = 1.0 + k % 4
            g = ref.transform(problem.gradient(params, k), params=params, count=samples)
            if g is not None:
                buffers = [d.copy() for d in g] if buffers is None else [0.5 * b + d for b, d in zip(buffers, g)]
                for p, d in zip(params, buffers):
                    p -= 0.1 * d
            for a, b in zip(grads, problem.gradient(mine, k)):
                a[...] = b
            if setting.get("mode") == "weighted":
                opt.observe("samples", samples)
            opt.step()
        assert np.max(worst(mine, params)) < 1e-12


@pytest.mark.parametrize("mode", ["mean", "sum", "weighted"])
@pytest.mark.parametrize("resumes", [False, True])
def test_an_absent_gradient_in_a_window_counts_as_zeros(mode: str, resumes: bool) -> None:
    """Tensor 0 has a gradient at the first call alone, 1 at the last alone, 2 in the middle, 3 never, 4 always; the next window ends early."""
    there = [(0, 4), (2, 4), (1, 4)]
    rng = np.random.default_rng(2)
    mine = [rng.standard_normal(n) for n in (3, 17, 1, 4, 8)]
    theirs, buffers = [w.copy() for w in mine], [np.zeros(len(w)) for w in mine]
    sentence = f"gradient_accumulate(3, mode={mode}) | sgd(lr=0.1, momentum=0.5)"
    opt = tw.Optimizer(mine, sentence)
    for window, calls in enumerate((3, 3, 2)):
        total, samples = [np.zeros(len(w)) for w in mine], 0.0
        for k in range(calls):
            weight = 1.0 + k if mode == "weighted" else 1.0
            grads = [rng.standard_normal(len(w)) if i in there[k] else None for i, w in enumerate(mine)]
            total = [t if g is None else t + weight * g for t, g in zip(total, grads, strict=True)]
            samples += weight
            if mode == "weighted":
                opt.observe("samples", weight)
            opt.step(grads)
            if resumes:
                state = opt.state_dict()
                opt = tw.Optimizer(mine, sentence)
                opt.load_state_dict(state)
        if calls == 2:
            opt.command("gradient_accumulate.flush")
        moved = {i for k in range(calls) for i in there[k]}
        for i in moved:
            buffers[i] = 0.5 * buffers[i] + total[i] / (1.0 if mode == "sum" else samples)
            theirs[i] -= 0.1 * buffers[i]
        assert np.max(worst(mine, theirs)) < 1e-13, window


def of_name(kind: type, name: str) -> type:
    return next(c for c in base.every(kind) if c.name == name)


def test_cautious() -> None:
    """The mask on the direction of momentum SGD."""
    cls = of_name(base.TransformReference, "cautious")
    for setting in cls.settings:
        problem = Problem(SHAPES, seed=9)
        ref = cls(**setting)
        params, mine = problem.start(), problem.start()
        opt = tw.Optimizer(mine, f"sgd(lr=0.1, momentum=0.9) | {stage(cls.name, setting)}")
        buffers = [np.zeros_like(p) for p in params]
        for k in range(STEPS):
            g = problem.gradient(params, k)
            buffers = [0.9 * b + x for b, x in zip(buffers, g)]
            for p, d in zip(params, ref.transform(g, params=params, update=buffers)):
                p -= 0.1 * d
            opt.step(problem.gradient(mine, k))
        assert np.max(worst(mine, params)) < 1e-12


def test_clip_global_norm_measures_the_norm() -> None:
    cls = of_name(base.TransformReference, "clip_global_norm")
    for setting in cls.settings:
        problem = Problem(SHAPES, seed=9)
        ref = cls(**setting)
        opt = tw.Optimizer(problem.start(), f"{stage(cls.name, setting)} | sgd(lr=0.1)")
        for k in range(3):
            g = problem.gradient(problem.start(), k)
            ref.transform(g)
            opt.step(g)
            assert opt.get("clip_global_norm.norm") == pytest.approx(ref.norm, rel=1e-13)


@pytest.mark.parametrize("cls, setting", cases(base.AverageReference))
def test_average(cls: type, setting: dict[str, Any]) -> None:
    if cls.name == "lookahead" and setting.get("pullback") == "reset":
        pytest.skip("the reference needs its inner optimizer: test_lookahead_reset")
    problem = Problem(SHAPES, seed=7)
    ref = cls(**setting)
    params, mine = problem.start(), problem.start()
    ref.start(params)
    grads = [np.zeros_like(p) for p in mine]
    opt = tw.Optimizer(mine, f"sgd(lr=0.1) | {stage(cls.name, setting)}")
    opt.bind_gradients(grads)
    for k in range(STEPS):
        for p, d in zip(params, problem.gradient(params, k)):
            p -= 0.1 * d
        ref.update(params)
        for a, b in zip(grads, problem.gradient(mine, k)):
            a[...] = b
        opt.step()
    assert np.max(worst(mine, params)) < 1e-12
    if cls.name != "lookahead":
        with opt.averaged():
            assert np.max(worst(mine, ref.value())) < 1e-12


def test_lookahead_reset() -> None:
    """With pullback=reset the rule starts afresh at each synchronisation: its moments and its count."""
    cls, inner = of_name(base.AverageReference, "lookahead"), of_name(base.OptimizerReference, "adam")
    setting = {"k": 4, "alpha": 0.3, "pullback": "reset"}
    problem = Problem(SHAPES, seed=7)
    ref, rule = cls(**setting), inner(lr=0.05)
    params, mine = problem.start(), problem.start()
    ref.start(params)
    rule.start(params)
    opt = tw.Optimizer(mine, f"adam(lr=0.05) | {stage(cls.name, setting)}")
    for k in range(STEPS):
        rule.step(params, problem.gradient(params, k))
        ref.update(params, inner=rule)
        opt.step(problem.gradient(mine, k))
    assert np.max(worst(mine, params)) < 1e-12
    with opt.averaged():
        assert np.max(worst(mine, ref.value())) < 1e-12


# ---- masks


def test_nm_sparsity() -> None:
    """The host sees the masked tensor, and the dense one behind it takes the step."""
    cls = of_name(base.Reference, "nm_sparsity")
    for setting in cls.settings:
        shapes = [(5, 8), (8, 4, 2, 2)] if setting.get("axis") is None else [(8, 5), (4,)]
        problem = Problem(shapes, seed=10)
        ref = cls(**setting)
        dense, mine = problem.start(), problem.start()
        grads = [np.zeros_like(p) for p in mine]
        opt = tw.Optimizer(mine, f"sgd(lr=0.1) | {stage(cls.name, setting)}")
        opt.bind_gradients(grads)
        for k in range(STEPS):
            g = problem.gradient([ref.forward(w) for w in dense], k)
            for w, d in zip(dense, g):
                w -= 0.1 * ref.gradient(d, w)
            for request in opt.requests():
                problem.answer(request, mine, grads, k)
            assert np.max(worst(mine, [ref.forward(w) for w in dense])) < 1e-12


# ---- aggregators


@pytest.mark.parametrize("cls, setting", cases(base.AggregatorReference))
def test_aggregator(cls: type, setting: dict[str, Any]) -> None:
    for tasks in (2, 3, 5):
        problem = Problem(SHAPES, seed=8)
        rng = np.random.default_rng(tasks)
        params = problem.start()
        before = [p.copy() for p in params]
        grads = [np.zeros_like(p) for p in params]
        opt = tw.Optimizer(params, f"{stage(cls.name, {'tasks': tasks, **setting})} | sgd(lr=1.0)", seed=SEED)
        opt.bind_gradients(grads)
        rows = [[np.asarray(rng.standard_normal(s)) for s in SHAPES] for _ in range(tasks)]
        seen = []
        for request in opt.requests():
            assert request.kind == "task_gradient" and request.count == tasks
            seen.append(request.index)
            for g, r in zip(grads, rows[request.index]):
                g[...] = r
        assert seen == list(range(tasks))
        jacobian = np.array([np.concatenate([np.ravel(x) for x in row]) for row in rows])
        orders = np.array([np.argsort(tw.random_normal(SEED, 0, 0, i, tasks), kind="stable") for i in range(tasks)])
        a = cls(**setting).weights(jacobian, permutations=orders)
        moved = np.concatenate([np.ravel(b - p) for b, p in zip(before, params)])
        np.testing.assert_allclose(moved, jacobian.T @ a, rtol=1e-9, atol=1e-10)
