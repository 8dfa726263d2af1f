"""What the report says of samples."""

import pytest
import torch

from snn_recon_plugin import convex_init_

from ..helpers import batches, loop_net, train_data


@pytest.mark.parametrize("fit_loss", ["squared_hinge", "same"])
def test_hardness_is_that_of_the_solved_network(fit_loss):
    """Its probabilities include the temperature, which a squared hinge needs."""
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", fit_loss=fit_loss, progress=False)
    report.write_solved()
    inputs, labels = train_data(300)
    with torch.no_grad():
        right = net(inputs).mean(0).softmax(1).gather(1, labels[:, None])[:, 0]
    found, hardness = report.hardness
    assert torch.equal(found, labels)
    torch.testing.assert_close(hardness, 1 - right, atol=1e-3, rtol=0)
