"""The one line: take a network and data, solve the convex program of its readout, write the answer in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .arguments import one_of, share, whole
from .convex import SOLVERS, Penalty, make_penalty
from .convex.checks import checked_bound
from .convex.path import CHOICES
from .convex.problem import checked_strength
from .convex.shards import ALONE
from .convex.solve import checked_tol
from .criteria import Criterion, criterion_of
from .errors import OptionError
from .networks import ALL_READOUTS, Forward, plain_forward
from .report import Report
from .run import Run
from .stand_in import FIT_LOSSES, check_fit_loss
from .stream import Unpack
from .witnesses import Sampler, sampler_of

__all__ = ["HIDDEN", "ConvexInitializer", "convex_init_"]

HIDDEN = ("rescale", "keep", "reconstruct")
_COMPARED = 2048


class ConvexInitializer:
    """Solves the convex program of a spiking network's readout on your data and writes the answer into the network.

    The network is changed by one transaction: on any error, interrupt or failed check it is bit for bit as before.  Modes,
    hooks, random generators, membranes and ``requires_grad`` are always left as found.  Inside ``torch.autocast`` the network
    runs as it would there; hidden layers are chosen, and the program is solved, in full precision.

    Args:
        hidden: "keep" leaves hidden layers alone; "rescale" (default) scales each hidden layer's own weights and bias to a healthy
            firing rate, chosen by the convex objective, and keeps them where that is no better; "reconstruct" replaces the
            rows of every hidden layer by candidates that a group lasso on their spikes selects, from the input up.  A layer
            that can't be rebuilt is rescaled, and the report says why.  Frozen layers (``requires_grad=False``) stay.
        witnesses: where candidates come from, for "reconstruct": "pairs" (default: boundaries between two samples of different
            classes; above the first layer mixed with relays of the layer below), "traces" (pairs of what the neuron remembers at a
            step), "gaussian", "gaussian_standard", "gaussian_normalised", "gaussian_orthogonal", "codes", "dual_codes" (codes that
            follow what the solution so far leaves, in ``rounds``), "relays", "mixed" or "own", or a function
            ``(site, count, generator) -> Candidates``.
        n_candidates: how many are simulated a layer: a float is a multiple of its width (default 3.0; convolutions, of few
            channels, gain from 12.0), an int their number.
        rounds: of column generation: 1 (default) draws all candidates at once; with more, half of them are drawn later, in
            proportion to the residuals, and enter where they improve the program.
        unit_parameters: for "reconstruct", a hidden layer whose neurons have a leak or a threshold each, learned or not, such as
            ``snn.Leaky(beta=torch.rand(100))``: True lets every candidate take those of one of these neurons along, and
            overwrites them too; default False only rescales such a layer, unless the values are all the same.
        loss: the loss that you train with: "cross_entropy" (default), "logistic", "hinge", "squared_hinge" (all three: one against
            the rest), "multi_margin", "squared_multi_margin" or "squared"; or its object, ``nn.CrossEntropyLoss()``, ``NLLLoss``,
            ``MSELoss``, ``MultiMarginLoss``, ``BCEWithLogitsLoss``, or ``ce_rate_loss()``, ``ce_count_loss``,
            ``ce_max_membrane_loss``, ``mse_count_loss``, ``mse_membrane_loss`` of snntorch.functional, whose reading of values over
            time (each step, the sum, the maximum) is then taken too.
        fit_loss: the loss that is solved: "auto" (default) solves the squared hinge, one class against the rest, in place of a
            cross-entropy of one row a sample, and writes its solution times the factor that has the least cross-entropy on
            held-out samples: more of them are decided right, in as much time.  Where fewer than nine in ten of them are,
            cross-entropy is solved too, and the lower held-out cross-entropy decides.  "squared_hinge" solves it in any case;
            "same" the loss itself, as "auto" does where ``strength`` is a number, a maximum over time is read, or ``solver`` is
            "highs".  Certificate and strength are of what was solved.
        penalty: "ridge" (default: the most accurate on a given hidden layer, and the fastest), "group_l1" (path norm: one group
            of outgoing weights a hidden neuron, which leaves neurons unused), "l1", "group_l1+ridge" or "l1+ridge".
        strength: factor of the penalty, or "auto" (default): the best of a path by the loss of held-out samples, or "one_se": the
            largest whose held-out loss is within one standard error of that, which uses fewer neurons with a sparse penalty.
        readout: how scores come from the network: "auto" (default: what it returns; of values over time their mean, or the count
            of spikes), "membrane_mean", "_sum", "_last", "_per_step" or "_max", the same with "linear_" for a readout without an
            output neuron, "spike_count", "spike_rate" or "first_spike".  "_per_step" is for losses, or targets, at every step.
        readout_layer: name of the readout's nn.Linear, where the network has several that could be it.
        scores: ``scores(output)`` gives scores (B, C) from what the network returns, where none of the readouts is meant.
        classes: how many classes the outputs stand for, K.  With C outputs above K, C / K neighbouring ones stand for a class and
            their scores are summed: snnTorch's population code.  Default: what the loss says, as in
            ``SF.mse_count_loss(population_code=True, num_classes=10)``, else one class an output.
        solver: "auto" (default: "native"), "native", "clarabel", "scs", or "highs" for hinge with l1 alone.
        tol: relative duality gap to reach, relative to the loss at zero weights; default 1e-6.
        max_cost: bound on the work of the readout's program, strength and solution together, in epochs of training; default 1.0.
            Work is counted in multiply-adds, so the result is the same on every machine; half a second on one core is always
            allowed.  A solve that it ends leaves the best point so far: the report has its gap and says that ``tol`` was not
            reached.  ``math.inf`` solves to ``tol`` whatever it takes.  "clarabel", "scs" and "highs" ignore it.
        max_samples: use at most so many samples; default all.
        holdout: share of the samples held out to choose the strength and to report accuracy, 0 to 0.5; default 0.2.
        allow_tied: whether a readout that other modules share may be written, which changes these as well; default False.
        seed: of the split, the shuffling of your loader during the call, and everything else random; default 0.
        forward: ``forward(net, inputs)`` for networks whose time loop is outside, e.g. ``over_time(25)``, or whose inputs your loop
            reshapes, e.g. ``lambda net, x: net(x.flatten(1))``; default ``net(inputs)``.
        unpack: ``unpack(batch)`` gives (input, target), for a loader whose batches are something else, e.g. dictionaries.
        progress: whether to show progress bars; default only in a terminal.

    Raises:
        OptionError: an unknown name or a number out of range; the message lists what is valid.

    Example:
        >>> init = ConvexInitializer(hidden="keep", tol=1e-7)
        >>> init
        ConvexInitializer(hidden='keep', loss='cross_entropy', penalty='ridge', strength='auto', readout='auto', tol=1e-07)

    Source: arXiv 2605.08022, parameter reconstruction with a given dictionary of hidden spikes; the free bias, the temporal
    filter of a leaky readout and the held-out strength are additions.
    """

    def __init__(
        self,
        *,
        hidden: str = "rescale",
        witnesses: str | Sampler = "pairs",
        n_candidates: float | int = 3.0,
        rounds: int = 1,
        unit_parameters: bool = False,
        loss: object = "cross_entropy",
        fit_loss: str = "auto",
        penalty: str = "ridge",
        strength: float | str = "auto",
        readout: str = "auto",
        readout_layer: str | None = None,
        scores: Callable[[Any], Tensor] | None = None,
        classes: int | None = None,
        solver: str = "auto",
        tol: float = 1e-6,
        max_cost: float = 1.0,
        max_samples: int | None = None,
        holdout: float = 0.2,
        allow_tied: bool = False,
        seed: int = 0,
        forward: Forward | None = None,
        unpack: Unpack | None = None,
        progress: bool | None = None,
    ) -> None:
        self.hidden = one_of("hidden", hidden, HIDDEN)
        self.witnesses = witnesses
        sampler_of(witnesses)
        self.n_candidates = _candidates(n_candidates)
        self.rounds = whole("rounds", rounds, 1)
        self.unit_parameters = bool(unit_parameters)
        self.criterion = criterion_of(loss)
        self.loss = self.criterion.name
        self.fit_loss = one_of("fit_loss", fit_loss, FIT_LOSSES)
        check_fit_loss(self.fit_loss, self.criterion.make(1), self.loss)
        _name_only("penalty", penalty)
        self.penalty = make_penalty(penalty).name
        self.strength = strength if isinstance(strength, str) and strength in CHOICES else checked_strength(strength)
        self.readout = one_of("readout", readout, ("auto", *ALL_READOUTS))
        self.readout_layer = readout_layer
        self.scores = scores
        if scores is not None and not callable(scores):
            raise OptionError(f"scores={scores!r}", "a function scores(output)", "pass scores=lambda output: output[1].mean(0)")
        self.classes = _classes(classes, self.criterion)
        self.solver = one_of("solver", solver, SOLVERS)
        self.tol = checked_tol(tol)
        self.max_cost = checked_bound("max_cost", max_cost)
        self.max_samples = None if max_samples is None else whole("max_samples", max_samples, 10)
        self.holdout = share("holdout", holdout, 0.5, 0.2)
        self.allow_tied = bool(allow_tied)
        self.seed = whole("seed", seed, 0, 2**32 - 1)
        self.forward = plain_forward if forward is None else forward
        if not callable(self.forward):
            raise OptionError(f"forward={forward!r}", "a function forward(net, inputs)", "pass forward=over_time(25)")
        self.unpack = unpack
        if unpack is not None and not callable(unpack):
            raise OptionError(f"unpack={unpack!r}", "a function unpack(batch)", "pass unpack=lambda batch: (batch[0], batch[1])")
        self.progress = progress
        # What only refits ask for: they find a trained readout, come often, and in several processes.
        self.warm_start, self.compared, self.shards = False, _COMPARED, ALONE
        self.near: tuple[str, float] | None = None  # a loss, and a strength that was found for it on other features

    def __repr__(self) -> str:
        shown = ("hidden", "loss", "penalty", "strength", "readout", "tol")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def initialize(self, net: nn.Module, loader: Iterable[Any]) -> Report:
        """Solves and writes.

        Args:
            net: a snnTorch or Norse network; its parameters are overwritten in place.
            loader: (input, target) batches of training data, or what ``unpack`` makes such, each read once; input as the
                network takes it; targets as the loss takes them for whole samples, e.g. class indices (B,) or values (B, C), or,
                with a readout at every step, of each step: (B, T) or (B, T, C).

        Returns:
            The report; ``report.undo()`` puts the parameters back.

        Raises:
            DataError: bad input or labels.
            NetworkError: the network can't be read; its subclasses say what is in the way.
            SolverError: the program could not be solved.
            WriteError: the written network does not do what the program promised.
        """
        return Run(self, net).run(loader)


def convex_init_(net: nn.Module, loader: Iterable[Any], **options: Any) -> Report:
    """Initialises a network in place, in one line.

    Args:
        net: a snnTorch or Norse network.
        loader: (input, target) batches of training data.
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
    return ConvexInitializer(**options).initialize(net, loader)


def _name_only(option: str, value: object) -> None:
    """Refuses a Penalty itself: reduced to its name it would silently lose its own settings."""
    if isinstance(value, Penalty):
        raise OptionError(f"{option}={value!r}", "a name", f"pass {option}={value.name!r}, or use snn_recon_plugin.convex directly")


def _classes(classes: int | None, criterion: Criterion) -> int | None:
    """Return the number of classes that option and loss agree on; None where neither says it."""
    said = criterion.num_classes
    if classes is None or (isinstance(classes, int) and classes == said):
        return said
    if said is not None:
        found = f"classes={classes!r} with num_classes={said} in {criterion.name}"
        raise OptionError(found, "one number of classes", f"pass classes={said}, or leave it out")
    return whole("classes", classes, 2)


def _candidates(value: float | int) -> float | int:
    """A positive number of either kind: a float is a multiple, an int a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 1 and math.isfinite(value)):
        found = f"n_candidates={value!r}"
        raise OptionError(found, "a multiple of the width as a float, or a number as an int, at least 1", "pass n_candidates=3.0")
    return value
