import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError, NetworkError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    ALL_READOUTS,
    Expected,
    inspect_network,
    over_time,
    plain_forward,
    resolve_readout,
)
from snn_recon_plugin.networks.probes import run_probe
from snn_recon_plugin.networks.resolve import outputs_per_class

DECODERS = {
    "membrane_mean": lambda mem: mem.mean(0),
    "membrane_sum": lambda mem: mem.sum(0),
    "membrane_last": lambda mem: mem[-1],
}


def resolve(net, inputs, kind="auto", forward=plain_forward, **options):
    return resolve_readout(net, inspect_network(net, inputs, forward), inputs, forward, kind, **options)


@pytest.mark.parametrize("kind", DECODERS)
def test_scores_that_the_net_decodes_itself(nets, inputs, kind):
    net = nets.Mlp(returns=lambda spk, mem: DECODERS[kind](mem))
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness, readout.output_index) == (kind, "exact", None)
    out = net(inputs)
    assert torch.equal(readout.scores(out), out)
    assert resolve(net, inputs, kind).kind == kind


@pytest.mark.parametrize("kind", DECODERS)
def test_filter_and_bias_gain(nets, inputs, kind):
    readout = resolve(nets.Mlp(), inputs, kind)
    impulse = [[0.9 ** (s - t) if s >= t else 0.0 for t in range(6)] for s in range(6)]
    rows = torch.tensor(impulse, dtype=torch.float64)
    expected = DECODERS[kind](rows)
    assert torch.allclose(readout.filter, expected, atol=1e-6)
    assert readout.bias_gain == pytest.approx(float(expected.sum()), rel=1e-6)
    assert readout.constant == 0.0


@pytest.mark.parametrize(
    ("returns", "index", "time_dim"),
    [
        (lambda spk, mem: mem, None, 0),
        (lambda spk, mem: (spk, mem), 1, 0),
        (lambda spk, mem: [mem, spk], 0, 0),
        (lambda spk, mem: {"spikes": spk, "membranes": mem}, "membranes", 0),
        (lambda spk, mem: mem.movedim(0, 1), None, 1),
        (lambda spk, mem: list(mem), None, 0),
        (lambda spk, mem: (list(spk), list(mem), None), 1, 0),
        (lambda spk, mem: (spk.sum(0), mem), 1, 0),
    ],
)
def test_where_the_membranes_are(nets, inputs, returns, index, time_dim):
    net = nets.Mlp(returns=returns)
    readout = resolve(net, inputs)
    assert (readout.kind, readout.output_index, readout.time_dim) == ("membrane_mean", index, time_dim)
    net.returns = lambda spk, mem: (returns(spk, mem), mem)
    out, mem = net(inputs)
    assert torch.allclose(readout.scores(out), mem.mean(0))


def test_decoded_scores_beside_something_else(nets, inputs):
    readout = resolve(nets.Mlp(returns=lambda spk, mem: (spk, mem[-1])), inputs)
    assert (readout.kind, readout.output_index) == ("membrane_last", 1)


@pytest.mark.parametrize("output", [False, True])
def test_stepped_from_outside(nets, inputs, output):
    readout = resolve(nets.sequential(output=output), inputs, forward=over_time(4))
    assert (readout.kind, readout.output_index) == (("membrane_mean", 1) if output else ("spike_count", None))


def test_zero_weights_do_not_blur_the_decision(nets, inputs):
    net = nets.Mlp(returns=lambda spk, mem: mem[-1])
    nn.init.zeros_(net.fc3.weight)
    nn.init.zeros_(net.fc3.bias)
    assert resolve(net, inputs).kind == "membrane_last"


def test_two_decoded_outputs(nets, inputs):
    net = nets.Mlp(returns=lambda spk, mem: (mem.mean(0), mem[-1]))
    with pytest.raises(NetworkError, match="agrees with membrane_mean and membrane_last"):
        resolve(net, inputs)
    readout = resolve(net, inputs, "membrane_last")
    assert (readout.kind, readout.output_index) == ("membrane_last", 1)


def test_one_step_has_one_mean(nets, inputs):
    net = nets.Mlp(returns=lambda spk, mem: mem.sum(0), steps=1)
    assert resolve(net, inputs).kind == "membrane_mean"


