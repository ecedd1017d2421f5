"""The command line: one file a command, each with flags in, one call to the library, and text out."""

from soci_cli.commands.cli import run

__all__ = ["run"]
