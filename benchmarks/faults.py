"""Small faults: each replaces a text that occurs once in the package, so the file is found wherever it has moved to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = "snn_recon_plugin"


@dataclass(frozen=True)
class Fault:
    """A mistake that a tired engineer makes.

    Args:
        room: part of the package: a folder, with modules that belong to it.
        name: what is wrong.
        text: as it should be; occurs once in the package.
        planted: what replaces it.
    """

    room: str
    name: str
    text: str
    planted: str

    def find(self, root: Path) -> Path:
        """Return the file of a checkout that holds the text, or raise a LookupError."""
        files = {path: path.read_text(encoding="utf-8") for path in sorted((root / PACKAGE).rglob("*.py"))}
        found = [path for path, content in files.items() for _ in range(content.count(self.text))]
        if len(found) != 1:
            where = "text not found" if not found else f"text found {len(found)} times"
            raise LookupError(f"{self.name}: {where}: mend the list in benchmarks/faults.py")
        return found[0]

    def plant(self, path: Path) -> None:
        """Write the fault into the file."""
        path.write_text(path.read_text(encoding="utf-8").replace(self.text, self.planted), encoding="utf-8")


# What is wrong, text, and what replaces it; by room.
_FAULTS: dict[str, list[tuple[str, str, str]]] = {
    "convex": [
        (
            "dual point shrunk for the penalty, not for the losses",
            "self.loss.conjugate(scale * dual_rows, self.targets)",
            "self.loss.conjugate(dual_rows, self.targets)",
        ),
        (
            "standard error with n in place of n - 1",
            "math.sqrt(squares * count / (count - 1)) / total",
            "math.sqrt(squares) / total",
        ),
        (
            "path goes on one strength too long",
            "len(points) > patience and",
            "len(points) > patience + 1 and",
        ),
        (
            "a part of the rows keeps the columns made for all rows",
            "other.__dict__.update(changes, _whole={})",
            "other.__dict__.update(changes)",
        ),
        (
            "label smoothing over the sum of the scores, not their mean",
            "+ self.smoothing * scores.mean(1)",
            "+ self.smoothing * scores.sum(1)",
        ),
        (
            "start of a solve not copied",
            "begin._replace(weight=weight.clone(), bias=bias.clone())",
            "begin._replace(weight=weight, bias=bias)",
        ),
        (
            "lower bound is the last one, not the largest",
            "self.lower = max(self.lower, dual)",
            "self.lower = dual",
        ),
        (
            "binary decision of the squared loss at 0, not between its targets",
            "(scores[:, 0] > 0.5).long()",
            "(scores[:, 0] > 0.0).long()",
        ),
    ],
    "networks": [
        (
            "states not reset before a recorded pass",
            "        reset_states(self.net)\n        with torch.no_grad(), seeded(",
            "        with torch.no_grad(), seeded(",
        ),
        (
            "the loader's generators not restored",
            "for read, restore, _ in (*generators, *_loader_generators(self._loader))",
            "for read, restore, _ in generators",
        ),
        (
            "spikes of short batches padded behind, not before",
            "(0, 0, 0, 0, longest - len(part), 0)",
            "(0, 0, 0, 0, 0, longest - len(part))",
        ),
        ("a sample's first step taken for padding", "(left[:, None] <= lengths).float()", "(left[:, None] < lengths).float()"),
        (
            "a neuron alone starts from the states of the net's last pass",
            "self.reset(neuron)\n        call = stepper.read(",
            "call = stepper.read(",
        ),
        (
            "frozen or tied bias of the readout not refused",
            "for name in (readout.weight_name, readout.bias_name):",
            "for name in (readout.weight_name,):",
        ),
        ("silent output ranked behind a spike at the last step", ".amax(0).clamp_min(1) - len(spikes)", ".amax(0) - len(spikes)"),
        (
            "sign of the gradient through a reset by subtraction",
            "torch.add(gradient, later, alpha=-threshold, out=scratch)",
            "torch.add(gradient, later, alpha=threshold, out=scratch)",
        ),
    ],
    "hidden": [
        (
            "traces without the current of the present step",
            "weights = torch.where(age >= 0, self.kernel[age.clamp_min(0)]",
            "weights = torch.where(age > 0, self.kernel[age.clamp_min(0)]",
        ),
        (
            "firing rate averaged over batches, not over samples",
            "torch.stack([part.rate * count for part, count in zip(parts, samples, strict=True)]).sum(0) / sum(samples)",
            "torch.stack([part.rate for part in parts]).mean(0)",
        ),
        (
            "gain of a layer chosen on the old weights below",
            "for place, value in write_values(values).items():",
            "for place, value in values.items():",
        ),
        ("candidates with the same spikes kept", "usable = ~(dead | on | double)", "usable = ~(dead | on)"),
        (
            "held-out fold is among the fitted ones",
            "torch.cat([*folds[:number], *folds[number + 1 :]])",
            "torch.cat([*folds[:number], *folds[number:]])",
        ),
        (
            "labels between two fitted steps one step late",
            "torch.searchsorted(steps, torch.arange(num_steps))",
            "torch.searchsorted(steps, torch.arange(num_steps), right=True)",
        ),
        ("every hidden layer draws with the same seed", "manual_seed(self.seed + number)", "manual_seed(self.seed)"),
        (
            "spread over directions, not over samples",
            "@ directions.T).std(0, correction=0)",
            "@ directions.T).std(1, correction=0)",
        ),
    ],
    "stages": [
        ("sign of the shift of a neuron's rest under a temperature", "(scale - 1) * offset", "(1 - scale) * offset"),
        (
            "batches of a loader that fills one buffer not copied",
            "inputs, targets = copied(inputs), targets.clone()",
            "inputs, targets = inputs, targets.clone()",
        ),
        ("targets of a sample's steps not side by side", "values.repeat_interleave(times, 0)", "torch.cat([values] * times)"),
        (
            "each half of the held-out samples judged by its own calibration",
            "whole[::2], held[1::2]), (chosen_point, whole[1::2], held[::2])",
            "whole[::2], held[::2]), (chosen_point, whole[1::2], held[1::2])",
        ),
        (
            "validation samples fitted in the final solve",
            "(samples.without(split.heldout) if split.excludes else samples)",
            "samples",
        ),
        ("hidden rows chosen on held-out samples too", "        hidden = replace(hidden, samples=used)\n", ""),
        (
            "the primal value taken for the dual bound",
            "options.tol, fit.solution.certificate.dual)",
            "options.tol, fit.solution.certificate.primal)",
        ),
    ],
    "training": [
        ("a loss of NaN passes for a good one", "if not loss <= self.limit:", "if loss > self.limit:"),
        ("every refit draws the samples of the first", "judge.samples(None, self.history.solves, ", "judge.samples(None, 0, "),
        (
            "samples behind the end of a cut epoch in a refit",
            "total = most if is_ordered(loader.batch_sampler.sampler) else len(loader.dataset)",
            "total = len(loader.dataset)",
        ),
        (
            "growth of gradients measured in the wrong order of time",
            "left = range(len(spikes), 0, -1)",
            "left = range(1, len(spikes) + 1)",
        ),
        (
            "the trainer's stage not put back after a validation",
            "        trainer.state.stage = stage\n",
            "        trainer.validating = False\n",
        ),
    ],
}
# Chosen later: the commits that are kept were measured with the first ones alone.
_LATER_FAULTS: dict[str, list[tuple[str, str, str]]] = {
    "hidden": [
        (
            "spikes of a generation received two steps later",
            "return functional.pad(spikes[:-1], [0, 0, 0, 0, 1, 0])",
            "return functional.pad(spikes[:-2], [0, 0, 0, 0, 2, 0])",
        ),
        (
            "boundary at half the difference of two samples, not half-way",
            "middle = (weight * (here + there)).sum(1) / 2",
            "middle = (weight * (here - there)).sum(1) / 2",
        ),
        (
            "weights from latches placed on the first neurons",
            "before=functional.pad(before, [skipped, 0])",
            "before=functional.pad(before, [0, skipped])",
        ),
        (
            "recurrent bias set to zero after it got the tonic current",
            "((self.recurrent_bias, torch.zeros_like(tonic)), (self.tonic, tonic))",
            "((self.tonic, tonic), (self.recurrent_bias, torch.zeros_like(tonic)))",
        ),
        (
            "statistics of a norm from the last batch alone",
            "count, total, square = torch.stack(parts).sum(0)",
            "count, total, square = parts[-1]",
        ),
        (
            "mean that a norm takes off not in its bias",
            "mean if chosen.bias is None else mean + chosen.bias",
            "mean if chosen.bias is None else chosen.bias",
        ),
        (
            "steps of the traces in another order than their samples",
            "steps.to(index.device).repeat(len(self.inputs))",
            "steps.to(index.device).repeat_interleave(len(self.inputs))",
        ),
        (
            "excess current taken from the bias without the gain",
            "values[place] - gain * along(self.excess",
            "values[place] - along(self.excess",
        ),
        ("a recorded input of a layer not copied", "if binary else value.clone())", "if binary else value)"),
        (
            "convolutions that hardly spike stay as they are",
            "if _LOWEST <= DrivenLayer(few, layer)",
            "if 0.0 <= DrivenLayer(few, layer)",
        ),
    ],
    "stages": [
        (
            "several labels decided at a score of 0.5, not of 0",
            "_of_labels(scores > 0, targets > 0)",
            "_of_labels(scores > 0.5, targets > 0)",
        ),
        (
            "centre of a score interval shifted twice as far",
            "(share + _QUANTILE**2 / (2 * samples))",
            "(share + _QUANTILE**2 / samples)",
        ),
        (
            "the program with the larger held-out loss taken",
            "tried.sort(key=lambda each: finite_or_highest(each[0]), reverse=True)",
            "tried.sort(key=lambda each: finite_or_highest(each[0]))",
        ),
        (
            "target counts rounded to the nearest number, not down",
            "_clipped(int(steps * loss.correct_rate), int(steps * loss.incorrect_rate))",
            "_clipped(round(steps * loss.correct_rate), round(steps * loss.incorrect_rate))",
        ),
        (
            "spikes of ranks with shorter batches end too early",
            "padded[longest - len(spikes) :] = spikes",
            "padded[: len(spikes)] = spikes",
        ),
        (
            "a sample with one ignored step left out as a whole",
            "(target != ignored).reshape(len(target), -1).any(1)",
            "(target != ignored).reshape(len(target), -1).all(1)",
        ),
        (
            "largest label taken for the number of classes",
            "spare = labels[1] > 0 and outputs >= 2 * (labels[1] + 1)",
            "spare = labels[1] > 0 and outputs >= 2 * labels[1]",
        ),
        (
            "first padded step of a sequence taken for its last one",
            "torch.arange(steps, device=lengths.device) >= lengths[:, None]",
            "torch.arange(steps, device=lengths.device) > lengths[:, None]",
        ),
        (
            "solved readout handed out without a copy",
            "name: value.clone() for name, value in self.live.solved.items()",
            "name: value for name, value in self.live.solved.items()",
        ),
        (
            "a given strength alone does not name the program",
            "return self.fit_loss == SAME or not isinstance(self.strength, str)",
            "return self.fit_loss == SAME and not isinstance(self.strength, str)",
        ),
    ],
    "training": [
        ("the trainer's limit of validation batches not kept", "most = min(limit, most)", "most = limit"),
        (
            "a shortened step keeps the share that it should lose",
            "parameter.lerp_(before, 1 - self.share)",
            "parameter.lerp_(before, self.share)",
        ),
        (
            "early stopping waits anew only if the trained weights are evaluated",
            "        if watch.improved and watch.held:",
            "        if watch.improved and not watch.held:",
        ),
        ("refits solved as exactly as a start", "tol=max(self.tol, REFIT_TOL)", "tol=min(self.tol, REFIT_TOL)"),
        (
            "a validation after training forgets the run",
            '        if stage == "fit":\n            check_trainer(trainer)',
            '        if stage != "test":\n            check_trainer(trainer)',
        ),
        (
            "evaluated weights leave the network after its guard was closed",
            "                self._watch.trained = None  # the end of a surrounding ``evaluated`` leaves them\n",
            "",
        ),
    ],
    "scan": [
        ("a bias of more axes than a step broadcast over steps", " and all(len(f) <= len(shape) for f in fixed):", ":"),
        ("the same step taken for all", "first.later(step) for step", "first for step"),
        (
            "a state that the loop changed taken for the neuron's own",
            "len(self._left) > 0 and states == self._left",
            "len(self._left) > 0",
        ),
        ("modes that a plan depends on", "if key in left_out or", 'if key in {*left_out, "training"} or'),
        ("momentum of a norm that runs once for all steps", "1 - (1 - momentum) ** (count + 1)", "1 - (1 - momentum) ** count"),
        ("an attribute that changes", "if held.get(name, held) != value", "if name not in held"),
        (
            "gradients of faster steps not compared",
            "(plain.outputs, fast.outputs), (plain.gradients, fast.gradients)",
            "((plain.outputs, fast.outputs),)",
        ),
        (
            "the first steps taken for the last ones",
            "slice(steps.start, steps.stop)), {}, value)",
            "slice(0, steps.stop - steps.start)), {}, value)",
        ),
        ("a step that is counted from the last axis", "-1 - kept if Ellipsis in before else kept", "kept"),
        ("a convolution with other bits", "return torch.equal(usual, last)", "return True"),
        (
            "hooks of the user",
            '_HOOKS = ("_forward_hooks", ',
            "_HOOKS = (",
        ),
    ],
}
FIRST = [Fault(room, *texts) for room, faults in _FAULTS.items() for texts in faults]
FAULTS = [*FIRST, *(Fault(room, *texts) for room, faults in _LATER_FAULTS.items() for texts in faults)]
