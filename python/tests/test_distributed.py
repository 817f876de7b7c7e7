"""thalweg.torch on 2 and 4 gloo processes: DDP, ZeRO, FSDP2, owners; state for other numbers of ranks; failures."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch has no gloo", allow_module_level=True)

import thalweg as tw  # noqa: E402
import thalweg.torch  # noqa: E402
from ranks_support import run  # noqa: E402
from thalweg.distributed import Ranks, load_sharded_state_dict, sharded_state_dict  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402

GLOBAL = [
    "adamw(lr=0.05)",
    "clip_global_norm(0.1) | adamw(lr=0.05, weight_decay=0.01)",
    "lamb(lr=0.05)",
    "dog(reps_rel=0.1)",
    "prodigy(d0=0.01)",
    "sam(0.1) | sgd(lr=0.1)",
    "polyak_sgd(max_lr=0.5)",
    "clip_global_norm(0.1) | adamw(lr=cosine(lr=0.05, total=20)) | ema(0.9)",
]
MATRICES = ["sam(0.05) | route(matrix=(muon(lr=0.05)), other=(adamw(lr=0.05)))",
            "clip_global_norm(0.1) | route(matrix=(normuon(lr=0.05)), other=(lamb(lr=0.05)))"]


def model() -> nn.Module:
    """Seven rows and three: shards that are uneven on 2 ranks, and on 4 some that are empty."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(step: int, rank: int = 0, size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the eight samples of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    x, y = torch.randn(8, 5, generator=generator).double(), torch.randn(8, 3, generator=generator).double()
    return x[rank::size], y[rank::size]


def train(net: nn.Module, opt: Any, steps: range, rank: int = 0, size: int = 1) -> None:
    for k in steps:
        x, y = data(k, rank, size)

        def closure() -> torch.Tensor:
            opt.zero_grad()
            loss = ((net(x) - y) ** 2).mean()
            loss.backward()
            return loss

        opt.step(closure)


def whole(sentence: str, steps: int = 5) -> list[torch.Tensor]:
    net = model()
    train(net, Optimizer(net.parameters(), sentence), range(steps))
    return [p.detach() for p in net.parameters()]


def full(net: nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach() for p in net.parameters()]


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor], what: str) -> None:
    """Sums of another order, in float64."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text: f"{what}: {text}")


def fsdp(net: nn.Module | None = None, **policy: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = model() if net is None else net
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(net[0], mesh=mesh, **policy)
    return fully_shard(net, mesh=mesh, **policy)


def _offloaded(rank: int, size: int) -> None:
    """Shards that FSDP2 keeps on the CPU; and `state` of shards as torch's users treat it, on all ranks or on one."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    def changed(opt: Any, params: list[Any]) -> None:
        opt.state[params[0]]["exp_avg"].mul_(0.25)
        opt.state[params[1]]["exp_avg"] = torch.zeros_like(opt.state[params[1]]["exp_avg"])
        del opt.state[params[2]]

    alone = model()
    other = Optimizer(alone.parameters(), GLOBAL[1])
    net = fsdp(offload_policy=CPUOffloadPolicy(pin_memory=False))
    opt = Optimizer(net.parameters(), GLOBAL[1])
    for steps in (range(3), range(3, 6)):
        train(alone, other, steps)
        train(net, opt, steps, rank, size)
        assert_close(full(net), full(alone), f"offloaded, {steps}")
        changed(other, list(alone.parameters()))
        changed(opt, list(net.parameters()))


def test_fsdp2_with_its_cpu_offload() -> None:
    run(_offloaded, 2)


# ---- equal to one process


