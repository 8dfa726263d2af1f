import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from snn_recon_plugin import convex_init_, over_time

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
train, val, test = random_split(TensorDataset(images.float() / 16, labels), [1200, 200, 397])
train_loader, val_loader = DataLoader(train, 64, shuffle=True), DataLoader(val, 64)
x_test, y_test = test[:]

run = over_time(20)  # 20 steps, from rest
net = nn.Sequential(layer.Linear(64, 256), neuron.LIFNode(), layer.Linear(256, 10), neuron.LIFNode())
functional.set_step_mode(net, "m")
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)


def train_batch(net, batch):  # yours, as it is
    x, y = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(run(net, x).mean(0), y).backward()
    optimizer.step()


report = convex_init_(net, train_loader, step=train_batch)  # the one line
print(report)
with report.protect(optimizer, val_loader) as guard:  # the best weights are in the net after the block
    for _ in range(3):
        for batch in train_loader:
            train_batch(net, batch)
        with guard.evaluated():  # the best weights so far
            print(f"test accuracy {(run(net, x_test).mean(0).argmax(1) == y_test).float().mean():.1%}")
