"""The bars that a bundled model must reach, and how far one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench_scores import Line

NARROW = 128  # the narrowest width


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a bundled model must reach, and what it was held against."""

    what: str
    found: float | None  # None: not measured
    must: float
    aim: float
    digits: int = 3
    at_most: bool = False

    def reached(self, bound: float) -> str:
        """Return the word for it."""
        if self.found is None:
            return "not measured"
        return "met" if (self.found <= bound if self.at_most else self.found >= bound) else "missed"


def bars(candidate: Line, teacher: Line, rival: Line, own: Line | None) -> list[Bar]:
    """Return the bars, and where the candidate is.

    Args:
        candidate: the quantized file.
        teacher: the model that it was made from.
        rival: what it must be better than on each set.
        own: the candidate before it was quantized, if that is there.
    """
    times = candidate.times
    narrow = 1 - candidate.mean(NARROW) / candidate.mean() if NARROW in candidate.dims else None
    least = 0.05  # points: more than a tie in the table's digits
    return [
        Bar(what="file, MB", found=candidate.megabytes, must=80, aim=40, digits=1, at_most=True),
        *(
            Bar(
                what=f"{one.name}: points above {rival.name} "
                f"({100 * candidate.cell(one.name).value:.1f} - "
                f"{100 * rival.cell(one.name).value:.1f})",
                found=100 * (candidate.cell(one.name).value - rival.cell(one.name).value),
                must=least,
                aim=least,
                digits=1,
            )
            for one in candidate.scores.sets
        ),
        Bar(
            what=f"mean beside {teacher.name}'s ({candidate.mean():.1f} / {teacher.mean():.1f})",
            found=candidate.mean() / teacher.mean(),
            must=0.95,
            aim=0.97,
        ),
        Bar(
            what="tokens/s beside the reference's",
            found=times and times.speed_ratio,
            must=1,
            aim=3,
            digits=2,
        ),
        Bar(what=f"loss at {NARROW} dims", found=narrow, must=0.06, aim=0.03, at_most=True),
        Bar(
            what="loss by quantizing" + (f" ({own.mean():.1f} before)" if own else ""),
            found=1 - candidate.mean() / own.mean() if own else None,
            must=0.01,
            aim=0.005,
            digits=4,
            at_most=True,
        ),
        Bar(
            what="load and first vector, s",
            found=times and times.start_s,
            must=0.45,
            aim=0.30,
            digits=2,
            at_most=True,
        ),
    ]


def judged(found: Sequence[Bar]) -> str:
    """Return the bars as a table in Markdown."""
    text = [["bar", "found", "must", "", "aim", ""], ["---", "---:", "---:", "---", "---:", "---"]]
    for bar in found:
        sign = "<=" if bar.at_most else ">="
        value = "" if bar.found is None else f"{bar.found:.{bar.digits}f}"
        bounds = [(f"{sign} {bound:g}", bar.reached(bound)) for bound in (bar.must, bar.aim)]
        text.append([bar.what, value, *bounds[0], *bounds[1]])
    return "\n".join(f"| {' | '.join(line)} |" for line in text)
