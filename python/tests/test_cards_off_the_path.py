"""What cards say off the plain path: ties, dependent rows, infinite trials, large orders, absent tensors, losses behind sources."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw

Answer = Callable[[Any, np.ndarray], None]


# ---- masks, programs, projections


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ties_at_the_cut_of_fsam_keep_the_lower_index(dtype: Any) -> None:
    w, g = np.zeros(8, dtype), np.array([1, 1, 1, 1, 2, -1, 3, 0], dtype)
    opt = tw.Optimizer([w], "fsam(keep_ratio=.5) | sgd(lr=0)")
    for request in opt.requests():
        request.answer([g], 0.0)
    assert opt.state()["fsam.mask"][0].tolist() == [1, 1, 0, 0, 1, 0, 1, 0]


def test_tensors_that_do_not_compete_are_perturbed_from_their_first_step() -> None:
    a, b = np.ones(3), np.ones(2)
    opt = tw.Optimizer([a, b], "fsam(rho=1, maskable=false) | sgd(lr=0)")
    seen = []
    for t in range(2):
        for request in opt.requests():
            seen.append(a.copy())
            request.answer([None if t == 0 else np.ones(3), np.ones(2)], 0.0)
    np.testing.assert_allclose(seen[3], 1 + 1 / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-13, 1e-10])
@pytest.mark.parametrize("tasks", [3, 6, 12])
def test_pareto_da_of_rows_that_are_hardly_apart(tasks: int, noise: float) -> None:
    """The program is feasible, and as good as a solver's."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(tasks)
    for _ in range(30):
        J = rng.standard_normal((tasks + 1, 8))
        J[1] = J[0] + noise * rng.standard_normal(8)
        w = np.zeros(8)
        opt = tw.Optimizer([w], f"pareto_da(tasks={tasks}, move=descent) | sgd(lr=1)")
        for request in opt.requests():
            request.answer([J[request.index].copy()], 0.0)
        K, d = J[:tasks], -w / tasks
        C, a = K @ K.T, K @ J[tasks]
        best = optimize.linprog(-C.sum(0), A_ub=np.vstack([-C, -a]), b_ub=np.append(np.zeros(tasks), -min(0, a.max())),
                                A_eq=np.ones((1, tasks)), b_eq=[1])
        if not best.success:
            np.testing.assert_allclose(d, K.mean(0), atol=1e-9)
            continue
        assert (K @ d).min() > -1e-8 * np.abs(C).max()
        assert np.sum(K @ d) == pytest.approx(-best.fun, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_projections_onto_dependent_rows(name: str) -> None:
    """Without a diagonal: the direction conflicts with no row, and is 0 where rows oppose each other."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((int(rng.integers(2, 7)), 8))
        both = np.vstack([A, -A])
        d = np.asarray(tw.aggregate(f"{name}(tasks={len(both)}, reg_eps=0)")(both))
        np.testing.assert_allclose(d, 0, atol=1e-6)
        J = rng.integers(-2, 3, (int(rng.integers(2, 25)), int(rng.integers(1, 40)))).astype(float)
        d = np.asarray(tw.aggregate(f"{name}(tasks={len(J)}, reg_eps=0)")(J))
        assert (J @ d).min() >= -1e-5 * max(1, np.abs(J).max())


# ---- privacy


def test_large_fractional_orders_spend_privacy() -> None:
    spent = lambda orders: tw.schedule(f"rdp_accountant(sigma=16, rate=.3, delta=1e-5, orders={orders})")(1000)  # noqa: E731
    assert spent([100]) < spent([100.5]) < spent([101])
    assert spent([2, 8, 100.5]) == pytest.approx(spent([2, 8]))


def test_a_clip_norm_for_each_tensor() -> None:
    for clip in ("[1, 2, 3]", "[1]"):
        w = [np.zeros(4), np.zeros(4)]
        opt = tw.Optimizer(w, f"dp_sgd(noise_multiplier=1, expected_batch_size=1, clip={clip}, mode=per_layer) | sgd(lr=1)")
        with pytest.raises(tw.Error, match="there are 2 tensors"):
            for request in opt.requests():
                request.answer_samples([np.zeros((1, 4))] * 2)


@pytest.mark.parametrize("name", ["sign_compress", "onebit_compress", "topk_compress(k=3)"])
def test_dead_entries_arrive_as_zeros(name: str) -> None:
    w = np.zeros(4)
    tw.Optimizer([w], f"{name} | sgd(lr=1)").step([np.array([1.0, np.nan, -2, 3])])
    assert w[1] == 0 and np.all(w[[0, 2, 3]] != 0)


# ---- solvers


@pytest.mark.parametrize("big", [np.inf, np.nan, 1e30])
def test_trials_outside_of_the_domain(big: float) -> None:
    f = lambda x: float(np.sum(x - np.log(x))) if (x > 0).all() else big  # noqa: E731
    r = tw.solver("fista(curvature=0.1)").run(x0=np.array([3.0]), value_gradient=lambda p: (f(p), 1 - 1 / p), value=f)
    assert r.outcome == "converged" and r.x[0] == pytest.approx(1, rel=1e-5)
    r = tw.solver("bcd(update=newton)").run(
        x0=np.array([3.0, 2.5]), lipschitz=np.ones(2), gradient=lambda x: 1 - 1 / x, value=f, second=lambda x: np.diag(1 / x**2))
    assert r.outcome == "converged" and np.allclose(r.x, 1)


def test_newton_steps_of_sinkhorn_that_overflow() -> None:
    C, a, b = np.array([[0.26, 0.3], [0.81, 0.09]]), np.array([0.46, 0.54]), np.array([0.65, 0.35])
    r = tw.solver("sinkhorn_newton_sparse(eta=60)").run(cost=C, a=a, b=b)
    assert r.outcome == "converged" and np.allclose(r.plan.sum(1), a) and np.allclose(r.plan.sum(0), b)


# ---- rules


def test_rules_that_project_a_gradient_of_zero() -> None:
    for name in ("adamp", "sgdp"):
        for eps in ("1e-30", "0"):
            w = np.array([[1.0, 2.0], [3.0, 4.0]])
            tw.Optimizer([w], f"{name}(lr=.1, weight_decay=1, wd_ratio=0, delta=3, eps={eps})").step([np.zeros((2, 2))])
            assert w.ravel().tolist() == [1, 2, 3, 4]


def test_blocks_count_as_tensors_of_their_own() -> None:
    """Of a KL form, a row that a block leaves over."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3))
    whole, row = [w.copy()], [w[3:4].copy()]
    for name in ("kl_shampoo", "kl_soap"):
        first = tw.Optimizer(whole, f"{name}(lr=.01, shampoo_beta=.5, block_size=3)")
        second = tw.Optimizer(row, f"{name}(lr=.01, shampoo_beta=.5)")
        for _ in range(3):
            g = rng.standard_normal((4, 3))
            first.step([g])
            second.step([g[3:4].copy()])
        np.testing.assert_allclose(whole[0][3], row[0][0], rtol=1e-12)


def test_row_bounds_of_large_matrices() -> None:
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    moves = []
    for scale in (1.0, 1e18, 1e20, 1e30):
        w = np.zeros((3, 4), np.float32)
        tw.Optimizer([w], "newton_schulz(ns_coefficients=aol) | sgd(lr=1)").step([x * np.float32(scale)])
        moves.append(w)
    for move in moves[1:]:
        np.testing.assert_allclose(move, moves[0], rtol=1e-5, atol=1e-6)


def test_entropy_of_logits_far_from_zero() -> None:
    entropy, fit = tw.regularizer("softmax_entropy"), tw.regularizer("prox_cross_entropy(target=[1, 0, 0])")
    for m in (1e3, 1e9, 1e15, 1e17):
        z = np.array([[m, m, 0.0]])
        assert entropy.value(z) == pytest.approx(np.log(2), rel=1e-14) and np.abs(entropy.gradient(z)).max() < 1e-15
        assert fit.value(z) == pytest.approx(np.log(2), rel=1e-14)


# ---- losses behind sources


def quadratic(x: np.ndarray) -> float:
    return float(0.5 * x @ x + 0.1 * np.sum(x**4) + 2)


def slope(x: np.ndarray) -> np.ndarray:
    return x + 0.4 * x**3


def drive(sentence: str, steps: int = 2, sign: int = 1, stop: int | None = None, **options: Any) -> tuple[np.ndarray, list[str]]:
    """The parameters behind some steps; at request `stop` the run is saved, and another goes on with it."""
    x = np.array([1.0, -2.0, 0.5])
    opt = tw.Optimizer([x], sentence, seed=3, **options)
    asked: list[str] = []
    for _ in range(steps):
        for request in opt.requests():
            if stop is not None and len(asked) == stop:
                x2 = x.copy()
                other = tw.Optimizer([x2], sentence, seed=3, **options)
                other.load_state_dict(opt.state_dict())
                return _rest(other, x2, asked, steps, sign)
            asked.append(request.kind)
            _answer(request, x, sign)
    return x, asked


def _rest(opt: tw.Optimizer, x: np.ndarray, asked: list[str], steps: int, sign: int) -> tuple[np.ndarray, list[str]]:
    while opt.steps < steps:
        for request in opt.requests():
            asked.append(request.kind)
            _answer(request, x, sign)
    return x, asked


def _answer(request: Any, x: np.ndarray, sign: int) -> None:
    if request.kind == "loss":
        request.answer(loss=sign * quadratic(x))
    elif request.kind == "hessian_vector":
        request.answer([sign * (1 + 1.2 * x**2) * np.asarray(v) for v in request.probe])
    elif request.wants_loss:
        request.answer([sign * slope(x)], sign * quadratic(x))
    else:
        request.answer([sign * slope(x)])


COMPARE = ["newton_cg", "newton_cg(mode=linesearch)", "nonlinear_cg", "lbfgs(line_search=strong_wolfe)", "rolling_ball(n_projection=2)",
           "robust_subgm(rule=polyak)", "robust_subgm(rule=proportional, lr=0.1)"]
HARMLESS = ["upgrad(tasks=2)", "mgda(tasks=2)", "coordinate_median(tasks=3)", "gradient_accumulate(1)", "sam(0)"]


@pytest.mark.parametrize("source", HARMLESS)
@pytest.mark.parametrize("rule", COMPARE)
def test_rules_that_compare_losses_find_them_behind_sources(rule: str, source: str) -> None:
    """Sources that change nothing: equal tasks, a radius of 0."""
    alone, _ = drive(rule)
    behind, _ = drive(f"{source} | {rule}")
    np.testing.assert_allclose(behind, alone, rtol=1e-9)


@pytest.mark.parametrize("rule", ["newton_cg(mode=linesearch)", "nonlinear_cg", "lbfgs(line_search=strong_wolfe)"])
def test_trials_that_fail_behind_sources(rule: str) -> None:
    """Their gradients are not looked at, whatever they are."""
    ends = []
    for source in ("", "upgrad(tasks=2) | "):
        x, failed = np.array([1.0, 2.0]), 0
        opt = tw.Optimizer([x], f"{source}{rule}")
        for _ in range(6):
            for request in opt.requests():
                inside = bool((x > 0).all())
                failed += not inside
                with np.errstate(all="ignore"):
                    loss, g = (float(np.sum(x - 0.01 * np.log(x))), 1 - 0.01 / x) if inside else (np.inf, np.full(2, np.nan))
                if request.kind == "loss":
                    request.answer(loss=loss)
                elif request.kind == "hessian_vector":
                    request.answer([0.01 * np.asarray(request.probe[0]) / x**2])
                else:
                    request.answer([g], loss) if request.wants_loss else request.answer([g])
        ends.append(x)
        assert failed > 0
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-9)


