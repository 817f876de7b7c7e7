"""Worlds of a few gloo processes for tests: forked from one server that has imported torch, which takes seconds."""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import traceback
from typing import Any, Callable

PRELOAD = ["numpy", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor",
           "torch.distributed.checkpoint", "torch.distributed.checkpoint.state_dict", "torch.utils.serialization",
           "torch.distributed.optim", "torch.nn.parallel", "thalweg.torch"]
PATIENCE = 100.0  # seconds, for a rank to finish; then it says where it stands


def _work(
    body: Callable[..., Any], rank: int, size: int, store: str, timeout: float, args: tuple[Any, ...], pipe: Any
) -> None:
    import torch
    import torch.distributed as dist

    import thalweg

    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.set_num_threads(1)
    thalweg.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size,
                            timeout=datetime.timedelta(seconds=timeout))
    try:
        pipe.send((True, body(rank, size, *args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    os._exit(0)  # a group with a dead member is not taken down, but left


def run(
    body: Callable[..., Any], size: int, *args: Any, lost: tuple[int, ...] = (), timeout: float = 60.0
) -> list[Any]:
    """What body(rank, size, *args) returns on each of `size` ranks; None on those that are `lost` on purpose.

    timeout  seconds, of the process group: what a rank waits for one that is gone or hangs
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            given = (body, rank, size, f"{folder}/store", timeout, args, theirs)
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results: list[Any] = [None] * size
        failed: list[str] = []
        try:
            for rank, pipe in enumerate(pipes):
                if rank in lost:
                    continue
                if not pipe.poll(2 if failed else PATIENCE + 10):
                    failed.append(f"rank {rank} of {size} says nothing")
                    continue
                good, results[rank] = pipe.recv()
                failed += [] if good else [f"rank {rank} of {size}:\n{results[rank]}"]
            assert not failed, "\n".join(failed)
        finally:
            for process in processes:
                process.kill()
                process.join()
    return results
