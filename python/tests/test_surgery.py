"""Aggregators beside their references and public peers.

Weighted sums of the gradients that need no more than a number of tasks are compared in test_fidelity.py; here are the
others, lists of preferences, state from step to step, many tasks, and the laws of the cards.  Two float64 programs of
one formula differ by rounding alone: 1e-12 relative after a few hundred operations; wider limits say why.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import aggregators, gcond, surgery  # noqa: F401
from reference.base import AggregatorReference, every
from support import stage

EXACT = dict(rtol=1e-11, atol=1e-12)
SEED = 11
SHAPES = [(), (7,), (5, 3), (33,)]
SIZE = sum(math.prod(s) for s in SHAPES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


class Host:
    """An aggregator in front of plain gradient descent with step 1: the update is what it makes of the rows."""

    def __init__(self, sentence: str, dtype: Any = np.float64) -> None:
        self.params = [np.zeros(s, dtype) for s in SHAPES]
        self.grads = [np.zeros(s, dtype) for s in SHAPES]
        self.opt = tw.Optimizer(self.params, f"{sentence} | sgd(lr=1.0)", seed=SEED)
        self.opt.bind_gradients(self.grads)

    def __call__(self, jacobian: np.ndarray) -> np.ndarray:
        for p in self.params:
            p[...] = 0
        asked = []
        for request in self.opt.requests():
            asked.append((request.kind, request.index, request.count))
            at = 0
            for g in self.grads:
                g[...] = jacobian[request.index, at : at + g.size].reshape(g.shape)
                at += g.size
        assert asked == [("task_gradient", k, len(jacobian)) for k in range(len(jacobian))], asked
        return -np.concatenate([np.ravel(p) for p in self.params])


def draw(step: int) -> np.ndarray:
    return np.concatenate([tw.random_normal(SEED, 0, step, i, math.prod(s)) for i, s in enumerate(SHAPES)])


CASES = [
    ("krum", 3, {"n_byzantine": 0}), ("krum", 6, {"n_byzantine": 2, "n_selected": 2}), ("krum", 5, {"n_byzantine": 1, "squared": False, "n_selected": 5}),
    ("coordinate_median", 2, {}), ("coordinate_median", 5, {}), ("coordinate_median", 64, {}), ("coordinate_median", 17, {}),
    ("trimmed_mean", 3, {}), ("trimmed_mean", 16, {"trim": 7}), ("trimmed_mean", 23, {"trim": 4}), ("trimmed_mean", 4, {"trim": 0}),
    ("graddrop", 2, {}), ("graddrop", 5, {"leak": [0.0, 0.1, 0.5, 1.0, 0.2]}), ("graddrop", 20, {}),
    ("random_loss_weighting", 2, {}), ("random_loss_weighting", 9, {}),
    ("sam_gs", 2, {}), ("sam_gs", 3, {"max_norm": 0.0, "match_sum": False}), ("sam_gs", 9, {"trigger": "any", "gamma": 0.99}),
    ("sam_gs", 3, {"gamma": 0.0, "beta1": 0.5, "beta2": 0.3, "eps": 0.1}), ("sam_gs", 2, {"gamma": 1.0, "max_norm": 100.0}),
    ("gcond", 2, {}), ("gcond", 3, {"mode": "steps"}), ("gcond", 3, {"reference": "resolved", "momentum": 0.0}),
    ("gcond", 5, {"lambdas": [1.0, 2.0, 0.5, 1.0, 3.0], "norm_cap": 5.0, "dominance_window": 1}),
    ("gcond", 9, {"mode": "steps", "reference": "resolved", "main": -0.05, "critical": -0.2, "dominance_window": 0}),
    ("gcond", 4, {"main": -0.02, "critical": -0.1, "remap_power": 1.0, "max_iters": 3}),
    ("bloop", 2, {}), ("bloop", 2, {"ema": 0.5, "init": "zeros", "lam": 2.0}), ("bloop", 2, {"ema": 1.0, "ratio_upper_bound": 0.05}),
    ("prograd", 2, {}), ("prograd", 2, {"mode": "remove_conflict", "lam": 1.0}), ("prograd", 2, {"scope": "global"}),
    ("bloop", 2, {"use_ratio_only": True, "lam": 2.0, "ema": 0.5}), ("sam_gs", 1, {"max_norm": 0.0}), ("gcond", 1, {}),
    ("coordinate_median", 1, {}), ("graddrop", 1, {}),
    ("odice", 3, {}), ("odice", 3, {"eta": 0.3, "tiny": 1e3}),
]  # fmt: skip


@pytest.mark.parametrize("name, tasks, setting", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_combination(name: str, tasks: int, setting: dict[str, Any], dtype: Any, rng: np.random.Generator) -> None:
    cls = next(c for c in every(surgery.Aggregation) if c.name == name)
    own = {} if name in ("bloop", "prograd", "odice") else {"tasks": tasks}
    ref, mine = cls(**setting), Host(stage(name, own | setting), dtype)
    for step in range(4):
        J = rng.standard_normal((tasks, SIZE)) * rng.uniform(0.5, 1.5, (tasks, 1))
        J = (J + 0.3 * (step - 1)).astype(dtype).astype(np.float64)
        z = draw(step)
        uniform = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
        want = ref.combine(J, uniform=uniform, normal=tw.random_normal(SEED, 0, step, 0, tasks), sizes=[math.prod(s) for s in SHAPES])
        # float32: sums of up to 64 terms of order one
        limit = EXACT if dtype is np.float64 else dict(rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(mine(J), want, **limit)


def test_every_aggregator_has_a_reference() -> None:
    have = {c.name for c in every(AggregatorReference)} | {c.name for c in every(surgery.Aggregation)}
    # a name for two others, and a program whose optimum need not be unique
    assert {m.name for m in tw.methods("aggregator")} - {"median_gd", "pareto_da", "fedavg"} <= have


@pytest.mark.parametrize("norm, other", [("l1", "coordinate_median"), ("l2", "geometric_median")])
def test_median_gd_is_a_name(norm: str, other: str, rng: np.random.Generator) -> None:
    J = rng.standard_normal((5, SIZE))
    np.testing.assert_array_equal(Host(f"median_gd(tasks=5, norm={norm})")(J), Host(f"{other}(tasks=5)")(J))


LISTS = [
    ("dualproj", {"pref": [0.1, 0.7, 0.2]}), ("aligned_mtl", {"pref": [0.1, 0.7, 0.2], "scale_mode": "rmse"}),
    ("config", {"pref": [1.0, 3.0, 2.0]}), ("geometric_median", {"weights": [1.0, 5.0, 2.0]}), ("upgrad", {"pref": [0.1, 0.7, 0.2]}),
]  # fmt: skip


@pytest.mark.parametrize("name, setting", LISTS)
def test_preferences(name: str, setting: dict[str, Any], rng: np.random.Generator) -> None:
    cls = next(c for c in every(AggregatorReference) if c.name == name)
    J = rng.standard_normal((3, SIZE))
    a = cls(**setting).weights(J)
    # the solvers of quadratic programs: a condition of some 1e4
    np.testing.assert_allclose(Host(stage(name, {"tasks": 3, **setting}))(J), J.T @ a, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tasks", [9, 17, 64])
def test_many_tasks(tasks: int, rng: np.random.Generator) -> None:
    """All inner products of many gradients, by way of pcgrad; then gradients and their weights in several parts."""
    J = rng.standard_normal((tasks, SIZE))
    orders = np.array([np.argsort(tw.random_normal(SEED, 0, 0, i, tasks), kind="stable") for i in range(tasks)])
    a = aggregators.PCGrad().weights(J, permutations=orders)
    np.testing.assert_allclose(Host(f"pcgrad(tasks={tasks})")(J), J.T @ a, rtol=1e-8, atol=1e-9)  # 64 projections in a row


def test_gradvac_keeps_its_averages(rng: np.random.Generator) -> None:
    ref, mine = surgery.GradVac(), Host("gradvac(tasks=4)")
    for step in range(5):
        J = rng.standard_normal((4, SIZE)) + 0.2
        orders = np.array([np.argsort(tw.random_normal(SEED, 0, step, i, 4), kind="stable") for i in range(4)])
        np.testing.assert_allclose(mine(J), J.T @ ref.weights(J, permutations=orders), **EXACT)
    assert mine.opt.get("gradvac.phi_1_2") == pytest.approx(ref.phi[1, 2], rel=1e-12)


def test_nash_mtl_solves_every_k_calls(rng: np.random.Generator) -> None:
    mine, ref = Host("nash_mtl(tasks=3, update_every=3, max_norm=0)"), surgery.NashMTL(max_norm=0.0)
    for step in range(7):
        J = rng.standard_normal((3, SIZE))
        if step % 3 == 0:
            a = ref.weights(J)
        np.testing.assert_allclose(mine(J), J.T @ a, rtol=1e-10, atol=1e-11)


# ---- laws


def test_mgda_raises_no_loss(rng: np.random.Generator) -> None:
    for m in (2, 3, 8, 20):
        J = rng.standard_normal((m, SIZE)) + rng.standard_normal(SIZE)
        d = Host(f"mgda(tasks={m})")(J)
        assert (J @ d >= d @ d * (1 - 1e-12)).all()  # optimal
    two = rng.standard_normal((2, SIZE))
    t = np.clip((two[1] - two[0]) @ two[1] / np.sum((two[0] - two[1]) ** 2), 0, 1)
    np.testing.assert_allclose(Host("mgda")(two), t * two[0] + (1 - t) * two[1], **EXACT)
    assert not Host("mgda(tasks=3)")(np.vstack([two, np.zeros(SIZE)])).any()
    np.testing.assert_allclose(Host("mgda(tasks=3)")(np.vstack([two[:1]] * 3)), two[0], **EXACT)


@pytest.mark.parametrize("scales", [[1, 1e-6, 1e-6], [1e5, 1, 1e-5], [1e-20, 2e-20, 1e-20]])
def test_mgda_of_gradients_of_different_size(scales: list[float], rng: np.random.Generator) -> None:
    J = rng.standard_normal((3, SIZE)) * np.array(scales)[:, None]
    d = Host("mgda(tasks=3)")(J)
    # products of gradients are good to 1e-16 of the longer one's share in them
    assert (J @ d >= d @ d * (1 - 1e-6)).all()
    assert np.linalg.norm(d) <= np.linalg.norm(J.T @ surgery.MGDA().weights(J)) * (1 + 1e-6)


def test_cagrad_is_the_best_of_its_ball(rng: np.random.Generator) -> None:
    J = rng.standard_normal((3, SIZE)) * [[1.0], [2.0], [0.5]]
    mean, d = J.mean(axis=0), Host("cagrad(tasks=3, c=0.5)")(J)
    radius = 0.5 * np.linalg.norm(mean)
    assert np.linalg.norm(d - mean) <= radius * (1 + 1e-12)
    worst = (J @ d).min()
    for _ in range(2000):
        e = (d - mean) + rng.uniform(0, 1) * radius * rng.standard_normal(SIZE) / SIZE
        e *= min(1, radius / np.linalg.norm(e))
        assert (J @ (mean + e)).min() <= worst + 1e-12
    np.testing.assert_allclose(Host("cagrad(tasks=3, c=0)")(J), mean, **EXACT)
    opposite = np.vstack([J[0], -J[0]])
    assert not Host("cagrad")(opposite).any()


def test_imtl_g_projects_alike(rng: np.random.Generator) -> None:
    for size in (1.0, 1e-12, 1e12):
        J = size * rng.standard_normal((4, SIZE)) * [[1.0], [3.0], [0.1], [2.0]]
        along = J @ Host("imtl_g(tasks=4)")(J) / np.linalg.norm(J, axis=1)
        np.testing.assert_allclose(along, along[0], rtol=1e-9)
    twins = np.vstack([J[0], J[0], J[1]])  # dependent rows
    along = twins @ Host("imtl_g(tasks=3)")(twins) / np.linalg.norm(twins, axis=1)
    np.testing.assert_allclose(along, along[0], rtol=1e-9)
    assert not Host("imtl_g(tasks=3)")(np.zeros((3, SIZE))).any()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_fairness(alpha: float, rng: np.random.Generator) -> None:
    J = rng.standard_normal((3, SIZE)) + 0.5
    d = Host(f"fairgrad(tasks=3, alpha={alpha})")(J)
    w = np.linalg.lstsq(J.T, d, rcond=None)[0]
    np.testing.assert_allclose(J @ d, w ** (-1 / alpha), rtol=1e-10)


def test_nash_bargaining(rng: np.random.Generator) -> None:
    J = rng.standard_normal((3, SIZE))
    mine = Host("nash_mtl(tasks=3, max_norm=0)")
    d = mine(J)
    w = np.linalg.lstsq(J.T, d, rcond=None)[0]
    np.testing.assert_allclose(J @ d, 1 / w, rtol=1e-11)
    assert np.linalg.norm(d) == pytest.approx(math.sqrt(3), rel=1e-12)
    assert mine.opt.get("nash_mtl.stationary") == 0
    # each task may rescale its loss
    np.testing.assert_allclose(Host("nash_mtl(tasks=3, max_norm=0)")(J * [[5.0], [0.1], [30.0]]), d, rtol=1e-9, atol=1e-10)
    assert np.linalg.norm(Host("nash_mtl(tasks=3)")(J)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_no_bargain(name: str, rng: np.random.Generator) -> None:
    """Opposite gradients: no solution; the weights are cut, and the state says so."""
    g = rng.standard_normal(SIZE)
    mine = Host(name)
    assert np.isfinite(mine(np.vstack([g, -g]))).all() and mine.opt.get(f"{name}.stationary") == 1
    assert np.isfinite(mine(np.vstack([g, 0 * g]))).all() and mine.opt.get(f"{name}.stationary") == 1
    assert not mine(np.zeros((2, SIZE))).any() and mine.opt.get(f"{name}.stationary") == 0
    assert np.isfinite(mine(rng.standard_normal((2, SIZE)))).all() and mine.opt.get(f"{name}.stationary") == 0


def test_aligned_mtl_aligns(rng: np.random.Generator) -> None:
    """With pref = e_i the update is row i of B J; those rows are orthogonal and as long as the smallest singular value."""
    J = rng.standard_normal((3, SIZE))
    rows = np.array([Host(f"aligned_mtl(tasks=3, pref={list(map(float, e))})")(J) for e in np.eye(3)])
    np.testing.assert_allclose(rows @ rows.T, np.linalg.eigvalsh(J @ J.T)[0] * np.eye(3), atol=1e-10)


def test_config_has_equal_cosines(rng: np.random.Generator) -> None:
    J = rng.standard_normal((3, SIZE)) * [[1.0], [10.0], [0.1]]
    d = Host("config(tasks=3)")(J)
    cosines = J @ d / np.linalg.norm(J, axis=1) / np.linalg.norm(d)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-10)
    two = Host("config(tasks=3)")(np.vstack([J[:2], 0 * J[0]]))  # a zero gradient is as if it were not there
    np.testing.assert_allclose(two, Host("config")(J[:2]), rtol=1e-10, atol=1e-12)


def test_outliers_are_not_selected(rng: np.random.Generator) -> None:
    J = 1 + 0.1 * rng.standard_normal((7, SIZE))
    J[[1, 4]] = 1e6 * rng.standard_normal((2, SIZE))
    for name in ("krum(tasks=7, n_byzantine=2)", "krum(tasks=7, n_byzantine=2, n_selected=4)", "coordinate_median(tasks=7)",
                 "geometric_median(tasks=7)", "trimmed_mean(tasks=7, trim=2)"):
        assert np.abs(Host(name)(J) - 1).max() < 1  # the mean is some 1e5
    d = Host("geometric_median(tasks=7, tol=1e-14, iters=10000)")(J[[0, 2, 3, 5, 6, 0, 2]])
    units = (J[[0, 2, 3, 5, 6, 0, 2]] - d) / np.linalg.norm(J[[0, 2, 3, 5, 6, 0, 2]] - d, axis=1)[:, None]
    assert np.linalg.norm(units.sum(axis=0)) < 1e-5  # distances of 0.5 beside gradients of 7, from their products


def test_bloop_and_odice_are_orthogonal(rng: np.random.Generator) -> None:
    J = rng.standard_normal((2, SIZE)) + 0.3
    assert abs((Host("bloop(eps=0)")(J) - J[0]) @ J[0]) < 1e-12
    f, b, zero = J[0], J[1], 0 * J[0]
    assert abs((Host("odice")(np.vstack([f, b, zero])) - f) @ f) < 1e-12
    np.testing.assert_allclose(Host("odice")(np.vstack([f, 3 * f, zero])), f, **EXACT)
    assert abs(Host("prograd(lam=1, scope=global)")(J) @ J[1]) < 1e-12


def test_gcond_resolves_conflicts(rng: np.random.Generator) -> None:
    a, b = np.zeros(SIZE), np.zeros(SIZE)
    a[0], b[0], b[1] = 2.0, -1.0, 0.2  # a critical conflict: the stronger task stays whole
    d = Host("gcond(strength=1, mode=steps, momentum=0)")(np.vstack([a, b]))
    np.testing.assert_allclose(d, a, rtol=1e-6)
    d = Host("gcond(strength=1, momentum=0)")(np.vstack([a, b]))
    assert d[0] == pytest.approx(2, rel=1e-6) and d[1] == pytest.approx(0.2, rel=1e-6)  # b without its part along a
    agreeing = np.abs(rng.standard_normal((3, SIZE)))
    np.testing.assert_allclose(Host("gcond(tasks=3)")(agreeing), agreeing.sum(axis=0), **EXACT)
    weak = np.vstack([a, -0.1 * a + 3 * np.eye(SIZE)[1]])  # each is projected off the other
    x, y = weak
    want = x - x @ y / (y @ y) * y + y - x @ y / (x @ x) * x
    np.testing.assert_allclose(Host("gcond(mode=steps, eps=1e-30)")(weak), want, **EXACT)
    mine = Host("gcond(mode=steps, strength=0, stability=0)")  # all scores are equal: the first wins, and must yield
    winners = [int(mine(np.vstack([a, b]))[0] > 0 and mine.opt.get("gcond.winner")) for _ in range(8)]
    assert [w for w in winners[:5]] == [0, 0, 0, 1, 0]


def test_gcond_after_accumulation(rng: np.random.Generator) -> None:
    """gradient_accumulate in front gives every task's gradient as a mean over minibatches."""
    params = [np.zeros(SIZE)]
    opt = tw.Optimizer(params, "gradient_accumulate(3) | gcond(tasks=2) | sgd(lr=1.0)")
    ref, rows = gcond.GCond(), {}
    for _ in range(3):
        params[0][...], seen = 0, {0: [], 1: []}
        for request in opt.requests():
            g = rows.setdefault((request.index, request.tag), rng.standard_normal(SIZE))
            seen[request.index].append(g)
            request.answer([g])
        assert [len(v) for v in seen.values()] == [3, 3]
        np.testing.assert_allclose(-params[0], ref.combine(np.array([np.mean(seen[k], axis=0) for k in (0, 1)])), **EXACT)


