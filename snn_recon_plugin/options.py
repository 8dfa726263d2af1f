"""Options of an initialisation: each with its default, its check and its description."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from .convex import Penalty, check_solver, make_penalty
from .convex.checks import check_name, checked_bound, plain_number, positive_number
from .errors import REMOVED, OptionError, closest
from .hidden.samplers import get_sampler
from .hidden.site import Sampler
from .networks.calls.forward import Forward, plain_forward, without_contexts
from .networks.readout.readout import ALL_READOUTS
from .read.loss_calls import Step
from .stages.criterion import Criterion, criterion_of, own_loss
from .stages.stream import Stream, Unpack, binary_labels, one_hot_labels

if TYPE_CHECKING:
    from typing_extensions import Self

AUTO, SAME, SQUARED_HINGE = FIT_LOSSES = ("auto", "same", "squared_hinge")
IF_BETTER, ALWAYS = WRITES = ("if_better", "always")
REFIT_TOL = 1e-4  # relative gap of a refit: held-out losses show no smaller difference, and hidden layers move anyway
REFIT_COST = 1.0  # epochs of training that the program of a refit may cost
_TEST = "test=lambda net, batch: net(batch[0])[0].sum(0).argmax(1)"
_STEP = "step=lambda net, batch: criterion(net(batch[0]), batch[1])"
_UNPACK = "unpack=lambda batch: (batch[0], batch[1])"
_CLASSES = "pass your number of classes, as in classes=10; else leave it out"

T = TypeVar("T")


def check_names(names: Iterable[str], valid: Collection[str], owner: str = "", otherwise: str = "leave it out") -> None:
    """Raise an OptionError for a name that is no option; ``owner`` is the function in whose name ``REMOVED`` lists some."""
    for name in names:
        if name not in valid:
            near = closest(name, valid)
            fix = REMOVED.get(f"{owner}.{name}", f"pass {near}=..." if near else otherwise)
            raise OptionError(f"an option {name}", f"one of {', '.join(valid)}", fix)


def _check_one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    check_name(name, value, valid, usual=valid[0])


def check_bool(name: str, value: object, default: bool | None) -> None:
    """Raise an OptionError unless the value is a bool, or the default."""
    if not isinstance(value, bool) and value is not default:
        needed = "None, True or False" if default is None else "True or False"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=True")


def check_whole(name: str, value: object, least: int, most: float = math.inf, fix: str = "") -> None:
    """Raise an OptionError unless the value is a whole number from ``least`` to ``most``."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise OptionError(f"{name}={value!r}", f"a whole number, {limits}", fix or f"pass {name}={least}")


