"""thalweg.torch.X beside torch.optim.X: the same arguments, the same parameters after twenty steps, the same groups."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from typing import Any

import pytest
from torch_support import parameter, step, torch

import thalweg as tw
import thalweg.torch as twt

# Rounding: torch divides and multiplies in another order, in the parameters' precision.
CLOSE = {torch.float64: dict(rtol=1e-10, atol=1e-12), torch.float32: dict(rtol=2e-4, atol=2e-6)}
SINGLE = ("NAdam", "ASGD")  # torch keeps a product (NAdam) and the rate (ASGD) in single precision
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)),
    ("SGD", dict(lr=0.1, momentum=0.9, dampening=0.5, maximize=True)),
    ("Adam", {}),
    ("Adam", dict(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, amsgrad=True)),
    ("Adam", dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, amsgrad=True)),
    ("AdamW", {}),
    ("AdamW", dict(lr=0.1, weight_decay=0.3, amsgrad=True, maximize=True)),
    ("Adagrad", {}),
    ("Adagrad", dict(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5)),
    ("RMSprop", {}),
    ("RMSprop", dict(lr=0.05, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.1)),
    ("Adamax", {}),
    ("Adamax", dict(lr=0.1, betas=(0.8, 0.9), weight_decay=0.1)),
    ("NAdam", {}),
    ("NAdam", dict(lr=0.1, weight_decay=0.1, momentum_decay=0.01, decoupled_weight_decay=True)),
    ("RAdam", {}),
    ("RAdam", dict(lr=0.1, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True)),
    ("Adadelta", {}),
    ("Adadelta", dict(lr=0.5, rho=0.8, weight_decay=0.1)),
    ("Rprop", {}),
    ("Rprop", dict(etas=(0.4, 1.3), step_sizes=(1e-4, 1.0))),
    ("ASGD", dict(lr=0.1, weight_decay=0.1)),
    ("Adafactor", {}),
    ("Adafactor", dict(lr=0.1, eps=(1e-8, 1e-2), weight_decay=0.1)),
]


def problem(dtype: Any, matrices: bool = False) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    shapes = [(4, 6), (7, 3)] if matrices else [(4, 6), (5,)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def gradients(params: list[torch.nn.Parameter], k: int) -> None:
    generator = torch.Generator().manual_seed(100 + k)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def both(name: str, arguments: dict[str, Any], dtype: Any, **more: Any) -> tuple[list[Any], list[Any]]:
    pair = []
    for module in (twt, torch.optim):
        params = problem(dtype, name == "Muon")
        pair.append([getattr(module, name)(params, **copy.deepcopy(arguments), **more), params])
    return pair[0], pair[1]


def assert_close(mine: Any, theirs: Any, like: Any) -> None:
    """Equal up to the rounding of `like`."""
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), **CLOSE[like])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name, arguments", CASES)
def test_twenty_steps_as_in_torch(name: str, arguments: dict[str, Any], dtype: Any) -> None:
    (opt, mine), (other, theirs) = both(name, arguments, dtype)
    for k in range(20):
        for o, params in ((opt, mine), (other, theirs)):
            gradients(params, k)
            o.step()
        assert_close(mine, theirs, torch.float32 if name in SINGLE else dtype)


def test_muon_as_in_torch() -> None:
    """torch multiplies in bfloat16: seven bits, in whatever order."""
    (opt, mine), (other, theirs) = both("Muon", dict(lr=0.01, adjust_lr_fn="match_rms_adamw"), torch.float32)
    for k in range(20):
        for o, params in ((opt, mine), (other, theirs)):
            gradients(params, k)
            o.step()
    for p, q, start in zip(mine, theirs, problem(torch.float32, True)):
        assert (p - q).norm() < 0.02 * (q - start).norm()
    with pytest.raises(tw.ArgumentError, match="matrices"):
        twt.Muon([torch.nn.Parameter(torch.ones(3))])


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_lbfgs_as_in_torch(line_search_fn: str | None) -> None:
    (opt, mine), (other, theirs) = both("LBFGS", dict(lr=0.5, max_iter=4, line_search_fn=line_search_fn), torch.float64)
    for o, params in ((opt, mine), (other, theirs)):
        def closure() -> Any:
            o.zero_grad()
            loss = sum(((p - 1) ** 4).sum() + (p * p).sum() for p in params)
            loss.backward()
            return loss

        for _ in range(4):
            o.step(closure)
    assert_close(mine, theirs, torch.float64)


OF_TORCH = [name for name, c in vars(torch.optim).items()
            if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer]


@pytest.mark.parametrize("name", OF_TORCH)
def test_signature_defaults_and_groups_are_torchs(name: str) -> None:
    (opt, mine), (other, _) = both(name, {}, torch.float32)
    mirrored = inspect.signature(getattr(torch.optim, name)).parameters
    ours = inspect.signature(getattr(twt, name)).parameters
    for key, parameter in mirrored.items():
        assert ours[key].default == parameter.default and ours[key].kind == parameter.kind, key
    assert list(ours)[: len(mirrored)] == list(mirrored)
    assert opt.defaults == other.defaults
    for group, theirs in zip(opt.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}


SCHEDULERS = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "warm-up, then steps": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4), torch.optim.lr_scheduler.StepLR(o, 3)], [4]),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("name, arguments", [("SGD", dict(momentum=0.9)), ("AdamW", {}), ("RMSprop", dict(momentum=0.5))])
def test_schedulers_as_in_torch(name: str, arguments: dict[str, Any], schedule: str) -> None:
    (opt, mine), (other, theirs) = both(name, arguments, torch.float64)
    runs = [(o, params, SCHEDULERS[schedule](o)) for o, params in ((opt, mine), (other, theirs))]
    for k in range(20):
        for o, params, scheduler in runs:
            gradients(params, k)
            o.step()
            if k < 19:
                scheduler.step()
        assert opt.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
    assert_close(mine, theirs, torch.float64)


def test_groups_and_a_learning_rate_in_a_tensor_as_in_torch() -> None:
    runs = []
    for module in (twt, torch.optim):
        params, rate = problem(torch.float64), torch.tensor(0.1, dtype=torch.float64)
        groups = [{"params": iter(params[:1])}, {"params": params[1:], "lr": 0.5, "betas": (0.5, 0.6), "weight_decay": 0.0}]
        opt = module.Adam(groups, lr=rate, weight_decay=0.1)
        opt.add_param_group({"params": [late := torch.nn.Parameter(torch.ones(3, dtype=torch.float64))], "eps": 0.1})
        for k in range(8):
            gradients([*params, late], k)
            opt.step()
            rate.mul_(0.9)
            opt.param_groups[1]["betas"] = (0.7, 0.8)
        assert opt.param_groups[0]["lr"] is rate
        runs.append((opt, [*params, late]))
    assert_close(runs[0][1], runs[1][1], torch.float64)
    for mine, theirs in zip(runs[0][0].param_groups, runs[1][0].param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}


def test_how_torch_computes() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    for key in ("foreach", "fused"):
        assert twt.AdamW([p], **{key: True}).param_groups[0][key] is True
        twt.Lion([p], **{key: True})
    for key in ("capturable", "differentiable"):
        for cls in (twt.AdamW, twt.Lion):
            cls([p], **{key: False})
            with pytest.raises(tw.UnsupportedError, match=key):
                cls([p], **{key: True})
    p.grad = torch.ones(2)
    before = p.detach().clone()
    twt.Lion([p], lr=0.5, maximize=True).step()
    assert torch.equal(p.detach(), before + 0.5)


def test_what_is_settled_stays_and_what_is_unknown_is_refused() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = twt.AdamW([p], lr=0.5, weight_decay=0.0)
    p.grad = torch.ones(2)
    opt.param_groups[0]["amsgrad"] = True
    with pytest.raises(tw.ArgumentError, match="'amsgrad' is settled"):
        opt.step()
    opt.param_groups[0]["amsgrad"] = False
    opt.step()
    assert torch.allclose(p.detach(), torch.full((2,), 0.5))
    with pytest.raises(tw.ArgumentError, match="'maximize' is settled"):
        twt.AdamW([{"params": [p]}, {"params": [q], "maximize": True}])
    with pytest.raises(tw.UnknownNameError, match="did you mean `weight_decay`"):
        twt.AdamW([p], weight_decey=0.1)
    with pytest.raises(ValueError, match="lr"):
        twt.AdamW([p], lr=-1.0)
    with pytest.raises(ValueError, match="betas"):
        twt.AdamW([p], betas=(0.9,))
    with pytest.raises(ValueError, match="etas"):
        twt.Rprop([p], etas=(0.5, 1.1, 1.2))


def test_stages_before_and_after() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    opt = twt.SGD([p], lr=1.0, before="clip_global_norm(1.0)", after="ema(0.5)")
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8], dtype=torch.float64), rtol=1e-6, atol=0)
    opt.param_groups[0]["max_norm"] = 0.5
    opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.9, -1.2], dtype=torch.float64), rtol=1e-6, atol=0)


def test_every_optimizer_has_a_class_here() -> None:
    assert {*tw._class_names()} <= {*dir(twt)}
    for name in ("Lion", "Prodigy", "ScheduleFreeAdamW", "LAMB"):
        cls = getattr(twt, name)
        assert issubclass(cls, torch.optim.Optimizer) and cls.__name__ == name
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        opt = cls([p])
        opt.step()
        assert not torch.equal(p.detach(), torch.ones(3))
    with pytest.raises(AttributeError, match="did you mean 'AdamW'"):
        twt.AdamWW  # noqa: B018
    with pytest.raises(TypeError, match="params"):
        twt.Lion()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_keep_their_class(again: Any) -> None:
    (opt, mine), _ = both("Adam", dict(amsgrad=True), torch.float64)
    gradients(mine, 0)
    opt.step()
    twin = again(opt)
    assert type(twin) is twt.Adam and twin.param_groups[0]["amsgrad"] is True
    theirs = [p for g in twin.param_groups for p in g["params"]]
    for o, params in ((opt, mine), (twin, theirs)):
        gradients(params, 1)
        o.step()
    assert_close(mine, theirs, torch.float64)


def test_a_working_script_needs_no_other_change() -> None:
    """A scaler of torch.amp, a scheduler, clipping by torch and a state_dict around it, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        opt = twt.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.99), fused=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=30)
        x = torch.randn(32, 3)
        y = x.sum(1, keepdim=True)
        losses = []
        for _ in range(30):
            opt.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            opt.step()
            scheduler.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0] and opt.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_arguments_that_are_none() -> None:
    rows = torch.ones(3, 2)
    with pytest.raises(TypeError, match="SGD: params is an iterable of tensors.*not one tensor"):
        twt.SGD(rows, lr=0.1)
    for name, key, value in (("Adam", "betas", 0.9), ("Adafactor", "eps", None)):
        with pytest.raises(tw.ArgumentError, match=f"{name}: '{key}' is a tuple of 2 numbers, not {value}"):
            getattr(twt, name)([parameter(1.0)], **{key: value})
    for make in (twt.Adam, twt.Lion):
        with pytest.raises(tw.ArgumentError, match="as str, not int"):
            make([parameter(1.0)], before=3)


