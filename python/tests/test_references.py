"""The optimizer references against the public packages that implement the same variant, and against closed forms.

Both sides take the same gradients, computed from their own current parameters, for `STEPS` steps in float64.

Tolerance.  A step of either side rounds a few times, each with a relative error of 2^-53 = 1.1e-16 of quantities of
order 1; the problem contracts, so the errors of `STEPS` steps add up to some 1e-14.  Dividing by sqrt(v) amplifies the
relative error of a small gradient by max|g|/|g|, which the noise keeps below 1e3.  1e-11 covers both.  Where a peer keeps
a scalar in float32 or places eps elsewhere, the row says so and has its own tolerance.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

from reference.adabelief import AdaBelief, Yogi
from reference.adafactor import Adafactor
from reference.adagrad import Adadelta, AdaGrad, AdaGradNorm, RMSProp
from reference.adam import Adam, AdaMax, AdamW, AMSGrad, CautiousAdamW, NAdam, RAdam
from reference.adam_cm import AdamCM
from reference.adam_snsm import AdamSNSM
from reference.adan import MARS, Adan
from reference.ademamix import AdEMAMix
from reference.base import Arrays, OptimizerReference
from reference.dadaptation import DAdaptAdam, DAdaptSGD, Prodigy
from reference.dal import DAL
from reference.dog import ADoG, DoG, DoWG, UDoG
from reference.grams import DiffGrad, Grams
from reference.langevin import SGLD, SphericalLangevin
from reference.laprop import ADOPT, LaProp
from reference.nigt import NIGT
from reference.oasis import OASIS, SANIA
from reference.o2nc import O2NC
from reference.optimistic import OptAMSGrad, OptimisticOMD, OptimisticSGD
from reference.rolling_ball import RollingBall
from reference.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from reference.sga_uap import SGAUAP
from reference.sgd import SGD, BetaNGD, PolyakSGD, SplitSGD
from reference.sign import Lion, Signum, Tiger
from reference.spsa import SPSA
from reference.trust_ratio import LAMB, LARS
from reference.variance_reduction import HARPG, SAGA, SPIDER, SVRG

STEPS = 30
SHAPES = [(), (7,), (5, 3), (2, 3, 2, 2)]
TOLERANCE = 1e-11


class Problem:
    """0.5 sum a (x - b)^2 with noise in the gradient: curvatures in [0.3, 1.5], one fresh noise vector a step."""

    def __init__(self, shapes: list[tuple[int, ...]] = SHAPES, noise: float = 0.3, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        draw = lambda scale: [np.array(scale * self.rng.normal(size=s)) for s in shapes]
        self.origin = draw(1.0)
        self.a = [np.array(self.rng.uniform(0.3, 1.5, size=s)) for s in shapes]
        self.b = draw(0.5)
        self.noise = [draw(noise) for _ in range(2 * STEPS)]

    def start(self) -> Arrays:
        return [np.copy(p) for p in self.origin]

    def loss(self, params: Arrays) -> float:
        return float(sum(0.5 * np.sum(a * (p - b) ** 2) for a, b, p in zip(self.a, self.b, params)))

    def gradient(self, params: Arrays, step: int) -> Arrays:
        return [a * (p - b) + n for a, b, p, n in zip(self.a, self.b, params, self.noise[step])]

    def exact(self, params: Arrays) -> Arrays:
        return [a * (p - b) for a, b, p in zip(self.a, self.b, params)]

    def hvp(self, params: Arrays, vectors: Arrays) -> Arrays:
        return [a * v for a, v in zip(self.a, vectors)]

    def normal(self, step: int) -> Arrays:
        rng = np.random.default_rng(1000 + step)
        return [np.array(rng.normal(size=p.shape)) for p in self.origin]


def trajectory(reference: OptimizerReference, problem: Problem, steps: int = STEPS, exact: bool = False) -> list[Arrays]:
    """The parameters after every step."""
    params, path = problem.start(), []
    reference.start(params)
    for k in range(steps):
        grads = problem.exact(params) if exact else problem.gradient(params, k)
        at = problem.exact if exact else lambda point, k=k: problem.gradient(point, k)
        reference.step(params, grads, loss=problem.loss(params), gradient_at=at, hvp=problem.hvp, normal=problem.normal)
        path.append([np.copy(p) for p in params])
    return path


def distance(path: list[Arrays], other: list[Arrays]) -> float:
    """The largest difference of an entry, relative to the largest entry of its tensor (but at least 1)."""
    return max(float(np.max(np.abs(p - q))) / max(1.0, float(np.max(np.abs(p))))
               for ps, qs in zip(path, other) for p, q in zip(ps, qs))


# --- torch peers -----------------------------------------------------------------------------------------------------

def torch_trajectory(make: Callable[[list[Any]], Any], problem: Problem, steps: int = STEPS) -> list[Arrays]:
    torch = pytest.importorskip("torch")
    params = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in problem.start()]
    optimizer, path = make(params), []
    if hasattr(optimizer, "train"):
        optimizer.train()
    for k in range(steps):
        values = [p.detach().numpy().copy() for p in params]
        for p, g in zip(params, problem.gradient(values, k)):
            p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        path.append([p.detach().numpy().copy() for p in params])
    return path


class Peer(NamedTuple):
    cls: type[OptimizerReference]
    hyper: dict[str, Any]
    module: str
    maker: str
    arguments: dict[str, Any]
    tolerance: float = TOLERANCE

    @property
    def label(self) -> str:
        return f"{self.module}.{self.maker}-{'-'.join(f'{k}={v}' for k, v in self.hyper.items())}"


B = {"beta1": 0.8, "beta2": 0.95}
b = {"betas": (0.8, 0.95)}
WD = {"weight_decay": 0.2}
B3 = {"beta1": 0.9, "beta2": 0.7, "beta3": 0.95}
LR = {"lr": 0.05}

TORCH = [
    Peer(AdamW, {**LR, **B, **WD}, "torch.optim", "AdamW", {**LR, **b, **WD}),
    Peer(AdamW, {**LR, "beta2": 0.7, "eps": 0.01, "amsgrad": True}, "torch.optim", "AdamW",
         {**LR, "betas": (0.9, 0.7), "eps": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    Peer(Adam, {**LR, **B, **WD}, "torch.optim", "Adam", {**LR, **b, **WD}),
    Peer(AMSGrad, {**LR, "beta2": 0.7, **WD}, "torch.optim", "Adam", {**LR, "betas": (0.9, 0.7), "amsgrad": True, **WD}),
    Peer(AdaMax, {**LR, **B, **WD, "eps": 0.01}, "torch.optim", "Adamax", {**LR, **b, **WD, "eps": 0.01}),
    # torch keeps the product of mu in a float32 tensor: a relative error of 6e-8 in 1 - product, times lr.
    Peer(NAdam, {**LR, **B, **WD}, "torch.optim", "NAdam", {**LR, **b, **WD}, 1e-7),
    Peer(NAdam, {**LR, "momentum_decay": 0.1, **WD, "decoupled": True}, "torch.optim", "NAdam",
         {**LR, "momentum_decay": 0.1, **WD, "decoupled_weight_decay": True}, 1e-7),
    Peer(RAdam, {**LR, **B, **WD}, "torch.optim", "RAdam", {**LR, **b, **WD}),
    Peer(RAdam, {**LR, "beta2": 0.95, **WD, "decoupled": True, "eps": 0.1}, "torch.optim", "RAdam",
         {**LR, "betas": (0.9, 0.95), **WD, "decoupled_weight_decay": True, "eps": 0.1}),
    Peer(SGD, {"lr": 0.1, **WD}, "torch.optim", "SGD", {"lr": 0.1, **WD}),
    Peer(SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, **WD}, "torch.optim", "SGD",
         {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, **WD}),
    Peer(SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "torch.optim", "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    Peer(RMSProp, {"alpha": 0.9, **WD}, "torch.optim", "RMSprop", {"alpha": 0.9, **WD}),
    Peer(RMSProp, {"alpha": 0.9, "momentum": 0.9, "centered": True, "eps": 0.01}, "torch.optim", "RMSprop",
         {"alpha": 0.9, "momentum": 0.9, "centered": True, "eps": 0.01}),
    Peer(AdaGrad, {"lr": 0.1, "lr_decay": 0.1, **WD, "initial_accumulator_value": 0.1}, "torch.optim", "Adagrad",
         {"lr": 0.1, "lr_decay": 0.1, **WD, "initial_accumulator_value": 0.1}),
    Peer(Adadelta, {"lr": 0.5, "rho": 0.7, "eps": 1e-3, **WD}, "torch.optim", "Adadelta",
         {"lr": 0.5, "rho": 0.7, "eps": 1e-3, **WD}),
    Peer(Adafactor, {}, "torch.optim", "Adafactor", {}),
    Peer(Adafactor, {"lr": 0.2, **WD, "beta2_decay": -0.5, "eps1": 0.3, "eps2": 0.7, "d": 1.5}, "torch.optim", "Adafactor",
         {"lr": 0.2, **WD, "beta2_decay": -0.5, "eps": (0.3, 0.7), "d": 1.5}),
    Peer(ScheduleFreeSGD, {"lr": 0.2, "momentum": 0.7, **WD, "warmup_steps": 10}, "schedulefree", "SGDScheduleFree",
         {"lr": 0.2, "momentum": 0.7, **WD, "warmup_steps": 10}),
    Peer(ScheduleFreeSGD, {"lr": 0.2, "r": 1.5, "weight_lr_power": 0.0}, "schedulefree", "SGDScheduleFree",
         {"lr": 0.2, "r": 1.5, "weight_lr_power": 0.0}),
    Peer(ScheduleFreeAdamW, {**LR, **B, **WD, "warmup_steps": 10}, "schedulefree", "AdamWScheduleFree",
         {**LR, **b, **WD, "warmup_steps": 10}),
    Peer(ScheduleFreeAdamW, {**LR, "eps": 0.1, "r": 1.5, "weight_lr_power": 1.0}, "schedulefree", "AdamWScheduleFree",
         {**LR, "eps": 0.1, "r": 1.5, "weight_lr_power": 1.0}),
    Peer(Prodigy, {"d0": 1e-2, **WD, **B, "use_bias_correction": True}, "prodigyopt", "Prodigy",
         {"d0": 1e-2, **WD, **b, "use_bias_correction": True}),
    Peer(Prodigy, {"d0": 1e-2, **WD, "decouple": False, "growth_rate": 1.1, "lr": 0.5}, "prodigyopt", "Prodigy",
         {"d0": 1e-2, **WD, "decouple": False, "growth_rate": 1.1, "lr": 0.5}),
    Peer(Prodigy, {"d0": 1e-2, "safeguard_warmup": True, "d_coef": 2.0, "beta3": 0.9, "lr": 0.3}, "prodigyopt", "Prodigy",
         {"d0": 1e-2, "safeguard_warmup": True, "d_coef": 2.0, "beta3": 0.9, "lr": 0.3}),
    # The peer's first norm leaves the decay out (a missing in-place mark), so only wd = 0 is the same method.
    Peer(DAdaptSGD, {"d0": 1e-2, "momentum": 0.9}, "dadaptation", "DAdaptSGD", {"d0": 1e-2, "momentum": 0.9}),
    Peer(DAdaptSGD, {"d0": 1e-2, "growth_rate": 1.05, "lr": 0.5}, "dadaptation", "DAdaptSGD",
         {"d0": 1e-2, "growth_rate": 1.05, "lr": 0.5}),
    Peer(DAdaptAdam, {"d0": 1e-2, **WD, **B, "use_bias_correction": True}, "dadaptation", "DAdaptAdam",
         {"d0": 1e-2, **WD, **b, "use_bias_correction": True}),
    Peer(DAdaptAdam, {"d0": 1e-2, **WD, "decouple": True, "growth_rate": 1.05}, "dadaptation", "DAdaptAdam",
         {"d0": 1e-2, **WD, "decouple": True, "growth_rate": 1.05}),
    Peer(DoG, {"reps_rel": 1e-2, **WD}, "dog", "DoG", {"reps_rel": 1e-2, **WD}),
    Peer(DoG, {"reps_rel": 1e-2, "layerwise": True, "lr": 0.5, "eps": 1.0}, "dog", "LDoG",
         {"reps_rel": 1e-2, "lr": 0.5, "eps": 1.0}),
    Peer(Lion, {**LR, "beta1": 0.7, "beta2": 0.9, **WD}, "lion_pytorch", "Lion", {**LR, "betas": (0.7, 0.9), **WD}),
    Peer(Lion, {**LR, "beta1": 0.7, "beta2": 0.9, **WD}, "pytorch_optimizer", "Lion", {**LR, "betas": (0.7, 0.9), **WD}),
    Peer(AdEMAMix, {**LR, "beta1": 0.8, "beta2": 0.95, "beta3": 0.99, "alpha": 2.0, **WD}, "pytorch_optimizer", "AdEMAMix",
         {**LR, "betas": (0.8, 0.95, 0.99), "alpha": 2.0, **WD, "weight_decouple": True}),
    Peer(AdEMAMix, {**LR, "beta3": 0.999, "t_alpha": 20, "t_beta3": 20}, "pytorch_optimizer", "AdEMAMix",
         {**LR, "betas": (0.9, 0.999, 0.999), "t_alpha_beta3": 20}),
    Peer(Grams, {**LR, **B, **WD, "eps": 0.01}, "pytorch_optimizer", "Grams", {**LR, **b, **WD, "eps": 0.01}),
    Peer(Adan, {**LR, **B3, **WD}, "pytorch_optimizer", "Adan", {**LR, "betas": (0.9, 0.7, 0.95), **WD}),
    Peer(Adan, {**LR, **WD, "prox": False}, "pytorch_optimizer", "Adan", {**LR, **WD, "weight_decouple": True}),
    Peer(AdaBelief, {**LR, **B, **WD}, "pytorch_optimizer", "AdaBelief", {**LR, **b, **WD}),
    Peer(AdaBelief, {**LR, **B, **WD, "decoupled": False}, "pytorch_optimizer", "AdaBelief",
         {**LR, **b, **WD, "weight_decouple": False}),
    Peer(Yogi, {**LR, **B, **WD, "initial_accumulator": 0.1}, "pytorch_optimizer", "Yogi",
         {**LR, **b, **WD, "initial_accumulator": 0.1}),
    Peer(DiffGrad, {**LR, **B, **WD, "eps_mode": "released", "eps": 0.01}, "pytorch_optimizer", "DiffGrad",
         {**LR, **b, **WD, "weight_decouple": False, "eps": 0.01}),
    Peer(Tiger, {**LR, "beta": 0.8, **WD}, "pytorch_optimizer", "Tiger", {**LR, "beta": 0.8, **WD}),
    Peer(Signum, {**LR, "momentum": 0.5, **WD}, "pytorch_optimizer", "SignSGD", {**LR, "momentum": 0.5, **WD}),
    # This peer adds another 1e-15 to v under the root, a relative 5e-16 / v: up to 1e-8 in the first steps of LaProp, whose
    # small normalised gradients weigh as much as large ones; 1e-11 in MARS.  Its eps sits before the correction, hence 1e-15;
    # LaProp decays after the step, hence no decay.
    Peer(LaProp, {**LR, **B, "eps": 1e-15}, "pytorch_optimizer", "LaProp", {**LR, **b, "eps": 1e-15}, 1e-7),
    Peer(MARS, {**LR, "gamma": 0.1, **WD, "lr_1d_factor": 0.5, "beta1_1d": 0.8, "eps": 1e-15}, "pytorch_optimizer", "MARS",
         {**LR, "gamma": 0.1, **WD, "weight_decay_1d": 0.2, "lr_1d": 0.025, "betas_1d": (0.8, 0.95), "eps": 1e-15},
         1e-9),
    Peer(MARS, {**LR, "gamma": 0.5, "optimize_1d": True, "eps": 1e-15}, "pytorch_optimizer", "MARS",
         {**LR, "gamma": 0.5, "optimize_1d": True, "eps": 1e-15}, 1e-9),
    Peer(LARS, {"lr": 0.5, "trust_coefficient": 0.05, **WD, "momentum": 0.5}, "pytorch_optimizer", "LARS",
         {"lr": 0.5, "trust_coefficient": 0.05, **WD, "momentum": 0.5}),
    # This peer keeps numerator and denominator of d in float32 (6e-8), and d compounds.
    Peer(Prodigy, {"d0": 1e-2, **WD}, "pytorch_optimizer", "Prodigy", {"d0": 1e-2, **WD}, 1e-5),
]


@pytest.mark.parametrize("peer", TORCH, ids=lambda p: p.label)
def test_torch_peer(peer: Peer) -> None:
    module = pytest.importorskip(peer.module)
    problem = Problem()
    ours = trajectory(peer.cls(**peer.hyper), problem)
    theirs = torch_trajectory(lambda params: getattr(module, peer.maker)(params, **peer.arguments), problem)
    assert distance(ours, theirs) < peer.tolerance


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adopt_peer_after_an_index_shift(decay: float) -> None:
    """The peer clips at its own call count t; the paper, and the authors' code, which counts from 0, at t - 1.

    With decoupled decay the peer also decays at the first call, which moves nothing here; coupled decay is the same.
    """
    module = pytest.importorskip("pytorch_optimizer")
    problem = Problem()
    ours = trajectory(ADOPT(lr=0.05, beta1=0.8, beta2=0.9, weight_decay=decay, decoupled=False), problem)
    theirs = torch_trajectory(lambda params: module.ADOPT(params, lr=0.05, betas=(0.8, 0.9), weight_decay=decay,
                                                          clip_lambda=lambda t: (t - 1) ** 0.25), problem)
    assert distance(ours, theirs) < TOLERANCE


def test_cautious_mask_peer() -> None:
    """The `count` form on Adam's direction."""
    torch, module = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer.base.optimizer")
    problem, hyper = Problem(), {"beta1": 0.95, "beta2": 0.9}
    plain, cautious = AdamW(**hyper), CautiousAdamW(scale="count", **hyper)
    states = [r.fresh(problem.origin[3]) for r in (plain, cautious)]
    for k in range(STEPS):
        g = problem.noise[k][3]
        u, v = (r.direction(g, advanced(s)) for r, s in zip((plain, cautious), states))
        expected = torch.tensor(u)
        module.BaseOptimizer.apply_cautious(expected, torch.tensor(g))
        assert np.max(np.abs(v - expected.numpy())) < TOLERANCE


