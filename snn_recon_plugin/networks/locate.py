"""Find in a net's output what its readout is: values over time, or scores decoded from them in one of the known ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError, OptionError, UnsupportedModuleError
from .decode import (
    ALL_READOUTS,
    LINEAR_READOUTS,
    MAX_READOUTS,
    PER_STEP_READOUTS,
    READOUTS,
    SPIKE_READOUTS,
    agree,
    decode,
    output_items,
    unknown_output,
)
from .imitation import Imitation, imitate
from .layers import NetworkMap
from .output_probe import Probe

__all__ = ["Found", "kinds_for", "locate", "locate_by_function"]

_DRAWS = 4  # passes more where several readouts explain one: chance agreement of 8 samples falls to nothing


@dataclass(frozen=True)
class Found:
    """A readout that explains the net's output.

    Args:
        kind: one of :data:`ALL_READOUTS`, or ``"custom"``.
        index: the item of the output, None for all of it.
        time_dim: the time axis of that item where it has one.
        weights: ``[T]`` float64, the weight of each step where the kind doesn't say it.
        imitation: the user's function on other currents, where the kind alone doesn't say what it gives.
        link: what the net does to the scores in the end, ``"identity"`` or ``"log_softmax"``.
        others: readouts of other items of the output, by which the user may decide instead.
    """

    kind: str
    index: int | str | None
    time_dim: int = 0
    weights: Tensor | None = None
    link: str = "identity"
    imitation: Imitation | None = None
    others: tuple[Found, ...] = ()

    @property
    def of_spikes(self) -> bool:
        """Whether it reads the output neuron's spikes."""
        return self.kind in SPIKE_READOUTS


def kinds_for(net_map: NetworkMap, kind: str, allow: Sequence[str]) -> tuple[str, ...]:
    """Give the readout kinds that fit a net, after checking the one asked for.

    Args:
        net_map: the net's map.
        kind: the kind asked for, or ``"auto"``.
        allow: which kinds of exactness count.

    Returns:
        The kinds, exact ones first.

    Raises:
        OptionError: if the kind is unknown, or doesn't fit a net with or without an output neuron.
    """
    alone = net_map.readout.neuron is None
    fitting: tuple[str, ...] = LINEAR_READOUTS if alone else READOUTS
    if "majorised" in allow:
        fitting = (*fitting, MAX_READOUTS[1] if alone else MAX_READOUTS[0])
    if "surrogate" in allow and not alone:
        fitting = (*fitting, *SPIKE_READOUTS)
    if kind == "auto" or kind in fitting:
        return fitting
    if kind in ALL_READOUTS:
        what = "without an output neuron" if alone else "with an output neuron"
        raise OptionError(f"readout={kind!r} for a net {what}", f"one of {', '.join(fitting)}", "pass readout='auto'")
    raise OptionError(f"readout={kind!r}", f"one of auto, {', '.join(ALL_READOUTS)}", "pass readout='auto'")


