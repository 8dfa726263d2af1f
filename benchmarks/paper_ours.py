"""The plugin's best recipe at the paper's widths: a layer that remembers steps, solved as a convolution over time.

The first layer is recurrent.  A share of its neurons look at the current step, the others hold what those saw one, two, ... steps
ago: their only weights are from the neuron that held it before.  With a leak of 0 the layer's spikes at the last step are then
those of a convolution over all steps, and the layers above, which forget, make the rest a plain deep net.  That net ``Unrolled``
is solved by ``convex_init_(hidden="reconstruct")``, and its weights are the recurrent net's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.paper_methods import Splits, scores_of
from benchmarks.paper_networks import SequenceNet
from snn_recon_plugin import Report, convex_init_

__all__ = ["Unrolled", "forgetful", "remembering", "solve_remembering"]

_ROWS, _ROUNDING = 500, 1e-3
FORGETFUL: dict[str, Any] = {"branches": 1, "leak": 0.0, "bias": True, "reset": "none", "sees": "spike"}


class Unrolled(nn.Module):
    """What a remembering net computes at its last step: a convolution over the steps, then layers without a past.

    Args:
        steps: T.
        inputs: D, of a step.
        widths: of the hidden layers; the first one's is shared out among the steps.
        outputs: C.
        threshold: of the membranes.

    Forward takes (B, T, D) and returns scores (B, C).
    """

    def __init__(self, steps: int, inputs: int, widths: Sequence[int], outputs: int, threshold: float = 1.0) -> None:
        super().__init__()
        each = widths[0] // steps
        self.conv = nn.Conv2d(1, each, (1, inputs), stride=(1, inputs))
        self.first = _forgetting(threshold)
        below = [each * steps, *widths[1:-1]]
        self.synapses = nn.ModuleList(nn.Linear(size, width) for size, width in zip(below, widths[1:], strict=True))
        self.neurons = nn.ModuleList(_forgetting(threshold) for _ in self.synapses)
        self.readout = nn.Linear(widths[-1], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        spikes, _ = self.first(self.conv(inputs.flatten(1)[:, None, None]), self.first.reset_mem())
        spikes = spikes.flatten(1)
        for synapse, neuron in zip(self.synapses, self.neurons, strict=True):
            spikes, _ = neuron(synapse(spikes), neuron.reset_mem())
        return self.readout(spikes)


def _forgetting(threshold: float) -> nn.Module:
    return snn.Leaky(beta=0.0, threshold=threshold, reset_mechanism="none")


def forgetful(inputs: int, widths: Sequence[int], outputs: int, steps: str) -> SequenceNet:
    """A net whose every step stands alone, for tasks whose answer at a step depends on that step's input only."""
    return SequenceNet(inputs, widths, outputs, recurrent=False, steps=steps, **FORGETFUL)


def remembering(unrolled: Unrolled, steps: int, inputs: int) -> SequenceNet:
    """The recurrent net with the unrolled one's weights: its scores after the last step are the other's."""
    conv, each = unrolled.conv, unrolled.conv.out_channels
    widths = [each * steps, *(synapse.out_features for synapse in unrolled.synapses)]  # type: ignore[misc]
    recurrent, threshold = [True] + [False] * (len(widths) - 1), float(unrolled.first.threshold)  # type: ignore[arg-type]
    outputs = unrolled.readout.out_features
    net = SequenceNet(inputs, widths, outputs, recurrent=recurrent, threshold=threshold, **FORGETFUL)
    branch: Any = net.branches[0]
    first = branch.synapses[0]
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        branch.neurons[0].recurrent.weight.zero_()
        # Neuron (channel, place) has index channel * T + place, as the convolution's spikes flattened; the last place is now.
        now = torch.arange(each) * steps + steps - 1
        first.weight[now], first.bias[now] = conv.weight[:, 0, 0], conv.bias
        for place in range(steps - 1):
            held = torch.arange(each) * steps + place
            branch.neurons[0].recurrent.weight[held, held + 1] = 2 * threshold
        for synapse, source in zip(branch.synapses[1:], unrolled.synapses, strict=True):
            synapse.load_state_dict(source.state_dict())
        net.readout.load_state_dict(unrolled.readout.state_dict())
    return net


def solve_remembering(
    data: Splits, widths: Sequence[int], outputs: int, seed: int, *, threshold: float = 1.0, **options: Any
) -> tuple[SequenceNet, Report]:
    """Solves the unrolled net and writes the recurrent one.

    Raises:
        RuntimeError: the recurrent net's scores are not the unrolled one's.
    """
    inputs = data.train.inputs
    steps, size = inputs.shape[1:]
    torch.manual_seed(seed)
    unrolled = Unrolled(steps, size, widths, outputs, threshold)
    batches = DataLoader(TensorDataset(inputs, data.train.targets), _ROWS)
    report = convex_init_(unrolled, batches, hidden="reconstruct", fit_loss="same", seed=seed, **options)
    net = remembering(unrolled, steps, size)
    few = data.validation.inputs
    promised, found = scores_of(unrolled, few), scores_of(net, few)
    apart = float((promised - found).abs().amax(1).gt(_ROUNDING * float(promised.abs().max())).double().mean())
    if apart > 0.01 or not math.isfinite(apart):  # a current that rounding carries over a threshold may flip a sample or two
        raise RuntimeError(f"the recurrent net's scores differ from the unrolled one's on {100 * apart:.1f} % of the samples")
    return net, report
