"""Lays out the sources of the site: the written pages, and those made of the registry, one for each method and kind.

    python generate.py FOLDER          the folder that Sphinx reads; see `make docs`
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import mathematics  # noqa: E402
import thalweg  # noqa: E402
from thalweg import _errors, _registry  # noqa: E402
from thalweg.command import catalogue, examples  # noqa: E402

ROOT = HERE.parents[1]
KINDS = {  # kinds in the order in which a sentence and its surroundings meet them: plural, and what they are
    "optimizer": ("Optimizers", "update rules"),
    "perturbation": ("Perturbations", "gradients at perturbed points"),
    "aggregator": ("Aggregators", "one gradient a task, combined"),
    "transform": ("Transforms", "of gradients, before the rule"),
    "update": ("Update stages", "of updates, behind the rule"),
    "average": ("Averages", "evaluation weights, lookahead"),
    "mask": ("Masks", "the host sees a masked view of stored weights"),
    "routing": ("Routing", "tensors to pipelines"),
    "schedule": ("Schedules", "values for any hyper-parameter"),
    "regularizer": ("Regularizers", "value, gradient, prox"),
    "constraint": ("Constraints", "projection, tangent, retraction, linear minimisation"),
    "objective": ("Objectives", "a value and the gradients of named inputs"),
    "weighting": ("Weightings", "weights of tasks from their losses"),
    "diagnostic": ("Diagnostics", "numbers about arrays"),
    "solver": ("Solvers", "iterations that ask for products, gradients or proxes"),
}


# The reference of Python: titles and public names.  (A class for every method has the page of that method.)
REFERENCE = {
    "Optimizers": ["Optimizer", "Request", "ParamGroup", "MemoryReport", "StateRow", "LoadReport"],
    "What stands alone": ["Objective", "Weighting", "Diagnostic", "Cache", "Regularizer", "Constraint", "Schedule",
                          "Aggregator"],
    "Solvers": ["Solver", "SolverRun", "SolverRequest", "SolverResult"],
    "What the library knows": ["methods", "method", "kinds", "Method", "Parameter", "Slot", "Input", "RequestKind"],
    "PyTorch": ["torch.Optimizer", "torch.Answers", "torch.InBackward", "torch.SentenceLR",
                "torch.get_parameter_groups", "torch.hessian_product", "torch.per_sample", "torch.task_gradients",
                "torch.huggingface.Asking"],
    "Many processes": ["distributed.Ranks", "distributed.sharded_state_dict", "distributed.load_sharded_state_dict"],
    "JAX": ["jax.optimizer", "jax.Transformation", "jax.State", "jax.from_optax", "jax.to_optax", "jax.Optimizer",
            "jax.Request", "jax.aligned_empty", "jax.aligned_copy", "jax.view"],
    "Errors": [cls.__name__ for cls in _errors.ERRORS],
}
# What the pages are made of, and the pages: links between written pages lead to the first, so that they work in a checkout.
MADE_OF = {"README.md#what-is-in-it": "methods/index.md", "README.md#from-c": "guides/embedding.md",
           "Sources/README.md": "guides/adding.md", "python/src/thalweg/__init__.pyi": "python.md"}
LITERAL = str.maketrans({"\n": " ", **{sign: f"&#{ord(sign)};" for sign in "|*_`"}})


def cell(text: str) -> str:
    """Text for a cell of a table, in which no sign is markup."""
    return html.escape(text, quote=False).translate(LITERAL) or " "


def code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else " "


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def source(text: str) -> str:
    """The source with its arXiv numbers as links."""
    plain = html.escape(text, quote=False)
    return re.sub(r"arXiv:((?:[\w.-]+/)?\d[\d.]*\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)


@cache
def timings() -> dict[str, tuple[str, str, str, str]]:
    """Method to (thalweg, plain loop, their quotient, of what), as measured last: ns an element, one thread."""
    text = (ROOT / "python" / "benchmarks" / "README.md").read_text()
    small = text.partition("<!-- steps: begin -->")[2].partition("<!-- steps: end -->")[0]
    large = text.partition("#### one tensor, 1 thread")[2].partition("####")[0]
    found = {}
    for part, own, what in ((small, 2, "sixteen tensors of 256 x 256"), (large, 3, "one tensor of 16.8 M")):
        for line in part.splitlines():
            cells = [c.strip() for c in line.strip("|").split("|")]
            if len(cells) > own + 2 and re.fullmatch(r"[a-z]\w*\+?", cells[0]) and cells[0] != "method":
                found[cells[0].rstrip("+")] = (*cells[own : own + 3], what)
    return found


def method_page(m: thalweg.Method) -> str:
    """All that is known of one method."""
    plural = KINDS[m.kind][0]
    parts = ["---\norphan: true\n---", f"# {m.name}", f"*{m.kind}* · [all {plural.lower()}](kinds/{m.kind}.md)",
             cell(m.summary)]
    names = frozenset(n.name for n in (*m.parameters, *m.state, *m.inputs))
    if m.rule:
        plain = f"<details><summary>as text</summary><pre>{html.escape(m.rule, quote=False)}</pre></details>"
        parts += ["## Rule", mathematics.rule(m.rule, names).replace("\n", " ") + "\n" + plain.replace("\n\n", "\n")]
    if m.sentence:
        parts += ["## Stands for", f"```text\n{m.sentence}\n```"]
    if m.parameters:
        rows = [[code(p.name), cell(p.meaning), cell(_type(p)), "required" if p.required else code(p.default),
                 code(p.range), "yes" if p.live else ""] for p in m.parameters]
        columns = ["name", "meaning", "type", "default", "range", "may change while running"]
        parts += ["## Hyper-parameters", table(columns, rows)]
    if m.inputs:
        flags = ("optional", "integer", "differentiable", "result")
        rows = [[code(i.name), code(i.shape), cell(i.meaning), ", ".join(f for f in flags if getattr(i, f))]
                for i in m.inputs]
        parts += ["## Inputs and results", table(["name", "shape", "meaning", ""], rows)]
    size = catalogue.state_words(m)
    if m.state or size:
        parts.append("## State")
        if m.state:
            parts.append(table(["name", "meaning"], [[code(s.name), cell(s.meaning)] for s in m.state]))
        if size:
            parts.append(f"Memory: {size}.")
    if m.asks:
        rows = [[code(a.name), cell(a.meaning), *(code(", ".join(f"{i.name} {i.shape}" for i in arrays))
                                                  for arrays in (a.given, a.wanted))] for a in m.asks]
        parts += ["## Requests", table(["request", "meaning", "given", "wanted"], rows)]
    elif m.requests:
        parts += ["## Requests", f"Besides one gradient a step it asks for: {', '.join(code(r) for r in m.requests)}."]
    if words := catalogue.watched_words(m):
        parts += ["## Watches", f"```text\n{words}\n```"]
    program, whole = examples.python_example(m)
    note = "" if whole else "\nThe call alone: the arrays are yours.\n"
    parts += ["## Example", f"::::{{tab-set}}\n:::{{tab-item}} Python\n```python\n{program}\n```\n{note}:::\n"
              f":::{{tab-item}} C\n```c\n{examples.c_example(m)}\n```\n:::\n::::"]
    if m.name in timings():
        own, loop, over, what = timings()[m.name]
        parts += ["## Timing", f"{own} ns an element on {what} at one thread; a plain C loop over the same bytes takes "
                  f"{loop} ({over} times it), as measured for the tables of `python/benchmarks`."]
    if m.source:
        parts += ["## Source", source(m.source)]
    near = catalogue.neighbours(m)
    if near:
        parts += ["## Neighbours", "\n".join(f"- [{n.name}]({n.name}.md): {cell(n.summary)}" for n in near)]
    return "\n\n".join(parts) + "\n"


def _type(p: thalweg.Parameter) -> str:
    return " | ".join(p.choices) if p.type == "choice" else p.type + (" or none" if p.optional else "")


def kind_page(kind: str) -> str:
    """All methods of a kind, with what they ask for and what their state takes."""
    plural, what = KINDS[kind]
    rows = []
    for m in thalweg.methods(kind):
        size = catalogue.own_state(m)
        rows.append([f"[{m.name}](../{m.name}.md)", cell(m.summary), " ".join(code(n) for n in catalogue.needs(m)),
                     "" if size is None else f"{size:.3g}"])
    columns = ["method", "what", "asks for", "state, bytes an element"]
    keep = [i for i in range(4) if i < 2 or any(row[i] for row in rows)]
    body = table([columns[i] for i in keep], [[row[i] for i in keep] for row in rows])
    return f"# {plural}\n\n{len(rows)} methods: {what}.\n\n{body}\n"


def toctree(names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", *names, "```", ""])


def index_page() -> str:
    """The kinds, and every method by name."""
    rows = [[f"[{plural}](kinds/{kind}.md)", str(len(thalweg.methods(kind))), what]
            for kind, (plural, what) in KINDS.items()]
    return "\n\n".join([
        "# Methods",
        "The pages of this part are made from what the library says of itself. Search finds words of rules, names of "
        "hyper-parameters and authors.",
        table(["kind", "methods", "what"], rows),
        "## By name",
        " · ".join(f"[{m.name}]({m.name}.md)" for m in thalweg.methods()),
        toctree([f"kinds/{kind}" for kind in KINDS]),
    ])


def adding_page() -> str:
    """The author's guide lies beside the sources; here it is the same text."""
    text = (ROOT / "Sources" / "README.md").read_text()
    steps = (ROOT / "README.md").read_text().partition("## Add a method\n")[2].partition("\n[`Sources/README.md`]")[0]
    return f"# Adding a method\n{steps}\n" + text.replace("# The house", "## The house", 1).replace("\n## ", "\n## ")


