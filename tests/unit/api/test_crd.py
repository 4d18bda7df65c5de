from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from noderuntime.api import crd
from noderuntime.api.definitions import DEFINITIONS
from noderuntime.api.kubernetes import FAILURE, INT_OR_STRING, LIST_TYPE

REPOSITORY = Path(__file__).resolve().parents[3]
Json = dict[str, Any]
CRDS = {definition.kind: crd.crd_of(definition) for definition in DEFINITIONS}
KINDS = pytest.mark.parametrize("kind", CRDS)


def schema_of(kind: str) -> Json:
    schema: Json = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Json, path: str = "", *, in_list: bool = False) -> list[tuple[str, Json, bool]]:
    found = [(path, schema, in_list)]
    for name, field in schema.get("properties", {}).items():
        found += walk(field, f"{path}.{name}", in_list=in_list)
    if "items" in schema:
        found += walk(schema["items"], f"{path}[]", in_list=True)
    if isinstance(schema.get("additionalProperties"), dict):
        found += walk(schema["additionalProperties"], f"{path}{{}}", in_list=in_list)
    return found


def test_the_generated_files_are_up_to_date() -> None:
    assert crd.main(["--check"], REPOSITORY) == 0


def test_the_check_names_a_file_that_is_not_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crd.main(["--write"], tmp_path) == 0
    assert crd.main(["--check"], tmp_path) == 0
    edited = tmp_path / "crds/noderuntime.io_noderuntimes.yaml"
    edited.write_text(edited.read_text() + "\n")
    assert crd.main(["--check"], tmp_path) == 1
    assert "crds/noderuntime.io_noderuntimes.yaml is not up to date" in capsys.readouterr().err
    assert crd.main(["--what"], tmp_path) == 2


@KINDS
def test_a_schema_is_structural(kind: str) -> None:
    for path, schema, _ in walk(schema_of(kind)):
        assert not {"$ref", "allOf", "oneOf", "$defs", "title"} & set(schema), path
        assert schema.get(INT_OR_STRING) or "type" in schema, path
        assert ("anyOf" in schema) == bool(schema.get(INT_OR_STRING)), path


@KINDS
def test_every_field_is_described(kind: str) -> None:
    for part in ("spec", "status"):
        for path, schema, _ in walk(schema_of(kind)["properties"][part]):
            if not path.endswith(("[]", "{}")):
                assert schema.get("description"), path


def test_every_field_of_a_profile_says_what_breaks_it() -> None:
    """A field inside of a list or of another is spoken for by the one around it."""
    spec = crd.schema_of(DEFINITIONS[1])["properties"]["spec"]
    silent: set[str] = set()
    for path, schema, in_list in walk(spec):
        inner = in_list or path.endswith("{}")
        is_leaf = not schema.get("properties") and not inner and path
        if is_leaf and FAILURE not in schema:
            silent.add(path.lstrip("."))
    # Each field of hostPaths says it itself; what a filter does is in the words of its fields.
    assert {name for name in silent if not name.startswith("seccomp.")} == {"hostPaths"}


def test_what_only_a_page_shows_is_in_no_crd() -> None:
    assert FAILURE not in crd.to_yaml(CRDS)


def test_no_default_hides_what_a_profile_leaves_to_its_base() -> None:
    spec = schema_of("SecurityProfile")["properties"]["spec"]
    assert [path for path, schema, _ in walk(spec) if "default" in schema] == [".mode"]


@KINDS
def test_there_is_no_default_inside_a_list_and_none_of_an_object(kind: str) -> None:
    for path, schema, in_list in walk(schema_of(kind)["properties"]["spec"]):
        assert not (in_list and "default" in schema), path
        assert not isinstance(schema.get("default"), (dict, list)), path


@KINDS
def test_every_list_and_text_is_bounded_and_says_how_it_merges(kind: str) -> None:
    for path, schema, _ in walk(schema_of(kind)["properties"]["spec"]):
        if schema.get("type") == "array":
            assert LIST_TYPE in schema, path
            assert "maxItems" in schema, path
        if schema.get("type") == "string":
            assert {"maxLength", "enum"} & set(schema), path


@KINDS
def test_the_yaml_is_what_was_meant(kind: str) -> None:
    assert yaml.safe_load(crd.to_yaml(CRDS[kind])) == CRDS[kind]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}},
        {"a": []},
        {"a": [[], {"b": "on"}]},
        {"a": "x: y # z\n"},
        [{"a": 1, "b": [True]}],
    ],
)
def test_yaml_is_written_for_every_shape(value: object) -> None:
    assert yaml.safe_load(crd.to_yaml(value)) == value


def test_a_chart_that_is_removed_leaves_the_crds() -> None:
    for document in CRDS.values():
        assert document["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_category_hides_no_name() -> None:
    names = [document["spec"]["names"] for document in CRDS.values()]
    taken = {
        name for each in names for name in (each["plural"], each["singular"], *each["shortNames"])
    }
    assert not taken & {category for each in names for category in each["categories"]}


def test_a_union_is_refused() -> None:
    with pytest.raises(ValueError, match="a union has no place in a CRD"):
        crd.structural({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {})


def test_a_list_that_does_not_say_how_it_merges_is_refused() -> None:
    with pytest.raises(ValueError, match="list without x-kubernetes-list-type"):
        crd.structural({"type": "array", "items": {"type": "string"}}, {})
