"""`methods` and `show`: what the library knows, to be searched and read."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import thalweg

from .. import _registry
from .._registry import Method
from . import examples
from .console import Refusal, print_table, rich_terminal, shortened

# Words that people search for, without blanks and hyphens, and what we call it: names of methods and of kinds.
CALLED: dict[str, tuple[str, ...]] = {
    "multitask": ("aggregator", "dwa", "gradnorm", "famo", "random_loss_weighting", "imtl_l", "gradient_cosines"),
    "differentialprivacy": ("dp_sgd", "dp_adam_bc", "dp_adaptive_clip", "dp_noise_for_epsilon", "rdp_accountant",
                            "gaussian_mechanism", "diff2"),
    "quasinewton": ("lbfgs",),
    "parameterfree": ("prodigy", "prodigy_schedule_free", "dadapt_adam", "dadapt_sgd", "dog", "dowg", "mechanic"),
    "lowmemory": ("adafactor", "came", "adalomo", "lomo", "adam_mini", "sm3", "galore", "apollo", "lion", "signum"),
    "stochasticweightaveraging": ("swa",),
    "weightaveraging": ("swa", "ema", "poly_decay_average"),
    "earlystopping": ("reduce_on_plateau", "darts_es"),
    "8bit": ("quant_noise", "qsgd_compress"),
    "zerothorder": ("spsa", "mezo", "subspace_zo_adam", "zo_gradient", "openai_es", "cma_es"),
    "gradientclipping": ("clip_global_norm", "clip_norm", "clip_value", "clip_block_rms", "agc", "automatic_clip"),
    "warmrestarts": ("cosine_restarts",),
}
CALLED.update({other: CALLED[word] for other, word in {
    "differentiallyprivate": "differentialprivacy", "learningratefree": "parameterfree", "tuningfree": "parameterfree",
    "memoryefficient": "lowmemory", "gradientfree": "zerothorder", "derivativefree": "zerothorder",
    "blackbox": "zerothorder",
}.items()})
# What is no method, or not one alone.
ELSEWHERE = {
    "8bit": 'state_dtype="q8", an option of every optimizer, keeps the state in 8 bits',
    "lowmemory": "--state BYTES filters by the size of the state, and the options state_dtype=\"bf16\" and \"q8\" "
                 "shrink that of any method",
    "earlystopping": "when a run ends the host decides; a rate may follow a metric that the loop tells",
}


def list_methods(arguments: argparse.Namespace) -> int:
    """`methods`: those that fit every filter, one a line."""
    chosen = select(arguments.kind, arguments.need, arguments.state, arguments.text)
    notes = [ELSEWHERE[word] for word in sought(arguments.text) if word in ELSEWHERE]
    for note in notes:
        print(note, file=sys.stderr)
    if not chosen:
        raise Refusal("no method is like that" + (f"; needs: {', '.join(all_needs())}" if arguments.need else ""))
    if arguments.json:
        print(json.dumps([described(m, arguments.state is not None) for m in chosen], indent=1))
        return 0
    console = rich_terminal()
    name_width, kind_width = max(len(m.name) for m in chosen), max(len(m.kind) for m in chosen)
    room = (console.width if console else 10_000) - name_width - kind_width - 6
    columns, rows = ["method", "kind", "what"], [[m.name, m.kind, shortened(m.summary, max(room, 40))] for m in chosen]
    if arguments.state is not None:
        columns.insert(2, "bytes")
        for row, m in zip(rows, chosen):
            row.insert(2, f"{examples.state_bytes(m):.4g}")
    if console:
        print_table(columns, rows, right=[2] if arguments.state is not None else [])
        console.print(
            f"{len(chosen)} of {len(thalweg.methods())} methods; `python -m thalweg show NAME` tells more", style="dim")
    else:
        if arguments.state is not None:
            wide = max(len(row[2]) for row in rows)
            rows = [[*row[:2], f"{row[2]:>{wide}} bytes", *row[3:]] for row in rows]  # (a line has no head to say it)
        for row in rows:
            print("  ".join([f"{row[0]:<{name_width}}", f"{row[1]:<{kind_width}}", *row[2:]]))
    return 0


def described(m: Method, sized: bool = False) -> dict[str, Any]:
    """All that the registry has of a method, as JSON takes it: a bound that there is none of is null.

    sized   with "state_bytes", which --state goes by
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return {name: plain(part) for name, part in value._asdict().items()}
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return plain(m) | ({"state_bytes": examples.state_bytes(m)} if sized else {})


