import contextlib
import copy
import os
import random
import signal
import threading

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch.functional import probe
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks.calls.forward import over_time
from snn_recon_plugin.networks.calls.record import Taps, tapped
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import (
    full_precision,
    keep_generators,
    quiet,
    run_all,
    run_eagerly,
    run_past_interrupts,
    run_quietly,
    seeded,
    unwrap,
)
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.write import Transaction, commit

from ...faults import FaultError, LineFault
from ...helpers import assert_as_before, snapshot
from ..nets import Dense, sequential
from ..reading import read, unwritten


def disturb(net):
    draw()
    for module in net.modules():
        if hasattr(module, "mem"):
            module.mem = torch.rand(5, 5)
            module.reset = torch.rand(2)
    net.visits = [1, 2, 3]


def draw():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


@pytest.mark.parametrize("seed", [7, 2**40])
def test_inside_and_after_the_block(seed):
    net, draws = Dense(), []
    before = unwritten(net)
    for _ in range(2):
        with quiet(net, seed=seed):
            assert not any(module.training for module in net.modules())
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            draws.append(draw())
            disturb(net)
    assert draws[0] == draws[1]
    assert unwritten(net) == before


def make_loader(kind):
    data, generator = TensorDataset(torch.arange(12)), torch.Generator().manual_seed(5)
    if kind == "loader":
        return DataLoader(data, 3, shuffle=True, generator=generator)
    sampler = RandomSampler(data, generator=generator)
    if kind == "sampler":
        return DataLoader(data, 3, sampler=sampler)
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 3, False))


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch_sampler"])
def test_the_loader_gives_the_same_order_afterwards(kind):
    expected = [batch[0].tolist() for batch in make_loader(kind)]
    loader = make_loader(kind)
    for block in (quiet(Dense(), seed=0, loader=loader), keep_generators(0, loader=loader)):
        with block:
            list(loader)
    assert [batch[0].tolist() for batch in loader] == expected


@pytest.mark.parametrize("started", [True, False])
def test_generators_of_accelerators(monkeypatch, started):
    """No accelerator needed: states taken at the start are set at the end, and one that has not started stays asleep."""
    log = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["cuda before"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", log.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", log.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: started)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "mps before")
    monkeypatch.setattr(torch.mps, "set_rng_state", log.append)
    monkeypatch.setattr(torch.mps, "manual_seed", log.append)
    with quiet(Dense(), seed=4):
        assert log == ([4, 4] if started else [])
    assert log[2:] == ([["cuda before"], "mps before"] if started else [])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def draw(self):
        return *draw(), torch.rand(3, generator=self.generator).tolist()


def test_batches_are_seeded_alone_with_the_generators_that_the_net_holds():
    def seed_all():
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        return Noisy()

    expected = seed_all().draw()
    net, drawn = seed_all(), []
    for number in (5, 5, 6):
        with seeded(number, net):
            drawn.append(net.draw())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    assert net.draw() == expected
    net, found = Noisy(), []
    for _ in range(2):
        with quiet(net, seed=0):
            found.append([net.draw(), net.draw()])
    assert found[0] == found[1]
    assert net.draw()[3] == Noisy().draw()[3]


def test_a_monitor_of_snntorch_sees_the_user_alone(inputs):
    net = sequential()
    monitor = probe.OutputMonitor(net, instance=snn.Leaky)
    monitor.disable()
    read(net, inputs, forward=over_time(3))
    monitor.enable()
    over_time(3)(net, inputs)
    assert len(monitor["2"]) == 3
    monitor.remove_hooks()


# -- past errors and interrupts ------------------------------------------------------------------------------------------
def failing(error):
    def step():
        raise error

    return step


def test_steps_run_past_errors_and_interrupts():
    done = []
    steps = [failing(ValueError()), lambda: done.append(1), failing(KeyboardInterrupt()), lambda: done.append(2)]
    with pytest.raises(KeyboardInterrupt):
        run_all(steps)
    with pytest.raises(ValueError, match="first"):
        run_all([failing(ValueError("first")), failing(ValueError("second"))])
    assert done == [1, 2]


