"""Several sources in one sentence, beside plain float64 loops: each asks the one before it.

A gradient is a function of a point, a minibatch and a task.  The leftmost source is nearest to the host: `sam(f)` is the gradient
function that sees `f` twice.  Tolerances as in test_fidelity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import adam, aggregators, diagnostics, muon, oasis, sgd, transforms
from support import Arrays, Problem
from test_answers import Softmax

SHAPES = [(), (7,), (5, 3), (2, 3, 2, 2)]
MATRICES, OTHERS = [2, 3], [0, 1]
STEPS = 12

Gradient = Callable[[Arrays, Any, int], Arrays]  # of a point, on a minibatch, of a task


def norm(tensors: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.square(t)) for t in tensors)))


def sam(below: Gradient, rho: float, of: list[int] | None = None) -> Gradient:
    """`of`: only these tensors are moved and count; the gradient of the others is that at the point itself."""

    def gradient(at: Arrays, batch: Any, task: int = 0) -> Arrays:
        g = below(at, batch, task)
        mine = range(len(g)) if of is None else of
        size = norm([g[i] for i in mine])
        point = [x + rho / (size + 1e-12) * d if i in mine else x for i, (x, d) in enumerate(zip(at, g))]
        away = below(point, batch, task)
        return [away[i] if i in mine else g[i] for i in range(len(g))]

    return gradient


def accumulate(below: Gradient, every: int) -> Gradient:
    def gradient(at: Arrays, batch: Any, task: int = 0) -> Arrays:
        all_ = [below(at, (batch, j), task) for j in range(every)]
        return [sum(gs) / every for gs in zip(*all_)]

    return gradient


def pcgrad(below: Gradient, tasks: int) -> Gradient:
    def gradient(at: Arrays, batch: Any, task: int = 0) -> Arrays:
        rows = [below(at, batch, k) for k in range(tasks)]
        a = aggregators.PCGrad().weights(np.array([np.concatenate([np.ravel(x) for x in g]) for g in rows]))
        return [sum(w * g for w, g in zip(a, gs)) for gs in zip(*rows)]

    return gradient


class Batches:
    """Minibatches by the order in which they are first asked for, on both sides."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.seen = problem, {}

    def __call__(self, at: Arrays, batch: Any, task: int = 0) -> Arrays:
        return self.problem.gradient(at, self.seen.setdefault(batch, len(self.seen)), task)


def library(sentence: str, problem: Problem, steps: int, dtype: Any = np.float64, **options: Any) -> tuple[Arrays, list[list[str]]]:
    params = problem.start(dtype)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    batches, asked = Batches(problem), []
    for _ in range(steps):
        asked.append([])
        for request in opt.requests():
            asked[-1].append(request.kind)
            if request.kind == "hessian_vector":
                values = problem.product(request.probe)
            else:
                values = batches(params, request.tag, request.index if request.kind == "task_gradient" else 0)
            for g, v in zip(grads, values):
                g[...] = v
    return params, asked


def check(mine: Arrays, want: Arrays, dtype: Any) -> None:
    limit = 1e-12 if dtype is np.float64 else 5e-4
    for a, b in zip(mine, want, strict=True):
        assert np.max(np.abs(np.asarray(a, np.float64) - b), initial=0) < limit * max(1.0, np.max(np.abs(b), initial=0))


def train(problem: Problem, rule: Any, gradient: Callable[[Batches], Gradient], steps: int = STEPS, **more: Any) -> Arrays:
    params, host = problem.start(), Batches(problem)
    rule.start(params)
    full = gradient(host)
    for k in range(steps):
        rule.step(params, full(params, k, 0), gradient_at=lambda at, k=k: full(at, k, 0), **more)
    return params


