import snntorch as snn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_


class Net(nn.Module):  # as in snnTorch's tutorial 5
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 256), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(256, 10), snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(20):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
x_train, x_test, y_train, y_test = train_test_split(images.float() / 16, labels, test_size=400)
train_loader = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True)

net = Net()
report = convex_init_(net, train_loader)  # new
print(report)  # new

spikes, _ = net(x_test)
print(f"test accuracy {(spikes.sum(0).argmax(1) == y_test).float().mean():.1%}")
