"""User nets in the forms that were refused most often, and in their neighbours' forms."""

from dataclasses import replace
from functools import partial

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn

from . import data
from . import more_nets as more
from .data import CLASSES, HIDDEN, STEPS, largest, last, mean, own_test, total
from .more_nets import NONE, Front, NoOutputNeuron, NormalisedCells, TimeFirst, behind, regressor, single
from .record import UserNet, by_batch, by_step
from .snntorch_nets import Loop, leaky, membranes

OVER, OVER_TIME, BATCH_FIRST = "forward=over_time(10)", "forward=over_time()", "forward=over_time(time_dim=1)"
BCE, MSE, PER_STEP = "loss=nn.BCEWithLogitsLoss()", "loss=nn.MSELoss()", 'readout="membrane_per_step"'
TIME_FIRST = "unpack=lambda batch: (batch[0], batch[1].transpose(0, 1))"
EXPANDED = "forward=lambda net, x: net(x.flatten(1).expand(10, -1, -1))"
SCORES = own_test()
LOOP, BY_ROWS = own_test(total, None, data.forward_pass), own_test(total, None, data.over_rows)


def pixels(name, build, test, options="", **more):
    return UserNet(name, build, test=test, options=options, **more)


def shows(decode):
    """Forward returns what ``decode`` makes of the membranes of an output that never resets."""
    return partial(Loop, output=NONE, returns=lambda spikes, membranes: decode(membranes))


def counts(change):
    """Forward returns what ``change`` makes of the output's spikes."""
    return partial(Loop, returns=lambda spikes, membranes: change(spikes))


def rate(spikes, membranes):
    return spikes.mean(0)


def more_than_two(spikes, membranes):
    return spikes.sum(0) - 2.5


def mean_membrane(spikes, membranes):
    return membranes.mean(0)


def last_score(spikes, membranes):
    return membranes[-1, :, 0]


def blocks(name, build, **options):
    """A Sequential whose neurons keep their membranes, under the script's loop."""
    return UserNet(name, build, data.as_images, LOOP, OVER, **options)


def cells(name, build, decode=mean, **options):
    """Cells of Norse in forward's own loop."""
    return UserNet(name, build, test=own_test(decode), **options)


def layers(name, *hidden, **options):
    """Layers of Norse over all steps of a rate code."""
    return UserNet(name, lambda: more.lifted(*(build() for build in hidden)), data.as_rate_code, own_test(mean, 0), **options)


BEHIND = (
    UserNet("a batch norm behind the readout", lambda: behind(more.trained_norm())),
    UserNet("a new one, behind a Linear without a bias", lambda: behind(nn.BatchNorm1d(CLASSES), bias=False)),
    UserNet("a factor behind the readout", lambda: behind(more.Apply(lambda x: 2.5 * x))),
    UserNet("a learned factor an output", lambda: behind(more.Gain())),
    UserNet(
        "a batch norm behind the readout, membranes",
        lambda: behind(more.trained_norm(), output=NONE, returns=membranes),
        test=own_test(mean),
    ),
    UserNet("batch norm through time behind the readout", more.EveryStepNorm),
    UserNet("a batch norm of the scores", more.ScoreNorm, test=SCORES),
    UserNet("membranes times a factor", shows(lambda values: 0.1 * values), test=own_test(mean)),
    UserNet("summed membranes over the steps", shows(lambda values: values.sum(0) / STEPS), test=SCORES),
    UserNet("later membranes weigh more", shows(more.weigh_later), test=SCORES),
    UserNet("counts times a factor", counts(lambda spikes: 0.3 * spikes.sum(0)), test=SCORES),
    UserNet("rates less one half", counts(lambda spikes: spikes.mean(0) - 0.5), test=SCORES),
    UserNet("log_softmax of counts", counts(lambda spikes: spikes.sum(0).log_softmax(1)), test=SCORES),
    UserNet("a batch norm without an output neuron", lambda: NoOutputNeuron(last=more.trained_norm()), test=SCORES),
    cells("batch norm and factor before an integrator", NormalisedCells),
    cells("the same, spikes counted", partial(NormalisedCells, output=norse.LIFCell), total),
)

