"""Variants of sharpness-aware perturbations and aggregators: scopes, ties, losses, signs; the laws of their cards."""

from __future__ import annotations

import math

import numpy as np
import pytest

import reference  # noqa: F401  (imports every module)
import thalweg as tw
from reference.gcond import GCond
from reference.sharpness import LookSAM

SHAPES = [(), (7,), (3, 5)]


class Rows:
    """An aggregator before plain descent with step 1 on zeros: minus the parameters are what it makes of the rows."""

    def __init__(self, sentence: str, start: float = 0.0) -> None:
        self.params = [np.full(s, start) for s in SHAPES]
        self.opt = tw.Optimizer(self.params, sentence + " | sgd(lr=1.0)", seed=3)
        self.opt.bind_gradients([np.zeros(s) for s in SHAPES])

    def __call__(self, rows: list[list[np.ndarray]]) -> list[np.ndarray]:
        before = [p.copy() for p in self.params]
        for request in self.opt.requests():
            for g, row in zip(self.opt.grads, rows[request.index]):
                g[...] = row
        return [b - p for b, p in zip(before, self.params)]


def draw(rng: np.random.Generator, tasks: int) -> list[list[np.ndarray]]:
    return [[np.asarray(rng.standard_normal(s)) for s in SHAPES] for _ in range(tasks)]


def flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(p) for p in parts])


def perturbed(sentence: str, gradients: list[np.ndarray], start: list[np.ndarray]) -> list[np.ndarray]:
    """Where the second gradient is taken, less the parameters."""
    params = [p.copy() for p in start]
    opt = tw.Optimizer(params, sentence + " | sgd(lr=0.1)", seed=3)
    opt.bind_gradients([g.copy() for g in gradients])
    requests = opt.requests()
    next(requests)
    next(requests)
    found = [p - s for p, s in zip(params, start)]
    for _ in requests:
        pass
    return found


def test_one_mask_entry_for_every_place() -> None:
    """Of equal gradients the first entries are kept, in the order of binding; zeros are equal too."""
    w = [np.zeros(4), np.zeros((2, 3))]
    for value, share in ((1.0, 0.5), (0.0, 0.7), (1.0, 0.3)):
        g = [np.full(4, value), np.full((2, 3), value)]
        g[1][0, 0] = 2.0
        e = flat(perturbed(f"fsam(keep_ratio={share}, rho=1.0)", g, w))
        order = np.argsort(-flat(g), kind="stable")[: math.floor(share * 10)]
        want = np.zeros(10)
        want[order] = 1
        np.testing.assert_array_equal(e != 0, (want * flat(g)) != 0)
    # the mask of a step without gradients, seen at the next one
    params = [np.zeros(4), np.zeros(6)]
    opt = tw.Optimizer(params, "fsam(keep_ratio=0.6, rho=1.0) | sgd(lr=0.0)")
    grads = [np.zeros(4), np.zeros(6)]
    opt.bind_gradients(grads)
    for _ in opt.requests():
        pass
    for g in grads:
        g[...] = 1
    requests = opt.requests()
    next(requests), next(requests)
    np.testing.assert_array_equal(flat(params) != 0, np.arange(10) < 6)
    for _ in requests:
        pass


@pytest.mark.parametrize("kind", ["loss", "loss_l2"])
def test_mgda_divides_by_losses(kind: str) -> None:
    rng = np.random.default_rng(4)
    rows, losses = draw(rng, 3), np.array([0.5, 2.0, 1.5])
    host = Rows(f"mgda(tasks=3, normalize={kind})")
    with pytest.raises(tw.Error, match="loss_0"):
        host(rows)
    for k, loss in enumerate(losses):
        host.opt.observe(f"loss_{k}", loss)
    got = flat(host(rows))
    scaled = [[g / loss / (np.linalg.norm(flat(row)) if kind == "loss_l2" else 1) for g in row] for row, loss in zip(rows, losses)]
    np.testing.assert_allclose(got, flat(Rows("mgda(tasks=3)")(scaled)), rtol=1e-10, atol=1e-12)
    products = np.array([flat(row) @ got for row in scaled])
    assert np.all(products >= got @ got * (1 - 1e-10))


def test_signs_of_gcond() -> None:
    rng = np.random.default_rng(5)
    ref, host = GCond(output="sign", trust_coef=0.01), Rows("gcond(output=sign, trust_coef=0.01)", start=0.5)
    for step in range(4):
        rows = draw(rng, 2)
        rows[0][1][:3] = 0
        rows[1][1][:3] = 0
        before = [p.copy() for p in host.params]
        total = ref.combine(np.stack([flat(row) for row in rows]))
        parts = [x.reshape(s) for x, s in zip(np.split(total, np.cumsum([math.prod(s) for s in SHAPES])[:-1]), SHAPES)]
        for got, want in zip(host(rows), ref.signs(parts, before)):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-15)
    assert ref.signs([np.ones(2)], [np.zeros(2)])[0] == pytest.approx([0.01, 0.01])


