"""Measure the cells of a study that have no result yet, and write its pages.

    python -m benchmarks.run temporal --root DIR --speech DIR
    python -m benchmarks.run temporal --root DIR --speech DIR --only 'rows-*-auto-*' --again

Results are lines of benchmarks/results/STUDY.jsonl. An interrupted run goes on where it was. Seconds are those of one thread unless
--threads is given; on a machine that does other things too, only CPU seconds can be compared.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import warnings
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from benchmarks.render import render
from benchmarks.study import Bench, Places, all_studies, load_study


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=all_studies(), metavar="STUDY", help=f"of {', '.join(all_studies())}")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of cells, with * for any text")
    parser.add_argument("--again", action="store_true", help="repeat cells that have a result")
    parser.add_argument("--root", help="where torchvision finds MNIST, and Tonic its data sets")
    parser.add_argument("--speech", help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def run(name: str, places: Places, only: Sequence[str] = ("*",), again: bool = False) -> None:
    """Measure the cells of a study whose names match; one that has a result is repeated only on demand."""
    study, store = load_study(name)
    for what in study.needs:
        places.need(what)
    bench = Bench(places, store, study)
    cells = study.cells(bench)
    wanted = [cell for cell in cells if any(fnmatch.fnmatchcase(cell, pattern) for pattern in only)]
    if not wanted:
        raise SystemExit(f"no cell of {name} matches {' '.join(only)}: their names are like {', '.join(list(cells)[:3])}")
    with tqdm([cell for cell in wanted if again or cell not in store], disable=None, desc=name) as bar:
        for cell in bar:
            bar.set_postfix_str(cell)
            bench.cell(cell, cells[cell], again)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    run(options.study, Places(options.root, options.speech, options.root), options.only, options.again)
    render([options.study])


if __name__ == "__main__":
    main()
