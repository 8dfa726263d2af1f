"""What must hold of every case, from outside: none of the package's code decides it."""

import contextlib
import copy
import math
import time
import warnings
from types import SimpleNamespace

import numpy as np
import torch

from snn_recon_plugin import ReadoutWarning, ReconstructionError, convex_init_

from ..convex.helpers import SecondOpinion
from ..faults import FaultError, LineFault
from ..helpers import bits, snapshot
from .cases import Case
from .nets import Loader, build_net, decoded, forward_of, make_data

__all__ = ["SAFETY", "ViolationError", "check", "timed"]

INJECTED = (FaultError, KeyboardInterrupt)
SAFETY = (
    "networks/write.py",
    "networks/guard.py",
    "networks/record.py",
    "networks/state.py",
    "networks/parameters.py",
    "networks/fast_passes.py",
    "networks/libraries/snntorch.py",
    "hidden/neuron.py",
    "stages/initialize.py",
)


class ViolationError(AssertionError):
    """Something that must never happen."""


def check(case: Case, files: tuple[str, ...] = SAFETY) -> str:
    """Run a case and check all that must hold.

    Args:
        case: the case.
        files: where faults of the kind "line" strike.

    Returns:
        How it ended: "written", "refused: " and the error's class and first words, or "fault".

    Raises:
        ViolationError: something did not hold; the message says what, then the case.
    """
    try:
        return _checked(case, files)
    except ViolationError as error:
        raise ViolationError(f"{error}\n{case!r}") from error.__cause__


def _checked(case, files):
    net = build_net(case)
    before = snapshot(net)
    with LineFault(files) if case.fault.kind == "line" else contextlib.nullcontext() as lines:
        report, error = _run(case, net)
    ending = _after(case, net, before, report, error)
    if lines is not None:
        number = 1 + int(case.fault.place * lines.seen)
        kind = KeyboardInterrupt if case.fault.interrupt else FaultError
        with LineFault(files, number, kind) as fault:
            report, error = _run(case, net)
        if report is not None:
            report.undo()
        _require(error is None or isinstance(error, (ReconstructionError, kind)), f"{error!r} at {fault.where}", error)
        _same(before, snapshot(net), f"after a {kind.__name__} at {fault.where} (line {number} of {lines.seen})")
    return ending


def _run(case, net):
    """The report and the error of a call, one of which is None."""
    if case.fault.kind == "forward":
        _light(case, net)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadoutWarning)
            return convex_init_(net, Loader(case), forward=forward_of(case), progress=False, **case.options), None
    except BaseException as error:
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        return None, error
    finally:
        if case.fault.kind == "forward":
            _fuse(net).last = None


def _light(case, net):
    """Let the fuse blow at one of the calls; how many there are is not known, so most faults come early."""
    calls = _fuse(net)
    calls.done, calls.last = 0, 1 + int(400**case.fault.place)
    calls.error = KeyboardInterrupt if case.fault.interrupt else FaultError


def _fuse(net):
    return next(module for module in net.modules() if type(module).__name__ == "Fuse").calls


def _after(case, net, before, report, error):
    if error is not None:
        allowed = ReconstructionError if case.fault.kind in ("", "line") else (ReconstructionError, *INJECTED)
        _require(isinstance(error, allowed), f"a {type(error).__name__}: {error}", error)
        _same(before, snapshot(net), f"after {type(error).__name__}: {error}")
        if isinstance(error, ReconstructionError):
            _require(all(part.strip() for part in (error.found, error.needed, error.fix)), f"an incomplete message: {error}")
            return f"refused: {type(error).__name__}: {_words(error.found)}"
        return "fault"
    written = [*_written(net, report), *_moved(case, net)]
    _same(before, snapshot(net), "after the write", written)
    values = [bits(parameter) for parameter in net.parameters()]
    looked_at = copy.deepcopy(net).eval()
    _check_accuracy(case, looked_at, report)
    if report.exactness.label == "exact":
        _check_certificate(case, looked_at, report)
    if case.twice:
        other = build_net(case)
        again, error = _run(case, other)
        _require(again is not None, f"the same call again ended in {error!r}", error)
        _require(values == [bits(parameter) for parameter in other.parameters()], "other bits with the same seed")
    report.undo()
    _same(before, snapshot(net), "after undo")
    _require(report.parameters == [], "parameters in a report that was undone")
    return "written"


