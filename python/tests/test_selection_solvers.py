"""Solvers built on objectives, and the layers and schedules beside them: what their cards promise."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.solvers_selection import charts, onto_l1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- one neuron


def test_a_neuron_is_found_in_spite_of_wrong_labels() -> None:
    r, w = rng(), np.array([1.0, -0.7, 0.4, 0.0])
    x = r.standard_normal((3000, 4))
    y = np.maximum(x @ w, 0)
    y[r.random(3000) < 0.02] += 2
    found = tw.solver("robust_neuron").run(x=x, y=y).w
    assert np.linalg.norm(found - w) < 0.1  # 2 % of labels off by 2 are a mean error of 0.04 in each direction at most
    assert np.linalg.norm(tw.solver("robust_neuron(iters=1)").run(x=x, y=y).w) > 0.1  # the square loss would not move from 0


def test_a_neuron_without_activation_is_least_squares() -> None:
    r = rng(1)
    x, y = r.standard_normal((50, 3)), r.standard_normal(50)
    found = tw.solver("robust_neuron(act=identity, iters=2000)").run(x=x, y=y)
    np.testing.assert_allclose(found.w, np.linalg.lstsq(x, y)[0], atol=1e-8)
    assert found.outcome == "converged"
    held = tw.solver("robust_neuron(act=identity, radius=0.01)").run(x=x, y=y)
    assert np.linalg.norm(held.w) <= 0.01 * (1 + 1e-15) and held.outcome == "max_iter"


# ---- clusters


def test_separated_clusters_are_recovered() -> None:
    r = rng(2)
    centres = 6 * np.eye(3)
    y = np.repeat(np.arange(3), 20)
    f = centres[y] + r.standard_normal((60, 3))
    found = tw.solver("transductive_clustering(classes=3)").run(queries=f, support=centres + 0.1, y=np.arange(3))
    assert np.array_equal(found.labels, y)
    assert np.all(np.diff(found.objective) <= 1e-9)
    np.testing.assert_allclose(found.z.sum(1), 1, rtol=1e-14)
    with pytest.raises(tw.RangeError, match="class 2 has no support"):
        tw.solver("transductive_clustering(classes=3)").run(queries=f, support=centres, y=np.array([0, 1, 1]))


# ---- inversion


def test_inversion_converges_inside_the_ball_and_stops_at_it() -> None:
    goal = np.array([[0.3, -0.2], [0.1, 0.4]])
    answer = {"value_gradient": lambda x: (float(np.sum((x - goal) ** 2)), 2 * (x - goal))}
    inside = tw.solver("gradient_inversion(steps=400)").run(x0=np.zeros((2, 2)), **answer)
    np.testing.assert_allclose(inside.best, goal, atol=1e-3)
    assert inside.cost == pytest.approx(0, abs=1e-6)
    held = tw.solver("gradient_inversion(steps=400, radius=0.2)").run(x0=np.zeros((2, 2)), **answer)
    np.testing.assert_allclose(np.abs(held.x).sum(1), 0.2, rtol=1e-9)
    assert np.array_equal(onto_l1(np.array([3.0, -1.0]), 2.0), [2.0, 0.0])
    plain = tw.solver("gradient_inversion(steps=400, radius=0)").run(x0=np.zeros((2, 2)), **answer)
    np.testing.assert_array_equal(plain.x, inside.x)


def test_the_rate_of_inversion_is_its_schedule() -> None:
    """Adam's first moves are its rate times the sign: the first rate is 0, the second that of t = 1/steps."""
    seen = []
    answer = {"value_gradient": lambda x: (seen.append(x.copy()) or 0.0, np.ones((1, 1)))}
    tw.solver("gradient_inversion(steps=20, eps=0)").run(x0=np.zeros((1, 1)), **answer)
    rate = tw.schedule("inversion_lr(steps=20)")
    np.testing.assert_allclose(-np.diff(np.concatenate(seen)[:, 0]), [rate(k) for k in range(19)], atol=1e-14)


def test_gradient_match_cost_is_scale_free() -> None:
    a, b = rng(3).standard_normal((2, 30))
    mine = tw.objective("gradient_match_cost")
    assert mine(a=a, b=b) == pytest.approx(mine(a=1e200 * a, b=1e-200 * b), rel=1e-13)
    assert mine(a=a, b=a) == pytest.approx(0, abs=1e-15) and mine(a=0 * a, b=b) == 1


# ---- charts


def test_on_one_linear_chart_both_retractions_agree_with_least_squares() -> None:
    inputs, functions = charts(rng(4), 1, 5, 2)
    b = inputs["jacobians"][0]
    ends = [tw.solver(f"chart_step(lr=1, retraction={how})").run(**inputs, weights=np.ones(1), **functions()).x for how in ("project", "chart")]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)
    again = np.linalg.solve(b.T @ b, inputs["gradients"][0])
    np.testing.assert_allclose(ends[0], inputs["x0"] - b @ again, atol=1e-12)


