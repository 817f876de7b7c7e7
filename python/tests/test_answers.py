"""Methods that are answered with matrices, or at parameters of an earlier step: tract, ghost_step, exact mars."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference import adam, adan, diagnostics, sgd, transforms
from support import Arrays, Problem, assert_same_bits, snapshot

SHAPES = [(), (7,), (5, 3), (2, 3, 2, 2)]
LAYERS = [2, 3]  # those of rank 2 or more


class Softmax:
    """Cross-entropy of a linear model on fresh samples at every step; it answers with exact derivatives of its logits."""

    def __init__(self, classes: int = 4, features: int = 3, samples: int = 8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.columns = classes
        self.classes = max(classes, 2)
        self.origin = [rng.standard_normal((classes, features)), rng.standard_normal(classes)]
        self.x = 4 * rng.standard_normal((64, samples, features))
        self.y = rng.integers(0, self.classes, (64, samples))

    def start(self, dtype: Any = np.float64) -> Arrays:
        return [p.astype(dtype) for p in self.origin]

    def logits(self, params: Any, step: int) -> np.ndarray:
        w, b = (np.asarray(p, np.float64) for p in params)
        return self.x[step] @ w.T + b

    def gradient(self, params: Any, step: int) -> Arrays:
        z = self.logits(params, step)
        full = np.hstack([z, 0 * z]) if self.columns == 1 else z
        p = np.exp(full - full.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(p)), self.y[step]] -= 1
        p = p[:, : self.columns] / len(p)
        return [p.T @ self.x[step], p.sum(axis=0)]

    def answer(self, request: tw.Request, params: Arrays, grads: Arrays, step: int, how: str = "both") -> None:
        if request.kind != "logit_derivatives":
            for g, v in zip(grads, self.gradient(params, step)):
                g[...] = v
        elif how == "logits":
            request.answer_matrix(second=self.logits(params, step))
        else:
            w, b = request.probe
            a = self.x[step] @ np.asarray(w, np.float64).T + b
            request.answer_matrix(a, self.logits(params, step) if how == "both" else None)


def made(sentence: str, problem: Any, dtype: Any = np.float64, **options: Any) -> tuple[tw.Optimizer, Arrays, Arrays]:
    params = problem.start(dtype)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    return opt, params, grads


def worst(left: Arrays, right: Arrays) -> float:
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - b), initial=0)) for a, b in zip(left, right, strict=True))


# ---- tract


class Rows(Problem):
    """A problem whose layers see `rows` rows."""

    rows = 6

    def layer(self, w: np.ndarray, step: int, rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return super().layer(w, step, rows or self.rows)


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("rows", [1, 2, 12, 40])
@pytest.mark.parametrize("setting", transforms.TrAct.settings, ids=str)
def test_tract(setting: dict[str, float], rows: int, dtype: Any, limit: float) -> None:
    """Both systems, primal and dual; tensors of rank 0 and 1 keep their gradient."""
    problem, ref = Rows(SHAPES, seed=3), transforms.TrAct(**setting)
    problem.rows = rows
    params, buffers = problem.start(), [np.zeros(s) for s in SHAPES]
    arguments = ", ".join(f"{k}={v!r}" for k, v in setting.items())
    opt, mine, grads = made(f"tract({arguments}) | sgd(lr=0.01, momentum=0.9)", problem, dtype)
    for k in range(10):
        g = problem.gradient(params, k)
        layers = [problem.layer(params[i], k) for i in LAYERS]
        for i, d in zip(LAYERS, ref.transform([g[i] for i in LAYERS], layers=layers)):
            g[i] = d
        for p, b, d in zip(params, buffers, g):
            b[...] = 0.9 * b + d
            p -= 0.01 * b
        for request in opt.requests():
            problem.answer(request, mine, grads, k)
    scale = max(1.0, max(float(np.max(np.abs(p))) for p in params))
    assert worst(mine, params) < limit * scale


def moves(w: np.ndarray, x: np.ndarray, g: np.ndarray, lam: float, **options: Any) -> np.ndarray:
    """The gradient that a rule behind tract sees."""
    before = w.copy()
    opt = tw.Optimizer([w], f"tract({lam!r}) | sgd(lr=1.0)", **options)
    for request in opt.requests():
        if request.kind == "gradient":
            request.answer([np.full(w.shape, 7.0, w.dtype)])
        else:
            request.answer_matrix(x, g)
    return before - w


@pytest.mark.parametrize("n, inputs", [(30, 5), (4, 9), (6, 6)])
def test_tract_laws(n: int, inputs: int) -> None:
    rng = np.random.default_rng(n)
    x, g, w = rng.standard_normal((n, inputs)), rng.standard_normal((n, 3)), np.zeros((3, inputs))
    move = moves(w.copy(), x, g, 0.1)
    np.testing.assert_allclose(move @ (x.T @ x / n + 0.1 * np.eye(inputs)), g.T @ x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(1e9 * moves(w.copy(), x, g, 1e9), g.T @ x, rtol=1e-6)
    if n > inputs:
        fit = np.linalg.lstsq(x, n * g, rcond=None)[0].T
        np.testing.assert_allclose(moves(w.copy(), x, g, 1e-10), fit, rtol=1e-6)
    assert not moves(w.copy(), 0 * x, g, 0.1).any()
    assert not moves(w.copy(), x[:0], g[:0], 0.1).any()
    # the host's gradients are scaled, and so is that of the answer
    np.testing.assert_allclose(moves(w.copy(), x, g, 0.1, gradient_scale=0.5, maximize=True), -0.5 * move, rtol=1e-12)
    # any layout and element type of matrix
    np.testing.assert_array_equal(moves(w.copy(), np.asfortranarray(x), np.repeat(g, 2, axis=1)[:, ::2], 0.1), move)
    narrow = moves(w.copy(), x.astype(np.float32), g.astype(np.float32), 0.1)
    np.testing.assert_allclose(narrow, move, rtol=1e-4, atol=1e-4)


def test_tract_asks_for_every_layer() -> None:
    problem = Problem(SHAPES)
    opt, params, grads = made("tract | adamw(lr=0.1)", problem)
    seen = []
    for request in opt.requests():
        seen.append((request.kind, request.pass_, request.tag, request.wants_gradient))
        if request.kind == "activations":
            assert request.index == LAYERS[len(seen) - 2] and request.count == 2 and "parameter" in repr(request)
        problem.answer(request, params, grads, 0)
    assert seen == [("gradient", 0, 0, True), ("activations", 1, 0, False), ("activations", 2, 0, False)]
    # a tensor without a gradient is not asked for, and stays
    before = [p.copy() for p in params]
    for request in opt.requests():
        if request.kind == "gradient":
            request.answer([g if i != 2 else None for i, g in enumerate(grads)])
        else:
            assert request.index == 3
            problem.answer(request, params, grads, 1)
    assert np.array_equal(params[2], before[2]) and not np.array_equal(params[3], before[3])


def test_tract_in_a_route() -> None:
    """The tensors of its own pipeline are asked for, the others keep their gradient: bit by bit what each alone would do."""
    shapes = [(4, 3), (5, 4), (4,), (2, 5)]
    names = ["first.weight", "second.weight", "first.bias", "third.weight"]
    problem = Problem(shapes, seed=2)
    sentence = 'route("first.*"=(tract(0.5) | sgd(lr=0.1, momentum=0.9)), other=(adamw(lr=0.1))) | ema(0.9)'
    opt, params, grads = made(sentence, problem, names=names)
    alone = Problem([shapes[0], shapes[2]])
    for name in ("origin", "a", "b"):
        setattr(alone, name, [getattr(problem, name)[0], getattr(problem, name)[2]])
    alone.noise = [[row[0], row[2]] for row in problem.noise]
    single, part, part_grads = made("tract(0.5) | sgd(lr=0.1, momentum=0.9)", alone)
    rest = Problem([shapes[1], shapes[3]])
    for name in ("origin", "a", "b"):
        setattr(rest, name, [getattr(problem, name)[1], getattr(problem, name)[3]])
    rest.noise = [[row[1], row[3]] for row in problem.noise]
    plain, others, other_grads = made("adamw(lr=0.1)", rest)
    for k in range(6):
        asked = []
        for request in opt.requests():
            asked += [request.index] if request.kind == "activations" else []
            problem.answer(request, params, grads, k)
        assert asked == [0]
        for request in single.requests():
            alone.answer(request, part, part_grads, k)
        plain.step(rest.gradient(others, k))
    assert_same_bits([params[0], params[2]], part)
    assert_same_bits([params[1], params[3]], others)


def test_tract_before_other_transforms() -> None:
    """What follows it sees the replaced gradient."""
    problem = Problem([(4, 3)])
    x, g = problem.layer(problem.start()[0], 0)
    direction = transforms.TrAct(lam=0.2).gradient(x, g)
    opt, params, grads = made("tract(0.2) | clip_global_norm(0.01) | sgd(lr=1.0)", problem)
    for request in opt.requests():
        problem.answer(request, params, grads, 0)
    assert opt.get("clip_global_norm.norm") == pytest.approx(np.linalg.norm(direction), rel=1e-13)
    np.testing.assert_allclose(problem.start()[0] - params[0], 0.01 * direction / np.linalg.norm(direction), rtol=1e-12)


def test_tract_has_a_ridge_for_every_group() -> None:
    problem = Problem([(4, 3), (4, 3)])
    params = problem.start()
    opt = tw.Optimizer([{"params": [params[0]]}, {"params": [params[1]], "tract.lam": 5.0}], "tract(linear(lr=1.0, total=1, end=2.0)) | sgd(lr=1.0)")
    grads = [np.zeros_like(p) for p in params]
    for k, lam in enumerate((1.0, 2.0)):
        before = [p.copy() for p in params]
        for request in opt.requests():
            if request.kind == "gradient":
                request.answer(grads)
            problem.answer(request, params, grads, k)
        for i, ridge in enumerate((lam, 5.0)):
            want = transforms.TrAct(lam=ridge).gradient(*problem.layer(params[i], k))
            np.testing.assert_allclose(before[i] - params[i], want, rtol=1e-12, atol=1e-14)


def test_tract_refuses_what_does_not_fit() -> None:
    problem = Problem([(4, 3), (7,)])
    opt, params, grads = made("tract | adamw(lr=0.1)", problem)
    before = snapshot(opt)
    x, g = problem.layer(params[0], 0)
    with pytest.raises(tw.SequenceError):
        opt._answer_matrix(x, g)
    loop = opt.requests()
    problem.answer(next(loop), params, grads, 0)
    request = next(loop)
    wrong = [
        (tw.ShapeError, x[:, :2], g, "inputs have 2 columns"),
        (tw.ShapeError, x, g[:, :1], "1 columns"),
        (tw.ShapeError, x[:-1], g, "5 rows of inputs, but 6 rows"),
        (tw.ShapeError, x[0], g, "two axes"),
        (tw.ShapeError, x, g[None], "two axes"),
        (tw.ArgumentError, x, None, "missing"),
        (tw.ArgumentError, None, g, "missing"),
        (tw.ArgumentError, None, None, "first"),
    ]
    for error, first, second, match in wrong:
        with pytest.raises(error, match=match):
            request.answer_matrix(first, second)
    with pytest.raises(TypeError):
        request.answer_matrix("x", g)
    request.answer_matrix(x, g)  # the request still waits
    with pytest.raises(StopIteration):
        next(loop)
    assert opt.steps == 1
    opt, params, grads = made("tract | adamw(lr=0.1)", problem)
    with pytest.raises(tw.NeedsError, match="activations"):
        for request in opt.requests():
            if request.kind == "gradient":
                problem.answer(request, params, grads, 0)
    assert snapshot(opt) == before
    with pytest.raises(tw.NeedsError, match="activations"):
        opt.step()
    for sentence in ("sgd(lr=0.1) | tract", "clip_value(1.0) | tract | sgd(lr=0.1)",
                     "clip_value(1.0) | route(matrix=(tract | sgd(lr=0.1)), other=(sgd(lr=0.1)))"):
        with pytest.raises(tw.MethodError, match="must"):
            tw.Optimizer([np.ones((2, 2))], sentence)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_answers_that_are_not_finite(which: int, bad: float) -> None:
    """They are refused whatever the policy, and change nothing."""
    for sentence, problem in (("tract | adamw(lr=0.1)", Problem([(4, 3)])), ("adamw(lr=0.1) | ghost_step", Softmax())):
        for policy in ("propagate", "error", "skip"):
            opt, params, grads = made(sentence, problem, nonfinite=policy)
            for request in opt.requests():
                problem.answer(request, params, grads, 0)
            before = [p.copy() for p in params]
            state, loop = opt.state(), opt.requests()
            problem.answer(next(loop), params, grads, 1)
            request = next(loop)
            if request.kind == "activations":
                pair = list(problem.layer(params[0], 1))
            else:
                pair = [problem.logits(params, 1), problem.logits(params, 1)]
            pair[which] = pair[which].copy()
            pair[which][1, 1] = bad
            request.answer_matrix(*pair)
            with pytest.raises(StopIteration if policy == "skip" else tw.NonfiniteError):
                next(loop)
            assert (opt.skipped, opt.steps) == (policy == "skip", 1)
            assert_same_bits(params, before)
            after = opt.state()
            assert all(np.array_equal(a, b) for n in state for a, b in zip(state[n], after[n]))
            for request in opt.requests():
                problem.answer(request, params, grads, 1)
            assert opt.steps == 2


@pytest.mark.parametrize("sentence", ["tract | adamw(lr=0.1)", "adamw(lr=0.8) | ghost_step(safety=0.5)"])
def test_gradients_are_not_looked_at_again(sentence: str) -> None:
    """While matrices are asked for, the bound gradients may hold anything; a tensor that had one must not lose it."""
    problem: Any = Problem([(4, 3), (4,)]) if "tract" in sentence else Softmax()
    opt, params, grads = made(sentence, problem)
    other, mine, mine_grads = made(sentence, problem)
    for k in range(3):
        for request in opt.requests():
            problem.answer(request, params, grads, k)
        for request in other.requests():
            problem.answer(request, mine, mine_grads, k)
            if request.pass_ > 0:
                for g in mine_grads:
                    g[...] = np.nan
    assert_same_bits(params, mine)
    before, loop = snapshot(opt), opt.requests()
    problem.answer(next(loop), params, grads, 3)
    problem.answer(next(loop), params, grads, 3)
    opt.release_gradients()
    with pytest.raises(tw.SequenceError, match="absent"):
        next(loop)
    assert snapshot(opt) == before


def test_loading_forgets_the_answer() -> None:
    """An answer belongs to the request that it was given to, not to the one that a loaded state waits for."""
    problem = Problem(SHAPES)
    opt, params, grads = made("tract | sgd(lr=0.1)", problem)
    loop = opt.requests()
    problem.answer(next(loop), params, grads, 0)
    request = next(loop)
    state = opt.state_dict()
    problem.answer(request, params, grads, 0)
    with pytest.raises(tw.SequenceError, match="within a step"):
        opt.load_state_dict(state)
    loop.close()
    opt.load_state_dict(state)
    opt.bind_gradients(grads)
    with pytest.raises(tw.NeedsError, match="activations"):
        opt._next(None, False)


def test_large_layers_do_not_depend_on_the_threads() -> None:
    """The systems and the products too."""
    results = []
    for threads in (1, 2, 3):
        tw.set_num_threads(threads)
        for rows in (300, 500):
            problem = Rows([(310, 400), (400,)], seed=1)
            problem.rows = rows
            opt, params, grads = made("tract | sgd(lr=0.1)", problem, np.float32)
            for request in opt.requests():
                problem.answer(request, params, grads, 0)
            results.append(params)
    for k in (2, 3, 4, 5):
        assert_same_bits(results[k], results[k % 2])


@pytest.mark.parametrize("dtype, limit", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_narrow_parameters(dtype: str, limit: float) -> None:
    """With float32 masters both stay at the rounding of what the host sees."""
    narrow: Any = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.float16
    cases: list[tuple[str, Any]] = [("tract | sgd(lr=0.1)", Problem([(4, 3), (4,)])), ("adamw(lr=0.8) | ghost_step(safety=0.5)", Softmax())]
    for sentence, problem in cases:
        wide, exact, exact_grads = made(sentence, problem)
        params = [p.astype(narrow) for p in problem.start()]
        for p, q in zip(exact, params):
            p[...] = q
        grads = [np.zeros(p.shape, np.float32) for p in params]
        opt = tw.Optimizer(params, sentence, master="f32")
        opt.bind_gradients(grads)
        for request in wide.requests():
            problem.answer(request, exact, exact_grads, 0)
        for request in opt.requests():
            problem.answer(request, params, grads, 0)
        assert worst([p.astype(np.float64) for p in params], exact) < limit * max(1.0, max(float(np.abs(p).max()) for p in exact))


# ---- ghost_step

RULES = [
    ("sgd(lr=0.8, momentum=0.9, weight_decay=0.1)", sgd.SGD, {"lr": 0.8, "momentum": 0.9, "weight_decay": 0.1}),
    ("adam(lr=0.8, weight_decay=0.1)", adam.Adam, {"lr": 0.8, "weight_decay": 0.1}),
    ("adamw(lr=0.8, weight_decay=0.3)", adam.AdamW, {"lr": 0.8, "weight_decay": 0.3}),
    ("mars(lr=0.8, weight_decay=0.3)", adan.MARS, {"lr": 0.8, "weight_decay": 0.3}),
]
SETTINGS: list[dict[str, Any]] = [
    {}, {"safety": 0.3}, {"mode": "set"}, {"mode": "set", "safety": 0.2, "quantile": 0.5}, {"quantile": 0.3}, {"exact_binary": False},
]


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("text, rule, hyper", RULES, ids=lambda x: x if isinstance(x, str) else "")
def test_ghost_step(text: str, rule: Any, hyper: dict[str, Any], setting: dict[str, Any], classes: int) -> None:
    """Beside the rule's reference: its whole move, decay included, is shortened, and its state goes on as if it had not been."""
    problem, ref, capped = Softmax(classes), rule(**hyper), 0
    arguments = ", ".join(f"{k}={str(v).lower()}" for k, v in setting.items())
    opt, mine, grads = made(f"{text} | ghost_step({arguments})", problem)
    params = problem.start()
    ref.start(params)
    for k in range(12):
        old = [p.copy() for p in params]
        ref.step(params, problem.gradient(params, k))
        move = [p - o for p, o in zip(params, old)]
        a = (problem.x[k] @ move[0].T + move[1]) / hyper["lr"]
        tau, r = diagnostics.ghost_step(a, hyper["lr"], problem.logits(old, k), **setting)
        capped += tau < hyper["lr"]
        for p, o, m in zip(params, old, move):
            p[...] = o + tau / hyper["lr"] * m
        kinds = []
        for request in opt.requests():
            kinds.append(request.kind)
            problem.answer(request, mine, grads, k)
        assert kinds == ["gradient", "logit_derivatives"]
        assert worst(mine, params) < 1e-11
        assert opt.get("ghost_step.r") == pytest.approx(r, rel=1e-10)
        assert opt.get("ghost_step.tau") == pytest.approx(tau, rel=1e-10)
        assert opt.get("ghost_step.radius") == pytest.approx(hyper["lr"] / r, rel=1e-10)
    assert capped > 0 or setting.get("quantile") or setting.get("mode") == "set"


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-5), (np.float32, 5e-2)])
def test_ghost_step_from_logits_alone(dtype: Any, limit: float) -> None:
    """The second time the parameters stand fd_eps along the unit direction; afterwards they are back."""
    problem = Softmax()
    text = f"adamw(lr=0.8) | ghost_step(safety=0.5, fd_eps={1e-6 if dtype is np.float64 else 1e-2})"
    exact, params, grads = made(text, problem, dtype)
    opt, mine, mine_grads = made(text, problem, dtype)
    for k in range(5):
        kinds, start, far = [], [p.copy() for p in mine], []
        for request in opt.requests():
            kinds.append((request.kind, request.pass_, request.tag))
            far = [p - s for p, s in zip(mine, start)]
            if len(kinds) == 2:
                assert opt.get("ghost_step.norm") == pytest.approx(np.sqrt(sum(np.sum(u**2) for u in request.probe)), rel=1e-5)
            problem.answer(request, mine, mine_grads, k, "logits")
        assert kinds == [("gradient", 0, 2 * k), ("logit_derivatives", 1, 2 * k), ("logit_derivatives", 2, 2 * k)]
        assert np.sqrt(sum(np.sum(d**2) for d in far)) == pytest.approx(1e-6 if dtype is np.float64 else 1e-2, rel=1e-2)
        for request in exact.requests():
            problem.answer(request, params, grads, k)
        assert opt.get("ghost_step.tau") == pytest.approx(exact.get("ghost_step.tau"), rel=limit)
        for p, q in zip(mine, params):
            q[...] = p  # rounding in the difference is not to add up


