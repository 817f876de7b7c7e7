"""What fails on one rank alone: an error on all of them, nothing changed, and a world that goes on."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any, Callable

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch has no gloo", allow_module_level=True)

import thalweg as tw  # noqa: E402
from ranks_support import run  # noqa: E402
from test_distributed import fsdp, model, train  # noqa: E402
from thalweg.distributed import Ranks, load_sharded_state_dict, sharded_state_dict  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402

TIMEOUT = 20.0  # seconds, of the process groups: what waits for it fails
SOON = 10.0  # seconds, for an error that does not
LAYOUTS = ("copies", "elements", "tensors", "owners", "fsdp", "fsdp owners")


def make(layout: str, sentence: str, **options: Any) -> tuple[nn.Module, Any]:
    """A model whose gradients are given, and its optimizer."""
    sharded = layout.startswith("fsdp")
    net = fsdp() if sharded else model()
    kind = layout.removeprefix("fsdp").strip() or None
    return net, Optimizer(net.named_parameters(), sentence, ranks=Ranks(kind), **options)


def fill(net: nn.Module, value: float = 1.0) -> None:
    for p in net.parameters():
        p.grad = torch.full_like(p, value)


def look(net: nn.Module, opt: Any) -> tuple[Any, ...]:
    """All that a call may change on this rank."""
    local = [p.detach().to_local() if hasattr(p, "to_local") else p.detach() for p in net.parameters()]
    return [t.numpy().tobytes() for t in local], opt.engine.state_dict()["state"], opt.engine.training


class World:
    """This rank among `size`; `odd` on the last one, where something fails."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.last, self.odd = rank, size - 1, rank == size - 1

    def refuses(self, act: Callable[[], Any], kind: type, words: str, others: str | None = None) -> None:
        """`act` fails on the last rank with `kind`, and on the others with the words that it left for them."""
        dist.barrier()
        start = time.monotonic()
        found = pytest.raises(kind if self.odd else tw.ArgumentError, act)
        assert time.monotonic() - start < SOON
        if self.odd:
            assert words in str(found.value)
        else:
            wanted = others or f"on rank {self.last}: {kind.__name__}: {words}"
            assert wanted in str(found.value), str(found.value)
        dist.barrier()  # what the last rank said has arrived before it may go

    def refuses_step(self, net: nn.Module, opt: Any, act: Callable[[], Any], kind: type, words: str,
                     others: str | None = None) -> None:
        """The same of a step, or of what is around one, which changes nothing."""
        before = look(net, opt)
        self.refuses(act, kind, words, others)
        assert look(net, opt) == before

    def differ(self, net: nn.Module, opt: Any, act: Callable[[], Any], words: str) -> None:
        """The ranks differ, and all of them are told the same words."""
        dist.barrier()
        before, start = look(net, opt), time.monotonic()
        with pytest.raises(tw.ArgumentError) as found:
            act()
        assert time.monotonic() - start < SOON and words in str(found.value), str(found.value)
        assert look(net, opt) == before
        dist.barrier()

    def goes_on(self, net: nn.Module, opt: Any, closure: Any = None) -> None:
        steps = opt.engine.steps
        fill(net)
        opt.step(closure)
        assert opt.engine.steps == steps + 1


# ---- steps


def _values(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in LAYOUTS if size == 2 else LAYOUTS[1::2]:
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)")
        world.goes_on(net, opt)
        fill(net)
        for closure in (None, functools.partial(fill, net)):
            opt.param_groups[0]["lr"] = -1.0 if world.odd else 0.1
            world.refuses_step(net, opt, functools.partial(opt.step, closure), tw.RangeError, "adamw: `lr` must be")
            opt.param_groups[0]["lr"] = 0.1
        world.goes_on(net, opt)
        handle = opt.register_step_pre_hook(_raise if world.odd else _pass)
        world.refuses_step(net, opt, opt.step, ZeroDivisionError, "a hook")
        handle.remove()
        opt.engine.set("gradient_scale", 0.5 if world.odd else 1.0)
        world.differ(net, opt, opt.step, "gradient_scale is 1.0 on rank 0 and 0.5 on rank")
        opt.engine.set("gradient_scale", 1.0)
        world.differ(net, opt, lambda: opt.step(functools.partial(fill, net) if world.odd else None), "its start")
        world.goes_on(net, opt)
        if "owners" in layout:
            continue  # where a mode is a matter of all ranks
        net, opt = make(layout, "adamw(lr=0.1) | ema(0.9)")
        world.goes_on(net, opt)
        if world.odd:
            opt.eval()
        world.differ(net, opt, opt.step, "training mode is True on rank 0 and False on rank")
        opt.train()
        world.goes_on(net, opt)


