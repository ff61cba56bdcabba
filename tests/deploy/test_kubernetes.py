"""docker/kubernetes: the output of kustomize is valid, and its parts fit together."""

import json
import re
import subprocess
import urllib.request

import jsonschema
import kubernetes_validate
import pytest
import yaml

import queries
from conftest import DOCKER, ROOT, program

KUBERNETES = DOCKER / "kubernetes"
SCHEMAS = ROOT / "tests/fixtures/kubernetes-crds"
BASE = KUBERNETES / "base"
GATEWAY = KUBERNETES / "overlays/inference-gateway"
#: The oldest Kubernetes with the required API (`preStop.sleep`, without a feature gate), and the newest
#: version that the validator supports.
VERSIONS = ["1.30.0", kubernetes_validate.latest_version()]
CLUSTER_WIDE = {"Namespace"}


@pytest.fixture(scope="session")
def kubectl():
    """Returns the path of kubectl: the machine's, or the one that kubectl.sh installs."""
    return program("kubectl", also=ROOT / "target/deploy/kubectl")


@pytest.fixture(scope="session", params=[BASE, GATEWAY], ids=lambda path: path.name)
def resources(request, kubectl):
    """Returns all resources that a kustomization builds."""
    return Resources.built(kubectl, request.param)


@pytest.fixture(scope="session")
def base(kubectl):
    return Resources.built(kubectl, BASE)


@pytest.fixture(scope="session")
def gateway(kubectl):
    return Resources.built(kubectl, GATEWAY)


class Resources(list):
    """Resources, with access by kind and name."""

    @classmethod
    def built(cls, kubectl, folder):
        command = [kubectl, "kustomize", str(folder)]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert outcome.returncode == 0, outcome.stderr
        assert "deprecated" not in outcome.stderr, outcome.stderr
        return cls(yaml.safe_load_all(outcome.stdout))

    def one(self, kind, name="skald"):
        found = [one for one in self if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        assert len(found) == 1, f"{len(found)} resources {kind}/{name}"
        return found[0]

    def of(self, kind):
        return [one for one in self if one["kind"] == kind]

    def pods(self):
        return [one["spec"]["template"] for one in self.of("Deployment")]

    def selected(self, labels):
        """Returns the pod templates that have all of these labels."""
        return [pod for pod in self.pods() if labels.items() <= pod["metadata"]["labels"].items()]

    def container(self):
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return container

    def settings(self):
        """Returns the settings in the ConfigMap of the servers."""
        (name,) = [source["configMapRef"]["name"] for source in self.container()["envFrom"]]
        return self.one("ConfigMap", name)["data"]


def validate(resource):
    """Checks a resource against the schema of its kind, unknown fields included."""
    schema = SCHEMAS / f"{resource['kind'].lower()}.json"
    if schema.exists():
        jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(resource)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_every_resource_is_valid(resources):
    for resource in resources:
        validate(resource)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ["spec", "template", "spec", "containers", 0, "livenessprobe"], {}),
        ("Service", ["spec", "ports", 0, "port"], "http"),
        ("InferencePool", ["spec", "targetPortNumber"], 8080),
        ("InferencePool", ["spec", "endpointPickerRef", "failureMode"], "Open"),
        ("HTTPRoute", ["spec", "rules", 0, "timeouts", "request"], "10 minutes"),
        ("ServiceMonitor", ["spec", "endpoints", 0, "interval"], "15"),
    ],
)
def test_a_resource_that_is_not_valid_is_noticed(gateway, kind, path, value):
    resource = json.loads(json.dumps(gateway.one(kind)))
    *parents, field = path
    at = resource
    for parent in parents:
        at = at[parent]
    at[field] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(resource)


def test_everything_is_in_one_namespace(resources):
    for resource in resources:
        if resource["kind"] not in CLUSTER_WIDE:
            assert resource["metadata"]["namespace"] == resources.one("Namespace")["metadata"]["name"]
    names = [(one["kind"], one["metadata"]["name"]) for one in resources]
    assert len(set(names)) == len(names)