def test_ghost_step_radius_is_that_of_the_unit_direction() -> None:
    """lr' = min(lr, safety rho/|u|) with derivatives along u/|u| is the same rule."""
    problem = Softmax()
    opt, params, grads = made("adamw(lr=0.8) | ghost_step(safety=0.5)", problem)
    for request in opt.requests():
        if request.kind == "logit_derivatives":
            norm = np.sqrt(sum(np.sum(u**2) for u in request.probe))
            unit = [u / norm for u in request.probe]
            spread = np.max(np.ptp(problem.x[0] @ unit[0].T + unit[1], axis=1))
        problem.answer(request, params, grads, 0)
    assert opt.get("ghost_step.tau") == pytest.approx(min(0.8, 0.5 * (np.pi / spread) / norm), rel=1e-12)


def test_ghost_step_without_a_limit() -> None:
    problem = Softmax()
    opt, params, grads = made("sgd(lr=0.1, momentum=0.9) | ghost_step", problem)
    plain, others, other_grads = made("sgd(lr=0.1, momentum=0.9)", problem)
    for k in range(4):
        for request in opt.requests():
            if request.kind == "logit_derivatives":
                empty = np.zeros((0, 4)) if k % 2 else np.ones((3, 4))
                request.answer_matrix(empty)
            else:
                problem.answer(request, params, grads, k)
        plain.step(problem.gradient(others, k))
        assert worst(params, others) < 1e-14
        assert (opt.get("ghost_step.r"), opt.get("ghost_step.tau"), opt.get("ghost_step.radius")) == (0, 0.1, np.inf)
    # no update, no question
    opt, params, grads = made("sgd(lr=0.1) | ghost_step(mode=set)", problem)
    assert [r.kind for r in opt.requests()] == ["gradient"]
    assert opt.steps == 1 and worst(params, problem.start()) == 0


