"""State of spread models: consolidated by ZeroRedundancyOptimizer; and in 8 bits, for the same ranks or others."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch has no gloo", allow_module_level=True)

import thalweg as tw  # noqa: E402
from ranks_support import run  # noqa: E402
from test_distributed import fsdp, full, model, train  # noqa: E402
from thalweg.distributed import Ranks, load_sharded_state_dict, sharded_state_dict  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402

SENTENCES = ["clip_global_norm(0.1) | adamw(lr=cosine(lr=0.05, total=20)) | ema(0.9)", "prodigy(d0=0.01)", "nadam"]


def _groups(net: nn.Module, several: bool) -> list[dict[str, Any]]:
    """Weights and biases of two layers; or a last bias alone too, which one rank has."""
    first, *others = net.parameters()
    if not several:
        return [{"params": [first, *others]}]
    return [{"params": [first]}, {"params": others[:-1], "weight_decay": 0.25}, {"params": others[-1:]}]


def _zero(net: nn.Module, sentence: str, several: bool) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    part = functools.partial(Optimizer, sentence=sentence, ranks=Ranks("tensors"))
    return ZeroRedundancyOptimizer(_groups(net, several), part)


def _consolidated(rank: int, size: int, folder: str) -> None:
    for sentence, several in zip(SENTENCES, (True, False, True)):
        torch.manual_seed(1)
        net = model()
        opt = _zero(net, sentence, several)
        train(net, opt, range(3))
        opt.consolidate_state_dict(0)
        if rank == 0:
            state = opt.state_dict()
            assert sorted(state["state"]) == [0, 1, 2, 3] and all("step" in row for row in state["state"].values())
            torch.save({"model": net.state_dict(), "optimizer": state}, f"{folder}/state")
        dist.barrier()
        train(net, opt, range(3, 5))
        saved = torch.load(f"{folder}/state", weights_only=True)
        other = model()
        other.load_state_dict(saved["model"])
        again = _zero(other, sentence, several)
        again.load_state_dict(saved["optimizer"])
        train(other, again, range(3, 5))
        assert again.optim.engine.steps == 5
        for p, q in zip(net.parameters(), other.parameters()):
            assert torch.equal(p, q), sentence
        dist.barrier()
    # the rows of another rank alone have nothing of the whole run
    rows = {p: {k: v.clone() for k, v in row.items() if k != "thalweg"} for p, row in again.optim.state.items()}
    for p, row in rows.items():
        again.optim.state[p] = row
    with pytest.raises(tw.MismatchError, match="of another number of ranks"):
        train(other, again, range(5, 6))


def test_a_consolidated_state_goes_on(tmp_path: Path) -> None:
    """ZeroRedundancyOptimizer on two ranks: the state of all on one, through a file, with the same bits afterwards."""
    run(_consolidated, 2, str(tmp_path))


def test_a_row_that_is_put_into_state_counts() -> None:
    """As torch's own optimizers go by what stands in their state."""
    p, q = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    opt, other = Optimizer([p], "sgd(lr=0.5, momentum=0.5)"), Optimizer([q], "sgd(lr=0.5, momentum=0.5)")
    for _ in range(2):
        p.grad = torch.ones_like(p)
        opt.step()
    other.state[q] = {**{k: v.clone() for k, v in opt.state[p].items()}, "note": "mine"}
    with torch.no_grad():
        q.copy_(p)
    assert other.state_dict()["state"][0]["momentum_buffer"].tolist() == [1.5] * 3 and other.engine.steps == 2
    for o, t in ((opt, p), (other, q)):
        t.grad = torch.ones_like(t)
        o.step()
    assert torch.equal(p, q) and other.state[q]["note"] == "mine"


def _wide() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 1801), nn.Tanh(), nn.Linear(1801, 3)).double().float()


def _step(net: nn.Module, opt: Any, k: int) -> None:
    for index, p in enumerate(net.parameters()):
        whole = torch.linspace(-1, 1, p.numel()).roll(k * 7 + index).reshape(p.shape)
        if hasattr(p, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            p.grad = distribute_tensor(whole, p.device_mesh, p.placements)
        else:
            p.grad = whole
    opt.step()


def _packed(rank: int, size: int, folder: str) -> None:
    import torch.distributed.checkpoint as dcp

    if size > 1:
        net = fsdp(_wide())
        opt = Optimizer(net.named_parameters(), "adamw(lr=0.1)", state_dtype="q8")
        _step(net, opt, 0)
        state = opt.state_dict()
        assert any(row.get("packed") is not None for row in state["state"].values())
        before = full(net)
        _step(net, opt, 1)
        end = full(net)
        with torch.no_grad():
            for p, old in zip(net.parameters(), before):
                p.copy_(old if not hasattr(p, "device_mesh") else _as(old, p))
        opt.load_state_dict(state)  # of the same rank
        _step(net, opt, 1)
        assert all(torch.equal(p, q) for p, q in zip(full(net), end))
        everybody: list[Any] = [None] * size
        dist.all_gather_object(everybody, {k: row["packed"] for k, row in state["state"].items() if "packed" in row})
        for key, mark in everybody[1 - rank].items():  # what a tool gives back that keeps one rank's bytes
            state["state"][key]["packed"] = mark
        with pytest.raises(tw.MismatchError, match=f"this is of rank {1 - rank} of 2, on rank {rank} of 2.*bf16"):
            opt.load_state_dict(state)
    net = fsdp(_wide()) if size > 1 else _wide()
    ranks = Ranks("owners") if size > 1 else None
    opt = Optimizer(net.named_parameters(), "adamw(lr=0.1)", state_dtype="q8", ranks=ranks)
    if size > 1:
        _step(net, opt, 0)
        dcp.save({"model": net.state_dict(), "optimizer": sharded_state_dict(opt)},
                 storage_writer=dcp.FileSystemWriter(f"{folder}/owners", sync_files=False))
        _step(net, opt, 1)
        end = full(net)
        if rank == 0:
            torch.save(end, f"{folder}/end")
        return
    saved = {"model": net.state_dict(), "optimizer": sharded_state_dict(opt)}
    dcp.load(saved, checkpoint_id=f"{folder}/owners")
    net.load_state_dict(saved["model"])
    load_sharded_state_dict(opt, saved["optimizer"])
    _step(net, opt, 1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), torch.load(f"{folder}/end")))


def _as(whole: torch.Tensor, p: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, p.device_mesh, p.placements)


def test_eight_bits_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Shards are packed by the shard: for the same rank alone, and another's are refused.  What owners hold is whole,
    and goes on anywhere, with the same bits."""
    run(_packed, 2, str(tmp_path))
    run(_packed, 1, str(tmp_path))


def _uneven(rank: int, size: int) -> int:
    # two rows on one rank, and one on the other: below the 4,096 elements of 8-bit state
    net = fsdp(nn.Sequential(nn.Linear(3000, 3), nn.Linear(3, 1)))
    opt = Optimizer(net.named_parameters(), "adamw(lr=0.1)", state_dtype="q8")
    for _ in range(2):  # a rank that went on alone would hang here
        with pytest.raises(tw.UnsupportedError, match="weight.*8-bit state is packed shard by shard.*owners"):
            sharded_state_dict(opt)
        dist.barrier()
    return sum(row.storage == "q8" for row in opt.engine.memory_report().rows)


def test_all_ranks_refuse_what_one_has_in_eight_bits() -> None:
    assert run(_uneven, 2) == [2, 0]
