"""Fuzz cases, drawn from seeds."""

import random
from types import SimpleNamespace

NEURONS = {
    "snntorch": ("plain", "synaptic", "recurrent", "one_to_one"),
    "norse": ("plain", "box", "recurrent"),
    "spikingjelly": ("plain", "integrate", "learned", "container"),
}
ODDITIES = ("nan", "inf", "float_labels", "label_too_large", "negative_label", "one_class", "empty_batch", "wrong_width")
LOSSES = ("cross_entropy", "squared_hinge", "squared", "logistic", "hinge")
SLOW_LOSSES = ("hinge",)  # on a case of this size a path and hidden layers take seconds
FAULTS = ("line",) + 3 * ("loader", "forward")  # a fault at a line costs two runs under a tracer


def seeded_case(seed, fault=None):
    """Return the net, the data, the options and the fault of a seed; ``fault`` is its kind if that is not to be drawn."""
    choose = random.Random(seed).choice

    def rarely(value, default, odds=4):
        return choose((default,) * (odds - 1) + (value,))

    library = choose(("snntorch", "snntorch", "norse", "spikingjelly"))
    classes = choose((3, 2))
    data = SimpleNamespace(
        samples=choose((24, 12, 16, 30)),
        classes=classes,
        steps=choose((3, 1, 2, 4)),
        batch=choose((8, 1, 5, 12, 30)),
        reused=rarely(True, False),
        oddity=rarely(choose(ODDITIES), "", 12),
        features=choose((5, 3, 6)),
        seed=choose(range(1000)),
    )
    layers = tuple(_draw_hidden(choose, rarely, library, number) for number in range(choose((1, 1, 1, 1, 1, 2, 2, 3, 4))))
    if layers[0].synapse != "linear":
        data.features = 9
    net = SimpleNamespace(
        library=library,
        loop=choose(("inside", "over_time")),
        hidden=layers,
        output=choose(("membrane", "membrane", "membrane", "spikes", "linear") + ("pair",) * (library == "snntorch")),
        reduce=choose(("stack", "stack", "mean", "last", "max")),
        beta=rarely(choose(("vector", "learned_vector")), "scalar", 5),
        bias=rarely(False, True),
        each=rarely(2, 1, 10),
        double=library != "snntorch" and choose((False, False, True)),
        used=choose((False, True)),
        seed=choose(range(1000)),
        mode=choose(("s", "m")),  # of SpikingJelly, whose integrators have the second alone
    )
    hidden = choose(("keep",) * 5 + ("reconstruct",) * 2 + ("rescale",))  # keeping costs least
    options = {
        "hidden": hidden,
        "loss": rarely(choose(LOSSES), "cross_entropy", 3),
        "fit_loss": choose(("auto", "same")),
        "penalty": choose(("ridge", "ridge", "group_l1", "l1")),
        "strength": choose((0.1, 0.01, 0.1, 0.01, 0.03, "auto")),
        "holdout": choose((0.2, 0.35, 0.5)),
        "seed": choose((0, 3)),
        "tol": choose((1e-6, 1e-3)),
    }
    if options["loss"] in SLOW_LOSSES:
        options |= {"strength": 0.1, "hidden": "keep"}
    if len(layers) > 1 and options["hidden"] == "rescale":
        options |= {"strength": 0.1, "penalty": "ridge", "hidden": "keep" if len(layers) > 2 else "rescale"}
    if options["hidden"] == "reconstruct":
        options |= {
            "witnesses": choose(("auto", "pairs", "relays", "traces", "gaussian")),
            "n_candidates": choose((2.0, 1.0, 9)),
            "heterogeneous": choose((None, True, False)),
        }
    if choose((False,) * 7 + (True,)):
        options["max_samples"] = 15
    if choose((False,) * 7 + (True,)):
        options["readout"] = choose(("membrane_mean", "membrane_last", "membrane_max", "spike_count", "membrane_per_step"))
    kind = fault or rarely(choose(FAULTS), "", 2)
    if kind == "line":  # cleanup is the same after any solve
        options |= {"strength": 0.1, "penalty": "ridge", "tol": 1e-3}
    place = choose(range(1000)) / 1000 if kind else 0.0
    interrupt = fault is not None or not kind or choose((True, False))
    # Something goes wrong at a share of the batches, calls or lines.
    struck = SimpleNamespace(kind=kind, place=place, interrupt=interrupt)
    return SimpleNamespace(net=net, data=data, options=options, fault=struck, twice=rarely(True, False))


def _draw_hidden(choose, rarely, library, number):
    return SimpleNamespace(
        synapse=rarely(choose(("conv1d", "conv2d")), "linear", 4) if number == 0 else "linear",
        neuron=rarely(choose(NEURONS[library]), "plain", 2),
        width=choose((6, 2, 9)),
        beta=rarely(choose(("learned", "vector", "learned_vector")), "scalar", 4),
        bias=rarely(False, True),
        frozen=rarely(True, False, 8),
        weight_norm=rarely(True, False, 12),
    )