def test_ghost_step_with_several_step_sizes() -> None:
    """tau is the largest, the ratios stay; a group whose step size is 0 stays where it is."""
    problem = Softmax()
    for rates in ((0.8, 0.2), (0.8, 0.0)):
        params = problem.start()
        opt = tw.Optimizer([{"params": [params[0]]}, {"params": [params[1]], "lr": rates[1]}], "sgd(lr=0.8) | ghost_step(safety=0.1)")
        grads = [np.zeros_like(p) for p in params]
        before = [p.copy() for p in params]
        for request in opt.requests():
            if request.kind == "gradient":
                request.answer(grads)
            problem.answer(request, params, grads, 0)
        g = problem.gradient(before, 0)
        u = [-g[0], -rates[1] / 0.8 * g[1]]
        tau = 0.1 * np.pi / np.max(np.ptp(problem.x[0] @ u[0].T + u[1], axis=1))
        assert tau < 0.8 and opt.get("ghost_step.tau") == pytest.approx(tau, rel=1e-12)
        for p, old, d in zip(params, before, u):
            np.testing.assert_allclose(p, old + tau * d, rtol=1e-12)


def test_ghost_step_behind_a_route_and_before_what_follows() -> None:
    """One radius for all pipelines; the prox takes the shorter step size."""
    problem = Softmax()
    sentence = "route(matrix=(clip_value(0.05) | muon(lr=0.5)), other=(sgd(lr=0.5))) | ghost_step(safety=0.2) | prox(l1(0.1))"
    opt, params, grads = made(sentence, problem)
    plain, others, _ = made("route(matrix=(clip_value(0.05) | muon(lr=0.5)), other=(sgd(lr=0.5)))", problem)
    start = problem.start()
    for request in opt.requests():
        problem.answer(request, params, grads, 0)
    plain.step(problem.gradient(start, 0))
    u = [(p - s) / 0.5 for p, s in zip(others, start)]
    tau = 0.2 * np.pi / np.max(np.ptp(problem.x[0] @ u[0].T + u[1], axis=1))
    assert tau < 0.5 and opt.get("ghost_step.tau") == pytest.approx(tau, rel=1e-11)
    for p, s, d in zip(params, start, u):
        moved = s + tau * d
        np.testing.assert_allclose(p, np.sign(moved) * np.maximum(np.abs(moved) - 0.1 * tau, 0), rtol=1e-10, atol=1e-12)