def test_two_decoders_that_agree(nets, inputs):
    # At beta = 0 and with the currents of all but the last step cut off, the sum is the last step.
    class Cut(snn.Leaky):
        def forward(self, input_, mem=None):
            self.step = getattr(self, "step", 0) + 1
            return super().forward(input_ * (self.step % 6 == 0), mem)

    net = nets.Mlp(returns=lambda spk, mem: mem[-1], output=Cut(beta=0.0, reset_mechanism="none"))
    with pytest.raises(NetworkError, match="agrees with membrane_sum and membrane_last"):
        resolve(net, inputs)
    assert resolve(net, inputs, "membrane_last").kind == "membrane_last"


def test_outputs_that_nothing_explains(nets, inputs):
    with pytest.raises(NetworkError, match=r"tensor \[8, 3\]") as error:
        resolve(nets.Mlp(returns=lambda spk, mem: mem.mean(0).softmax(1)), inputs)
    assert "[6, batch, 3] or [batch, 6, 3] over time, or [batch, 3]" in error.value.needed
    assert "membrane_mean, membrane_sum, membrane_last" in error.value.found
    assert "softmax" in error.value.fix


def test_an_output_of_another_structure_later(nets, inputs):
    net = nets.Mlp(returns=lambda spk, mem: mem)
    readout = resolve(net, inputs)
    with pytest.raises(NetworkError, match=r"tensor \[2, 3, 4, 5\]"):
        readout.scores(torch.zeros(2, 3, 4, 5))


@pytest.mark.parametrize("later", [torch.zeros(6, 8, 3), (torch.zeros(6, 8, 3),), {"mem": torch.zeros(6, 8, 3)}])
def test_an_output_without_the_item_later(nets, inputs, later):
    readout = resolve(nets.Mlp(), inputs)
    assert readout.output_index == 1
    with pytest.raises(NetworkError, match="a net that returns"):
        readout.scores(later)


def test_unknown_kinds(nets, inputs):
    with pytest.raises(OptionError, match="readout='max'") as error:
        resolve(nets.Mlp(), inputs, "max")
    assert all(kind in error.value.needed for kind in ("auto", *ALL_READOUTS))


def test_kinds_that_do_not_fit(nets, inputs):
    with pytest.raises(OptionError, match="'linear_mean' for a net with an output neuron"):
        resolve(nets.Mlp(), inputs, "linear_mean")
    net = nets.Mlp(returns=lambda spk, mem: mem[-1])
    with pytest.raises(OptionError, match="'membrane_sum' for a net that returns membrane_last"):
        resolve(net, inputs, "membrane_sum")


def test_something_between_readout_and_neuron(nets, inputs):
    net = nets.Mlp()
    net.lif3.register_forward_pre_hook(lambda _module, args: (2 * args[0], *args[1:]))
    with pytest.raises(UnsupportedModuleError, match="between the readout layer and its neuron 'lif3'"):
        resolve(net, inputs)


def test_a_neuron_that_does_not_start_from_rest(nets, inputs):
    class Warm(nets.Mlp):
        def forward(self, x):
            mem, record = torch.ones(len(x), 3), []
            m1, m2 = self.lif1.reset_mem(), self.lif2.reset_mem()
            for _ in range(6):
                z, m1 = self.lif1(self.fc1(x), m1)
                z, m2 = self.lif2(self.fc2(z), m2)
                _, mem = self.lif3(self.fc3(z), mem)
                record.append(mem)
            return torch.stack(record)

    with pytest.raises(NetworkError, match=r"(?s)'lif3' does not start from rest.*pass forward=loop"):
        resolve(Warm(), inputs)


def test_a_net_that_forgets_to_reset_is_reset(nets, inputs):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nets.sequential()

        def forward(self, x):
            return torch.stack([self.body(x)[1] for _ in range(5)])

    net = Forgetful()
    net(inputs)
    assert resolve(net, inputs).kind == "membrane_mean"


def test_one_neuron_for_two_layers(nets, inputs):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.lif = nn.Linear(10, 3), nn.Linear(3, 3), nets.readout_neuron()

        def forward(self, x):
            m1, m2, record = torch.zeros(len(x), 3), torch.zeros(len(x), 3), []
            for _ in range(4):
                z, m1 = self.lif(5 * self.fc1(x), m1)
                _, m2 = self.lif(self.fc2(z), m2)
                record.append(m2)
            return torch.stack(record)

    with pytest.raises(CaptureError, match=r"called 8 times on tensor .* of 4 steps"):
        resolve(Shared(), inputs)


