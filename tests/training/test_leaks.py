"""Runs whose start gives a learnable leak to each hidden unit."""

import pytest
import snntorch as snn
import torch
from torch.nn import functional as F

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.candidates import Snapshot
from snn_recon_plugin.training.refit import _refuse_reshaped

from .runs import MARKS, Module, assert_equal, callback, falling, fit, loader, state, validation

pytestmark = MARKS
OF = ConvexInitializer(hidden="reconstruct", heterogeneous=True)


class Learned(Module):
    """A learnable leak that all hidden units share."""

    def __init__(self):
        super().__init__()
        self.net.lif1 = snn.Leaky(beta=0.95, learn_beta=True)


def test_the_optimizer_trains_the_leaks_and_average_and_refits_go_on():
    made = ReconstructionCallback(OF, metric=falling())
    module, trainer = fit(made, Learned, val=validation(), epochs=2)
    beta = module.net.lif1.beta
    assert beta.shape == (48,)
    assert any(parameter is beta for group in trainer.optimizers[0].param_groups for parameter in group["params"])
    assert trainer.optimizers[0].state[beta]["exp_avg"].shape == (48,)
    drawn = torch.tensor(list(made.reports[0].layers[0].witnesses.leaks))
    assert not torch.isin(beta.detach(), drawn).all()
    assert len(made.reports) > 1


def test_a_start_that_is_not_kept_leaves_one_leak():
    module, trainer = fit(callback(of=OF, metric=lambda module: 0.0), Learned, epochs=1)
    assert module.net.lif1.beta.dim() == 0
    assert trainer.optimizers[0].state[module.net.lif1.beta]["exp_avg"].dim() == 0


@pytest.mark.parametrize("kind", [Learned, Module])
@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (None, KeyboardInterrupt),
        ("lightning.all_agree", ValueError),
        ("session.log_metrics", RuntimeError),
        ("policy.clear_optimizer_state", KeyboardInterrupt),
    ],
)
def test_an_error_after_the_write_brings_the_leak_back(monkeypatch, kind, fails, error):
    """A learnable one, and one that is no parameter.  Without a name the metric fails."""
    numbers, module = falling(), kind()
    before = state(module)

    def fail(*_):
        if module.net.lif1.beta.dim() == 1:
            raise error
        return True

    if fails is not None:
        monkeypatch.setattr(f"snn_recon_plugin.training.{fails}", fail)
    made = callback(of=OF, metric=lambda module: numbers(module) if fails else float(fail()))
    with pytest.raises((error, SystemExit)):
        fit(made, module, epochs=1)
    assert_equal(state(module), before)


def test_a_snapshot_of_one_leak_is_written_over_one_for_each_unit():
    net = Learned().net
    kept = Snapshot.take(net)
    with torch.no_grad():
        before = net.lif1.beta.clone()
    convex_init_(net, [(x, y) for x, y in loader(shuffle=False)], hidden="reconstruct", heterogeneous=True, progress=False)
    F.cross_entropy(net(next(iter(loader()))[0]).mean(0), torch.zeros(50, dtype=torch.long)).backward()
    kept.write()
    assert torch.equal(net.lif1.beta, before)
    assert net.lif1.beta.grad is None


def test_several_processes_need_a_leak_each_from_the_beginning():
    net = Learned().net
    data = [(x, y) for x, y in loader(shuffle=False)]
    _refuse_reshaped(convex_init_(net, data, hidden="reconstruct", progress=False))
    report = convex_init_(net, data, hidden="reconstruct", heterogeneous=True, progress=False)
    with pytest.raises(OptionError, match=r"beta=torch\.full"):
        _refuse_reshaped(report)
    assert net.lif1.beta.dim() == 0
