"""The page of errors: each heading is how a message begins, so that a search for the message finds it."""

import re
from pathlib import Path

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from snn_recon_plugin import ReadoutWarning, ReconstructionError, convex_init_

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
HEADINGS = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

INPUTS, LABELS = torch.rand(200, 64, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10
DATA = TensorDataset(INPUTS, LABELS)
DRAWN_AGAIN = DataLoader(DATA, 64, sampler=RandomSampler(DATA, replacement=True))


class Net(nn.Module):
    """Dense; ``decode`` makes what it returns from the spikes of both outputs and the membranes of the first."""

    def __init__(self, decode, outputs=10, scale=1.0):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 20), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(20, outputs), snn.Leaky(beta=0.9)
        self.fc3, self.lif3 = nn.Linear(20, outputs), snn.Leaky(beta=0.9)
        self.decode = decode
        with torch.no_grad():
            self.fc1.weight.mul_(scale)
            self.fc1.bias.mul_(scale)

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        steps = []
        for _ in range(5):
            hidden, mem1 = self.lif1(self.fc1(x), mem1)
            first, mem2 = self.lif2(self.fc2(hidden), mem2)
            second, mem3 = self.lif3(self.fc3(hidden), mem3)
            steps.append((first, second, mem2))
        return self.decode(*map(torch.stack, zip(*steps, strict=True)))


def behind_torch():
    """A net that changes a membrane in a way that torch does not count, so that steps do not follow from one another."""

    def halve(module, arguments, output):
        output[1].data.mul_(0.5)

    net = Net(lambda first, second, membranes: membranes, scale=3.0)
    net.lif1.register_forward_hook(halve)
    return net


def spikes(first, second, membranes):
    return first


def spikes_and_membranes(first, second, membranes):
    return first, membranes


def sequential(*neurons):
    return nn.Sequential(nn.Linear(64, 20), neurons[0], nn.Linear(20, 10), *neurons[1:])


def leaky(**options):
    return snn.Leaky(beta=0.9, init_hidden=True, **options)


OTHER = Net(spikes)  # which a forward runs in place of its argument

# For each heading: the net, the batch or loader, the options.
CASES = [
    (lambda: Net(spikes), (INPUTS.reshape(200, 1, 8, 8), LABELS), {}),
    (lambda: Net(spikes), {"image": INPUTS, "label": LABELS}, {}),
    (lambda: sequential(leaky(), leaky(output=True)), (INPUTS, LABELS), {}),
    (lambda: OTHER, (INPUTS, LABELS), {"forward": lambda _, x: OTHER(x)}),
    (lambda: Net(lambda first, second, membranes: (first, second)), (INPUTS, LABELS), {}),
    (lambda: Net(lambda first, second, membranes: membranes.mean(0) ** 2), (INPUTS, LABELS), {"readout_layer": "fc2"}),
    (lambda: Net(spikes, outputs=50), (INPUTS, LABELS), {"readout_layer": "fc2"}),
    (lambda: Net(spikes, scale=1e-3), (INPUTS, LABELS), {"readout_layer": "fc2", "hidden": "keep"}),
    (lambda: sequential(nn.ReLU()), (INPUTS, LABELS), {}),
    (lambda: Net(spikes), (INPUTS, LABELS + 1), {"readout_layer": "fc2"}),
    (lambda: Net(spikes), (INPUTS, nn.functional.one_hot(LABELS, 10)), {"readout_layer": "fc2"}),
    (lambda: Net(spikes), (INPUTS, LABELS.float()), {"readout_layer": "fc2"}),
    (lambda: Net(spikes), DRAWN_AGAIN, {"readout_layer": "fc2"}),
    (behind_torch, (INPUTS, LABELS), {"readout_layer": "fc2", "hidden": "keep", "strength": 1e-3}),
    (lambda: Net(spikes_and_membranes), (INPUTS, LABELS), {"readout_layer": "fc2"}),
]


@pytest.mark.filterwarnings("error::snn_recon_plugin.ReadoutWarning")
@pytest.mark.parametrize(("heading", "case"), list(zip(HEADINGS, CASES, strict=True)), ids=HEADINGS)
def test_a_message_begins_as_its_heading(heading, case):
    make, data, options = case
    torch.manual_seed(0)
    loader = data if isinstance(data, DataLoader) else [data]
    with pytest.raises((ReconstructionError, ReadoutWarning)) as caught:
        convex_init_(make(), loader, **options)
    found = caught.value.found if isinstance(caught.value, ReconstructionError) else str(caught.value)
    assert re.match(re.escape(heading).replace(r"\.\.\.", ".*"), found)
