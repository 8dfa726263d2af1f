"""Faster steps in training: the callback and the guard of a plain loop."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ReconstructionCallback, convex_init_
from snn_recon_plugin.demo import build_network, load_digits_data
from snn_recon_plugin.errors import OptionError

from ..training.runs import MARKS

pytestmark = MARKS
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(pl.LightningModule):
    """A classifier of digits; notes the loss and whether its layers have a forward of their own at each step."""

    def __init__(self):
        super().__init__()
        self.net, self.losses, self.faster = build_network(64, 32, 10, steps=6), [], []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]).mean(0), batch[1])
        self.losses.append(loss.item())
        self.faster.append(any("forward" in vars(module) for module in self.net.modules()))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


@pytest.fixture(scope="module")
def loader():
    data = load_digits_data()
    return DataLoader(TensorDataset(data.train_inputs[:300], data.train_labels[:300]), 50)


def trained(loader, folder, fast, epochs=2, **resumed):
    pl.seed_everything(0, verbose=False)
    module, callback = Module(), ReconstructionCallback(fast=fast)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[callback], default_root_dir=folder, **QUIET)
    trainer.fit(module, loader, **resumed)
    return module, trainer


def test_the_callback_trains_as_without(loader, tmp_path):
    plain, _ = trained(loader, tmp_path / "plain", fast=False)
    fast, trainer = trained(loader, tmp_path / "fast", fast=True)
    assert fast.losses == pytest.approx(plain.losses, rel=1e-3)
    assert all(fast.faster)
    assert not any(plain.faster)
    assert not any("forward" in vars(module) for module in fast.net.modules())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = trained(loader, tmp_path / "fast", fast=True, epochs=3, ckpt_path=tmp_path / "two.ckpt")
    assert len(resumed.losses) == len(loader)
    assert all(resumed.faster)


def test_the_guard_takes_faster_steps_until_it_is_closed(loader):
    nets = []
    for fast in (False, True):
        torch.manual_seed(0)
        net = build_network(64, 32, 10, steps=6)
        report = convex_init_(net, loader, progress=False)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        with report.protect(optimizer, fast=fast):
            assert any("forward" in vars(module) for module in net.modules()) is fast
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
                optimizer.step()
        assert not any("forward" in vars(module) for module in net.modules())
        nets.append(net)
    torch.testing.assert_close(*(list(net.parameters()) for net in nets), rtol=1e-3, atol=1e-4)


def test_fast_is_true_or_false(loader):
    with pytest.raises(OptionError, match="fast="):
        ReconstructionCallback(fast="yes")
    net = build_network(64, 32, 10, steps=6)
    report = convex_init_(net, loader, progress=False)
    with pytest.raises(OptionError, match="fast="):
        report.protect(torch.optim.Adam(net.parameters()), fast=2)
