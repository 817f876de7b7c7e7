"""Matrix and second-order optimizers against public peers and the laws of their papers.

Two float64 programs of one formula differ by rounding alone: some 1e-16 an operation, 1e-12 after a few hundred of them.
Wider tolerances say why where they stand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference import kronecker, psgd, subspace_adam
from reference.base import every
from support import Problem, run, stage, take_step


def library(sentence: str, start: np.ndarray, gradients: list[np.ndarray], **options: Any) -> np.ndarray:
    p = start.copy()
    opt = tw.Optimizer([p], sentence, **options)
    for g in gradients:
        opt.step([g])
    return p


def peer(make: Callable[[list[Any]], Any], start: np.ndarray, gradients: list[np.ndarray], **arguments: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    p = torch.nn.Parameter(torch.tensor(start))
    opt = make([p])
    for k, g in enumerate(gradients):
        p.grad = torch.tensor(g)
        opt.step(**{name: value(k) for name, value in arguments.items()})
    return np.asarray(p.detach().numpy())


def draws(shape: tuple[int, ...], steps: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) for _ in range(steps)]


# ---- peers


def test_shampoo_is_that_of_pytorch_optimizer() -> None:
    po = pytest.importorskip("pytorch_optimizer")
    start, gradients = draws((5, 4), 7)
    theirs = peer(lambda p: po.Shampoo(p, lr=0.1, momentum=0.0, matrix_eps=0.1, preconditioning_compute_steps=1), start, gradients)
    # their root is that of an SVD, and it is taken of a matrix of condition 1e3: 1e-13
    np.testing.assert_allclose(library("shampoo(lr=0.1, eps=0.1)", start, gradients), theirs, rtol=0, atol=1e-11)


def test_soap_is_that_of_pytorch_optimizer_on_a_square_matrix() -> None:
    po = pytest.importorskip("pytorch_optimizer")
    start, gradients = draws((4, 4), 9)
    theirs = peer(lambda p: po.SOAP(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.0, precondition_frequency=3, eps=1e-8), start, gradients)
    ours = library("soap(lr=0.02, beta1=0.9, beta2=0.95, weight_decay=0, precondition_frequency=3)", start, gradients)
    # they turn their first moment anew in every step: the same mathematics, rounded otherwise in the basis
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


def test_galore_is_that_of_pytorch_optimizer_between_two_subspaces() -> None:
    po = pytest.importorskip("pytorch_optimizer")
    for shape in [(6, 4), (4, 6)]:
        start, gradients = draws(shape, 6)
        groups = lambda p: [{"params": p, "rank": 2, "update_proj_gap": 100, "scale": 0.25, "projection_type": "std"}]
        theirs = peer(lambda p: po.GaLore(groups(p), lr=0.02, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1), start, gradients)
        ours = library("galore(lr=0.02, rank=2, beta2=0.99, weight_decay=0.1)", start, gradients)
        # They decompose in float32.  Signs of singular vectors do not matter: Adam's step changes its sign with its gradient.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["AdaHessian", "SophiaH"])
def test_diagonal_hessians_are_those_of_pytorch_optimizer(name: str) -> None:
    """Where the Hessian is diagonal, z*Hz is its diagonal for every vector of signs."""
    po = pytest.importorskip("pytorch_optimizer")
    torch = pytest.importorskip("torch")
    problem = Problem([(5, 3)], seed=4)
    if name == "AdaHessian":
        sentence = "adahessian(lr=0.05, eps=0.001, weight_decay=0.1, beta2=0.9)"
        make = lambda p: po.AdaHessian(p, lr=0.05, betas=(0.9, 0.9), eps=1e-3, weight_decay=0.1, weight_decouple=True)
    else:
        # clamp(m/max(h, eps), -p, p) is p times ours with gamma = p and p times our floor
        sentence = "sophia(lr=0.01, gamma=0.2, eps=2e-13, interval=3, beta1=0.96, probe=rademacher)"
        make = lambda p: po.SophiaH(p, lr=0.05, betas=(0.96, 0.99), weight_decay=0.02, p=0.2, update_period=3, eps=1e-12)
    start = problem.start()[0]
    ours, _ = run(sentence, problem, 8)
    q = torch.nn.Parameter(torch.tensor(start))
    opt = make([q])
    for k in range(8):
        q.grad = torch.tensor(problem.gradient([q.detach().numpy()], k)[0])
        opt.step(hessian=[torch.tensor(problem.a[0])] if name == "AdaHessian" or k % 3 == 0 else None)
    np.testing.assert_allclose(ours[0], q.detach().numpy(), rtol=0, atol=1e-12)


def test_sophia_is_that_of_optax() -> None:
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    optax = pytest.importorskip("optax")
    problem = Problem([(5, 3)], seed=4)
    ours, _ = run("sophia(lr=0.05, gamma=0.5, eps=1e-8, interval=2, order=after, bias_correction=true, probe=rademacher, weight_decay=0.1)",
                  problem, 8)
    opt = optax.contrib.sophia(0.05, b1=0.965, b2=0.99, eps=1e-8, gamma=0.5, weight_decay=0.1, update_interval=2)
    a = jnp.array(problem.a[0])
    p = jnp.array(problem.start()[0])
    state = opt.init(p)
    for k in range(8):
        g = jnp.array(problem.gradient([np.asarray(p)], k)[0])
        updates, state = opt.update(g, state, p, obj_fn=lambda x: jnp.sum(0.5 * a * x**2))
        p = optax.apply_updates(p, updates)
    np.testing.assert_allclose(ours[0], np.asarray(p), rtol=0, atol=1e-12)


# ---- laws of the papers


def test_shampoo_without_memory_takes_the_polar_factor() -> None:
    start, (g,) = draws((4, 4), 1)
    U, _, Vt = np.linalg.svd(g)
    # the damping 1e-14 moves eigenvalues of 0.01 and more by 1e-12
    moved = start - library("shampoo(lr=1, eps=1e-14)", start, [g])
    np.testing.assert_allclose(moved, U @ Vt, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["soap", "kl_shampoo", "kl_soap"])
def test_the_first_step_makes_a_basis_and_moves_nothing(name: str) -> None:
    start, gradients = draws((5, 3), 2)
    assert library(f"{name}(lr=0.1, weight_decay=0.5)", start, gradients[:1]).tobytes() == start.tobytes()
    assert np.all(library(f"{name}(lr=0.1, weight_decay=0.5)", start, gradients) != start)


def test_soap_of_a_vector_is_adam_one_step_late() -> None:
    start, gradients = draws((9,), 6)
    np.testing.assert_allclose(
        library("soap(lr=0.1, eps=0, weight_decay=0)", start, gradients),
        library("adam(lr=0.1, beta1=0.95, beta2=0.95, eps=0)", start, gradients[1:]), rtol=1e-13)


def test_the_basis_of_a_zero_gradient_is_the_reversed_identity() -> None:
    np.testing.assert_array_equal(kronecker.eigenbasis(np.zeros((4, 4))), np.eye(4)[:, ::-1])
    start, gradients = draws((4, 3), 5)
    p = library("soap(lr=0.1, precondition_frequency=100)", start, [np.zeros((4, 3)), *gradients])
    # in a basis of coordinate vectors it is Adam, with its decay after the step
    want = library("adam(lr=0.1, beta1=0.95, beta2=0.95, eps=1e-30)", start, gradients)
    np.testing.assert_allclose(
        library("soap(lr=0.1, eps=0, weight_decay=0, precondition_frequency=100)", start, [np.zeros((4, 3)), *gradients]), want, rtol=1e-12)
    assert np.all(np.isfinite(p))


def test_kl_shampoo_learns_the_covariance() -> None:
    """G = A Z B with normal Z: the product of the two matrices is that of the covariances, up to noise.

    800 matrices with a memory of 200: some 7 % an entry, for which 25 % of the largest leaves room."""
    rng = np.random.default_rng(3)
    A, B = np.diag([2.0, 1.0, 0.5]), np.diag([1.0, 3.0, 1.0])
    ref = kronecker.KLShampoo(shampoo_beta=0.995, precondition_frequency=5, beta1=0.0)
    p = np.zeros((3, 3))
    ref.start([p])
    for _ in range(800):
        ref.step([p], [A @ rng.standard_normal((3, 3)) @ B])
    s = ref.states[0].blocks[0][1]
    want = np.kron(A @ A, B @ B)
    got = np.kron(s.S[0], s.S[1])
    # each factor is the covariance up to a number; the traces say which
    got *= np.trace(want) / np.trace(got)
    assert np.max(np.abs(got - want)) < 0.25 * np.max(want)


def test_sophia_without_curvature_takes_signs() -> None:
    problem = Problem([(7,)], seed=1)
    problem.a = [np.zeros(7)]
    start = problem.start()[0]
    p, _ = run("sophia(lr=0.125, weight_decay=0)", problem, 1)
    np.testing.assert_array_equal(p[0], start - 0.125 * np.sign(problem.gradient([start], 0)[0]))


def test_sophia_leaves_out_an_estimate_that_is_not_finite() -> None:
    problem = Problem([(7,)], seed=1)
    start = problem.start()[0]
    problem.product = lambda v: [np.full(7, np.nan)]  # type: ignore[method-assign]
    p, _ = run("sophia(lr=0.125, weight_decay=0)", problem, 1)
    np.testing.assert_array_equal(p[0], start - 0.125 * np.sign(problem.gradient([start], 0)[0]))


def test_adahessian_averages_over_a_kernel() -> None:
    problem = Problem([(2, 3, 2, 2)], seed=1)
    D = np.broadcast_to(np.mean(problem.a[0], axis=(2, 3), keepdims=True), (2, 3, 2, 2))
    start = problem.start()[0]
    p, _ = run("adahessian(lr=0.1, eps=0)", problem, 1)
    np.testing.assert_allclose(p[0], start - 0.1 * problem.gradient([start], 0)[0] / D, rtol=1e-13)


def test_adahessian_counts_its_steps_in_a_checkpoint() -> None:
    def asked(opt: tw.Optimizer) -> list[str]:
        return [request.kind for request in opt.requests() if request.answer([np.ones(4)]) is None]

    def make() -> tw.Optimizer:
        return tw.Optimizer([np.ones(4)], "adahessian(update_each=3)", names=["w"])

    opt, other = make(), make()
    assert [asked(opt) for _ in range(2)] == [["gradient", "hessian_vector"], ["gradient"]]
    other.load_state_dict(opt.state_dict())
    assert [asked(other) for _ in range(2)] == [asked(opt) for _ in range(2)] == [["gradient"], ["gradient", "hessian_vector"]]


@pytest.mark.parametrize("sentence", ["galore(lr=0.1, rank=2)", "coap(lr=0.1, rank=2)", "online_subspace_descent(lr=0.1, rank=2)",
                                      "dct_adamw(lr=0.1, rank=2)", "trion(rank=2)", "dion(rank_fraction=0.4, weight_decay=0)"])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_a_step_in_a_subspace_has_its_rank(sentence: str, shape: tuple[int, ...]) -> None:
    start, (g,) = draws(shape, 1)
    s = np.linalg.svd(start - library(sentence, start, [g]), compute_uv=False)
    assert s[1] > 1e-3 and np.max(s[2:]) < 1e-14


def test_slopes_of_projectors_are_those_of_their_objectives() -> None:
    """Central differences with 1e-5: the third derivative leaves 1e-9."""
    rng = np.random.default_rng(5)
    for shape in [(6, 4), (4, 6)]:
        g = rng.standard_normal(shape)
        P, m = rng.standard_normal((2, 4)), rng.standard_normal((6, 2) if shape[0] > shape[1] else (2, 6))
        coap = subspace_adam.COAP(rank=2)
        X = g if shape[0] > shape[1] else g.T
        for f, slope in [(lambda B: coap.objective(B, m, g), coap.slope(P, m, g)),
                         (lambda B: np.sum((X @ B.T @ B - X) ** 2), subspace_adam.OnlineSubspaceDescent.slope(X, P))]:
            for k in np.ndindex(P.shape):
                e = np.zeros_like(P)
                e[k] = 1e-5
                assert slope[k] == pytest.approx((f(P + e) - f(P - e)) / 2e-5, rel=1e-6, abs=1e-7)


def test_online_subspace_descent_finds_the_leading_directions() -> None:
    rng = np.random.default_rng(5)
    U, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    V, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    g = (U[:, :5] * [3, 2, 1, 0.5, 0.2]) @ V.T
    P = rng.standard_normal((2, 5)) * 0.3
    for _ in range(3000):
        P = P - 0.1 * subspace_adam.OnlineSubspaceDescent.slope(g / np.linalg.norm(g), P)
    projector = P.T @ np.linalg.solve(P @ P.T, P)
    assert np.linalg.norm(projector - V[:, :2] @ V[:, :2].T) < 1e-2


def test_the_cosine_transforms_are_those_of_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    A = np.random.default_rng(2).standard_normal((4, 9))
    for basis, kind in [("dct2", 2), ("dct3", 3)]:
        Q = subspace_adam.transform(9, basis)
        np.testing.assert_allclose(Q.T @ Q, np.eye(9), atol=1e-14)
        np.testing.assert_allclose(A @ Q, fft.dct(A, type=kind, norm="ortho", axis=1), atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_trion_of_full_rank_begins_as_muon(shape: tuple[int, ...]) -> None:
    start, (g,) = draws(shape, 1)
    exact = "ns_steps=60, ns_coefficients=[1.5, -0.5, 0]"
    np.testing.assert_allclose(
        library(f"trion(rank=4, {exact})", start, [g]),
        library(f"muon(lr=0.02, weight_decay=0, nesterov=false, {exact})", start, [g]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [psgd.PSGDLRA, psgd.PSGDXMat, psgd.PSGDDense], ids=lambda c: c.name)
def test_psgd_whitens_a_diagonal_quadratic(cls: type) -> None:
    """P becomes the inverse of the Hessian: of condition 100, P·H of condition about 1."""
    rng = np.random.default_rng(1)
    n = 6
    H = np.diag(np.geomspace(1, 100, n))
    ref = cls(precond_lr=0.1)
    s = SimpleNamespace()
    ref.begin(s, n, lambda step: np.random.default_rng(step % 1000).standard_normal(n))
    s.scale, s.balances = 0.3, False
    ref.rescale(s)
    for _ in range(4000):
        v = rng.standard_normal(n)
        ref.update_factors(s, v, H @ v)
    P = np.array([ref.P(s, e) for e in np.eye(n)])
    eigenvalues = np.linalg.eigvals(P @ H).real
    assert max(eigenvalues) / min(eigenvalues) < 1.5


def test_scaled_gd_does_not_feel_the_condition() -> None:
    """A target of condition 20 and rank 3: the error falls by the same factor at every step."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((12, 3)))
    Z0 = Q * np.sqrt([20.0, 5.0, 1.0])
    M = Z0 @ Z0.T
    p = Z0 + 0.1 * rng.standard_normal(Z0.shape)
    opt = tw.Optimizer([p], "scaled_gd(lr=0.5)")
    for _ in range(120):
        opt.step([(p @ p.T - M) @ p])
    assert np.linalg.norm(p @ p.T - M) < 1e-13 * np.linalg.norm(M)


