"""The faults: each replaces a text that occurs once in the package, so the file is found wherever it has moved to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = "snn_recon_plugin"


@dataclass(frozen=True)
class Fault:
    """A mistake that a tired engineer makes.

    Args:
        name: what is wrong.
        room: folder of the package.
        text: as it should be; occurs once in the package.
        planted: what replaces it.
        earlier: text and replacement in earlier commits, if the line read differently there.
    """

    name: str
    room: str
    text: str
    planted: str
    earlier: tuple[str, str] | None = None

    @property
    def forms(self) -> list[tuple[str, str]]:
        """Texts with their replacements, of which one is in a checkout."""
        return [(self.text, self.planted), *([] if self.earlier is None else [self.earlier])]

    def find(self, root: Path) -> Path:
        """Return the file of a checkout that holds the text, or raise a LookupError."""
        files = {path: path.read_text(encoding="utf-8") for path in sorted((root / PACKAGE).rglob("*.py"))}
        found = [path for path, content in files.items() for text, _ in self.forms for _ in range(content.count(text))]
        if len(found) != 1:
            where = "text not found" if not found else f"text found {len(found)} times"
            raise LookupError(f"{self.name}: {where}: mend the list in benchmarks/planted_faults/catalogue.py")
        return found[0]

    def plant(self, path: Path) -> None:
        """Write the fault into the file."""
        content = path.read_text(encoding="utf-8")
        for text, planted in self.forms:
            content = content.replace(text, planted)
        path.write_text(content, encoding="utf-8")


CONVEX = (
    Fault(
        "dual point shrunk for the penalty, not for the losses",
        "convex",
        "self.loss.conjugate(scale * dual_rows, self.targets)",
        "self.loss.conjugate(dual_rows, self.targets)",
    ),
    Fault(
        "standard error with n in place of n - 1",
        "convex",
        "math.sqrt(squares * count / (count - 1)) / total",
        "math.sqrt(squares) / total",
    ),
    Fault(
        "path goes on one strength too long",
        "convex",
        "if waited >= settings.patience or left <= 0:",
        "if waited > settings.patience or left <= 0:",
        earlier=("if waited >= patience or left <= 0:", "if waited > patience or left <= 0:"),
    ),
    Fault(
        "a part of the rows keeps the columns made for all rows",
        "convex",
        "other.__dict__.update(changes, _whole={})",
        "other.__dict__.update(changes)",
    ),
    Fault(
        "label smoothing over the sum of the scores, not their mean",
        "convex",
        "+ self.smoothing * scores.mean(1)",
        "+ self.smoothing * scores.sum(1)",
    ),
    Fault(
        "start of a solve not copied",
        "convex",
        "begin._replace(weight=weight.clone(), bias=bias.clone())",
        "begin._replace(weight=weight, bias=bias)",
    ),
    Fault(
        "lower bound is the last one, not the largest",
        "convex",
        "self.lower, better = max(self.lower, dual), objective < self.best[0]",
        "self.lower, better = dual, objective < self.best[0]",
    ),
    Fault(
        "binary decision of the squared loss at 0, not between its targets",
        "convex",
        "(scores[:, 0] > 0.5).long()",
        "(scores[:, 0] > 0.0).long()",
    ),
)

NETWORKS = (
    Fault(
        "states not reset before a recorded pass",
        "networks",
        "    reset_states(net)\n    with torch.no_grad(), tapped(taps)",
        "    with torch.no_grad(), tapped(taps)",
    ),
    Fault(
        "the loader's generators not restored",
        "networks",
        "for generator in (*generators, *loader_generators(self._loader))",
        "for generator in generators",
        earlier=("for generator in (*self._seeded, *loader_generators(loader))", "for generator in self._seeded"),
    ),
    Fault(
        "spikes of short batches padded behind, not before",
        "networks",
        "(0, 0, 0, 0, longest - len(part), 0)",
        "(0, 0, 0, 0, 0, longest - len(part))",
    ),
    Fault(
        "mean gain over the kinds of filters, not over the outputs",
        "networks",
        "gains[units.index].mean() / (gains * units.thresholds)",
        "gains.mean() / (gains * units.thresholds)",
    ),
    Fault(
        "a sample's first step taken for padding",
        "networks",
        "(left[:, None] <= lengths).float()",
        "(left[:, None] < lengths).float()",
    ),
    Fault(
        "a layer's remembered output not copied",
        "networks",
        "return output.clone()  # what a net writes into it must not reach the next step",
        "return output",
    ),
    Fault(
        "frozen or tied bias of the readout not refused",
        "networks",
        "for name in (readout.weight_name, readout.bias_name):",
        "for name in (readout.weight_name,):",
    ),
    Fault(
        "silent output ranked behind a spike at the last step",
        "networks",
        ".amax(0).clamp_min(1) - len(spikes)",
        ".amax(0) - len(spikes)",
    ),
)

HIDDEN = (
    Fault(
        "traces without the current of the present step",
        "hidden",
        "weights = torch.where(age >= 0, self.kernel[age.clamp_min(0)]",
        "weights = torch.where(age > 0, self.kernel[age.clamp_min(0)]",
    ),
    Fault(
        "firing rate averaged over batches, not over samples",
        "hidden",
        "torch.stack([part.rate * count for part, count in zip(parts, samples, strict=True)]).sum(0) / sum(samples)",
        "torch.stack([part.rate for part in parts]).mean(0)",
    ),
    Fault(
        "gain of a layer chosen on the old weights below",
        "hidden",
        "for place, value in write_values(values).items():",
        "for place, value in values.items():",
        earlier=("    with replace_parameters(below):\n        scaled =", "    with replace_parameters({}):\n        scaled ="),
    ),
    Fault(
        "candidates with the same spikes kept",
        "hidden",
        "usable = ~(dead | on | double)",
        "usable = ~(dead | on)",
    ),
    Fault(
        "held-out fold is among the fitted ones",
        "hidden",
        "torch.cat([*folds[:number], *folds[number + 1 :]])",
        "torch.cat([*folds[:number], *folds[number:]])",
    ),
    Fault(
        "labels between two fitted steps one step late",
        "hidden",
        "torch.searchsorted(steps, torch.arange(num_steps))",
        "torch.searchsorted(steps, torch.arange(num_steps), right=True)",
    ),
    Fault(
        "every hidden layer draws with the same seed",
        "hidden",
        "manual_seed(self.seed + number)",
        "manual_seed(self.seed)",
    ),
    Fault(
        "spread over directions, not over samples",
        "hidden",
        "@ directions.T).std(0, correction=0)",
        "@ directions.T).std(1, correction=0)",
    ),
)

STAGES = (
    Fault(
        "sign of the shift of a neuron's rest under a temperature",
        "stages",
        "(scale - 1) * offset",
        "(1 - scale) * offset",
    ),
    Fault(
        "batches of a loader that fills one buffer not copied",
        "stages",
        "inputs, targets = copied(inputs), targets.clone()",
        "inputs, targets = inputs, targets.clone()",
    ),
    Fault(
        "targets of a sample's steps not side by side",
        "stages",
        "values.repeat_interleave(times, 0)",
        "torch.cat([values] * times)",
    ),
    Fault(
        "each half of the held-out samples judged by its own calibration",
        "stages",
        "halves = [(held[::2], held[1::2]), (held[1::2], held[::2])]",
        "halves = [(held[::2], held[::2]), (held[1::2], held[1::2])]",
    ),
    Fault(
        "validation samples fitted in the final solve",
        "stages",
        "(samples.without(split.heldout) if split.excludes else samples)",
        "samples",
    ),
    Fault(
        "hardness without the temperature",
        "stages",
        "scores = fit.temperature * problem.features.scores(",
        "scores = problem.features.scores(",
    ),
    Fault(
        "hidden rows chosen on held-out samples too",
        "stages",
        "        hidden = replace(hidden, samples=used)\n",
        "",
        earlier=("    hidden_task = replace(hidden_task, samples=used)\n", ""),
    ),
    Fault(
        "the primal value taken for the dual bound",
        "stages",
        "options.tol, fit.solution.certificate.dual)",
        "options.tol, fit.solution.certificate.primal)",
    ),
)

TRAINING = (
    Fault(
        "short average covers a point too many",
        "training",
        "_LAST_QUARTER / (self.points + _LAST_QUARTER - 1)",
        "_LAST_QUARTER / (self.points + _LAST_QUARTER)",
    ),
    Fault(
        "a loss of NaN passes for a good one",
        "training",
        "if not loss <= self.limit:",
        "if loss > self.limit:",
    ),
    Fault(
        "every epoch draws the same order",
        "training",
        "self._epoch += 1\n        generator = torch.Generator().manual_seed(self._seed + self._epoch)",
        "self._epoch += 1\n        generator = torch.Generator().manual_seed(self._seed)",
        earlier=("self._generator.manual_seed(self._seed + self._epoch)", "self._generator.manual_seed(self._seed)"),
    ),
    Fault(
        "scores of a sampler's update not detached",
        "training",
        "log_probabilities(scores.detach(), self.labels[indices])",
        "log_probabilities(scores, self.labels[indices])",
    ),
    Fault(
        "every refit draws the samples of the first",
        "training",
        "self.options.seed + progress.solves",
        "self.options.seed",
    ),
    Fault(
        "samples behind the end of a cut epoch in a refit",
        "training",
        "count = most if is_ordered(loader.batch_sampler.sampler) else len(loader.dataset)",
        "count = len(loader.dataset)",
    ),
    Fault(
        "growth of gradients measured in the wrong order of time",
        "training",
        "left = range(len(spikes), 0, -1)",
        "left = range(1, len(spikes) + 1)",
    ),
    Fault(
        "the trainer's stage not put back after a validation",
        "training",
        "        trainer.state.stage = stage\n",
        "        trainer.validating = False\n",
    ),
)

FAULTS = (*CONVEX, *NETWORKS, *HIDDEN, *STAGES, *TRAINING)
