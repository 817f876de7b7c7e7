"""The methods that people ask for beside their public peers, and the laws of their cards.

Ours runs in the library, in float64, on the gradients that the peer gets.  Two float64 programs of one formula differ by rounding
alone: 1e-12 after some twenty steps.  Wider tolerances say why where they stand.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference import matrix_demand, muon, norm_descent
from support import MATRIX_SHAPES, Problem
from test_fidelity import library_run, reference_run, sentence, worst

SHAPES = [(7,), (5, 3), (3, 6), (2, 3, 2, 2)]
STEPS = 20


def stream(shapes: list[tuple[int, ...]] = SHAPES, seed: int = 0) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(s) for s in shapes]
    drift = [0.5 * rng.standard_normal(s) for s in shapes]
    return start, [[d + rng.standard_normal(d.shape) for d in drift] for _ in range(STEPS)]


def ours(text: str, start: list[np.ndarray], grads: list[list[np.ndarray]], losses: list[float] | None = None) -> list[np.ndarray]:
    params = [w.copy() for w in start]
    with tw.Optimizer(params, text) as opt:
        for k, g in enumerate(grads):
            if losses is not None:
                opt.observe("loss", losses[k])
            opt.step([x.copy() for x in g])
    return params


def torch_peer(make: Callable[[list[Any]], Any], start: list[np.ndarray], grads: list[list[np.ndarray]]) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    opt = make(params)
    for g in grads:
        for p, x in zip(params, g):
            p.grad = torch.tensor(x)
        opt.step()
    return [p.detach().numpy() for p in params]


def optax_peer(make: Callable[[Any], Any], start: list[np.ndarray], grads: list[list[np.ndarray]],
               losses: list[float] | None = None) -> list[np.ndarray]:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    optax = pytest.importorskip("optax")
    pytest.importorskip("optax.contrib")
    rule = make(optax)
    params: Any = [jax.numpy.asarray(w) for w in start]
    state = rule.init(params)
    for k, g in enumerate(grads):
        extra = {} if losses is None else {"value": jax.numpy.asarray(losses[k])}
        updates, state = rule.update([jax.numpy.asarray(x) for x in g], state, params, **extra)
        params = optax.apply_updates(params, updates)
    return [np.asarray(p) for p in params]


def torch_optim(name: str, **h: Any) -> Callable[[list[Any]], Any]:
    return lambda p: getattr(pytest.importorskip("torch").optim, name)(p, **h)


def library(name: str, **h: Any) -> Callable[[list[Any]], Any]:
    return lambda p: getattr(pytest.importorskip("pytorch_optimizer"), name)(p, **h)


TORCH: list[tuple[str, Callable[[list[Any]], Any], float]] = [
    ("rprop(lr=0.1, eta_minus=0.3, eta_plus=1.7, step_max=0.4)", torch_optim("Rprop", lr=0.1, etas=(0.3, 1.7), step_sizes=(1e-6, 0.4)), 0.0),
    # its step sizes are float32 tensors
    ("asgd(lr=0.1, lambd=0.05, t0=3, weight_decay=0.1)", torch_optim("ASGD", lr=0.1, lambd=0.05, t0=3, weight_decay=0.1), 1e-6),
    ("stable_adamw(lr=0.05, beta2=0.95, weight_decay=0.3)", library("StableAdamW", lr=0.05, betas=(0.9, 0.95), weight_decay=0.3, kahan_sum=False), 1e-12),
    # it adds eps before the bias correction of the root
    ("adamp(lr=0.05, delta=2, weight_decay=0.3)", library("AdamP", lr=0.05, delta=2.0, weight_decay=0.3), 1e-5),
    ("sgdp(lr=0.05, momentum=0.8, delta=1, weight_decay=0.05)", library("SGDP", lr=0.05, momentum=0.8, delta=1.0, weight_decay=0.05), 1e-12),
    ("sgdp(lr=0.05, momentum=0.8, nesterov=true, delta=50)", library("SGDP", lr=0.05, momentum=0.8, nesterov=True, delta=50.0), 1e-12),
    ("aggmo(lr=0.02, weight_decay=0.1)", library("AggMo", lr=0.02, weight_decay=0.1), 1e-12),
    ("adabound(lr=0.02, gamma=0.1, root_eps=1e-15)", library("AdaBound", lr=0.02, gamma=0.1), 1e-12),
    ("fromage(lr=0.1)", library("Fromage", lr=0.1), 1e-12),
    ("fromage(lr=0.3, p_bound=0.9)", library("Fromage", lr=0.3, p_bound=0.9), 1e-12),
    ("ftrl(lr=0.3, beta=0.5, lambda1=0.3, lambda2=0.1)", library("FTRL", lr=0.3, beta=0.5, lambda_1=0.3, lambda_2=0.1), 1e-12),
    ("sm3(momentum=0.9, beta=0.3)", library("SM3", momentum=0.9, beta=0.3), 1e-12),
    # with grad_averaging it takes the first gradient whole
    ("novograd(lr=0.05, beta2=0.5, weight_decay=0.1)", library("NovoGrad", lr=0.05, betas=(0.95, 0.5), weight_decay=0.1), 1e-12),
    ("madgrad(lr=0.1, weight_decay=0.1)", library("MADGRAD", lr=0.1, weight_decay=0.1), 1e-12),
    ("madgrad(lr=0.1, momentum=0)", library("MADGRAD", lr=0.1, momentum=0.0), 1e-12),
    ("came(lr=0.02, beta2=0.9, beta3=0.99, weight_decay=0.1)", library("CAME", lr=0.02, betas=(0.9, 0.9, 0.99), weight_decay=0.1), 1e-12),
    # its weights are float32 numbers
    ("qhadam(lr=0.05, nu1=0.7, nu2=0.9)", library("QHAdam", lr=0.05, nus=(0.7, 0.9)), 1e-7),
    ("ranger(lr=0.05, beta2=0.95, weight_decay=0.1)",
     library("Ranger", lr=0.05, betas=(0.95, 0.95), weight_decay=0.1, degenerated_to_sgd=True), 1e-12),
]


@pytest.mark.parametrize("text, make, tolerance", TORCH, ids=[t for t, _, _ in TORCH])
def test_torch_peer(text: str, make: Callable[[list[Any]], Any], tolerance: float) -> None:
    start, grads = stream()
    assert np.max(worst(ours(text, start, grads), torch_peer(make, start, grads))) <= tolerance


OPTAX: list[tuple[str, Callable[[Any], Any], float]] = [
    ("simplified_ademamix(lr=0.002, beta1=0.9, alpha=1.5, weight_decay=0.1)",
     lambda o: o.contrib.simplified_ademamix(0.002, b1=0.9, b2=0.95, alpha=1.5, weight_decay=0.1), 1e-12),
    ("acprop(lr=0.02, beta1=0.8, beta2=0.9, weight_decay=0.1)", lambda o: o.contrib.acprop(0.02, b1=0.8, b2=0.9, weight_decay=0.1), 1e-12),
    ("novograd(lr=0.05, beta1=0.9, beta2=0.25, weight_decay=0.1)", lambda o: o.novograd(0.05, b1=0.9, b2=0.25, eps=1e-8, weight_decay=0.1), 1e-12),
    ("fromage(lr=0.1)", lambda o: o.fromage(0.1, min_norm=0.0), 1e-12),
    # it takes the root of the step in float32
    ("madgrad(lr=0.1)", lambda o: o.contrib.madgrad(0.1), 1e-6),
    ("sm3(momentum=0.9, eps=1e-8)", lambda o: o.sm3(0.1, momentum=0.9), 1e-12),
    ("stable_adamw(lr=0.05, threshold=inf)", lambda o: o.adamw(0.05, b2=0.99, weight_decay=1e-2), 1e-12),
    ("sgd(lr=0.1, momentum=0.9) | clip_update_rms(0.5)", lambda o: o.chain(o.trace(0.9), o.clip_by_block_rms(0.5), o.scale(-0.1)), 1e-12),
]


@pytest.mark.parametrize("text, make, tolerance", OPTAX, ids=[t for t, _, _ in OPTAX])
def test_optax_peer(text: str, make: Callable[[Any], Any], tolerance: float) -> None:
    start, grads = stream()
    assert np.max(worst(ours(text, start, grads), optax_peer(make, start, grads))) <= tolerance


@pytest.mark.parametrize("text, make", [
    ("momo(lr=0.5, beta=0.8, lower_bound=-2)", lambda o: o.contrib.momo(0.5, beta=0.8, lower_bound=-2.0)),
    ("momo(lr=0.5, lower_bound=-30, weight_decay=0.1, adapt_lower_bound=true)",
     lambda o: o.contrib.momo(0.5, lower_bound=-30.0, weight_decay=0.1, adapt_lower_bound=True)),
    ("momo(lr=0.05, precondition=adam, lower_bound=-2, weight_decay=0.1)",
     lambda o: o.contrib.momo_adam(0.05, lower_bound=-2.0, weight_decay=0.1)),
])
def test_momo_equals_optax(text: str, make: Callable[[Any], Any]) -> None:
    start, grads = stream()
    losses = [3.0 / (1 + k) - 0.1 * k for k in range(STEPS)]
    assert np.max(worst(ours(text, start, grads, losses), optax_peer(make, start, grads, losses))) < 1e-12


@pytest.mark.parametrize("silent", [True, False])
def test_schedule_free_radam_equals_schedulefree(silent: bool) -> None:
    module = pytest.importorskip("schedulefree")
    start, grads = stream()

    def make(params: list[Any]) -> Any:
        opt = module.RAdamScheduleFree(params, lr=0.05, betas=(0.9, 0.95), weight_decay=0.1, silent_sgd_phase=silent, foreach=False)
        opt.train()
        return opt

    text = f"schedule_free_radam(lr=0.05, beta2=0.95, weight_decay=0.1, silent_sgd_phase={str(silent).lower()})"
    assert np.max(worst(ours(text, start, grads), torch_peer(make, start, grads))) < 1e-12


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_sparse_adam_equals_torch() -> None:
    """Rows that come twice add up before; those that do not come keep their moments."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w = rng.standard_normal((6, 3))
    p = torch.nn.Parameter(torch.tensor(w))
    peer = torch.optim.SparseAdam([p], lr=0.05)
    with tw.Optimizer([w], "sparse_adam(lr=0.05)") as opt:
        for rows in ([0, 2, 2], [5], [], [2, 1, 0], [5, 5, 5]):
            values = rng.standard_normal((len(rows), 3))
            p.grad = torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), torch.tensor(values), (6, 3))
            dense = np.zeros((6, 3))
            np.add.at(dense, rows, values)
            peer.step()
            opt.step([dense])
            np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("h, call", [
    ("grokfast(lamb=1.5, alpha=0.9)", lambda m, net, state: m.gradfilter_ema(net, state, alpha=0.9, lamb=1.5)),
    ("grokfast(form=ma, window=4, lamb=0.7)", lambda m, net, state: m.gradfilter_ma(net, state, window_size=4, lamb=0.7)),
    ("grokfast(form=ma, window=4, lamb=0.7, filter=sum, warmup=false)",
     lambda m, net, state: m.gradfilter_ma(net, state, window_size=4, lamb=0.7, filter_type="sum", warmup=False)),
])
def test_grokfast_equals_its_filters(h: str, call: Callable[[Any, Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("pytorch_optimizer.optimizer.grokfast")
    start, grads = stream()

    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(w)) for w in start])

    net, state = Net(), None
    for g in grads:
        for p, x in zip(net.w, g):
            p.grad = torch.tensor(x)
        state = call(module, net, state)
        with torch.no_grad():
            for p in net.w:
                p -= 0.1 * p.grad
    got = ours(f"{h} | sgd(lr=0.1)", start, grads)
    assert np.max(worst(got, [p.detach().numpy() for p in net.w])) < 1e-12