def test_the_loss_is_that_of_the_point_and_not_of_a_probe() -> None:
    start = np.array([1.0, -2.0, 0.5])
    for source in ("openai_es(pairs=1, sigma=0.5)", "zo_gradient(mu=0.5, central=true)", "zo_gradient(mu=0.5)"):
        x, _ = drive(f"{source} | newton_cg", steps=1)
        assert quadratic(x) <= quadratic(start)
        x, _ = drive(f"{source} | sgd(lr=0.1)", steps=1)
        y, _ = drive(f"{source} | robust_subgm(rule=proportional, lr=0.1)", steps=1)
        np.testing.assert_allclose(y - start, quadratic(start) * (x - start), rtol=1e-9)


def test_a_window_of_perturbed_gradients_has_the_mean_of_its_losses() -> None:
    """Of all minibatches, each at the parameters: as without the perturbation, whose radius is 0."""
    ends = []
    for source in ("", "sam(0) | "):
        x = np.array([1.0, -2.0])
        opt = tw.Optimizer([x], f"{source}gradient_accumulate(2) | polyak_sgd(max_lr=0.5)")
        tags: dict[int, int] = {}
        for _ in range(4):
            for request in opt.requests():
                batch = tags.setdefault(request.tag, len(tags)) % 2
                loss, g = quadratic(x) + 3 * batch, slope(x)
                request.answer([g], loss) if request.wants_loss else request.answer([g])
        ends.append(x)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-12)


