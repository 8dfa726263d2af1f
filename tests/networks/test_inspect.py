import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import (
    AmbiguousReadoutError,
    CaptureError,
    NetworkError,
    ReadoutNotFoundError,
    UnsupportedModuleError,
)
from snn_recon_plugin.networks import inspect_network, over_time, plain_forward

STEPS = 6


def names(net_map):
    return [(layer.name, layer.neuron_name) for layer in net_map.hidden], (
        net_map.readout.name,
        net_map.readout.neuron_name,
    )


def test_explicit_loop(nets, inputs):
    net = nets.Mlp()
    found = inspect_network(net, inputs, plain_forward)
    assert names(found) == ([("fc1", "lif1"), ("fc2", "lif2")], ("fc3", "lif3"))
    assert (found.library, found.num_steps, found.layout) == ("snntorch", STEPS, "steps")
    assert found.readout.module is net.fc3
    assert found.readout.neuron is net.lif3
    assert found.hidden[0].synapse is net.fc1
    assert found.hidden[0].neuron is net.lif1


def test_stepped_from_outside(nets, inputs):
    found = inspect_network(nets.sequential(), inputs, over_time(4))
    assert names(found) == ([("1", "2")], ("3", "4"))
    assert (found.num_steps, found.layout) == (4, "steps")


def test_nested(nets, inputs):
    assert names(inspect_network(nets.Nested(), inputs, over_time(3))) == ([("body.1", "body.2")], ("body.3", "body.4"))


@pytest.mark.parametrize("gain", [0.01, 1.0, 100.0], ids=["silent", "normal", "saturated"])
def test_convolutions_with_pooling_and_view(nets, images, gain):
    found = inspect_network(nets.Conv(gain), images, plain_forward)
    assert names(found) == ([("c1", "l1"), ("c2", "l2")], ("fc", "l3"))


def test_convolutions_stepped_from_outside(nets, images):
    found = inspect_network(nets.conv_sequential(), images, over_time(3))
    assert names(found) == ([("0", "2")], ("4", "5"))


def test_recurrent_weights_are_no_layer(nets, inputs):
    net = nets.Recurrent()
    found = inspect_network(net, inputs, plain_forward)
    assert names(found) == ([("fc1", "l1")], ("fc2", "l2"))
    with pytest.raises(ReadoutNotFoundError, match=r"l1\.recurrent"):
        inspect_network(net, inputs, plain_forward, readout_layer="l1.recurrent")


@pytest.mark.parametrize("gain", [0.0, 1e3], ids=["silent", "saturated"])
def test_layers_are_found_whatever_they_do_at_present(nets, inputs, gain):
    net = nets.Mlp()
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            layer.weight.mul_(gain)
            layer.bias.fill_(gain)
    assert names(inspect_network(net, inputs, plain_forward)) == (
        [("fc1", "lif1"), ("fc2", "lif2")],
        ("fc3", "lif3"),
    )


@pytest.mark.parametrize("hidden", [lambda: snn.Alpha(alpha=0.8, beta=0.6), lambda: snn.Synaptic(alpha=0.8, beta=0.6)])
def test_neurons_that_answer_a_step_late(nets, inputs, hidden):
    assert names(inspect_network(nets.Mlp(hidden=hidden), inputs, plain_forward)) == (
        [("fc1", "lif1"), ("fc2", "lif2")],
        ("fc3", "lif3"),
    )


def test_spikes_handed_on_a_step_late(nets, inputs):
    class Late(nets.Mlp):
        def forward(self, x):
            m1, m2, m3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
            z1, z2 = x.new_zeros(len(x), 16), x.new_zeros(len(x), 16)
            record = []
            for _ in range(STEPS):
                _, m3 = self.lif3(self.fc3(z2), m3)
                z2, m2 = self.lif2(self.fc2(z1), m2)
                z1, m1 = self.lif1(self.fc1(x), m1)
                record.append(m3)
            return torch.stack(record)

    found = inspect_network(Late(), inputs, plain_forward)
    assert names(found)[0] == [("fc1", "lif1"), ("fc2", "lif2")]
    assert found.readout.name == "fc3"