def test_ghost_step_refuses_what_does_not_fit() -> None:
    problem = Softmax()
    opt, params, grads = made("adamw(lr=0.8) | ghost_step", problem)
    z = problem.logits(params, 0)
    loop = opt.requests()
    problem.answer(next(loop), params, grads, 0)
    request = next(loop)
    with pytest.raises(tw.ShapeError, match="logits"):
        request.answer_matrix(z, z[:-1])
    with pytest.raises(tw.ShapeError, match="two axes"):
        request.answer_matrix(z[0])
    request.answer_matrix(second=z)
    request = next(loop)
    with pytest.raises(tw.ArgumentError, match="only the logits"):
        request.answer_matrix(z, z)
    with pytest.raises(tw.ShapeError, match="samples"):
        request.answer_matrix(second=z[:-1])
    request.answer_matrix(second=z)
    with pytest.raises(StopIteration):
        next(loop)
    assert opt.steps == 1 and opt.get("ghost_step.r") == 0  # logits that do not change: no limit
    for sentence in ("ghost_step | sgd(lr=0.1)", "sgd(lr=0.1) | ghost_step | cautious", "lars(lr=0.1) | ghost_step",
                     "route(matrix=(sgd(lr=0.1) | ghost_step), other=(sgd(lr=0.1)))",
                     "adam(lr=0.1) | ghost_step | schedule_free", "nigt(lr=0.1) | ghost_step"):
        with pytest.raises(tw.MethodError, match="must|inside|combined"):
            tw.Optimizer([np.ones((2, 2))], sentence)
    for wrong in ("safety=0", "safety=1.5", "quantile=1", "quantile=-0.1", "fd_eps=0"):
        with pytest.raises(tw.RangeError):
            tw.Optimizer([np.ones((2, 2))], f"sgd(lr=0.1) | ghost_step({wrong})")


