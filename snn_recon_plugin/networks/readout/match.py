"""Match a net's output with the readout kinds: values over time, or scores decoded from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import NetworkError, OptionError
from ..calls.batches import INSPECTED
from ..private.workbench import same_values
from ..structure.graph import Probe
from .filters import LEAST_ROWS, Scale, fit_scale, fit_weights
from .readout import CUSTOM, KINDS, SPIKE_READOUTS, Source, block_sum, decode_valid, output_items, unknown_output

_PASSES = 16  # at most, to find the weights of the steps
_DRAWS = 4  # further passes if several readouts explain one: chance agreement of 8 samples becomes impossible

_Place: TypeAlias = tuple[int | str | None, int]  # an item of the output, and its time axis


@dataclass(frozen=True)
class Match:
    """A readout that explains the net's output."""

    source: Source
    link: str = "identity"  # see Readout
    others: tuple[Source, ...] = ()  # other items of the output, by which the user may decide
    scale: Scale | None = None  # from the decoded values of the output neuron to the net's scores


def match_output(
    probe: Probe, kinds: Sequence[str], wanted: str, *, spikes_first: bool, affine: bool, again: Callable[[int], Probe]
) -> Match:
    """Find the item of the net's output that holds membranes or spikes over time, or decoded scores, or their log_softmax.

    Of ``kinds``, which fit the net, one may be ``wanted``; else it is "auto".  Spikes are decoded ``spikes_first`` if the net
    returns both.  ``affine`` is True for an output neuron that never resets.  ``again`` makes a pass under other currents, given
    the number of the draw, if several readouts explain one pass.
    """
    families = ["spike", "value"] if spikes_first else ["value", "spike"]
    if wanted != "auto":
        families = ["spike" if wanted in SPIKE_READOUTS else "value"]
    tries = _Attempts(probe, kinds, wanted, again)
    order: list[Callable[[], Match | None]] = [partial(tries.membranes_or_spikes, family, again) for family in families]
    order += [tries.decoded_as_asked, tries.log_softmax_at_every_step]
    order += [partial(tries.scaled, family, affine) for family in families]
    order += [partial(tries.weighted, family, again) for family in families] if wanted == "auto" else []
    found = next((match for attempt in order if (match := attempt()) is not None), None)
    if found is None:
        raise tries.refusal()
    return found


