"""``noderuntime plan``: what a change in files does to the Pods of a cluster, before it is applied.

Exit codes: 0 no running Pod is touched, 3 one would be refused when it starts next, 4 none would, but
one would run with another configuration, depends on its image or could not be judged; 2 the files or
the command line are wrong, 1 the API server cannot be asked.
"""

from __future__ import annotations

import asyncio
import platform
import time
from typing import TYPE_CHECKING, Final

from noderuntime.cli import output
from noderuntime.cli.explaining import declared
from noderuntime.cli.planning import files
from noderuntime.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    import argparse

    from noderuntime.cli.planning.plan import Plan

CHANGED: Final = 4


def main(options: argparse.Namespace) -> int:
    """Print the plan and return the exit code. Raises UnavailableError, which is code 1."""
    try:
        plan = asyncio.run(_plan(options))
    except ConfigError as error:
        for said in (str(error), *getattr(error, "__notes__", ())):
            output.tell(said, 600)
        return output.WRONG
    from noderuntime.cli.planning import show

    code = exit_code(plan)
    text = show.as_json(plan, code) if options.output == "json" else show.as_text(plan)
    output.show(text)
    return code


def exit_code(plan: Plan) -> int:
    """Return what a pipeline is to know: 3 stops it, 4 is for a person to look at."""
    from noderuntime.cli.planning.compare import Result

    found = {result for result, count in plan.counts.items() if count}
    if found & {Result.REFUSED, Result.LOST}:
        return output.REFUSED
    untouched = {Result.RECORDED, Result.STILL_REFUSED, Result.SAME}
    return CHANGED if found - untouched else 0


async def _plan(options: argparse.Namespace) -> Plan:
    found = declared.read(files.read(options.files))
    if not found.profiles and not found.runtimes:
        raise ConfigError("the files hold no NodeRuntime and no SecurityProfile")
    try:
        from noderuntime.cli.planning import cluster
        from noderuntime.cli.planning.compare import Moment
        from noderuntime.cli.planning.plan import Question, make
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("lightkube", "httpx2"):
            raise
        raise UnavailableError(
            f"{error.name} is not installed, which asks the API server: "
            "pip install 'noderuntime[agent]'"
        ) from error
    moment = Moment(now_s=time.time(), machine=platform.machine())
    question = Question(
        namespace=options.namespace,
        own_namespace=options.system_namespace,
        prune=options.prune,
    )
    async with cluster.connected(options.kubeconfig, options.context) as server:
        return await make(server, found, question, moment)
