"""Real servers as images out of Debian's packages, and clients that put them under load.

Redis is the image of the cluster; nginx and MariaDB are made here in the same way. The clients speak
just enough of each protocol to find out whether the server does what it is for.
"""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import debian
from e2e.cluster.image import oci, recipes, rootfs
from e2e.cluster.image.layer import Layer, write_layer
from e2e.cluster.image.recipes import RECIPES, REDIS_USER, Recipe
from e2e.cluster.layout import Layout

MYSQL_USER: Final = 998
THREADS: Final = 4
LARGE: Final = 300_000  # bytes of nginx's larger file
_C: Final = ("libc6", "libgcc-s1", "libcrypt1", "libssl3", "zlib1g", "libpcre2-8-0")
_NGINX: Final = (*_C, "nginx-common", "nginx", "busybox-static")
_MARIADB: Final = (
    *_C,
    *("libstdc++6", "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1"),
    *("liblzma5", "libzstd1", "libaio1", "liburing2", "libnuma1", "mariadb-common"),
    *("mariadb-server-core", "busybox-static"),
)
_NGINX_CONF: Final = """\
user nobody nogroup;
worker_processes 2;
error_log stderr notice;
pid /run/nginx.pid;
events {}
http {
  sendfile on;
  access_log off;
  server { listen 80; root /srv; location /moved { return 301 /; } }
}
"""
_BOOTSTRAP: Final = """\
set -e
{ echo "CREATE DATABASE IF NOT EXISTS mysql;"; echo "USE mysql;"
  cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_system_tables_data.sql
} | mariadbd --no-defaults --bootstrap --datadir=/var/lib/mysql --innodb-log-file-size=4M
"""


