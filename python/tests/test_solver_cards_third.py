"""What the cards of the third tier promise: convex networks, equilibria, distilled data, codes, local training; and
the edges that reading the cards again found."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.relu_networks import problem


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- edges


def test_meco_keeps_its_estimate_above_its_floor() -> None:
    mine, data = tw.objective("meco(beta=0.3, vr=true)"), np.zeros(2)
    mine(data=data, noise=np.zeros(3), noise_before=np.zeros(3))
    value, out = mine.value_and_grad(data=data, noise=np.zeros(3), noise_before=np.full(3, 20.0))
    assert value == out["log_normaliser"] == pytest.approx(np.log(1e-300), rel=1e-15)


def test_group_dro_by_hand() -> None:
    mine = tw.weighting("group_dro(eta=1)")  # the third group is absent
    value, out = mine.value_and_grad(losses=np.array([np.log(2), 0.0, np.nan]), adjust=np.array([0.0, 0.0, 9.0]))
    np.testing.assert_allclose(out["weights"], [0.5, 0.25, 0.25], rtol=1e-15)
    np.testing.assert_allclose(out["losses"], [0.5, 0.25, 0], rtol=1e-15)
    assert value == pytest.approx(0.5 * np.log(2), rel=1e-15)


def test_powersgd_compresses_where_nothing_is_saved_but_nothing_lost() -> None:
    asked: list[str] = []
    note = lambda name: lambda a: (asked.append(name), a)[1]  # noqa: E731
    functions = {k: note(k) for k in ("mean_left", "mean_right", "mean_whole")}
    tw.solver("powersgd(rank=2)").run(gradient=rng().standard_normal((4, 4)), **functions)  # n m = (n + m) r
    assert asked == ["mean_left", "mean_right"]
    asked.clear()
    tw.solver("powersgd(rank=2)").run(gradient=rng().standard_normal((4, 3)), **functions)
    tw.solver("powersgd(rank=1, start=3)").run(gradient=rng().standard_normal((9, 9)), step=2.0, **functions)
    assert asked == ["mean_whole"] * 2


def test_a_learnt_threshold_finds_the_value_at_risk() -> None:
    losses, mine = rng().uniform(0, 1, 200), tw.weighting("cvar_weights(alpha=0.25, lr_t=0.002)")
    for _ in range(2000):
        value, out = mine.value_and_grad(losses=losses)
    exact, sharp = tw.weighting("cvar_weights(alpha=0.25)").value_and_grad(losses=losses)
    assert out["threshold"] == pytest.approx(sharp["threshold"], abs=0.02) and value == pytest.approx(exact, abs=1e-3)


def test_the_span_of_guesses() -> None:
    U, g = rng().standard_normal((3, 6)), rng(1).standard_normal(6)
    found = tw.objective("forward_gradient(estimator=span)").value_and_grad(guesses=U, slopes=U @ g)[1]["gradient"]
    np.testing.assert_allclose(U @ (g - found), 0, atol=1e-12)  # what is left is orthogonal to every guess
    every = rng().standard_normal((6, 6))
    found = tw.objective("forward_gradient(estimator=span)").value_and_grad(guesses=every, slopes=every @ g)[1]["gradient"]
    np.testing.assert_allclose(found, g, rtol=1e-9)


# ---- cones


@pytest.mark.parametrize("cone", ["nonneg", "soc", "psd"])
def test_cones(cone: str) -> None:
    inside = {"nonneg": lambda w: w.min(), "soc": lambda w: w.ravel()[0] - np.linalg.norm(w.ravel()[1:]),
              "psd": lambda w: np.linalg.eigvalsh(w).min()}[cone]
    ray = {"nonneg": np.ones((3, 3)), "soc": np.eye(1, 9).reshape(3, 3), "psd": np.eye(3)}[cone]
    near, radial = (tw.constraint(f"conic_projection(cone={cone}, kind={k})") for k in ("euclidean", "radial"))
    for seed in range(20):
        a, b = rng(seed).standard_normal((2, 3, 3))
        a, b = a + a.T, b + b.T
        p, q = (near.project(v.copy()) for v in (a, b))
        assert inside(p) >= -1e-12 and np.linalg.norm(p - q) <= np.linalg.norm(a - b) + 1e-12
        np.testing.assert_allclose(near.project(p.copy()), p, atol=1e-12)
        np.testing.assert_allclose(np.sum((a - p) * p), 0, atol=1e-10)  # Moreau: what is taken off is orthogonal
        moved = radial.project(a.copy())
        step = (moved - a)[ray == 1]
        assert inside(moved) >= -1e-12
        np.testing.assert_allclose(moved, a + step.flat[0] * ray, atol=1e-12)
        assert step.flat[0] == 0 or abs(inside(moved)) < 1e-12  # the least multiple


# ---- convex networks


def test_admm_reaches_the_optimum_and_the_network_says_the_same() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    a, beta = problem(rng(2), P=2, n=5), 0.1
    found = tw.solver(f"convex_relu_admm(beta={beta}, max_iter=20000)").run(x=a["x"], y=a["y"], patterns0=a["patterns"])
    objective = tw.objective(f"convex_relu_objective(beta={beta})")
    rest = {k: a[k] for k in ("x", "y", "patterns")}
    value, out = objective.value_and_grad(v=found.v, w=found.w, **rest)
    assert value == pytest.approx(found.value, rel=1e-12) and out["violation"] < 1e-5

    sides = (2 * a["patterns"] - 1)[:, :, None] * a["x"]
    f = lambda u: objective(v=u[:4].reshape(2, 2), w=u[4:].reshape(2, 2), **rest)  # noqa: E731
    cone = lambda u: np.concatenate([np.einsum("inj,ij->in", sides, u[k:k + 4].reshape(2, 2)).ravel() for k in (0, 4)])  # noqa: E731
    best = min(optimize.minimize(f, rng(s).standard_normal(8) * 0.1, method="SLSQP", constraints={"type": "ineq", "fun": cone},
                                 options={"maxiter": 500, "ftol": 1e-12}).fun for s in range(4))
    assert value == pytest.approx(best, rel=1e-4)

    cost, net = tw.objective(f"convex_relu_to_network(beta={beta})").value_and_grad(v=found.v, w=found.w)
    U, alpha = net["first"].reshape(-1, 2), net["second"].ravel()
    np.testing.assert_allclose(np.maximum(a["x"] @ U.T, 0) @ alpha, out["prediction"], atol=1e-5)
    assert cost == pytest.approx(beta / 2 * (np.sum(U**2) + np.sum(alpha**2)), rel=1e-12)


def test_admm_draws_different_patterns() -> None:
    found = tw.solver("convex_relu_admm(P=40, max_iter=1)").run(x=rng().standard_normal((4, 2)), y=np.ones(4))
    kept = [p.tobytes() for p, v in zip(found.patterns, found.v) if np.any(v) or np.any(p)]
    assert len(kept) == len(set(kept)) <= 8 + 1  # four lines cut the plane in eight


def test_pruning_leaves_as_many_neurons_as_the_rank() -> None:
    for seed in range(5):
        F = rng(seed).standard_normal((12, 3)) @ rng(seed + 9).standard_normal((3, 8))
        w = rng(seed + 20).standard_normal((12, 4))
        found = tw.solver("relu_optimal_prune").run(fits=F, weights=w)
        assert found.remaining == 3 and np.all(found.scales >= 0) and np.sum(found.active) == 3
        np.testing.assert_allclose(found.scales @ F, F.sum(axis=0), atol=1e-9)
        np.testing.assert_allclose(found.pruned, found.scales[:, None] * w, atol=1e-14)


# ---- equilibria


def test_holomorphic_estimates_of_a_symmetric_network_tend_to_the_gradient() -> None:
    """u' = W tanh(u) + b - u and a loss |u - t|^2/2: the error of the estimate falls with the number of strengths."""
    errors = np.mean([holomorphic_errors(seed) for seed in range(4)], axis=0)
    assert errors[0] > errors[1] > 5 * errors[2] > 25 * errors[3] and errors[3] < 1e-3


