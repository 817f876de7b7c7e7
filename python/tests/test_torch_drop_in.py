"""torch.optim.X replaced by thalweg.torch.X: what torch's own base class does around the step happens here too.

Each case is a short script that tells what it saw; both libraries must tell the same, for every class that torch has.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any, Callable

import pytest
from torch_support import torch

import thalweg as tw
import thalweg.torch as twt

NAMES = [name for name, c in vars(torch.optim).items()
         if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer]
Made = tuple[Any, Any, Callable[[], Any]]


def made(module: Any, name: str) -> Made:
    """The optimizer, its model, and a closure."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False)
    opt = getattr(module, name)(model.parameters())

    def closure() -> Any:
        opt.zero_grad()
        loss = model(torch.ones(5, 4)).square().sum()
        loss.backward()
        if name == "SparseAdam":
            for p in model.parameters():
                p.grad = p.grad.to_sparse()
        return loss

    return opt, model, closure


def hooks(opt: Any, model: Any, closure: Any) -> Any:
    log: list[Any] = []
    handles = [
        opt.register_step_pre_hook(lambda o, args, kwargs: log.append(("before", len(args), sorted(kwargs)))),
        opt.register_step_post_hook(lambda o, args, kwargs: log.append(("behind", len(args), sorted(kwargs)))),
        opt.register_state_dict_pre_hook(lambda o: log.append("saving")),
        opt.register_state_dict_post_hook(lambda o, state: log.append(sorted(state))),
        opt.register_load_state_dict_pre_hook(lambda o, state: log.append(sorted(state))),
        opt.register_load_state_dict_post_hook(lambda o: log.append("loaded")),
    ]
    opt.step(closure)
    opt.load_state_dict(opt.state_dict())
    for handle in handles:
        handle.remove()
    opt.step(closure=closure)
    opt.state_dict()
    return log


def hooks_of_all_optimizers(opt: Any, model: Any, closure: Any) -> Any:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    log: list[str] = []
    handles = [register_optimizer_step_pre_hook(lambda o, *rest: log.append(f"before {type(o).__name__}")),
               register_optimizer_step_post_hook(lambda o, *rest: log.append(f"behind {type(o).__name__}"))]
    try:
        opt.step(closure)
    finally:
        for handle in handles:
            handle.remove()
    return log


def a_hook_that_changes_the_arguments(opt: Any, model: Any, closure: Any) -> Any:
    calls: list[int] = []

    def other() -> Any:
        calls.append(1)
        return closure()

    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, other), {}))
    opt.step(closure)
    return bool(calls)


def what_a_step_returns(opt: Any, model: Any, closure: Any) -> Any:
    loss = opt.step(closure)
    return type(loss), round(loss.item(), 4), loss.requires_grad


def profiled(opt: Any, model: Any, closure: Any) -> Any:
    with torch.profiler.profile() as profile:
        opt.step(closure)
    return sorted(event.key for event in profile.key_averages() if event.key.startswith("Optimizer."))


def saved_and_loaded(opt: Any, model: Any, closure: Any) -> Any:
    """Through torch.save and torch.load(weights_only=True); the run goes on in another optimizer."""
    opt.step(closure)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    twin, other, again = made(twt if isinstance(opt, twt.Optimizer) else torch.optim, type(opt).__name__)
    other.load_state_dict(model.state_dict())
    twin.load_state_dict(torch.load(file, weights_only=True))
    opt.step(closure)
    twin.step(again)
    return torch.equal(model.weight, other.weight)


def copied(opt: Any, model: Any, closure: Any) -> Any:
    opt.step(closure)
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    return [(type(twin).__name__, {k: v for k, v in twin.param_groups[0].items() if k != "params"},
             twin.param_groups[0]["params"][0] is model.weight, twin.defaults == opt.defaults) for twin in twins]


def gradients_zeroed(opt: Any, model: Any, closure: Any) -> Any:
    closure()
    opt.zero_grad(set_to_none=False)
    zeros = model.weight.grad.to_dense().tolist()
    opt.zero_grad()
    return zeros, model.weight.grad


def without_gradients(opt: Any, model: Any, closure: Any) -> Any:
    before = model.weight.detach().clone()
    return type(opt).__name__ == "LBFGS" or (opt.step(), torch.equal(model.weight, before))


