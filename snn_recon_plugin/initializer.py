"""The one line: solve the convex program of an existing network on the user's data, and write the answer in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from torch import nn

from .distributed import SINGLE_PROCESS, SingleProcess
from .errors import DataError, OptionError
from .hidden.site import Sampler
from .networks.calls.batches import describe
from .networks.calls.forward import Forward
from .networks.private.workbench import checksum
from .options import Options, check_bool
from .read.loss_calls import Step
from .report.content import Report
from .stages.initialize import initialize_network
from .stages.run import REFIT, START, SolveMode
from .stages.stream import Unpack
from .training.protect import clear_optimizer_state

_SHOWN = ("hidden", "loss", "penalty", "strength", "readout", "tol")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ConvexInitializer(Options):
    """Solve the convex program of a spiking network's readout on your data, and write the answer into the network if it is better.

    All work is done on a private copy, which needs memory for a second set of parameters; then the answer is written into the
    network if the held-out loss falls.  On any error, interrupt or failed check it is bit for bit as before.  Modes, hooks,
    random generators, membranes and ``requires_grad`` are left as found.  Inside ``torch.autocast`` the network runs as it would
    there; hidden layers and the program are solved in full precision.

    The options are the fields of ``options.Options``, which describes each.  They are frozen: derive other ones by
    ``dataclasses.replace(initializer, tol=1e-4)``.

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

    def initialize(
        self,
        net: nn.Module,
        loader: Iterable[Any],
        *,
        val_loader: Iterable[Any] | None = None,
        fit_val: bool = True,
        shards: SingleProcess = SINGLE_PROCESS,
    ) -> Report:
        """Solve the program and write the answer if it is better.

        Args:
            net: a network of snnTorch, Norse or SpikingJelly; its parameters are overwritten in place.
            loader: (input, target) batches of training data, or batches that ``unpack`` turns into such; each is read once.  Inputs
                as the network takes them.  Targets as the loss takes them for whole samples, e.g. class indices (B,) or values
                (B, C); with a readout at every step also of each step, (B, T) or (B, T, C).
            val_loader: batches as those of the loader, of at least 10 samples that training does not see.  In place of held-out
                samples of the loader they choose the strength and between hidden layers, and decide whether anything is written.
                One half reports what the others have chosen, and the other half likewise, so accuracies are of samples that
                chose nothing.  In the end the readout is solved on the samples of both loaders, so a tie is written too: a loss at
                most 3 % higher.  Default None.
            fit_val: solve the readout in the end on validation samples too; default True.  With False they stay fit to compare
                weights later.
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
        return self._solve(net, loader, START, val_loader, fit_val, shards)

    def _solve(
        self,
        net: nn.Module,
        loader: Iterable[Any],
        mode: SolveMode,
        val_loader: Iterable[Any] | None,
        fit_val: bool,
        shards: SingleProcess,
    ) -> Report:
        check_bool("fit_val", fit_val, True)
        if shards.is_distributed:
            shards.check_equal("val_loader, given or not", val_loader is not None)
            _check_equal(self, net, shards)
        return initialize_network(net, loader, self, mode, val_loader=val_loader, fit_val=fit_val, processes=shards)


ConvexInitializer.__doc__ = f"{ConvexInitializer.__doc__}\n    {Options.__doc__}"  # help() shows the options too


def _check_equal(options: Options, net: nn.Module, shards: SingleProcess) -> None:
    """Refuse processes with different options or networks, by a DataError."""
    for name in (field.name for field in fields(options) if field.name != "progress"):  # one process may show bars for all
        value = options.criterion.content if name == "loss" else getattr(options, name)
        shards.check_equal(f"option {name}", value if isinstance(value, str | int | float | tuple | None) else type(value).__name__)
    shards.check_equal("checksum of the network's parameters and buffers", checksum(net.state_dict()))


def options_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among the arguments of a function that takes all of them."""
    return {field.name: values[field.name] for field in fields(Options)}