def advanced(state: Any) -> Any:
    state.t += 1
    return state


def test_schedule_free_evaluation_weights() -> None:
    """The peers store y and z only and recover x in `eval`."""
    torch, module = pytest.importorskip("torch"), pytest.importorskip("schedulefree")
    problem = Problem()
    for cls, maker in ((ScheduleFreeSGD, module.SGDScheduleFree), (ScheduleFreeAdamW, module.AdamWScheduleFree)):
        reference, params = cls(lr=0.1), problem.start()
        reference.start(params)
        tensors = [torch.tensor(p, requires_grad=True) for p in problem.start()]
        optimizer = maker(tensors, lr=0.1)
        optimizer.train()
        for k in range(STEPS):
            grads = problem.gradient(params, k)
            reference.step(params, grads)
            for t, g in zip(tensors, grads):
                t.grad = torch.tensor(g)
            optimizer.step()
        optimizer.eval()
        assert distance([reference.evaluation_weights(params)], [[t.detach().numpy() for t in tensors]]) < TOLERANCE


# --- optax peers -----------------------------------------------------------------------------------------------------

def optax_trajectory(transform: Any, problem: Problem, steps: int = STEPS) -> list[Arrays]:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        transform = optax.with_extra_args_support(transform)
        params = [jax.numpy.asarray(p) for p in problem.start()]
        update = jax.jit(lambda g, s, p, v: (lambda u, t: (optax.apply_updates(p, u), t))(*transform.update(g, s, p, value=v)))
        state, path = transform.init(params), []
        for k in range(steps):
            values = [np.array(p) for p in params]
            grads = [jax.numpy.asarray(g) for g in problem.gradient(values, k)]
            params, state = update(grads, state, params, problem.loss(values))
            path.append([np.array(p) for p in params])
    return path


