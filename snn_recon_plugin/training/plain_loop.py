"""Plain training loops: protection after the one line, and the choice of the weights to evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch.nn.utils import prune

from ..errors import OptionError
from ..networks.private.quiet import unwrap
from ..networks.structure.inspect import Inspections
from ..options import Options, check_bool, check_fraction
from ..report.rows import Live
from ..stages.stream import refuse_iterator
from ..steps.fast_steps import install_fast_steps
from .damping import Damping, choose_damping
from .measure import Judgement, sum_losses
from .policy import Policy
from .protect import check_optimizers


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
        average: float = 0.99,
        damping: float | None = None,
        fast: bool = False,
    ) -> None:
        sample, written = start.sample, start.parameters
        if not (written or start.kept_old) or not sample.batches:
            found = "a report that was undone or forgotten" if sample.batches else "the report of a refit"
            raise OptionError(found, "the report of a start that is in the network", "pass the report of convex_init_(net, loader)")
        if not hasattr(optimizer, "register_step_post_hook"):
            found, fix = f"an optimizer of type {type(optimizer).__name__}", "pass report.protect(optimizer, val_loader)"
            raise OptionError(found, "one optimizer of torch over the network's parameters", fix)
        check_optimizers([optimizer], written)
        check_fraction("average", average, 1.0, 0.99)
        check_bool("fast", fast, False)
        if damping is not None:
            check_fraction("damping", damping, 1.0, 0.5)
        refuse_iterator("validation batches", validation)
        self._net, self._optimizer, self._processes = sample.net, optimizer, sample.processes
        self._inspections = Inspections(unwrap(self._net))
        unpacked = replace(sample.options, unpack=None)  # as the report's batches are
        watch = partial(self._measure, sample.batches, unpacked)
        self._policy = Policy(self._net, average)
        self._policy.watch = watch
        self._policy.judge = watch if validation is None else partial(self._measure, validation, sample.options)
        self._start(start)
        factor = choose_damping(self._net, sample.batches, unpacked) if damping is None else damping
        self._damping = Damping(self._net, self._processes.broadcast_number(factor))
        forward = sample.options.call
        self._fast = install_fast_steps(self._net, sample.batches, forward, None) if fast else None
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def _before(self, *_: Any) -> None:
        self._policy.before_step()

    def _after(self, *_: Any) -> None:
        self._policy.after_step([self._optimizer])

    def _start(self, start: Live) -> None:
        """Note the solved weights, and watch the steps from the smaller ones on; old weights that were kept stay."""
        writable = not start.kept_old and not prune.is_pruned(self._net)  # pruned weights are computed from others
        if writable:
            start.write(start.solved)
        self._policy.hold(self._policy.judge())
        self._policy.start(start, [self._optimizer], partial(start.write, start.smaller) if writable else lambda: None)
        self._policy.begin_average()

    def _measure(self, batches: Iterable[Any], options: Options) -> Judgement:
        """Return the mean losses over the batches of all ranks."""
        with self._processes.share_errors():
            sums = sum_losses(self._net, batches, options, self._inspections)
        return Judgement.of_sums(self._processes.gather(sums))

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the best weights so far in the network for a test: those of the start, trained, or averaged.

        Weights are compared only here and in ``close``: call it once an epoch.
        """
        self._choose()
        with self._policy.swapped_in():
            yield

    def close(self) -> None:
        """End the watch; the best weights stay in the network, after an error the trained ones."""
        try:
            if self._hooks:
                self._choose()
                self._policy.swap_in()
                self._policy.trained = None  # the end of a surrounding ``evaluated`` leaves them
        finally:
            self._remove()

    def _choose(self) -> None:
        """Compare weights, unless this is within ``evaluated``: then they are chosen, and in the network."""
        if self._policy.trained is None:
            self._policy.choose()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._damping.remove()
        if self._fast is not None:
            self._fast.remove()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; after an error the trained weights stay."""
        if kind is None:
            self.close()
        else:
            self._remove()
