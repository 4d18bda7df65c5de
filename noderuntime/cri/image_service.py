"""ImageService of ``runtime.v1``."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from noderuntime.cri import answers, convert, texts
from noderuntime.cri.runtime_service import chunks
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import InvalidArgumentError
from noderuntime.images.ports import Credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from noderuntime.cri.boundary import Streaming, Unary
    from noderuntime.engine.engine import Engine
    from noderuntime.engine.state import SandboxRecord
    from noderuntime.images.ports import Image

MAX_SECRET: Final = 1 << 16
_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class ImageService:
    """The RPCs. ``methods`` and ``streams`` map their names in CRI to what answers them."""

    def __init__(self, engine: Engine) -> None:
        """Serve ``engine``."""
        self._engine = engine
        self.methods: Mapping[str, Unary] = {
            "ListImages": self.list_images,
            "ImageStatus": self.image_status,
            "PullImage": self.pull_image,
            "RemoveImage": self.remove_image,
            "ImageFsInfo": self.image_fs_info,
        }
        self.streams: Mapping[str, Streaming] = {"StreamImages": self.stream_images}

    async def list_images(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        """ListImages."""
        return pb.ListImagesResponse(images=map(answers.image, self._images(request.filter)))

    async def stream_images(
        self, request: pb.StreamImagesRequest
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        """StreamImages."""
        for part in chunks(self._images(request.filter)):
            yield pb.StreamImagesResponse(images=map(answers.image, part))

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """ImageStatus; an image that is not there is an empty answer, not an error."""
        found = self._engine.find_image(convert.image_reference("image.image", request.image))
        if found is None:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(
            image=answers.image(found),
            info=answers.image_info(found) if request.verbose else None,
        )

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """PullImage. Returns the image's ID, by which containers then name it."""
        reference = convert.image_reference("image.image", request.image)
        handler = texts.line("image.runtime_handler", request.image.runtime_handler)
        sandbox = self._sandbox_of(request.sandbox_config.metadata.uid)
        image = await self._engine.pull_image(
            reference,
            credentials(request.auth, reference),
            handler=handler or ("" if sandbox is None else sandbox.handler),
            pod=None if sandbox is None else sandbox.config,
        )
        return pb.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """RemoveImage."""
        await self._engine.remove_image(convert.image_reference("image.image", request.image))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """ImageFsInfo: images and writable layers are on one file system."""
        usage = answers.filesystem(await self._engine.image_fs())
        return pb.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])

    def _images(self, wanted: pb.ImageFilter) -> tuple[Image, ...]:
        if not wanted.image.image:
            return self._engine.list_images()
        found = self._engine.find_image(convert.image_reference("filter.image", wanted.image))
        return () if found is None else (found,)

    def _sandbox_of(self, uid: str) -> SandboxRecord | None:
        """Return the sandbox of the Pod that the pull is for: the kubelet runs it first.

        Its handler is the pull's: ``image.runtime_handler`` is sent only with the alpha gate
        RuntimeClassInImageCriAPI.
        """
        mine = [each for each in self._engine.sandboxes() if uid and each.config.pod.uid == uid]
        return max(mine, key=lambda each: each.created_at_ns, default=None)


def credentials(auth: pb.AuthConfig, reference: str) -> Credentials | None:
    """Return the login, or None when there is none or it is for another registry than the image's.

    Raises InvalidArgumentError for a malformed one; the text never quotes it.
    """
    if auth.server_address and not _is_for(auth.server_address, reference):
        return None
    username, password = auth.username, auth.password
    if auth.auth and not (username or password):
        username, password = _basic(auth.auth)
    found = Credentials(
        username=_secret("auth.username", username),
        password=_secret("auth.password", password),
        identity_token=_secret("auth.identity_token", auth.identity_token),
        registry_token=_secret("auth.registry_token", auth.registry_token),
    )
    return None if found == Credentials() else found


def registry_of(reference: str) -> str:
    """Return the registry's host as the reference names it; ``docker.io`` where it names none."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first.lower()
    return "docker.io"


def _is_for(server_address: str, reference: str) -> bool:
    """Tell whether the login's server is the image's registry; schemes and paths do not matter."""
    address = server_address if "://" in server_address else f"https://{server_address}"
    try:
        host = urlsplit(address).netloc.lower()
    except ValueError as error:
        raise InvalidArgumentError("auth.server_address: is not an address") from error
    wanted = registry_of(reference)
    return host == wanted or {host, wanted} <= _DOCKER_HUB


def _basic(encoded: str) -> tuple[str, str]:
    """Read ``auth`` of a docker config: base64 of ``user:password``, maybe with NULs at its end."""
    try:
        plain = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError("auth.auth: is not base64 of user:password") from error
    username, colon, password = plain.partition(":")
    if not colon:
        raise InvalidArgumentError("auth.auth: is not base64 of user:password")
    return username, password.strip("\0")


def _secret(field: str, value: str) -> str:
    if any(char in value for char in "\0\r\n"):
        raise InvalidArgumentError(f"{field}: holds a control character")
    return texts.text(field, value, MAX_SECRET)
