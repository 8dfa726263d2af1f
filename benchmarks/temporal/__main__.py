"""Runs the cells named and writes benchmarks/results/temporal.jsonl; a cell that has a line is not run again.

    cd benchmarks && python -m temporal --root DIR --speech DIR --tasks rows speech --methods rescale train-cycle --seeds 0 1 2

Cells come in the order of the command line: all methods and nets of a seed, then the next seed. Methods that do not apply to a
net, or that the package does not offer yet, are left out. Seconds are those of one thread unless --threads is given. On a machine
that does other things too, only CPU seconds can be compared.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from itertools import product
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks.store import Store

from .cells import PATH, Cell, run_cell
from .methods import METHODS, applies
from .nets import NETS
from .tasks import TASKS, Places, load_task


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m temporal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}"
    )
    parser.add_argument("--hidden", nargs="+", type=int, default=[256], help="numbers of hidden neurons")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", help="where torchvision finds MNIST")
    parser.add_argument("--speech", help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--results", type=Path, default=PATH)
    parser.add_argument("--again", action="store_true", help="repeat cells that have a result")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the cells of the command line."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    places, store = Places(options.root, options.speech), Store(options.results)
    for task in options.tasks:
        data = load_task(task, places)
        cells = product(options.seeds, options.nets, options.hidden, options.methods)
        wanted = [Cell(task, net, hidden, method, seed) for seed, net, hidden, method in cells if applies(method, net, data)]
        with tqdm(wanted, disable=None, desc=task) as bar:
            for cell in bar:
                if content := run_cell(cell, data, store, options.again):
                    tqdm.write(f"{cell.name:<56} {100 * content['test']:6.2f} %  {content['cpu_seconds']:7.1f} CPU s")


if __name__ == "__main__":
    main()
