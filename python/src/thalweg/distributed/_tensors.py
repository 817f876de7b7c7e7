"""DTensors and their parts, as far as the layouts look at them."""

from __future__ import annotations

import sys
from typing import Any

import torch


def is_dtensor(tensor: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # where it was never imported, nothing is one
    return module is not None and isinstance(tensor, module.DTensor)


def lies(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor, over the same memory; other tensors as they are."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def dtensor_like(local: torch.Tensor, p: Any) -> torch.Tensor:
    """A DTensor with this local shard, cut as `p` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def is_sharded(tensor: torch.Tensor) -> bool:
    return is_dtensor(tensor) and any(placement.is_shard() for placement in tensor.placements)


def whereabouts(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which part of the whole tensor this rank has: offsets and shape."""
    if not is_sharded(tensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def slices(part: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[slice, ...]:
    return tuple(slice(first, first + count) for first, count in zip(*part))


def flat_bytes(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of any types, one behind the other."""
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors if t.numel()]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