def answered(sentence: str, x: list[float], gradient: Any, hessian: Any, loss: Any, steps: int) -> np.ndarray:
    p, g = np.array(x), np.zeros(len(x))
    opt = tw.Optimizer([p], sentence)
    opt.bind_gradients([g])
    for _ in range(steps):
        for request in opt.requests():
            if request.kind == "loss":
                request.loss = loss(p)
            else:
                g[...] = hessian(p) @ request.probe[0] if request.kind == "hessian_vector" else gradient(p)
    return p


def test_saddle_free_newton_is_newton_where_the_hessian_is_positive() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4, 4))
    H, b = A @ A.T + np.eye(4), rng.standard_normal(4)
    p = answered("saddle_free_newton(order=4, dampings=[1e-13])", [0.0] * 4, lambda x: H @ x - b, lambda x: H, lambda x: x @ H @ x / 2 - b @ x, 1)
    np.testing.assert_allclose(p, np.linalg.solve(H, b), rtol=1e-10)


def test_saddle_free_newton_leaves_a_saddle() -> None:
    """x^2 - y^2 + y^4 from beside its saddle at 0: to its minimum of -1/4."""
    def loss(x: np.ndarray) -> float:
        return float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4)

    p = answered("saddle_free_newton", [0.5, 1e-3], lambda x: np.array([2 * x[0], -2 * x[1] + 4 * x[1] ** 3]),
                 lambda x: np.diag([2, 12 * x[1] ** 2 - 2]), loss, 30)
    assert loss(p) == pytest.approx(-0.25, abs=1e-9)


