"""Nets as users write them, each with its own one line and its own test: which work, and what the report says of them.

Each net has other images of scikit-learn's digits.  Those that work are run with their script's step as the only option too.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.user_steps import with_step
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED, as_it_must_be, difference, run_net
from tests.user_nets.data import digits
from tests.user_nets.record import ALIKE

TRAIN, FRESH = 600, 1197  # images that the line gets, and that no call sees
PLAIN, REPEATED = "convex_init_(net, loader)", "lines to change"  # the line without options; nets that other groups have
INTRO = """{nets} nets in the forms that tutorials and public scripts have, written for this table.

- {bare} work as they are, with `convex_init_(net, loader)`.
- {option} work with an option, which is mostly the line that the refusal of the plain call says to type.
- {refused} are refused: they have no readout, or something behind it that is no factor and offset.

{again} lines more are refused as they stand and are among the nets above with their option. What a refusal says to do is executed
in the tests: the changed line or net must show the script's own accuracy.

The script runs the line shown on {train} of scikit-learn's digits, others for each net. Then it runs the user's own test, which
uses nothing of this package. {verdict}

- **Before**: the user's own test on the {fresh} images that the line did not get, before the call.
- **Report** and **own test**: the written net on the same {heldout} images, which no fit has seen. A second call reports the
  accuracy on them, before it solves. On the {train} images that the line got, `report.accuracy_written` is compared with the own
  test too.
- **Rebuilt**: the same two figures with `hidden="reconstruct"`.
- **Largest difference** of report and own test: {largest:.2f} points ({who}). It is the largest of all {compared} lines that
  wrote a classifier, on either set of images. Left out, since two passes of the same net differ: {random}. Losses of regressions
  differ by at most {losses:.1g} %.
- `report.accuracy_after` is an estimate from {estimate} other images, for a readout that was fitted without them. On average it
  differs by {off:+.2f} points from the own test on the {fresh} images, with a standard error of {error:.2f} over {different} nets.
  {far} of {compared} differ by more than two standard errors of the estimate."""

BY_STEP = """`convex_init_(net, loader, step=train_step)`: the nets above that work, each with its script's step as the only option.
The step has the script's loop and loss, with cross-entropy of counts where the line names no loss (`benchmarks/user_steps.py`).
Images and comparison are those of the tables below.

- {works} of {nets} nets work by their step: report and own test differ by at most half a point, on both sets of images.
- {either} work bare or by their step; {bare} do bare.
- **Largest difference** of report and own test: {largest:.2f} points. Left out are nets that draw random numbers.
- At the median the own test by step is {off:+.1f} points from that by the line above. {lower} nets are lower by more than 5 points.

{table}"""
Lines = dict[str, dict[str, Any]]  # results of a net: as typed, and with hidden layers rebuilt
Nets = dict[tuple[str, str], Lines]  # by group and net


def cells(bench: Bench) -> Cells:
    """All nets in the table's order: as typed, with hidden layers rebuilt, and by their step."""
    found = {}
    for number, (group, entry) in enumerate((group, entry) for group, nets in GROUPS.items() for entry in nets):
        for extra in entry.extras:
            name = f"{group} | {entry.name} | {'rebuilt' if extra else 'typed'}"
            found[name] = partial(measure, entry, number, extra)
        if entry.must != "be refused" and group != REPEATED:
            found[f"{group} | {entry.name} | step"] = partial(measure, with_step(entry), number, "")
    return found


def measure(entry: Any, number: int, extra: str) -> dict[str, Any]:
    """Type one net's line on images of its own."""
    return run_net(entry, *(entry.order(part) for part in digits(number)), extra)


def intro(nets: Nets) -> str:
    """What the tables hold, and the figures of all nets together."""
    every = [(group, net, kind, result) for (group, net), lines in nets.items() for kind, result in lines.items() if kind != "step"]
    results = [(f"{group} | {net}", net, result) for group, net, _, result in every if "fitted" in result]
    written, regressions = (_of_measure(results, measure) for measure in ("accuracy", "loss"))
    drawn = {net: 100 * difference(result) for _, net, result in written if result["alike"] > ALIKE}
    largest, who = max(((difference(result), name) for name, net, result in written if net not in drawn), key=lambda pair: pair[0])
    wrong = [f"{net} ({kind})" for _, net, kind, result in every if not as_it_must_be(result)]
    typed = [lines["typed"] for (group, _), lines in nets.items() if group != REPEATED]
    worked = [result["typed"] for result in typed if "fitted" in result]
    estimates, different = [result["estimate"] for *_, result in written], len({name for name, *_ in written})
    offs = [100 * (each["report"] - each["own"]) for each in estimates]
    return INTRO.format(
        nets=len(typed),
        bare=worked.count(PLAIN),
        option=len(worked) - worked.count(PLAIN),
        refused=sum("refused" in result for result in typed),
        again=len(nets) - len(typed),
        losses=100 * max((difference(result) for *_, result in regressions), default=0.0),
        train=TRAIN,
        fresh=FRESH,
        heldout=written[0][-1]["heldout"]["samples"],
        estimate=estimates[0]["samples"],
        compared=len(written),
        largest=100 * largest,
        who=who,
        random="; ".join(f"{net} ({off:.2f})" for net, off in drawn.items()),
        off=statistics.fmean(offs),
        different=different,
        error=statistics.stdev(offs) / different**0.5,  # two lines of a net are no two samples
        far=sum(abs(each["report"] - each["own"]) > 2 * standard_error(each) for each in estimates),
        verdict=f"Not as they must be: {'; '.join(wrong)}." if wrong else "All are as they must be.",
    )


