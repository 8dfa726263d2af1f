"""What a run may have beside its start and its refits: the callback's aids from fresh weights, and few time steps at first."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hidden_networks import scores_of
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.training.damping import Damping, choose_damping
from snn_recon_plugin.training.hard_samples import MIN_SAMPLES, HardSampler
from snn_recon_plugin.training.measure import log_probabilities

__all__ = ["Aided", "FewFirst"]

_SHARE = 0.7  # of the training, at few time steps


class Aided(pl.Callback):
    """Damp recurrent gradients by the factor that suits fresh weights; draw hard samples after the first epoch."""

    def __init__(self, train: TensorDataset) -> None:
        self.train = train

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        options = ConvexInitializer(progress=False)
        factor = choose_damping(pl_module.net, DataLoader(self.train, 64), options, fresh=True)
        Damping(pl_module.net, factor)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch or len(self.train) < MIN_SAMPLES:
            return
        inputs, labels = self.train.tensors
        with torch.no_grad():
            logs = torch.cat([log_probabilities(scores_of(pl_module.net(x)), y) for x, y in _parts(inputs, labels)], 1)
        sampler = HardSampler(labels, 1 - logs[logs.mean(1).argmax()].exp())
        trainer.train_dataloader.batch_sampler.sampler = sampler
        sampler.follow(pl_module.net, scores_of)


class FewFirst(pl.Callback):
    """Train at few time steps first; tests and refits run all."""

    def __init__(self, few: int) -> None:
        self.few, self.all, self.larger = few, 0, 1.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.all = pl_module.net.steps
        leak = float(pl_module.net.output.beta)
        means = [sum((1 - leak**left) / (1 - leak) for left in range(1, count + 1)) / count for count in (self.few, self.all)]
        self.larger = means[1] / means[0]  # of the mean membrane, at spikes of the same rate

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step < _SHARE * int(trainer.estimated_stepping_batches):
            pl_module.net.steps, pl_module.scale = self.few, self.larger

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.net.steps, pl_module.scale = self.all, 1.0


def _parts(inputs: Tensor, labels: Tensor) -> Any:
    return zip(inputs.split(500), labels.split(500), strict=True)
