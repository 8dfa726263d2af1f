import lightning as L
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ReconstructionCallback  # new


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 256), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(256, 10), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(20):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self(x).mean(0), y)

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
x_train, x_test, y_train, y_test = train_test_split(images.float() / 16, labels, test_size=400)
train_loader = DataLoader(TensorDataset(x_train[200:], y_train[200:]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(x_train[:200], y_train[:200]), batch_size=64)

module = Module()
callback = ReconstructionCallback()  # new
trainer = L.Trainer(max_epochs=5, callbacks=[callback])  # callbacks= is new
trainer.fit(module, train_loader, val_loader)
print(callback.reports[0])  # new: the start

module.eval()
print(f"test accuracy {(module(x_test).mean(0).argmax(1) == y_test).float().mean():.1%}")
