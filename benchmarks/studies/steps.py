"""Training steps with ``fast_steps`` and without: twenty nets as users write them, ten epochs, and MNIST to given accuracies.

Seconds are CPU seconds of one thread.  A step is forward, cross-entropy of the mean membrane or spike, and backward, on a batch of
128; both are timed in turn, and the least of several is taken.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import accuracy, train_epochs
from benchmarks.render import machines_line, markdown_table
from benchmarks.step_nets import BATCH, NETS
from benchmarks.step_training import CASES, LOOPS, METHODS, time_loop, train_case
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import fast_steps
from snn_recon_plugin.demo import build_network, load_digits_data
from snn_recon_plugin.networks.calls.forward import Forward
from snn_recon_plugin.networks.calls.record import StoredBatch, Taps, record
from snn_recon_plugin.networks.libraries import parts_of_neurons
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.layers import SYNAPSES
from snn_recon_plugin.scan.passes import fast_passes

REPEATS, WARM = 6, 5
EPOCHS, SEEDS, MNIST_SEEDS, RATE = 10, 5, 3, 2e-3
COMPILED = ("tutorial 5, 784-1000-10, 25 steps", "784-300-10, 10 steps")


def take_step(net: nn.Module, inputs: Tensor, labels: Tensor, forward: Forward) -> float:
    """Return the CPU seconds of a training step."""
    reset(net)
    began = time.process_time()
    net.zero_grad()
    output = forward(net, inputs)
    scores = output[-1] if isinstance(output, tuple) else output
    functional.cross_entropy(scores.mean(0), labels).backward()
    return time.process_time() - began


def in_turn(*steps: Callable[[], float]) -> list[float]:
    """Return the least seconds of each of several steps, which are taken in turn."""
    times = [[step() for step in steps] for _ in range(WARM + REPEATS)]
    return [min(own) for own in zip(*times[WARM:], strict=True)]


def saved_bytes(step: Callable[[], object]) -> int:
    """Return the bytes that a step keeps for its backward pass, shared memory counted once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(found.values())


