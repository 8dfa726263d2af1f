"""The programs that solvers are timed on: features and labels, made once and kept as .npy files outside the repository.

A  the paper's setting: sequential MNIST in T=4 pieces, random Gaussian threshold neurons, binary membranes, n=6000, P=1024
B  a 784-1000-10 snnTorch net after one epoch of surrogate gradients, its hidden spikes through the readout's filter, n=6000
C  B with all 60,000 images
D  first-last XOR of binary strings, the paper's second task, hinge, n=2000, P=1000
E  B with squared loss
F  D's membranes themselves instead of their signs: features that nearly span each other, a quarter of full rank
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.demo import build_network, load_mnist_data, train_epoch
from snn_recon_plugin.networks import capture, few_samples, inspect_network, plain_forward, resolve_readout

__all__ = ["PENALTIES", "PROBLEMS", "STRENGTHS", "Task", "growth_tasks", "large_spikes", "make_task"]

PENALTIES = ("l1", "group_l1")
STRENGTHS = (3e-3, 1e-3, 1e-4)
PROBLEMS = ("A", "B", "C", "D", "E", "F")
GROWTH_SAMPLES = (1_000, 2_000, 5_000, 10_000, 20_000, 60_000)
GROWTH_FEATURES = (128, 256, 512, 1024, 2048, 4096)
_LEAK, _THRESHOLD = 0.99, 1.0  # the paper's
_ROWS = 1000  # samples a batch of the forward passes


@dataclass(frozen=True)
class Task:
    """A program without its penalty: where its data lie and what is read of them.

    Args:
        name: of the problem.
        loss: name of the loss.
        outputs: number C of outputs.
        folder: the cache.
        data: stem of the files NAME-features.npy (float32) and NAME-labels.npy (int64) in it.
        rows: how many of the samples are taken, from the first.
        columns: how many of the features.
        about: one line for the table's caption.
    """

    name: str
    loss: str
    outputs: int
    folder: Path
    data: str
    rows: int
    columns: int
    about: str

    @property
    def features_file(self) -> Path:
        return self.folder / f"{self.data}-features.npy"

    @property
    def labels_file(self) -> Path:
        return self.folder / f"{self.data}-labels.npy"


def make_task(name: str, root: str, cache: Path, seed: int, tiny: bool = False) -> Task:
    """A problem's data, from the cache or made now.

    Args:
        name: one of PROBLEMS.
        root: where torchvision finds MNIST.
        cache: where the files go.
        seed: of the networks and of the strings.
        tiny: 300 samples and 50 features of the same kinds, to try the machinery.
    """
    cache.mkdir(parents=True, exist_ok=True)
    mark = f"-tiny-{seed}" if tiny else f"-{seed}"
    few, width = (300, 50) if tiny else (6000, 1000)
    if name == "A":
        columns = 50 if tiny else 1024
        _once(cache, f"sequential{mark}", lambda: _sequential_mnist(root, few, (64, columns) if tiny else (512, columns), seed))
        return Task(name, "cross_entropy", 10, cache, f"sequential{mark}", few, columns, "paper's setting, binary features")
    if name in ("D", "F"):
        few, columns = (300, 50) if tiny else (2000, 1000)
        hidden, stem = (64,) * 3 if tiny else (500,) * 3, f"{'xor' if name == 'D' else 'membranes'}{mark}"
        _once(cache, stem, lambda: _first_last_xor(8, few, (*hidden, columns), seed, signs=name == "D"))
        about = {"D": "first-last XOR, T=8, 4 hidden layers, hinge", "F": "D's membranes, nearly dependent, hinge"}[name]
        return Task(name, "hinge", 1, cache, stem, few, columns, about)
    many = 600 if tiny else 60_000
    _once(cache, f"surrogate{mark}", lambda: _trained_features(root, many, 1000 if tiny else 10_000, width, seed))
    rows, loss = many if name == "C" else few, "squared" if name == "E" else "cross_entropy"
    about = {"B": "surrogate-trained 784-1000-10 net", "C": "B with all images", "E": "B with squared loss"}[name]
    return Task(name, loss, 10, cache, f"surrogate{mark}", rows, width, about)


def growth_tasks(root: str, cache: Path, seed: int, tiny: bool = False) -> list[Task]:
    """C's features for growing n, and those of a wider A for growing P; each is the first rows or columns of one matrix."""
    whole = make_task("C", root, cache, seed, tiny)
    samples = (150, 300, 600) if tiny else GROWTH_SAMPLES
    tasks = [replace(whole, name=f"growth-n{rows}", rows=rows, about="first samples of C") for rows in samples]
    widths, few = ((16, 32, 64), 300) if tiny else (GROWTH_FEATURES, 6000)
    stem = f"wide{'-tiny' if tiny else ''}-{seed}"
    _once(cache, stem, lambda: _sequential_mnist(root, few, (64 if tiny else 512, max(widths)), seed))
    wide = Task("", "cross_entropy", 10, cache, stem, few, max(widths), "first features of A, made wider")
    return tasks + [replace(wide, name=f"growth-p{columns}", columns=columns) for columns in widths]


