"""What the tests borrow of the machine, which others may borrow at the same time."""

from __future__ import annotations

from e2e.cluster.cgroups import HUGETLB, hierarchies, with_hugetlb
from e2e.cluster.layout import this_layout


def test_who_ends_first_takes_no_hierarchy_from_who_goes_on() -> None:
    """This session holds it already, where crun needs it; see conftest.py."""
    there = HUGETLB in hierarchies()
    with with_hugetlb(this_layout()):
        assert (HUGETLB in hierarchies()) == there
    assert (HUGETLB in hierarchies()) == there
