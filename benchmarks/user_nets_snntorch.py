"""Dense nets as scripts with snnTorch have them: every neuron, every form of the loop, every way to decide."""

from __future__ import annotations

import snntorch as snn
import torch

from benchmarks.user_nets_common import (
    CLASSES,
    STEPS,
    UserNet,
    as_images,
    as_pixels,
    as_rate_code,
    as_row_steps,
    as_rows,
    by_count,
    by_count_flat,
    by_mean_membrane,
    by_score,
    own_test,
)
from benchmarks.user_nets_dense import (
    HIDDEN,
    AllSteps,
    BatchFirst,
    Counts,
    LogProbabilities,
    Loop,
    Membranes,
    Sequences,
    Steps,
    ThreeLayers,
    by_first_spike,
    by_forward_pass,
    by_largest_membrane,
    by_last_membrane,
    by_script_loop,
    hidden_states,
    leaky,
    run_steps,
)

FLATTENED = "convex_init_(net, loader, forward=lambda net, x: net(x.flatten(1)))"
POPULATION = {"population_code": True, "num_classes": CLASSES}
POPULATION_LOSS = "loss=SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0, population_code=True, num_classes=10)"
COUNT_LOSS = "loss=SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)"

NETS = (
    UserNet("tutorial 3: a step of input a step", Sequences, as_rate_code, own_test(by_count)),
    UserNet("tutorial 5: the loop flattens images", Loop, as_images, own_test(by_count_flat), FLATTENED),
    UserNet(
        "quickstart: a leak an output, learned",
        lambda: Loop(hidden=leaky(), output=snn.Leaky(beta=torch.rand(CLASSES), learn_beta=True)),
        as_images,
        own_test(by_count_flat),
        "convex_init_(net, loader, forward=lambda net, x: net(x.flatten(1)), loss=SF.ce_rate_loss())",
    ),
    UserNet(
        "population code, one step",
        lambda: hidden_states(5 * CLASSES),
        as_images,
        by_forward_pass(1, **POPULATION),
        f"convex_init_(net, loader, forward=over_time(1), {POPULATION_LOSS})",
    ),
    UserNet(
        "population code, 10 steps",
        lambda: hidden_states(5 * CLASSES),
        as_images,
        by_forward_pass(STEPS, **POPULATION),
        f"convex_init_(net, loader, forward=over_time(10), {POPULATION_LOSS})",
    ),
    UserNet(
        "init_hidden, spikes counted",
        hidden_states,
        as_images,
        by_forward_pass(STEPS),
        "convex_init_(net, loader, forward=over_time(10))",
    ),
    UserNet(
        "init_hidden without Flatten",
        lambda: hidden_states()[1:],
        as_images,
        lambda net, loader: by_forward_pass(STEPS)(net, [(data.flatten(1), targets) for data, targets in loader]),
        "convex_init_(net, loader, forward=over_time(10, flatten=True))",
    ),
    UserNet(
        "init_hidden, mse_count_loss",
        hidden_states,
        as_images,
        by_forward_pass(STEPS),
        f"convex_init_(net, loader, forward=over_time(10), {COUNT_LOSS})",
    ),
    UserNet(
        "one step, spikes counted",
        hidden_states,
        as_images,
        by_forward_pass(1),
        "convex_init_(net, loader, forward=over_time(1))",
    ),
    UserNet("one step in forward, spikes and membranes", lambda: Loop(steps=1), as_pixels, own_test(by_count)),
    UserNet(
        "one step, mse_count_loss",
        lambda: Loop(steps=1),
        as_pixels,
        own_test(by_count),
        "convex_init_(net, loader, loss=SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0))",
    ),
    UserNet("StateLeaky, spikes counted", lambda: AllSteps(linear=False), as_row_steps, own_test(by_count)),
    UserNet("LinearLeaky, spikes counted", lambda: AllSteps(linear=True), as_row_steps, own_test(by_count)),
    UserNet(
        "membranes, reset none, mean",
        lambda: Membranes(output=leaky(reset_mechanism="none")),
        as_pixels,
        own_test(by_mean_membrane),
    ),
    UserNet(
        "last membrane of a net that returns both",
        lambda: Loop(output=leaky(reset_mechanism="none")),
        as_pixels,
        own_test(by_last_membrane),
        'convex_init_(net, loader, readout="membrane_last")',
    ),
    UserNet(
        "largest membrane, ce_max_membrane_loss",
        lambda: Loop(output=leaky(reset_mechanism="none")),
        as_pixels,
        own_test(by_largest_membrane),
        "convex_init_(net, loader, loss=SF.ce_max_membrane_loss())",
    ),
    UserNet(
        "membranes that reset to zero, spikes counted",
        lambda: Loop(output=leaky(reset_mechanism="zero")),
        as_pixels,
        own_test(by_count),
    ),
    UserNet(
        "resets without delay",
        lambda: Loop(hidden=leaky(reset_delay=False), output=leaky(reset_delay=False)),
        as_pixels,
        own_test(by_count),
    ),
    UserNet("first spike", Loop, as_pixels, by_first_spike, 'convex_init_(net, loader, readout="first_spike")'),
    UserNet("returns spike counts", Counts, as_pixels, own_test(by_score)),
    UserNet(
        "returns log_softmax, NLLLoss",
        lambda: LogProbabilities(output=leaky(reset_mechanism="none")),
        as_pixels,
        own_test(by_score),
        "convex_init_(net, loader, loss=nn.NLLLoss())",
    ),
    UserNet(
        "states as arguments, the script's loop",
        Steps,
        as_pixels,
        own_test(by_script_loop),
        "convex_init_(net, loader, forward=run_steps)",
        {"run_steps": run_steps},
    ),
    UserNet("three layers, learned leaks and thresholds", ThreeLayers, as_pixels, own_test(by_count)),
    UserNet(
        "a leak a hidden neuron, learned",
        lambda: Loop(hidden=snn.Leaky(beta=torch.rand(HIDDEN), learn_beta=True)),
        as_pixels,
        own_test(by_count),
    ),
    UserNet(
        "a leak a hidden neuron, fixed",
        lambda: Loop(hidden=snn.Leaky(beta=torch.linspace(0.5, 0.95, HIDDEN))),
        as_pixels,
        own_test(by_count),
    ),
    UserNet(
        "a threshold an output, learned",
        lambda: Loop(output=snn.Leaky(beta=0.9, threshold=torch.linspace(0.5, 1.5, CLASSES), learn_threshold=True)),
        as_pixels,
        own_test(by_count),
    ),
    UserNet(
        "Synaptic",
        lambda: Loop(hidden=snn.Synaptic(alpha=0.8, beta=0.9), output=snn.Synaptic(alpha=0.8, beta=0.9)),
        as_pixels,
        own_test(by_count),
    ),
    UserNet(
        "Alpha",
        lambda: Loop(hidden=snn.Alpha(alpha=0.9, beta=0.8), output=snn.Alpha(alpha=0.9, beta=0.8)),
        as_pixels,
        own_test(by_count),
    ),
    UserNet("Lapicque", lambda: Loop(hidden=snn.Lapicque(beta=0.8), output=snn.Lapicque(beta=0.8)), as_pixels, own_test(by_count)),
    UserNet(
        "RLeaky, a row a step",
        lambda: BatchFirst(8, 8, hidden=snn.RLeaky(beta=0.9, linear_features=HIDDEN)),
        as_rows,
        own_test(by_count),
    ),
    UserNet(
        "RLeaky, one weight a neuron",
        lambda: BatchFirst(8, 8, hidden=snn.RLeaky(beta=0.9, all_to_all=False)),
        as_rows,
        own_test(by_count),
    ),
    UserNet(
        "RSynaptic, a row a step",
        lambda: BatchFirst(8, 8, hidden=snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=HIDDEN)),
        as_rows,
        own_test(by_count),
    ),
)