def _raise(*_: Any) -> None:
    raise ZeroDivisionError("a hook")


def _pass(*_: Any) -> None:
    """A hook that has nothing against it."""


@pytest.mark.parametrize("size", [2, 4])
def test_what_one_rank_refuses_before_a_step(size: int) -> None:
    run(_values, size, timeout=TIMEOUT)


def _gradients(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in LAYOUTS[:4]:
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)")
        world.goes_on(net, opt)
        p = next(net.parameters())
        for closure in (False, True):
            def spoil() -> None:
                fill(net)
                if world.odd:
                    p.grad = p.grad.to_sparse()

            spoil()
            world.refuses_step(net, opt, lambda: opt.step(spoil if closure else None), tw.Error, "torch.sparse_coo",
                               f"the step was broken off on rank {world.last}: ")
        world.goes_on(net, opt)
        if layout == "copies":
            continue
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)", nonfinite="error")
        fill(net, float("nan") if world.odd else 1.0)
        before = look(net, opt)
        with pytest.raises(tw.Error):  # NonfiniteError where it is, and where it is counted
            opt.step()
        assert look(net, opt) == before
        dist.barrier()
        world.goes_on(net, opt)


def test_a_gradient_that_one_rank_refuses() -> None:
    run(_gradients, 2, timeout=TIMEOUT)


