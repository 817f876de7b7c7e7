"""What the cards of the last solvers promise: predicted gradients, queries of a client, sketched Newton steps."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


def quadratic(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.linspace(0.2, 1, points.shape[1])
    return np.sum(scale * points**2, axis=1) / 2, scale * points


@pytest.mark.parametrize("base, optimizer", [("sgd", "sgd(lr=0.1)"), ("adam", "adam(lr=0.1)")])
def test_one_point_a_step_is_the_base(base: str, optimizer: str) -> None:
    x0 = np.arange(1.0, 5.0)
    found = tw.solver(f"optex(parallel=1, base={base}, lr=0.1, max_iter=12)").run(x0=x0, parallel_gradients=quadratic)
    w = x0.copy()
    opt = tw.Optimizer([w], optimizer)
    for _ in range(12):
        opt.step([quadratic(w[None])[1][0]])
    np.testing.assert_allclose(found.x, w, rtol=1e-13)


def test_four_points_a_step_are_further_than_one() -> None:
    x0 = np.array([1.0, -0.5, 0.7, 0.3, -1.0])
    value = lambda n: quadratic(tw.solver(f"optex(parallel={n}, lr=0.1, max_iter=15)").run(  # noqa: E731
        x0=x0, parallel_gradients=quadratic).x[None])[0][0]
    assert value(4) < 0.3 * value(1)


def test_a_point_without_a_gradient_ends_the_run_where_it_was() -> None:
    x0 = np.ones(3)
    found = tw.solver("optex(parallel=2)").run(x0=x0, parallel_gradients=lambda p: (np.zeros(2), np.full(p.shape, np.nan)))
    assert found.outcome == "nonfinite" and found.iterations == 0
    np.testing.assert_array_equal(found.x, x0)


@pytest.mark.parametrize("sketch", ["kaczmarz", "gaussian"])
def test_the_sphere_problem_is_solved_by_both_sketches(sketch: str) -> None:
    a = np.array([1.0, 2.0, 2.0])  # least on the unit sphere at -a/3, with multiplier 3/2
    found = tw.solver(f"exact_al_sqp(sketch={sketch}, tol=1e-7)").run(
        x0=np.array([-0.6, -0.5, -0.4]), multipliers0=np.zeros(1),
        problem=lambda x: (float(a @ x), a, np.array([x @ x - 1]), 2 * x[None]), lagrangian_hessian=lambda x, l: 2 * l[0] * np.eye(3))
    assert found.outcome == "converged" and found.residual <= 1e-7
    np.testing.assert_allclose(found.x, -a / 3, atol=1e-6)
    np.testing.assert_allclose(found.multipliers, [1.5], atol=1e-6)


def test_dependent_constraints_are_an_error() -> None:
    J = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    with pytest.raises(tw.Error, match="exact_al_sqp: the constraints are not independent"):
        tw.solver("exact_al_sqp").run(x0=np.ones(3), multipliers0=np.zeros(2), problem=lambda x: (0.0, x, J @ x, J),
                                      lagrangian_hessian=lambda x, l: np.eye(3))


def test_clients_descend_without_gradients() -> None:
    """Two clients of different optima meet near the middle, and their losses fall."""
    rng, x = np.random.default_rng(0), np.full(3, 0.5)
    optima = (np.array([0.2, 0.0, -0.2]), np.array([-0.2, 0.0, 0.2]))
    loss = [lambda x, c=c: float(np.sum((np.asarray(x, np.float64) - c) ** 2)) for c in optima]
    queries = [rng.uniform(-1, 1, (12, 3)) for _ in optima]
    values = [np.array([f(q) for q in points]) for f, points in zip(loss, queries, strict=True)]
    W, b = rng.standard_normal((300, 3)), rng.uniform(0, 2 * np.pi, 300)
    round_ = tw.solver("fzoos_client(lr=0.05, kernel=rbf, lengthscale=1.5, noise=1e-6, radius=0.1)")
    weights: list[np.ndarray] | None = None
    for _ in range(6):
        found = []
        for i, f in enumerate(loss):
            known = {} if weights is None else {"global_weights": sum(weights) / 2, "local_weights": weights[i]}
            found.append(round_.run(x0=x, points=queries[i], values=values[i], frequencies=W, phases=b, point_loss=f, **known))
            queries[i], values[i] = found[i].queries, found[i].losses
        x, weights = np.mean([r.x for r in found], axis=0), [r.weights for r in found]
    np.testing.assert_allclose(x, 0, atol=0.05)


def test_weights_of_the_others_need_the_clients_own() -> None:
    with pytest.raises(tw.Error, match="global_weights and local_weights go together"):
        tw.solver("fzoos_client(lr=0.1)").run(x0=np.zeros(2), points=np.zeros((1, 2)), values=np.zeros(1), global_weights=np.zeros(4),
                                              point_loss=lambda x: 0.0)


def test_a_pareto_set_is_learnt() -> None:
    """Two parabolas on a line: the network is x = a + b r_1, and every preference goes to its point."""
    rng, phi = np.random.default_rng(0), np.array([2.0, 0.0])
    direction = tw.solver("svh_psl(lcb=0, alpha=1e-4)")
    for _ in range(400):
        r = rng.dirichlet(np.ones(2), 10) + 1e-4
        x = phi[0] + phi[1] * r[:, 0]
        values = np.stack([x**2, (x - 1) ** 2], axis=1)
        rows = np.stack([2 * x, 2 * (x - 1)], axis=1)[:, :, None] * np.stack([np.ones(10), r[:, 0]], axis=1)[:, None]  # (n, m, p)
        phi = phi - 0.02 * direction.run(
            mean=values, preferences=r, reference=np.full(2, -0.1), parameters=phi,
            scalar_gradients=lambda w: np.einsum("io,iop->ip", w, rows), kernel_gradients=lambda w: np.einsum("ijo,jop->ip", w, rows)).direction
    low, high = phi[0] + phi[1], phi[0]  # all weight on the first objective, none on it
    assert -0.2 < low < 0.45 and 0.55 < high < 1.2


@pytest.mark.parametrize("name", ["fzoos_client(lr=0.1)", "gp_posterior", "config_bo", "rff_surrogate(features=8)"])
def test_values_that_are_none_are_no_answer(name: str) -> None:
    data = {"points": np.eye(3), "values": np.array([0.0, np.nan, 1.0])}
    more = {"f": {"x0": np.zeros(3), "point_loss": lambda x: 0.0}, "g": {"queries": np.ones((1, 3))}, "r": {"queries": np.ones((1, 3))},
            "c": {"candidates": np.ones((2, 3)), "constraints": np.zeros((1, 3))}}[name[0]]
    assert tw.solver(name).run(**data, **more).outcome == "nonfinite"


def test_a_pareto_direction_of_nan_is_no_answer() -> None:
    v = np.array([[0.0, np.nan], [1.0, 1.0]])
    found = tw.solver("svh_psl").run(mean=v, preferences=np.full((2, 2), 0.5), reference=np.zeros(2), parameters=np.zeros(3),
                                     scalar_gradients=lambda w: np.zeros((2, 3)), kernel_gradients=lambda w: np.zeros((2, 3)))
    assert found.outcome == "nonfinite"


def test_sketching_ends_where_only_rounding_is_left() -> None:
    """A system of condition 1e20: its tolerance is never reached."""
    J, H = np.array([[1.0, 0.01, 0.0]]), np.diag([1e10, 1.0, 1.0])
    found = tw.solver("exact_al_sqp(sketch_steps=1000, nu=1.0001, max_iter=1)").run(
        x0=np.ones(3), multipliers0=np.zeros(1), problem=lambda x: (float(x @ H @ x / 2), H @ x, J @ x - 1, J), lagrangian_hessian=lambda x, l: H)
    assert found.outcome in ("max_iter", "converged", "line_search_failed")
