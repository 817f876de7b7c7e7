"""What every reference has in common.

A reference is the plain float64 NumPy form of one method, written from its card and its paper, never from
the Swift source.  The generic tests (`test_fidelity.py`) find every `Reference` subclass, run it beside the
library for many steps, and compare.
"""

from __future__ import annotations

from typing import Any, Callable, ClassVar, Sequence

import numpy as np

Arrays = list[np.ndarray]


class Reference:
    """One method. Subclasses set the class attributes and write the rule.

    name      the method's name in the registry (the card's)
    kind      optimizer | transform | average | schedule | regularizer | constraint | objective | aggregator | perturbation | mask
    defaults  every hyper-parameter with the card's default (required ones are absent)
    settings  the hyper-parameter settings worth testing: one dict a run, merged over `defaults`
    needs     what `step` takes besides gradients: any of "loss", "loss_at", "gradient_at", "hvp", "previous_gradient", "task_gradients"
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "optimizer"
    defaults: ClassVar[dict[str, Any]] = {}
    settings: ClassVar[Sequence[dict[str, Any]]] = ({},)
    needs: ClassVar[tuple[str, ...]] = ()
    shapes: ClassVar[str] = "any"  # or "matrix" when rank 0/1 tensors are refused
    most_elements: ClassVar[int] = 1 << 40  # elements of a tensor that it takes

    def __init__(self, **hyper: Any) -> None:
        unknown = set(hyper) - set(self.defaults) - set(getattr(self, "required", ()))
        if unknown:
            raise TypeError(f"{self.name}: unknown hyper-parameters {sorted(unknown)}")
        self.h = {**self.defaults, **hyper}

    def takes(self, shape: tuple[int, ...]) -> bool:
        """The library refuses tensors of other shapes with a ShapeError."""
        return self.shapes != "matrix" or len(shape) >= 2

    def __getattr__(self, key: str) -> Any:
        # h["beta1"] reads as self.beta1, so that a rule looks like its paper.
        h = self.__dict__.get("h", {})
        if key in h:
            return h[key]
        raise AttributeError(key)


class OptimizerReference(Reference):
    """`step` changes `params` (a list of float64 arrays) in place."""

    def start(self, params: Arrays) -> None:
        """Allocates the state; called once before the first step."""

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None,
             gradient_at: Callable[[Arrays], Arrays] | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None,
             loss_at: Callable[[Arrays], float] | None = None) -> None:
        """One step.  `loss_at(point)`, `gradient_at(point)` and `hvp(point, vector)` answer on the same minibatch;
        `normal(step)` gives the standard normal draws of that step (0-based), one array a tensor;
        the Rademacher probes of a Hessian-vector method are `np.sign` of them (sign(0) = 1)."""
        raise NotImplementedError

    def evaluation_weights(self, params: Arrays) -> Arrays:
        """The weights to evaluate with; methods that train elsewhere override this."""
        return params


class TransformReference(Reference):
    kind = "transform"

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        """New gradients (or new updates, for update transforms); called once a step."""
        raise NotImplementedError


class ScheduleReference(Reference):
    kind = "schedule"

    def value(self, k: int) -> float:
        """The value at step k, counted from 0."""
        raise NotImplementedError


class AverageReference(Reference):
    kind = "average"

    def start(self, params: Arrays) -> None: ...

    def update(self, params: Arrays) -> None:
        """Sees the parameters after the inner step (and may change them, as lookahead does)."""
        raise NotImplementedError

    def value(self) -> Arrays:
        raise NotImplementedError


class RegularizerReference(Reference):
    kind = "regularizer"
    has_gradient: ClassVar[bool] = True
    has_prox: ClassVar[bool] = True

    def domain(self, w: np.ndarray) -> np.ndarray:
        """Numbers where it is finite and has one gradient, made of any."""
        return w

    def value(self, w: np.ndarray) -> float:
        raise NotImplementedError

    def gradient(self, w: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def first_gradient(self, w: np.ndarray) -> np.ndarray:
        """That of a stage at its first step: some keep vectors, which grow exact with the steps."""
        return self.gradient(w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        raise NotImplementedError


class ConstraintReference(Reference):
    kind = "constraint"
    bounded: ClassVar[bool] = True  # `lmo` gives a point for every gradient
    limit: ClassVar[float] = 1.0  # how many times less exact than the plain formulas its iteration is

    def project(self, w: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class ObjectiveReference(Reference):
    """A function of named arrays.  kind is "regularizer" where the first of them is the weights."""

    kind = "objective"

    def divisor(self, count: int) -> float:
        """What a loss over so many terms is divided by."""
        return 1 if self.h.get("reduction") == "sum" else count

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        """Inputs worth testing, float64; labels as int64."""
        raise NotImplementedError

    def value(self, **inputs: np.ndarray) -> float:
        raise NotImplementedError

    def gradients(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Of the differentiable inputs, and the results, by name."""
        raise NotImplementedError

    def smooth(self, **inputs: np.ndarray) -> bool:
        """False where the value's central differences are not the gradients: at a kink, or with parts held constant."""
        return True


class AggregatorReference(Reference):
    kind = "aggregator"

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        """The weights `a` (m,) of the m task gradients in the rows of `jacobian` (m, n); the update is `jacobian.T @ a`."""
        raise NotImplementedError


def every(cls: type = Reference) -> list[type]:
    """All concrete references (those with a name), sorted."""
    found: dict[str, type] = {}
    stack = [cls]
    while stack:
        c = stack.pop()
        stack.extend(c.__subclasses__())
        if "name" in c.__dict__:
            found[c.name] = c
    return [found[k] for k in sorted(found)]


class WeightingReference(Reference):
    """Losses in, weights out; what it remembers begins with `start`."""

    kind = "weighting"

    def start(self) -> None: ...

    def step(self, **inputs: np.ndarray) -> np.ndarray:
        """The weights after one more pass."""
        raise NotImplementedError

    def sequences(self, rng: np.random.Generator) -> Sequence[Sequence[dict[str, np.ndarray]]]:
        """Runs: lists of the inputs of one pass after the other."""
        raise NotImplementedError


class DiagnosticReference(Reference):
    """Numbers about arrays, without a memory; `dtype` is that of the library's arithmetic."""

    kind = "diagnostic"
    dtype: Any = np.float64
    limit: ClassVar[float] = 1.0  # times the test's own tolerance, where the arithmetic of a method loses more

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        raise NotImplementedError

    def results(self, **inputs: np.ndarray) -> dict[str, Any]:
        """The named results; {"value": x} where there is only the value."""
        raise NotImplementedError