def test_every_selector_selects_the_pods_of_one_deployment(resources):
    for resource in resources:
        match resource["kind"]:
            case "Deployment" | "PodDisruptionBudget":
                labels = resource["spec"]["selector"]["matchLabels"]
            case "Service":
                labels = resource["spec"]["selector"]
            case "InferencePool":
                labels = resource["spec"]["selector"]["matchLabels"]
            case _:
                continue
        assert len(resources.selected(labels)) == 1, f"{resource['kind']} selects by {labels}"
    (spread,) = resources.one("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert len(resources.selected(spread["labelSelector"]["matchLabels"])) == 1


def test_every_port_leads_to_a_container(resources):
    for service in resources.of("Service"):
        (pod,) = resources.selected(service["spec"]["selector"])
        names = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in names, service["metadata"]["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert resources.container()[probe]["httpGet"]["port"] == "http"


def test_references_lead_to_what_is_there(resources):
    scaled = resources.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert resources.one(scaled["kind"], scaled["name"])["apiVersion"] == scaled["apiVersion"]
    monitor = resources.one("ServiceMonitor")["spec"]
    service = resources.one("Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports
    for pod in resources.pods():
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                resources.one("ConfigMap", volume["configMap"]["name"])


def test_the_gateway_reaches_the_servers_and_the_picker(gateway):
    pool = gateway.one("InferencePool")["spec"]
    (port,) = [port for port in gateway.container()["ports"] if port["name"] == "http"]
    assert pool["targetPorts"] == [{"number": port["containerPort"]}]
    picker = gateway.one("Service", pool["endpointPickerRef"]["name"])
    assert pool["endpointPickerRef"]["port"]["number"] in [port["port"] for port in picker["spec"]["ports"]]
    (rule,) = gateway.one("HTTPRoute")["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert gateway.one(backend["kind"], backend["name"])["apiVersion"].startswith(backend["group"])


def test_the_picker_is_told_of_this_pool_and_its_own_plugins(gateway):
    deployment = gateway.one("Deployment", "skald-endpoint-picker")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert arguments["pool-name"] == gateway.one("InferencePool")["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert int(arguments["grpc-port"]) == ports["grpc"]
    assert int(arguments["grpc-health-port"]) == ports["grpc-health"]
    assert container["livenessProbe"]["grpc"]["port"] == ports["grpc-health"]
    (mount,) = container["volumeMounts"]
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    plugins = gateway.one("ConfigMap", volume["configMap"]["name"])["data"]
    assert arguments["config-file"].removeprefix(f"{mount['mountPath']}/") in plugins
    configuration = yaml.safe_load(plugins["plugins.yaml"])
    declared = {plugin["type"] for plugin in configuration["plugins"]}
    for profile in configuration["schedulingProfiles"]:
        assert {plugin["pluginRef"] for plugin in profile["plugins"]} == declared


def test_pods_keep_to_the_restricted_security_standard(resources):
    for pod in resources.pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_has_the_time_to_drain(resources):
    spec = resources.one("Deployment")["spec"]["template"]["spec"]
    drain = seconds(resources.settings()["SKALD_DRAIN_TIMEOUT"])
    leaving = resources.container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > leaving + drain


def test_limits_leave_nothing_to_chance(base):
    """Threads and KV cache are sized by the limits, so limits are set; the pod is never overcommitted."""
    resources = base.container()["resources"]
    for kind in ("cpu", "memory"):
        assert resources["limits"][kind] == resources["requests"][kind]


def test_the_image_is_of_this_version_and_runs_as_its_user(base, version):
    assert base.container()["image"] == f"skald:{version}"
    dockerfile = (DOCKER / "Dockerfile").read_text()
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE).groups()
    context = base.one("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    volumes = json.loads(re.search(r"^VOLUME (.*)$", dockerfile, re.MULTILINE)[1])
    assert sorted(mount["mountPath"] for mount in base.container()["volumeMounts"]) == sorted(volumes)


def test_every_setting_is_one_that_skald_has(base, request):
    binary = request.config.getoption("--skald")
    usage = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, timeout=30).stdout
    names = [*base.settings(), *(variable["name"] for variable in base.container()["env"])]
    for name in names:
        if name.startswith("SKALD_"):
            # The help of a setting with a password does not show its value.
            assert re.search(rf"\[env: {name}[=\]]", usage), f"`skald serve` has no {name}"


def test_probes_ask_for_what_a_server_answers(base, server):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = base.container()[probe]["httpGet"]["path"]
        with urllib.request.urlopen(f"{server}{path}", timeout=5) as response:
            assert response.status == 200


def test_the_autoscaler_reads_what_the_adapter_offers_of_a_server(base, server):
    (metric,) = base.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["matches"] == name
    assert list(queries.Query("adapter", rule["seriesQuery"]).metrics()) == [name]
    with urllib.request.urlopen(f"{server}/metrics", timeout=5) as response:
        assert re.search(rf"^{name} \d", response.read().decode(), re.MULTILINE)


def test_the_guide_makes_a_valid_rule_of_the_alerts():
    """Runs the command of docs/kubernetes.md that wraps alerts.yml for the operator, without kubectl."""
    guide = (ROOT / "docs/kubernetes.md").read_text()
    (command,) = re.findall(r"^(\{ printf .*?\}) \\?\n?\s*\| kubectl apply -f -$", guide, re.MULTILINE | re.DOTALL)
    shell = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert shell.returncode == 0, shell.stderr
    rule = yaml.safe_load(shell.stdout)
    validate(rule)
    assert rule["spec"] == yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())
