"""User nets: the nets of tutorials and public scripts, each with its own test, its line and its verdict.

Golden cases and the study number all nets in this order to draw their images, so a new net changes those behind it.
"""

import random
from functools import partial

import norse.torch as norse
import numpy as np
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch.functional.quant import state_quant
from torch import nn

from . import data, norse_nets, unusual_nets
from . import snntorch_nets as nets
from . import spikingjelly_nets as jelly
from .data import CLASSES, HIDDEN, by_count, forward_pass, forward_pass_test, largest, last, library_test, mean, own_test, total
from .more_catalogue import FOUND, MORE_GROUPS, pixels, refused
from .record import UserNet, by_batch, by_step
from .snntorch_nets import AllSteps, Loop, leaky, with_changed

FLAT, OVER = "forward=lambda net, x: net(x.flatten(1))", "forward=over_time(10)"
OVER_EVENTS, OVER_20, ONCE, NLL = "forward=over_time()", "forward=over_time(20)", "forward=over_time(1)", "loss=nn.NLLLoss()"
COUNTS = "loss=SF.mse_count_loss(correct_rate={}, incorrect_rate={})".format
POPULATION = {"population_code": True, "num_classes": CLASSES}
POPULATION_LOSS = COUNTS(1.0, 0.0)[:-1] + ", population_code=True, num_classes=10)"
POPULATIONS = partial(nets.population_net, 5 * CLASSES)
NONE = partial(leaky, reset_mechanism="none")
EVENTS = own_test(total, None, data.over_events, lambda batch: batch[:2])
DRAWN = {"test": data.repeated(data.by_count), "rebuilds": False, "alike": 0.02}


def in_both_layers(neuron, **options):
    return Loop(hidden=neuron(**options), output=neuron(**options))


def two_layers(layer):
    """Two layers of a kind that takes all steps, of which the first reads rows of the image."""
    return lambda: AllSteps(layer1=layer(8, HIDDEN), layer2=layer(HIDDEN, CLASSES))


def row(x, step):
    return x[:, step]


def by_rows(hidden, **options):
    return Loop(8, 8, hidden(beta=0.9, **options), at=row)


def images(name, build, test, options, **more):
    return UserNet(name, build, data.as_images, test, options, **more)


def events(name, loader, options=OVER_EVENTS, **more):
    return UserNet(name, nets.event_net, loader, EVENTS, options, **more)


def stepped(name, build, decode, options="", **more):
    return UserNet(name, build, test=own_test(decode, None, norse_nets.stepped), options=OVER_20 + options, **more)


def sequence(name, build, loader, decode, **more):
    """Layers that take all steps at once, and return values and states."""
    return UserNet(name, build, loader, own_test(decode, 0), **more)


