"""A model that is spread over gloo processes, and an optimizer that was not told so: what is an error, and what is said."""

from __future__ import annotations

import functools
import warnings
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
from thalweg.distributed import Ranks  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402

CLIPPED = "clip_global_norm(0.01) | sgd(lr=1)"


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def train(net: Any, opt: Any, rank: int = 0, size: int = 1, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x, y = (torch.randn(8, n, generator=generator).double()[rank::size] for n in (4, 2))

        def closure() -> Any:
            opt.zero_grad()
            loss = ((net(x) - y) ** 2).mean()
            loss.backward()
            return loss

        closure()
        opt.step()


def flat(net: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def trained(sentence: str) -> Any:
    """The weights of one process that has all samples."""
    net = model()
    train(net, Optimizer(net.parameters(), sentence))
    return flat(net)


def said(make: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(w.message) for w in caught if "thalweg" in str(w.message)]


def _slices(rank: int, size: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    def wrapped(whole: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of FSDP without an accelerator
            return FullyShardedDataParallel(model(), device_id=torch.device("cpu"), use_orig_params=whole)

    def weights(net: Any) -> Any:
        with FullyShardedDataParallel.summon_full_params(net):
            return flat(net)

    for whole in (False, True):
        for sentence in ("adamw(lr=0.1)", CLIPPED, "lamb(lr=0.1)"):
            net = wrapped(whole)
            opt = Optimizer(net.parameters(), sentence)
            if sentence.startswith("adamw"):  # element by element: the same as with the whole
                train(net, opt, rank, size)
                torch.testing.assert_close(weights(net), trained(sentence))
                continue
            before = weights(net)
            with pytest.raises(tw.ArgumentError, match=r'slices that FSDP has cut.*ranks=.*Ranks\("elements"\)'):
                train(net, opt, rank, size, 1)
            assert torch.equal(weights(net), before)
        with pytest.raises(tw.UnsupportedError, match=r'slices: take fully_shard.*Ranks\("owners"\)'):
            Optimizer(wrapped(whole).parameters(), "route(matrix=(muon), other=(adamw))")
        # what the message says; where parameters are parts of their own, a rank has nothing of some, and no gradient
        net = wrapped(whole)
        train(net, Optimizer(net.parameters(), CLIPPED, ranks=Ranks("elements")), rank, size)
        torch.testing.assert_close(weights(net), trained(CLIPPED))
    # the ranks that have something of a tensor agree on its gradient
    parts = [nn.Parameter(torch.ones(2 if rank == k else n, dtype=torch.float64)) for k, n in ((0, 0), (1, 0), (0, 1))]
    opt = Optimizer(parts, "clip_global_norm(1) | sgd(lr=1, momentum=0.5)", ranks=Ranks("elements"))
    parts[2].grad = torch.ones_like(parts[2])
    opt.step()  # nobody has a gradient of the first two
    assert torch.equal(parts[rank], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(parts[2], torch.full_like(parts[2], 1 - 3**-0.5))
    if rank == 0:
        parts[2].grad = None
    with pytest.raises(tw.ArgumentError, match="parameter 2 has a gradient on one rank, and on another none"):
        opt.step()


def test_slices_of_fsdp() -> None:
    run(_slices, 2)


def _tensors(rank: int, size: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    for sentence, ranks, count in ((CLIPPED, None, 1), (CLIPPED, Ranks("tensors"), 0), ("adamw", None, 0)):
        net = DistributedDataParallel(model())
        part = functools.partial(Optimizer, sentence=sentence, ranks=ranks)
        texts = said(lambda: train(net, ZeroRedundancyOptimizer(net.parameters(), part), rank, size))
        assert len(texts) == count, texts
        assert all("which ZeroRedundancyOptimizer has given this process" in t and 'Ranks("tensors")' in t for t in texts)
    opt = said(lambda: ZeroRedundancyOptimizer(model().parameters(), thalweg.torch.AdamW, lr=0.1))
    assert not opt


def test_tensors_of_zero() -> None:
    run(_tensors, 2)


def _losses(rank: int, size: int) -> None:
    net = model()
    for sentence in ("polyak_sgd", "lbfgs", "mezo"):
        texts = said(lambda: Optimizer(net.parameters(), sentence))
        assert len(texts) == 1 and 'Ranks("copies"), which averages it' in texts[0], texts
    for sentence in (CLIPPED, "sam(0.05) | adamw"):
        assert not said(lambda: Optimizer(net.parameters(), sentence))
    assert not said(lambda: Optimizer(net.parameters(), "polyak_sgd", ranks=Ranks("copies")))


def test_losses_of_copies() -> None:
    run(_losses, 2)
    assert not said(lambda: Optimizer(model().parameters(), "polyak_sgd"))  # one process alone
