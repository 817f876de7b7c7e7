# Written by `python -m thalweg stubs --write` from what the library says of its methods; do not edit.

from collections.abc import Iterable as _Iterable, Sequence as _Sequence
from typing import Any as _Any, ClassVar as _ClassVar, Literal as _Literal

from ._aggregate import Aggregator as Aggregator
from ._aggregate import aggregate as aggregate
from ._errors import AllocationError as AllocationError
from ._errors import ArgumentError as ArgumentError
from ._errors import BusyError as BusyError
from ._errors import CountError as CountError
from ._errors import DtypeError as DtypeError
from ._errors import Error as Error
from ._errors import FileError as FileError
from ._errors import FormatError as FormatError
from ._errors import HandleError as HandleError
from ._errors import InternalError as InternalError
from ._errors import LayoutError as LayoutError
from ._errors import MethodError as MethodError
from ._errors import MismatchError as MismatchError
from ._errors import NeedsError as NeedsError
from ._errors import NonfiniteError as NonfiniteError
from ._errors import NumericError as NumericError
from ._errors import OverlapError as OverlapError
from ._errors import RangeError as RangeError
from ._errors import SentenceError as SentenceError
from ._errors import SequenceError as SequenceError
from ._errors import ShapeError as ShapeError
from ._errors import SpaceError as SpaceError
from ._errors import UnknownNameError as UnknownNameError
from ._errors import UnsupportedError as UnsupportedError
from ._errors import ValueTypeError as ValueTypeError
from ._errors import VersionError as VersionError
from ._groups import ParamGroup as ParamGroup
from ._objects import Cache as Cache
from ._objects import Constraint as Constraint
from ._objects import Diagnostic as Diagnostic
from ._objects import Objective as Objective
from ._objects import Regularizer as Regularizer
from ._objects import Schedule as Schedule
from ._objects import Weighting as Weighting
from ._objects import constraint as constraint
from ._objects import diagnostic as diagnostic
from ._objects import objective as objective
from ._objects import random_normal as random_normal
from ._objects import regularizer as regularizer
from ._objects import schedule as schedule
from ._objects import weighting as weighting
from ._optimizer import Optimizer as Optimizer
from ._partial import LoadReport as LoadReport
from ._registry import Input as Input
from ._registry import Method as Method
from ._registry import Parameter as Parameter
from ._registry import RequestKind as RequestKind
from ._registry import Slot as Slot
from ._registry import kinds as kinds
from ._registry import method as method
from ._registry import methods as methods
from ._requests import Request as Request
from ._saved import MemoryReport as MemoryReport
from ._saved import StateRow as StateRow
from ._solvers import Solver as Solver
from ._solvers import SolverRequest as SolverRequest
from ._solvers import SolverResult as SolverResult
from ._solvers import SolverRun as SolverRun
from ._solvers import solver as solver
from ._thalweg import get_num_threads as get_num_threads
from ._thalweg import set_num_threads as set_num_threads

__version__: str
version: str
build_info: str

