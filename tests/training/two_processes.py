"""A run with the callback in as many processes as asked for, by test_processes.py; its parameters and metrics are saved."""

import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
import snntorch as snn
import snntorch.functional as SF
import torch

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, options
from snn_recon_plugin.convex import path
from snn_recon_plugin.demo import build_network

from ..nets import Loop, spikes_of
from . import runs

STILL, RESUMED, VALIDATED, MEASURED, FAILING, SPIKING, MAXIMUM = (
    word in sys.argv for word in ("still", "resumed", "validated", "measured", "failing", "spiking", "maximum")
)


class Module(runs.Module):
    def __init__(self):
        super().__init__(net=Loop(steps=4, output=snn.Leaky(0.9), decode=spikes_of) if SPIKING else build_network(64, 48, 10, 8))
        self.start = {}

    def training_step(self, batch, batch_idx):
        self.start = self.start or runs.state(self)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0) if STILL else super().configure_optimizers()


class Metric:
    """Calls the other processes itself; the mean of the numbers falls, though one's own rises."""

    asked = 0

    def __call__(self, module):
        self.asked += 1
        rank = module.global_rank
        if FAILING and rank == 1 and self.asked == 3:
            raise ValueError("no number")
        if not FAILING:
            assert float(module.trainer.strategy.reduce(torch.ones(1), reduce_op="sum")) == module.trainer.world_size
        return -3.0 * self.asked if rank == 0 else 1.0 * self.asked


def callback():
    if MEASURED or FAILING:
        return ReconstructionCallback(at_start=False, metric=Metric())
    if not STILL:
        return ReconstructionCallback(ConvexInitializer(hidden="rescale"), at_start=True)
    options.REFIT_TOL = path._FINEST = path._COARSEST = 1e-11  # what a refit finds depends on nothing but the samples
    loss = SF.ce_max_membrane_loss() if MAXIMUM else "cross_entropy"
    return ReconstructionCallback(ConvexInitializer(hidden="reconstruct", loss=loss, strength=0.01, tol=1e-11), at_start=True)


class Save(pl.Callback):
    """The parameters live in the processes that train."""

    def __init__(self, path, made):
        self.path, self.made = path, made

    def on_fit_end(self, trainer, module):
        flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        gathered = module.all_gather(flat).reshape(-1, len(flat))
        if trainer.is_global_zero:
            first, last = self.made.reports[0], self.made.report
            names = ("judged_before", "judged_after", "trained_loss", "loss", "kept")
            found = {
                "metrics": {name: float(trainer.callback_metrics[f"recon/{name}"]) for name in names},
                "apart": float((gathered - gathered[0]).abs().max()),
                "ranks": len(gathered),
                "solves": len(self.made.reports),
                "last": [last.certificate.primal, last.certificate.relative_gap, last.program.samples, last.after.samples],
                "begun": [first.before.loss, first.accuracy_before, first.program.samples, first.after.samples],
                "rebuilt": all(layer.witnesses is not None for layer in first.layers),
                "label": last.exactness.label,
            }
            torch.save({**found, "start": module.start, "end": module.state_dict()}, self.path)


def main(devices: int, folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    made = callback()
    checkpoints = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", enable_version_counter=False)
    runs.fit(
        made,
        Module,
        val=runs.validation() if VALIDATED else None,
        ckpt_path=folder / "epoch=0.ckpt" if RESUMED else None,
        beside=[Save(folder / f"{devices}.pt", made), checkpoints],
        epochs=1 if STILL else 2,
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork",
        enable_checkpointing=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
