"""An error or an interrupt in any stage leaves the network as before."""

import itertools
import pkgutil

import pytest
import torch

from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.write import Transaction

from ..helpers import batches, loop_net, refused

pytestmark = pytest.mark.usefixtures("one_rate")


@pytest.mark.parametrize(
    ("hidden", "number", "error"),
    [
        ("keep", 0, OSError("disk gone")),
        ("keep", 1, KeyboardInterrupt()),
        ("keep", 3, StopIteration()),
        ("rescale", 0, StopIteration()),
        ("rescale", 1, OSError("disk gone")),
        ("rescale", 3, KeyboardInterrupt()),
    ],
)
def test_a_loader_that_raises(hidden, number, error):
    def loader():
        yield from batches(400, 100)[:number]
        raise error

    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    caught = refused(loop_net(), loader(), expected, hidden=hidden)
    assert caught is error or caught.__cause__ is error


@pytest.mark.parametrize(
    ("place", "number", "drawn", "error"),
    [
        ("stages.task.inspect_network", 1, 3, KeyboardInterrupt),
        ("stages.build.rebuild_layer", 1, 3, MemoryError),
        ("stages.collect.capture", 1, 3, KeyboardInterrupt),
        ("stages.fit.choose_strength", 1, 3, KeyboardInterrupt),
        ("convex.path.solve", 3, 3, MemoryError),
        ("stages.place.decode_batches", 1, 3, KeyboardInterrupt),
        ("stages.initialize.make_report", 1, 0, MemoryError),
        # All is written by then, but the user holds no report to undo it with.
        ("networks.write.Transaction.__exit__", 1, 0, KeyboardInterrupt),
        ("networks.write.Transaction.__exit__", 1, 0, MemoryError),
    ],
)
def test_an_interrupt_in_any_stage(monkeypatch, place, number, drawn, error):
    target = f"snn_recon_plugin.{place}"
    function, calls = pkgutil.resolve_name(target), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == number:
            torch.rand(drawn)
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(target, interrupted)
    refused(loop_net(), batches(60), error)


def test_scores_that_are_not_the_programs(monkeypatch):
    """The comparison after the write is a real one: a bias that is slightly wrong is found, and rolled back."""
    write = Transaction.write

    def wrong(self, module, name, value):
        write(self, module, name, value)
        if name == "bias":
            # Behind the back of the comparison, which reads the parameters that were written.
            module.register_forward_hook(lambda _module, _args, output: output + 0.01)

    monkeypatch.setattr(Transaction, "write", wrong)
    refused(loop_net(), batches(200), WriteError, "differ from those promised by up to 0.0", hidden="keep", strength=1e-3)
