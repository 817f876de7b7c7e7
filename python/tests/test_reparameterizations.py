"""Weight and spectral normalisation and trained thresholds: laws, peers, what is kept.

The references are compared in test_objectives.py.  Two float64 programs of one formula differ by some hundred roundings
of 1.1e-16; wider limits say why.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference.reparameterizations import AutoSparse, SpectralNorm

EXACT = dict(rtol=1e-12, atol=1e-13)


def RNG(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def results(mine: tw.Objective, **inputs: Any) -> dict[str, np.ndarray]:
    return mine.value_and_grad(**inputs)[1]


# ---- weight_norm


@pytest.mark.parametrize("axis", ["row", "all"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
def test_weight_norm_equals_torch(axis: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 5) if len(shape) == 2 else torch.nn.Conv2d(3, 4, 2)
    layer = torch.nn.utils.parametrizations.weight_norm(layer.double(), dim=0 if axis == "row" else None)
    own, mine = layer.parametrizations.weight, tw.objective(f"weight_norm(axis={axis})")
    rng = RNG(1)
    for _ in range(4):
        g = torch.from_numpy(rng.standard_normal(shape))
        (layer.weight * g).sum().backward()
        gain, v = own.original0, own.original1
        got = results(mine, v=v.detach().numpy(), gain=gain.detach().numpy().reshape(-1), g=g.numpy())
        np.testing.assert_allclose(got["effective"], layer.weight.detach().numpy(), **EXACT)
        np.testing.assert_allclose(got["v"], v.grad.numpy(), **EXACT)
        np.testing.assert_allclose(got["gain"], gain.grad.numpy().reshape(-1), **EXACT)
        with torch.no_grad():
            for p in (gain, v):
                p -= 0.1 * p.grad
                p.grad = None


def test_weight_norm_laws() -> None:
    rng, mine = RNG(2), tw.objective("weight_norm")
    v, gain, g = rng.standard_normal((6, 9)), rng.standard_normal(6), rng.standard_normal((6, 9))
    got = results(mine, v=v, gain=gain, g=g)
    assert np.all(np.abs(np.sum(got["v"] * v, axis=1)) < 1e-14)
    np.testing.assert_allclose(np.linalg.norm(got["effective"], axis=1), np.abs(gain), **EXACT)
    for scale in (1e-8, 1e150):  # the direction alone counts
        other = results(mine, v=scale * v, gain=gain, g=g)
        np.testing.assert_allclose(other["effective"], got["effective"], **EXACT)
        np.testing.assert_allclose(other["v"] * scale, got["v"], **EXACT)
    one = results(mine, v=v, gain=np.ones(6), g=g)
    conditioned = results(tw.objective("weight_conditioning"), w=v, g=g)
    np.testing.assert_allclose(one["effective"], conditioned["effective"], **EXACT)
    np.testing.assert_allclose(one["v"], conditioned["w"], **EXACT)
    w, before = v.copy(), 0.0
    for _ in range(20):  # plain steps only lengthen v
        got = results(mine, v=w, gain=gain, g=rng.standard_normal((6, 9)))
        assert np.all(got["norms"] >= before)
        w, before = w - 0.3 * got["v"], got["norms"]


def test_weight_norm_starts_at_a_weight_or_at_the_data() -> None:
    rng = RNG(3)
    v, x = rng.standard_normal((4, 3, 2)), rng.standard_normal((50, 6)) + 0.5
    for logs in ("false", "true"):
        mine = tw.objective(f"weight_norm(log_gain={logs})")
        started = results(mine, v=v, gain=np.ones(4))
        np.testing.assert_allclose(results(mine, v=v, gain=started["init_gain"])["effective"], v, **EXACT)
        assert not started["init_bias"].any()
        pre = x @ results(mine, v=v, gain=np.full(4, 0.0 if logs == "true" else 1.0))["effective"].reshape(4, 6).T
        started = results(mine, v=v, gain=np.ones(4), pre=pre)
        w = results(mine, v=v, gain=started["init_gain"])["effective"]
        out = x @ w.reshape(4, 6).T + started["init_bias"]
        np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(out.std(axis=0), 1, rtol=1e-13)
    with pytest.raises(tw.RangeError, match="`pre`.* row 2"):
        results(tw.objective("weight_norm"), v=v, gain=np.ones(4), pre=np.where(np.arange(4) == 2, 1.0, x[:, :4]))


def test_weight_norm_of_zero_rows_and_wrong_gains() -> None:
    v = RNG(4).standard_normal((3, 4))
    v[1] = 0
    with pytest.raises(tw.RangeError, match="row 1"):
        tw.objective("weight_norm")(v=v, gain=np.ones(3))
    with pytest.raises(tw.RangeError, match="`v` must not be zero"):
        tw.objective("weight_norm(axis=all)")(v=0 * v, gain=np.ones(1))
    mine = tw.objective("weight_norm")
    mine(v=np.ones((3, 4)), gain=np.ones(3))
    got = results(mine, v=v, gain=np.ones(3), g=np.ones((3, 4)))  # later: 1e-12 in place of the norm
    assert not got["effective"][1].any() and got["gain"][1] == 0 and np.allclose(got["v"][1], 1e12)
    for text, gain in (("weight_norm", np.ones(1)), ("weight_norm(axis=all)", np.ones(3))):
        with pytest.raises(tw.ShapeError, match="`gain` must have"):
            tw.objective(text)(v=np.ones((3, 4)), gain=gain)


# ---- spectral_norm


@pytest.mark.parametrize("n_iter", [1, 3])
def test_spectral_norm_equals_torch(n_iter: int) -> None:
    """torch's order of the half steps is that of the transposed matrix."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 6, bias=False).double(), n_power_iterations=n_iter, dim=1)
    own, mine, rng = layer.parametrizations.weight, tw.objective(f"spectral_norm(n_iter={n_iter})"), RNG(5)
    start = {"u0": own[0]._v.numpy().copy()}
    for step in range(8):
        w, g = own.original.detach().numpy(), rng.standard_normal((6, 4))
        effective = layer.weight
        (effective * torch.from_numpy(g)).sum().backward()
        got = results(mine, w=w, g=g, **start)
        start = {}
        np.testing.assert_allclose(got["effective"], effective.detach().numpy(), **EXACT)
        np.testing.assert_allclose(got["w"], own.original.grad.numpy(), **EXACT)
        if step % 3 == 2:
            layer.eval()
            np.testing.assert_allclose(
                results(mine, w=w, training=np.array(0))["effective"], layer.weight.detach().numpy(), **EXACT)
            layer.train()
        with torch.no_grad():
            own.original -= 0.2 * own.original.grad
            own.original.grad = None


