"""Every bad input gives an error that says what to type, and leaves the network, and all around it, as found."""

import copy
import itertools
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from snn_recon_plugin import ConvexInitializer, convex_init_, over_time
from snn_recon_plugin.convex import CrossEntropy, Elastic, GroupL1
from snn_recon_plugin.errors import (
    AmbiguousReadoutError,
    CaptureError,
    DataError,
    NetworkError,
    OptionError,
    ReadoutNotFoundError,
    ReconstructionError,
    SilentLayerError,
    UnsupportedModuleError,
    WriteError,
)
from snn_recon_plugin.networks import Transaction

from . import helpers
from .helpers import (
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    assert_as_before,
    batches,
    conv_net,
    data_loader,
    divided,
    lived_in,
    sequential_net,
    snapshot,
    train_data,
    values,
)

loop_net = partial(helpers.loop_net, steps=5)


@pytest.fixture(autouse=True)
def _one_rate(monkeypatch):
    """One gain to try: which one is chosen does not matter here."""
    monkeypatch.setattr("snn_recon_plugin.witnesses.rescale.RATES", (0.06,))


def stir():
    torch.manual_seed(21)
    np.random.seed(22)
    random.seed(23)


def refused(net, loader, error, *words, **options):
    """The call raises, the message holds the words, and everything is as before."""
    lived_in(net)
    stir()
    before = snapshot(net)
    with pytest.raises(error) as caught:
        convex_init_(net, loader, **options)
    assert_as_before(net, before)
    if isinstance(caught.value, ReconstructionError):
        assert all(part.strip() for part in (caught.value.found, caught.value.needed, caught.value.fix))
        for word in words:
            assert word in str(caught.value)
    return caught.value


def replaced(number, function, count=300):
    """The batches with one of them changed."""
    pairs = batches(count)
    pairs[number] = function(*pairs[number])
    return pairs


def spoiled(value):
    def spoil(inputs, labels):
        inputs = inputs.clone()
        inputs[3, 5] = value
        return inputs, labels

    return spoil


# -- data -----------------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("hidden", ["keep", "rescale"])


@BOTH
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(hidden, number, value):
    loader = replaced(number, spoiled(value))
    refused(loop_net(), loader, DataError, f"batch {number + 1}", "NaN or infinite", "nan_to_num", hidden=hidden)


def test_bad_inputs_beyond_the_samples_that_rescaling_looks_at(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.pipeline.hidden._GAIN_SAMPLES", 150)
    refused(loop_net(), replaced(2, spoiled(float("nan"))), DataError, "batch 3", hidden="rescale")


@BOTH
@pytest.mark.parametrize("loader", [[], (), DataLoader([]), iter([])], ids=["list", "tuple", "loader", "iterator"])
def test_an_empty_loader(hidden, loader):
    refused(loop_net(), loader, DataError, "empty loader", "at least one (input, target) batch", hidden=hidden)


@BOTH
def test_batches_without_a_sample(hidden):
    inputs, labels = train_data(20)
    refused(loop_net(), [(inputs[:0], labels[:0])], DataError, hidden=hidden)


@BOTH
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_batch_without_a_sample(hidden, number):
    loader = replaced(number, lambda inputs, labels: (inputs[:0], labels[:0]))
    refused(loop_net(), loader, DataError, f"batch {number + 1}", hidden=hidden)


@pytest.mark.parametrize(
    "loader", [None, 5, torch.rand(3, 4), "mnist", {"a": 1}, lambda: None], ids=["None", "int", "tensor", "str", "dict", "function"]
)
def test_what_is_no_loader(loader):
    refused(loop_net(), loader, DataError, type(loader).__name__, "(input, target) batches", "DataLoader")


@BOTH
@pytest.mark.parametrize(
    "batch",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: (x, y, y),
        lambda x, y: {"x": x, "y": y},
        lambda x, y: None,
        lambda x, y: (x, "cat"),
        lambda x, y: (x, None),
        lambda x, y: (x, 3),
        lambda x, y: (x, torch.tensor(3)),
    ],
    ids=["tensor", "single", "triple", "dict", "None", "text", "no target", "number", "scalar"],
)
@pytest.mark.parametrize("number", [0, 2])
def test_batches_that_are_no_pairs(hidden, batch, number):
    refused(loop_net(), replaced(number, batch), DataError, f"batch {number + 1}", "(input, target)", hidden=hidden)