def holomorphic_errors(seed: int) -> list[float]:
    n, g = 4, rng(seed)
    W = 0.2 * g.standard_normal((n, n))
    W, b, t = (W + W.T) / 2, g.standard_normal(n), g.standard_normal(n)

    def state(beta: complex) -> np.ndarray:
        u = np.zeros(n, complex)
        for _ in range(2000):
            u = u + 0.2 * (W @ np.tanh(u) + b - u + beta * (u - t))
        return np.tanh(u)

    slope = (state(1e-5) - state(-1e-5)).real / 2e-5  # d tanh(u)/d beta at 0
    errors = []
    for N in (1, 2, 4, 6):
        a = np.stack([state(0.2 * np.exp(2j * np.pi * k / N)) for k in range(N)])
        more = {"free": state(0).real} if N == 1 else {}
        found = tw.objective(f"ep_delta(N={N}, beta=0.2)").value_and_grad(real=a.real.copy(), imag=a.imag.copy(), **more)[1]["delta"]
        errors.append(np.linalg.norm(found - slope) / np.linalg.norm(slope))
    return errors


def test_ep_messages() -> None:
    with pytest.raises(tw.Error, match="`N` must be 1 or even, got 3"):
        tw.objective("ep_delta(N=3)")
    with pytest.raises(tw.Error, match="needs `free`"):
        tw.objective("ep_delta(N=1)")(real=np.ones((1, 2)))
    with pytest.raises(tw.ShapeError, match="6 rows, or 4, got 5"):
        tw.objective("ep_delta(N=6)")(real=np.ones((5, 2)))