def _of_measure(results: list[Any], measure: str) -> list[Any]:
    """Return the results whose own test is an accuracy, or a loss."""
    return [result for result in results if result[-1].get("measure", "accuracy") == measure]


def summary(nets: Nets) -> str:
    """One row a group of nets: how many work as they are, or with an option, and the user's own test before and after."""
    rows = []
    for group in dict.fromkeys(group for group, _ in nets if group != REPEATED):
        tried = [lines["typed"] for (other, _), lines in nets.items() if other == group]
        written = [result for result in tried if "fitted" in result]
        bare = sum(result["typed"] == PLAIN for result in written)
        counts = (len(tried), bare, len(written) - bare, sum("refused" in result for result in tried))
        classifiers = [result for (result,) in _of_measure([(result,) for result in written], "accuracy")]
        accuracies = ("", "", "")
        if classifiers:
            before, after = ([100 * value for value in values] for values in zip(*map(_before_and_after, classifiers), strict=True))
            accuracies = tuple(f"{value:.1f}" for value in (statistics.median(before), statistics.median(after), min(after)))
        rows.append((group, *map(str, counts), *accuracies))
    medians = ("own test before, median, %", "after, median, %", "after, lowest, %")
    return markdown_table(("nets", "tried", "work as they are", "with an option", "refused", *medians), rows)


def headline(nets: Nets) -> str:
    """Return how many nets work as they are, or with an option, and how many are refused."""
    tried = [lines["typed"] for (group, _), lines in nets.items() if group != REPEATED]
    bare = sum("fitted" in result and result["typed"] == PLAIN for result in tried)
    refused = sum("refused" in result for result in tried)
    options = len(tried) - bare - refused
    counts = f"{bare} work as they are, {options} with an option, {refused} are refused"
    return f"Of {len(tried)} nets of tutorials and public scripts {counts}."


def _before_and_after(result: dict[str, Any]) -> tuple[float, float]:
    return result["before"], result["heldout"]["own"]


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
        before = shown(typed, typed["before"]) if "fitted" in typed else ""
        rows.append((net, f"`{typed['typed']}`", typed.get("readout", ""), before, *pair(typed), *rebuilt))
    return markdown_table(("net", "typed", "decided by", "before", "report", "own test", "rebuilt: report", "own test"), rows)


def pair(result: dict[str, Any]) -> tuple[str, str]:
    """Return two texts: the accuracies in percent, or the losses, or why there are none."""
    if "fitted" in result:
        heldout = result["heldout"]
        mark = "" if difference(result) <= result["alike"] else " (differs)"
        return shown(result, heldout["report"]), shown(result, heldout["own"]) + mark
    return _inside(f"refused: {result['refused']['found']}" if "refused" in result else f"fails: {result['crashed']}"), ""


def shown(result: dict[str, Any], value: float) -> str:
    """Return an accuracy in percent, or a loss by its name."""
    return f"loss {value:.2g}" if result.get("measure") == "loss" else f"{100 * value:.1f}"


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


def by_step(nets: Nets) -> str:
    """Return how many nets work by their step, and one row a net that does not."""
    every = {net: lines for (_, net), lines in nets.items() if "step" in lines and "fitted" in lines["typed"]}
    works, bare = (
        {net for net, lines in every.items() if as_it_must_be(lines["step"])},
        {net for net, lines in every.items() if lines["typed"]["typed"] == PLAIN},
    )
    compared = [lines["step"] for net, lines in every.items() if net in works and lines["step"]["alike"] == ALIKE]
    classifiers = [lines for net, lines in every.items() if net in works and lines["step"]["measure"] == "accuracy"]
    gains = [100 * (lines["step"]["heldout"]["own"] - lines["typed"]["heldout"]["own"]) for lines in classifiers]
    rows = [
        (net, f"`{lines['typed']['typed']}`", " / ".join(filter(None, pair(lines["step"]))))
        for net, lines in every.items()
        if net not in works
    ]
    head = ("net that does not work by its step", "works as", "by its step: report / own test, or the reason")
    return BY_STEP.format(
        nets=len(every),
        works=len(works),
        bare=len(bare),
        either=len(works | bare),
        largest=100 * max(map(difference, compared)),
        off=statistics.median(gains),
        lower=sum(gain < -5 for gain in gains),
        table=markdown_table(head, rows) if rows else "",
    ).rstrip()


def _inside(text: str) -> str:
    """Return text that stays inside a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Both tables, and their summary."""
    nets: Nets = {}
    for name, result in store.named().items():
        group, net, line = name.split(" | ")
        nets.setdefault((group, net), {})[line] = result
    text = "\n\n".join([intro(nets), works(nets), refusals(nets), f"Seed {SEED}; {machines_line(store.cells())}"])
    return {
        "evidence/user_nets.md": {"user nets summary": summary(nets), "user nets by step": by_step(nets), "user nets": text},
        "networks.md": {"user nets headline": headline(nets)},
    }


STUDY = Study(
    title="nets as users write them, the report beside the user's own test",
    minutes=20,
    cells=cells,
    pages=pages,
    fields=(
        *("typed", "must", "alike", "seconds", "frozen_written", "readout", "exactness", "fitted", "estimate", "heldout", "before"),
        *("layers_kept", "refused", "words_missing", "crashed", "written", "measure"),
    ),
    packages=("snntorch", "norse", "lightning", "pytorch-lightning"),
)