class Rate(nn.Module):
    """Plain logits, the readout called once on the stacked spikes or at each step."""

    def __init__(self, decode, once):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(10, 8), snn.Leaky(beta=0.9), nn.Linear(8, 3)
        self.decode, self.once = decode, once

    def forward(self, x):
        mem, spk = self.lif.reset_mem(), []
        for _ in range(5):
            z, mem = self.lif(3 * self.fc1(x), mem)
            spk.append(z if self.once else self.fc2(z))
        return self.decode(self.fc2(torch.stack(spk)) if self.once else torch.stack(spk))


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("kind", "decode", "expected"),
    [
        ("linear_mean", lambda v: v.mean(0), [0.2] * 5),
        ("linear_sum", lambda v: v.sum(0), [1.0] * 5),
        ("linear_last", lambda v: v[-1], [0.0] * 4 + [1.0]),
        ("linear_mean", lambda v: v, [0.2] * 5),
    ],
)
def test_plain_logits(inputs, once, kind, decode, expected):
    readout = resolve(Rate(decode, once), inputs)
    assert readout.kind == kind
    assert readout.filter.tolist() == expected


def test_plain_logits_that_nothing_explains(inputs):
    with pytest.raises(NetworkError, match="none of linear_mean, linear_sum, linear_last"):
        resolve(Rate(lambda v: v.square().mean(0), True), inputs)


def test_a_linear_layer_on_mean_spikes(inputs):
    class MeanFirst(Rate):
        def forward(self, x):
            mem, spk = self.lif.reset_mem(), []
            for _ in range(5):
                z, mem = self.lif(3 * self.fc1(x), mem)
                spk.append(z)
            return self.fc2(torch.stack(spk).mean(0))

    readout = resolve(MeanFirst(None, True), inputs)
    assert readout.kind == "linear_mean"
    assert readout.filter.tolist() == [1.0]


def test_the_net_comes_back_as_it_was(nets, inputs, snapshot, assert_same, count_hooks):
    net = nets.Mlp()
    net_map = inspect_network(net, inputs, plain_forward)
    net(inputs)
    before = snapshot(net)
    resolve_readout(net, net_map, inputs, plain_forward)
    assert_same(before, snapshot(net))
    assert count_hooks(net) == 0


@pytest.mark.parametrize(
    ("reset", "returns", "kind", "index"),
    [
        ("subtract", lambda spk, mem: (spk, mem), "spike_count", 0),
        ("zero", lambda spk, mem: spk.movedim(0, 1), "spike_count", None),
        ("subtract", lambda spk, mem: mem, "membrane_mean", None),
        ("subtract", lambda spk, mem: spk.sum(0), "spike_count", None),
        ("subtract", lambda spk, mem: spk.mean(0), "spike_rate", None),
        ("subtract", lambda spk, mem: (mem[-1], spk), "spike_count", 1),
        ("subtract", lambda spk, mem: mem.amax(0), "membrane_max", None),
        ("none", lambda spk, mem: spk, "spike_count", None),
    ],
)
def test_surrogates(nets, inputs, reset, returns, kind, index):
    net = nets.Mlp(output=nets.readout_neuron(reset_mechanism=reset), returns=returns)
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness, readout.output_index) == (kind, "surrogate", index)
    assert readout.response.affine == (reset == "none")
    # Below the threshold the neuron leaks by 0.9 a step.
    assert readout.response.matrix[-1].tolist() == pytest.approx([0.9 ** (5 - t) for t in range(6)], rel=1e-5)


class Once(nn.Module):
    """A net of a single step, without a time loop."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(10, 16), snn.Leaky(beta=0.8)
        self.fc2, self.lif2 = nn.Linear(16, 3), snn.Leaky(beta=0.8)

    def forward(self, x):
        z, _ = self.lif1(3 * self.fc1(x), self.lif1.reset_mem())
        return self.lif2(self.fc2(z), self.lif2.reset_mem())


class StateLeaky(nn.Module):
    """Neurons that take all steps at once, never reset and give spikes and membranes."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(10, 16), snn.StateLeaky(beta=0.9, channels=16)
        self.fc2, self.l2 = nn.Linear(16, 3), snn.StateLeaky(beta=0.9, channels=3)

    def forward(self, x):
        return self.l2(self.fc2(self.l1(3 * self.fc1(x.expand(5, -1, -1)))[0]))


def one_step_in_a_loop(nets):
    return nets.Mlp(output=snn.Leaky(beta=0.9), steps=1)