def clipped(gradient: Gradient, limit: float) -> Gradient:
    def of(at: Arrays, batch: Any, task: int = 0) -> Arrays:
        g = gradient(at, batch, task)
        size = norm(g)
        return [d * min(1.0, limit / size) if size > 0 else d for d in g]

    return of


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_accumulation_before_sam(dtype: Any) -> None:
    """Both gradients of sam are means over the same four minibatches."""
    problem = Problem(SHAPES, seed=3)
    mine, asked = library("gradient_accumulate(4) | sam(0.05) | clip_global_norm(1) | adamw(lr=0.05)", problem, STEPS, dtype)
    want = train(problem, adam.AdamW(lr=0.05), lambda f: clipped(sam(accumulate(f, 4), 0.05), 1.0))
    check(mine, want, dtype)
    assert all(kinds == ["gradient"] * 8 for kinds in asked)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sam_before_accumulation(dtype: Any) -> None:
    """Every call of the window has its own perturbation; the step comes with the last."""
    problem = Problem(SHAPES, seed=3)
    mine, asked = library("sam(0.05) | gradient_accumulate(3) | sgd(lr=0.1)", problem, 3 * STEPS, dtype)
    f, params = Batches(problem), problem.start()
    for k in range(STEPS):
        total = [sam(f, 0.05)(params, 3 * k + j, 0) for j in range(3)]
        for p, *gs in zip(params, *total):
            p -= 0.1 * sum(gs) / 3
    check(mine, params, dtype)
    assert all(len(kinds) == 2 for kinds in asked)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pcgrad_before_sam(dtype: Any) -> None:
    problem = Problem(SHAPES, seed=4)
    mine, asked = library("pcgrad(tasks=2) | sam(0.05) | sgd(lr=0.05)", problem, STEPS, dtype)
    check(mine, train(problem, sgd.SGD(lr=0.05), lambda f: sam(pcgrad(f, 2), 0.05)), dtype)
    assert all(kinds == ["task_gradient"] * 4 for kinds in asked)


def test_sam_before_pcgrad() -> None:
    """The perturbation of each task is its own."""
    problem = Problem(SHAPES, seed=4)
    mine, _ = library("sam(0.05) | pcgrad(tasks=2) | sgd(lr=0.05)", problem, STEPS)
    check(mine, train(problem, sgd.SGD(lr=0.05), lambda f: pcgrad(sam(f, 0.05), 2)), np.float64)


def test_sam_within_sam() -> None:
    problem = Problem(SHAPES, seed=5)
    mine, asked = library("sam(0.05) | sam(0.1) | sgd(lr=0.1, momentum=0.9)", problem, STEPS)
    check(mine, train(problem, sgd.SGD(lr=0.1, momentum=0.9), lambda f: sam(sam(f, 0.05), 0.1)), np.float64)
    assert all(len(kinds) == 4 for kinds in asked)


