"""The page "Names of other libraries": every sentence runs, and computes what the optimizer of that name computes.

Both sides take the same gradients, in float64.  Their entries spread over seven orders of magnitude, so that the
place of an eps shows.  A tensor's difference is measured by the longest way that one of its entries has gone.  Ten
steps of either side round some hundred times, each by 1.1e-16 of a parameter of order 1: 1e-14, beside ways of 1e-4
and more 1e-10 at most.  Where a peer computes in another precision, `TOLERANCES` says so.  Rows that begin with "eps"
are compared on gradients of 0.1 to 1; those that begin with "other numbers" or "as read" are not compared, and run.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

import thalweg as tw
from support import Problem, run, wants

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "guides" / "other_names.md"
if not PAGE.is_file():
    pytest.skip("the sources of the site are not beside the tests", allow_module_level=True)
STEPS = 10
TOLERANCE = 1e-10
Arrays = list[np.ndarray]


class Row(NamedTuple):
    library: str
    there: str
    here: str
    differs: str

    @property
    def compared(self) -> bool:
        return not self.differs.startswith(("other numbers", "as read"))


def read() -> list[Row]:
    """The rows of the tables with a sentence in the second cell, where a bar is escaped; a row for each name."""
    rows, library, part = [], "", ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            library = part = line[3:]
        elif line.startswith("### "):
            library = f"{part} of {line[4:]}"
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[1].startswith("`"):
            here = cells[1].strip("`").replace("\\|", "|")
            rows += [Row(library, there, here, cells[2]) for there in re.findall(r"`([^`]*)`", cells[0])]
    return rows


ROWS = read()
SCHEDULES = [r for r in ROWS if r.library.startswith("Schedules of ")]
SENTENCES = [r for r in ROWS if r not in SCHEDULES]


def label(row: Row) -> str:
    return f"{row.library}: {row.there}"


# ---- what both sides get


SHAPES = [(6, 4), (7,), (5, 3, 2, 2)]
SHAPES_OF = {  # what a peer takes, or treats otherwise, as its row says
    ("torch.optim", "Muon"): [(6, 4), (4, 6)],
    ("torch.optim", "Muon(adjust_lr_fn='match_rms_adamw')"): [(6, 4), (4, 6)],
    ("timm", "adamuon"): [(6, 4), (7,)],
    ("timm", "nadamuon"): [(6, 4), (7,)],
    ("optax", "contrib.muon(0.02, nesterov=False, consistent_rms=0.2)"): [(6, 4), (4, 6), (7,)],
    # The products of (6, 4) have rank 4 at first: the basis of the other two directions is whatever LAPACK gives.
    ("pytorch-optimizer", "soap"): [(4, 4), (7,), (5, 3, 2, 2)],
}


class Stream:
    """Parameters of order 1, gradients from 1e-6 to 1, a falling loss."""

    def __init__(self, shapes: list[tuple[int, ...]], calm: bool = False) -> None:
        rng = np.random.default_rng(5)
        self.start = [rng.standard_normal(s) for s in shapes]
        if calm:
            self.grads = [[rng.choice([-1, 1, 1], s) * rng.uniform(0.1, 1, s) for s in shapes] for _ in range(STEPS)]
        else:
            scale = [10.0 ** rng.uniform(-6, 0, s) for s in shapes]
            self.grads = [[c * (0.3 + rng.standard_normal(c.shape)) for c in scale] for _ in range(STEPS)]
        self.losses = [3.0 / (1 + k) for k in range(STEPS)]


def whole(sentence: str) -> str:
    """With plain descent behind a transform that stands alone."""
    rules = {m.name for kind in ("optimizer", "routing") for m in tw.methods(kind)}
    return sentence if rules & set(re.findall(r"[a-z]\w*", sentence)) else f"{sentence} | sgd(lr=0.1)"


def quadratic(at: Arrays, stream: Stream) -> tuple[float, Arrays]:
    """For L-BFGS, which asks for values within its one step of twenty iterations: curvatures from 0.1 to 3."""
    curvatures = [0.1 + np.abs(w) for w in stream.start]
    loss = sum(float(np.sum(0.5 * a * x * x + g * x)) for a, x, g in zip(curvatures, at, stream.grads[0]))
    return loss, [a * x + g for a, x, g in zip(curvatures, at, stream.grads[0])]


def ours(row: Row, stream: Stream) -> Arrays:
    params = [w.copy() for w in stream.start]
    with tw.Optimizer(params, whole(row.here)) as opt:
        if row.here == "lbfgs":
            opt.step(lambda: quadratic(params, stream))
            return params
        watched = wants(opt, "loss")
        for grads, loss in zip(stream.grads, stream.losses):
            if watched:
                opt.observe("loss", loss)
            opt.step([g.copy() for g in grads])
    return params


# ---- the peers


def call(text: str) -> tuple[str, dict[str, Any]]:
    """A name, with keywords where the page writes some."""
    tree = ast.parse(text, mode="eval").body
    if isinstance(tree, ast.Call):
        assert not tree.args, text
        return ast.unparse(tree.func), {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    return ast.unparse(tree), {}


def torch_steps(stream: Stream, make: Callable[[list[Any]], Any]) -> Arrays:
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.tensor(w)) for w in stream.start]
    opt = make(params)
    if hasattr(opt, "train"):
        opt.train()
    for grads in stream.grads:
        for p, g in zip(params, grads):
            p.grad = torch.tensor(g).to_sparse(1) if type(opt).__name__ == "SparseAdam" else torch.tensor(g)
        opt.step()
    return [p.detach().numpy() for p in params]


def torch_optim(row: Row, stream: Stream) -> Arrays:
    torch = pytest.importorskip("torch")
    name, keywords = call(row.there)
    if name == "LBFGS":
        return lbfgs_steps(stream)
    return torch_steps(stream, lambda params: getattr(torch.optim, name)(params, **keywords))


def lbfgs_steps(stream: Stream) -> Arrays:
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.tensor(w)) for w in stream.start]

    def closure() -> Any:
        loss, found = quadratic([p.detach().numpy() for p in params], stream)
        for p, g in zip(params, found):
            p.grad = torch.tensor(g)
        return torch.tensor(loss, dtype=torch.float64)

    torch.optim.LBFGS(params).step(closure)
    return [p.detach().numpy() for p in params]


def timm(row: Row, stream: Stream) -> Arrays:
    module = pytest.importorskip("timm.optim")
    name, keywords = call(row.there)
    return torch_steps(stream, lambda params: module.create_optimizer_v2(params, name, **keywords))


def pytorch_optimizer(row: Row, stream: Stream) -> Arrays:
    module = pytest.importorskip("pytorch_optimizer")
    name, keywords = call(row.there)
    torch = pytest.importorskip("torch")

    def make(params: list[Any]) -> Any:
        groups: Any = params
        if name.lower() in ("muon", "normuon", "adamuon"):
            groups = [{"params": [p for p in params if (p.ndim >= 2) == on], "use_muon": on} for on in (True, False)]
        return module.load_optimizer(name)(groups, **keywords)

    return torch_steps(stream, make)


def transformers(row: Row, stream: Stream) -> Arrays:
    module = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    name, keywords = call(row.there)
    arguments = module.TrainingArguments(output_dir="unused", optim=name, report_to=[], use_cpu=True, **keywords)
    try:
        cls, options = module.Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError) as problem:
        pytest.skip(str(problem).partition("\n")[0])
    return torch_steps(stream, lambda params: cls(params, **{"weight_decay": 0.0, **options}))


def heavyball(row: Row, stream: Stream) -> Arrays:
    module = pytest.importorskip("heavyball")
    module.utils.compile_mode = None
    name, keywords = call(row.there)
    return torch_steps(stream, lambda params: getattr(module, name)(params, compile_step=False, **keywords))


def optax(row: Row, stream: Stream) -> Arrays:
    jax, module = pytest.importorskip("jax"), pytest.importorskip("optax")
    contrib = pytest.importorskip("optax.contrib")
    with jax.enable_x64(True):
        rule = eval(row.there, {**vars(module), "contrib": contrib})  # noqa: S307
        if whole(row.here) != row.here:
            rule = module.chain(rule, module.sgd(0.1))
        rule = module.with_extra_args_support(rule)
        params: Any = [jax.numpy.asarray(w) for w in stream.start]
        if row.there.startswith("lookahead"):
            params = module.LookaheadParams.init_synced(params)
        state = rule.init(params)
        update = jax.jit(rule.update) if "muon" in row.there else rule.update  # or its loops are compiled at each step
        for grads, loss in zip(stream.grads, stream.losses):
            updates, state = update([jax.numpy.asarray(g) for g in grads], state, params, value=jax.numpy.asarray(loss))
            params = module.apply_updates(params, updates)
        return [np.asarray(p) for p in (params.fast if row.there.startswith("lookahead") else params)]


PEERS: dict[str, Callable[[Row, Stream], Arrays]] = {
    "torch.optim": torch_optim, "timm": timm, "transformers": transformers, "pytorch-optimizer": pytorch_optimizer,
    "optax": optax, "heavyball": heavyball,
}

# Gradients of 0.1 to 1 beside an eps of 1e-8, counted up to 1/sqrt(1 - 0.999) = 32 times too much: 3e-6 in the first of
# ten steps, a third of it in the last.
EPS = 2e-6
# Five iterations whose products are rounded to 8 bits: 2^-9 = 2e-3 each, and the momentum carries what they add up to.
BFLOAT16 = 4e-2
# A scalar in float32 has 6e-8, and enters every step; d of D-Adaptation and Prodigy adds up over them.
FLOAT32 = 1e-6
GROUPS = {
    ("torch.optim", BFLOAT16): ["Muon", "Muon(adjust_lr_fn='match_rms_adamw')"],
    ("torch.optim", FLOAT32): ["NAdam", "NAdam(decoupled_weight_decay=True, weight_decay=0.01)", "ASGD"],
    ("timm", BFLOAT16): ["muon", "nmuon"],
    ("timm", 0.1): ["adamuon", "nadamuon"],  # small entries are divided by their own size, and their errors with them
    ("timm", FLOAT32): ["nadam", "laprop", "claprop", "novograd(weight_decay=0.1)"],
    ("timm", 1e-3): ["radamlegacy"],  # parameters of order 1 in float32, moved by some 1e-3
    ("pytorch-optimizer", BFLOAT16): ["muon", "normuon", "adamuon", "scion"],
    ("pytorch-optimizer", FLOAT32): ["dadaptadam", "dadaptsgd", "prodigy", "qhadam"],
    ("optax", FLOAT32): [
        "contrib.madgrad(0.01)",
        "contrib.muon(0.02, nesterov=False, consistent_rms=0.2)",  # an eps of 1e-8 beside norms of order 1
    ],
    ("heavyball", 1e-5): ["RMSprop", "HyperBallAdamW", "SFAdamW"],  # their eps of 1e-6 beside 0.1
    # In the sixth step 1 - 0.999^6 = 6e-3 is a difference of float32 numbers near 1, and so is the average's length.
    ("optax", 4e-3): ["radam(1e-3)"],
}
TOLERANCES = {(library, name): bound for (library, bound), names in GROUPS.items() for name in names}


def tolerance(row: Row) -> float:
    if (row.library, row.there) in TOLERANCES:
        return TOLERANCES[row.library, row.there]
    return EPS if calm(row) else FLOAT32 if row.library == "heavyball" else TOLERANCE


def calm(row: Row) -> bool:
    return row.differs.startswith("eps")


# ---- tests


def test_the_page_has_its_tables() -> None:
    libraries = {r.library for r in SENTENCES}
    assert libraries == set(PEERS) and {r.library for r in SCHEDULES} == {f"Schedules of {name}" for name in SCHEDULERS}
    assert len(SENTENCES) == len({label(r) for r in SENTENCES})
    known = {label(r) for r in ROWS}
    assert all(f"{library}: {there}" in known for library, there in (*TOLERANCES, *SHAPES_OF))
    assert all(r.differs for r in ROWS)


@pytest.mark.parametrize("row", SENTENCES, ids=label)
def test_every_sentence_runs(row: Row) -> None:
    problem = Problem([(4, 4), (7,), (5, 3, 2, 2)] if (row.library, row.there) not in MATRICES else [(6, 4)])
    params, opt = run(whole(row.here), problem, 7)  # some wait for five
    with opt:
        for before, after in zip(problem.origin, params):
            assert np.isfinite(after).all() and (before != after).any()


MATRICES = {key for key, shapes in SHAPES_OF.items() if all(len(s) == 2 for s in shapes)}


@pytest.mark.parametrize("row", [r for r in SENTENCES if r.compared], ids=label)
@pytest.mark.filterwarnings("ignore")
def test_the_numbers_are_those_of_the_other_library(row: Row) -> None:
    stream = Stream(SHAPES_OF.get((row.library, row.there), SHAPES), calm(row))
    theirs = PEERS[row.library](row, stream)
    for i, (mine, other, start) in enumerate(zip(ours(row, stream), theirs, stream.start, strict=True)):
        way = np.max(np.abs(other - start))
        assert way > 0
        assert np.max(np.abs(mine - other)) <= tolerance(row) * way, f"tensor {i}"


VERSIONS = {
    "torch.optim": "torch", "pytorch-optimizer": "pytorch_optimizer", "transformers": "transformers", "timm": "timm",
}


@pytest.mark.parametrize("library", VERSIONS)
def test_no_name_is_left_out(library: str) -> None:
    """Of the versions that the page speaks of."""
    page, module = PAGE.read_text(), pytest.importorskip(VERSIONS[library])
    version = re.search(rf"{library.partition('.')[0]} (\d+\.\d+)", page)
    installed = importlib.metadata.version(VERSIONS[library])
    assert version
    if not installed.startswith(version[1] + "."):
        pytest.skip(f"the page speaks of version {version[1]}, here is {installed}")
    names = {
        "torch.optim": lambda: [n for n in vars(module.optim) if n[0].isupper() and n != "Optimizer"],
        "pytorch-optimizer": lambda: module.get_supported_optimizers(),
        "transformers": lambda: [n.value for n in module.training_args.OptimizerNames],
        "timm": lambda: importlib.import_module("timm.optim").list_optimizers(exclude_filters=["fused*", "bnb*"]),
    }[library]()
    part = page.partition(f"\n## {library}\n")[2].partition("\n## ")[0]
    assert [n for n in names if not re.search(rf"(?<!\w){n}(?!\w)", part)] == []


# ---- schedules


def torch_schedule(row: Row) -> list[float]:
    torch = pytest.importorskip("torch")
    name, keywords = call(row.there)
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return rates(opt, getattr(torch.optim.lr_scheduler, name)(opt, **keywords), name == "ReduceLROnPlateau")


def transformers_schedule(row: Row) -> list[float]:
    torch, module = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, keywords = call(row.there)
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return rates(opt, module.get_scheduler(name, opt, 10, 100, keywords), name in ("reduce_lr_on_plateau", "greedy"))


def rates(opt: Any, scheduler: Any, watches: bool) -> list[float]:
    values = []
    for k in range(100):
        values.append(float(opt.param_groups[0]["lr"]))
        opt.step()
        scheduler.step(*[metric(k)] * watches)
    return values


def metric(k: int) -> float:
    return max(1.0, 10.0 - k)


def optax_schedule(row: Row) -> list[float]:
    module, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        schedule = eval(row.there, dict(vars(module)))  # noqa: S307
        return [float(schedule(k)) for k in range(100)]


SCHEDULERS = {
    "torch.optim.lr_scheduler": torch_schedule, "optax": optax_schedule, "transformers": transformers_schedule,
}


@pytest.mark.parametrize("row", SCHEDULES, ids=label)
@pytest.mark.filterwarnings("ignore")
def test_schedules_have_the_values_of_the_other_library(row: Row) -> None:
    ours = tw.schedule(row.here)
    watches = row.here.startswith(("reduce_on_plateau", "greedy"))
    values = []
    for k in range(100):
        values.append(ours(k))
        if watches:
            ours.observe("metric", metric(k))
    assert all(np.isfinite(values))
    if row.compared:
        theirs = SCHEDULERS[row.library.removeprefix("Schedules of ")](row)
        np.testing.assert_allclose(values, theirs, rtol=1e-12, atol=1e-14)
