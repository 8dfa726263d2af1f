"""Runs whose start gives a learnable leak to each hidden unit."""

import pytest
import snntorch as snn
import torch

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_
from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.snapshots import Snapshot

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
    assert any(parameter is beta for group in trainer.optimizers[0].param_groups for parameter in group["params"])
    assert beta.shape == trainer.optimizers[0].state[beta]["exp_avg"].shape == (48,)
    drawn = torch.tensor(list(made.reports[0].layers[0].witnesses.leaks))
    assert not torch.isin(beta.detach(), drawn).all()
    assert len(made.reports) > 1


def test_a_start_that_is_not_kept_leaves_one_leak():
    module, trainer = fit(callback(of=OF, metric=lambda module: 0.0), Learned, epochs=1)
    beta = module.net.lif1.beta
    assert beta.dim() == trainer.optimizers[0].state[beta]["exp_avg"].dim() == 0


@pytest.mark.parametrize("kind", [Learned, Module])
@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (None, KeyboardInterrupt),
        ("callback.log_metrics", RuntimeError),
        ("training.watch.clear_optimizer_state", KeyboardInterrupt),
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
        monkeypatch.setattr(f"snn_recon_plugin.{fails}", fail)
    made = callback(of=OF, metric=lambda module: numbers(module) if fails else float(fail()))
    with pytest.raises((error, SystemExit)):
        fit(made, module, epochs=1)
    assert_equal(state(module), before)


def test_a_snapshot_of_one_leak_is_written_over_one_for_each_unit():
    net = Learned().net
    kept, before = Snapshot.take(net), net.lif1.beta.detach().clone()
    convex_init_(net, loader(shuffle=False), hidden="reconstruct", heterogeneous=True, progress=False)
    net(next(iter(loader()))[0]).sum().backward()
    kept.write()
    assert torch.equal(net.lif1.beta, before)
    assert net.lif1.beta.grad is None


def test_several_processes_need_a_leak_each_from_the_beginning(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 2)
    monkeypatch.setattr("snn_recon_plugin.training.lightning.Shards", SingleProcess)  # the other one does the same
    made, module = callback(), Learned()
    fit(made, epochs=1)
    assert len(made.reports) == 2
    with pytest.raises(OptionError, match=r"beta=torch\.full"):
        fit(callback(of=OF), module)
    assert module.net.lif1.beta.dim() == 0
