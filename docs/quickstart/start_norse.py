import norse.torch as norse
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
x_train, x_test, y_train, y_test = train_test_split(images.float() / 16, labels, test_size=400)
train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True)

net = norse.SequentialState(nn.Linear(64, 256), norse.LIFCell(), nn.Linear(256, 10), norse.LICell())


def membranes_of(x):
    state, membranes = None, []
    for _ in range(20):
        membrane, state = net(x, state)
        membranes.append(membrane)
    return torch.stack(membranes)


report = convex_init_(net, train_loader, forward=over_time(20))  # new: the same time loop of 20 steps
print(report)  # new

print(f"test accuracy {(membranes_of(x_test).mean(0).argmax(1) == y_test).float().mean():.1%}")
