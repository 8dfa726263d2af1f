"""The list of planted faults fits the package as it is."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
# Places of a room beside the folder of its name.
PLACES = {
    "hidden": ("networks",),
    "stages": ("report", "options.py", "text_table.py"),
    "training": ("callback.py", "options.py"),
    "steps": ("networks",),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_one_place_and_compiles(fault, tmp_path):
    path = fault.find(ROOT)
    assert path.relative_to(ROOT).parts[1] in (fault.room, *PLACES.get(fault.room, ()))
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    fault.plant(copy)
    planted = copy.read_text(encoding="utf-8")
    assert planted != path.read_text(encoding="utf-8")
    compile(planted, path, "exec")


def test_every_room_has_eight_faults_at_least():
    assert min(Counter(fault.room for fault in FAULTS).values()) >= 8
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(("text", "found"), [("no such line", "not found"), ("import annotations", r"found \d+ times")])
def test_a_fault_that_no_longer_applies_is_named(text, found):
    with pytest.raises(LookupError, match=f"a sign: text {found}: mend the list"):
        Fault("convex", "a sign", text, "").find(ROOT)