OUTPUTS = (
    UserNet("no output neuron, the mean", NoOutputNeuron, test=SCORES),
    UserNet("no output neuron, the sum", partial(NoOutputNeuron, decode=total), test=SCORES),
    UserNet("no output neuron, the last step", partial(NoOutputNeuron, decode=last), test=SCORES),
    UserNet("a Linear on the last hidden membrane", partial(NoOutputNeuron, "membranes", last), test=SCORES),
    UserNet("a Linear on hidden counts", partial(NoOutputNeuron, first=total), test=SCORES),
    UserNet("a threshold that is never reached", lambda: Loop(output=leaky(threshold=1e9), returns=membranes), test=own_test(mean)),
    UserNet("the same, spikes returned too", lambda: Loop(output=leaky(threshold=1e9)), test=own_test(mean, 1)),
    UserNet("membranes that reset, their mean", partial(Loop, returns=membranes), test=own_test(mean)),
    UserNet("membranes that reset, their sum", lambda: Loop(returns=lambda s, m: m.sum(0)), test=SCORES),
    UserNet("the largest membrane, returned", shows(largest), test=SCORES),
    UserNet("the mean membrane, returned", shows(mean), test=SCORES),
    UserNet(
        "a dict of spikes and membranes",
        partial(Loop, returns=lambda s, m: {"spk": s, "mem": m}),
        test=own_test(lambda out: out["spk"].sum(0)),
    ),
    UserNet("lists of steps", partial(Loop, returns=lambda s, m: (list(s), list(m))), test=own_test(sum, 0)),
    UserNet("spikes batch first", counts(lambda spikes: spikes.transpose(0, 1)), test=own_test(lambda spikes: spikes.sum(1))),
    UserNet("counts and hidden activity", counts(lambda spikes: (spikes.sum(0), spikes.mean())), test=own_test(item=0)),
    UserNet("a named tuple", counts(lambda spikes: more.Output(spikes.sum(0), spikes.mean())), test=own_test(item=0)),
    UserNet("two heads", more.Heads, options='readout_layer="fc2"'),
    UserNet("learned leak and threshold of the output", lambda: Loop(output=leaky(learn_beta=True, learn_threshold=True))),
    UserNet("ce_rate_loss", Loop, options="loss=SF.ce_rate_loss()"),
    UserNet("mse_membrane_loss", partial(Loop, output=NONE), options="loss=SF.mse_membrane_loss()", test=own_test(mean, 1)),
    UserNet("class weights", Loop, options="loss=nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10))"),
    UserNet("a margin loss", shows(mean), options="loss=nn.MultiMarginLoss()", test=SCORES),
)