# ---- mars


def test_exact_mars_asks_at_the_previous_point() -> None:
    problem = Problem(SHAPES)
    for dtype in (np.float64, np.float32, np.float16):
        opt, params, grads = made("mars(lr=0.1, exact=true)", problem, dtype)
        before: Arrays = []
        for k in range(4):
            here, seen = [p.copy() for p in params], []
            for request in opt.requests():
                seen.append((request.kind, request.tag))
                if request.kind == "previous_gradient":
                    assert_same_bits(params, before)
                problem.answer(request, params, grads, k)
            assert seen == [("gradient", 2 * k), ("previous_gradient", 2 * k)][: 1 + (k > 0)]
            before = here
        with pytest.raises(tw.NeedsError, match="previous_gradient"):
            opt.step()


def test_exact_mars_returns_bit_by_bit() -> None:
    """Without a correction and with lr 0 for one group, what was away is back to the last bit."""
    problem = Problem(SHAPES)
    params = problem.start(np.float32)
    opt = tw.Optimizer([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}], "mars(lr=0.1, exact=true)", master=None)
    grads = [np.zeros_like(p) for p in params]
    frozen = [p.copy() for p in params[2:]]
    for k in range(3):
        for request in opt.requests():
            problem.answer(request, params, grads, k)
            request.answer(grads)
    assert_same_bits(params[2:], frozen)


