"""One of several processes that initialise a net together; test_ranks.py starts them and reads what they save."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from snn_recon_plugin import convex_init_, over_time, refit_
from snn_recon_plugin.convex import Shards, path
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.run import REFIT, START

from ..helpers import train_data
from ..nets import membranes_of, shallow, spikes_and_membranes
from .test_padding import build, spike_trains

COUNT, SIZE = 600, 50
STEPS = ("membrane_mean", "membrane_max", "spike_count")  # readouts of nets whose batches differ in steps
TIMEOUT = 10  # seconds in which processes must answer where one of them does not


def maximum(spk, mem):
    return mem.amax(0)


EXACT = {"tol": 1e-12, "max_cost": float("inf"), "progress": False}
WEIGHTED = nn.CrossEntropyLoss(torch.arange(1.0, 11))
# name: (what the net returns, its reset, options, whether the solve is a refit)
CASES = {
    "exact, rebuilt": (membranes_of, "none", {"hidden": "reconstruct"}, False),
    "exact, rescaled": (membranes_of, "none", {"hidden": "rescale", "penalty": "group_l1"}, False),
    "exact, fewer": (membranes_of, "none", {"hidden": "keep", "fit_loss": "same", "max_samples": 330}, False),
    "exact, refit": (membranes_of, "none", {"hidden": "keep", "strength": 1e-3}, True),
    "class weights": (membranes_of, "none", {"hidden": "keep", "loss": WEIGHTED}, False),
    "majorised, rebuilt": (maximum, "none", {"hidden": "reconstruct", "strength": 1e-3}, False),
    "majorised, refit": (maximum, "none", {"hidden": "keep", "strength": 1e-3}, True),
    "surrogate, rebuilt": (spikes_and_membranes, "subtract", {"hidden": "reconstruct"}, False),
    "surrogate, refit": (spikes_and_membranes, "zero", {"hidden": "keep", "strength": 1e-3}, True),
    "values": (membranes_of, "none", {"hidden": "keep", "loss": "squared"}, False),
    "several labels": (membranes_of, "none", {"hidden": "keep", "loss": "logistic"}, False),
    "exact, validation": (membranes_of, "none", {"hidden": "reconstruct"}, False),
    "exact, validation, refit": (membranes_of, "none", {"hidden": "keep"}, True),
    "surrogate, validation": (spikes_and_membranes, "subtract", {"hidden": "reconstruct"}, False),
}
VALIDATED = 200  # last samples, which are validation samples where the case's name says so


TARGETS = {
    "values": lambda inputs, labels: inputs[:, :10] + labels[:, None],
    "several labels": lambda inputs, labels: (labels[:, None] % torch.arange(2, 12) == 0).float(),
}


def result(net, report):
    return {"weights": {name: value.clone() for name, value in net.state_dict().items()}, "report": report.to_dict()}


def found_by(name, rank, world):
    """Parameters and report after the solve of a case on this rank's share of the samples."""
    returns, reset, options, refit = CASES[name]
    net, (inputs, labels) = shallow(returns, reset_mechanism=reset), train_data(COUNT)
    if name in TARGETS:
        labels = TARGETS[name](inputs, labels)
    together = {"processes": Shards()} if world > 1 else {}
    first = COUNT - VALIDATED if "validation" in name else COUNT

    def share(*data):
        return list(zip(*(part[rank::world].split(SIZE) for part in data), strict=True))

    if first < COUNT:
        together["val_loader"] = share(inputs[first:], labels[first:])
    loader = share(inputs[:first], labels[:first])
    return result(net, initialize_network(net, loader, Options(**{**EXACT, **options}), REFIT if refit else START, **together))


def one_line(rank, world):
    """The one line, on a loader with a DistributedSampler, or on unequal shares of sorted data: rank 0 has a single class."""
    data = TensorDataset(*train_data(COUNT))
    loader = DataLoader(data, SIZE, sampler=DistributedSampler(data, world, rank, shuffle=True))
    net, uneven = shallow(), shallow()
    first = result(net, convex_init_(net, loader, shards=Shards(), progress=False))
    inputs, labels = train_data(COUNT)
    share = labels.argsort(stable=True)[(slice(0, 50), slice(50, 585), slice(585, 597), slice(597, 600))[rank]]
    assert rank or not labels[share].any()
    return first, result(uneven, convex_init_(uneven, [(inputs[share], labels[share])], shards=Shards(), progress=False))