SPIKES_AND_MEMBRANES = {
    "one step in a loop": one_step_in_a_loop,
    "one step without a loop": lambda nets: Once(),
    "StateLeaky": lambda nets: StateLeaky(),
    "counts and the last membrane": lambda nets: nets.Mlp(
        output=snn.Leaky(beta=0.9), returns=lambda spk, mem: (spk.sum(0), mem[-1])
    ),
    "spikes, and the last membrane": lambda nets: nets.Mlp(output=snn.Leaky(beta=0.9), returns=lambda spk, mem: (spk, mem[-1])),
    "counts and rates": lambda nets: nets.Mlp(output=snn.Leaky(beta=0.9), returns=lambda spk, mem: (spk.sum(0), spk.mean(0))),
}


@pytest.mark.parametrize("name", SPIKES_AND_MEMBRANES)
def test_spikes_are_counted_where_they_are_returned(nets, inputs, name):
    readout = resolve(SPIKES_AND_MEMBRANES[name](nets), inputs)
    assert (readout.kind, readout.exactness, readout.output_index) == ("spike_count", "surrogate", 0)


@pytest.mark.parametrize("output", [snn.Leaky(beta=0.9), snn.Leaky(beta=0.9, reset_mechanism="none")])
def test_the_loss_decides_between_spikes_and_membranes(nets, inputs, output):
    net = nets.Mlp(output=output)
    kinds = {prefer: resolve(net, inputs, expected=Expected(prefer)).kind for prefer in ("spikes", "membranes")}
    assert kinds == {"spikes": "spike_count", "membranes": "membrane_mean"}


@pytest.mark.parametrize("prefer", [None, "spikes"])
def test_a_threshold_out_of_reach_leaves_the_membrane(nets, inputs, prefer):
    readout = resolve(nets.Mlp(output=snn.Leaky(beta=0.9, threshold=1e9)), inputs, expected=Expected(prefer))
    assert (readout.kind, readout.exactness, readout.output_index) == ("membrane_mean", "exact", 1)


def test_the_other_item_of_the_output_is_named(nets, inputs):
    net = nets.Mlp(output=snn.Leaky(beta=0.9))
    readout, out = resolve(net, inputs), net(inputs)
    assert str(readout.source) == "spike count of output[0]"
    (other,) = readout.others
    assert str(other) == "membrane mean of output[1]"
    assert torch.equal(other.scores(out), out[1].mean(0))
    assert resolve(nets.Mlp(returns=lambda spk, mem: mem), inputs).others == ()
    by_name = resolve(nets.Mlp(returns=lambda spk, mem: {"s": spk, "m": mem}), inputs)
    assert [str(source) for source in (by_name.source, *by_name.others)] == [
        "membrane mean of output['m']",
        "spike count of output['s']",
    ]


def test_another_pass_has_other_currents(nets, inputs):
    net = nets.Mlp()
    net_map = inspect_network(net, inputs, plain_forward)
    first, same, other = (run_probe(net, net_map, inputs, plain_forward, draw).currents for draw in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.isclose(first, other).any()


@pytest.mark.parametrize("kind", ["spike_rate", "first_spike", "membrane_last", "membrane_max"])
def test_another_readout_than_auto_takes(nets, inputs, kind):
    readout = resolve(nets.Mlp(output=snn.Leaky(beta=0.9)), inputs, kind)
    assert readout.kind == kind
    assert readout.output_index == (1 if kind.startswith("membrane") else 0)


def test_a_maximum_is_majorised(nets, inputs):
    net = nets.Mlp(returns=lambda spk, mem: mem.amax(0))
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness) == ("membrane_max", "majorised")
    assert torch.equal(readout.scores(net(inputs)), net(inputs))


def test_readouts_that_are_not_there(nets, inputs):
    net = nets.Mlp(output=snn.Leaky(beta=0.9), returns=lambda spk, mem: spk)
    with pytest.raises(OptionError, match="'membrane_sum' for a net that returns spikes"):
        resolve(net, inputs, "membrane_sum")


def test_output_neurons_that_nothing_can_be_said_of(nets, inputs):
    with pytest.raises(UnsupportedModuleError, match="spikes without an input"):
        resolve(nets.Mlp(output=snn.Leaky(beta=0.9, threshold=-1.0)), inputs)


def test_numbers_of_classes():
    assert [outputs_per_class(12, classes) for classes in (None, 12, 3)] == [1, 1, 4]
    with pytest.raises(OptionError, match="5 classes for a readout of 12 outputs"):
        outputs_per_class(12, 5)
