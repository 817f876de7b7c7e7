"""Masks, composite steps, critics, segmentations and layers, by their cards: laws, counts, optimality conditions, peers.

The references of these methods run in the generic tests; what stands here is what a reference cannot say of itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference.adam import AdamW
from reference.gram_bounds import GramIteration
from reference.pruning import StructuredPruning, best
from support import Problem, stage
from test_fidelity import worst

RNG = np.random.default_rng


def lasso(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and the lasso solution of |Xw - y|^2/(2 n) + 0.1 |w|_1 by coordinate descent."""
    rng = RNG(seed)
    X, w = rng.standard_normal((60, 12)), np.zeros(12)
    w[:3] = [2.0, -1.5, 1.0]
    y = X @ w + 0.1 * rng.standard_normal(60)
    return X, y, tw.solver("lasso_cd(alpha=0.1, tol=1e-12)").run(design=X, targets=y)["w"]


# ---- masks


def test_magnitude_pruning_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    for amount in (0.0, 0.1, 0.5, 0.83):
        w = RNG(3).standard_normal((7, 9))
        layer = torch.nn.Linear(9, 7, bias=False)
        layer.weight.data = torch.tensor(w)
        prune.l1_unstructured(layer, "weight", amount)
        mine = w.copy()
        tw.Optimizer([mine], f"sgd(lr=1) | magnitude_pruning({amount})").step([np.zeros_like(w)])
        np.testing.assert_array_equal(mine, layer.weight.detach().numpy())


def test_structured_pruning_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    for amount, axis in ((0.5, 0), (0.4, 1)):
        w = RNG(4).standard_normal((6, 5, 3, 3))
        layer = torch.nn.Conv2d(5, 6, 3, bias=False)
        layer.weight.data = torch.tensor(w)
        prune.ln_structured(layer, "weight", amount, n=2, dim=axis)
        mine = w.copy()
        tw.Optimizer([mine], f"sgd(lr=1) | structured_pruning({amount}, axis={axis})").step([np.zeros_like(w)])
        np.testing.assert_array_equal(mine, layer.weight.detach().numpy())


def test_global_scores_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    ws = [s * RNG(k).standard_normal((5, 6)) for k, s in enumerate((1.0, 0.3, 2.0))]
    layers = [torch.nn.Linear(6, 5, bias=False) for _ in ws]
    for layer, w in zip(layers, ws):
        layer.weight.data = torch.tensor(w)
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.6)
    got = tw.diagnostic("pruning_score(sparsity=0.6)")(**{f"w{k + 1}": w for k, w in enumerate(ws)})
    for k, layer in enumerate(layers):
        np.testing.assert_array_equal(got[f"mask{k + 1}"], layer.weight_mask.numpy())


PRUNED = "magnitude_pruning(0.6)"


def test_global_pruning_equals_torch() -> None:
    """Over tensors, pipelines, groups and kinds of memory."""
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    ws = [(s * RNG(k).standard_normal(n)).astype(np.float32) for k, (s, n) in enumerate([(1, (5, 6)), (0.3, 40), (2, (3, 4, 2))])]
    layers = [torch.nn.Linear(1, 1) for _ in ws]
    for layer, w in zip(layers, ws):
        layer.weight.data = torch.tensor(w)
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.6)
    wanted = [layer.weight.detach().numpy() for layer in layers]
    zeros = [np.zeros_like(w) for w in ws]

    def check(opt: tw.Optimizer, mine: list[np.ndarray]) -> None:
        opt.step([z.astype(m.dtype) for z, m in zip(zeros, mine)])
        for w, m in zip(wanted, mine):
            np.testing.assert_array_equal(w, m)

    for kinds in (("f4", "f4", "f4"), ("f4", "f8", "f8"), ("f8", "f8", "f8")):
        mine = [w.astype(kind) for w, kind in zip(ws, kinds)]
        check(tw.Optimizer(mine, f"sgd(lr=1) | {PRUNED}"), mine)
    strided = [np.moveaxis(np.moveaxis(w, 0, -1).copy(), -1, 0) for w in ws]
    check(tw.Optimizer(strided, f"sgd(lr=1) | {PRUNED}"), strided)
    # behind pipelines that come there after different numbers of walks; in groups of their own
    mine = [w.copy() for w in ws]
    check(tw.Optimizer(mine, f"route(vector=(clip_norm(1) | sgd | project(l2_ball(1e6))), other=(sgd)) | {PRUNED}"), mine)
    mine = [w.copy() for w in ws]
    check(tw.Optimizer([{"params": mine[:1]}, {"params": mine[1:], "lr": 0.5}], f"sgd(lr=1) | {PRUNED}"), mine)


def test_global_pruning_keeps_to_its_tensors() -> None:
    """Each stage has those of its own pipeline; a tensor without gradient is neither counted nor changed."""
    a, b = np.arange(1.0, 5), np.arange(1.0, 9)
    tw.Optimizer({"a": a, "b": b}, "route(\"a*\"=(sgd | magnitude_pruning(0.5)), other=(sgd | magnitude_pruning(0.75)))").step(
        [np.zeros(4), np.zeros(8)])
    assert a.tolist() == [0, 0, 3, 4] and b.tolist() == [0] * 6 + [7, 8]
    a, b = np.arange(1.0, 5), np.arange(1.0, 9)
    tw.Optimizer([a, b], "sgd | magnitude_pruning(0.5)").step([np.zeros(4), None])
    assert a.tolist() == [0, 0, 3, 4] and b.tolist() == list(range(1, 9))


def test_global_pruning_keeps_the_best_of_each_tensor() -> None:
    a, b, c = np.array([1e-3, -2e-3, 2e-3]), np.arange(1.0, 7), np.zeros(0)
    opt = tw.Optimizer([a, c, b], "sgd | magnitude_pruning(0.5)")
    opt.step([np.zeros(3), np.zeros(0), np.zeros(6)])
    # round(4.5) = 4 go: five stay, one of them the first of the largest of a
    assert a.tolist() == [0, -2e-3, 0] and b.tolist() == [0, 0, 3, 4, 5, 6]
    opt.step([np.zeros(3), np.zeros(0), np.zeros(6)])
    assert a.tolist() == [0, -2e-3, 0] and b.tolist() == [0, 0, 3, 4, 5, 6]