def finished(rank, world):
    """A finish in which the ranks have unequal shares of both loaders."""
    inputs, labels = train_data(COUNT)
    first, last = ((0, 100), (100, 400), (400, 410), (410, 450))[rank] if world == 4 else ((0, 100), (100, 450))[rank]
    own = slice(450 + 30 * rank, None if rank == world - 1 else 480 + 30 * rank)
    net = shallow(spikes_and_membranes, reset_mechanism="subtract")
    options = {"shards": Shards(), "progress": False}
    return result(net, refit_(net, [(inputs[first:last], labels[first:last])], [(inputs[own], labels[own])], **options))


def trained(rank, world):
    """A plain loop whose ranks average their gradients, with a rate that destroys the start, and a refit."""
    inputs, labels = (part[rank::world] for part in train_data(COUNT))
    net = shallow()
    report = convex_init_(net, [(inputs, labels)], shards=Shards(), progress=False)
    optimizer = torch.optim.SGD(net.parameters(), 3.0, momentum=0.9)
    with report.protect(optimizer):
        for part, wanted in zip(inputs.split(SIZE), labels.split(SIZE), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(part).mean(0), wanted).backward()
            for parameter in net.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
    with torch.no_grad():
        net.fc2.weight.mul_(-1)  # a readout that a refit improves on
    return result(net, refit_(net, [(inputs, labels)], optimizer=optimizer, shards=report.live.processes))


def unequal_steps(readout, rank, world):
    """A net on batches of 6 to 12 steps, of which each rank has others."""
    net = build("subtract" if readout == "spike_count" else "none")
    options = {"forward": over_time(), "readout": readout, "strength": 1e-3, "progress": False}
    return result(net, convex_init_(net, spike_trains()[rank::world], shards=Shards(), **options))


def refused(rank):
    """Return the errors of the one line if one process differs, or has no sample."""
    inputs, labels = train_data(COUNT)

    def raised(net, loader, **options):
        before = [parameter.clone() for parameter in net.parameters()]
        try:
            convex_init_(net, loader, shards=Shards(), progress=False, **options)
        except ReconstructionError as error:
            kept = all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
            return type(error).__name__, str(error), kept
        raise AssertionError("nothing was refused")

    other = shallow()
    with torch.no_grad():
        other.fc1.weight[0, 0] += rank
    few = [(inputs[:20], labels[:20])]
    return {
        "seed": raised(shallow(), few, seed=rank),
        "net": raised(other, few),
        "no rows": raised(shallow(), [] if rank else few),
        "a class": raised(shallow(), [(inputs[:20], 0 * labels[:20])], hidden="keep"),
        "hinge": raised(shallow(), few, hidden="keep", loss="hinge"),
    }


def left(rank, how):
    """A start in which rank 1 ends, or no longer answers, while its data are read."""
    inputs, labels = train_data(COUNT)

    class Data:
        def __iter__(self):
            yield inputs[:100], labels[:100]
            if rank == 1:
                os._exit(3) if how == "dies" else time.sleep(600)
            yield inputs[100:200], labels[100:200]

    convex_init_(shallow(), Data(), shards=Shards(), progress=False)


def main(rank: int, world: int, folder: Path, how: str) -> None:
    torch.set_num_threads(1)
    path._FINEST = path._COARSEST = 1e-12  # results then depend on the samples, not on the way to the solution
    if world > 1:
        limit = timedelta(seconds=TIMEOUT if how else 300)
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world, timeout=limit)
    if how:
        left(rank, how)
    found = {name: found_by(name, rank, world) for name in CASES}
    if world > 1:
        found["one line"], found["uneven"] = one_line(rank, world)
        found["trained"], found["finished"] = trained(rank, world), finished(rank, world)
        found |= {readout: unequal_steps(readout, rank, world) for readout in STEPS}
        found["refused"] = refused(rank)
        dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