@pytest.mark.parametrize("move", ["auto", "balance", "descent"])
def test_pareto_da_solves_its_program(move: str, rng: np.random.Generator) -> None:
    """The value, since the optimum need not be unique; against scipy's solver."""
    optimize = pytest.importorskip("scipy.optimize")
    solved = 0
    for case in range(60):
        m = 2 + case % 5
        J = rng.standard_normal((m + 1, SIZE)) + rng.uniform(-0.3, 0.3)
        if case % 3 == 0:
            J[-1] *= 1e-5  # auto: descent
        if case % 7 == 0:
            J[1] = -J[0]
        C, a = J[:m] @ J[:m].T, J[:m] @ J[-1]
        if move == "balance" or (move == "auto" and np.linalg.norm(J[-1]) > 1e-3):
            kept = [j for j in range(m) if a[j] <= 0 or a[j] == a.max()] if a.max() > 0 else list(range(m))
            rows, goal = C[kept], a
            bounds = np.array([0.0 if a[j] == a.max() or a.max() <= 0 else a[j] for j in kept])
        else:
            rows, goal, bounds = np.vstack([C, a]), C.sum(axis=0), np.append(np.zeros(m), min(0.0, a.max()))
        program = optimize.linprog(-goal, A_ub=-rows, b_ub=-bounds, A_eq=np.ones((1, m)), b_eq=[1.0])
        alpha = np.linalg.lstsq(J[:m].T, Host(f"pareto_da(tasks={m}, move={move})")(J), rcond=None)[0] / m
        if program.status != 0:
            np.testing.assert_allclose(alpha, 1 / m, rtol=1e-10)
            continue
        solved += 1
        if case % 7:  # else the weights cannot be read off
            assert (alpha >= -1e-10).all() and alpha.sum() == pytest.approx(1, rel=1e-10)
        size = np.abs(C).max()
        assert (rows @ alpha - bounds >= -1e-8 * size).all()
        assert goal @ alpha == pytest.approx(-program.fun, rel=1e-7, abs=1e-9 * np.abs(goal).max())
    assert solved > 20


