"""The pages of the site: what is made of the registry, and what is written; links lead somewhere, and examples run."""

from __future__ import annotations

import importlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import thalweg as tw

DOCS = Path(__file__).parents[1] / "docs"
if not DOCS.is_dir():
    pytest.skip("the sources of the site are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402
import mathematics  # noqa: E402

WRITTEN = sorted(path.relative_to(DOCS / "pages") for path in (DOCS / "pages").rglob("*.md"))


@pytest.mark.parametrize("page", WRITTEN, ids=str)
def test_written_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "pages" / page).read_text(), re.S):
        for peer in re.findall(r"^(?:import|from) (accelerate|jax|torch|transformers)\b", code, re.M):
            pytest.importorskip(peer)
            if peer == "transformers":
                pytest.importorskip("accelerate")  # its Trainer asks for it
        try:
            exec(code, scope)  # noqa: S102
        except tw.UnsupportedError as problem:  # built without jaxlib's headers
            pytest.skip(str(problem))


def test_commands_of_the_guide_are_read() -> None:
    import shlex

    from thalweg.command import parser

    text = (DOCS / "pages" / "guides" / "command_line.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^\$ python -m thalweg (.*)$", text, re.M)
    assert len(commands) >= 9
    for words in generate.PICTURES.values():
        parser().parse_args(words)
    for command in commands:
        parser().parse_args(shlex.split(command, comments=True))


def _made() -> set[str]:
    return {f"methods/{m.name}.md" for m in tw.methods()} | {f"methods/kinds/{k}.md" for k in generate.KINDS} | {
        "methods/index.md", "guides/adding.md", "guides/embedding.md", "python.md"}


def _check_links(text: str, place: str) -> None:
    known = _made() | {str(page) for page in WRITTEN} | set(generate.PICTURES)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "#")):
            continue
        parts: list[str] = place.split("/")[:-1]
        for step in target.partition("#")[0].split("/"):
            parts = parts[:-1] if step == ".." else [*parts, step]
        assert "/".join(parts) in known, f"{place}: {target} leads nowhere"


