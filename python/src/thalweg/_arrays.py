"""Arrays that have no plain buffer: torch tensors, DLPack exporters, NumPy arrays of bfloat16."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

F32, F64, F16, BF16 = 1, 2, 3, 4
HOST_DEVICES = (1, 3, 11)  # DLPack: CPU, and CPU memory pinned for CUDA or ROCm

# What may become of the memory behind the same object: nothing; it may move, and `look` tells where it lies; who knows.
STAYS, MAY_MOVE, UNKNOWN = 0, 1, 2
PLAIN = 4  # beside them: a tensor of torch.Tensor itself, all of which are alike


def adapt(value: Any) -> tuple[Any, bool, bool, int]:
    """Makes something with a buffer of `value`, over the same memory.

    Returns (source, is bfloat16, is read-only, what may become of the memory).  `source` has the buffer protocol, or is
    a DLPack capsule, or is a str that says why there is none.  bfloat16 comes as its 16-bit integers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _adapt_torch(torch, value)
    known = STAYS
    if not isinstance(value, np.ndarray):
        read_only = type(value).__module__.partition(".")[0] in ("jax", "jaxlib")
        if hasattr(value, "__dlpack__"):
            try:
                if value.__dlpack_device__()[0] not in HOST_DEVICES:
                    return "the array is not in CPU memory", False, False, STAYS
                try:
                    capsule = value.__dlpack__(max_version=(1, 1))
                except TypeError:
                    capsule = value.__dlpack__()
            except (BufferError, ValueError, TypeError, RuntimeError, AttributeError) as problem:
                text = TRACED if is_traced(value) else f"cannot be borrowed through DLPack: {problem}"
                return text, False, False, STAYS
            return capsule, False, read_only, UNKNOWN
        if not hasattr(value, "__array_interface__"):
            return refusal(value), False, False, STAYS
        value, known = np.asarray(value), UNKNOWN
    if is_masked(value):
        return MASKED, False, False, STAYS
    if value.dtype.name == "bfloat16":
        return value.view(np.uint16), True, False, known
    try:
        return memoryview(value), False, False, known
    except (ValueError, BufferError, TypeError):
        return _unsupported(value.dtype), False, False, STAYS


def is_traced(value: Any) -> bool:
    """Whether it stands for an array while JAX traces a function."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _adapt_torch(torch: Any, value: Any) -> tuple[Any, bool, bool, int]:
    bf16 = value.dtype is torch.bfloat16
    try:
        plain = value.detach() if value.requires_grad else value
        if (missing := _freed(plain)):
            return missing, bf16, False, STAYS
        source = (plain.view(torch.int16) if bf16 else plain).numpy()
        return source, bf16, False, MAY_MOVE | (PLAIN if type(value) is torch.Tensor else 0)
    except (TypeError, RuntimeError) as problem:
        if value.layout is not torch.strided:
            said = f"the tensor is sparse ({value.layout}); "
            return said + "thalweg.torch.SGD, Adagrad and SparseAdam take such gradients", False, False, STAYS
        if value.device.type != "cpu":
            return f"the tensor is on {value.device}, not in CPU memory", False, False, STAYS
        if value.is_neg():
            return "the tensor is a view that negates its memory; use t.resolve_neg()", False, False, STAYS
        return f"the tensor cannot be borrowed: {problem}", False, False, STAYS


def _freed(tensor: Any) -> str:
    """What is said of a tensor whose storage was resized below it, of which NumPy would make other memory; else ""."""
    if tensor.layout is not sys.modules["torch"].strided or tensor.device.type != "cpu" or not tensor.numel():
        return ""
    reach = 1 + sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride()))
    needs, has = (tensor.storage_offset() + reach) * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f"the storage of the tensor was resized to {has} bytes, and its elements need {needs}" if has < needs else ""


def look(tensor: Any) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Where a torch tensor lies now: address, element type (0: none of ours), shape, strides in elements."""
    torch = sys.modules["torch"]
    kinds = {torch.float32: F32, torch.float64: F64, torch.float16: F16, torch.bfloat16: BF16}
    return tensor.data_ptr(), kinds.get(tensor.dtype, 0), tuple(tensor.shape), tensor.stride()


TRACED = ("a traced array (within jax.jit, grad, vmap, ...) has no memory: thalweg.jax.optimizer(sentence) makes the "
          "steps there")
MASKED = "a masked array is not taken, since its mask would be lost: pass its .data, or .filled(0) for gradients"


def is_masked(value: Any) -> bool:
    """True for masked arrays, whose elements do not all count."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(value, ma.MaskedArray)


def refusal(value: Any) -> str:
    """What is said of something that is no array."""
    text = f"{_article(value)} is not an array (buffer protocol or DLPack)"
    if not isinstance(value, (list, tuple)):
        return text
    if any(hasattr(part, "shape") and part.shape for part in value):
        return text + "; arrays come one for each parameter, those of several tasks as the answers to opt.requests()"
    return text + "; np.array(...) makes one of numbers"


def _article(value: Any) -> str:
    return f"an object of type {type(value).__name__}"


def _unsupported(dtype: Any) -> str:
    return f"element type {dtype} is not supported; thalweg takes float32, float64, float16 and bfloat16"


def from_bytes(dtype: int, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    """A read-only NumPy array over `data`; bfloat16 needs ml_dtypes, and is widened to float32 without it."""
    if dtype == BF16:
        raw = np.frombuffer(data, np.uint16)
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            wide = (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)
            wide.flags.writeable = False
            return wide
        return raw.view(bfloat16).reshape(shape)
    return np.frombuffer(data, {F32: np.float32, F64: np.float64, F16: np.float16}[dtype]).reshape(shape)


def is_array(value: Any) -> bool:
    """True for what adapt takes, as opposed to a number, a list or a dict."""
    if isinstance(value, (bytes, bytearray, str)):
        return False
    return isinstance(value, (np.ndarray, memoryview)) or any(
        hasattr(value, name) for name in ("__dlpack__", "__array_interface__", "__buffer__", "data_ptr")
    ) or (not isinstance(value, (list, tuple, dict)) and _has_buffer(value))


def _has_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except TypeError:
        return False
    except (ValueError, BufferError):
        return True
    return True
