"""The report of a run: the table, the bars, and a file with every figure."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from children import HERE
from contest import ALL, LIBRARY, Contender, Figures, Question, Row, Shown, held

RESULTS = HERE / "results"
LEGEND = """\
Medians of interleaved rounds. Below a time: how many times as long that is as trio_vmcp takes, by the clock and (by CPU
time); so 3.00x (2.00x) means that trio_vmcp takes a third of the time and half of the CPU. '-': did not take part."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One row and its figures."""

    question: Question
    row: Row
    figures: Figures


def table(measured: Sequence[Measured]) -> str:
    """A block per question; a contender has the same column in all of them. Empty, if there is none."""
    taking_part = {contender for one in measured for contender in one.row.contenders}
    contenders = [contender for contender in ALL if contender in taking_part]
    lines: list[list[str]] = []
    for question in dict.fromkeys(one.question for one in measured):
        if lines:
            lines.append([""] * (len(contenders) + 1))
        lines.append([question.asks, *(contender.name for contender in contenders)])
        for one in measured:
            if one.question is question:
                for shown in one.row.shows:
                    lines += _two_lines(one, shown, contenders)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() + "\n" for line in lines
    )


def _two_lines(one: Measured, shown: Shown, contenders: Sequence[Contender]) -> Iterator[list[str]]:
    """The medians, and their ratios to the library's."""
    yield [f"  {one.row.label} ({shown.unit})", *(_median(one.figures, shown, each) for each in contenders)]
    ratios = [_ratios(one.figures, shown, each) for each in contenders]
    if any(ratios):
        yield ["", *ratios]


def _median(figures: Figures, shown: Shown, contender: Contender) -> str:
    if contender in figures.failed:
        return "fails"
    median = figures.median(shown.of, contender)
    return "-" if median is None else f"{median * shown.scale:,.1f}"


def _ratios(figures: Figures, shown: Shown, contender: Contender) -> str:
    ratio = figures.ratio(shown.of, contender, to=LIBRARY)
    if ratio is None or contender is LIBRARY:
        return ""
    cpu = figures.ratio("cpu", contender, to=LIBRARY)
    return f"{ratio:.2f}x ({cpu:.2f}x)" if shown.of == "wall" and cpu is not None else f"{ratio:.2f}x"


def failures(measured: Sequence[Measured]) -> list[str]:
    """A line for every reason with which a contender failed, and the rows in which it did."""
    cases: dict[str, dict[str, None]] = {}
    for one in measured:
        for contender, reason in one.figures.failed.items():
            cases.setdefault(f"{contender.name} fails with: {reason}", {})[one.row.label] = None
    return [f"{said} ({'; '.join(rows)})" for said, rows in cases.items()]


def bars(measured: Sequence[Measured]) -> tuple[list[str], list[str]]:
    """A line for each bar: those that were held, and those that were missed."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for one in measured:
        for bar in one.row.bars:
            reached, good = bar.reached(one.figures), held(bar, one.figures)
            value = "was not measured" if reached is None else f"is {reached:.3g}"
            said = f"{one.question.name}, {one.row.label}: {bar} {value}, the bar is {bar.most:.3g}"
            lines[good].append(f"{'held  ' if good else 'MISSED'} {said}")
    return lines[True], lines[False]


def write_results(
    measured: Sequence[Measured], versions: Mapping[Contender, Mapping[str, str]], *, short: bool
) -> Path:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    report = {
        "at": now.isoformat(),
        "machine": platform.machine(),
        "short": short,
        "versions": {contender.name: dict(found) for contender, found in versions.items()},
        "rows": [_row(one) for one in measured],
    }
    path = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _row(one: Measured) -> dict[str, object]:
    figures = one.figures
    return {
        "question": one.question.name,
        "row": one.row.label,
        "figures": {  # by round, since a ratio is over the rounds in which both contenders took part
            measure: {contender.name: values for contender, values in by_contender.items()}
            for measure, by_contender in figures.measured.items()
        },
        "fails": {contender.name: reason for contender, reason in figures.failed.items()},
        "times_as_long": {
            contender.name: {measure: figures.ratio(measure, contender, to=LIBRARY) for measure in ("wall", "cpu")}
            for contender in one.row.contenders
            if contender is not LIBRARY
        },
        "bars": [
            {"of": str(bar), "reached": bar.reached(figures), "most": bar.most, "held": held(bar, figures)}
            for bar in one.row.bars
        ],
    }
