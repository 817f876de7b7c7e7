"""What the contract tests share: every kind of sentence, and a host whose tensors go by name, in any order."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from support import Arrays, Problem, is_matrix_method, optimizers, sentence_of

SHAPES = [(), (5,), (4, 3), (2, 3, 2, 2)]
MATRIX_SHAPES = [(5, 3), (4, 6), (2, 3, 2, 2)]

# Sentences of several sources, which ask each other.
SOURCES = [
    "gradient_accumulate(4) | sam(0.05) | clip_global_norm(1) | adamw",
    "pcgrad(tasks=2) | sam(0.05) | sgd",
    "sam(0.05) | oasis",
    "route(matrix=(sam(0.1) | muon), other=(adamw))",
    'route("t0"=(tract(0.1) | sgd(momentum=0.9)), "t1"=(tract(0.5) | adamw), other=(sgd))',
    "sam | adamw | ghost_step",
]

# Sentences of the other kinds of stage, and of rules in the form that asks for more.
COMPOSED = {
    "ema": "adamw(lr=0.1) | ema(0.9)",
    "ema_zero": "sgd(lr=0.1) | ema(0.9, first=zero)",
    "swa": "sgd(lr=0.1) | swa(start=1, freq=2)",
    "poly_decay_average": "sgd(lr=0.1) | poly_decay_average",
    "trajectory_moments": "sgd(lr=0.1) | trajectory_moments",
    "lookahead": "sgd(lr=0.1, momentum=0.9) | lookahead(k=2)",
    "lookahead_reset": "adamw(lr=0.1) | lookahead(k=2, pullback=reset)",
    "schedule_free": "sgd(lr=0.1) | schedule_free",
    "schedule_free_adam": "adam(lr=0.1) | schedule_free(warmup_steps=2)",
    "nm_sparsity": "sgd(lr=0.1, momentum=0.9) | nm_sparsity(n=2, m=4)",
    "nm_sparsity_decay": "adamw(lr=0.1) | nm_sparsity(n=2, m=4, decay=0.1)",
    "sam": "sam(0.05) | adamw(lr=0.1)",
    "sam_polyak": "sam(0.05) | polyak_sgd",
    "sam_dog": "sam(0.05) | dog(reps_rel=0.1)",
    "sam_route": "sam(0.05) | route(matrix=(muon(lr=0.1)), other=(adamw(lr=0.1)))",
    "sam_schedule_free": "sam(0.05) | sgd(lr=0.1) | schedule_free",
    "sam_ema": "sam(0.05) | sgd(lr=0.1) | ema(0.9)",
    "sam_lookahead": "sam(0.05) | sgd(lr=0.1) | lookahead(k=2)",
    "ema_nesterov": "ema_nesterov(ema=0.5) | sgd(lr=0.1, momentum=0.9)",
    "sam_ema_nesterov": "sam(0.05) | ema_nesterov(0.6, ema=0.5) | sgd(lr=0.1, momentum=0.9)",
    "fd_grad_reg": "fd_grad_reg(0.1) | sgd(lr=0.1, momentum=0.9)",
    "fd_grad_reg_central": "fd_grad_reg(0.1, scheme=central) | sgd(lr=0.1)",
    "pcgrad": "pcgrad(tasks=3) | adamw(lr=0.1)",
    "upgrad": "upgrad(tasks=2) | sgd(lr=0.1, momentum=0.9)",
    "asam": "asam(0.1) | adamw(lr=0.1)",
    "sam_on": "sam_on(0.1) | sgd(lr=0.1)",
    "usam": "usam(0.1) | sgd(lr=0.1, momentum=0.9)",
    "dnsam": "dnsam(0.1) | sgd(lr=0.1)",
    "tram": "tram(0.5) | adamw(lr=0.1)",
    "gsam": "gsam(0.1) | sgd(lr=0.1, momentum=0.9)",
    "gnp": "gnp(0.1) | sgd(lr=0.1)",
    "friendly_sam": "friendly_sam(0.1) | sgd(lr=0.1)",
    "looksam": "looksam(0.5, k=2) | sgd(lr=0.1)",
    "avg_sam": "avg_sam(0.1) | sgd(lr=0.1)",
    "esam": "esam(0.1) | sgd(lr=0.1)",
    "fsam": "fsam(0.3, keep_ratio=0.5, refresh_every=2) | sgd(lr=0.1)",
    "imbsam": "imbsam(0.1) | sgd(lr=0.1)",
    "amp": "amp(0.1, inner_iter=2) | sgd(lr=0.1)",
    "ignite": "ignite(lambda0=0.1, eta_lambda=0.1) | sgd(lr=0.1)",
    "accumulate_friendly": "gradient_accumulate(2) | friendly_sam(0.1) | clip_global_norm(1) | adamw(lr=0.1)",
    "adahessian_each": "adahessian(lr=0.1, update_each=3)",
    "looksam_avg_sam": "looksam(0.1, k=2) | avg_sam(0.1) | sgd(lr=0.1)",
    "avg_sam_fsam": "avg_sam(0.1) | fsam(0.3, keep_ratio=0.5, refresh_every=2) | sgd(lr=0.1)",
    "routed_friendly": "route(matrix=(friendly_sam(0.1) | muon(lr=0.1)), other=(looksam(0.1, k=2) | adamw(lr=0.1)))",
    "sam_gs": "sam_gs(tasks=2) | sgd(lr=0.1)",
    "gcond": "gcond(tasks=2, dominance_window=1) | sgd(lr=0.1)",
    "pareto_da": "pareto_da(tasks=2) | sgd(lr=0.1)",
    "bloop": "bloop(ema=0.5) | sgd(lr=0.1)",
    "graddrop": "graddrop(tasks=3) | sgd(lr=0.1)",
    "and_mask": "and_mask(tasks=3, tau=0.3) | sgd(lr=0.1)",
    "gradvac": "gradvac(tasks=3) | sgd(lr=0.1)",
    "nash_mtl": "nash_mtl(tasks=2, update_every=2) | sgd(lr=0.1)",
    "coordinate_median": "coordinate_median(tasks=3) | sgd(lr=0.1)",
    "median_gd": "median_gd(tasks=3, norm=l2) | sgd(lr=0.1)",
    "gradvac_sam_gs": "sam(0.05) | gradvac(tasks=2) | bloop | sgd(lr=0.1)",
    "online_median": "online_median_gradient(0.5) | sgd(lr=0.1)",
    "accumulate_sam": "gradient_accumulate(2) | sam(0.05) | clip_global_norm(1) | adamw(lr=0.1)",
    "sam_accumulate": "sam(0.05) | gradient_accumulate(2) | sgd(lr=0.1, momentum=0.9)",
    "pcgrad_sam": "pcgrad(tasks=2) | sam(0.05) | sgd(lr=0.1)",
    "glad": "glad(0.5) | sgd(lr=0.1)",
    "gaqat_freeze": "gaqat_freeze(window=3, rho=0.1) | sgd(lr=0.1)",
    "zo_gradient": "zo_gradient(0.1, q=2, central=true) | sgd(lr=0.01)",
    "openai_es": "openai_es(pairs=2, sigma=0.1) | sgd(lr=0.01, momentum=0.5)",
    "error_feedback": "error_feedback(ratio=0.3) | sgd(lr=0.1)",
    "sam_oasis": "sam(0.05) | oasis(lr0=0.05)",
    "sam_mars": "sam(0.05) | mars(lr=0.1, exact=true)",
    "sam_ghost_step": "sam(0.05) | adamw(lr=0.1) | ghost_step",
    "sam_project": "sam(0.05) | sam(0.1) | sgd(lr=0.1) | project(l2_ball(1))",
    "routed_sam": "route(matrix=(sam(0.1) | muon(lr=0.1)), other=(adamw(lr=0.1)))",
    "routed_sources": "sam(0.05) | route(matrix=(sam(0.1) | oasis(lr0=0.05)), other=(svrg(lr=0.1, inner=2)))",
    "routed_accumulate": "route(matrix=(gradient_accumulate(2) | sam(0.1) | sgd(lr=0.1)), other=(u_dog(r_eps_rel=0.1)))",
    "dp_sgd": "dp_sgd(noise_multiplier=0.3, expected_batch_size=8, micro_batches=2) | adamw(lr=0.1)",
    "dp_adaptive_clip": "dp_adaptive_clip(noise_multiplier=0.3, expected_batch_size=4) | sgd(lr=0.1, momentum=0.9)",
    "dp_accumulate": "dp_sgd(noise_multiplier=0.3, expected_batch_size=4) | gradient_accumulate(2) | sgd(lr=0.1)",
    "fedavg": "fedavg(participants=3, weights=[1, 3, 0]) | sgd(lr=0.5, momentum=0.9)",
    "fedavg_fedopt": "fedavg(participants=2) | fedopt(kind=yogi)",
    "tract": "tract(0.1) | adamw(lr=0.1)",
    "routed_tract": 'route("t2"=(tract(0.1) | sgd(lr=0.1)), "t3"=(tract(0.5) | adamw(lr=0.1)), other=(sgd(lr=0.1)))',
    "ghost_step": "adamw(lr=0.1) | ghost_step",
    "mars_exact": "mars(lr=0.1, exact=true)",
    "sania_hutchinson": "sania(precond=hutchinson)",
    "oasis_fixed": "oasis(adaptive=false)",
    "sga_uap_3": "sga_uap(inner_steps=3, momentum=0.5)",
    "rolling_ball_2": "rolling_ball(n_projection=2)",
    "gradient_noise": "gradient_noise | sgd(lr=0.1)",
    "curl_descent": "curl_descent(axis=0, fraction=0.5) | sgd(lr=0.1)",
    "accumulate": "gradient_accumulate(every=2) | sgd(lr=0.1, momentum=0.9)",
    "clip": "clip_global_norm(1.0) | sgd(lr=0.1, momentum=0.9)",
    "coordinate_clip": "coordinate_clip(fraction=0.1) | sgd(lr=0.1)",
    "powerprop": "powerprop_precond | sgd(lr=0.1)",
    "penalty": "penalty(l2(0.1)) | sgd(lr=0.1)",
    "cautious": "adam(lr=0.1) | cautious",
    "decoupled": "adam(lr=0.1) | decoupled(l2(0.1))",
    "prox": "sgd(lr=0.1, momentum=0.9) | prox(l1(0.1))",
    "project": "sgd(lr=0.1) | project(l2_ball(1))",
    "manifold": "sgd(lr=0.1, momentum=0.9) | manifold(stiefel)",
    "orthogonalize": "sgd(lr=0.1, momentum=0.9) | orthogonalize",
    "orthogonalize_gram": "sgd(lr=0.1, momentum=0.9) | orthogonalize(form=gram, ns_coefficients=aol)",
    "spectral_clip": "sgd(lr=0.1, momentum=0.9) | spectral_clip(method=ns)",
    "spectral_hardcap": "sgd(lr=0.1, momentum=0.9) | spectral_hardcap(0.5)",
    "norm_descent_ema": "norm_descent(lr=0.001, momentum=0.5)",
    "gradient_ema": "gradient_ema(0.5) | lamb(lr=0.01)",
    "grokfast": "grokfast | sgd(lr=0.1)",
    "grokfast_window": "grokfast(form=ma, window=3) | sgd(lr=0.1)",
    "clip_update_rms": "adamw(lr=0.1) | clip_update_rms(0.5)",
    "update_floor": "sgd(lr=0.01) | update_floor(0.1, by=row)",
    "cautious_decay": "adamw(lr=0.1, weight_decay=0.3) | cautious_decay",
    "corrected_decay": "adamw(lr=0.1, weight_decay=0.3) | corrected_decay",
    "relative_update": "adamw(lr=0.01) | relative_update",
    "radial_brake": "adamw(lr=0.1) | radial_brake",
    "hyperball": "adamw(lr=0.01) | hyperball",
    "adam_atan2_regenerate": "adam_atan2(lr=0.1, regenerate=0.5)",
    "fosi_often": "fosi(lr=0.1, k=1, interval=2, warmup=1, order=4)",
    "magma": "adamw(lr=0.1) | magma",
    "mechanic": "adamw(lr=0.1) | mechanic",
    "newton_schulz": "newton_schulz | sgd(lr=0.1, momentum=0.9)",
    "automatic_clip": "automatic_clip(noise_multiplier=0.3, expected_batch_size=4) | sgd(lr=0.1)",
    "madgrad_plain": "madgrad(lr=0.1, momentum=0)",
    "sm3_momentum": "sm3(momentum=0.9)",
    "momo_adam": "momo(lr=0.1, precondition=adam, adapt_lower_bound=true)",
    "greedy": "sgd(lr=greedy(lr=0.1, patience=0, factor=0.5, smooth=true, window=3), momentum=0.9)",
    "batch_ladder": "sgd(lr=batch_ladder([2, 4], [1, 4, 9], lr=0.1))",
    "route": "route(matrix=(muon(lr=0.1)), other=(clip_global_norm(1.0) | adamw(lr=0.1)))",
    "amsgrad_flag": "adamw(lr=0.1, amsgrad=true)",
    "reduce_on_plateau": "sgd(lr=reduce_on_plateau(lr=0.1, patience=0, factor=0.5), momentum=0.9)",
    "warmup_cosine": "adamw(lr=warmup_cosine(peak=0.1, warmup=2, total=9))",
    "one_cycle": "sgd(lr=one_cycle(lr=0.1, total=9), momentum=linear(lr=0.9, end=0.5, total=9))",
}

# Rules whose first steps are so short with the defaults that a mistake would not show.
LARGER = {
    "dog": {"reps_rel": "0.1"},
    "a_dog": {"reps_rel": "0.1"},
    "u_dog": {"r_eps_rel": "0.1"},
    "dowg": {"r_eps": "0.01"},
    "prodigy": {"d0": "0.01"},
    "dadapt_sgd": {"d0": "0.01"},
    "dadapt_adam": {"d0": "0.01"},
    "lbfgs": {"history_size": "3", "max_iter": "3"},
}

CASES: dict[str, str] = {m.name: sentence_of(m, **LARGER.get(m.name, {})) for m in optimizers()} | COMPOSED

_MATRIX_STAGES = ("orthogonalize", "newton_schulz", "manifold(stiefel)", "spectral_")
_SPARSE_SHAPES = [(8,), (3, 8), (2, 3, 8)]

# What a method has to be told before each step, besides what it asks for.
WATCHED = {"xgd": ("weight_0", "weight_1"), "saga": ("sample",), "reduce_on_plateau": ("metric",), "greedy": ("metric",)}


@cache
def shapes_of(name: str) -> list[tuple[int, ...]]:
    """Shapes that the case takes: of all ranks, or of matrices and kernels alone."""
    if "nm_sparsity" in CASES[name]:
        return _SPARSE_SHAPES
    method = next((m for m in optimizers() if m.name == name), None)
    matrices = is_matrix_method(method) if method else any(s in CASES[name] for s in _MATRIX_STAGES)
    return MATRIX_SHAPES if matrices else SHAPES


def cases(names: Iterable[str] | None = None) -> list[Any]:
    return list(CASES if names is None else names)


@cache
def given(name: str) -> bool:
    """Whether the first answer of a step is not read from the gradients."""
    host = Host(name)
    host.bind()
    host.tell(0)
    loop = host.opt.requests()
    kind = next(loop).kind
    loop.close()
    return kind in ("loss", "sample_gradients")


@cache
def asks(name: str) -> tuple[int, ...]:
    """How many requests the first three steps make."""
    host = Host(name)
    return tuple(host.step(k) for k in range(3))


@cache
def many() -> list[str]:
    """The cases that ask more than once in some step."""
    return [name for name in CASES if max(asks(name)) > 1]


def narrow(dtype: str) -> Any:
    if dtype == "bf16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype])


class Host:
    """An optimizer and its host.  Tensor i is called "t<i>", wherever it is bound; what is told of it goes by its name.

    name     of a case, or a sentence
    order    the order in which the tensors are bound
    groups   [(group's name, [tensors], {overrides})] in place of one plain list
    start    weights by tensor, in place of the problem's
    bound    gradients are bound at once
    """

    def __init__(
        self,
        name: str,
        shapes: Sequence[tuple[int, ...]] | None = None,
        *,
        dtype: str = "f64",
        order: Sequence[int] | None = None,
        groups: Sequence[tuple[str, Sequence[int], Mapping[str, Any]]] | None = None,
        start: Arrays | None = None,
        bound: bool = True,
        **options: Any,
    ) -> None:
        self.sentence = CASES.get(name, name)
        self.watched = next((w for key, w in WATCHED.items() if key in self.sentence), ())
        self.problem = Problem(shapes or shapes_of(name), seed=7)
        self.type = narrow(dtype)
        count = len(self.problem.shapes)
        self.order = list(range(count) if order is None else order)
        if groups is not None:
            self.order = [i for _, members, _ in groups for i in members]
        weights = self.problem.start(self.type) if start is None else [np.array(w, self.type) for w in start]
        params = [weights[i] for i in self.order]
        self.opt = tw.Optimizer(self._bound(params, groups), self.sentence, **options)
        self._meet(bound)

    def _bound(self, params: Arrays, groups: Any) -> list[Any]:
        pairs = [(f"t{i}", p) for i, p in zip(self.order, params)]
        if groups is None:
            return pairs
        found, at = [], 0
        for name, members, overrides in groups:
            found.append({"params": pairs[at : at + len(members)], "name": name, **overrides})
            at += len(members)
        return found

    def _meet(self, bound: bool = True) -> None:
        """Finds the arrays of the optimizer, and binds gradients."""
        self.absent: set[int] = set()
        self.params = list(self.opt.params)
        self.grads = [np.zeros(p.shape, p.dtype) for p in self.params]
        if bound:
            self.opt.bind_gradients(self.grads)

    def adopted(self, opt: tw.Optimizer) -> Host:
        """The same host for a copy of the optimizer."""
        other = copy.copy(self)
        other.opt = opt
        other._meet()
        return other

    def add(self, tensors: Sequence[int], weights: Arrays, **group: Any) -> None:
        """A group that comes later."""
        self.opt.add_param_group({"params": [(f"t{i}", w) for i, w in zip(tensors, weights)], **group})
        self.order += list(tensors)
        self._meet()

    # ---- by name

    def by_tensor(self, rows: Sequence[Any]) -> list[Any]:
        """Rows in the order of binding, in that of the tensors; None for tensors that are not bound."""
        found: list[Any] = [None] * len(self.problem.shapes)
        for i, row in zip(self.order, rows, strict=True):
            found[i] = row
        return found

    @property
    def weights(self) -> Arrays:
        return self.by_tensor(self.params)

    def write(self, weights: Sequence[Any]) -> None:
        """The host overwrites its weights."""
        for w, value in zip(self.weights, weights):
            w[...] = value

    # ---- stepping

    def bind(self, absent: Iterable[int] = ()) -> None:
        self.absent = set(absent)
        self.opt.bind_gradients([None if i in self.absent else g for i, g in zip(self.order, self.grads)])

    def tell(self, k: int) -> None:
        """What the method has to be told before step k."""
        for n, what in enumerate(self.watched):
            self.opt.observe(
                what, {"sample": k % 2, "metric": [3, 2, 2, 2, 1, 1, 1, 1][k % 8]}.get(what, 0.5 + 0.25 * n + 0.1 * k)
            )

    def values(self, request: tw.Request, k: int) -> Arrays:
        """The answer to a request that goes into the gradients, by tensor."""
        at = [np.zeros(s) if w is None else w for w, s in zip(self.weights, self.problem.shapes)]
        if request.kind == "hessian_vector":
            return self.problem.product(
                np.zeros(s) if v is None else v for v, s in zip(self.by_tensor(request.probe), self.problem.shapes)
            )
        return self.problem.gradient(at, k, request.index if request.kind in ("task_gradient", "participant") else 0)

    def loss(self, k: int) -> float:
        """Of the tensors that take part: those that are absent are zero here."""
        found = enumerate(zip(self.weights, self.problem.shapes))
        return self.problem.loss([np.zeros(s) if w is None or i in self.absent else w for i, (w, s) in found], k)

    def answer(self, request: tw.Request, k: int) -> None:
        """Answers any request in the bound gradients."""
        if request.kind == "logit_derivatives":
            along = self.by_tensor(request.probe)
            size = sum(
                float(np.sum(a * np.asarray(v, np.float64))) for a, v in zip(self.problem.a, along) if v is not None
            )
            request.answer_matrix(np.outer([1.0, 2.0, 3.0], np.linspace(-1, 1, 4)) * (20 * size))
            return
        if request.kind == "activations":
            request.answer_matrix(*self.problem.layer(self.params[request.index], k))
            return
        if request.kind == "sample_gradients":
            at = [np.zeros(s) if w is None else w for w, s in zip(self.weights, self.problem.shapes)]
            samples = self.problem.samples(at, k, request.index)
            request.answer_samples([None if i in self.absent else samples[i] for i in self.order])
            return
        if request.wants_loss:
            request.loss = self.loss(k)
        if request.wants_gradient:
            values = self.values(request, k)
            for i, g in zip(self.order, self.grads):
                g[...] = values[i]

    def step(self, k: int, absent: Iterable[int] = (), tell: bool = True) -> int:
        """One step; returns the number of requests."""
        self.bind(absent)
        if tell:
            self.tell(k)
        return self.finish(k)

    def finish(self, k: int, arrays: bool = False, absent: Iterable[int] = ()) -> int:
        """What is left of a step; answered with arrays that were never bound, where they are wanted."""
        count = 0
        for request in self.opt.requests():
            self.answer(request, k)
            if arrays and request.wants_gradient:
                request.answer([None if i in absent else g for i, g in zip(self.order, self.grads)], request.loss)
            count += 1
        return count

    # ---- looking

    def view(self) -> dict[str, Any]:
        """Parameters, state and counters, by tensor, as bytes."""
        found: dict[str, Any] = {f"t{i}": np.ascontiguousarray(p).tobytes() for i, p in zip(self.order, self.params)}
        for name, rows in self.opt.state().items():
            rows = self.by_tensor(rows) if len(rows) == len(self.order) else rows
            found[name] = [None if r is None else (r.shape, r.tobytes()) for r in rows]
        return found | {"steps": self.opt.steps, "training": self.opt.training}


def same(left: Host, right: Host, state: bool = True) -> None:
    """Both hosts have the same weights, and the same state, bit by bit."""
    for i, (a, b) in enumerate(zip(left.weights, right.weights, strict=True)):
        assert (a is None) == (b is None), f"tensor t{i} is bound in one of the two"
        if a is not None and a.tobytes() != b.tobytes():
            worst = np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
            raise AssertionError(f"weights t{i} differ, by at most {worst}")
    if state:
        a, b = left.view(), right.view()
        assert a.keys() == b.keys()
        assert [key for key in a if a[key] != b[key]] == []


def copies(opt: tw.Optimizer) -> dict[str, tw.Optimizer]:
    return {"deepcopy": copy.deepcopy(opt), "pickle": pickle.loads(pickle.dumps(opt))}


def looks(folder: Path) -> dict[str, Callable[[tw.Optimizer], Any]]:
    """Everything that only looks at an optimizer."""
    return {
        "state_dict": lambda o: o.state_dict(),
        "state": lambda o: o.state(),
        "save": lambda o: o.save(folder / "state"),
        "deepcopy": copy.deepcopy,
        "pickle": pickle.dumps,
        "memory_report": lambda o: (o.memory_report(), str(o.memory_report())),
        "values": lambda o: [dict(group) for group in o.param_groups] + [o.sentence, o.steps, o.skipped, repr(o)],
    }