BELOW = (
    UserNet("readout of all layers and the input", more.Wide, test=own_test(lambda spikes: spikes.sum(1))),
    UserNet("a hidden Linear over tokens", more.Tokens, data.as_rows, SCORES),
    UserNet("a ReLU layer first", lambda: Front(nn.Sequential(nn.Linear(64, 48), nn.ReLU()), 48)),
    UserNet("an embedding of grey levels", lambda: Front(nn.Sequential(nn.Embedding(17, 2), nn.Flatten()), 128), data.as_levels),
    UserNet("an LSTM first", lambda: Front(more.LastState(), 32), data.as_rows),
    UserNet("a frozen projection first", lambda: Front(nn.Linear(64, 96).requires_grad_(False), 96)),
    UserNet("leaks and thresholds of hidden neurons", lambda: Loop(hidden=more.beta_per_neuron)),
    UserNet("graded spikes", lambda: Loop(hidden=more.graded)),
    UserNet("a latency code in forward", more.latency_encoder),
    UserNet("spikegen.rate in forward", more.rate_encoder, test=data.repeated(data.by_count), rebuilds=False, alike=0.02),
    UserNet("a recurrent layer on a still image", lambda: Loop(hidden=snn.RLeaky(0.9, linear_features=HIDDEN)), rebuilds=False),
    UserNet("LeakyParallel, then a Linear", more.parallel, data.as_row_steps, own_test(mean), rebuilds=False),
    blocks("nested blocks", lambda: more.dense((64, 48, 40, CLASSES))),
    blocks("five hidden layers", lambda: more.dense((64, 40, 40, 40, 40, 40, CLASSES))),
    blocks("batch norm behind a convolution without a bias", lambda: more.convolutional(more.trained_norm2d(), more.stateful())),
    blocks("spikes averaged by AvgPool2d", lambda: more.convolutional(more.stateful(), nn.AvgPool2d(2), features=192)),
    blocks("a residual block", lambda: more.convolutional(more.stateful(), more.Block(12))),
    blocks(
        "adaptive pooling to one value a channel", lambda: more.convolutional(more.stateful(), nn.AdaptiveAvgPool2d(2), features=48)
    ),
    cells("refractory cells", partial(NormalisedCells, hidden=norse.LIFRefracCell), rebuilds=False),
    cells("exponential cells", partial(NormalisedCells, hidden=norse.LIFExCell), rebuilds=False),
    UserNet("a Poisson encoder", more.poisson, test=data.repeated(own_test(mean)), rebuilds=False, alike=0.02),
    layers("two layers of LIF", *(more.hidden_linear, more.lif_layer), *(more.square_linear, more.lif_layer)),
    layers("batch norm lifted over time", more.hidden_linear, more.lifted_norm, more.lif_layer),
)

UNPACKED = 'unpack=lambda batch: (batch["pixel_values"], batch["labels"])'


def by_names(batch):
    return batch["pixel_values"], batch["labels"]


def read(name, build, loader, run, options):
    """A net that is called in a way of its own, whose spikes are counted."""
    return UserNet(name, build, loader, own_test(total, 0, run), options)


READS = (
    UserNet("frames batch first, the script's loop", more.row_blocks, data.as_rows, BY_ROWS, BATCH_FIRST),
    UserNet(
        "frames of another length in each batch",
        more.row_blocks,
        data.as_rows_by_length,
        BY_ROWS,
        BATCH_FIRST,
        order=data.by_length,
    ),
    read("images into a net of all steps", more.states, data.as_images, data.expand, EXPANDED),
    UserNet("states kept without init_hidden", more.OneStep, test=own_test(total, None, more.loop_of_one_step), options=OVER),
    UserNet("sequences time first", TimeFirst, data.as_row_steps, own_test(mean)),
    UserNet("dicts of other names", Loop, data.as_features, own_test(total, 0, unpack=by_names), UNPACKED),
    read("two inputs", more.TwoInputs, data.as_halves, lambda net, halves: net(*halves), "forward=lambda net, x: net(*x)"),
    pixels(
        "an output object",
        counts(lambda spikes: more.Found(spikes.sum(0))),
        own_test(lambda found: found.logits),
        "forward=lambda net, x: net(x).logits",
    ),
    read(
        "NumPy arrays",
        Loop,
        data.as_arrays,
        lambda net, x: net(torch.as_tensor(x)),
        "forward=lambda net, x: net(torch.as_tensor(x))",
    ),
)

MOST = data.single_test(total, 0, STEPS / 2)
ONE_OUTPUT = (
    UserNet("two outputs for two classes", lambda: Loop(sizes=(HIDDEN, 2)), data.as_large),
    UserNet("one output that spikes at most steps", single, data.as_large, MOST, 'loss="logistic"'),
    UserNet("labels as floats", single, data.as_large_floats, MOST, BCE),
    UserNet("a rate above one half", partial(single, rate), data.as_large_floats, data.single_test(middle=0.5), BCE),
    UserNet("more than two spikes", partial(single, more_than_two), data.as_large_floats, data.single_test(), BCE),
    UserNet("one membrane", partial(single, mean_membrane, NONE), data.as_large_floats, data.single_test(), BCE),
    UserNet("scores of the form [B]", partial(single, last_score, NONE), data.as_large_floats, data.single_test(), BCE),
    UserNet("one membrane that resets", partial(single, membranes), data.as_large_floats, data.single_test(mean), BCE),
    UserNet("a batch norm before one output", more.normalised_single, data.as_large_floats, MOST, BCE),
)


