"""``noderuntime explain``: what a profile says to a Pod, without a cluster or a node.

Exit codes: 0 every Pod would run, 3 one would be refused, 4 none would, as far as can be told, but
one depends on what only its image knows, 2 the files or the command line are wrong.
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from noderuntime.cli import output
from noderuntime.cli.explaining import declared, image, show
from noderuntime.cli.explaining.judge import PodReport, judge
from noderuntime.cli.manifest.files import content
from noderuntime.cli.manifest.workloads import workloads
from noderuntime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

UNKNOWN: Final = 4


def main(options: argparse.Namespace) -> int:
    """Print what is found out and return the exit code."""
    try:
        reports = explain(options)
    except ConfigError as error:
        output.tell(str(error), 600)
        return output.WRONG
    colour = sys.stdout.isatty()
    as_json = options.output == "json"
    output.show(show.as_json(reports) if as_json else show.as_text(reports, colour=colour))
    verdicts = {report.verdict for report in reports}
    if "refused" in verdicts:
        return output.REFUSED
    return UNKNOWN if "unknown" in verdicts else 0


def explain(options: argparse.Namespace) -> list[PodReport]:
    """Judge every Pod of the files. Raises ConfigError."""
    found = declared.read(
        {name: content(name) for name in (*options.profile, *options.node_runtime)}
    )
    config = options.image_config
    of_image = image.read(options.user, config, content(config) if config else None)
    shown = "standard input" if options.pod == "-" else options.pod
    reports: list[PodReport] = []
    for each in workloads(shown, content(options.pod), options.namespace):
        handler = each.pod.spec.runtime_class_name
        runtime = declared.chosen_runtime(found, handler, each.namespace)
        profile = declared.chosen_profile(found, options.profile_name, runtime)
        rules = declared.rules(found, profile, runtime)
        report = judge(each, rules, of_image, now_s=time.time(), machine=platform.machine())
        said = declared.note_on_default(found, runtime, handler, each.namespace)
        reports.append(replace(report, notes=(*said, *report.notes)))
    return reports