def test_homeostasis_sees_the_asymmetry() -> None:
    J, e = rng().standard_normal((5, 5)), rng(1).standard_normal((4000, 5))
    mine = tw.objective("jacobian_homeostasis")
    look = lambda M: mine(je=e @ M.T, jje=e @ M.T @ M.T, e=e)  # noqa: E731
    S = J + J.T
    # e'(S'S - SS)e is 0 for each probe
    assert abs(look(S)) < 1e-12 and look(J) == pytest.approx(np.sum((J - J.T) ** 2) / 10, rel=0.1)


def test_scattered_spsa_averages_to_the_gradient() -> None:
    """Elements that depend on two parameters each; the sum over elements has the gradient of the summed loss."""
    lists, x = np.array([[0, 1], [1, 2], [2, 3]]), rng().standard_normal(4)
    loss = lambda x: np.array([np.sin(x[a]) * x[b] for a, b in lists])  # noqa: E731
    mine, eps = tw.objective("local_spsa(eps=1e-4, reduce=sum, repetitions=20000)"), 1e-4
    g = rng(1)
    for _ in range(4000):
        s = np.sign(g.standard_normal(4))
        out = mine.value_and_grad(plus=loss(x + eps * s), minus=loss(x - eps * s), signs=s, contributors=lists)[1]
    exact = np.array([np.sum(loss(x + 1e-6 * v) - loss(x - 1e-6 * v)) / 2e-6 for v in np.eye(4)])
    np.testing.assert_allclose(out["gradient"] / 4000, exact, atol=0.06)
    assert out["count"].tolist() == [4000, 8000, 8000, 4000]


def test_scattered_spsa_begins_anew() -> None:
    mine = tw.objective("local_spsa(reduce=sum, repetitions=2)")
    a = {"plus": np.ones(1), "minus": np.zeros(1), "signs": np.ones(1), "contributors": np.zeros((1, 1), np.int64)}
    assert [mine.value_and_grad(**a)[1]["count"][0] for _ in range(5)] == [1, 2, 1, 2, 1]


# ---- distilled data


def test_krr_head_is_ridge_regression() -> None:
    g = rng()
    F, G, y, l2 = g.standard_normal((7, 3)), g.standard_normal((4, 3)), g.standard_normal((7, 2)), 0.3
    zero = {"outputs_s": np.zeros((7, 2)), "outputs_t": np.zeros((4, 2))}
    out = tw.objective(f"krr_head(l2={l2})").value_and_grad(features_s=F, labels=y, features_t=G, targets=np.zeros((4, 2)), **zero)[1]
    theta = np.linalg.solve(F.T @ F + l2 * np.eye(3), F.T @ y)
    np.testing.assert_allclose(out["predictions"], G @ theta, atol=1e-12)


def test_fourier_features_tend_to_the_process() -> None:
    g = rng()
    X, Z = g.uniform(-1, 1, (6, 2)), g.uniform(-1, 1, (3, 2))
    y = np.sin(X.sum(axis=1))
    for kernel in ("rbf", "matern52"):
        sentence = f"(kernel={kernel}, noise=1e-2, lengthscale=0.8"
        a = {"points": X, "values": y, "queries": Z}
        exact = tw.solver("gp_posterior" + sentence + ")").run(**a)
        near = tw.solver("rff_surrogate" + sentence + ", features=20000)").run(**a)
        np.testing.assert_allclose(near.mean, exact.mean, atol=0.05)
        np.testing.assert_allclose(near.gradient, exact.gradient, atol=0.15)


# ---- codes


