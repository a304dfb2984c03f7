"""report.html: a training run on one page that needs nothing beside it, no network and no files."""

from __future__ import annotations

import base64
import hashlib
import platform
from pathlib import Path

from gemb.io.atomic import new_file
from gemb.report_curves import curves
from gemb.report_markup import Markup, joined, tag
from gemb.report_page import data, headline, recipe, scores, similarity
from gemb.run_record import RunRecord, read_run

STATIC = Path(__file__).parent / "data"
LIBRARIES = ("gemb", "torch", "numpy", "tokenizers")  # whose versions are told


def write_report(run: Path) -> Path:
    """Write the page of a run from what its folder holds, and return its path.

    Files and keys that are missing leave their sections out: a run may have been stopped early, or
    have no evaluation.

    Args:
        run: the run's folder; report.html in it is replaced, whole or not at all.

    Raises:
        UsageError: `run` is no folder, or a file in it is not what its name says.
        OSError: a file cannot be read or written.
    """
    page = _page(read_run(run))
    target = run / "report.html"
    with new_file(target) as part:
        part.write_text(page, "utf-8")
    return target


def _page(run: RunRecord) -> str:
    style = Markup((STATIC / "report.css").read_text("utf-8"))
    script = Markup((STATIC / "report.js").read_text("utf-8"))
    # Only the page's own style and script run, whatever a source's name or a text may hold.
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{run.name} \N{MIDDLE DOT} gemb train"),
        tag("style", style),
    ]
    sections = [headline(run), curves(run), similarity(run), scores(run), data(run), recipe(run)]
    body = [*sections, tag("footer", _versions()), tag("script", script)]
    html = tag("html", tag("head", *head), "\n", tag("body", joined(body, "\n")), lang="en")
    return f"<!doctype html>\n{html}\n"


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    known = []
    for library in LIBRARIES:
        try:
            known.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    known.append(f"Python {platform.python_version()}")
    return f"Written by {', '.join(known)} on {platform.system()} {platform.machine()}."
