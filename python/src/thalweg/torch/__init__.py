"""thalweg as torch optimizers: every class here is a `torch.optim.Optimizer` for CPU tensors.

    import thalweg.torch
    opt = thalweg.torch.AdamW(model.parameters(), lr=1e-3)             # torch's own signature and defaults
    opt = thalweg.torch.Optimizer(model.parameters(), "clip_global_norm(1.0) | adamw(lr=3e-4, weight_decay=0.1)")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 1000)
    loss.backward(); opt.step(); opt.zero_grad(); scheduler.step()

There is a class for every optimizer of the library (dir(thalweg.torch) lists them), and Optimizer for every sentence.
Those that torch has too take what torch's take.  Parameters and gradients are used where they lie; nothing is copied.
float32, float64, float16 and bfloat16.  thalweg.torch.huggingface has a Trainer for methods that ask more than once.
"""

from __future__ import annotations

from .._peers import check as _check

_check(__name__, "torch", newer=lambda torch: torch.autograd.graph.increment_version(()))  # several tensors at once

from .._classes import class_names as _class_names
from .._classes import suggestion as _suggestion
from ._answers import Answers, hessian_product, per_sample, task_gradients
from ._classes import optimizer_class as _optimizer_class
from ._groups import get_parameter_groups
from ._in_backward import InBackward
from ._optimizer import Optimizer
from ._schedule import SentenceLR

__all__ = ["Answers", "InBackward", "Optimizer", "SentenceLR", "get_parameter_groups", "hessian_product", "per_sample",
           "task_gradients", *_class_names()]


def __getattr__(name: str) -> type[Optimizer]:
    """The class of an optimizer is made when it is first asked for."""
    if not name.startswith("_") and (found := _optimizer_class(name)) is not None:
        globals()[name] = found
        return found
    near = "" if name.startswith("_") else _suggestion(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
