"""A torch model on many processes: how it is spread over them, and its state for any number of ranks.

    fully_shard(model)                                                          # FSDP2: DTensor parameters
    opt = thalweg.torch.Optimizer(model.parameters(), "clip_global_norm(1) | adamw(lr=1e-3)")

    opt = thalweg.torch.Optimizer(ddp.parameters(), "sam(0.05) | muon(lr=0.02)", ranks=Ranks("owners"))

Norms, dot products and counts (clipping, LAMB, DoG, Prodigy, SAM) are those of the whole model: the ranks add them up
through their torch.distributed process group, in float64, so that a spread model steps as one in one piece, but for the
rounding of sums.  Losses that a method asks for, or that are observed, are averaged over the ranks, those of all
replicas (HSDP) included.

Once for each request, and before a closure is first called, the ranks compare notes (one small all_reduce): where
their calls, steps, modes, hyper-parameters or missing gradients differ, all of them get an ArgumentError, and nothing
has changed.  So do the others when a step fails on one rank alone: a value or a gradient that it refuses, a closure or
a hook that raises, Ctrl-C.  That rank raises at once; what it says reaches the others where they next compare notes or
add up numbers.  These messages have a process group of their own, with the time-out of the model's, so that they
never meet a collective of the model; all ranks make it with their first optimizer, and a rank on which that one fails
waits for them there, to tell them, before it raises.  When a rank dies, the collective of the others raises within that
time-out, and parameters and state are those of the last step.

One thing cannot be taken back: in the layouts "owners" and "tensors" a rank that fails or dies when others have
finished the step (a decomposition that finds NaN, say; nonfinite="error" or "skip" finds it on all) leaves them a step
ahead.  All get an error then, and in every step after it, until a state is loaded.

All ranks together make an optimizer, add a group, step, observe, change the mode with "owners", and load or save state
of which each has a part.
"""

from __future__ import annotations

from .._peers import check as _check

_check(__name__, "torch", newer=lambda torch: torch.distributed)

from ._alone import look_alone as look_alone
from ._place import Place as Place
from ._place import place_of as place_of
from ._ranks import Ranks
from ._ranks import place as place
from ._ranks import placing as placing
from ._state import load_sharded_state_dict, sharded_state_dict

__all__ = ["Ranks", "load_sharded_state_dict", "sharded_state_dict"]