def test_groups_bring_their_shares_together() -> None:
    a, b = np.arange(1.0, 5), np.arange(11.0, 15)
    groups = [{"params": [a]}, {"params": [b], "magnitude_pruning.sparsity": 0.5}]
    tw.Optimizer(groups, "sgd | magnitude_pruning(0.25)").step([np.zeros(4), np.zeros(4)])
    assert a.tolist() == [0, 0, 0, 4] and b.tolist() == [11, 12, 13, 14]


@pytest.mark.parametrize("setting", StructuredPruning.settings, ids=str)
def test_structured_pruning(setting: dict[str, Any]) -> None:
    problem = Problem([(5, 4), (6, 3, 2, 2)], seed=7)
    ref, params, mine = StructuredPruning(**setting), problem.start(), problem.start()
    ref.start(params)
    opt = tw.Optimizer(mine, f"sgd(lr=0.1, momentum=0.5) | {stage('structured_pruning', setting)}")
    buffers = [np.zeros_like(p) for p in params]
    for k in range(12):
        for b, p, g in zip(buffers, params, problem.gradient(params, k)):
            b[...] = 0.5 * b + g
            p -= 0.1 * b
        ref.update(params)
        opt.step(problem.gradient(mine, k))
    assert np.max(worst(mine, params)) < 1e-12
    assert all(np.any(w) for w in mine)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_slices_of_all_tensors_compete(dtype: Any) -> None:
    """Equal norms go by the order of the tensors, the best slice of each stays, a share of 0 keeps what it has."""
    def pruned(sentence: str, share: float | None = None) -> list[list[float]]:
        a, b = np.diag([1.0, 2.0, 3.0]).astype(dtype), np.array([[3.0, 4.0], [0, 2.0], [0, 7.0], [8.0, 6.0]], dtype)
        groups = [{"params": [a]}, {"params": [b]} | ({} if share is None else {"structured_pruning.sparsity": share})]
        opt = tw.Optimizer(groups, f"sgd(lr=1) | {sentence}")
        for _ in range(2):
            opt.step([np.zeros_like(a), np.zeros_like(b)])
        return [np.linalg.norm(w, axis=1).tolist() for w in (a, b)]

    assert pruned("structured_pruning(0.3, scope=global)") == [[0, 2, 3], [5, 0, 7, 10]]  # round(2.1) of 1, 2, 3, 5, 2, 7, 10
    assert pruned("structured_pruning(0.5, scope=global)") == [[0, 0, 3], [0, 0, 7, 10]]  # round(3.5) = 4 go; one of a stays
    assert pruned("structured_pruning(0.5, scope=global, min_keep=0)") == [[0, 0, 0], [5, 0, 7, 10]]
    assert pruned("structured_pruning(0.5, scope=global)", 0) == [[0, 0, 3], [5, 2, 7, 10]]
    assert pruned("structured_pruning(0.9, min_keep=2)") == [[0, 2, 3], [0, 0, 7, 10]]


def test_pruning_along_a_schedule() -> None:
    """The sparsity is that of each step, what is pruned never comes back, and a saved run goes on alike."""
    sentence = "adamw(lr=0.05) | magnitude_pruning(sparsity=cubic_sparsity(final=0.8, end=10, every=3), scope=local)"
    problem, schedule = Problem([(40,), (6, 5)], seed=2), tw.schedule("cubic_sparsity(final=0.8, end=10, every=3)")
    params = problem.start()
    opt = tw.Optimizer(params, sentence)
    gone = [np.zeros(p.shape, bool) for p in params]
    for k in range(14):
        opt.step(problem.gradient(params, k))
        for p, before in zip(params, gone):
            assert np.sum(p == 0) == round(schedule(k) * p.size)
            assert not np.any(p[before])
            before |= p == 0
        if k == 6:
            params = [p.copy() for p in params]
            other = tw.Optimizer(params, sentence)
            other.load_state_dict(opt.state_dict())
            opt = other


def test_ties_keep_the_lower_index() -> None:
    w = np.array([1.0, -1.0, 2.0, 1.0, 0.0, -1.0])
    tw.Optimizer([w], "sgd(lr=1) | magnitude_pruning(0.5)").step([np.zeros(6)])
    assert w.tolist() == [1.0, -1.0, 2.0, 0.0, 0.0, 0.0]
    n = np.array([np.nan, 1.0, 2.0, 3.0])
    tw.Optimizer([n], "sgd(lr=1) | magnitude_pruning(0.5)").step([np.zeros(4)])
    assert np.isnan(n[0]) and n[1:].tolist() == [0.0, 0.0, 3.0]


def test_cubic_sparsity_points() -> None:
    s = tw.schedule("cubic_sparsity(initial=0.1, final=0.9, begin=10, end=110, every=1)")
    assert s(0) == s(9) == 0.1 and s(110) == s(5000) == pytest.approx(0.9)
    assert s(60) == pytest.approx(0.9 - 0.8 / 8)
    with pytest.raises(tw.RangeError, match="`begin` must be below `end`"):
        tw.schedule("cubic_sparsity(begin=5, end=5)")


def test_sr_ste_is_the_pull_of_nm_sparsity() -> None:
    """A host that masks by itself and takes sr_ste moves the dense weights as nm_sparsity does."""
    problem = Problem([(6, 8)], seed=1)
    dense, seen = problem.start(), problem.start()
    own, whole = tw.Optimizer(dense, "sr_ste(decay=0.1) | sgd(lr=0.1)"), tw.Optimizer(seen, "sgd(lr=0.1) | nm_sparsity(decay=0.1)")
    mask = lambda w: np.stack([best(g, 2) for g in np.abs(w).reshape(-1, 4)]).reshape(w.shape)  # noqa: E731
    grads = [np.zeros((6, 8))]
    whole.bind_gradients(grads)
    for k in range(6):
        own.step(problem.gradient([w * mask(w) for w in dense], k))
        for request in whole.requests():
            problem.answer(request, seen, grads, k)
        np.testing.assert_allclose(seen[0], dense[0] * mask(dense[0]), rtol=1e-13, atol=1e-15)


