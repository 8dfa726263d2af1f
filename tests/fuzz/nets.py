"""The nets and loaders of fuzz cases."""

from types import SimpleNamespace

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin import over_time

from ..faults import FaultError

WAYS = {
    "stack": lambda values: values,
    "mean": lambda values: values.mean(0),
    "sum": lambda values: values.sum(0),
    "last": lambda values: values[-1],
    "max": lambda values: values.amax(0),
}
WAYS |= {"count": WAYS["sum"], "rate": WAYS["mean"]}


class Fuse(nn.Module):
    """Passes its input on, and blows at one of its calls."""

    def __init__(self):
        super().__init__()
        # No tensor and no container, so that nobody puts the count of calls back.
        self.fuse = SimpleNamespace(done=0, last=None, error=FaultError)

    def forward(self, x):
        self.fuse.done += 1
        if self.fuse.done == self.fuse.last:
            raise self.fuse.error("the forward")
        return x


class Inside(nn.Module):
    """The time loop in forward, states handed on by hand."""

    def __init__(self, parts, case):
        super().__init__()
        self.parts, self.steps, self.output, self.reduce = nn.ModuleList(parts), case.data.steps, case.net.output, case.net.reduce
        self.library = case.net.library

    def forward(self, x):
        if self.library == "spikingjelly":
            functional.reset_net(self)
        states, steps = {}, []
        for _ in range(self.steps):
            value = x
            for number, part in enumerate(self.parts):
                if isinstance(part, snn.SpikingNeuron):
                    state = states.get(number) or part.reset_mem()
                    state = state if isinstance(state, list | tuple) else [state]
                    value, *others = part(value, *state)
                    states[number] = [value, *others] if isinstance(part, snn.RLeaky) else others
                elif hasattr(part, "p"):  # Norse's constants
                    value, states[number] = part(value, states.get(number))
                else:
                    value = part(value)
            last = states.get(len(self.parts) - 1)
            steps.append((value, last[-1] if isinstance(last, list) else value))
        spikes, values = (torch.stack(column) for column in zip(*steps, strict=True))
        if self.output == "pair":
            return spikes, values
        return WAYS[self.reduce](spikes if self.output == "spikes" else values)


class AllSteps(nn.Sequential):
    """SpikingJelly's layers in mode "m", called with one step's input or with all of them."""

    def __init__(self, parts, case):
        super().__init__(*parts)
        self.case = case

    def forward(self, x):
        inside = self.case.net.loop == "inside"
        if inside:
            functional.reset_net(self)
            x = x.expand(self.case.data.steps, *x.shape)
        values = super().forward(x)
        values = torch.stack(values) if isinstance(values, list) else values
        return WAYS[self.case.net.reduce](values) if inside else values


def build_net(case):
    """The net of a case, as in the middle of a user's script; its parameters follow from the case alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.net.seed)
        parts, inputs = [Fuse()] if case.fault.kind == "forward" else [], case.data.features
        for hidden in case.net.hidden:
            layer, inputs = _hidden(hidden, inputs, case)
            parts += layer
        parts += _output(inputs, case)
        outside = norse.SequentialState if case.net.library == "norse" else nn.Sequential
        net = outside(*parts) if _outside(case) else Inside(parts, case)
        if _all_steps(case):
            net = AllSteps(parts, case)
            functional.set_step_mode(net, "m")
        return _lived_in(net.double() if case.net.double else net, case)


def _hidden(hidden, inputs, case):
    """A layer's modules, and what the next one gets."""
    width, before, after, kinds = hidden.width, [], [], _layers(case)
    if hidden.synapse == "linear":
        synapse, outputs = kinds.Linear(inputs, width, bias=hidden.bias), width
    else:
        conv, shape = (kinds.Conv1d, (1, 9)) if hidden.synapse == "conv1d" else (kinds.Conv2d, (1, 3, 3))
        width = min(width, 3)
        synapse, outputs = conv(1, width, 2, bias=hidden.bias), width * (8 if len(shape) == 2 else 4)
        before, after = [nn.Unflatten(-1, shape)], [kinds.Flatten()]
    with torch.no_grad():
        synapse.weight.mul_(4.0)
    if hidden.weight_norm:
        parametrizations.weight_norm(synapse)
    if hidden.frozen:
        synapse.requires_grad_(False)
    neuron = _neuron(hidden, width, case)
    return [*before, synapse, neuron, *after], outputs