@pytest.mark.parametrize("own", [True, False], ids=["a handler of the program's own", "Python's handler"])
def test_ctrl_c_waits_for_the_end_of_a_step(own):
    done = []

    def step():
        signal.raise_signal(signal.SIGINT)
        done.append("end")

    # Programs started in the background ignore Ctrl-C: then there would be nothing to hold back.
    handler = (lambda *_: done.append("Ctrl-C")) if own else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    try:
        with contextlib.nullcontext() if own else pytest.raises(KeyboardInterrupt):
            run_past_interrupts(step)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "end" in done
    assert done.count("Ctrl-C") == own  # heard of once


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_step_that_was_cut_short_runs_again_once(error):
    done = []

    def step():
        done.append(len(done))
        if len(done) == 1:
            raise error

    with contextlib.suppress(KeyboardInterrupt):
        run_past_interrupts(step)
    assert done == [0, 1]
    with pytest.raises(ValueError, match="never"):
        run_past_interrupts(failing(ValueError("never")))


def test_other_threads_run_steps_as_well():
    done = []
    thread = threading.Thread(target=run_past_interrupts, args=(lambda: done.append(1),))
    thread.start()
    thread.join()
    assert done == [1]


# -- interrupts at any line -----------------------------------------------------------------------------------------------
CLEANUP = ("quiet.py", "workbench.py", "record.py", "parameters.py", "write.py")


def borrow(net, spoil):
    """All that a run does: other parameters, hooks and a nested guard on a private copy, then writes into the net."""
    bench = private_copy(net)

    def work():
        values = {(bench[0], "bias"): torch.ones(2), (bench[0], "weight"): torch.zeros(2, 2)}
        with tapped(Taps(inputs={bench[0]: lambda value: None})), with_values(values):
            bench(torch.ones(1, 2))
        disturb(bench)
        with quiet(bench, seed=1):
            torch.rand(2)

    def write(transaction):
        transaction.write(net[0], "weight", torch.ones(2, 2))
        if spoil:
            raise ValueError
        return transaction

    run_quietly(bench, work, seed=0)
    return commit(Transaction(net), write)


@pytest.mark.skipif("SLIPCOVER_ENABLED" in os.environ, reason="a probe is outside of the try that its line is in: by make test")
@pytest.mark.parametrize("spoil", [False, True], ids=["a run that ends well", "a run that fails"])
def test_a_fault_at_any_line_of_the_cleanup(spoil):
    net, handler = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()), signal.getsignal(signal.SIGINT)
    before = snapshot(net)
    with LineFault(CLEANUP) as lines, contextlib.suppress(ValueError):
        borrow(copy.deepcopy(net), spoil)
    assert len(lines.first) > 150
    faults = [*((KeyboardInterrupt, line) for line in lines.first.values()), *((FaultError, line) for line in lines.last.values())]
    for error, line in faults:
        transaction = None
        with contextlib.suppress(error, ValueError), LineFault(CLEANUP, line, error) as fault:
            transaction = borrow(net, spoil)
        if transaction is not None:  # a second attempt made up for the error
            transaction.undo()
        assert_as_before(net, before)
        assert signal.getsignal(signal.SIGINT) is handler, fault.where


# -- modes ---------------------------------------------------------------------------------------------------------------
needs_stances = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 can't run them uncompiled")


def test_scripted_modules_are_copied_and_the_users_go_on_training():
    net = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Dropout())), nn.Linear(2, 2))
    with quiet(copied := private_copy(net), seed=0):
        assert not any(module.training for module in copied.modules())
    assert all(module.training for module in net.modules())


@pytest.mark.filterwarnings("ignore")
@needs_stances
def test_compiled_nets_and_parts_run_uncompiled(inputs):
    net, compiling = Dense(), set()
    net.compile(backend="eager")
    assert read(net, inputs)[1].kind == "membrane_mean"
    assert unwrap(torch.compile(net, backend="eager")) is unwrap(net) is net
    net.fc2 = torch.compile(net.fc2, backend="eager")
    net.fc2._orig_mod.register_forward_hook(lambda *_: compiling.add(torch.compiler.is_compiling()))
    with quiet(net, seed=0):
        net(inputs)
    assert compiling == {False}


def test_other_nets_are_left_alone(monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    run_eagerly(Dense())()
    compiled = nn.Sequential(nn.Linear(1, 1))
    compiled[0]._orig_mod = nn.Linear(1, 1)
    with pytest.raises(UnsupportedModuleError, match="a compiled module '0'"):
        run_eagerly(compiled)


def test_tensors_made_in_full_precision_can_be_trained():
    with torch.inference_mode(), full_precision():
        assert not torch.ones(1).is_inference()