def test_a_singular_chart_is_reported() -> None:
    inputs, functions = charts(rng(5), 2, 4, 2)
    inputs["jacobians"][1][:, 1] = 0
    with pytest.raises(tw.NumericError, match="chart 1"):
        tw.solver("chart_step(lr=1)").run(**inputs, weights=np.ones(2) / 2, **functions())
    tw.solver("chart_step(lr=1)").run(**inputs, weights=np.array([1.0, 0]), **functions())  # a chart left out may be
    with pytest.raises(tw.RangeError, match="skip"):
        tw.solver("chart_step(lr=1)").run(**inputs, weights=np.zeros(2), **functions())


# ---- selection


def test_gio_selects_the_mode_of_the_target() -> None:
    r = rng(6)
    x = r.standard_normal((60, 2)) + 4
    pool = np.concatenate([r.standard_normal((40, 2)) + 4, r.standard_normal((40, 2)) - 4])
    found = tw.solver("gio_select").run(x=x, pool=pool)
    chosen = found.indices[: int(found.chosen)]
    assert len(chosen) > 5 and np.all(chosen < 40) and len(set(chosen)) == len(chosen)
    assert np.all(np.diff(np.concatenate([[found.first], found.kl[: len(chosen)]])) <= 0)


def test_knn_kl_estimates_the_divergence_of_gaussians() -> None:
    """N(0, 1) against N(1, 1): ½; 3000 points each, off by some 1/sqrt(3000) times a factor of a few."""
    r = rng(7)
    x, y = r.standard_normal((3000, 1)), r.standard_normal((3000, 1)) + 1
    assert tw.objective("knn_kl(k_xy=5)")(x=x, y=y) == pytest.approx(0.5, abs=0.12)


# ---- layers and schedules


def test_a_doubly_stochastic_matrix_of_symmetric_similarities() -> None:
    u = rng(8).standard_normal((7, 3))
    pi = tw.objective("sinkhorn_doubly_stochastic").value_and_grad(s=u @ u.T / 10)[1]["pi"]
    np.testing.assert_allclose(pi, pi.T, atol=1e-10)
    np.testing.assert_allclose([pi.sum(0), pi.sum(1)], 1, atol=1e-11)
    once = tw.objective("sinkhorn_doubly_stochastic(iters=1)").value_and_grad(s=u @ u.T)[1]["pi"]
    np.testing.assert_allclose(once.sum(0), 1, atol=1e-14)  # the columns come last
    assert np.abs(once.sum(1) - 1).max() > 1e-3


def test_multinomial_nll_is_mult_vae_without_its_divergence() -> None:
    r = rng(9)
    f, x = r.standard_normal((4, 6)), r.poisson(1.0, (4, 6)).astype(float)
    assert tw.objective("multinomial_nll")(f=f, x=x) == tw.objective("mult_vae")(f=f, x=x)


def test_the_decay_of_an_old_policy() -> None:
    slow, late = tw.schedule("nft_old_decay"), tw.schedule("nft_old_decay(decay_type=2)")
    assert [slow(k) for k in (0, 100, 10_000)] == [0, 0.1, 0.5]
    assert [late(k) for k in (0, 74, 75, 10_000)] == [0, 0, 0, 0.999] and late(77) == pytest.approx(0.015)


def test_an_edge_is_found_where_it_is() -> None:
    image = np.zeros((6, 8, 3))
    image[:, 4:] = 1
    mask = tw.diagnostic("edge_mask")(image=image)["mask"]
    assert np.array_equal(mask, np.tile([0, 0, 0, 1, 1, 0, 0, 0], (6, 1)))


# ---- spectra


def test_pairs_come_in_order_of_magnitude_even_when_they_did_not_converge() -> None:
    a = np.diag([1.0, -5.0, 3.0, 0.5])
    r = tw.solver("power_iteration(num=4, iters=1)").run(vectors0=np.eye(4), product=lambda v: a @ v)
    assert r.eigenvalues.tolist() == [-5.0, 3.0, 1.0, 0.5] and r.outcome == "max_iter"
    for value, v in zip(r.eigenvalues, r.vectors):
        np.testing.assert_array_equal(a @ v, value * v)


def test_a_diagonal_from_normal_vectors_is_exact_for_a_diagonal_operator() -> None:
    v = rng(10).standard_normal((3, 5))
    v[:, 4] = 0
    d = tw.solver("hutchinson_diagonal").run(vectors0=v, product=lambda v: v * np.arange(5.0)).diagonal
    np.testing.assert_allclose(d, [0, 1, 2, 3, 0], rtol=1e-14)  # no vector saw the last entry


def test_lanczos_without_reorthogonalisation_has_the_same_first_steps() -> None:
    a = np.diag(np.linspace(1, 2, 30))
    start = rng(11).standard_normal(30)
    full, plain = (tw.solver(f"lanczos(steps=6, reorth={flag})").run(start=start, product=lambda v: a @ v) for flag in ("true", "false"))
    np.testing.assert_allclose(full.alpha, plain.alpha, rtol=1e-10)
    assert not np.array_equal(full.alpha, plain.alpha)
