from e2e.cluster import census


def test_new_and_gone_things_are_told_by_topic() -> None:
    before = {"links": ["lo", "eth0"], "mounts": ["/"], "processes": ["1 init", "2 other"]}
    after = {"links": ["lo", "eth0", "nr0"], "mounts": [], "processes": ["1 init", "3 conmon"]}

    assert census.differences(before, after) == {
        "links": ["+ nr0"],
        "mounts": ["- /"],
        "processes": ["+ 3 conmon"],
    }


def test_what_others_make_is_left_out_when_their_names_are_told() -> None:
    before, after = {"mounts": ["/"]}, {"mounts": ["/", "/tmp/theirs-1", "/ours"]}

    assert census.differences(before, after, "/theirs-") == {"mounts": ["+ /ours"]}


def test_a_census_survives_its_document() -> None:
    taken = {"links": ["lo"]}

    assert census.from_json(census.to_json(taken)) == taken