@pytest.mark.parametrize("sentence", ["sr_sgc(n=8, jobs=20, B=2, W=5, lambda=3)", "m_sgc(n=8, jobs=20, B=2, W=5, lambda=3)"])
def test_bursts_that_keep_to_the_model_never_wait(sentence: str) -> None:
    for seed in range(10):
        g, late = rng(seed), np.zeros((40, 8), bool)
        first = int(g.integers(0, 5))
        for t in range(first, 36, 7):  # at most three workers, two rounds each, then nobody for a window
            late[t:t + 2, g.permutation(8)[:3]] = True
        delay = {"s": 2, "m": 5}[sentence[0]]
        found = tw.solver(sentence).run(round=lambda time, tasks, parts: (~late[int(time)]).astype(float), wait=lambda time: None)
        assert found.outcome == "converged" and found.waits == 0
        assert np.all(found.decoded - np.arange(20) <= delay) and found.load < 4 / 8


def test_the_master_waits_when_too_many_are_late() -> None:
    waited: list[float] = []
    found = tw.solver("sr_sgc(n=4, jobs=3, lambda=1)").run(round=lambda time, tasks, parts: np.zeros(4), wait=waited.append)
    assert found.outcome == "converged" and found.waits == len(waited) == 4


# ---- local training


def test_wafl_moves_the_batch_to_its_closed_form() -> None:
    """loss = <w, mean z>: the batch goes to z + w/(2 gamma batch), whatever the labels; a high price is plain descent."""
    z, w = rng().standard_normal((5, 3)), rng(1).standard_normal(3)
    functions = {"input_gradient": lambda w, z: np.tile(w / 5, (5, 1)), "weight_gradient": lambda w, z: z.mean(axis=0)}
    found = tw.solver("wafl_local(gamma=0.5, adv_steps=200, adv_lr=0.2, lr=0.1)").run(x0=w, z=z, **functions)
    np.testing.assert_allclose(found.zeta, z + w / 5, atol=1e-12)
    np.testing.assert_allclose(found.x, w - 0.1 * (z.mean(axis=0) + w / 5), atol=1e-12)
    plain = tw.solver("wafl_local(gamma=1e6, adv_steps=50, adv_lr=4e-7, lr=0.1)").run(x0=w, z=z, **functions)
    np.testing.assert_allclose(plain.x, w - 0.1 * z.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "binary", "softmax"])
def test_boosting_lowers_the_loss(loss: str) -> None:
    g = rng()
    X = g.standard_normal((80, 2))
    truth = np.tanh(2 * X[:, 0] - X[:, 1])
    y = {"squared": truth[:, None], "binary": np.sign(truth)[:, None], "softmax": np.eye(2)[(truth > 0).astype(int)]}[loss]

    def fit(r: np.ndarray, subset: np.ndarray, stage: float) -> np.ndarray:
        A = np.hstack([np.tanh(X @ rng(int(stage)).standard_normal((2, 3))), np.ones((80, 1))])
        rows = subset != 0
        assert rows.sum() == 40
        return A @ np.linalg.lstsq(A[rows], r[rows], rcond=None)[0]

    def cost(F: np.ndarray) -> float:
        if loss == "squared":
            return float(np.mean((y - F) ** 2))
        if loss == "binary":
            return float(np.mean(np.log1p(np.exp(-2 * y * F))))
        return float(-np.mean(np.sum(y * (F - np.log(np.exp(F).sum(axis=1, keepdims=True))), axis=1)))

    costs = [cost(tw.solver(f"gbnn_stage(total={k}, loss={loss})").run(y=y, fit_block=fit).f) for k in (1, 4, 12)]
    assert costs[0] > costs[1] > costs[2]


def test_the_removed_directions_are_orthonormal_and_the_loss_falls() -> None:
    scale = np.array([10.0, 3.0, 1.0, 0.1, 0.01, 0.0])
    f = lambda x: float(np.sum(scale * (x - 1) ** 2))  # noqa: E731
    found = tw.solver("subspace_zo_adam(tau=8, nu=0.2, max_iter=160, lr=0.05)").run(x0=np.zeros(6), point_loss=f)
    rows = found.basis[:int(found.removed)]
    assert 0 < len(rows) < 6 and f(found.x) < 0.5 * f(np.zeros(6))
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)
    assert not np.any(found.basis[len(rows):])
    still = tw.solver("subspace_zo_adam(tau=2, max_iter=4)").run(x0=np.zeros(3), point_loss=lambda x: 0.0)
    assert still.removed == 0 and not np.any(still.x)
