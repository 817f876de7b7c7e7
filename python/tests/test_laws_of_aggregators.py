"""Laws of aggregators: the order of tasks, rotations, scales, conflicts, stationary points, breakdown.

J has one gradient a row.  Two float64 programs of one formula differ by 1e-12 after a few hundred operations; where a
method inverts its Gramian, the condition of some 1e3 of these draws raises that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import thalweg as tw
from support import stage
from test_surgery import SIZE, Host

Array = np.ndarray

laws = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)

SYMMETRIC: dict[str, dict[str, Any]] = {
    "mgda": {}, "cagrad": {}, "upgrad": {}, "dualproj": {}, "nash_mtl": {"max_norm": 0.0}, "imtl_g": {},
    "aligned_mtl": {}, "config": {}, "fairgrad": {"alpha": 2.0}, "geometric_median": {}, "median_gd": {"norm": "l2"},
    "coordinate_median": {}, "trimmed_mean": {}, "krum": {"n_byzantine": 1, "n_selected": 2}, "graddrop": {},
    "and_mask": {"tau": 0.2}, "sam_gs": {}, "pcgrad": {},
}  # fmt: skip
# Tasks of different roles; weights that are drawn for each task; state that belongs to tasks; hosts that train alone.
OF_ROLES = {"bloop", "prograd", "odice", "random_loss_weighting", "gradvac", "gcond", "pareto_da", "fedavg"}
RANDOM_IN_ORDER = {"pcgrad"}
OF_COORDINATES = {"coordinate_median", "trimmed_mean", "graddrop", "and_mask", "sam_gs"}
# cagrad's program is solved to 1e-10 of its value and better: some root of that in its weights
LIMIT = {"cagrad": 1e-7}


def made(name: str, tasks: int, **values: Any) -> Host:
    return Host(stage(name, {"tasks": tasks} | SYMMETRIC.get(name, {}) | values))


def jacobian(seed: int, tasks: int, shift: float = 0.2) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tasks, SIZE)) * rng.uniform(0.5, 2, (tasks, 1)) + shift * rng.standard_normal(SIZE)


def test_every_aggregator_is_symmetric_or_has_roles() -> None:
    assert {m.name for m in tw.methods("aggregator")} == set(SYMMETRIC) | OF_ROLES


# ---- orders and rotations


@pytest.mark.parametrize("name", sorted(set(SYMMETRIC) - RANDOM_IN_ORDER))
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    for seed, tasks in enumerate((2, 3, 5, 9) if name not in ("krum", "trimmed_mean") else (4, 5, 9)):
        J = jacobian(seed, tasks)
        order = np.roll(np.random.default_rng(seed).permutation(tasks), 1) if tasks > 2 else [1, 0]
        limit = LIMIT.get(name, 1e-9)
        plain = made(name, tasks)(J)
        assert np.abs(plain).max() > 1e-2 and not np.array_equal(J[order], J)
        np.testing.assert_allclose(made(name, tasks)(J[order]), plain, rtol=0, atol=limit * np.abs(J).max())


def test_pcgrad_depends_on_the_order_of_three_and_not_of_two() -> None:
    J = jacobian(5, 3, 0.0)
    J[2] -= J[0] + 0.5 * J[1]  # conflicts all around
    assert np.abs(made("pcgrad", 3)(J[[1, 2, 0]]) - made("pcgrad", 3)(J)).max() > 1e-3
    np.testing.assert_allclose(made("pcgrad", 2)(J[[2, 0]]), made("pcgrad", 2)(J[[0, 2]]), rtol=0, atol=1e-12)


PREFERENCES = [(name, "pref") for name in ("upgrad", "dualproj", "aligned_mtl", "config")]


@pytest.mark.parametrize("name, key", [*PREFERENCES, ("geometric_median", "weights")])
def test_preferences_go_with_their_tasks(name: str, key: str) -> None:
    J, values, order = jacobian(1, 4), np.array([0.1, 0.5, 1.0, 2.0]), [2, 0, 3, 1]
    plain = made(name, 4, **{key: values.tolist()})(J)
    np.testing.assert_allclose(made(name, 4, **{key: values[order].tolist()})(J[order]), plain, rtol=0, atol=1e-9)
    assert np.abs(made(name, 4, **{key: values.tolist()})(J[order]) - plain).max() > 1e-3


@pytest.mark.parametrize("name", sorted(set(SYMMETRIC) - OF_COORDINATES))
def test_the_result_turns_with_the_gradients(name: str) -> None:
    """The weights come from inner products alone."""
    for seed, tasks in enumerate((3, 5)):
        J = jacobian(seed, tasks) if name != "krum" else jacobian(seed, tasks + 2)
        q = np.linalg.qr(np.random.default_rng(seed).standard_normal((SIZE, SIZE)))[0]
        limit = LIMIT.get(name, 1e-9)
        plain = made(name, len(J))(J)
        np.testing.assert_allclose(made(name, len(J))(J @ q), plain @ q, rtol=0, atol=limit * np.abs(J).max())


# ---- scales

DEGREES = {name: 1.0 for name in SYMMETRIC} | {"nash_mtl": 0.0, "fairgrad": -1 / 3}  # (1 - alpha)/(1 + alpha)
NO_POWER = {"sam_gs", "median_gd"}  # a bound on the norm; the same tolerance, which it does not show


@pytest.mark.parametrize("name", sorted(set(SYMMETRIC) - NO_POWER))
def test_a_common_scale_comes_out_by_its_power(name: str) -> None:
    exact = {"tol": 1e-14} if name == "geometric_median" else {}  # its tolerance is beside 1
    J = jacobian(2, 5)
    plain = made(name, 5, **exact)(J)
    for scale in (0.5, 8.0, 1e3):
        got = made(name, 5, **exact)(scale * J)
        limit = LIMIT.get(name, 1e-9) * np.abs(scale ** DEGREES[name] * plain).max()
        np.testing.assert_allclose(got, scale ** DEGREES[name] * plain, rtol=0, atol=10 * limit)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_fairgrad_scales_by_its_power(alpha: float) -> None:
    """(G w) = w^(-1/alpha): w has the degree -2 alpha/(1 + alpha), and J'w one more."""
    J = jacobian(3, 3)
    plain, got = made("fairgrad", 3, alpha=alpha)(J), made("fairgrad", 3, alpha=alpha)(10 * J)
    np.testing.assert_allclose(got, 10 ** ((1 - alpha) / (1 + alpha)) * plain, rtol=1e-8, atol=1e-10)


