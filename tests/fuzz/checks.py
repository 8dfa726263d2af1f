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
from .nets import WAYS, Loader, build_net, decoded, forward_of, make_data

INJECTED = (FaultError, KeyboardInterrupt)
_NETWORKS = ("write", "calls/record", "private/parameters", "private/quiet", "private/workbench", "libraries/snntorch")
SAFETY = (*(f"networks/{name}.py" for name in _NETWORKS), "scan/passes.py", "hidden/neuron.py", "stages/initialize.py")


class ViolationError(AssertionError):
    """Something that must never happen."""


def check(case, files=SAFETY):
    """Run a case, with faults of the kind "line" in ``files``, and raise a ViolationError unless all holds that must.

    Return how it ended: "written", "refused: " and the error's class and first words, or "fault".
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
    if report is not None and report.kept_old:
        _same(before, snapshot(net), "after old weights were kept")
        report, error = _run(case, net, write="always")
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


def _run(case, net, **given):
    """The report and the error of a call, one of which is None."""
    fuse = next((module.fuse for module in net.modules() if hasattr(module, "fuse")), None)
    if fuse is not None:  # how many calls there are is not known, so most faults come early
        fuse.done, fuse.last = 0, 1 + int(400**case.fault.place)
        fuse.error = KeyboardInterrupt if case.fault.interrupt else FaultError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadoutWarning)
            return convex_init_(net, Loader(case), forward=forward_of(case), progress=False, **case.options, **given), None
    except BaseException as error:
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        return None, error
    finally:
        if fuse is not None:
            fuse.last = None


def _after(case, net, before, report, error):
    if error is not None:
        allowed = ReconstructionError if case.fault.kind in ("", "line") else (ReconstructionError, *INJECTED)
        _require(isinstance(error, allowed), f"a {type(error).__name__}: {error}", error)
        _same(before, snapshot(net), f"after {type(error).__name__}: {error}")
        if isinstance(error, ReconstructionError):
            _require(all(part.strip() for part in (error.found, error.needed, error.fix)), f"an incomplete message: {error}")
            words = " ".join(word for word in error.found.split() if word.isalpha())  # without names and numbers
            return f"refused: {type(error).__name__}: {words[:60]}"
        return "fault"
    written = _written(case, net, report)
    _same(before, snapshot(net), "after the write", written)
    values = [bits(parameter) for parameter in net.parameters()]
    looked_at = copy.deepcopy(net).eval()
    _check_accuracy(case, looked_at, report)
    if report.exactness.label == "exact":
        _check_certificate(case, looked_at, report)
    if case.twice:
        other = build_net(case)
        again, error = _run(case, other, write="always")
        _require(again is not None, f"the same call again ended in {error!r}", error)
        _require(values == [bits(parameter) for parameter in other.parameters()], "other bits with the same seed")
    report.undo()
    _same(before, snapshot(net), "after undo")
    _require(report.parameters == [], "parameters in a report that was undone")
    return "written"


def _require(holds, what, cause=None):
    if not holds:
        raise ViolationError(what) from cause


def _written(case, net, report):
    """Names of the parameters that the report lists, none of which may be frozen, and of buffers written with hidden rows."""
    _require(all(parameter.requires_grad for parameter in report.parameters), "a frozen parameter was written")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    listed = [names.get(id(parameter)) for parameter in report.parameters]
    _require(listed and None not in listed, f"a report that lists {listed}")
    buffers = dict(net.named_buffers()) if case.options.get("hidden") == "reconstruct" else ()
    return [*listed, *(name for name in buffers if name.rpartition(".")[2] in ("alpha", "beta", "threshold"))]


def _same(before, now, when, written=()):
    """Compare snapshots; of the parameters and buffers in ``written`` the values may differ, nothing else."""

    def without_values(parts):
        return {name: (part[0], None, *part[2:]) if name in written else part for name, part in parts.items()}

    for key in before:
        value, found = before[key], now[key]
        if key in ("parameters", "buffers"):
            value, found = without_values(value), without_values(found)
        if found != value:
            parts = [name for name in value if found.get(name) != value[name]] if isinstance(value, dict) else ""
            raise ViolationError(f"{key} {parts} changed {when}")


# -- what the report says, by hand ------------------------------------------------------------------------------------------
def _check_accuracy(case, net, report):
    """The accuracy of the written net, as a user computes it on the same batches; another size may round a spike away."""
    inputs, labels = _used(case)
    with torch.no_grad():
        parts = [decoded(case, forward_of(case)(net, part), report.readout.kind) for part in inputs.split(case.data.batch)]
    scores = None if parts[0] is None else torch.cat(parts)
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
    if report.readout.kind.endswith("per_step") or case.net.each > 1:
        return
    filters = _filters(case, report)
    if filters is None:
        return
    module, (inputs, labels) = net.get_submodule(report.readout.name), _used(case)
    features = np.einsum("t,tnp->np", filters, _spikes(case, net, module, inputs).numpy())
    weight, has_bias = module.weight.detach().double().numpy() / exactness.weight_scale, module.bias is not None
    own = module.bias.detach().double().numpy() if has_bias else exactness.bias_shift + np.zeros(len(weight))
    bias = (own - exactness.bias_shift) / exactness.weight_scale
    made = SimpleNamespace(
        matrix=torch.from_numpy(features),
        bias_column=torch.full((len(features), 1), filters.sum(), dtype=torch.float64),
        row_weights=torch.full((len(features),), 1 / len(features), dtype=torch.float64),
        has_bias=has_bias,
    )
    loss, penalty = SimpleNamespace(name=report.program.loss), SimpleNamespace(name=report.program.penalty)
    problem = SimpleNamespace(features=made, strength=report.program.strength, loss=loss, penalty=penalty, num_outputs=len(weight))
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


def _used(case):
    return [part[: case.options.get("max_samples")] for part in make_data(case)]


def _spikes(case, net, module, inputs):
    """The readout's input, (T, n, P), in the loader's batches, as another size may round a spike away."""
    parts = []
    for part in inputs.split(case.data.batch):
        steps = []
        handle = module.register_forward_pre_hook(lambda _, args, steps=steps: steps.append(args[0].detach().double()))
        with torch.no_grad():
            forward_of(case)(net, part)
        handle.remove()
        parts.append(steps[0] if steps[0].dim() == 3 else torch.stack(steps))  # all steps in one call, or one in each
    return torch.cat(parts, 1)


def _filters(case, report):
    """Weight of a spike at each step in the score, from the output's answer to a unit current; None if outputs differ."""
    steps, last = case.data.steps, report.readout.kind.rsplit("_", 1)[-1]
    if case.net.output == "linear":
        answer = [1.0] + [0.0] * (steps - 1)
    elif case.net.library == "norse":
        answer = _norse_answer(steps)
    elif case.net.library == "spikingjelly":
        answer = [0.5 ** (step + 1) for step in range(steps)]
    elif case.net.beta == "scalar":
        answer = [0.8**step for step in range(steps)]
    else:
        return None
    answers = torch.tensor([[0.0] * spike + answer[: steps - spike] for spike in range(steps)], dtype=torch.float64)
    how = case.net.reduce if case.net.loop == "inside" and case.net.reduce != "stack" else last
    return WAYS[how](answers.T).numpy() if how in ("mean", "sum", "last") else None


def _norse_answer(steps):
    """Membranes of Norse's leaky integrator: read after their update, after which the current decays."""
    voltage, current, membranes = 0.0, 1.0, []
    for _ in range(steps):
        voltage += 1e-3 * 100.0 * (current - voltage)
        current -= 1e-3 * 200.0 * current
        membranes.append(voltage)
    return membranes


def timed(case, files=SAFETY):
    began = time.perf_counter()
    try:
        ending, violation = check(case, files), None
    except ViolationError as error:
        ending, violation = "violation", str(error)
    return ending, violation, time.perf_counter() - began