def test_spectral_norm_goes_on_like_its_reference() -> None:
    rng, ref, mine = RNG(6), SpectralNorm(n_iter=2, target=0.5), tw.objective("spectral_norm(n_iter=2, target=0.5)")
    for k in range(12):
        w, g, training = rng.standard_normal((5, 3, 2)), rng.standard_normal((5, 3, 2)), k % 4 != 1
        value, got = mine.value_and_grad(w=w, g=g, training=np.array(int(training)))
        want_value, want = ref.step(w, g, training=training)
        assert value == pytest.approx(want_value, rel=1e-11)
        for name in want:  # sigma of a weight that u and v do not know may be near 0
            np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-11)


def test_sigma_converges_to_the_largest_singular_value() -> None:
    rng, mine = RNG(7), tw.objective("spectral_norm")
    u, s, vt = np.linalg.svd(rng.standard_normal((8, 5)), full_matrices=False)
    w, g = (u * np.array([3.0, 1.5, 1, 0.5, 0.1])) @ vt, rng.standard_normal((8, 5))
    for _ in range(40):
        got = results(mine, w=w, g=g)  # 0.5**80 is left
    assert got["sigma"] == pytest.approx(3, rel=1e-14)
    assert np.linalg.norm(got["effective"], 2) == pytest.approx(1, rel=1e-14)
    h = 1e-6 * rng.standard_normal((8, 5))
    norm = lambda a: np.sum(g * a) / np.linalg.norm(a, 2)  # noqa: E731
    assert (norm(w + h) - norm(w - h)) / 2 == pytest.approx(np.sum(got["w"] * h), rel=1e-6)
    np.testing.assert_allclose(np.abs(got["u"]), np.abs(u[:, 0]), atol=1e-13)