@laws
@given(seed=seeds, tasks=st.integers(2, 6))
def test_what_a_task_may_rescale(seed: int, tasks: int) -> None:
    """nash_mtl and fairgrad(1): nothing changes.  imtl_g and config: not the direction, they see unit rows."""
    rng = np.random.default_rng(seed)
    J, c = jacobian(seed, tasks), 10 ** rng.uniform(-2, 2, (tasks, 1))
    for name, values in (("nash_mtl", {}), ("fairgrad", {"alpha": 1.0})):
        plain = made(name, tasks, **values)(J)
        np.testing.assert_allclose(made(name, tasks, **values)(c * J), plain, rtol=0, atol=1e-7 * np.abs(plain).max())
    for name in ("imtl_g", "config"):
        u, v = made(name, tasks)(J), made(name, tasks)(c * J)
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert abs(cosine) == pytest.approx(1, abs=1e-9)  # the sum of imtl_g's weights may be negative
    mean, scaled = made("mgda", tasks)(J), made("mgda", tasks)(c * J)
    assert np.linalg.norm(scaled) < np.linalg.norm(mean) * c.max()


@laws
@given(seed=seeds, tasks=st.integers(2, 6))
def test_upgrad_is_linear_in_the_scales_of_its_tasks(seed: int, tasks: int) -> None:
    """Without the added diagonal: A(diag(b) J) + A(diag(c) J) = A(diag(b + c) J).  Not so the dual projection."""
    rng = np.random.default_rng(seed)
    J, b, c = jacobian(seed, tasks, 0.0), rng.uniform(0.1, 3, (tasks, 1)), rng.uniform(0.1, 3, (tasks, 1))
    J[-1] -= 0.8 * J[0]  # a conflict
    a = [made("upgrad", tasks, reg_eps=0)(x * J) for x in (b, c, b + c)]
    np.testing.assert_allclose(a[0] + a[1], a[2], rtol=0, atol=1e-9)


