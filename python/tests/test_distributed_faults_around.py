"""What fails on one rank around steps: groups, modes, state; an error on all ranks, and nothing changed."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import time

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch has no gloo", allow_module_level=True)

import thalweg as tw  # noqa: E402
from ranks_support import run  # noqa: E402
from test_distributed import model  # noqa: E402
from test_distributed_faults import LAYOUTS, SOON, TIMEOUT, World, fill, look, make  # noqa: E402
from test_distributed_faults import ignore, refuse  # noqa: E402
from thalweg.distributed import Ranks, load_sharded_state_dict, sharded_state_dict  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402


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
        product = torch.ones(2, requires_grad=True) * 2
        for params, kind in (([], ValueError), (model(), TypeError), ([product], ValueError)):
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
        handle = opt.register_load_state_dict_pre_hook(refuse if world.odd else ignore)
        world.refuses_step(net, opt, lambda: opt.load_state_dict(early), ZeroDivisionError, "a hook")
        handle.remove()
        world.differ(net, opt, lambda: opt.load_state_dict(late if world.odd else early), "number of steps is 1 on")
        assert [{**group, "params": None} for group in opt.param_groups] == shown
        handle = opt.register_load_state_dict_post_hook(refuse if world.odd else ignore)
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


def _saves_alone(rank: int, size: int) -> None:
    """state_dict() is of this rank alone, in every layout."""
    world = World(rank, size)
    for layout in LAYOUTS:
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)")
        world.goes_on(net, opt)
        if rank == 0:
            assert opt.state_dict()["param_groups"]
        sent = [rank]
        dist.broadcast_object_list(sent)
        world.goes_on(net, opt)


def test_a_rank_that_saves_alone_waits_for_nobody() -> None:
    run(_saves_alone, 2, timeout=TIMEOUT)


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


def _dies(rank: int, size: int, call: str) -> None:
    world = World(rank, size)
    net, opt = make("fsdp", "clip_global_norm(1) | adamw(lr=0.1)")
    world.goes_on(net, opt)
    state = opt.state_dict()
    opt.param_groups[0]["lr"] = 0.2
    world.goes_on(net, opt)
    before, start = look(net, opt), time.monotonic()
    dist.barrier()
    if rank == 1:
        os._exit(1)
    calls = {"load": lambda: opt.load_state_dict(state), "save": lambda: sharded_state_dict(opt),
             "group": lambda: opt.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]})}
    with pytest.raises(RuntimeError):
        calls[call]()
    assert time.monotonic() - start < SOON
    assert look(net, opt) == before and opt.param_groups[0]["lr"] == 0.2 and len(opt.param_groups) == 1


@pytest.mark.parametrize("call", ["load", "save", "group"])
def test_a_rank_that_is_lost_around_steps(call: str) -> None:
    run(_dies, 2, call, lost=(1,), timeout=TIMEOUT)


def _groups_of_ranks(rank: int, size: int) -> tuple[str, int]:
    """Of four ranks the last two have a process group: what fails there is told there."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    net = model()
    with pytest.raises(tw.ArgumentError, match="process_group is one that this rank is no member of"):
        Ranks("owners", process_group=pairs[1 - rank // 2])
    opt = Optimizer(net.parameters(), "clip_global_norm(1) | adamw(lr=0.1)",
                    ranks=Ranks("owners", process_group=pairs[rank // 2]))
    state = opt.state_dict()
    fill(net)
    opt.step()
    start = time.monotonic()
    words = ""
    try:
        opt.load_state_dict("nothing" if rank == 3 else state)
    except tw.ArgumentError as problem:
        words = str(problem)
    assert time.monotonic() - start < SOON
    dist.barrier()
    return words, opt.engine.steps


def test_a_process_group_of_some_ranks() -> None:
    first, second, third, fourth = run(_groups_of_ranks, 4, timeout=TIMEOUT)
    assert first == second == ("", 0) and third[1] == fourth[1] == 1
    assert third[0].startswith(f"nothing was loaded on rank 1: ArgumentError: {fourth[0]}") and fourth[0]


def _copied(rank: int, size: int) -> None:
    for layout in ("owners", "tensors"):
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=1)")
        for work in (copy.deepcopy, pickle.dumps):
            with pytest.raises(tw.UnsupportedError, match="would step the part of this rank"):
                work(opt)
        World(rank, size).goes_on(net, opt)
    assert copy.deepcopy(make("copies", "adamw(lr=1)")[1]).engine.steps == 0


def test_a_part_of_a_model_is_not_copied() -> None:
    """The copy had forgotten its ranks: its norms were those of a part, or its step failed."""
    run(_copied, 2, timeout=TIMEOUT)