@pytest.mark.parametrize("text", ["spectral_norm(target=2)", "spectral_norm(mode=clip)", "spectral_norm(mode=clip, target=100)"])
def test_the_gradient_with_u_and_v_held(text: str) -> None:
    """Evaluations hold them: central differences of step 1e-6 are good to some 1e-9."""
    rng, mine = RNG(8), tw.objective(text)
    w, g = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    mine(w=w)
    value = lambda x: mine(w=x, g=g, training=np.array(0))  # noqa: E731
    back, h = results(mine, w=w, g=g, training=np.array(0))["w"], rng.standard_normal((4, 6))
    assert (value(w + 1e-6 * h) - value(w - 1e-6 * h)) / 2e-6 == pytest.approx(np.sum(back * h), rel=1e-7)


def test_an_evaluation_and_a_refusal_leave_u_and_v() -> None:
    rng, mine = RNG(9), tw.objective("spectral_norm")
    w = rng.standard_normal((6, 5))
    before = results(mine, w=w)
    held = mine.state_dict()
    for _ in range(3):
        got = results(mine, w=rng.standard_normal((6, 5)), training=np.array(0))
        np.testing.assert_array_equal(got["u"], before["u"])
        np.testing.assert_array_equal(got["v"], before["v"])
    with pytest.raises(tw.RangeError, match="`w` must be finite"):
        mine(w=np.where(w > 1, np.nan, w))
    with pytest.raises(tw.RangeError, match="`u0` must not be zero"):
        mine(w=w, u0=np.zeros(6))
    with pytest.raises(tw.ShapeError, match="began with"):
        mine(w=np.ones((5, 6)))
    again = tw.objective("spectral_norm")
    again.load_state_dict(held)
    twins = [mine, again, pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine)]
    after = [results(m, w=w)["u"].tobytes() for m in twins]
    assert len(set(after)) == 1 and after[0] != before["u"].tobytes()
    other = results(tw.objective("spectral_norm(seed=1)"), w=w)["u"]
    assert not np.array_equal(other, before["u"])


def test_spectral_norm_survives_a_zero_weight() -> None:
    rng, mine = RNG(10), tw.objective("spectral_norm")
    w, g = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    for first in (True, False):
        got = results(mine, w=np.zeros((4, 3)), g=g)
        assert not got["effective"].any() and got["sigma"] == 0
        np.testing.assert_array_equal(got["w"], g)
        for _ in range(60):
            got = results(mine, w=w, g=g)
        assert got["sigma"] == pytest.approx(np.linalg.norm(w, 2), rel=1e-6), first


def test_spectral_norm_has_the_same_bits_on_any_number_of_threads() -> None:
    rng, before, bits = RNG(11), tw.get_num_threads(), set()
    w, g = (rng.standard_normal((300, 500)).astype(np.float32) for _ in range(2))
    try:
        for threads in (1, 2, 5):
            tw.set_num_threads(threads)
            value, got = tw.objective("spectral_norm").value_and_grad(w=w, g=g)
            bits.add((value, *(got[k].tobytes() for k in ("w", "u", "v", "effective"))))
    finally:
        tw.set_num_threads(before)
    assert len(bits) == 1