@pytest.mark.parametrize("adaptive", [True, False])
def test_sam_before_a_rule_that_asks(adaptive: bool) -> None:
    """Both gradients of oasis are those of sam, the earlier point's too; Hessian products are the host's, at the parameters."""
    problem, text = Problem(SHAPES, seed=6), f"lr0=0.05, alpha=0.3, adaptive={str(adaptive).lower()}"
    mine, asked = library(f"sam(0.05) | oasis({text})", problem, STEPS, seed=2)
    rule = oasis.OASIS(lr0=0.05, alpha=0.3, adaptive=adaptive)
    want = train(problem, rule, lambda f: sam(f, 0.05), hvp=lambda at, v: problem.product(v),
                 normal=lambda k: [tw.random_normal(2, 1, k, i, int(np.prod(s, dtype=int))).reshape(s) for i, s in enumerate(SHAPES)])
    check(mine, want, np.float64)
    assert asked[1] == ["gradient", "gradient", "hessian_vector"] + ["previous_gradient"] * (2 if adaptive else 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sam_in_a_route(dtype: Any) -> None:
    """Matrices are perturbed, by their own norm; the rest steps along its gradient where nothing is."""
    problem = Problem(SHAPES, seed=7)
    mine, _ = library("route(matrix=(sam(0.1) | muon(lr=0.05)), other=(adamw(lr=0.05)))", problem, STEPS, dtype)
    f, params = Batches(problem), problem.start()
    matrices, others = muon.Muon(lr=0.05), adam.AdamW(lr=0.05)
    matrices.start([params[i] for i in MATRICES])
    others.start([params[i] for i in OTHERS])
    for k in range(STEPS):
        g = sam(f, 0.1, of=MATRICES)(params, k, 0)
        matrices.step([params[i] for i in MATRICES], [g[i] for i in MATRICES])
        others.step([params[i] for i in OTHERS], [g[i] for i in OTHERS])
    check(mine, params, dtype)


def test_sources_of_several_pipelines_of_a_route() -> None:
    """One after the other; each moves its own tensors alone, and both begin with one gradient."""
    problem = Problem(SHAPES, seed=8)
    mine, asked = library("route(matrix=(sam(0.1) | sgd(lr=0.1)), other=(sam(0.3) | adamw(lr=0.05)))", problem, STEPS)
    f, params, rule = Batches(problem), problem.start(), adam.AdamW(lr=0.05)
    rule.start([params[i] for i in OTHERS])
    for k in range(STEPS):
        a, b = sam(f, 0.1, of=MATRICES)(params, k, 0), sam(f, 0.3, of=OTHERS)(params, k, 0)
        for i in MATRICES:
            params[i] -= 0.1 * a[i]
        rule.step([params[i] for i in OTHERS], [b[i] for i in OTHERS])
    check(mine, params, np.float64)
    assert all(len(kinds) == 3 for kinds in asked)


def test_a_source_before_a_route_with_sources() -> None:
    problem = Problem(SHAPES, seed=9)
    mine, _ = library("sam(0.05) | route(matrix=(sam(0.1) | sgd(lr=0.1)), other=(sgd(lr=0.05)))", problem, STEPS)
    f, params = Batches(problem), problem.start()
    for k in range(STEPS):
        g = sam(sam(f, 0.05), 0.1, of=MATRICES)(params, k, 0)
        for i, p in enumerate(params):
            p -= (0.1 if i in MATRICES else 0.05) * g[i]
    check(mine, params, np.float64)


def test_a_rule_that_asks_in_a_route() -> None:
    """spider in one pipeline and svrg in another: what each keeps and asks for is its own tensors' affair."""
    problem = Problem(SHAPES, seed=10, noise=0.0)
    mine, _ = library("route(matrix=(svrg(lr=0.1, inner=3)), other=(sgd(lr=0.1)))", problem, STEPS)
    f, params = Batches(problem), problem.start()
    for k in range(STEPS):  # without noise the estimate of svrg is the gradient itself
        for p, g in zip(params, f(params, k)):
            p -= 0.1 * g
    check(mine, params, np.float64)


def test_tract_in_two_pipelines() -> None:
    shapes = [(5, 3), (4, 6), (7,)]
    problem = Problem(shapes, seed=11)
    params, mine = problem.start(), problem.start()
    grads = [np.zeros_like(p) for p in mine]
    opt = tw.Optimizer([("a", mine[0]), ("b", mine[1]), ("c", mine[2])],
                       'route("a"=(tract(0.1) | sgd(lr=0.02)), "b"=(tract(0.5) | sgd(lr=0.03, momentum=0.9)), other=(sgd(lr=0.1)))')
    opt.bind_gradients(grads)
    buffer = np.zeros(shapes[1])
    for k in range(STEPS):
        g = problem.gradient(params, k)
        for i, lam in ((0, 0.1), (1, 0.5)):
            g[i] = transforms.TrAct(lam=lam).transform([g[i]], layers=[problem.layer(params[i], k)])[0]
        buffer = 0.9 * buffer + g[1]
        for p, d, lr in zip(params, [g[0], buffer, g[2]], [0.02, 0.03, 0.1]):
            p -= lr * d
        kinds = []
        for request in opt.requests():
            kinds.append((request.kind, request.index))
            problem.answer(request, mine, grads, k)
        assert kinds == [("gradient", 0), ("activations", 0), ("activations", 1)]
    check(mine, params, np.float64)


def test_sam_before_ghost_step() -> None:
    problem, rule, capped = Softmax(), adam.AdamW(lr=0.8), 0
    params, mine = problem.start(), problem.start()
    grads = [np.zeros_like(p) for p in mine]
    opt = tw.Optimizer(mine, "sam(0.2) | adamw(lr=0.8) | ghost_step(safety=0.5)")
    opt.bind_gradients(grads)
    rule.start(params)
    for k in range(STEPS):
        old = [p.copy() for p in params]
        rule.step(params, sam(lambda at, batch, task: problem.gradient(at, batch), 0.2)(params, k, 0))
        move = [p - o for p, o in zip(params, old)]
        a = (problem.x[k] @ move[0].T + move[1]) / 0.8
        tau, _ = diagnostics.ghost_step(a, 0.8, problem.logits(old, k), safety=0.5)
        capped += tau < 0.8
        for p, o, m in zip(params, old, move):
            p[...] = o + tau / 0.8 * m
        kinds = []
        for request in opt.requests():
            kinds.append(request.kind)
            problem.answer(request, mine, grads, k)
        assert kinds == ["gradient", "gradient", "logit_derivatives"]
    check(mine, params, np.float64)
    assert capped > 0


@pytest.mark.parametrize("sentence, match", [
    ("clip_global_norm(1) | sam(0.05) | sgd(lr=0.1)", "must stand before"),
    ("sgd(lr=0.1) | sam(0.05)", "before the update rule"),
    ("route(matrix=(sgd(lr=0.1) | ghost_step), other=(sgd(lr=0.1)))", "cannot stand inside route"),
    ("clip_value(1) | route(matrix=(sam | sgd(lr=0.1)), other=(sgd(lr=0.1)))", "must stand before"),
    (" | ".join(["sam(0.05)"] * 17 + ["sgd(lr=0.1)"]), "more than 16"),
])
def test_what_is_refused(sentence: str, match: str) -> None:
    with pytest.raises(tw.MethodError, match=match):
        tw.Optimizer([np.ones((3, 2)), np.ones(4)], sentence)


def test_a_partial_window_is_never_left_open() -> None:
    """A flush between steps has nothing to take: an accumulation before other sources is complete with every step."""
    problem = Problem(SHAPES, seed=12)
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, "gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)")
    opt.bind_gradients(grads)
    for request in opt.requests():
        problem.answer(request, params, grads, 0)
    before = [p.tobytes() for p in params]
    opt.command("gradient_accumulate.flush")
    assert [p.tobytes() for p in params] == before and opt.steps == 1


