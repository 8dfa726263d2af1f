"""Nets as users write them, each with its own one line and its own test: which work, and what the report says of them.

Each net has other images of scikit-learn's digits.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED, as_it_must_be, difference, run_net
from tests.user_nets.data import digits
from tests.user_nets.record import ALIKE

TRAIN, FRESH = 600, 1197  # images that the line gets, and that no call sees
INTRO = """{nets} nets in the forms that tutorials and public scripts have, written for this table.

- {working} have a readout and must work.
- {either} must work, or be refused for a reason that is named.
- {refused} have no readout, or hide what is needed, and must be refused.

The script runs the line shown on {train} of scikit-learn's digits, others for each net. Then it runs the user's own test, which
uses nothing of this package. {verdict}

- **Before**: the user's own test on the {fresh} images that the line did not get, before the call.
- **Report** and **own test**: the written net on the same {heldout} images, which no fit has seen. A second call reports the
  accuracy on them, before it solves. On the {train} images that the line got, `report.accuracy_written` is compared with the own
  test too.
- **Rebuilt**: the same two figures with `hidden="reconstruct"`.
- **Largest difference** of report and own test: {largest:.2f} points ({who}). It is the largest of all {compared} lines that
  wrote a net, on either set of images. Left out, since two passes of the same net differ: {random}.
- `report.accuracy_after` is an estimate from {estimate} other images, for a readout that was fitted without them. On average it
  differs by {off:+.1f} points from the own test on the {fresh} images. {far} of {compared} differ by more than two standard
  errors."""

Lines = dict[str, dict[str, Any]]  # results of a net: as typed, and with hidden layers rebuilt
Nets = dict[tuple[str, str], Lines]  # by group and net


def cells(bench: Bench) -> Cells:
    """All nets in the table's order, as typed and with hidden layers rebuilt."""
    found = {}
    for number, (group, entry) in enumerate((group, entry) for group, nets in GROUPS.items() for entry in nets):
        for extra in entry.extras:
            name = f"{group} | {entry.name} | {'rebuilt' if extra else 'typed'}"
            found[name] = partial(measure, entry, number, extra)
    return found


def measure(entry: Any, number: int, extra: str) -> dict[str, Any]:
    """Type one net's line on images of its own."""
    return run_net(entry, *(entry.order(part) for part in digits(number)), extra)


def intro(nets: Nets) -> str:
    """What the tables hold, and the figures of all nets together."""
    every = [(group, net, kind, result) for (group, net), lines in nets.items() for kind, result in lines.items()]
    written = [(f"{group} | {net}", net, result) for group, net, _, result in every if "fitted" in result]
    drawn = {net: 100 * difference(result) for _, net, result in written if result["alike"] > ALIKE}
    largest, who = max(((difference(result), name) for name, net, result in written if net not in drawn), key=lambda pair: pair[0])
    wrong = [f"{net} ({kind})" for _, net, kind, result in every if not as_it_must_be(result)]
    must = [lines["typed"]["must"] for lines in nets.values()]
    estimates = [result["estimate"] for *_, result in written]
    return INTRO.format(
        nets=len(nets),
        working=must.count("work"),
        either=must.count("work or be refused"),
        refused=must.count("be refused"),
        train=TRAIN,
        fresh=FRESH,
        heldout=written[0][-1]["heldout"]["samples"],
        estimate=estimates[0]["samples"],
        compared=len(written),
        largest=100 * largest,
        who=who,
        random="; ".join(f"{net} ({off:.2f})" for net, off in drawn.items()),
        off=100 * statistics.fmean(each["report"] - each["own"] for each in estimates),
        far=sum(abs(each["report"] - each["own"]) > 2 * standard_error(each) for each in estimates),
        verdict=f"Not as they must be: {'; '.join(wrong)}." if wrong else "All are as they must be.",
    )