OPTAX: list[tuple[OptimizerReference, Callable[[Any], Any]]] = [
    (AdamW(**LR, **B, **WD), lambda o: o.adamw(0.05, b1=0.8, b2=0.95, weight_decay=0.2)),
    (Adam(**LR, **B), lambda o: o.adam(0.05, b1=0.8, b2=0.95)),
    # optax has both stabilisers: eps = 0 leaves the one inside the root.
    (Adam(**LR, eps=0.1, eps_in_sqrt=True), lambda o: o.adam(0.05, eps=0.0, eps_root=0.1)),
    (Lion(**LR, beta1=0.7, beta2=0.9, **WD), lambda o: o.lion(0.05, b1=0.7, b2=0.9, weight_decay=0.2)),
    (AdaBelief(**LR, **B, eps_root=1e-3), lambda o: o.adabelief(0.05, b1=0.8, b2=0.95, eps=1e-16, eps_root=1e-3)),
    (Yogi(**LR, **B), lambda o: o.yogi(0.05, b1=0.8, b2=0.95)),
    (LAMB(**LR, **B, **WD), lambda o: o.lamb(0.05, b1=0.8, b2=0.95, weight_decay=0.2)),
    (LARS(lr=0.5, trust_coefficient=0.05, **WD, momentum=0.5, denominator="update", skip_1d=False),
     lambda o: o.lars(0.5, weight_decay=0.2, trust_coefficient=0.05, momentum=0.5)),
    (AdaMax(**LR, **B), lambda o: o.adamax(0.05, b1=0.8, b2=0.95)),
    (Adadelta(lr=0.5, rho=0.7, eps=1e-3, **WD), lambda o: o.adadelta(0.5, rho=0.7, eps=1e-3, weight_decay=0.2)),
    (RMSProp(**LR, alpha=0.8, eps=0.01, eps_in_sqrt=True, centered=True),
     lambda o: o.rmsprop(0.05, decay=0.8, eps=0.01, centered=True)),
    (RMSProp(**LR, alpha=0.8, momentum=0.5), lambda o: o.rmsprop(0.05, decay=0.8, eps_in_sqrt=False, momentum=0.5)),
    (AdEMAMix(**LR, **B, beta3=0.99, alpha=2.0, **WD),
     lambda o: o.contrib.ademamix(0.05, b1=0.8, b2=0.95, b3=0.99, alpha=2.0, weight_decay=0.2)),
    (DoG(reps_rel=1e-2, **WD), lambda o: o.contrib.dog(1.0, init_step=("heuristic", 1e-2), weight_decay=0.2)),
    (DoWG(r_eps=0.05, eps=0.1), lambda o: o.contrib.dowg(1.0, init_estim_sq_dist=0.05**2, eps=0.1)),
    (Prodigy(d0=1e-2, use_bias_correction=True, **WD), lambda o: o.contrib.prodigy(1.0, estim_lr0=1e-2, weight_decay=0.2)),
    # Only scaling = 1: optax scales the gradient before it takes the norm, so that its step is divided by scaling squared.
    (PolyakSGD(max_lr=0.7, f_min=0.1, eps=0.3), lambda o: o.polyak_sgd(max_learning_rate=0.7, f_min=0.1, eps=0.3)),
    (PolyakSGD(max_lr=0.7, f_min=9.0, positive=True), lambda o: o.polyak_sgd(max_learning_rate=0.7, f_min=9.0, variant="sps+")),
    (OptimisticSGD(lr=0.1, alpha=0.7, beta=0.5), lambda o: o.optimistic_gradient_descent(0.1, alpha=0.7, beta=0.5)),
    (SGD(lr=0.1, momentum=0.9, nesterov=True), lambda o: o.sgd(0.1, momentum=0.9, nesterov=True)),
    (BetaNGD(lr=0.1), lambda o: o.chain(o.normalize_by_update_norm(eps=0.0), o.scale(-0.1))),
    (Signum(**LR, momentum=0.5), lambda o: o.chain(o.ema(0.5, debias=False), o.scale_by_sign(), o.scale(-0.05))),
    (SGLD(lr=0.05, temperature=0.0), lambda o: o.sgd(0.05)),
]


