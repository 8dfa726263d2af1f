import contextlib
import signal
import threading

import pytest

from snn_recon_plugin.networks.state import insist, run_all


@pytest.fixture
def python_handles_ctrl_c():
    """Programs started in the background ignore Ctrl-C: then there would be nothing to hold back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
        signal.raise_signal(signal.SIGINT)
        done.append("end")

    with pytest.raises(KeyboardInterrupt):
        insist(step)
    assert "end" in done
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_program_that_handles_ctrl_c_itself_hears_of_it_once(python_handles_ctrl_c):
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append("Ctrl-C"))
    insist(lambda: signal.raise_signal(signal.SIGINT))
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
