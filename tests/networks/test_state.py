import contextlib
import signal
import threading
from collections import Counter, deque
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from snn_recon_plugin.networks.state import ModuleState, insist, run_all


class State(NamedTuple):
    v: torch.Tensor
    i: torch.Tensor


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mem", torch.zeros(0), persistent=False)
        self.register_buffer("mean", torch.zeros(2))
        self.plain = torch.arange(3.0)
        self.state = State(torch.zeros(2), torch.ones(2))
        self.record, self.cache, self.seen = [torch.zeros(1)], {"a": torch.zeros(1)}, {1}
        self.recent = deque([1, 2], maxlen=2)
        self.count, self.calls = 0, Counter(a=2)


def change(module):
    module.mem = torch.ones(4)
    module.mean.add_(1)
    module.plain += 5
    module.state.v.fill_(3)
    module.state = State(torch.zeros(1), torch.zeros(1))
    module.record.append(torch.ones(1))
    module.record[0].add_(1)
    module.cache["b"] = 1
    module.seen.add(2)
    module.recent.append(3)
    module.count += 1
    module.calls.update("ab")
    module.fresh = torch.ones(1)
    module.register_buffer("late", torch.ones(1), persistent=False)
    del module.cache["a"]


def test_everything_comes_back_and_parameters_stay():
    module = Stateful()
    objects = {name: id(value) for name, value in (*vars(module).items(), *module._buffers.items())}
    kept = ModuleState([module])
    change(module)
    with torch.no_grad():
        module.weight.fill_(9)
    kept.restore()
    assert {name: id(value) for name, value in (*vars(module).items(), *module._buffers.items())} == objects
    assert torch.equal(module.mean, torch.zeros(2))
    assert torch.equal(module.plain, torch.arange(3.0))
    assert torch.equal(module.state.v, torch.zeros(2))
    assert len(module.record) == 1
    assert torch.equal(module.record[0], torch.zeros(1))
    assert list(module.cache) == ["a"]
    assert module.seen == {1}
    assert list(module.recent) == [1, 2]
    assert module.count == 0
    assert module.calls == Counter(a=2)
    assert list(module.state_dict()) == ["weight", "mean"]
    assert torch.equal(module.weight, torch.full((2,), 9.0))


def test_an_untouched_tensor_is_not_written():
    module = Stateful()
    module.plain = torch.tensor([float("nan"), -0.0])
    version = module.plain._version
    ModuleState([module]).restore()
    assert module.plain._version == version


def test_the_sign_of_zero_comes_back():
    module = Stateful()
    module.plain = torch.tensor([0.0])
    kept = ModuleState([module])
    module.plain.mul_(-1)
    kept.restore()
    assert not torch.signbit(module.plain).any()


def test_a_graph_survives():
    module = Stateful()
    module.plain = module.weight * 2
    kept = ModuleState([module])
    module.plain = torch.zeros(1)
    kept.restore()
    module.plain.sum().backward()
    assert torch.equal(module.weight.grad, torch.full((2,), 2.0))


def test_inference_and_sparse_tensors():
    module = Stateful()
    with torch.inference_mode():
        module.plain = torch.zeros(2)
    module.sparse = torch.eye(2).to_sparse()
    module.meta = torch.zeros(2, device="meta")
    kept = ModuleState([module])
    with torch.inference_mode():
        module.plain.add_(1)
    kept.restore()
    assert torch.equal(module.plain, torch.zeros(2))
    assert torch.equal(module.sparse.to_dense(), torch.eye(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.complex64])
def test_all_kinds_of_numbers(dtype):
    module = Stateful()
    module.plain = torch.zeros(3, dtype=dtype)
    kept = ModuleState([module])
    module.plain.fill_(1)
    kept.restore()
    assert torch.equal(module.plain, torch.zeros(3, dtype=dtype))


def test_arrays_of_numpy_come_back():
    module = Stateful()
    module.counts, module.nested, module.fixed = np.zeros(3), {"a": [np.array([1, 2])]}, np.ones(2)
    module.fixed.flags.writeable = False
    held = module.counts, module.nested["a"][0]
    kept = ModuleState([module])
    module.counts += np.array([1.0, np.nan, 2.0])
    module.nested["a"][0] *= 5
    kept.restore()
    assert (module.counts is held[0], module.nested["a"][0] is held[1]) == (True, True)
    assert module.counts.tolist() == [0, 0, 0]
    assert module.nested["a"][0].tolist() == [1, 2]


def test_hooks_modes_parameter_objects_and_gradients_come_back():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen = []
    module[0].register_forward_hook(lambda *_: seen.append("user"))
    weight, kept = module[0].weight, ModuleState([module])
    module[0].register_forward_hook(lambda *_: seen.append("ours"))
    module[0].register_forward_pre_hook(lambda *_: seen.append("ours"), with_kwargs=True)
    module.eval()
    module[0].bias.requires_grad_(False)
    module[0].weight = nn.Parameter(torch.zeros(2, 2))
    module.add_module("late", nn.ReLU())
    kept.restore()
    module(torch.ones(1, 2))
    assert seen == ["user"]
    assert module.training
    assert module[0].training
    assert module[0].bias.requires_grad
    assert module[0].weight is weight
    assert len(module) == 2


def test_modules_in_a_plain_list():
    holder = nn.Module()
    holder.neurons = [Stateful()]
    kept = ModuleState([holder])
    change(holder.neurons[0])
    kept.restore()
    assert holder.neurons[0].count == 0
    assert torch.equal(holder.neurons[0].state.v, torch.zeros(2))


def test_restoring_goes_on_past_an_error():
    module = Stateful()
    kept = ModuleState([module])
    module.mean.data = torch.ones(1).expand(2)  # can't take its two old values
    module.plain.add_(1)
    with pytest.raises(RuntimeError):
        kept.restore()
    assert torch.equal(module.plain, torch.arange(3.0))


# -- interrupts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def python_handles_ctrl_c():
    """Programs started in the background ignore Ctrl-C: then there would be nothing to hold back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


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


def test_ctrl_c_waits_for_the_end_of_a_step(python_handles_ctrl_c):
    handler, done = signal.getsignal(signal.SIGINT), []

    def step():
        press_ctrl_c()
        done.append("end")

    with pytest.raises(KeyboardInterrupt):
        insist(step)
    assert "end" in done
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_program_that_handles_ctrl_c_itself_hears_of_it_once(python_handles_ctrl_c):
    heard, handler = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: heard.append("Ctrl-C"))
    try:
        insist(press_ctrl_c)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert heard == ["Ctrl-C"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_step_that_was_cut_short_runs_again(error):
    done = []

    def step():
        done.append(len(done))
        if len(done) == 1:
            raise error

    with contextlib.suppress(KeyboardInterrupt):
        insist(step)
    assert done == [0, 1]


def test_a_step_that_fails_twice_raises():
    with pytest.raises(ValueError, match="never"):
        insist(failing(ValueError("never")))


def test_other_threads_run_steps_as_well():
    done = []
    thread = threading.Thread(target=insist, args=(lambda: done.append(1),))
    thread.start()
    thread.join()
    assert done == [1]
