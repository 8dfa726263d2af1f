"""Plain training loops: protection after the one line, and the choice of the weights to evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch.nn.utils import prune

from ..errors import OptionError
from ..report.rows import Live
from ..scan.passes import KeptPasses
from ..stages.stream import refuse_iterator
from .measure import Judgement, WeightJudge
from .protect import check_optimizers
from .watch import Watch, check_aids


class Guard:
    """Watch over an optimizer's steps, and owner of the weights to evaluate; ``Report.protect`` returns one.

    Arguments are those of ``Report.protect``.

    After a start with ``shards`` all ranks must make a guard, and call it alike.  Their measurements are added up, so all ranks
    decide the same.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> report = convex_init_(net, [(data.train_inputs, data.train_labels)], progress=False)
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> with report.protect(optimizer) as guard:
        ...     for inputs, labels in zip(data.train_inputs.split(128), data.train_labels.split(128)):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
        ...         optimizer.step()
        ...     with guard.evaluated():
        ...         tested = net(data.test_inputs).mean(0).argmax(1)
        >>> bool((tested == data.test_labels).double().mean() > 0.8)
        True
    """

    def __init__(
        self,
        start: Live,
        optimizer: torch.optim.Optimizer,
        validation: Iterable[Any] | None = None,
        damping: float | None = None,
        fast: bool = False,
    ) -> None:
        net, written = start.net, start.parameters
        if not (written or start.kept_old) or not start.batches:
            found = "a report that was undone or forgotten" if start.batches else "the report of a refit"
            raise OptionError(found, "the report of a start that is in the network", "pass the report of convex_init_(net, loader)")
        if not hasattr(optimizer, "register_step_post_hook"):
            found, fix = f"an optimizer of type {type(optimizer).__name__}", "pass report.protect(optimizer, val_loader)"
            raise OptionError(found, "one optimizer of torch over the network's parameters", fix)
        check_optimizers([optimizer], written)
        check_aids(damping, fast)
        refuse_iterator("validation batches", validation)
        self._watch = watch = Watch(net)
        watch.judge = _LoopJudge(start, validation)
        # What was trained since stays; pruned weights are computed from others.
        writable = not start.kept_old and not prune.is_pruned(net) and start.is_present
        if writable:
            start.write(start.solved)
        watch.start(start, watch.judge.measure(), [optimizer] if start.is_present else [], smaller=writable)
        watch.begin(damping=damping, fast=fast)
        watch.aids.callback(optimizer.register_step_pre_hook(lambda *_: watch.before_step()).remove)
        watch.aids.callback(optimizer.register_step_post_hook(self._after).remove)

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._watch.after_step([optimizer])

    def __str__(self) -> str:
        watch, best = self._watch, self._watch.best_judged
        first = f"guard of a {type(watch.net).__name__}, {'open' if watch.running else 'closed'}"
        loss = "" if best is None else f", with a loss of {best.loss:.4g} when last compared"
        factors = f"factors: {watch.protection.share:.2g} on the length of steps, {watch.damping:g} on recurrent gradients"
        return f"{first}\nevaluated weights: {watch.origin}{loss}\n{factors}"

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the best weights so far in the network for a test: those of the start, or trained ones.

        Weights are compared only here and in ``close``: call it once an epoch.
        """
        self._choose()
        with self._watch.swapped_in():
            yield

    def close(self) -> None:
        """End the watch; the best weights stay in the network, after an error the trained ones."""
        try:
            if self._watch.running:
                self._choose()
                self._watch.swap_in()
                self._watch.trained = None  # the end of a surrounding ``evaluated`` leaves them
        finally:
            self._watch.close()

    def _choose(self) -> None:
        """Compare weights, unless this is within ``evaluated``: then they are chosen, and in the network."""
        if self._watch.trained is None:
            self._watch.choose()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._watch.drop_refit()
            self._watch.close()


class _LoopJudge(WeightJudge):
    """Judge by validation batches of the user's, or by the first samples of the start, which are unpacked."""

    def __init__(self, start: Live, validation: Iterable[Any] | None) -> None:
        super().__init__(start.net, replace(start.options, unpack=None), start.processes)
        self.passes = KeptPasses()
        self._reading, self._batches, self._validation = start.options, start.batches, validation

    def samples(self, count: int) -> Iterable[Any]:
        return self._batches

    def measure(self) -> Judgement:
        if self._validation is None:
            return super().measure()
        batches, options = self._validation, self._reading
        return self.mean(lambda: self.sum_losses(batches, options))