@pytest.mark.parametrize("page", WRITTEN, ids=str)
def test_links_of_written_pages(page: Path) -> None:
    """In a checkout to what a page is made of, on the site to the page."""
    text = (DOCS / "pages" / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if target.startswith(("https://", "#")):
            continue
        path, _, part = target.partition("#")
        there = DOCS / "pages" / page.parent / path
        assert there.exists(), f"{page}: {target} leads nowhere in a checkout"
        if path.endswith(".swift"):
            assert re.search(rf'"{part}"', there.read_text()), f"{page}: {part} is not in {path}"
        elif path.endswith("README.md") and part:
            assert re.search(rf"^## {part.replace('-', ' ')}$", there.read_text(), re.M | re.I), f"{page}: {target}"
    shown = generate.on_site(text, str(page))
    assert "/Sources/" not in re.sub(r"```.*?```", "", shown, flags=re.S) and "<!-- picture" not in shown
    _check_links(shown, str(page))


def test_a_link_to_what_has_no_page_is_refused() -> None:
    for target in ("../../../../Sources/ThalwegMethods/Lists.swift", "../../../../Sources/ThalwegMatrix/Muon.swift#no"):
        with pytest.raises(SystemExit, match="there is no page of"):
            generate.on_site(f"[x]({target})", "guides/torch.md")


def _rows(text: str) -> list[list[str]]:
    """The tables of a page, each a list of its lines."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    blocks = re.findall(r"(?:^\|.*(?:\n|\Z))+", text, re.M)
    return [block.splitlines() for block in blocks]


def _cells(row: str) -> int:
    """How many cells Markdown sees: a bar ends one, within `code` too, where no backslash is before it."""
    return len(re.findall(r"(?<!\\)\|", row.strip())) - 1


TABLED = [*(DOCS / "pages").rglob("*.md"), *DOCS.parents[1].glob("*.md"), DOCS.parent / "benchmarks" / "README.md",
          *(DOCS.parents[1] / folder / "README.md" for folder in ("examples", "Sources"))]


@pytest.mark.parametrize("page", TABLED, ids=lambda page: str(page.relative_to(DOCS.parents[1])))
def test_rows_of_tables_have_as_many_cells_as_their_heads(page: Path) -> None:
    if not page.exists():
        pytest.skip("not in this archive")
    for table in _rows(page.read_text()):
        assert re.fullmatch(r"[| :-]+", table[1]), table[0]
        for row in table:
            assert row.rstrip().endswith("|") and _cells(row) == _cells(table[0]), row


def test_rows_of_tables_that_are_made() -> None:
    made = [generate.kind_page(kind) for kind in tw.kinds()] + [generate.method_page(m) for m in tw.methods()[::7]]
    for table in [table for text in made for table in _rows(text)]:
        for row in table:
            assert _cells(row) == _cells(table[0]), row


def test_pages_of_methods() -> None:
    for m in tw.methods()[::25]:
        text = generate.method_page(m)
        _check_links(text, f"methods/{m.name}.md")
        assert f"# {m.name}\n" in text and "## Example" in text
        assert all(f"<code>{p.name}</code>" in text for p in m.parameters)
        assert all(number in text for number in re.findall(r"arXiv:(\d+\.\d+)", m.source))


def test_pages_of_kinds() -> None:
    assert set(generate.KINDS) == set(tw.kinds())
    for kind in ("optimizer", "schedule", "average"):
        text = generate.kind_page(kind)
        _check_links(text, f"methods/kinds/{kind}.md")
        assert all(f"[{m.name}]" in text for m in tw.methods(kind))
    _check_links(generate.index_page(), "methods/index.md")
    _check_links(generate.adding_page(), "guides/adding.md")
    _check_links(generate.embedding_page(), "guides/embedding.md")
    assert all(f"\n## From {host}" in generate.embedding_page() for host in ("C\n", "C++", "Swift"))


def test_no_page_is_both_written_and_made() -> None:
    assert not _made() & {str(page) for page in WRITTEN}


def test_the_reference_has_every_public_name() -> None:
    text = generate.python_page()
    functions = {"aggregate", "constraint", "diagnostic", "objective", "regularizer", "schedule", "solver", "weighting", "random_normal", "get_num_threads",
                 "set_num_threads", "version", "build_info"}
    classes = {n for n in tw.__all__ if hasattr(getattr(tw, n), "method")}
    missing = [n for n in set(tw.__all__) - classes - functions if f"thalweg.{n}\n" not in text]
    assert not missing


@pytest.mark.parametrize("adapter", ["torch", "jax", "distributed"])
def test_the_reference_has_every_name_of_the_adapters(adapter: str) -> None:
    pytest.importorskip("jax" if adapter == "jax" else "torch")
    module = importlib.import_module(f"thalweg.{adapter}")
    listed = {name.partition(".")[2] for names in generate.REFERENCE.values() for name in names
              if name.startswith(f"{adapter}.") and name.count(".") == 1}
    own = {"Optimizer", "Request"} if adapter == "jax" else {"Optimizer"}
    assert listed == set(module.__all__) - ({*tw.__all__} - own)


# ---- rules as mathematics


def read(text: str) -> str:
    return re.sub(r"</?math>", "$", mathematics.statement(text))


@pytest.mark.parametrize(("text", "formula"), [
    ("theta <- theta - lr*m", "<mi>θ</mi><mo>←</mo><mi>θ</mi><mo>−</mo><mi mathvariant=\"normal\">lr</mi><mo>⋅</mo><mi>m</mi>"),
    ("a/(b + c)", "<mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mi>c</mi></mrow></mfrac>"),
    ("sqrt(x)", "<msqrt><mrow><mi>x</mi></mrow></msqrt>"),
    ("x^2", "<msup><mi>x</mi><mrow><mn>2</mn></mrow></msup>"),
    ("B^-1/2", "<msup><mi>B</mi><mrow><mo>−</mo><mn>1</mn><mo>/</mo><mn>2</mn></mrow></msup>"),
    ("g_prev", "<msub><mi>g</mi><mrow><mtext>prev</mtext></mrow></msub>"),
    ("beta1^t", "<msup><msub><mi>β</mi><mrow><mn>1</mn></mrow></msub><mrow><mi>t</mi></mrow></msup>"),
])
def test_formulas(text: str, formula: str) -> None:
    assert read(text) == f"${formula}$"


def test_words_stay_words() -> None:
    shown = mathematics.statement("every so often Q <- qr(L Q), columns descending")
    assert shown.startswith("every so often <math>") and shown.endswith("</math>, columns descending")


def test_every_rule_is_well_formed_and_loses_nothing() -> None:
    for m in tw.methods():
        names = frozenset(n.name for n in (*m.parameters, *m.state, *m.inputs))
        shown = ElementTree.fromstring(mathematics.rule(m.rule, names))
        for fraction in shown.iter("mfrac"):
            assert len(fraction) == 2, m.name
        for script in (*shown.iter("msup"), *shown.iter("msub")):
            assert len(script) == 2, m.name
        there, wanted = "".join(shown.itertext()), m.rule
        assert re.findall(r"\d", there) == re.findall(r"\d", wanted), m.name