def test_progressive_nm_frames() -> None:
    """1:16 comes through 15:16, 8:16, 4:16, 2:16; beta 0 is the mask, beta 1 dense."""
    w = RNG(0).standard_normal((4, 32))
    at = lambda text, epoch, step=0: tw.objective(text).value_and_grad(w=w, step=np.array(step), epoch=np.array(epoch))[1]  # noqa: E731
    kept = [int(at("progressive_nm(total=10, structure=sparsify)", e)["mask"][0, :16].sum()) for e in range(10)]
    assert kept == [15, 15, 8, 8, 4, 4, 2, 2, 1, 1]
    got = at("progressive_nm(total=10, n=2, m=4, decay=step)", 3)
    np.testing.assert_array_equal(got["effective"], w * got["mask"])
    assert np.all(got["mask"].reshape(-1, 4).sum(axis=1) == 2)
    np.testing.assert_array_equal(at("progressive_nm(total=10)", 3, 0)["effective"], w)
    np.testing.assert_array_equal(at("progressive_nm(total=10, dense=4)", 3, 900)["mask"], np.ones_like(w))
    for text, message in (("progressive_nm(total=3, dense=2, fine_tune=1)", "below `total`"), ("progressive_nm(total=3, n=5, m=4)", "`n` must not"),
                          ("progressive_nm(total=3, n=1, m=6, structure=sparsify)", "power of two")):
        with pytest.raises(tw.RangeError, match=message):
            tw.objective(text)
    with pytest.raises(tw.ShapeError, match="not a multiple of 16"):
        tw.objective("progressive_nm(total=3)")(w=np.ones((2, 8)), step=np.array(0), epoch=np.array(0))


def test_rigl_keeps_the_number_of_weights() -> None:
    rng, rigl = RNG(1), tw.diagnostic("rigl(end_step=1000, every=100)")
    mask = (rng.random(200) < 0.2).astype(np.int64)
    w = rng.standard_normal(200) * mask
    for t in (100, 500, 900):
        got = rigl(w=w, g=rng.standard_normal(200), mask=mask, step=np.array(t))
        k = int(np.floor(0.15 * (1 + np.cos(np.pi * t / 1000)) * mask.sum()))
        assert got["active"].sum() == mask.sum() and np.sum((got["active"] == 0) & (mask == 1)) <= k
        assert not np.any(got["weights"][got["grown"] == 1])
        mask, w = got["active"].astype(np.int64), got["weights"]
    with pytest.raises(tw.RangeError, match="`mask`"):
        rigl(w=w, g=w, mask=2 * mask, step=np.array(100))


def test_movement_scores_rise_away_from_zero() -> None:
    """A descent step that moves a weight away from zero raises its score."""
    rng = RNG(2)
    w, g = rng.standard_normal(30), rng.standard_normal(30)
    got = tw.diagnostic("movement_pruning(sparsity=0.3)")(w=w, g=g, scores=np.zeros(30))
    away = np.abs(w - 1e-6 * g) > np.abs(w)
    np.testing.assert_array_equal(got["updated"] > 0, away)
    assert got["mask"].sum() == 21


# ---- composite steps


def test_dual_averaging_finds_the_support_of_the_lasso() -> None:
    X, y, want = lasso()
    w = np.zeros(12)
    opt = tw.Optimizer([w], "dual_averaging(l1=0.1, gamma=2)")
    for _ in range(4000):
        opt.step([X.T @ (X @ w - y) / 60])
    np.testing.assert_array_equal(w == 0, want == 0)
    assert np.max(np.abs(w - want)) < 0.05


def test_mirror_descent_on_the_simplex() -> None:
    """A quadratic on the simplex beside projected gradients; the links of p and q are inverse; zeros stay."""
    rng = RNG(3)
    A, c = np.diag(rng.uniform(0.5, 2, 6)), rng.uniform(-1, 1, 6)
    w, p = np.full(6, 1 / 6), np.full(6, 1 / 6)
    mirror, plain = tw.Optimizer([w], "mirror_descent(lr=0.3)"), tw.Optimizer([p], "sgd(lr=0.1) | project(simplex)")
    for _ in range(3000):
        mirror.step([A @ w - c])
        plain.step([A @ p - c])
    np.testing.assert_allclose(w, p, atol=1e-6)
    assert w.sum() == pytest.approx(1, abs=1e-12)
    v = RNG(4).standard_normal(7)
    x = v.copy()
    tw.Optimizer([x], "mirror_descent(geometry=pnorm, p=1.3)").step([np.zeros(7)])
    np.testing.assert_allclose(x, v, rtol=1e-12)
    z = np.array([0.5, 0.0, 0.5])
    tw.Optimizer([z], "mirror_descent(lr=1)").step([np.array([900.0, -900.0, 901.0])])
    assert z[1] == 0 and z.sum() == pytest.approx(1) and z[0] == pytest.approx(np.e / (1 + np.e))


def test_frank_wolfe_gap_bounds_the_suboptimality() -> None:
    rng = RNG(5)
    b = 2 * rng.standard_normal(8)
    w = np.zeros(8)
    best_value = 0.5 * np.sum((tw_project("l1_ball(1.5)", b) - b) ** 2)
    opt = tw.Optimizer([w], "frank_wolfe(l1_ball(1.5))")
    for k in range(400):
        value = 0.5 * np.sum((w - b) ** 2)
        opt.step([w - b])
        assert np.abs(w).sum() <= 1.5 + 1e-12
        assert value - best_value <= 8 * 1.5**2 * 4 / (k + 2) + 1e-9
    assert 0.5 * np.sum((w - b) ** 2) - best_value < 0.05
    for bad in ("non_negative", "halfspace([1, 1])"):
        with pytest.raises(tw.Error):
            tw.Optimizer([np.ones(2)], f"frank_wolfe({bad})").step([np.array([-1.0, 0.5])])


def tw_project(text: str, x: np.ndarray) -> np.ndarray:
    out = x.copy()
    tw.constraint(text).project(out)
    return out


