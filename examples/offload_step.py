"""A step for parameters that live elsewhere: 16-bit weights on the device side, float32 masters and the state here.

    python examples/offload_step.py --elements 16000000

The device hands over bfloat16 gradients; the step moves the float32 masters, and writes the bfloat16 weights that go
back to the device (the shadow) in the same pass.  Timed beside torch's fused AdamW with a pass that rounds, and
DeepSpeed's CPU Adam where that is installed (DS_BUILD_OPS=0 pip install deepspeed; its step is compiled at the first
use, which needs a C++ compiler, and ninja on the path).  Each runs in a process of its own, whose peak of memory is
reported.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]
LR, TENSOR = 1e-3, 1 << 20


def tensors(elements: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random tensors of a million elements, and one of what is left."""
    torch.manual_seed(0)
    sizes = [TENSOR] * (elements // TENSOR) + [elements % TENSOR]
    return [torch.randn(n).mul_(0.02).to(dtype) for n in sizes if n]


def model(elements: int) -> tuple[list[torch.Tensor], list[torch.nn.Parameter], list[torch.Tensor]]:
    """The weights on the device, the float32 masters, and gradients as they come from the device."""
    device = tensors(elements, torch.bfloat16)
    masters = [torch.nn.Parameter(p.float()) for p in device]
    return device, masters, [g.mul_(0.1) for g in tensors(elements, torch.bfloat16)]


def with_thalweg(elements: int, state_dtype: str) -> tuple[Step, int]:
    """The step, and the bytes of its state (without the masters)."""
    import thalweg.torch

    device, masters, grads = model(elements)
    opt = thalweg.torch.AdamW(masters, lr=LR, state_dtype=state_dtype)
    opt.engine.bind_shadow(device)  # filled by every step
    opt.engine.bind_gradients(grads)  # bfloat16, as they come from the device; torch's .grad would have to be float32
    return opt.engine.step, opt.engine.memory_report().total


def with_torch(elements: int) -> tuple[Step, int]:
    return with_passes(elements, functools.partial(torch.optim.AdamW, lr=LR, fused=True))


def with_deepspeed(elements: int) -> tuple[Step, int]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return with_passes(elements, functools.partial(DeepSpeedCPUAdam, lr=LR, adamw_mode=True))


def with_passes(elements: int, make: Callable[..., Any]) -> tuple[Step, int]:
    """An optimizer that takes float32 gradients, between a pass that widens them and one that rounds the weights."""
    device, masters, grads = model(elements)
    opt = make(masters)

    def step() -> None:
        for p, g in zip(masters, grads):
            p.grad = g.float()
        opt.step()
        with torch.no_grad():
            for p, low in zip(masters, device):
                low.copy_(p)

    return step, 8 * elements


CANDIDATES: dict[str, tuple[Callable[..., tuple[Step, int]], tuple[Any, ...]]] = {
    "thalweg, 8-bit state": (with_thalweg, ("q8",)),
    "thalweg, bf16 state": (with_thalweg, ("bf16",)),
    "thalweg, f32 state": (with_thalweg, ("f32",)),
    "torch fused": (with_torch, ()),
    "DeepSpeed CPU Adam": (with_deepspeed, ()),
}


def measure(name: str, elements: int, steps: int, threads: int) -> tuple[float, float, float]:
    """Seconds of a step (median), bytes of state an element, peak of memory in MiB."""
    torch.set_num_threads(threads)
    import thalweg

    thalweg.set_num_threads(threads)
    make, arguments = CANDIDATES[name]
    step, state = make(elements, *arguments)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return statistics.median(times[1:]), state / elements, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=16_000_000, help="size of the model")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.elements:,} elements, {arguments.threads} threads, median of {arguments.steps} steps\n")
    print(f"{'':<24}{'ns an element':>14}{'state, bytes an element':>26}{'peak, MiB':>12}")
    context = multiprocessing.get_context("spawn")
    for name in CANDIDATES:
        if name.startswith("DeepSpeed") and importlib.util.find_spec("deepspeed") is None:
            print(f"{name:<24}{'not installed':>14}")
            continue
        try:
            with context.Pool(1) as pool:
                seconds, state, peak = pool.apply(
                    measure, (name, arguments.elements, arguments.steps, arguments.threads))
        except (ImportError, RuntimeError) as problem:  # DeepSpeed compiles its step when it is first used
            if not name.startswith("DeepSpeed"):
                raise
            print(f"{name:<24}{'does not load':>14}: {problem}")
            continue
        print(f"{name:<24}{1e9 * seconds / arguments.elements:>14.2f}{state:>26.2f}{peak:>12.0f}")


if __name__ == "__main__":
    main()