def test_a_plain_linear_readout(inputs):
    class Rate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif, self.fc2 = nn.Linear(10, 8), snn.Leaky(beta=0.9), nn.Linear(8, 3)

        def forward(self, x):
            mem, spk = self.lif.reset_mem(), []
            for _ in range(5):
                z, mem = self.lif(self.fc1(x), mem)
                spk.append(z)
            return self.fc2(torch.stack(spk)).mean(0)

    found = inspect_network(Rate(), inputs, plain_forward)
    assert names(found) == ([("fc1", "lif")], ("fc2", None))
    assert (found.num_steps, found.layout) == (5, "time_first")


def test_two_heads(nets, inputs):
    net = nets.TwoHeads()
    with pytest.raises(AmbiguousReadoutError, match=r"'fc_a' .*'fc_b'") as error:
        inspect_network(net, inputs, plain_forward)
    assert 'readout_layer="fc_a"' in error.value.fix
    found = inspect_network(net, inputs, plain_forward, readout_layer="fc_b")
    assert names(found) == ([("body", "lif")], ("fc_b", "lif_b"))


def test_a_head_that_goes_nowhere_is_no_candidate(nets, inputs):
    class Unused(nets.TwoHeads):
        def forward(self, x):
            return super().forward(x)[0]

    assert inspect_network(Unused(), inputs, plain_forward).readout.name == "fc_a"


def test_a_name_that_is_no_readout(nets, inputs):
    with pytest.raises(ReadoutNotFoundError, match="readout_layer='fc1'") as error:
        inspect_network(nets.Mlp(), inputs, plain_forward, readout_layer="fc1")
    assert "'fc3'" in error.value.needed
    assert error.value.fix == 'pass readout_layer="fc3"'


def test_no_linear_readout(inputs):
    net = nn.Sequential(nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 3, 10), nn.Flatten(), snn.Leaky(beta=0.9, output=True))
    with pytest.raises(ReadoutNotFoundError, match=r"'1' \(Conv1d\)"):
        inspect_network(net, inputs, over_time(3))


def test_a_readout_fed_back_into_itself_is_none(inputs):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(13, 3), snn.Leaky(beta=0.9)

        def forward(self, x):
            mem, spk = self.lif.reset_mem(), x.new_zeros(len(x), 3)
            for _ in range(4):
                spk, mem = self.lif(self.fc(torch.cat([x, spk], 1)), mem)
            return mem

    with pytest.raises(ReadoutNotFoundError, match="no readout among the layers 'fc'"):
        inspect_network(Loop(), inputs, plain_forward)


def test_a_name_where_nothing_is_a_readout(inputs):
    net = nn.Sequential(nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 3, 10), nn.Flatten(), snn.Leaky(beta=0.9, output=True))
    with pytest.raises(ReadoutNotFoundError) as error:
        inspect_network(net, inputs, over_time(3), readout_layer="1")
    assert error.value.fix == "leave readout_layer out"


def test_skip_connections(nets, inputs):
    class Skip(nets.Mlp):
        def forward(self, x):
            m1, m2, m3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
            record = []
            for _ in range(STEPS):
                z1, m1 = self.lif1(self.fc1(x), m1)
                z2, m2 = self.lif2(self.fc2(z1), m2)
                _, m3 = self.lif3(self.fc3(z1 + z2), m3)
                record.append(m3)
            return torch.stack(record)

    assert names(inspect_network(Skip(), inputs, plain_forward)) == (
        [("fc1", "lif1"), ("fc2", "lif2")],
        ("fc3", "lif3"),
    )


def test_a_neuron_on_the_inputs_is_no_layer(inputs):
    net = nn.Sequential(
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(10, 3),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )
    assert names(inspect_network(net, inputs, over_time(3))) == ([], ("1", "2"))


def test_a_neuron_with_a_matrix_as_its_state(inputs):
    net = nn.Sequential(nn.Linear(10, 4), snn.AssociativeLeaky.from_num_spiking_neurons(4, 4), nn.Linear(4, 3))
    found = inspect_network(net, inputs, lambda net, x: net(x.expand(STEPS, *x.shape)))
    assert names(found) == ([("0", "1")], ("2", None))
    assert (found.num_steps, found.layout) == (STEPS, "time_first")