def test_model_steps_minimise_their_models() -> None:
    """Beside a fine search along the gradient: the models are functions of the distance along it."""
    rng = RNG(6)
    s = np.linspace(-2, 2, 400_001)
    for loss in (-1.0, 0.05, 3.0):
        w, g = rng.standard_normal(5), rng.standard_normal(5)
        for text, model in (("truncated_model(0.2, lower=0)", lambda u, q: np.maximum(loss - u * q, 0.0)), ("prox_linear(0.2)", lambda u, q: np.abs(loss - u * q))):
            x = w.copy()
            opt = tw.Optimizer([x], text)
            opt.observe("loss", loss)
            opt.step([g])
            q = g @ g
            moved = (w - x) @ g / q
            np.testing.assert_allclose(x, w - moved * g, atol=1e-14)
            objective = model(s, q) + s**2 * q / 0.4
            assert model(moved, q) + moved**2 * q / 0.4 <= objective.min() + 1e-9
    for loss in ("square", "phase"):
        for _ in range(20):
            x, a, b, lr = rng.standard_normal(4), rng.standard_normal(4), rng.uniform(0, 3), rng.uniform(0.05, 3)
            u = tw.diagnostic(f"prox_point({lr!r}, loss={loss})")(x=x, a=a, b=np.array(b))["point"]
            f = lambda v: ((v @ a - b) ** 2 / 2 if loss == "square" else abs((v @ a) ** 2 - b)) + np.sum((v - x) ** 2) / (2 * lr)  # noqa: E731
            assert all(f(u) <= f(x + t * a) + 1e-9 for t in np.linspace(-6, 6, 5001))


def test_sara_touches_only_small_entries() -> None:
    problem = Problem([(9,), (6, 5)], seed=8)
    params = problem.start()
    start = [p.copy() for p in params]
    opt = tw.Optimizer(params, "sara(lr=0.05, threshold=0.5, progressive_step=6)")
    masks = [np.abs(p) < 0.5 for p in start]
    for k in range(6):
        opt.step(problem.gradient(params, k))
    middle = [p.copy() for p in params]
    nested = [m & (np.abs(p) < 0.5) for m, p in zip(masks, middle)]
    for k in range(6, 12):
        opt.step(problem.gradient(params, k))
    for p, s, mid, m, n in zip(params, start, middle, masks, nested):
        assert p[~m].tobytes() == s[~m].tobytes() and np.all(p[n] != mid[n])
        assert p[~n].tobytes() == mid[~n].tobytes()
    # a mask of ones is AdamW
    mine, want = problem.start(), problem.start()
    one, rule = tw.Optimizer(mine, "sara(lr=0.05, threshold=1e6, weight_decay=0.1)"), AdamW(lr=0.05, weight_decay=0.1)
    rule.start(want)
    for k in range(10):
        one.step(problem.gradient(mine, k))
        rule.step(want, problem.gradient(want, k))
    assert np.max(worst(mine, want)) < 1e-13


@pytest.mark.parametrize("mode", ["lr_scaled", "independent"])
def test_decoupled_weight_decay(mode: str) -> None:
    """The closed form without gradients, beside torch's AdamW, toward an anchor, and along a falling step size."""
    w, bias = np.full((2, 2), 3.0), np.full(2, 3.0)
    opt = tw.Optimizer([w, bias], f"sgd(lr=0.1) | decoupled_weight_decay(0.2, mode={mode})")
    for _ in range(7):
        opt.step([np.zeros((2, 2)), np.zeros(2)])
    k = 0.1 * 0.2 if mode == "lr_scaled" else 0.2
    np.testing.assert_allclose(w, 3 * (1 - k) ** 7, rtol=1e-13)
    assert (bias == 3).all()
    opt.set("lr", 0.05)
    before = w.copy()
    opt.step([np.zeros((2, 2)), np.zeros(2)])
    np.testing.assert_allclose(w, before * (1 - (0.05 * 0.2 if mode == "lr_scaled" else 0.5 * 0.2)), rtol=1e-13)
    a = np.ones((2, 2))
    anchored = tw.Optimizer([a], f"sgd(lr=0.1) | decoupled_weight_decay(0.2, mode={mode}, anchor=start)")
    anchored.step([np.ones((2, 2))])
    anchored.step([np.zeros((2, 2))])
    np.testing.assert_allclose(a, 1 - 0.1 * (1 - k), rtol=1e-13)
    if mode == "lr_scaled":
        problem = Problem([(4, 3)], seed=3)
        mine, want = problem.start(), problem.start()
        one, rule = tw.Optimizer(mine, "adam(lr=0.05) | decoupled_weight_decay(0.3)"), AdamW(lr=0.05, weight_decay=0.3)
        rule.start(want)
        for i in range(12):
            one.step(problem.gradient(mine, i))
            rule.step(want, problem.gradient(want, i))
        assert np.max(worst(mine, want)) < 1e-12


def test_lawn() -> None:
    """Free at first, then the norms stay to rounding; with plain descent it is the gradient on the sphere."""
    problem = Problem([(5, 4), (3,)], seed=5)
    for direction in ("false", "true"):
        params = problem.start()
        opt = tw.Optimizer(params, f"lawn(part=gradient, free_steps=3) | adam(lr=0.05) | lawn(part=norm, free_steps=3, warmup_steps=4, project_direction={direction})")
        plain = problem.start()
        free, norms = tw.Optimizer(plain, "adam(lr=0.05)"), []
        for k in range(12):
            if k == 3:
                norms.append(np.linalg.norm(params[0]))
            opt.step(problem.gradient(params, k))
            if k < 3:
                free.step(problem.gradient(plain, k))
                np.testing.assert_allclose(params[0], plain[0], rtol=1e-13)
            else:
                assert np.linalg.norm(params[0]) == pytest.approx(norms[0], rel=1e-12)
    w, g = RNG(1).standard_normal((4, 3)), RNG(2).standard_normal((4, 3))
    x, n = w.copy(), np.linalg.norm(w)
    tw.Optimizer([x], "lawn(part=gradient) | sgd(lr=0.1) | lawn(part=norm)").step([g])
    want = w - 0.1 * (g - np.sum(w * g) / n**2 * w)
    np.testing.assert_allclose(x, want * n / np.linalg.norm(want), rtol=1e-13)
    y = w.copy()
    tw.Optimizer([y], "lawn(part=gradient) | sgd(lr=0.1) | lawn(part=norm, warmup_steps=4)").step([g])
    want = w - 0.025 * (g - np.sum(w * g) / n**2 * w)
    np.testing.assert_allclose(y, want * n / np.linalg.norm(want), rtol=1e-13)


