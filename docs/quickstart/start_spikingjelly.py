import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
x_train, x_test, y_train, y_test = train_test_split(images.float() / 16, labels, test_size=400)
train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True)

net = nn.Sequential(layer.Linear(64, 256), neuron.LIFNode(), layer.Linear(256, 10), neuron.LIFNode())
functional.set_step_mode(net, "m")


def firing_rates(x):
    rates = net(x.expand(20, *x.shape)).mean(0)
    functional.reset_net(net)
    return rates


report = convex_init_(net, train_loader, forward=over_time(20))  # new: 20 steps, from the resting state
print(report)  # new

print(f"test accuracy {(firing_rates(x_test).argmax(1) == y_test).float().mean():.1%}")
