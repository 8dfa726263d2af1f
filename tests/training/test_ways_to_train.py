"""The ways to train with Lightning that the callback goes along with, in the trainer's precision too."""

import warnings

import norse.torch as norse
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, over_time
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.networks.libraries import reset_states

from ..end_to_end.test_precision import INPUTS, LABELS
from ..nets import Looped
from .runs import DATA, MARKS, READ, SAMPLES, STEPS, Module, Odd, Stream, callback, data_set, dictionaries, fit, loader

pytestmark = MARKS


class Manual(Module):
    """Two networks of different widths, or parts of one, and an optimizer for each."""

    def __init__(self, second=None):
        super().__init__()
        self.automatic_optimization = False
        self.second = second

    def training_step(self, batch, batch_idx):
        for optimizer, net in zip(self.optimizers(), (self.net, self.second or self.net), strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(net(batch[0]).mean(0), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        parts = (self.net.fc1, self.net.fc2) if self.second is None else (self.net, self.second)
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in parts]


class Forwarding(Module):
    """The module itself is the network, through its forward; it takes batches of 50 and no others."""

    def forward(self, inputs):
        return self.net(inputs.view(50, 64))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).mean(0), batch[1])


class Late(Module):
    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = build_network(64, 48, 10, STEPS)


class AllSteps(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs.expand(STEPS, *inputs.shape))


class Resetting(Module):
    """Neurons keep their states in the graph of a batch until the module resets them behind it."""

    def __init__(self):
        super().__init__(net=AllSteps(layer.Linear(64, 48), neuron.LIFNode(), layer.Linear(48, 10), neuron.LIFNode()))
        functional.set_step_mode(self.net, "m")

    def on_train_batch_end(self, *_):
        functional.reset_net(self.net)


USUAL = {"of": None}  # the callback's own options: the training step is not read
SAMPLED = DataLoader(data_set(), batch_sampler=BatchSampler(RandomSampler(data_set()), 50, drop_last=False))


@pytest.mark.parametrize(
    ("make", "options", "run"),
    [
        pytest.param(Manual, {}, {}, id="manual"),
        pytest.param(Forwarding, {}, {}, id="forward"),
        pytest.param(Late, {}, {}, id="late"),
        pytest.param(Resetting, {"of": ConvexInitializer(hidden="rescale", strength=0.01)}, {}, id="SpikingJelly"),
        pytest.param(Module, USUAL, {"accumulate_grad_batches": 4, "gradient_clip_val": 1.0}, id="accumulated and clipped"),
        pytest.param(Module, USUAL, {"train": SAMPLED}, id="batch sampler"),
        pytest.param(Odd, {}, {"train": dictionaries()}, id="dictionaries"),
        pytest.param(
            Module,
            {"dataloader": loader(shuffle=False), **USUAL},
            {"train": DataLoader(Stream(), batch_size=50), "limit_train_batches": 8},
            id="another loader",
        ),
    ],
)
def test_the_ways_to_train(make, options, run):
    made = callback(**{"of": READ, **options})
    module, _ = fit(made, make, epochs=1, **run)
    assert [report.program.samples for report in made.reports] == [SAMPLES] * 2
    reset_states(module)
    accuracy = (module.net(DATA.test_inputs).mean(0).argmax(1) == DATA.test_labels).float().mean()
    assert accuracy > 0.7  # without the callback: 0.3


def test_a_callback_for_each_of_two_networks():
    """Their metrics have names of their own, and 16 steps of two optimizers are two epochs of four batches."""
    made = [callback(of=READ, net=name) for name in ("net", "second")]
    module = Manual(build_network(64, 24, 10, STEPS))
    _, trainer = fit(None, module, train=loader(batch_size=100), beside=made, epochs=-1, max_steps=16)
    assert trainer.current_epoch == 2
    assert [len(one.reports) for one in made] == [2, 2]
    for one in made:
        assert trainer.callback_metrics[f"recon/{one.net}/active_neurons"] == one.report.program.active_neurons
    assert "recon/active_neurons" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, "CrossEntropyLoss (training_step)"),
        ({"forward": lambda net, inputs: net(inputs)}, "BCEWithLogitsLoss (Module.criterion)"),
    ],
)
def test_the_training_step_says_which_loss_and_an_attribute_only_beside_a_forward(options, loss):
    module, made = Module(), ReconstructionCallback(at_start=True, hidden="keep", strength=0.01, best_weights=False, **options)
    module.criterion = torch.nn.BCEWithLogitsLoss()
    fit(made, module, epochs=1)
    assert {report.loss for report in made.reports} == {loss}


def dense():
    return build_network(12, 16, 3, 5)


def of_norse():
    """A net of Norse's neurons, since snnTorch's spikes are in single precision."""
    return Looped(over_time(5), nn.Linear(12, 16), norse.LIFCell(), nn.Linear(16, 3), norse.LICell())


SCALED = {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))}  # by name Lightning takes bfloat16 on a CPU


@pytest.mark.filterwarnings("ignore:(?s).*samples of val_loader are in the loader")
@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize(
    ("make", "options", "kind", "coarse"),
    [(dense, SCALED, torch.float32, torch.float16), (of_norse, {"precision": "64-true"}, torch.float64, None)],
    ids=["16-mixed", "64-true"],
)
def test_the_default_callback_in_the_trainers_precision(make, options, kind, coarse):
    data, made = DataLoader(TensorDataset(INPUTS, LABELS), 20), ReconstructionCallback(at_start=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Hidden layers were rescaled")
        module, trainer = fit(made, Module(net=make()), train=data, val=data, epochs=1, **options)
    assert len(made.reports) == 2
    assert next(module.parameters()).dtype == kind
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        decided = module.net(trainer.precision_plugin.convert_input(INPUTS)).mean(0).argmax(1)
    assert float((decided == LABELS).double().mean()) > 0.95
    for report in made.reports:
        assert report.certificate.relative_gap <= max(report.certificate.tol, 1e-5)  # of the written weights, which are rounded
        relative = 1e-4 if coarse is None else 8 * torch.finfo(coarse).eps
        assert report.exactness.tolerance == pytest.approx(relative * max(1, report.exactness.scale))