# ---- losses


@pytest.mark.parametrize("mode, want", [("mean", 2.5), ("sum", 10.0), ("weighted", (4 + 2 * 3 + 3 * 2 + 4 * 1) / 10)])
@pytest.mark.parametrize("before", ["", "sam(0) | "])
def test_the_loss_of_a_window_is_made_as_its_gradient_is(mode: str, want: float, before: str) -> None:
    """polyak_sgd steps by (f - 0)/|g|^2 along g: with unit gradients, or four of them for a sum, that tells f."""
    w, losses = np.zeros(1), iter([4.0, 3.0, 2.0, 1.0])
    opt = tw.Optimizer([w], f"gradient_accumulate(4, mode={mode}) | {before}polyak_sgd(max_lr=1000)")
    opt.bind_gradients([np.ones(1)])
    seen: dict[int, float] = {}
    while opt.steps < 1:
        for request in opt.requests():
            if request.tag not in seen:
                if mode == "weighted":
                    opt.observe("samples", float(len(seen) + 1))
                seen[request.tag] = next(losses)
                assert request.kind == "loss_and_gradient"
            request.loss = seen[request.tag] if request.wants_loss else None
    np.testing.assert_allclose(w, -want / (4 if mode == "sum" else 1), rtol=1e-12)


def test_a_flush_takes_the_loss_of_what_there_is() -> None:
    w = np.zeros(1)
    opt = tw.Optimizer([w], "gradient_accumulate(4) | polyak_sgd(max_lr=1000)")
    for loss in (5.0, 2.0):
        opt.observe("loss", loss)
        opt.step([np.ones(1)])
    opt.command("gradient_accumulate.flush")
    np.testing.assert_allclose(w, -3.5, rtol=1e-12)


