"""The form in which `gemb search` writes its hits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gemb.commands.search_options import SearchOptions

if TYPE_CHECKING:
    from gemb.search.forms import OutputForm, Write


def standard_output() -> Write:
    """Return what writes to standard output, with colours where they are wanted."""
    from gemb.io.streams import Stream

    return Stream(None, is_painted=True).write


def output_form(options: SearchOptions, write: Write, *, is_silent: bool) -> OutputForm:
    """Return the form in which the hits are written."""
    import shutil

    from gemb.io import colours
    from gemb.search.excerpts import LineContext

    is_terminal = sys.stdout.isatty()
    paint = colours.Paint(is_on=colours.enabled(options.color, sys.stdout))
    is_many = options.queries_from is not None
    if is_silent:
        from gemb.search.forms import Silent

        return Silent()
    if options.names or options.count:
        from gemb.search.forms import NameList

        most = None if options.count else (10 if options.top_k is None else options.top_k) or None
        return NameList(
            write,
            paint,
            is_null=options.null,
            counts=options.count,
            most=most,
            is_terminal=is_terminal,
        )
    if options.cite:
        from gemb.search.cited import CitedSources

        return CitedSources(write, options.cite, is_terminal=is_terminal)
    if options.trec:
        from gemb.search.forms import TrecRun

        return TrecRun(write, by_rank=options.hybrid)
    is_grouped = is_terminal if options.heading is None else options.heading
    if options.as_json or (is_many and not is_grouped):
        from gemb.search.forms import JsonHits

        return JsonHits(write, with_query=is_many)
    before, after = _context(options, is_grouped=is_grouped)
    is_asked = (options.before, options.after, options.context) != (None,) * 3
    context = LineContext(before, after, is_inside=not is_asked)
    if is_grouped and not options.null:
        from gemb.search.terminal import TerminalHits

        width = shutil.get_terminal_size().columns
        return TerminalHits(write, context, paint, width, is_whole=options.full, with_query=is_many)
    from gemb.search.forms import GrepLines

    return GrepLines(
        write,
        context,
        paint,
        is_null=options.null,
        is_terminal=is_terminal,
        with_names=options.with_filename,
    )


def _context(options: SearchOptions, *, is_grouped: bool) -> tuple[int, int]:
    """Return how many lines are shown before and after the best one."""
    if options.full:
        return 1 << 30, 1 << 30
    if (options.before, options.after, options.context) != (None,) * 3:
        both = options.context or 0
        before = both if options.before is None else options.before
        return before, both if options.after is None else options.after
    return (1, 2) if is_grouped else (0, 0)
