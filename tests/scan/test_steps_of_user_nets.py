"""Nets as users write them give the same outputs and gradients with faster steps."""

import pytest
import torch

from snn_recon_plugin import fast_steps
from snn_recon_plugin.networks.calls.batches import tensors_in
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.libraries import reset_states
from snn_recon_plugin.networks.private.quiet import seeded
from snn_recon_plugin.networks.private.workbench import private_copy

from ..user_nets.catalogue import GROUPS
from ..user_nets.data import digits
from ..user_nets.record import TYPED

LEFT_OUT = ("no convex readout", "nets to change", "lines to change")
# Of these each has the hidden layers and the loop of another net of the list.
NEIGHBOURS = ("behind the readout", "outputs and losses", "inputs and calls", "one output", "values")
ENTRIES = {entry.name: (entry, group) for group, nets in GROUPS.items() if group not in LEFT_OUT for entry in nets}


def outputs(net, inputs, forward):
    reset_states(net)
    with seeded(0, net):
        return [value.detach() for value in tensors_in(forward(net, inputs))]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if group in NEIGHBOURS else name for name, (_, group) in ENTRIES.items()]
)
@pytest.mark.filterwarnings("ignore:.*(weight_norm|Inhibition)")
def test_outputs_and_gradients_are_the_same(name):
    (entry, _), (train, _) = ENTRIES[name], digits(train=200)  # two batches
    torch.manual_seed(0)
    net = entry.build()
    options = eval(f"dict({entry.options})", {**TYPED, **entry.names})
    forward, unpack = options.get("forward", plain_forward), options.get("unpack", lambda batch: batch)
    batches = list(entry.loader(entry.order(train)))[:2]
    with fast_steps(net, batches, forward=forward, unpack=unpack) as handle:
        assert handle.difference < 1e-5
        copied = private_copy(net)
        for batch in (*batches, *batches):
            inputs = unpack(batch)[0]
            torch.testing.assert_close(outputs(net, inputs, forward), outputs(copied, inputs, forward), rtol=1e-5, atol=1e-5)