class _Attempts:
    """Attempts to explain a net's output, for :func:`match_output` to put in order; each returns None if it fails."""

    def __init__(self, probe: Probe, kinds: Sequence[str], wanted: str, again: Callable[[int], Probe]) -> None:
        self.probe, self.kinds, self.auto, self.wanted = probe, kinds, wanted == "auto", wanted
        self.items = list(output_items(probe.returned))
        self.places = self._over_time({"value": probe.values, "spike": probe.spikes})
        self.fits = _decoded(probe, kinds)
        for draw in range(1, _DRAWS + 1 if self.fits and probe.values.shape[1] < INSPECTED else 1):
            seen = {found.source for found in _decoded(again(draw), _kinds_of(self.fits))}
            self.fits = [found for found in self.fits if found.source in seen]

    def membranes_or_spikes(self, family: str, again: Callable[[int], Probe]) -> Match | None:
        if family in self.places:
            kind = self._default_kind(family) if self.auto else self.wanted
            return self._with_others(Match(Source(kind, *self.places[family], padded=self._is_padded(kind))))
        fits = [found for found in self.fits if found.source.of_spikes == (family == "spike")]
        return self._with_others(_pick(fits, self.probe, again)) if self.auto and fits else None

    def decoded_as_asked(self) -> Match | None:
        """Find decoded scores of the kind asked for; refuse scores of other kinds."""
        if not self.fits:
            return None
        for found in self.fits:
            if found.source.kind == self.wanted:
                return self._with_others(found)
        raise self._other_readout(_kinds_of(self.fits), "a readout that the net returns")

    def log_softmax_at_every_step(self) -> Match | None:
        """Find log_softmax of the values at every step; refuse scores that are not values of single steps."""
        if self.probe.values.shape[2] < 2:  # the log_softmax of a single class is always 0
            return None
        place = self._over_time({"value": self.probe.values.log_softmax(2)}).get("value")
        if place is None:
            return None
        if not self.auto and KINDS[self.wanted].decoding.single_step:
            return Match(Source(self.wanted, *place, padded=self._is_padded(self.wanted)), link="log_softmax")
        per_step = next(kind for kind in self.kinds if KINDS[kind].decoding.per_step)
        raise NetworkError(
            f"a net that returns log_softmax at every step, and readout={self.wanted!r}; their sum or mean follows from no linear "
            "score",
            "scores at every step, those at the last one, or log_softmax of scores decoded over time",
            f"pass readout={per_step!r} for a loss at every step, or decode before log_softmax",
        )

    def scaled(self, family: str, affine: bool) -> Match | None:
        """Find values over time, or decoded scores, times a factor and plus an offset: of each output, or of all that may reset."""
        known = _values(self.probe, family)
        wanted = self.kinds if self.auto else [self.wanted]
        kinds = [kind for kind in wanted if (kind in SPIKE_READOUTS) == (family == "spike") and kind != "first_spike"]
        if known is None or not kinds:
            return None
        decoded = _scores_by_kind(self.probe, kinds, None)
        # Values over time are decoded by the first kind.
        found = [(kinds[0], known, 0), (kinds[0], known.movedim(0, 1), 1)]
        found += [(kind, decoded[kind, False], 0) for kind in kinds if (kind, False) in decoded]
        apart = affine and family == "value"
        for (kind, values, time_dim), (index, item) in product(found, self.items):
            per_class = _outputs_per_score(values, item)
            sums = block_sum(values, per_class)
            if item.shape != sums.shape:
                continue
            each = apart and per_class == 1
            scale = fit_scale(sums, item) if each else fit_scale(sums.flatten()[:, None], item.flatten()[:, None])
            if scale is None or (not each and float(scale.factor) < 0):
                continue
            if values.dim() == 3:  # to the scores that are decoded of scaled values
                over_time = scale.offset.expand(len(known), 1, -1)
                scale = Scale(scale.factor, KINDS[kind].decoding.decode(over_time).flatten(0, -2)[0])
            source = Source(kind, index, time_dim, per_class, summed=per_class > 1)
            return Match(source, scale=Scale(scale.factor, scale.offset / per_class))
        return None

    def weighted(self, family: str, again: Callable[[int], Probe]) -> Match | None:
        """Find scores that are a weighted sum over time, plus an offset, by least squares over as many passes as it takes."""
        for index, item in self.items:
            known, probes = _values(self.probe, family), [self.probe]
            if known is None:
                continue
            per_class = _outputs_per_score(known, item)
            passes = -(-(len(known) + LEAST_ROWS) // max(1, item.numel()))
            if item.shape != block_sum(known, per_class).shape[1:] or passes > _PASSES:
                continue
            probes += [again(draw) for draw in range(1, passes)]
            values = torch.cat([values for probe in probes if (values := _values(probe, family)) is not None], 1)
            scores = torch.cat([dict(output_items(probe.returned))[index] for probe in probes])
            found = fit_weights(block_sum(values, per_class), scores)
            if found is not None:
                weights, offset = found
                source = Source(CUSTOM[family], index, 0, per_class, weights=tuple(weights.tolist()), summed=per_class > 1)
                return Match(source, scale=Scale(torch.ones_like(offset), offset / per_class) if bool(offset) else None)
        return None

    def refusal(self) -> NetworkError | OptionError:
        """Build the error for an output that nothing explains."""
        if self.places and not self.auto:
            given = ["spikes" if family == "spike" else "membranes" for family in self.places]
            return self._other_readout(given, "a readout of these")
        return unknown_output(self.probe.returned, self.kinds)

    def _other_readout(self, given: Sequence[str], needed: str) -> OptionError:
        found = f"readout={self.wanted!r} for a net that returns {' and '.join(given)}"
        return OptionError(found, needed, "pass readout='auto'")

    def _over_time(self, known: Mapping[str, Tensor | None]) -> dict[str, _Place]:
        """Find the items that hold known values ``[T, B, C]`` over time."""
        found: dict[str, _Place] = {}
        for (index, value), time_dim, (family, values) in product(self.items, (0, 1), known.items()):
            if value.ndim == 3 and values is not None and same_values(value.movedim(time_dim, 0), values):
                found.setdefault(family, (index, time_dim))
        return found

    def _default_kind(self, family: str) -> str:
        """Return the kind that spikes, or values over time, are decoded by unasked."""
        return SPIKE_READOUTS[0] if family == "spike" else self.kinds[0]

    def _is_padded(self, kind: str) -> bool:
        return self.probe.lengths is not None and not KINDS[kind].decoding.per_step

    def _with_others(self, found: Match) -> Match:
        """Add a readout of each other item, by which the user may decide."""
        over_time = [Source(self._default_kind(family), *place) for family, place in self.places.items()]
        others: dict[int | str | None, Source] = {}
        for other in (*over_time, *(fit.source for fit in self.fits)):
            if other.index != found.source.index:
                others.setdefault(other.index, other)
        return replace(found, others=tuple(others.values()))


def _values(probe: Probe, family: str) -> Tensor | None:
    return probe.values if family == "value" else probe.spikes


def _outputs_per_score(values: Tensor, item: Tensor) -> int:
    """Return how many of the neighbouring outputs of values ``[*, C]`` a net may sum up for each score of an item of its output."""
    scores = item.shape[-1] if item.dim() > 1 else 0
    return values.shape[-1] // scores if scores > 1 and values.shape[-1] % scores == 0 else 1


def _decoded(probe: Probe, kinds: Sequence[str]) -> list[Match]:
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
            for index, value in output_items(probe.returned)
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
        seen = {found.source for found in _decoded(again(draw), _kinds_of(fits))}
        fits = [found for found in fits if found.source in seen] or fits
    kinds = _kinds_of(fits)
    if len(kinds) > 1 and not fits[0].source.of_spikes:
        raise NetworkError(f"an output that agrees with {' and '.join(kinds)}", "one of them", f"pass readout={kinds[0]!r}")
    return fits[0]