def locate(
    probe: Probe, kinds: tuple[str, ...], wanted: str, *, spikes_first: bool, again: Callable[[int], Probe] | None = None
) -> Found:
    """Find the item of the net's output that holds membranes or spikes over time, or decoded scores.

    Where nothing else explains the output, a ``log_softmax`` over the classes as the last step is tried as well.

    Args:
        probe: a pass under random readout currents.
        kinds: the kinds that fit the net.
        wanted: the kind asked for, or ``"auto"``.
        spikes_first: whether spikes decide where the net returns spikes and membranes.
        again: makes a pass under other currents, given the number of the draw; used where several readouts explain one pass.

    Returns:
        The readout.

    Raises:
        NetworkError: if nothing explains the output, or several readouts do.
        OptionError: if the net returns another readout than the one asked for.
        UnsupportedModuleError: if it returns spikes where those aren't among the kinds.
    """
    items = list(output_items(probe.returned))
    places = _over_time(items, {"value": probe.values, "spike": probe.spikes})
    fits = _decoded(probe, kinds, items)
    families: tuple[str, ...] = ("spike", "value") if spikes_first else ("value", "spike")
    if wanted != "auto":
        families = ("spike",) if wanted in SPIKE_READOUTS else ("value",)
    for family in families:
        kind = wanted if wanted != "auto" else "spike_count" if family == "spike" else kinds[0]
        if family in places and kind in kinds:
            return _beside(Found(kind, *places[family]), places, fits, kinds)
        of_family = [found for found in fits if found.of_spikes == (family == "spike")]
        if wanted == "auto" and of_family:
            return _beside(_pick(of_family, probe, output_items, again), places, fits, kinds)
    if fits:
        return _beside(_asked_for(fits, wanted), places, fits, kinds)
    several = probe.values.shape[2] > 1  # of a single class log_softmax is 0 throughout
    log_softmaxed = _over_time(items, {"value": probe.values.log_softmax(2)}).get("value") if several else None
    if log_softmaxed is not None and (wanted in PER_STEP_READOUTS or wanted.endswith("_last")):
        return Found(wanted, *log_softmaxed, link="log_softmax")
    if log_softmaxed is not None:
        per_step = next(kind for kind in kinds if kind in PER_STEP_READOUTS)
        raise NetworkError(
            f"a net that returns log_softmax at every step, and readout={wanted!r}; their sum or mean follows from no linear score",
            "scores at every step, those at the last one, or log_softmax of scores decoded over time",
            f"pass readout={per_step!r} for a loss at every step, or decode before log_softmax",
        )
    if places and wanted != "auto":
        given = " and ".join("spikes" if family == "spike" else "membranes" for family in places)
        raise OptionError(f"readout={wanted!r} for a net that returns {given}", "a readout of these", "pass readout='auto'")
    _refuse_spikes(probe, items, kinds)
    raise unknown_output(probe.returned, probe.values.shape, kinds)


def locate_by_function(
    probe: Probe,
    kinds: tuple[str, ...],
    wanted: str,
    scores: Callable[[Any], Tensor],
    *,
    affine: bool,
    again: Callable[[int], Probe] | None = None,
) -> Found:
    """Tell which readout a user's function from the net's output to scores is.

    Args:
        probe: a pass under random readout currents.
        kinds: the kinds that fit the net.
        wanted: the kind asked for, or ``"auto"``.
        scores: the user's function.
        affine: whether the output neuron never resets.
        again: as for :func:`locate`.

    Returns:
        The readout; ``"custom"`` with the weight of each step where the scores are a weighted sum of the membranes, and
        without weights where they are none.

    Raises:
        NetworkError: if the function doesn't return a tensor ``[B, C]``.
        OptionError: if its scores are none of the kind asked for.
    """
    value = scores(probe.returned)
    steps, batch, classes = probe.values.shape
    if not isinstance(value, Tensor) or value.shape != (batch, classes):
        raise NetworkError(
            f"scores of {'shape ' + str(list(value.shape)) if isinstance(value, Tensor) else 'type ' + type(value).__name__}",
            f"a tensor [{batch}, {classes}] for a batch of {batch}",
            "let scores(output) return one score for each sample and output",
        )
    fits = _decoded(probe, kinds, [(None, value)])
    if wanted != "auto":
        if not fits:
            raise OptionError(f"readout={wanted!r} for a function whose scores are no such readout", "auto", "pass readout='auto'")
        return _asked_for(fits, wanted)
    if fits:
        return _pick(fits, probe, lambda returned: [(None, scores(returned))], again)
    weights = None
    if affine and batch * classes >= steps + 4:
        values = probe.values.double().reshape(steps, -1).cpu()
        solved = torch.linalg.lstsq(values.T, value.double().reshape(-1, 1).cpu()).solution[:, 0]
        if agree((solved @ values).reshape(batch, classes), value.cpu()):
            weights = solved
    places = _over_time(list(output_items(probe.returned)), {"value": probe.values, "spike": probe.spikes})
    return Found("custom", None, weights=weights, imitation=imitate(probe, scores, places) if weights is None else None)


