"""Features and labels of the solver study, made once and kept as .npy files outside the repository.

A  the paper's setting: sequential MNIST in T=4 pieces, random Gaussian threshold neurons, binary membranes, n=6000, P=1024
B  a 784-1000-10 snnTorch net after one epoch of surrogate gradients, its hidden spikes through the readout's filter, n=6000
C  B with all 60,000 images
D  first-last XOR of binary strings, the paper's second task, hinge, n=2000, P=1000
E  B with squared loss
F  D's membranes instead of their signs: features that nearly span each other, a quarter of full rank
G  the default program, squared hinge or cross-entropy with ridge: B's features, binary spikes, made counts of 100 classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from snn_recon_plugin.demo import build_network, load_mnist_data, train_epoch

__all__ = ["Data", "Task", "default_tasks", "growth_tasks", "large_spikes", "sparse_tasks", "strengths_of"]

GROWTH_SAMPLES = (1_000, 2_000, 5_000, 10_000, 20_000, 60_000)
GROWTH_FEATURES = (128, 256, 512, 1024, 2048, 4096)
_LEAK, _THRESHOLD = 0.99, 1.0  # the paper's
_BETA, _STEPS = 0.95, 25  # of build_network's neurons, and the steps of its runs
_ROWS = 1000  # samples a batch of the forward passes


@dataclass(frozen=True)
class Task:
    """A program without penalty and strength.

    Args:
        name: of the problem.
        loss: name of the loss.
        outputs: number C of outputs.
        stem: path of the files STEM-features.npy and STEM-labels.npy (int64), without the ends.
        rows: number of samples, from the first.
        columns: number of features, from the first.
        about: one line for the table's caption.
    """

    name: str
    loss: str
    outputs: int
    stem: str
    rows: int
    columns: int
    about: str

    @property
    def penalties(self) -> tuple[str, ...]:
        """Penalties to measure."""
        return ("ridge",) if self.name.startswith("G") else ("l1", "group_l1")

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Read features (n, P), float32 or uint8, and labels (n,)."""
        stored = np.load(f"{self.stem}-features.npy", mmap_mode="r")
        features = np.array(stored[: self.rows, : self.columns], order="C")
        return features, np.load(f"{self.stem}-labels.npy")[: self.rows]


def strengths_of(penalty: str) -> tuple[float, ...]:
    """Return the strengths to measure, the largest first."""
    return (1e-1, 1e-2, 1e-3) if penalty == "ridge" else (3e-3, 1e-3, 1e-4)


class Data:
    """Makes the features that a task needs, unless the cache holds them.

    Args:
        root: where torchvision finds MNIST.
        cache: folder of the files.
        seed: of networks, strings and made counts.
        tiny: hundreds of samples and dozens of features of the same kinds, to try the machinery.
    """

    def __init__(self, root: str, cache: Path, seed: int, tiny: bool = False) -> None:
        self.root, self.cache, self.seed, self.tiny = root, cache, seed, tiny
        cache.mkdir(parents=True, exist_ok=True)

    def size(self, usual: int, tiny: int) -> int:
        return tiny if self.tiny else usual

    def stem(self, name: str, make: Callable[[], tuple[Tensor, Tensor]]) -> str:
        """Return the path of a pair of files, made now if the labels, which are written last, are missing."""
        stem = self.cache / f"{name}{'-tiny' if self.tiny else ''}-{self.seed}"
        if not Path(f"{stem}-labels.npy").exists():
            features, labels = make()
            np.save(f"{stem}-features.npy", features.contiguous().numpy())
            np.save(f"{stem}-labels.npy", labels.long().numpy())
        return str(stem)

    def trained(self) -> str:
        """Filtered spikes of a net that has seen one epoch of surrogate gradients, float32."""
        many, seen, width = self.size(60_000, 600), self.size(10_000, 1000), self.size(1000, 50)
        return self.stem("surrogate", lambda: _trained_features(self.root, many, seen, width, self.seed))

    def spikes(self, name: str, samples: int, columns: int) -> str:
        """Binary states of a threshold network's last layer on sequential MNIST, uint8."""
        hidden = self.size(512, 64)
        return self.stem(name, lambda: _sequential_mnist(self.root, samples, (hidden, columns), self.seed))

    def strings(self, name: str, signs: bool) -> str:
        """First-last XOR through four threshold layers."""
        few, widths = self.size(2000, 300), (self.size(500, 64),) * 3 + (self.size(1000, 50),)
        return self.stem(name, lambda: _first_last_xor(8, few, widths, self.seed, signs))


