"""Images over CRI: logins go only to the registry that they are for."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from noderuntime.cri import answers
from noderuntime.cri.image_service import credentials, registry_of
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import InvalidArgumentError
from noderuntime.images.ports import Credentials
from noderuntime.policy.model import ImageConfig
from tests.fakes.cri_engine import IMAGE

if TYPE_CHECKING:
    from tests.unit.cri.conftest import Client

PASSWORD = "pw"  # of nobody
SPEC = pb.ImageSpec(image="registry.test/app:1")


@pytest.mark.parametrize(
    ("reference", "host"),
    [
        ("nginx", "docker.io"),
        ("library/nginx", "docker.io"),
        ("Registry.test/app:1", "registry.test"),
        ("localhost/app", "localhost"),
        ("127.0.0.1:5000/a/b@sha256:ab", "127.0.0.1:5000"),
    ],
)
def test_the_registry_of_a_reference(reference: str, host: str) -> None:
    assert registry_of(reference) == host


@pytest.mark.parametrize(
    ("server", "reference", "is_for"),
    [
        ("", "registry.test/app", True),
        ("registry.test", "registry.test/app", True),
        ("https://registry.test/v2/", "registry.test/app", True),
        ("https://registry.test:5000", "registry.test/app", False),
        ("https://evil.test", "registry.test/app", False),
        ("https://index.docker.io/v1/", "nginx", True),
        ("https://index.docker.io/v1/", "registry.test/nginx", False),
    ],
)
def test_a_login_is_used_only_for_its_registry(server: str, reference: str, is_for: bool) -> None:
    auth = pb.AuthConfig(username="me", password=PASSWORD, server_address=server)
    assert (credentials(auth, reference) is not None) is is_for


def test_auth_is_base64_of_user_and_password() -> None:
    auth = pb.AuthConfig(auth=base64.b64encode(b"me:pw:w\0").decode())
    assert credentials(auth, "a") == Credentials(username="me", password=f"{PASSWORD}:w")


@pytest.mark.parametrize("auth", ["***", base64.b64encode(b"no colon").decode(), "/w=="])
def test_auth_that_is_none_is_refused_unquoted(auth: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        credentials(pb.AuthConfig(auth=auth), "a")
    assert auth not in str(caught.value)


def test_a_secret_with_a_line_break_is_refused_unquoted() -> None:
    with pytest.raises(InvalidArgumentError, match=r"auth\.password: holds a control"):
        credentials(pb.AuthConfig(username="me", password=PASSWORD + "\r\nX: y"), "a")


def test_no_login_is_none() -> None:
    assert credentials(pb.AuthConfig(), "a") is None


async def test_a_pull_answers_the_id_and_goes_under_the_pods_handler(cri: Client) -> None:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="u7"))
    await cri.call(
        "RunPodSandbox", pb.RunPodSandboxRequest(config=config, runtime_handler="restricted")
    )
    request = pb.PullImageRequest(image=SPEC, sandbox_config=config)
    assert (await cri.call("PullImage", request)).image_ref == IMAGE.id
    assert cri.engine.pulls == [("registry.test/app:1", None, "restricted")]


async def test_images_are_listed_found_and_removed(cri: Client) -> None:
    listed = await cri.call("ListImages")
    assert [image.id for image in listed.images] == [IMAGE.id]
    assert (await cri.call("StreamImages"))[0].images == listed.images
    other = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image="x")))
    assert not (await cri.call("ListImages", other)).images
    found = await cri.call("ImageStatus", pb.ImageStatusRequest(image=SPEC, verbose=True))
    assert (found.image.uid.value, found.image.username) == (1000, "")
    assert "imageSpec" in found.info["info"]
    await cri.call("RemoveImage", pb.RemoveImageRequest(image=SPEC))
    assert not (await cri.call("ImageStatus", pb.ImageStatusRequest(image=SPEC))).HasField("image")


async def test_image_fs_info_names_both_file_systems(cri: Client) -> None:
    answer = await cri.call("ImageFsInfo")
    assert answer.image_filesystems[0].fs_id.mountpoint == "/"
    assert answer.container_filesystems == answer.image_filesystems


async def test_a_pull_without_a_name_is_the_callers_fault(cri: Client) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await cri.call("PullImage")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("1000:1000", 1000, ""),
        ("app:app", None, "app"),
        ("99999999999", None, "99999999999"),
        ("²", None, "²"),
    ],
)
def test_the_images_user_is_a_number_or_a_name(user: str, uid: int | None, name: str) -> None:
    found = answers.image(replace(IMAGE, config=ImageConfig(user=user)))
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, name)
