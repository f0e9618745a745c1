"""``python -m benchmarks.planner grid [--layers torch] [PART OF A NAME]``: steps measured here; ``torchrun --standalone --nproc-per-node 2 -m benchmarks.planner ranks [PART OF A
NAME]``: of two processes. ``python -m benchmarks.planner published``: what others published."""

from __future__ import annotations

import argparse
import os
import statistics

from benchmarks.planner.allocator import count_from_the_start


def main() -> None:
    """Print the table that is asked for, and its summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("table", choices=["grid", "ranks", "published"])
    parser.add_argument("wanted", nargs="*", help="part of a training's name")
    parser.add_argument("--layers", choices=["auto", "torch"], default="auto", help="grid: whose code runs a decoder's layers, as in `luban train`")
    asked = parser.parse_args()
    if asked.table == "published":
        from benchmarks.planner.published import predict, read, summary
        from benchmarks.planner.published import table as published

        rows = read()
        predict(rows)
        print(published(rows))
        for name, found in summary(rows).items():
            print(f"{name}: {found['rows']:.0f} rows, median error {found['median']:.1%}, four of five within {found['p80']:.1%}, worst {found['worst']:.0%}, the interval held the truth in {found['held']:.0%}")
        return
    if asked.table == "grid":
        count_from_the_start()
        from benchmarks.planner.grid import table

        _, errors = table(" ".join(asked.wanted), asked.layers)
    else:
        count_from_the_start()
        from benchmarks.planner.ranks import table as of_ranks

        errors = of_ranks(" ".join(asked.wanted))
    near = sum(abs(error) <= 0.05 for error in errors)
    if int(os.environ.get("RANK", 0)):
        return
    print(f"{len(errors)} trainings: median error {statistics.median(map(abs, errors)):.1%}, {near} within 5 %, from {min(errors):+.1%} to {max(errors):+.1%}")


if __name__ == "__main__":
    main()
