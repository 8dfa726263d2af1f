"""Random scripts: a net, its decoder and its loss, and whether a report's accuracy is that of the script's own test."""

import copy
import math
import random
import time
import warnings

import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin import ReadoutWarning, ReconstructionError, convex_init_

from .cases import seeded_case
from .nets import WAYS, build_net, forward_of, make_data

SIGNALS = {"spikes": "spikes", "membrane": "membranes", "linear": "membranes"}
DECODERS = {name: WAYS[name] for name in ("sum", "mean", "last", "max")} | {
    "window": lambda values: values[-2:].sum(0),
    "weighted": lambda values: torch.einsum("t,tbc->bc", torch.arange(1, len(values) + 1).to(values), values),
}
OPTIONS = {  # values of readout= and what they read, by signal
    "spikes": {"spike_count": WAYS["sum"], "spike_rate": WAYS["mean"], "first_spike": lambda spikes: -_first(spikes)},
    "membranes": {f"membrane_{name}": WAYS[name] for name in ("mean", "sum", "last", "max")},
}
LOSSES = {  # of scores and class indices
    "CrossEntropyLoss": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "MultiMarginLoss": nn.MultiMarginLoss(p=2),
    "NLLLoss": lambda scores, labels: functional.nll_loss(scores.log_softmax(1), labels),
    "MSELoss": lambda scores, labels: functional.mse_loss(scores, functional.one_hot(labels, scores.shape[1]).to(scores)),
    "BCEWithLogitsLoss": lambda scores, labels: functional.binary_cross_entropy_with_logits(
        scores, functional.one_hot(labels, scores.shape[1]).to(scores)
    ),
}
OVER_TIME = {  # of values over time, with the decoder of a test
    "spikes": ((SF.ce_rate_loss, "sum"), (SF.ce_count_loss, "sum"), (SF.mse_count_loss, "sum")),
    "membranes": (
        *((SF.ce_rate_loss, "mean"), (SF.ce_count_loss, "sum")),
        *((SF.ce_max_membrane_loss, "max"), (SF.mse_membrane_loss, "mean")),
    ),
}


def _first(spikes):
    """The step of the first spike; without one the last step, as in snnTorch."""
    return torch.where(spikes.sum(0) > 0, spikes.argmax(0), len(spikes) - 1).to(spikes)


def seeded_script(seed):
    """Return a case, the options of its line and the function from what the net returns to scores [B, C]."""
    case, choose = seeded_case(seed), random.Random(f"script {seed}").choice
    case.fault.kind, case.data.oddity = "", ""
    case.data.samples = max(case.data.samples, 24)
    signal = choose(("spikes", "membranes")) if case.net.output == "pair" else SIGNALS[case.net.output]
    options = {name: value for name, value in case.options.items() if name not in ("loss", "readout")}
    told = choose(("step", "forward", "readout", "loss"))
    told_by_test = told == "step" and case.net.output == "pair"  # of one output none takes a largest value
    single = told in ("step", "forward") and not told_by_test and case.data.classes == 2 and choose((True, False))
    name = choose(list({"readout": OPTIONS[signal]}.get(told, DECODERS)))
    decode, loss = {**DECODERS, **OPTIONS[signal]}[name], choose(list(LOSSES))
    if told == "loss":
        make, name = choose(OVER_TIME[signal])
        population = case.net.each > 1 and make in (SF.ce_count_loss, SF.mse_count_loss)
        options["loss"] = make(population_code=True, num_classes=case.data.classes) if population else make()
        decode = DECODERS[name]
    case.net.each = case.net.each if told == "loss" and population else 1
    case.net.reduce = "stack" if told in ("readout", "loss") else case.net.reduce
    # A single output's spikes decide at half of what they add up to at most.
    middle = float(decode(torch.ones(case.data.steps, 1, 1))) / 2 if single and signal == "spikes" else 0.0
    case.script = told, signal, name, "single" if single else loss

    def run(net, inputs):
        returned = forward_of(case)(net, inputs)
        return returned[signal == "membranes"] if isinstance(returned, tuple) else returned

    def scores_of(returned):
        scores = decode(returned) if returned.dim() == 3 else returned
        if case.net.each > 1:
            scores = scores.unflatten(1, (case.data.classes, -1)).sum(2)
        return scores[:, 0] - middle if single else scores

    if told == "step":
        of = LOSSES[loss] if not single else lambda s, y: functional.binary_cross_entropy_with_logits(s, y.to(s))
        options["step"] = lambda net, batch: of(scores_of(run(net, batch[0])), batch[1])
        options |= {} if single else {"test": lambda net, batch: (scores_of(run(net, batch[0])).argmax(1) == batch[1]).sum()}
    elif told == "forward":
        options["forward"] = lambda net, inputs: scores_of(run(net, inputs))
        options["loss"] = "logistic" if single else choose(("cross_entropy", "squared_hinge", "squared", nn.CrossEntropyLoss()))
    else:
        options["forward"] = run
        readout = name.replace("membrane", "linear") if case.net.output == "linear" else name
        options |= {"readout": readout, "loss": "cross_entropy"} if told == "readout" else {}
    return case, options, lambda net, inputs: scores_of(run(net, inputs)), single


def check_report(seed):
    """Run a script's line; return its ending, what is wrong with its report, and its seconds."""
    began, (case, options, own, single) = time.perf_counter(), seeded_script(seed)
    built = copy.deepcopy(case)
    built.data.classes = 1 if single else case.data.classes
    net, (inputs, labels) = build_net(built), make_data(case)
    size = case.data.batch
    loader, violation = list(zip(inputs.split(size), labels.split(size), strict=True)), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadoutWarning)
            report = convex_init_(net, loader, progress=False, write="always", **options)
    except ReconstructionError as error:
        words = " ".join(word for word in error.found.split() if word.isalpha())
        return f"refused: {type(error).__name__}: {words[:60]}", None, time.perf_counter() - began
    count = options.get("max_samples") or len(labels)
    with torch.no_grad():  # batches as the line saw them: rounding of others may move a spike
        scores = torch.cat([own(copy.deepcopy(net).eval(), part) for part, _ in loader]).double()
    scores = torch.stack([-scores, scores], 1) if single else scores
    gaps = scores.topk(2, 1).values.diff(dim=1)[:, 0].abs()  # equal ones are decided by the first class
    unclear = (gaps > 0) & (gaps < 1e-4 * (1e-3 + scores.abs().amax()))
    right = (scores.argmax(1) == labels)[:count]
    written = report.accuracy_written
    if math.isnan(written):
        return "no accuracy", None, time.perf_counter() - began
    if abs(float(right.double().sum()) - written * count) > int(unclear[:count].sum()) + 1e-6:
        found = f"{case.script}: the report says {written:.3f}, the test {float(right.double().mean()):.3f}"
        violation = f"{found}, {report.readout.decided_by}\n{case!r}"
    return "written", violation, time.perf_counter() - began
