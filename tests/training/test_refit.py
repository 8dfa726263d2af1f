"""Refits within a run: the program, its samples, who chooses its strength, and a leak for each hidden unit."""

import lightning.pytorch as pl
import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from benchmarks.nets import NorseLayers
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.protect import Snapshot

from ..helpers import chosen
from .runs import (
    MARKS,
    SAMPLES,
    STEPS,
    TEST,
    Module,
    assert_equal,
    callback,
    data_set,
    falling,
    fit,
    loader,
    loss_of,
    plain,
    state,
    validation,
)

pytestmark = MARKS


def run(val=None, **options):
    made = callback(of=ConvexInitializer(**{"hidden": "keep", **options.pop("of", {})}), at_start=False, **options)
    fit(made, val=val, num_sanity_val_steps=0, epochs=1)
    assert len(made.reports) == 1
    return made


def ignoring(share):
    labels = TEST[1].clone()
    labels[: int(share * len(labels))] = -100
    return DataLoader(TensorDataset(TEST[0], labels), 100)


def test_by_default_hidden_layers_are_rebuilt_once_and_refits_are_written_as_they_were_solved():
    torch.manual_seed(0)  # of the net
    made = ReconstructionCallback(at_start=True, best_weights=False)
    fit(made, Module(net=build_network(64, 200, 10, STEPS)), val=validation())
    start, refit = made.reports
    assert start.program.loss == "squared_hinge"
    assert start.layers[0].witnesses is not None
    assert refit.layers[0].witnesses is None
    assert start.factor < 1
    assert refit.factor == 1.0  # nothing is trained from it
    assert refit.certificate.tol == 1e-4


def test_validation_data_choose_the_strength_and_are_not_fitted():
    made = run(validation())
    found = made.report
    assert found.before.loss == pytest.approx(loss_of(plain(val=validation(), epochs=1), *TEST), rel=1e-5)
    assert len(found.program.path) > 1
    assert chosen(found).heldout_loss == min(point.heldout_loss for point in found.program.path)
    assert found.after.samples == 200
    assert found.program.samples == SAMPLES


@pytest.mark.parametrize(
    ("options", "heldout", "samples"),
    [
        ({}, 80, SAMPLES),  # of the training samples
        ({"val": validation(), "metric": falling()}, 80, SAMPLES),
        ({"val": ignoring(0.25), "of": {"loss": torch.nn.CrossEntropyLoss()}}, 150, SAMPLES),
        ({"val": DataLoader(ConcatDataset([validation().dataset] * 11), 100), "of": {"max_samples": 120}}, 2000, 120),
    ],
    ids=["none", "a metric", "ignored labels", "limits"],
)
def test_held_out_and_fitted_samples(options, heldout, samples):
    options = {**options, "of": {"strength": 0.01, **options.get("of", {})}}
    assert [(report.after.samples, report.program.samples) for report in run(**options).reports] == [(heldout, samples)]


def test_a_given_program_is_kept():
    made = run(validation(), of={"fit_loss": "squared_hinge", "strength": 0.01})
    assert [(report.program.loss, report.program.strength, report.program.path) for report in made.reports] == [
        ("squared_hinge", 0.01, None)
    ]


def test_a_generator_that_training_and_validation_share_goes_on_as_without_refits():
    def losses(made):
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(data_set(), 50, shuffle=True, generator=generator)
        val = DataLoader(validation().dataset, 50, shuffle=True, generator=generator)
        return fit(made, train=train, val=val, limit_val_batches=1)[0].losses

    assert losses(callback(at_start=False, best_weights=True)) == losses(None)


@pytest.mark.parametrize("first", [True, False])
def test_the_finish_is_solved_for_weights_that_lightning_averages_whatever_the_order(first):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    average = averaging.EMAWeightAveraging(decay=0.5)
    made = callback(at_start=False, best_weights=True, of=ConvexInitializer(strength=0.01, progress=False))
    kept, between = {}, [average, made] if first else [made, average]

    class Note(pl.Callback):  # behind both, before the finish
        def on_train_end(self, trainer, pl_module):
            kept.update({name: value.clone() for name, value in pl_module.net.named_parameters()})

    # Buffers of snnTorch's neurons change their size, which the average can't follow.
    net = NorseLayers(nn.Linear(64, 48), norse.LIF(), nn.Linear(48, 10), norse.LI(), steps=40)
    module, _ = fit(between[0], Module(net=net), val=validation(), beside=[between[1], Note()], epochs=2)
    report = made.report
    assert len(made.reports) == 1
    names = [name for name, _ in module.net.named_parameters()]
    changed = [name for name, value in module.net.named_parameters() if not torch.equal(value, kept[name])]
    assert changed == names[-2:]  # of the readout
    report.undo()
    assert all(torch.equal(value, kept[name]) for name, value in module.net.named_parameters())
    averaged = [*average._average_model.module.net.parameters()]
    assert all(map(torch.equal, averaged, kept.values()))


def test_validation_data_are_fitted_on_request_after_the_last_validation():
    seen = []

    class Validated(Module):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            seen.append(len(made.reports))

    made = callback(at_start=False, best_weights=True, fit_val=True, of=ConvexInitializer(strength=0.01, progress=False))
    _, trainer = fit(made, Validated(), val=validation(), epochs=2)
    (report,) = made.reports
    assert set(seen) == {0}
    assert report.fit_val
    assert report.program.samples == SAMPLES + len(validation().dataset)
    assert "before these were fitted too" in " ".join(str(report).split())
    assert trainer.callback_metrics["recon/samples"] == report.program.samples


def test_validation_data_that_are_not_there_are_not_fitted():
    with pytest.raises(OptionError, match="fit_val=True without validation data"):
        fit(callback(at_start=False, fit_val=True))


OF = ConvexInitializer(hidden="reconstruct", heterogeneous=True, strength=0.01)


class Learned(Module):
    """A learnable leak that all hidden units share."""

    def __init__(self):
        super().__init__()
        self.net.lif1 = snn.Leaky(beta=0.95, learn_beta=True)


def test_the_optimizer_trains_the_leaks_and_refits_go_on():
    made = ReconstructionCallback(OF, at_start=True, metric=falling())
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


@pytest.mark.parametrize(
    ("kind", "fails", "error"),
    [
        (Module, None, KeyboardInterrupt),
        (Learned, "callback.log_metrics", RuntimeError),
        (Learned, "training.watch.clear_optimizer_state", KeyboardInterrupt),
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


class Still(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_a_refit_draws_other_samples_than_the_start():
    made = callback(of=ConvexInitializer(hidden="keep", max_samples=100, strength=0.01, fit_loss="squared_hinge"))
    fit(made, Still(), epochs=1)
    start, refit = made.reports
    assert start.program.samples == refit.program.samples == 100
    assert refit.certificate.primal != pytest.approx(start.certificate.primal, rel=1e-3)
