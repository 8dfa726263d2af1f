"""The default callback under the trainer's precisions, and on batches of one sample."""

import warnings

import norse.torch as norse
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ReconstructionCallback, over_time
from snn_recon_plugin.demo import build_network

from .runs import MARKS, Module, fit

pytestmark = MARKS
LABELS = torch.arange(120) % 3
torch.manual_seed(0)
INPUTS = 2 * torch.rand(3, 12)[LABELS] + 0.3 * torch.randn(120, 12)


class Looped(nn.Module):
    """A net of Norse's neurons, since snnTorch's spikes are in single precision."""

    def __init__(self):
        super().__init__()
        self.net = norse.SequentialState(nn.Linear(12, 16), norse.LIFCell(), nn.Linear(16, 3), norse.LICell())

    def forward(self, x):
        return over_time(5)(self.net, x)


class Plain(Module):
    def on_validation_epoch_end(self):
        """Look at no layer by its name."""


def run(net, batch_size=20, samples=120, **options):
    made, module = ReconstructionCallback(), Plain()
    module.net = net
    data = DataLoader(TensorDataset(INPUTS[:samples], LABELS[:samples]), batch_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Hidden layers were rescaled")
        fit(made, module, train=data, val=data, epochs=1, **options)
    assert len(made.reports) == 2
    return made, module


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: build_network(12, 16, 3, 5), {"precision": "bf16-mixed"}),
        # By name Lightning takes bfloat16 on a CPU.
        (lambda: build_network(12, 16, 3, 5), {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))}),
        (Looped, {"precision": "64-true"}),
    ],
    ids=["bf16-mixed", "16-mixed", "64-true"],
)
def test_the_default_callback_in_the_trainers_precision(make, options):
    made, module = run(make(), **options)
    trainer, dtype = module.trainer, next(module.parameters()).dtype
    assert dtype == (torch.float64 if "64-true" in options.values() else torch.float32)
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        decided = module.net(trainer.precision_plugin.convert_input(INPUTS)).mean(0).argmax(1)
    assert float((decided == LABELS).double().mean()) > 0.95
    coarse = {"bf16": torch.bfloat16, "16": torch.float16}.get(str(trainer.precision).split("-")[0])
    for report in made.reports:
        assert report.certificate.relative_gap <= max(report.certificate.tol, 1e-5)  # of the written weights, which are rounded
        relative = 1e-4 if coarse is None else 8 * torch.finfo(coarse).eps
        assert report.exactness.tolerance == pytest.approx(relative * max(1, report.exactness.scale))


@pytest.mark.slow
def test_batches_of_one_sample():
    made, _ = run(build_network(12, 16, 3, 5), batch_size=1, samples=45)
    assert made.reports[0].samples == 45
    assert made.reports[0].certificate.reached
