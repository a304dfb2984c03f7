"""Which form the hits of `gemb search` take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gemb.commands.search_options import Chosen

if TYPE_CHECKING:
    from gemb.search.forms import Form, Write


def form_of(chosen: Chosen, write: Write, *, is_silent: bool) -> Form:
    """Return what writes the hits."""
    import shutil

    from gemb.io import colours
    from gemb.search.excerpts import Context

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    paint = colours.Paint(is_on=colours.wanted(chosen.color, sys.stdout))
    is_many = chosen.queries_from is not None
    if is_silent:
        from gemb.search.forms import Silent

        return Silent()
    if chosen.names or chosen.count:
        from gemb.search.forms import NameList

        most = None if chosen.count else (10 if chosen.top_k is None else chosen.top_k) or None
        return NameList(
            write,
            paint,
            is_null=chosen.null,
            counts=chosen.count,
            most=most,
            is_terminal=is_terminal,
        )
    if chosen.trec:
        from gemb.search.forms import TrecRun

        return TrecRun(write, by_rank=chosen.hybrid)
    if chosen.template is not None:
        from gemb.search.template import FormatLines

        return FormatLines(write, chosen.template, is_null=chosen.null, is_terminal=is_terminal)
    is_grouped = is_terminal if chosen.heading is None else chosen.heading
    if chosen.as_json or (is_many and not is_grouped):
        from gemb.search.forms import JsonHits

        return JsonHits(write, with_query=is_many)
    before, after = _context(chosen, is_grouped=is_grouped)
    is_asked = (chosen.before, chosen.after, chosen.context) != (None,) * 3
    context = Context(before, after, is_inside=not is_asked)
    if is_grouped and not chosen.null:
        from gemb.search.terminal import TerminalHits

        width = shutil.get_terminal_size().columns
        return TerminalHits(write, context, paint, width, is_whole=chosen.full, with_query=is_many)
    from gemb.search.forms import GrepLines

    return GrepLines(
        write,
        context,
        paint,
        is_null=chosen.null,
        is_terminal=is_terminal,
        with_names=chosen.with_filename,
    )


def _context(chosen: Chosen, *, is_grouped: bool) -> tuple[int, int]:
    """Return how many lines are shown before and after the best one."""
    if chosen.full:
        return 1 << 30, 1 << 30
    given = chosen.before, chosen.after
    if chosen.context is not None or given != (None, None):
        both = chosen.context or 0
        return tuple(both if one is None else one for one in given)  # type: ignore[return-value]
    return (1, 2) if is_grouped else (0, 0)