def test_private_gradients_reach_a_rule_that_asks_for_the_loss() -> None:
    x = np.ones(2) * 5
    opt = tw.Optimizer([x], "dp_sgd(noise_multiplier=0, expected_batch_size=1, clip=1) | robust_subgm(rule=proportional, lr=0.1)")
    for request in opt.requests():
        if request.kind == "loss":
            request.answer(loss=1.0)
        else:
            request.answer_samples([np.array([[1.0, 0]])])
    np.testing.assert_allclose(x, [4.9, 5], rtol=1e-5)


@pytest.mark.parametrize("sentence", [
    "robust_subgm(rule=polyak)", "openai_es(pairs=2) | sania", "zo_gradient(central=true) | polyak_sgd", "openai_es(pairs=2) | sam(0.05) | momo",
    "pcgrad(tasks=2) | sam(0.05) | newton_cg", "mgda(tasks=2) | rolling_ball(n_projection=2)", "upgrad(tasks=2) | lbfgs(line_search=strong_wolfe)",
    "zo_gradient | newton_cg"])
def test_a_saved_step_knows_the_losses_that_it_was_told(sentence: str) -> None:
    straight, asked = drive(sentence)
    for stop in range(len(asked)):
        resumed, again = drive(sentence, stop=stop)
        assert again == asked and np.array_equal(resumed, straight), stop


