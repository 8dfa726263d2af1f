"""Output neurons with a leak or a threshold each: one temporal filter an output."""

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time

from ..convex.helpers import LOSS_FORMULAS
from ..helpers import accuracy, batches, hidden_spikes, test_data, train_data, values
from ..nets import CLASSES, HIDDEN, PIXELS, STEPS, loop_net, sequential_net, spikes_and_membranes
from .own_tests import own_test, spikes_of

BETAS = torch.linspace(0.2, 0.98, CLASSES)


def output_net(beta=BETAS, **options):
    return loop_net(output=snn.Leaky(beta=beta, reset_mechanism="none", **options))


def filters_by_hand(steps=STEPS, per_step=False):
    """(C, T, T) weight of a spike at each step (last axis) in each membrane, or its mean over steps (C, T)."""
    later = torch.arange(steps)[:, None] - torch.arange(steps)
    membranes = torch.where(later >= 0, BETAS.double()[:, None, None] ** later.clamp_min(0), 0.0)
    return membranes if per_step else membranes.mean(1)


def gap_by_hand(net, loss, strength, per_step=False):
    """Primal less dual value of a ridge readout as it stands, over the loss at zero: features of each output built by hand."""
    inputs, labels = train_data()
    spikes = hidden_spikes(net.fc1, inputs).double()
    filters = filters_by_hand(per_step=per_step)
    rows = STEPS if per_step else 1
    features = torch.einsum("cst,tnp->cnsp" if per_step else "ct,tnp->cnp", filters, spikes).reshape(CLASSES, -1, HIDDEN).numpy()
    column = np.tile(filters.sum(-1).T.numpy() if per_step else filters.sum(-1)[None].numpy(), (len(inputs), 1))
    formulas = LOSS_FORMULAS[loss]
    targets = formulas.encode(labels.repeat_interleave(rows).numpy(), CLASSES)
    weight, bias = net.fc2.weight.detach().double().numpy(), net.fc2.bias.detach().double().numpy()
    scores = np.stack([features[c] @ weight[c] + column[:, c] * bias[c] for c in range(CLASSES)], 1)
    primal = formulas.value(scores, targets).mean() + 0.5 * strength * (weight**2).sum()
    dual_rows = formulas.gradient(scores, targets)
    gradient = np.stack([dual_rows[:, c] @ features[c] for c in range(CLASSES)]) / len(targets)
    assert np.abs((dual_rows * column).mean(0)).max() < 1e-4  # the bias is solved, and the dual point feasible, to single precision
    dual = -formulas.conjugate(dual_rows, targets).mean() - (gradient**2).sum() / (2 * strength)
    return primal, (primal - dual) / formulas.value(0 * scores, targets).mean()


@pytest.mark.parametrize(("loss", "learned"), [("cross_entropy", True), ("squared_hinge", False)])
def test_the_certificate_is_that_of_features_built_by_hand(loss, learned):
    net = output_net(learn_beta=learned)
    before = values(net)
    report = convex_init_(net, batches(), loss=loss, fit_loss="same", strength=1e-3, hidden="keep")
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference < 1e-4
    assert report.certificate.reached
    primal, gap = gap_by_hand(net, loss, 1e-3)
    assert report.certificate.primal == pytest.approx(primal, rel=1e-6)
    assert abs(gap) < 1e-5
    assert torch.equal(net.lif2.beta.detach(), BETAS)
    report.undo()
    assert values(net) == before


def test_scores_at_every_step_too():
    net = output_net()
    report = convex_init_(net, batches(), readout="membrane_per_step", strength=1e-2, hidden="keep", tol=1e-4)
    assert (report.exactness.label, report.readout.kind) == ("exact", "membrane_per_step")
    primal, gap = gap_by_hand(net, "cross_entropy", 1e-2, per_step=True)
    assert report.certificate.primal == pytest.approx(primal, rel=1e-6)
    assert abs(gap) < 2e-4


@pytest.mark.usefixtures("two_rates")
def test_gains_of_several_hidden_layers_are_chosen_through_the_readout():
    net = sequential_net(sizes=(PIXELS, 24, 24, CLASSES), beta=BETAS)
    report = convex_init_(net, batches(200), forward=over_time(5), hidden="rescale", strength=1e-2)
    assert report.exactness.max_difference < 1e-4
    assert all(layer.gain > 1 for layer in report.layers)


def test_a_maximum_over_time():
    net = output_net(torch.linspace(0.8, 0.95, CLASSES))
    report = convex_init_(net, batches(), readout="membrane_max", hidden="keep", strength=1e-2)
    inputs, labels = test_data()
    with torch.no_grad():
        decided = net(inputs).amax(0).argmax(1)
    assert report.exactness.label == "majorised"
    assert float((decided == labels).double().mean()) > 0.8


def test_spikes_decide_as_the_linear_score_does():
    output = snn.Leaky(beta=BETAS, threshold=torch.linspace(2.0, 0.5, CLASSES), learn_threshold=True)
    torch.manual_seed(0)
    net = loop_net(steps=25, output=output, decode=spikes_and_membranes)
    report = convex_init_(net, batches(), hidden="reconstruct")
    assert report.readout.kind == "spike_count"
    assert report.exactness.agreement > 0.93
    assert own_test(net, spikes_of, test_data()) > 0.88


def test_norse_integrators_with_a_time_constant_each():
    norse = pytest.importorskip("norse.torch")
    p = norse.LIParameters(tau_mem_inv=torch.linspace(50.0, 200.0, CLASSES), v_leak=torch.tensor(0.3))
    torch.manual_seed(0)
    net = norse.SequentialState(nn.Linear(PIXELS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LICell(p=p))
    forward = over_time(20)
    report = convex_init_(net, batches(300), forward=forward, hidden="reconstruct", strength=1e-3)
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference < 1e-3
    assert report.certificate.reached
    assert accuracy(net, forward) > 0.85