def check_fraction(name: str, value: object, most: float, example: float) -> None:
    """Raise an OptionError unless 0 < value <= most."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name}={value!r}", f"a share above 0, up to {most:g}", f"pass {name}={example}")


def _check_function(name: str, value: object, arguments: str, example: str) -> None:
    if not callable(value):
        raise OptionError(f"{name}={value!r}", f"a function {name}({arguments})", f"pass {example}")


def _check_candidates(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 1 and math.isfinite(value)):
        needed = "a multiple of the width as a float, or a number as an int, at least 1"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=3.0")


def _check_penalty(name: str, value: object) -> None:
    """Raise an OptionError for a Penalty object too, whose own settings its name would lose."""
    if isinstance(value, Penalty):
        raise OptionError(f"{name}={value!r}", "a name", f"pass {name}={value.name!r}, or use snn_recon_plugin.convex directly")
    make_penalty(value)  # type: ignore[arg-type]


def _check_strength(name: str, value: object) -> None:
    if not (isinstance(value, str) and value == AUTO):
        positive_number(name, value, f"pass {name}='auto'", "a positive number or 'auto'")


def option(default: T, check: Callable[[str, Any], object]) -> T:
    """Return a field with a default, and a check that gets name and value if that is not None by default."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an initialisation, checked when they are made.

    Args:
        step: your training step, ``step(net, batch)``, which returns the loss of a batch of the loader, or goes backward itself:
            ``lambda net, batch: criterion(forward_pass(net, batch[0]), batch[1])``, or the function that trains on a batch.  The
            loss, its scores and targets, the time loop and the encoding are read from it, in place of ``forward`` and ``unpack``.
            It runs on a private copy of the network, to its loss only: nothing is trained.
        test: your test of a batch, ``test(net, batch)``, beside ``step``.  If membranes are trained and the output neuron spikes,
            it shows which of these decide: it takes their ``argmax``, ``max`` or ``topk``.  Default: spikes, if they are returned.
        forward: ``forward(net, inputs)`` for networks whose time loop is outside, e.g. ``over_time(25)``, or whose inputs your loop
            reshapes, e.g. ``lambda net, x: net(x.flatten(1))``; default ``net(inputs)``.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs, e.g. dictionaries; or (input, target,
            lengths) for sequences that were padded at their ends, (B,) whole numbers.  The call is then ``net(input, lengths)`` if
            the network takes lengths, else ``net(input)``, read at the steps before the padding; a ``forward`` gets the named pair
            ``(inputs, lengths)``.
        loss: your training loss: "cross_entropy", "logistic", "hinge", "squared_hinge" (these three one class against the
            rest), "squared" or "huber", in short "ce", "nll", "bce", "mse" and "smooth_l1"; or its object:
            ``nn.CrossEntropyLoss()``, ``NLLLoss``, ``MSELoss``, ``HuberLoss``,
            ``SmoothL1Loss``, ``MultiMarginLoss`` (solved as squared hinge, one class against the rest),
            ``BCEWithLogitsLoss``, ``MultiLabelSoftMarginLoss``; or ``ce_rate_loss()``, ``ce_count_loss``,
            ``ce_max_membrane_loss``, ``ce_temporal_loss``, ``mse_count_loss``, ``mse_membrane_loss`` of snntorch.functional.  A
            loss of values over time also selects how they are decoded: each step, the sum, the maximum or the first spike.  None
            (default) takes one of these from the network's attribute ``loss_fn``, ``criterion`` or ``loss``, else "cross_entropy".
        readout: decoding of scores: "auto" (default: what the network returns; values over time as their mean, spikes as their
            count); "membrane_mean", "_sum", "_last", "_per_step" or "_max"; the same with "linear_" for a readout without an
            output neuron; "spike_count", "_rate", "_per_step" or "first_spike".  "_per_step" is for a loss or targets at each step.
        readout_layer: name of the readout's nn.Linear, for networks with several candidates.
        classes: number of classes K that the outputs stand for.  With C outputs above K, C / K neighbouring outputs stand for a
            class and their scores are summed, as in snnTorch's population code.  Default: the number in the loss, as in
            ``SF.mse_count_loss(population_code=True, num_classes=10)``, else one class an output.
        hidden: "keep" leaves hidden layers alone.  "rescale" multiplies each hidden layer's weights and bias by a gain for a
            healthy firing rate, chosen by the convex objective; the layer is kept if no gain is better.  "reconstruct" replaces the
            rows of every dense hidden layer, from the input up, by candidates that a group lasso on their spikes selects.  A
            layer that can't be rebuilt is rescaled, and the report gives the reason.  "auto" (default) does that where it is best
            on held-out samples, and keeps or rescales the other layers; a tie keeps a layer.  Convolutions keep their weights; one
            that hardly spikes is set as by ``hidden_init_``.  Frozen layers (``requires_grad=False``) stay.
        witnesses: sampler of the candidates, for "reconstruct" and "auto": "auto" (default: "traces"; above the first
            layer a third "relays", the rest "pairs"), "pairs" (boundaries between two samples of different classes), "traces"
            (pairs of what the neuron remembers at a step; the same where inputs are constant), "relays" (of the layer below),
            "gaussian" (random directions).  Or a function ``(site, count, generator) -> Candidates``.  Recurrent layers are built
            on a clock or a reservoir.
        n_candidates: candidates of a layer: a float is a multiple of its width (default 3.0), an int their number.  A layer gets at
            least as many as its width.
        heterogeneous: for "reconstruct" and "auto": whether candidates differ in their leak, with time constants up to the length
            of the sequence, and each neuron gets a separate leak.  Helps where inputs change over time.  True: in every rebuilt
            layer whose neuron can hold one leak a unit (``beta`` of snnTorch's Leaky, Synaptic, RLeaky and RSynaptic).  One value
            for all units becomes one for each, (N,).  None (default): only in layers with one leak for each unit already, unless
            all leaks are equal and the input is constant.  False: leaks and thresholds that differ between neurons move with the
            rows.
        fit_loss: loss of the program.  "auto" (default) replaces a cross-entropy of one row a sample by the squared hinge, one
            class against the rest, with temperature scaling on held-out samples: it generalises better, in as much time.  If
            its held-out accuracy is below 90 %, cross-entropy is solved too, and the lower held-out cross-entropy decides.
            "squared_hinge" always replaces it.  "same" solves the training loss, as "auto" does if ``strength`` is a number or a
            maximum over time decides.  Certificate and strength are those of the program that was solved.
        penalty: "ridge" (default: the most accurate on a given hidden layer, and the fastest), "group_l1" (path norm: one group
            of outgoing weights a hidden neuron, which leaves neurons unused) or "l1".
        strength: factor of the penalty, a positive number.  "auto" (default) takes the best of a path by held-out loss.
        solver: "auto" (default; the report gives the reason), "newton", or of other packages "clarabel" or "scs".  "auto" takes
            Newton's method, and Clarabel for the hinge, which has a kink.
        tol: relative duality gap to reach, relative to the loss at zero weights; default 1e-6.
        max_cost: bound on the work of strength path and solution together, in epochs of training; default 1.0.  Work is counted in
            multiply-adds, so results are the same on every machine; half a second on one core is always allowed.  A bounded solve
            leaves its best point; the report has the gap and states that ``tol`` was not reached.  ``math.inf`` removes the bound.
            "clarabel" and "scs" ignore it.
        max_samples: maximum number of samples, at least 10, the first ones of the loader; default all.
        max_memory: bytes of memory for the features of all samples and their copies, at least 1 MiB; default half of what is free.
            Features beyond that lie in temporary files, which ``TMPDIR`` can place on another disk.  No result depends on it.
        holdout: share of samples held out to choose the strength and to report accuracy, above 0 to 0.5; default 0.2.
        write: "if_better" (default) writes only if the held-out loss falls, by the network's own scores before and after on the
            same samples.  Otherwise the old weights stay, and the report's first row gives both losses.  The losses decide, not
            the accuracies.  Scores of classes are first multiplied by the factor that suits them best, which changes no decision;
            of losses of margins and values, cross-entropy compares class indices.  A loss that is not finite is higher than any
            other.  A network that was trained before may have seen the held-out samples, which favours the old weights.  "always"
            writes in any case.
        allow_tied: allow a write to a readout that other modules share, which changes these too; default False.
        seed: of the split, of the shuffling of your loader during the call, and of everything else random; default 0.
        progress: show progress bars; by default in a terminal only.  The logger "snn_recon_plugin" gets a line for each stage, at
            level DEBUG.

    Raises:
        OptionError: an unknown name or a number out of range; the message lists what is valid.
    """

    step: Step | None = option(None, partial(_check_function, arguments="net, batch", example=_STEP))
    test: Step | None = option(None, partial(_check_function, arguments="net, batch", example=_TEST))
    forward: Forward | None = option(None, partial(_check_function, arguments="net, inputs", example="forward=over_time(25)"))
    unpack: Unpack | None = option(None, partial(_check_function, arguments="batch", example=_UNPACK))
    loss: object = option(None, lambda name, value: criterion_of(value))
    readout: str = option("auto", partial(_check_one_of, valid=("auto", *ALL_READOUTS)))
    readout_layer: str | None = None
    classes: int | None = option(None, partial(check_whole, least=2, fix=_CLASSES))
    hidden: str = option("auto", partial(_check_one_of, valid=("auto", "rescale", "reconstruct", "keep")))
    witnesses: str | Sampler = option("auto", lambda name, value: get_sampler(value))
    n_candidates: float | int = option(3.0, _check_candidates)
    heterogeneous: bool | None = option(None, partial(check_bool, default=None))
    fit_loss: str = option("auto", partial(_check_one_of, valid=FIT_LOSSES))
    penalty: str = option("ridge", _check_penalty)
    strength: float | str = option("auto", _check_strength)
    solver: str = option("auto", lambda name, value: check_solver(value))
    tol: float = option(1e-6, partial(positive_number, fix="pass tol=1e-6"))
    max_cost: float = option(1.0, checked_bound)
    max_samples: int | None = option(None, partial(check_whole, least=10))
    max_memory: int | None = option(None, partial(check_whole, least=2**20))
    holdout: float = option(0.2, partial(check_fraction, most=0.5, example=0.2))
    write: str = option("if_better", partial(_check_one_of, valid=WRITES))
    allow_tied: bool = option(False, partial(check_bool, default=False))
    seed: int = option(0, partial(check_whole, least=0, most=2**32 - 1))
    progress: bool | None = option(None, partial(check_bool, default=None))

    def __new__(cls, *_: object, **options: object) -> Self:
        """Refuse unknown names, before Python does."""
        check_names(options, cls.__dataclass_fields__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = plain_number(getattr(self, each.name))
            object.__setattr__(self, each.name, value)
            if "check" in each.metadata and (value is not None or each.default is not None):
                each.metadata["check"](each.name, value)
        _check_together(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone, for processes that are spawned: the functions of a criterion can't be pickled."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def criterion(self) -> Criterion:
        """Training loss, in terms of the program."""
        return criterion_of(self.loss)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the outputs stand for, from the option or from the loss; None if neither gives it."""
        return self.criterion.num_classes if self.classes is None else self.classes

    @property
    def names_program(self) -> bool:
        """True if the caller determines the program, by its loss or strength: then its solution is written as it is."""
        return self.fit_loss == SAME or not isinstance(self.strength, str)

    @property
    def call(self) -> Forward:
        """Function that calls the network on a batch of inputs."""
        return plain_forward if self.forward is None else self.forward

    @property
    def names_readout(self) -> bool:
        """True if an option or the loss determines which of the returned values decides."""
        return self.readout != "auto" or self.criterion.takes is not None

    def of_module(self, *modules: nn.Module) -> Self:
        """Return the same options; without a loss those with the one that the first of the modules holds."""
        return self if self.loss is not None else replace(self, loss=own_loss(*modules))

    def for_refit(self, **changes: Any) -> Self:
        """Return the options of a refit with these, and with some changes."""
        cost = min(self.max_cost, REFIT_COST)
        return replace(self, hidden="keep", tol=max(self.tol, REFIT_TOL), max_cost=cost, **changes)

    def open(
        self,
        loader: Iterable[Any],
        device: torch.device,
        batches: Iterator[Any] | None = None,
        training: Stream | None = None,
    ) -> Stream:
        """Open a loader of batches as these options describe them; ``batches`` are an iterator that was made of it before.

        ``training`` is the stream of the training data, if the loader is of validation data.
        """
        criterion = self.criterion
        loss = criterion.loss_for_steps(1)
        return Stream(
            loader,
            device,
            self.unpack,
            criterion.ignored,
            batches=batches,
            batch_dim=getattr(without_contexts(self.call), "batch_dim", None),
            labels=binary_labels if loss.binary else one_hot_labels if loss.softmax else None,
            training=training,
        )


def _check_together(options: Options) -> None:
    """Raise an OptionError for options that exclude each other."""
    if options.test is not None and options.step is None:
        raise OptionError("test= without step=", "both: what is tested, and what is trained", f"pass {_STEP}")
    both = [name for name in ("forward", "unpack") if getattr(options, name) is not None]
    if options.step is not None and both:
        raise OptionError(f"{both[0]}= beside step=", "one of them: a step shows how the net is called", f"leave {both[0]}= out")
    criterion, classes = options.criterion, options.classes
    if options.fit_loss == SQUARED_HINGE and criterion.loss_for_steps(1).substitute != SQUARED_HINGE:
        found = f"fit_loss='squared_hinge' with loss={criterion.name!r}"
        raise OptionError(found, "a cross-entropy, which it replaces", "pass loss='squared_hinge', or leave fit_loss out")
    in_loss = criterion.num_classes
    if None not in (classes, in_loss) and classes != in_loss:
        found = f"classes={classes!r} with num_classes={in_loss} in {criterion.name}"
        raise OptionError(found, "one number of classes", f"pass classes={in_loss}, or leave it out")
