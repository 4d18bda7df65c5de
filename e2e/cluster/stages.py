"""Running the stages of ``up``: as many at a time as their needs allow.

A stage says whether it changed something. When one fails, those that run are waited for, no more
are started, and its error is the one that is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from e2e.cluster.progress import Progress


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of ``up``: idempotent; returns whether it changed something."""

    name: str
    do: Callable[[], bool]
    needs: tuple[str, ...] = ()
    expected_s: float = 1.0


def run_stages(stages: Sequence[Stage], progress: Progress) -> bool:
    """Run all; returns whether any changed something; raises the first error."""
    left = {stage.name: stage for stage in stages}
    done: set[str] = set()
    errors: list[BaseException] = []
    changed = False
    running: dict[Future[bool], str] = {}
    with ThreadPoolExecutor(max_workers=len(stages), thread_name_prefix="stage") as pool:
        while left or running:
            ready = [s for s in left.values() if not errors and done.issuperset(s.needs)]
            for stage in ready:
                del left[stage.name]
                progress.start(stage.name)
                running[pool.submit(stage.do)] = stage.name
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                name = running.pop(future)
                error = future.exception()
                if error is not None:
                    progress.fail(name)
                    errors.append(error)
                    continue
                changed = changed or future.result()
                progress.finish(name, changed=future.result())
                done.add(name)
    if errors:
        for later in errors[1:]:
            errors[0].add_note(f"and: {later}")
        raise errors[0]
    return changed
