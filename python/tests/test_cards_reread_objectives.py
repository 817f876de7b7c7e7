"""What objectives, penalties and diagnostics owe to their formulas at the edges of the numbers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


def test_icon_keeps_neighbours_whose_probability_rounds_to_nothing() -> None:
    z, p = np.array([[0.0, 2000], [0, 0]]), np.full((2, 2), 0.5)
    value, g = tw.objective("icon_kl(mask_diagonal=false)").value_and_grad(z=z, p=p)
    assert value == pytest.approx((np.log(0.5) + 1000) / 2, abs=1e-9)  # row 1 is at its target
    np.testing.assert_allclose(g["z"], [[-0.25, 0.25], [0, 0]], atol=1e-15)

    rng = np.random.default_rng(0)
    x, p = 10 * rng.standard_normal((32, 8)), np.full((32, 32), 1 / 31)
    np.fill_diagonal(p, 0)
    logits = -((x[:, None] - x[None]) ** 2).sum(2) / 2
    np.fill_diagonal(logits, -np.inf)
    top = logits.max(1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    np.fill_diagonal(logs, 0)
    o = tw.objective("icon_embedding")
    value, g = o.value_and_grad(x=x, p=p)
    assert value == pytest.approx(np.log(1 / 31) - (p * logs).sum() / 32, rel=1e-12)
    d = rng.standard_normal(x.shape)
    assert (o(x=x + 1e-6 * d, p=p) - o(x=x - 1e-6 * d, p=p)) / 2e-6 == pytest.approx((g["x"] * d).sum(), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_icon_cluster_keeps_clusters_whose_share_rounds_to_nothing(dtype: type) -> None:
    rng = np.random.default_rng(1)
    z, p = 400 * rng.standard_normal((6, 3)), rng.random((6, 6))
    p /= p.sum(1, keepdims=True)

    def exact(z: np.ndarray) -> float:
        f = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        logs = np.logaddexp.reduce(f[:, None] + f[None] - np.logaddexp.reduce(f, axis=0), axis=2)
        return float((p * (np.log(p) - logs)).sum() / 6)

    z = z.astype(dtype).astype(float)
    value, g = tw.objective("icon_cluster").value_and_grad(z=z.astype(dtype), p=p.astype(dtype))
    assert value == pytest.approx(exact(z), rel=1e-5 if dtype == np.float32 else 1e-12)
    numeric = np.zeros_like(z)
    for i in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[i] = 1e-3
        numeric[i] = (exact(z + step) - exact(z - step)) / 2e-3
    np.testing.assert_allclose(g["z"], numeric, atol=1e-5)


@pytest.mark.parametrize("sentence", ["mmd", "uniformity(normalize=false)", "icon_embedding", "triplet_batch_hard(squared=true)"])
def test_distances_do_not_feel_what_all_rows_have_in_common(sentence: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-64, 65, (2, 24, 5)) / 64  # sums with the offset are exact in float32
    p = np.full((24, 24), 1 / 23) * (1 - np.eye(24))
    others = {"mmd": {"y": y}, "icon_embedding": {"p": p}}.get(sentence, {})
    if "triplet" in sentence:
        others = {"y": np.arange(24) % 4}
    value, g = tw.objective(sentence).value_and_grad(x=x, **others)
    moved = {k: v if v.dtype.kind == "i" else (v + 1e4 * (k == "y")).astype(np.float32) for k, v in others.items()}
    far, h = tw.objective(sentence).value_and_grad(x=(x + 1e4).astype(np.float32), **moved)
    assert far == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(h["x"], g["x"], atol=1e-5 * np.abs(g["x"]).max())


def test_bures_wasserstein_cuts_the_inverse_alone() -> None:
    q = np.linalg.qr(np.random.default_rng(3).standard_normal((4, 4)))[0]
    small = q @ np.diag([1, 0.5, 1e-6, 1e-6]) @ q.T
    o = tw.objective("bures_wasserstein")
    assert abs(o(a=small, b=small)) < 1e-12
    assert o(a=np.eye(2), b=np.diag([1, 1e-13])) == pytest.approx(1 + 1e-13 - 2 * 1e-13**0.5, abs=1e-12)
    assert tw.objective("bures_wasserstein(rtol=0.1)")(a=np.diag([1, 0.01]), b=np.eye(2)) == pytest.approx(0.81)


def test_bures_wasserstein_counts_negative_eigenvalues_as_none() -> None:
    assert tw.objective("bures_wasserstein")(a=-np.eye(2), b=np.eye(2)) == 0


def test_attribution_priors_take_any_axes() -> None:
    phi = np.random.default_rng(2).standard_normal((2, 3, 4, 5))
    tv, gini, graph = (tw.regularizer(f"attribution_prior_{k}") for k in ("tv", "gini", "graph"))
    expected = (np.abs(np.diff(phi, axis=2)).sum() + np.abs(np.diff(phi, axis=3)).sum()) / 2
    assert tv.value(phi) == pytest.approx(expected)
    flat, edges = phi.reshape(2, 60), np.random.default_rng(4).random((60, 60))
    assert gini.value(phi) == gini.value(flat)
    assert graph.value(phi, edges=edges) == graph.value(flat, edges=edges)
    with pytest.raises(tw.ShapeError, match="60 features"):
        graph.value(phi, edges=np.ones((5, 5)))


def test_a_policy_without_reference_is_not_repaired() -> None:
    o = tw.objective("unified_policy_gradient")
    assert np.isnan(o(logp=np.array([np.nan, -1]), advantage=np.ones(2)))


def test_nearest_neighbours_with_nan_have_no_distance() -> None:
    x, o = np.random.default_rng(5).standard_normal((5, 2)), tw.objective("knn_kl(k=2, k_xy=1)")
    bad = np.array([[1, 1], [np.nan, 0]])
    assert np.isnan(o(x=x, y=bad)) and np.isnan(o(x=x, y=bad[::-1].copy()))
    assert np.isnan(o(x=np.concatenate([x, bad]), y=x))


@pytest.mark.parametrize("size", [1e-180, 1e200])
def test_cosines_of_gradients_of_any_size(size: float) -> None:
    r = tw.diagnostic("gradient_cosines")(g=size * np.array([[1.0, 0], [1, 1], [0, 0]]))
    np.testing.assert_allclose(r["cosines"], [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 1]])
    assert r["diversity"] == pytest.approx(3 / 5)


def test_classes_of_feature_gradients_are_signs() -> None:
    o = tw.objective("feature_gradients(classification=true)")
    with pytest.raises(tw.RangeError, match="classes -1 and 1"):
        o(scores=np.zeros(2), x=np.ones((3, 2)), y=np.array([0.0, 1, 1]))


def test_wanda_keeps_min_keep_entries_of_a_tensor() -> None:
    w = np.arange(1.0, 16).reshape(3, 5)
    r = tw.diagnostic("pruning_score(score=wanda, sparsity=0.97, min_keep=2)")(w1=w, x1=np.ones(5))
    assert np.flatnonzero(r["mask1"]).tolist() == [13, 14]


@pytest.mark.parametrize("name, other", [("l2_init", "anchor"), ("wasserstein_init", "initial"), ("relevance_reg", "grad")])
def test_empty_tensors_have_no_penalty(name: str, other: str) -> None:
    r, w = tw.regularizer(name), np.zeros((0, 3))
    assert r.value(w, **{other: w}) == 0 and np.shape(r.gradient(w, **{other: w})) == (0, 3)


def test_mmd_of_a_sample_and_itself_has_all_pairs() -> None:
    x, o = np.random.default_rng(6).standard_normal((6, 2)), tw.objective("mmd(unbiased=true)")
    assert o(x=x, y=x) == o(x=x, y=x.copy())


def test_fccov_of_one_row_is_nothing() -> None:
    value, g = tw.objective("fccov").value_and_grad(u=np.ones((1, 3)), distances=np.zeros((1, 1)))
    assert value == 0 and not g["u"].any()


def test_norm_loss_of_rows_whose_squares_overflow() -> None:
    w = np.ones((2, 3)) * 1e200
    np.testing.assert_allclose(tw.regularizer("norm_loss(1)").gradient(w), 2 * w, rtol=1e-14)