def test_sam_gs_is_bounded(rng: np.random.Generator) -> None:
    mine = Host("sam_gs(tasks=3)")
    for _ in range(3):
        assert np.linalg.norm(mine(rng.standard_normal((3, SIZE)))) <= 1 + 1e-12
    assert not Host("sam_gs(tasks=2)")(np.zeros((2, SIZE))).any()


# ---- peers


def peer(torch: Any, aggregator: Any, J: np.ndarray) -> np.ndarray:
    return np.asarray(aggregator(torch.from_numpy(J)).numpy())


@pytest.mark.parametrize("m", [2, 3, 5])
def test_equal_to_torchjd(m: int, rng: np.random.Generator) -> None:
    torch, jd = pytest.importorskip("torch"), pytest.importorskip("torchjd.aggregation")
    for shift in (0.0, 0.4):
        J = rng.standard_normal((m, SIZE)) * rng.uniform(0.5, 2, (m, 1)) + shift
        pref = rng.uniform(0.2, 1, m)
        same = {
            f"imtl_g(tasks={m})": (jd.IMTLG(), 1e-7),
            f"aligned_mtl(tasks={m})": (jd.AlignedMTL(), 1e-10),
            f"aligned_mtl(tasks={m}, scale_mode=median)": (jd.AlignedMTL(scale_mode="median"), 1e-10),
            f"aligned_mtl(tasks={m}, scale_mode=rmse, pref={list(map(float, pref))})": (
                jd.AlignedMTL(torch.from_numpy(pref), "rmse"), 1e-10),
            f"config(tasks={m})": (jd.ConFIG(), 1e-10),
            f"config(tasks={m}, pref={list(map(float, pref))})": (jd.ConFIG(torch.from_numpy(pref)), 1e-10),
            # it solves by quadprog with a condition of 1e4
            f"dualproj(tasks={m})": (jd.DualProj(), 1e-9),
            # a least-squares solver with its own tolerance
            f"fairgrad(tasks={m}, alpha=2)": (jd.FairGrad(alpha=2.0), 1e-5),
        }  # fmt: skip
        if m > 2:
            same[f"krum(tasks={m}, n_byzantine=0, squared=false)"] = (jd.Krum(0), 1e-10)
            same[f"trimmed_mean(tasks={m})"] = (jd.TrimmedMean(1), 1e-12)
        for sentence, (theirs, limit) in same.items():
            np.testing.assert_allclose(Host(sentence)(J), peer(torch, theirs, J), rtol=limit, atol=limit, err_msg=sentence)
        # Frank-Wolfe steps to 1e-3: never shorter than the shortest
        mine, theirs = Host(f"mgda(tasks={m})")(J), peer(torch, jd.MGDA(), J)
        assert np.linalg.norm(mine) <= np.linalg.norm(theirs) * (1 + 1e-12)


