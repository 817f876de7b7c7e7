"""thalweg: the optimizers of the research literature, in place, on arrays that you own.

    import numpy as np, thalweg as tw
    opt = tw.AdamW([w, b], lr=1e-3)             # NumPy arrays, changed in place
    opt.step([dw, db])

    opt = tw.Optimizer([w, b], "clip_global_norm(1.0) | adamw(lr=3e-4) | ema(0.999)")
    loss = opt.step(closure)                    # closure() -> loss, grads; called as often as the method asks

There is a class for every optimizer (AdamW, SGD, Muon, ...; help(tw.AdamW) gives its rule and its source), and
Optimizer for every sentence.  methods() lists what the library knows; so does `python -m thalweg methods`.
"""

from __future__ import annotations

from typing import Any

from . import _errors as _errors
from . import _thalweg
from ._aggregate import Aggregator, aggregate
from ._classes import class_names as _class_names
from ._classes import optimizer_class as _optimizer_class
from ._classes import suggestion as _suggestion
from ._errors import *  # noqa: F403
from ._errors import Error
from ._groups import ParamGroup
from ._objects import (
    Cache,
    Constraint,
    Diagnostic,
    Objective,
    Regularizer,
    Schedule,
    Weighting,
    constraint,
    diagnostic,
    objective,
    random_normal,
    regularizer,
    schedule,
    weighting,
)
from ._optimizer import Optimizer
from ._registry import Input, Method, Parameter, RequestKind, Slot, kinds, method, methods
from ._requests import Request
from ._saved import MemoryReport, StateRow
from ._solvers import Solver, SolverRequest, SolverResult, SolverRun, solver
from ._thalweg import get_num_threads, set_num_threads

version: str = _thalweg.version()
__version__ = version


def __getattr__(name: str) -> Any:
    """What takes time is made when it is first asked for: the class of an optimizer, and the names of all of them.
    build_info tells of OpenBLAS once it is loaded."""
    if name == "build_info":
        return _thalweg.build_info()
    if name == "LoadReport":
        from ._partial import LoadReport as found
    elif name == "__all__":
        found = _everything()
    elif name.startswith("_") or (found := _optimizer_class(name)) is None:
        near = "" if name.startswith("_") else _suggestion(name, _everything())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
    globals()[name] = found
    return found


def _everything() -> list[str]:
    return [*_NAMES, *_class_names()]


def __dir__() -> list[str]:
    return sorted({*globals(), *_everything()})


_NAMES = [
    "Aggregator",
    "Cache",
    "Constraint",
    "Diagnostic",
    "Error",
    "Input",
    "LoadReport",
    "MemoryReport",
    "Method",
    "Objective",
    "Optimizer",
    "ParamGroup",
    "Parameter",
    "Regularizer",
    "Request",
    "RequestKind",
    "Schedule",
    "Slot",
    "Solver",
    "SolverRequest",
    "SolverResult",
    "SolverRun",
    "StateRow",
    "Weighting",
    "aggregate",
    "build_info",
    "constraint",
    "diagnostic",
    "get_num_threads",
    "kinds",
    "method",
    "methods",
    "objective",
    "random_normal",
    "regularizer",
    "schedule",
    "set_num_threads",
    "solver",
    "version",
    "weighting",
    *(cls.__name__ for cls in _errors.ERRORS if cls is not Error),
]