def _closures(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in ("copies", "elements", "owners", "fsdp", "fsdp owners") if size == 2 else ("elements", "owners"):
        net, opt = make(layout, "sam(0.1) | adamw(lr=0.1)")
        calls: list[int] = []
        what: list[Any] = [lambda: 1.0]

        def closure() -> Any:
            fill(net)
            calls.append(1)
            if world.odd and len(calls) == 2:
                return what[0]()
            return 1.0

        def step() -> None:
            calls.clear()
            opt.step(closure)

        def throw(problem: BaseException) -> Any:
            raise problem

        step()
        for problem in (ValueError("no such file"), KeyboardInterrupt("now")):
            what[:] = [functools.partial(throw, problem)]
            world.refuses_step(net, opt, step, type(problem), str(problem))
        what[:] = [lambda: "a loss"]
        world.refuses_step(net, opt, step, tw.ValueTypeError, "the loss that the closure returns")
        what[:] = [lambda: 1.0]
        step()

        def loop() -> None:
            for request in opt.requests():
                fill(net)
                if world.odd and request.pass_ == 1:
                    raise LookupError("no batch")

        world.refuses_step(net, opt, loop, LookupError, "no batch", "the loop over its requests was left")

        def answered() -> None:
            for request in opt.requests():
                if not (world.odd and request.pass_ == 1):
                    fill(net)

        world.refuses_step(net, opt, answered, tw.SequenceError, "sam(0.1) | adamw(lr=0.1): Request(gradient, pass 1")
        step()
        net, opt = make(layout, "polyak_sgd(max_lr=0.5)")
        train_like = lambda: opt.step(lambda: fill(net) if world.odd else (fill(net), 1.0)[1])  # noqa: E731
        world.refuses_step(net, opt, train_like, tw.NeedsError, "polyak_sgd(max_lr=0.5): the method asked for the loss")
        world.goes_on(net, opt, lambda: 1.0)
        world.refuses_step(net, opt, lambda: opt.observe("loss", "much" if world.odd else 1.0), ValueError,
                           "could not convert")
        if world.odd:  # one rank is in a call that the others do not make
            opt_call: Callable[[], Any] = lambda: opt.observe("loss", 1.0)  # noqa: E731
        else:
            opt_call = lambda: opt.step(lambda: 1.0)  # noqa: E731
        world.differ(net, opt, opt_call, f"the ranks disagree: rank 0 is in step (comparing notes)")
        world.goes_on(net, opt, lambda: 1.0)


@pytest.mark.parametrize("size", [2, 4])
def test_a_closure_that_fails_on_one_rank(size: int) -> None:
    """In the second pass of SAM, with the parameters moved: they are back on all ranks."""
    run(_closures, size, timeout=TIMEOUT)


# ---- what is around steps


def _groups(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in LAYOUTS[:4]:
        net = model()
        opt = Optimizer(net.parameters(), "clip_global_norm(1) | adamw(lr=0.1)", ranks=Ranks(layout))
        more = nn.Parameter(torch.ones(3, dtype=torch.float64))
        for group in ("no dict", {"lr": 1.0}, {"params": [more * 2]}, {"params": [more], "lr": -1.0},
                      {"params": [next(net.parameters())]}):
            good = {"params": [nn.Parameter(torch.ones(3, dtype=torch.float64))]}
            kind = TypeError if group == "no dict" else ValueError
            world.refuses_step(net, opt, lambda: opt.add_param_group(group if world.odd else good), kind, "",
                               f"no parameter group was added on rank {world.last}: ")
            assert len(opt.param_groups) == len(opt.engine.param_groups) == 1
            world.goes_on(net, opt)
        fill(net)
        add = functools.partial(opt.add_param_group, {"params": [more]})
        world.differ(net, opt, add if world.odd else opt.step, "call is step on rank 0 and add_param_group on rank")
        opt.add_param_group({"params": [more]})
        more.grad = torch.ones(3, dtype=torch.float64)
        world.goes_on(net, opt)


def test_a_group_that_one_rank_refuses_or_adds_alone() -> None:
    run(_groups, 2, timeout=TIMEOUT)


def _makes(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in ("copies", "tensors"):
        for params, kind in (([], ValueError), (model(), TypeError), ([torch.ones(2, requires_grad=True) * 2], ValueError)):
            world.refuses(lambda: Optimizer(params if world.odd else model().parameters(), "adamw(lr=1)",
                                            ranks=Ranks(layout)),
                          kind, "", f"there is no optimizer on rank {world.last}: {kind.__name__}: ")
    world.goes_on(*make("copies", "adamw(lr=1)"))


def test_parameters_that_one_rank_refuses() -> None:
    run(_makes, 2, timeout=TIMEOUT)


def _modes(rank: int, size: int) -> None:
    """Where parameters come from their owners, all ranks change the mode."""
    world = World(rank, size)
    net, opt = make("owners", "adamw(lr=0.1) | ema(0.9)")
    world.goes_on(net, opt)
    world.differ(net, opt, opt.step if world.odd else opt.eval, "call is eval on rank 0 and step on rank 1")
    opt.eval()
    opt.train()
    world.goes_on(net, opt)


def test_a_mode_that_one_rank_changes_alone() -> None:
    run(_modes, 2, timeout=TIMEOUT)


# ---- state


def _loads(rank: int, size: int) -> None:
    world = World(rank, size)
    for layout in LAYOUTS[1:] if size == 2 else ("owners", "fsdp"):
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=cosine(lr=0.1, total=9))")
        world.goes_on(net, opt)
        early = opt.state_dict()  # flat parts and tensors of one name have no state for other ranks
        spread = None if layout in ("elements", "tensors") else sharded_state_dict(opt)
        opt.param_groups[0]["lr"] = 0.25
        world.goes_on(net, opt)
        late = opt.state_dict()
        opt.param_groups[0]["lr"] = 0.5  # not in a step yet
        shown = [{**group, "params": None} for group in opt.param_groups]
        other = make(layout, "clip_global_norm(1) | sgd(lr=0.1, momentum=0.9)")[1].state_dict()
        groups = {**early, "param_groups": early["param_groups"] * 2}
        for bad, kind in ((other, tw.MismatchError), (groups, tw.CountError), ("nothing", tw.ArgumentError)):
            world.refuses_step(net, opt, lambda: opt.load_state_dict(bad if world.odd else early), kind, "",
                               f"nothing was loaded on rank {world.last}: {kind.__name__}: ")
            assert [{**group, "params": None} for group in opt.param_groups] == shown
        handle = opt.register_load_state_dict_pre_hook(_raise if world.odd else _pass)
        world.refuses_step(net, opt, lambda: opt.load_state_dict(early), ZeroDivisionError, "a hook")
        handle.remove()
        world.differ(net, opt, lambda: opt.load_state_dict(late if world.odd else early), "number of steps is 1 on")
        assert [{**group, "params": None} for group in opt.param_groups] == shown
        handle = opt.register_load_state_dict_post_hook(_raise if world.odd else _pass)
        if world.odd:  # which comes when all have loaded
            with pytest.raises(ZeroDivisionError):
                opt.load_state_dict(early)
        else:
            opt.load_state_dict(early)
        handle.remove()
        assert opt.engine.steps == 1
        opt.load_state_dict(late)
        assert opt.engine.steps == 2 and opt.param_groups[0]["lr"] == 0.25
        if spread is None:
            continue
        bad = {**spread, "state": {}}
        world.refuses_step(net, opt, lambda: load_sharded_state_dict(opt, bad if world.odd else spread),
                           tw.MismatchError, "the state dict has no")
        load_sharded_state_dict(opt, spread)
        assert opt.engine.steps == 1
        world.goes_on(net, opt)
        rate = opt.param_groups[0]["lr"]
        opt.param_groups[0]["lr"] = -1.0 if world.odd else rate
        world.refuses_step(net, opt, lambda: sharded_state_dict(opt), tw.RangeError, "adamw: `lr` must be")
        opt.param_groups[0]["lr"] = rate
        save = functools.partial(sharded_state_dict, opt)
        world.differ(net, opt, save if world.odd else opt.step, "call is step on rank 0 and sharded_state_dict on rank")
        world.goes_on(net, opt)


@pytest.mark.parametrize("size", [2, 4])
def test_a_state_that_one_rank_refuses(size: int) -> None:
    """Nothing is loaded on any of them, where each has a part of it."""
    run(_loads, size, timeout=TIMEOUT)


def _loads_alone(rank: int, size: int) -> None:
    """Where every process has the whole state, nobody waits: rank 0 may read a file, and send on what it has."""
    world = World(rank, size)
    net, opt = make("copies", "adamw(lr=0.1)")
    plain = Optimizer(net.parameters(), "adamw(lr=0.1)")
    careless = Optimizer(net.parameters(), "adamw(lr=0.1)", ranks=Ranks("owners", verify=False))
    for each in (opt, plain, careless):
        world.goes_on(net, each)
    early = opt.state_dict()
    for each in (opt, plain, careless):
        state = each.state_dict()
        world.goes_on(net, each)
        dist.barrier()
        if rank == 0:
            each.load_state_dict(state)
        dist.barrier()
        sent = [each.engine.steps]
        dist.broadcast_object_list(sent)
        assert sent == [1] and each.engine.steps == (1 if rank == 0 else 2)
    world.differ(net, opt, opt.step, "number of steps is 1 on rank 0 and 2 on rank 1")
    if rank == 1:
        opt.load_state_dict(early)
    world.goes_on(net, opt)


def test_a_rank_that_loads_alone_waits_for_nobody() -> None:
    run(_loads_alone, 2, timeout=TIMEOUT)


def _consolidated(rank: int, size: int) -> None:
    """ZeroRedundancyOptimizer puts rows into `state`, which are taken in the next step."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    world = World(rank, size)
    net = model()
    zero = ZeroRedundancyOptimizer(net.parameters(), functools.partial(
        Optimizer, sentence="clip_global_norm(1) | adamw(lr=0.1)", ranks=Ranks("tensors")))
    fill(net)
    zero.step()
    zero.consolidate_state_dict(0)
    saved = [zero.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(saved)
    state = saved[0]
    if world.odd:
        for row in state["state"].values():
            row["exp_avg"] = torch.ones(99)
    zero.load_state_dict(state)
    fill(net)
    world.refuses_step(net, zero.optim, zero.step, tw.Error, "", f"the step was broken off on rank {world.last}: ")


def test_rows_of_a_consolidated_state_that_one_rank_refuses() -> None:
    run(_consolidated, 2, timeout=TIMEOUT)
