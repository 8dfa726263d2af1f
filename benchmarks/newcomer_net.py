"""A script as a newcomer has it, without the package: the net and the loop of snnTorch's tutorial 6 on a tenth of MNIST.

    python newcomer_net.py DIR      where torchvision finds MNIST

``newcomer.py`` puts the landing page's lines in the place that is marked, and runs it.
"""

import sys

import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

batch_size, beta, num_steps = 128, 0.5, 25
spike_grad = surrogate.fast_sigmoid(slope=25)
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0,), (1,))])
mnist_train = utils.data_subset(datasets.MNIST(sys.argv[1], train=True, transform=transform), 10)
mnist_test = datasets.MNIST(sys.argv[1], train=False, transform=transform)
train_loader = DataLoader(mnist_train, batch_size=batch_size, shuffle=True, drop_last=True)
test_loader = DataLoader(mnist_test, batch_size=batch_size)

net = nn.Sequential(
    nn.Conv2d(1, 12, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Conv2d(12, 64, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
)


def forward_pass(net, num_steps, data):
    utils.reset(net)
    return torch.stack([net(data)[0] for _ in range(num_steps)])


@torch.no_grad()
def test_accuracy():
    right = sum(int((forward_pass(net, num_steps, x).sum(0).argmax(1) == y).sum()) for x, y in test_loader)
    return right / len(mnist_test)


print(f"test accuracy before {test_accuracy():.1%}")
# the landing page's lines
print(f"test accuracy after {test_accuracy():.1%}")