def test_the_linear_inside_a_neuron_is_a_layer():
    hidden, out = snn.LinearLeaky(0.9, 4, 6), snn.LinearLeaky(0.9, 6, 3, output=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([hidden, out])

        def forward(self, x):
            return self.layers[1](self.layers[0](x)[0])

    found = inspect_network(Net(), torch.rand(5, 2, 4), plain_forward)
    assert names(found) == ([("layers.0.linear", "layers.0")], ("layers.1.linear", "layers.1"))
    assert (found.num_steps, found.layout) == (5, "folded")


def test_neurons_alone(inputs):
    with pytest.raises(ReadoutNotFoundError, match="no layer between the neurons of a Sequential"):
        inspect_network(nn.Sequential(snn.Leaky(beta=0.9)), inputs, plain_forward)


def test_a_forward_that_never_reaches_a_layer(nets, inputs):
    with pytest.raises(CaptureError, match="calls none of 'fc1'"):
        inspect_network(nets.Mlp(), inputs, lambda net, x: x)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (lambda: [nn.LazyLinear(3)], r"0\.weight"),
        (lambda: [nn.Linear(10, 3), nn.LazyBatchNorm1d(affine=False)], r"1\.running_mean"),
    ],
)
def test_lazy_nets_are_refused_before_their_first_call(nets, inputs, first, name):
    lazy = nn.Sequential(*first(), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(3, 2), nets.readout_neuron(init_hidden=True))
    with pytest.raises(UnsupportedModuleError, match=rf"'{name}' of a lazy layer"):
        convex_init_(lazy, [(inputs, torch.arange(8) % 2)], forward=over_time(2), progress=False)
    assert over_time(2)(lazy, inputs).shape == (2, 8, 2)


def test_parameters_that_are_not_finite(nets, inputs):
    net = nets.Mlp()
    with torch.no_grad():
        net.fc2.bias[0] = float("inf")
    with pytest.raises(NetworkError, match=r"'fc2\.bias' holds NaN or infinity"):
        inspect_network(net, inputs, plain_forward)


def test_a_forgotten_time_loop(nets, inputs):
    with pytest.raises(NetworkError, match="a single time step") as error:
        inspect_network(nets.sequential(), inputs, plain_forward)
    assert "over_time(25)" in error.value.fix
    assert inspect_network(nets.sequential(), inputs, over_time(1)).num_steps == 1


class Last(nn.Module):
    """Neurons that keep their state, a loop inside, and a readout of the last spikes alone."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(10, 30), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(30, 3)

    def forward(self, x):
        self.lif1.reset_mem()
        for _ in range(STEPS):
            spikes = self.lif1(self.fc1(x))
        return self.fc2(spikes)


def test_a_readout_after_the_loop_is_no_forgotten_loop():
    inputs = 5 * torch.rand(40, 10)
    found = inspect_network(Last(), inputs, plain_forward)
    assert names(found) == ([("fc1", "lif1")], ("fc2", None))
    assert (found.num_steps, found.layout) == (1, "steps")
    net = Last()
    report = convex_init_(net, [(inputs, torch.arange(40) % 3)], hidden="keep")
    assert report.exactness.label == "exact"
    assert report.certificate.reached


def test_two_time_loops(nets, inputs):
    with pytest.raises(NetworkError, match=r"over_time\(3\) around a net that itself runs the readout 6 times"):
        inspect_network(nets.Mlp(), inputs, over_time(3))


def test_more_axes_than_time_and_batch(nets):
    net = nn.Sequential(nn.Linear(10, 4), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(4, 3))
    with pytest.raises(NetworkError, match=r"called 3 times with inputs of shape \[2, 5, 4\]"):
        inspect_network(net, torch.rand(2, 5, 10), over_time(3))


def test_the_net_comes_back_as_it_was(nets, inputs, snapshot, assert_same, count_hooks):
    net = nets.Mlp()
    net(inputs)
    before = snapshot(net)
    inspect_network(net, inputs, plain_forward)
    assert_same(before, snapshot(net))
    assert count_hooks(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_and_so_it_does_after_an_error(nets, inputs, snapshot, assert_same, count_hooks, error):
    net = nets.Mlp()

    def crash(net, inputs):
        net(inputs)
        raise error

    before = snapshot(net)
    with pytest.raises(NetworkError if error is RuntimeError else error):
        inspect_network(net, inputs, crash)
    assert_same(before, snapshot(net))
    assert count_hooks(net) == 0


def test_random_encodings_do_not_confuse_it(nets, inputs):
    class Encoded(nets.Mlp):
        def forward(self, x):
            return super().forward(torch.bernoulli(torch.sigmoid(x)))

    assert inspect_network(Encoded(), inputs, plain_forward).readout.name == "fc3"
