"""A run with the callback in as many processes as asked for, by test_processes.py; its parameters and metrics are saved."""

import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
import snntorch.functional as SF
import torch
from runs import Counting
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.convex import path
from snn_recon_plugin.demo import build_network, load_digits_data
from snn_recon_plugin.training import settings

DATA = load_digits_data()
STILL = RESUMED = VALIDATED = MEASURED = FAILING = SPIKING = MAXIMUM = False


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Counting() if SPIKING else build_network(64, 48, 10, 8)
        self.start = {}

    def training_step(self, batch, batch_idx):
        if not self.start:
            self.start = {name: value.clone() for name, value in self.state_dict().items()}
        inputs, labels = batch
        return F.cross_entropy(self.net(inputs).mean(0), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0) if STILL else torch.optim.Adam(self.parameters(), 1e-3)


def main(devices: int, folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    if STILL:  # training moves nothing: what the refit finds depends on nothing but the samples
        settings.REFIT_TOL = path._FINEST = path._COARSEST = 1e-11
        loss = SF.ce_max_membrane_loss() if MAXIMUM else "cross_entropy"
        solves = ConvexInitializer(hidden="reconstruct", loss=loss, strength=0.01, tol=1e-11)
        made = ReconstructionCallback(solves)
    else:
        made = ReconstructionCallback(ConvexInitializer(hidden="rescale"))
    if MEASURED or FAILING:
        made = ReconstructionCallback(at_start=False, metric=Metric())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", enable_version_counter=False)
    processes = {"devices": devices, "strategy": "auto" if devices == 1 else "ddp_fork"}
    epochs, callbacks = 1 if STILL else 2, [made, Save(folder, devices), checkpoints]
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **processes, **quiet)
    samples = TensorDataset(DATA.train_inputs[:400], DATA.train_labels[:400])
    train = DataLoader(samples, batch_size=50, shuffle=True)
    val = DataLoader(TensorDataset(DATA.test_inputs[:200], DATA.test_labels[:200]), batch_size=50) if VALIDATED else None
    trainer.fit(Module(), train, val, ckpt_path=folder / "epoch=0.ckpt" if RESUMED else None)


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


class Save(pl.Callback):
    """The parameters live in the processes that train."""

    def __init__(self, folder, devices):
        self.path = folder / f"{devices}.pt"

    def on_fit_end(self, trainer, module):
        flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        gathered = module.all_gather(flat).reshape(-1, len(flat))
        if trainer.is_global_zero:
            reports = next(part for part in trainer.callbacks if isinstance(part, ReconstructionCallback)).reports
            report = reports[-1]
            last = [report.certificate.primal, report.certificate.relative_gap, report.samples, report.heldout]
            begun = [reports[0].loss_before, reports[0].accuracy_before, reports[0].samples, reports[0].heldout]
            apart = float((gathered - gathered[0]).abs().max())
            names = ("judged_before", "judged_after", "trained_loss", "loss", "kept")
            found = {
                "metrics": {name: float(trainer.callback_metrics[f"recon/{name}"]) for name in names},
                "apart": apart,
                "ranks": len(gathered),
                "solves": len(reports),
                "last": last,
                "begun": begun,
                "rebuilt": all(layer.witnesses is not None for layer in reports[0].layers),
                "label": report.exactness.label,
            }
            torch.save({**found, "start": module.start, "end": module.state_dict()}, self.path)


if __name__ == "__main__":
    words = ("still", "resumed", "validated", "measured", "failing", "spiking", "maximum")
    STILL, RESUMED, VALIDATED, MEASURED, FAILING, SPIKING, MAXIMUM = (word in sys.argv for word in words)
    main(int(sys.argv[1]), Path(sys.argv[2]))