def test_saddle_free_newton_stays_where_no_loss_is_finite() -> None:
    p = answered("saddle_free_newton", [0.5, 1.0], lambda x: x, lambda x: np.eye(2), lambda x: float("inf"), 1)
    assert np.array_equal(p, [0.5, 1.0])


@pytest.mark.parametrize("norm, measure", [
    ("l2", np.linalg.norm), ("rms", lambda d: np.sqrt(np.mean(d**2))), ("linf", lambda d: np.max(np.abs(d))),
    ("spectral", lambda d: np.linalg.norm(d, 2)), ("rms_to_rms", lambda d: np.linalg.norm(d, 2) * np.sqrt(d.shape[1] / d.shape[0])),
    ("nuclear", lambda d: np.linalg.norm(d, "nuc")), ("l1_to_l2", lambda d: np.max(np.linalg.norm(d, axis=0))),
    ("l2_to_linf", lambda d: np.max(np.linalg.norm(d, axis=1)))])
def test_every_trust_region_step_has_its_length(norm: str, measure: Callable[[np.ndarray], float]) -> None:
    start, gradients = draws((6, 4), 3)
    before = library(f"norm_trust_region(radius=0.25, norm={norm}, decay=0.1)", start, gradients[:2])
    after = library(f"norm_trust_region(radius=0.25, norm={norm}, decay=0.1)", start, gradients)
    assert measure(after - 0.9 * before) == pytest.approx(0.25, rel=1e-12)


