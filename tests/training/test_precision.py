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

from ..nets import Looped
from .runs import MARKS, Module, fit

pytestmark = MARKS
LABELS = torch.arange(120) % 3
torch.manual_seed(0)
INPUTS = 2 * torch.rand(3, 12)[LABELS] + 0.3 * torch.randn(120, 12)


def dense():
    return build_network(12, 16, 3, 5)


def of_norse():
    """A net of Norse's neurons, since snnTorch's spikes are in single precision."""
    return Looped(over_time(5), nn.Linear(12, 16), norse.LIFCell(), nn.Linear(16, 3), norse.LICell())


def run(net, batch_size=20, samples=120, **options):
    made = ReconstructionCallback()
    data = DataLoader(TensorDataset(INPUTS[:samples], LABELS[:samples]), batch_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Hidden layers were rescaled")
        module, trainer = fit(made, Module(net=net), train=data, val=data, epochs=1, **options)
    assert len(made.reports) == 2
    return made, module, trainer


@pytest.mark.parametrize(
    ("make", "options", "kind", "coarse"),
    [
        (dense, {"precision": "bf16-mixed"}, torch.float32, torch.bfloat16),
        # By name Lightning takes bfloat16 on a CPU.
        (
            dense,
            {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))},
            torch.float32,
            torch.float16,
        ),
        (of_norse, {"precision": "64-true"}, torch.float64, None),
    ],
    ids=["bf16-mixed", "16-mixed", "64-true"],
)
def test_the_default_callback_in_the_trainers_precision(make, options, kind, coarse):
    made, module, trainer = run(make(), **options)
    assert next(module.parameters()).dtype == kind
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        decided = module.net(trainer.precision_plugin.convert_input(INPUTS)).mean(0).argmax(1)
    assert float((decided == LABELS).double().mean()) > 0.95
    for report in made.reports:
        assert report.certificate.relative_gap <= max(report.certificate.tol, 1e-5)  # of the written weights, which are rounded
        relative = 1e-4 if coarse is None else 8 * torch.finfo(coarse).eps
        assert report.exactness.tolerance == pytest.approx(relative * max(1, report.exactness.scale))


@pytest.mark.slow
def test_batches_of_one_sample():
    made, *_ = run(dense(), batch_size=1, samples=45)
    assert made.reports[0].program.samples == 45
    assert made.reports[0].certificate.reached