@pytest.mark.parametrize("reference, make", OPTAX, ids=[f"{i}-{r.name}" for i, (r, _) in enumerate(OPTAX)])
def test_optax_peer(reference: OptimizerReference, make: Callable[[Any], Any]) -> None:
    pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    pytest.importorskip("optax.contrib")
    problem = Problem()
    assert distance(trajectory(reference, problem), optax_trajectory(make(optax), problem)) < TOLERANCE


def test_subset_norm_peer() -> None:
    """Integer subsets on the matrix, plain Adam with eps on the uncorrected root elsewhere; decay after the step in ours, before
    it in the peer, so none here."""
    module = pytest.importorskip("pytorch_optimizer")
    problem = Problem()
    for subset in (4, -1):
        ours = trajectory(AdamSNSM(lr=0.05, beta2=0.95, subset=subset), problem)
        theirs = torch_trajectory(lambda params: module.AdamWSN(
            [{"params": [p], "sn": p.ndim == 2} for p in params], lr=0.05, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0,
            subset_size=subset), problem)
        assert distance(ours, theirs) < TOLERANCE


# --- Closed forms and invariances ------------------------------------------------------------------------------------

def moves(reference: OptimizerReference, grads: list[Arrays], params: Arrays | None = None) -> list[Arrays]:
    """The displacement of every step under given gradients (from zero, unless told)."""
    params = [np.zeros_like(g) for g in grads[0]] if params is None else params
    reference.start(params)
    found = []
    for g in grads:
        before = [np.copy(p) for p in params]
        reference.step(params, g)
        found.append([p - q for p, q in zip(params, before)])
    return found


def same(path: list[Arrays], other: list[Arrays], tolerance: float = 1e-12) -> bool:
    return distance(path, other) < tolerance


G = [np.array([0.3, -2.0, 0.0, 5.0]), np.array([[1.0, -0.1], [-3.0, 0.2]])]
NOISE = Problem().noise


@pytest.mark.parametrize("cls", [Adam, AMSGrad, AdaMax, LaProp, AdaGrad, Grams, Adan], ids=lambda c: c.name)
def test_first_step_is_a_sign_step(cls: type[OptimizerReference]) -> None:
    first = moves(cls(lr=0.1, eps=0.0), [G])[0]
    assert same([first], [[-0.1 * np.sign(g) for g in G]])


@pytest.mark.parametrize("cls", [Adam, AdaMax, NAdam, LaProp, AdaGrad, AMSGrad], ids=lambda c: c.name)
def test_gradient_scale_does_not_matter_without_eps(cls: type[OptimizerReference]) -> None:
    scaled = [[1e3 * g for g in grads] for grads in NOISE]
    assert same(moves(cls(lr=0.1, eps=0.0), NOISE), moves(cls(lr=0.1, eps=0.0), scaled))


