"""Readouts on a grid of few bits: exact, better than rounding, as cheap as reported, and undone bit for bit."""

import copy
from functools import cache

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time, quantize_readout_
from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.convex.grid import Grid
from snn_recon_plugin.errors import DataError, OptionError, SilentLayerError, UnsupportedModuleError, WriteError

from ..convex.helpers import round_nearest
from ..faults import FaultError, LineFault
from ..helpers import accuracy, batches, features, mean_filter, opinion_on, train_data, untouched, values
from ..nets import CLASSES, STEPS, Averaged, Loop, loop_net, shallow, spikes_of
from ..user_nets import unusual_nets as nets

WRITTEN = ("fc2.weight", "fc2.bias")


@cache
def solved():
    net = loop_net()
    convex_init_(net, batches())
    return net


def trained():
    return copy.deepcopy(solved())


def norse_net():
    torch.manual_seed(0)
    return norse.SequentialState(nn.Linear(64, 40), norse.LIFCell(), nn.Linear(40, 10), norse.LICell())


def own_leaks():
    return Loop(output=snn.Leaky(beta=torch.linspace(0.5, 0.9, CLASSES), reset_mechanism="none"))


def half_net():
    net = loop_net().bfloat16()
    net.fc2.register_forward_pre_hook(lambda module, arguments: (arguments[0].to(module.weight),))  # of snnTorch's float32 spikes
    return net


def as_values(batch):
    return batch[0], nn.functional.one_hot(batch[1], CLASSES).float()


def as_dtype(dtype):
    return lambda batch: (batch[0].to(dtype), batch[1])


OVER = {"forward": over_time(STEPS)}
NETS = {  # net, options, name of its readout
    "membranes": (loop_net, {}, "fc2"),
    "without a bias": (lambda: Loop(bias=False), {}, "fc2"),
    "spike counts": (lambda: shallow(spikes_of), {}, "fc2"),
    "maximum over time": (loop_net, {"readout": "membrane_max"}, "fc2"),
    "averaged spikes, no output neuron": (Averaged, {}, "fc2"),
    "a leak for each output": (own_leaks, {}, "fc2"),
    "values": (loop_net, {"loss": "squared", "unpack": as_values}, "fc2"),
    "cross-entropy": (loop_net, {"fit_loss": "same"}, "fc2"),
    "Norse": (norse_net, OVER, "2"),
    "half precision": (half_net, {"unpack": as_dtype(torch.bfloat16)}, "fc2"),
}


@pytest.mark.parametrize("name", NETS)
def test_the_layer_holds_the_grid_exactly(name):
    make, options, layer = NETS[name]
    net, place = make(), list(NETS).index(name)
    per_channel, bits = ((True, 4), (False, 3), (True, 2))[place % 3]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    quantized = quantize_readout_(net, batches(300), bits=bits, per_channel=per_channel, **options)
    weight = net.get_submodule(layer).weight.detach()
    assert len(quantized.scale) == (CLASSES if per_channel else 1)
    assert quantized.scale.dtype == weight.dtype
    assert int(quantized.integers.abs().max()) <= Grid(bits).largest
    assert torch.equal(weight, quantized.scale[:, None] * quantized.integers.to(weight.dtype))
    assert quantized.objective >= quantized.lower_bound
    assert changed(net, before) <= {f"{layer}.weight", f"{layer}.bias"}
    quantized.undo()
    assert changed(net, before) == set()


def changed(net, before):
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(("bits", "share"), [(2, 0.25), (4, 0.7)])
def test_the_cost_is_reported_and_a_part_of_that_of_rounding(bits, share):
    """The program is made anew of features by hand: its optimum is the bound, and its objective is a second opinion's."""
    net, (inputs, labels) = trained(), train_data()
    quantized = quantize_readout_(net, batches(), bits=bits)
    report = quantized.report
    matrix, column = features(net.fc1, inputs), float(mean_filter().sum())
    problem = Problem(Features(matrix, column), labels, loss="squared_hinge", penalty="ridge", strength=report.program.strength)
    optimum = solve(problem, tol=1e-8)
    rounded = round_nearest(optimum.weight, optimum.bias, Grid(bits))
    nearest = problem.primal(rounded.weight, rounded.bias)[0]
    bound = optimum.certificate.primal
    assert quantized.lower_bound == pytest.approx(bound, rel=1e-5)
    assert bound < quantized.objective <= bound + share * (nearest - bound)
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.div_(report.exactness.weight_scale)
    second = opinion_on(net, inputs, labels, loss="squared_hinge", penalty="ridge", strength=report.program.strength)[0]
    assert quantized.objective == pytest.approx(second, rel=1e-5)


