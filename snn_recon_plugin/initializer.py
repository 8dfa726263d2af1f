"""The one line: solve the convex program of an existing network on the user's data, and write the answer in place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from .distributed import SINGLE_PROCESS, SingleProcess
from .errors import DataError, OptionError, closest
from .networks.batches import describe
from .report import Report
from .stages import Context, Options, initialize_network
from .training.protect import clear_optimizer_state
from .training.settings import refit_options

__all__ = ["ConvexInitializer", "convex_init_", "refit_"]

# Options of earlier versions, and what to type instead.
_REPLACED = {
    "rounds": "leave it out: all candidates are drawn at once, which does as well",
    "scores": "pass forward=lambda net, inputs: scores(net(inputs)) in its place",
    "unit_parameters": "leave it out: leaks and thresholds that differ between neurons move with the rows",
}
_SHOWN = ("hidden", "loss", "penalty", "strength", "readout", "tol")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ConvexInitializer(Options):
    """Solve the convex program of a spiking network's readout on your data, and write the answer into the network.

    All work is done on a private copy, which needs memory for a second set of parameters; then the answer is written into the
    network.  On any error, interrupt or failed check it is bit for bit as before.  Modes, hooks, random generators, membranes and
    ``requires_grad`` are left as found.  Inside ``torch.autocast`` the network runs as it
    would there; hidden layers and the program are solved in full precision.  The options are frozen: derive other ones by
    ``dataclasses.replace(initializer, tol=1e-4)``.

    Args:
        hidden: "keep" leaves hidden layers alone.  "rescale" multiplies each hidden layer's weights and bias by a gain for a
            healthy firing rate, chosen by the convex objective; the layer is kept if no gain is better.  "reconstruct" replaces the
            rows of every hidden layer, from the input up, by candidates that a group lasso on their spikes selects.  A layer that
            can't be rebuilt is rescaled, and the report gives the reason.  "auto" (default) keeps, rescales or rebuilds each layer:
            what does best on held-out samples, and a tie keeps it.  Frozen layers (``requires_grad=False``) stay.
        witnesses: sampler of the candidates, for "reconstruct" and "auto": "auto" (default: "traces"; above the first
            layer a third "relays", the rest "pairs"), "pairs" (boundaries between two samples of different classes), "traces"
            (pairs of what the neuron remembers at a step; the same where inputs are constant), "relays" (of the layer below),
            "gaussian" (random directions).  Or a function ``(site, count, generator) -> Candidates``.  Recurrent layers are built
            on a clock or a reservoir.
        n_candidates: candidates of a layer: a float is a multiple of its width (default 3.0; convolutions, of few channels, gain
            from 12.0), an int their number.  A layer gets at least as many as its width.
        heterogeneous: for "reconstruct" and "auto": whether candidates differ in their leak, with time constants up to the length
            of the sequence, and each neuron gets a separate leak.  Helps where inputs change over time.  True: in every rebuilt
            layer whose neuron can hold one leak a unit (``beta`` of snnTorch's Leaky, Synaptic, RLeaky and RSynaptic).  One value
            for all units becomes one for each, (N,), or (C, 1, 1) for a convolution.  None (default): only in layers with one leak
            for each unit already, unless all leaks are equal and the input of a linear layer is constant.  False: leaks and
            thresholds that differ between neurons move with the rows.
        loss: your training loss: "cross_entropy" (default), "logistic", "hinge", "squared_hinge" (these three one class against the
            rest), "squared_multi_margin", "squared" or "huber"; or its object: ``nn.CrossEntropyLoss()``, ``NLLLoss``,
            ``MSELoss``, ``HuberLoss``, ``SmoothL1Loss``, ``MultiMarginLoss`` (p=1 is solved by its square),
            ``BCEWithLogitsLoss``, ``MultiLabelSoftMarginLoss``; or ``ce_rate_loss()``, ``ce_count_loss``,
            ``ce_max_membrane_loss``, ``mse_count_loss``, ``mse_membrane_loss`` of snntorch.functional.  A loss of values over
            time also selects how they are decoded: each step, the sum or the maximum.
        fit_loss: loss of the program.  "auto" (default) replaces a cross-entropy of one row a sample by the squared hinge, one
            class against the rest, with temperature scaling on held-out samples: it generalises better, in as much time.  If
            its held-out accuracy is below 90 %, cross-entropy is solved too, and the lower held-out cross-entropy decides.
            "squared_hinge" always replaces it.  "same" solves the training loss, as "auto" does if ``strength`` is a number, a
            maximum over time decides, or ``solver`` is "highs".  Certificate and strength are those of the program that was
            solved.
        penalty: "ridge" (default: the most accurate on a given hidden layer, and the fastest), "group_l1" (path norm: one group
            of outgoing weights a hidden neuron, which leaves neurons unused), "l1", "group_l1+ridge" or "l1+ridge".
        strength: factor of the penalty, a positive number.  "auto" (default) takes the best of a path by held-out loss.  "one_se"
            takes the largest one within a standard error of it, which uses fewer neurons with a sparse penalty.
        readout: decoding of scores: "auto" (default: what the network returns; values over time as their mean, spikes as their
            count); "membrane_mean", "_sum", "_last", "_per_step" or "_max"; the same with "linear_" for a readout without an
            output neuron; "spike_count", "spike_rate" or "first_spike".  "_per_step" is for losses, or targets, at every step.
        readout_layer: name of the readout's nn.Linear, for networks with several candidates.
        classes: number of classes K that the outputs stand for.  With C outputs above K, C / K neighbouring outputs stand for a
            class and their scores are summed, as in snnTorch's population code.  Default: the number in the loss, as in
            ``SF.mse_count_loss(population_code=True, num_classes=10)``, else one class an output.
        solver: "auto" (default; the report gives the reason), "newton", "fista", "admm" or "augmented_lagrangian"; or of
            other packages "highs", "clarabel" or "scs".
        tol: relative duality gap to reach, relative to the loss at zero weights; default 1e-6.
        max_cost: bound on the work of strength path and solution together, in epochs of training; default 1.0.  Work is counted in
            multiply-adds, so results are the same on every machine; half a second on one core is always allowed.  A bounded solve
            leaves its best point; the report has the gap and states that ``tol`` was not reached.  ``math.inf`` removes the bound.
            "clarabel", "scs" and "highs" ignore it.
        max_samples: maximum number of samples, at least 10, the first ones of the loader; default all.
        max_memory: bytes of memory for the features of all samples and their copies, at least 1 MiB; default half of what is free.
            Features beyond that lie in temporary files, which ``TMPDIR`` can place on another disk.  No result depends on it.
        holdout: share of samples held out to choose the strength and to report accuracy, above 0 to 0.5; default 0.2.
        allow_tied: allow a write to a readout that other modules share, which changes these too; default False.
        seed: of the split, of the shuffling of your loader during the call, and of everything else random; default 0.
        forward: ``forward(net, inputs)`` for networks whose time loop is outside, e.g. ``over_time(25)``, or whose inputs your loop
            reshapes, e.g. ``lambda net, x: net(x.flatten(1))``; default ``net(inputs)``.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs, e.g. dictionaries.
        progress: show progress bars; by default in a terminal only.

    Raises:
        OptionError: an unknown name or a number out of range; the message lists what is valid.

    Example:
        >>> init = ConvexInitializer(hidden="keep", tol=1e-7)
        >>> init
        ConvexInitializer(hidden='keep', loss='cross_entropy', penalty='ridge', strength='auto', readout='auto', tol=1e-07)

    Source: arXiv 2605.08022, parameter reconstruction with a given dictionary of hidden spikes.  The free bias, the temporal filter
    of a leaky readout and the held-out strength are additions.
    """

    def __repr__(self) -> str:
        values = {**{name: getattr(self, name) for name in _SHOWN}, "loss": self.criterion.name}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def initialize(self, net: nn.Module, loader: Iterable[Any], *, shards: SingleProcess = SINGLE_PROCESS) -> Report:
        """Solve the program and write the answer.

        Args:
            net: a snnTorch or Norse network; its parameters are overwritten in place.
            loader: (input, target) batches of training data, or batches that ``unpack`` turns into such; each is read once.  Inputs
                as the network takes them.  Targets as the loss takes them for whole samples, e.g. class indices (B,) or values
                (B, C); with a readout at every step also of each step, (B, T) or (B, T, C).
            shards: ``snn_recon_plugin.convex.Shards()`` for several processes with equal networks, each with its own share of the
                samples, as a ``DistributedSampler`` gives them.  All must call.  They solve one program and write the same bits.
                Rank 0 chooses the hidden layers, on the first samples of all.  ``max_samples`` counts all.  Default: one process.

        Returns:
            The report; ``report.undo()`` puts the parameters back.

        Raises:
            DataError: bad input or labels.
            NetworkError: the network can't be read; its subclasses name the obstacle.
            SolverError: the program could not be solved.
            WriteError: the written network does not do what the program promised.
        """
        if shards.is_distributed:
            _check_equal(self, net, shards)
        return Report.of(initialize_network(net, loader, self, Context(processes=shards)))


def _check_equal(options: Options, net: nn.Module, shards: SingleProcess) -> None:
    """Refuse processes with different options or networks, by a DataError."""
    for name in (field.name for field in fields(options) if field.name != "progress"):  # one process may show bars for all
        value = options.criterion.content if name == "loss" else getattr(options, name)
        shards.check_equal(f"option {name}", value if isinstance(value, str | int | float | tuple | None) else type(value).__name__)
    digest = hashlib.blake2b(digest_size=8)
    for name, value in net.state_dict().items():
        if isinstance(value, torch.Tensor):  # a module may keep anything as its extra state
            digest.update(name.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    shards.check_equal("checksum of the network's parameters and buffers", digest.hexdigest())


def convex_init_(
    net: nn.Module, loader: Iterable[Any], *others: Any, shards: SingleProcess = SINGLE_PROCESS, **options: Any
) -> Report:
    """Initialise a network in place, in one line.

    The call always writes, even if the accuracy on held-out samples falls.  The report has it before and after, and
    ``report.undo()`` restores the old weights.

    Args:
        net: a snnTorch or Norse network.
        loader: (input, target) batches of training data.  Inputs as the network takes them, e.g. (B, F) or (T, B, F).  Targets are
            class indices (B,) or values (B, C); with a readout at every step also (B, T) or (B, T, C).
        *others: none; tensors of inputs and targets are refused, with the loader to make of them.
        shards: as for ``ConvexInitializer.initialize``, for several processes that share the data.
        **options: as for ``ConvexInitializer``.

    Returns:
        The report.

    Raises:
        ReconstructionError: as ``ConvexInitializer.initialize``; the network is then as before.

    Example:
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> report = convex_init_(net, loader, progress=False)
        >>> report.certificate.reached
        True
    """
    if others:
        raise DataError(
            f"{2 + len(others)} arguments without a name: a net, {', '.join(describe(value) for value in (loader, *others))}",
            "a net and a loader; options by their names",
            "pass convex_init_(net, DataLoader(TensorDataset(inputs, targets), batch_size=64))",
        )
    valid = [field.name for field in fields(ConvexInitializer)]
    for name in options.keys() - valid:
        fix = _REPLACED.get(name) or (f"pass {closest(name, valid)}=..." if closest(name, valid) else "leave it out")
        raise OptionError(f"an option {name}", f"one of {', '.join(valid)}", fix)
    return ConvexInitializer(**options).initialize(net, loader, shards=shards)


def refit_(
    net: nn.Module,
    loader: Iterable[Any],
    report: Report,
    optimizer: torch.optim.Optimizer | None = None,
) -> Report:
    """Solve the readout again on the present hidden layers, and keep it if its held-out loss is lower.

    In place of a cross-entropy the squared hinge is solved too, and the better one taken.  Hidden layers stay.  ``tol`` is at
    least 1e-4, and ``max_cost`` at most one epoch.  The held-out loss alone decides, not the accuracy.  Held-out samples are taken
    from the loader: the trained readout has seen them, which favours it.

    Args:
        net: the network.
        loader: (input, target) batches of training data, as for ``ConvexInitializer.initialize``.  After a start with ``shards``
            each rank passes its own share of the samples, and all ranks must call.
        report: of the last call for this network, whose options are used again.
        optimizer: its state for the readout is cleared if the refit is kept; default None.

    Returns:
        The report; its ``parameters`` are empty if the trained readout was better and is in the network.

    Raises:
        OptionError: no report of an earlier call.
        ReconstructionError: as ``ConvexInitializer.initialize``; the network is then as before.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> report = convex_init_(net, loader, progress=False)
        >>> refit_(net, loader, report).hidden_neurons
        32
    """
    if not isinstance(report, Report):
        fix = "pass report = convex_init_(net, loader), then refit_(net, loader, report)"
        raise OptionError(f"a report of type {type(report).__name__}", "the report of an earlier call for this network", fix)
    context = Context(warm_start=True, trains_on=False, processes=report.sample.processes)
    found = Report.of(initialize_network(net, loader, refit_options(report.sample.options), context))
    if not found.solved_loss < found.loss_before:
        found.undo()
    elif optimizer is not None:
        clear_optimizer_state([optimizer], found.parameters)
    return found