def all_needs() -> list[str]:
    """What methods ask for, "none" first: the needs that --need takes."""
    return ["none", *sorted({r for m in thalweg.methods() for r in needs(m)})]


def needs(m: Method) -> tuple[str, ...]:
    """What a method asks for besides one gradient a step; a solver's kinds of request."""
    return tuple(a.name for a in m.asks) or m.requests


def select(
    kind: str | None = None, need: list[str] | None = None, state: str | None = None, text: list[str] | None = None
) -> list[Method]:
    """The methods that fit every filter that is given.

    kind    that of the method
    need    it asks for all of these; "none": for nothing
    state   bytes an element of float32 parameters: "4" (at most), ">8" (more than), "=0"
    text    words that all occur in name, kind, summary, rule, hyper-parameters or source, in any case, with hyphens or
            without; or that are called otherwise here (CALLED)
    Refusal for a kind, a need or a state that is none.
    """
    if kind is not None and kind not in thalweg.kinds():
        raise Refusal(f"there is no method of kind {kind!r}; kinds: {', '.join(thalweg.kinds())}")
    for name in need or ():
        if name not in all_needs():
            raise Refusal(f"no method asks for {name!r}; needs: {', '.join(all_needs())}")
    fits = _state_filter(state) if state is not None else None
    words = sought(text)
    chosen = []
    for m in thalweg.methods(kind):
        if any(bool(needs(m)) if name == "none" else name not in needs(m) for name in need or ()):
            continue
        if not all(_has(m, word) for word in words):
            continue
        if fits is not None:
            size = examples.state_bytes(m)
            if size is None or not fits(size):
                continue
        chosen.append(m)
    return chosen


def sought(text: list[str] | None) -> list[str]:
    """The words of a search, in small letters and without hyphens; those that CALLED knows together are one."""
    words, out = re.findall(r"[^\s-]+", " ".join(text or ()).lower()), []
    while words:
        run = next((k for k in (3, 2) if "".join(words[:k]) in CALLED and len(words) >= k), 1)
        out.append("".join(words[:run]))
        del words[:run]
    return out


def _has(m: Method, word: str) -> bool:
    if {m.name, m.kind} & {*CALLED.get(word, ())}:
        return True
    text = " ".join([m.name, m.kind, m.summary, m.rule, m.source, *(p.name for p in m.parameters)]).lower()
    return word in text or word in text.replace("-", "")


def _state_filter(text: str) -> Callable[[float], bool]:
    found = re.fullmatch(r"\s*(<=|>=|<|>|=)?\s*(\d+(?:\.\d*)?)\s*", text)
    if found is None:
        raise Refusal(f"--state is a number of bytes an element, as 4 (at most), '>8' or '=0', not {text!r}")
    bound = float(found[2])
    tests: dict[str, Callable[[float], bool]] = {
        "<=": lambda n: n <= bound, "<": lambda n: n < bound, ">": lambda n: n > bound, ">=": lambda n: n >= bound,
        "=": lambda n: abs(n - bound) < 0.05,  # (a few numbers a tensor are no state to speak of)
    }
    return tests[found[1] or "<="]


# ---- one method


def own_state(m: Method) -> float | None:
    """Bytes of state for each element of a float32 matrix of 64 x 64; None for what keeps none in a sentence."""
    return None if m.kind in ("regularizer", "constraint", "schedule") else examples.state_bytes(m)


def state_words(m: Method) -> str:
    """What the state costs, in words; "" for what keeps no state in a sentence."""
    size = own_state(m)
    if size is None:
        return ""
    return f"{size:.4g} bytes an element, for a float32 matrix of 64 x 64" if size else "none"


def watched_words(m: Method) -> str:
    """What the method is told by a call of its own, a line each; "" where there is nothing."""
    closure = {"loss": " before a step, or a closure that returns it"}
    return "\n".join(f'opt.observe("{what}", value){closure.get(what, "")}' for what in examples.watched(m))


