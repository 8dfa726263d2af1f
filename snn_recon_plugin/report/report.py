"""Report of an initialisation: its content, a table, figures, and what protects a training that follows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from ..training.guard import Guard
from ..training.hard_samples import HardSampler, make_sampler
from .plots import plot_layers, plot_report
from .report_brief import brief_rows, render_brief
from .report_content import ReportContent
from .report_table import held_out, render, render_html, text_rows
from .report_values import fields_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


class Report(ReportContent):
    """Result of ``ConvexInitializer.initialize``; its fields are those of ``ReportContent``.

    Example:
        >>> from snn_recon_plugin import convex_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> before = net.fc2.weight.detach().clone()
        >>> report = convex_init_(net, loader, progress=False)
        >>> report.exactness.label, report.readout.kind
        ('exact', 'membrane_mean')
        >>> report.undo()
        >>> bool((net.fc2.weight == before).all())
        True
    """

    @classmethod
    def of(cls, content: ReportContent) -> Report:
        """Return the report of a content; the two are equal."""
        return cls(**{field.name: getattr(content, field.name) for field in fields(content)})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return a report from the text of its ``to_json()``.

        It prints and draws as before.  What needs the network, its old weights or the data, such as ``undo`` and
        ``protect``, raises an OptionError.  The same holds for a report from a pickle.

        Raises:
            OptionError: the text is not from a report.
        """
        try:
            values = json.loads(text)
            return cls(**fields_of(cls, values), _undone=values["undone"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found = f"a text that is not a report's json ({type(error).__name__}: {error})"
            fix = "pass the text that report.to_json() returned"
            raise OptionError(found, "a report's values, from this version of the package", fix) from error

    def sampler(self, dataset: Any, **reading: Any) -> HardSampler:
        """Return a sampler for ``DataLoader(dataset, sampler=...)`` that draws hard samples more often.

        An epoch keeps its length.  It consists of passes that leave out most of the samples that the network decides right by a
        large margin, so fewer epochs do.  Worth it from some 15,000 samples on.  The network is run once over the data set; then
        each training batch renews the hardness of its samples.

        Args:
            dataset: the training data, with indices and a class index a sample.
            **reading: arguments of the DataLoader that reads the data set, such as ``num_workers`` or ``collate_fn``.

        Returns:
            A torch sampler, with ``state_dict()`` for checkpoints.  ``sampler.update(indices, scores)`` renews the hardness of
            samples whose scores (B, C) are known; it is called for networks that your loop runs by ``net(inputs)``.

        Raises:
            OptionError: a report that was undone, or of several processes.
            DataError: a data set without a length or indices, or other targets.
        """
        return make_sampler(self, dataset, **reading)

    def protect(
        self,
        optimizer: torch.optim.Optimizer,
        validation: Iterable[Any] | None = None,
        *,
        average: float = 0.99,
        damping: float | None = None,
        fast: bool = False,
    ) -> Guard:
        """Watch over a plain training loop, and choose what is evaluated; in Lightning the callback does the same.

        The solved readout is evaluated, and training goes on from the smaller one that the call wrote.
        The loss on the first 256 samples is measured after 1, 2, 4, ... 256 steps.  If nearly all that was solved is lost,
        all parameters go back to the weights of the measurement before.  Each update is then scaled down; learning rate and
        scheduler stay.  A moving average of the weights is kept.

        Args:
            optimizer: over the network's parameters.  Its state for written parameters is cleared.
            validation: (input, target) batches on which weights are compared: now, at ``evaluated()`` and at ``close()``; default
                the first 256 samples, which were fitted.
            average: decay of the moving average, above 0 to 1; default 0.99, about 100 steps.
            damping: factor of the gradient that passes through recurrent weights to earlier spikes, above 0 to 1.  Scores do not
                change.  None (default) measures how much gradients grow, and takes 1, 1/2 or 1/4.
            fast: take faster steps until the guard is closed, see ``fast_steps``; default False.

        Returns:
            The guard.  Within ``guard.evaluated()`` the network has the best of written, trained and averaged weights, for a test.
            ``guard.close()``, or the end of a ``with`` block around training, leaves them there.  After an error, or without
            ``close()``, the trained weights stay.

        Raises:
            OptionError: a report that was undone or comes from a refit, an optimizer without the written parameters, or an invalid
                average.
            DataError: validation batches that can be read only once.
        """
        return Guard(self, optimizer, validation, average, damping, fast)

    def plot(self, path: str | FilePath | None = None) -> Figure:
        """Draw the gap over time, the strength path and the weights per neuron.

        Args:
            path: file to save the figure to, e.g. "report.png".

        Returns:
            matplotlib's figure.

        Raises:
            OptionError: matplotlib is not installed.
        """
        return plot_report(self, path)

    def plot_layers(self, path: str | FilePath | None = None) -> Figure:
        """Draw the firing of each hidden layer before and after: rate, and neurons that never or always spike.

        Args:
            path: file to save the figure to, e.g. "layers.png".

        Returns:
            matplotlib's figure.

        Raises:
            OptionError: matplotlib is not installed, or there is no hidden layer.
        """
        return plot_layers(self, path)

    def details(self) -> str:
        """Return all that is known as a table; ``print(report)`` shows ten lines of it."""
        return render(text_rows(self))

    def __str__(self) -> str:
        return render_brief(self)

    def _repr_html_(self) -> str:
        """Return the ten lines and, to be opened, the details as tables for a notebook."""
        details = f"<details><summary>details</summary>{render_html(text_rows(self))}</details>"
        return f"<div>{render_html(brief_rows(self))}{details}</div>"

    def __repr__(self) -> str:
        if math.isnan(self.accuracy_written):  # regression
            found = f"loss {self.before.loss:.4g} -> {self.after.loss:.4g}"
        else:
            found = f"accuracy {held_out(self)} on {self.after.samples} samples"
        kept = ", NOT kept" if self.kept_old else ""
        return f"<Report of {self.network}: held-out {found}{kept}, {self.certificate}>"
