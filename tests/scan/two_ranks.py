"""A rank of two that trains a net under DistributedDataParallel, with faster steps or without; prints the first weights' sum."""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from snn_recon_plugin import fast_steps
from snn_recon_plugin.demo import build_network, load_digits_data


def main(store: str, rank: int, fast: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    data = load_digits_data()
    torch.manual_seed(0)
    net = build_network(64, 32, 10, steps=6)
    batches = list(zip(data.train_inputs[rank:400:2].split(25), data.train_labels[rank:400:2].split(25), strict=True))
    if fast:
        fast_steps(net, batches)
    shared = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(shared.parameters(), 0.01)
    for inputs, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(shared(inputs).mean(0), labels).backward()
        optimizer.step()
    print(repr(float(net.fc1.weight.detach().double().abs().sum())), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fast")