@pytest.mark.parametrize("cls, hyper, other, other_hyper", [
    (AdamW, {"weight_decay": 0.0}, Adam, {}),
    (AdEMAMix, {"alpha": 0.0, "weight_decay": 0.1}, AdamW, {"weight_decay": 0.1}),
    (AMSGrad, {"beta2": 0.7}, AdamW, {"weight_decay": 0.0, "beta2": 0.7, "amsgrad": True}),
    (Tiger, {"beta": 0.8, "weight_decay": 0.1}, Signum, {"momentum": 0.8, "weight_decay": 0.1}),
    (Tiger, {"beta": 0.8, "weight_decay": 0.1}, Lion, {"beta1": 0.8, "beta2": 0.8, "weight_decay": 0.1}),
    (SGLD, {"temperature": 0.0}, SGD, {}),
    (BetaNGD, {"beta": 0.0}, SGD, {}),
    (AdamSNSM, {"subset": 1, "eps": 0.0}, Adam, {"eps": 0.0}),
    (AdamSNSM, {"subset": "off", "eps": 0.0, "rank": 3}, Adam, {"eps": 0.0}),
    (SplitSGD, {"fraction": 0.0, "momentum": 0.0, "dampening": 0.0}, SGD, {}),
    (OptimisticSGD, {"beta": 0.0}, SGD, {}),
    (ScheduleFreeAdamW, {"beta2": 0.0, "eps": 0.0, "beta1": 0.0}, Signum, {"momentum": 0.0}),
    (NIGT, {"eta": 1.0, "lr_power": 0.0}, BetaNGD, {}),
], ids=lambda x: x.name if isinstance(x, type) else "")
def test_special_cases(cls: Any, hyper: dict[str, Any], other: Any, other_hyper: dict[str, Any]) -> None:
    problem = Problem()
    assert same(trajectory(cls(lr=0.05, **hyper), problem), trajectory(other(lr=0.05, **other_hyper), problem))


def test_mars_without_correction_is_adamw() -> None:
    """gamma = 0, gradients shorter than 1, equal rates everywhere."""
    small = [[0.01 * g for g in grads] for grads in NOISE]
    mars = MARS(lr=0.05, gamma=0.0, beta1=0.9, beta2=0.95, weight_decay=0.1)
    assert same(moves(mars, small), moves(AdamW(lr=0.05, beta2=0.95, weight_decay=0.1), small))


def test_sign_methods_move_by_lr() -> None:
    for reference in (Lion(lr=0.1), Signum(lr=0.1), Tiger(lr=0.1, weight_decay=0.0)):
        for step in moves(reference, NOISE):
            assert all(np.allclose(np.abs(d), 0.1, rtol=1e-12) for d in step)
    assert all(np.all((d == 0) | np.isclose(np.abs(d), 0.1)) for d in moves(Lion(lr=0.1), [G])[0])


def test_grams_keeps_the_size_of_adam() -> None:
    grams, plain = moves(Grams(lr=0.1), NOISE), moves(Adam(lr=0.1, eps=1e-6), NOISE)
    for a, p, g in zip(grams, plain, NOISE):
        assert all(np.allclose(np.abs(x), np.abs(y), atol=1e-15) and np.all(x * n <= 0) for x, y, n in zip(a, p, g))


def test_cautious_steps_never_oppose_the_gradient() -> None:
    for scale in ("mean", "count", "none"):
        for step, g in zip(moves(CautiousAdamW(lr=0.1, weight_decay=0.0, scale=scale), NOISE), NOISE):
            assert all(np.all(d * n <= 0) for d, n in zip(step, g))
    constant = [G] * 5  # all signs agree; the zero entry does not count as kept, so leave it out
    constant = [[g[g != 0] for g in grads] for grads in constant]
    assert same(moves(CautiousAdamW(lr=0.1), constant), moves(AdamW(lr=0.1), constant))


def test_diffgrad_halves_adam_when_the_gradient_repeats() -> None:
    ours, plain = moves(DiffGrad(lr=0.1), [G, G]), moves(Adam(lr=0.1), [G, G])
    assert same([ours[1]], [[0.5 * d for d in plain[1]]])


def test_adagrad_after_equal_gradients() -> None:
    steps = moves(AdaGrad(lr=0.1, eps=0.0), [G] * 9)
    assert same([steps[8]], [[-0.1 / 3 * np.sign(g) for g in G]])


def test_adafactor_represents_rank_one_squares_exactly() -> None:
    g = np.outer([1.0, -2.0, 0.5], [3.0, 0.1])
    p = np.full((3, 2), 0.7)
    step = moves(Adafactor(lr=0.01), [[g]], [p])[0][0]
    assert np.allclose(step, -0.01 * 0.7 * np.sign(g), rtol=1e-12)


def test_ademamix_schedule_end_points() -> None:
    reference = AdEMAMix(beta3=0.999, t_alpha=10, t_beta3=20)
    half_lives = [math.log(0.5) / math.log(reference.beta3_at(t)) for t in range(1, 21)]
    assert np.allclose(np.diff(half_lives), np.diff(half_lives)[0])  # linear in the half-life
    assert reference.beta3_at(20) == reference.beta3_at(1000) == 0.999
    assert 0.9 < reference.beta3_at(1) < 0.999 and reference.alpha_at(5) == 2.5 and reference.alpha_at(50) == 5.0


def test_lamb_moves_by_a_share_of_the_norm() -> None:
    problem = Problem()
    params = problem.start()
    lengths = [np.sqrt(np.sum(p**2)) for p in params]
    step = moves(LAMB(lr=0.01, weight_decay=0.1), [NOISE[0]], params)[0]
    assert np.allclose([np.sqrt(np.sum(d**2)) for d in step], [0.01 * n for n in lengths], rtol=1e-12)


def test_yogi_keeps_v_nonnegative() -> None:
    reference = Yogi(beta2=0.5)
    params = [np.zeros(7)]
    reference.start(params)
    rng = np.random.default_rng(0)
    for k in range(100):
        reference.step(params, [rng.normal(size=7) * 10.0 ** rng.integers(-3, 3)])
        assert np.all(reference.states[0].v >= 0)


def test_adagrad_norm_scale_invariance() -> None:
    scaled = [[50 * g for g in grads] for grads in NOISE]
    assert same(moves(AdaGradNorm(b0=0.1), NOISE), moves(AdaGradNorm(b0=5.0), scaled))


@pytest.mark.parametrize("make", [lambda: DoG(reps_rel=1e-2, eps=1e-30), lambda: DoWG(), lambda: Prodigy(d0=1e-2, eps=1e-30),
                                  lambda: DAdaptSGD(d0=1e-2), lambda: ADoG(reps_rel=1e-2, eps=0.0)],
                         ids=["dog", "dowg", "prodigy", "dadapt_sgd", "a_dog"])
def test_learning_rate_free_methods_ignore_the_scale(make: Callable[[], OptimizerReference]) -> None:
    scaled = [[50 * g for g in grads] for grads in NOISE]
    start = lambda: [np.ones_like(g) for g in NOISE[0]]
    assert same(moves(make(), NOISE, start()), moves(make(), scaled, start()), 1e-9)


def test_u_dog_ignores_the_scale() -> None:
    problem, scaled = Problem(), Problem()
    scaled.a, scaled.noise = [50 * a for a in scaled.a], [[50 * n for n in noise] for noise in scaled.noise]
    hyper = {"r_eps_rel": 1e-2, "eps": 1e-30}
    assert same(trajectory(UDoG(**hyper), problem), trajectory(UDoG(**hyper), scaled), 1e-9)


