"""Steppers: the values of a neuron's own code bit for bit, and its gradients."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch import LIFParameters
from snntorch import surrogate
from spikingjelly.activation_based import neuron as jelly
from spikingjelly.activation_based import surrogate as surrogates
from torch import nn

from snn_recon_plugin.networks.libraries import library_of
from snn_recon_plugin.training.damping import Damping

from ..versions import OLD_JELLY, needs_new_jelly

STEPS, BATCH, UNITS, INPUTS = 7, 5, 6, 4


class LeakAUnit(jelly.ParametricLIFNode):
    """A learned leak of some shape."""

    def __init__(self, leak, **options):
        super().__init__(**options)
        self.w = nn.Parameter(leak.clone())


def clamped_slope(input_, grad, spikes):
    return grad * (input_.abs() < 0.5)


LEARNED = {"learn_beta": True, "learn_threshold": True}
VECTORS = {"beta": torch.linspace(0.2, 0.95, UNITS), "threshold": torch.linspace(0.5, 1.5, UNITS)}
DENSE = {"linear_features": UNITS}
SNNTORCH = {
    "subtract": (snn.Leaky, {}),
    "zero": (snn.Leaky, {"reset_mechanism": "zero"}),
    "none": (snn.Leaky, {"reset_mechanism": "none"}),
    "learned": (snn.Leaky, LEARNED),
    "learned, a leak outside of 0 to 1": (snn.Leaky, {**LEARNED, "beta": 1.2}),
    "learned vectors": (snn.Leaky, {**LEARNED, **VECTORS}),
    "learned vectors, zero": (snn.Leaky, {**LEARNED, **VECTORS, "reset_mechanism": "zero"}),
    "fast sigmoid": (snn.Leaky, {"spike_grad": surrogate.fast_sigmoid(10)}),
    "sigmoid": (snn.Leaky, {"spike_grad": surrogate.sigmoid(5)}),
    "another arc tangent": (snn.Leaky, {"spike_grad": surrogate.atan(alpha=5.0)}),
    "user's surrogate": (snn.Leaky, {"spike_grad": surrogate.custom_surrogate(clamped_slope)}),
    "graded": (snn.Leaky, {"graded_spikes_factor": 0.5}),
    "learned factor": (snn.Leaky, {"learn_graded_spikes_factor": True}),
    "synaptic": (snn.Synaptic, {"alpha": 0.8}),
    "synaptic, learned": (snn.Synaptic, {"alpha": 0.8, "learn_alpha": True, **LEARNED}),
    "synaptic, none": (snn.Synaptic, {"alpha": 0.8, "reset_mechanism": "none"}),
    "recurrent": (snn.RLeaky, DENSE),
    "recurrent, zero, learned": (snn.RLeaky, {**DENSE, **LEARNED, "reset_mechanism": "zero"}),
    "recurrent, none": (snn.RLeaky, {**DENSE, "reset_mechanism": "none"}),
}
OTHER_LIF = LIFParameters(method="tanh", alpha=5.0, v_th=torch.tensor(0.3), v_reset=torch.tensor(-0.2), v_leak=torch.tensor(0.1))
NORSE = {
    "LIFCell": norse.LIFCell,
    "LIFCell, tanh": lambda: norse.LIFCell(p=OTHER_LIF),
    "LICell": norse.LICell,
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(INPUTS, UNITS),
}
SPIKINGJELLY = {
    "IF": (jelly.IFNode, {}),
    "IF, by subtraction": (jelly.IFNode, {"v_reset": None}),
    "LIF": (jelly.LIFNode, {}),
    "LIF, by subtraction": (jelly.LIFNode, {"tau": 3.0, "v_reset": None}),
    "LIF, to another rest": (jelly.LIFNode, {"tau": 1.7, "v_reset": -0.3, "v_threshold": 0.4}),
    "LIF, detached": (jelly.LIFNode, {"detach_reset": True, "surrogate_function": surrogates.ATan(alpha=3.0)}),
    "LIF, whole input": (jelly.LIFNode, {"tau": 1.3, "v_reset": None, "decay_input": False, "detach_reset": True}),
    "LIF, another surrogate": (jelly.LIFNode, {"surrogate_function": surrogates.PiecewiseQuadratic()}),
    "learned leak": (jelly.ParametricLIFNode, {}),
    "learned leak, of one unit": (LeakAUnit, {"leak": torch.zeros(1)}),
    "learned leaks": (LeakAUnit, {"leak": torch.linspace(-1, 1, UNITS), "v_reset": None}),
    "learned leaks, whole input": (LeakAUnit, {"leak": torch.linspace(-1, 1, UNITS), "decay_input": False, "v_reset": 0.1}),
    "learned leak, whole input": (jelly.ParametricLIFNode, {"init_tau": 1.6, "decay_input": False, "v_reset": 0.1}),
}


def gradients(outputs, variables):
    weights = [torch.cos(torch.arange(output.numel())).reshape(output.shape) for output in outputs]
    given = [weight.clone() for weight in weights]
    found = torch.autograd.grad(outputs, variables, weights, allow_unused=True)
    assert all(map(torch.equal, weights, given))  # other operations may have the same gradients
    return found


def check(outputs, taken, variables, exact=True):
    """Compare outputs and gradients; a product may be rounded otherwise in another place of memory."""
    for one, other in zip(outputs, taken, strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, atol=1e-6)
    for one, other in zip(gradients(outputs, variables), gradients(taken, variables), strict=True):
        torch.testing.assert_close(torch.zeros(()) if other is None else other, torch.zeros(()) if one is None else one)


def scanned(neuron, x, shared=False):
    """Spikes and states of all steps in one operation, from the state at rest."""
    stepper = library_of(neuron).stepper(neuron)
    call = stepper.read((x if shared else x[0],))
    return stepper.scan(x, call[1], STEPS, shared)


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input a step"])
@pytest.mark.parametrize("name", SNNTORCH)
def test_steps_of_snntorch(name, shared):
    kind, options = SNNTORCH[name]
    torch.manual_seed(0)
    neuron = kind(**{"beta": 0.9, "init_hidden": True, "output": True, **options})
    x = (torch.rand(*([] if shared else [STEPS]), BATCH, UNITS) * 1.2).requires_grad_()
    own = [neuron(x if shared else x[step]) for step in range(STEPS)]
    assert 0 < sum(float(output[0].detach().sum()) for output in own) < STEPS * BATCH * UNITS
    neuron.reset_mem()
    spikes, states = scanned(neuron, x, shared)
    taken = (spikes, *(state for state in states if state is not spikes))
    check([torch.stack(parts) for parts in zip(*own, strict=True)], taken, [x, *neuron.parameters()], kind is not snn.RLeaky)


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input a step"])
@pytest.mark.parametrize("name", NORSE)
def test_steps_of_norse(name, shared):
    torch.manual_seed(0)
    neuron, state, own = NORSE[name](), None, []
    units = INPUTS if name == "LIFRecurrentCell" else UNITS
    x = (torch.rand(*([] if shared else [STEPS]), BATCH, units) * 8).requires_grad_()
    for step in range(STEPS):
        output, state = neuron(x if shared else x[step], state)
        own.append((output, *state))
    spikes, states = scanned(neuron, x, shared)
    exact = name != "LIFRecurrentCell"  # products of all steps are rounded as the processor lays them out
    check([torch.stack(parts) for parts in zip(*own, strict=True)], (spikes, *states), [x, *neuron.parameters()], exact)


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input a step"])
@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_steps_of_spikingjelly(name, shared):
    kind, options = SPIKINGJELLY[name]
    torch.manual_seed(0)
    neuron = kind(**options)
    x = (torch.randn(*([] if shared else [STEPS]), BATCH, UNITS) * 2).requires_grad_()
    own = [(neuron(x if shared else x[step]), neuron.v) for step in range(STEPS)]
    assert 0 < sum(float(spikes.detach().sum()) for spikes, _ in own) < STEPS * BATCH * UNITS
    neuron.reset()
    spikes, states = scanned(neuron, x, shared)
    exact = not OLD_JELLY  # it adds up in another order
    check([torch.stack(parts) for parts in zip(*own, strict=True)], (spikes, *states), [x, *neuron.parameters()], exact)


def test_spikingjelly_takes_all_steps_in_one_call():
    torch.manual_seed(0)
    neuron = jelly.LIFNode(step_mode="m")
    x = (torch.randn(STEPS, BATCH, UNITS) * 2).requires_grad_()
    own, left = neuron(x), neuron.v
    neuron.reset()
    stepper = library_of(neuron).stepper(neuron)
    spikes, states = stepper.scan(*stepper.read((x,)), STEPS, shared=False)
    check([own], [stepper.answer(spikes, states)], [x])
    assert torch.equal(neuron.v, left)


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input a step"])
@pytest.mark.parametrize("kind", [lambda: snn.Leaky(beta=0.9, init_hidden=True), norse.LIFCell, jelly.LIFNode])
def test_steps_lie_in_memory_as_the_inputs_do(kind, shared):
    torch.manual_seed(0)
    x = torch.randn(*([] if shared else [STEPS]), BATCH, 3, 4, 4) * 5
    last = x.movedim(-3, -1).contiguous().movedim(-1, -3)  # channels last in memory
    weights = torch.randn(STEPS, BATCH, 3, 4, 4)  # gradients that lie in memory otherwise
    found = []
    for given in (x.requires_grad_(), last.requires_grad_()):
        spikes, _ = scanned(kind(), given, shared)
        found.append((spikes, *torch.autograd.grad(spikes, given, weights)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][0].stride() != found[1][0].stride()
    assert found[1][0].stride(2) == 1


def changed(neuron, **values):
    """Return a neuron with methods or functions of the user."""
    vars(neuron).update(values)
    return neuron


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: changed(snn.Leaky(beta=0.9), fire=lambda mem: mem.sigmoid()),
        lambda: changed(snn.Leaky(beta=0.9), state_function=torch.relu),
        pytest.param(
            lambda: changed(jelly.LIFNode(), single_step_functional_forward=lambda inputs, states: (inputs, states)),
            marks=needs_new_jelly,
        ),
        lambda: snn.Leaky(beta=0.9, inhibition=True),
        lambda: snn.Leaky(beta=0.9, reset_delay=False),
        lambda: snn.Leaky(beta=0.9, state_quant=lambda x: x.round()),
        lambda: snn.Leaky(beta=0.9, spike_grad=surrogate.SSO()),
        lambda: snn.Leaky(beta=0.9, spike_grad=lambda x: x.sigmoid()),
        lambda: snn.Leaky(beta=0.9, spike_grad=surrogate.custom_surrogate(lambda input_, grad, spikes: grad.clamp(-1, 1))),
        lambda: snn.Leaky(beta=0.9, surrogate_disable=True),
        lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="zero"),
        lambda: snn.RLeaky(beta=0.9, all_to_all=False),
        lambda: snn.Lapicque(beta=0.9),
        lambda: norse.LIFCell(p=LIFParameters(v_th=torch.ones(3))),
        lambda: norse.LIFCell(p=LIFParameters(method="heaviside")),
        norse.LSNNCell,
        lambda: jelly.LIFNode(store_v_seq=True),
        lambda: jelly.LIFNode(surrogate_function=surrogates.Sigmoid(spiking=False)),
        lambda: jelly.LIFNode(surrogate_function=lambda x: (x > 0).float()),
        jelly.QIFNode,
    ],
)
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_other_neurons_run_their_own_code(neuron):
    built = neuron()
    assert library_of(built).stepper(built) is None


def test_a_damped_recurrence_has_the_gradients_of_its_own_code():
    torch.manual_seed(0)
    neuron = snn.RLeaky(beta=0.9, linear_features=UNITS, init_hidden=True)
    x = (torch.rand(STEPS, BATCH, UNITS) * 1.2).requires_grad_()
    with Damping(nn.ModuleList([neuron]), 0.5):
        own = torch.stack([neuron(x[step]) for step in range(STEPS)])
        neuron.reset_mem()
        check([own], [scanned(neuron, x)[0]], [x, *neuron.parameters()], exact=False)


@pytest.mark.parametrize("kind", [snn.Leaky, snn.RLeaky])
def test_a_neuron_keeps_the_reset_that_it_was_built_with(kind):
    torch.manual_seed(0)
    neuron = kind(beta=0.9, init_hidden=True, **(DENSE if kind is snn.RLeaky else {}))
    neuron.reset_mechanism = "none"  # which its code does not look at
    x = torch.rand(STEPS, BATCH, UNITS) * 1.2
    own = torch.stack([neuron(step) for step in x])
    neuron.reset_mem()
    assert torch.equal(scanned(neuron, x)[0], own)
