"""``flowgrad doctor``: what slows flowgrad down on this machine, and what to change."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from ..inputs import count

if TYPE_CHECKING:
    from ..scheduler.machine import Finding

WORDS = {"ok": "ok", "note": "note", "change": "change this"}
STYLES = {"ok": "green", "note": "cyan", "change": "bold red"}


@click.command(short_help="Look at BLAS, numba, dask and this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print findings and facts as JSON.")
def doctor(as_json: bool) -> None:
    """Look at BLAS, numba, dask and this machine, and tell what to change.

    Each line is ok, a note (good to know), or something to change, which costs time or fails as it is.
    The exit status is 0 whatever is found.
    """
    import distributed  # noqa: F401  # brings its settings

    from ..scheduler.machine import examine, read_facts

    facts = read_facts()
    findings = examine(facts)
    if as_json:
        values = {"findings": [finding.as_dict() for finding in findings], "facts": facts.as_dict()}
        click.echo(json.dumps(values, indent=2, default=str))
    elif _on_terminal() and find_spec("rich") is not None:
        _show(findings)
    else:
        click.echo(plain_text(findings))
    if not as_json:
        click.echo(f"\n{summary(findings)}")


def plain_text(findings: list[Finding]) -> str:
    """Return the findings as lines of text."""
    wide = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{WORDS[finding.verdict]:<11}  {finding.subject:<{wide}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<11}  {'':<{wide}}  -> {finding.advice}")
    return "\n".join(lines)


def summary(findings: list[Finding]) -> str:
    """Return how many things are to be changed."""
    changes = sum(finding.verdict == "change" for finding in findings)
    return f"{count(changes, 'thing')} to change" if changes else "nothing to change"


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _show(findings: list[Finding]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from .console import console

    columns = Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold")
    table = Table(*columns, box=None, pad_edge=False, show_header=False)
    for finding in findings:
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n-> {finding.advice}", style="bold" if finding.verdict == "change" else "dim")
        table.add_row(Text(WORDS[finding.verdict], style=STYLES[finding.verdict]), finding.subject, text)
    console().print(table)
