"""A torch model on many processes: how it is spread over them, and its state for any number of ranks.

    fully_shard(model)                                                          # FSDP2: DTensor parameters
    opt = thalweg.torch.Optimizer(model.parameters(), "clip_global_norm(1) | adamw(lr=1e-3)")

    opt = thalweg.torch.Optimizer(ddp.parameters(), "sam(0.05) | muon(lr=0.02)", ranks=Ranks("owners"))

Norms, dot products and counts (clipping, LAMB, DoG, Prodigy, SAM) are those of the whole model: the ranks add them up
through their torch.distributed process group, in float64, so that a spread model steps as one in one piece, but for the
rounding of sums.  Losses that a method asks for, or that are observed, are averaged over the ranks.

Once for each request the ranks compare notes (one all_reduce of three integers): where their steps, hyper-parameters
or missing gradients differ, all of them get an ArgumentError, and nothing has changed.  When a rank dies, the
collective of the others raises within the time-out of their process group, and parameters and state are those of the
last step.  (In the layout "owners" a rank that dies while the parts of a finished step are handed out leaves each of
the others with its parts from before that step.)
"""

from __future__ import annotations

from .._peers import check as _check

_check(__name__, "torch", newer=lambda torch: torch.distributed)

from ._place import Place as Place
from ._place import place_of as place_of
from ._ranks import Ranks
from ._ranks import place as place
from ._ranks import placing as placing
from ._state import load_sharded_state_dict, sharded_state_dict

__all__ = ["Ranks", "load_sharded_state_dict", "sharded_state_dict"]
