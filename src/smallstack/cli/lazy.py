"""A click group whose commands are imported when they are asked for.

The start of a tool is part of every create, so a command pays only for its own imports, and
``--help`` of a group reads its one-line descriptions from the table and imports nothing.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from smallstack.cli.options import fail

Table = Mapping[str, tuple[str, str, str]]
"""Commands by name: module, attribute, one line of help."""


class LazyGroup(click.Group):
    """A group of the commands in a table. A wrong command line is one line, with exit code 2."""

    def __init__(self, *args: object, table: Table, **kwargs: object):
        """``table`` maps a command's name to where it is and what it does."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._table = table

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program to its exit code."""
        run: Callable[..., Any] = super().main
        try:
            code = run(*args, **extra, standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as bare:
            bare.show()
            sys.exit(bare.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else self.name
            fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", error.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), error.exit_code)
        except click.Abort:
            fail("interrupted", 130)
        sys.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the named command; None when there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, attribute, _ = self._table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in self._table.items()])