LABELS = {
    "float": (lambda y: y.float(), "torch.float32"),
    "one-hot": (lambda y: nn.functional.one_hot(y, CLASSES), "argmax"),
    "negative": (lambda y: y - 1, "-1"),
    "too large": (lambda y: y + 1, "10"),
}


@BOTH
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_batch(hidden, kind):
    change, word = LABELS[kind]
    loader = [(inputs, change(labels)) for inputs, labels in batches(300)]
    refused(loop_net(), loader, DataError, word, hidden=hidden)


@BOTH
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_a_later_batch(hidden, kind):
    change, _ = LABELS[kind]
    refused(loop_net(), replaced(2, lambda x, y: (x, change(y))), DataError, hidden=hidden)


def test_bad_labels_beyond_the_samples_that_rescaling_looks_at(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.pipeline.hidden._GAIN_SAMPLES", 150)
    refused(loop_net(), replaced(2, lambda x, y: (x, y + 0.7)), DataError, "float32", hidden="rescale")


@BOTH
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("change", [lambda y: y[:-7], lambda y: torch.cat([y, y[:7]])], ids=["fewer", "more"])
def test_labels_of_another_length(hidden, number, change):
    loader = replaced(number, lambda x, y: (x, change(y)))
    refused(loop_net(), loader, DataError, "targets", hidden=hidden)


@BOTH
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "logistic"])
def test_a_single_class(hidden, loss):
    loader = [(inputs, torch.full_like(labels, 7)) for inputs, labels in batches(200)]
    refused(loop_net(), loader, DataError, "a single class, 7", "at least two classes", hidden=hidden, loss=loss)


def test_regression_targets_of_the_wrong_width_or_not_finite():
    loader = [(inputs, torch.rand(len(inputs), 3)) for inputs, _ in batches(200)]
    refused(loop_net(), loader, DataError, "(samples, 10)", loss="squared")
    loader = [(inputs, torch.full((len(inputs), CLASSES), float("nan"))) for inputs, _ in batches(200)]
    refused(loop_net(), loader, DataError, "NaN", loss="squared")


@BOTH
@pytest.mark.parametrize("count", [1, 9])
def test_too_few_samples(hidden, count):
    refused(loop_net(), batches(count), DataError, f"{count} samples", "at least 10", hidden=hidden)
    net = loop_net()
    convex_init_(net, batches(10), hidden="keep")


def test_samples_of_another_width():
    loader = replaced(2, lambda x, y: (x[:, :32], y))
    error = refused(loop_net(), loader, NetworkError, "batch 3", "[100, 32]", "mat1 and mat2 shapes", hidden="keep")
    assert isinstance(error.__cause__, RuntimeError)


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_too_little_memory(monkeypatch, hidden):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=12 * HIDDEN * 250))
    message = "300 samples of 48 features"
    refused(loop_net(), data_loader(300), DataError, message, "max_samples=250", hidden=hidden)
    report = convex_init_(loop_net(), data_loader(300), hidden="keep", max_samples=250, strength=1e-3)
    assert report.samples == 250


def test_memory_is_asked_for_the_samples_that_a_sampler_draws(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=12 * HIDDEN * 250))
    loader = DataLoader(TensorDataset(*train_data(600)), 50, sampler=SubsetRandomSampler(range(100)))
    assert convex_init_(loop_net(), loader, hidden="keep", strength=1e-3).samples == 100


# -- networks -------------------------------------------------------------------------------------------------------------


