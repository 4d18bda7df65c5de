"""``/etc/noderuntime/config.toml``: the node's own settings. An unknown key is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noderuntime.api.profile_process import UlimitName
from noderuntime.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HandlerConfig(_Section):
    """A handler of the node's own, without a profile."""

    oci_runtime: Path = Path("/usr/bin/crun")
    cni_conf_dir: Path | None = None  # a network of its own; None is cni.conf_dir


class CniConfig(_Section):
    """Where CNI's configuration and plugins are, and the bridge for when there is no configuration."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    bridge: str = Field(default="noderuntime0", pattern=r"^[a-z][a-z0-9_]{0,14}$")
    # At most one of IPv4 and one of IPv6; none at all switches the bridge off.
    bridge_subnets: tuple[str, ...] = ("10.88.0.0/16", "fd6e:6f64:6572:88::/64")


class CdiConfig(_Section):
    """Where the files are that describe devices by name; what is in a later folder counts more."""

    spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))


class UlimitConfig(_Section):
    """A limit of getrlimit(2) that every container starts with; -1 is 'none'.

    Without one a container has what the runtime itself has, as with other runtimes (``LimitNOFILE``
    of the unit file, say). A profile's limit of the same name counts more.
    """

    name: UlimitName
    soft: int = Field(ge=-1, lt=2**63)
    hard: int = Field(ge=-1, lt=2**63)

    @model_validator(mode="after")
    def _soft_within_hard(self) -> Self:
        if self.hard >= 0 and not 0 <= self.soft <= self.hard:
            raise ValueError(f"{self.name}: soft must not be more than hard")
        return self


class ImagesConfig(_Section):
    """Registry hosts: a ``certs.d`` as containerd reads it.

    ``auth_file`` is a docker config.json with what seccomp artifacts are fetched with, such as
    /var/lib/kubelet/config.json. Images never are: for them the kubelet sends credentials.
    """

    hosts_dir: Path = Path("/etc/noderuntime/certs.d")
    auth_file: Path | None = None  # None asks without credentials


class StreamingConfig(_Section):
    """Where exec, attach and port-forward are served; port 0 is any."""

    address: str = "127.0.0.1:0"


class MetricsConfig(_Section):
    """Where /metrics, /healthz and /readyz are served."""

    address: str = "127.0.0.1:9475"


class DecisionsConfig(_Section):
    """The decision log: up to ``files`` of ``max_bytes`` each."""

    path: Path | None = None  # None is decisions/decisions.log below state_dir
    max_bytes: int = Field(default=8 << 20, ge=128 << 10, le=1 << 30)
    files: int = Field(default=4, ge=1, le=100)


class RecordingConfig(_Section):
    """For ``noderuntime record`` alone: who is told of every system call of every container.

    A runtime with it is of no use without that recorder: without an answer each call fails.
    """

    socket: Path | None = None  # None records nothing


class Config(_Section):
    """The whole file; every path has a default, so an empty file is valid."""

    socket: Path = Path("/run/noderuntime/noderuntime.sock")
    state_dir: Path = Path("/var/lib/noderuntime")
    run_dir: Path = Path("/run/noderuntime")
    revision: Path = Path("/etc/noderuntime/current")
    default_handler: str = "crun"  # the handler of Pods that name none; a key of `handlers`
    handlers: dict[str, HandlerConfig] = {"crun": HandlerConfig()}
    cni: CniConfig = CniConfig()
    cdi: CdiConfig = CdiConfig()
    ulimits: tuple[UlimitConfig, ...] = ()
    images: ImagesConfig = ImagesConfig()
    streaming: StreamingConfig = StreamingConfig()
    metrics: MetricsConfig = MetricsConfig()
    decisions: DecisionsConfig = DecisionsConfig()
    recording: RecordingConfig = RecordingConfig()

    @model_validator(mode="after")
    def _recording_is_private(self) -> Self:
        usual = Config.model_fields["socket"].default
        if self.recording.socket is not None and self.socket == usual:
            raise ValueError(
                f"recording.socket: not for the node's own runtime at {usual}; it is what "
                "`noderuntime record` sets for a runtime that it starts for itself"
            )
        return self

    @model_validator(mode="after")
    def _each_ulimit_once(self) -> Self:
        names = [each.name for each in self.ulimits]
        if len(names) != len(set(names)):
            raise ValueError("ulimits: a name is given twice")
        return self


def load_config(path: Path) -> Config:
    """Read the file; raises ConfigError that names the key."""
    try:
        return Config.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        keys = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()
        )
        raise ConfigError(f"{path}: {keys}") from error