def test_grokfast_of_a_constant_gradient() -> None:
    w = np.zeros(3)
    with tw.Optimizer([w], "grokfast(lamb=2, alpha=0.5) | sgd(lr=1)") as opt:
        for k in range(1, 4):
            opt.step([np.ones(3)])
            np.testing.assert_allclose(w, -3.0 * k, rtol=1e-15)


@pytest.mark.parametrize("rule", ["lamb(lr=0.1)", "adamw(lr=0.1) | cautious", "adam(lr=0.1) | clip_global_norm(0.1)", "clip_global_norm(1) | lars"])
def test_grokfast_averages_once_a_step(rule: str) -> None:
    """However often the rules behind it walk over the gradient."""
    start, grads = stream()
    slow, filtered = grads[0], []
    for g in grads:
        slow = [0.5 * s + 0.5 * x for s, x in zip(slow, g)]
        filtered.append([x + 2 * s for x, s in zip(g, slow)])
    assert np.max(worst(ours(f"grokfast(alpha=0.5) | {rule}", start, grads), ours(rule, start, filtered))) < 1e-13


# ---- laws


@pytest.mark.parametrize("text", [
    "adam_atan2(lr=0.1)", "novograd(lr=0.1, eps=0)", "normuon(lr=0.1, eps=0, ns_eps=1e-300)", "adamuon(lr=0.1, eps=0)",
    "rprop", "sm3(eps=0)", "stable_adamw(lr=0.1, eps=1e-300)",
])
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_the_scale_of_the_gradients_drops_out(text: str, factor: float) -> None:
    start, grads = stream(MATRIX_SHAPES)
    scaled = [[factor * x for x in g] for g in grads]
    assert np.max(worst(ours(text, start, scaled), ours(text, start, grads))) < 1e-10