def test_looksam_tensor_by_tensor() -> None:
    """A scalar has no part across its gradient but rounding, so that there is none here."""
    rng = np.random.default_rng(10)
    start, a, b = ([rng.uniform(0.3, 1.5, s) for s in SHAPES[1:]] for _ in range(3))
    point = [x.copy() for x in start]
    opt = tw.Optimizer(point, "looksam(rho=0.8, k=3, scope=tensor) | sgd(lr=0.1)")
    opt.bind_gradients([np.zeros_like(x) for x in point])
    ref, want = LookSAM(rho=0.8, k=3, scope="tensor"), [x.copy() for x in start]

    def gradient(at: list[np.ndarray]) -> list[np.ndarray]:
        return [p * np.sin(3 * x) - q for p, q, x in zip(a, b, at)]

    for _ in range(8):
        for _ in opt.requests():
            for g, v in zip(opt.grads, gradient(point)):
                g[...] = v
        want = [x - 0.1 * d for x, d in zip(want, ref.perturbed(want, gradient(want), gradient))]
        np.testing.assert_allclose(flat(point), flat(want), rtol=1e-9)


def test_layerwise_perturbations_have_the_length_rho() -> None:
    rng = np.random.default_rng(6)
    g, w = draw(rng, 1)[0], draw(rng, 1)[0]
    t = [np.linalg.norm(x) * 1.01 for x in w]
    e = perturbed("sam_on(mode=asam_layerwise, rho=0.3)", g, w)
    assert np.linalg.norm(flat([a / b for a, b in zip(e, t)])) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("fd", ["", ", fd_eps=0.02"])
def test_dal_by_differences(fd: str) -> None:
    """On a quadratic the difference is the product, up to rounding over e."""
    a = [np.array(0.7), np.linspace(0.2, 3, 7), np.full((3, 5), 1.3)]
    ends = []
    for form in ("product", "difference"):
        params = [np.ones(s) for s in SHAPES]
        opt = tw.Optimizer(params, f"dal(static_lr=0.1, curvature={form}{fd})")
        opt.bind_gradients([np.zeros(s) for s in SHAPES])
        asked = []
        for _ in range(5):
            for request in opt.requests():
                asked.append(request.kind)
                for g, h, x in zip(opt.grads, a, request.probe if request.kind == "hessian_vector" else params):
                    g[...] = h * x
        assert asked == ["gradient", "hessian_vector" if form == "product" else "gradient"] * 5
        ends.append(flat(params))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_dal_by_differences_without_a_gradient() -> None:
    params = [np.ones(3)]
    opt = tw.Optimizer(params, "dal(static_lr=0.1, curvature=difference)")
    opt.bind_gradients([np.zeros(3)])
    assert [r.kind for r in opt.requests()] == ["gradient"]
    np.testing.assert_array_equal(params[0], 1)


def test_edge_of_stability_of_usam() -> None:
    """Descent on a quadratic contracts just below the eigenvalue and grows just above it."""
    lr, rho = 0.3, 0.4
    edge = tw.diagnostic("sam_eos_eigenvalue")(lr=np.array(lr), rho=np.array(rho))
    for factor, shrinks in ((0.99, True), (1.01, False)):
        x = [np.ones(1)]
        opt = tw.Optimizer(x, f"usam(rho={rho}) | sgd(lr={lr})")
        opt.bind_gradients([np.zeros(1)])
        for _ in range(100):
            for _ in opt.requests():
                opt.grads[0][...] = factor * edge * x[0]
        assert (abs(x[0][0]) < 1) == shrinks
    for bad in ({"lr": 0.0, "rho": 0.1}, {"lr": 0.1, "rho": -1.0}, {"lr": np.nan, "rho": 0.1}):
        with pytest.raises(tw.RangeError):
            tw.diagnostic("sam_eos_eigenvalue")(**{k: np.array(v) for k, v in bad.items()})


def test_the_whole_spectrum() -> None:
    """As many steps as unknowns give every eigenvalue; the weights add up to 1, and the trace is found."""
    rng = np.random.default_rng(8)
    a = rng.standard_normal((6, 6))
    a = a + a.T
    found = tw.solver("hessian_spectrum_slq(starts=40)").run(like=np.zeros(6), product=lambda v: a @ v)
    values = np.linalg.eigvalsh(a)
    assert found["weights"].sum() == pytest.approx(1, rel=1e-12)
    for row in found["eigenvalues"]:
        np.testing.assert_allclose(row, values, atol=1e-9)
    # 40 starts: the mean of v'Av/v'v of unit vectors has the deviation of |A|/sqrt(n starts) times some ones
    assert abs(found["trace"] - np.trace(a)) < 4 * np.linalg.norm(a) * math.sqrt(2 / 8 * 6 / 40)


def test_noise_for_a_tiny_epsilon() -> None:
    """Where delta alone is worth more than the target the bisection goes on, as opacus' does."""
    sigma = tw.schedule("dp_noise_for_epsilon(epsilon=0.005, rate=0.01, delta=0.2, tol=0.01)")(10)
    opacus = pytest.importorskip("opacus.accountants.utils")
    want = opacus.get_noise_multiplier(target_epsilon=0.005, target_delta=0.2, sample_rate=0.01, steps=10, accountant="rdp")
    assert sigma == pytest.approx(want, rel=1e-9)


def test_one_task_is_its_own_update() -> None:
    rng = np.random.default_rng(9)
    row = draw(rng, 1)
    for name, factor in (("upgrad", 1), ("dualproj", 1), ("pcgrad", 1), ("mgda", 1), ("imtl_g", 1), ("config", 1), ("gradvac", 1),
                         ("geometric_median", 1), ("aligned_mtl", 1), ("cagrad", 1.5), ("random_loss_weighting", 1)):  # fmt: skip
        np.testing.assert_allclose(flat(Rows(f"{name}(tasks=1)")(row)), factor * flat(row[0]), rtol=1e-9, err_msg=name)
    assert np.linalg.norm(flat(Rows("nash_mtl(tasks=1)")(row))) == pytest.approx(1, rel=1e-9)
