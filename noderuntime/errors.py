"""Every error that noderuntime raises on purpose, in one tree.

What is raised here is meant for a person: the text is lower-case, names the object and says what to
do next. Anything that is not a ``NodeRuntimeError`` is a bug. ``reason`` is CamelCase, as Kubernetes
conditions and events have it.
"""

from __future__ import annotations

from typing import ClassVar


class NodeRuntimeError(Exception):
    """The root: an error whose text is for the user."""

    reason: ClassVar[str] = "Error"

    def for_kubelet(self) -> str:
        r"""Return the sentence that the kubelet puts into the Pod's events, on one line.

        It may quote a caller: what a terminal would obey, or not show, is written as ``\x1b``.
        """
        return "".join(map(_visible, " ".join(str(self).split())))


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


class InvalidArgumentError(NodeRuntimeError):
    """The caller asked for something malformed, or that this runtime does not honour."""

    reason = "InvalidArgument"


class NotFoundError(NodeRuntimeError):
    """The named sandbox, container, image or handler is not there."""

    reason = "NotFound"


class FailedPreconditionError(NodeRuntimeError):
    """The object is in a state in which the verb has no meaning."""

    reason = "FailedPrecondition"


class DeniedError(NodeRuntimeError):
    """A profile refuses what was asked; the text names field, value and profile."""

    reason = "Denied"


class UnavailableError(NodeRuntimeError):
    """Something that this call needs is not there now; a later try may work."""

    reason = "Unavailable"


class DeadlineExceededError(NodeRuntimeError):
    """A wait ran into its deadline."""

    reason = "DeadlineExceeded"


class ResourceExhaustedError(NodeRuntimeError):
    """A bound of this runtime was met (sessions, sizes, disk)."""

    reason = "ResourceExhausted"


class UnimplementedError(NodeRuntimeError):
    """This part of CRI is not served by this version."""

    reason = "Unimplemented"


class HostError(NodeRuntimeError):
    """The kernel, the OCI runtime or the monitor refused; carries ``errno`` where there is one."""

    reason = "HostFailed"

    def __init__(self, message: str, *, errno: int = 0) -> None:
        """Keep the kernel's error number beside the text; 0 where there was none."""
        super().__init__(message)
        self.errno = errno


class NetworkError(NodeRuntimeError):
    """A CNI plugin failed, or there is no usable network configuration."""

    reason = "NetworkFailed"


class ImageError(NodeRuntimeError):
    """An image could not be pulled, verified or unpacked."""

    reason = "ImageFailed"


class ImageNameError(ImageError, InvalidArgumentError):
    """What should name an image does not: it is the caller's mistake."""

    reason = "InvalidImageName"


class RegistryUnavailableError(ImageError):
    """The registry does not answer; the kubelet knows this error by its prefix."""

    reason = "RegistryUnavailable"

    def for_kubelet(self) -> str:
        """Return the text behind the prefix that the kubelet matches (kubelet/images/types.go)."""
        return f"RegistryUnavailable: {super().for_kubelet()}"


class ImageVolumeError(ImageError):
    """An image could not be mounted as a volume; the kubelet knows this error by its prefix."""

    reason = "ImageVolumeMountFailed"

    def for_kubelet(self) -> str:
        """Return the text behind the prefix that the kubelet matches (cri-api/pkg/errors)."""
        return f"ImageVolumeMountFailed: {super().for_kubelet()}"


class StateError(NodeRuntimeError):
    """A file of ours on disk is missing, torn or of another version."""

    reason = "StateCorrupted"


class ConfigError(NodeRuntimeError):
    """A configuration file or a revision does not hold what it should."""

    reason = "InvalidConfiguration"
