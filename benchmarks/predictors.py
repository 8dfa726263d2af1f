"""Spiking nets that predict the next value of a series, and their surrogate training in Lightning's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import AVERAGED, CLIP, QUIET, Average, Module
from benchmarks.series import Split, windows
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback

NETS = ("feed-forward", "recurrent", "Norse")
WIDTH, LEAK, OUTPUT_LEAK = 256, 0.9, 0.8
SLOPE = 25.0  # of snnTorch's tutorials; its default, an arc tangent, trains recurrent nets badly
BATCH, EPOCHS = 16, 20  # windows of a batch


class Net(nn.Module):
    """Hidden spiking neurons and a membrane without reset, which at each step is the change to the next value.

    ``forward`` is the user's time loop over ``step``: it takes (B, T, C), and returns the output's membranes, (T, B, C).
    """

    def __init__(self, kind: str, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.kind, self.hidden = kind, nn.Linear(channels, width)
        leaky = {"beta": LEAK, "spike_grad": surrogate.fast_sigmoid(SLOPE)}
        if kind == "Norse":  # faster than by default, where synapses outlast several steps of these series
            quick = torch.tensor(800.0)  # 1/s, steps of 1 ms
            self.neuron = norse.LIFCell(p=norse.LIFParameters(tau_syn_inv=quick))
            self.output = norse.LICell(p=norse.LIParameters(tau_syn_inv=quick, tau_mem_inv=torch.tensor(200.0)))
        else:
            self.neuron = snn.RLeaky(**leaky, linear_features=width) if kind == "recurrent" else snn.Leaky(**leaky)
            self.output = snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")
        self.readout = nn.Linear(width, channels)

    def begin(self) -> Any:
        """Return a fresh state."""
        return (None, None) if self.kind == "Norse" else (self.neuron.reset_mem(), self.output.reset_mem())

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the output's membrane (B, C), and the state after it."""
        hidden, out = state
        if self.kind == "recurrent":
            hidden = self.neuron(self.hidden(x), *hidden)
            spikes = hidden[0]
        else:
            spikes, hidden = self.neuron(self.hidden(x), hidden)
        value, out = self.output(self.readout(spikes), out)
        return value if self.kind == "Norse" else out, (hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        state, membranes = self.begin(), []
        for value in x.unbind(1):
            membrane, state = self.step(value, state)
            membranes.append(membrane)
        return torch.stack(membranes)


class OfChanges:
    """Prediction of the next value: this one, and the net's change times its scale."""

    def __init__(self, net: Net, scale: Tensor) -> None:
        self.net, self.scale, self.begin = net, scale, net.begin

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        change, state = self.net.step(x, state)
        return x + self.scale * change, state


class OneCycle(Module):
    """The mean squared error at every step, Adam in one cycle."""

    def configure_optimizers(self) -> Any:
        return self.one_cycle(super().configure_optimizers())


def mean_squares(output: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of outputs (T, B, C) for targets (B, T, C)."""
    return nn.functional.mse_loss(output.transpose(0, 1), targets)


class Averaging(pl.Callback):
    """Leaves an average of the weights in the net."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.average = Average(module.net, AVERAGED * int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.average._exchange()


def initializer(seed: int, **options: Any) -> ConvexInitializer:
    """Return the plugin's initializer of a readout at every step."""
    return ConvexInitializer(**{"loss": nn.MSELoss(), "readout": "membrane_per_step", "seed": seed, "progress": False, **options})


def train(net: Net, data: Split, rate: float, seed: int, callback: Mapping[str, Any] | None, epochs: int = EPOCHS) -> float:
    """Train in place, and leave the averaged weights, or with a callback of some options those it chose; the validation loss."""
    pl.seed_everything(seed, verbose=False)
    added = Averaging() if callback is None else ReconstructionCallback(initializer(seed, **callback))
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[added], gradient_clip_val=CLIP, **QUIET)
    module, validation = OneCycle(net, rate, mean_squares), TensorDataset(*windows(data.validation, data.scale))
    loader = DataLoader(TensorDataset(*windows(data.train, data.scale)), BATCH, shuffle=True)
    trainer.fit(module, loader, DataLoader(validation, len(validation)))
    with torch.no_grad():
        return float(module.training_step(validation.tensors, 0))


def make(net: str, data: Split, seed: int) -> Net:
    """Return a net at its initialisation."""
    torch.manual_seed(seed)
    return Net(net, data.train.shape[1])