@pytest.mark.parametrize("sentence, match", [
    ("gradient_accumulate(4) | spsa", "asks for no gradient"),
    ("sam(0.05) | spsa", "`sam` before it would have nothing to do"),
    ("route(matrix=(spsa), other=(sgd(lr=0.1)))", "cannot stand inside route"),
])
def test_what_has_nothing_to_do_is_refused(sentence: str, match: str) -> None:
    with pytest.raises(tw.MethodError, match=match):
        tw.Optimizer([np.ones((3, 2)), np.ones(4)], sentence)


# ---- what nests


@pytest.mark.parametrize("sentence, minibatches, requests", [
    ("gradient_accumulate(2) | gradient_accumulate(2) | sam | sgd(lr=0.1)", 4, 8),
    ("gradient_accumulate(4) | sam | gradient_accumulate(2) | sam | sgd(lr=0.1)", 8, 32),
    ("gradient_accumulate(2) | route(matrix=(gradient_accumulate(2) | sam | sgd(lr=0.1)), other=(sgd(lr=0.1)))", 4, 8),
    ("gradient_accumulate(2) | gradient_accumulate(2) | gradient_accumulate(2) | sam | sgd(lr=0.1)", 8, 16),
    ("gradient_accumulate(2) | sga_uap(inner_steps=3)", 6, 6),
])
def test_minibatches_of_nested_sources_are_told_apart(sentence: str, minibatches: int, requests: int) -> None:
    w = np.ones((3, 3))
    opt = tw.Optimizer([w], sentence)
    opt.bind_gradients([w.copy()])
    steps = [[request.tag for request in opt.requests()] for _ in range(3)]
    assert all(len(tags) == requests and len(set(tags)) == minibatches for tags in steps)
    assert len({tag for tags in steps for tag in tags}) == 3 * minibatches
    assert all(0 <= tag < 2**63 for tags in steps for tag in tags)


def test_accumulation_within_accumulation() -> None:
    problem = Problem(SHAPES, seed=13)
    mine, _ = library("gradient_accumulate(2) | sam(0.1) | gradient_accumulate(3) | sam(0.05) | sgd(lr=0.1)", problem, 4)
    want = train(problem, sgd.SGD(lr=0.1), lambda f: sam(accumulate(sam(accumulate(f, 2), 0.1), 3), 0.05), 4)
    check(mine, want, np.float64)


@pytest.mark.parametrize("sentence", ["route(matrix=(sgd(lr=0.1)), other=(oasis))", "route(matrix=(oasis), other=(adamw))",
                                      "route(matrix=(harpg(lr=0.1)), other=(sgd(lr=0.1)))",
                                      "route(matrix=(oasis), other=(oasis))"])
def test_the_vector_of_a_request_is_zero_for_other_tensors(sentence: str) -> None:
    shapes = [(), (7,), (8, 4)]
    params = [np.ones(s) for s in shapes]
    opt = tw.Optimizer(params, sentence)
    opt.bind_gradients([np.ones(s) for s in shapes])
    asked = 0
    for _ in range(2):
        for request in opt.requests():
            request.loss = 1.0
            if request.kind != "hessian_vector":
                continue
            asked += 1
            nonzero = [bool(np.all(v != 0)) for v in request.probe]
            assert [v.shape for v in request.probe] == shapes
            assert nonzero in ([True, True, False], [False, False, True])
            assert all(np.all(v == 0) or np.all(v != 0) for v in request.probe)
    assert asked > 0


