"""The paper's methods on one network and one task, through the plugin's public calls: surrogate gradients, convex, and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.paper.nets import SequenceNet, Unrolled, remembering
from benchmarks.sequences import Sequences
from snn_recon_plugin import ReconstructionError, Report, convex_init_

_BATCH, _ROWS = 128, 500
_LOOK, _HALVINGS = 128, 14  # a reservoir is tuned by so many samples, in so many steps
_ROUNDING, _FLIPPED = 1e-3, 0.01  # of scores; a current that rounding carries over a threshold may flip a sample or two


@dataclass(frozen=True)
class Splits:
    """A task's samples: to train on, to choose by, and to report on, these under one name or several, and how that is done."""

    train: Sequences
    validation: Sequences
    tests: dict[str, Sequences]
    measure: Callable[[nn.Module, Sequences], float] | None = None

    def tested(self, net: nn.Module) -> dict[str, float]:
        """Return the accuracy on each test set."""
        return {name: (self.measure or accuracy)(net, test) for name, test in self.tests.items()}


@torch.no_grad()
def scores_of(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return scores batch by batch: (n, C), or (n, T, C) of steps."""
    parts = [net(part) for part in inputs.split(_ROWS)]
    return torch.cat([part.transpose(0, 1) if part.dim() == 3 else part for part in parts])


def accuracy(net: nn.Module, data: Sequences) -> float:
    """Share of the targets, of samples or of their steps, that the scores get right; a single score decides by its sign."""
    scores = scores_of(net, data.inputs)
    found = (scores[..., 0] > 0).long() if scores.shape[-1] == 1 else scores.argmax(-1)
    return float((found == data.targets).double().mean())


def autoregressive(net: nn.Module, data: Sequences) -> float:
    """Share of a sum's digits that are right where each step's carry is the net's own of the step before.

    The net's classes are what a step adds up to, digit and carry in one; ``data`` has digits as targets and ``classes`` their base.
    """
    inputs, digits = data.inputs.clone(), []
    carry = torch.zeros(len(inputs), dtype=torch.int64)
    for step in range(inputs.shape[1]):
        inputs[:, step, 2] = carry / (data.classes - 1)
        total = scores_of(net, inputs[:, : step + 1])[:, -1].argmax(-1)
        digits.append(total % data.classes)
        carry = total // data.classes
    return float((torch.stack(digits, 1) == data.targets).double().mean())


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The hinge of one score, the cross-entropy of several; steps come first."""
    if scores.shape[-1] == 1:
        return torch.relu(1 - scores[..., 0] * (2 * targets - 1)).mean()
    if scores.dim() == 3:
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.T.flatten())
    return nn.functional.cross_entropy(scores, targets)


def surrogate(net: nn.Module, data: Splits, *, epochs: int, rate: float, seed: int) -> None:
    """Train all parameters by surrogate gradients with Adam, and go back to the epoch of the best validation accuracy."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    best, kept = accuracy(net, data.validation), copy.deepcopy(net.state_dict())
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            loss_of(net(data.train.inputs[rows]), data.train.targets[rows]).backward()
            optimizer.step()
        found = accuracy(net, data.validation)
        if found >= best:
            best, kept = found, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)


def convex(net: nn.Module, data: Splits, strengths: Sequence[float | str], **options: Any) -> Report:
    """Solve the readout for each strength, leave the net with that of the best validation accuracy, and return its report.

    Raises:
        ReconstructionError: the plugin refused every strength; the net is then as before.
    """
    batches = DataLoader(TensorDataset(data.train.inputs, data.train.targets), _ROWS)
    best: tuple[float, Report, dict[str, Any]] | None = None
    for number, strength in enumerate(strengths):
        try:
            report = convex_init_(net, batches, strength=strength, fit_loss="same", **options)
        except ReconstructionError:
            if best is None and number + 1 == len(strengths):
                raise
            continue  # nothing was written; another strength may do
        found = accuracy(net, data.validation)
        if best is None or found > best[0]:
            best = found, report, copy.deepcopy(net.state_dict())
    assert best is not None
    net.load_state_dict(best[2])
    return best[1]


@torch.no_grad()
def gaussian_(net: SequenceNet, seed: int, length: float = 2.0) -> None:
    """The paper's dictionary, and where surrogate gradients start: normal weights in all hidden layers, recurrent ones too.

    They are ``length`` times a standard normal over the root of how many a neuron has.  Shorter ones than twice that leave deep
    layers silent; at full length a layer's own spikes drown what comes in.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in net.branches.parameters():
        if weight.dim() == 2:
            weight.copy_(torch.randn(weight.shape, generator=generator) * length / weight.shape[1] ** 0.5)


@torch.no_grad()
def tune_branching_(net: SequenceNet, inputs: Tensor) -> None:
    """A reservoir at the edge: each layer's recurrent weights scaled until a spike makes one spike in the next step, on average.

    What a step's spikes make by themselves are the units that they alone would lift over the threshold from rest.  Layers are
    tuned from the input up, each on what the tuned ones below emit, by bisection of the gain's logarithm.
    """
    few = inputs[:_LOOK]
    for branch in net.branches:
        for number, neuron in enumerate(branch.neurons):
            own, low, high = neuron.recurrent.weight.clone(), -8.0, 8.0
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                neuron.recurrent.weight.copy_(2.0**middle * own)
                low, high = (middle, high) if branching_ratio(branch, few, number) < 1 else (low, middle)


def branching_ratio(branch: Any, inputs: Tensor, number: int) -> float:
    """Spikes that those of a layer would make by themselves in the next step, over theirs; 1 for a silent layer."""
    state, spikes = branch.rest(inputs[:, 0]), []
    for step in inputs.unbind(1):
        branch(step, state)
        spikes.append(state[number][0])
    parents, neuron = torch.cat(spikes), branch.neurons[number]
    children = (parents @ neuron.recurrent.weight.T > neuron.threshold).double().sum()
    return float(children) / float(parents.detach().sum()) if bool(parents.any()) else 1.0


def solve_remembering(data: Splits, widths: Sequence[int], outputs: int, seed: int, **options: Any) -> tuple[SequenceNet, Report]:
    """Solve the unrolled net and write the recurrent one.

    Raises:
        RuntimeError: the recurrent net's scores are not the unrolled one's.
    """
    steps, size = data.train.inputs.shape[1:]
    torch.manual_seed(seed)
    unrolled = Unrolled(steps, size, widths, outputs)
    report = convex(unrolled, data, ["auto"], hidden="reconstruct", seed=seed, **options)
    net, few = remembering(unrolled, steps, size), data.validation.inputs
    promised, found = scores_of(unrolled, few), scores_of(net, few)
    same = (promised - found).abs().amax(1) <= _ROUNDING * float(promised.abs().max())
    if (~same).double().mean() > _FLIPPED:
        raise RuntimeError(f"the recurrent net's scores differ from the unrolled one's on {int((~same).sum())} samples")
    return net, report
