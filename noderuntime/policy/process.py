"""The process of a container: arguments, environment, directory, as Kubernetes joins them.

Source: kubernetes.io "Define a Command and Arguments for a Container"; OCI image-spec config.md.
"""

from __future__ import annotations

from posixpath import normpath
from typing import Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import printable
from noderuntime.policy.model import ContainerConfig, ImageConfig

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(container: ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """Return argv: ``command`` replaces entrypoint and cmd, ``args`` replaces cmd alone.

    Raises InvalidArgumentError where there is nothing to run, or no process can have an argument.
    """
    command = container.command or image.entrypoint
    rest = container.args or (() if container.command else image.cmd)
    result = (*command, *rest)
    if not result:
        raise InvalidArgumentError(
            f"containers[{container.name}].command: there is nothing to run: neither the Pod nor "
            "the image names a command"
        )
    if any("\0" in argument for argument in result):
        raise InvalidArgumentError(
            f"containers[{container.name}].command: an argument holds a NUL character"
        )
    return result


def environment(container: ContainerConfig, image: ImageConfig, hostname: str) -> tuple[str, ...]:
    """Return ``NAME=value``: the image's, then the container's; PATH and HOSTNAME as defaults.

    What cannot be a variable is left out of the image's, and raises InvalidArgumentError in the
    container's.
    """
    merged = {"PATH": DEFAULT_PATH}
    if hostname:
        merged["HOSTNAME"] = hostname
    if container.tty:
        merged["TERM"] = "xterm"
    for entry in image.env:
        name, equals, value = entry.partition("=")
        if name and equals and "\0" not in entry:
            merged[name] = value
    for name, value in container.env:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidArgumentError(
                f"containers[{container.name}].env: {printable(name, 60) or 'an empty name'} "
                "cannot be an environment variable (empty, or with = or NUL)"
            )
        merged[name] = value
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_directory(container: ContainerConfig, image: ImageConfig) -> str:
    """Return the absolute directory in which the process starts."""
    asked = container.working_dir or image.working_dir
    if "\0" in asked:
        raise InvalidArgumentError(
            f"containers[{container.name}].workingDir: it holds a NUL character"
        )
    return "/" + normpath("/" + asked).lstrip("/")
