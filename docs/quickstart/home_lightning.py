import lightning as L
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from snn_recon_plugin import ReconstructionCallback, over_time

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
train, val, test = random_split(TensorDataset(images.float() / 16, labels), [1200, 200, 397])
train_loader, val_loader = DataLoader(train, 64, shuffle=True), DataLoader(val, 64)
x_test, y_test = test[:]


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        hidden, output = snn.Leaky(beta=0.95, init_hidden=True), snn.Leaky(beta=0.95, init_hidden=True, output=True)
        self.net = nn.Sequential(nn.Linear(64, 256), hidden, nn.Linear(256, 10), output)

    def forward(self, x):
        return over_time(20)(self.net, x)[0]  # spikes of 20 steps

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]).mean(0), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


module, callback = Module(), ReconstructionCallback()  # faster steps, best weights, and the finish
trainer = L.Trainer(max_epochs=3, callbacks=[callback])
trainer.fit(module, train_loader, val_loader)
print(callback.report)  # the finish
print(f"test accuracy {(module(x_test).mean(0).argmax(1) == y_test).float().mean():.1%}")
