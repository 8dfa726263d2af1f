"""The networks of the paper's tables in snnTorch, and ours, batch first.

As in the paper, layers are recurrent and without biases, the leak is 0.99, the threshold 1, and the readout sees the signs of the
last layer's membranes.  Our first layer remembers steps: a share of its neurons look at the current step, the others hold what
those saw one, two, ... steps ago, since their only weights are from the neuron that held it before.  With a leak of 0 the layer's
spikes at the last step are those of a convolution over all steps, and the layers above, which forget, make the rest a plain deep
net.  That net ``Unrolled`` is solved by ``convex_init_(hidden="reconstruct")``, and its weights are the recurrent net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

FORGETFUL: dict[str, Any] = {"branches": 1, "leak": 0.0, "bias": True, "reset": "none", "sees": "spike"}
State = list[tuple[Tensor, Tensor]]  # spikes and membranes of each layer


class Branch(nn.Module):
    """Spiking layers, one on the other; each step goes through all of them.

    ``recurrent`` states for each layer whether its spikes come back to it, all to all; ``bias`` is of the currents from below.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        recurrent: Sequence[bool],
        *,
        leak: float = 0.99,
        bias: bool = False,
        reset: str = "subtract",
    ) -> None:
        super().__init__()
        sizes, options = zip([inputs, *widths[:-1]], widths, strict=True), {"beta": leak, "reset_mechanism": reset}
        self.synapses = nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in sizes)
        self.neurons = nn.ModuleList()
        for width, back in zip(widths, recurrent, strict=True):
            neuron = snn.RLeaky(linear_features=width, **options) if back else snn.Leaky(**options)
            if back:
                neuron.recurrent = nn.Linear(width, width, bias=False)
            self.neurons.append(neuron)

    def forward(self, step: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes of the last layer, (B, N) each; ``state`` has those of all layers and is moved on."""
        spikes = membranes = step
        for k, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
            past = state[k] if isinstance(neuron, snn.RLeaky) else state[k][1:]
            spikes, membranes = neuron(synapse(spikes), *past)
            state[k] = spikes, membranes
        return spikes, membranes

    def rest(self, inputs: Tensor) -> State:
        """Return the state of a batch (B, D) before its first step."""
        zeros = [inputs.new_zeros(len(inputs), synapse.out_features) for synapse in self.synapses]
        return [(zero, zero) for zero in zeros]


class SequenceNet(nn.Module):
    """Branches side by side and one linear readout of their last layers.

    Args:
        inputs, widths, outputs: D, sizes of the layers of all branches together, and C.
        branches: how many; widths are shared out evenly.
        recurrent: as ``Branch`` takes it; None for all layers.
        sees: what the readout sees: "membrane", the sign of the last layer's membranes; "analog", these membranes; or "spike".
        each: scores of every step, in place of those after the last one.

    Forward takes (B, T, D), and returns scores (B, C), or (T, B, C) of each step.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        *,
        branches: int = 2,
        recurrent: Sequence[bool] | None = None,
        sees: str = "membrane",
        each: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__()
        shares, backs = [width // branches for width in widths], recurrent or [True] * len(widths)
        self.branches = nn.ModuleList(Branch(inputs, shares, backs, **layers) for _ in range(branches))
        self.readout = nn.Linear(shares[-1] * branches, outputs)
        self.sees, self.each, self.sign = sees, each, surrogate.fast_sigmoid(slope=25)

    def forward(self, inputs: Tensor) -> Tensor:
        states = [branch.rest(inputs[:, 0]) for branch in self.branches]
        scores = []
        for step in inputs.unbind(1):
            parts = [branch(step, state) for branch, state in zip(self.branches, states, strict=True)]
            spikes, membranes = (torch.cat(both, 1) for both in zip(*parts, strict=True))
            seen = {"spike": spikes, "analog": membranes}.get(self.sees)
            scores.append(self.readout(self.sign(membranes) if seen is None else seen))
        return torch.stack(scores) if self.each else scores[-1]


class Unrolled(nn.Module):
    """What a remembering net computes at its last step: a convolution over the steps, then layers without a past.

    The first layer's width is shared out among the steps.  Forward takes (B, T, D) and returns scores (B, C).
    """

    def __init__(self, steps: int, inputs: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        channels, forgets = widths[0] // steps, {"beta": 0.0, "reset_mechanism": "none"}
        self.conv, self.first = nn.Conv2d(1, channels, (1, inputs), stride=(1, inputs)), snn.Leaky(**forgets)
        below = [channels * steps, *widths[1:-1]]
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in zip(below, widths[1:], strict=True))
        self.neurons = nn.ModuleList(snn.Leaky(**forgets) for _ in self.synapses)
        self.readout = nn.Linear(widths[-1], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        spikes, _ = self.first(self.conv(inputs.flatten(1)[:, None, None]), self.first.reset_mem())
        spikes = spikes.flatten(1)
        for synapse, neuron in zip(self.synapses, self.neurons, strict=True):
            spikes, _ = neuron(synapse(spikes), neuron.reset_mem())
        return self.readout(spikes)


def forgetful(inputs: int, widths: Sequence[int], outputs: int) -> SequenceNet:
    """A net whose every step stands alone, for tasks whose answer at a step depends on that step's input only."""
    return SequenceNet(inputs, widths, outputs, recurrent=[False] * len(widths), each=True, **FORGETFUL)


@torch.no_grad()
def remembering(unrolled: Unrolled, steps: int, inputs: int) -> SequenceNet:
    """The recurrent net with the unrolled one's weights: its scores after the last step are the other's."""
    conv, channels = unrolled.conv, unrolled.conv.out_channels
    widths = [channels * steps, *(synapse.out_features for synapse in unrolled.synapses)]
    recurrent = [True] + [False] * (len(widths) - 1)
    net = SequenceNet(inputs, widths, unrolled.readout.out_features, recurrent=recurrent, **FORGETFUL)
    branch: Any = net.branches[0]
    first, back = branch.synapses[0], branch.neurons[0].recurrent.weight
    for parameter in (first.weight, first.bias, back):
        parameter.zero_()
    # Neuron (channel, place) has index channel * T + place, as the convolution's spikes flattened; the last place is now.
    now = torch.arange(channels) * steps + steps - 1
    first.weight[now], first.bias[now] = conv.weight[:, 0, 0], conv.bias
    for place in range(steps - 1):
        held = torch.arange(channels) * steps + place
        back[held, held + 1] = 2.0  # thresholds
    for synapse, source in zip(branch.synapses[1:], unrolled.synapses, strict=True):
        synapse.load_state_dict(source.state_dict())
    net.readout.load_state_dict(unrolled.readout.state_dict())
    return net
