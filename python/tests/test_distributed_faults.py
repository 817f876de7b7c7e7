"""What fails on one rank alone: an error on all of them, nothing changed, and a world that goes on."""

from __future__ import annotations

import functools
import time
from typing import Any, Callable

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch has no gloo", allow_module_level=True)

import thalweg as tw  # noqa: E402
from ranks_support import run  # noqa: E402
from test_distributed import assert_close, fsdp, full, model, train, whole  # noqa: E402
from thalweg.distributed import Ranks  # noqa: E402
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
        handle = opt.register_step_pre_hook(refuse if world.odd else ignore)
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


def refuse(*_: Any) -> None:
    raise ZeroDivisionError("a hook")


def ignore(*_: Any) -> None:
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
        world.refuses_step(net, opt, lambda: opt.observe("loss", "much" if world.odd else 1.0), tw.ValueTypeError,
                           "observe: 'loss' is a number, got 'much'")
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


def _orders(rank: int, size: int) -> None:
    """Two optimizers that one rank steps in another order."""
    world = World(rank, size)
    for layout in LAYOUTS[:4]:
        pair = [make(layout, "adamw(lr=0.1)") for _ in range(2)]
        for net, opt in pair:
            world.goes_on(net, opt)
        net, opt = pair[rank % 2]
        fill(net)
        world.differ(net, opt, opt.step, "the ranks disagree: number of the optimizer is ")
        for net, opt in pair:
            world.goes_on(net, opt)


def test_optimizers_that_one_rank_steps_in_another_order() -> None:
    run(_orders, 2, timeout=TIMEOUT)


def _scaled(rank: int, size: int) -> None:
    """An Inf in the shards of one rank, which GradScaler sees on all: none steps, and all lower the scale."""
    world = World(rank, size)
    for layout in ("fsdp", "fsdp owners"):
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)")
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        for steps, bad in ((1, False), (1, True), (2, False)):
            fill(net, 4.0)
            if bad and world.odd:
                next(net.parameters()).grad.to_local().fill_(float("inf"))
            scaler.step(opt)
            scaler.update()
            assert opt.engine.steps == steps
        assert scaler.get_scale() == 2.0


def test_an_inf_that_gradscaler_finds_in_the_shards_of_one_rank() -> None:
    run(_scaled, 2, timeout=TIMEOUT)


