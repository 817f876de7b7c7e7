"""python -m benchmarks, from the folder above: see --help and README.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from . import common

WITH_CASES = ("family", "steps", "stages", "sets", "surgery", "matrix", "jit")
SUITES = ("headline", "precision", "maps", *WITH_CASES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all", help="what to measure (default all)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, comma-separated (default 1,2)")
    parser.add_argument("--quick", action="store_true",
                        help="small sizes and few repetitions: shows that it runs, not how fast")
    parser.add_argument("--repetitions", type=int,
                        help="how often every candidate is timed (default 9; 3 with --quick)")
    parser.add_argument("--only", metavar="TEXT",
                        help=f"of {', '.join(WITH_CASES)}: cases or methods with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results")
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the tables between the markers of this file")
    parser.add_argument("--worker", choices=SUITES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        threads = [int(t) for t in args.threads.split(",")]
    except ValueError:
        parser.error("--threads is a list of numbers, as 1,2")
    cpus = len(os.sched_getaffinity(0))
    if not all(1 <= t <= cpus for t in threads):
        parser.error(f"--threads: this process may use {cpus} CPUs")
    if args.only and (args.suite not in WITH_CASES or args.markdown):
        parser.error(f"--only goes with --suite {' or '.join(WITH_CASES)}, not with --markdown: tables have all cases")
    if args.worker:
        return common.work(args.worker, threads[0])

    repetitions = args.repetitions or (3 if args.quick else 9)
    results = {}
    for name in SUITES if args.suite == "all" else [args.suite]:
        options = {"only": args.only} if args.only else {}
        suite = importlib.import_module(f"benchmarks.{name}")
        markdown, results[name] = suite.run(threads, args.quick, repetitions, **options)
        markdown = f"Measured {common.machine()}.{' Quick run: not to be quoted.' if args.quick else ''}\n\n{markdown}"
        print(f"\n{markdown}\n", flush=True)
        if args.markdown:
            common.write_section(args.markdown, name, markdown)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