def regression(name, build, loader=data.as_brightness, test=data.squared_test, options=MSE):
    return UserNet(name, build, loader, test, options, regression=True)


VALUES = (
    regression("brightness of an image", regressor),
    regression("brightness of each row", partial(regressor, 8), data.as_row_brightness),
    regression("the last membrane", partial(regressor, returns=lambda s, m: m[-1])),
    regression("without an output neuron", partial(NoOutputNeuron, outputs=1)),
    regression(
        "a value at every step, time first",
        partial(TimeFirst, outputs=1),
        data.as_steps_to_follow,
        options=f"{MSE}, {PER_STEP}, {TIME_FIRST}",
    ),
    regression("a Huber loss", regressor, test=data.huber_test, options="loss=nn.HuberLoss()"),
    regression("an integrator of Norse", more.Voltage),
)


# -- refused, with what the message says to do ------------------------------------------------------------------------------
def refused(name, entry, *words, fixed=None, **options):
    """An entry that is refused as it stands, and what it is after the line or the net was changed as the message says."""
    if isinstance(fixed, str):
        fixed = replace(entry, options=fixed)
    elif isinstance(fixed, dict):
        fixed = replace(entry, **fixed)
    changed = fixed if isinstance(fixed, UserNet) or fixed is None else replace(entry, build=fixed)
    return replace(entry, name=name, refused=words, fixed=changed, **options)


FOUND = {entry.name: entry for entries in (BEHIND, OUTPUTS, BELOW, READS, ONE_OUTPUT, VALUES) for entry in entries}
BETWEEN, RETURN_THEM = "not by one factor and offset", "return the recorded membranes"
COUNTED, SHOWN, DECIDED = UserNet("", Loop), UserNet("", shows(mean), test=SCORES), FOUND["one output that spikes at most steps"]
ONE_SCORE = UserNet("", partial(single, mean_membrane, NONE), data.as_large_floats, data.single_test(), BCE)
clamp = partial(torch.clamp, min=-1, max=1)
LEAKS = partial(snn.RLeaky, 0.9, all_to_all=False)


def behind_refused(name, build, *words, fixed=Loop):
    """A Loop with something behind its readout that is no factor and offset."""
    return refused(name, replace(COUNTED, build=build), BETWEEN, *words, "remove it", fixed=fixed)


def shown_refused(name, returns, *words, fixed=mean, test=SCORES):
    """A Loop that returns what no readout decodes from its membranes."""
    return refused(name, replace(SHOWN, build=shows(returns), test=test), *words, fixed=shows(fixed))


def as_they_are(values):
    return values


def without(name, fixed, *words):
    """The line of another entry without its option."""
    entry = FOUND[name]
    return refused(f"{name}, without {entry.options.partition('=')[0]}=", entry, *words, fixed=fixed, options="")