def test_gradvac_equals_torchjd(rng: np.random.Generator) -> None:
    torch, jd = pytest.importorskip("torch"), pytest.importorskip("torchjd.aggregation")
    theirs, ref = jd.GradVac(), surgery.GradVac()
    torch.manual_seed(3)
    rows = [rng.standard_normal((4, 7)) - 0.2 for _ in range(4)]
    want = [peer(torch, theirs, J) for J in rows]
    torch.manual_seed(3)
    for J, w in zip(rows, want):
        orders = []
        for i in range(4):
            others = [j for j in range(4) if j != i]
            orders.append([others[k] for k in torch.randperm(3).tolist()] + [i])
        np.testing.assert_allclose(J.T @ ref.weights(J, permutations=np.array(orders)), w, rtol=1e-9, atol=1e-10)


def test_cagrad_and_nash_equal_torchjd_where_it_runs(rng: np.random.Generator) -> None:
    torch, jd = pytest.importorskip("torch"), pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("cvxpy")  # their solvers
    J = rng.standard_normal((3, SIZE))
    np.testing.assert_allclose(Host("cagrad(tasks=3, c=0.5)")(J), peer(torch, jd.CAGrad(0.5), J), atol=1e-4)
    np.testing.assert_allclose(Host("nash_mtl(tasks=3)")(J), peer(torch, jd.NashMTL(3), J), atol=1e-5)


