"""kill -9 of the runtime, of the worker and of the unpacker, at each step of a pull."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.store import ImageStore
from tests.fakes.registry import FakeRegistry, File, build_image, folder
from tests.root.images.trees import census, listing

IMAGE = build_image([folder("etc"), File("etc/a", b"1" * 5000)], [File("etc/b", b"2")])
ROOT = Path(__file__).parents[3]
MOST = 80  # steps; more would mean that the driver counts something that does not end
SITE = """
import os
from tests.root.images.crash_driver import kill_at
kill_at(int(os.environ["AT"]), os.environ["STATE"],
        os.getpid() if os.environ["WHO"] == "worker" else os.getppid())
"""


def run(state: Path, reference: str, who: str, at: int, site: Path) -> str:
    environment = {
        **os.environ,
        "WHO": who,
        "AT": str(at),
        "STATE": str(state),
        "SITE": str(site),
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.root.images.crash_driver", reference],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout.strip()


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """A folder on a tmpfs: kill -9 loses nothing that was written, so syncing may be free."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nr-images-") as path:
        yield Path(path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["parent", "worker", "above"])
async def test_a_pull_killed_at_any_step_leaves_all_or_nothing(
    registry: FakeRegistry, memory_disk: Path, who: str
) -> None:
    tmp_path = memory_disk
    reference = registry.add("a", "1", IMAGE)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    first = ImageStore(tmp_path / "whole", tmp_path)
    await first.recover()
    empty = census(tmp_path / "whole")
    image = await first.pull(reference)
    whole = census(tmp_path / "whole")
    trees = [listing(layer) for layer in image.layers]

    seen: list[str] = []
    said = ""
    for at in range(1, MOST):
        state = tmp_path / f"state{at}"
        said = run(state, reference, who, at, site)

        store = ImageStore(state, tmp_path)
        await store.recover()
        left = census(state)
        assert left in (empty, whole), (at, left ^ whole)
        seen.append("whole" if left == whole else "empty")
        assert bool(store.list()) == (left == whole)

        again = await store.pull(reference)
        assert census(state) == whole, at
        assert [listing(layer) for layer in again.layers] == trees
        await store.remove(again.id)
        assert census(state) == empty
        if said == "whole":
            break
    assert seen[0] == "empty"
    assert len(seen) > 4
    assert said == "whole"


async def test_an_unpacker_that_is_killed_is_told_and_leaves_nothing(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's OOM killer takes the unpacker first: the worker must not wait for ever."""
    empty = census(tmp_path / "state")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'os.chroot': pass\n"
        "    if event == 'os.utime': os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
    )
    from noderuntime.images import client

    plain = client._environment  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(
        client,
        "_environment",
        lambda: {**plain(), "PYTHONPATH": f"{site}:{plain()['PYTHONPATH']}"},
    )
    reference = registry.add("a", "1", IMAGE)
    with pytest.raises(ImageError, match="was killed: the node may be short of memory"):
        await store.pull(reference)
    monkeypatch.undo()
    again = ImageStore(tmp_path / "state", tmp_path)
    await again.recover()
    assert census(tmp_path / "state") == empty
    assert (await again.pull(reference)).id == IMAGE.id
