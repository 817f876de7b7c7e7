"""Every first-order optimizer beside torch, pytorch_optimizer, optax and the plain loop over as many bytes of state."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import peers
from .common import Shapes, duration, elements, measure, plain_loop, ratio, run_tasks, table, threads_text

LAYOUTS = {"one tensor": (1, 4096), "sixteen tensors": (16, 1024), "4,096 tensors": (4096, 64)}  # count, side
SENTENCES = {  # where the name alone is not what the peers run, or not enough
    "sgd": "sgd(momentum=0.9)",
    "beta_ngd": "beta_ngd(lr=1e-3)",
    "dal": "dal(static_lr=0.1)",
    "harpg": "harpg(lr=1e-3)",
    "nigt": "nigt(lr=1e-3)",
    "saga": "saga(lr=1e-3, n=4)",
    "sga_uap": "sga_uap(inner_steps=4)",
    "spider": "spider(lr=1e-3)",
    "svrg": "svrg(lr=1e-3, inner=10)",
    "visual_prompt": "visual_prompt(lr=1e-3)",
    "xgd": "xgd(lr=1e-3, q=[0.5, 0.5])",
}
OPTAX_TENSORS = 1024  # compiling an update of 4,096 tensors takes minutes; the time an element does not depend on it
# Where one walk is not enough (a norm or another sum, a second gradient or product, a factored moment) or not all
# (random numbers): how many numbers an element the walks of one step must read and write.  One walk over k states, as
# in the plain loop, needs 3 + 2k.
WALKS = {
    "a_dog": 8, "adafactor": 6, "adagrad_norm": 4, "adam_cm": 12, "adam_snsm": 6, "beta_ngd": 4, "cautious_adamw": 10,
    "dadapt_adam": 11, "dadapt_sgd": 7, "dal": 7, "dog": 6, "dowg": 6, "harpg": 19, "lamb": 10, "lars": 7, "mars": 11,
    "nigt": 7, "o2nc": 12, "oasis": 26, "opt_amsgrad": 26, "optimistic_omd": 8, "polyak_sgd": 4, "prodigy": 13,
    "rolling_ball": 62, "saga": 9, "sania": 7, "sga_uap": 27, "sgld": 3, "spherical_langevin": 7, "spider": 18,
    "split_sgd": 6, "svrg": 13, "u_dog": 25, "visual_prompt": 4, "xgd": 8,
}  # fmt: skip
GROUPS = {"torch": peers.TORCH, "pytorch_optimizer": peers.PYTORCH_OPTIMIZER, "optax": peers.OPTAX}


def shapes_of(layout: str, quick: bool) -> Shapes:
    count, side = LAYOUTS[layout]
    if not quick:
        return [(side, side)] * count
    return [(side // 4, side // 4)] * count if count < 4096 else [(side, side)] * (count // 16)





def task(method: str, layout: str, quick: bool, repetitions: int) -> dict[str, Any]:
    """Seconds an element of every library that has the method, taking turns in one process."""
    shapes, sentence = shapes_of(layout, quick), SENTENCES.get(method, method)
    own = {group: shapes for group in ("thalweg", "loop", *GROUPS)} | {"optax": shapes[:OPTAX_TENSORS]}
    states = round(state_bytes(sentence, shapes) / (4 * elements(shapes)))
    builders = {"thalweg": partial(peers.ours, sentence, shapes), "loop": partial(plain_loop, "walk", states, shapes)}
    for group, known in GROUPS.items():
        if method in known:
            name, options = known[method]
            if group == "torch":
                options = peers.torch_options(name, options)
            builders[group] = partial(getattr(peers, group), name, own[group], **options)
    times = {k: t / elements(own[k]) * 1e9 if isinstance(t, float) else t
             for k, t in measure(builders, repetitions).items()}
    return {"states": states, "times": times}


def state_bytes(sentence: str, shapes: Shapes) -> int:
    """What the state of a sentence will need, known before it is allocated."""
    import numpy as np
    import thalweg

    with thalweg.Optimizer([np.empty(shape, np.float32) for shape in shapes], sentence) as opt:
        return opt.memory_report().total


def members() -> list[str]:
    """The optimizers that walk through their tensors element by element, and those of WALKS.  Others, which need whole
    tensors (a product of matrices, a sort), are for the suites `matrix` and `sets`."""
    import numpy as np
    import thalweg

    found = []
    for m in thalweg.methods("optimizer"):
        if m.name not in SENTENCES and any(p.required for p in m.parameters):
            continue  # a rank, or a number of parts, that no default stands for
        with thalweg.Optimizer([np.zeros((8, 8), np.float32)], SENTENCES.get(m.name, m.name)) as opt:
            try:
                opt.set_reducer(lambda sums, maxima: None, shards="elements")
            except thalweg.UnsupportedError:
                if m.name not in WALKS:
                    continue
        found.append(m.name)
    return found


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    """(Markdown, raw results): nanoseconds an element, a table for each layout and number of threads."""
    methods = [name for name in members() if only in name]
    raw: dict[str, Any] = {}
    for layout in LAYOUTS:
        for n in threads:
            print(f"family: {layout}, {threads_text(n)}: {len(methods)} methods", flush=True)
            tasks = [dict(method=m, layout=layout, quick=quick, repetitions=repetitions) for m in methods]
            raw[f"{layout}, {threads_text(n)}"] = dict(zip(methods, run_tasks("family", tasks, n, 400)))
    return "\n\n".join(section(name, results) for name, results in raw.items()), raw


def section(name: str, results: dict[str, Any]) -> str:
    """One table: + marks a method of WALKS, * what torch has fused; what failed stands below."""
    rows, failed = [], []
    one, many, peer = Count(), Count(), Count()
    limit = 1.6 if name.startswith("4,096") else 1.15
    for method, result in results.items():
        times = result.get("times", {"thalweg": result})
        failed += [f"{group} {method}: {t['error']}" for group, t in times.items() if isinstance(t, dict)]
        own, loop = times["thalweg"], times.get("loop")
        others = [times[g] for g in GROUPS if isinstance(times.get(g), float)]
        states = result.get("states", 0)
        need = WALKS[method] / (3 + 2 * states) if method in WALKS else 1.0
        row = [method + ("+" if method in WALKS else ""), str(states), f"{need:.2f}",
               duration(own, digits=3), duration(loop, digits=3), ratio(own, loop)]
        for group in GROUPS:
            fused = group == "torch" and method in peers.TORCH and peers.TORCH[method][0] in peers.TORCH_FUSED
            row.append(duration(times.get(group)) + ("*" if fused else ""))
        row.append(ratio(min(others), own) if others else "")
        rows.append(row)
        if isinstance(own, float) and isinstance(loop, float):
            (many if method in WALKS else one).add(own <= limit * need * loop)
        if isinstance(own, float) and others:
            peer.add(own <= min(others))
    header = ["method", "states", "needs", "thalweg", "plain loop", "over loop", *GROUPS, "best peer over thalweg"]
    text = (f"#### {name}\n\n{table(header, rows)}\n\n{one} methods of one element-wise walk take at most {limit} of "
            f"the plain loop, {many} of the others at most {limit} of what they need; {peer} methods with a peer are "
            "at least as fast as every peer.")
    return text + ("\n\nFailed: " + "; ".join(failed) if failed else "")


class Count:
    """How many of how many."""

    met, all = 0, 0

    def add(self, met: bool) -> None:
        self.met, self.all = self.met + met, self.all + 1

    def __str__(self) -> str:
        return f"{self.met} of {self.all}"