def _neuron(hidden, width, case):
    if case.net.library == "norse":
        if hidden.neuron == "recurrent" and hidden.synapse == "linear":
            return norse.LIFRecurrentCell(width, width)
        return norse.LIFBoxCell() if hidden.neuron == "box" else norse.LIFCell()
    if case.net.library == "spikingjelly":
        if hidden.neuron == "container" and hidden.synapse == "linear":
            return layer.LinearRecurrentContainer(neuron.LIFNode(), width, width)
        return {"integrate": neuron.IFNode, "learned": neuron.ParametricLIFNode}.get(hidden.neuron, neuron.LIFNode)()
    options = {"beta": _beta(hidden.beta, width), "learn_beta": hidden.beta.startswith("learned"), "init_hidden": _outside(case)}
    if hidden.synapse != "linear":
        options["beta"] = 0.8
    elif hidden.neuron == "synaptic":
        return snn.Synaptic(alpha=0.7, **options)
    elif hidden.neuron == "recurrent":
        return snn.RLeaky(linear_features=width, **options)
    elif hidden.neuron == "one_to_one":
        return snn.RLeaky(V=0.5, all_to_all=False, **options)
    return snn.Leaky(**options)


def _beta(kind, width):
    return torch.linspace(0.5, 0.95, width) if kind.endswith("vector") else 0.8


def _outside(case):
    return case.net.loop == "over_time"


def _all_steps(case):
    return case.net.library == "spikingjelly" and (case.net.mode == "m" or case.net.output == "membrane")


def _layers(case):
    return layer if case.net.library == "spikingjelly" else nn


def _output(inputs, case):
    outputs, kind = case.data.classes * case.net.each, case.net.output
    linear = _layers(case).Linear(inputs, outputs, bias=case.net.bias)
    if kind == "linear":
        return [linear]
    if case.net.library == "norse":
        return [linear, norse.LICell() if kind in ("membrane", "pair") else norse.LIFCell()]
    if case.net.library == "spikingjelly":
        return [linear, neuron.NonSpikingLIFNode() if kind == "membrane" else neuron.LIFNode()]
    reset = "none" if kind == "membrane" else "subtract"
    options = {"init_hidden": True, "output": True} if _outside(case) else {}
    beta, learned = _beta(case.net.beta, outputs), case.net.beta.startswith("learned")
    return [linear, snn.Leaky(beta=beta, learn_beta=learned, reset_mechanism=reset, **options)]


def _lived_in(net, case):
    """Mixed modes, a hook, a gradient, and membranes of an earlier call."""
    net.train()
    list(net.children())[-1].eval()
    net.register_forward_hook(lambda *_: None)
    parameter = next(net.parameters())
    parameter.grad = torch.full_like(parameter, 0.25)
    if case.net.used:
        with torch.no_grad():
            forward_of(case)(net, make_data(case)[0][:2])
    return net


def forward_of(case):
    return over_time(case.data.steps) if _outside(case) else lambda net, inputs: net(inputs)


def make_data(case):
    """Inputs and labels without the oddity."""
    data, generator = case.data, torch.Generator().manual_seed(case.data.seed)
    labels = torch.arange(data.samples) % data.classes
    centres = 2 * torch.rand(data.classes, data.features, generator=generator)
    inputs = centres[labels] + 0.3 * torch.randn(data.samples, data.features, generator=generator)
    return (inputs.double() if case.net.double else inputs), labels


class Loader:
    """Batches of a case, in the user's own way: one buffer reused, an oddity, an error."""

    def __init__(self, case):
        self._case, (inputs, labels), oddity = case, make_data(case), case.data.oddity
        spoilt = {
            "float_labels": labels.float(),
            "label_too_large": labels + 7 * (labels == 1),
            "negative_label": labels - 1,
            "one_class": labels * 0,
        }
        if oddity in ("nan", "inf"):
            inputs[len(inputs) // 2, 1] = float(oddity)
        self._inputs, self._labels = inputs[:, 1:] if oddity == "wrong_width" else inputs, spoilt.get(oddity, labels)

    def __iter__(self):
        size, fault = self._case.data.batch, self._case.fault
        pairs = list(zip(self._inputs.split(size), self._labels.split(size), strict=True))
        if self._case.data.oddity == "empty_batch":
            pairs.insert(len(pairs) // 2, (self._inputs[:0], self._labels[:0]))
        stop = int(fault.place * (len(pairs) + 1)) if fault.kind == "loader" else None
        inputs, labels = (torch.empty_like(part) for part in pairs[0])
        for number, (x, y) in enumerate(pairs):
            if number == stop:
                raise KeyboardInterrupt if fault.interrupt else FaultError
            if self._case.data.reused:
                inputs[: len(x)].copy_(x)
                labels[: len(y)].copy_(y)
                x, y = inputs[: len(x)], labels[: len(y)]  # noqa: PLW2901
            yield x, y


def decoded(case, returned, kind):
    """Scores as a user would read what the net returned, by the report's words; None where no words are known here."""
    if isinstance(returned, tuple):
        returned = returned[0] if kind.startswith(("spike", "first")) else returned[1]
    if returned.dim() == 2:
        return returned
    how = kind.rsplit("_", 1)[-1]
    return WAYS[how](returned) if how in WAYS else None
