"""Weights of samples, classes and tasks; similarities, symmetries, privacy; sharpness and barriers: cards and peers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import thalweg as tw
from reference.schedules_feedback import TimestepCurriculum


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- weights of classes and tasks


def test_class_weights() -> None:
    w = tw.weighting("effective_number_weights(beta=0.999)")(counts=np.array([1000.0, 10.0, 100.0]))
    assert w.sum() == pytest.approx(3) and w[1] > w[2] > w[0]
    assert tw.weighting("effective_number_weights(beta=0)")(counts=np.array([7.0, 0.0, 9.0])).tolist() == [1, 0, 1]
    drw, counts = tw.weighting("drw_weights(beta=0.999, defer_epoch=5)"), np.array([1000.0, 10.0, 100.0])
    assert drw(counts=counts, epoch=np.array(4)).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(drw(counts=counts, epoch=np.array(5)), w)
    with pytest.raises(tw.RangeError, match="`counts` must be at least 0, got -1 at element 0"):
        drw(counts=np.array([-1.0]), epoch=np.array(0))


def test_famo_is_torchjds() -> None:
    torch, scalarization = pytest.importorskip("torch"), pytest.importorskip("torchjd.scalarization")
    r, theirs = rng(1), scalarization.FAMO(3)
    mine, after = tw.weighting("famo"), None
    for _ in range(6):
        losses = r.uniform(0.5, 2, 3)
        x = torch.tensor(losses, requires_grad=True)
        value = theirs(x)
        want = torch.autograd.grad(value, x)[0].numpy()
        got = mine(losses=losses, **({} if after is None else {"after": after}))
        np.testing.assert_allclose(got, want, rtol=2e-6)  # its logits are float32
        after = losses * r.uniform(0.6, 1.1, 3)
        theirs.update(torch.tensor(after))
    with pytest.raises(tw.RangeError, match="`losses` must be above its lower bound"):
        mine(losses=np.array([1.0, -1.0, 1.0]))


def test_gradnorm_makes_gradients_equally_long() -> None:
    """Losses that fall at one rate: the weighted norms approach one another."""
    mine, norms = tw.weighting("gradnorm(lr=0.01)"), np.array([1.0, 3.0, 0.5])
    for k in range(600):
        w = mine(losses=0.99**k * np.array([1.0, 2.0, 5.0]), norms=norms)
        assert w.sum() == pytest.approx(3)
        if k == 0:
            assert w.tolist() == [1, 1, 1]
    assert np.ptp(w * norms) < 0.2 < 2 < np.ptp(norms)
    with pytest.raises(tw.RangeError, match="rate of task"):
        mine(losses=np.array([1.0, -1.0, 0.0]), norms=norms)


def test_responsibilities() -> None:
    r = rng(2)
    losses, shares = r.standard_normal((5, 3)), r.standard_normal(3)
    mine = tw.weighting("mixture_responsibilities")
    value, g = mine.value_and_grad(negative_elbo=losses, log_weights=shares)
    a = np.exp(shares) / np.exp(shares).sum()
    w = a * np.exp(-losses)
    w /= w.sum(1, keepdims=True)
    np.testing.assert_allclose(g["weights"], w, rtol=1e-12)
    np.testing.assert_allclose(g["negative_elbo"], w / 5, rtol=1e-12)
    assert value == pytest.approx(np.mean(np.sum(w * (losses - np.log(a)), 1)), rel=1e-12)
    assert mine(negative_elbo=np.array([[0.0, 1e6]]))[0, 1] == pytest.approx(math.exp(-25), rel=1e-9)
    assert mine(negative_elbo=losses[:, :1]).tolist() == [[1.0]] * 5


def test_hybrid_truth_table() -> None:
    mine = tw.weighting("hybrid_post_training(gate=1, sft_coef=0.3)")
    _, g = mine.value_and_grad(rewards=np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]))
    np.testing.assert_array_equal(g["weights"], [[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(g["demonstration"], [0.3, 0.3, 0])
    with pytest.raises(tw.RangeError, match="at most the 1 rollouts, got 2"):
        tw.weighting("hybrid_post_training(gate=2)")(rewards=np.ones(1))


# ---- which samples


def test_windows_of_scores() -> None:
    s = np.array([5.0, 1, 4, 2, 3, 9, 8, 7, 6, 0])
    kept = lambda text: np.nonzero(tw.weighting(f"keep_by_score({text})")(scores=s))[0].tolist()  # noqa: E731
    assert kept("keep=0.3") == [5, 6, 7] and kept("keep=0.3, offset=0.2") == [0, 7, 8] and kept("keep=1, offset=0.9") == [9]


def test_infobatch_keeps_the_sum() -> None:
    r, n = rng(3), 1000
    mine = tw.weighting("infobatch(num_epochs=8, delta=0.5, seed=4)")
    assert (mine(losses=np.full(n, 3.0)) == 1).all()
    for epoch in range(2, 9):
        w = mine(losses=np.where(np.arange(n) % 2, 1.0, 2.0) + r.random(n))
        if epoch > 4:
            assert (w == 1).all()
        else:
            assert abs(w.sum() - n) < 2 and set(w) == {0, 1, 2} and (w[::2][w[::2] != 1]).size < 100
    left_out = tw.weighting("infobatch(num_epochs=9)")
    left_out(losses=np.full(4, 3.0))
    w = left_out(losses=np.array([1.0, 1.0, 5.0, 5.0]))
    gone = w == 0
    assert gone.sum() == 1
    left_out(losses=np.where(gone, np.nan, 1.0))  # what was left out does not count
    with pytest.raises(tw.RangeError, match="`losses` must be finite"):
        left_out(losses=np.full(4, np.nan))


def test_seta_slides_its_window() -> None:
    mine, n = tw.weighting("seta(num_epochs=6, delta=1, num_groups=4, window_scale=0.5, prune_ratio=0)"), 40
    assert mine(losses=np.full(n, 3.0)).all()  # the first window is everything
    seen = np.arange(n) // 10 + 0.0
    groups = [sorted(set(seen[mine(losses=seen) > 0])) for _ in range(5)]
    assert groups == [[1, 2], [2, 3], [0, 1], [1, 2], [2, 3]]
    assert tw.weighting("seta(num_epochs=6, prune_ratio=0.5)")(losses=np.full(1, 3.0)).sum() == 1


def test_slow_clusters_are_repeated() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    r = rng(5)
    y = np.repeat([3, 8], 40)
    slow = r.random(80) < 0.3
    outputs = r.standard_normal((80, 5)) * 0.3 + np.where(slow, 2.0, -2.0)[:, None] * np.where(y == 3, 1, -1)[:, None]
    w = tw.weighting("useful_upsample(times=3)")(outputs=outputs, losses=np.where(slow, 2.0, 0.3), y=y)
    np.testing.assert_array_equal(w, np.where(slow, 3, 1))
    # against k-means with the same start, on data without clusters
    x = r.standard_normal((60, 3))
    first = x[np.argmax(np.sum((x - x.mean(0)) ** 2, 1))]
    start = np.stack([first, x[np.argmax(np.sum((x - first) ** 2, 1))]])
    labels = cluster.KMeans(2, init=start, n_init=1, tol=0, algorithm="lloyd").fit(x).labels_
    w = tw.weighting("useful_upsample")(outputs=x, losses=(labels == 1).astype(float), y=np.zeros(60, int))
    np.testing.assert_array_equal(w, 1 + labels)


def test_greedy_facility_location() -> None:
    r = rng(6)
    p, y, k = r.dirichlet(np.ones(3), 9), np.zeros(9, int), 3
    w = tw.weighting(f"coreset_augmentation(k_per_class={k})")(p=p, y=y)
    d = np.linalg.norm(p[:, None] - p, axis=2)
    s = d.max() - d
    worth = lambda a: s[:, list(a)].max(1).sum()  # noqa: E731
    best = max(worth(a) for a in itertools.combinations(range(9), k))
    assert worth(np.nonzero(w)[0]) >= (1 - 1 / math.e) * best and w.sum() == pytest.approx(k)
    # each counts the samples that it is nearest to
    chosen = np.nonzero(w)[0]
    counts = np.bincount(np.argmax(s[:, chosen], 1), minlength=k)
    np.testing.assert_allclose(w[chosen], counts / counts.mean())


def test_timesteps_from_easy_to_hard() -> None:
    for setting in TimestepCurriculum.settings:
        text = ", ".join(f"{k}={v}" for k, v in setting.items())
        mine, ref, r = tw.schedule(f"timestep_curriculum({text})"), TimestepCurriculum(**setting), rng(7)
        for _ in range(900):
            loss = float(r.choice([r.random(), np.nan], p=[0.9, 0.1]))
            mine.observe("loss", loss)
            ref.observe(loss)
            assert mine(0) == pytest.approx(ref.value(0), abs=1e-12)
            other = tw.schedule(f"timestep_curriculum({text})")
            other.load_state_dict(mine.state_dict())
            mine = other
        assert ref.stage > 1
    with pytest.raises(tw.RangeError, match="4 increasing numbers, got 2"):
        tw.schedule("timestep_curriculum(num_clusters=3, boundaries=[0, 1])")


# ---- similarities and kernels


def test_cka_sees_no_rotation_scale_or_shift() -> None:
    r = rng(8)
    x, y = r.standard_normal((30, 5)), r.standard_normal((30, 4))
    q, cka = np.linalg.qr(r.standard_normal((5, 5)))[0], tw.diagnostic("linear_cka")
    assert cka(x=3 * x @ q + 7, y=y) == pytest.approx(cka(x=x, y=y), rel=1e-12) and cka(x=x, y=x) == pytest.approx(1, rel=1e-12)
    wide = r.standard_normal((30, 90))  # the other way to the same number
    assert tw.diagnostic("kernel_alignment(center=true)")(kernel=x @ x.T, y=y[:, 0]) == pytest.approx(cka(x=x, y=y[:, :1]), rel=1e-12)
    assert cka(x=wide @ np.eye(90)[:, :5], y=y) == pytest.approx(cka(x=np.hstack([wide[:, :5], np.zeros((30, 90))]), y=y), rel=1e-10)


def test_linearised_training_follows_the_kernel() -> None:
    j = rng(9).standard_normal((6, 1, 20))
    k = tw.diagnostic("ntk_gram")(j=j)["kernel"]
    assert np.trace(k) == pytest.approx(np.sum(j**2), rel=1e-13)
    r0 = rng(10).standard_normal(6)
    r, steps = r0.copy(), 200000
    for _ in range(steps):
        r -= 2.0 / steps * k @ r / 6
    np.testing.assert_allclose(tw.diagnostic("ntk_dynamics(t=2)")(kernel=k, residual=r0)["after"], r, atol=1e-3 * np.abs(r0).max())


def test_infinite_width_against_a_wide_layer() -> None:
    r, width = rng(11), 200000
    x = r.standard_normal((3, 4))
    w = r.standard_normal((width, 4)) * math.sqrt(2 / 4)
    h = np.maximum(x @ w.T, 0)
    mine = tw.diagnostic("ntk_relu")(x=x)
    np.testing.assert_allclose(2 * h @ h.T / width, mine["nngp"], rtol=0.02)
    s0, slopes = 2 * x @ x.T / 4, (x @ w.T > 0).astype(float)
    np.testing.assert_allclose(mine["nngp"] + s0 * (2 * slopes @ slopes.T / width), mine["ntk"], rtol=0.02)
    deep = tw.diagnostic("ntk_relu(depth=4)")(x=x)
    np.testing.assert_allclose(np.diag(deep["nngp"]), np.diag(s0), rtol=1e-13)
    np.testing.assert_allclose(np.diag(deep["ntk"]), 5 * np.diag(s0), rtol=1e-13)


def test_representers_sum_to_the_prediction() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    r = rng(12)
    x, y, test, lam = r.standard_normal((30, 6)), r.standard_normal(30), r.standard_normal(6), 0.1
    ridge = np.linalg.solve(x.T @ x / 30 + lam * np.eye(6), x.T @ y / 30)
    lasso = linear.Lasso(alpha=lam, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y).coef_
    for kind, theta, limit in (("l2", ridge, 1e-12), ("l1", lasso, 1e-6)):
        out = tw.diagnostic(f"representer_points(lam={lam}, kind={kind})")(x=x, slopes=x @ theta - y, theta=theta, test=test)
        assert abs(out["residual"]) < limit and out["values"].sum() == pytest.approx(theta @ test, abs=limit)
    # nuclear norm: proximal gradients to the end
    xs, ys, theta = r.standard_normal((40, 4, 3)), r.standard_normal(40), np.zeros((4, 3))
    for _ in range(20000):
        g = np.tensordot(np.tensordot(xs, theta, 2) - ys, xs, 1) / 40
        u, s, vt = np.linalg.svd(theta - 0.1 * g, full_matrices=False)
        theta = u * np.maximum(s - 0.1 * 0.05, 0) @ vt
    out = tw.diagnostic("representer_points(lam=0.05, kind=nuclear)")(
        x=xs, slopes=np.tensordot(xs, theta, 2) - ys, theta=theta, test=r.standard_normal((4, 3)))
    assert np.any(theta) and abs(out["residual"]) < 1e-9
    with pytest.raises(tw.ShapeError, match="needs matrices"):
        tw.diagnostic("representer_points(lam=1, kind=nuclear)")(x=x, slopes=y, theta=ridge, test=test)


def test_magnitude_of_a_line() -> None:
    t = np.sort(rng(13).uniform(0, 5, 12))
    d = np.abs(t[:, None] - t)
    gaps = np.diff(t)
    whole = tw.diagnostic("weighting_vector")(distances=d)["weights"]
    assert whole.sum() == pytest.approx(1 + np.sum(np.tanh(gaps / 2)), rel=1e-9)
    even = np.arange(9.0)  # the two nearest are the neighbours on either side
    local = tw.diagnostic("weighting_vector(k=2)")(distances=np.abs(even[:, None] - even))["weights"]
    np.testing.assert_allclose(local[1:-1], tw.diagnostic("weighting_vector")(distances=np.abs(even[:, None] - even))["weights"][1:-1], rtol=1e-12)
    with pytest.raises(tw.Error, match="singular"):
        tw.diagnostic("weighting_vector")(distances=np.zeros((2, 2)))


# ---- symmetries, saliency, truncation


def test_residuals_of_symmetries_vanish() -> None:
    torch = pytest.importorskip("torch")
    r = rng(14)
    w1, w2 = (torch.tensor(r.standard_normal(s), requires_grad=True) for s in ((5, 4), (3, 5)))
    x, y = torch.tensor(r.standard_normal((20, 4))), torch.tensor(r.integers(0, 3, 20))
    loss = torch.nn.functional.cross_entropy(torch.relu(x @ w1.T) @ w2.T, y)
    g1, g2 = torch.autograd.grad(loss, (w1, w2))
    inner = tw.diagnostic("noether_charges")(w=w1.detach().numpy(), g=g1.numpy(), w2=w2.detach().numpy(), g2=g2.numpy())
    np.testing.assert_allclose(inner["rescale_residual"], 0, atol=1e-15)
    head = tw.diagnostic("noether_charges")(w=w2.detach().numpy(), g=g2.numpy())
    np.testing.assert_allclose(head["translation_residual"], 0, atol=1e-15)
    assert np.isnan(head["rescale"]).all()
    # a function of the direction alone
    w = torch.tensor(r.standard_normal(6), requires_grad=True)
    g, = torch.autograd.grad(torch.sum(torch.sin(3 * w / w.norm())), w)
    w, g = w.detach().numpy(), g.numpy()
    assert tw.diagnostic("noether_charges")(w=w[None], g=g[None])["scale_residual"] == pytest.approx(0, abs=1e-14)
    out = tw.diagnostic("scale_norm_dynamics(lr=0.3, weight_decay=0.1)")(w=w, g=g)
    assert out["next"] == pytest.approx(np.sum(((1 - 0.03) * w - 0.3 * g) ** 2), rel=1e-13)
    unit = math.sqrt(out["equilibrium"]) / np.linalg.norm(w)
    stays = tw.diagnostic("scale_norm_dynamics(lr=0.3, weight_decay=0.1)")(w=unit * w, g=g / unit)  # gradients are of degree -1
    assert stays["next"] == pytest.approx(out["equilibrium"], rel=1e-12)


def test_normgrad_is_the_norm_of_an_outer_product() -> None:
    r = rng(15)
    x, g = r.standard_normal((2, 3, 4, 5))
    outer = np.linalg.norm(np.einsum("ahw,bhw->hwab", g, x), axis=(2, 3))
    np.testing.assert_allclose(tw.diagnostic("normgrad")(x=x, g=g)["saliency"], outer, rtol=1e-13)
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
    unfolded = np.linalg.norm(np.einsum("ahw,bhwij->hwabij", g, patches).reshape(4, 5, -1), axis=2)
    np.testing.assert_allclose(tw.diagnostic("normgrad(virtual=conv)")(x=x, g=g)["saliency"], unfolded, rtol=1e-13)
    with pytest.raises(tw.RangeError, match="must be odd"):
        tw.diagnostic("normgrad(kernel=4)")


def test_a_folded_head_sees_projected_features() -> None:
    r = rng(16)
    h, w, b, new = r.standard_normal((50, 6)) * [5, 4, 1, 1, 1, 0.5], r.standard_normal((3, 6)), r.standard_normal(3), r.standard_normal((7, 6))
    out = tw.diagnostic("spectral_truncation(d=2)")(h=h, w=w, b=b)
    np.testing.assert_allclose(h @ out["weight"].T + out["bias"], out["projected"] @ w.T + b, atol=1e-12)
    assert np.linalg.matrix_rank(out["weight"]) == 2 and out["kept"] == 2
    whole = tw.diagnostic("spectral_truncation(d=6)")(h=h, w=w, b=b)
    np.testing.assert_allclose(new @ whole["weight"].T + whole["bias"], new @ w.T + b, atol=1e-13)


def test_blur_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = rng(17).standard_normal((2, 20, 30))
    _, g = tw.objective("coarse_to_fine_blur(sigma=1.5, size=25)").value_and_grad(x=x)
    want = np.stack([ndimage.gaussian_filter(v, 1.5, mode="nearest", radius=12) for v in x])
    np.testing.assert_allclose(g["y"], want, atol=1e-6)  # scipy normalises: the sum is 1 up to 1e-8
    _, g = tw.objective("coarse_to_fine_blur(sigma=0)").value_and_grad(x=x)
    np.testing.assert_array_equal(g["y"], x)


# ---- privacy and risk


def test_gaussian_noise_is_as_private_as_it_says() -> None:
    stats = pytest.importorskip("scipy.stats")
    for eps, delta in ((0.5, 1e-5), (1.0, 1e-8), (12.0, 1e-2)):
        sigma = tw.diagnostic(f"gaussian_mechanism(epsilon={eps}, delta={delta})")(sensitivity=np.array(2.0))
        a, b = 2.0 / (2 * sigma), eps * sigma / 2.0
        assert stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b) == pytest.approx(delta, rel=1e-6)
        if eps <= 1:
            assert sigma < tw.diagnostic(f"gaussian_mechanism(epsilon={eps}, delta={delta}, mode=classic)")(sensitivity=np.array(2.0))
    with pytest.raises(tw.RangeError, match="of at most 1, got 2"):
        tw.diagnostic("gaussian_mechanism(epsilon=2, delta=0.1, mode=classic)")
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(tw.RangeError, match="`sensitivity`"):
            tw.diagnostic("gaussian_mechanism(epsilon=1, delta=0.1)")(sensitivity=np.array(bad))


def test_squared_gradients_over_draws() -> None:
    mine, r, seen = tw.diagnostic("pac_bayes_grad_norm"), rng(18), []
    for n in (3, 5, 1):
        g = r.standard_normal((n, 4))
        seen.append(np.sum(g**2, 1))
        assert mine(g=g) == pytest.approx(np.concatenate(seen).mean(), rel=1e-13)


def test_no_gradient_is_longer_than_its_constant() -> None:
    r = rng(19)
    x = r.standard_normal((4, 3))
    for bias in (False, True):
        constants = tw.diagnostic(f"dp_clip_norm_bound(bias={str(bias).lower()})")(x=x)["constants"]
        z = 40 * r.standard_normal((20000, 5))  # confident and wrong is longest
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        longest = np.linalg.norm(p - np.eye(5)[r.integers(0, 5, 20000)], axis=1).max()
        inputs = np.sqrt(np.sum(x * x, 1) + bias)
        assert np.all(longest * inputs <= constants * (1 + 1e-12)) and longest * inputs[0] > 0.999 * constants[0]


def test_shrunk_binomials_are_better() -> None:
    r = rng(20)
    theta, n = r.beta(8, 20, 400), r.integers(2, 15, 400).astype(float)
    raw, shrunk = [], {"trials": [], "common": []}
    for _ in range(20):
        x = r.binomial(n.astype(int), theta).astype(float)
        raw.append(np.mean((x / n - theta) ** 2))
        for rule, errors in shrunk.items():
            out = tw.diagnostic(f"compound_binomial(rule={rule})")(x=x, n=n)
            errors.append((np.mean((out["estimate"] - theta) ** 2), out["risk"]))
    for errors in shrunk.values():
        loss, risk = np.mean(errors, 0)
        assert loss < 0.5 * np.mean(raw) and risk == pytest.approx(loss, abs=0.1 * np.mean(raw))
    with pytest.raises(tw.RangeError, match="no item of at least 2"):
        tw.diagnostic("compound_binomial")(x=np.zeros(3), n=np.ones(3))


# ---- sharpness


def test_sharpness_of_a_quadratic() -> None:
    r = rng(21)
    q = np.linalg.qr(r.standard_normal((4, 4)))[0]
    h = q @ np.diag([5.0, 3.0, 1.0, -2.0]) @ q.T
    both = lambda p: (0.5 * p @ h @ p, h @ p)  # noqa: E731
    functions = {"value_gradient": both, "value": lambda p: both(p)[0]}
    worst = tw.solver("sharpness_at_radius(rho=0.3, steps=300, step_size=0.05)").run(w=np.zeros(4), start=0.01 * np.ones(4), **functions)
    assert worst.sharpness == pytest.approx(0.3**2 * 5 / 2, rel=1e-5)
    assert tw.solver("sharpness_at_radius").run(w=np.zeros(4), **functions).sharpness == 0
    w = r.standard_normal(4)
    g, u = h @ w, h @ w / np.linalg.norm(h @ w)
    sam = tw.solver("sam_sharpness(rho=0.2)").run(w=w, **functions)
    assert sam.sharpness == pytest.approx(0.2 * np.linalg.norm(g) + 0.02 * u @ h @ u, rel=1e-10)
    assert tw.solver("sharpness_at_radius(rho=0.2)").run(w=w, **functions).sharpness == pytest.approx(sam.sharpness, rel=1e-12)
    along = tw.diagnostic("directional_sharpness")(u=7 * q[:, 3], hu=7 * h @ q[:, 3])
    assert along["sharpness"] == pytest.approx(-2)
    top = tw.solver("hessian_max_eig(tol=1e-14, iters=2000)").run(like=np.zeros(4), product=lambda v: h @ v)
    assert top.eigenvalue == pytest.approx(5, rel=1e-9) and top.residual < 1e-5


def test_barrier_of_a_double_well() -> None:
    r = tw.solver("loss_barrier").run(w1=-np.ones(2), w2=np.ones(2), value=lambda p: np.sum((p**2 - 1) ** 2))
    assert r.barrier == pytest.approx(2) and r.position == 0.5
    bowl = tw.solver("loss_barrier").run(w1=-np.ones(2), w2=np.ones(2), value=lambda p: np.sum(p**2))
    assert bowl.barrier == 0


def test_heavy_ball_with_its_numbers() -> None:
    """The error falls by sqrt(momentum) a step; a factor k before it is what 400 steps leave of a double root."""
    h = np.diag(np.linspace(0.5, 20, 12))
    r = tw.solver("lanczos_lr_momentum(steps=12)").run(start=rng(22).standard_normal(12), product=lambda v: h @ v)
    assert r.highest == pytest.approx(20) and r.lowest == pytest.approx(0.5)
    w, last, steps = np.ones(12), np.ones(12), 100
    for _ in range(steps):
        w, last = w - r.lr * h @ w + r.momentum * (w - last), w
    assert np.linalg.norm(w) ** (1 / steps) == pytest.approx(math.sqrt(r.momentum), rel=0.08)


# ---- determinantal draws, projections


def test_draws_have_the_probabilities_of_determinants() -> None:
    """12000 draws of 2 out of 4: frequencies are off by some 0.5/sqrt(12000)."""
    r = rng(23)
    u = np.linalg.qr(r.standard_normal((4, 2)))[0]
    k, solver, counts = u @ u.T, tw.solver("projection_dpp"), {}
    draws = 12000
    for _ in range(draws):
        s = tuple(sorted(int(i) for i in solver.run(u=u, draws=r.random(2)).indices))
        counts[s] = counts.get(s, 0) + 1
    for s in itertools.combinations(range(4), 2):
        assert counts.get(s, 0) / draws == pytest.approx(np.linalg.det(k[np.ix_(s, s)]), abs=0.02)
    inside = [sum(c for s, c in counts.items() if i in s) / draws for i in range(4)]
    np.testing.assert_allclose(inside, np.diag(k), atol=0.02)
    for inputs, message in (({"u": 2 * u, "draws": np.zeros(2)}, "orthonormal"), ({"u": u, "draws": np.array([0.1, 1.0])}, "in \\[0, 1\\)")):
        with pytest.raises(tw.RangeError, match=message):
            solver.run(**inputs)


def test_weighted_least_squares_of_a_draw_recover_the_span() -> None:
    r = rng(24)
    u, a = np.linalg.qr(r.standard_normal((200, 5)))[0], r.standard_normal(5)
    d = tw.solver("projection_dpp").run(u=u, draws=r.random(5))
    rows = u[d.indices.astype(int)]
    root = np.sqrt(d.weights)
    np.testing.assert_allclose(np.linalg.lstsq(rows * root[:, None], (rows @ a) * root, rcond=None)[0], a, atol=1e-9)


def test_mpad_finds_the_axis_of_the_data() -> None:
    r = rng(25)
    x = 0.01 * r.standard_normal((60, 3))
    x[:, 1] += np.linspace(-5, 5, 60)
    d = tw.solver("mpad").run(x=x, start=np.array([[1.0, 0.5, -1.0], [0.3, 1.0, 1.0]]))
    assert abs(d.directions[0, 1]) > 0.99 and abs(d.directions[0] @ d.directions[1]) < 0.35  # orthogonality is soft
    with pytest.raises(tw.RangeError, match="row 0 of `start`"):
        tw.solver("mpad").run(x=x, start=np.zeros((1, 3)))


def test_k_draws_have_the_probabilities_of_determinants() -> None:
    """6000 draws of 2 out of 4, with any kernel."""
    r = rng(26)
    b = r.standard_normal((4, 3))
    kernel, solver, counts, draws = b @ b.T, tw.solver("k_dpp(k=2)"), {}, 6000
    for _ in range(draws):
        s = tuple(sorted(int(i) for i in solver.run(kernel=kernel, draws=r.random(6)).indices))
        counts[s] = counts.get(s, 0) + 1
    pairs = list(itertools.combinations(range(4), 2))
    det = np.array([np.linalg.det(kernel[np.ix_(s, s)]) for s in pairs])
    np.testing.assert_allclose([counts.get(s, 0) / draws for s in pairs], det / det.sum(), atol=0.03)
    with pytest.raises(tw.RangeError, match="rank 3 of the kernel, got 4"):
        tw.solver("k_dpp(k=4)").run(kernel=kernel, draws=np.zeros(8))
    with pytest.raises(tw.ShapeError, match="N \\+ k = 6 numbers, got 4"):
        solver.run(kernel=kernel, draws=np.zeros(4))
    greedy = tw.solver("dpp_map(k=4)").run(kernel=kernel)
    assert greedy.chosen == 3 and greedy.indices[0] == np.argmax(np.diag(kernel)) and greedy.indices[3] == -1
    chosen = greedy.indices[:3].astype(int)
    assert np.prod(greedy.gains[:3]) == pytest.approx(np.linalg.det(kernel[np.ix_(chosen, chosen)]), rel=1e-9)
