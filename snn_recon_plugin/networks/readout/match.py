"""Match a net's output with the readout kinds: values over time, or scores decoded from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import NetworkError, OptionError
from ..private.workbench import same_values
from ..structure.probes import Probe
from .readout import Source
from .readouts import CUSTOM, KINDS, SPIKE_READOUTS, decode_valid, output_items, unknown_output
from .scale import Scale, fit_scale

# What scripts do with scores before they return them, given the scores and what is returned.
_CHANGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": lambda scores, returned: scores.softmax(-1),
    "sigmoid": lambda scores, returned: scores.sigmoid(),
    "clamp": lambda scores, returned: scores.clamp(returned.min(), returned.max()),
}
_DRAWS = 4  # further passes if several readouts explain one: chance agreement of 8 samples becomes impossible

_Item: TypeAlias = tuple[int | str | None, Tensor]
_Places: TypeAlias = dict[str, tuple[int | str | None, int]]  # of "value" and "spike": the item and its time axis


@dataclass(frozen=True)
class Match:
    """A readout that explains the net's output."""

    source: Source
    weights: Tensor | None = None  # [T] float64, of each step, for scores that are a weighted sum over time, and no kind
    link: str = "identity"  # see Readout
    others: tuple[Source, ...] = ()  # other items of the output, by which the user may decide
    scale: Scale | None = None  # from the decoded values of the output neuron to the net's scores


def match_output(
    probe: Probe, kinds: Sequence[str], wanted: str, *, spikes_first: bool, affine: bool, again: Callable[[int], Probe]
) -> Match:
    """Find the item of the net's output that holds membranes or spikes over time, or decoded scores, or their log_softmax.

    Args:
        probe: a pass under random readout currents.
        kinds: those that fit the net.
        wanted: the kind asked for, or ``"auto"``.
        spikes_first: whether spikes are decoded if the net returns spikes and membranes.
        affine: whether the output neuron never resets.
        again: makes a pass under other currents, given the number of the draw; used if several readouts explain one pass.

    Raises:
        NetworkError: if nothing explains the output, or several readouts do.
        OptionError: if the net returns another readout than the one asked for.
    """
    items = list(output_items(probe.returned))
    places = _over_time(items, {"value": probe.values, "spike": probe.spikes})
    fits = _decoded(probe, kinds, items)
    families: tuple[str, ...] = ("spike", "value") if spikes_first else ("value", "spike")
    if wanted != "auto":
        families = ("spike",) if wanted in SPIKE_READOUTS else ("value",)
    for family in families:
        kind = _default_kind(family, kinds) if wanted == "auto" else wanted
        if family in places:
            padded = probe.lengths is not None and not KINDS[kind].decoding.per_step
            return _with_others(Match(Source(kind, *places[family], padded=padded)), places, fits, kinds)
        of_family = [found for found in fits if found.source.of_spikes == (family == "spike")]
        if wanted == "auto" and of_family:
            return _with_others(_pick(of_family, probe, again), places, fits, kinds)
    if fits:
        return _with_others(_asked_for(fits, wanted), places, fits, kinds)
    linked = _log_softmax_over_time(probe, kinds, wanted, items)
    if linked is not None:
        return linked
    if affine and wanted == "auto" and (weighted := _weighted_sum(probe, items)) is not None:
        return weighted
    scaled = _scaled(probe, families, kinds if wanted == "auto" else [wanted], items, affine=affine)
    if scaled is not None:
        return scaled
    _refuse_known_changes(probe, kinds, items)
    if places and wanted != "auto":
        given = " and ".join("spikes" if family == "spike" else "membranes" for family in places)
        raise OptionError(f"readout={wanted!r} for a net that returns {given}", "a readout of these", "pass readout='auto'")
    raise unknown_output(probe.returned, kinds, probe.values.shape)


def _default_kind(family: str, kinds: Sequence[str]) -> str:
    """Return the kind that spikes, or values over time, are decoded by unasked."""
    return SPIKE_READOUTS[0] if family == "spike" else kinds[0]


