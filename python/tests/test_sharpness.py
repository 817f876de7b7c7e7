"""Sharpness-aware perturbations and shaping of gradients: groups, what is observed, several tasks, laws and peers.

Whole runs of every setting stand in test_fidelity.py.  Two float64 programs of one formula differ by rounding alone:
1e-12 relative after a few hundred operations; wider limits say why.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference import perturbations, privacy, sharpness, shaping
from support import Arrays, Problem, stage

SHAPES = [(7,), (5, 3), (2, 3, 2, 2)]
STEPS = 12


class Quartic:
    """sum_i l_i w_i^2/2 + q sum w^4/4 over tensors, one l for each task: a smooth toy with a known Hessian."""

    def __init__(self, seed: int = 0, shapes: list[tuple[int, ...]] = SHAPES, q: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        self.q, self.w = q, [rng.standard_normal(s) for s in shapes]
        self.l = [[rng.uniform(0.5, 2, s) for s in shapes] for _ in range(2)]

    def gradient(self, w: Any, task: int = 0) -> Arrays:
        return [l * np.asarray(x, np.float64) + self.q * np.asarray(x, np.float64) ** 3 for l, x in zip(self.l[task], w)]

    def product(self, w: Arrays, v: Arrays) -> Arrays:
        return [(l + 3 * self.q * x * x) * y for l, x, y in zip(self.l[0], w, v)]


def library(sentence: str, toy: Quartic, steps: int, groups: Any = None, tell: Callable[[tw.Optimizer, int], None] | None = None,
            seen: list[Arrays] | None = None) -> tuple[Arrays, tw.Optimizer]:
    """Runs on the toy; `seen` gathers the points at which gradients were asked for."""
    params = [w.copy() for w in toy.w]
    bound = params if groups is None else [{"params": [params[i] for i in m], "name": n, **o} for n, m, o in groups]
    opt = tw.Optimizer(bound, sentence, seed=11)
    grads = [np.zeros_like(p) for p in opt.params]
    opt.bind_gradients(grads)
    where = [next(i for i, q in enumerate(params) if q is p) for p in opt.params]
    for k in range(steps):
        if tell:
            tell(opt, k)
        for request in opt.requests():
            if seen is not None:
                seen.append([p.copy() for p in params])
            values = toy.gradient(params, request.index if request.kind == "task_gradient" else 0)
            for i, g in zip(where, grads):
                g[...] = values[i]
    return params, opt


def loop(perturbed: Callable[[Arrays, Arrays], Arrays], toy: Quartic, steps: int = STEPS) -> Arrays:
    """sgd(lr=0.1, momentum=0.9) on what `perturbed` makes."""
    params = [w.copy() for w in toy.w]
    buffers = [np.zeros_like(w) for w in params]
    for _ in range(steps):
        for w, b, g in zip(params, buffers, perturbed(params, toy.gradient(params))):
            b[...] = 0.9 * b + g
            w -= 0.1 * b
    return params


def close(mine: Arrays, want: Any, limit: float = 1e-12) -> None:
    for a, b in zip(mine, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=limit, atol=limit)


SGD = "sgd(lr=0.1, momentum=0.9)"


# ---- groups


def test_groups_of_asam() -> None:
    """Biases are measured plainly; one norm for all."""
    toy = Quartic()
    groups = [("weights", [1, 2], {}), ("biases", [0], {"asam.normalized": False, "asam.rho": 0.3})]
    mine, _ = library(f"asam(0.1, eta=0.02) | {SGD}", toy, STEPS, groups)

    def perturbed(w: Arrays, g: Arrays) -> Arrays:
        t = [np.ones_like(w[0]), np.abs(w[1]) + 0.02, np.abs(w[2]) + 0.02]
        norm = math.sqrt(sum(np.sum((a * x) ** 2) for a, x in zip(t, g)))
        return toy.gradient([x + r / norm * a * a * y for x, a, y, r in zip(w, t, g, [0.3, 0.1, 0.1])])

    close(mine, loop(perturbed, toy))


@pytest.mark.parametrize("mode", ["sam", "asam_elementwise"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sam_on_moves_its_layers_alone(mode: str, norm: str) -> None:
    toy, ref, seen = Quartic(), sharpness.SAMON(rho=0.2, mode=mode, norm=norm), []
    groups = [("rest", [1], {"sam_on.perturb": False}), ("scales", [2], {}), ("shifts", [0], {"sam_on.normalize": False})]
    mine, _ = library(f"sam_on(0.2, mode={mode}, norm={norm}) | {SGD}", toy, STEPS, groups, seen=seen)
    close(mine, loop(lambda w, g: ref.perturbed(w, g, toy.gradient, of=[0, 2], plain=(0,)), toy))
    for at, away in zip(seen[::2], seen[1::2]):
        np.testing.assert_array_equal(at[1], away[1])
        assert (at[0] != away[0]).any() and (at[2] != away[2]).any()
    if mode == "sam" and norm == "l2":
        move = math.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(seen[0], seen[1])))
        assert move == pytest.approx(0.2, rel=1e-12)


def test_sam_on_everywhere_is_sam() -> None:
    toy = Quartic()
    close(library(f"sam_on(0.2, mode=sam) | {SGD}", toy, STEPS)[0], library(f"sam(0.2) | {SGD}", toy, STEPS)[0])


FLAGS = [("rest", [1], {"sam_on.perturb": False}), ("scales", [2], {}), ("shifts", [0], {"sam_on.normalize": False})]


def on(sentence: str, weights: Arrays, groups: Any = FLAGS) -> tw.Optimizer:
    return tw.Optimizer([{"params": [weights[i] for i in m], "name": n, **o} for n, m, o in groups], sentence)


def answers(opt: tw.Optimizer, toy: Quartic, requests: Any) -> None:
    for request in requests:
        at = {id(w): k for k, w in enumerate(toy.w)}
        values = toy.gradient(toy.w)
        request.answer([values[at[id(p)]] for p in opt.params])


@pytest.mark.parametrize("mode", ["sam", "asam_elementwise", "asam_layerwise"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sam_on_keeps_what_it_touches_alone(mode: str, norm: str) -> None:
    """The rest is as large as one likes: it is neither kept nor moved, and steps with the second gradient."""
    toy = Quartic(shapes=[(7,), (300, 5), (3,)])
    opt, ref = on(f"sam_on(0.2, mode={mode}, norm={norm}) | {SGD}", toy.w), sharpness.SAMON(rho=0.2, mode=mode, norm=norm)

    def kept() -> dict[int, int]:
        return {r.tensor: r.bytes for r in opt.memory_report().rows if r.slot == "point"}

    assert kept() == {1: 3 * 8, 2: 7 * 8}  # (tensor 0 is the rest)
    want, start = [w.copy() for w in toy.w], [w.copy() for w in toy.w]
    buffer = [np.zeros_like(w) for w in want]
    for _ in range(5):
        g = ref.perturbed(want, toy.gradient(want), toy.gradient, of=[0, 2], plain=(0,))
        buffer = [0.9 * m + x for m, x in zip(buffer, g)]
        want = [w - 0.1 * m for w, m in zip(want, buffer)]
        answers(opt, toy, opt.requests())
    close(toy.w, want)
    assert (toy.w[1] != start[1]).all() and kept() == {1: 24, 2: 56}
    # a file from within a step has no more
    within = iter(opt.requests())
    answers(opt, toy, [next(within)])
    next(within)
    names = {name for name in opt.state_dict()["state"].decode("latin1").split('"') if name.endswith("/point")}
    assert names == {"1/0.sam_on/point", "2/0.sam_on/point"}


def test_sam_on_resumes_at_every_request() -> None:
    """Into an optimizer with the same flags, and into one whose groups say nothing yet: the file has the flags."""
    plain = [(n, m, {}) for n, m, _ in FLAGS]
    for stop in range(6):
        for groups in (FLAGS, plain):
            straight, half = Quartic(), Quartic()
            opt, first = on(f"sam_on(0.2) | {SGD}", straight.w), on(f"sam_on(0.2) | {SGD}", half.w)
            for _ in range(3):
                answers(opt, straight, opt.requests())
            for _ in range(stop // 2):
                answers(first, half, first.requests())
            if stop % 2:
                within = iter(first.requests())
                answers(first, half, [next(within)])
                next(within)
            state, twin = first.state_dict(), Quartic()
            for mine, theirs in zip(twin.w, half.w):
                mine[...] = theirs
            second = on(f"sam_on(0.2) | {SGD}", twin.w, groups)
            second.load_state_dict(state)
            for _ in range(stop // 2, 3):
                answers(second, twin, second.requests())
            for a, b in zip(twin.w, straight.w):
                np.testing.assert_array_equal(a, b)


def test_sam_on_broken_off_comes_home() -> None:
    toy = Quartic()
    opt = on(f"sam_on(0.2) | {SGD}", toy.w)
    answers(opt, toy, opt.requests())
    before = [w.copy() for w in toy.w]
    within = iter(opt.requests())
    answers(opt, toy, [next(within)])
    next(within)
    assert (toy.w[0] != before[0]).any()
    opt.cancel()
    for a, b in zip(toy.w, before):
        np.testing.assert_array_equal(a, b)


def test_flags_of_sam_on_change_between_steps() -> None:
    toy, ref = Quartic(), sharpness.SAMON(rho=0.2, mode="sam")
    opt, want = on("sam_on(0.2, mode=sam) | sgd(lr=0.1)", toy.w), [w.copy() for w in toy.w]
    for k, of in enumerate([[0, 2], [0, 1, 2], [1], [1], [0, 2]]):
        for name, i in (("shifts", 0), ("rest", 1), ("scales", 2)):
            opt.set("sam_on.perturb", i in of, group=name)
        assert sum(r.slot == "point" for r in opt.memory_report().rows) == len(of)
        want = [w - 0.1 * g for w, g in zip(want, ref.perturbed(want, toy.gradient(want), toy.gradient, of=of))]
        answers(opt, toy, opt.requests())
        close(toy.w, want)


def test_sam_on_without_a_flag_is_refused() -> None:
    """At the first step, so that a host may flag what it has added."""
    toy = Quartic()
    before = [w.copy() for w in toy.w]
    opt = on(f"sam_on(0.2) | {SGD}", toy.w, [("all", [0, 1, 2], {"sam_on.perturb": False})])
    with pytest.raises(tw.SequenceError, match=r"sam_on: no tensor is flagged.*set `sam_on\.perturb` to true in the group"):
        answers(opt, toy, opt.requests())
    assert opt.steps == 0 and all((a == b).all() for a, b in zip(toy.w, before))
    opt.set("sam_on.perturb", True, group="all")
    answers(opt, toy, opt.requests())
    assert opt.steps == 1
    # all that is flagged has no gradient this time: the rest steps plainly
    few = Quartic()
    opt, start = on("sam_on(0.2) | sgd(lr=0.1)", few.w), [w.copy() for w in few.w]
    for request in opt.requests():
        request.answer([few.gradient(few.w)[1], None, None])
    close([few.w[1]], [start[1] - 0.1 * few.gradient(start)[1]])
    assert (few.w[0] == start[0]).all()


def test_a_file_of_sam_on_with_all_its_tensors_loads() -> None:
    """Versions before kept the parameters of every tensor within a step."""
    def fresh() -> tuple[Arrays, tw.Optimizer]:
        w = [np.linspace(-1, 1, 5), np.array([0.5, -0.25, 2.0]), np.array([0.125, -1.5])]
        flags = [("rest", [0], {"sam_on.perturb": False}), ("scales", [1], {}), ("shifts", [2], {"sam_on.normalize": False})]
        return w, on("sam_on(0.3) | sgd(lr=0.1, momentum=0.9)", w, flags)

    def steps(w: Arrays, opt: tw.Optimizer, count: int) -> None:
        for _ in range(count):
            for request in opt.requests():
                request.answer([x + 0.3 * x**3 for x in w])

    straight, plain = fresh()
    steps(straight, plain, 3)
    w, opt = fresh()
    opt.load(Path(__file__).parent / "data" / "sam_on_within.safetensors")
    steps(w, opt, 1)
    for a, b in zip(w, straight):  # rounding of other processors
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)
    assert opt.steps == 3


def test_fsam_keeps_groups_that_are_not_masked() -> None:
    toy, ref = Quartic(), sharpness.FSAM(rho=0.4, keep_ratio=0.3, refresh_every=3)
    ref.fixed = (0,)
    mine, _ = library(f"fsam(0.4, keep_ratio=0.3, refresh_every=3) | {SGD}", toy, STEPS, [("m", [1, 2], {}), ("b", [0], {"fsam.maskable": False})])
    close(mine, loop(lambda w, g: ref.perturbed(w, g, toy.gradient), toy))


def test_fsam_masks() -> None:
    toy, seen = Quartic(shapes=[(1000,), (50, 41)]), []
    _, opt = library("fsam(0.4, keep_ratio=0.1, refresh_every=2) | sgd(lr=0.1)", toy, 3, seen=seen)
    moved = [np.concatenate([np.ravel(a != b) for a, b in zip(at, away)]) for at, away in zip(seen[::2], seen[1::2])]
    assert [m.sum() for m in moved] == [305, 305, 305]
    assert (moved[0] == moved[1]).all() and (moved[0] != moved[2]).any()
    g = np.abs(np.concatenate([np.ravel(x) for x in toy.gradient(toy.w)]))
    assert g[moved[0]].min() >= g[~moved[0]].max()
    # of ties with the last one kept the first are kept
    even = Quartic(shapes=[(64,)])
    even.w, even.l[0] = [np.ones(64)], [np.ones(64)]
    seen.clear()
    library("fsam(0.4, keep_ratio=0.1) | sgd(lr=0.1)", even, 1, seen=seen)
    np.testing.assert_array_equal(seen[0][0] != seen[1][0], np.arange(64) < 6)


# ---- what is observed


def test_dnsam_divides_by_the_norm_it_was_told() -> None:
    toy, ref = Quartic(), sharpness.DNSAM(rho=0.3)
    told = {0: None, 3: 2.5, 7: 0.4, 9: 0.0}
    mine, _ = library(f"dnsam(0.3) | {SGD}", toy, STEPS, tell=lambda o, k: o.observe("full_gradient_norm", told[k]) if told.get(k) is not None else None)
    step = iter(range(STEPS))

    def perturbed(w: Arrays, g: Arrays) -> Arrays:
        k = next(step)
        ref.full_norm = told.get(k, ref.full_norm)
        return ref.perturbed(w, g, toy.gradient)

    close(mine, loop(perturbed, toy))


@pytest.mark.parametrize("adaptive", [True, False])
def test_tram_has_the_radius_it_was_told(adaptive: bool) -> None:
    toy, ref = Quartic(), sharpness.TRAM(scale=0.5, adaptive=adaptive)
    told, seen = [0.0 if k == 0 else 0.1 * (k % 4 + 1) for k in range(STEPS)], []
    mine, _ = library(f"tram(0.5, adaptive={str(adaptive).lower()}) | {SGD}", toy, STEPS, tell=lambda o, k: o.observe("divergence", told[k]), seen=seen)
    step = iter(told)

    def perturbed(w: Arrays, g: Arrays) -> Arrays:
        ref.divergence = next(step)
        return ref.perturbed(w, g, toy.gradient)

    close(mine, loop(perturbed, toy))
    if not adaptive:
        moves = [math.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(at, away))) for at, away in zip(seen[::2], seen[1::2])]
        np.testing.assert_allclose(moves, [0.5 * d for d in told], rtol=1e-10)


@pytest.mark.parametrize("name, what", [("dnsam", "full_gradient_norm"), ("tram", "divergence")])
@pytest.mark.parametrize("value", [-1.0, math.inf])
def test_what_is_observed_is_checked(name: str, what: str, value: float) -> None:
    toy = Quartic()
    with pytest.raises(tw.Error):
        library(f"{name} | sgd(lr=0.1)", toy, 1, tell=lambda o, k: o.observe(what, value))


# ---- several tasks


def test_imbsam() -> None:
    toy, ref = Quartic(), sharpness.ImbSAM(rho=0.3)
    mine, _ = library(f"imbsam(0.3) | {SGD}", toy, STEPS)
    close(mine, loop(lambda w, g: ref.perturbed(w, toy.gradient), toy))
    toy.l[1], toy.q = [0 * l for l in toy.l[1]], 0.0  # no rare sample: two requests, and a plain step
    seen: list[Arrays] = []
    close(library(f"imbsam(0.3) | {SGD}", toy, 3, seen=seen)[0], library(SGD, toy, 3)[0])
    assert len(seen) == 6


@pytest.mark.parametrize("setting", [{}, {"lambda0": 0.2, "eta_lambda": 0.5, "epsilon": 0.5, "clamp": True}, {"lambda0": 0.3, "eta_lambda": 0.0},
                                     {"lambda0": 0.2, "eta_lambda": 1.0, "epsilon": 0.05, "r": 0.01}])
def test_ignite(setting: dict[str, Any]) -> None:
    toy, ref = Quartic(), sharpness.IGNITE(**setting)
    mine, opt = library(f"{stage('ignite', setting)} | {SGD}", toy, STEPS)
    close(mine, loop(lambda w, g: ref.perturbed(w, toy.gradient), toy), 1e-10)  # a difference of gradients over r
    assert opt.get("ignite.lambda") == pytest.approx(ref.multiplier, rel=1e-10, abs=1e-14)


# ---- laws


def test_first_order() -> None:
    """gnp is g + alpha*r*Hg/|g| to first order; with alpha 1 it is sam."""
    toy = Quartic()
    g = toy.gradient(toy.w)
    n = math.sqrt(sum(np.sum(x * x) for x in g))
    errors = []
    for r in (1e-2, 5e-3):
        mine, _ = library(f"gnp({r}, alpha=0.6) | sgd(lr=1.0)", toy, 1)
        want = [x + 0.6 * r / n * h for x, h in zip(g, toy.product(toy.w, g))]
        errors.append(max(np.max(np.abs((w - p) - x)) for w, p, x in zip(toy.w, mine, want)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    for same in ("gnp(0.1, alpha=1)", "gsam(0.1, alpha=0)", "esam(0.1, beta=1)", "fsam(0.1, keep_ratio=1, eps=1e-12)", "looksam(0.1, k=1)",
                 "friendly_sam(0.1, sigma=0)", "asam(0.1, normalized=false)", "dnsam(0.1)"):
        close(library(f"{same} | {SGD}", toy, STEPS)[0], library(f"sam(0.1) | {SGD}", toy, STEPS)[0])
    close(library(f"usam(0.1) | {SGD}", toy, STEPS)[0], library(f"fd_grad_reg(0.1, eps=0.1) | {SGD}", toy, STEPS)[0])


def test_asam_does_not_see_a_rescaling() -> None:
    """w -> D w, g -> g/D gives e -> D e with eta 0."""
    toy, seen = Quartic(), []
    library("asam(0.3, eta=0) | sgd(lr=0.1)", toy, 1, seen=seen)
    d = [np.random.default_rng(1).uniform(0.1, 10, w.shape) for w in toy.w]
    params, grads = [a * w for a, w in zip(d, toy.w)], [g / a for a, g in zip(d, toy.gradient(toy.w))]
    opt = tw.Optimizer(params, "asam(0.3, eta=0) | sgd(lr=0.1)")
    loop_ = opt.requests()
    next(loop_).answer(grads)
    next(loop_)
    close(params, [a * w for a, w in zip(d, seen[1])])
    loop_.close()
    close(params, [a * w for a, w in zip(d, toy.w)], 0)


def test_usam_on_a_parabola() -> None:
    w = np.array([1.0])
    opt = tw.Optimizer([w], "usam(0.3) | sgd(lr=0.1)")
    for request in opt.requests():
        request.answer([2.0 * w])
    assert w[0] == pytest.approx(1 - 0.1 * 2 * (1 + 0.3 * 2), rel=1e-15)


def test_gsam_keeps_the_part_along_the_second_gradient() -> None:
    toy, seen = Quartic(), []
    mine, _ = library("gsam(0.3, alpha=0.7) | sgd(lr=1.0)", toy, 1, seen=seen)
    new = toy.gradient(seen[1])
    out = [w - p for w, p in zip(toy.w, mine)]
    assert sum(np.sum(a * b) for a, b in zip(out, new)) == pytest.approx(sum(np.sum(b * b) for b in new), rel=1e-10)


def test_looksam_adds_a_part_across() -> None:
    toy, seen = Quartic(), []
    mine, _ = library("looksam(0.5, k=4, alpha=0.6) | sgd(lr=0.01)", toy, 2, seen=seen)
    assert len(seen) == 3
    g = toy.gradient(seen[2])
    extra = np.concatenate([np.ravel((a - b) / 0.01 - x) for a, b, x in zip(seen[2], mine, g)])
    size = math.sqrt(sum(np.sum(x * x) for x in g))
    assert np.linalg.norm(extra) == pytest.approx(0.6 * size, rel=1e-6)


def test_friendly_sam_rests_on_a_steady_gradient() -> None:
    w, moves = np.zeros(5), []
    opt = tw.Optimizer([w], "friendly_sam(0.3) | sgd(lr=0.0)")
    for _ in range(4):
        for request in opt.requests():
            moves.append(np.abs(w).max())
            request.answer([np.arange(1.0, 6.0)])
    assert moves[1] > 0.1 and max(moves[3::2]) < 1e-14


def test_amp_stays_in_its_ball() -> None:
    toy, seen = Quartic(), []
    library("amp(0.2, inner_lr=0.7, inner_iter=4, scope=global) | sgd(lr=0.1)", toy, 1, seen=seen)
    lengths = [math.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(at, seen[0]))) for at in seen]
    assert lengths[0] == 0 and len(seen) == 5
    np.testing.assert_allclose(lengths[1:], 0.2, rtol=1e-10)
    seen.clear()
    library("amp(1e9, inner_lr=0.7) | sgd(lr=0.1)", toy, 1, seen=seen)
    close([b - a for a, b in zip(seen[0], seen[1])], [0.7 * g for g in toy.gradient(toy.w)])


def test_avg_sam_draws_its_displacement() -> None:
    toy, seen = Quartic(shapes=[(200, 50)]), []
    library("avg_sam(0.3) | sgd(lr=0.1)", toy, 3, seen=seen)
    assert len(seen) == 4  # the first step asks twice
    noise = (seen[1][0] - seen[0][0]) / 0.3
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.03)
    # a quadratic: the mean perturbed loss rises by sigma^2 tr(H)/2
    l = np.linspace(0.5, 2, 10_000).reshape(200, 50)
    rise = np.sum(0.5 * l * (seen[1][0] ** 2 - seen[0][0] ** 2) - l * seen[0][0] * (seen[1][0] - seen[0][0]))
    assert rise == pytest.approx(0.3**2 * l.sum() / 2, rel=0.05)


def test_esam_draws_a_share() -> None:
    toy, seen = Quartic(shapes=[(200, 50)]), []
    library("esam(0.3, beta=0.25) | sgd(lr=0.1)", toy, 1, seen=seen)
    e, g = seen[1][0] - seen[0][0], toy.gradient(toy.w)[0]
    assert np.mean(e != 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(e[e != 0], (4 * 0.3 * g / np.linalg.norm(g))[e != 0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sentence", ["asam", "sam_on", "gsam", "gsam(adaptive=true)", "gnp", "friendly_sam", "looksam", "esam", "fsam", "amp",
                                      "tram", "dnsam", "imbsam", "ignite", "usam"])
def test_zero_gradients_move_nothing(sentence: str) -> None:
    w = [np.zeros(3), np.full(2, 0.5)]
    opt = tw.Optimizer(w, f"{sentence} | sgd(lr=0.1)")
    for _ in range(3):
        for request in opt.requests():
            assert (w[0] == 0).all() and (w[1] == 0.5).all()
            request.answer([np.zeros(3), np.zeros(2)])
    assert (w[0] == 0).all() and (w[1] == 0.5).all()


# ---- composed with other sources


def test_accumulation_and_clipping_around_gsam() -> None:
    """Both gradients are means of two minibatches; clipping sees what gsam makes."""
    problem, ref = Problem(SHAPES, seed=3), sharpness.GSAM(rho=0.2)
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, "gradient_accumulate(2) | gsam(0.2) | clip_global_norm(0.5) | sgd(lr=0.1)")
    opt.bind_gradients(grads)
    want, tags = problem.start(), {}
    for k in range(8):
        for request in opt.requests():
            batch = tags.setdefault(request.tag, len(tags))
            for g, v in zip(grads, problem.gradient(params, batch)):
                g[...] = v

        def mean(at: Arrays, k: int = k) -> Arrays:
            return [(a + b) / 2 for a, b in zip(problem.gradient(at, 2 * k), problem.gradient(at, 2 * k + 1))]

        d = ref.perturbed(want, mean(want), mean)
        size = math.sqrt(sum(np.sum(x * x) for x in d))
        for w, x in zip(want, d):
            w -= 0.1 * x * min(1.0, 0.5 / size)
    close(params, want)


def test_looksam_does_not_reuse_what_rounding_leaves() -> None:
    """The gradients of one number are parallel: there is no part across."""
    for dtype, precision in ((np.float32, 1e-5), (np.float64, 1e-13)):  # the move, from the difference of two points
        w = np.array([1], dtype)
        opt = tw.Optimizer([w], "looksam(k=2) | sgd(lr=0.01)")
        for k in range(6):
            before, gradient = w.copy(), 1.3 * w + 0.3 * w**3
            opt.step(lambda: (0.0, [1.3 * w + 0.3 * w**3]))
            if k % 2:
                np.testing.assert_allclose(before - w, 0.01 * gradient, rtol=precision)


def test_looksam_asks_avg_sam() -> None:
    """Every gradient of looksam is one at a random point nearby; within a step the point has the same displacement."""
    toy = Quartic()
    mine, _ = library("avg_sam(0.2) | looksam(0.3, k=2) | sgd(lr=0.1)", toy, 5)
    ref, want = sharpness.LookSAM(rho=0.3, k=2), [w.copy() for w in toy.w]
    for k in range(5):
        z = [tw.random_normal(11, 0, k, i, math.prod(s)).reshape(s) for i, s in enumerate(SHAPES)]

        def nearby(at: Arrays, z: Arrays = z) -> Arrays:
            return toy.gradient([a + 0.2 * x for a, x in zip(at, z)])

        for w, x in zip(want, ref.perturbed(want, nearby(want), nearby)):
            w -= 0.1 * x
    close(mine, want)


# ---- peers


def test_equal_to_pytorch_optimizer() -> None:
    torch, po = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    toy = Quartic(shapes=[(3, 4)])

    def theirs(cls: Any, **more: Any) -> np.ndarray:
        p = torch.nn.Parameter(torch.from_numpy(toy.w[0].copy()))
        peer = cls([p], torch.optim.SGD, lr=0.1, momentum=0.9, **more)

        def fill() -> None:
            p.grad = torch.from_numpy(toy.gradient([p.detach().numpy()])[0])

        for _ in range(STEPS):
            fill()
            peer.first_step()
            fill()
            peer.second_step()
        return np.asarray(p.detach().numpy())

    # their norm is a float32 number; one tensor, so that norms of a tensor are those of all
    for sentence, want in {
        "asam(0.3, eta=0)": theirs(po.SAM, rho=0.3, adaptive=True),
        "friendly_sam(0.3, lmbda=0.8)": theirs(po.FriendlySAM, rho=0.3, lmbda=0.8),
        "friendly_sam(0.3, sigma=0.5)": theirs(po.FriendlySAM, rho=0.3, sigma=0.5),
    }.items():
        np.testing.assert_allclose(library(f"{sentence} | {SGD}", toy, STEPS)[0][0], want, rtol=1e-5, atol=1e-6, err_msg=sentence)


def test_shaping_equals_peers() -> None:
    torch, po = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    rng = np.random.default_rng(2)
    for shape in [(5,), (4, 3), (3, 2, 2, 2)]:
        w, g = rng.standard_normal(shape), rng.standard_normal(shape)
        mine = w.copy()
        tw.Optimizer([mine], "agc(0.1) | sgd(lr=1.0)").step([g])
        theirs = po.agc(torch.from_numpy(w), torch.from_numpy(g.copy()), agc_clip_val=0.1, agc_eps=1e-3)
        np.testing.assert_allclose(w - mine, theirs.numpy(), rtol=1e-12, atol=1e-14)
        mine = w.copy()
        tw.Optimizer([mine], "gradient_centralization | sgd(lr=1.0)").step([g])
        centred = torch.from_numpy(g.copy())
        po.centralize_gradient(centred, gc_conv_only=False)
        np.testing.assert_allclose(w - mine, centred.numpy(), rtol=1e-12, atol=1e-14)


def test_clip_block_rms_and_agc_equal_optax() -> None:
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(2)
    w, g = rng.standard_normal((4, 3)).astype(np.float32), 3 * rng.standard_normal((4, 3)).astype(np.float32)
    for sentence, rule, turned in [("clip_block_rms(0.5)", optax.clip_by_block_rms(0.5), False), ("agc(0.1)", optax.adaptive_grad_clip(0.1), True)]:
        mine = np.zeros_like(w) if not turned else w.copy()
        tw.Optimizer([mine], f"{sentence} | sgd(lr=1.0)").step([g])
        a, b = (g.T, w.T) if turned else (g, w)  # its kernels are stored (in, out)
        want = np.asarray(rule.update(a, rule.init(b), b)[0])
        np.testing.assert_allclose((w if turned else 0) - mine, want.T if turned else want, rtol=1e-5, atol=1e-6)


# ---- shaping: laws


def test_clipped_sgd_is_the_median_without_memory() -> None:
    problem = Problem(SHAPES, seed=4)
    runs = []
    for sentence in ("clipped_sgd(lr=0.1, clip=0.3)", "online_median_gradient(0.3, carry=false) | sgd(lr=0.1)", "clip_global_norm(0.3) | sgd(lr=0.1)"):
        params = problem.start()
        opt = tw.Optimizer(params, sentence)
        for k in range(10):
            opt.step(problem.gradient(params, k))
        runs.append(params)
    close(runs[0], runs[1])
    close(runs[0], runs[2])
    w = np.array([100.0])
    opt = tw.Optimizer([w], "clipped_sgd(lr=0.1, clip=1)")
    for _ in range(1500):
        opt.step([w.copy()])
    assert abs(w[0]) < 1e-6  # without noise clipping does not move the optimum


@pytest.mark.parametrize("norm", ["l1", "l2", "huber", "square"])
def test_online_median_is_a_proximal_point(norm: str) -> None:
    rng = np.random.default_rng(7)
    distance: dict[str, Callable[[np.ndarray], float]] = {
        "l1": lambda z: float(np.abs(z).sum()), "l2": lambda z: float(np.linalg.norm(z)), "square": lambda z: float(z @ z) / 2,
        "huber": lambda z: float(z @ z) / 2 if np.linalg.norm(z) <= 0.7 else 0.7 * float(np.linalg.norm(z)) - 0.245,
    }
    w, m = np.zeros(6), np.zeros(6)
    opt = tw.Optimizer([w], f"online_median_gradient(0.4, norm={norm}, mu=0.7) | sgd(lr=1.0)")
    for _ in range(5):
        g, before = rng.standard_normal(6), w.copy()
        opt.step([g])
        new = before - w

        def cost(z: np.ndarray) -> float:
            return distance[norm](z - g) + float((z - m) @ (z - m)) / 0.8

        for _ in range(300):
            assert cost(new) <= cost(new + rng.uniform(0, 0.3) * rng.standard_normal(6)) + 1e-12
        m = new


def test_online_median_follows_the_median() -> None:
    """A skewed stream: its mean is 1, its median log 2."""
    rng = np.random.default_rng(9)
    w = np.zeros(200)
    opt = tw.Optimizer([w], "online_median_gradient(0.02, norm=l1) | sgd(lr=1.0)")
    total = np.zeros(200)
    for k in range(3000):
        before = w.copy()
        opt.step([rng.exponential(size=200)])
        total += (before - w) / 2000 if k >= 1000 else 0
    assert total.mean() == pytest.approx(math.log(2), abs=0.03)


def test_adaptation_schedules() -> None:
    assert tw.schedule("dann_lambda(total=100)")(0) == 0
    assert tw.schedule("dann_lambda(total=100)")(100) == pytest.approx(2 / (1 + math.exp(-10)) - 1, rel=1e-14)
    assert tw.schedule("dann_lr(total=100)")(0) == 0.01 and tw.schedule("dann_lr(total=100)")(250) == pytest.approx(0.01 * 11**-0.75)
    rates = tw.schedule("rho_schedule(lr=cosine(lr=0.1, total=50), rho_min=0.1, rho_max=0.5)")
    lr = tw.schedule("cosine(lr=0.1, total=50)")
    for k in (0, 10, 25, 50):
        assert rates(k) == pytest.approx(0.1 + 0.4 * lr(k) / 0.1, rel=1e-14)
    w = np.ones(3)
    opt = tw.Optimizer([w], "sam(rho=rho_schedule(mode=step, bounds=[1], values=[0.1, 0.4])) | sgd(lr=0.0)")
    for rho in (0.1, 0.4, 0.4):
        points = []
        for request in opt.requests():
            points.append(w.copy())
            request.answer([np.ones(3)])
        assert np.linalg.norm(points[1] - points[0]) == pytest.approx(rho, rel=1e-12)
    opt = tw.Optimizer([w], "grad_reversal(lam=dann_lambda(total=4)) | sgd(lr=1.0)")
    at = w.copy()
    opt.step([np.ones(3)])
    assert (w == at).all()
    opt.step([np.ones(3)])
    np.testing.assert_allclose(w, at + tw.schedule("dann_lambda(total=4)")(1), rtol=1e-14)


@pytest.mark.parametrize("setting", privacy.RDPAccountant.examples)
def test_privacy_is_the_definition(setting: dict[str, Any]) -> None:
    """The series end at terms of e^-30 = 1e-13, over a - 1 of down to 0.1, and slowly."""
    ref, mine = privacy.RDPAccountant(**setting), tw.schedule(stage("rdp_accountant", setting))
    for k in (0, 1, 7, 100, 100_000):
        np.testing.assert_allclose(mine(k), ref.value(k), rtol=1e-10, atol=1e-10 * k)


def test_privacy() -> None:
    """One step without sampling has a closed form, and the noise for a target spends it."""
    eps = tw.schedule("rdp_accountant(sigma=4, rate=1, delta=1e-5, orders=[8])")
    assert eps(3) == pytest.approx(3 * 8 / 32 - (math.log(1e-5) + math.log(8)) / 7 + math.log(7 / 8), rel=1e-14)
    for epsilon, rate, steps in [(1.0, 0.01, 1000), (8.0, 0.1, 300), (0.5, 1.0, 3)]:
        sigma = tw.schedule(f"dp_noise_for_epsilon(epsilon={epsilon}, rate={rate}, delta=1e-5)")(steps)
        spent = tw.schedule(f"rdp_accountant(sigma={sigma!r}, rate={rate}, delta=1e-5)")(steps)
        assert epsilon - 0.01 <= spent <= epsilon
    assert tw.schedule("dp_noise_for_epsilon(epsilon=1e-9, rate=1, delta=1e-5)")(10) == math.inf
    rising = tw.schedule("rdp_accountant(sigma=1, rate=0.02, delta=1e-5)")
    assert 0 == rising(0) < rising(1) < rising(10) < rising(100)


def test_privacy_equals_opacus() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    for sigma, rate, steps in [(1.1, 0.01, 1000), (0.8, 0.2, 50), (5.0, 1.0, 10)]:
        peer = accountants.RDPAccountant()
        for _ in range(steps):
            peer.step(noise_multiplier=sigma, sample_rate=rate)
        mine = tw.schedule(f"rdp_accountant(sigma={sigma}, rate={rate}, delta=1e-5)")(steps)
        assert mine == pytest.approx(peer.get_epsilon(1e-5), rel=1e-10)


@pytest.mark.parametrize("sentence, what", [
    ("rho_schedule", "lr"), ("rho_schedule(mode=step, bounds=[1], values=[1])", "values"), ("rho_schedule(lr=0.1, lr_min=1)", "lr_max"),
    ("rho_schedule(mode=step, bounds=[1], values=[1, -1])", "values"), ("dann_lambda(total=-1)", "total"),
    ("rdp_accountant(sigma=1, rate=0.1, delta=0)", "delta"), ("rdp_accountant(sigma=1, rate=0.1, delta=0.1, orders=[1])", "orders"),
])  # fmt: skip
def test_schedules_refuse(sentence: str, what: str) -> None:
    with pytest.raises(tw.Error, match=what):
        tw.schedule(sentence)


@pytest.mark.parametrize("sentence, what", [
    ("esam(beta=0)", "beta"), ("fsam(keep_ratio=1.5)", "keep_ratio"), ("gsam(alpha=2)", "alpha"), ("gnp(r=0)", "r"), ("looksam(k=0)", "k"),
    ("friendly_sam(lmbda=1)", "lmbda"), ("amp(inner_iter=0)", "inner_iter"), ("clip_norm(1, norm_type=0.5)", "norm_type"), ("clip_norm", "max_norm"),
    ("agc(clipping=0)", "clipping"), ("online_median_gradient(tau=0)", "tau"),
])  # fmt: skip
def test_refused(sentence: str, what: str) -> None:
    with pytest.raises(tw.Error, match=what):
        tw.Optimizer([np.zeros(3)], f"{sentence} | sgd(lr=1.0)")


def test_references_that_others_use() -> None:
    """fd_grad_reg and sam as they stand in the other module, beside usam and gnp here."""
    toy = Quartic()
    g = toy.gradient(toy.w)
    close(sharpness.USAM(rho=0.1).perturbed(toy.w, g, toy.gradient), perturbations.FdGradReg(gamma=0.1, eps=0.1).perturbed(toy.w, g, toy.gradient), 1e-12)
    close(sharpness.GNP(r=0.1, alpha=1.0).perturbed(toy.w, g, toy.gradient), perturbations.SAM(rho=0.1).perturbed(toy.w, g, toy.gradient), 1e-12)
    assert shaping.ClipBlockRMS().transform([np.full(3, 2.0)])[0][0] == 1.0