def nginx(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    """Listens on port 80 as root, its workers are nobody."""
    root = _root(layout, scratch, _NGINX)
    (root / "srv").mkdir()
    (root / "srv/index.html").write_text("hello\n")
    (root / "srv/large").write_bytes(b"x" * LARGE)
    (root / "etc/nginx/nginx.conf").write_text(_NGINX_CONF)
    return [write_layer(root, scratch / "layer.tar.gz")], oci.Config(
        entrypoint=("nginx", "-g", "daemon off;"),
        environment=("PATH=/usr/sbin:/usr/bin:/sbin:/bin",),
    )


def mariadb(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    """A server that knows no passwords, and /bootstrap, which makes its tables."""
    root = _root(layout, scratch, _MARIADB)
    (root / "bootstrap").write_text(_BOOTSTRAP)
    return [write_layer(root, scratch / "layer.tar.gz")], oci.Config(
        user=f"{MYSQL_USER}:{MYSQL_USER}",
        entrypoint=("mariadbd", "--no-defaults", "--datadir=/var/lib/mysql"),
        command=("--skip-grant-tables", "--innodb-log-file-size=4M", "--socket=/tmp/mysqld.sock"),
        environment=("PATH=/usr/sbin:/usr/bin:/sbin:/bin",),
    )


def _root(layout: Layout, scratch: Path, packages: Sequence[str]) -> Path:
    root = scratch / "root"
    rootfs.empty(root)
    rootfs.add_packages(layout, root, packages)
    for applet in ("sh", "cat", "mkfifo"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


_MADE: Final = (
    Recipe("nginx", "e2e", lambda layout: debian.fetch(layout, _NGINX), nginx),
    Recipe("mariadb", "e2e", lambda layout: debian.fetch(layout, _MARIADB), mariadb),
)


def images(layout: Layout) -> dict[str, Path]:
    """The OCI layouts by name, made where they are not there yet."""
    wanted = (*_MADE, *(each for each in RECIPES if each.name == "redis"))
    layout.images.mkdir(parents=True, exist_ok=True)
    return {each.name: recipes.build(layout, each)[0] for each in wanted}


@dataclass(frozen=True, slots=True)
class Server:
    """A server: its image, its port, the user that it starts as, and its load."""

    name: str
    port: int
    uid: int
    load: Callable[[int], None]


def _together(client: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(client, range(THREADS)))


def load_redis(port: int) -> None:
    """Strings, lists, a transaction, a snapshot in a child."""

    def client(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            file = connection.makefile("rwb")

            def ask(*words: object) -> bytes:
                parts = [str(word).encode() for word in words]
                text = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
                file.write(b"*%d\r\n%s" % (len(parts), text))
                file.flush()
                first: bytes = file.readline().rstrip()
                if first.startswith(b"$") and first != b"$-1":
                    return file.read(int(first[1:]) + 2)[:-2]
                return first

            for step in range(150):
                assert ask("SET", f"k{number}-{step}", "v" * 500) == b"+OK"
                assert ask("GET", f"k{number}-{step}") == b"v" * 500
                assert ask("RPUSH", f"l{number}", step) == b":%d" % (step + 1)
            assert ask("DEL", f"l{number}") == b":1"
            if number == 0:
                assert ask("SAVE") == b"+OK"
                assert ask("BGSAVE").startswith(b"+Background")

    _together(client)


def load_nginx(port: int) -> None:
    """Small and large files, a part of one, what is not there, what is elsewhere."""

    def client(_: int) -> None:
        for _ in range(40):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for path, headers, status, size in (
                ("/", {}, 200, 6),
                ("/large", {}, 200, LARGE),
                ("/large", {"Range": "bytes=10-19"}, 206, 10),
                ("/nothing", {}, 404, None),
                ("/moved", {}, 301, None),
            ):
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == status
                assert size is None or len(body) == size
            connection.close()

    _together(client)


def load_mariadb(port: int) -> None:
    """Tables, rows, a transaction, an index, a sort that goes to disk, what is refused."""

    def client(number: int) -> None:
        with MySql(port) as sql:
            sql.ask(f"CREATE DATABASE shop{number}")
            sql.ask(f"USE shop{number}")
            sql.ask("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(200))")
            for _ in range(100):
                sql.ask("INSERT INTO t (name) VALUES (REPEAT('x', 150))")
            sql.ask("BEGIN")
            sql.ask("UPDATE t SET name = 'y' WHERE id < 10")
            sql.ask("ROLLBACK")
            sql.ask("ALTER TABLE t ADD INDEX (name)")
            assert sql.ask("SELECT COUNT(*) FROM t WHERE name LIKE 'x%'") == [b"100"]
            sql.ask("SELECT a.name FROM t a, t b ORDER BY b.name, a.id")
            try:
                sql.ask("SELECT * FROM nothing")
            except RuntimeError as error:
                assert "doesn't exist" in str(error)
            sql.ask(f"DROP DATABASE shop{number}")

    _together(client)


class MySql:
    """A client without a password. MariaDB's protocol: "Connection", "COM_QUERY", "Result set"."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self._socket.makefile("rb")
        self._read()
        flags = 0x0200 | 0x8000 | 0x2000  # PROTOCOL_41, SECURE_CONNECTION, TRANSACTIONS
        self._send(struct.pack("<IIB23x", flags, 1 << 24, 33) + b"root\0\0", 1)
        self._require(self._read())

    def __enter__(self) -> MySql:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, query: str) -> list[bytes]:
        """Returns the first column of each row; raises RuntimeError with the server's words."""
        self._send(b"\x03" + query.encode(), 0)
        head = self._require(self._read())
        if head[0] == 0:
            return []
        while self._read()[0] != 0xFE:
            pass
        rows: list[bytes] = []
        while (row := self._require(self._read()))[0] != 0xFE:
            rows.append(row[1 : 1 + row[0]])
        return rows

    def _send(self, body: bytes, number: int) -> None:
        self._socket.sendall(struct.pack("<I", len(body) | number << 24) + body)

    def _read(self) -> bytes:
        head = self._file.read(4)
        if len(head) < 4:
            raise RuntimeError("the server has closed the connection")
        return self._file.read(int.from_bytes(head[:3], "little"))

    @staticmethod
    def _require(packet: bytes) -> bytes:
        if packet[0] == 0xFF:
            raise RuntimeError(packet[3:].decode(errors="replace"))
        return packet


SERVERS: Final = (
    Server("redis", 6379, REDIS_USER, load_redis),
    Server("nginx", 80, 0, load_nginx),
    Server("mariadb", 3306, MYSQL_USER, load_mariadb),
)
