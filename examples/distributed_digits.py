"""Trains on scikit-learn's digits with several processes, and compares how they may share the work.

    torchrun --nproc-per-node 4 examples/distributed_digits.py
    torchrun --nproc-per-node 2 examples/distributed_digits.py --epochs 5 --only fsdp2

Every process has a share of the training images.  The first runs exchange gradients in every step:

    ddp      every process has the model and the whole state
    owners   every process has the model; the state of a tensor, and the step, are its owner's
    zero     the same by torch's ZeroRedundancyOptimizer
    fsdp2    every process has a shard of each tensor, and the state of that (fully_shard)
    muon     shards again; matrices are gathered by their owners, which orthogonalise them

The others train on their own for a while (--local-steps), and then take what all have learnt:

    fedavg   the mean of their parameters becomes everybody's
    diloco   the mean of their drift is a gradient for an outer optimizer with Nesterov momentum

Prints the mean loss, the test accuracy, and the bytes of optimizer state, of the first process.
Exits with 1 where a run has learnt too little, as some do within two epochs.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from thalweg.distributed import Ranks
from thalweg.torch import Optimizer

SENTENCE = "clip_global_norm(1) | adamw(lr=3e-3, weight_decay=0.01)"
MATRIX = "route(matrix=(muon(lr=0.02)), other=(adamw(lr=3e-3)))"
FLOOR = 0.9  # test accuracy that every run has to exceed

Batch = tuple[torch.Tensor, torch.Tensor]


def load(seed: int) -> tuple[Batch, Batch]:
    """The 1,797 digits, shuffled: 80 % to train on, 20 % to test with; pixels in 0 ... 1."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    images, digits = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    cut = int(0.8 * len(y))
    return (images[:cut], digits[:cut]), (images[cut:], digits[cut:])


def batches(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """This process's minibatches of `size` images, for ever."""
    x, y = (part[dist.get_rank() :: dist.get_world_size()] for part in data)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(y), generator=generator)
        for first in range(0, len(y) - size + 1, size):
            rows = order[first : first + size]
            yield x[rows], y[rows]


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)  # the same weights on all processes
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


def prepare(name: str, net: nn.Sequential) -> tuple[nn.Module, Any]:
    """The model as the processes share it, and its optimizer."""
    if name in ("fsdp2", "muon"):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        shards = fully_shard(net, mesh=mesh)
        if name == "fsdp2":
            return shards, Optimizer(shards.parameters(), SENTENCE)
        return shards, Optimizer(shards.parameters(), MATRIX, ranks=Ranks("owners"))
    ddp = DistributedDataParallel(net)
    if name == "zero":  # each process has some of the tensors; the clip needs the norm of all
        part = functools.partial(Optimizer, sentence=SENTENCE, ranks=Ranks("tensors"))
        return ddp, ZeroRedundancyOptimizer(ddp.parameters(), part)
    return ddp, Optimizer(ddp.parameters(), SENTENCE, ranks=Ranks("owners" if name == "owners" else "copies"))


def together(name: str, net: nn.Sequential, data: Iterator[Batch], steps: int) -> tuple[nn.Module, float, int]:
    """Gradients are exchanged in every step.  (The model, the mean loss of the last steps, bytes of state here.)"""
    model, opt = prepare(name, net)
    losses = []
    for _ in range(steps):
        x, y = next(data)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    inner = opt.optim if isinstance(opt, ZeroRedundancyOptimizer) else opt
    return model, float(torch.stack(losses[-steps // 4 :]).mean()), inner.engine.memory_report().total


def apart(name: str, net: nn.Sequential, data: Iterator[Batch], steps: int, local: int) -> tuple[nn.Module, float, int]:
    """Each process trains a copy for `local` steps; then every outer optimizer asks for the parameters of them all."""
    size = dist.get_world_size()
    sentence = f"fedavg(participants={size}) | sgd(lr=1)" if name == "fedavg" else f"diloco_outer(workers={size})"
    outer = Optimizer(net.parameters(), sentence, ranks=Ranks("copies"))
    worker = copy.deepcopy(net)
    inner = Optimizer(worker.parameters(), SENTENCE)
    losses = []

    def participant(request: Any) -> None:
        """Leaves in `.grad` the parameters of process number request.index."""
        for mine, p in zip(worker.parameters(), net.parameters()):
            theirs = mine.detach().clone()
            dist.broadcast(theirs, src=request.index)
            p.grad = theirs

    for _ in range(max(1, steps // local)):
        with torch.no_grad():
            for mine, p in zip(worker.parameters(), net.parameters()):
                mine.copy_(p)
        for _ in range(local):
            x, y = next(data)
            inner.zero_grad()
            loss = nn.functional.cross_entropy(worker(x), y)
            loss.backward()
            inner.step()
            losses.append(loss.detach())
        outer.step(participant)
    last = float(torch.stack(losses[-len(losses) // 4 :]).mean())
    return net, last, inner.engine.memory_report().total + outer.engine.memory_report().total


RUNS = ("ddp", "owners", "zero", "fsdp2", "muon", "fedavg", "diloco")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images (default 8)")
    parser.add_argument("--batch", type=int, default=64,
                        help="images in a step, of all processes together (default 64)")
    parser.add_argument("--local-steps", type=int, default=10,
                        help="between two meetings, of fedavg and diloco (default 10)")
    parser.add_argument("--only", action="append", choices=RUNS, help="one of the runs; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the minibatches (default 0)")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun: torchrun --nproc-per-node 4 examples/distributed_digits.py")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    training, test = load(args.seed)
    if args.epochs < 1 or args.local_steps < 1 or not size <= args.batch <= len(training[1]):
        parser.error(f"--epochs and --local-steps are at least 1, --batch is in {size} ... {len(training[1])}")
    steps = args.epochs * (len(training[1]) // args.batch)
    failed = []
    if rank == 0:
        print(f"{size} processes, {steps} steps\n{'run':8} {'loss':>8} {'accuracy':>9} {'state bytes':>12}", flush=True)
    for name in args.only or RUNS:
        data = batches(training, max(1, args.batch // size), args.seed + rank)
        net = perceptron(args.seed)
        if name in ("fedavg", "diloco"):
            model, loss, state = apart(name, net, data, steps, args.local_steps)
        else:
            model, loss, state = together(name, net, data, steps)
        with torch.no_grad():
            accuracy = float((model(test[0]).argmax(1) == test[1]).float().mean())
        if rank == 0:
            print(f"{name:8} {loss:8.4f} {accuracy:9.2%} {state:12,}", flush=True)
        if not accuracy > FLOOR:
            failed.append(name)
    dist.destroy_process_group()
    if failed and rank == 0:
        print(f"at or below {FLOOR:.0%} test accuracy: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