def embedding_page() -> str:
    """What the README says of C, C++, Rust and Swift; links into the sources are words here."""
    text = (ROOT / "README.md").read_text().partition("## From C\n")[2].partition("\n## What is in it")[0]
    return "# From C, C++, Rust and Swift\n\n## From C\n" + re.sub(r"\[([^]]+)\]\((?!https://)[^)]*\)", r"`\1`", text)


def python_page() -> str:
    """The public names, from their docstrings."""
    text = "# Python\n\nFrom the docstrings; `help(thalweg.Optimizer)` shows the same.\n"
    for title, names in REFERENCE.items():
        text += f"\n## {title}\n"
        members = "" if title in ("What the library knows", "Errors") else "   :members:\n"
        for name in names:
            directive = "autoexception" if title == "Errors" else "autoclass"
            if name.rpartition(".")[2][0].islower():
                directive = "autofunction"
            text += f"\n```{{eval-rst}}\n.. {directive}:: thalweg.{name}\n"
            text += ("" if directive == "autofunction" else members) + "```\n"
    return text


def on_site(text: str, page: str) -> str:
    """A written page as the site has it: a link into the sources, as ".../SAM.swift#sam" or ".../Perturbations#perturbation",
    leads to the page that is made of them, and pictures are there."""
    folder, names = (HERE / "pages" / page).parent, _registry.by_name()

    def link(found: re.Match[str]) -> str:
        target, _, part = found[1].partition("#")
        path = os.path.relpath(folder / target, ROOT)
        if found[1].startswith(("https://", "#")) or path.startswith("python/docs/"):
            return found[0]
        whole = f"{path}#{part}" if part else path
        made = MADE_OF.get(whole) or (f"methods/{part}.md" if part in names and path.startswith("Sources/") else
                                      f"methods/kinds/{part}.md" if part in KINDS and path.startswith("Sources/") else "")
        if not made:
            raise SystemExit(f"{page}: there is no page of {found[1]}")
        return f"]({os.path.relpath(made, Path(page).parent)})"

    shown = re.sub(r"<!-- picture (\S+): (.*?) -->", r"![\2](\1)", text)
    parts = re.split(r"(^```.*?^```)", shown, flags=re.M | re.S)  # (code has brackets, too)
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def pages() -> dict[str, str]:
    """Every generated page by its path."""
    missing = set(thalweg.kinds()) - set(KINDS)
    if missing:
        raise SystemExit(f"python/docs/generate.py knows no words for the kinds {', '.join(sorted(missing))}")
    made = {f"methods/{m.name}.md": method_page(m) for m in _registry.methods()}
    made |= {f"methods/kinds/{kind}.md": kind_page(kind) for kind in KINDS}
    return {**made, "methods/index.md": index_page(), "guides/adding.md": adding_page(),
            "guides/embedding.md": embedding_page(), "python.md": python_page()}


