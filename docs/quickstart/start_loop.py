import snntorch as snn
import snntorch.functional as SF
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time  # new

net = nn.Sequential(
    nn.Linear(64, 256),
    snn.Leaky(beta=0.95, init_hidden=True),
    nn.Linear(256, 10),
    snn.Leaky(beta=0.95, init_hidden=True, output=True),
)


def spikes_of(x):
    utils.reset(net)
    return torch.stack([net(x)[0] for _ in range(20)])


images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
x_train, x_test, y_train, y_test = train_test_split(images.float() / 16, labels, test_size=400)
train_loader = DataLoader(TensorDataset(x_train[200:], y_train[200:]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(x_train[:200], y_train[:200]), batch_size=64)
loss = SF.ce_rate_loss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

report = convex_init_(net, train_loader, forward=over_time(20), loss=loss)  # new: your time loop and your loss
guard = report.protect(optimizer, val_loader)  # new
for _ in range(5):
    for x, y in train_loader:
        optimizer.zero_grad()
        loss(spikes_of(x), y).backward()
        optimizer.step()
    with guard.evaluated():  # new: the best weights so far; training goes on from its own
        right = (spikes_of(x_test).sum(0).argmax(1) == y_test).float().mean()
        print(f"test accuracy {right:.1%}")
guard.close()  # new: the best weights stay in the net