def test_a_silent_hidden_layer():
    words = ("'fc1' is silent", "none of its 48 neurons", "hidden='rescale'")
    refused(divided(loop_net()), batches(200), SilentLayerError, *words, hidden="keep")


def always_on(net):
    with torch.no_grad():
        net.fc1.weight.zero_()
        net.fc1.bias.fill_(50.0)
    return net


def test_a_hidden_layer_that_always_spikes():
    words = ("'fc1' always spikes", "hidden='rescale'")
    refused(always_on(loop_net()), batches(200), SilentLayerError, *words, hidden="keep")


def test_a_layer_that_no_gain_can_help():
    dead = loop_net()
    with torch.no_grad():
        dead.fc1.weight.abs_().neg_()
        dead.fc1.bias.abs_().neg_()
    refused(dead, batches(200), SilentLayerError, "'fc1'", "no positive current", hidden="rescale")
    # Always on at any gain, for the input plays no part.
    error = refused(always_on(loop_net()), batches(200), ReconstructionError, hidden="rescale")
    assert isinstance(error, (SilentLayerError, DataError))
    assert "hidden='rescale'" not in str(error)


class NoReadout(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 2, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem, record = self.lif.reset_mem(), []
        for _ in range(4):
            _, mem = self.lif(self.conv(x.view(-1, 1, 8, 8)), mem)
            record.append(mem)
        return torch.stack(record)


def test_no_readout():
    refused(NoReadout(), batches(200), ReadoutNotFoundError, "no readout", "'conv' (Conv2d)", "nn.Linear")


class TwoHeads(Loop):
    def __init__(self):
        super().__init__()
        self.fc3, self.lif3 = nn.Linear(HIDDEN, 3), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        first, second = [], []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            _, mem3 = self.lif3(self.fc3(spikes), mem3)
            first.append(mem2)
            second.append(mem3)
        return torch.stack(first), torch.stack(second)


def test_several_readouts():
    words = ("2 layers that could be the readout", "'fc2' (Linear)", "'fc3' (Linear)", 'readout_layer="fc2"')
    refused(TwoHeads(), batches(200), AmbiguousReadoutError, *words)


@pytest.mark.parametrize("name", ["fc1", "nowhere", "lif2"])
def test_a_readout_layer_that_is_none(name):
    words = (f"readout_layer={name!r}", "'fc2' (Linear)", 'readout_layer="fc2"')
    refused(loop_net(), batches(200), ReadoutNotFoundError, *words, readout_layer=name)


class Foreign(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(PIXELS, HIDDEN), neuron, nn.Linear(HIDDEN, CLASSES)
        self.register_buffer("extra", torch.ones(2))

    def forward(self, x):
        return self.fc2(self.lif1(self.fc1(x)))


def refused_foreign(net, *words):
    stir()
    before = snapshot(net)
    with pytest.raises(UnsupportedModuleError) as caught:
        convex_init_(net, batches(200))
    assert_as_before(net, before)
    assert all(word in str(caught.value) for word in (*words, "snnTorch"))


def test_a_net_of_no_spiking_neurons():
    refused_foreign(Foreign(nn.ReLU()), "ReLU")


def test_a_net_of_somebodys_own_spiking_neurons():
    class Spike(nn.Module):
        def forward(self, current):
            return (current > 1).float()

    refused_foreign(Foreign(Spike()), "Spike")


@pytest.mark.parametrize("net", [None, 3, lambda x: x, nn.Linear], ids=["None", "int", "function", "class"])
def test_what_is_no_network(net):
    with pytest.raises(ReconstructionError, match=r"nn\.Module"):
        convex_init_(net, batches(200))


def test_a_reference_solver_for_outputs_with_a_filter_each():
    output = snn.Leaky(beta=torch.linspace(0.1, 0.9, CLASSES), reset_mechanism="none")
    options = {"solver": "clarabel", "hidden": "keep", "strength": 1e-2}
    refused(loop_net(output=output), batches(200), OptionError, "filter of their own", "solver='auto'", **options)


def test_weights_that_are_not_finite():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight[0, 0] = float("nan")
    refused(net, batches(200), NetworkError, "'fc1.weight'")


def test_a_readout_that_is_computed_from_another():
    net = loop_net()
    torch.nn.utils.parametrizations.orthogonal(net.fc2)
    refused(net, batches(200), UnsupportedModuleError, "fc2.weight", "parametriz", hidden="keep", strength=1e-3)


def test_a_tied_readout():
    net = loop_net(hidden=10, inputs=PIXELS)
    net.other = nn.Linear(10, CLASSES)
    net.other.weight = net.fc2.weight
    refused(net, batches(200), UnsupportedModuleError, "tied", "other.weight", hidden="keep", strength=1e-3)


@pytest.mark.parametrize("forward", [over_time(4), lambda net, inputs: inputs], ids=["time loop twice", "no layer"])
def test_a_forward_that_does_not_fit(forward):
    refused(loop_net(), batches(200), NetworkError, hidden="keep", forward=forward)


def test_a_missing_forward():
    refused(sequential_net(), batches(200), ReconstructionError, hidden="keep")


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_a_network_that_crashes(hidden):
    class Crashing(Loop):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            if self.calls > 12:
                raise ZeroDivisionError("in the user's forward")
            return super().forward(x)

    error = refused(Crashing(), batches(600, 20), NetworkError, "ZeroDivisionError: in the user's forward", hidden=hidden)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_batches_of_unequal_steps_with_scores_at_each():
    net = loop_net()

    def forward(net, inputs):
        net.steps = 4 if len(inputs) == 50 else 5
        return net(inputs)

    words = ("batches of 5 and of 4 time steps", "membrane_per_step", "pad all batches")
    refused(net, batches(250), CaptureError, *words, hidden="keep", forward=forward, readout="membrane_per_step")


_NOISE = torch.Generator().manual_seed(0)  # out of reach of whoever seeds the global generators


class Noisy(Loop):
    """A network that is not deterministic."""

    def forward(self, x):
        return super().forward(x + 0.5 * torch.randn(x.shape, generator=_NOISE))


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_a_network_that_is_not_deterministic(hidden):
    torch.manual_seed(0)
    refused(Noisy(), batches(200), NetworkError, "other values each time", "deterministic", hidden=hidden, strength=1e-3)


# -- options --------------------------------------------------------------------------------------------------------------

NAMES = {
    "hidden": ("rescale", "keep", "reconstruct"),
    "loss": ("cross_entropy", "logistic", "squared"),
    "penalty": ("ridge", "group_l1", "l1"),
    "readout": ("auto", "membrane_mean", "membrane_sum", "membrane_last"),
    "solver": ("auto", "native", "clarabel", "scs"),
}


@pytest.mark.parametrize("value", ["nonsense", "", None, 3])
@pytest.mark.parametrize("option", NAMES)
def test_unknown_names(option, value):
    error = refused(loop_net(), batches(20), OptionError, f"{option}={value!r}", **{option: value})
    assert all(name in error.needed for name in NAMES[option])
    assert f"{option}=" in error.fix


@pytest.mark.parametrize("option", ["strength", "tol"])
@pytest.mark.parametrize("value", [0, -1, -1e-9, float("nan"), float("inf"), "much", None, True])
def test_numbers_that_must_be_positive(option, value):
    refused(loop_net(), batches(20), OptionError, f"{option}={value!r}", "a positive number", f"pass {option}=", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("holdout", 0),
        ("holdout", -0.1),
        ("holdout", 0.51),
        ("holdout", float("nan")),
        ("holdout", "some"),
        ("holdout", None),
        ("max_samples", 9),
        ("max_samples", -100),
        ("max_samples", 100.0),
        ("max_samples", True),
        ("max_samples", "all"),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", None),
        ("seed", 2**70),
        ("forward", 25),
        ("forward", "over_time"),
        ("readout_layer", 2),
    ],
)
def test_other_options_out_of_range(option, value):
    shown = "forward=" if option == "forward" else f"{option}={value!r}"
    refused(loop_net(), batches(20), ReconstructionError, shown, f"{option}=", hidden="keep", **{option: value})


@pytest.mark.parametrize(("option", "value"), [("penalty", Elastic(GroupL1(), share=5.0)), ("loss", CrossEntropy())])
def test_an_object_for_a_name_is_not_reduced_to_its_name(option, value):
    """An Elastic of share 5 must not silently become one of share 1."""
    with pytest.raises(OptionError, match=f"{option}="):
        ConvexInitializer(**{option: value})


def test_options_are_refused_before_there_is_a_network():
    with pytest.raises(OptionError, match="strength=-1"):
        ConvexInitializer(strength=-1)


def test_positional_options_are_refused():
    with pytest.raises(TypeError):
        ConvexInitializer("keep")


def test_a_readout_for_nets_without_an_output_neuron():
    words = ("readout='linear_mean'", "with an output neuron", "readout='auto'")
    refused(loop_net(), batches(200), OptionError, *words, readout="linear_mean")


# -- errors and interrupts midway -----------------------------------------------------------------------------------------


def raising_after(number, error):
    def loader():
        yield from batches(400)[:number]
        raise error

    return loader()


@BOTH
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("error", [OSError("disk gone"), KeyboardInterrupt(), StopIteration()])
def test_a_loader_that_raises(hidden, number, error):
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    caught = refused(loop_net(), raising_after(number, error), expected, hidden=hidden)
    assert caught is error or caught.__cause__ is error


@pytest.mark.parametrize("place", ["initialize.choose_strength", "capture.capture", "hidden.choose_gains", "task.inspect_network"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_in_any_stage(monkeypatch, place, error):
    def interrupt(*_, **__):
        torch.rand(3)
        raise error

    monkeypatch.setattr(f"snn_recon_plugin.pipeline.{place}", interrupt)
    refused(loop_net(), batches(200), error)


@pytest.mark.parametrize(
    "place", ["rebuild.generate_candidates", "select.find_usable", "simulate.record_inputs", "rebuild.run_layer"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_while_hidden_layers_are_rebuilt(monkeypatch, place, error):
    def interrupt(*_, **__):
        torch.rand(3)
        raise error

    monkeypatch.setattr(f"snn_recon_plugin.witnesses.{place}", interrupt)
    refused(loop_net(), batches(200), error, hidden="reconstruct")


def test_an_interrupt_in_the_middle_of_the_solve(monkeypatch):
    calls = []

    def interrupted(problem, **options):
        calls.append(problem.strength)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(problem, **options)

    from snn_recon_plugin.convex import solve

    monkeypatch.setattr("snn_recon_plugin.convex.path.solve", interrupted)
    refused(loop_net(), batches(200), KeyboardInterrupt, hidden="keep")
    assert len(calls) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_interrupt_in_the_middle_of_the_write(monkeypatch, number, error):
    """Rescaled weight, rescaled bias, readout weight, readout bias: after each of the four writes."""
    write, written = Transaction.write, []

    def interrupted(self, module, name, value):
        write(self, module, name, value)
        written.append(name)
        if len(written) == number:
            raise error

    net = divided(loop_net())
    monkeypatch.setattr(Transaction, "write", interrupted)
    refused(net, batches(200), error, hidden="rescale", strength=1e-3)
    assert written == ["weight", "bias", "weight", "bias"][:number]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_written_network_is_compared(monkeypatch, error):
    net = divided(loop_net())
    seen = []

    def interrupted(*_, **__):
        seen.append(values(net))
        raise error

    monkeypatch.setattr("snn_recon_plugin.pipeline.write.verify", interrupted)
    before = values(net)
    refused(net, batches(200), error, hidden="rescale", strength=1e-3)
    # At that moment all four were written.
    assert {name for name in before if seen[0][name] != before[name]} >= {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_report_is_made(monkeypatch, error):
    """There is no report to undo with, so nothing may stay written."""

    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr("snn_recon_plugin.pipeline.initialize.make_report", interrupted)
    refused(loop_net(), batches(200), error, hidden="keep", strength=1e-3)


def test_scores_that_are_not_the_programs(monkeypatch):
    """The comparison after the write is a real one: a bias that is slightly wrong is found, and rolled back."""
    write = Transaction.write

    def wrong(self, module, name, value):
        write(self, module, name, value)
        if name == "bias":
            # Behind the back of the comparison, which reads the parameters that were written.
            module.register_forward_hook(lambda _module, _args, output: output + 0.01)

    monkeypatch.setattr(Transaction, "write", wrong)
    net = loop_net()
    before = values(net)
    with pytest.raises(WriteError, match=r"differ from those promised by up to 0\.0"):
        convex_init_(net, batches(200), hidden="keep", strength=1e-3)
    assert values(net) == before


def test_membranes_written_behind_torchs_back():
    """What a step left is then not what the next one begins with; the comparison of the net's own scores finds it."""

    class Behind(Loop):
        def forward(self, x):
            mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for _ in range(self.steps):
                spikes, mem1 = self.lif1(self.fc1(x), mem1)
                mem1.data.mul_(0.5)
                _, mem2 = self.lif2(self.fc2(spikes), mem2)
                membranes.append(mem2)
            return torch.stack(membranes)

    net = Behind(steps=8)
    with torch.no_grad():
        net.fc1.weight.mul_(3)
    refused(net, batches(200), WriteError, "differ from those promised", hidden="keep", strength=1e-3)


@pytest.mark.parametrize("factory", [loop_net, sequential_net, conv_net])
def test_after_an_error_the_same_call_works(factory):
    net = factory()
    options = {"forward": over_time(8)} if factory is sequential_net else {}
    with pytest.raises(DataError):
        convex_init_(net, replaced(1, spoiled(float("nan"))), **options)
    twin = copy.deepcopy(net)
    options |= {"hidden": "keep" if factory is not conv_net else "rescale", "strength": 1e-2}
    reports = [convex_init_(each, batches(100), **options) for each in (net, twin)]
    assert values(net) == values(twin)
    assert reports[0].certificate == reports[1].certificate


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_targets_that_are_images(loss):
    data = [(x, x.reshape(-1, 1, 8, 8)) for x, _ in batches(200)]
    refused(loop_net(), data, DataError, "targets that are images", "(1, 8, 8)", "the part of the net that classifies", loss=loss)


# -- refused before a second batch is drawn ---------------------------------------------------------------------------------


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.out = nn.Linear(64, 16), snn.LeakyParallel(16, 10)

    def forward(self, x):
        return self.out(self.fc1(x).expand(5, -1, -1))


def frozen_readout():
    net = loop_net()
    net.fc2.requires_grad_(False)
    return net


class Signs(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.sign(), self.bias)


def binarised_readout():
    net = loop_net()
    net.fc2 = Signs(*net.fc2.weight.T.shape)
    return net


NEVER = {
    "no neuron": (lambda: nn.Sequential(nn.Linear(64, 10)), "no spiking neuron"),
    "LeakyParallel": (Parallel, "ends in 'out' (LeakyParallel)"),
    "binarised readout": (binarised_readout, "quantised or binarised"),
    "frozen readout": (frozen_readout, "net.fc2.requires_grad_(True)"),
    "autoencoder": (loop_net, "targets that are images"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_can_never_work_is_refused_on_the_first_batch(name):
    make, words = NEVER[name]
    drawn = []

    def endless():
        for x, y in itertools.cycle(batches(200)):
            drawn.append(len(y))
            yield x, (x.reshape(-1, 1, 8, 8) if name == "autoencoder" else y)

    with pytest.raises(ReconstructionError) as caught:
        convex_init_(make(), endless())
    assert words in str(caught.value)
    assert len(drawn) == 1