def _shards(rank: int, size: int) -> None:
    for sentence in GLOBAL if size == 2 else GLOBAL[1:6:2]:
        net = fsdp()
        opt = Optimizer(net.parameters(), sentence)
        train(net, opt, range(5), rank, size)
        assert opt.engine.params[0].shape[0] == net[0].weight.to_local().shape[0] < 7  # nothing but the shard
        assert_close(full(net), whole(sentence), sentence)
    for sentence in MATRICES if size == 2 else MATRICES[:1]:
        net = fsdp()
        with pytest.raises(tw.UnsupportedError, match=r"muon works on whole tensors.*Ranks\(\"owners\"\)"):
            Optimizer(net.parameters(), sentence)
        train(net, opt := Optimizer(net.parameters(), sentence, ranks=Ranks("owners")), range(3), rank, size)
        with torch.no_grad():  # what is written between steps reaches the owners
            for p in net.parameters():
                p.mul_(0.5)
        train(net, opt, range(3, 5), rank, size)
        alone = model()
        train(alone, other := Optimizer(alone.parameters(), sentence), range(3))
        with torch.no_grad():
            for p in alone.parameters():
                p.mul_(0.5)
        train(alone, other, range(3, 5))
        assert_close(full(net), full(alone), sentence)
        assert sum(p.numel() for p in opt.engine.params) < 59 or size == 1  # a share of the 59 numbers
    net = fsdp()
    train(net, opt := Optimizer(net.parameters(), GLOBAL[-1]), range(4), rank, size)
    alone = model()
    train(alone, other := Optimizer(alone.parameters(), GLOBAL[-1]), range(4))
    with opt.averaged(), other.averaged():
        assert_close(full(net), full(alone), "averaged")
    for part in ([{"params": [net[0].weight]}], [net[0].weight]):  # a group that comes later
        opt = Optimizer(part, "clip_global_norm(0.1) | adamw(lr=0.05)")
        opt.add_param_group({"params": [net[2].weight], "lr": 0.1})
        assert [g["lr"] for g in opt.param_groups] == [0.05, 0.1] and opt.engine.params[1].shape[0] < 3


@pytest.mark.parametrize("size", [2, 4])
def test_fsdp2_steps_as_one_process(size: int) -> None:
    run(_shards, size)


