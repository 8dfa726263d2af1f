"""Aids to a Lightning run after its start: damped recurrent gradients, and hard samples in place of random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from ..distributed import SINGLE_PROCESS
from ..networks import plain_forward
from ..networks.forward import bare
from .damping import Damping, damp_recurrence
from .hard_samples import MIN_SAMPLES, HardSampler
from .hardness import Decode, measure_hardness
from .lightning import say
from .refit import Refits, Solve
from .refit_data import Batches, explain_obstacle, make_loader

_STEP = 256  # samples to measure at once
_FEW = 8  # samples that show how scores are read


class Aids:
    """Damping and sampler of one run.

    | field | holds | set by |
    |---|---|---|
    | ``factor`` | factor of recurrent gradients; None before it is chosen | ``begin``; a checkpoint |
    | ``sampler`` | the sampler of hard samples; None without one | ``begin`` |
    | ``resumed`` | the state of a checkpoint's sampler; empty without one | a checkpoint |
    """

    def __init__(self) -> None:
        self.factor: float | None = None
        self.sampler: HardSampler | None = None
        self.resumed: dict[str, Any] = {}
        self._damping: Damping | None = None
        self._restore_loader: Callable[[], None] | None = None

    def begin(self, trainer: Any, refits: Refits, start: Solve | None) -> None:
        """Damp gradients and draw hard samples from here on, where that helps; ``start`` is one that was kept."""
        self._damp(trainer, refits, fresh=start is None)
        self._draw_hard(trainer, refits, start)

    def _damp(self, trainer: Any, refits: Refits, *, fresh: bool) -> None:
        """Damp recurrent gradients by the factor given, or by the one that suits the present weights."""
        if self.factor is None:
            given = refits.settings.damping
            self.factor = refits.choose_damping(trainer, fresh=fresh) if given is None else given
        self._damping = damp_recurrence(refits.network, self.factor)
        if self.factor < 1 and self._damping.sites:
            sites = ", ".join(self._damping.sites)
            say(trainer, refits.settings, f"gradients through {sites} are multiplied by {self.factor:g}")

    def _draw_hard(self, trainer: Any, refits: Refits, start: Solve | None) -> None:
        """Draw hard samples more often, where the training data allow it."""
        asked = refits.settings.hard_samples
        if asked is False or (start is None and not self.resumed):
            return
        reason = explain_off(trainer, refits, asked=bool(asked))
        if not reason and self.resumed:
            self.sampler = resume_hard_sampler(trainer, refits, self.resumed)
        elif not reason and start is not None:
            self.sampler = make_hard_sampler(trainer, refits, start)
            reason = "targets are no class index a sample"
        if self.sampler is not None:
            self._restore_loader = install(trainer, refits, self.sampler)
            say(trainer, refits.settings, f"training draws hard samples more often: {100 * self.sampler.keep:.0f} % of all a pass")
        elif asked:
            say(trainer, refits.settings, f"hard samples are not drawn: {reason}")

    def release(self) -> None:
        """Put the trainer's own sampler back, and let gradients pass unchanged."""
        if self._damping is not None:
            self._damping.remove()
        self._damping = None
        if self._restore_loader is not None:
            self._restore_loader()
        self._restore_loader = None


def explain_off(trainer: Any, refits: Refits, *, asked: bool) -> str:
    """Return the reason why hard samples are not drawn; empty if they are."""
    loader, settings = trainer.train_dataloader, refits.settings
    if settings.dataloader is not None:
        return "samples to solve on come from dataloader="
    if obstacle := explain_obstacle(loader):
        return obstacle
    sampler = loader.batch_sampler.sampler
    if type(sampler) is not RandomSampler or sampler.replacement or sampler._num_samples is not None:
        return "the training loader does not shuffle, or draws a part of the samples"
    if trainer.world_size > 1:
        return "several processes share the samples"
    if len(loader.dataset) < MIN_SAMPLES and not asked:
        return f"{len(loader.dataset)} training samples, fewer than {MIN_SAMPLES:,}"
    return ""


def make_hard_sampler(trainer: Any, refits: Refits, solve: Solve) -> HardSampler | None:
    """Return the sampler of a run, from the scores of its start; None without one class a sample."""
    known, order = solve.report.hardness, solve.indices
    if known is None or order is None or len(known[0]) < min(len(order), refits.options.max_samples or len(order)):
        return None  # samples with an ignored label are left out of a solve
    loader = trainer.train_dataloader
    count = len(loader.dataset)
    labels, hardness = torch.full((count,), -1), torch.zeros(count)
    read = torch.tensor(order[: len(known[0])])
    labels[read], hardness[read] = known
    rest = (labels < 0).nonzero()[:, 0].tolist()  # of a batch that was left out, or beyond max_samples
    if rest:
        hardness[rest], labels[rest], _ = _measure(trainer, refits, rest)
    return _make(trainer, refits, labels, hardness)


def resume_hard_sampler(trainer: Any, refits: Refits, state: dict[str, Any]) -> HardSampler:
    """Return the sampler of a checkpoint."""
    sampler = _make(trainer, refits, state["labels"], state["hardness"])
    sampler.load_state_dict(state)
    return sampler


def install(trainer: Any, refits: Refits, sampler: HardSampler) -> Callable[[], None]:
    """Draw the batches of the trainer's loader by the sampler; return the call that puts the old one back.

    A network that the module calls by ``net(inputs)`` renews the hardness of each batch; of others some samples are measured
    between epochs.
    """
    batch_sampler = trainer.train_dataloader.batch_sampler
    old, batch_sampler.sampler = batch_sampler.sampler, sampler
    hooks = []
    if bare(refits.options.call) is plain_forward:
        few = list(range(min(_FEW, len(trainer.train_dataloader.dataset))))
        hooks.append(sampler.follow(refits.judge.net, _measure(trainer, refits, few)[2]))

    def remove() -> None:
        batch_sampler.sampler = old
        for hook in hooks:
            hook.remove()

    return remove


def _measure(trainer: Any, refits: Refits, indices: list[int]) -> tuple[Tensor, Tensor, Decode]:
    """Return hardness and labels of some samples, and the decoding of the network's scores."""
    loader = make_loader(trainer.train_dataloader, indices, _STEP, refits.options.seed)
    batches = Batches(loader, trainer, refits.settings.initializer.unpack, indices)
    return measure_hardness(refits.judge.net, batches, refits.options, len(indices), SINGLE_PROCESS, shared=[trainer])


def _make(trainer: Any, refits: Refits, labels: Tensor, hardness: Tensor) -> HardSampler:
    def renew(indices: Tensor) -> Tensor:
        return _measure(trainer, refits, indices.tolist())[0]

    return HardSampler(labels, hardness, seed=refits.options.seed, renew=renew)