SNNTORCH = (
    UserNet("tutorial 3: a step of input a step", partial(Loop, at=lambda x, step: x[step]), data.as_rate_code),
    images("tutorial 5: the loop flattens images", Loop, data.by_count_flat, FLAT),
    images(
        "quickstart: a leak an output, learned",
        lambda: Loop(hidden=leaky(), output=snn.Leaky(beta=torch.rand(CLASSES), learn_beta=True)),
        data.by_count_flat,
        f"{FLAT}, loss=SF.ce_rate_loss()",
    ),
    images("population code, one step", POPULATIONS, forward_pass_test(1, **POPULATION), f"{ONCE}, {POPULATION_LOSS}"),
    images("population code, 10 steps", POPULATIONS, forward_pass_test(**POPULATION), f"{OVER}, {POPULATION_LOSS}"),
    images("init_hidden, spikes counted", nets.population_net, forward_pass_test(), OVER),
    images(
        "init_hidden without Flatten",
        lambda: nets.population_net()[1:],
        own_test(total, None, lambda net, images: forward_pass(net, images.flatten(1))),
        "forward=over_time(10, flatten=True)",
    ),
    images("init_hidden, mse_count_loss", nets.population_net, forward_pass_test(), f"{OVER}, {COUNTS(0.8, 0.2)}"),
    images("one step, spikes counted", nets.population_net, forward_pass_test(1), ONCE),
    UserNet("one step in forward, spikes and membranes", partial(Loop, steps=1)),
    UserNet("one step, mse_count_loss", partial(Loop, steps=1), options=COUNTS(1.0, 0.0)),
    UserNet("StateLeaky, spikes counted", two_layers(lambda *sizes: nn.Sequential(*nets.state_leaky(*sizes))), data.as_row_steps),
    UserNet("LinearLeaky, spikes counted", two_layers(partial(snn.LinearLeaky, 0.9)), data.as_row_steps),
    UserNet("membranes, reset none, mean", partial(Loop, output=NONE, returns=nets.membranes), test=own_test(mean)),
    pixels("last membrane of a net that returns both", partial(Loop, output=NONE), own_test(last, 1), 'readout="membrane_last"'),
    pixels(
        "largest membrane, ce_max_membrane_loss", partial(Loop, output=NONE), own_test(largest, 1), "loss=SF.ce_max_membrane_loss()"
    ),
    UserNet("membranes that reset to zero, spikes counted", partial(Loop, output=partial(leaky, reset_mechanism="zero"))),
    UserNet("resets without delay", partial(in_both_layers, leaky, reset_delay=False)),
    pixels("first spike", Loop, library_test(SF.accuracy_temporal, lambda net, x: net(x)[0]), 'readout="first_spike"'),
    pixels("returns spike counts", partial(Loop, returns=lambda spikes, membranes: spikes.sum(0)), own_test()),
    pixels("returns log_softmax, NLLLoss", partial(Loop, output=NONE, returns=lambda s, m: m[-1].log_softmax(1)), own_test(), NLL),
    UserNet(
        "states as arguments, the script's loop",
        nets.Steps,
        test=own_test(total, None, nets.run_steps),
        options="forward=run_steps",
        names={"run_steps": nets.run_steps},
    ),
    UserNet("three layers, learned leaks and thresholds", nets.ModuleLists),
    UserNet("a leak a hidden neuron, learned", lambda: Loop(hidden=snn.Leaky(beta=torch.rand(HIDDEN), learn_beta=True))),
    UserNet("a leak a hidden neuron, fixed", lambda: Loop(hidden=snn.Leaky(beta=torch.linspace(0.5, 0.95, HIDDEN)))),
    UserNet(
        "a threshold an output, learned",
        lambda: Loop(output=leaky(threshold=torch.linspace(0.5, 1.5, CLASSES), learn_threshold=True)),
    ),
    UserNet("Synaptic", partial(in_both_layers, snn.Synaptic, alpha=0.8, beta=0.9)),
    UserNet("Alpha", partial(in_both_layers, snn.Alpha, alpha=0.9, beta=0.8)),
    UserNet("Lapicque", partial(in_both_layers, snn.Lapicque, beta=0.8)),
    UserNet("RLeaky, a row a step", partial(by_rows, snn.RLeaky, linear_features=HIDDEN), data.as_rows),
    UserNet("RLeaky, one weight a neuron", partial(by_rows, snn.RLeaky, all_to_all=False), data.as_rows),
    UserNet("RSynaptic, a row a step", partial(by_rows, snn.RSynaptic, alpha=0.8, linear_features=HIDDEN), data.as_rows),
)

DICTS = UserNet(
    "batches that are dicts",
    nets.conv_net,
    data.as_dicts,
    own_test(total, None, forward_pass, lambda batch: (batch["image"], batch["label"])),
    f'{OVER}, unpack=lambda batch: (batch["image"], batch["label"])',
)
BY_KEYS = own_test(total, 0, lambda net, x: net(x.flatten(1)), lambda batch: (batch["image"], batch["label"]))
AS_TUTORIAL = UserNet("", Loop)

OTHER_LAYERS = (
    images("tutorial 6: convolutions, init_hidden", nets.conv_net, forward_pass_test(), OVER),
    events("tutorial 7: convolutions on events", data.as_events, f"{OVER_EVENTS}, {COUNTS(0.8, 0.2)}"),
    events("events, another number of steps in each batch", data.as_batches_pad_batches, order=data.by_length),
    events("triples of events, labels and lengths", data.as_triples, f"{OVER_EVENTS}, unpack=lambda batch: (batch[0], batch[1])"),
    DICTS,
    images("grouped convolution", nets.depthwise_net, forward_pass_test(), OVER),
    UserNet("Conv1d", nets.Conv1dNet, data.as_rows),
    images("frozen convolutions, a new head", nets.frozen_features, forward_pass_test(), OVER),
    UserNet("batch norm and dropout", nets.Normalised),
    UserNet("batch norm through time", nets.NormalisedOverTime),
    UserNet("weight norm", with_changed(nn.utils.parametrizations.weight_norm, "fc1", "fc2")),
    UserNet("residual", nets.Residual),
    UserNet("SLSTM, membranes into a Linear", nets.LongShortTerm, data.as_rows, rebuilds=False),
    UserNet("lightning module", lambda: nets.InLightning(Loop()), data.as_images),
    images("pytorch_lightning module", nets.OldLightningNet, data.by_count_flat, FLAT),
    UserNet("a loader that fills one buffer again and again", Loop, data.OneBuffer),
    UserNet("an iterable data set", Loop, data.as_stream),
    UserNet(
        "weight norm of before PyTorch 2.0",
        with_changed(nn.utils.weight_norm, "fc1", "fc2"),
        refused=("fc", "weight_norm"),
        either=True,
    ),
    UserNet("a pruned hidden layer", nets.pruned, refused=("fc1", "prun"), either=True),
    UserNet("train() is a training loop", nets.OwnTraining),
    UserNet(
        "label smoothing",
        Loop,
        options="loss=nn.CrossEntropyLoss(label_smoothing=0.1)",
        refused=("label_smoothing", "pass loss="),
        either=True,
    ),
)

