"""Both import names of Lightning, and what depends on its private attributes."""

import importlib
import runpy
import subprocess
import sys

import pytest
import torch

from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.training.lightning import find_network

from .runs import MARKS, Body, assert_equal, callback, fit, state, trained

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning")]

NAMES = ("lightning.pytorch", "pytorch_lightning")
OTHER = dict(zip(NAMES, reversed(NAMES), strict=True))


@pytest.fixture(params=NAMES)
def pl(request):
    return pytest.importorskip(request.param)


def module_of(pl):
    return type("Module", (Body, pl.LightningModule), {})()


def run(name, folder):
    pl, made = pytest.importorskip(name), callback(best_weights=True)
    saved = pl.callbacks.ModelCheckpoint(folder / name, save_top_k=-1, filename="{epoch}", monitor="val")
    stopping = pl.callbacks.EarlyStopping("val", patience=5)
    module, _ = trained(folder, made, epochs=2, of=pl, kind=lambda: module_of(pl), saved=saved, beside=[stopping])
    return module, made


def test_a_run_is_the_same_in_both(tmp_path):
    (one, made), (two, other) = (run(name, tmp_path) for name in NAMES)
    assert len(made.reports) == len(other.reports) == 2
    assert one.losses == two.losses
    assert_equal(state(one), state(two))


def test_a_module_with_a_forward_of_its_own_is_the_network(pl):
    module = module_of(pl)
    assert find_network(module, None) is module.net
    module.forward = module.forward  # as Lightning leaves it after a validation under DDP
    assert find_network(module, None) is module.net
    module.forward = module.net.forward
    assert find_network(module, None) is module


@pytest.mark.slow  # imports torch's compiler
def test_a_compiled_module_is_no_network_of_its_own(pl):
    """Compiling sets ``forward`` on the module, whether it has one or not."""
    made = callback()
    fit(made, torch.compile(module_of(pl), backend="eager"), of=pl, epochs=1)
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
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install lightning"):
        runpy.run_module("snn_recon_plugin.training.lightning")


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