def sparse_tasks(data: Data) -> list[Task]:
    """Problems A to F."""
    few, many, wide = data.size(6000, 300), data.size(60_000, 600), data.size(1024, 50)
    strings, width = data.size(2000, 300), data.size(1000, 50)
    entropy, trained, net = "cross_entropy", data.trained(), "surrogate-trained 784-1000-10 net"
    xor = "first-last XOR, T=8, 4 hidden layers, hinge"
    return [
        Task("A", entropy, 10, data.spikes("sequential", few, wide), few, wide, "paper's setting, binary features"),
        Task("B", entropy, 10, trained, few, width, net),
        Task("C", entropy, 10, trained, many, width, "B with all images"),
        Task("D", "hinge", 1, data.strings("xor", signs=True), strings, width, xor),
        Task("E", "squared", 10, trained, few, width, "B with squared loss"),
        Task("F", "hinge", 1, data.strings("membranes", signs=False), strings, width, "D's membranes, nearly dependent, hinge"),
    ]


def default_tasks(data: Data) -> list[Task]:
    """Problem G: two losses on filtered spikes (float32), binary spikes (uint8) and made counts of 100 classes (uint8)."""
    few, many, width = data.size(5000, 300), data.size(60_000, 600), data.size(1000, 50)
    made = (data.size(8000, 600), data.size(2000, 60), data.size(100, 12))
    trained, spikes = data.trained(), data.spikes("spikes", many, width)
    counts = data.stem("counts", lambda: _made_counts(*made, data.seed))
    kinds = [
        ("filtered-5k", 10, trained, few, width, "filtered spikes of a surrogate-trained net, float32"),
        ("filtered-60k", 10, trained, many, width, "the same of all images, float32"),
        ("spikes-5k", 10, spikes, few, width, "binary spikes, uint8"),
        ("spikes-60k", 10, spikes, many, width, "binary spikes of all images, uint8"),
        ("counts-100", made[2], counts, made[0], made[1], "made spike counts of 100 classes, uint8"),
    ]
    losses = ("squared_hinge", "cross_entropy")
    return [Task(f"G-{name}-{loss}", loss, *rest) for name, *rest in kinds for loss in losses]


def growth_tasks(data: Data) -> list[Task]:
    """C's features for growing n, and those of a wider A for growing P; each is the first rows or columns of one matrix."""
    width, few = data.size(1000, 50), data.size(6000, 300)
    samples = (150, 300, 600) if data.tiny else GROWTH_SAMPLES
    widths = (16, 32, 64) if data.tiny else GROWTH_FEATURES
    whole = Task("", "cross_entropy", 10, data.trained(), max(samples), width, "first samples of C")
    wide = replace(whole, stem=data.spikes("wide", few, max(widths)), rows=few, about="first features of A, made wider")
    by_samples = [replace(whole, name=f"growth-n{rows}", rows=rows) for rows in samples]
    return by_samples + [replace(wide, name=f"growth-p{columns}", columns=columns) for columns in widths]


def large_spikes(root: str, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A's features of all 60,000 images and of a wider last layer, uint8."""
    return _sequential_mnist(root, 60_000, (512, columns), seed)


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
    """Hidden spikes through the filter of a mean membrane that decays by beta: the readout's exact features."""
    torch.manual_seed(seed)
    net = build_network(784, width, 10, _STEPS)
    train_epoch(net, load_mnist_data(root, trained_on), 5e-4, 128)
    data = load_mnist_data(root, samples)
    return torch.cat([_filtered_spikes(net, inputs) for inputs in data.train_inputs.split(_ROWS)]), data.train_labels


@torch.no_grad()
def _filtered_spikes(net: nn.Module, inputs: Tensor) -> Tensor:
    current, membrane = net.fc1(inputs), net.lif1.reset_mem()
    trace = total = torch.zeros_like(current)
    for _ in range(_STEPS):
        spikes, membrane = net.lif1(current, membrane)
        trace = _BETA * trace + spikes
        total = total + trace
    return total / _STEPS


def _made_counts(samples: int, columns: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Binomial counts of 20 steps whose rates follow 20 latent numbers: the class's prototype and noise of its size."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    latent = torch.randn(classes, 20, generator=generator)[labels] + torch.randn(samples, 20, generator=generator)
    rates = torch.sigmoid(latent @ torch.randn(20, columns, generator=generator) / 20**0.5 - 2)
    counts = torch.zeros(samples, columns, dtype=torch.uint8)
    for _ in range(20):
        counts += (torch.rand(samples, columns, generator=generator) < rates).to(torch.uint8)
    return counts, labels