def test_prodigy_estimate_never_decreases() -> None:
    problem, reference = Problem(), Prodigy(d0=1e-3)
    params = problem.start()
    reference.start(params)
    estimates = []
    for k in range(STEPS):
        reference.step(params, problem.gradient(params, k))
        estimates.append(reference.estimate)
    assert estimates[0] == 1e-3 and np.all(np.diff(estimates) >= 0) and estimates[-1] > 1e-2


def test_dadapt_sgd_waits_for_a_gradient() -> None:
    zero = [np.zeros_like(g) for g in G]
    late = moves(DAdaptSGD(d0=0.1), [zero, zero, G, G])
    assert same(late[2:], moves(DAdaptSGD(d0=0.1), [G, G])) and all(np.all(d == 0) for d in late[0] + late[1])


def test_polyak_halves_a_parabola() -> None:
    for a in (0.2, 3.0, 40.0):
        reference, p = PolyakSGD(max_lr=10.0), [np.array(2.0)]
        reference.start(p)
        reference.step(p, [a * p[0]], loss=float(0.5 * a * p[0] ** 2))
        assert np.isclose(p[0], 1.0)


def test_beta_ngd_moves_by_lr() -> None:
    step = moves(BetaNGD(lr=0.3), [G])[0]
    assert np.isclose(np.sqrt(sum(np.sum(d**2) for d in step)), 0.3)
    assert all(np.all(d == 0) for d in moves(BetaNGD(lr=0.3), [[np.zeros(3)]])[0])


def test_schedule_free_with_a_constant_gradient() -> None:
    """z_t = z_0 - gamma t g; with equal weights x_t is the mean of z_1..z_t."""
    reference = ScheduleFreeSGD(lr=0.1)
    params = [np.zeros_like(g) for g in G]
    reference.start(params)
    for t in range(1, 11):
        reference.step(params, G)
        x = [-0.1 * (t + 1) / 2 * g for g in G]
        assert same([reference.evaluation_weights(params)], [x])
        assert same([params], [[0.1 * (-0.1 * t * g) + 0.9 * xi for g, xi in zip(G, x)]])


def test_split_sgd_signs_the_largest() -> None:
    g = np.array([1.0, -5.0, 5.0, 0.1, 0.2])
    step = moves(SplitSGD(lr=1.0, sign_lr=0.5, fraction=0.4, momentum=0.0, dampening=0.0), [[g]])[0][0]
    assert np.allclose(step, [-1.0, 0.5, -0.5, -0.1, -0.2])
    tie = moves(SplitSGD(lr=1.0, sign_lr=0.5, fraction=0.25, momentum=0.0, dampening=0.0), [[np.ones(4)]])[0][0]
    assert np.allclose(tie, [-0.5, -1, -1, -1])


def test_adam_cm_first_steps_by_hand() -> None:
    """Capacity 1: the first call stores g1; the second steps along m + g1; then m replaces g1 if its key is larger."""
    g1, g2 = np.array([1.0, -2.0]), np.array([3.0, 4.0])
    steps = moves(AdamCM(lr=0.1, capacity=1, eps=0.0), [[g1], [g2], [g2]])
    m2 = 0.1 * g2
    a2 = m2 + g1
    v2 = 0.001 * a2**2
    expected = -0.1 / (1 - 0.9**2) * a2 / np.sqrt(v2 / (1 - 0.999**2))
    assert np.all(steps[0][0] == 0) and np.allclose(steps[1][0], expected, rtol=1e-12)
    m3 = 0.9 * m2 + 0.1 * g2
    a3 = m3 + m2  # the key 5 of g2 exceeds the decayed key 0.7 sqrt(5)
    v3 = 0.999 * v2 + 0.001 * a3**2
    assert np.allclose(steps[2][0], -0.1 / (1 - 0.9**3) * a3 / np.sqrt(v3 / (1 - 0.999**3)), rtol=1e-12)


def test_subset_norm_of_a_whole_tensor_is_adagrad_norm() -> None:
    grads = [[n[2]] for n in NOISE]  # one (5, 3) tensor
    ours = moves(AdamSNSM(lr=0.5, beta1=0.0, beta2=1.0, eps=0.0, subset=15), grads)
    assert same(ours, moves(AdaGradNorm(lr=0.5, b0=1e-150), grads))


@pytest.mark.parametrize("proj", ["svd", "topk", "uniform"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 6), (4, 4)])
def test_subspace_momentum_projects(proj: str, shape: tuple[int, int]) -> None:
    """beta1 = 0 gives the gradient back; the numerator differs from g only inside the subspace, of rank <= r."""
    rng = np.random.default_rng(0)
    g0, g1 = rng.normal(size=shape), rng.normal(size=shape)
    for beta1 in (0.0, 0.9):
        reference = AdamSNSM(rank=2, proj=proj, beta1=beta1)
        state = reference.fresh(g0)
        state.t, state.draws = 1, lambda: rng.normal(size=shape)
        reference.momentum(g0, state, True)
        state.t = 2
        numerator = reference.momentum(g1, state, True)
        assert np.linalg.matrix_rank(numerator - g1, tol=1e-10) == (0 if beta1 == 0 else 2)
        basis = state.basis
        assert np.allclose(basis @ basis.T, np.eye(2), atol=1e-12)


def test_oasis_on_a_diagonal_quadratic() -> None:
    problem, reference = Problem(), OASIS(lr0=0.1)
    params = problem.start()
    reference.start(params)
    for k in range(STEPS):
        reference.step(params, problem.exact(params), gradient_at=problem.exact, hvp=problem.hvp, normal=problem.normal)
        assert same([reference.diagonal], [problem.a])  # every probe gives the exact diagonal
    assert problem.loss(params) < 1e-10


def test_sania_with_the_exact_diagonal_is_newton() -> None:
    """Interpolation, exact curvature: 2 gap = <g, B^-1 g>, so one full step reaches the solution."""
    problem, reference = Problem(), SANIA(precond="hutchinson", eps=1e-8)
    params = problem.start()
    reference.start(params)
    reference.step(params, problem.exact(params), loss=problem.loss(params) * (1 + 1e-14), hvp=problem.hvp, normal=problem.normal)
    assert same([params], [problem.b])