# ---- refusals


@pytest.mark.parametrize("sentence, what", [
    ("gcond(critical=0.1)", "critical"), ("gcond(lambdas=[1])", "lambdas"),
    ("krum(tasks=4, n_byzantine=2)", "n_byzantine"), ("krum(tasks=3, n_byzantine=0, n_selected=4)", "n_selected"),
    ("trimmed_mean(tasks=4, trim=2)", "trim"), ("aligned_mtl(tasks=3, pref=[1, 2])", "pref"),
    ("config(pref=[1, -1])", "pref"), ("geometric_median(weights=[0, 0])", "weights"), ("graddrop(leak=[2, 0])", "leak"),
    ("graddrop(leak=[0.1])", "leak"), ("mgda(tasks=1025)", "tasks"), ("bloop(ema=0)", "ema"), ("fairgrad(alpha=-1)", "alpha"),
])
def test_refused(sentence: str, what: str) -> None:
    with pytest.raises(tw.RangeError, match=what):
        tw.Optimizer([np.zeros(3)], f"{sentence} | sgd(lr=1.0)")


@pytest.mark.parametrize("name", sorted({m.name for m in tw.methods("aggregator")} - {"random_loss_weighting", "fedavg"}))
def test_a_gradient_that_is_not_finite_is_refused(name: str) -> None:
    p = [np.ones(4)]
    opt = tw.Optimizer(p, f"{name}{'(n_byzantine=0)' if name == 'krum' else ''} | sgd(lr=1.0)")
    opt.bind_gradients([np.ones(4)])
    with pytest.raises(tw.NonfiniteError):
        for request in opt.requests():
            opt.grads[0][:] = np.nan if request.index == request.count - 1 else 1.0
    assert (p[0] == 1).all() and opt.steps == 0


