"""An error or an interrupt in any stage leaves the network as before."""

import copy
import itertools

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError, WriteError
from snn_recon_plugin.networks import Transaction
from snn_recon_plugin.stages.fit import solve_best

from ..helpers import Loop, batches, conv_net, divided, loop_net, refused, replaced, sequential_net, spoiled, values

pytestmark = pytest.mark.usefixtures("one_rate")
BOTH = pytest.mark.parametrize("hidden", ["keep", "rescale"])


def raising_after(number, error):
    def loader():
        yield from batches(400)[:number]
        raise error

    return loader()


@BOTH
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("error", [OSError("disk gone"), KeyboardInterrupt(), StopIteration()])
def test_a_loader_that_raises(hidden, number, error):
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    caught = refused(loop_net(), raising_after(number, error), expected, hidden=hidden)
    assert caught is error or caught.__cause__ is error


@pytest.mark.parametrize("place", ["fit.choose_strength", "collect.capture", "build.rebuild_layer", "task.inspect_network"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_in_any_stage(monkeypatch, place, error):
    def interrupt(*_, **__):
        torch.rand(3)
        raise error

    monkeypatch.setattr(f"snn_recon_plugin.stages.{place}", interrupt)
    refused(loop_net(), batches(200), error)


def counting_net(at=None, error=None):
    """Return a net that raises at one of its calls, and the counter of these."""
    calls = itertools.count(1)

    class Counting(Loop):
        def forward(self, x):
            if next(calls) == at:
                raise error
            return super().forward(x)

    torch.manual_seed(0)
    return Counting(), calls


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt, KeyboardInterrupt), (ZeroDivisionError, NetworkError)])
def test_an_interrupt_while_hidden_layers_are_rebuilt(share, error, expected):
    options = {"hidden": "reconstruct", "strength": 1e-3}
    net, calls = counting_net()
    convex_init_(net, batches(200), **options)
    net, _ = counting_net(round(share * next(calls)), error)
    refused(net, batches(200), expected, **options)


def test_no_layer_holds_a_batch_during_the_solve(monkeypatch):
    net, held = loop_net(), []

    def solve(*arguments):
        held.append("forward" in vars(net.fc1))  # a fast pass, with the last input and output
        return solve_best(*arguments)

    monkeypatch.setattr("snn_recon_plugin.stages.initialize.solve_best", solve)
    convex_init_(net, batches(200), hidden="keep")
    assert held == [False]


def test_an_interrupt_in_the_middle_of_the_solve(monkeypatch):
    calls = []

    def interrupted(problem, **options):
        calls.append(problem.strength)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(problem, **options)

    from snn_recon_plugin.convex import solve

    monkeypatch.setattr("snn_recon_plugin.convex.path.solve", interrupted)
    refused(loop_net(), batches(200), KeyboardInterrupt, hidden="keep")
    assert len(calls) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_interrupt_in_the_middle_of_the_write(monkeypatch, number, error):
    """Rescaled weight, rescaled bias, readout weight, readout bias: after each of the four writes."""
    write, written = Transaction.write, []

    def interrupted(self, module, name, value):
        write(self, module, name, value)
        written.append(name)
        if len(written) == number:
            raise error

    net = divided(loop_net())
    monkeypatch.setattr(Transaction, "write", interrupted)
    refused(net, batches(200), error, hidden="rescale", strength=1e-3)
    assert written == ["weight", "bias", "weight", "bias"][:number]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_written_network_is_compared(monkeypatch, error):
    net = divided(loop_net())
    seen = []

    def interrupted(*_, **__):
        seen.append(values(net))
        raise error

    monkeypatch.setattr("snn_recon_plugin.stages.place.verify", interrupted)
    before = values(net)
    refused(net, batches(200), error, hidden="rescale", strength=1e-3)
    written = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    assert all(seen[0][name] == before[name] for name in written)  # the comparison is of the private copy


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_the_report_is_made(monkeypatch, error):
    """There is no report to undo with, so nothing may stay written."""

    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr("snn_recon_plugin.stages.initialize.make_report", interrupted)
    refused(loop_net(), batches(200), error, hidden="keep", strength=1e-3)


def test_scores_that_are_not_the_programs(monkeypatch):
    """The comparison after the write is a real one: a bias that is slightly wrong is found, and rolled back."""
    write = Transaction.write

    def wrong(self, module, name, value):
        write(self, module, name, value)
        if name == "bias":
            # Behind the back of the comparison, which reads the parameters that were written.
            module.register_forward_hook(lambda _module, _args, output: output + 0.01)

    monkeypatch.setattr(Transaction, "write", wrong)
    net = loop_net()
    before = values(net)
    with pytest.raises(WriteError, match=r"differ from those promised by up to 0\.0"):
        convex_init_(net, batches(200), hidden="keep", strength=1e-3)
    assert values(net) == before


@pytest.mark.parametrize("factory", [loop_net, sequential_net, conv_net])
def test_after_an_error_the_same_call_works(factory):
    net = factory()
    options = {"forward": over_time(8)} if factory is sequential_net else {}
    with pytest.raises(DataError):
        convex_init_(net, replaced(1, spoiled(float("nan"))), **options)
    twin = copy.deepcopy(net)
    options |= {"hidden": "keep" if factory is not conv_net else "rescale", "strength": 1e-2}
    reports = [convex_init_(each, batches(100), **options) for each in (net, twin)]
    assert values(net) == values(twin)
    assert reports[0].certificate == reports[1].certificate


def test_an_interrupt_at_the_end_of_the_write(monkeypatch):
    """All is written by then, but the user holds no report to undo it with."""
    net = loop_net()
    before = values(net)

    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convex_init_(net, batches(300), hidden="keep", strength=1e-3)
    assert values(net) == before


def test_a_forward_that_runs_another_net_is_refused():
    net = loop_net()
    refused(net, batches(300), NetworkError, "runs another net than the one passed", forward=lambda _, x: net(x))


def test_a_net_that_refuses_to_be_copied():
    class Uncopyable(nn.Module):
        def __deepcopy__(self, memo):
            raise ValueError("one of a kind")

    net = loop_net()
    net.part = Uncopyable()
    refused(net, batches(300), NetworkError, "can't be copied (ValueError: one of a kind)")
