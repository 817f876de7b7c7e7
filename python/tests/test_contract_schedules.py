"""Every schedule, wherever it stands: a resumed optimizer, its copies and copies of the schedule go on where it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw

SCHEDULES = {
    "arch_entropy": "arch_entropy(epochs=9, coef=0.5, warm_up=2)",
    "cubic_sparsity": "cubic_sparsity(initial=0.1, final=0.5, begin=1, end=7)",
    "exp_anneal": "exp_anneal(epochs=10, weight_start=0.5, weight_end=0.1)",
    "quadratic_ramp": "quadratic_ramp(weight=0.5, steps=8)",
    "sso_stepsize": "sso_stepsize(kind=sqrt, eta0=0.5)",
    "noprop_schedule": "noprop_schedule(total=5)",
    "local_sgd": "local_sgd(period=3, switch=2)",
    "batch_ladder": "batch_ladder(boundaries=[3, 6], batches=[8, 16, 24])",
    "dann_lambda": "dann_lambda(total=10)",
    "dann_lr": "dann_lr(total=10)",
    "dann_schedules": "dann_schedules(total=10, gives=lr)",
    "dp_noise_for_epsilon": "dp_noise_for_epsilon(epsilon=1, rate=0.01, delta=1e-5)",
    "greedy": "greedy(lr=0.5, min_lr=0.01, patience=1)",
    "momentum_warmup": "momentum_warmup(total=30, warmup=5, cooldown=5)",
    "mup_scaling": "mup_scaling(inner=0.5)",
    "power_cooldown": "power_cooldown(total=10, start=3)",
    "rdp_accountant": "rdp_accountant(sigma=1.1, rate=0.01, delta=1e-5)",
    "rex": "rex(total=10)",
    "rho_schedule": "rho_schedule(lr=0.3)",
    "batch_lr_scaling": "batch_lr_scaling(lr=0.5, rule=linear)",
    "constant": "constant(lr=0.5)",
    "cosine": "cosine(lr=0.5, total=10, end=0.1)",
    "cosine_restarts": "cosine_restarts(lr=0.5, t0=3, t_mult=2)",
    "effective_lr": "effective_lr(lr=0.5, weight_decay=0.1, inner=reduce_on_plateau(lr=1, patience=0, factor=0.5))",
    "exponential": "exponential(lr=0.5, gamma=0.9)",
    "inner_product_test": "inner_product_test(max_batch=64)",
    "inverse_sqrt": "inverse_sqrt(lr=0.5, warmup_steps=3)",
    "inverse_time": "inverse_time(lr=0.5, k_decay=0.5)",
    "inversion_lr": "inversion_lr(steps=10)",
    "join": "join([warmup(warmup_steps=2, inner=0.5), reduce_on_plateau(lr=1, patience=0)], boundaries=[3])",
    "kl_anneal": "kl_anneal(total_anneal_steps=10)",
    "linear": "linear(lr=0.5, total=8, end=0.1)",
    "nft_old_decay": "nft_old_decay(flat=2, uprate=0.1)",
    "norm_test": "norm_test(max_batch=64, interval=1)",
    "one_cycle": "one_cycle(lr=0.5, total=12)",
    "polynomial": "polynomial(lr=0.5, total=10, power=2)",
    "reduce_on_plateau": "reduce_on_plateau(lr=0.5, patience=0, factor=0.5)",
    "refined_schedule": "refined_schedule(norms=[3, 2, 1, 1, 2, 1, 1, 1], lr=0.5)",
    "step_decay": "step_decay(lr=0.5, gamma=0.5, every=2)",
    "timestep_curriculum": "timestep_curriculum(num_clusters=4, patience=0, total=1)",
    "warmup": "warmup(warmup_steps=3, inner=reduce_on_plateau(lr=1, patience=0, factor=0.5))",
    "warmup_cosine": "warmup_cosine(peak=0.5, warmup=2, total=10)",
    "warmup_linear": "warmup_linear(peak=0.5, warmup=2, total=10)",
    "wsd": "wsd(lr=0.5, warmup_steps=1, stable_steps=100, decay_steps=5)",
}

# What each schedule is told, by step: whatever is not its own is refused, and that is no fault.
TOLD: dict[int, list[tuple[str, float]]] = {
    0: [("metric", 2.0), ("batch_size", 8.0)],
    1: [("metric", 2.5)],
    2: [("batch_size", 16.0), ("metric", 1.0)],
    4: [("metric", 3.0), ("metric", 3.0)],
    5: [("batch_size", 32.0)],
}


def tell(taker: Any, step: int) -> None:
    """An optimizer or a schedule."""
    calls: list[Callable[[], Any]] = [lambda w=what, x=value: taker.observe(w, x) for what, value in TOLD.get(step, [])]
    if isinstance(taker, tw.Schedule):
        taker(step)  # commands count from the step that was looked at last
    if step == 3:
        calls.append(lambda: taker.command("begin_decay" if isinstance(taker, tw.Schedule) else "wsd.begin_decay"))
    if isinstance(taker, tw.Schedule) and step in (1, 4):
        rng = np.random.default_rng(step)
        calls.append(lambda: taker.observe_samples(1 + 3 * rng.standard_normal((16, 5))))
    for call in calls:
        try:
            call()
        except tw.Error:
            pass


def test_every_schedule_is_here() -> None:
    assert set(SCHEDULES) == {m.name for m in tw.methods("schedule")}


# ---- in an optimizer


def made(name: str, where: str) -> tw.Optimizer:
    groups = [{"params": [("a", np.zeros(1))]}, {"params": [("b", np.zeros(1))]}]
    if where == "dict":
        groups[1]["lr"] = SCHEDULES[name]
    return tw.Optimizer(groups, f"sgd(lr={SCHEDULES[name] if where == 'sentence' else 0.25})")


def moves(opt: tw.Optimizer) -> list[float]:
    before = [p.copy() for p in opt.params]
    opt.step([np.ones(1), np.ones(1)])
    return [float((b - p)[0]) for b, p in zip(before, opt.params)]


@pytest.mark.parametrize("where", ["sentence", "all", "group", "dict", "late"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_in_an_optimizer(name: str, where: str) -> None:
    """In the sentence, set for all or for one group, given with a group, or set in the middle of the run."""
    opt = made(name, where)
    if where in ("all", "group"):
        opt.set("lr", SCHEDULES[name], None if where == "all" else "group1")
    alone = tw.schedule(SCHEDULES[name])
    others: list[tw.Optimizer] = []
    for step in range(8):
        if step == 2 and where == "late":
            for o in [opt, *others]:
                o.set("lr", SCHEDULES[name], "group1")
        for o in [opt, *others]:
            tell(o, step)
        tell(alone, step) if where != "late" or step >= 2 else None
        if step in (1, 3, 4, 6):
            twin = made(name, where)
            for p, q in zip(twin.params, opt.params):
                p[...] = q
            twin.load_state_dict(opt.state_dict())
            others += [twin, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
        shown = [g["lr"] for g in opt.param_groups]
        for o in others:
            assert [g["lr"] for g in o.param_groups] == shown
        moved = moves(opt)
        np.testing.assert_allclose(moved, shown, rtol=1e-9, atol=1e-12)
        if name not in ("norm_test", "inner_product_test") and (where != "late" or step >= 2):
            np.testing.assert_allclose(shown[1], alone(step), rtol=1e-12, atol=1e-15)
        for o in others:
            assert [float(p[0]) for p in o.params] != [] and moves(o) == moved


# ---- alone


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_copy_of_a_schedule(name: str, how: str) -> None:
    """It remembers what the original was told, and what is told to one afterwards is not told to the other."""

    def copied(s: tw.Schedule) -> tw.Schedule:
        return {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}[how](s)

    original = tw.schedule(SCHEDULES[name])
    others: list[tw.Schedule] = []
    for step in range(8):
        for s in [original, *others]:
            tell(s, step)
        others.append(copied(original))
        for s in others:
            assert [s(k) for k in range(12)] == [original(k) for k in range(12)]
    apart = copied(original)
    before = [original(k) for k in range(12)]
    for what, value in (("metric", 50.0), ("batch_size", 64.0)):
        try:
            apart.observe(what, value)
        except tw.Error:
            pass
    assert [original(k) for k in range(12)] == before


@pytest.mark.parametrize("name", ["reduce_on_plateau", "batch_lr_scaling", "wsd", "warmup", "effective_lr", "join"])
def test_a_schedule_that_is_handed_over(name: str) -> None:
    """SGD(lr=schedule) goes on where the schedule stands."""
    alone = tw.schedule(SCHEDULES[name])
    for step in range(4):
        tell(alone, step)
    opt = tw.SGD([np.zeros(1), np.zeros(1)], lr=alone)
    for step in range(4):
        value = alone(step)
        np.testing.assert_allclose(moves(opt), [value, value], rtol=1e-9, atol=1e-12)


def test_numbers_by_hand() -> None:
    """0.5, and two observations that are no better: 0.125; a batch four times as large: four times the rate."""
    plateau, batch = tw.schedule(SCHEDULES["reduce_on_plateau"]), tw.schedule(SCHEDULES["batch_lr_scaling"])
    for metric in (1.0, 2.0, 2.0):
        plateau.observe("metric", metric)
    for size in (8.0, 32.0):
        batch.observe("batch_size", size)
    for s, want in ((plateau, 0.125), (batch, 2.0)):
        for twin in (s, copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
            assert twin(0) == want