# ---- bounds


def test_gram_bounds() -> None:
    """Above the norm, falling with every squaring, at any scale; a circulant's own norm."""
    w = RNG(7).standard_normal((6, 9))
    bounds = [tw.regularizer(f"gram_iteration(weight=1, threshold=0, n_iter={t})").value(w) for t in range(10)]
    assert bounds[0] == pytest.approx(np.linalg.norm(w), rel=1e-13)
    assert all(a >= b for a, b in zip(bounds, bounds[1:])) and bounds[-1] >= np.linalg.norm(w, 2) * (1 - 1e-12)
    assert bounds[-1] == pytest.approx(np.linalg.norm(w, 2), rel=1e-2)
    mine = tw.regularizer("gram_iteration(weight=1, threshold=0)")
    for scale in (1e80, 1e-80):
        assert mine.value(scale * w) == pytest.approx(scale * mine.value(w), rel=1e-12)
        np.testing.assert_allclose(mine.gradient(scale * w), mine.gradient(w), rtol=1e-10, atol=1e-300)
    assert mine.value(np.zeros((3, 2))) == 0 and not mine.gradient(np.zeros((3, 2))).any()
    kernel = RNG(8).standard_normal((2, 3, 3, 3))
    n, rows = 5, []
    for i in range(3 * n * n):  # the matrix of the circular convolution, column by column
        x = np.zeros((3, n, n))
        x.flat[i] = 1
        rows.append(np.real(np.fft.ifft2(np.einsum("oiab,iab->oab", np.fft.fft2(kernel, (n, n)), np.fft.fft2(x)))).ravel())
    norm = np.linalg.norm(np.array(rows), 2)
    got = tw.regularizer(f"gram_iteration_conv(weight=1, threshold=0, n_iter=9, n={n})").value(kernel)
    assert norm * (1 - 1e-12) <= got <= norm * 1.01
    with pytest.raises(tw.ShapeError, match="at least the side 3"):
        tw.regularizer("gram_iteration_conv(n=2)").value(kernel)
    for text, x in (("gram_iteration(weight=0.7, threshold=0, n_iter=3)", w), ("gram_iteration_conv(weight=0.7, threshold=0, n_iter=3, n=5)", kernel)):
        mine, d, h = tw.regularizer(text), RNG(9).standard_normal(x.shape), 1e-6
        slope = (mine.value(x + h * d) - mine.value(x - h * d)) / (2 * h)
        assert slope == pytest.approx(np.sum(mine.gradient(x) * d), rel=1e-7)
    assert GramIteration(weight=1, threshold=0).value(w) == pytest.approx(bounds[6], rel=1e-12)


def test_sobolev_gradient_inverts_the_norm() -> None:
    g = RNG(1).standard_normal((6, 5))
    smooth = g.copy()
    x = np.zeros_like(g)
    tw.Optimizer([x], "sobolev_gradient(s=0.7, scale=2) | sgd(lr=1)").step([smooth])
    np.testing.assert_allclose(tw.regularizer("sobolev(s=0.7, scale=2, weight=1)").gradient(-x), g, rtol=1e-11, atol=1e-12)
    x[:] = 0
    tw.Optimizer([x], "sobolev_gradient(zero_mode=false) | sgd(lr=1)").step([g])
    assert abs(x.mean()) < 1e-15


# ---- losses


def test_critics_beside_torch() -> None:
    torch = pytest.importorskip("torch")
    g = torch.tensor(RNG(2).standard_normal((4, 3, 2)), requires_grad=True)
    for mode, loss in (("two_sided", lambda n: (10 * (n - 1) ** 2).mean()), ("one_sided", lambda n: (10 * torch.relu(n - 1) ** 2).mean()),
                       ("r1", lambda n: 5 * (n**2).mean())):
        g.grad = None
        value = loss(g.flatten(1).norm(dim=1))
        value.backward()
        mine, grads = tw.objective(f"gradient_penalty(mode={mode})").value_and_grad(gradients=g.detach().numpy())
        assert mine == pytest.approx(value.item(), rel=1e-14)
        np.testing.assert_allclose(grads["gradients"], g.grad.numpy(), rtol=1e-13)
    with pytest.raises(tw.NeedsError, match="`real`"):
        tw.objective("wgan_loss")(fake=np.ones(3))


def test_linear_critic() -> None:
    """A linear critic has the same slope everywhere: (|a| - 1)^2 times the weight."""
    a = np.array([3.0, 4.0])
    value, g = tw.objective("gradient_penalty").value_and_grad(gradients=np.tile(a, (5, 1)))
    assert value == pytest.approx(160) and np.allclose(g["gradients"].sum(axis=0), 2 * 10 * 4 * a / 5)


def test_jacobian_nuclear_estimates_the_product_of_factors() -> None:
    rng = RNG(3)
    U, s, Vt = np.linalg.svd(rng.standard_normal((4, 5)), full_matrices=False)
    G, H, sigma, B = U * np.sqrt(s), np.sqrt(s)[:, None] * Vt, 0.1, 200_000
    e, e2 = sigma * rng.standard_normal((B, 5)), sigma * rng.standard_normal((B, 4))
    zero = np.zeros((B, 4))
    value = tw.objective("jacobian_nuclear")(h=zero, h_noisy=e @ H.T, g=zero, g_noisy=e2 @ G.T)
    assert value == pytest.approx(s.sum(), rel=0.02)  # balanced factors reach the nuclear norm; 200 000 draws