def _over_time(
    items: Sequence[tuple[int | str | None, Tensor]], known: Mapping[str, Tensor | None]
) -> dict[str, tuple[int | str | None, int]]:
    """Find the items that hold known values ``[T, B, C]`` over time, and their time axis."""
    found: dict[str, tuple[int | str | None, int]] = {}
    for index, value in items:
        for time_dim in (0, 1):
            for family, values in known.items():
                if value.ndim == 3 and values is not None and agree(value.movedim(time_dim, 0), values):
                    found.setdefault(family, (index, time_dim))
    return found


def _decoded(probe: Probe, kinds: Sequence[str], items: Sequence[tuple[int | str | None, Tensor]]) -> list[Found]:
    """Find the items that are the probe's values, or spikes, decoded in some way; failing that, log_softmax of it."""
    decoded = {}
    for kind in kinds:
        values = probe.spikes if kind in SPIKE_READOUTS else probe.values
        if values is not None and kind not in PER_STEP_READOUTS:
            decoded[kind] = decode(kind, values)
    fits = [Found(kind, index) for kind, scores in decoded.items() for index, value in items if agree(value, scores)]
    if fits or probe.values.shape[2] < 2:
        return fits
    return [
        Found(kind, index, link="log_softmax")
        for kind, scores in decoded.items()
        for index, value in items
        if agree(value, scores.log_softmax(1))
    ]


def _asked_for(fits: Sequence[Found], wanted: str) -> Found:
    """Take the readout of the kind asked for."""
    for found in fits:
        if found.kind == wanted:
            return found
    given = " and ".join(dict.fromkeys(found.kind for found in fits))
    raise OptionError(f"readout={wanted!r} for a net that returns {given}", "a readout that the net returns", "pass readout='auto'")


def _pick(
    fits: list[Found],
    probe: Probe,
    items_of: Callable[[Any], Iterable[tuple[int | str | None, Tensor]]],
    again: Callable[[int], Probe] | None,
) -> Found:
    """Pick among readouts that give decoded scores of the net, all of spikes or all of membranes.

    Over a few steps of a few samples two readouts may agree by chance: passes under other currents tell them apart.  Of spikes
    the first kind is taken in any case, since counts and rates decide alike.
    """
    kinds = list(dict.fromkeys(found.kind for found in fits))
    if len(probe.values) == 1:  # over a single step all of them are the same
        return fits[0]
    for draw in range(1, _DRAWS + 1):
        if len(kinds) == 1 or again is None:
            break
        other = again(draw)
        seen = {(found.kind, found.index) for found in _decoded(other, kinds, list(items_of(other.returned)))}
        fits = [found for found in fits if (found.kind, found.index) in seen] or fits
        kinds = list(dict.fromkeys(found.kind for found in fits))
    if len(kinds) > 1 and not fits[0].of_spikes:
        raise NetworkError(f"an output that agrees with {' and '.join(kinds)}", "one of them", f"pass readout={kinds[0]!r}")
    return fits[0]


def _beside(found: Found, places: Mapping[str, tuple[int | str | None, int]], fits: Sequence[Found], kinds: Sequence[str]) -> Found:
    """Add a readout of each other item, by which the user may decide instead."""
    over_time = [
        Found(kind, *place)
        for family, place in places.items()
        if (kind := "spike_count" if family == "spike" else kinds[0]) in kinds
    ]
    others: dict[int | str | None, Found] = {}
    for other in (*over_time, *fits):
        if other.index != found.index:
            others.setdefault(other.index, other)
    return replace(found, others=tuple(others.values()))


def _refuse_spikes(probe: Probe, items: Sequence[tuple[int | str | None, Tensor]], kinds: Sequence[str]) -> None:
    """Say so where the net returns its output neuron's spikes rather than its membrane, and those don't count."""
    if probe.spikes is None or "spike_count" in kinds:
        return
    forms = [probe.spikes, probe.spikes.movedim(0, 1), probe.spikes.sum(0), probe.spikes.mean(0)]
    if any(agree(value, form) for _, value in items for form in forms):
        raise UnsupportedModuleError(
            "a net that returns its output neuron's spikes, which are a step function of the readout",
            "the output neuron's membrane",
            "return the membrane as well, e.g. output=True on the output neuron, or return spk, mem from forward",
        )