NORSE = (
    images(
        "MNIST notebook, recurrent cells, NLLLoss", partial(norse_nets.Notebook, recurrent=True), own_test(), NLL, rebuilds=False
    ),
    images("MNIST notebook, dense cells, NLLLoss", partial(norse_nets.Notebook, recurrent=False), own_test(), NLL),
    images("convolutional cells, LILinearCell, maximum", norse_nets.ConvNet, own_test(largest), 'readout="membrane_max"'),
    stepped("cells, the script's loop, maximum", norse_nets.cells, largest, ', readout="membrane_max"'),
    stepped("cells, the script's loop, mean", norse_nets.cells, mean),
    stepped("cells, last voltage", norse_nets.cells, last, ', readout="membrane_last"'),
    stepped("cells, spikes counted", partial(norse_nets.cells, norse.LIFCell), total),
    stepped("box cells, spikes counted", partial(norse_nets.cells, norse.LIFBoxCell, norse.LIFBoxCell), total),
    sequence("layers on a rate code, last voltage", norse_nets.layers, data.as_rate_code, last, options='readout="membrane_last"'),
    sequence("recurrent layer, a row a step", norse_nets.recurrent_rows, data.as_row_steps, mean, rebuilds=False),
    sequence("adaptive recurrent layer, a row a step", norse_nets.adaptive_rows, data.as_row_steps, mean, rebuilds=False),
    sequence("lifted convolutions on events", norse_nets.lifted_on_events, data.as_events, mean),
    UserNet("a module that returns the sum, dropout", norse_nets.FirstOutput, data.as_rate_code, own_test()),
    stepped("adaptive cells under an integrator", partial(norse_nets.cells, hidden=norse.LIFAdExCell), mean, rebuilds=False),
    stepped("cells in double precision", lambda: norse_nets.cells().double(), mean, loader=data.as_doubles),
)

UNUSUAL = (
    UserNet("spikes drawn in forward", partial(Loop, at=lambda x, step: torch.bernoulli(x)), **DRAWN),
    UserNet(
        "spikes drawn by NumPy", partial(Loop, at=lambda x, step: (torch.from_numpy(np.random.rand(*x.shape)) < x).float()), **DRAWN
    ),
    UserNet("brightness drawn by Python", partial(Loop, at=lambda x, step: x * random.uniform(0.8, 1.2)), **DRAWN),
    UserNet("membranes that the script resets", unusual_nets.NeverReset, test=own_test(total, None, data.reset_and_call)),
)

