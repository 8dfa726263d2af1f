"""Spikes of several neurons at every step and sample, one bit each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks.libraries import library_of

_BITS = 8
_STEP_VALUES, _BLOCK_VALUES = 2**14, 2**21  # most values of a block at one step and at all steps; smaller blocks take longer


@dataclass(frozen=True)
class SpikeTrain:
    """Spikes (T, n, P), a bit each: bit k of row r holds step 8 r + k."""

    bits: Tensor  # (ceil(T / 8), n, P), uint8
    size: Tensor  # (P,), value of a neuron's spikes: 1, except for graded spikes
    num_steps: int  # T

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, samples and neurons: T, n and P."""
        return self.num_steps, self.bits.shape[1], self.bits.shape[2]

    @staticmethod
    def join(parts: Sequence[SpikeTrain]) -> SpikeTrain:
        """Concatenate the samples of several sets of the same neurons."""
        size = torch.stack([part.size for part in parts]).amax(0)
        return SpikeTrain(torch.cat([part.bits for part in parts], 1), size, parts[0].num_steps)

    def take_samples(self, samples: slice | Tensor) -> SpikeTrain:
        """Return the spikes of some samples."""
        return replace(self, bits=self.bits[:, samples])

    def take_neurons(self, neurons: slice | Tensor) -> SpikeTrain:
        """Return the spikes of some neurons."""
        return replace(self, bits=self.bits[:, :, neurons], size=self.size[neurons])

    def append_neurons(self, others: SpikeTrain) -> SpikeTrain:
        """Return the spikes with those of more neurons behind them; with one sample, it is repeated for all of the others'."""
        bits = self.bits.expand(-1, others.shape[1], -1)
        return replace(self, bits=torch.cat([bits, others.bits], 2), size=torch.cat([self.size, others.size.to(self.size)]))

    def delay(self) -> SpikeTrain:
        """Return the spikes one step later; those of the last step are dropped."""
        bits = self.bits << 1
        bits[1:] |= self.bits[:-1] >> (_BITS - 1)
        bits[-1] &= 2 ** (self.num_steps - _BITS * (len(bits) - 1)) - 1
        return replace(self, bits=bits)

    def unpack(self) -> Tensor:
        """Return the spikes as numbers (T, n, P)."""
        spikes = self.size.new_zeros(self.shape)
        for place in range(_BITS):
            steps = spikes[place::_BITS]
            steps.copy_((self.bits[: len(steps)] >> place) & 1)
        return spikes.mul_(self.size)

    def at(self, step: int) -> Tensor:
        """Return the spikes (n, P) at one step."""
        return ((self.bits[step // _BITS] >> step % _BITS) & 1) * self.size

    def average(self) -> Tensor:
        """Return the spikes averaged over time, (n, P)."""
        counts = self.bits.new_zeros(self.shape[1:], dtype=torch.int32)
        for row in self.bits:
            for place in range(_BITS):
                counts += (row >> place) & 1
        return counts * self.size / self.num_steps


class SpikeRecorder:
    """Stores the spikes of each step as they are emitted."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps, self._step = num_steps, 0
        self._bits = torch.zeros(0, dtype=torch.uint8)
        self._size = self._total = torch.zeros(0)  # largest spike of each neuron, and sum of its spikes

    def add(self, spikes: Tensor, membranes: Tensor | None = None) -> None:
        """Add the spikes (n, P) of the next step, each 0 or the size of its neuron's spikes."""
        del membranes
        row, place = divmod(self._step, _BITS)
        if self._step == 0:
            self._bits = torch.zeros(-(-self._num_steps // _BITS), *spikes.shape, dtype=torch.uint8, device=spikes.device)
            self._size = self._total = spikes.new_zeros(spikes.shape[1], dtype=torch.float32)
        self._bits[row] |= (spikes != 0).to(torch.uint8) << place
        self._size, self._total = torch.maximum(self._size, spikes.amax(0)), self._total + spikes.sum(0)
        self._step += 1

    def finish(self) -> SpikeTrain:
        """Return the spikes of all steps.

        Raises:
            UnsupportedModuleError: a neuron's spikes have several sizes, or are negative.
        """
        train = SpikeTrain(self._bits, self._size, self._num_steps)
        if not torch.allclose(train.average().sum(0) * self._num_steps, self._total, rtol=1e-3):
            found, needed = "a neuron whose spikes differ in size or are negative", "spikes of one size"
            raise UnsupportedModuleError(found, needed, "use a neuron whose surrogate function returns 0 or 1")
        return train


def record_train(neuron: nn.Module, currents: Tensor, recurrent: Tensor) -> SpikeTrain:
    """Simulate units of a recurrent neuron alone on currents (T, n, P), with weights (P, P) or (P,) between them."""
    recorder = SpikeRecorder(len(currents))
    library_of(neuron).each_step(neuron, currents, recorder.add, recurrent=recurrent)
    return recorder.finish()


def split_in_blocks(samples: int, steps: int, widest: int) -> list[slice]:
    """Return blocks of samples to simulate together, whose tensors of ``widest`` values a sample and step are of limited size."""
    size = max(1, min(_STEP_VALUES, _BLOCK_VALUES // steps) // widest)
    return [slice(start, min(samples, start + size)) for start in range(0, samples, size)]