class Products(TorchFunctionMode):
    """Note the inputs of each weight's products while a net runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[Callable[..., Tensor], list[Any], list[Tensor]]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function in (functional.linear, functional.conv2d):
            x, weight, *rest = args
            x = x[0] if isinstance(x, Tensor) and x.stride(0) == 0 else x  # one step, expanded over time
            self.found.setdefault(id(weight), (partial(function, **(kwargs or {})), [weight, *rest], []))[2].append(x)
        return function(*args, **(kwargs or {}))


def least_seconds(net: nn.Module, inputs: Tensor, forward: Forward) -> float:
    """Return the CPU seconds of a training step's products alone: no method can leave them out.

    A product with the same input at all steps is computed once.  Others are timed step by step and as one; the faster one counts.
    """
    reset(net)
    with Products() as products:
        forward(net, inputs)
    total = 0.0
    for product, (weight, *rest), given in products.found.values():
        same = all(x.data_ptr() == given[0].data_ptr() for x in given)
        ways = [given[:1]] if same else [given, [torch.cat([x.flatten(0, x.dim() - weight.dim()) for x in given])]]
        total += min(min(_seconds(product, weight, rest, way) for _ in range(REPEATS)) for way in ways)
    return total


def _seconds(product: Callable[..., Tensor], weight: Tensor, rest: list[Any], given: list[Tensor]) -> float:
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in given]
    began = time.process_time()
    for x in inputs:
        output = product(x, weight, *rest)
        output.backward(torch.ones_like(output))
    return time.process_time() - began


def reset(net: nn.Module) -> None:
    """Put snnTorch's neurons into their resting states."""
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def measure_net(name: str) -> dict[str, Any]:
    """Time a net's steps in turn, with and without."""
    entry = NETS[name]
    torch.manual_seed(0)
    inputs = torch.rand(entry.shape) * (torch.rand(entry.shape) < 0.2)
    labels = torch.randint(0, 10, (BATCH,))
    nets = [entry.build() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    began = time.process_time()
    handle = fast_steps(nets[1], [(inputs, labels)], forward=entry.forward)
    planning = time.process_time() - began
    runs: list[Forward] = [entry.forward, handle]
    plain, fast = in_turn(*(partial(take_step, net, inputs, labels, run) for net, run in zip(nets, runs, strict=True)))
    passes = [pass_seconds(nets[0], inputs, entry.forward, run) for run in (nullcontext(), fast_passes(nets[0]))]
    saved = [saved_bytes(partial(take_step, net, inputs, labels, run)) for net, run in zip(nets, runs, strict=True)]
    return {
        "kind": entry.kind,
        "plain": plain,
        "fast": fast,
        "floor": least_seconds(nets[0], inputs, entry.forward),
        "difference": handle.difference,
        "exact": handle.exact,
        "saved": saved,
        "passes": passes,
        "planning": planning,
        "done": handle.layers,
    }


def pass_seconds(net: nn.Module, inputs: Tensor, forward: Forward, run: AbstractContextManager[None]) -> float:
    """Return the CPU seconds of a pass without gradients that gives what enters each layer, as the package's own passes do."""
    seen: list[Tensor] = []
    inside = parts_of_neurons(net)
    taps = Taps(inputs={layer: seen.append for layer in net.modules() if isinstance(layer, SYNAPSES) and layer not in inside})
    batch, times = StoredBatch(inputs, slice(0, BATCH)), []
    with quiet(net, seed=0), run:
        for _ in range(WARM + REPEATS):
            began = time.process_time()
            record(net, batch, forward, taps)
            times.append(time.process_time() - began)
            seen.clear()
    return min(times[WARM:])


def measure_compiled(name: str) -> dict[str, Any]:
    """Time a net's steps with torch.compile and without, and its compilation, that of compilers that it starts included."""
    from torch._inductor import config as inductor

    entry = NETS[name]
    torch.manual_seed(0)
    inputs, labels = torch.rand(entry.shape) * (torch.rand(entry.shape) < 0.2), torch.randint(0, 10, (BATCH,))
    plain, net, began = entry.build(), torch.compile(entry.build()), sum(os.times()[:4])
    with inductor.patch(compile_threads=1, force_disable_caches=True):
        take_step(net, inputs, labels, entry.forward)
    compilation = sum(os.times()[:4]) - began
    usual, compiled = in_turn(*(partial(take_step, each, inputs, labels, entry.forward) for each in (plain, net)))
    return {"plain": usual, "compiled": compiled, "compilation": compilation}


class StateLeakyNet(nn.Module):
    """snnTorch's neurons without reset, which filter all steps in one convolution over time."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(inputs, hidden), snn.StateLeaky(beta=0.95, channels=hidden)
        self.last, self.output = nn.Linear(hidden, outputs), snn.StateLeaky(beta=0.95, channels=outputs)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.hidden(self.first(x))
        membranes: Tensor = self.output(self.last(spikes))[1]
        return membranes


def spikingjelly(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """SpikingJelly's neurons in step mode "m", whose layers take all steps in one call."""
    from spikingjelly.activation_based import functional as steps
    from spikingjelly.activation_based import layer, neuron

    first, last = neuron.LIFNode(tau=20.0, v_reset=None), neuron.LIFNode(tau=20.0, v_reset=None)
    net = nn.Sequential(layer.Linear(inputs, hidden), first, layer.Linear(hidden, outputs), last)
    steps.set_step_mode(net, "m")
    return net


PEERS: dict[str, Callable[..., nn.Module]] = {"snnTorch's StateLeaky": StateLeakyNet, "SpikingJelly": spikingjelly}


def measure_peer(name: str) -> dict[str, Any]:
    """Time a step of tutorial 5's net, and of one of its shape whose neurons take all steps in one call."""
    torch.manual_seed(0)
    inputs, labels, net = torch.rand(BATCH, 784), torch.randint(0, 10, (BATCH,)), PEERS[name](784, 1000, 10)

    def forward(net: nn.Module, x: Tensor) -> Any:
        for module in net.modules():
            if hasattr(module, "reset"):
                module.reset()
        return net(x.expand(25, *x.shape))

    entry = NETS[COMPILED[0]]
    usual = partial(take_step, entry.build(), inputs, labels, entry.forward)
    return dict(zip(("plain", "peer"), in_turn(usual, partial(take_step, net, inputs, labels, forward)), strict=True))


def measure_epochs(seed: int) -> dict[str, Any]:
    """Train on the digits for ten epochs, with and without; return first losses and test accuracies."""
    data, found = load_digits_data(), dict[str, Any]()
    for name in ("plain", "fast"):
        torch.manual_seed(seed)
        net = build_network(64, 128, 10, steps=10)
        loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 64, shuffle=True)
        with fast_steps(net, loader) if name == "fast" else nullcontext():
            losses = train_epochs(net, loader, EPOCHS, RATE)
        test = accuracy(net, data.test_inputs, data.test_labels)
        found |= {f"{name} losses": losses[:5], f"{name} test": test}
    return found


def cells(bench: Bench) -> Cells:
    """All nets, the epochs, and MNIST."""
    found: dict[str, Callable[[], dict[str, Any]]] = {f"net | {name}": partial(measure_net, name) for name in NETS}
    found |= {f"compiled | {name}": partial(measure_compiled, name) for name in COMPILED}
    found |= {f"peer | {name}": partial(measure_peer, name) for name in PEERS}
    found |= {f"module | {name}": partial(time_loop, name) for name in LOOPS}
    found |= {f"epochs | {seed}": partial(measure_epochs, seed) for seed in range(SEEDS)}
    for (name, case), method, seed in itertools.product(CASES.items(), METHODS, range(MNIST_SEEDS)):
        found[f"{name} | {method} | {seed}"] = partial(train_case, bench, case, method, seed)
    return found


