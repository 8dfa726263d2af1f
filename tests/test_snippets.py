"""Every block of Python in the guide runs: on a small net, with the package's own checks of each option.

``convex_init_`` checks its options and returns the report of one start.  So a snippet for a net of another form needs no such net.
A snippet that names no report gets none.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy
import pytest
import snntorch
import snntorch.functional
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import snn_recon_plugin
from snn_recon_plugin.demo import build_network

START = snn_recon_plugin.convex_init_
DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = ("# torchrun", "tonic.", "torchvision.", "neurobench", "export_nir")  # in tests of their own, or data to download
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    if page.stem != "solver"  # its blocks build on each other: test_solver_page.py
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    if not any(word in block for word in ELSEWHERE)
]


class Module(lightning.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]).mean(0), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def names(block):
    torch.manual_seed(0)
    x, y = torch.rand(200, 16), torch.arange(200) % 3
    x[torch.arange(200), y] += 1
    data = TensorDataset(x, y)
    loader, net = DataLoader(data, 64, shuffle=True), build_network(inputs=16, hidden=12, outputs=3, steps=6)
    module, optimizer = Module(net), torch.optim.Adam(net.parameters())
    first = START(net, loader, hidden="keep", strength=1e-2, progress=False) if "report" in block else None

    def convex_init_(some_net, some_loader, **options):
        # No assert: what pytest makes of it reads much of pytest, and passes compare all that a function reads.
        if not (isinstance(some_net, nn.Module) and isinstance(some_loader, DataLoader)):
            raise TypeError(f"convex_init_({some_net}, {some_loader})")
        options.pop("shards", None)
        snn_recon_plugin.ConvexInitializer(**{name: value for name, value in options.items() if value is not ...})
        return first

    def train_one_epoch(some_net, some_optimizer, some_loader):
        for inputs, labels in some_loader:
            some_optimizer.zero_grad()
            nn.functional.cross_entropy(some_net(inputs).mean(0), labels).backward()
            some_optimizer.step()

    def accuracy(some_module, inputs, labels):
        return float((some_module(inputs).mean(0).argmax(1) == labels).float().mean())

    public = {name: getattr(snn_recon_plugin, name) for name in snn_recon_plugin.__all__}
    spikes = (torch.rand(5, 6, 4) < 0.3).float()
    own = {"data": data, "loader": loader, "train_loader": loader, "val_loader": loader, "x": x, "y": y, "labels": y}
    own |= {"net": net, "module": module, "optimizer": optimizer}
    own |= {
        "epochs": 1,
        "train_one_epoch": train_one_epoch,
        "test": lambda some_net: accuracy(some_net, x, y),
        "accuracy": accuracy,
        "train_batch": lambda some_net, batch: nn.functional.cross_entropy(some_net(batch[0]).mean(0), batch[1]),
    }
    new = DataLoader(TensorDataset(x[:60], y[:60] % 2 + 3), 30)
    own |= {"old_loader": loader, "new_loader": new}
    own |= {"report": first, "convex_init_": convex_init_, "trainer": SimpleNamespace(fit=lambda *parts: None)}
    own |= {"class_weights": torch.ones(3), "series": torch.rand(300, 1), "inputs": torch.rand(5, 6, 4), "patterns": spikes}
    libraries = {"torch": torch, "nn": nn, "snn": snntorch, "SF": snntorch.functional, "L": lightning, "numpy": numpy, "Path": Path}
    return {**public, **libraries, **own, "DataLoader": DataLoader, "TensorDataset": TensorDataset}


def shorter(block):
    """A block with few epochs: what is tested is that it runs."""
    return re.sub(r"\bmax_epochs=\d+", "max_epochs=2", block)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = names(block)
    monkeypatch.setattr(snn_recon_plugin, "convex_init_", found["convex_init_"])  # for blocks that import it
    exec(compile(shorter(block), "snippet", "exec"), found)
