import contextlib
import signal
import threading

import pytest

from snn_recon_plugin.networks.private.state import run_all, run_past_interrupts


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
