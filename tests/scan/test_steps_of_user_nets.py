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
# One net for each branch of the package that nets of the list take, and for each kind of layer.
EACH_BRANCH = {
    *("quickstart: a leak an output, learned", "population code, one step", "init_hidden without Flatten"),
    *("membranes, reset none, mean", "membranes that reset to zero, spikes counted", "Synaptic"),
    *("RLeaky, one weight a neuron", "events, another number of steps in each batch", "a pruned hidden layer"),
    *("cells, last voltage", "recurrent layer, a row a step", "adaptive recurrent layer, a row a step"),
    *("cells in double precision", "spikes drawn by NumPy", "membranes that the script resets"),
    *("leaks and thresholds of hidden neurons", "graded spikes", "a latency code in forward", "spikegen.rate in forward"),
    *("a recurrent layer on a still image", "LeakyParallel, then a Linear", "a Poisson encoder"),
    *("conv_fashion_mnist: CSNN, step mode m", "all steps in the script's call, net reset behind it"),
    *("ParametricLIFNode, batch norm and dropout", "rsnn_sequential_fmnist: a recurrent container", "residual", "Conv1d"),
    *("SLSTM, membranes into a Linear", "an LSTM first", "batch norm lifted over time", "batch norm and dropout"),
    *("resets without delay", "adaptive cells under an integrator", "box cells, spikes counted"),
    *("layers on a rate code, last voltage", "LinearLeaky, spikes counted", "StateLeaky, spikes counted"),
}
ENTRIES = {entry.name: entry for group, nets in GROUPS.items() if group not in LEFT_OUT for entry in nets}
assert set(ENTRIES) >= EACH_BRANCH


def outputs(net, inputs, forward):
    reset_states(net)
    with seeded(0, net):
        return [value.detach() for value in tensors_in(forward(net, inputs))]


@pytest.mark.parametrize("name", [name if name in EACH_BRANCH else pytest.param(name, marks=pytest.mark.slow) for name in ENTRIES])
@pytest.mark.filterwarnings("ignore:.*(weight_norm|Inhibition)")
def test_outputs_and_gradients_are_the_same(name):
    entry, (train, _) = ENTRIES[name], digits(train=200)  # two batches
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