def convex_init_(  # noqa: D417 -- options are described once
    net: nn.Module,
    loader: Iterable[Any],
    *others: NoReturn,
    # options: written by tests/signatures.py
    step: Step | None = None,
    test: Step | None = None,
    forward: Forward | None = None,
    unpack: Unpack | None = None,
    loss: object = None,
    readout: str = "auto",
    readout_layer: str | None = None,
    classes: int | None = None,
    hidden: str = "auto",
    witnesses: str | Sampler = "auto",
    n_candidates: float | int = 3.0,
    heterogeneous: bool | None = None,
    fit_loss: str = "auto",
    penalty: str = "ridge",
    strength: float | str = "auto",
    solver: str = "auto",
    tol: float = 1e-06,
    max_cost: float = 1.0,
    max_samples: int | None = None,
    max_memory: int | None = None,
    holdout: float = 0.2,
    write: str = "if_better",
    allow_tied: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    # end of options
    val_loader: Iterable[Any] | None = None,
    fit_val: bool = True,
    shards: SingleProcess = SINGLE_PROCESS,
    **unknown: NoReturn,
) -> Report:
    """Initialise a network in place, in one line.

    If the loss on held-out samples does not fall, the old weights stay, and the report's first row says so.
    ``write="always"`` writes in any case.  ``report.undo()`` restores the old weights.  ``ConvexInitializer`` describes the
    options, from ``step`` to ``progress``.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly.
        loader: (input, target) batches of training data.  Inputs as the network takes them, e.g. (B, F) or (T, B, F).  Targets are
            class indices (B,) or values (B, C); with a readout at every step also (B, T) or (B, T, C).
        *others: none; tensors of inputs and targets are refused, with the loader to make of them.
        val_loader: batches of validation data, which choose and judge in place of held-out samples, as for
            ``ConvexInitializer.initialize``.
        fit_val: solve the readout in the end on the validation samples too; default True.
        shards: as for ``ConvexInitializer.initialize``, for several processes that share the data.
        **unknown: none; other names are refused, with the closest option.

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
    options = options_in(locals())
    if others:
        found = f"{2 + len(others)} arguments without a name: a net, {', '.join(describe(value) for value in (loader, *others))}"
        fix = "pass convex_init_(net, DataLoader(TensorDataset(inputs, targets), batch_size=64))"
        raise DataError(found, "a net and a loader; options by their names", fix)
    return ConvexInitializer(**options, **unknown).initialize(net, loader, val_loader=val_loader, fit_val=fit_val, shards=shards)


def refit_(
    net: nn.Module,
    loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *others: NoReturn,
    step: Step | None = None,
    test: Step | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    fit_val: bool = True,
    shards: SingleProcess = SINGLE_PROCESS,
    **options: Any,
) -> Report:
    """Finish a trained network: solve its readout again on the hidden layers that training has found.

    The new readout is written if its loss on validation samples is lower.  Hidden layers stay.  In place of a cross-entropy the
    squared hinge is solved too, and the better one taken.  ``tol`` is at least 1e-4, and ``max_cost`` at most one epoch.

    Args:
        net: the network, trained by any loop.
        loader: (input, target) batches of training data, as for ``convex_init_``.
        val_loader: batches of samples that training has not seen, which choose and judge; see ``ConvexInitializer.initialize``.
            Default None: samples of the loader are held out.  Training has seen those, so they choose too weak a penalty, and the
            report states that its accuracies are too high.
        *others: none; a report, which earlier versions took, is refused with what to type.
        step: your training step, ``step(net, batch)``, as for ``convex_init_``.
        test: your test of a batch, beside ``step``.
        optimizer: its state for the readout is cleared if the new one is written, to train on; default None.
        fit_val: solve the readout in the end on the validation samples too; default True.
        shards: as for ``ConvexInitializer.initialize``: each rank passes its share of both loaders.
        **options: others of ``convex_init_``, but ``hidden``.

    Returns:
        The report; its ``parameters`` are empty if the trained readout was better and stays.  ``report.undo()`` restores it.

    Raises:
        OptionError: an unknown option, or a report.
        ReconstructionError: as ``ConvexInitializer.initialize``; the network is then as before.

    Example:
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> refit_(net, loader, [(data.test_inputs, data.test_labels)]).judged_on
        'validation samples'
    """
    given = [value for value in (val_loader, *others, options.get("report")) if isinstance(value, Report)]
    if given or others or "hidden" in options:
        found = "a report" if given else "hidden=" if "hidden" in options else f"{3 + len(others)} arguments without a name"
        fix = "pass refit_(net, loader, val_loader=val_loader, step=train_batch), with the options of the first call by name"
        raise OptionError(f"{found} in refit_", "a net, a loader and validation data; hidden layers stay", fix)
    initializer = ConvexInitializer(step=step, test=test, **options).for_refit()
    report = initializer._solve(net, loader, REFIT, val_loader, fit_val, shards)
    if optimizer is not None:
        clear_optimizer_state([optimizer], report.parameters)
    return report