def test_the_dual_projection_is_not_linear_in_scales() -> None:
    J = jacobian(0, 2, 0.0)
    J[1] -= 0.8 * J[0]
    d = [made("dualproj", 2, reg_eps=0)(np.array(x)[:, None] * J) for x in ((1.0, 0.1), (0.1, 1.0), (1.1, 1.1))]
    assert np.abs(d[0] + d[1] - d[2]).max() > 1e-3


# ---- conflicts


@laws
@given(seed=seeds, tasks=st.integers(2, 8))
@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_no_task_is_hurt_by_more_than_the_added_diagonal(name: str, seed: int, tasks: int) -> None:
    """Its optimum v has (G/tr + e I) v >= 0, so <J_i, d> >= -e tr(G) a_i: that is what the default e = 1e-4 may cost.
    Floats round d by 2^-24 of each entry, and the sums of 64 products by a few more."""
    J = jacobian(seed, tasks, 0.0)
    J[-1] -= (1 + seed % 3) * J[:-1].sum(axis=0)
    J = J.astype(np.float32)
    d = Host(stage(name, {"tasks": tasks}), np.float32)(J).astype(np.float64)
    wide = J.astype(np.float64)
    a = np.linalg.lstsq(wide.T, d, rcond=None)[0]
    trace = np.sum(wide**2)
    rounding = 8 * 2.0**-24 * np.sqrt(trace) * np.linalg.norm(np.abs(wide).T @ np.abs(a))
    assert np.all(wide @ d >= -1e-4 * trace * a - rounding)
    sharp = made(name, tasks, reg_eps=0)(wide)
    assert np.all(wide @ sharp >= -1e-10 * trace)


def test_the_added_diagonal_is_what_hurts() -> None:
    """The bound above is met: a larger diagonal leaves a conflict that the mean has, too."""
    J = jacobian(3, 3, 0.0)
    J[2] -= 2 * J[:2].sum(axis=0)
    assert (J @ J.mean(axis=0)).min() < -1
    for name in ("upgrad", "dualproj"):
        assert (J @ made(name, 3, reg_eps=0.1)(J)).min() < -1e-2
        assert (J @ made(name, 3, reg_eps=0)(J)).min() > -1e-10


