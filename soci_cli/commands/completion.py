"""`soci completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_flags
@pass_app
def command(app: App, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  source <(soci completion bash)
    zsh:   source <(soci completion zsh)
    fish:  soci completion fish | source
    """
    from soci_cli.commands.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    app.output.result(kind(cli, {}, "soci", "_SOCI_COMPLETE").source())
