"""Scores of samples, diagnostics of arrays, and layers of stochastic units: what their cards promise, and their peers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.sample_scores import ForgettingEvents, GradientNoiseScale
from reference.stochastic_neurons import StochasticNeuronREINFORCE

sigma = lambda u: 1 / (1 + np.exp(-u))  # noqa: E731


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- scores of samples


def test_grand_of_a_last_layer_is_the_explicit_gradient() -> None:
    torch = pytest.importorskip("torch")
    h, y = torch.tensor(rng().standard_normal((6, 4))), torch.tensor([0, 2, 1, 1, 0, 2])
    layer = torch.nn.Linear(4, 3).double()
    z = layer(h)
    gradients = []
    for i in range(6):
        g = torch.autograd.grad(torch.nn.functional.cross_entropy(z[i:i + 1], y[i:i + 1]), list(layer.parameters()), retain_graph=True)
        gradients.append(np.concatenate([v.numpy().ravel() for v in g]))
    full = tw.diagnostic("grand")(g=np.stack(gradients))["scores"]
    inputs = {"z": z.detach().numpy(), "y": y.numpy()}
    np.testing.assert_allclose(tw.diagnostic("grand_last_layer")(h=h.numpy(), **inputs)["scores"], full, rtol=1e-12)
    # the part of the bias alone
    np.testing.assert_allclose(tw.diagnostic("el2n")(**inputs)["scores"], np.linalg.norm(np.stack(gradients)[:, -3:], axis=1), rtol=1e-12)
    with pytest.raises(tw.RangeError, match="labels from 0 to 2"):
        tw.diagnostic("el2n")(z=np.zeros((1, 3)), y=np.array([3]))
    spoilt = np.array([[1.0, np.nan], [0.0, 0.0]])
    assert np.isnan(tw.diagnostic("el2n")(z=spoilt, y=np.zeros(2, int))["scores"]).tolist() == [True, False]


def test_forgetting_is_counted_from_visit_to_visit() -> None:
    r, mine, ref = rng(1), tw.diagnostic("forgetting_events"), ForgettingEvents()
    ref.start(30)
    for k in range(12):
        visit = r.integers(-1, 2, 30)
        visit[0] = 0
        other = tw.diagnostic("forgetting_events")
        other.load_state_dict(mine.state_dict())
        mine = other
        got, want = mine(correct=visit), ref.visit(visit)
        np.testing.assert_array_equal(got["events"], want["events"])
        np.testing.assert_array_equal(got["learned"], want["learned"])
        assert got["events"][0] == k + 1 and got["learned"][0] == 0
    with pytest.raises(tw.RangeError, match="-1, 0 or 1, got 2 at element 1"):
        mine(correct=np.array([0, 2] + [0] * 28))
    truth = tw.diagnostic("forgetting_events")
    for visit in ([1, 0], [0, 1], [-1, 1], [1, 0], [0, 1]):
        last = truth(correct=np.array(visit))
    assert last["events"].tolist() == [2, 1]


def test_opposing_groups_oppose() -> None:
    """Two groups on either side of one direction: a step along it lowers one and raises the other."""
    g = np.concatenate([np.tile([1.0, 0.0], (3, 1)), np.tile([-1.0, 0.2], (3, 1)), np.zeros((9, 2))])
    before, step = np.full(15, 2.0), np.array([-0.1, 0.0])
    r = tw.diagnostic("opposing_signals(k=3)")(before=before, after=before + g @ step, g=g)
    assert np.nonzero(r["falling"])[0].tolist() == [0, 1, 2] and np.nonzero(r["rising"])[0].tolist() == [3, 4, 5]
    assert r["cosine"] < -0.97 and r["overlap"] == 0
    assert tw.diagnostic("opposing_signals(k=10)")(before=before, after=before + g @ step)["overlap"] == 7  # those that stay fill up both
    with pytest.raises(tw.RangeError, match="`after` must be finite, got nan at element 1"):
        tw.diagnostic("opposing_signals")(before=np.zeros(2), after=np.array([0.0, np.nan]))


# ---- agreement of gradients


def test_cosines_of_known_gradients() -> None:
    g = np.array([[3.0, 0.0], [0.0, 4.0], [-1.0, 0.0]])
    r = tw.diagnostic("gradient_cosines")(g=g)
    assert r["cosines"].tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    assert r["similarity"][0, 1] == pytest.approx(24 / 25, rel=1e-15) and r["conflicts"] == pytest.approx(1 / 3)
    assert r["diversity"] == pytest.approx(26 / 20, rel=1e-15)
    assert tw.diagnostic("gradient_cosines")(g=np.ones((5, 3)))["diversity"] == pytest.approx(0.2)
    alone = tw.diagnostic("gradient_cosines")(g=np.zeros((1, 3)))
    assert alone["cosines"].tolist() == [[1]] and alone["conflicts"] == 0 and np.isnan(alone["diversity"])


def test_noise_scales_of_synthetic_gradients() -> None:
    """Gradients G + noise of covariance S: both forms find tr S/|G|^2 = 4; the averages of 4000 passes within a few percent."""
    r, d = rng(2), 40
    true, spread = np.full(d, 1.0), 2.0
    samples = true + spread * r.standard_normal((20000, d))
    alone = tw.diagnostic("noise_scale_per_sample")(g=samples)
    assert alone["noise_scale"] == pytest.approx(spread**2, rel=0.03) and alone["trace"] == pytest.approx(d * spread**2, rel=0.03)
    mine = tw.diagnostic("gradient_noise_scale(b_small=2, b_big=32, decay=0.999)")
    for _ in range(4000):
        batch = true + spread * r.standard_normal((32, d))
        out = mine(small=np.array(np.sum(batch[:2].mean(0) ** 2)), big=np.array(np.sum(batch.mean(0) ** 2)))
    assert out["noise_scale"] == pytest.approx(spread**2, rel=0.1)
    assert tw.diagnostic("noise_scale_per_sample")(g=np.array([[1.0], [-1.0]]))["noise_scale"] == np.inf
    with pytest.raises(tw.ShapeError, match="at least 2"):
        tw.diagnostic("noise_scale_per_sample")(g=np.ones((1, 3)))
    with pytest.raises(tw.RangeError, match="`b_small` must be below `b_big`, got 8 and 8"):
        tw.diagnostic("gradient_noise_scale(b_small=8, b_big=8)")


def test_noise_scale_averages_its_parts() -> None:
    r, ref, decay = rng(3), GradientNoiseScale(b_small=2, b_big=16), 0.9
    mine, parts = tw.diagnostic("gradient_noise_scale(b_small=2, b_big=16, decay=0.9)"), []
    for k in range(6):
        small, big = np.array(r.uniform(1, 3)), np.array(r.uniform(0.5, 1))
        parts.append(ref.parts(small, big))
        w = decay ** np.arange(k, -1, -1.0)
        squared, trace = w @ np.array(parts) / w.sum()
        out = mine(small=small, big=big)
        assert out["squared_norm"] == pytest.approx(squared, rel=1e-12) and out["trace"] == pytest.approx(trace, rel=1e-12)
        assert out["noise_scale"] == (pytest.approx(trace / squared, rel=1e-12) if squared > 0 else np.inf)


def test_subspaces() -> None:
    u = np.eye(5)[:, :2]
    assert tw.diagnostic("gradient_subspace_fraction")(u=u, g=np.array([3.0, 0, 4, 0, 0])) == pytest.approx(9 / 25)
    assert tw.diagnostic("subspace_overlap")(u=u, v=np.eye(5)[:, 1:4]) == pytest.approx(1 / 3)
    q = np.linalg.qr(rng().standard_normal((2, 2)))[0]
    assert tw.diagnostic("subspace_overlap")(u=u, v=u @ q) == pytest.approx(1, rel=1e-14)


# ---- neural collapse


def test_a_simplex_has_collapsed() -> None:
    k, d = 4, 6
    q = np.linalg.qr(rng().standard_normal((d, k)))[0]
    simplex = (np.eye(k) - 1 / k) @ q.T * 3
    y = np.repeat(np.arange(k), 5)
    r = tw.diagnostic("neural_collapse")(h=simplex[y] + 0.7, y=y, w=2 * simplex)
    assert all(r[name] == pytest.approx(0, abs=1e-7) for name in r if name != "nc2_of")
    frame = tw.diagnostic("neural_collapse")(h=2 * q.T[y], y=y)
    assert frame["nc2_of"] == pytest.approx(0, abs=1e-12)
    same = tw.diagnostic("neural_collapse")(h=np.tile([[1.0, 0], [0, 1]], (2, 1)), y=np.array([0, 0, 1, 1]))
    assert same["nc1"] == np.inf and same["nc1_ratio"] == np.inf
    for inputs, kind, message in (
        ({"h": np.ones((3, 2)), "y": np.zeros(3, int)}, tw.ShapeError, "at least 2 classes"),
        ({"h": np.ones((4, 2)), "y": np.array([0, 2, 2, 0])}, tw.RangeError, "class 1 has no sample"),
        ({"h": np.ones((2, 2)), "y": np.array([0, -1])}, tw.Error, "classes"),
        ({"h": np.ones((2, 2)), "y": np.array([0, 2**62])}, tw.RangeError, "labels"),
    ):
        with pytest.raises(kind, match=message):
            tw.diagnostic("neural_collapse")(**inputs)
    spoilt = tw.diagnostic("neural_collapse")(h=np.array([[1.0, np.nan], [0, 1]]), y=np.array([0, 1]))
    assert np.isnan(spoilt["nc1"])


# ---- landscapes and curvature


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights() -> None:
    w, d = rng().standard_normal((2, 4, 3, 2, 2))
    norms = lambda v: np.linalg.norm(v.reshape(4, -1), axis=1)  # noqa: E731
    scaled = tw.diagnostic("landscape_direction")(w=w, d=d)["direction"]
    np.testing.assert_allclose(norms(scaled), norms(w), rtol=1e-9)
    np.testing.assert_allclose(tw.diagnostic("landscape_direction")(w=3 * w, d=d)["direction"], 3 * scaled, rtol=1e-14)
    with pytest.raises(tw.NeedsError, match="needed together"):
        tw.diagnostic("landscape_point")(w=w, d1=d, a=np.array(1.0), d2=d)
    t = np.linspace(-1, 1, 9)[:, None]
    plane = np.hstack([5 * t, t**2 + 0 * t, 0 * t]) @ np.linalg.qr(rng().standard_normal((3, 3)))[0]
    r = tw.diagnostic("landscape_pca")(trajectory=plane)
    np.testing.assert_allclose(r["coordinates"] @ r["directions"], plane - plane[-1], atol=1e-12)
    assert r["explained"].sum() == pytest.approx(1, rel=1e-12)


def test_gradient_descent_diverges_beyond_its_limit() -> None:
    h = np.diag([9.0, 1.0])
    for lr in (0.21, 0.24):
        w = np.ones(2)
        for _ in range(400):
            w = w - lr * h @ w
        r = tw.diagnostic(f"stability_limits(lr={lr})")(lambda_max=np.array(9.0), trace=np.array(10.0))
        assert (np.linalg.norm(w) < 1) == (r["gd"] > 0) and np.isnan(r["noise"])
    with pytest.raises(tw.NeedsError, match="lambda_max"):
        tw.diagnostic("stability_limits(lr=1)")()


def test_batches_of_a_spiked_wigner_matrix() -> None:
    """One sample of each size: eigenvalues fluctuate by some parts in P^(2/3)."""
    r, p = rng(4), 1200
    for lam, batch, s in ((8.0, 20, 0.6), (2.0, 20, 0.6)):
        noise = r.standard_normal((p, p)) * s / np.sqrt(batch)
        noise = (noise + noise.T) / np.sqrt(2)
        spike = np.zeros((p, p))
        spike[0, 0] = lam
        top = np.linalg.eigvalsh(noise + spike)[-1]
        mine = tw.diagnostic(f"batch_hessian_top(dimension={p}, batch_size={batch})")(lam=np.array(lam), sigma=np.array(s))
        assert mine["top"] == pytest.approx(top, rel=0.02)
    far = tw.diagnostic("batch_hessian_top(dimension=100, batch_size=1e12)")(lam=np.array(3.0), sigma=np.array(1.0))
    assert far["top"] == pytest.approx(3, rel=1e-9)
    with pytest.raises(tw.RangeError, match="`sigma` must be at least 0"):
        tw.diagnostic("batch_hessian_top(dimension=1, batch_size=1)")(lam=np.array(1.0), sigma=np.array(-1.0))
    # while the noise rules the step grows as the root of the batch for sgd; where lambda does it stays
    lr = lambda a, b, lam: tw.diagnostic(f"lr_for_batch(lr=1, from={a}, batch_size={b}, dimension=1e4)")(lam=np.array(lam), sigma=np.array(1.0))  # noqa: E731
    assert lr(4, 16, 1e-3) == pytest.approx(2) and lr(1e9, 4e9, 5.0) == pytest.approx(1, rel=1e-5)


def test_densities_have_mass_one_and_the_edges_of_samples() -> None:
    r, n, p, s = rng(5), 3000, 600, 1.5
    values = np.linalg.eigvalsh(np.cov(s * r.standard_normal((n, p)), rowvar=False))
    x = np.linspace(0, 10, 400001)
    mp = tw.diagnostic(f"marchenko_pastur(ratio={p / n}, sigma={s})")(points=x)
    assert np.sum(mp["density"]) * (x[1] - x[0]) == pytest.approx(1, abs=1e-4)
    assert values[0] == pytest.approx(mp["lower"], rel=0.05) and values[-1] == pytest.approx(mp["upper"], rel=0.05)
    found = tw.diagnostic(f"hessian_bulk_outliers(rule=edge, edge={mp['upper'] * 1.05}, num_expected=2)")(
        lam=np.concatenate([values, [9.0, -12.0, 14.0]]))
    assert found["outliers"] == 3 and found["excess"] == 1
    y = np.linspace(-3, 3, 200001)
    assert np.sum(tw.diagnostic("semicircle(sigma=1.2)")(points=y)["density"]) * (y[1] - y[0]) == pytest.approx(1, abs=1e-5)
    assert tw.diagnostic("hessian_bulk_outliers")(lam=np.zeros(4)) == pytest.approx({"outliers": 1, "degeneracy": 1, "excess": np.nan}, nan_ok=True)
    with pytest.raises(tw.RangeError, match="needs an `edge`"):
        tw.diagnostic("hessian_bulk_outliers(rule=edge)")


# ---- masks of tokens


def test_masked_sequences() -> None:
    r = rng(6)
    tokens = r.integers(0, 100, (400, 60))
    targets = np.hstack([tokens[:, 1:], np.full((400, 1), -100)])
    out = tw.diagnostic("masked_input(mask_token=100, ratio_min=0.1, ratio_max=0.5)")(
        tokens=tokens, targets=targets, u=r.random(400), v=r.random((400, 60)))
    assert out["mask"][:, 1:].mean() == pytest.approx(0.3, abs=0.02) and not out["mask"][:, 0].any()
    np.testing.assert_array_equal(out["masked"], np.where(out["mask"] == 1, 100, tokens))
    assert out["clean_weights"].sum() == pytest.approx(1) and out["masked_weights"].sum() == pytest.approx(0.4)
    with pytest.raises(tw.RangeError, match="`ratio_min` must not be above `ratio_max`"):
        tw.diagnostic("masked_input(mask_token=1, ratio_min=0.9)")
    with pytest.raises(tw.RangeError, match="`tokens` holds"):
        tw.diagnostic("masked_input(mask_token=1)")(tokens=np.full((1, 1), 2**60), targets=np.zeros((1, 1), int), u=np.zeros(1), v=np.zeros((1, 1)))


def test_the_masked_loss_is_two_cross_entropies() -> None:
    torch = pytest.importorskip("torch")
    r, vocabulary = rng(7), 11
    tokens = r.integers(0, vocabulary - 1, (5, 8))
    targets = np.hstack([tokens[:, 1:], np.full((5, 1), -100)])
    out = tw.diagnostic("masked_input(mask_token=10)")(tokens=tokens, targets=targets, u=r.random(5), v=r.random((5, 8)))
    table = torch.tensor(r.standard_normal((vocabulary, vocabulary)), requires_grad=True)
    ce = lambda ids, how: torch.nn.functional.cross_entropy(  # noqa: E731
        table[torch.tensor(ids, dtype=torch.long)].reshape(-1, vocabulary), torch.tensor(targets).ravel(), reduction=how)
    want, = torch.autograd.grad(ce(tokens, "mean") + 0.4 * ce(out["masked"], "mean"), table)
    mine = sum(torch.sum(torch.tensor(w).ravel() * ce(ids, "none")) for ids, w in ((tokens, out["clean_weights"]), (out["masked"], out["masked_weights"])))
    np.testing.assert_allclose(torch.autograd.grad(mine, table)[0], want, atol=1e-15)


# ---- stochastic units


def test_straight_through_by_hand() -> None:
    a, u, ones = np.array([-2.0, 0.3, 0.0, 5.0]), np.array([0.05, 0.9, 0.5, 0.999]), np.ones(4)
    for backward, want in (("identity", ones), ("sigmoid", sigma(a) * (1 - sigma(a))), ("hardtanh", [0, 1, 1, 0])):
        _, g = tw.objective(f"straight_through(backward={backward})").value_and_grad(a=a, u=u, dh=ones)
        assert g["h"].tolist() == [1, 0, 0, 0]  # p = u gives 0
        np.testing.assert_allclose(g["a"], want, rtol=1e-13)  # 1 - sigma(5) is a difference


def test_smooth_times_stochastic_has_the_mean_of_the_sigmoid() -> None:
    a = np.linspace(-3, 3, 7)
    _, g = tw.objective("stochastic_times_smooth").value_and_grad(a=np.tile(a, (40000, 1)), u=rng().random((40000, 7)))
    np.testing.assert_allclose(g["h"].mean(0), sigma(a), atol=5 * 0.5 / 200)


def test_reinforce_is_unbiased_and_its_baseline_helps() -> None:
    """E[L] by enumeration of two units; 400 batches of 100, the first two without a settled baseline."""
    a = np.array([0.4, -1.0])
    loss = lambda h: 5 + 2 * h[..., 0] - h[..., 1] + 3 * h[..., 0] * h[..., 1]  # noqa: E731
    r = rng(8)
    draws = [(r.random((100, 2)) < sigma(a)).astype(float) for _ in range(400)]
    estimates = {}
    for baseline in ("true", "false"):
        mine = tw.objective(f"stochastic_neuron_reinforce(baseline={baseline})")
        estimates[baseline] = np.stack([
            mine.value_and_grad(a=np.tile(a, (100, 1)), h=h, losses=loss(h))[1]["a"].mean(0) for h in draws])[2:]
    p, corners = sigma(a), np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    weight = lambda q: np.prod(np.where(corners == 1, q, 1 - q), 1)  # noqa: E731
    for j in range(2):
        up, down = (weight(sigma(a + s * 1e-6 * np.eye(2)[j])) for s in (1, -1))
        want = (up - down) @ loss(corners) / 2e-6
        for e in estimates.values():
            assert e[:, j].mean() == pytest.approx(want, abs=5 * e[:, j].std() / np.sqrt(398))
        assert estimates["true"][:, j].std() < 0.7 * estimates["false"][:, j].std()
    assert p.shape == (2,)


def test_reinforce_goes_on_as_its_reference() -> None:
    mine, ref, r = tw.objective("stochastic_neuron_reinforce"), StochasticNeuronREINFORCE(), rng(9)
    ref.start()
    for _ in range(5):
        case = {"a": r.standard_normal((4, 3)), "h": r.integers(0, 2, (4, 3)).astype(float), "losses": r.standard_normal(4)}
        got, want = mine.value_and_grad(**case)[1], ref.visit(**case)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], atol=1e-14)


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_is_torchs(hard: bool) -> None:
    torch = pytest.importorskip("torch")
    z, dy = (torch.tensor(rng(k).standard_normal((6, 5)), requires_grad=k == 0) for k in (0, 1))
    torch.manual_seed(3)
    y = torch.nn.functional.gumbel_softmax(z, tau=0.7, hard=hard)
    torch.manual_seed(3)
    noise = -torch.empty_like(z.detach()).exponential_().log()
    _, g = tw.objective(f"gumbel_softmax(temperature=0.7, hard={str(hard).lower()})").value_and_grad(
        z=z.detach().numpy(), noise=noise.numpy(), dy=dy.numpy())
    np.testing.assert_allclose(g["y"], y.detach(), atol=1e-14)
    np.testing.assert_allclose(g["z"], torch.autograd.grad(torch.sum(y * dy), z)[0], atol=1e-14)
    with pytest.raises(tw.RangeError):
        tw.objective("gumbel_softmax(temperature=0)")


def test_tweedie_is_exact_for_conjugate_priors() -> None:
    y, s, m, tau = rng().standard_normal(9), 0.6, 0.3, 1.4
    _, g = tw.objective(f"tweedie(sigma={s})").value_and_grad(y=y, score=-(y - m) / (s**2 + tau**2))
    np.testing.assert_allclose(g["x"], (tau**2 * y + s**2 * m) / (s**2 + tau**2), rtol=1e-13)
    # y ~ Gamma(alpha, beta/x), x ~ InverseGamma(a, b): p(y) is y^(alpha - 1)/(b + beta y)^(alpha + a) up to a constant
    y, alpha, beta, a, b = np.exp(y), 3.0, 2.0, 4.0, 1.5
    score = (alpha - 1) / y - (alpha + a) * beta / (b + beta * y)
    _, g = tw.objective(f"tweedie(noise=gamma, alpha={alpha}, beta={beta})").value_and_grad(y=y, score=score)
    np.testing.assert_allclose(g["x"], (b + beta * y) / (alpha + a), rtol=1e-12)  # 1/E[1/x | y]: the natural parameter's mean
    with pytest.raises(tw.RangeError, match="does not fit gamma noise"):
        tw.objective("tweedie(noise=gamma)").value_and_grad(y=np.ones(1), score=np.ones(1))


# ---- weights


def test_advantages() -> None:
    r = tw.weighting("group_advantage")
    w = r(rewards=np.array([1.0, 2.0, 4.0, np.nan, 0.0, 7.0, 3.0, 3.0]), groups=np.array([0, 0, 0, 1, 1, 9, 4, 4]))
    assert abs(w[:3].sum()) < 1e-12 and w[:3].std(ddof=1) == pytest.approx(1, rel=1e-5)
    assert np.isnan(w[3:5]).all() and w[5] == pytest.approx(7, rel=1e-5) and w[6:].tolist() == [0, 0]


# ---- attributions


def test_attributions_are_complete() -> None:
    c = rng().standard_normal(5)
    f, g = (lambda x: np.sum(c * x**3)), (lambda x: 3 * c * x**2)
    x, refs = rng(1).standard_normal(5), rng(2).standard_normal((4, 5))
    one = tw.solver("integrated_gradients(steps=400)").run(x=x, reference=refs[0], gradient=g)
    assert one.attribution.sum() == pytest.approx(f(x) - f(refs[0]), abs=1e-4)
    even = (np.arange(400) + 0.5) / 400
    same = tw.solver("expected_gradients").run(x=x, references=refs[:1], alphas=even, gradient=g)
    np.testing.assert_allclose(same.attribution, one.attribution, rtol=1e-12)
    many = tw.solver("expected_gradients(samples=20000)").run(x=x, references=refs, gradient=g)
    assert many.attribution.sum() == pytest.approx(f(x) - np.mean([f(r) for r in refs]), abs=0.15)
    assert not tw.solver("expected_gradients").run(x=x, references=x[None], gradient=g).attribution.any()


def test_smoothgrad_of_a_cubic() -> None:
    """E (x + s e)^2 = x^2 + s^2; 4000 draws of a variance below 8."""
    x = np.array([0.0, 1.0, -1.0])
    r = tw.solver("smoothgrad(samples=4000, noise=0.2)").run(x=x, gradient=lambda p: p**2)
    np.testing.assert_allclose(r.saliency, x**2 + 0.4**2, atol=5 * 0.9 / np.sqrt(4000))
    flat = tw.solver("smoothgrad(samples=3)").run(x=np.full(4, 2.0), gradient=lambda p: p**3)
    np.testing.assert_array_equal(flat.saliency, np.full(4, 8.0))
    with pytest.raises(tw.RangeError, match="`x` must be finite"):
        tw.solver("smoothgrad").run(x=np.array([np.inf]), gradient=lambda p: p)


def test_fccov_refuses_distances_that_are_no_numbers() -> None:
    with pytest.raises(tw.RangeError, match="`distances` must be numbers, got NaN at element 5"):
        distances = np.zeros((4, 4))
        distances[1, 1] = np.nan
        tw.objective("fccov").value_and_grad(u=np.ones((4, 2)), distances=distances)
