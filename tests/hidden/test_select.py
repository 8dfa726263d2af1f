"""Selection: which candidates come first, and at what price; and the convex optimum on small problems."""

import itertools

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.hidden.select import find_usable, select
from snn_recon_plugin.hidden.simulate import SimulatedLayer
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks.calls.calls import FilteredSpikes
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..convex.helpers import collinear, labels
from ..nets import Series


def lasso(emitted, targets, loss="squared_hinge", outputs=3):
    return Problem(Features(emitted.features), targets, loss=loss, penalty="group_l1", num_outputs=outputs)


def made(features):
    return FilteredSpikes(features.float(), (features > 0).float().mean(0), 1)


@pytest.mark.parametrize("samples", [120, 60])
def test_candidates_that_nearly_span_each_other_are_ordered_twice_alike(samples):
    """Also with fewer samples than candidates, from a matrix of samples."""
    program = lasso(made(collinear(0, 120, 80, decay=0.98)[:samples]), labels(1, samples, 3))
    found, again = (select(program, 40) for _ in range(2))
    assert sorted(found.order.tolist()) == list(range(80))
    assert torch.equal(found.order, again.order)
    assert 0 < found.used <= 52


@pytest.mark.parametrize("samples", [300, 40])
def test_the_weights_are_those_of_the_group_lasso(samples, monkeypatch):
    """Against the certified solution of the same program, at a strength that uses a few candidates."""
    classes = labels(0, samples, 3)
    features = (torch.rand(samples, 60, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    features[:, :3] = ((torch.nn.functional.one_hot(classes) + features[:, :3]) > 0).float()
    monkeypatch.setattr("snn_recon_plugin.hidden.select.STRENGTH", 0.2)
    program = lasso(made(features), classes, "squared")
    selection = select(program, 40)
    solution = solve(program.with_strength(selection.strength))
    sizes = solution.weight.norm(dim=0)
    assert selection.strength == pytest.approx(0.2 * program.critical_strength(), rel=1e-4)
    assert set(selection.order[:3].tolist()) == set(sizes.argsort(descending=True)[:3].tolist())
    assert set((sizes > 0.3 * sizes.max()).nonzero()[:, 0].tolist()) <= set(selection.order[: selection.used].tolist())


def test_dead_always_on_and_double_candidates_are_dropped_and_counted():
    some = torch.tensor([0.0, 1.0, 0.0, 2.0])
    features = torch.stack([some, torch.zeros(4), torch.ones(4), some, 2 - some], 1)
    kept, counts = find_usable(FilteredSpikes(features, torch.tensor([0.4, 0, 1, 0.4, 0.5]), 1))
    assert kept.tolist() == [0, 4]
    assert counts == {"dead": 1, "always on": 1, "double": 1}


def test_the_candidate_that_tells_the_classes_is_wanted_most():
    classes = torch.arange(60) % 3
    noise = (torch.rand(60, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    noise[:, 5] = (classes == 1).float()
    noise[:, 8] = (classes == 2).float()
    order = select(lasso(made(noise), classes), 12).order.tolist()
    assert set(order[:2]) == {5, 8}
    assert sorted(order) == list(range(12))


def test_where_fewer_are_used_than_needed_the_price_decides(monkeypatch):
    classes = torch.arange(60) % 2
    useful, weaker = (classes == 1).float(), (classes == 1).float()
    weaker[:20] = 0.5
    noise = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(15)
    program = lasso(made(torch.stack([noise, weaker, useful], 1)), classes, outputs=2)
    monkeypatch.setattr("snn_recon_plugin.hidden.select.STRENGTH", 0.4)
    selection = select(program, 3)
    assert selection.used < 3
    assert selection.order.tolist() == [2, 1, 0]


# -- the theory on problems so small that the whole dictionary of spike patterns can be listed ------------------------------
# The conditions under which a leaky neuron spikes at two steps are planes in the space of its weights and bias.  Every cell of an
# arrangement of planes has a vertex, and the cells around a vertex are reached by small moves: a neuron for each lists all
# patterns (arXiv 2605.08022, sections 3 and 4).

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


def make_net(width):
    return Series(lambda: snn.Leaky(beta=BETA), 2, width, CLASSES)


def problem(steps, samples=7):
    inputs = torch.randn(steps, samples, 2, generator=torch.Generator().manual_seed(0))
    return inputs, torch.arange(samples) % CLASSES


def run(inputs, candidates, threshold=1.0):
    """The features (n, K) that enter the readout's last membrane."""
    layer = HiddenLayer("hidden", nn.Linear(2, 1), "neuron", snn.Leaky(beta=BETA, threshold=threshold))
    filters = 0.95 ** torch.arange(len(inputs) - 1, -1, -1, dtype=torch.float64)
    return SimulatedLayer(layer, Stage(), inputs, filters[None]).run(candidates).features


def dictionary(inputs):
    candidates = Candidates(*cells(inputs))
    features = run(inputs, candidates)
    _, inverse = torch.unique(features.T, dim=0, return_inverse=True)
    first = torch.tensor([int((inverse == k).nonzero()[0]) for k in range(int(inverse.max()) + 1)])
    return candidates.take(first), features[:, first]


def test_the_list_of_patterns_is_complete():
    """n points in the plane in general position have n (n - 1) + 2 dichotomies by lines (Cover 1965)."""
    for samples in (4, 7, 12):
        assert dictionary(problem(1, samples)[0])[1].shape[1] == samples * (samples - 1) + 2


@pytest.mark.parametrize("steps", [1, 2])
def test_the_reconstructed_networks_training_loss_is_the_convex_optimum_and_the_dual_value(steps):
    inputs, labels = problem(steps)
    neurons, features = dictionary(inputs)
    column = sum(0.95**age for age in range(steps))
    program = Problem(Features(features, column), labels, penalty="group_l1", strength=STRENGTH, num_outputs=CLASSES)
    solution = solve(program, tol=1e-9)
    used = (solution.weight.norm(dim=0) > 0).nonzero()[:, 0]
    net = make_net(len(used))
    with torch.no_grad():
        net.fc1.weight.copy_(neurons.weight[used])
        net.fc1.bias.copy_(neurons.bias[used])
        net.fc2.weight.copy_(solution.weight[:, used])
        net.fc2.bias.copy_(solution.bias)
        loss = nn.functional.cross_entropy(net(inputs.movedim(1, 0))[-1].double(), labels)
        path_norm = net.fc2.weight.double().norm(dim=0).sum()
    assert float(loss + STRENGTH * path_norm) == pytest.approx(solution.certificate.dual, abs=1e-6)
    assert float(loss + STRENGTH * path_norm) == pytest.approx(solution.certificate.primal, abs=1e-6)
    assert 0 < len(used) < features.shape[1]