def _over_time(items: Iterable[_Item], known: Mapping[str, Tensor | None]) -> _Places:
    """Find the items that hold known values ``[T, B, C]`` over time, and their time axis."""
    found: _Places = {}
    for index, value in items:
        for time_dim in (0, 1):
            for family, values in known.items():
                if value.ndim == 3 and values is not None and same_values(value.movedim(time_dim, 0), values):
                    found.setdefault(family, (index, time_dim))
    return found


def _decoded(probe: Probe, kinds: Sequence[str], items: Sequence[_Item]) -> list[Match]:
    """Find the items that are the probe's values, or spikes, decoded in some way; failing that, log_softmax of such scores.

    Those of padded sequences are decoded over the steps before the padding, or over all steps.
    """
    decoded = _scores_by_kind(probe, kinds, None)
    if probe.lengths is not None:
        decoded |= _scores_by_kind(probe, kinds, probe.lengths)
    links: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda scores: scores}
    if probe.values.shape[2] > 1:
        links["log_softmax"] = lambda scores: scores.log_softmax(1)
    for link, function in links.items():
        fits = [
            Match(Source(kind, index, padded=padded), link=link)
            for (kind, padded), scores in decoded.items()
            for index, value in items
            if same_values(value, function(scores))
        ]
        if fits:
            return fits
    return []


def _scores_by_kind(probe: Probe, kinds: Sequence[str], lengths: Tensor | None) -> dict[tuple[str, bool], Tensor]:
    """Decode the probe's values, or spikes, into scores ``[B, C]`` by each kind that gives one score a sample.

    Keys are the kind, and whether ``lengths`` were used.
    """
    decoded = {}
    for kind in kinds:
        values, decoding = probe.spikes if kind in SPIKE_READOUTS else probe.values, KINDS[kind].decoding
        if values is not None and not decoding.per_step:
            decoded[kind, lengths is not None] = decode_valid(decoding, values, lengths)
    return decoded


def _log_softmax_over_time(probe: Probe, kinds: Sequence[str], wanted: str, items: Sequence[_Item]) -> Match | None:
    """Find log_softmax of the values at every step, or None; refuse scores that are not values of single steps."""
    if probe.values.shape[2] < 2:  # the log_softmax of a single class is always 0
        return None
    place = _over_time(items, {"value": probe.values.log_softmax(2)}).get("value")
    if place is None:
        return None
    if wanted != "auto" and KINDS[wanted].decoding.single_step:
        padded = probe.lengths is not None and not KINDS[wanted].decoding.per_step
        return Match(Source(wanted, *place, padded=padded), link="log_softmax")
    per_step = next(kind for kind in kinds if KINDS[kind].decoding.per_step)
    raise NetworkError(
        f"a net that returns log_softmax at every step, and readout={wanted!r}; their sum or mean follows from no linear score",
        "scores at every step, those at the last one, or log_softmax of scores decoded over time",
        f"pass readout={per_step!r} for a loss at every step, or decode before log_softmax",
    )


def _scaled(probe: Probe, families: Sequence[str], kinds: Sequence[str], items: Sequence[_Item], *, affine: bool) -> Match | None:
    """Find values over time, or decoded scores, times a factor and plus an offset: of each output, or of all if it may reset."""
    decoded = {kind: scores for (kind, _), scores in _scores_by_kind(probe, kinds, None).items()}
    for family in families:
        known = probe.values if family == "value" else probe.spikes
        of_family = [kind for kind in kinds if (kind in SPIKE_READOUTS) == (family == "spike") and kind != "first_spike"]
        if known is None or not of_family:
            continue
        # Values over time are decoded by the first kind.
        found = [(of_family[0], known, 0), (of_family[0], known.movedim(0, 1), 1)]
        found += [(kind, decoded[kind], 0) for kind in of_family if kind in decoded]
        apart = affine and family == "value"
        for kind, values, time_dim in found:
            for index, item in items:
                if item.shape != values.shape:
                    continue
                scale = fit_scale(values, item) if apart else fit_scale(values.flatten()[:, None], item.flatten()[:, None])
                if scale is None or (not apart and float(scale.factor) < 0):
                    continue
                if values.dim() == 3:  # to the scores that are decoded of scaled values
                    over_time = scale.offset.expand(len(known), 1, -1)
                    scale = Scale(scale.factor, KINDS[kind].decoding.decode(over_time).flatten(0, -2)[0])
                return Match(Source(kind, index, time_dim), scale=scale)
    return None