@laws
@given(seed=seeds, tasks=st.integers(2, 6))
def test_without_conflicts_the_mean_stays(seed: int, tasks: int) -> None:
    rng = np.random.default_rng(seed)
    J = np.abs(rng.standard_normal((tasks, SIZE)))  # positive entries: every product is positive
    for name in ("upgrad", "dualproj"):
        np.testing.assert_allclose(made(name, tasks, reg_eps=0)(J), J.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(made("pcgrad", tasks)(J), J.sum(axis=0), rtol=1e-12)


@laws
@given(seed=seeds)
def test_of_two_tasks_upgrad_is_half_of_pcgrad(seed: int) -> None:
    """Both project either gradient off the other one."""
    J = jacobian(seed, 2, 0.0)
    J[1] -= J[0]
    np.testing.assert_allclose(2 * made("upgrad", 2, reg_eps=0)(J), made("pcgrad", 2)(J), rtol=0, atol=1e-11)


# ---- stationary points


@laws
@given(seed=seeds, tasks=st.integers(2, 8))
def test_zero_in_the_convex_hull_gives_zero(seed: int, tasks: int) -> None:
    """A convex combination of the rows is 0: no direction lowers all losses; the ball of cagrad
    with c >= 1 has 0 in it.  Products are good to 1e-16 of the largest, and a length is the root of such a product:
    1e-8 times a condition of ten."""
    rng = np.random.default_rng(seed)
    J, w = jacobian(seed, tasks), rng.uniform(0.2, 1, tasks)
    J[-1] = -(w[:-1] @ J[:-1]) / w[-1]
    size = np.linalg.norm(J)
    assert np.linalg.norm(J.mean(axis=0)) > 1e-3 * size or np.ptp(w) < 0.1
    exact = {"reg_eps": 0}
    for name, values in (("mgda", {}), ("cagrad", {"c": 2.0}), ("upgrad", exact), ("dualproj", exact)):
        assert np.linalg.norm(made(name, tasks, **values)(J)) <= 1e-7 * size, name
    J[-1] += 0.5 * rng.standard_normal(SIZE)  # and beside it, it does not
    assert np.linalg.norm(made("mgda", tasks)(J)) > 1e-3


# ---- breakdown


@laws
@given(seed=seeds, tasks=st.integers(3, 12), size=st.floats(0, 300))
def test_medians_and_trimmed_means_stay_among_the_honest(seed: int, tasks: int, size: float) -> None:
    """Where fewer than half (the median) or no more than `trim` (the mean) lie, entries are between honest ones."""
    rng = np.random.default_rng(seed)
    bad = int(rng.integers(1, (tasks - 1) // 2 + 1))
    J = rng.standard_normal((tasks, SIZE))
    J[:bad] = 10.0**size * (rng.choice([-1, 1], SIZE) if rng.random() < 0.5 else rng.standard_normal((bad, SIZE)))
    low, high = J[bad:].min(axis=0), J[bad:].max(axis=0)
    order = rng.permutation(tasks)
    for host in (made("coordinate_median", tasks), made("trimmed_mean", tasks, trim=bad)):
        d = host(J[order])
        # a mean of numbers of order one rounds by an ulp of them
        assert np.all(d >= low - 1e-15) and np.all(d <= high + 1e-15)


@pytest.mark.parametrize("tasks", [4, 5, 8, 9])
def test_one_more_liar_moves_them_anywhere(tasks: int) -> None:
    J = np.random.default_rng(0).standard_normal((tasks, SIZE))
    half = (tasks + 1) // 2
    for host, bad in ((made("coordinate_median", tasks), half), (made("trimmed_mean", tasks, trim=1), 2)):
        J[:bad] = 1e9
        assert np.abs(host(J)).min() > 1e8


@laws
@given(seed=seeds, tasks=st.integers(3, 12), size=st.floats(0, 3))
def test_the_geometric_median_is_near_the_honest(seed: int, tasks: int, size: float) -> None:
    """Within 2 (m - f)/(m - 2 f) of the honest radius, wherever f < m/2 others lie."""
    rng = np.random.default_rng(seed)
    bad = int(rng.integers(1, (tasks - 1) // 2 + 1))
    J = rng.standard_normal((tasks, SIZE))
    J[:bad] = 10.0**size * rng.standard_normal(SIZE)  # all in one place
    d = made("geometric_median", tasks, iters=10_000, tol=1e-9)(J)
    radius = np.linalg.norm(J[bad:], axis=1).max()
    assert np.linalg.norm(d) <= 2 * (tasks - bad) / (tasks - 2 * bad) * radius


def test_more_liars_than_half_are_the_geometric_median() -> None:
    J = np.random.default_rng(1).standard_normal((7, SIZE))
    J[:4] = 1e3
    np.testing.assert_allclose(made("geometric_median", 7, iters=10_000)(J), 1e3, rtol=1e-2)


@laws
@given(seed=seeds, bad=st.integers(1, 4), size=st.floats(1.5, 6))
def test_krum_takes_no_liar_though_they_agree(seed: int, bad: int, size: float) -> None:
    """m = 2 f + 3: a liar has f - 1 others at no distance and needs f + 1 neighbours: two are honest and far."""
    rng = np.random.default_rng(seed)
    tasks = 2 * bad + 3
    J = rng.standard_normal((tasks, SIZE))
    J[:bad] = 10.0**size
    d = made("krum", tasks, n_byzantine=bad, n_selected=1)(J)
    assert any(np.array_equal(d, row) for row in J[bad:])


def test_krum_takes_a_liar_where_they_are_enough() -> None:
    """Seven tasks and two announced: three neighbours count, and each of four liars has three at no distance."""
    J = np.random.default_rng(2).standard_normal((7, SIZE))
    J[:4] = 1e6
    np.testing.assert_array_equal(made("krum", 7, n_byzantine=2, n_selected=1)(J), np.full(SIZE, 1e6))
    J[3] = 1.0
    assert np.abs(made("krum", 7, n_byzantine=2, n_selected=1)(J)).max() < 1e2


# ---- how well an iteration converged


def qp_kkt(G: np.ndarray, v: np.ndarray, u: np.ndarray) -> float:
    """By how much v misses the conditions of argmin v'Gv with v >= u, as cosines."""
    norms, slopes = np.sqrt(np.diag(G)), G @ v
    off = np.where(v > u, np.abs(slopes), np.maximum(0, -slopes))
    return float(np.max(off / np.maximum(norms * (norms @ np.abs(v)), 1e-300)))


HARD = {
    "plain": lambda r: r.standard_normal((5, 12)),
    "equal": lambda r: np.tile(r.standard_normal(12), (4, 1)),
    "opposite": lambda r: np.outer([1, -1, 0.5], r.standard_normal(12)),
    "rank 2": lambda r: r.standard_normal((6, 2)) @ r.standard_normal((2, 12)),
    "more tasks than dimensions": lambda r: r.standard_normal((20, 3)),
    "1e30": lambda r: 1e30 * r.standard_normal((5, 12)),
    "1e-30": lambda r: 1e-30 * r.standard_normal((5, 12)),
    "1e30 to 1e-30": lambda r: r.standard_normal((5, 12)) * np.array([1e30, 1, 1e-30, 1e10, 1e-10])[:, None],
    "one is zero": lambda r: np.vstack([r.standard_normal((3, 12)), np.zeros(12)]),
    "zeros": lambda r: np.zeros((3, 12)),
}
# the residuals of exact methods are rounding: some 1e-16 times the tasks
EXACT = ["upgrad", "dualproj", "mgda", "cagrad"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("what", HARD)
def test_exact_methods_tell_that_they_converged(name: str, what: str) -> None:
    aggregate = tw.aggregate(name)
    assert np.isfinite(aggregate(HARD[what](np.random.default_rng(3)))).all()
    assert 0 <= aggregate.get("residual") <= 1e-13
    assert aggregate.get("iterations") == int(aggregate.get("iterations")) >= 0


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad", "fairgrad(alpha=4)", "geometric_median", "pareto_da", "config", "gcond"])
@pytest.mark.parametrize("what", HARD)
def test_no_wrong_answer_in_silence(name: str, what: str) -> None:
    """What the answer misses is in the residual, as NumPy finds it in the answer itself where that is easy."""
    J = HARD[what](np.random.default_rng(3))
    aggregate = tw.aggregate(name)
    g = aggregate(J)
    residual = aggregate.get("residual")
    assert np.isfinite(g).all() and 0 <= residual <= 1
    if name == "nash_mtl":
        # at the solution <g_i, g>·w_i is the same for all; there is none where a combination of gradients is 0
        possible = what in ("plain", "1e30", "1e-30", "1e30 to 1e-30", "equal", "zeros")
        assert (residual < 1e-10) == possible and aggregate.get("stationary") == (not possible)
    if name == "config" and np.linalg.norm(g) > 0:
        unit = J / np.where(np.linalg.norm(J, axis=1) > 0, np.linalg.norm(J, axis=1), 1)[:, None]
        cosines = unit[np.linalg.norm(unit, axis=1) > 0] @ g / np.linalg.norm(g)
        assert (residual < 1e-10) == bool(np.ptp(cosines) < 1e-7), (residual, cosines)
    if name == "gcond":
        assert aggregate.get("iterations") <= 2 * len(J)


def test_a_geometric_median_that_is_not_there_yet_says_so() -> None:
    J = np.random.default_rng(5).standard_normal((7, 20))
    told = []
    for iters in (1, 3, 10, 1000):
        aggregate = tw.aggregate(f"geometric_median(iters={iters}, tol=1e-14)")
        z = aggregate(J)
        units = (z - J) / np.linalg.norm(z - J, axis=1)[:, None]
        # distances come of inner products: some 1e-8 of them is rounding
        assert aggregate.get("residual") == pytest.approx(np.linalg.norm(units.sum(0)) / 7, rel=1e-5, abs=1e-7)
        told.append((aggregate.get("residual"), aggregate.get("iterations")))
    assert told[0][1] == 1 and told[1][1] == 3 and told[2][1] == 10
    assert told[0][0] > told[1][0] > told[2][0] > told[3][0] and told[3][0] < 1e-7 < 1e-3 < told[0][0]


def test_conflicts_that_are_left_are_told() -> None:
    J = np.random.default_rng(1).standard_normal((8, 3))
    left = [tw.aggregate(f"gcond(max_iters={n})") for n in (0, 500)]
    for aggregate in left:
        aggregate(J)
    unit = J / np.linalg.norm(J, axis=1)[:, None]
    assert left[0].get("residual") == pytest.approx(-np.min(unit @ unit.T) / 2, rel=1e-6)
    assert left[0].get("iterations") == 0 < left[1].get("iterations") and left[1].get("residual") < left[0].get("residual")


def test_an_impossible_program_is_told() -> None:
    """Weights that raise no loss of two tasks that conflict all but entirely are equal; the held-out loss rises then."""
    J = np.array([[1, 0.1], [-1, 0.1], [3, -20]])
    aggregate = tw.aggregate("pareto_da(tasks=2, move=descent)")
    np.testing.assert_allclose(aggregate(J), [0, 0.2], rtol=1e-12, atol=1e-15)
    # alpha.a = -2 where 0 is asked for, of terms of the size 3
    assert aggregate.get("residual") == pytest.approx(2 / 3, rel=1e-12)


def test_what_is_told_is_a_number_of_the_stage() -> None:
    J, x = np.random.default_rng(0).standard_normal((4, 9)), np.zeros(9)
    opt, alone = tw.Optimizer([x], "cagrad(tasks=4) | clip_global_norm(1) | sgd(lr=0.1)"), tw.aggregate("cagrad")
    with pytest.raises(tw.SequenceError, match="has not been called"):
        alone.get("residual")
    for request in opt.requests():
        request.answer([J[request.index]])
    alone(J)
    assert opt.get("cagrad.residual") == alone.get("residual") and opt.get("cagrad.iterations") == alone.get("iterations") > 0
    other = tw.aggregate("pcgrad")
    other(J)
    with pytest.raises(tw.UnknownNameError):  # which does not iterate
        other.get("residual")


@pytest.mark.parametrize("m", [40, 70, 130])
@pytest.mark.parametrize("kind", ["orthogonal", "dependent"])
def test_many_tasks(m: int, kind: str) -> None:
    """Beyond 32 tasks upgrad sweeps where gradients are far from dependent, and goes the exact way elsewhere."""
    rng = np.random.default_rng(m)
    J = rng.standard_normal((m, 400)) if kind == "orthogonal" else rng.standard_normal((m, 20)) @ rng.standard_normal((20, 400))
    aggregate = tw.aggregate("dualproj")
    g = aggregate(J)
    assert aggregate.get("residual") <= 1e-9
    G = J @ J.T / np.trace(J @ J.T) + 1e-4 * np.eye(m)
    v, *_ = np.linalg.lstsq(J.T, g, rcond=None)
    if kind == "orthogonal":  # where the weights can be read off the answer
        assert qp_kkt(G, np.where(np.abs(v - 1 / m) < 1e-12, 1 / m, v), np.full(m, 1 / m)) < 1e-9
    # gradvac without a history, against the rule as it is written: O(m^2) walks over the gradients
    if m == 70:
        mine = tw.aggregate("gradvac(beta=0)")
        pcgrad = tw.aggregate("pcgrad")
        np.testing.assert_allclose(mine(J), pcgrad(J), rtol=1e-7, atol=1e-7 * np.abs(J).max() * m)


@pytest.mark.parametrize("name", ["cagrad", "nash_mtl", "gcond"])
def test_files_from_before_there_was_a_residual_load(name: str) -> None:
    """Written within a step, where what was there before the step is in the file too."""
    J = np.random.default_rng(0).standard_normal((3, 4))

    def steps(opt: tw.Optimizer, w: Array, count: int) -> None:
        for _ in range(count):
            for request in opt.requests():
                request.answer([J[request.index] * (w + 2)])

    def fresh() -> tuple[tw.Optimizer, Array]:
        w = np.linspace(-1, 1, 4)
        return tw.Optimizer([w], f"{name}(tasks=3) | sgd(lr=0.1, momentum=0.9)"), w

    straight, at = fresh()
    steps(straight, at, 2)
    opt, w = fresh()
    w[...] = at
    opt.load(Path(__file__).parent / "data" / f"{name}_within.safetensors")
    opt.cancel()
    steps(opt, w, 1)
    steps(straight, at, 1)
    np.testing.assert_allclose(w, at, rtol=1e-12)
    assert opt.get(f"{name}.iterations") == straight.get(f"{name}.iterations")
