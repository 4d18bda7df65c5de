"""``/etc/noderuntime/config.toml``: the node's own settings. An unknown key is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class ImagesConfig(_Section):
    """Registry hosts: a ``certs.d`` as containerd reads it."""

    hosts_dir: Path = Path("/etc/noderuntime/certs.d")


class StreamingConfig(_Section):
    """Where exec, attach and port-forward are served; port 0 is any."""

    address: str = "127.0.0.1:0"


class MetricsConfig(_Section):
    """Where /metrics, /healthz and /readyz are served."""

    address: str = "127.0.0.1:9475"


class Config(_Section):
    """The whole file; every path has a default, so an empty file is valid."""

    socket: Path = Path("/run/noderuntime/noderuntime.sock")
    state_dir: Path = Path("/var/lib/noderuntime")
    run_dir: Path = Path("/run/noderuntime")
    revision: Path = Path("/etc/noderuntime/current")
    default_handler: str = "crun"  # the handler of Pods that name none; a key of `handlers`
    handlers: dict[str, HandlerConfig] = {"crun": HandlerConfig()}
    cni: CniConfig = CniConfig()
    images: ImagesConfig = ImagesConfig()
    streaming: StreamingConfig = StreamingConfig()
    metrics: MetricsConfig = MetricsConfig()


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