def _refuse_known_changes(probe: Probe, kinds: Sequence[str], items: Sequence[_Item]) -> None:
    """Refuse scores, or values over time, that went through a function which no program has, and name it."""
    known = [*_scores_by_kind(probe, kinds, None).values()]
    known += [each for values in (probe.values, probe.spikes) if values is not None for each in (values, values.movedim(0, 1))]
    for name, change in _CHANGES.items():
        for scores, (_, item) in product(known, items):
            if item.shape != scores.shape or not item.is_floating_point():
                continue
            if item.min() < item.max() and same_values(item, change(scores, item)) and not same_values(item, scores):
                raise NetworkError(
                    f"a net that returns the {name} of its scores",
                    "the scores themselves, which nn.CrossEntropyLoss and nn.BCEWithLogitsLoss take",
                    f"return what enters the {name}, and apply it in your test where you need it",
                )


def _weighted_sum(probe: Probe, items: Sequence[_Item]) -> Match | None:
    """Find scores that are a weighted sum of the values over time, by least squares."""
    steps, batch, classes = probe.values.shape
    values = probe.values.double().reshape(steps, -1).cpu()
    for index, value in items:
        if value.shape != (batch, classes) or batch * classes < steps + 4:  # fewer equations explain anything
            continue
        weights = torch.linalg.lstsq(values.T, value.double().reshape(-1, 1).cpu()).solution[:, 0]
        if same_values((weights @ values).reshape(batch, classes), value.cpu()):
            return Match(Source(CUSTOM, index), weights=weights)
    return None


def _asked_for(fits: Sequence[Match], wanted: str) -> Match:
    """Return the readout of the kind asked for."""
    for found in fits:
        if found.source.kind == wanted:
            return found
    given = " and ".join(_kinds_of(fits))
    raise OptionError(f"readout={wanted!r} for a net that returns {given}", "a readout that the net returns", "pass readout='auto'")


def _kinds_of(fits: Sequence[Match]) -> list[str]:
    return list(dict.fromkeys(found.source.kind for found in fits))


def _pick(fits: Sequence[Match], probe: Probe, again: Callable[[int], Probe]) -> Match:
    """Pick one of several readouts that give the net's scores, all of spikes or all of membranes.

    Over a few steps of a few samples two readouts may agree by chance, but not under other currents.  Of spikes the first kind is
    taken in any case, since counts and rates decide alike.
    """
    if len(probe.values) == 1:  # over a single step all of them are the same
        return fits[0]
    for draw in range(1, _DRAWS + 1):
        if len(_kinds_of(fits)) == 1:
            break
        other = again(draw)
        seen = {found.source for found in _decoded(other, _kinds_of(fits), list(output_items(other.returned)))}
        fits = [found for found in fits if found.source in seen] or fits
    kinds = _kinds_of(fits)
    if len(kinds) > 1 and not fits[0].source.of_spikes:
        raise NetworkError(f"an output that agrees with {' and '.join(kinds)}", "one of them", f"pass readout={kinds[0]!r}")
    return fits[0]


def _with_others(found: Match, places: _Places, fits: Sequence[Match], kinds: Sequence[str]) -> Match:
    """Add a readout of each other item, by which the user may decide."""
    defaults = {family: _default_kind(family, kinds) for family in places}
    over_time = [Source(defaults[family], *place) for family, place in places.items()]
    others: dict[int | str | None, Source] = {}
    for other in (*over_time, *(fit.source for fit in fits)):
        if other.index != found.source.index:
            others.setdefault(other.index, other)
    return replace(found, others=tuple(others.values()))