def test_segmentation_windows() -> None:
    """The shares sum to 1, so that adding a constant to logits on their target moves the penalty by it; half is one's own label."""
    rng = RNG(4)
    y = rng.integers(0, 3, (2, 6, 5))
    z = rng.standard_normal((2, 3, 6, 5))
    g = tw.objective("svls").value_and_grad(logits=z, labels=y)[1]["logits"]
    np.testing.assert_allclose(g.sum(axis=1), 0, atol=1e-16)
    flat = tw.objective("svls").value_and_grad(logits=0 * z, labels=np.zeros_like(y))[1]["logits"]
    np.testing.assert_allclose(flat[:, 0], (1 / 3 - 1) / y.size, rtol=1e-13)
    one = np.zeros((1, 3, 3), np.int64)
    one[0, 1, 1] = 1
    target = 0.5 - 9 * tw.objective("svls").value_and_grad(logits=np.zeros((1, 2, 3, 3)), labels=one)[1]["logits"]
    assert target[0, 1, 1, 1] == pytest.approx(0.5)
    l2 = tw.objective("nacl(weight=1, distance=l2, ksize=1)")(logits=z, labels=y) - tw.objective("nacl(weight=0)")(logits=z, labels=y)
    assert l2 == pytest.approx(np.mean((np.eye(3)[y].transpose(0, 3, 1, 2) - z) ** 2), rel=1e-12)
    for text in ("nacl(ksize=2)", "svls(ksize=4)"):
        with pytest.raises(tw.RangeError, match="odd"):
            tw.objective(text)
    with pytest.raises(tw.RangeError, match="`labels`"):
        tw.objective("nacl")(logits=z, labels=y + 1)


def test_prox_matching_becomes_the_square() -> None:
    f, x = RNG(5).standard_normal((2, 6, 3))
    value = tw.objective("prox_matching(gamma_min=1e4)")(f=f, x=x)
    assert value * 1e8 == pytest.approx(np.mean(np.sum((f - x) ** 2, axis=1)), rel=1e-6)
    with pytest.raises(tw.RangeError, match="progress"):
        tw.objective("prox_matching")(f=f, x=x, progress=np.array(1.5))


def test_effective_weights() -> None:
    w = RNG(6).standard_normal((7, 20))
    h = tw.objective("weight_standardization").value_and_grad(w=w)[1]["effective"]
    np.testing.assert_allclose(h.mean(axis=1), 0, atol=1e-15)
    assert np.all(h.var(axis=1) < 1) and np.all(h.var(axis=1) > 0.9999)
    rows = np.logspace(-3, 3, 7)[:, None]
    conditioned = lambda x: tw.objective("weight_conditioning").value_and_grad(w=x)[1]["effective"]  # noqa: E731
    np.testing.assert_allclose(conditioned(rows * w), conditioned(w), rtol=1e-12)
    assert np.linalg.cond(conditioned(rows * w)) < 1e-3 * np.linalg.cond(rows * w)
    noise = RNG(7).standard_normal((4000, 50))
    v = np.tile(np.linspace(-1, 1, 50), (4000, 1))
    e = tw.objective("quant_noise(bits=2)").value_and_grad(w=v, noise=noise)[1]["effective"] - v
    assert abs(e.mean()) < 0.005 and e.std() == pytest.approx(2 / 3 / 2, rel=0.02)  # of 200 000 draws


def test_nested_dropout_law() -> None:
    """Inversion from evenly spread draws gives the law itself."""
    mine, z, u = tw.objective("nested_dropout(sigma=2.5)"), np.ones(6), (np.arange(4000) + 0.5) / 4000
    kept = [int(mine.value_and_grad(z=z, u=np.array(v))[1]["kept"]) for v in u]
    p = np.exp(-((np.arange(1, 7) / 2.5) ** 2))
    np.testing.assert_allclose(np.bincount(kept, minlength=7)[1:] / 4000, p / p.sum(), atol=3e-4)


def test_dual_weights_move_to_the_steepest_sample() -> None:
    f = np.array([[0.0], [0.1], [0.2], [5.0]])
    w = np.exp(-np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0))))
    mine = tw.weighting("manifold_lipschitz_dual")
    for _ in range(40):
        lam = mine(f=f, w=w, loss=np.array(0.0))
        assert lam.sum() == pytest.approx(4) and lam.min() >= 0
    assert lam.argmax() == 3 and lam[3] == pytest.approx(4)
    assert mine.value_and_grad(f=f, w=w, loss=np.array(0.0))[1]["multiplier"] < 1


# ---- solvers


def test_ot_sinkhorn_is_sinkhorn() -> None:
    rng = RNG(1)
    C, a, b = rng.uniform(size=(5, 7)), np.full(5, 0.2), np.full(7, 1 / 7)
    one = tw.solver("ot_sinkhorn(tol=1e-13, max_iter=5000)").run(cost=C, a=a, b=b)
    two = tw.solver("sinkhorn(epsilon=0.1, tol=1e-13, max_iter=5000)").run(cost=C, a=a, b=b)
    assert one.outcome == two.outcome == "converged"
    np.testing.assert_allclose(one["plan"], two["plan"], rtol=1e-9)
    np.testing.assert_allclose(one["plan"].sum(axis=0), b, rtol=1e-13)


def test_bcd_rules_reach_the_minimum() -> None:
    rng = RNG(2)
    Q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    H, c = Q @ np.diag(np.linspace(1, 8, 9)) @ Q.T, rng.standard_normal(9)
    gradient = lambda x: H @ x - c  # noqa: E731
    for rule in ("cyclic", "gs", "gsl", "gsd", "gsq"):
        for update in ("lipschitz", "matrix"):
            got = tw.solver(f"bcd(rule={rule}, update={update}, block=2, max_iter=20000, tol=1e-9)").run(x0=np.zeros(9), hessian=H, gradient=gradient)
            assert got.outcome == "converged"
            np.testing.assert_allclose(got["x"], np.linalg.solve(H, c), atol=1e-8)
    X, y, want = lasso()
    got = tw.solver("bcd(regularizer=l1(0.1), max_iter=20000, tol=1e-10)").run(
        x0=np.zeros(12), lipschitz=np.sum(X**2, axis=0) / 60, gradient=lambda w: X.T @ (X @ w - y) / 60)
    np.testing.assert_allclose(got["x"], want, atol=1e-8)
    with pytest.raises(tw.NeedsError, match="hessian"):
        tw.solver("bcd").run(x0=np.zeros(2), gradient=gradient)


