from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from e2e.framework.api_server import binary
from e2e.framework.operator_process import rendered_chart

Json = dict[str, Any]
CHART = Path(__file__).resolve().parents[3] / "charts/noderuntime"
TEMPLATES = sorted((CHART / "templates").glob("*"))
VALUES: Json = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Json = yaml.safe_load((CHART / "values.schema.json").read_text())  # JSON is YAML


def leaves(values: Json, schema: Json, path: str = "") -> list[str]:
    """Paths of values, down to where the schema leaves the shape to Kubernetes."""
    found: list[str] = []
    for name, value in values.items():
        here = f"{path}.{name}" if path else name
        part: Json = schema["properties"][name]
        if isinstance(value, dict) and "properties" in part:
            found += leaves(cast("Json", value), part, here)
        else:
            found.append(here)
    return found


def has_helm() -> bool:
    try:
        binary("helm")
    except FileNotFoundError:
        return False
    return True


needs_helm = pytest.mark.skipif(not has_helm(), reason="helm is not there: `make up` fetches it")


def test_every_value_has_a_schema_a_line_in_the_readme_and_a_reader() -> None:
    readme = (CHART / "README.md").read_text()
    templates = "\n".join(path.read_text() for path in TEMPLATES)
    for path in leaves(VALUES, SCHEMA):
        assert f"| `{path}` |" in readme, path
        assert f".Values.{path}" in templates, path


def test_templates_read_only_values_that_are_there() -> None:
    known = set(leaves(VALUES, SCHEMA))
    for file in TEMPLATES:
        assert set(re.findall(r"\.Values\.([\w.]+)", file.read_text())) <= known, file.name


def test_templates_give_the_same_for_the_same_values() -> None:
    for file in TEMPLATES:
        assert not re.search(r"\b(lookup|rand\w+|now|uuidv4|genCA)\b", file.read_text()), file.name


def kinds_of(documents: list[Json], kind: str) -> list[Json]:
    return [each for each in documents if each["kind"] == kind]


@needs_helm
@pytest.mark.slow
def test_the_chart_renders_what_it_should(tmp_path: Path) -> None:
    documents = rendered_chart(tmp_path)
    crds = kinds_of(documents, "CustomResourceDefinition")
    assert [each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in crds] == [
        "keep"
    ] * 3
    (deployment,) = kinds_of(documents, "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    pod = deployment["spec"]["template"]["spec"]
    assert "runtimeClassName" not in pod
    context = pod["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    hooks = [
        each for each in documents if "helm.sh/hook" in each["metadata"].get("annotations", {})
    ]
    assert {each["metadata"]["name"] for each in hooks} == {"noderuntime-release"}
    assert {each["kind"] for each in documents if each["kind"].startswith("Validating")} == {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }


@needs_helm
@pytest.mark.slow
def test_no_role_has_a_wildcard_or_reads_secrets(tmp_path: Path) -> None:
    documents = rendered_chart(tmp_path)
    for role in kinds_of(documents, "ClusterRole") + kinds_of(documents, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "secrets" not in rule["resources"]


@needs_helm
@pytest.mark.slow
def test_what_is_switched_off_is_not_there(tmp_path: Path) -> None:
    off = ["crds.install=false", "admission.enabled=false", "uninstall.release=false"]
    documents = rendered_chart(tmp_path, *(word for each in off for word in ("--set", each)))
    kinds = {each["kind"] for each in documents}
    assert not kinds & {"CustomResourceDefinition", "ValidatingAdmissionPolicy", "Job"}


@needs_helm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("image.repositry=x", "repositry"),
        ("image.digest=sha256:1", "image/digest"),
        ("image.pullPolicy=Sometimes", "image/pullPolicy"),
        ("crds.install=maybe", "crds/install"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        rendered_chart(tmp_path, "--set", value)


@needs_helm
@pytest.mark.slow
def test_a_digest_wins_over_the_tag(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    documents = rendered_chart(
        tmp_path, "--set", f"image.digest={digest}", "--set", "image.repository=r/noderuntime"
    )
    (deployment,) = kinds_of(documents, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    agent = next(each for each in container["env"] if each["name"] == "NODERUNTIME_AGENT_IMAGE")
    assert container["image"] == agent["value"] == f"r/noderuntime@{digest}"