# ---- autosparse


def test_autosparse_without_alpha_is_str() -> None:
    """STR by automatic differentiation."""
    torch = pytest.importorskip("torch")
    rng = RNG(12)
    w, g, s = rng.standard_normal((6, 5)), rng.standard_normal((6, 5)), -0.4
    x, t = torch.tensor(w, requires_grad=True), torch.tensor(s, dtype=torch.float64, requires_grad=True)
    (torch.from_numpy(g) * torch.sign(x) * torch.relu(torch.abs(x) - torch.sigmoid(t))).sum().backward()
    got = results(tw.objective("autosparse(total=10, alpha0=0)"), w=w, s=np.array(s), g=g)
    np.testing.assert_allclose(got["w"], x.grad.numpy(), **EXACT)
    np.testing.assert_allclose(got["s"], t.grad.numpy(), **EXACT)


def test_alpha_scales_the_masked_entries_alone() -> None:
    rng = RNG(13)
    w, g, s = rng.standard_normal(40), rng.standard_normal(40), np.array(0.2)
    at = lambda a: results(tw.objective(f"autosparse(total=5, alpha0={a})"), w=w, s=s, g=g)  # noqa: E731
    masked = np.abs(w) <= 1 / (1 + np.exp(-0.2))
    assert 5 < masked.sum() < 35
    np.testing.assert_array_equal(at(0.25)["effective"] == 0, masked)
    np.testing.assert_allclose(at(0.25)["w"], np.where(masked, 0.25 * g, g), **EXACT)
    np.testing.assert_array_equal(at(1)["w"], g)


@pytest.mark.parametrize("schedule, ends", [
    ("cosine", (0.6, 0.0)), ("linear", (0.6, 0.0)), ("constant", (0.6, 0.6)),
    ("sigmoid", (0.6 / (1 + np.exp(-6)), 0.6 / (1 + np.exp(6)))), ("sigmoid_cosine", (0.6, 0.6 / (1 + np.exp(6)))),
])
def test_autosparse_schedules_and_counting(schedule: str, ends: tuple[float, float]) -> None:
    mine, w = tw.objective(f"autosparse(total=8, alpha0=0.6, schedule={schedule})"), np.ones(3)
    ref = AutoSparse(total=8, alpha0=0.6, schedule=schedule)
    seen = []
    for k in range(11):
        looked = float(results(mine, w=w, training=np.array(0))["alpha"])
        seen.append(float(results(mine, w=w)["alpha"]))
        assert looked == seen[-1] == pytest.approx(ref.alpha(k), abs=1e-15)  # 1 - sigmoid
    assert seen[0] == pytest.approx(ends[0]) and seen[8] == pytest.approx(ends[1], abs=1e-16) and seen[9:] == [0.0, 0.0]
    assert all(a >= b for a, b in zip(seen, seen[1:]))
    assert float(results(mine, w=w, t=np.array(2))["alpha"]) == seen[2]
    again = pickle.loads(pickle.dumps(mine))
    assert float(results(mine, w=w)["alpha"]) == float(results(again, w=w)["alpha"]) == seen[3]


def test_autosparse_refusals() -> None:
    for text, message in (("autosparse(total=3, l0=1, l1=1)", "`l0` must be below"), ("autosparse(total=0)", "total"),
                          ("autosparse(total=3, alpha0=1.5)", "alpha0")):
        with pytest.raises(tw.RangeError, match=message):
            tw.objective(text)
    with pytest.raises(tw.RangeError, match="`t` must not be negative"):
        tw.objective("autosparse(total=3)")(w=np.ones(2), t=np.array(-1))
    mine = tw.objective("autosparse(total=3)")
    assert np.isnan(mine(w=np.array([np.nan, 2.0])))
    with pytest.raises(tw.NonfiniteError, match="no gradient"):
        mine.forward(w=np.array([np.nan, 2.0]))