def test_what_is_printed() -> None:
    """torch's own text, which logs show; a sentence stands in it where the class does not say it."""
    for name in OF_TORCH:
        (opt, _), (other, _) = both(name, {}, torch.float32)
        assert re.sub(r"\.0\b", "", repr(opt)) == re.sub(r"\.0\b", "", repr(other))
    opt = twt.Optimizer([parameter(1.0)], "clip_global_norm(1.0) | sgd(lr=0.5)")
    assert repr(opt).startswith("Optimizer (\nSentence: clip_global_norm(1.0) | sgd(lr=0.5)\nParameter Group 0\n")
    assert "    lr: 0.5\n" in repr(opt)
    assert " | ema(0.9)\nParameter Group 0\n" in repr(twt.AdamW([parameter(1.0)], after="ema(0.9)"))
    opt.engine.close()
    assert "closed" in repr(opt)


def test_a_group_that_was_taken_away() -> None:
    p, q = parameter(1.0), parameter(1.0)
    opt = twt.SGD([{"params": [p]}, {"params": [q]}], lr=0.5)
    group = opt.param_groups.pop()
    with pytest.raises(tw.ArgumentError, match="others than were given"):
        opt.step()
    opt.param_groups.append(group)
    step(opt)
    assert (p.item(), q.item()) == (0.5, 0.5)
