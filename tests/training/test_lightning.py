"""Both import names of Lightning: the same run in each."""

import importlib
import runpy
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import DataError, ProcessError, SolverError
from snn_recon_plugin.training import lightning
from snn_recon_plugin.training.lightning import find_network, in_all

from .runs import MARKS, STEPS, assert_equal, callback, falling, loader, state, validation

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning")]

NAMES = ("lightning.pytorch", "pytorch_lightning")
OTHER = dict(zip(NAMES, reversed(NAMES), strict=True))


@pytest.fixture(params=NAMES)
def pl(request):
    return pytest.importorskip(request.param)


def module_of(pl, fails_at=None):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.losses = build_network(64, 48, 10, STEPS), []

        def training_step(self, batch, batch_idx):
            if len(self.losses) == fails_at:
                raise ArithmeticError
            loss = F.cross_entropy(self.net(batch[0]).mean(0), batch[1])
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val", F.cross_entropy(self.net(batch[0]).mean(0), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    pl.seed_everything(0, verbose=False)
    return Module()


def trainer_of(pl, callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", callbacks=callbacks, **{"max_epochs": 2, **quiet, **options})


def trained(pl, folder, ckpt_path=None):
    made, module = callback(average=0.9), module_of(pl)
    saved = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", monitor="val")
    stopping = pl.callbacks.EarlyStopping("val", patience=5)
    trainer = trainer_of(pl, [made, stopping, saved], enable_checkpointing=True)
    trainer.fit(module, loader(shuffle=False), validation(), ckpt_path=ckpt_path)
    return module, made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run in each namespace, and where its checkpoints are."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: (*trained(pytest.importorskip(name), folder / name), folder / name) for name in NAMES}


def test_a_run_is_the_same_in_both(runs):
    (one, made, _), (two, other, _) = runs.values()
    assert len(made.reports) == len(other.reports) == 3
    assert one.losses == two.losses
    assert_equal(state(one), state(two))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_one(name, runs):
    whole, _, folder = runs[name]
    again, resumed = trained(importlib.import_module(name), folder, ckpt_path=folder / "epoch=0.ckpt")
    assert len(resumed.reports) == 1
    assert again.losses == whole.losses[-len(again.losses) :]
    assert_equal(state(again), state(whole))


def test_a_run_that_fails_leaves_the_trained_net(pl):
    """In the second epoch's first step, ahead of which the refit of the first was in the net."""
    module, plain = module_of(pl, fails_at=8), module_of(pl)
    trainer = trainer_of(pl, callback(at_start=False, metric=falling()))  # a callback alone, in no list
    with pytest.raises(ArithmeticError):
        trainer.fit(module, loader(shuffle=False))
    trainer_of(pl, [], max_epochs=1).fit(plain, loader(shuffle=False))
    assert_equal(state(module), state(plain))


def test_a_forward_of_the_modules_own_makes_it_the_network(pl):
    made, module = callback(), module_of(pl)
    module.forward = module.net.forward
    trainer_of(pl, [made], max_epochs=1).fit(module, loader())
    assert made.report.network.startswith("Module ")


def test_a_method_that_ddp_sets_makes_no_network(pl):
    """Lightning leaves it on the module after a validation."""
    module = module_of(pl)
    module.forward = module.forward
    assert find_network(module, None) is module.net


def test_a_compiled_module_is_no_network_of_its_own(pl):
    """Compiling sets ``forward`` on the module, whether it has one or not."""
    made, module = callback(), module_of(pl)
    trainer_of(pl, [made], max_epochs=1).fit(torch.compile(module, backend="eager"), loader())
    assert len(made.reports) == 2
    assert not made.report.network.startswith("Module ")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
def test_one_of_the_two_is_enough(monkeypatch):
    installed = [importlib.import_module(name).Callback for name in NAMES]
    assert issubclass(ReconstructionCallback, tuple(installed))
    for name, left in zip(NAMES, reversed(installed), strict=True):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert runpy.run_module("snn_recon_plugin.training.lightning")["Callback"].__bases__ == (left,)
    with monkeypatch.context() as patch:
        for name in NAMES:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match="pip install lightning"):
            runpy.run_module("snn_recon_plugin.training.lightning")


@pytest.mark.parametrize(("own", "other", "raised"), [
    (None, None, None),
    (DataError("a", "b", "c"), None, DataError),
    (ValueError("own"), DataError("a", "b", "c"), ValueError),
    (None, DataError("a", "b", "c"), SolverError),
    (None, ValueError("its own"), ProcessError),
    (DataError("a", "b", "c"), ValueError("its own"), ProcessError),
])  # fmt: skip
def test_an_error_in_one_process_is_raised_in_all(monkeypatch, own, other, raised):
    """A solve that was refused anywhere is refused everywhere; where a process is gone, none goes on."""

    class Two(SingleProcess):
        """Two processes, of which the other asks itself the same questions."""

        asked = 0

        def gather(self, value):
            self.asked += 1
            return [value, other is None or (self.asked == 2 and isinstance(other, DataError))]

    two = Two()
    monkeypatch.setattr(lightning, "processes_of", lambda trainer: two)

    def work():
        if own is not None:
            raise own
        return "done"

    undone = []
    if raised is None:
        assert in_all(None, work, undone.append) == "done"
    else:
        with pytest.raises(raised) as caught:
            in_all(None, work, undone.append)
        assert type(caught.value) is raised
    assert undone == (["done"] if own is None and other is not None else [])


@pytest.mark.slow  # four fresh processes that import all of Lightning
@pytest.mark.parametrize("name", NAMES)
def test_the_users_namespace_keeps_its_logger(name):
    pytest.importorskip(OTHER[name])
    script = f"""
import {name}
from lightning_utilities.core import rank_zero
before = rank_zero.log
from snn_recon_plugin import ReconstructionCallback
assert rank_zero.log is before, rank_zero.log
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
