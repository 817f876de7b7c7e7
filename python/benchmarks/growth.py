"""python -m benchmarks.growth LIBRARY: what a method adds, by its kind: bytes of code, and lines of its sources.

LIBRARY is a release build that still has its symbols, as of

    swift build -c release --product thalweg -Xswiftc -static-stdlib --scratch-path .build/symbols

Code that names a method's type is that method's: its functions, what generic code of the engine was specialized for it,
and witnesses.  What methods share is nobody's.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .common import table

SOURCES = Path(__file__).resolve().parents[2] / "Sources"
MODULES = ("ThalwegMethods", "ThalwegMatrix", "ThalwegSets", "ThalwegObjectives", "ThalwegSolvers")
SUMS = "element rule with sums"
KINDS = {  # the protocol of a method
    "ElementRule": "element rule", "WholeRule": "whole rule", "InBlocks": "whole rule", "Source": "source",
    "GramianRule": "source",
    "ElementRegularizer": "regularizer", "WholeRegularizer": "regularizer", "Objective": "objective",
    "Driver": "solver",
}  # fmt: skip
DECLARED = re.compile(
    r"(?:(?:public|package|private|fileprivate|final) )*(?:struct|class|enum) (\w+)(?:<[^>]*>)?: ([\w, @]+) \{")


@dataclass(frozen=True)
class Type:
    """A method's type in the sources: "Module.Name", its kind, how many lines it has, with its comment."""

    name: str
    kind: str
    lines: int


def types(sources: Path = SOURCES) -> dict[str, Type]:
    """The methods' types by name."""
    found = {}
    for module in MODULES:
        for file in sorted((sources / module).rglob("*.swift")):
            lines = file.read_text().splitlines()
            for first, line in enumerate(lines):
                declared = DECLARED.match(line)
                protocols = re.split(r",\s*", declared[2]) if declared else []
                kind = next((KINDS[p] for p in protocols if p in KINDS), "")
                if not kind:
                    continue
                end = lines.index("}", first) + 1 if line.endswith("{") else first + 1
                if kind == "element rule" and any("static func phases(" in body for body in lines[first:end]):
                    kind = SUMS
                start = first
                while start and lines[start - 1].startswith("///"):
                    start -= 1
                name = f"{module}.{declared[1]}"
                found[name] = Type(name, kind, end - start)
    return found


def code(symbols: str, known: dict[str, Type]) -> dict[str, int]:
    """Bytes by type, from lines of `nm` with readable names: those of code, each for the first type that it names."""
    size: dict[str, int] = defaultdict(int)
    name = re.compile(rf"\b(?:{'|'.join(MODULES)})\.\w+")
    for line in symbols.splitlines():
        number, letter, text = line.split(" ", 2)
        if letter in "tTwW":
            owner = next((n for n in name.findall(text) if n in known), None)
            if owner:
                size[owner] += int(number, 16)
    return size


def growth(known: dict[str, Type], size: dict[str, int]) -> str:
    """The table: a row for each kind."""
    rows = []
    for kind in dict.fromkeys(["element rule", SUMS, *KINDS.values()]):
        members = [t for t in known.values() if t.kind == kind and size.get(t.name)]
        if members:
            most = max(members, key=lambda t: size[t.name])
            rows.append([kind, str(len(members)), f"{statistics.median(size[t.name] for t in members):,.0f}",
                         f"{sum(size[t.name] for t in members):,}",
                         f"{most.name.partition('.')[2]} {size[most.name]:,}",
                         f"{statistics.median(t.lines for t in members):.0f}"])
    return table(["kind", "methods", "bytes of code, median", "all", "the largest", "lines, median"], rows)


def symbols(library: Path) -> str:
    """What `nm` says of the library, Swift's names made readable.  SystemExit, with the reason, where it cannot."""
    for tool in ("nm", "swift"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not on PATH")
    listed = subprocess.run(["nm", "--size-sort", library], capture_output=True, text=True)
    if not listed.stdout.strip():
        sys.exit(f"{library} has no symbols: {listed.stderr.strip() or 'is it stripped?'}")
    done = subprocess.run(["swift", "demangle"], input=listed.stdout, capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    known = types()
    size = code(symbols(parser.parse_args().library), known)
    print(growth(known, size))
    if missing := sorted(name for name in known if not size.get(name)):
        print(f"\nWithout code of their own: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
