import time

import pytest
from tqdm.auto import tqdm

from snn_recon_plugin.stages.run import StageTimer


def test_seconds_by_stage_in_order():
    stages = StageTimer(show=False)
    for name in ("first", "second", "first"):
        with stages.stage(name):
            time.sleep(0.02)
    assert list(stages.seconds) == ["first", "second"]
    assert stages.seconds["first"] >= 0.04
    assert 0.02 <= stages.seconds["second"] < stages.seconds["first"]


def test_each_stage_is_logged(caplog):
    stages = StageTimer(show=False)
    with caplog.at_level("DEBUG", "snn_recon_plugin"), stages.stage("capture"):
        pass
    assert caplog.messages == ["capture: 0.0 s"]


def test_a_bar_that_moves_and_is_closed_where_its_stage_fails(capsys, monkeypatch):
    stages, bars = StageTimer(show=True), []
    monkeypatch.setattr("snn_recon_plugin.stages.run.tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])

    def fail():
        with stages.stage("capture", 30, "samples"):
            stages.advance_to(10)
            stages.advance_to(25)
            assert (bars[0].n, bars[0].total) == (25, 30)
            stages.note("strength 1e-03")
            assert bars[0].n == 26
            bars[0].refresh()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stages.seconds["capture"] > 0
    assert bars[0].disable  # tqdm's mark of a closed bar
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("capture", "strength 1e-03", "/30"))


@pytest.mark.parametrize("show", [False, None])
def test_no_bar_where_none_is_wanted_or_the_output_is_no_terminal(capsys, show):
    stages = StageTimer(show=show)
    with stages.stage("capture", 30):
        stages.advance_to(10)
        stages.note("text")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