# The pictures of the guide to the command line, as the commands draw them.
PICTURES = {
    "guides/race.png": [
        "race", "sgd(lr=0.1, momentum=0.9)", "adamw(lr=cosine(lr=0.02, total={steps}))",
        "sam(0.05) | sgd(lr=0.1, momentum=0.9)", "--problem", "digits", "--seeds", "5", "--steps", "150"],
    "guides/sweep.png": [
        "sweep", "adamw", "--over", "adamw.lr=1e-4:1:log:9", "--problem", "logreg", "--seeds", "5", "--steps", "100"],
    "guides/landscape.png": [
        "landscape", "sgd(lr=1e-3, momentum=0.9)", "adam(lr=0.1)", "prodigy", "--function", "beale",
        "--steps", "150"],
}


def draw(folder: Path) -> None:
    """The pictures, into their places."""
    from thalweg.command import main

    for path, words in PICTURES.items():
        if main([*words, "--plot", str(folder / path)]) != 0:
            raise SystemExit(f"{path} could not be drawn")


def write(folder: Path) -> None:
    """All pages, written and made, into a folder; what was there before is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sorted((HERE / "pages").rglob("*.md")):
        page = str(source.relative_to(HERE / "pages"))
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(on_site(source.read_text(), page))
    for path, text in pages().items():
        target = folder / path
        if target.exists():
            raise SystemExit(f"{path} is both written by hand and made")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    draw(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))
