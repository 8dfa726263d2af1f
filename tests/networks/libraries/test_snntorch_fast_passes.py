import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin.networks.libraries.snntorch import SnnTorch

compare_once = SnnTorch().fast_passes
CURRENTS = torch.linspace(-0.5, 1.5, 9).repeat(2, 1)

FUNCTIONS = {
    "straight through": surrogate.straight_through_estimator(),
    "triangular": surrogate.triangular(),
    "fast sigmoid": surrogate.fast_sigmoid(slope=10),
    "arctangent": surrogate.atan(),
    "heaviside": surrogate.heaviside(),
    "sigmoid": surrogate.sigmoid(),
    "spike rate escape": surrogate.spike_rate_escape(),
    "leaky": surrogate.SFS(),
    "the user's own gradient": surrogate.custom_surrogate(lambda membrane, gradient, spikes: gradient),
}


@pytest.fixture
def compared(monkeypatch):
    """Membranes that are compared by the one operation."""
    seen, plain = [], torch.gt
    monkeypatch.setattr(torch, "gt", lambda *args, **kwargs: seen.append(args[0]) or plain(*args, **kwargs))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_of_the_library_gives_the_same_bits(name, compared):
    neuron = snn.Leaky(beta=0.9, spike_grad=FUNCTIONS[name])
    membranes = torch.tensor([-torch.inf, -2.0, -0.0, 0.0, 1e-45, 3.0, torch.inf, torch.nan]).repeat(2, 1)
    expected = neuron.spike_grad(membranes)
    with compare_once(neuron):
        compared.clear()
        found = neuron.spike_grad(membranes)
        assert compared
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert neuron.spike_grad is FUNCTIONS[name]


class Own(snn.Leaky):
    def fire(self, membrane):
        return (membrane > 2).float()


def test_functions_and_methods_of_the_users_own_are_left_alone():
    def own(membrane):
        return (membrane > 0.5).float()

    def disguised(membrane):
        return (membrane >= 0).float()

    disguised.__module__ = "snntorch.surrogate"  # a release whose functions compare otherwise
    neurons = [snn.Leaky(beta=0.9, spike_grad=own), snn.Leaky(beta=0.9, spike_grad=disguised)]
    without, patched = snn.Leaky(beta=0.9, surrogate_disable=True), snn.Leaky(beta=0.9)
    patched.mem_reset = reset = torch.zeros_like
    bypass, inherited = without.spike_grad, Own(beta=0.9)
    with compare_once(nn.ModuleList([*neurons, without, patched, inherited, nn.Linear(2, 2)])):
        assert neurons[0].spike_grad is own
        assert neurons[1].spike_grad is disguised
        assert without.spike_grad == bypass
        assert patched.mem_reset is reset
        assert "fire" not in {**vars(patched), **vars(inherited)}
    assert patched.mem_reset is reset


def test_gradients_and_other_precisions_go_by_the_function_itself(compared):
    neuron = snn.Leaky(beta=0.9, spike_grad=surrogate.straight_through_estimator())
    membranes = torch.tensor([-1.0, 2.0], requires_grad=True)
    with compare_once(neuron):
        compared.clear()
        neuron.spike_grad(membranes).sum().backward()
        with torch.no_grad():
            assert neuron.spike_grad(membranes.double()).dtype == torch.float32  # as the library has it
    assert torch.equal(membranes.grad, torch.ones(2))
    assert compared == []


def make_neuron():
    return snn.Leaky(beta=0.9, spike_grad=surrogate.atan(), threshold=0.5)


def steps(neuron, between=lambda neuron, spikes, membrane: None, dtype=torch.float32):
    """Spikes and membranes of five steps, with something done after each."""
    membrane, found, currents = neuron.init_leaky(), [], CURRENTS.to(dtype)
    for _ in range(5):
        spikes, membrane = neuron(currents, membrane)
        found += [spikes.clone(), membrane.clone()]
        between(neuron, spikes, membrane)
    return torch.stack(found)


@torch.no_grad()
def test_the_next_steps_reset_is_not_compared_again(compared):
    neuron = make_neuron()
    expected = steps(neuron)
    with compare_once(neuron):
        compared.clear()
        found = steps(neuron)
        assert len(compared) == 6  # five steps, and the first one's reset
    assert torch.equal(found, expected)


def replace_threshold(neuron, spikes, membrane):
    neuron.threshold = neuron.threshold * 0.7


def replace_factor(neuron, spikes, membrane):
    neuron.graded_spikes_factor = neuron.graded_spikes_factor * 1.5


WRITTEN = {
    "spikes": lambda neuron, spikes, membrane: spikes.fill_(1),
    "membrane": lambda neuron, spikes, membrane: membrane.mul_(0.5),
    "threshold": lambda neuron, spikes, membrane: neuron.threshold.mul_(0.7),
    "another threshold": replace_threshold,
    "another factor": replace_factor,
}


@torch.no_grad()
@pytest.mark.parametrize("between", WRITTEN)
def test_whatever_is_written_in_between_changes_no_bit(between):
    expected, neuron = steps(make_neuron(), WRITTEN[between]), make_neuron()
    with compare_once(neuron):
        found = steps(neuron, WRITTEN[between])
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graded_spikes_factor": 0.3},
        {"graded_spikes_factor": torch.linspace(0.5, 1.5, 9)},
        {"threshold": torch.linspace(0.2, 1.0, 9)},
        {"reset_mechanism": "zero"},
        {"reset_delay": False},
        {"inhibition": True},
        {"state_quant": lambda membrane: (membrane * 4).round() / 4},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_neurons_of_every_kind_change_no_bit(options, mode, dtype):
    neuron = snn.Leaky(beta=0.9, **options).to(dtype)
    with mode():
        expected = steps(neuron, dtype=dtype)
        with compare_once(neuron):
            found = steps(neuron, dtype=dtype)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_two_calls_of_one_neuron_are_told_apart():
    """A neuron shared by two layers: the membrane is not the one that was compared last."""

    def both(neuron):
        one, two, found = neuron.init_leaky(), neuron.init_leaky(), []
        for _ in range(4):
            spikes, one = neuron(CURRENTS, one)
            again, two = neuron(1 - CURRENTS, two)
            found += [spikes, again]
        return torch.stack(found)

    neuron = make_neuron()
    expected = both(neuron)
    with compare_once(neuron):
        assert torch.equal(both(neuron), expected)
