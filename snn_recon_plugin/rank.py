"""Ranking of architectures and hyperparameters by the held-out accuracy that an initialisation gives each network."""

from __future__ import annotations

import inspect
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from tqdm.auto import tqdm

from .errors import NetworkError, OptionError, ReconstructionError
from .initializer import ConvexInitializer
from .networks.private.workbench import Workbench
from .stages.stream import refuse_iterator
from .text_table import align, rate, ruled, wrap

Net: TypeAlias = nn.Module | Callable[[], nn.Module]
Space: TypeAlias = Mapping[str, Sequence[Any]]
_HEADINGS = ("net", "parameters", "accuracy before", "after", "loss", "seconds", "firing rates")


@dataclass(frozen=True)
class RankedNet:
    """One net of a ranking: results on held-out samples, NaN where there are none, or the ``refusal``."""

    name: str
    refusal: str = ""  # the error of a net that can't be initialised
    parameters: int = 0
    heldout: int = 0  # number of held-out samples
    accuracy_before: float = math.nan  # 0 to 1; NaN for regression
    accuracy_after: float = math.nan
    loss: float = math.nan  # of the solved readout
    seconds: float = math.nan  # wall-clock
    firing_rates: tuple[float, ...] = ()  # spikes a neuron and step afterwards, of each hidden layer from the input up
    values: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters, of a net from a space

    @property
    def standard_error(self) -> float:
        """Standard error of ``accuracy_after``."""
        return math.sqrt(self.accuracy_after * (1 - self.accuracy_after) / max(1, self.heldout))

    @property
    def cells(self) -> tuple[str, ...]:
        """Columns of the table."""
        accuracies = (rate(value, self.heldout) for value in (self.accuracy_before, self.accuracy_after))
        rates = " ".join(f"{value:.3f}" for value in self.firing_rates)
        return (self.name, f"{self.parameters:,}", *accuracies, f"{self.loss:.4g}", f"{self.seconds:.1f}", rates)


@dataclass(frozen=True)
class Ranking:
    """Result of :func:`rank`: ``rows``, the best net first and refused ones last; ``print`` shows a table.

    Example:
        >>> Ranking((RankedNet("wide", loss=0.1), RankedNet("deep", "Found: no spiking neuron"))).best.name
        'wide'
    """

    rows: tuple[RankedNet, ...]

    @property
    def best(self) -> RankedNet:
        """First row; a NetworkError if all nets were refused."""
        if self.rows[0].refusal:
            raise NetworkError("no net that could be initialised", "one at least", "print the ranking, which has each error")
        return self.rows[0]

    def __str__(self) -> str:
        ranked = [row for row in self.rows if not row.refusal]
        lines = align([_HEADINGS, *(row.cells for row in ranked)], left=1)
        notes = [f"{max((row.heldout for row in ranked), default=0):,} held-out samples; ± are 95 % intervals"]
        close = [row.name for row in ranked[1:] if row.heldout == ranked[0].heldout and _is_close(ranked[0], row)]
        if close:
            notes += wrap(f"no worse than the first, as far as these samples tell: {', '.join(close)}", others="  ")
        for row in self.rows[len(ranked) :]:
            notes += wrap(f"{row.name} is refused. {row.refusal}", others="  ")
        return ruled(lines, notes)


def rank(
    nets: Mapping[str, Net] | Sequence[Net] | Callable[..., nn.Module],
    loader: Iterable[Any],
    *,
    space: Space | None = None,
    trials: int | None = None,
    **options: Any,
) -> Ranking:
    """Initialise copies of several networks, and rank them by held-out accuracy, then by loss; the networks are only read.

    All are judged on the same held-out samples, but for one case: of more samples than hidden layers are chosen on, 3,000 or fewer
    for long or wide inputs, two nets that choose on different numbers share a part only.

    Args:
        nets: networks by name, or a list of them.  A function in place of a network makes it when its turn comes, with torch's
            generator of the CPU seeded by ``seed``.  With ``space``, one function of hyperparameters.
        loader: (input, target) batches that can be read again, as for ``convex_init_``.
        space: values of each argument of the function: a list of choices, or a range ``(low, high)`` of positive numbers, from
            which numbers are drawn evenly in their logarithm, whole ones between whole ends.
        trials: number of networks to draw from the space, equal ones once; default all combinations, which needs choices alone.
        **options: as for ``ConvexInitializer``, for all networks.

    Returns:
        The ranking.  A network that can't be initialised has the reason in its row.

    Raises:
        OptionError: no networks, something else in their place, an empty space, arguments that the function does not have, or an
            invalid option.
        DataError: a loader that can be read only once.

    Example:
        >>> from snn_recon_plugin import rank
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data = load_digits_data()
        >>> nets = {f"{width} neurons": build_network(inputs=64, hidden=width, outputs=10, steps=8) for width in (4, 64)}
        >>> rank(nets, [(data.train_inputs, data.train_labels)], progress=False).best.name
        '64 neurons'
    """
    initializer = ConvexInitializer(**options)
    refuse_iterator("a loader", loader)
    quiet, hide = replace(initializer, progress=False), None if initializer.progress is None else not initializer.progress
    chosen: dict[str, dict[str, Any]] = {}
    if space is not None or trials is not None:
        chosen, make = list_values(nets, space or {}, trials, initializer.seed), cast(Any, nets)
        nets = {name: partial(make, **values) for name, values in chosen.items()}
    listed = nets if isinstance(nets, list | tuple) else []
    named = nets if isinstance(nets, Mapping) else {f"{place} {_kind(net)}": net for place, net in enumerate(listed)}
    if not named or not all(map(callable, named.values())):
        found = ", ".join(f"{name!r}: {_kind(net)}" for name, net in named.items()) or (
            "no networks" if nets in ([], (), {}) else f"a {_kind(nets)} in place of networks"
        )
        raise OptionError(found, "modules, or functions that make them", "pass rank({'wide': net, 'deep': other}, loader)")
    with tqdm(named.items(), "rank", unit="nets", leave=False, disable=hide) as pairs:
        rows = [_try_net(str(name), net, loader, quiet) for name, net in pairs]
    return Ranking(tuple(replace(row, values=chosen.get(row.name, {})) for row in sorted(rows, key=_place)))