def _words(found):
    """The first words of what was found, without names and numbers, to count reasons by."""
    return " ".join(word for word in found.split() if word.isalpha())[:60]


def _require(holds, what, cause=None):
    if not holds:
        raise ViolationError(what) from cause


def _written(net, report):
    """Names of the parameters that the report lists; frozen ones must not be among them."""
    _require(all(parameter.requires_grad for parameter in report.parameters), "a frozen parameter was written")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    listed = [names.get(id(parameter)) for parameter in report.parameters]
    _require(listed and None not in listed, f"a report that lists {listed}")
    return listed


def _moved(case, net):
    """Names of the neurons' buffers that are written with the rows."""
    if case.options.get("hidden") != "reconstruct":
        return []
    return [name for name, _ in net.named_buffers() if name.rpartition(".")[2] in ("alpha", "beta", "threshold")]


def _same(before, now, when, written=()):
    """Compare snapshots; of the parameters and buffers in ``written`` the values may differ, nothing else."""
    for key, value in before.items():
        found = now[key]
        if key in ("parameters", "buffers"):
            value, found = ({name: _known(name, part, written) for name, part in each.items()} for each in (value, found))  # noqa: PLW2901
        if found != value:
            parts = [name for name in value if found.get(name) != value[name]] if isinstance(value, dict) else ""
            raise ViolationError(f"{key} {parts} changed {when}")


def _known(name, part, written):
    return (part[0], None, *part[2:]) if name in written else part


# -- what the report says, by hand ------------------------------------------------------------------------------------------


def _seen(case, net):
    """What the net returns for the samples that were used, and their labels."""
    inputs, labels = make_data(case)
    count = case.options.get("max_samples", len(inputs))
    with torch.no_grad():
        return forward_of(case)(net, inputs[:count]), labels[:count]


def _check_accuracy(case, net, report):
    """The accuracy of the written net, as a user computes it on the same samples."""
    returned, labels = _seen(case, net)
    scores = decoded(case, returned, report.readout_kind)
    if scores is None or case.net.each > 1 or report.loss == "squared" or math.isnan(report.accuracy_written):
        return
    top = scores.double().topk(2, 1).values
    unclear = (top[:, 0] - top[:, 1]).abs() < 1e-4 * (1 + top.abs().amax())  # ties, and rounding in batches of another size
    hits = (scores.argmax(1) == labels).double().sum()
    wrong = abs(float(hits) - report.accuracy_written * len(labels))
    _require(wrong <= int(unclear.sum()) + 1e-6, f"accuracy_written {report.accuracy_written}, by hand {hits / len(labels)}")