@pytest.mark.parametrize("rule", ["sania", "polyak_sgd(max_lr=1)", "momo", "prox_linear(lr=0.1)", "truncated_model(lr=0.1)", "schedule_free_plus",
                                  "rolling_ball", *COMPARE])
def test_ascent_of_the_negative_is_descent(rule: str) -> None:
    down, _ = drive(rule, steps=3)
    up, _ = drive(rule, steps=3, sign=-1, maximize=True)
    np.testing.assert_allclose(up, down, rtol=1e-12)


def test_mechanic_in_sixteen_bits_trains_as_its_master_does() -> None:
    ends = []
    for dtype, options in ((np.float32, {}), (np.float16, {"master": "f32"})):
        w = np.full(4, 0.9, dtype)
        opt = tw.Optimizer([w], "sgd(lr=1e-2) | mechanic(s_init=1, weight_decay=0)", **options)
        for _ in range(12):
            opt.step([np.ones(4, np.float32)])
        ends.append(w.astype(np.float32))
    np.testing.assert_allclose(ends[1], ends[0], rtol=2**-11)


def test_dependent_residuals_need_damping() -> None:
    solver = tw.solver("egn(curvature=identity, lam=0, max_iter=1)")
    for rows in (2, 5):
        with pytest.raises(tw.NumericError, match="positive definite"):
            solver.run(x0=np.zeros(3), like=np.ones((rows, 1)), jacobian=lambda x, n=rows: (np.ones((n, 1)), np.ones((n, 1, 3))))


def test_products_that_overflow_are_an_error_in_bloop() -> None:
    w = np.ones(3)
    opt = tw.Optimizer([w], "bloop | sgd(lr=1)")
    with pytest.raises(tw.NonfiniteError, match="overflow"):
        for request in opt.requests():
            request.answer([np.full(3, 1e200)])
    assert w.tolist() == [1, 1, 1]


def test_the_whole_matrix_of_sinkhorn_newton_has_a_kernel() -> None:
    rng = np.random.default_rng(41)
    C, a, b = rng.random((6, 7)), rng.random(6) + 0.1, rng.random(7) + 0.1
    for steps in (8, 10, 12):
        r = tw.solver(f"sinkhorn_newton_sparse(eta=30, keep=1, n_sinkhorn=5, n_newton={steps}, tol=0)").run(cost=C, a=a / a.sum(), b=b / b.sum())
        assert float(r.residual) < 1e-8


def test_memberships_are_not_negative() -> None:
    with pytest.raises(tw.RangeError, match="`pi` must be at least 0, got -1"):
        tw.objective("mcr2")(x=np.ones((2, 2)), pi=np.array([[1.0, -1.0], [0, 1]]))


def test_a_function_that_a_run_does_not_need_is_no_fault() -> None:
    """Nothing makes egn ask for the value but a line search or an adaptive step; the message named another setting."""
    r = tw.solver("egn(curvature=asked)").run(
        x0=np.zeros(2), like=np.ones((2, 1)), value=lambda x: 0.0, output_hessian=lambda x: np.ones((2, 1, 1)),
        jacobian=lambda x: (np.ones((2, 1)), np.array([[[1.0, 0]], [[0, 1.0]]])))
    assert np.isfinite(r.x).all()
    with pytest.raises(tw.ArgumentError, match=r"have it asked for with egn\(curvature=asked\)"):
        tw.solver("egn").run(
            x0=np.zeros(2), like=np.ones((2, 1)), output_hessian=lambda x: np.ones((2, 1, 1)),
            jacobian=lambda x: (np.ones((2, 1)), np.array([[[1.0, 0]], [[0, 1.0]]])))
