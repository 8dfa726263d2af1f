"""Output neurons with a leak or a threshold each: the mean filter is solved, and currents are scaled for each output."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError

from ..helpers import accuracy, batches, test_data, values
from ..nets import CLASSES, HIDDEN, PIXELS, loop_net, sequential_net, spikes_and_membranes
from .own_tests import own_test, spikes_of

BETAS = torch.linspace(0.2, 0.98, CLASSES)


def output_net(beta=BETAS, **options):
    return loop_net(output=snn.Leaky(beta=beta, reset_mechanism="none", **options))


def share_right(decode, net):
    inputs, labels = test_data()
    with torch.no_grad():
        return float((decode(net(inputs)).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("learned", [True, False])
def test_membranes_decide_as_the_linear_score_does(learned):
    net = output_net(learn_beta=learned)
    before = values(net)
    report = convex_init_(net, batches(), hidden="keep")
    assert report.exactness.label == "surrogate"
    assert report.exactness.agreement > 0.93
    assert report.certificate.reached
    assert share_right(lambda membranes: membranes.mean(0), net) > 0.85
    assert torch.equal(net.lif2.beta.detach(), BETAS)
    report.undo()
    assert values(net) == before


def test_slower_outputs_get_smaller_weights():
    """Outputs that differ in nothing but a leak each get what the mean filter would, over their answers to a constant current."""
    net = output_net()
    report = convex_init_(net, batches(), hidden="keep", strength=1e-3)
    answers = torch.stack([(1 - beta ** torch.arange(1.0, 1 + net.steps)).sum() / (1 - beta) for beta in BETAS])
    program = net.fc2.weight.detach() * answers[:, None] / answers.mean()
    assert report.exactness.agreement > 0.93
    assert float(program.norm(dim=1).max() / program.norm(dim=1).min()) < 3
    assert float((written := net.fc2.weight.detach().norm(dim=1)).max() / written.min()) > 3


def test_scores_at_every_step_too():
    report = convex_init_(output_net(), batches(), readout="membrane_per_step", strength=1e-2, hidden="keep", tol=1e-4)
    assert (report.exactness.label, report.readout.kind) == ("surrogate", "membrane_per_step")
    assert report.exactness.agreement > 0.9


@pytest.mark.usefixtures("two_rates")
def test_gains_of_several_hidden_layers_are_chosen_through_the_readout():
    net = sequential_net(sizes=(PIXELS, 24, 24, CLASSES), beta=BETAS)
    report = convex_init_(net, batches(200), forward=over_time(5), hidden="rescale", strength=1e-2)
    assert report.exactness.label == "surrogate"
    assert all(layer.gain > 1 for layer in report.layers)


def test_a_maximum_over_time():
    net = output_net(torch.linspace(0.8, 0.95, CLASSES))
    report = convex_init_(net, batches(), readout="membrane_max", hidden="keep", strength=1e-2)
    assert report.exactness.label == "surrogate"
    assert share_right(lambda membranes: membranes.amax(0), net) > 0.8


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
    assert report.exactness.label == "surrogate"
    assert report.certificate.reached
    assert accuracy(net, forward) > 0.85


def test_values_need_one_leak():
    inputs, labels = batches(300)[0]
    with pytest.raises(DataError, match="one leak for all outputs"):
        convex_init_(output_net(), [(inputs, nn.functional.one_hot(labels, CLASSES).float())], loss="squared", hidden="keep")