NETS_TO_CHANGE = (
    shown_refused("softmax of the scores", more.softmax, "no LSTM, softmax", RETURN_THEM),
    refused("softmax of the counts", replace(SHOWN, build=counts(more.softmax)), "no LSTM, softmax", fixed=counts(total)),
    shown_refused("softmax at every step", more.softmax_at_steps, "no LSTM, softmax", fixed=as_they_are, test=own_test(mean)),
    refused("the sigmoid of one score", replace(ONE_SCORE, build=more.with_sigmoid), "no LSTM", RETURN_THEM, fixed=ONE_SCORE.build),
    shown_refused("membranes that forward clamps", clamp, "clamp", RETURN_THEM, fixed=as_they_are, test=own_test(mean)),
    shown_refused("noise on the scores", more.noisy, "clamp or noise", RETURN_THEM),
    behind_refused("a clamp behind the readout", lambda: behind(more.Apply(clamp)), "clamp"),
    behind_refused("softmax behind the readout", lambda: behind(nn.Softmax(1)), "softmax"),
    behind_refused("noise behind the readout", lambda: behind(more.Apply(more.noisy)), "noise"),
    behind_refused(
        "another factor at each step behind the readout", partial(more.EveryStepNorm, trained=True), "the same at all steps"
    ),
    behind_refused("a second input of the output neuron", more.SecondInput, "second input", fixed=partial(more.SecondInput, 0.0)),
    refused(
        "an output membrane clamped between steps",
        replace(COUNTED, build=more.Clamped),
        *("as a clamp or a reset does", "hand it on unchanged"),
        fixed=partial(more.Clamped, False),
    ),
    refused(
        "an output whose spikes come back to itself",
        replace(COUNTED, build=lambda: Loop(output=LEAKS, returns=membranes), test=own_test(mean)),
        *("RLeaky", "replace it"),
        fixed=lambda: Loop(output=NONE, returns=membranes),
    ),
    refused(
        "a trained batch norm behind a Linear without a bias",
        replace(COUNTED, build=lambda: behind(more.trained_norm(), bias=False)),
        "bias=True",
        fixed=lambda: behind(more.trained_norm()),
    ),
    refused(
        "each sequence read at a step of its own",
        replace(FOUND["sequences time first"], build=more.Ragged, test=SCORES),
        *("none of", RETURN_THEM),
        fixed=FOUND["sequences time first"],
    ),
)
LINES_TO_CHANGE = (
    refused(
        "targets time first, without unpack=",
        FOUND["a value at every step, time first"],
        TIME_FIRST,
        fixed=f"{MSE}, {PER_STEP}, {TIME_FIRST}",
        options=f"{MSE}, {PER_STEP}",
    ),
    without(
        "frames batch first, the script's loop",
        by_step(lambda net, x: data.over_rows(net, x).sum(0)),
        *("[8, 8, 64]", "step=train_batch"),
    ),
    without("images into a net of all steps", by_step(lambda net, x: data.expand(net, x)[0].sum(0)), "layer1.0"),
    without("states kept without init_hidden", OVER, "single time step", "over_time"),
    without("two heads", 'readout_layer="fc2"', "large", "fc2"),
    without(
        "dicts of other names",
        by_batch(lambda net, b: nn.functional.cross_entropy(net(b["pixel_values"])[0].sum(0), b["labels"])),
        "pixel_values",
    ),
    without("an output object", by_step(lambda net, x: net(x).logits), "Found", "step=train_batch"),
    without("two inputs", by_step(lambda net, x: net(*x)[0].sum(0)), "lower", "step=train_batch"),
    without("one output that spikes at most steps", "loss='logistic'", "one output"),
    without("brightness of an image", MSE, "one output", "for values"),
    refused(
        "the first spike of one output",
        replace(DECIDED, options="loss='logistic', readout='first_spike'"),
        "single output",
        fixed="loss='logistic', readout='spike_count'",
    ),
    refused("squares of one spiking output", replace(DECIDED, options=MSE), "single output", fixed="loss='logistic'"),
)

MORE_GROUPS = {
    "behind the readout": BEHIND,
    "below the readout": BELOW,
    **{
        group: tuple(replace(entry, rebuilds=False) for entry in entries)  # hidden layers of which the others have the like
        for group, entries in {
            "outputs and losses": OUTPUTS,
            "inputs and calls": READS,
            "one output": ONE_OUTPUT,
            "values": VALUES,
            "nets to change": NETS_TO_CHANGE,
            "lines to change": LINES_TO_CHANGE,
        }.items()
    },
}