def net_table(store: Store) -> str:
    """Return one row a net."""
    rows = []
    for name in NETS:
        cell = store[f"net | {name}"]
        times = (f"{1e3 * cell[key]:.0f}" for key in ("plain", "fast"))
        memory = " to ".join(f"{value / 2**20:.0f}" for value in cell["saved"])
        gains = (f"{cell['plain'] / cell[key]:.1f}" for key in ("fast", "floor"))
        equal = ("bits" if cell["exact"] else "rounding", f"{cell['difference']:.0e}")
        alone, planned = cell["passes"]
        costs = (f"{cell['planning'] / cell['plain']:.0f}", f"{alone / planned:.1f}")
        rows.append((cell["kind"], name, *times, *gains, *equal, memory, *costs))
    seconds = ("ms a step", "with fast steps", "times faster", "with products alone")
    equal = ("outputs equal to", "gradients within")
    costs = ("MiB kept for backward", "a plan costs, steps", "the package's own passes, times faster")
    head = ("kind", "net", *seconds, *equal, *costs)
    return markdown_table(head, rows)


def peers_line(store: Store) -> str:
    """Return what other means make of such nets."""
    parts = []
    for name in COMPILED:
        found = store[f"compiled | {name}"]
        gain, seconds = found["plain"] / found["compiled"], found["compilation"]
        parts.append(f"{gain:.1f} times faster after {seconds:.0f} s of compiling ({name})")
    text = f"`torch.compile` of the whole net makes a step: {'; '.join(parts)}."
    peers = []
    for name in PEERS:
        found = store[f"peer | {name}"]
        peers.append(f"{found['peer'] / found['plain']:.1f} times as long with {name}")
    return f"{text} Tutorial 5's net takes {' and '.join(peers)}, whose layers take all steps in one call."


def modules_line(store: Store) -> str:
    """Return the gains of Lightning modules."""
    parts = [f"{cell['plain'] / cell['fast']:.1f} times ({name})" for name in LOOPS for cell in [store[f"module | {name}"]]]
    return f"A LightningModule whose `training_step` loops over time takes steps faster with the callback: {', '.join(parts)}."


def epoch_line(store: Store) -> str:
    """Return the comparison of ten epochs."""
    found = store.cells("epochs | *")
    first = max(
        abs(one / other - 1) for cell in found for one, other in zip(cell["plain losses"], cell["fast losses"], strict=True)
    )
    means = [100 * statistics.fmean(cell[f"{name} test"] for cell in found) for name in ("plain", "fast")]
    spread = 100 * statistics.stdev(cell["plain test"] for cell in found)
    return (
        f"Ten epochs on the digits, {len(found)} seeds: the first five losses differ by at most {first:.0e}. Test accuracy is "
        f"{means[0]:.1f} % without and {means[1]:.1f} % with fast steps; its standard deviation between seeds is {spread:.1f}."
    )


def mnist_table(store: Store, name: str) -> str:
    """Return a case's mean seconds to accuracies, one row a method; empty where a seed does not get there."""
    rows = []
    for method in METHODS:
        runs = [cell["points"] for cell in store.cells(f"{name} | {method} | *")]
        reached = []
        for goal in CASES[name].goals:
            first = [next((seconds for seconds, test in points if test >= goal), None) for points in runs]
            reached.append("" if None in first else f"{statistics.fmean(filter(None, first)):.0f}")
        ends = [statistics.fmean(points[-1][place] for points in runs) for place in (1, 0)]
        rows.append((method, *reached, f"{100 * ends[0]:.2f}", f"{ends[1]:.0f}", str(len(runs))))
    goals = (f"s to {100 * goal:g} %" for goal in CASES[name].goals)
    return markdown_table(("training", *goals, "at the end, %", "s in all", "seeds"), rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The tables of the evidence page."""
    line = machines_line(store.cells())
    texts = {
        "steps of nets": f"{net_table(store)}\n\n{modules_line(store)}\n\n{peers_line(store)}\n\n{line}",
        "steps over epochs": epoch_line(store),
        **{f"steps on {name}": mnist_table(store, name) for name in CASES},
    }
    return {"evidence/steps.md": texts}


STUDY = Study(
    title="training steps with `fast_steps` and without",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=(
        *("compiled", "compilation", "peer", "kind", "plain", "fast", "floor", "difference", "exact"),
        *("saved", "passes", "planning", "done", "points"),
        *(f"{name} {what}" for name in ("plain", "fast") for what in ("losses", "test")),
    ),
    packages=("snntorch", "norse", "lightning"),
    needs=("mnist",),
)