# ---- weights of losses


def test_losses_equal_torchjd(rng: np.random.Generator) -> None:
    torch, scalarization = pytest.importorskip("torch"), pytest.importorskip("torchjd.scalarization")
    L, s = rng.uniform(0.5, 2, 4), rng.standard_normal(4)
    for name, peer, theirs in (("uncertainty_weighting", scalarization.UW(4), "log_var"), ("imtl_l", scalarization.IMTLL(4), "log_scale")):
        peer = peer.double()
        with torch.no_grad():
            getattr(peer, theirs)[...] = torch.from_numpy(s)
        x = torch.from_numpy(L.copy()).requires_grad_()
        value = peer(x)
        value.backward()
        mine, gradients = tw.objective(name).value_and_grad(losses=L, s=s)
        assert mine == pytest.approx(float(value.detach()), rel=1e-12)
        np.testing.assert_allclose(gradients["losses"], x.grad.numpy(), rtol=1e-12)
        np.testing.assert_allclose(gradients["s"], getattr(peer, theirs).grad.numpy(), rtol=1e-12, atol=1e-14)
    x = torch.from_numpy(L.copy()).requires_grad_()
    value = scalarization.STCH(mu=0.3)(x)
    value.backward()
    mine, gradients = tw.objective("stch(mu=0.3)").value_and_grad(losses=L)
    assert mine == pytest.approx(float(value.detach()), rel=1e-12)
    np.testing.assert_allclose(gradients["losses"], x.grad.numpy(), rtol=1e-12)
    peer, epochs = scalarization.DWA(), rng.uniform(0.5, 2, (4, 4))
    mine_dwa, weights = tw.weighting("dwa"), np.ones(4)
    for losses in epochs:  # the weights after an epoch are those of the next
        value = float(peer(torch.from_numpy(losses)))
        peer.step()
        assert weights @ losses == pytest.approx(value, rel=1e-12)
        weights = mine_dwa(losses=losses)