@pytest.mark.parametrize("sentence", ["u_dog | ghost_step", "sam | u_dog | ghost_step", "sam | oasis | ghost_step"])
def test_derivatives_are_asked_for_at_the_parameters(sentence: str) -> None:
    """Also behind a rule that ends its requests elsewhere; and there is nothing to bring back then."""
    w = np.random.default_rng(0).standard_normal((3, 3))
    opt = tw.Optimizer([w], sentence)
    opt.bind_gradients([np.ones((3, 3))])
    for _ in range(3):
        before, seen = w.copy(), False
        requests = opt.requests()
        for request in requests:
            if request.kind == "logit_derivatives":
                np.testing.assert_array_equal(w, before)
                seen = True
                break
        requests.close()
        assert seen
        np.testing.assert_array_equal(w, before)
        for request in opt.requests():
            if request.kind == "logit_derivatives":
                request.answer_matrix(np.ones((2, 3)) * [[0.0, 1.0, 2.0]])


SINGLE = ["sara(lambda_rank=0.1, min_rank_dim=8)", "psgd_kron", "adalomo"]


@pytest.mark.parametrize("pipeline", SINGLE)
def test_a_pipeline_with_a_source_of_one_gradient(pipeline):
    """step(gradients) and a closure do the same, to the tensors of that pipeline alone: the other one has no such state."""
    rng = np.random.default_rng(0)
    shapes = [(256, 40), (40,)]
    sets = [[rng.standard_normal(s).astype(np.float32) for s in shapes]]
    sets += [[p.copy() for p in sets[0]] for _ in range(2)]
    sentence = f"route(matrix=({pipeline}), other=(sgd(lr=0.1)))"
    with (
        tw.Optimizer(sets[0], sentence) as listed,
        tw.Optimizer(sets[1], sentence) as closed,
        tw.Optimizer(sets[2][1:], "sgd(lr=0.1)") as alone,
    ):
        for _ in range(4):
            grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
            listed.step(grads)
            closed.step(lambda grads=grads: (1.0, grads))
            alone.step(grads[1:])
            for p, q in zip(sets[0], sets[1], strict=True):
                np.testing.assert_array_equal(p, q)
            np.testing.assert_array_equal(sets[0][1], sets[2][1])
            assert np.isfinite(sets[0][0]).all()


@pytest.mark.parametrize("shapes", [[(64, 32), (40,)], [(64, 32)]], ids=["both", "matrices"])
def test_a_pipeline_that_accumulates_wants_requests(shapes):
    params = [np.ones(s, np.float32) for s in shapes]
    with tw.Optimizer(params, "route(matrix=(sgd(lr=0.1)), other=(gradient_accumulate(2) | sgd(lr=0.1)))") as opt:
        with pytest.raises(tw.NeedsError, match="gradient_accumulate asks for more"):
            opt.step([np.ones(s, np.float32) for s in shapes])
        assert all((p == 1).all() for p in params)
        opt.step(lambda: (1.0, [np.ones(s, np.float32) for s in shapes]))
        for p in params:
            np.testing.assert_allclose(p, 0.9, rtol=1e-6)  # one step of either

# ---- a loss that is asked for alone, over a window of minibatches


WINDOWS = {
    "gradient_accumulate(3) | robust_subgm(rule=polyak, lr=1)": (1, 3),
    "gradient_accumulate(3) | upgrad(tasks=2) | robust_subgm(rule=polyak, lr=1)": (2, 3),
    "gradient_accumulate(2) | sam(0.1) | robust_subgm(rule=proportional, lr=0.1)": (1, 2),
    "gradient_accumulate(3) | upgrad(tasks=2) | momo(lr=1)": (2, 3),
    "gradient_accumulate(2) | pcgrad(tasks=2) | lbfgs(lr=1)": (2, 2),
}


