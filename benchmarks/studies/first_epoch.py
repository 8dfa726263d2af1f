"""SpikingJelly's nets in Lightning: as they come, after the line, and after one epoch, alone and with the callback.

Data are scikit-learn's digits.  Nothing is chosen by the images of the test.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from spikingjelly.activation_based import functional
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.methods import QUIET
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_, over_time
from snn_recon_plugin.networks.calls.forward import Forward, plain_forward
from tests.user_nets.catalogue import OVER, SPIKINGJELLY
from tests.user_nets.data import STEPS, Samples, digits
from tests.user_nets.record import UserNet

SEED, TRAIN, VALIDATION, BATCH, RATE = 0, 1000, 200, 32, 1e-3
NETS = {entry.name: entry for entry in SPIKINGJELLY if entry.options in ("", OVER)}
METHODS = ("line", "epoch", "line, epoch", "callback")


class Module(pl.LightningModule):
    """A script's loop: cross-entropy of the firing rates, and a net that is reset behind each batch."""

    def __init__(self, entry: UserNet) -> None:
        super().__init__()
        self.net, self.forward_of_net = entry.build(), forward_of(entry)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.forward_of_net(self.net, batch[0])
        return torch.nn.functional.cross_entropy(outputs.mean(0) if outputs.dim() == 3 else outputs, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", self.training_step(batch, batch_idx))

    def on_train_batch_end(self, *_: Any) -> None:
        functional.reset_net(self.net)

    on_validation_batch_end = on_train_batch_end

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), RATE)


def forward_of(entry: UserNet) -> Forward:
    """Return how the line calls the net."""
    return over_time(STEPS) if entry.options else plain_forward


def parts_of_data() -> tuple[Samples, Samples, Samples]:
    """Return images to train on, to validate on and to test on."""
    whole, test = digits(SEED, TRAIN + VALIDATION)
    return whole.of(slice(0, TRAIN)), whole.of(slice(TRAIN, None)), test


def loader(entry: UserNet, samples: Samples, shuffle: bool) -> Any:
    """Return batches as the net's script has them: of a DataLoader smaller ones, of a list its own."""
    batches: Any = entry.loader(samples)
    smaller = isinstance(batches, DataLoader)
    return DataLoader(batches.dataset if smaller else batches, BATCH if smaller else None, shuffle=shuffle)


def measure(name: str, method: str) -> dict[str, Any]:
    """Return accuracies by the net's own test, before and after."""
    entry, (train, validation, test) = NETS[name], parts_of_data()
    pl.seed_everything(SEED, verbose=False)
    module = Module(entry)
    own = partial(entry.test, module.net, entry.loader(test))
    result: dict[str, Any] = {"before": own()}
    options = {"forward": module.forward_of_net, "progress": False}
    if method.startswith("line"):
        result["report"] = convex_init_(module.net, entry.loader(train), **options).accuracy_after
    if method != "line":
        made = ReconstructionCallback(ConvexInitializer(**options), dataloader=entry.loader(train))
        callbacks = [made] if method == "callback" else []
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **QUIET)
        trainer.fit(module, loader(entry, train, True), loader(entry, validation, False))
        functional.reset_net(module.net)
    return {**result, "after": own()}


def cells(bench: Bench) -> Cells:
    """Every net by every method."""
    return {f"{name} | {method}": partial(measure, name, method) for name in NETS for method in METHODS}


def table(store: Store) -> str:
    """One row a net."""
    rows = []
    for name in NETS:
        found = {method: store[f"{name} | {method}"] for method in METHODS}
        line, after = found["line"], [found[method]["after"] for method in METHODS]
        values = (line["before"], line["report"], *after)
        rows.append((name, *(f"{100 * value:.1f}" for value in values)))
    heads = ("before", "line: report, held out", "line: own test", "one epoch alone", "line, then one epoch", "callback, one epoch")
    return markdown_table(("net", *heads), rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The table."""
    machine = machine_line(next(iter(store.named().values()))["machine"])
    text = (
        f"{table(store)}\n\nAdam at {RATE}, batches of {BATCH}, {TRAIN} images, {VALIDATION} for validation. Seed {SEED}; {machine}"
    )
    return {"evidence/user_nets.md": {"first epoch": text}}


STUDY = Study(
    title="SpikingJelly's nets after the line and one epoch",
    minutes=10,
    cells=cells,
    pages=pages,
    fields=("before", "report", "after"),
    packages=("spikingjelly",),
)