@pytest.mark.parametrize("name", ["uncertainty_weighting", "imtl_l"])
def test_logarithms_that_are_kept(name: str, rng: np.random.Generator) -> None:
    """losses in, weights out: s by gradient descent, in NumPy; saved and taken up."""
    kept, s = tw.weighting(f"{name}(init=0.25, lr=0.2)"), np.full(3, 0.25)
    for k in range(6):
        L = rng.uniform(0.5, 2, 3)
        want = np.exp(-s) / 2 if name == "uncertainty_weighting" else np.exp(s)
        np.testing.assert_allclose(kept(losses=L), want, rtol=1e-14)
        s = s - 0.2 * (0.5 - want * L if name == "uncertainty_weighting" else want * L - 1)
        if k == 2:
            twin = tw.weighting(f"{name}(init=0.25, lr=0.2)")
            twin.load_state_dict(kept.state_dict())
            kept = twin
    # the value alone leaves s, and so does a host that has its own, of any number of tasks
    value = tw.objective(f"{name}(lr=0.2)")
    assert value(losses=np.ones(3)) == value(losses=np.ones(3))
    for m in (2, 5):
        np.testing.assert_allclose(kept(losses=np.ones(m), s=np.zeros(m)), np.full(m, 0.5 if name == "uncertainty_weighting" else 1.0))
    np.testing.assert_allclose(kept(losses=np.ones(3)), np.exp(-s) / 2 if name == "uncertainty_weighting" else np.exp(s), rtol=1e-13)
    L = np.array([0.5, 1.0, 4.0])
    learns = tw.weighting(f"{name}(lr=0.2)")
    for _ in range(2000):
        weights = learns(losses=L)
    np.testing.assert_allclose(weights * L, 0.5 if name == "uncertainty_weighting" else 1.0, rtol=1e-6)  # equal in the end


