"""
The files for Kubernetes: valid, shut in, and in accord with the daemon.
"""

import re
from typing import Any

import pytest

import kvserver
from kvserver.check.options import parseArguments
from kvserver.tap import Options
from tests.support.clients import skip
from tests.support.documents import MANUAL, ROOT

# The extra dev is needed, which not all that run the other tests have.
pytestmark = pytest.mark.slow

DEPLOY = ROOT / "kvserver/deploy"

VERSIONS = "1.30", "1.34", "1.37"
"""
Of Kubernetes. The first one is the oldest that has the sleep of C{preStop} without being asked.
"""

MARGIN = 5
"""
How long the daemon may take to end after its drain, in seconds.
"""


@pytest.fixture(scope="module")
def documents() -> list[Any]:
    """
    All objects that are shipped.
    """
    try:
        import yaml
    except ImportError:
        skip("needs the extra dev, for kubernetes-validate and its YAML")
    files = sorted(DEPLOY.glob("kubernetes*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def find(documents: list[Any], kind: str) -> Any:
    """
    The one object of this kind.
    """
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def templates(documents: list[Any]) -> list[Any]:
    """
    The templates of all pods.
    """
    return [find(documents, kind)["spec"]["template"] for kind in ("Deployment", "Job")]


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(documents: list[Any], version: str) -> None:
    """
    Every object is valid, and has no field that its Kubernetes does not know.
    """
    import kubernetes_validate

    assert len(documents) == 6
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_labels(documents: list[Any]) -> None:
    """
    All that selects pods selects those of the Deployment, and not those of the Job.
    """
    pods, others = (template["metadata"]["labels"] for template in templates(documents))
    deployment = find(documents, "Deployment")["spec"]
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        deployment["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        find(documents, "Service")["spec"]["selector"],
        find(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= pods.items()
        assert not selector.items() <= others.items()


def test_restricted(documents: list[Any]) -> None:
    """
    The pods keep to what Kubernetes calls the restricted standard, on a read-only root.
    """
    for template in templates(documents):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "cpu" not in container["resources"]["limits"]


def test_daemon(documents: list[Any]) -> None:
    """
    The daemon takes its arguments, listens on the ports that the pod names, and has the time to
    drain before it is killed.
    """
    pod = find(documents, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = Options()
    options.parseOptions(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"echo": int(options["port"]), "operations": 9464}
    assert "--metrics=tcp:9464" in container["args"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    least = sleep + float(options["drain-timeout"]) + MARGIN
    assert pod["terminationGracePeriodSeconds"] >= least
    for probe, path in ("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/healthz"):
        get = container[f"{probe}Probe"]["httpGet"]
        assert get == {"path": path, "port": "operations"}


def test_check(documents: list[Any]) -> None:
    """
    The checker takes its arguments, and goes to the Service.
    """
    (container,) = find(documents, "Job")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/opt/kvserver/bin/kvcheck"]
    service = find(documents, "Service")
    (port,) = service["spec"]["ports"]
    assert container["args"] == [f"tcp:{service['metadata']['name']}:{port['port']}"]
    assert parseArguments(container["args"], kvserver.__version__)


def test_manual() -> None:
    """
    The manual names all files that are shipped, and in what can be pasted no other.
    """
    chapter = (MANUAL / "containers.rst").read_text()
    shipped = {path.name for path in DEPLOY.iterdir()}
    assert set(re.findall(r"kvserver/deploy/([\w.-]+)", chapter)) <= shipped
    assert {name for name in shipped if f"``{name}``" in chapter} == shipped
