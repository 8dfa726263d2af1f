"""A run with the callback in as many processes as asked for, by test_processes.py; its parameters and metrics are saved."""

import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network

from . import runs

RESUMED, VALIDATED, MEASURED, FAILING = (word in sys.argv for word in ("resumed", "validated", "measured", "failing"))


class Module(runs.Module):
    def __init__(self):
        super().__init__(net=build_network(64, 48, 10, 8))


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
    return ReconstructionCallback(ConvexInitializer(hidden="rescale"))


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
                "samples": [last.program.samples, last.after.samples],
                "begun": [first.before.loss, first.accuracy_before, first.program.samples, first.after.samples],
            }
            torch.save({**found, "end": module.state_dict()}, self.path)


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
        epochs=2,
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork",
        enable_checkpointing=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