def a_group_more(opt: Any, model: Any, closure: Any) -> Any:
    if type(opt).__name__ == "LBFGS":  # torch takes the group and never steps it; here it is refused
        return True
    opt.add_param_group({"params": torch.nn.Parameter(torch.ones(2, 2)), "lr": 0.5, "note": "mine"})
    return [(len(g["params"]), g["lr"], g.get("note")) for g in opt.param_groups]


def groups_that_are_none(opt: Any, model: Any, closure: Any) -> Any:
    taken = []
    for params in ({torch.nn.Parameter(torch.ones(2, 2))}, [1.0], [model.weight * 2], [model.weight]):
        try:
            opt.add_param_group({"params": params})
            taken.append("taken")
        except Exception as problem:
            taken.append([kind.__name__ for kind in (TypeError, ValueError) if isinstance(problem, kind)])
    return taken, len(opt.param_groups)


def names(opt: Any, model: Any, closure: Any) -> Any:
    again = type(opt)(model.named_parameters())
    return again.param_groups[0]["param_names"], again.state_dict()["param_groups"][0]["param_names"]


def a_scheduler(opt: Any, model: Any, closure: Any) -> Any:
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 0.5**k)
    opt.step(closure)
    scheduler.step()
    group = opt.param_groups[0]
    return scheduler.get_last_lr(), group["lr"], group["initial_lr"]


def a_scheduler_in_the_wrong_order(opt: Any, model: Any, closure: Any) -> Any:
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.step()
        opt.step(closure)
    return [str(w.message)[:70] for w in caught if "lr_scheduler" in str(w.message)]


def averages_of_the_model(opt: Any, model: Any, closure: Any) -> Any:
    average = torch.optim.swa_utils.AveragedModel(model)
    opt.step(closure)
    average.update_parameters(model)
    opt.step(closure)
    average.update_parameters(model)
    return average.n_averaged.item(), torch.equal(average.module.weight, model.weight)


def autograd_notices(opt: Any, model: Any, closure: Any) -> Any:
    held = (model.weight * model.weight).sum()
    opt.step(closure)
    try:
        held.backward()
    except RuntimeError as problem:
        return "modified by an inplace operation" in str(problem)
    return "not noticed"


def no_parameters(opt: Any, model: Any, closure: Any) -> Any:
    try:
        type(opt)([])
    except ValueError:
        return "ValueError"
    return "taken"


SCRIPTS = [hooks, hooks_of_all_optimizers, a_hook_that_changes_the_arguments, what_a_step_returns, profiled,
           saved_and_loaded, copied, gradients_zeroed, without_gradients, a_group_more, groups_that_are_none, names,
           a_scheduler, a_scheduler_in_the_wrong_order, averages_of_the_model, autograd_notices, no_parameters]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_as_torch(script: Callable[[Any, Any, Any], Any]) -> None:
    for name in NAMES:
        assert script(*made(twt, name)) == script(*made(torch.optim, name)), name


def test_grad_scaler() -> None:
    """Scaled gradients, one step skipped for an Inf, the scale halved, and equal weights at the end."""
    runs = []
    for module in (twt, torch.optim):
        opt, model, _ = made(module, "AdamW")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for k in range(5):
            opt.zero_grad()
            scaler.scale(model(torch.ones(2, 4) * (float("inf") if k == 2 else 1)).square().sum()).backward()
            scaler.step(opt)
            scaler.update()
        runs.append((model.weight, scaler.get_scale()))
    torch.testing.assert_close(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_tensors_that_are_elsewhere() -> None:
    """Device tensors are refused by name and device, as parameters and as gradients, and nothing changes."""
    there = torch.nn.Parameter(torch.ones(2, 3, device="meta"))
    here = torch.nn.Parameter(torch.ones(2, 3))
    for make in (lambda p: twt.AdamW(p), lambda p: twt.Optimizer(p, "adamw"), lambda p: tw.AdamW(p)):
        with pytest.raises(tw.DtypeError, match="parameter 1: the tensor is on meta, not in CPU memory"):
            make([here, there])
    opt = twt.AdamW([here])
    with pytest.raises(tw.DtypeError, match="the tensor is on meta, not in CPU memory"):
        opt.add_param_group({"params": [there]})
    with pytest.raises(tw.DtypeError, match="gradient 0: the tensor is on meta, not in CPU memory"):
        opt.engine.step([torch.ones(2, 3, device="meta")])
    assert len(opt.param_groups) == 1 and torch.equal(here.detach(), torch.ones(2, 3))