def test_exact_mars_when_a_tensor_pauses() -> None:
    """A tensor that had no gradient at the last step has not moved since: it stays while the others step back."""
    problem = Problem([(3, 2), (2, 3)])
    opt, params, grads = made("mars(lr=0.1, exact=true)", problem)
    history = []
    for k in range(4):
        history.append([p.copy() for p in params])
        for request in opt.requests():
            if request.kind == "previous_gradient" and k == 3:
                assert_same_bits(params, [history[2][0], history[3][1]])
            problem.answer(request, params, grads, k)
            request.answer([grads[0], grads[1] if k != 2 else None])
    assert_same_bits([history[2][1]], [history[3][1]])


# ---- save and resume


def answers(how: str = "both") -> Callable[..., None]:
    return lambda problem, *rest: problem.answer(*rest, how) if isinstance(problem, Softmax) else problem.answer(*rest)


CUTS = [
    ("tract(0.5) | clip_global_norm(1.0) | adamw(lr=0.1)", Problem(SHAPES), answers()),
    ("route(matrix=(tract | adamw(lr=linear(lr=0.1, total=9, end=0.01))), other=(adamw(lr=0.1)))", Problem(SHAPES), answers()),
    ("adamw(lr=linear(lr=0.9, total=9, end=0.3), weight_decay=0.1) | ghost_step(safety=linear(lr=0.9, total=9, end=0.1)) | ema(0.9)", Softmax(), answers()),
    ("prodigy(lr=1.0) | ghost_step(safety=0.5)", Softmax(), answers()),
    ("adamw(lr=0.8) | ghost_step(mode=set, safety=0.3)", Softmax(), answers("logits")),
    ("mars(lr=0.1, exact=true)", Problem(SHAPES), answers()),
    ("sam(linear(lr=0.1, total=9, end=0.5)) | sgd(lr=0.1, momentum=0.9)", Problem(SHAPES), answers()),
    ("oasis(beta2=linear(lr=0.9, total=9, end=0.5))", Problem(SHAPES), answers()),
]