class ADoG(Optimizer):
    # A-DoG: DoG's step size on AcceleGrad's two sequences.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        reps_rel: float | str | Schedule = 1e-06,
        eps: float | str | Schedule = 1e-08,
        alpha_const: float | str | Schedule = 0.5,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ACProp(Optimizer):
    # The gradient over the centred second moment of the steps before.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-16,
        eps_root: float | str | Schedule = 1e-16,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdaBelief(Optimizer):
    # AdaBelief: Adam whose second moment is that of the gradient's deviation from its average.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-16,
        eps_root: float | str | Schedule = 1e-16,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdaBound(Optimizer):
    # Adam whose step sizes are clipped to bounds that close on a rate of SGD.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        final_lr: float | str | Schedule = 0.1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        gamma: float | str | Schedule = 0.001,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        amsgrad: bool = False,
        root_eps: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adadelta(Optimizer):
    # Adadelta: steps scaled by the ratio of the root mean squares of past steps and of gradients.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        rho: float | str | Schedule = 0.9,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adafactor(Optimizer):
    # Adafactor: the second moment of a matrix is kept as the sums of its rows and columns.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        beta2_decay: float | str | Schedule = -0.8,
        eps1: float | str | Schedule | None = None,
        eps2: float | str | Schedule = 0.001,
        d: float | str | Schedule = 1,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adagrad(Optimizer):
    # AdaGrad: the gradient over the root of the sum of its squares.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        lr_decay: float | str | Schedule = 0,
        weight_decay: float | str | Schedule = 0,
        initial_accumulator_value: float | str | Schedule = 0,
        eps: float | str | Schedule = 1e-10,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdagradNorm(Optimizer):
    # AdaGrad-Norm: one sum of squared gradient norms sets the step of all coordinates.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        b0: float | str | Schedule = 0.01,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdaHessian(Optimizer):
    # AdaHessian: Adam whose second moment is that of the diagonal of the Hessian, averaged over kernels.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.15,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 0.0001,
        weight_decay: float | str | Schedule = 0,
        hessian_power: float | str | Schedule = 1,
        block: int = 1,
        update_each: int = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdaLomo(Optimizer):
    # Adafactor without momentum, with a step relative to the size of the weights.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        weight_decay: float | str | Schedule = 0,
        threshold: float | str | Schedule = 1,
        decay_rate: float | str | Schedule = -0.8,
        eps1: float | str | Schedule = 1e-30,
        eps2: float | str | Schedule = 0.001,
        clip_norm: float | str | Schedule | None = None,
        clip_value: float | str | Schedule | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adam(Optimizer):
    # Adam: averages of the gradient and of its square set the step of every coordinate.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        bias_correction: bool = True,
        eps_in_sqrt: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamAtan2(Optimizer):
    # Adam with an arctangent in place of the division, so that the scale drops out.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.99,
        a: float | str | Schedule = 1.27,
        b: float | str | Schedule = 1,
        weight_decay: float | str | Schedule = 0,
        regenerate: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamCM(Optimizer):
    # Adam with critical momenta: the momenta of the largest gradients so far take part in the step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        capacity: int = 5,
        decay: float | str | Schedule = 0.7,
        layerwise: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamMini(Optimizer):
    # Adam with one second moment for a block of elements.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        blocks: _Literal["auto", "row", "head", "tensor", "adam"] = "auto",
        heads: int = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamSNSM(Optimizer):
    # Adam with subset norms and subspace momentum: one second moment a subset, momentum in few directions.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        subset: _Literal["rowcol", "off"] = "rowcol",
        rank: int | None = None,
        proj: _Literal["svd", "topk", "uniform"] = "svd",
        gap: int = 200,
        keep_momentum: bool = False,
        weight_decay: float | str | Schedule = 0,
        correct_bias: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamSpectralEps(Optimizer):
    # Adam whose epsilon is scaled by the product of the spectral norms of listed layers.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        listed: _Sequence[float] | None = None,
        n_power_iterations: int = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adamax(Optimizer):
    # AdaMax: Adam with a decaying maximum in place of the second moment.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.002,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamP(Optimizer):
    # Adam without the part of the step along weights whose scale does not matter.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        delta: float | str | Schedule = 0.1,
        wd_ratio: float | str | Schedule = 0.1,
        nesterov: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdaMuon(Optimizer):
    # Muon with Adam's second moment on the orthogonalised direction.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.02,
        momentum: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.95,
        nesterov: bool = True,
        sign: bool = True,
        weight_decay: float | str | Schedule = 0.01,
        eps: float | str | Schedule = 1e-08,
        bias_correction: bool = False,
        rms: float | str | Schedule = 0.2,
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        ns_eps: float | str | Schedule = 1e-07,
        ns_precision: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdamW(Optimizer):
    # AdamW: Adam with decoupled weight decay.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        amsgrad: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Adan(Optimizer):
    # Adan: Nesterov momentum rewritten with differences of gradients.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.98,
        beta2: float | str | Schedule = 0.92,
        beta3: float | str | Schedule = 0.99,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        prox: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AdEMAMix(Optimizer):
    # AdEMAMix: Adam with a second, slow average of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        beta3: float | str | Schedule = 0.9999,
        alpha: float | str | Schedule = 5,
        t_alpha: int = 0,
        t_beta3: int = 0,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ADOPT(Optimizer):
    # ADOPT: the gradient is normalised by the second moment of the steps before, then averaged.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.9999,
        eps: float | str | Schedule = 1e-06,
        clip_exponent: float | str | Schedule | None = 0.25,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AggMo(Optimizer):
    # The mean of several momenta, from fast to slow.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        betas: _Sequence[float] = ...,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class AMSGrad(Optimizer):
    # AMSGrad: Adam whose second moment never decreases.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        bias_correction: bool = True,
        eps_in_sqrt: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Apollo(Optimizer):
    # Gradient descent, scaled line by line as Adam scales a random projection of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        rank: int,
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        correct_bias: bool = True,
        update_proj_gap: int = 200,
        scale: float | str | Schedule = 1,
        scale_type: _Literal["channel", "tensor"] = "channel",
        scale_front: bool = False,
        norm_growth: float | str | Schedule | None = 1.01,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ASGD(Optimizer):
    # Averaged SGD: decreasing steps, and the mean of the iterates.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        lambd: float | str | Schedule = 0.0001,
        alpha: float | str | Schedule = 0.75,
        t0: float | str | Schedule = 1000000,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class BetaNGD(Optimizer):
    # Normalised gradient descent: the step is divided by a power of the gradient's norm.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        beta: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class CAME(Optimizer):
    # Adafactor with a momentum that is divided by how far it strays from the updates.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0002,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        beta3: float | str | Schedule = 0.9999,
        eps1: float | str | Schedule = 1e-30,
        eps2: float | str | Schedule = 1e-16,
        clip_threshold: float | str | Schedule = 1,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class CautiousAdamW(Optimizer):
    # C-AdamW: AdamW whose update keeps only the entries that agree in sign with the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        amsgrad: bool = False,
        scale: _Literal["mean", "count", "none", None] = "mean",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ClippedSGD(Optimizer):
    # Gradient descent with clipped norms.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        clip: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class COAP(Optimizer):
    # COAP: Adam in a subspace that follows the gradient and its correlation with the momentum.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        correct_bias: bool = True,
        rank: int | None = None,
        rank_ratio: float | str | Schedule = 4,
        update_interval: int = 32,
        reproject_factor: int = 5,
        restore_state: bool = False,
        scale: float | str | Schedule = 1,
        proj_lr: float | str | Schedule = 0.1,
        proj_clip: float | str | Schedule = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DAdaptAdam(Optimizer):
    # D-Adaptation of Adam: the distance to the solution is estimated from below and sets the step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float | str | Schedule = 1e-06,
        growth_rate: float | str | Schedule = ...,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DAdaptSGD(Optimizer):
    # D-Adaptation of SGD: the distance to the solution is estimated from below and sets the step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        momentum: float | str | Schedule = 0,
        weight_decay: float | str | Schedule = 0,
        d0: float | str | Schedule = 1e-06,
        growth_rate: float | str | Schedule = ...,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Dal(Optimizer):
    # DAL: gradient descent at a step size from the Hessian along the gradient, which keeps discretisation drift small.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        static_lr: float | str | Schedule,
        power: float | str | Schedule = 1,
        max_lr: float | str | Schedule = 5,
        start: float | str | Schedule | None = None,
        stop: float | str | Schedule | None = None,
        curvature: _Literal["product", "difference"] = "product",
        fd_eps: float | str | Schedule | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DCTAdamW(Optimizer):
    # AdamW in the columns of the discrete cosine transform that the gradient uses most.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        update_proj_gap: int = 1,
        rotate_subspace: bool = True,
        error_feedback: bool = False,
        ell: _Literal["1", "2", 1, 2] = 1,
        basis: _Literal["dct2", "dct3"] = "dct2",
        max_shape: int = 32000,
        *,
        rank: int,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DiffGrad(Optimizer):
    # diffGrad: Adam's step held back where the gradient changes little.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        eps_mode: _Literal["paper", "released"] = "paper",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DiLoCoOuter(Optimizer):
    # The outer step of local training: Nesterov's momentum on the workers' drift.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.7,
        momentum: float | str | Schedule = 0.9,
        nesterov: bool = True,
        workers: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Dion(Optimizer):
    # Dion: orthonormal updates of low rank, from a power iteration on the momentum.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        mu: float | str | Schedule = 0.95,
        rank_fraction: float | str | Schedule = 1,
        weight_decay: float | str | Schedule = 0.01,
        eps: float | str | Schedule = 1e-08,
        power_iters: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Dion2(Optimizer):
    # Muon on the strongest rows or columns of the momentum, with error feedback.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        fraction: float | str | Schedule = 0.25,
        ef_decay: float | str | Schedule = 0.95,
        weight_decay: float | str | Schedule = 0.01,
        adjust_lr: _Literal["spectral", "match_rms_adamw", "none", None] = "spectral",
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "polar_express",
        ns_eps: float | str | Schedule = 1e-08,
        ns_precision: _Literal["working", "bf16"] = "working",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DoG(Optimizer):
    # DoG: the farthest distance from the start over the root of the summed squared gradients is the step size.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        reps_rel: float | str | Schedule = 1e-06,
        eps: float | str | Schedule = 1e-08,
        layerwise: bool = False,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DoWG(Optimizer):
    # DoWG: distance over weighted gradients is the step size.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        r_eps: float | str | Schedule = 0.0001,
        eps: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DPAdamBC(Optimizer):
    # Adam on private gradients, with the variance of their noise taken out of v.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        floor: float | str | Schedule = 1e-08,
        eps: float | str | Schedule = 0,
        weight_decay: float | str | Schedule = 0,
        *,
        noise_multiplier: float | str | Schedule,
        clip: float | str | Schedule,
        batch_size: float | str | Schedule,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class DualAveraging(Optimizer):
    # Regularised dual averaging: the parameters answer the mean of all gradients.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        l1: float | str | Schedule = 0,
        gamma: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Extragradient(Optimizer):
    # Extragradient: a step from where the parameters are, along the gradient at the end of a trial step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        domain: str | Constraint | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class FedOpt(Optimizer):
    # Adagrad, Yogi or Adam on the mean change of the clients.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        kind: _Literal["adam", "yogi", "adagrad"] = "adam",
        lr: float | str | Schedule = 0.1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.99,
        tau: float | str | Schedule = 0.001,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Fish(Optimizer):
    # Fish: a walk over the domains, one step on each, and a part of the way to its end.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        meta_lr: float | str | Schedule = 0.5,
        inner_lr: float | str | Schedule = 0.01,
        inner: _Literal["sgd", "adam"] = "sgd",
        *,
        meta_steps: int,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class FOSI(Optimizer):
    # Newton's method on the outermost eigenvectors of the Hessian, a first-order method on the rest.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        base: _Literal["adam", "heavyball", "sgd"] = "adam",
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0.9,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        k: int = 5,
        l: int = 0,
        interval: int = 100,
        warmup: int | None = None,
        alpha: float | str | Schedule = 0.1,
        lr_clip: float | str | Schedule | None = None,
        order: int | None = None,
        floor: float | str | Schedule = 1e-12,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class FrankWolfe(Optimizer):
    # Frank-Wolfe: steps toward the corner of a set that the gradient points to.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        set: str | Constraint,
        rule: _Literal["open", "short", "constant"] = "open",
        curvature: float | str | Schedule = 1,
        gamma: float | str | Schedule = 0.01,
        momentum: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Fromage(Optimizer):
    # Every tensor moves by a share of its own norm, and is then shortened by as much.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        p_bound: float | str | Schedule | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class FTRL(Optimizer):
    # The parameters are the regularised best answer to all gradients so far.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        lr_power: float | str | Schedule = -0.5,
        beta: float | str | Schedule = 0,
        lambda1: float | str | Schedule = 0,
        lambda2: float | str | Schedule = 0,
        initial_accumulator_value: float | str | Schedule = 0,
        shrinkage: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class FullBatchGR(Optimizer):
    # Full-batch descent with a gradient-norm penalty of every block of the data.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.8,
        momentum: float | str | Schedule = 0.9,
        nesterov: bool = True,
        weight_decay: float | str | Schedule = 0.0005,
        block_strength: float | str | Schedule = 0.5,
        eps: float | str | Schedule = 0.01,
        clip: float | str | Schedule = 0.25,
        *,
        blocks: int,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class GaLore(Optimizer):
    # GaLore: Adam in the leading singular directions of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        correct_bias: bool = True,
        update_proj_gap: int = 200,
        scale: float | str | Schedule = 0.25,
        proj_type: _Literal["std", "reverse_std", "left", "right"] = "std",
        inner: str | None = None,
        *,
        rank: int,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Grams(Optimizer):
    # Grams: Adam's magnitude with the sign of the current gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        eps_mode: _Literal["paper", "released"] = "paper",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class GrokAdamW(Optimizer):
    # AdamW on the gradient plus its slow part, with a momentum that falls from layer to layer.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        alpha: float | str | Schedule = 0.98,
        lamb: float | str | Schedule = 2,
        gamma: float | str | Schedule = 0.1,
        signal_decay: float | str | Schedule = 0.1,
        norm: _Literal["clip", "preserve", "none", None] = "clip",
        clip: float | str | Schedule = 1,
        signal: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class HARPG(Optimizer):
    # (N)-HARPG: steps along an estimate that a Hessian-vector product carries from each point to the next.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        lr_power: float | str | Schedule = 1,
        eta_power: float | str | Schedule = 1,
        normalize: bool = True,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class KFAC(Optimizer):
    # K-FAC: the Fisher matrix of every layer as the Kronecker product of two small ones.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        damping: float | str | Schedule = 0.001,
        factor_decay: float | str | Schedule = 0.95,
        factor_update_steps: int = 1,
        inv_update_steps: int = 1,
        kl_clip: float | str | Schedule | None = 0.001,
        momentum: float | str | Schedule = 0.9,
        weight_decay: float | str | Schedule = 0,
        pi_damping: bool = True,
        method: _Literal["inverse", "eigen"] = "inverse",
        products: _Literal["working", "bf16"] = "working",
        loss: _Literal["mean", "sum"] = "mean",
        batch_size: float | str | Schedule | None = None,
        spatial_average: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class KLShampoo(Optimizer):
    # KL-Shampoo: Shampoo whose matrices are each estimated with the other axes whitened.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.98,
        shampoo_beta: float | str | Schedule = -1,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        precondition_frequency: int = 10,
        normalize_grads: bool = False,
        init_factor: float | str | Schedule = 0.1,
        max_root: float | str | Schedule | None = 4000,
        block_size: int | None = None,
        products: _Literal["working", "bf16"] = "working",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class KLSOAP(Optimizer):
    # KL-SOAP: Adam in the eigenbasis of KL-Shampoo's matrices.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.98,
        shampoo_beta: float | str | Schedule = -1,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        precondition_frequency: int = 10,
        normalize_grads: bool = False,
        init_factor: float | str | Schedule = 0.1,
        max_root: float | str | Schedule | None = 4000,
        block_size: int | None = None,
        products: _Literal["working", "bf16"] = "working",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class LAMB(Optimizer):
    # LAMB: Adam's step of each tensor, scaled to the norm of its weights.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        bias_correction: bool = True,
        max_trust: float | str | Schedule = ...,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class LaProp(Optimizer):
    # LaProp: the gradient is normalised before it enters the momentum.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0004,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-15,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class LARS(Optimizer):
    # LARS: momentum whose step is scaled, tensor by tensor, to the norm of the weights.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        momentum: float | str | Schedule = 0.9,
        nesterov: bool = False,
        weight_decay: float | str | Schedule = 0,
        trust_coefficient: float | str | Schedule = 0.001,
        eps: float | str | Schedule = 0,
        denominator: _Literal["paper", "update"] = "paper",
        skip_1d: bool = True,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class LBFGS(Optimizer):
    # Limited-memory BFGS: two loops over the last moves and turns of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float | str | Schedule = 1e-07,
        tolerance_change: float | str | Schedule = 1e-09,
        history_size: int = 100,
        line_search: _Literal["none", "strong_wolfe", None] = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Lion(Optimizer):
    # Lion: the sign of an interpolation between momentum and gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.99,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class LOMO(Optimizer):
    # The rule of LOMO: gradient descent with clipped gradients, and no state.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        clip_norm: float | str | Schedule | None = None,
        clip_value: float | str | Schedule | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MADGRAD(Optimizer):
    # Dual averaging with momentum, scaled by the cube root of the summed squares.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        momentum: float | str | Schedule = 0.9,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MARS(Optimizer):
    # MARS: AdamW on a gradient whose variance is reduced by the change since the last one.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.003,
        beta1: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.99,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        gamma: float | str | Schedule = 0.025,
        optimize_1d: bool = False,
        lr_1d_factor: float | str | Schedule = 1,
        beta1_1d: float | str | Schedule = 0.9,
        beta2_1d: float | str | Schedule = 0.95,
        exact: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MeZO(Optimizer):
    # Descent along random directions, by the difference of two losses on each.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1e-06,
        eps: float | str | Schedule = 0.001,
        weight_decay: float | str | Schedule = 0,
        n_seeds: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MFAC(Optimizer):
    # M-FAC: the gradient over the empirical Fisher matrix of the last gradients.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        ngrads: int = 1024,
        damp: float | str | Schedule = 1e-05,
        momentum: float | str | Schedule = 0.9,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MirrorDescent(Optimizer):
    # Mirror descent on the simplex, the orthant, in a p-norm, or as it is.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        geometry: _Literal["simplex", "orthant", "pnorm", "l2"] = "simplex",
        p: float | str | Schedule = 1.5,
        radius: float | str | Schedule = 1,
        axis: int = -1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class MoMo(Optimizer):
    # Momentum with the step size of a model of the loss that has a known floor.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        beta: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        lower_bound: float | str | Schedule = 0,
        weight_decay: float | str | Schedule = 0,
        adapt_lower_bound: bool = False,
        precondition: _Literal["none", "adam", None] = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Muon(Optimizer):
    # Muon: momentum, orthogonalised by Newton-Schulz iterations.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0.95,
        nesterov: bool = True,
        weight_decay: float | str | Schedule = 0.1,
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        eps: float | str | Schedule = 1e-07,
        eps_mode: _Literal["clamp", "add"] = "clamp",
        adjust_lr: _Literal["original", "match_rms_adamw", "spectral", "none", None] = "original",
        momentum_form: _Literal["sum", "ema"] = "sum",
        ns_precision: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NAdam(Optimizer):
    # NAdam: Adam with Nesterov momentum on a schedule.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.002,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        momentum_decay: float | str | Schedule = 0.004,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NewtonCG(Optimizer):
    # Truncated Newton: conjugate gradients on the Hessian, in a trust region or before a search.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        mode: _Literal["trust", "linesearch"] = "trust",
        radius: float | str | Schedule = 1,
        max_radius: float | str | Schedule = 1000,
        eta: float | str | Schedule = 0.15,
        c1: float | str | Schedule = 0.0001,
        damping: float | str | Schedule = 0,
        cg_max: int | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NIGT(Optimizer):
    # N-IGT: normalised steps along a momentum that is carried to the new point by extrapolation.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        lr_power: float | str | Schedule = 1,
        eta_power: float | str | Schedule = 0.8,
        eta: float | str | Schedule | None = None,
        normalize: bool = True,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NonlinearCG(Optimizer):
    # Nonlinear conjugate gradients, with a strong Wolfe search in every step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        beta: _Literal["pr_plus", "fr", "hs_plus", "dy"] = "pr_plus",
        c1: float | str | Schedule = 0.0001,
        c2: float | str | Schedule = 0.4,
        restart: int | None = None,
        gtol: float | str | Schedule = 1e-08,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NormDescent(Optimizer):
    # Steepest descent under a norm for every tensor, with one step size for all.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        norm: _Literal["auto", "l2", "linf", "rms", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l1_to_rms", "l2_to_linf", "rms_to_linf", "sign_scaled", "frobenius"] = "auto",
        weight_decay: float | str | Schedule = 0,
        ortho: _Literal["svd", "newton_schulz"] = "svd",
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        eps: float | str | Schedule = 1e-07,
        scale: _Literal["dual", "per_tensor", "unit"] = "dual",
        momentum: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NormDirection(Optimizer):
    # Steepest descent under a norm for every tensor.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        norm: _Literal["auto", "l2", "linf", "rms", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l1_to_rms", "l2_to_linf", "rms_to_linf", "sign_scaled", "frobenius"] = "auto",
        weight_decay: float | str | Schedule = 0,
        ortho: _Literal["svd", "newton_schulz"] = "svd",
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        eps: float | str | Schedule = 1e-07,
        scale: _Literal["unit", "per_tensor"] = "unit",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NormTrustRegion(Optimizer):
    # Steps of one length in a norm, along the momentum.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        radius: float | str | Schedule = 0.01,
        alpha: float | str | Schedule = 0.1,
        decay: float | str | Schedule = 0,
        norm: _Literal["auto", "l2", "linf", "rms", "spectral", "rms_to_rms", "nuclear", "l1_to_l2", "l1_to_rms", "l2_to_linf", "rms_to_linf", "sign_scaled", "frobenius"] = "auto",
        ortho: _Literal["svd", "newton_schulz"] = "svd",
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] = ...,
        eps: float | str | Schedule = 1e-07,
        extrapolate: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NorMuon(Optimizer):
    # Muon whose orthogonalised direction is divided by a second moment of every row.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.02,
        momentum: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.95,
        nesterov: bool = True,
        weight_decay: float | str | Schedule = 0,
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        ns_eps: float | str | Schedule = 1e-07,
        eps: float | str | Schedule = 1e-10,
        eps_at: _Literal["root", "floor"] = "root",
        axis: _Literal["row", "long"] = "row",
        rescale: _Literal["preserve_norm", "match_rms"] = "preserve_norm",
        adjust_lr: _Literal["original", "match_rms_adamw", "spectral", "max", "none", None] = "original",
        ns_precision: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NovoGrad(Optimizer):
    # One second moment a tensor, and momentum of the normalised gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.98,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        init: _Literal["first", "zero"] = "first",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class NuPI(Optimizer):
    # A proportional and integral controller for the multipliers of constraints.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        kp: float | str | Schedule = 0,
        ki: float | str | Schedule = 1,
        ema_nu: float | str | Schedule = 0,
        init: _Literal["sgd", "zeros"] = "sgd",
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class O2NC(Optimizer):
    # O2NC: online gradient descent chooses the move, and the gradient is taken at a random point of it.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        radius: float | str | Schedule = 0.01,
        eta: float | str | Schedule = 0.01,
        epoch: int = 10,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OASIS(Optimizer):
    # OASIS: a diagonal of the Hessian scales the gradient; the curvature along the path sets the step size.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr0: float | str | Schedule = 0.001,
        beta2: float | str | Schedule = 0.99,
        alpha: float | str | Schedule = 0.001,
        adaptive: bool = True,
        beta1: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OnlineSubspaceDescent(Optimizer):
    # Adam in a subspace that learns by online principal component analysis.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        correct_bias: bool = True,
        update_proj_gap: float | str | Schedule = 200,
        scale: float | str | Schedule = 1,
        proj_opt: _Literal["adamw", "sgd"] = "adamw",
        proj_beta1: float | str | Schedule = 0.9,
        proj_beta2: float | str | Schedule = 0.999,
        proj_eps: float | str | Schedule = 1e-08,
        proj_weight_decay: float | str | Schedule = 0.01,
        ortho_penalty: float | str | Schedule = 0,
        *,
        rank: int,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OptAMSGrad(Optimizer):
    # OPT-AMSGrad: AMSGrad with a half step along the next gradient, extrapolated from the last ones.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        history: int = 5,
        reg: float | str | Schedule = 0.001,
        h_base: _Literal["previous", "current"] = "previous",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OptimisticGDA(Optimizer):
    # Optimistic gradient descent-ascent: the change of the operator is added k times.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        k: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OptimisticOMD(Optimizer):
    # Optimistic online mirror descent: the last gradient is the guess of the next one.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        D: float | str | Schedule = 1,
        G: float | str | Schedule = 0,
        delta: float | str | Schedule = 1,
        mu: float | str | Schedule | None = None,
        lr: float | str | Schedule | None = None,
        geometry: _Literal["euclid", "entropy"] = "euclid",
        domain: _Literal["none", "ball", "box", None] = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class OptimisticSGD(Optimizer):
    # Optimistic gradient descent: the last gradient is a guess of the next one.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        alpha: float | str | Schedule = 1,
        beta: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PolarGrad(Optimizer):
    # The polar factor of the momentum times a power of its nuclear norm.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0003,
        momentum: float | str | Schedule = 0.95,
        nesterov: bool = False,
        weight_decay: float | str | Schedule = 0.01,
        form: _Literal["ns", "exact"] = "ns",
        alpha: float | str | Schedule = 1,
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "quintic",
        ns_eps: float | str | Schedule = 1e-15,
        ns_precision: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PolyakSGD(Optimizer):
    # The capped stochastic Polyak step: the loss above its lower bound sets the step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        max_lr: float | str | Schedule = 1,
        scaling: float | str | Schedule = 1,
        f_min: float | str | Schedule = 0,
        eps: float | str | Schedule = 0,
        positive: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Prodigy(Optimizer):
    # Prodigy: Adam whose step size is an estimate of the distance to the solution, made while training.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        beta3: float | str | Schedule | None = None,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float | str | Schedule = 1e-06,
        d_coef: float | str | Schedule = 1,
        growth_rate: float | str | Schedule = ...,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ProdigyScheduleFree(Optimizer):
    # Prodigy inside Schedule-Free: an estimated step size, and no schedule.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.99,
        beta3: float | str | Schedule | None = None,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        weight_decay_by_lr: bool = True,
        d0: float | str | Schedule = 1e-06,
        d_coef: float | str | Schedule = 1,
        d_limiter: bool = True,
        prodigy_steps: int = 0,
        schedulefree_c: float | str | Schedule = 0,
        factored: bool = True,
        stable: bool = True,
        slice: int = 11,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ProxAdam(Optimizer):
    # Adam with the prox of a regularizer in its own metric.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        regularizer: str | Regularizer | None = None,
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        skip_zero_grad: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ProxLinear(Optimizer):
    # The prox-linear step for |c(theta)|: c is linearised, the absolute value is kept.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ProxSGD(Optimizer):
    # Gradient descent with the prox of a regularizer after every step.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        regularizer: str | Regularizer | None = None,
        lr: float | str | Schedule = 0.01,
        momentum: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PSGDDense(Optimizer):
    # PSGD with a dense triangular preconditioner of the tensor as one vector.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        precond_lr: float | str | Schedule | None = None,
        momentum: float | str | Schedule = 0,
        normalizer: _Literal["second", "first"] = "second",
        update_probability: float | str | Schedule = 1,
        grad_clip_max_norm: float | str | Schedule | None = None,
        preconditioner_init_scale: float | str | Schedule | None = None,
        fit: _Literal["newton", "whiten"] = "newton",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PSGDKron(Optimizer):
    # PSGD with one triangular factor an axis, fitted so that the preconditioned gradient becomes white.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0003,
        b1: float | str | Schedule = 0.9,
        weight_decay: float | str | Schedule = 0,
        precond_lr: float | str | Schedule = 0.1,
        precond_init_scale: float | str | Schedule | None = 1,
        max_size_triangular: int = 8192,
        min_ndim_triangular: int = 2,
        memory_save_mode: _Literal["none", "one_diag", "smart_one_diag", "all_diag", None] = None,
        merge_dims: bool = True,
        momentum_into_precond_update: bool = True,
        clip_rms: float | str | Schedule = 1.1,
        update_prob: float | str | Schedule | None = None,
        balance_prob: float | str | Schedule = 0.01,
        fit: _Literal["whiten", "newton"] = "whiten",
        products: _Literal["working", "bf16"] = "working",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PSGDLRA(Optimizer):
    # PSGD with a preconditioner of low rank plus diagonal on the model as one vector.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        precond_lr: float | str | Schedule | None = None,
        momentum: float | str | Schedule = 0,
        normalizer: _Literal["second", "first"] = "second",
        update_probability: float | str | Schedule = 1,
        grad_clip_max_norm: float | str | Schedule | None = None,
        preconditioner_init_scale: float | str | Schedule | None = None,
        fit: _Literal["newton", "whiten"] = "newton",
        rank: int = 10,
        balance_prob: float | str | Schedule = 0.01,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class PSGDXMat(Optimizer):
    # PSGD with a diagonal and an anti-diagonal on the model as one vector.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        precond_lr: float | str | Schedule | None = None,
        momentum: float | str | Schedule = 0,
        normalizer: _Literal["second", "first"] = "second",
        update_probability: float | str | Schedule = 1,
        grad_clip_max_norm: float | str | Schedule | None = None,
        preconditioner_init_scale: float | str | Schedule | None = None,
        fit: _Literal["newton", "whiten"] = "newton",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class QHAdam(Optimizer):
    # Adam with the current gradient and its square mixed in beside the moments.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        nu1: float | str | Schedule = 1,
        nu2: float | str | Schedule = 1,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RAdam(Optimizer):
    # RAdam: Adam rectified for the variance of its early second moment.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Ranger(Optimizer):
    # RAdam on centred gradients, followed by slow weights.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-05,
        weight_decay: float | str | Schedule = 0,
        alpha: float | str | Schedule = 0.5,
        k: int = 6,
        threshold: float | str | Schedule = 5,
        centralize: bool = True,
        conv_only: bool = False,
        warm: _Literal["sgd", "none", None] = "sgd",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RiemannianAdagrad(Optimizer):
    # Adagrad along a manifold: one sum of squares for each point.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        eps: float | str | Schedule = 1e-10,
        weight_decay: float | str | Schedule = 0,
        stabilize: int | None = 10,
        manifold: str | Constraint = "euclidean",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RiemannianAdam(Optimizer):
    # Adam along a manifold: one second moment for each point.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        stabilize: int | None = 10,
        manifold: str | Constraint = "euclidean",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RiemannianSGD(Optimizer):
    # Gradient descent along a manifold, with momentum.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0,
        dampening: float | str | Schedule = 0,
        nesterov: bool = False,
        weight_decay: float | str | Schedule = 0,
        stabilize: int | None = 10,
        manifold: str | Constraint = "euclidean",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RMSprop(Optimizer):
    # RMSProp: the gradient over the root of its average square.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        alpha: float | str | Schedule = 0.99,
        eps: float | str | Schedule = 1e-08,
        eps_in_sqrt: bool = False,
        momentum: float | str | Schedule = 0,
        centered: bool = False,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RobustSubgm(Optimizer):
    # The subgradient method for robust recovery: steps whose length falls geometrically, or goes by the loss.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        rule: _Literal["geometric", "constant", "polyak", "proportional"] = "geometric",
        rho: float | str | Schedule = 0.95,
        normalize: bool = True,
        f_star: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class RollingBall(Optimizer):
    # Rolling Ball Optimizer: a ball on the graph of the loss moves down, and is projected back onto it.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        radius: float | str | Schedule = 0.5,
        projection_lr: float | str | Schedule = 0.01,
        n_projection: int = 10,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Rprop(Optimizer):
    # Every element has a step of its own, longer while the gradient keeps its sign.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        eta_minus: float | str | Schedule = 0.5,
        eta_plus: float | str | Schedule = 1.2,
        step_min: float | str | Schedule = 1e-06,
        step_max: float | str | Schedule = 50,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SaddleFreeNewton(Optimizer):
    # Saddle-free Newton in a Krylov subspace: the curvature of every direction counts by its magnitude.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        order: int = 20,
        dampings: _Sequence[float] = ...,
        mode: _Literal["krylov", "exact"] = "krylov",
        damping: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SAGA(Optimizer):
    # SAGA: the gradient of a sample, corrected by the one that a table kept of it and by the mean of the table.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        n: int,
        init: _Literal["zero", "full"] = "zero",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SANIA(Optimizer):
    # SANIA: Polyak's step along a preconditioned gradient; the loss sets its length.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        precond: _Literal["none", "adagrad_sqr", "adam_sqr", "adagrad", "adam", "hutchinson", None] = "adagrad_sqr",
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 0.1,
        f_star: float | str | Schedule = 0,
        lr: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SARA(Optimizer):
    # SaRA: AdamW on those entries alone that are small to begin with.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0004965853037914096,
        threshold: float | str | Schedule = 0.002,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        lambda_rank: float | str | Schedule = 0,
        min_rank_dim: int = 64,
        progressive_step: int = -1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SARAH(Optimizer):
    # SARAH: a recursive estimate of the gradient with plain steps.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        *,
        inner: int,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ScaledGD(Optimizer):
    # Scaled gradient descent for the factors of a low-rank matrix Z Z' or L R'.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.5,
        lam: float | str | Schedule = 0,
        pairs: _Literal["symmetric", "consecutive"] = "symmetric",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    # AdamW with an average in place of momentum and a decaying rate.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0025,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        warmup_steps: int = 0,
        r: float | str | Schedule = 0,
        weight_lr_power: float | str | Schedule = 2,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ScheduleFreePlus(Optimizer):
    # Schedule-Free AdamC with a Polyak step size.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.95,
        sf_beta: float | str | Schedule = 0.9,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        r: float | str | Schedule = 0,
        weight_lr_power: float | str | Schedule = 2,
        polyak_beta: float | str | Schedule = 0,
        c_warmup: int = 0,
        sf_anneal_steps: int = 0,
        sf_beta_max: float | str | Schedule = 0.965,
        keep_corrected: bool = False,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ScheduleFreeRAdam(Optimizer):
    # RAdam with an average in place of momentum, warm-up and a decaying rate.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0025,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        r: float | str | Schedule = 0,
        weight_lr_power: float | str | Schedule = 2,
        silent_sgd_phase: bool = True,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    # SGD with an average in place of a decaying rate.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 1,
        momentum: float | str | Schedule = 0.9,
        weight_decay: float | str | Schedule = 0,
        warmup_steps: int = 0,
        r: float | str | Schedule = 0,
        weight_lr_power: float | str | Schedule = 2,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Scion(Optimizer):
    # Steps to the farthest point of a norm ball, a norm for every tensor.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0.1,
        scale: float | str | Schedule = 1,
        norm: _Literal["auto", "bias_rms", "spectral", "spectral_unnormalized", "spectral_max", "spectral_conv", "col", "col_normalized", "embed_row", "row", "row_unnormalized", "sign", "sign_unnormalized"] = "auto",
        unconstrained: bool = False,
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] | str = "simple",
        eps: float | str | Schedule = 1e-07,
        ns_precision: _Literal["working", "bf16"] = "working",
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SGAUAP(Optimizer):
    # Stochastic gradient aggregation: sign steps of a bounded perturbation along the mean gradient of an inner run.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        eps: float | str | Schedule = 0.0392156862745098,
        step: float | str | Schedule | None = None,
        momentum: float | str | Schedule = 0,
        *,
        inner_steps: int,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SGD(Optimizer):
    # Stochastic gradient descent with momentum, dampening and Nesterov's form.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0,
        dampening: float | str | Schedule = 0,
        nesterov: bool = False,
        weight_decay: float | str | Schedule = 0,
        decoupled: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SGDP(Optimizer):
    # Momentum SGD without the part of the step along weights whose scale does not matter.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        momentum: float | str | Schedule = 0,
        dampening: float | str | Schedule = 0,
        nesterov: bool = False,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        delta: float | str | Schedule = 0.1,
        wd_ratio: float | str | Schedule = 0.1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SGLD(Optimizer):
    # Stochastic gradient Langevin dynamics: gradient descent with normal noise.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        temperature: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Shampoo(Optimizer):
    # Shampoo: a full matrix of second moments for every axis; the gradient is multiplied by its inverse root.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        momentum: float | str | Schedule = 0,
        nesterov: bool = False,
        beta1: float | str | Schedule = 0,
        beta2: float | str | Schedule = 1,
        eps: float | str | Schedule = 0.0001,
        eps_at: _Literal["init", "root"] = "init",
        exponent: float | str | Schedule | None = None,
        precondition_frequency: int = 1,
        start_preconditioning_step: int = 1,
        max_preconditioner_dim: int = 8192,
        grafting: _Literal["none", "sgd", "adagrad", "adam", None] = None,
        graft_beta2: float | str | Schedule = 0.999,
        graft_eps: float | str | Schedule = 1e-08,
        bias_correction: bool = False,
        weight_decay: float | str | Schedule = 0,
        decoupled_decay: bool = True,
        block_size: int | None = None,
        products: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Signum(Optimizer):
    # signSGD and Signum: the sign of the momentum; without momentum, of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0.9,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SimplifiedAdEMAMix(Optimizer):
    # Adam with a momentum that sums, and the current gradient beside it.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.99,
        beta2: float | str | Schedule = 0.95,
        alpha: float | str | Schedule = 0,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0,
        beta1_warmup: int = 0,
        min_beta1: float | str | Schedule = 0.9,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SINGD(Optimizer):
    # Natural gradient without inverses, by multiplicative updates of the roots of both factors.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        momentum: float | str | Schedule = 0.9,
        damping: float | str | Schedule = 0.001,
        alpha1: float | str | Schedule | None = None,
        lr_cov: float | str | Schedule = 0.01,
        weight_decay: float | str | Schedule = 0,
        T: int = 1,
        variant: _Literal["ingd", "ikfac"] = "ingd",
        structure: _Literal["dense", "diag"] = "dense",
        normalize_lr_cov: bool = False,
        loss: _Literal["mean", "sum"] = "mean",
        batch_size: float | str | Schedule | None = None,
        spatial_average: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SM3(Optimizer):
    # One number for every slice along an axis in place of a second moment for every element.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.1,
        momentum: float | str | Schedule = 0,
        beta: float | str | Schedule = 0,
        eps: float | str | Schedule = 1e-30,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SOAP(Optimizer):
    # SOAP: Adam in the eigenbasis of Shampoo's matrices.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.003,
        beta1: float | str | Schedule = 0.95,
        beta2: float | str | Schedule = 0.95,
        shampoo_beta: float | str | Schedule = -1,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        block_size: int | None = None,
        products: _Literal["working", "bf16"] = "working",
        batch_dims: int = 0,
        split: int = 1,
        heads: int = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Sophia(Optimizer):
    # Sophia: the momentum over a diagonal of the Hessian, clipped entry by entry.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.0001,
        beta1: float | str | Schedule = 0.965,
        beta2: float | str | Schedule = 0.99,
        gamma: float | str | Schedule | None = None,
        eps: float | str | Schedule = 1e-12,
        weight_decay: float | str | Schedule = 0.1,
        interval: int = 10,
        clip: float | str | Schedule = 1,
        denominator: _Literal["max", "add"] = "max",
        order: _Literal["before", "after"] = "before",
        bias_correction: bool = False,
        estimator: _Literal["hutchinson", "gnb"] = "hutchinson",
        probe: _Literal["gaussian", "rademacher"] = "gaussian",
        batch_size: float | str | Schedule = 1,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SparseAdam(Optimizer):
    # Adam on the rows that have a gradient; the others keep their moments and do not move.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 1e-08,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SphericalLangevin(Optimizer):
    # Langevin dynamics on unit spheres, one for each tensor.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        dt: float | str | Schedule = 0.001,
        strength: float | str | Schedule = 1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SPIDER(Optimizer):
    # SPIDER: normalised steps along an estimate that follows the gradient by differences.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        period: int = 10,
        normalize: bool = True,
        boost: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SplitSGD(Optimizer):
    # SGD with momentum whose largest gradients of each tensor take signed steps of a fixed size.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        momentum: float | str | Schedule = 0.9,
        dampening: float | str | Schedule = 0.9,
        sign_lr: float | str | Schedule = 0.001,
        fraction: float | str | Schedule = 0.1,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SPSA(Optimizer):
    # Descent along a difference quotient of two losses at random signs; asks for no gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        a: float | str | Schedule = 0.1,
        c: float | str | Schedule = 0.1,
        A: float | str | Schedule = 0,
        alpha: float | str | Schedule = 0.602,
        gamma: float | str | Schedule = 0.101,
        low: float | str | Schedule | None = None,
        high: float | str | Schedule | None = None,
        clip_perturbed: bool = False,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class StableAdamW(Optimizer):
    # AdamW whose step is clipped by the RMS of the gradient over its second moment.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.99,
        eps: float | str | Schedule = 1e-08,
        weight_decay: float | str | Schedule = 0.01,
        threshold: float | str | Schedule = 1,
        form: _Literal["optimi", "timm"] = "optimi",
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class STORM(Optimizer):
    # STORM: momentum corrected by the change of the gradient on the same minibatch.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        k: float | str | Schedule = 0.1,
        w: float | str | Schedule = 0.1,
        c: float | str | Schedule = 10,
        eta: float | str | Schedule | None = None,
        a: float | str | Schedule | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class SVRG(Optimizer):
    # SVRG: minibatch gradients corrected by those at a snapshot whose full gradient is known.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        inner: int,
        weight_decay: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Tiger(Optimizer):
    # Tiger, the tight-fisted optimizer: the sign of an average of the gradient.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.001,
        beta: float | str | Schedule = 0.965,
        weight_decay: float | str | Schedule = 0.01,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Trion(Optimizer):
    # Trion: Muon on the momentum's largest columns in the discrete cosine transform.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.02,
        momentum: float | str | Schedule = 0.95,
        weight_decay: float | str | Schedule = 0,
        scaling: _Literal["original", "match_rms_adamw", "spectral", "none", None] = "original",
        ns_steps: int = 5,
        ns_coefficients: _Sequence[float] = ...,
        eps: float | str | Schedule = 1e-07,
        eps_mode: _Literal["clamp", "add"] = "clamp",
        basis: _Literal["dct2", "dct3"] = "dct2",
        ns_precision: _Literal["working", "bf16"] = "working",
        *,
        rank: int,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class TruncatedModel(Optimizer):
    # The step to the minimiser of a linear model that is cut off at a lower bound.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        lower: float | str | Schedule = 0,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class UDoG(Optimizer):
    # U-DoG: DoG's step size on UniXGrad's two gradients a step; the parameters are an average.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        r_eps_rel: float | str | Schedule = 1e-06,
        eps: float | str | Schedule = 1e-12,
        domain: str | Constraint | None = None,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class VisualPrompt(Optimizer):
    # Steps of a visual prompt: the border of an image moves along its gradient, divided by its norm.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        eps: float | str | Schedule = 1e-10,
        pad: int = 30,
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class XGD(Optimizer):
    # Cross-gradient descent: a sum of the parts' gradients with the weights of another point.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule,
        q: _Sequence[float],
        *,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...

class Yogi(Optimizer):
    # Yogi: Adam whose second moment moves towards g^2 by at most (1 - beta2)*g^2.
    method: _ClassVar[str]
    def __init__(
        self,
        params: _Iterable[_Any],
        lr: float | str | Schedule = 0.01,
        beta1: float | str | Schedule = 0.9,
        beta2: float | str | Schedule = 0.999,
        eps: float | str | Schedule = 0.001,
        initial_accumulator: float | str | Schedule = 1e-06,
        weight_decay: float | str | Schedule = 0,
        *,
        betas: _Sequence[float] | None = None,
        before: str = "",
        after: str = "",
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: _Sequence[str] | None = None,
    ) -> None: ...
