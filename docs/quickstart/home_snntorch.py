import snntorch as snn
import snntorch.functional as SF
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from snn_recon_plugin import convex_init_, over_time

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
train, val, test = random_split(TensorDataset(images.float() / 16, labels), [1200, 200, 397])
train_loader, val_loader = DataLoader(train, 64, shuffle=True), DataLoader(val, 64)
x_test, y_test = test[:]

run = over_time(20)  # the time loop: 20 steps, from rest
net = nn.Sequential(
    nn.Linear(64, 256),
    snn.Leaky(beta=0.95, init_hidden=True),
    nn.Linear(256, 10),
    snn.Leaky(beta=0.95, init_hidden=True, output=True),
)
optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-3), SF.ce_rate_loss()


def train_batch(net, batch):  # yours, as it is
    x, y = batch
    optimizer.zero_grad()
    loss(run(net, x)[0], y).backward()
    optimizer.step()


report = convex_init_(net, train_loader, step=train_batch)  # the one line
print(report)
with report.protect(optimizer, val_loader) as guard:  # the best weights are in the net after the block
    for _ in range(3):
        for batch in train_loader:
            train_batch(net, batch)
        with guard.evaluated():  # the best weights so far
            print(f"test accuracy {SF.accuracy_rate(run(net, x_test)[0], y_test):.1%}")