def test_results_are_those_of_a_users_test():
    net = trained()
    before = accuracy(net)
    quantized = quantize_readout_(net, batches(), bits=4)
    assert quantized.accuracy_float == pytest.approx(before, abs=0.06)
    assert abs(quantized.accuracy - accuracy(net)) < 0.06
    assert abs(accuracy(net) - before) < 0.03
    text = str(quantized)
    for words in ("'fc2': whole numbers of 4 bits, 10 scales", "in float", "120 held-out samples", "above the bound"):
        assert words in text


def test_the_bias_may_have_bits_of_its_own():
    net = trained()
    quantized = quantize_readout_(net, batches(), bits=3, bias_bits=8, strength=1e-2)
    whole = net.fc2.bias.detach().double() / quantized.bias_step
    assert torch.allclose(whole, whole.round(), atol=1e-4)
    assert float(whole.abs().max()) == pytest.approx(127, abs=1e-3)
    spiking = shallow(spikes_of)
    assert quantize_readout_(spiking, batches(200), bits=4, bias_bits=8, strength=1e-2).bias_step > 0


def test_a_factor_behind_the_readout_is_part_of_the_scale():
    class Scaled(Loop):
        def forward(self, x):
            return super().forward(x) * torch.linspace(-2.0, 3.0, CLASSES)

    net = Scaled()
    quantized = quantize_readout_(net, batches(), bits=4, per_channel=False)
    assert torch.equal(net.fc2.weight.detach(), quantized.scale[:, None] * quantized.integers)
    assert quantized.accuracy > 0.75
    sums = quantized.integers.long().abs().sum(1) + (net.fc2.bias.detach() / quantized.scale).abs()
    assert quantized.accumulator_bits <= int(sums.max()).bit_length() + 2


def test_the_accumulator_holds_every_sum():
    net = trained()
    quantized = quantize_readout_(net, batches(), bits=4)
    whole, bias = quantized.integers.long(), net.fc2.bias.detach() / quantized.scale
    most = max(float(whole.clamp_min(0).sum(1).add(bias.abs()).max()), float((-whole).clamp_min(0).sum(1).add(bias.abs()).max()))
    assert 2 ** (quantized.accumulator_bits - 2) - 2 <= most <= 2 ** (quantized.accumulator_bits - 1) - 1
    quantized.undo()
    needed = quantized.accumulator_bits
    assert quantize_readout_(net, batches(), bits=4, accumulator_bits=needed).accumulator_bits == needed