def test_adam_atan2_stays_bounded() -> None:
    """|u| is at most a*pi/2, where v has underflowed too; 0 of (0, 0); pi/4 of infinite moments."""
    w = np.zeros(4)
    with tw.Optimizer([w], "adam_atan2(lr=1, a=1, beta1=0.5, beta2=0.5)", nonfinite="propagate") as opt:
        opt.step([np.array([1e-200, -1e-200, 0.0, np.inf])])
    np.testing.assert_allclose(w, [-math.pi / 2, math.pi / 2, 0.0, -math.pi / 4], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_arctangent(dtype: Any) -> None:
    """Without moments one step is -atan(sign) over the ratio 1/b: b runs over the angles."""
    for b in np.concatenate([np.logspace(-6, 6, 61), [0.66, 1 / 0.66, 1.0, math.tan(math.pi / 8)]]):
        w = np.zeros(2, dtype)
        with tw.Optimizer([w], f"adam_atan2(lr=1, beta1=0, beta2=0, a=1, b={float(b)!r})") as opt:
            opt.step([np.array([2.0, -0.5], dtype)])
        want = math.atan2(1.0, float(b))
        np.testing.assert_allclose(w, [-want, want], rtol=4 * float(np.finfo(dtype).eps))


def test_stable_adamw_takes_a_long_gradient_calmly() -> None:
    start, grads = stream([(200,)])
    w = [start[0].copy()]
    with tw.Optimizer(w, "stable_adamw(lr=0.1, weight_decay=0, beta1=0)") as opt:
        for g in grads:
            opt.step(g)
        before = w[0].copy()
        opt.step([100 * grads[0][0]])
    assert np.sqrt(np.mean((w[0] - before) ** 2)) <= 0.1 * (1 + 1e-9)


def test_adamp_leaves_the_length_of_rows() -> None:
    """With a huge delta every row moves across itself."""
    start, grads = stream([(5, 8)])
    after = ours("adamp(lr=0.1, delta=1000)", start, grads[:1])[0]
    assert np.max(np.abs(np.sum(start[0] * (after - start[0]), axis=1))) < 1e-8  # eps stands beside the norm of the row


def test_dp_adam_without_noise_is_adam() -> None:
    start, grads = stream()
    text = "dp_adam_bc(lr=0.05, noise_multiplier=0, clip=1, batch_size=8, floor=1e-300)"
    assert np.max(worst(ours(text, start, grads), ours("adam(lr=0.05, eps=0)", start, grads))) < 1e-12


@pytest.mark.parametrize("text, same", [
    ("qhadam(lr=0.05)", "adam(lr=0.05)"), ("aggmo(lr=0.05, betas=[0.9])", "sgd(lr=0.05, momentum=0.9)"),
    ("lomo(lr=0.1, clip_norm=1)", "clip_global_norm(1, eps=1e-6) | sgd(lr=0.1)"),
    ("adam_mini(lr=0.05, blocks=adam)", "adamw(lr=0.05, weight_decay=0)"),
    ("grokadamw(lr=0.05, norm=none, gamma=0, lamb=0, eps=0)", "adamw(lr=0.05, eps=0)"),
    ("stable_adamw(lr=0.05, threshold=inf, form=timm)", "adamw(lr=0.05, beta2=0.99)"),
    ("ranger(lr=0.05, beta1=0.9, beta2=0.95, eps=1e-8, alpha=1, centralize=false)", "radam(lr=0.05, beta2=0.95)"),
    ("asgd(lr=0.1, lambd=0)", "sgd(lr=0.1)"),
    ("polargrad(lr=0.05, alpha=0, weight_decay=0)", "muon(lr=0.05, adjust_lr=none, momentum_form=ema, nesterov=false, weight_decay=0, "
     "ns_coefficients=quintic, eps=1e-15)"),
    ("ftrl(lr=0.1)", "adagrad(lr=0.1, eps=0)"),
])
def test_methods_that_are_others(text: str, same: str) -> None:
    start, grads = stream(MATRIX_SHAPES)
    if text.startswith("ftrl"):
        start = [0 * w for w in start]  # its parameters are a function of its sums
    assert np.max(worst(ours(text, start, grads), ours(same, start, grads))) < 1e-12


def test_ftrl_makes_exact_zeros() -> None:
    start, grads = stream()
    after = ours("ftrl(lr=0.1, lambda1=3)", start, grads)
    assert any(np.any(w == 0) for w in after) and any(np.any(w != 0) for w in after)


def test_asgd_averages_from_the_second_step() -> None:
    start, grads = stream()
    params = [w.copy() for w in start]
    points = []
    with tw.Optimizer(params, "asgd(lr=0.1, lambd=0, t0=0)") as opt:
        for g in grads:
            opt.step(g)
            points.append([w.copy() for w in params])
        with opt.averaged():
            want = [np.mean([p[i] for p in points[1:]], axis=0) for i in range(len(params))]
            assert np.max(worst(params, want)) < 1e-12


def test_adam_mini_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(tw.ShapeError, match="15 elements do not divide into `heads` = 4"):
        tw.Optimizer([np.ones((5, 3))], "adam_mini(blocks=head, heads=4)")
    w = np.ones((4, 3))
    with tw.Optimizer([w], "adam_mini(lr=1, blocks=head, heads=2, beta1=0, beta2=0)") as opt:
        opt.step([np.concatenate([np.full(6, 2.0), np.full(6, -5.0)]).reshape(4, 3)])
    np.testing.assert_allclose(w, np.repeat([0.0, 2.0], 6).reshape(4, 3), atol=1e-7)


def test_combinations_that_are_refused() -> None:
    for text, part in (
        ("adam_atan2(weight_decay=0.1, regenerate=0.1)", "exclude each other"), ("aggmo(betas=[0.9, 0.9])", "must differ"),
        ("aggmo(betas=[1])", r"in \[0, 1\)"), ("aggmo(betas=[])", "1 to 16 numbers, got 0"), ("rprop(step_min=2, step_max=1)", "at most"),
        ("spectral_clip(1, 0.5) | sgd", "at most"), ("sgd(lr=greedy(lr=1e-4))", "must lie between"),
        ("sgd(lr=batch_ladder([5, 3], [1, 2, 3]))", "ascending"), ("sgd(lr=batch_ladder([5], [1]))", "2 numbers"),
        ("sgd(lr=batch_ladder([5], [1, 2], multipliers=[1]))", "2 finite numbers"),
    ):
        with pytest.raises(tw.RangeError, match=part):
            tw.Optimizer([np.ones(3)], text)
    with pytest.raises(tw.ShapeError, match="too large"):
        tw.Optimizer([np.ones(1 << 21)], "grokfast(form=ma, window=1000000) | sgd")


# ---- updates


def test_update_floor() -> None:
    """The ratio is the floor where it was below, and the update is untouched above."""
    start, grads = stream([(4, 6), (7,)])
    for by in ("tensor", "row"):
        for floor, above in ((1e-3, True), (50.0, False)):
            got = ours(f"sgd(lr=1) | update_floor({floor}, by={by})", start, grads[:1])
            for w, g, after in zip(start, grads[0], got):
                if above:
                    np.testing.assert_array_equal(after, w - g)
                    continue
                rows = w.shape[0] if by == "row" and w.ndim > 1 else 1
                u = (w - after).reshape(rows, -1)
                np.testing.assert_allclose(np.linalg.norm(u, axis=1), floor * np.linalg.norm(w.reshape(rows, -1), axis=1), rtol=1e-12)
    still = ours("sgd(lr=1) | update_floor", start, [[0 * g for g in grads[0]]])
    assert all(np.array_equal(a, b) for a, b in zip(still, start))


def test_clip_update_rms_keeps_short_updates() -> None:
    start, grads = stream()
    for bound in ("1e9", "inf"):
        assert all(np.array_equal(a, b) for a, b in zip(ours(f"adamw(lr=0.1) | clip_update_rms({bound})", start, grads), ours("adamw(lr=0.1)", start, grads)))
    after = ours("sgd(lr=1) | clip_update_rms(0.25)", start, grads[:1])
    for w, g, a in zip(start, grads[0], after):
        assert np.sqrt(np.mean((a - w) ** 2)) == pytest.approx(min(0.25, np.sqrt(np.mean(g**2))), rel=1e-12)


@pytest.mark.parametrize("text", ["spectral_clip(0.5, 0.8", "spectral_hardcap(0.6"])
def test_newton_schulz_clips_as_the_decomposition_does(text: str) -> None:
    start, grads = stream([(4, 6), (6, 4), (5, 5)])
    exact = ours(f"sgd(lr=1) | {text})", start, grads[:1])
    quick = ours(f"sgd(lr=1) | {text}, method=ns, ns_steps=24)", start, grads[:1])
    assert np.max(worst(quick, exact)) < 1e-6
    low, high = (0.5, 0.8) if "clip" in text else (0.0, 0.6)
    for w, a in zip(start, exact):
        s = np.linalg.svd(w - a, compute_uv=False)
        assert low - 1e-9 < s.min() and s.max() < high + 1e-9
    again = ours(f"sgd(lr=1) | {text}) | {text})", start, grads[:1])
    assert np.max(worst(again, exact)) < 1e-12


# ---- coefficient sets


@pytest.mark.parametrize("name", muon.PRESETS)
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_coefficient_sets(name: str, steps: int) -> None:
    """Every name, with fewer steps than triples and with more: the library beside the reference."""
    start, grads = stream([(4, 6), (6, 4), (5, 5)])
    got = ours(f"sgd(lr=1) | orthogonalize(ns_coefficients={name}, ns_steps={steps})", start, grads[:1])
    for w, g, a in zip(start, grads[0], got):
        want = muon.orthogonalize(g, ns_coefficients=name, ns_steps=steps)
        np.testing.assert_allclose(w - a, want, rtol=0, atol=1e-10 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("h", [
    {"scaling": "spectral"}, {"scaling": "aol"}, {"scaling": "schatten"}, {"scaling": "frobenius", "ns_coefficients": "aol"},
    {"form": "gram"}, {"form": "gram", "ns_steps": 7, "resets": [2, 5]}, {"form": "gram", "ns_coefficients": "polar_express", "resets": []},
    {"form": "gram", "scaling": "aol", "safety": 1.1},
], ids=str)
def test_scalings_and_the_gram_form(h: dict[str, Any]) -> None:
    start, grads = stream([(4, 6), (6, 4), (5, 5)])
    text = ", ".join(f"{k}={v}" for k, v in h.items())
    got = ours(f"sgd(lr=1) | orthogonalize({text})", start, grads[:1])
    for w, g, a in zip(start, grads[0], got):
        np.testing.assert_allclose(w - a, muon.orthogonalize(g, **h), rtol=0, atol=1e-10)


def test_the_gram_form_is_the_standard_one() -> None:
    """In exact arithmetic; here small singular values are amplified by some 4^5, and their rounding with them."""
    start, grads = stream([(4, 9), (9, 4)])
    for name in ("simple", "quintic", "polar_express"):
        plain = ours(f"sgd(lr=1) | orthogonalize(ns_coefficients={name})", start, grads[:1])
        gram = ours(f"sgd(lr=1) | orthogonalize(ns_coefficients={name}, form=gram)", start, grads[:1])
        assert np.max(worst(gram, plain)) < 1e-10


def test_polar_express_8_is_the_polar_factor() -> None:
    start, grads = stream([(5, 8)])
    got = ours("sgd(lr=1) | orthogonalize(ns_coefficients=polar_express_8, ns_steps=8)", start, grads[:1])[0]
    U, _, Vt = np.linalg.svd(grads[0][0], full_matrices=False)
    assert np.max(np.abs(start[0] - got - U @ Vt)) < 1e-4


@pytest.mark.parametrize("scaling", ["frobenius", "spectral", "aol", "schatten"])
def test_scalings_equal_optax(scaling: str) -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    module = pytest.importorskip("optax.contrib._muon")
    rng = np.random.default_rng(3)
    for shape in ((6, 4), (4, 6)):
        M = rng.standard_normal(shape)
        c = jax.numpy.asarray(muon.PRESETS["quintic"])
        try:
            want = module.orthogonalize_via_newton_schulz(jax.numpy.asarray(M), c, 5, preconditioning=scaling, eps=1e-30)
        except TypeError:
            pytest.skip("this optax has one scaling")
        got = ours(f"sgd(lr=1) | orthogonalize(ns_coefficients=quintic, scaling={scaling}, eps=1e-30)", [np.zeros(shape)], [[M]])[0]
        np.testing.assert_allclose(-got, want, rtol=0, atol=1e-10)


def test_names_are_written_back() -> None:
    opt = tw.Optimizer([np.ones((3, 4))], "muon(ns_coefficients=quintic)")
    assert "ns_coefficients=quintic" in opt.sentence
    assert "ns_coefficients=simple" in tw.Optimizer([np.ones((3, 4))], "normuon").sentence


def test_muon_takes_the_names() -> None:
    start, grads = stream(MATRIX_SHAPES)
    numbers = [list(t) for t in muon.PRESETS["quintic"]]
    by_name = ours("muon(lr=0.05, ns_coefficients=quintic)", start, grads)
    assert all(np.array_equal(a, b) for a, b in zip(by_name, ours(f"muon(lr=0.05, ns_coefficients={numbers})", start, grads)))
    assert all(np.array_equal(a, b) for a, b in zip(by_name, ours("muon(lr=0.05, ns_coefficients=dion)", start, grads)))


# ---- matrix rules


@pytest.mark.parametrize("setting", matrix_demand.ScionMatrix.settings, ids=lambda s: s["norm"])
def test_scion_of_matrices(setting: dict[str, Any]) -> None:
    problem = Problem(MATRIX_SHAPES, seed=3)
    want, _ = reference_run(matrix_demand.ScionMatrix, setting, problem, np.float64)
    got, _ = library_run(sentence(matrix_demand.Scion, setting), problem, np.float64)
    assert np.max(worst(got, want)) < 1e-12
    with pytest.raises(tw.ShapeError, match="rank 2 or more"):
        tw.Optimizer([np.ones(3)], sentence(matrix_demand.Scion, setting))


def test_normuon_keeps_the_norm_and_adamuon_the_rms() -> None:
    start, grads = stream(MATRIX_SHAPES)
    after = ours("adamuon(lr=0.5, weight_decay=0, eps=0)", start, grads[:1])
    for w, a in zip(start, after):
        assert np.sqrt(np.mean((w - a) ** 2)) == pytest.approx(0.5 * 0.2, rel=1e-12)
    plain = ours("muon(lr=0.5, weight_decay=0, momentum_form=ema)", start, grads[:1])
    for w, a, m in zip(start, ours("normuon(lr=0.5)", start, grads[:1]), plain):
        assert np.linalg.norm(w - a) == pytest.approx(np.linalg.norm(w - m), rel=1e-8)


def test_scion_stays_in_its_ball() -> None:
    w = np.zeros((4, 6))
    with tw.Optimizer([w], "scion(lr=0.3, norm=sign, scale=2, momentum=1)") as opt:
        for k in range(50):
            opt.step([np.random.default_rng(k).standard_normal((4, 6))])
            assert np.max(np.abs(w)) <= 2 / 6 + 1e-12


# ---- norms


@pytest.mark.parametrize("setting", norm_descent.NormDirectionOfMatrices.settings, ids=lambda s: s["norm"])
def test_norm_direction_of_matrices(setting: dict[str, Any]) -> None:
    problem = Problem(MATRIX_SHAPES, seed=3)
    want, _ = reference_run(norm_descent.NormDirectionOfMatrices, setting, problem, np.float64)
    got, _ = library_run(sentence(norm_descent.NormDirection, setting), problem, np.float64)
    assert np.max(worst(got, want)) < 1e-12


VALUES: dict[str, Callable[[np.ndarray], float]] = {
    "l2": lambda W: float(np.linalg.norm(W)), "linf": lambda W: float(np.abs(W).max()), "rms": lambda W: float(np.sqrt(np.mean(W**2))),
    "spectral": lambda W: float(np.linalg.norm(W, 2)), "rms_to_rms": lambda W: math.sqrt(W.shape[1] / W.shape[0]) * float(np.linalg.norm(W, 2)),
    "nuclear": lambda W: float(np.linalg.norm(W, "nuc")), "l1_to_l2": lambda W: float(np.linalg.norm(W, axis=0).max()),
    "l1_to_rms": lambda W: float(np.linalg.norm(W, axis=0).max()) / math.sqrt(W.shape[0]), "l2_to_linf": lambda W: float(np.linalg.norm(W, axis=1).max()),
    "rms_to_linf": lambda W: math.sqrt(W.shape[1]) * float(np.linalg.norm(W, axis=1).max()), "sign_scaled": lambda W: W.shape[1] * float(np.abs(W).max()),
}


@pytest.mark.parametrize("norm", VALUES)
def test_directions_lie_on_the_unit_ball_and_none_goes_farther(norm: str) -> None:
    rng = np.random.default_rng(2)
    g = rng.standard_normal((4, 6))
    T = -ours(f"norm_direction(lr=1, norm={norm})", [np.zeros((4, 6))], [[g]])[0]
    assert VALUES[norm](T) == pytest.approx(1, rel=1e-12)
    for _ in range(200):
        other = rng.standard_normal((4, 6)) + 3 * rng.uniform() * T
        assert np.sum(g * other) / VALUES[norm](other) <= np.sum(g * T) + 1e-9


def test_norm_descent_moves_all_tensors_equally_far() -> None:
    start, grads = stream([(4, 6), (7, 3), (5,)])
    after = ours("norm_descent(lr=0.01)", start, grads[:1])
    lengths = [VALUES["rms_to_rms" if w.ndim > 1 else "rms"](w - a) for w, a in zip(start, after)]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-12)