def _copies(rank: int, size: int) -> list[bytes]:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    bits = []
    for sentence in GLOBAL + MATRICES if size == 2 else (*GLOBAL[1:6:2], MATRICES[1]):
        for layout in ("copies", "owners", "zero"):
            net = model()
            ddp = DistributedDataParallel(net)
            if layout == "zero":
                if "sam" in sentence:
                    continue
                part = functools.partial(Optimizer, sentence=sentence, ranks=Ranks("tensors"))
                opt = ZeroRedundancyOptimizer(ddp.parameters(), part)
                assert sum(p.numel() for p in opt.optim.engine.params) < 59
            else:
                opt = Optimizer(ddp.parameters(), sentence, ranks=Ranks(layout))
            train(ddp, opt, range(5), rank, size)
            assert_close(full(net), whole(sentence), f"{layout}: {sentence}")
            bits.append(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    net = model()  # nothing said of ranks: DDP's gradients are enough
    ddp = DistributedDataParallel(net)
    train(ddp, Optimizer(ddp.parameters(), GLOBAL[1]), range(5), rank, size)
    assert_close(full(net), whole(GLOBAL[1]), "plain")
    bits.append(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    for make in (functools.partial(ZeroRedundancyOptimizer, optimizer_class=tw.torch.AdamW, lr=0.05),
                 functools.partial(tw.torch.AdamW, lr=0.05, ranks=Ranks("owners"))):
        net = model()
        ddp = DistributedDataParallel(net)
        train(ddp, make(ddp.parameters()), range(5), rank, size)
        assert_close(full(net), whole("adamw(lr=0.05, weight_decay=0.01)"), "AdamW")
    sam = ZeroRedundancyOptimizer(ddp.parameters(), functools.partial(Optimizer, sentence="sam(0.1) | sgd(lr=0.1)",
                                                                      ranks=Ranks("tensors")))
    with pytest.raises(tw.NeedsError, match="do not see it"):
        train(ddp, sam, range(1), rank, size)
    lr = torch.optim.lr_scheduler.StepLR(zero := ZeroRedundancyOptimizer(
        [{"params": list(ddp.parameters()), "lr": 0.01}], functools.partial(Optimizer, sentence="adamw(lr=0.05)")),
        1, gamma=0.5)
    train(ddp, zero, range(2), rank, size)
    lr.step()
    train(ddp, zero, range(1), rank, size)
    assert zero.optim.engine.get("lr") == 0.005 == zero.param_groups[0]["lr"]
    return bits


@pytest.mark.parametrize("size", [2, 4])
def test_copies_have_the_same_bits_on_all_ranks(size: int) -> None:
    """DistributedDataParallel, with the state on all ranks or on the owner; and ZeroRedundancyOptimizer."""
    first, *others = run(_copies, size)
    for bits in others:
        assert bits == first


def _more_ranks_than_tensors(rank: int, size: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    sentence = "clip_global_norm(1) | sgd(lr=1)"
    part = functools.partial(Optimizer, sentence=sentence, ranks=Ranks("tensors"))
    for opt in (ZeroRedundancyOptimizer([p], part), Optimizer([p], sentence, ranks=Ranks("owners"))):
        before = p.detach().clone()
        p.grad = torch.tensor([3.0, 0, 4], dtype=torch.float64)
        opt.step()
        torch.testing.assert_close(before - p.detach(), torch.tensor([0.6, 0, 0.8], dtype=torch.float64))
    # flat parts, as Megatron and DeepSpeed cut them: one rank has nothing of it
    flat = nn.Parameter(torch.arange(3 * (size - 1), dtype=torch.float64)[3 * rank : 3 * rank + 3].clone())
    opt = Optimizer([flat], "clip_global_norm(1) | sgd(lr=1, momentum=0.9)", ranks=Ranks("elements"))
    before = flat.detach().clone()
    flat.grad = torch.ones_like(flat)
    opt.step()
    torch.testing.assert_close(before - flat.detach(), torch.full_like(flat, (3 * (size - 1)) ** -0.5))
    with pytest.raises(tw.UnsupportedError, match="known to you alone"):
        sharded_state_dict(opt)


def test_ranks_without_a_tensor() -> None:
    run(_more_ranks_than_tensors, 2)


# ---- state for another number of ranks

RESUMED = [
    ("clip_global_norm(0.1) | adamw(lr=cosine(lr=0.05, total=20)) | ema(0.9)", None),
    ("lamb(lr=0.05)", None),
    ("prodigy(d0=0.01)", None),
    ("route(matrix=(muon(lr=0.05)), other=(lamb(lr=0.05)))", Ranks("owners")),
    ("clip_global_norm(0.1) | adamw(lr=0.05)", Ranks("owners")),
]


def _world(net: nn.Module, sentence: str, ranks: Ranks | None) -> Any:
    opt = Optimizer(net.named_parameters(), sentence, ranks=ranks)
    opt.param_groups[0]["initial_lr"] = 0.05  # as schedulers leave it there
    return opt


def _write(state: dict[str, Any], path: str) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=False))


def _save(rank: int, size: int, folder: str) -> None:
    _save_torchs_way(rank, size, folder)
    for k, (sentence, ranks) in enumerate(RESUMED):
        opt = _world(net := fsdp(), sentence, ranks)
        train(net, opt, range(3), rank, size)
        _write({"model": net.state_dict(), "optimizer": sharded_state_dict(opt)}, f"{folder}/{k}")
        train(net, opt, range(3, 5), rank, size)
        end = full(net)  # all take part
        if rank == 0:
            torch.save(end, f"{folder}/{k}.end")


def _resume(rank: int, size: int, folder: str) -> None:
    import torch.distributed.checkpoint as dcp

    if size > 1:
        _resume_torchs_way(rank, size, folder)
    for k, (sentence, ranks) in enumerate(RESUMED):
        # "owners" is resumed on shards where the method can, and the other way round
        other = None if ranks is not None and "muon" not in sentence else Ranks("owners")
        for now in (ranks, other) if size > 1 else (None,):
            net = fsdp() if size > 1 else model()
            opt = _world(net, sentence, now)
            del opt.param_groups[0]["initial_lr"]
            saved = {"model": net.state_dict(), "optimizer": sharded_state_dict(opt)}
            dcp.load(saved, checkpoint_id=f"{folder}/{k}")
            net.load_state_dict(saved["model"])
            load_sharded_state_dict(opt, saved["optimizer"])
            assert opt.engine.steps == 3 and opt.param_groups[0]["initial_lr"] == 0.05
            train(net, opt, range(3, 5), rank, size)
            assert_close(full(net), torch.load(f"{folder}/{k}.end"), f"{sentence} on {size} ranks, {now}")
    wrong = Optimizer(net.named_parameters(), "sgd(lr=1, momentum=0.9)", ranks=now)
    with pytest.raises(tw.MismatchError, match="has no '0.weight/0.sgd/momentum"):
        load_sharded_state_dict(wrong, saved["optimizer"])
    wrong.zero_grad()
    with pytest.raises(tw.SequenceError, match="under way"):
        for _ in Optimizer(net.named_parameters(), "sgd(lr=1)").requests():
            opt.engine._pending = object()
            sharded_state_dict(opt)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """Through sharded_state_dict, and through torch's own tools."""
    run(_save, 4, str(tmp_path))
    run(_resume, 2, str(tmp_path))
    run(_resume, 1, str(tmp_path))


def _save_torchs_way(rank: int, size: int, folder: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    opt = tw.torch.AdamW((net := fsdp()).named_parameters(), lr=0.05, before="clip_global_norm(0.1)")
    train(net, opt, range(3), rank, size)
    weights, state = get_state_dict(net, opt)
    _write({"model": weights, "optimizer": state}, f"{folder}/torch")


def _resume_torchs_way(rank: int, size: int, folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    opt = tw.torch.AdamW((net := fsdp()).named_parameters(), lr=0.05, before="clip_global_norm(0.1)")
    weights, state = get_state_dict(net, opt)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/torch")
    set_state_dict(net, opt, model_state_dict=weights, optim_state_dict=state)
    train(net, opt, range(3, 5), rank, size)
    assert_close(full(net), whole(GLOBAL[1]), "torch's tools")


def _packed(rank: int, size: int) -> None:
    net = fsdp(nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)))
    opt = Optimizer(net.parameters(), "adamw(lr=0.1)", state_dtype="q8")
    with pytest.raises(tw.UnsupportedError, match="8-bit state is packed shard by shard"):
        sharded_state_dict(opt)


# ---- ranks that disagree, and ranks that are lost


def _errors(rank: int, size: int) -> list[str]:
    """Every rank gets an error, and a world that can go on."""
    _packed(rank, size)
    p = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 3))]
    q = [*p, nn.Parameter(torch.ones(3))]
    odd = rank == size - 1
    words = []

    def refused(make: Any, kind: type = tw.ArgumentError) -> None:
        with pytest.raises(tw.Error) as problem:
            make()
        assert isinstance(problem.value, kind) or odd, problem.value
        words.append(str(problem.value))

    for layout in ("copies", "elements", "owners"):
        ranks = Ranks(layout)
        refused(lambda: Optimizer(p, "adamw(lr=0.1)" if odd else "adamw(lr=0.2)", ranks=ranks))
        refused(lambda: Optimizer(q if odd else p, "adamw(lr=0.1)", ranks=ranks))
        refused(lambda: Optimizer(p[::-1] if odd else p, "adamw(lr=0.1)", ranks=ranks))
        refused(lambda: Optimizer(p, "adamw(lr=0.1)", ranks=ranks, nonfinite="skip" if odd else "error"))
        refused(lambda: Optimizer(p, "adamv(lr=0.1)" if odd else "adamw(lr=0.1)", ranks=ranks))
        opt = Optimizer(p, "clip_global_norm(1) | adamw(lr=0.1)", ranks=ranks)
        p[0].grad, p[1].grad = torch.ones(4), None if odd else torch.ones(2, 3)
        before = [t.detach().clone() for t in p], opt.engine.state_dict()["state"]
        refused(opt.step)  # a gradient is missing on one rank
        p[1].grad = torch.ones(2, 3)
        opt.param_groups[0]["lr"] = 0.3 if odd else 0.2
        refused(opt.step)
        opt.param_groups[0]["lr"] = 0.1
        for t, old in zip(p, before[0]):
            assert torch.equal(t.detach(), old)
        opt.engine.set("lr", 0.1)
        opt.step()
        assert opt.engine.steps == 1 and not torch.equal(p[0].detach(), before[0][0])
        refused(lambda: opt.add_param_group({"params": [q[2]], "lr": -1.0 if odd else 0.1}))
    with pytest.raises(tw.ArgumentError, match="layout is None or one of 'copies'"):
        Ranks("shards")
    with pytest.raises(TypeError, match="process_group is one of torch.distributed, or None, not a list"):
        Ranks(process_group=[0, 1])
    net = fsdp()
    with pytest.raises(tw.ArgumentError, match="not spread alike"):
        Optimizer([*net.parameters(), p[0]], "adamw(lr=0.1)")
    with pytest.raises(tw.ArgumentError, match=r"sharded .* does not know"):
        Optimizer(net.parameters(), "adamw(lr=0.1)", ranks=Ranks("copies"))
    return words