REFUSED = (
    UserNet("autoencoder", unusual_nets.Autoencoder, data.as_reconstruction, refused=("readout",)),
    refused(
        "LeakyParallel to the end",
        UserNet("", two_layers(partial(snn.LeakyParallel, beta=0.9)), data.as_row_steps),
        *("LeakyParallel", "end the net with an nn.Linear"),
        fixed=FOUND["LeakyParallel, then a Linear"],
    ),
    refused(
        "no spiking neuron",
        images("", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)), by_count, ""),
        "spiking neuron",
    ),
    refused(
        "neurons in a plain list", UserNet("", unusual_nets.InLists), "list", "ModuleList", fixed=UserNet("", nets.ModuleLists)
    ),
    refused("binarised weights in the readout", UserNet("", unusual_nets.binary_readout), "fc2", "Binarised", fixed=AS_TUTORIAL),
    refused(
        "quantised membrane of the output",
        UserNet("", lambda: Loop(output=leaky(state_quant=state_quant(num_bits=4, threshold=1.0)))),
        *("lif2", "quant"),
        fixed=AS_TUTORIAL,
    ),
    refused("states that are never handed on", UserNet("", unusual_nets.Forgetful), "state", "lif", fixed=AS_TUTORIAL),
    refused(
        "RLeaky output",
        UserNet("", lambda: Loop(8, 8, output=snn.RLeaky(0.9, linear_features=CLASSES), at=row), data.as_rows),
        *("lif2", "RLeaky"),
        fixed=UserNet("", lambda: Loop(8, 8, output=leaky(reset_mechanism="none"), at=row), data.as_rows, own_test(mean, 1)),
    ),
    refused(
        "spectral norm on the readout",
        UserNet("", with_changed(nn.utils.parametrizations.spectral_norm, "fc2")),
        *("fc2", "spectral"),
        fixed=AS_TUTORIAL,
    ),
    refused(
        "images that the script's loop flattens",
        UserNet("", Loop, data.as_images),
        *("fc1", "step=train_batch"),
        fixed=UserNet("", Loop, data.as_images, data.by_count_flat, **by_step(lambda net, x: net(x.flatten(1))[0].sum(0))),
    ),
    refused(
        "batches that are dicts, without unpack=",
        UserNet("", Loop, data.as_dicts, BY_KEYS),
        "step=train_batch",
        fixed=by_batch(lambda net, batch: nn.functional.cross_entropy(net(batch["image"].flatten(1))[0].sum(0), batch["label"])),
    ),
)

RATES = {"test": own_test(run=jelly.reset_after(lambda net, data: net(data)))}  # of nets that return firing rates
AT_ONCE = own_test(mean, None, jelly.reset_after(jelly.all_steps))
EACH_STEP = own_test(mean, None, jelly.reset_after(jelly.step_through))
VOTERS = "forward=lambda net, x: net[:-1](x.expand(10, *x.shape)), classes=10"

SPIKINGJELLY = (
    UserNet("conv_fashion_mnist: CSNN, step mode m", jelly.CSNN, data.as_images, **RATES),
    UserNet("CSNN trained by MSELoss", jelly.CSNN, data.as_images, options="loss=nn.MSELoss()", **RATES),
    UserNet("CSNN, step mode s", partial(jelly.CSNN, "s"), data.as_images, **RATES),
    UserNet(
        "lif_fc_mnist: the encoder draws spikes in the loop",
        jelly.lif_fc_mnist,
        data.as_images,
        data.repeated(own_test(run=jelly.reset_after(jelly.encode_and_step))),
        "forward=encode_and_step",
        {"encode_and_step": jelly.encode_and_step},
        alike=0.02,
    ),
    pixels("all steps in the script's call, net reset behind it", lambda: jelly.in_mode("m", *jelly.dense()), AT_ONCE, OVER),
    UserNet("layers of torch in containers", jelly.contained, data.as_images, AT_ONCE, OVER),
    pixels("ParametricLIFNode, batch norm and dropout", jelly.learned_time_constants, EACH_STEP, OVER),
    UserNet("rsnn_sequential_fmnist: a recurrent container", jelly.feedback, data.as_row_steps, **RATES),
    UserNet("rsnn_sequential_fmnist: a learned synapse filter", jelly.filtered, data.as_row_steps, **RATES),
    UserNet("classify_dvsg: ten outputs vote for a class", jelly.voting, test=AT_ONCE, options=VOTERS),
)

EIGHT_BITS = state_quant(num_bits=8, threshold=1.0)
FAKES = UserNet("torch.ao: a hidden layer that rounds", unusual_nets.fake_quantised)
QUANTISED = (
    FAKES,
    UserNet("a hidden layer that rounds by hand", unusual_nets.rounded_by_hand, rebuilds=False),
    UserNet("quantised membranes in the hidden layer", lambda: Loop(hidden=leaky(state_quant=EIGHT_BITS)), rebuilds=False),
    refused(
        "torch.ao: observers that are on",
        UserNet("", partial(unusual_nets.fake_quantised, observes=True)),
        *("fc1", "net.apply(torch.ao.quantization.disable_observer)"),
        fixed=FAKES,
    ),
    refused(
        "torch.ao: a readout that rounds",
        UserNet("", partial(unusual_nets.fake_quantised, "fc2")),
        *("fc2", "quantize_readout_"),
        fixed=AS_TUTORIAL,
    ),
)

GROUPS = {
    "snnTorch": SNNTORCH,
    "snnTorch, other layers and data": OTHER_LAYERS,
    "Norse": NORSE,
    "unusual": UNUSUAL,
    "no convex readout": REFUSED,
    **MORE_GROUPS,
    "SpikingJelly": SPIKINGJELLY,
    "quantised": QUANTISED,
}
