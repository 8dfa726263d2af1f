"""Inputs that are not scaled: the digits times a factor, a start on them, and training from there and alone.

The dense net of the demo, 64 hidden neurons and 8 steps; Adam at 1e-3 in batches of 64, without a guard.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.nets import accuracy
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import build_network, load_digits_data

FACTORS, SEEDS = (1, 5, 16, 255), 3  # pixels are in 0 to 1 with a factor of 1
HIDDEN, STEPS, RATE, BATCH, ALONE = 64, 8, 1e-3, 64, 3  # epochs of the training alone


def train(net: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Train a net by surrogate gradients."""
    optimizer, generator = torch.optim.Adam(net.parameters(), RATE), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]).mean(0), labels[rows]).backward()
            optimizer.step()


def measure(factor: int, seed: int) -> dict[str, object]:
    """Return test accuracies of the start, of an epoch from it and of training alone, and the names of the report's hints."""
    data = load_digits_data()
    inputs, test = factor * data.train_inputs, (factor * data.test_inputs, data.test_labels)

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return build_network(inputs=64, hidden=HIDDEN, outputs=10, steps=STEPS)

    net, alone = build(), build()
    report = convex_init_(net, [(inputs, data.train_labels)], seed=seed, progress=False)
    start = accuracy(net, *test)
    train(net, inputs, data.train_labels, 1, seed)
    train(alone, inputs, data.train_labels, ALONE, seed)
    size = float(inputs.square().mean().sqrt())
    hints = [hint.name for hint in report.hints]
    return {"size": size, "start": start, "after": accuracy(net, *test), "alone": accuracy(alone, *test), "hints": hints}


def cells(bench: Bench) -> Cells:
    """Every factor with every seed."""
    return {f"{factor} | {seed}": partial(measure, factor, seed) for factor in FACTORS for seed in range(SEEDS)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Means over the seeds, one row a factor."""
    rows = []
    for factor in FACTORS:
        found = store.cells(f"{factor} | *")
        means = (f"{100 * statistics.fmean(row[key] for row in found):.1f}" for key in ("start", "after", "alone"))
        hint = "yes" if all("unscaled_inputs" in row["hints"] for row in found) else ""
        rows.append((f"0 to {factor}", f"{found[0]['size']:.3g}", *means, hint))
    heads = ("pixels", "root mean square", "start", "an epoch from it", f"{ALONE} epochs alone", "hint")
    return {"evidence/training.md": {"unscaled": f"{markdown_table(heads, rows)}\n\n{machine_line(store.cells()[-1]['machine'])}"}}


STUDY = Study(
    title="inputs that are not scaled",
    minutes=2,
    cells=cells,
    pages=pages,
    fields=("size", "start", "after", "alone", "hints"),
    packages=("snntorch", "scikit-learn"),
)