def list_values(make: object, space: Space, trials: int | None, seed: int) -> dict[str, dict[str, Any]]:
    """Return the hyperparameters of each network, by its name: all combinations, or as many drawn ones as trials."""
    example = "pass e.g. rank(make_net, loader, space={'beta': [0.5, 0.9], 'hidden': (64, 512)}, trials=24)"
    if isinstance(make, nn.Module) or not callable(make):
        raise OptionError(f"space= with a {_kind(make)}", "a function that makes a network of hyperparameters", example)
    empty = [name for name, choices in space.items() if not isinstance(choices, list | tuple) or not choices]
    if empty or not space:
        raise OptionError(f"space={space!r}", "a list of choices or a range (low, high) for each argument", example)
    arguments = inspect.signature(make).parameters
    unknown = [name for name in space if name not in arguments]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in arguments.values()):
        raise OptionError(f"{', '.join(unknown)} in the space", f"arguments of {_kind(make)}: {', '.join(arguments)}", example)
    ranges = [name for name, choices in space.items() if _is_range(choices)]
    if trials is None and ranges:
        raise OptionError(f"a range of {', '.join(ranges)} without trials=", "a number of networks to draw", example)
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 1):
        raise OptionError(f"trials={trials!r}", "a whole number of at least 1", example)
    generator = random.Random(seed)
    drawn: list[dict[str, Any]] = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if ranges:
        drawn = [{name: _draw(choices, generator) for name, choices in space.items()} for _ in range(trials or 0)]
    elif trials is not None and trials < len(drawn):
        drawn = generator.sample(drawn, trials)
    titled: dict[str, list[dict[str, Any]]] = {}
    for values in drawn:
        alike = titled.setdefault(", ".join(f"{name}={_show(value)}" for name, value in values.items()), [])
        if repr(values) not in map(repr, alike):  # functions may have one name
            alike.append(values)
    return {f"{title} #{n}" if n > 1 else title: values for title, alike in titled.items() for n, values in enumerate(alike, 1)}


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _kind(value) if callable(value) else str(value)


def _is_range(choices: Sequence[Any]) -> bool:
    return isinstance(choices, tuple) and len(choices) == 2 and all(isinstance(each, int | float) and each > 0 for each in choices)


def _draw(choices: Sequence[Any], generator: random.Random) -> Any:
    if not _is_range(choices):
        return generator.choice(choices)
    low, high = choices
    value = low * (high / low) ** generator.random()
    return round(value) if isinstance(low, int) and isinstance(high, int) else value


def _is_close(first: RankedNet, other: RankedNet) -> bool:
    """Return whether two accuracies differ by less than the standard error of their difference."""
    return first.accuracy_after - other.accuracy_after < math.hypot(first.standard_error, other.standard_error)


def _place(row: RankedNet) -> tuple[bool, float, float]:
    return bool(row.refusal), 0.0 if math.isnan(row.accuracy_after) else -row.accuracy_after, row.loss


def _kind(net: object) -> str:
    return str(getattr(net, "__name__", type(net).__name__))


def _try_net(name: str, net: Net, loader: Iterable[Any], initializer: ConvexInitializer) -> RankedNet:
    if not isinstance(net, nn.Module):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(initializer.seed)
                net = net()
        except Exception as error:  # a user's function may raise anything
            return RankedNet(name, f"Its function raised {type(error).__name__}: {error}.")
        if not isinstance(net, nn.Module):
            return RankedNet(name, f"Its function returned a {type(net).__name__}, not a network.")
    began = time.perf_counter()
    try:
        report = initializer.initialize(Workbench.of(net).net, loader)
    except ReconstructionError as error:
        return RankedNet(name, str(error).replace("\n", ". "))
    seconds, size = time.perf_counter() - began, sum(parameter.numel() for parameter in net.parameters())
    accuracies, rates = (report.accuracy_before, report.accuracy_after), tuple(layer.stats.firing_rate for layer in report.layers)
    return RankedNet(name, "", size, report.after.samples, *accuracies, report.solved.loss, seconds, rates)