def large_spikes(root: str, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A's features of all 60,000 images and of a wider last layer, uint8."""
    features, labels = _sequential_mnist(root, 60_000, (512, columns), seed)
    return features, labels


def _once(cache: Path, stem: str, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Makes features and labels unless the cache has both; the labels are written last, so that they vouch for the features."""
    if (cache / f"{stem}-labels.npy").exists():
        return
    features, labels = make()
    np.save(cache / f"{stem}-features.npy", features.float().contiguous().numpy())
    np.save(cache / f"{stem}-labels.npy", labels.long().numpy())


def _sequential_mnist(root: str, samples: int, widths: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """MNIST's 784 pixels in 4 steps of 196."""
    data = load_mnist_data(root, samples)
    return _threshold_features(data.train_inputs.reshape(samples, 4, 196), widths, seed), data.train_labels


def _first_last_xor(length: int, samples: int, widths: Sequence[int], seed: int, signs: bool) -> tuple[Tensor, Tensor]:
    """Binary strings whose label is the first bit XOR the last, as many of either label.

    A bit enters as +1 or -1: without biases a string of zeros would leave every neuron silent.
    """
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (samples, length), generator=generator)
    labels = torch.arange(samples) % 2
    bits[:, -1] = bits[:, 0] ^ labels
    return _threshold_features(2.0 * bits[:, :, None] - 1, widths, seed + 1, signs), labels


def _threshold_features(inputs: Tensor, widths: Sequence[int], seed: int, signs: bool = True) -> Tensor:
    """Last membranes at or above zero of a recurrent threshold network with standard normal weights, (n, P) of 0 and 1.

    Our reading of the paper's dictionary: ``m <- leak m + W s_below + V s_own - threshold s_own`` with the layer's own spikes of
    the step before, no biases, and for the last layer the sign of its membrane after the last step, or without ``signs`` the
    membrane itself.
    """
    generator = torch.Generator().manual_seed(seed)
    below = (inputs.shape[2], *widths[:-1])
    synapses = [torch.randn(width, size, generator=generator) for width, size in zip(widths, below, strict=True)]
    recurrent = [torch.randn(width, width, generator=generator) for width in widths]
    parts = []
    for batch in inputs.split(_ROWS):
        membranes = [torch.zeros(len(batch), width) for width in widths]
        spikes = [torch.zeros_like(membrane) for membrane in membranes]
        for step in batch.unbind(1):
            arriving = step
            for k, (feed, back) in enumerate(zip(synapses, recurrent, strict=True)):
                membranes[k] = _LEAK * membranes[k] + arriving @ feed.T + spikes[k] @ back.T - _THRESHOLD * spikes[k]
                spikes[k] = (membranes[k] >= _THRESHOLD).float()
                arriving = spikes[k]
        parts.append((membranes[-1] >= 0).to(torch.uint8) if signs else membranes[-1])
    return torch.cat(parts)


def _trained_features(root: str, samples: int, trained_on: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """What enters the readout of a net that has seen one epoch of surrogate gradients, through the readout's filter."""
    torch.manual_seed(seed)
    net = build_network(784, width, 10, 25)
    train_epoch(net, load_mnist_data(root, trained_on), 5e-4, 128)
    data = load_mnist_data(root, samples)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), _ROWS)
    few = few_samples(data.train_inputs[:_ROWS], min(_ROWS, samples), net)
    net_map = inspect_network(net, few, plain_forward)
    readout = resolve_readout(net, net_map, few, plain_forward, "membrane_mean")
    captured = capture(net, loader, net_map, readout, plain_forward)
    return captured.features, captured.targets
