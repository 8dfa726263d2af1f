import time

import pytest

from snn_recon_plugin.pipeline.progress import Progress


def test_seconds_by_stage_in_order():
    stages = Progress(show=False)
    for name in ("first", "second", "first"):
        with stages.stage(name):
            time.sleep(0.02)
    assert list(stages.seconds) == ["first", "second"]
    assert stages.seconds["first"] >= 0.04
    assert 0.02 <= stages.seconds["second"] < stages.seconds["first"]


def test_a_stage_that_fails_is_timed_and_its_bar_closed(capsys):
    stages = Progress(show=True)
    bars = []

    def fail():
        with stages.stage("solve", 3):
            bars.append(stages._bar)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stages.seconds["solve"] > 0
    assert bars[0].disable  # tqdm's mark of a closed bar
    assert stages._bar is None
    capsys.readouterr()


def test_a_bar_that_moves(capsys):
    stages = Progress(show=True)
    with stages.stage("capture", 30, "samples"):
        stages.advance_to(10)
        stages.advance_to(25)
        assert (stages._bar.n, stages._bar.total) == (25, 30)
        stages.note("strength 1e-03")
        assert stages._bar.n == 26
        stages._bar.refresh()
    shown = capsys.readouterr().err
    assert "capture" in shown
    assert "strength 1e-03" in shown
    assert "/30" in shown


@pytest.mark.parametrize("show", [False, None])
def test_no_bar_where_none_is_wanted_or_the_output_is_no_terminal(capsys, show):
    stages = Progress(show=show)
    with stages.stage("capture", 30):
        stages.advance_to(10)
        stages.note("text")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