@pytest.mark.parametrize("state", ["f32", "q8"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sentence, problem, answer", CUTS, ids=lambda x: x if isinstance(x, str) else "")
def test_resumes_at_every_request(sentence: str, problem: Any, answer: Any, dtype: Any, state: str, tmp_path: Path) -> None:
    """Saved while the i-th request of a step waits, and finished by another optimizer: the same bits; cancelled there: no trace."""
    opt, params, grads = made(sentence, problem, dtype, state_dtype=state)
    for k in range(4):
        before, saved = snapshot(opt), []
        for i, request in enumerate(opt.requests()):
            opt.save(tmp_path / "state")
            assert (tmp_path / "state").read_bytes() == opt.state_dict()["state"]
            saved.append([p.copy() for p in params])
            for file in (False, True):
                twin, mine, mine_grads = made(sentence, problem, dtype, state_dtype=state)
                for p, q in zip(mine, params):
                    p[...] = q
                if file:
                    twin.load(tmp_path / "state")
                else:
                    twin.load_state_dict(opt.state_dict())
                saved[i].append((twin, mine, mine_grads))  # type: ignore[arg-type]
            broken, mine, mine_grads = made(sentence, problem, dtype, state_dtype=state)
            for p, old in zip(mine, before[0]):
                p[...] = np.frombuffer(old, dtype).reshape(p.shape)
            broken.load_state_dict({"format": 1, "state": before[1]})
            loop = broken.requests()
            for j, r in enumerate(loop):
                if j == i:
                    break
                answer(problem, r, mine, mine_grads, k)
            loop.close()
            assert snapshot(broken) == before
            answer(problem, request, params, grads, k)
        for i, row in enumerate(saved):
            for twin, mine, mine_grads in row[-2:]:
                assert finish(twin, problem, answer, mine, mine_grads, k) == len(saved) - i
                assert snapshot(twin) == snapshot(opt)


def finish(twin: tw.Optimizer, problem: Any, answer: Any, params: Arrays, grads: Arrays, k: int) -> int:
    """Answers what is left of a step that was loaded; returns how many requests that were."""
    count = 0
    for request in twin.requests():
        answer(problem, request, params, grads, k)
        count += 1
    return count


# ---- adapters


def test_adapters_say_what_is_missing() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    model = torch.nn.Linear(3, 2)
    opt = Optimizer(model.parameters(), "tract(0.1) | sgd(lr=0.1)")
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    before = [p.detach().clone() for p in model.parameters()]
    kept: dict[str, Any] = {}

    def plain() -> Any:
        opt.zero_grad()
        kept["z"] = model(x)
        kept["z"].retain_grad()
        loss = ((kept["z"] - y) ** 2).mean()
        loss.backward()
        return loss

    with pytest.raises(tw.NeedsError, match="activations"):
        opt.step(plain)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))

    def closure(request: tw.Request) -> Any:
        if request.kind == "activations":
            request.answer_matrix(x, kept["z"].grad)
            return None
        return plain()

    opt.step(closure)
    want = transforms.TrAct(lam=0.1).gradient(x.double().numpy(), kept["z"].grad.double().numpy())
    np.testing.assert_allclose((before[0] - model.weight.detach()).numpy(), 0.1 * want, rtol=1e-4, atol=1e-6)


def test_jax_says_what_is_missing() -> None:
    pytest.importorskip("jax")
    from thalweg.jax import Optimizer

    opt = Optimizer({"w": np.ones((2, 3), np.float32)}, "tract(0.1) | sgd(lr=0.1)")
    with pytest.raises(tw.NeedsError, match="activations"):
        opt.step(lambda params: (0.0, {"w": np.ones((2, 3), np.float32)}))
    assert np.all(opt.arrays[0] == 1)
