"""The theory on problems so small that the whole dictionary of spike patterns can be listed (arXiv 2605.08022, sections 3 and 4).

The conditions under which a leaky neuron spikes at two steps are planes in the space of its weights and bias.  Every cell of an
arrangement of planes has a vertex, and the cells around a vertex are reached by small moves: a neuron for each lists all patterns.
"""

import itertools
from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.simulate import Simulator, run_alone
from snn_recon_plugin.networks import HiddenLayer

BETA, STRENGTH, CLASSES = 0.7, 0.02, 3


def cells(inputs):
    """Weights (K, 2) and biases (K,) of neurons that between them emit every pattern there is, for inputs (T, n, 2)."""
    steps, samples, _ = inputs.shape
    ones = torch.ones(samples, 1, dtype=torch.float64)
    first = torch.cat([inputs[0].double(), ones], 1)
    planes, offsets = [first], [torch.ones(samples, dtype=torch.float64)]
    if steps == 2:
        second = BETA * first + torch.cat([inputs[1].double(), ones], 1)
        planes += [second, second]
        offsets += [torch.ones(samples, dtype=torch.float64), 2 * torch.ones(samples, dtype=torch.float64)]
    normals, levels = torch.cat(planes), torch.cat(offsets)
    chosen = torch.tensor(list(itertools.combinations(range(len(levels)), 3)))
    matrices = normals[chosen]
    regular = torch.linalg.det(matrices).abs() > 1e-9
    matrices, right = matrices[regular], levels[chosen][regular]
    moves = torch.tensor(list(itertools.product((-1e-4, 1e-4), repeat=3)), dtype=torch.float64)
    points = torch.linalg.solve(matrices[:, None], (right[:, None] + moves)[..., None])[..., 0].reshape(-1, 3)
    return points[:, :2].float(), points[:, 2].float()


class Net(nn.Module):
    """Hidden leaky neurons, a leaky readout without reset, its last membrane."""

    def __init__(self, width):
        super().__init__()
        self.hidden, self.neuron = nn.Linear(2, width), snn.Leaky(beta=BETA)
        self.readout, self.output = nn.Linear(width, CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, inputs):
        inner, outer = self.neuron.reset_mem(), self.output.reset_mem()
        for value in inputs:
            spikes, inner = self.neuron(self.hidden(value), inner)
            _, outer = self.output(self.readout(spikes), outer)
        return outer


def task(steps, samples=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(steps, samples, 2, generator=generator)
    return inputs, torch.arange(samples) % CLASSES


def filters(steps):
    return BETA ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)


def dictionary(inputs):
    """One neuron for every pattern, and their filtered features (n, K)."""
    candidates = Candidates(*cells(inputs))
    net = Net(1)
    layer = HiddenLayer("hidden", net.hidden, "neuron", net.neuron)
    run = partial(run_alone, layer, inputs, filters(len(inputs))[None])
    simulator = Simulator(run, inputs.mean(0), inputs, False)
    features = simulator.run(candidates).features[:, :, 0]
    _, inverse = torch.unique(features.T, dim=0, return_inverse=True)
    first = torch.tensor([int((inverse == k).nonzero()[0]) for k in range(int(inverse.max()) + 1)])
    return candidates.take(first), features[:, first], simulator


def program(features, labels, steps):
    column = float(filters(steps).sum())
    return Problem(Features(features, column), labels, penalty="group_l1", strength=STRENGTH, num_outputs=CLASSES)


def test_the_list_of_patterns_is_complete():
    """n points in the plane in general position have n (n - 1) + 2 dichotomies by lines (Cover 1965)."""
    for samples in (4, 7, 12):
        inputs, _ = task(1, samples)
        assert dictionary(inputs)[1].shape[1] == samples * (samples - 1) + 2


def test_no_neuron_drawn_by_chance_emits_a_pattern_that_is_not_listed():
    inputs, _ = task(2)
    _, features, simulator = dictionary(inputs)
    generator = torch.Generator().manual_seed(1)
    drawn = simulator.run(Candidates(3 * torch.randn(20000, 2, generator=generator), 2 * torch.randn(20000, generator=generator)))
    listed = {tuple(row) for row in features.T.tolist()}
    assert {tuple(row) for row in drawn.features[:, :, 0].T.tolist()} <= listed


@pytest.mark.parametrize("steps", [1, 2])
def test_the_reconstructed_networks_training_loss_is_the_convex_optimum_and_the_dual_value(steps):
    inputs, labels = task(steps)
    neurons, features, _ = dictionary(inputs)
    problem = program(features, labels, steps)
    solution = solve(problem, tol=1e-9)
    used = (solution.weight.norm(dim=0) > 0).nonzero()[:, 0]
    net = Net(len(used))
    with torch.no_grad():
        net.hidden.weight.copy_(neurons.weight[used])
        net.hidden.bias.copy_(neurons.bias[used])
        net.readout.weight.copy_(solution.weight[:, used])
        net.readout.bias.copy_(solution.bias)
        loss = nn.functional.cross_entropy(net(inputs).double(), labels)
        path_norm = net.readout.weight.double().norm(dim=0).sum()
    assert float(loss + STRENGTH * path_norm) == pytest.approx(solution.certificate.dual, abs=1e-6)
    assert float(loss + STRENGTH * path_norm) == pytest.approx(solution.certificate.primal, abs=1e-6)
    assert 0 < len(used) < features.shape[1]


def test_scaling_a_neurons_weights_and_threshold_together_changes_nothing():
    inputs, _ = task(2)
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(20, 2, generator=generator), torch.randn(20, generator=generator)
    for factor in (0.25, 8.0):  # powers of two: without rounding
        patterns = []
        for scale in (1.0, factor):
            neuron = snn.Leaky(beta=BETA, threshold=scale)
            layer = HiddenLayer("hidden", nn.Linear(2, 1), "neuron", neuron)
            emitted = run_alone(layer, inputs, filters(2)[None], Candidates(scale * weight, scale * bias))
            patterns.append(emitted.features)
        assert torch.equal(*patterns)
