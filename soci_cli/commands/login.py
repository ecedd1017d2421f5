"""`soci login`."""

from __future__ import annotations

import os

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.registry_flags import (
    RegistryFlags,
    ask_password,
    ask_username,
    make_credentials,
    password_from_stdin,
    registry_flags,
)
from soci_cli.errors import UsageError
from soci_cli.oci.references import DOCKER_HUB
from soci_cli.targets.registry.options import Credentials

_WITHOUT_TERMINAL = "give --username USER and --password-stdin"


@click.command()
@click.option("-u", "--username", metavar="USER", help="Name of the user.")
@click.option("-p", "--password", metavar="PASSWORD", help="Password; others may see it here.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@click.argument("server", default=DOCKER_HUB)
@registry_flags
@common_flags
@pass_app
def command(
    app: App,
    username: str | None,
    password: str | None,
    password_stdin: bool,
    server: str,
    registry: RegistryFlags,
) -> None:
    """Log in to the registry SERVER, Docker Hub without one.

    The credentials are tried before they are stored. They go where docker, nerdctl and podman
    find them: to the credential helper that Docker's config.json names, else into that file.
    """
    from soci_cli.targets.registry.client import check_login
    from soci_cli.targets.registry.credentials import (
        credential_helper,
        registry_domain,
        store_credentials,
    )

    domain = registry_domain(server)
    helper = credential_helper(domain, os.environ)
    credentials = _credentials(username, password, password_stdin)
    if password is not None:
        app.output.warn("a password on the command line can be seen; use --password-stdin")
    check_login(domain, credentials, registry.options((), app.settings.redirect_hosts))
    place = store_credentials(domain, credentials, os.environ)
    if not helper:
        app.output.warn(
            f"the password is stored unencrypted in {place}; a credential helper would not do that"
        )
    app.output.result("Login Succeeded")


def _credentials(username: str | None, password: str | None, password_stdin: bool) -> Credentials:
    if password_stdin and password is not None:
        raise UsageError("--password and --password-stdin contradict each other; give one of them")
    if password_stdin and username is None:
        raise UsageError("--password-stdin needs --username")
    if username is None:
        username = ask_username(_WITHOUT_TERMINAL)
    if not username or ":" in username:
        raise UsageError("the user name is empty or has a colon in it")
    if password_stdin:
        password = password_from_stdin()
    elif password is None:
        password = ask_password(_WITHOUT_TERMINAL)
    return make_credentials(username, password)