def _replicas(rank: int, size: int) -> list[bytes]:
    """Two copies of a model in two shards each (HSDP): numbers are those of one, losses those of all, and all four are
    told."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = World(rank, size)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    bits = []
    for sentence, ranks in (("clip_global_norm(0.1) | adamw(lr=0.05)", None), ("polyak_sgd(max_lr=0.5)", None),
                            ("clip_global_norm(0.1) | adamw(lr=0.05)", Ranks("owners"))):
        net = fully_shard(model(), mesh=mesh)
        opt = Optimizer(net.parameters(), sentence, ranks=ranks)
        train(net, opt, range(3), rank, size)
        assert_close(full(net), whole(sentence, 3), sentence)
        bits.append(b"".join(p.numpy().tobytes() for p in full(net)))
        if "adamw" in sentence:
            fill(net)
            opt.param_groups[0]["lr"] = -1.0 if world.odd else 0.05
            world.refuses_step(net, opt, opt.step, tw.RangeError, "adamw: `lr` must be")
    return bits


def test_copies_of_shards_step_together_or_not_at_all() -> None:
    first, *others = run(_replicas, 4, timeout=TIMEOUT)
    assert others == [first] * 3


# ---- what happened on all ranks, and what cannot happen on all


def _late(rank: int, size: int) -> None:
    """A hook behind a step fails when all have stepped, and nobody waits for it; one owner fails when others cannot go
    back, and all are told."""
    world = World(rank, size)
    for layout in ("copies", "fsdp", "owners"):
        net, opt = make(layout, "clip_global_norm(1) | adamw(lr=0.1)")
        handle = opt.register_step_post_hook(refuse if world.odd else ignore)
        fill(net)
        if world.odd:
            with pytest.raises(ZeroDivisionError):
                opt.step()
        else:
            opt.step()
        handle.remove()
        assert opt.engine.steps == 1
        world.goes_on(net, opt)
    net, opt = make("owners", "route(matrix=(sgd(lr=0.1) | project(stiefel)), other=(adamw))")
    world.goes_on(net, opt)
    world.odd, world.last = rank == opt._ranks.owner[0], opt._ranks.owner[0]
    fill(net)
    next(net.parameters()).grad.fill_(float("nan"))
    world.refuses(opt.step, tw.NonfiniteError, "parameter 0 (`0.weight`): stiefel")
    assert opt.engine.steps == (1 if world.odd else 2)
    with pytest.raises(tw.ArgumentError, match="the ranks disagree: number of steps is"):
        opt.step()


def test_a_failure_when_a_step_has_happened() -> None:
    run(_late, 2, timeout=TIMEOUT)


def _mixed(rank: int, size: int) -> None:
    """A closure fails on one rank while the others are in a collective of the model: it does not wait for them, what it
    says does not end in their gradients, and they wait as long as their process group does."""
    from torch.nn.parallel import DistributedDataParallel

    ddp = DistributedDataParallel(net := model())
    opt = Optimizer(ddp.parameters(), "sam(0.1) | adamw(lr=0.1)", ranks=Ranks("copies"))
    train(ddp, opt, range(2), rank, size)
    before, start = look(net, opt), time.monotonic()

    def closure() -> Any:
        if rank == 1:
            raise ValueError("no such file")
        opt.zero_grad()
        loss = ddp(torch.ones(2, 5, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    with pytest.raises(ValueError if rank == 1 else RuntimeError) as found:
        opt.step(closure)
    assert rank == 1 or not isinstance(found.value, tw.Error)  # torch's, of its time-out
    took = time.monotonic() - start
    assert took < 2 if rank == 1 else 2 < took < SOON
    assert look(net, opt) == before
    if rank == 1:
        time.sleep(6)


def test_a_closure_that_fails_beside_a_collective_of_the_model() -> None:
    run(_mixed, 2, timeout=3.0)


def _syncs(rank: int, size: int) -> None:
    """Tensors of several ranks, whose owner tells the others where SAM has moved them."""
    world = World(rank, size)
    net = model()
    params = list(net.parameters())
    mine = params[rank::size]

    def sync() -> None:
        for index, p in enumerate(params):
            dist.broadcast(p.detach(), index % size)

    opt = Optimizer(mine, "sam(0.1) | sgd(lr=0.1)", ranks=Ranks("tensors", sync=sync))

    def closure() -> Any:
        opt.zero_grad()
        for p in params:
            p.grad = p.detach().clone()
        if world.odd and opt.engine._pending and calls:
            raise LookupError("no batch")
        calls.append(1)
        return 1.0

    calls: list[int] = []
    before = [p.detach().clone() for p in mine]
    world.refuses(lambda: opt.step(closure), LookupError, "no batch")
    assert all(map(torch.equal, mine, before))
    world.odd, odd = False, world.odd
    opt.step(closure)
    world.odd = odd
    assert opt.engine.steps == 1 and not any(map(torch.equal, mine, before))


def test_a_closure_that_fails_where_the_caller_syncs() -> None:
    run(_syncs, 2, timeout=TIMEOUT)


def _messages(rank: int, size: int) -> list[int]:
    counts: list[int] = []
    torchs = dist.all_reduce

    def counted(*args: Any, **options: Any) -> Any:
        counts.append(1)
        return torchs(*args, **options)

    dist.all_reduce = counted
    found = []
    for layout, sentence in (("copies", "adamw"), ("elements", "clip_global_norm(1) | adamw"), ("owners", "adamw")):
        net, opt = make(layout, sentence)
        fill(net)
        counts.clear()
        opt.step()
        found.append(len(counts))
    net, opt = make("copies", "sam(0.1) | adamw")
    counts.clear()
    opt.step(functools.partial(fill, net))
    return [*found, len(counts)]


def test_a_step_has_few_messages() -> None:
    """One, and the sums of the method; owners hear that all have finished, too; before a closure all are there."""
    assert run(_messages, 2, timeout=TIMEOUT) == [[1, 5, 2, 3]] * 2


MOVED_BEFORE_THEY_ASK = "mezo(lr=0.1, eps=0.5)", "spsa", "openai_es | sgd(lr=0.1)", "ema_nesterov | sgd(lr=0.1)"


def _moved(rank: int, size: int) -> list[tuple[str, list[float]]]:
    """Steps that one rank breaks off at each of their requests."""
    import torch

    import thalweg.torch as tt
    from thalweg.distributed import Ranks

    left = []
    for sentence in MOVED_BEFORE_THEY_ASK:
        for at in (0, 1):
            ps = [torch.nn.Parameter(torch.full((2,), 0.25 * k, dtype=torch.float64)) for k in range(3)]
            opt = tt.Optimizer([(f"p{k}", p) for k, p in enumerate(ps)], sentence, ranks=Ranks("owners"))
            calls = []

            def closure() -> float:
                calls.append(0)
                for p in ps:
                    p.grad = torch.ones_like(p)
                if rank == 1 and len(calls) == at + 1:
                    raise ValueError("broken off")
                return 0.0

            if "ema" in sentence:
                opt.step(lambda: [setattr(p, "grad", torch.zeros_like(p)) for p in ps] and 0.0)
            for _ in range(2):
                calls.clear()
                try:
                    opt.step(closure)
                except (ValueError, tw.Error):
                    left.append((sentence, [x for p in ps for x in p.tolist()]))
    return left


def test_what_moves_before_it_asks_is_home_again_on_all_ranks() -> None:
    for left in run(_moved, 2, timeout=TIMEOUT):
        assert left and all(values == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5] for _, values in left)


def _noise(rank: int, size: int) -> list[list[float]]:
    import torch

    import thalweg.torch as tt
    from thalweg.distributed import Ranks

    ps = [torch.nn.Parameter(torch.zeros(3)) for _ in range(4)]
    opt = tt.Optimizer([(f"p{k}", p) for k, p in enumerate(ps)], "sgld", ranks=Ranks("owners"))
    for p in ps:
        p.grad = torch.zeros(3)
    opt.step()
    return [p.tolist() for p in ps]


def test_tensors_of_several_owners_get_noise_of_their_own() -> None:
    one, other = run(_noise, 2, timeout=TIMEOUT)
    assert one == other and all(one[i] != one[j] for i in range(4) for j in range(i))
