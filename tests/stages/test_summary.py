"""What the report says of samples."""

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, batches, loop_net, train_data


@pytest.mark.parametrize("fit_loss", ["squared_hinge", "same"])
def test_hardness_and_losses_are_those_of_the_network(fit_loss):
    """Probabilities include the temperature, which a squared hinge needs."""
    net, loss, (inputs, labels) = loop_net(), nn.CrossEntropyLoss(torch.linspace(1, 9, CLASSES)), train_data(300)
    held = split_samples(300, 0.2, 0).heldout
    with torch.no_grad():
        before = loss(net(inputs[held]).mean(0), labels[held])
    report = convex_init_(net, batches(300), loss=loss, hidden="keep", fit_loss=fit_loss, progress=False)
    assert report.loss_before == pytest.approx(float(before), rel=1e-4)
    report.write_solved()
    with torch.no_grad():
        right = net(inputs).mean(0).softmax(1).gather(1, labels[:, None])[:, 0]
    found, hardness = report.hardness
    assert torch.equal(found, labels)
    torch.testing.assert_close(hardness, 1 - right, atol=1e-3, rtol=0)
