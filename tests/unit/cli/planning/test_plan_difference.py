from __future__ import annotations

import pytest

from noderuntime.cli.planning.difference import changes

MOUNT = {"destination": "/tmp", "options": ["rw"]}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": None, "b": []}, {"c": {}, "b": None}, []),
        ({"a": False}, {}, ["a: false -> nothing"]),
        ({"a": 0}, {}, ["a: 0 -> nothing"]),
        ({}, {"a": {"b": 64}}, ["a.b: nothing -> 64"]),
        ({"a": {"b": "x"}}, {"a": {"b": "y\x1b[2J\n"}}, ["a.b: x -> y [2J"]),
        ({"a": ["x", "x", "y"]}, {"a": ["x", "z"]}, ["a: -x -y +z"]),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, ["a: ~order"]),
        ({"a": ["x"]}, {"a": "x"}, ['a: ["x"] -> x']),
        ({"m": [MOUNT]}, {"m": [MOUNT | {"options": ["ro"]}]}, ["m: ~/tmp"]),
        ({"m": []}, {"m": [MOUNT, {"names": ["mount", "umount"]}]}, ["m: +/tmp +mount,umount"]),
        ({}, {"m": [{"min": 1, "max": 2}]}, ['m: +{"max":2,"min":1}']),
        ({}, {"m": list("abcdefgh")}, ["m: +a +b +c +d +e +f +(2 more)"]),
    ],
)
def test_a_difference_is_told_in_short_by_its_field(
    before: object, after: object, said: list[str]
) -> None:
    assert [each.sentence() for each in changes(before, after)] == said


def test_a_change_names_its_container() -> None:
    (change,) = changes({"a": 1}, {"a": 2}, "web")
    assert change.sentence() == "web: a: 1 -> 2"