@cache
def _vectors() -> dict[str, dict[str, float]]:
    """The words of every method, weighted by how rare they are, at length 1."""
    words = {m.name: Counter(_words(m)) for m in thalweg.methods()}
    count = Counter(word for bag in words.values() for word in bag)
    vectors = {}
    for name, bag in words.items():
        vector = {w: (1 + math.log(n)) * math.log(len(words) / count[w]) for w, n in bag.items()}
        norm = math.sqrt(sum(v * v for v in vector.values())) or 1.0
        vectors[name] = {w: v / norm for w, v in vector.items()}
    return vectors


def _words(m: Method) -> list[str]:
    """What a method is compared by: words of name, summary and rule, hyper-parameters, state, requests and papers."""
    text = " ".join([*[m.name.replace("_", " ")] * 2, m.summary, m.rule])
    return [
        *re.findall(r"[a-z][a-z0-9]+", text.lower()),
        *(f"parameter {p.name}" for p in m.parameters),
        *(f"state {s.name}" for s in m.state),
        *(f"asks {name}" for name in needs(m)),
        *re.findall(r"arXiv:\S+?(?=[,;]|$)", m.source),
    ]


def neighbours(m: Method, count: int = 6) -> list[Method]:
    """The methods of the same kind that are most like it, by the words that `_words` finds."""
    vectors, known = _vectors(), _registry.by_name()
    own = vectors[m.name]
    others = [o.name for o in known.values() if o.kind == m.kind and o.name != m.name]
    alike = {name: sum(v * own.get(word, 0.0) for word, v in vectors[name].items()) for name in others}
    return [known[n] for n in sorted(alike, key=lambda n: (-alike[n], n))[:count] if alike[n] > 0]


def show(arguments: argparse.Namespace) -> int:
    """`show NAME ...`: rule, hyper-parameters, requests, state, source, examples, neighbours, of each."""
    chosen = [_named(name) for name in arguments.name]
    for k, m in enumerate(chosen):
        if k:
            print("\n")
        _show(m)
    return 0


def _named(name: str) -> Method:
    """The method of that name.  Refusal, with what to write for a sentence."""
    try:
        return thalweg.method(name)
    except thalweg.MethodError as problem:
        inside = [known for known in re.findall(r"[a-z]\w*", name) if known in _registry.by_name() and known != name]
        hint = f"; `show` takes names of methods: show {' '.join(dict.fromkeys(inside))}" if inside else ""
        raise Refusal(f"{problem}{hint}") from None


def _show(m: Method) -> None:
    python, whole = examples.python_example(m)
    parts = [
        ("Watches", watched_words(m)),
        ("State takes", state_words(m)),
        ("In Python" if whole else "In Python (arrays that fit are yours)", python),
        ("In C", examples.c_example(m)),
        ("Neighbours", "\n".join(f"{n.name:<24}  {n.summary}" for n in neighbours(m))),
    ]
    console = rich_terminal()
    if console is None:
        print(m)
        for title, text in parts:
            if text:
                print(f"\n{title}\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines()))
        return
    _draw(console, m, parts)


def _draw(console: Any, m: Method, parts: list[tuple[str, str]]) -> None:
    """The same on a terminal, with colours."""
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.syntax import Syntax
    from rich.text import Text

    console.print(Rule(Text.assemble((m.name, "bold"), f"  {m.kind}"), align="left"))
    for block in re.split(r"\n\n(?=[A-Z][\w -]*\n    )", _registry.describe(m)):
        title, _, body = block.partition("\n    ")
        if body:
            console.print(Text(f"\n{title}", style="bold"))
            console.print(Padding(Text("    " + body), 0))
        else:
            console.print(Text(f"\n{block}"))
    for title, text in parts:
        if not text:
            continue
        console.print(Text(f"\n{title}", style="bold"))
        language = {"In P": "python", "In C": "c"}.get(title[:4])
        shown = Syntax(text, language, background_color="default") if language else Text(text)
        console.print(Padding(shown, (0, 0, 0, 4)))
