"""Hard samples in place of random ones, in a trainer's own training loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from ..networks.calls.forward import plain_forward, without_contexts
from .hard_samples import MIN_SAMPLES, HardSampler
from .measure import Decode, measure_hardness
from .refit import Refits, Solve
from .refit_data import Batches, explain_obstacle, make_loader

_STEP = 256  # samples to measure at once
_FEW = 8  # samples that show how scores are read


def explain_off(refits: Refits, *, asked: bool) -> str:
    """Return the reason why hard samples are not drawn; empty if they are."""
    loader = refits.trainer.train_dataloader
    if refits.settings.dataloader is not None:
        return "samples to solve on come from dataloader="
    if obstacle := explain_obstacle(loader):
        return obstacle
    sampler = loader.batch_sampler.sampler
    if type(sampler) is not RandomSampler or sampler.replacement or sampler._num_samples is not None:
        return "the training loader does not shuffle, or draws a part of the samples"
    if refits.trainer.world_size > 1:
        return "several processes share the samples"
    if len(loader.dataset) < MIN_SAMPLES and not asked:
        return f"{len(loader.dataset)} training samples, fewer than {MIN_SAMPLES:,}"
    return ""


def make_trainer_sampler(refits: Refits, solve: Solve) -> HardSampler | None:
    """Return the sampler of a run, from the scores of its start; None without one class a sample."""
    known, order = solve.report.hardness, solve.indices
    if known is None or order is None or len(known[0]) < min(len(order), refits.options.max_samples or len(order)):
        return None  # samples with an ignored label are left out of a solve
    count = len(refits.trainer.train_dataloader.dataset)
    labels, hardness = torch.full((count,), -1), torch.zeros(count)
    read = torch.tensor(order[: len(known[0])])
    labels[read], hardness[read] = known
    rest = (labels < 0).nonzero()[:, 0].tolist()  # of a batch that was left out, or beyond max_samples
    if rest:
        hardness[rest], labels[rest], _ = _measure(refits, rest)
    return _make(refits, labels, hardness)


def resume_trainer_sampler(refits: Refits, state: dict[str, Any]) -> HardSampler:
    """Return the sampler of a checkpoint."""
    sampler = _make(refits, state["labels"], state["hardness"])
    sampler.load_state_dict(state)
    return sampler


def install(refits: Refits, sampler: HardSampler) -> Callable[[], None]:
    """Draw the batches of the trainer's loader by the sampler; return the call that puts the old one back.

    A network that the module calls by ``net(inputs)`` renews the hardness of each batch; of others some samples are measured
    between epochs.
    """
    loader = refits.trainer.train_dataloader
    old, loader.batch_sampler.sampler = loader.batch_sampler.sampler, sampler
    hooks = []
    if without_contexts(refits.options.call) is plain_forward:
        few = list(range(min(_FEW, len(loader.dataset))))
        hooks.append(sampler.follow(refits.judge.net, _measure(refits, few)[2]))

    def remove() -> None:
        loader.batch_sampler.sampler = old
        for hook in hooks:
            hook.remove()

    return remove


def _measure(refits: Refits, indices: list[int]) -> tuple[Tensor, Tensor, Decode]:
    """Return hardness and labels of some samples, and the decoding of the network's scores."""
    loader = make_loader(refits.trainer.train_dataloader, indices, _STEP, refits.options.seed)
    batches = Batches(loader, refits.trainer, refits.settings.initializer.unpack, indices)
    return measure_hardness(refits.judge.net, batches, refits.options, len(indices), shared=[refits.trainer])


def _make(refits: Refits, labels: Tensor, hardness: Tensor) -> HardSampler:
    def renew(indices: Tensor) -> Tensor:
        return _measure(refits, indices.tolist())[0]

    return HardSampler(labels, hardness, seed=refits.options.seed, renew=renew)