def _check_certificate(case, net, report):
    """Primal and dual of the written readout, from a recording of its input by hand."""
    certificate, exactness = report.certificate, report.exactness
    rounding = 1e-9 * (1 + abs(certificate.primal))
    _require(certificate.dual <= certificate.primal + rounding, f"a dual above the primal: {certificate}")
    if report.readout_kind.endswith("per_step") or case.net.each > 1:
        return
    module = net.get_submodule(report.readout)
    filters = _filters(case, net, report, module)
    if filters is None:
        return
    spikes, labels = _spikes(case, net, module)
    features = np.einsum("t,tnp->np", filters, spikes.numpy())
    weight = module.weight.detach().double().numpy() / exactness.weight_scale
    has_bias = module.bias is not None
    bias = np.zeros(len(weight))
    if has_bias:
        bias = (module.bias.detach().double().numpy() - exactness.bias_shift) / exactness.weight_scale
    rows = len(features)
    made = SimpleNamespace(
        matrix=torch.from_numpy(features),
        bias_column=torch.full((rows, 1), filters.sum(), dtype=torch.float64),
        row_weights=torch.full((rows,), 1 / rows, dtype=torch.float64),
        has_bias=has_bias,
    )
    loss, penalty = SimpleNamespace(name=report.fit_loss), SimpleNamespace(name=report.penalty)
    problem = SimpleNamespace(features=made, strength=report.strength, loss=loss, penalty=penalty, num_outputs=len(weight))
    try:
        opinion = SecondOpinion(problem, labels)
    except KeyError:
        return
    primal, zero = opinion.objective(weight, bias), opinion.zero_loss
    tolerance = (1e-5 if not case.net.double else 1e-7) * max(zero, abs(primal))
    _require(abs(primal - certificate.primal) <= tolerance, f"objective {certificate.primal} where it is {primal} by hand")
    _require(certificate.dual <= primal + tolerance, f"dual {certificate.dual} above the objective {primal} by hand")
    if has_bias and np.abs(opinion.slopes(weight, opinion.exact_bias(weight, bias))[1]).max() > 1e-9:
        return  # a loss with kinks has no bias of slope zero, and so no feasible point to take the dual by hand of
    dual = opinion.dual(weight, bias)
    _require(dual <= certificate.primal + tolerance, f"objective {certificate.primal} below the dual {dual} by hand")


def _spikes(case, net, module):
    """The readout's input, (T, n, P), in the loader's batches, as another size may round a spike away; and the labels."""
    inputs, labels = make_data(case)
    count, parts = case.options.get("max_samples", len(inputs)), []
    for part in inputs[:count].split(case.data.batch):
        steps = []
        handle = module.register_forward_pre_hook(lambda _, args, steps=steps: steps.append(args[0].detach().double()))
        with torch.no_grad():
            forward_of(case)(net, part)
        handle.remove()
        parts.append(torch.stack(steps))
    return torch.cat(parts, 1), labels[:count]


def _filters(case, net, report, module):
    """Weight of a spike at each step in the score: the output neuron's answer to a unit current; None if outputs differ."""
    steps, kind = case.data.steps, report.readout_kind
    if case.net.output == "linear":
        answers = torch.eye(steps, dtype=torch.float64)
    elif case.net.library == "norse":
        answers = torch.stack([_norse_answer(step, steps) for step in range(steps)])
    else:
        if case.net.beta != "scalar":
            return None
        powers = [[0.8 ** (t - s) if t >= s else 0.0 for t in range(steps)] for s in range(steps)]
        answers = torch.tensor(powers, dtype=torch.float64)
    how = case.net.reduce if case.net.loop == "inside" and case.net.reduce != "stack" else kind.rsplit("_", 1)[-1]
    ways = {"mean": lambda a: a.mean(1), "sum": lambda a: a.sum(1), "last": lambda a: a[:, -1]}
    return ways[how](answers).numpy() if how in ways else None


def _norse_answer(step, steps):
    """A leaky integrator with Norse's constants, (steps,): the membrane is read after its update, the current decays after it."""
    voltage, current, membranes = 0.0, 0.0, []
    for now in range(steps):
        current += float(now == step)
        voltage += 1e-3 * 100.0 * (current - voltage)
        current -= 1e-3 * 200.0 * current
        membranes.append(voltage)
    return torch.tensor(membranes, dtype=torch.float64)


def timed(case, files=SAFETY):
    """Ending or violation of a case, and its seconds."""
    began = time.perf_counter()
    try:
        ending, violation = check(case, files), None
    except ViolationError as error:
        ending, violation = "violation", str(error)
    return ending, violation, time.perf_counter() - began
