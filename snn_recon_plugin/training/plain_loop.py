"""Plain training loops: protection after the one line, and the choice of the weights to evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from types import TracebackType
from typing import Any

import torch
from torch.nn.utils import prune

from ..errors import OptionError
from ..networks import Inspections, unwrap
from ..stages import Options, check_fraction, refuse_iterator
from ..stages.report_content import ReportContent
from .damping import choose_damping, damp_recurrence
from .measure import Judgement, Sums, measure_loss
from .protect import Protection, check_optimizers, clear_optimizer_state
from .weights import WeightSnapshots


class Guard:
    """Watch over an optimizer's steps, and owner of the weights to evaluate; ``Report.protect`` returns one.

    Args:
        report: of the call that wrote the network.
        optimizer: any that has ``register_step_post_hook``, as those of torch do.
        validation: (input, target) batches on which weights are compared: when the guard is made, in ``evaluated`` and in
            ``close``.  None (default) for a few of the samples that were fitted.
        average: decay of the moving average; default 0.99.
        damping: factor of the gradient through recurrent weights; None (default) to choose it.

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
        report: ReportContent,
        optimizer: torch.optim.Optimizer,
        validation: Iterable[Any] | None = None,
        average: float = 0.99,
        damping: float | None = None,
    ) -> None:
        sample, written = report.sample, report.parameters
        if not written or not sample.batches:
            found = "a report that was undone or forgotten" if sample.batches else "the report of a refit"
            raise OptionError(found, "the report of a start that is in the network", "pass the report of convex_init_(net, loader)")
        if not hasattr(optimizer, "register_step_post_hook"):
            found, fix = f"an optimizer of type {type(optimizer).__name__}", "pass report.protect(optimizer, val_loader)"
            raise OptionError(found, "one optimizer of torch over the network's parameters", fix)
        check_optimizers([optimizer], written)
        check_fraction("average", average, 1.0, 0.99)
        if damping is not None:
            check_fraction("damping", damping, 1.0, 0.5)
        refuse_iterator("validation batches", validation)
        self._net, self._options, self._optimizer = sample.net, replace(sample.options, unpack=None), optimizer
        self._watched, self._processes = sample.batches, sample.processes
        self._judging: Iterable[Any] = sample.batches if validation is None else validation
        self._judging_options = self._options if validation is None else sample.options
        self._inspections = Inspections(unwrap(self._net))
        self._weights, self._protection, self._steps = WeightSnapshots(average), Protection(), 0
        clear_optimizer_state([optimizer], written)
        writable = not prune.is_pruned(self._net)  # pruned weights are computed from others, and none are held
        if writable:
            report.write_solved()
        self._weights.record(self._net, self._judge())
        solved = self._watch()
        if writable:
            report.write_smaller()
        self._protection.begin(self._net, solved.own, self._watch().own, solved.zero)
        self._weights.begin(self._net)
        self._damping = damp_recurrence(self._net, self._choose_damping(damping))
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def _before(self, *arguments: Any) -> None:
        self._weights.resume_training()
        self._protection.before_batch(self._steps)

    def _after(self, *arguments: Any) -> None:
        self._steps += 1
        self._protection.after_batch(self._steps)
        self._weights.update_average()
        if self._protection.due and not self._protection.check(self._watch().own, [self._optimizer]):
            self._weights.restart_average(self._net)

    def _choose_damping(self, factor: float | None) -> float:
        """Return the factor given, or the one that suits the present weights; the same on all ranks."""
        found = choose_damping(self._net, self._watched, self._options) if factor is None else factor
        return self._processes.broadcast_number(found)

    def _watch(self) -> Judgement:
        return self._measure(self._watched, self._options)

    def _judge(self) -> Judgement:
        return self._measure(self._judging, self._judging_options)

    def _measure(self, batches: Iterable[Any], options: Options) -> Judgement:
        """Return the mean losses over the batches of all ranks."""
        with self._processes.share_errors():
            sums = measure_loss(self._net, batches, options, self._inspections)
        return reduce(Sums.plus, self._processes.gather(sums)).judgement()

    def _choose(self) -> None:
        """Find the best of trained, averaged and earlier weights."""
        weights = self._weights
        if weights.trained is not None:  # within ``evaluated``: they are chosen, and in the network
            return
        weights.save_trained(self._net)
        try:
            weights.choose_best(self._net, weights.choose_average(self._judge(), self._judge), self._judge)
        except BaseException:
            weights.swap_out()
            raise
        weights.evaluate_current()

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the best weights so far in the network for a test: those of the start, trained, or averaged.

        Weights are compared only here and in ``close``: call it once an epoch.
        """
        self._choose()
        with self._weights.swapped_in():
            yield

    def close(self) -> None:
        """End the watch; the best weights stay in the network, after an error the trained ones."""
        try:
            if self._hooks:
                self._choose()
                self._weights.swap_in()
                self._weights.train_on()  # the end of a surrounding ``evaluated`` leaves them
        finally:
            self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._damping.remove()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; after an error the trained weights stay."""
        if kind is None:
            self.close()
        else:
            self._remove()
