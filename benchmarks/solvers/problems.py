"""Features and labels of the solver study, made once and kept in a folder for temporary files (700 MB).

A  the paper's setting: sequential MNIST in T=4 pieces, random Gaussian threshold neurons, binary membranes, n=6000, P=1024
B  a 784-1000-10 snnTorch net after one epoch of surrogate gradients, its hidden spikes through the readout's filter, n=6000
C  B with all 60,000 images
E  B with squared loss
G  the default program, squared hinge or cross-entropy with ridge: B's features, binary spikes, made counts of 100 classes
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.paper.nets import Branch
from benchmarks.solvers.measure import Task
from benchmarks.tasks import load_mnist_data
from snn_recon_plugin.demo import build_network, train_epoch

SEED = 0  # of networks and made counts
CACHE = Path(tempfile.gettempdir()) / "snn_recon_solvers"
_MANY, _SEEN, _WIDTH = 60_000, 10_000, 1000  # images, images of the training, hidden neurons
_BETA, _STEPS = 0.95, 25  # of build_network's neurons, and the steps of its runs
_ROWS = 1000  # samples a batch of the forward passes


def strengths_of(penalty: str) -> tuple[float, ...]:
    """Return the strengths to measure, the largest first."""
    return (1e-1, 1e-2, 1e-3) if penalty == "ridge" else (3e-3, 1e-3, 1e-4)


def cached(name: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a pair of tensors, made now if there is no file of it."""
    path = CACHE / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    found: tuple[Tensor, Tensor] = torch.load(path, mmap=True)
    return found


def sparse_tasks(root: str) -> list[Task]:
    """Problems A, B, C and E."""
    sparse = ("l1", "group_l1")
    spikes = partial(cached, "sequential", partial(_sequential_mnist, root, 6000, (512, 1024)))
    net, trained = "surrogate-trained 784-1000-10 net", partial(cached, "surrogate", partial(_trained_features, root))
    return [
        Task("A", "cross_entropy", 10, 6000, 1024, spikes, "paper's setting, binary features", sparse),
        Task("B", "cross_entropy", 10, 6000, _WIDTH, trained, net, sparse),
        Task("C", "cross_entropy", 10, _MANY, _WIDTH, trained, "B with all images", sparse),
        Task("E", "squared", 10, 6000, _WIDTH, trained, "B with squared loss", sparse),
    ]


def default_tasks(root: str) -> list[Task]:
    """Problem G: two losses on filtered spikes (float32), binary spikes (uint8) and made counts of 100 classes (uint8)."""
    trained = partial(cached, "surrogate", partial(_trained_features, root))
    spikes = partial(cached, "spikes", partial(_sequential_mnist, root, _MANY, (512, _WIDTH)))
    kinds = [
        ("filtered-5k", 10, 5000, _WIDTH, trained, "filtered spikes of a surrogate-trained net, float32"),
        ("filtered-60k", 10, _MANY, _WIDTH, trained, "the same of all images, float32"),
        ("spikes-5k", 10, 5000, _WIDTH, spikes, "binary spikes, uint8"),
        ("spikes-60k", 10, _MANY, _WIDTH, spikes, "binary spikes of all images, uint8"),
        ("counts-100", 100, 8000, 2000, partial(_made_counts, 8000, 2000, 100), "made spike counts of 100 classes, uint8"),
    ]
    losses = ("squared_hinge", "cross_entropy")
    return [Task(f"G-{name}-{loss}", loss, *rest) for name, *rest in kinds for loss in losses]


def _sequential_mnist(root: str, samples: int, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """MNIST's 784 pixels in 4 steps of 196."""
    data = load_mnist_data(root, samples)
    return _threshold_features(data.train_inputs.reshape(samples, 4, 196), widths, SEED), data.train_labels


@torch.no_grad()
def _threshold_features(inputs: Tensor, widths: Sequence[int], seed: int) -> Tensor:
    """Last membranes at or above zero of a recurrent threshold network with standard normal weights, (n, P) of 0 and 1.

    Our reading of the paper's dictionary: ``m <- leak m + W s_below + V s_own - threshold s_own`` with the layer's own spikes of
    the step before, no biases, and for the last layer the sign of its membrane after the last step.
    """
    branch, generator = Branch(inputs.shape[2], widths, [True] * len(widths)), torch.Generator().manual_seed(seed)
    for part in (*branch.synapses, *(neuron.recurrent for neuron in branch.neurons)):
        part.weight.normal_(generator=generator)
    parts = []
    for batch in inputs.split(_ROWS):
        state = branch.rest(batch[:, 0])
        for step in batch.unbind(1):
            _, membranes = branch(step, state)
        parts.append((membranes >= 0).to(torch.uint8))
    return torch.cat(parts)


def _trained_features(root: str) -> tuple[Tensor, Tensor]:
    """Hidden spikes through the filter of a mean membrane that decays by beta: the readout's exact features."""
    torch.manual_seed(SEED)
    net = build_network(784, _WIDTH, 10, _STEPS)
    train_epoch(net, load_mnist_data(root, _SEEN), 5e-4, 128)
    data = load_mnist_data(root, _MANY)
    return torch.cat([filtered_spikes(net, inputs) for inputs in data.train_inputs.split(_ROWS)]), data.train_labels


@torch.no_grad()
def filtered_spikes(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the features of the readout of ``build_network``, (n, P)."""
    current, membrane = net.fc1(inputs), net.lif1.reset_mem()
    trace = total = torch.zeros_like(current)
    for _ in range(_STEPS):
        spikes, membrane = net.lif1(current, membrane)
        trace = _BETA * trace + spikes
        total = total + trace
    return total / _STEPS


def _made_counts(samples: int, columns: int, classes: int) -> tuple[Tensor, Tensor]:
    """Binomial counts of 20 steps whose rates follow 20 latent numbers: the class's prototype and noise of its size."""
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(samples) % classes
    latent = torch.randn(classes, 20, generator=generator)[labels] + torch.randn(samples, 20, generator=generator)
    rates = torch.sigmoid(latent @ torch.randn(20, columns, generator=generator) / 20**0.5 - 2)
    counts = torch.zeros(samples, columns, dtype=torch.uint8)
    for _ in range(20):
        counts += (torch.rand(samples, columns, generator=generator) < rates).to(torch.uint8)
    return counts, labels