REFUSED = {  # net, loader, options, error, words of the message
    "nine bits": (loop_net, batches, {"bits": 9}, OptionError, "bits=9|from 2 to 8"),
    "per_channel": (loop_net, batches, {"per_channel": 1}, OptionError, "per_channel=1|True or False"),
    "a bias of fewer bits": (loop_net, batches, {"bias_bits": 3}, OptionError, "bias_bits=3|from 4 to 24"),
    "narrow accumulator": (
        loop_net,
        batches,
        {"accumulator_bits": 7, "bits": 4},
        OptionError,
        "48 inputs at bits=4 whose sums take up to|pass bits=2, or a readout of at most 9 inputs|accumulator_bits=",
    ),
    "option of hidden layers": (loop_net, batches, {"hidden": "rescale"}, OptionError, "an option hidden|leave it out"),
    "a loss with kinks": (loop_net, batches, {"loss": "hinge"}, OptionError, "kinks|loss='squared_hinge'"),
    "a class without samples": (
        loop_net,
        lambda: [(inputs[labels != 3], labels[labels != 3]) for inputs, labels in batches()],
        {},
        DataError,
        "no samples of 1 of 10 classes: 3|all classes",
    ),
    "population": (
        lambda: shallow(spikes_of, outputs=50),
        batches,
        {"classes": 10},
        OptionError,
        "5 outputs for each of 10 classes|one output a class",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, loader, options, error, words = REFUSED[name]
    net = make()
    with untouched(net), pytest.raises(error) as raised:
        quantize_readout_(net, loader(), **options)
    for word in words.split("|"):
        assert word in str(raised.value)


def test_a_silent_layer_is_to_be_set_before():
    net = loop_net()
    nn.init.zeros_(net.fc1.weight)
    nn.init.zeros_(net.fc1.bias)
    with untouched(net), pytest.raises(SilentLayerError, match=r"call hidden_init_\(net, loader\) before"):
        quantize_readout_(net, batches(40))


def test_a_computed_weight_is_refused():
    net = loop_net()
    nn.utils.parametrizations.weight_norm(net.fc2)
    with untouched(net), pytest.raises(UnsupportedModuleError, match=r"(?s)computed.*remove_parametrizations\(net.fc2, 'weight'\)"):
        quantize_readout_(net, batches(100))


def test_nothing_is_left_by_an_error_at_any_line():
    net = loop_net()
    files, options = ("quantize.py", "write.py"), {"bits": 2, "strength": 1e-2}
    with LineFault(files) as counted:
        quantized = quantize_readout_(net, batches(40), **options)
    quantized.undo()
    numbers = sorted({*counted.last.values()})[:: max(1, len(counted.last) // 6)]
    for number in numbers:
        with untouched(net), pytest.raises(FaultError), LineFault(files, number, FaultError):
            quantize_readout_(net, batches(40), **options)


def test_undo_after_a_second_write_and_only_once():
    net = trained()
    before = values(net)
    first = quantize_readout_(net, batches(200), bits=4, strength=1e-2)
    second = quantize_readout_(net, batches(200), bits=2, strength=1e-2)
    second.undo()
    first.undo()
    first.undo()
    assert values(net) == before
    third = quantize_readout_(net, batches(200), strength=1e-2)
    third.report.write_solved()  # the same readout: a smaller one to train on from would be off the grid
    assert torch.equal(net.fc2.weight.detach(), third.scale[:, None] * third.integers)
    third.report.forget()
    with pytest.raises(WriteError):
        third.undo()


# -- nets whose hidden layers other tools have quantised --------------------------------------------------------------------
LAYERS = {"torch.ao": nets.fake_quantised, "by hand": nets.rounded_by_hand, "Brevitas": nets.brevitas_net}
ROUNDS = {"torch.ao": lambda: nets.fake_quantised("fc2"), "Brevitas": lambda: nets.brevitas_net("fc2")}


def made(name, table):
    if name == "Brevitas":
        pytest.importorskip("brevitas")
    torch.manual_seed(0)
    return table[name]()


@pytest.mark.filterwarnings("ignore")  # of Brevitas and torch.ao
@pytest.mark.parametrize("name", LAYERS)
def test_hidden_layers_stay_and_the_readout_is_on_the_grid(name):
    net = made(name, LAYERS)
    before = values(net)
    quantized = quantize_readout_(net, batches(300), bits=4, strength=1e-2)
    assert {key for key, value in values(net).items() if value != before[key]} <= {"fc2.weight", "fc2.bias"}
    assert torch.equal(net.fc2.weight.detach(), quantized.scale[:, None] * quantized.integers)
    assert quantized.report.accuracy_written > 0.7
    quantized.undo()
    assert values(net) == before
    assert convex_init_(net, batches(300), hidden="keep", strength=1e-2).accuracy_after > 0.6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROUNDS)
def test_a_readout_that_rounds_is_refused(name):
    net = made(name, ROUNDS)
    with untouched(net), pytest.raises(UnsupportedModuleError, match=r"fc2.*(?s:.)*quantize_readout_"):
        quantize_readout_(net, batches(300))
