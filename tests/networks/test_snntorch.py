import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import adapter_of, is_neuron

STEPS, BATCH, UNITS = 7, 5, 4

NEURONS = {
    "leaky": lambda **o: snn.Leaky(beta=0.8, **o),
    "leaky at once": lambda **o: snn.Leaky(beta=0.8, reset_delay=False, **o),
    "leaky zero": lambda **o: snn.Leaky(beta=0.8, reset_mechanism="zero", **o),
    "leaky none": lambda **o: snn.Leaky(beta=0.8, reset_mechanism="none", threshold=0.5, **o),
    "leaky vector": lambda **o: snn.Leaky(beta=torch.rand(UNITS), learn_beta=True, **o),
    "synaptic": lambda **o: snn.Synaptic(alpha=0.7, beta=0.8, **o),
    "synaptic zero": lambda **o: snn.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero", **o),
    "alpha": lambda **o: snn.Alpha(alpha=0.8, beta=0.6, **o),
    "lapicque": lambda **o: snn.Lapicque(beta=0.8, **o),
}


@pytest.fixture
def currents():
    return torch.randn(STEPS, BATCH, UNITS) * 2


def by_hand(neuron, currents, *, stored):
    """Step the neuron as a user does, with explicit states or with stored ones."""
    states = neuron.reset_mem()
    states = list(states) if isinstance(states, tuple) else [states]
    spikes, membranes = [], []
    for current in currents:
        out = neuron(current) if stored else neuron(current, *states)
        out = out if isinstance(out, tuple) else (out,)
        states = list(out[1:])
        spikes.append(out[0])
        membranes.append(neuron.mem)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("options", [{}, {"init_hidden": True}, {"init_hidden": True, "output": True}], ids=str)
@pytest.mark.parametrize("name", NEURONS)
def test_run_is_bit_for_bit_what_the_user_steps(name, options, currents):
    neuron = NEURONS[name](**options)
    trace = adapter_of(neuron).run(neuron, currents)
    with torch.no_grad():
        spikes, membranes = by_hand(neuron, currents, stored=bool(options))
    assert spikes.any()
    assert torch.equal(trace.spikes, spikes)
    assert torch.equal(trace.membranes, membranes)
    assert not trace.membranes.requires_grad


@pytest.mark.parametrize("name", NEURONS)
def test_run_leaves_states_and_hooks_alone(name, currents, snapshot, assert_same):
    neuron = NEURONS[name](init_hidden=True)
    neuron(currents[0])  # with gradients, so that the stored states hang in a graph
    before = snapshot(neuron)
    calls = []
    neuron.register_forward_hook(lambda *_: calls.append(1))
    adapter_of(neuron).run(neuron, currents)
    assert_same(before, snapshot(neuron))
    assert calls == []


def test_states_come_back_when_a_step_fails(snapshot, assert_same):
    neuron = snn.Leaky(beta=torch.rand(UNITS))
    neuron(torch.rand(2, UNITS))
    wrong = torch.rand(3, 2, UNITS + 1)
    before = snapshot(neuron)
    with pytest.raises(RuntimeError):
        adapter_of(neuron).run(neuron, wrong)
    assert_same(before, snapshot(neuron))


def test_convolutional_currents(currents):
    neuron = snn.Leaky(beta=0.9)
    assert adapter_of(neuron).run(neuron, torch.rand(3, 2, 4, 5, 6)).spikes.shape == (3, 2, 4, 5, 6)


def test_a_user_subclass_runs_its_own_forward(currents):
    class Doubled(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(2 * input_, mem)

    doubled, plain = Doubled(beta=0.8), snn.Leaky(beta=0.8)
    adapter = adapter_of(doubled)
    assert torch.equal(adapter.run(doubled, currents).membranes, adapter.run(plain, 2 * currents).membranes)


@pytest.mark.parametrize(
    "neuron",
    [
        snn.RLeaky(beta=0.9, linear_features=UNITS),
        snn.DeltaLeaky(beta=0.9),
        snn.SLSTM(UNITS, UNITS),
    ],
    ids=lambda neuron: type(neuron).__name__,
)
def test_other_classes_are_refused_by_name(neuron, currents):
    with pytest.raises(UnsupportedModuleError, match="Alpha, Lapicque, Leaky, LinearLeaky, StateLeaky, Synaptic") as error:
        adapter_of(neuron).run(neuron, currents)
    assert type(neuron).__name__ in str(error.value)


@pytest.mark.parametrize("output", [True, False])
def test_sequences_run_as_the_user_runs_them(output, currents):
    state = snn.StateLeaky(beta=0.8, channels=UNITS, output=output)
    fused = snn.LinearLeaky(0.8, 3, UNITS, output=output)
    adapter, inputs = adapter_of(state), torch.randn(STEPS, BATCH, 3)
    for neuron, out, given in (
        (state, state(currents), currents),
        (fused, fused(inputs), fused.linear(inputs.reshape(-1, 3)).reshape(STEPS, BATCH, UNITS)),
    ):
        trace = adapter.run(neuron, given)
        spikes, membranes = out if output else (out, out)
        assert torch.equal(trace.membranes, membranes)
        assert torch.equal(trace.spikes, spikes)


def test_synapses_inside_neurons():
    adapter = adapter_of(snn.Leaky(beta=0.9))
    linear, parallel = snn.LinearLeaky(0.9, 3, 2, bias=False), snn.LeakyParallel(3, 2)
    own = adapter.synapse(linear)
    assert (own.module, own.weight, own.bias) == (linear.linear, "weight", None)
    assert adapter.synapse(snn.LinearLeaky(0.9, 3, 2)).bias == "bias"
    assert adapter.synapse(parallel).module is parallel
    assert adapter.synapse(parallel).weight is None
    assert adapter.synapse(snn.Leaky(beta=0.9)) is None


def test_thresholds():
    adapter = adapter_of(snn.Leaky(beta=0.9))
    assert adapter.threshold(snn.Leaky(beta=0.9, threshold=0.5)) == (0.5, 0.5)
    assert adapter.threshold(snn.Leaky(beta=0.9, threshold=torch.tensor([1.0, 2.0]))) == (1.0, 2.0)
    assert adapter.threshold(nn.Identity()) is None


def test_reset_covers_neurons_with_and_without_states():
    leaky, parallel = snn.Leaky(beta=0.9), snn.LeakyParallel(2, 2)
    leaky(torch.rand(2, 2))
    adapter = adapter_of(leaky)
    adapter.reset(leaky)
    adapter.reset(parallel)
    assert not leaky.mem.any()


def test_spikes_and_membranes_of_outputs():
    adapter = adapter_of(snn.Leaky(beta=0.9))
    spk, mem = torch.zeros(1), torch.ones(1)
    assert adapter.spikes((spk, mem)) is spk
    assert adapter.spikes(spk) is spk
    assert adapter.membrane(nn.Identity(), (spk, mem)) is mem
    assert adapter.membrane(nn.Identity(), mem) is mem


def test_which_classes_take_sequences():
    adapter = adapter_of(snn.Leaky(beta=0.9))
    assert adapter.takes_sequences(snn.StateLeaky(beta=0.9, channels=2))
    assert not adapter.takes_sequences(snn.Leaky(beta=0.9))


@pytest.mark.parametrize("make", [snn.RLeaky, lambda **options: snn.RSynaptic(alpha=0.5, **options)], ids=["RLeaky", "RSynaptic"])
def test_a_recurrent_weight_for_each_unit_is_a_part_of_its_neuron(make):
    neuron = make(beta=0.9, all_to_all=False)
    assert [name for name, module in neuron.named_modules() if is_neuron(module)] == [""]