def test_the_trust_region_of_vectors_is_a_ball() -> None:
    start, gradients = draws((5,), 1)
    np.testing.assert_allclose(library("norm_trust_region(radius=0.5)", start, gradients), start - 0.5 * gradients[0] / np.linalg.norm(gradients[0]))


def test_errors_name_what_was_wrong() -> None:
    with pytest.raises(tw.ShapeError, match="psgd_dense takes tensors of at most"):
        tw.Optimizer([np.zeros((100, 100))], "psgd_dense")
    for name in ("kl_shampoo", "kl_soap", "trion(rank=2)", "dion", "scaled_gd"):
        with pytest.raises(tw.ShapeError, match="rank 2 or more.*route"):
            tw.Optimizer([np.zeros(4)], name)
    with pytest.raises(tw.RangeError, match="role"):
        tw.schedule("mup_scaling(0.1, optimizer=muon, role=vector)")
    with pytest.raises(tw.ShapeError, match="max_preconditioner_dim"):
        tw.Optimizer([np.zeros((1, 30_001))], "shampoo(max_preconditioner_dim=40000)")


def test_blocks_are_tensors_of_their_own() -> None:
    start, gradients = draws((6, 4), 5)
    for method in ("shampoo(lr=0.1, eps=0.1, grafting=adam", "soap(lr=0.1, precondition_frequency=2", "kl_soap(lr=0.1"):
        whole = library(method + ", block_size=3)", start, gradients)
        for i, j in [(0, 0), (0, 3), (3, 0), (3, 3)]:
            part = (slice(i, i + 3), slice(j, min(j + 3, 4)))
            if start[part].shape[1] == 1 and method.startswith("kl"):
                continue  # a block of one column is a vector
            alone = library(method + ")", start[part].copy(), [g[part].copy() for g in gradients])
            np.testing.assert_allclose(whole[part], alone, rtol=1e-11)


def test_every_reference_here_is_registered() -> None:
    names = {m.name for m in tw.methods()}
    mine = {c.name for c in every() if c.__module__.split(".")[-1] in ("kronecker", "hessian_diagonal", "subspace_adam", "psgd", "low_rank_recovery", "norm_trust_region",
                                                                              "saddle_free_newton")}
    assert mine <= names and len(mine) == 22