def test_gsq_takes_the_block_of_the_largest_decrease() -> None:
    rng = RNG(3)
    A = rng.standard_normal((8, 8))
    H, c = A @ A.T + np.eye(8), rng.standard_normal(8)
    f = lambda x: x @ H @ x / 2 - c @ x  # noqa: E731
    x = tw.solver("bcd(rule=gsq, update=matrix, block=2, max_iter=1)").run(x0=np.zeros(8), hessian=H, gradient=lambda x: H @ x - c)["x"]
    def exact(b: int) -> float:
        at, y = slice(2 * b, 2 * b + 2), np.zeros(8)
        y[at] = np.linalg.solve(H[at, at], c[at])
        return f(y)
    assert f(x) == pytest.approx(min(exact(b) for b in range(4)), rel=1e-12)


def test_bcd_prox_decreases_enough() -> None:
    rng = RNG(4)
    Y, x = np.outer(rng.standard_normal(4), rng.standard_normal(4)), rng.standard_normal(8)
    f = lambda x: np.sum((Y - np.outer(x[:4], x[4:])) ** 2) / 2  # noqa: E731
    seen: list[np.ndarray] = []

    def solve(point: np.ndarray, lam: float, first: float, length: float) -> np.ndarray:
        seen.append(np.array(point))
        u, v, out = point[:4], point[4:], np.zeros(8)
        if first == 0:
            out[:4] = (Y @ v + lam * u) / (v @ v + lam)
        else:
            out[4:] = (Y.T @ u + lam * v) / (u @ u + lam)
        return out

    got = tw.solver("bcd_prox(lam=0.5, block=4, max_iter=200)").run(x0=x, solve=solve)
    for a, b in zip(seen, [*seen[1:], got["x"]]):
        assert f(a) - f(b) >= 0.25 * np.sum((a - b) ** 2) - 1e-12
    assert f(got["x"]) < 1e-8


def test_vr_cyclic_bcd_with_sure_coins_is_cyclic_descent() -> None:
    X, y, want = lasso()
    gradient = lambda w: X.T @ (X @ w - y) / 60  # noqa: E731
    got = tw.solver("vr_cyclic_bcd(lr=0.3, p=1, max_iter=2000, regularizer=l1(0.1))").run(
        x0=np.zeros(12), large_gradient=lambda w, first, length: gradient(w), difference=lambda w, v, first, length: gradient(w) - gradient(v))
    np.testing.assert_allclose(got["x"], want, atol=1e-9)
    some = tw.solver("vr_cyclic_bcd(lr=0.1, p=0.2, max_iter=3000, regularizer=l1(0.1))").run(
        x0=np.zeros(12), large_gradient=lambda w, first, length: gradient(w), difference=lambda w, v, first, length: gradient(w) - gradient(v))
    np.testing.assert_allclose(some["x"], want, atol=1e-8)
    assert 400 < some["large"] < 800


def test_moreau_gradient_of_a_quadratic() -> None:
    """The envelope of x'Hx/2 has the gradient (I + rho H)^-1 H x."""
    rng = RNG(5)
    A = rng.standard_normal((6, 6))
    H, x = A @ A.T / 6, rng.standard_normal(6)
    got = tw.solver("moreau_grad(rho=0.7, lr=0.2, max_iter=2000, tail=1)").run(x=x, gradient=lambda p: H @ p)
    np.testing.assert_allclose(got["envelope_gradient"], np.linalg.solve(np.eye(6) + 0.7 * H, H @ x), rtol=1e-8)
    sparse = tw.solver("moreau_grad(l1=0.5)").run(x=x, gradient=lambda p: H @ p)["move"]
    assert 0 < np.count_nonzero(sparse) < 6
    with pytest.raises(tw.ShapeError, match="tiles"):
        tw.solver("moreau_grad(l1=0.5, group=2)").run(x=x, gradient=lambda p: H @ p)


def test_riemannian_cg_finds_the_smallest_eigenvectors() -> None:
    rng = RNG(6)
    A = rng.standard_normal((8, 8))
    A, N = A + A.T, np.diag([3.0, 2.0, 1.0])
    brockett = lambda x: (float(np.trace(x.T @ A @ x @ N)), 2 * A @ x @ N)  # noqa: E731
    got = tw.solver("riemannian_cg(stiefel, max_iter=3000, tol=1e-7)").run(x0=np.linalg.qr(rng.standard_normal((8, 3)))[0], value_gradient=brockett)
    values, vectors = np.linalg.eigh(A)
    assert got.outcome == "converged"
    np.testing.assert_allclose(np.abs(np.sum(got["x"] * vectors[:, :3], axis=0)), 1, atol=1e-8)
    sphere = tw.solver("riemannian_cg(sphere, max_iter=2000, tol=1e-8)").run(
        x0=np.eye(8)[0], value_gradient=lambda x: (float(x @ A @ x), 2 * A @ x))
    assert sphere["x"] @ A @ sphere["x"] == pytest.approx(values[0], abs=1e-10)
    with pytest.raises(tw.UnsupportedError, match="manifold"):
        tw.solver("riemannian_cg(box(0, 1))")


