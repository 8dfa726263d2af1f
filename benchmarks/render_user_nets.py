"""Writes the tables of nets as users write them into docs/evidence/user_nets.md, and their summary into docs/networks.md."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.render_docs import EVIDENCE, ROOT, replace
from benchmarks.render_networks import machine_line
from tests.user_nets.check import as_it_must_be, difference
from tests.user_nets.record import ALIKE

SCRIPT = "render_user_nets.py"
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


def render() -> None:
    """Both tables."""
    content = json.loads((RESULTS / "user_nets.json").read_text(encoding="utf-8"))
    nets: dict[tuple[str, str], dict[str, Any]] = {}
    for name, result in content["cases"].items():
        group, net, line = name.split(" | ")
        nets.setdefault((group, net), {})[line] = result
    parts = [intro(content, nets), works(nets), refusals(nets), f"Seed {content['seed']}; {machine_line(content['machine'])}"]
    replace(EVIDENCE / "user_nets.md", "user nets", "\n\n".join(parts), SCRIPT)
    replace(ROOT / "docs" / "networks.md", "user nets summary", summary(nets), SCRIPT)


def intro(content: dict[str, Any], nets: dict[tuple[str, str], dict[str, Any]]) -> str:
    """What the tables hold, and the figures of all nets together."""
    written = {name: result for name, result in content["cases"].items() if "fitted" in result}
    drawn = {name.split(" | ")[1]: 100 * difference(result) for name, result in written.items() if result["alike"] > ALIKE}
    who = max((name for name in written if name.split(" | ")[1] not in drawn), key=lambda name: difference(written[name]))
    wrong = [f"{net} ({line})" for (_, net), lines in nets.items() for line, result in lines.items() if not as_it_must_be(result)]
    must = [lines["typed"]["must"] for lines in nets.values()]
    estimates = [result["estimate"] for result in written.values()]
    example = next(iter(written.values()))
    return INTRO.format(
        nets=len(nets),
        working=must.count("work"),
        either=must.count("work or be refused"),
        refused=must.count("be refused"),
        train=content["train"],
        fresh=content["fresh"],
        heldout=example["heldout"]["samples"],
        estimate=example["estimate"]["samples"],
        compared=len(written),
        largest=100 * difference(written[who]),
        who=" | ".join(who.split(" | ")[:2]),
        random="; ".join(f"{net} ({off:.2f})" for net, off in drawn.items()),
        off=100 * sum(each["report"] - each["own"] for each in estimates) / len(estimates),
        far=sum(abs(each["report"] - each["own"]) > 2 * standard_error(each) for each in estimates),
        verdict=f"Not as they must be: {'; '.join(wrong)}." if wrong else "All are as they must be.",
    )


def summary(nets: dict[tuple[str, str], dict[str, Any]]) -> str:
    """One row a group of nets that must work: how many were written, and the user's own test before and after."""
    heads = ("nets", "tried", "written", "refused", "own test before, median, %", "after, median, %", "after, lowest, %")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    must_work = {key: lines["typed"] for key, lines in nets.items() if lines["typed"]["must"] != "be refused"}
    for group in dict.fromkeys(library for library, _ in must_work):
        tried = [result for (library, _), result in must_work.items() if library == group]
        written = [result for result in tried if "fitted" in result]
        refused = sum("refused" in result for result in tried)
        after = [100 * result["heldout"]["own"] for result in written]
        before = 100 * statistics.median(result["before"] for result in written)
        accuracies = f"{before:.1f} | {statistics.median(after):.1f} | {min(after):.1f}"
        rows.append(f"| {group} | {len(tried)} | {len(written)} | {refused} | {accuracies} |")
    return "\n".join(rows)


def standard_error(pair: dict[str, Any]) -> float:
    """Of the difference of two accuracies on different samples."""
    variance = pair["own"] * (1 - pair["own"])
    return math.sqrt(variance / pair["samples"] + variance / pair["fresh"])


def works(nets: dict[tuple[str, str], dict[str, Any]]) -> str:
    """One row a net that must work."""
    rows = ["| net | typed | decided by | before | report | own test | rebuilt: report | own test |", "|" + "---|" * 8]
    group = ""
    for (library, net), lines in nets.items():
        typed = lines["typed"]
        if typed["must"] == "be refused":
            continue
        if library != group:
            rows.append(f"| **{library}** {'| ' * 8}".rstrip())
            group = library
        pairs = [pair(typed), pair(lines["rebuilt"]) if "rebuilt" in lines else " | "]
        before = f"{100 * typed['before']:.1f}" if "fitted" in typed else ""
        rows.append(f"| {net} | `{typed['typed']}` | {typed.get('readout', '')} | {before} | {' | '.join(pairs)} |")
    return "\n".join(rows)


def pair(result: dict[str, Any]) -> str:
    """Two cells: the accuracies in percent, or why there are none."""
    if "fitted" in result:
        heldout = result["heldout"]
        mark = "" if difference(result) <= result["alike"] else " (differs)"
        return f"{100 * heldout['report']:.1f} | {100 * heldout['own']:.1f}{mark}"
    why = f"refused: {result['refused']['found']}" if "refused" in result else f"fails: {result['crashed']}"
    return f"{cell(why)} | "


def refusals(nets: dict[tuple[str, str], dict[str, Any]]) -> str:
    """One row a net that must be refused."""
    rows = ["| net | refused, since it found | what to do | seconds |", "|---|---|---|---|"]
    for (_, net), lines in nets.items():
        result = lines["typed"]
        if result["must"] != "be refused":
            continue
        if "refused" not in result:
            rows.append(f"| {net} | not refused: {cell(result.get('crashed', 'written'))} | | {result['seconds']:.1f} |")
            continue
        refused, missing = result["refused"], result["words_missing"]
        mark = f" (its reason does not name: {', '.join(missing)})" if missing else ""
        rows.append(f"| {net} | {cell(refused['found'])}{mark} | {cell(refused['fix'])} | {result['seconds']:.1f} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Text that stays inside a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    render()
