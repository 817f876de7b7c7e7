"""thalweg beside and inside JAX on the CPU.

Two names differ by one capital.  Outside jit, `Optimizer` keeps a pytree of parameters and steps it, with every kind of
sentence:

    from thalweg.jax import Optimizer
    opt = Optimizer(params, "sam(0.05) | adamw(lr=3e-4)")     # params: any pytree of arrays
    opt.step(jax.value_and_grad(loss))                        # opt.params: the same pytree, of arrays that never change

Inside jit, `optimizer` gives an Optax transformation whose state is a pytree, with a fused `apply` beside it:

    import thalweg.jax
    tx = thalweg.jax.optimizer("clip_global_norm(1.0) | adamw(lr=3e-4) | ema(0.999)")
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        params, state = tx.apply(grads, state, params)        # in place where params and state are donated
        return params, state, loss
"""

from typing import NoReturn

from .._peers import check as _check

_check(__name__, "jax", newer=lambda jax: jax.ffi)

from .._classes import class_names as _class_names
from .._classes import suggestion as _suggestion
from ._host import Optimizer, Request
from ._host import _restore as _restore  # pickles name it here
from ._memory import aligned_copy, aligned_empty, view
from ._optax import from_optax, to_optax
from ._state import State
from ._transform import Transformation, optimizer

__all__ = [
    "Optimizer", "Request", "State", "Transformation", "aligned_copy", "aligned_empty", "from_optax", "optimizer",
    "to_optax", "view",
]


def __getattr__(name: str) -> NoReturn:
    """There is no class for each optimizer here: the error says what there is in its place."""
    near = ""
    if not name.startswith("_"):
        method = _class_names().get(name) or (name if name in _class_names().values() else None)
        near = f"; here it is thalweg.jax.optimizer({method!r})" if method else _suggestion(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