def test_sania_squared_preconditioner_ignores_column_scales() -> None:
    """The predictions of a linear model do not change when its features are scaled."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(20, 4)), rng.normal(size=4)
    scales = 10.0 ** np.array([-2, 0, 1, 3])
    predictions = []
    for features in (x, x * scales):
        w, reference = [np.zeros(4)], SANIA(eps=1e-30)
        reference.start(w)
        for _ in range(STEPS):
            r = features @ w[0] - x @ target
            reference.step(w, [features.T @ r / 20], loss=float(np.mean(r**2) / 2))
        predictions.append(features @ w[0])
    assert np.allclose(*predictions, rtol=1e-9)


def test_dal_on_an_isotropic_quadratic() -> None:
    grads = [np.array([3.0, -1.0])]
    for curvature, power, expected in ((2.0, 1.0, 1.0), (0.1, 1.0, 5.0), (4.0, 0.5, 1.0), (0.0, 1.0, 5.0)):
        reference = DAL(static_lr=0.1, power=power)
        reference.start(grads)
        assert np.isclose(reference.rate(grads, [curvature * grads[0]]), expected)
    reference = DAL(static_lr=0.1, start=1, stop=2)
    reference.k, found = 0, []
    for reference.k in range(4):
        found.append(reference.rate(grads, [2 * grads[0]]))
    assert np.allclose(found, [0.1, 1.0, 1.0, 0.1])


def test_opt_amsgrad_extrapolates_a_linear_recurrence() -> None:
    """g_{k+1} - f = A (g_k - f) with A symmetric of 3 eigenvalues: 4 differences determine the fixed point f."""
    rng = np.random.default_rng(0)
    fixed, offset = rng.normal(size=3), rng.normal(size=3)
    rates = np.array([0.9, 0.5, -0.3])
    reference = OptAMSGrad(history=4, reg=1e-15)
    reference.stored = [[fixed + rates**k * offset] for k in range(5)]
    assert np.allclose(reference.predict()[0], fixed, atol=1e-6)
    flat = OptAMSGrad(history=4, reg=1e12)
    flat.stored = reference.stored
    assert np.allclose(flat.predict()[0], np.mean([g[0] for g in reference.stored[:4]], axis=0))


def test_optimistic_omd_stays_in_its_domain() -> None:
    problem = Problem()
    for params in trajectory(OptimisticOMD(D=0.8, domain="ball"), problem):
        assert sum(np.sum(p**2) for p in params) <= 0.4**2 * (1 + 1e-12)
    for params in trajectory(OptimisticOMD(D=0.8, domain="box"), problem):
        assert max(np.max(np.abs(p)) for p in params) <= 0.4
    rng, simplex = np.random.default_rng(0), [np.full(5, 0.2)]
    reference = OptimisticOMD(geometry="entropy", D=3.0)
    reference.start(simplex)
    cost = np.array([1.0, 0.2, 0.5, 0.9, 0.7])
    for _ in range(200):
        reference.step(simplex, [cost + 0.1 * rng.normal(size=5)])
        assert np.isclose(simplex[0].sum(), 1) and np.all(simplex[0] >= 0)
    assert simplex[0][1] > 0.9
    for hyper in OptimisticOMD.simplex_settings:
        points = [np.full(5, 0.2), np.full(3, 1 / 3)]
        reference = OptimisticOMD(**hyper)
        reference.start(points)
        reference.step(points, [cost, cost[:3]])
        eta = hyper.get("lr", 1.0), hyper.get("lr", 1 / np.sqrt(1 + cost @ cost + cost[:3] @ cost[:3]))
        weights = np.exp(-sum(eta) * cost)  # two moves along the same gradient from a uniform start
        assert np.allclose(points[0], weights / weights.sum())


def test_optimistic_omd_with_constant_losses() -> None:
    reference = OptimisticOMD()
    moves(reference, [G] * 10)
    assert np.isclose(reference.variation, sum(np.sum(g**2) for g in G))


def test_optimistic_omd_unconstrained_is_one_step_optimism() -> None:
    """x_{t+1} = x_t - 2 eta g_t + eta g_{t-1} with g_0 = 0 (optax starts from g_0 = g_1)."""
    steps = moves(OptimisticOMD(lr=0.1), NOISE)
    previous = [np.zeros_like(g) for g in NOISE[0]]
    for step, g in zip(steps, NOISE):
        assert same([step], [[-0.2 * n + 0.1 * o for n, o in zip(g, previous)]])
        previous = g


def test_optimism_solves_the_bilinear_game() -> None:
    """min over x, max over y of x y: gradient (y, -x)."""
    def final(reference: OptimizerReference) -> float:
        p = [np.array([1.0, 1.0])]
        reference.start(p)
        for _ in range(300):
            reference.step(p, [np.array([p[0][1], -p[0][0]])])
        return float(np.linalg.norm(p[0]))
    assert final(OptimisticSGD(lr=0.3)) < 1e-3 and final(OptimisticOMD(lr=0.3)) < 1e-3 and final(SGD(lr=0.3)) > 10


def test_nigt_transports_exact_gradients() -> None:
    """On a quadratic with exact gradients d_t is the gradient at theta_t, whatever the mixing rates."""
    problem = Problem()
    for hyper in ({"lr": 0.2}, {"lr": 0.1, "eta": 0.3, "lr_power": 0.0}):
        reference, params = NIGT(**hyper), problem.start()
        reference.start(params)
        for t in range(STEPS):
            before = [np.copy(p) for p in reference.iterate]
            reference.step(params, problem.exact(params))
            assert same([reference.d], [problem.exact(before)], 1e-10)
            length = np.sqrt(sum(np.sum((a - c) ** 2) for a, c in zip(reference.iterate, before)))
            assert np.isclose(length, hyper["lr"] * (2 / (t + 2)) ** hyper.get("lr_power", 1.0))


def test_sgld_reaches_the_stationary_variance() -> None:
    """Ornstein-Uhlenbeck: variance temperature / a, times 1 / (1 - lr a / 2) for the Euler chain."""
    rng, p = np.random.default_rng(0), [np.zeros(4000)]
    reference = SGLD(lr=0.1, temperature=0.5)
    reference.start(p)
    for _ in range(100):
        reference.step(p, [2.0 * p[0]], normal=lambda k: [rng.normal(size=4000)])
    assert np.isclose(np.var(p[0]), 0.25 / (1 - 0.1), rtol=0.1)  # the sampling error of 4000 chains is 2 %


def test_spherical_langevin_aligns_with_a_constant_field() -> None:
    rng, target = np.random.default_rng(0), np.array([0.6, 0.0, 0.8])
    p = [np.array([3.0, 4.0, 0.0])]
    reference = SphericalLangevin(dt=0.01, strength=5.0)
    reference.start(p)
    mean = np.zeros(3)
    for _ in range(3000):
        reference.step(p, [-target], normal=lambda k: [rng.normal(size=3)])
        assert np.isclose(np.linalg.norm(p[0]), 1)
        mean += p[0] / 3000
    assert mean @ target / np.linalg.norm(mean) > 0.95


# --- Every optimizer -------------------------------------------------------------------------------------------------

ALL = [AdaBelief, Yogi, Adafactor, Adadelta, AdaGrad, AdaGradNorm, RMSProp, Adam, AdaMax, AdamW, AMSGrad, CautiousAdamW, NAdam,
       RAdam, AdamCM, AdamSNSM, MARS, Adan, AdEMAMix, DAdaptAdam, DAdaptSGD, Prodigy, DAL, ADoG, DoG, DoWG, UDoG, DiffGrad, Grams,
       SGLD, SphericalLangevin, ADOPT, LaProp, NIGT, OASIS, SANIA, OptAMSGrad, OptimisticOMD, OptimisticSGD, ScheduleFreeAdamW,
       ScheduleFreeSGD, SGD, BetaNGD, PolyakSGD, SplitSGD, Lion, Signum, Tiger, LAMB, LARS, O2NC, SVRG, SAGA, SPIDER, HARPG,
       RollingBall, SGAUAP, SPSA]
CASES = [pytest.param(c, s, id=f"{c.name}-{i}") for c in ALL for i, s in enumerate(c.settings)]


@pytest.mark.parametrize("cls, hyper", CASES)
def test_shapes_and_places_survive(cls: type[OptimizerReference], hyper: dict[str, Any]) -> None:
    """Changed in place, finite, also with a 0-d and an empty tensor; no gradient array is written to."""
    problem = Problem(SHAPES + [(0,), (3, 6), (2, 0)])
    params = problem.start()
    places = list(params)
    reference = cls(**hyper)
    reference.start(params)
    for k in range(12):
        grads = problem.gradient(params, k)
        kept = [np.copy(g) for g in grads]
        reference.step(params, grads, loss=problem.loss(params), gradient_at=lambda q: problem.gradient(q, k), hvp=problem.hvp,
                       normal=problem.normal, loss_at=problem.loss)
        assert all(np.array_equal(g, q) for g, q in zip(grads, kept))
    assert all(p is q and p.shape == q.shape and np.all(np.isfinite(p)) for p, q in zip(params, places))


@pytest.mark.parametrize("cls, hyper", CASES)
def test_zero_gradients_are_harmless(cls: type[OptimizerReference], hyper: dict[str, Any]) -> None:
    """From zero weights, without noise, nothing moves; no NaN comes from 0/0, eps = 0 included."""
    if cls in (SGLD, SphericalLangevin) or (cls is Yogi and hyper.get("initial_accumulator", 1.0) > 0):
        pytest.skip("moves without a gradient")
    zeros = lambda point=None: [np.zeros(s) for s in SHAPES]
    params, reference = zeros(), cls(**hyper)
    reference.start(params)
    for _ in range(4):
        reference.step(params, zeros(), loss=0.0, gradient_at=zeros, hvp=lambda p, v: zeros(),
                       normal=lambda k: [np.ones(s) for s in SHAPES], loss_at=lambda point: 0.0)
    assert all(np.all(p == 0) for p in params)


CONVERGING: list[tuple[OptimizerReference, int, float]] = [
    # reference, steps, share of the starting loss that may remain (exact gradients, condition number 5)
    (AdaBelief(lr=0.05), 300, 1e-2), (Yogi(lr=0.05), 300, 1e-2), (Adafactor(lr=0.05), 300, 5e-2),
    (Adadelta(rho=0.9, eps=1e-3), 300, 1e-2), (AdaGrad(lr=0.5), 300, 1e-2), (AdaGradNorm(lr=1.0), 300, 1e-6),
    (AdaGradNorm(lr=30.0), 300, 1e-6), (RMSProp(lr=0.02), 300, 1e-2), (Adam(lr=0.05), 300, 1e-3),
    (AdamW(lr=0.05, weight_decay=0.0), 300, 1e-3), (AMSGrad(lr=0.05), 300, 1e-3), (AdaMax(lr=0.05), 300, 1e-3),
    (NAdam(lr=0.05), 300, 1e-3), (RAdam(lr=0.05), 300, 1e-3), (CautiousAdamW(lr=0.05, weight_decay=0.0), 300, 1e-3),
    (AdamCM(lr=0.02), 300, 5e-2), (AdamSNSM(lr=0.1), 300, 1e-2), (AdamSNSM(lr=0.1, rank=2, gap=20), 300, 1e-2),
    (MARS(lr=0.05), 300, 1e-2), (Adan(lr=0.05), 300, 1e-2), (AdEMAMix(lr=0.02, beta3=0.99, alpha=1.0), 400, 5e-2),
    (Grams(lr=0.05), 300, 1e-2), (DiffGrad(lr=0.1), 300, 1e-3), (LaProp(lr=0.05), 300, 1e-2),
    (ADOPT(lr=0.05, beta2=0.99), 300, 1e-2), (Lion(lr=0.005), 600, 1e-2), (Signum(lr=0.01), 300, 1e-2),
    (Tiger(lr=0.01), 300, 1e-2), (LAMB(lr=0.05), 300, 1e-1), (LARS(lr=0.5, trust_coefficient=0.05), 300, 1e-1),
    (SGD(lr=0.5), 300, 1e-6), (SGD(lr=0.3, momentum=0.8), 300, 1e-6), (BetaNGD(lr=0.02), 400, 1e-3),
    (PolyakSGD(), 300, 1e-6), (SplitSGD(lr=0.5, sign_lr=0.01), 300, 1e-2), (ScheduleFreeSGD(lr=1.0), 300, 1e-2),
    (ScheduleFreeAdamW(lr=0.1), 300, 1e-2), (Prodigy(), 400, 5e-2), (DAdaptSGD(), 400, 5e-2), (DAdaptAdam(), 400, 5e-2),
    (DoG(), 400, 1e-2), (DoWG(), 400, 1e-2), (UDoG(), 300, 1e-2), (ADoG(), 400, 1e-2), (OASIS(), 300, 1e-6),
    (SANIA(), 400, 1e-2), (DAL(static_lr=0.1, max_lr=1.2), 300, 1e-6), (OptAMSGrad(lr=0.02), 300, 1e-2),
    (OptimisticSGD(lr=0.3), 300, 1e-6), (OptimisticOMD(D=10.0), 300, 1e-2), (NIGT(lr=1.0), 400, 1e-2),
    (O2NC(radius=0.05, eta=0.02), 400, 5e-2), (SVRG(lr=0.5, inner=5), 300, 1e-6), (SAGA(lr=0.1, n=3), 300, 1e-6),
    (SPIDER(lr=0.02), 400, 1e-3),
    (SPIDER(lr=0.5, normalize=False), 300, 1e-6), (HARPG(lr=1.0), 400, 1e-2), (RollingBall(lr=0.5, projection_lr=0.05), 300, 1e-2),
]


@pytest.mark.parametrize("reference, steps, share", CONVERGING, ids=[f"{i}-{r.name}" for i, (r, _, _) in enumerate(CONVERGING)])
def test_converges_on_a_quadratic(reference: OptimizerReference, steps: int, share: float) -> None:
    problem = Problem([(7,), (5, 3)])
    params = problem.start()
    before = problem.loss(params)
    reference.start(params)
    for _ in range(steps):
        reference.step(params, problem.exact(params), loss=problem.loss(params), gradient_at=problem.exact, hvp=problem.hvp,
                       normal=problem.normal, loss_at=problem.loss)
    assert problem.loss(reference.evaluation_weights(params)) < share * before