def batch_loss(w: np.ndarray, batch: int) -> tuple[float, np.ndarray]:
    a = np.array([1.0, 2, 3]) + batch
    return float(a @ (w - 1) ** 2), 2 * a * (w - 1)


def windowed(opt: tw.Optimizer, w: np.ndarray, tags: dict[int, int], asked: list[tuple[str, int]] | None = None, stop: int = -1) -> bool:
    """One step on minibatches that the tags tell apart, or the part of it before request `stop`."""
    for k, request in enumerate(opt.requests()):
        if k == stop:
            return False
        value, gradient = batch_loss(w, tags.setdefault(request.tag, len(tags)))
        if asked is not None:
            asked.append((request.kind, tags[request.tag]))
        told = {"loss": value} if "loss" in request.kind else {}
        if request.kind == "loss":
            request.answer(**told)
        else:
            request.answer([gradient * (1 + request.index)], **told)
    return True


@pytest.mark.parametrize("sentence", WINDOWS)
def test_a_loss_alone_is_that_of_the_window(sentence: str) -> None:
    """One minibatch with the window's mean as its loss and gradient comes to the same: the mean of these is linear."""
    tasks, every = WINDOWS[sentence]
    mean, _, rest = sentence.partition(" | ")
    w, plain, asked = np.array([2.0, 3, -1]), np.array([2.0, 3, -1]), []
    opt, one = tw.Optimizer([w], sentence), tw.Optimizer([plain], rest)
    for _ in range(3):
        tags: dict[int, int] = {}
        assert windowed(opt, w, tags, asked)
        for request in one.requests():
            parts = [batch_loss(plain, k) for k in range(every)]
            value, gradient = (sum(p[k] for p in parts) / every for k in (0, 1))
            told = {"loss": value} if "loss" in request.kind else {}
            if request.kind == "loss":
                request.answer(**told)
            else:
                request.answer([gradient * (1 + request.index)], **told)
        # sums of other orders
        np.testing.assert_allclose(w, plain, rtol=1e-10, atol=1e-12)
    losses = [batch for kind, batch in asked if kind == "loss"]
    assert len(losses) % every == 0 and losses[:every] == list(range(every))


@pytest.mark.parametrize("sentence", WINDOWS)
def test_a_window_of_losses_resumes_at_every_request(sentence: str) -> None:
    straight, tags = np.array([2.0, 3, -1]), {}
    first = tw.Optimizer([straight], sentence)
    asked: list[tuple[str, int]] = []
    windowed(first, straight, tags, asked)
    for stop in range(1, len(asked)):
        w, tags = np.array([2.0, 3, -1]), {}
        opt = tw.Optimizer([w], sentence)
        assert not windowed(opt, w, tags, stop=stop)
        state, twin = opt.state_dict(), w.copy()
        other = tw.Optimizer([twin], sentence)
        other.load_state_dict(state)
        assert windowed(other, twin, tags)
        np.testing.assert_array_equal(twin, straight)


def test_windows_that_sum_or_weigh() -> None:
    for mode, want in (("sum", 10.0 + 30), ("weighted", (10 * 1 + 30 * 3) / 4)):
        w = np.array([1.0, 0])
        opt = tw.Optimizer([w], f"gradient_accumulate(2, mode={mode}) | robust_subgm(rule=proportional, lr=0)")
        seen = 0
        for request in opt.requests():
            second = seen % 2 == 1
            if mode == "weighted":
                opt.observe("samples", 3.0 if second else 1.0)
            seen += 1
            if request.kind == "loss":
                request.answer(loss=30.0 if second else 10.0)
            else:
                request.answer([np.array([1.0, 0])])
        assert opt.get("robust_subgm.length") == pytest.approx(want, rel=1e-14) and seen == 4
