import json
import ssl

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from e2e.cluster import certs, components
from e2e.cluster.layout import Layout, node_name


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("repository"))
    layout.root.mkdir()
    assert certs.make(layout, components.API_URL)
    return layout


def certificate(layout: Layout, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((layout.pki / f"{name}.crt").read_bytes())


@pytest.mark.parametrize("leaf", certs.leaves(node_name()), ids=lambda leaf: leaf.name)
def test_each_certificate_is_signed_by_its_authority(layout: Layout, leaf: certs.Leaf) -> None:
    made = certificate(layout, leaf.name)

    made.verify_directly_issued_by(certificate(layout, leaf.authority))
    usage = made.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    assert isinstance(usage, x509.ExtendedKeyUsage)
    assert set(usage) == set(leaf.usages)


def test_the_kubelet_is_the_node_that_node_authorization_knows(layout: Layout) -> None:
    subject = certificate(layout, "kubelet").subject

    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == (
        f"system:node:{node_name()}"
    )
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


def test_keys_are_for_root_alone(layout: Layout) -> None:
    keys = [*layout.pki.glob("*.key"), *layout.kubeconfigs.iterdir(), layout.kubeconfig]

    assert len(keys) > 10
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_a_kubeconfig_names_the_api_server_and_a_loadable_pair(layout: Layout) -> None:
    content = json.loads(layout.kubeconfig.read_text())
    user = content["users"][0]["user"]

    assert content["clusters"][0]["cluster"]["server"] == components.API_URL
    context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
    context.load_cert_chain(user["client-certificate"], user["client-key"])


def test_making_them_again_changes_nothing(layout: Layout) -> None:
    before = (layout.pki / "ca.crt").read_bytes()

    assert not certs.make(layout, components.API_URL)
    assert (layout.pki / "ca.crt").read_bytes() == before
