"""Every user net, by its own line: the report shows what the user's own test shows, or the refusal names the reason."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import snntorch as snn

from .catalogue import GROUPS
from .check import as_it_must_be, difference, run_net, verdict
from .data import digits, own_test, total
from .more_catalogue import MORE_GROUPS
from .record import ALIKE, UserNet
from .snntorch_nets import Loop

QUICK = 'hidden="rescale", strength=1e-2, write="always"'  # what is compared does not depend on them
KEPT = 'hidden="keep", strength=1e-2, write="always"'  # quicker, of nets that spike
ENTRIES = {entry.name: entry for nets in GROUPS.values() for entry in nets}
TUTORIALS = (
    pytest.param("tutorial 3: a step of input a step", marks=pytest.mark.slow),
    "tutorial 5: the loop flattens images",
    pytest.param("tutorial 6: convolutions, init_hidden", marks=pytest.mark.slow),
    pytest.param("tutorial 7: convolutions on events", marks=pytest.mark.slow),
    pytest.param("events, another number of steps in each batch", marks=pytest.mark.slow),
    "quickstart: a leak an output, learned",
    "population code, one step",
    pytest.param("population code, 10 steps", marks=pytest.mark.slow),
    pytest.param("MNIST notebook, recurrent cells, NLLLoss", marks=pytest.mark.slow),
)

RESCALED = ("a residual block", "a batch norm behind the readout", "a Huber loss", "labels as floats")
# Of these each differs little from another net of the list.
NEIGHBOURS = {entry.name for group in ("outputs and losses", "below the readout") for entry in MORE_GROUPS[group]}
KEEP = {entry.name for nets in MORE_GROUPS.values() for entry in nets} - {*RESCALED}

pytestmark = pytest.mark.filterwarnings("ignore::snn_recon_plugin.errors.ReadoutWarning")


@pytest.fixture(autouse=True)
def no_other_neurons(monkeypatch):
    """``utils.reset`` resets every neuron of the process, those of other tests too, whatever these did to them."""
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])


# Too few held-out samples to judge a spiking output in halves, which takes three times as long; the tutorials below have enough.
FEW, MORE = (90, 36), (100, 60)


def result_of(entry, train=100, fresh=60, extra=QUICK):
    np.random.seed(0)
    random.seed(0)
    parts = zip(digits(), (train, fresh), strict=True)
    return run_net(entry, *(entry.order(samples.of(slice(0, count))) for samples, count in parts), extra)


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in NEIGHBOURS else name for name in ENTRIES])
def test_the_report_agrees_with_the_own_test_and_nothing_changes_until_the_write(name, state_of, at_the_write):
    entry, before = ENTRIES[name], []

    def build():
        net = entry.build()
        before.append(state_of(net)[0])
        return net

    # Of 100 and 30 samples two passes of a net that draws random numbers differ by more.
    loose = replace(entry, build=build, alike=entry.alike if entry.alike == ALIKE else 0.1)
    result = result_of(loose, *FEW if entry.alike == ALIKE else MORE, extra=KEPT if name in KEEP else QUICK)
    assert as_it_must_be(result), verdict(result)
    assert [net for net, _ in at_the_write[:1]] == (before if "fitted" in result else [])


def new_options(entry):
    """The options that a refused line lacks, as a message has them: other quotes and numbers of steps count as the same."""
    options = re.split(r", (?=[a-z_]+=)", entry.fixed.options)
    return [plain(option) for option in options if option not in entry.options]


def plain(text):
    return re.sub(r"\d+", "N", text.replace('"', "'"))


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.fixed is not None])
def test_what_a_refusal_says_to_do_works(name):
    entry = ENTRIES[name]
    if entry.fixed.build is entry.build:
        fix = plain(result_of(entry)["refused"]["fix"])
        assert [option for option in new_options(entry) if option not in fix] == []
    result = result_of(entry.fixed, *FEW, extra=KEPT if name in KEEP else QUICK)
    assert as_it_must_be(result), verdict(result)


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_line_raises_its_own_accuracy(name):
    result = result_of(ENTRIES[name], 400, 200, "")
    assert as_it_must_be(result), verdict(result)
    after = result["estimate"]["own"]
    assert after > max(0.6, result["before"] + 0.4)
    # The report's estimate is of 80 samples and of a readout fitted without them.
    assert result["estimate"]["report"] == pytest.approx(after, abs=0.1)


# -- the comparison itself ------------------------------------------------------------------------------------------------
def test_another_accuracy_than_the_own_test_does_not_pass():
    result = result_of(UserNet("the class that spikes least", Loop, test=own_test(lambda spikes: -total(spikes), 0)))
    assert difference(result) > 0.3
    assert verdict(result).startswith("!")
    agrees = {**result, "fitted": {"report": 1, "own": 1}, "heldout": {"report": 1, "own": 1}}
    assert as_it_must_be(agrees)
    assert not as_it_must_be({**agrees, "frozen_written": ["fc1.weight"]})


def test_a_refusal_must_hold_its_words():
    entry = ENTRIES["no spiking neuron"]
    assert not as_it_must_be(result_of(replace(entry, refused=("no such word",))))


def test_options_are_added_but_never_twice():
    entry = UserNet("", Loop, options="strength=2")
    assert entry.line("holdout=0.5, strength=1.0") == "convex_init_(net, loader, strength=2, holdout=0.5)"