def test_stch_weighs(rng: np.random.Generator) -> None:
    L, preferences = rng.uniform(0, 2, 4), rng.uniform(0, 1, 4)
    y = preferences * L / 0.3
    want = preferences * np.exp(y - y.max()) / np.exp(y - y.max()).sum()
    np.testing.assert_allclose(tw.weighting("stch(mu=0.3)")(losses=L, weights=preferences), want, rtol=1e-13)
    with pytest.raises(tw.MethodError, match="a weighting is wanted here"):  # whose inputs are no losses of tasks
        tw.weighting("bce_with_logits")


def test_laws_of_loss_weights(rng: np.random.Generator) -> None:
    L = np.array([0.5, 1.2, 1.9, 0.8])
    at = tw.objective("uncertainty_weighting").value_and_grad(losses=L, s=np.log(L))[1]
    np.testing.assert_allclose(at["s"], 0, atol=1e-15)  # the best variances
    s = rng.standard_normal(4)
    twice = 2 * tw.objective("uncertainty_weighting").value_and_grad(losses=L, s=-s)[0]
    assert tw.objective("imtl_l").value_and_grad(losses=L, s=s)[0] == pytest.approx(twice, rel=1e-14)
    near = tw.objective("stch(mu=1e-3)").value_and_grad(losses=L, weights=np.ones(4))
    assert near[0] == pytest.approx(L.max(), rel=1e-3) and near[1]["losses"].argmax() == L.argmax()
    dro = tw.weighting("group_dro(eta=1.0)")
    for _ in range(200):  # it concentrates on the worst group
        q = dro(losses=L)
        assert q.sum() == pytest.approx(1, rel=1e-14)
    assert q[L.argmax()] > 0.99
