"""The command line: ``flowgrad``, also reachable as ``dask flowgrad``."""

from __future__ import annotations

import signal
import threading
import warnings
from types import FrameType
from typing import Any

import click

from .. import __version__
from ..errors import FlowgradError
from .doctor import doctor
from .explain import explain
from .report import report
from .train import train
from .watch import watch

__all__ = ["main"]


class _Terminated(KeyboardInterrupt):
    """SIGTERM, unwound like Ctrl-C so that clusters are closed and nothing stays half-written."""


class _Commands(click.Group):
    """A group whose commands answer bad input with one line and exit status 2, and can be interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGTERM, _terminate)
            ctx.call_on_close(lambda: signal.signal(signal.SIGTERM, previous))
        ctx.with_resource(
            warnings.catch_warnings()
        )  # who runs commands in a process of their own has other warnings, too
        warnings.showwarning = _show_warning
        # What dask was about to ask a cluster when it was interrupted; nobody can do anything about it.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else ctx.command_path
            click.echo(f"flowgrad: {_one_line(error.format_message())} (see {where} --help)", err=True)
            ctx.exit(2)
        except FlowgradError as error:
            click.echo(f"flowgrad: {_one_line(str(error))}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as error:
            ended = isinstance(error, _Terminated)
            click.echo("flowgrad: terminated" if ended else "flowgrad: interrupted", err=True)
            ctx.exit(143 if ended else 130)


def _show_warning(message: Warning | str, *about: Any, **more: Any) -> None:
    """Where in the code it was said is of no use to who runs a command."""
    click.echo(f"flowgrad: {_one_line(str(message))}", err=True)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


@click.group(
    name="flowgrad", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="flowgrad")
def main() -> None:
    """Train computational graphs on a dask cluster.

    A graph is built node by node, down to one Dot per neuron; flowgrad derives its Jacobians, lowers forward
    and backward into dask task graphs, and runs them on this machine or on a cluster. Watch it on dask's
    dashboard, whose address is printed.

    \b
    Start here:
      flowgrad train mnist
      flowgrad train --help
    """  # noqa: D301


main.add_command(train)
main.add_command(explain)
main.add_command(watch)
main.add_command(doctor)
main.add_command(report)