def test_gods_on_frames() -> None:
    """Normal data between two frames: found by conjugate gradients on one frame with the other held."""
    rng = RNG(7)
    x = rng.standard_normal((40, 5)) + 3 * np.eye(5)[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w2, b = np.linalg.qr(rng.standard_normal((5, 2)))[0].T.copy(), np.zeros(2)
    loss = tw.objective("gods_loss(eta=0.1, weight=0.001)")

    def value_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, g = loss.value_and_grad(x=x, w1=w, b1=b, w2=w2, b2=b)
        return value, g["w1"]

    start = np.linalg.qr(rng.standard_normal((5, 2)))[0].T.copy()
    got = tw.solver("riemannian_cg(stiefel, max_iter=60)").run(x0=start, value_gradient=value_gradient)["x"]
    np.testing.assert_allclose(got @ got.T, np.eye(2), atol=1e-12)
    assert value_gradient(got)[0] < value_gradient(start)[0]


def test_net_trim_recovers_a_sparse_unit() -> None:
    rng = RNG(8)
    X, w = rng.standard_normal((12, 200)), np.zeros(12)
    w[[2, 5, 9]] = [1.0, -2.0, 0.7]
    y = np.maximum(X.T @ w, 0)
    got = tw.solver("net_trim(eps_ratio=0.01, max_iter=20000, tol=1e-8)").run(x=X, y=y)
    assert got.outcome == "converged"
    np.testing.assert_array_equal(got["w"] != 0, w != 0)
    out, on = X.T @ got["w"], y > 0
    assert np.linalg.norm(out[on] - y[on]) <= 0.01 * np.linalg.norm(y) * (1 + 1e-4) and out[~on].max() <= 1e-4
    assert np.abs(got["w"]).sum() <= np.abs(w).sum()


def test_sparse_coding_is_optimal_and_learns() -> None:
    rng = RNG(9)
    B = rng.standard_normal((6, 9))
    given = {"y": rng.standard_normal((2, 6)), "dictionary": B / np.linalg.norm(B, axis=0), "encoder": rng.standard_normal((9, 6)),
             "bias": rng.standard_normal(9), "gain": rng.uniform(0.5, 1.5, 9)}
    text = "sparse_coding_psd(lam=0.3, alpha=0.5, max_iter=4000, lr=0.001)"
    got = tw.solver(text).run(**given)
    z, F = got["z"], given["gain"] * np.tanh(given["y"] @ given["encoder"].T + given["bias"])
    slope = (z @ given["dictionary"].T - given["y"]) @ given["dictionary"] + 0.5 * (z - F)
    np.testing.assert_allclose(slope[z != 0], -0.3 * np.sign(z[z != 0]), atol=1e-7)
    assert np.all(np.abs(slope[z == 0]) <= 0.3 + 1e-7)
    np.testing.assert_allclose(np.linalg.norm(got["new_dictionary"], axis=0), 1, rtol=1e-13)
    # the energy at the optimal codes has the gradient that the step took (envelope theorem)
    for name in ("encoder", "bias", "gain"):
        d, h = rng.standard_normal(given[name].shape), 1e-5
        up, down = (tw.solver(text).run(**{**given, name: given[name] + t * h * d})["value"] for t in (1, -1))
        assert (up - down) / (2 * h) == pytest.approx(np.sum((given[name] - got[f"new_{name}"]) / 0.001 * d), rel=1e-5, abs=1e-7)


def test_nmf_never_rises() -> None:
    rng = RNG(10)
    X = rng.uniform(size=(8, 3)) @ rng.uniform(size=(3, 12))
    X[2] += 5 * rng.uniform(size=12)  # a channel that fits badly
    m, a, last = rng.uniform(0.1, 1, (8, 3)), rng.uniform(0.1, 1, (3, 12)), np.inf
    for _ in range(60):
        got = tw.solver("nmf_robust(lam=0.05, p=0.7, max_iter=1)").run(x=X, m0=m, a0=a)
        m, a = got["factor"], got["coefficients"]
        assert got["value"] <= last * (1 + 1e-12) and m.min() >= 0 and a.min() >= 0
        last = got["value"]
    with pytest.raises(tw.RangeError, match="negative"):
        tw.solver("nmf_robust").run(x=X, m0=-m, a0=a)


def test_dca_denoises_with_a_capped_penalty() -> None:
    b = np.array([3.0, 1.2, 0.4, -2.0, -0.1])
    soft = lambda v: np.sign(v) * np.maximum(np.abs(v) - 1, 0)  # noqa: E731
    value = lambda x: float(np.sum((x - b) ** 2) / 2 + np.sum(np.minimum(np.abs(x), 1)))  # noqa: E731
    got = tw.solver("dca").run(x0=b.copy(), value_subgradient=lambda x: (value(x), np.sign(x) * (np.abs(x) > 1)), argmin=lambda y: soft(b + y))
    assert got.outcome == "converged" and value(got["x"]) <= value(b)
    assert got["x"][[0, 3]].tolist() == [3.0, -2.0] and got["x"][[2, 4]].tolist() == [0.0, 0.0]


def test_class_ot_beside_a_linear_program() -> None:
    """lam = 0 is plain transport; no feasible point nearby is better; rows of a class fuse as lam grows."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = RNG(11)
    C, a, b = rng.uniform(size=(4, 5)), np.full(4, 0.25), np.full(5, 0.2)
    rows = np.vstack([np.kron(np.eye(4), np.ones(5)), np.kron(np.ones(4), np.eye(5))])
    least = optimize.linprog(C.ravel(), A_eq=rows, b_eq=np.concatenate([a, b])).fun
    plain = tw.solver("class_ot(lam=0, max_iter=20000, tol=1e-8)").run(cost=C, a=a, b=b)
    assert plain.outcome == "converged" and plain["value"] == pytest.approx(least, abs=1e-6)
    labels = np.array([0, 0, 1, 1])
    got = tw.solver("class_ot(lam=0.05, max_iter=5000, tol=1e-8)").run(cost=C, a=a, b=b, row_labels=labels)
    Q = got["plan"]
    np.testing.assert_allclose(Q.sum(axis=0), b, atol=1e-12)
    np.testing.assert_allclose(Q.sum(axis=1), a, atol=1e-12)
    value = lambda P: np.sum(C * P) + 0.05 * (np.linalg.norm(P[0] - P[1]) + np.linalg.norm(P[2] - P[3]))  # noqa: E731
    assert got["value"] == pytest.approx(value(Q), rel=1e-12)
    for _ in range(60):
        other = optimize.linprog(rng.standard_normal(20), A_eq=rows, b_eq=np.concatenate([a, b])).x.reshape(4, 5)
        for t in (1e-3, 0.1, 1.0):
            assert value(Q + t * (other - Q)) >= got["value"] - 1e-6
    fused = tw.solver("class_ot(lam=2, max_iter=5000, tol=1e-8)").run(cost=C, a=a, b=b, row_labels=labels)["plan"]
    assert np.max(np.abs(fused[0] - fused[1])) < 1e-6 and np.max(np.abs(fused[2] - fused[3])) < 1e-6
