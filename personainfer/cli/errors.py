"""Turn errors into messages for a shell and exit codes."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ..exceptions import CacheError, ModelError, PersonaInferError, RowsFailedError
from ..local.paths import DISK_FULL
from .options import SHELL_NAMES
from .run_summary import FAILED
from .streams import abandon_stdout, fail, note

WRONG, ENDED, INTERRUPTED, CLOSED = 2, 4, 130, 141  # exit codes, as listed in the help

# click's UsageError, by way of typer, which may bring a click of its own.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]
# Commands that call models. They check files before the first call, so a later OSError ended the run.
_CALLING = {"infer", "verify", "audit", "benchmark", "reproduce"}

# Argument of the library -> option of a command, where the names differ.
_ARGUMENTS = {**SHELL_NAMES, "path": "output", "drop_flagged": "drop_flag", "splits": "split"}


class CommandGroup(TyperGroup):
    """The group of all commands: it turns errors into messages on standard error and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and return what it returns.

        Raises:
            typer.Exit: the command failed, with the code that the help lists. A fault of the library itself
            is not caught: it is shown with its traceback.
        """
        try:
            with _warnings_as_notes():
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except _UsageError as error:  # shown as plain lines: typer's panel would wrap them
            error.show()
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            fail(INTERRUPTED, "interrupted; the same command goes on from what is in the cache.")
        except BrokenPipeError:
            abandon_stdout()
            raise typer.Exit(CLOSED) from None
        except PersonaInferError as error:
            fail(
                _exit_code(error), _in_a_shell(error, self.get_command(ctx, ctx.invoked_subcommand))
            )
        except OSError as error:
            has_ended = error.errno in DISK_FULL or ctx.invoked_subcommand in _CALLING
            fail(ENDED if has_ended else WRONG, str(error))
        return result


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print the library's warnings as lines on standard error, without file name and line number."""
    with warnings.catch_warnings():
        in_python = warnings.showwarning

        def noted(
            message: Warning | str, category: type[Warning], *place: Any, **more: Any
        ) -> None:
            if category is UserWarning:
                note(f"Warning: {message}")
            else:
                in_python(message, category, *place, **more)

        warnings.showwarning = noted
        yield


def _in_a_shell(error: PersonaInferError, command: Any) -> str:
    """Return the error's message, with the command's option in place of an argument of Python.

    Args:
        error: the error.
        command: the command, whose options are in `params`.
    """
    wrong = error.argument or ""
    name = _ARGUMENTS.get(wrong, wrong)
    option = next((one.opts[0] for one in command.params if one.name == name), None)
    if option is None:
        return str(error)
    if error.example is not None:
        written = (f"{option} {shlex.quote(f'{a}={b}')}" for a, b in error.example.items())
        return f"{error.message} {error.advice} {' '.join(written)}"
    start = f"{wrong}="
    if error.message.startswith(start):
        return f"{option} {error.message.removeprefix(start).strip()} {error.hint}".strip()
    return f"{option}: {error}"


def _exit_code(error: PersonaInferError) -> int:
    """Return the exit code for an error of the library."""
    if isinstance(error, RowsFailedError):
        return FAILED
    return ENDED if isinstance(error, ModelError | CacheError) else WRONG