def summary(nets: Nets) -> str:
    """One row a group of nets that must work: how many were written, and the user's own test before and after."""
    must_work = {key: lines["typed"] for key, lines in nets.items() if lines["typed"]["must"] != "be refused"}
    rows = []
    for group in dict.fromkeys(group for group, _ in must_work):
        tried = [result for (other, _), result in must_work.items() if other == group]
        written = [result for result in tried if "fitted" in result]
        before, after = [100 * result["before"] for result in written], [100 * result["heldout"]["own"] for result in written]
        counts = (len(tried), len(written), sum("refused" in result for result in tried))
        accuracies = (f"{value:.1f}" for value in (statistics.median(before), statistics.median(after), min(after)))
        rows.append((group, *map(str, counts), *accuracies))
    medians = ("own test before, median, %", "after, median, %", "after, lowest, %")
    return markdown_table(("nets", "tried", "written", "refused", *medians), rows)


def standard_error(pair: dict[str, Any]) -> float:
    """Of the difference of two accuracies on different samples."""
    variance = pair["own"] * (1 - pair["own"])
    return math.sqrt(variance / pair["samples"] + variance / pair["fresh"])


def works(nets: Nets) -> str:
    """One row a net that must work."""
    rows, last = [], ""
    for (group, net), lines in nets.items():
        typed = lines["typed"]
        if typed["must"] == "be refused":
            continue
        if group != last:
            rows.append((f"**{group}**", *[""] * 7))
            last = group
        rebuilt = pair(lines["rebuilt"]) if "rebuilt" in lines else ("", "")
        before = f"{100 * typed['before']:.1f}" if "fitted" in typed else ""
        rows.append((net, f"`{typed['typed']}`", typed.get("readout", ""), before, *pair(typed), *rebuilt))
    return markdown_table(("net", "typed", "decided by", "before", "report", "own test", "rebuilt: report", "own test"), rows)


def pair(result: dict[str, Any]) -> tuple[str, str]:
    """Return two texts: the accuracies in percent, or why there are none."""
    if "fitted" in result:
        heldout = result["heldout"]
        mark = "" if difference(result) <= result["alike"] else " (differs)"
        return f"{100 * heldout['report']:.1f}", f"{100 * heldout['own']:.1f}{mark}"
    return _inside(f"refused: {result['refused']['found']}" if "refused" in result else f"fails: {result['crashed']}"), ""


def refusals(nets: Nets) -> str:
    """One row a net that must be refused."""
    rows = []
    for (_, net), lines in nets.items():
        result = lines["typed"]
        if result["must"] != "be refused":
            continue
        if "refused" in result:
            refused, missing = result["refused"], result["words_missing"]
            mark = f" (its reason does not name: {', '.join(missing)})" if missing else ""
            texts = (f"{_inside(refused['found'])}{mark}", _inside(refused["fix"]))
        else:
            texts = (f"not refused: {_inside(result.get('crashed', 'written'))}", "")
        rows.append((net, *texts, f"{result['seconds']:.1f}"))
    return markdown_table(("net", "refused, since it found", "what to do", "seconds"), rows)


def _inside(text: str) -> str:
    """Return text that stays inside a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Both tables, and their summary."""
    nets: Nets = {}
    for name, result in store.named().items():
        group, net, line = name.split(" | ")
        nets.setdefault((group, net), {})[line] = result
    machine = machine_line(next(iter(store.named().values()))["machine"])
    text = "\n\n".join([intro(nets), works(nets), refusals(nets), f"Seed {SEED}; {machine}"])
    return {"evidence/user_nets.md": {"user nets": text}, "networks.md": {"user nets summary": summary(nets)}}


STUDY = Study(
    title="nets as users write them, the report beside the user's own test",
    minutes=5,
    cells=cells,
    pages=pages,
    fields=(
        *("typed", "must", "alike", "seconds", "frozen_written", "readout", "exactness", "fitted", "estimate", "heldout", "before"),
        *("layers_kept", "refused", "words_missing", "crashed", "written"),
    ),
    packages=("snntorch", "norse", "lightning", "pytorch-lightning"),
)
