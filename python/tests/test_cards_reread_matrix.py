"""What a further reading of the cards found in matrix methods, their solvers, aggregators and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference.muon import orthogonalize
from reference.solvers_matrix import DLRT, TDLRT


@pytest.mark.parametrize("rule", ["scion(norm=spectral_max, momentum=1, unconstrained=true, lr=1)",
                                  "norm_descent(norm=spectral, ortho=newton_schulz, scale=unit, lr=1)",
                                  "norm_trust_region(norm=spectral, ortho=newton_schulz, radius=1)"])
def test_the_iteration_adds_eps_to_the_norm(rule: str) -> None:
    g = np.random.default_rng(0).standard_normal((3, 5)) * 1e-6
    w = np.zeros((3, 5))
    tw.Optimizer([w], rule).step([g])
    np.testing.assert_allclose(-w, orthogonalize(g, eps=1e-7, eps_mode="add"), rtol=1e-9)


def test_the_minimiser_over_a_spectral_ball_adds_eps_to_the_norm() -> None:
    g = np.random.default_rng(0).standard_normal((3, 5)) * 1e-6
    s = tw.constraint("norm_lmo(norm=spectral, ortho=newton_schulz)").lmo(g)
    np.testing.assert_allclose(-s, orthogonalize(g, eps=1e-7, eps_mode="add"), rtol=1e-9)


@pytest.mark.parametrize("shape", [(9, 7), (4, 11)])
def test_dlrt_keeps_the_matrix_in_wide_bases(shape: tuple[int, int]) -> None:
    """Where twice the rank is above the smaller side, the basis of the longer side still has [K | U]."""
    rng = np.random.default_rng(0)
    w, target = rng.standard_normal(shape), rng.standard_normal(shape)
    seen: list[np.ndarray] = []

    def gradient(x: Any) -> np.ndarray:
        seen.append(np.array(x))
        return np.asarray(x) - target

    rank = min(shape) - 1
    r = tw.solver(f"dlrt(r_max={rank}, tol=0, max_iter=2)").run(w0=w, gradient=gradient)
    expected = DLRT(r_max=rank, tol=0.0, max_iter=2).solve({"w0": w}, {"gradient": lambda x: x - target})
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-12)  # the bases alone have changed
    np.testing.assert_allclose(r["w"], expected["w"], atol=1e-10)


def test_a_frozen_mode_keeps_its_identity_factor() -> None:
    rng = np.random.default_rng(0)
    w, target = rng.standard_normal((7, 6, 5, 2)), rng.standard_normal((7, 6, 5, 2))
    r = tw.solver("tdlrt(freeze=5, tol=0.4, max_iter=20)").run(w0=w, gradient=lambda x: np.asarray(x) - target)
    expected = TDLRT(freeze=5, tol=0.4, max_iter=20).solve({"w0": w}, {"gradient": lambda x: x - target})
    assert list(r["ranks"][2:]) == [5, 2]
    np.testing.assert_array_equal(r["ranks"], expected["ranks"])
    np.testing.assert_allclose(r["w"], expected["w"], atol=1e-9)


def test_coupled_newton_does_not_report_a_wrong_root_as_found() -> None:
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    a = q @ np.diag(np.geomspace(1, 40, 5)) @ q.T
    for p in (2, 8, 100, 300):
        try:
            r = tw.solver(f"inverse_root(p={p}, method=coupled_newton)").run(a=a)
        except tw.NumericError as problem:
            assert "overflows" in str(problem)
            continue
        assert (r.outcome == "converged") == (r["residual"] <= 1e-3), (p, r.outcome, r["residual"])
        if p < 10:
            assert r.outcome == "converged"


def test_greedy_tn_refuses_weights_below_0() -> None:
    t = np.random.default_rng(0).standard_normal((3, 3, 2))
    with pytest.raises(tw.RangeError, match="mask"):
        tw.solver("greedy_tn(max_steps=1)").run(tensor=t, mask=np.where(t > 0, 1.0, -1.0))


def test_any_shampoo_beta_below_0_is_beta2() -> None:
    g, moved = np.random.default_rng(0).standard_normal((6, 3, 3)), []
    for beta in (-1, -2):
        w = np.zeros((3, 3))
        opt = tw.Optimizer([w], f"soap(lr=0.1, shampoo_beta={beta}, precondition_frequency=2)")
        for x in g:
            opt.step([x])
        moved.append(w)
    assert np.array_equal(*moved) and moved[0].any()


@pytest.mark.parametrize("sentence, what", [
    ("scaled_gd(lr=1)", "lr"), ("soap(shampoo_beta=1)", "shampoo_beta"), ("fd_grad_reg(gamma=-1) | sgd", "gamma"),
    ("gcond(tasks=2, lambdas=[1, 0]) | sgd", "lambdas"), ("adam_snsm(subset=0)", "subset"),
])
def test_refused_by_the_card(sentence: str, what: str) -> None:
    with pytest.raises(tw.RangeError, match=what):
        tw.Optimizer([np.ones((2, 2))], sentence)


@pytest.mark.parametrize("name", ["aligned_mtl", "config"])
def test_rounding_of_float32_gradients_is_no_direction(name: str) -> None:
    """Two halves of a batch and the whole: of rank 2 but for rounding."""
    rng = np.random.default_rng(0)
    x, r = rng.standard_normal((2000, 100)), rng.standard_normal(2000)
    exact = np.array([x[:1000].T @ r[:1000], x[1000:].T @ r[1000:], x.T @ r])
    update, expected = tw.aggregate(name)(exact.astype(np.float32)), tw.aggregate(name)(exact)
    np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_batch_of_no_samples_weighs_nothing() -> None:
    w = np.zeros(2)
    opt = tw.Optimizer([w], "gradient_accumulate(every=2, mode=weighted) | sgd(lr=1)")
    for samples, g in ((0, 7.0), (3, 1.0)):
        opt.observe("samples", samples)
        opt.step([np.full(2, g)])
    np.testing.assert_array_equal(w, -1)
    opt.observe("samples", 0)
    opt.step([np.ones(2)])
    opt.observe("samples", 0)
    with pytest.raises(tw.RangeError, match="no samples"):
        opt.step([np.ones(2)])
    opt.observe("samples", -1)
    with pytest.raises(tw.RangeError, match="at least 0, got -1"):
        opt.step([np.ones(2)])
    opt.observe("samples", 2)
    opt.step([np.full(2, 5.0)])
    np.testing.assert_array_equal(w, -6)


def test_magma_of_large_gradients_is_that_of_small_ones() -> None:
    moved = []
    for size in (1.0, 1e160):
        w, rng = np.array([1.0, -2, 0.5, 3]), np.random.default_rng(0)
        opt = tw.Optimizer([w], "lion(lr=0.1) | magma(mask_prob=1)")
        for _ in range(4):
            opt.step([rng.standard_normal(4) * size])
        moved.append(w)
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-12)


def test_betas_of_a_group_are_those_of_the_method() -> None:
    for betas in ([0.5], [0.5, 0.9], (0.1, 0.2, 0.3, 0.4)):
        with pytest.raises(tw.Error, match="`betas` is fixed"):
            tw.Optimizer([{"params": [np.ones(2)]}, {"params": [np.ones(2)], "betas": betas}], "aggmo(lr=0.1)")


@pytest.mark.parametrize("sentence", ["norm_test(max_batch=100)", "norm_test(max_batch=100, coordinate=true)",
                                      "inner_product_test(max_batch=100)", "inner_product_test(max_batch=100, nu=0.5)"])
def test_batch_tests_do_not_depend_on_the_scale(sentence: str) -> None:
    samples = 0.3 + np.random.default_rng(0).standard_normal((4, 3))
    sizes = []
    for scale in (1.0, 1e-90, 1e-200, 1e200):
        schedule = tw.schedule(sentence)
        schedule.observe_samples(samples * scale)
        sizes.append(schedule(0))
    assert len(set(sizes)) == 1 and 4 < sizes[0] <= 100


def test_the_keys_of_adam_cm_have_one_decay() -> None:
    groups = [{"params": [np.ones(2)]}, {"params": [np.ones(2)], "decay": 0.5}]
    with pytest.raises(tw.Error, match="decay"):
        tw.Optimizer(groups, "adam_cm")
    tw.Optimizer(groups, "adam_cm(layerwise=true)")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_opposite_gradients_have_no_common_direction(dtype: type) -> None:
    for rows in ([[1.0], [-2.0]], [[3.0, 4], [-6, -8]], [[0.1, 0.3], [-0.07, -0.21]]):
        assert not tw.aggregate("config")(np.array(rows, dtype)).any()


def test_dsgd_wants_a_row_for_each_client() -> None:
    with pytest.raises(tw.ShapeError, match="points0"):
        tw.solver("dsgd(clients=3, max_iter=2)").run(points0=np.ones((5, 2)), client_gradient=lambda client, point: point)