def test_ranks_that_disagree_all_get_an_error() -> None:
    first, second = run(_errors, 2)
    assert len(first) == len(second) == 24
    for rank in (first, second):
        for k in (0, 8, 16):
            assert "sentence is adamw(lr=0.2" in rank[k] and "adamw(lr=0.1" in rank[k]
            assert "number of parameters is 2 on rank 0 and 3 on rank 1" in rank[k + 1]
            assert "parameter 0 is torch.float32 (" in rank[k + 2]
            assert "option nonfinite is 'error' on rank 0 and 'skip' on rank 1" in rank[k + 3]
            assert "no method `adamv`" in rank[k + 4]
            assert "list of parameters without gradient is [] on rank 0 and [1] on rank 1" in rank[k + 5]
            assert "group 0 lr is 0.2 on rank 0 and 0.3 on rank 1" in rank[k + 6]
    assert "there is no optimizer on rank 1: MethodError" in first[4]
    assert first[4].endswith("; this call has changed nothing on the others\n  adamv(lr=0.1)\n  ^"), first[4]


def _one_dies(rank: int, size: int, layout: str, sentence: str, how: str) -> None:
    sharded = layout != "copies"
    net = fsdp() if sharded else model()
    opt = Optimizer(net.parameters(), sentence, ranks=Ranks(layout))
    train(net, opt, range(2), rank, size)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    local = [p.to_local() if hasattr(p, "to_local") else p for p in map(lambda p: p.detach(), net.parameters())]
    before, state = [t.numpy().tobytes() for t in local], opt.engine.state_dict()["state"]
    dist.barrier()
    if rank == 1:
        if how == "exit":
            os._exit(1)
        time.sleep(600)
    start = time.monotonic()

    calls = []

    def closure() -> float:
        calls.append(1)
        return 1.0

    with pytest.raises(RuntimeError) as problem:
        opt.step(closure)
    assert "the step was broken off" in "".join(getattr(problem.value, "__notes__", []))
    assert time.monotonic() - start < 40  # of which the process group takes 3
    assert [t.numpy().tobytes() for t in local] == before
    assert opt.engine.state_dict()["state"] == state


@pytest.mark.parametrize("layout, sentence, how", [
    ("elements", "clip_global_norm(0.1) | adamw(lr=0.05)", "exit"),
    ("owners", "sam(0.1) | adamw(lr=0.05)", "exit"),
    ("copies", "adamw(lr=0.05)", "hang"),
])
def test_a_rank_that_is_lost_ends_the_step_of_the_others(layout: str, sentence: str, how: str) -> None:
    """Within the time-out of the group, and with parameters and state of the last step."""
    run(_one_dies, 2, layout, sentence, how, lost=(1,), timeout=3.0 if how == "hang" else 60.0)
