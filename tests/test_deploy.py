"""Proves, without a cluster or a container: what is shipped to deploy is valid, hardened, and names what exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from client.exposed import NUMBERS
from common.config import fill, load_table
from common.telemetry import METRICS

ROOT = Path(__file__).parents[1]
DEPLOY = (ROOT / "client" / "deploy", ROOT / "server" / "deploy")
YAML = sorted(path for folder in DEPLOY for path in folder.rglob("*.yaml"))
DOCKERFILES = sorted(path for folder in DEPLOY for path in folder.glob("Dockerfile*"))
COMPOSE = sorted(path for folder in DEPLOY for path in folder.glob("compose*.yaml"))
KUSTOMIZED = sorted(path.parent for folder in DEPLOY for path in folder.rglob("kustomization.yaml"))
RUNBOOK = ROOT / "client" / "deploy" / "RUNBOOK.md"
PAGES = (RUNBOOK, *(folder / "README.md" for folder in DEPLOY))
SCHEMA = json.loads((ROOT / "tests" / "vectors" / "compose-spec.json").read_text())
OLDEST, NEWEST = "1.31", "1.37"  # Kubernetes releases; kubernetes-validate brings their schemas
HOME = "/srv/veilfed"
PROGRAM = Path(sys.executable).parent


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def manifests() -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in YAML:
        if path not in COMPOSE:
            found += [(path, one) for one in yaml.safe_load_all(path.read_text())]
    return found


def resources(kind: str) -> list[dict[str, Any]]:
    return [one for _, one in manifests() if one["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    """Pod specifications that are whole: patches of an overlay are not."""
    return [
        one["spec"]["template"]["spec"]
        for path, one in manifests()
        if "template" in one.get("spec", {}) and "base" in str(path)
    ]


def containers() -> list[dict[str, Any]]:
    return [one for pod in pods() for one in (*pod.get("initContainers", []), *pod["containers"])]


def services() -> list[tuple[str, str, dict[str, Any]]]:
    """File, name and content of every service in a compose file that stands by itself."""
    return [
        (name(path), service, content)
        for path in COMPOSE
        if "gpu" not in path.name
        for service, content in yaml.safe_load(path.read_text())["services"].items()
    ]


SERVICES = services()
IDS = [f"{path}:{service}" for path, service, _ in SERVICES]


# --- every file is what it says it is


def test_yaml_is_clean():
    done = subprocess.run(
        [PROGRAM / "yamllint", "--strict", "-c", ROOT / ".yamllint", *YAML], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_hadolint_finds_nothing(path):
    done = subprocess.run([PROGRAM / "hadolint", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(place):
    (place / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n")
    assert subprocess.run([PROGRAM / "hadolint", place / "Dockerfile"], capture_output=True).returncode != 0


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    ("path", "manifest"), manifests(), ids=lambda it: name(it) if isinstance(it, Path) else it["kind"]
)
def test_kubernetes_takes_each_manifest(path, manifest, version):
    if manifest["kind"] in ("Kustomization", "ServiceMonitor") or path.parent.name == "gpu":
        return  # not Kubernetes' own: the tests below look at them
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_with_a_misspelt_key_would_be_refused():
    wrong = json.loads(json.dumps(resources("StatefulSet")[0]))
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.parametrize("path", COMPOSE, ids=name)
def test_compose_takes_each_file(path):
    """By the specification's own schema, https://github.com/compose-spec/compose-spec (Apache-2.0)."""
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("folder", KUSTOMIZED, ids=name)
def test_a_kustomization_names_files_that_are_there_and_none_is_forgotten(folder):
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = {*content["resources"], *(patch["path"] for patch in content.get("patches", []))}
    for entry in named:
        assert (folder / entry).exists(), entry
    assert {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"} <= named


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed here: it would build the overlays")
@pytest.mark.parametrize("folder", KUSTOMIZED, ids=name)
def test_what_kustomize_makes_of_it_is_valid(folder):
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = [one for one in yaml.safe_load_all(done.stdout) if one["kind"] != "ServiceMonitor"]
    assert made
    for manifest in made:
        kubernetes_validate.validate(manifest, NEWEST, strict=True)
    if folder.name == "gpu":
        (pod,) = [one["spec"]["template"]["spec"] for one in made if one["kind"] == "StatefulSet"]
        gpus = {one["name"]: one["resources"]["limits"].get("nvidia.com/gpu") for one in pod["containers"]}
        assert gpus == {"worker": 1, "node": None}


# --- hardened, each of them


def shortcomings(container: dict[str, Any], pod: dict[str, Any]) -> set[str]:
    """What a container's and its pod's settings leave open."""
    own, shared = container.get("securityContext", {}), pod.get("securityContext", {})
    limits = container.get("resources", {}).get("limits", {})
    wanted = {
        "privilege escalation": own.get("allowPrivilegeEscalation") is False,
        "root file system": own.get("readOnlyRootFilesystem") is True,
        "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "privileged": not own.get("privileged", False),
        "root user": shared.get("runAsNonRoot") is True and shared.get("runAsUser", 0) > 0 and "runAsUser" not in own,
        "seccomp": shared.get("seccompProfile") == {"type": "RuntimeDefault"} and "seccompProfile" not in own,
        "API token": pod.get("automountServiceAccountToken") is False,
        "host": not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")),
        "host path": not any("hostPath" in volume for volume in pod.get("volumes", [])),
        "limits": {"cpu", "memory"} <= set(limits),
    }
    return {what for what, held in wanted.items() if not held}


def test_every_container_of_every_pod_is_hardened():
    assert len(containers()) == 6
    for pod in pods():
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert shortcomings(container, pod) == set(), container["name"]


@pytest.mark.parametrize("missing", ["allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"])
def test_one_setting_less_is_seen(missing):
    pod = json.loads(json.dumps(pods()[0]))
    del pod["containers"][0]["securityContext"][missing]
    assert len(shortcomings(pod["containers"][0], pod)) == 1
    for key in ("runAsNonRoot", "seccompProfile"):
        other = json.loads(json.dumps(pods()[0]))
        del other["securityContext"][key]
        assert len(shortcomings(other["containers"][0], other)) == 1


@pytest.mark.parametrize(("path", "service", "content"), SERVICES, ids=IDS)
def test_every_service_is_hardened(path, service, content):
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    assert content["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\$\{VEILFED_UID:-[1-9]\d+\}:\$\{VEILFED_GID:-[1-9]\d+\}", content["user"])
    assert content["mem_limit"]
    assert content["cpus"]
    assert content["pids_limit"]
    assert content["tmpfs"][0].startswith("/tmp:size=")  # noqa: S108 - in memory, in a container
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(content)
    assert not any("docker.sock" in str(volume) for volume in content.get("volumes", []))


def mounts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["target"]: volume for volume in content["volumes"]}


@pytest.mark.parametrize(("path", "service", "content"), SERVICES, ids=IDS)
def test_who_has_the_records_has_no_network_and_the_other_way_round(path, service, content):
    held = mounts(content)
    records = {"/data", "/keys"} & set(held) or (HOME in held and service != "coordinator")
    if records:
        assert content["network_mode"] == "none"
        assert "networks" not in content
        assert "ports" not in content
        assert held["/data"]["read_only"] is True
    elif service != "coordinator":
        assert set(held) == {
            f"{HOME}/{file}" for file in ("node.key", "node.crt", "roots.pem", "connection.json", "run")
        }
        assert all(volume.get("read_only") for target, volume in held.items() if target != f"{HOME}/run")


def pairs() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for path in COMPOSE:
        content = yaml.safe_load(path.read_text())["services"] if "gpu" not in path.name else {}
        for service in content:
            if service.endswith("worker"):
                yield content[service], content[service.replace("worker", "node")]


def test_worker_and_node_share_one_volume_and_no_site_shares_one_with_another():
    found = list(pairs())
    assert len(found) == 4
    shared = [(mounts(worker)[f"{HOME}/run"], mounts(node)[f"{HOME}/run"]) for worker, node in found]
    assert all(ours == theirs for ours, theirs in shared)
    assert len({ours["source"] for ours, _ in shared}) == len(shared)
    assert NUMBERS.startswith("run/")


def test_a_site_among_three_is_the_site_that_stands_alone():
    """The two files say the same; what differs is where a site lies and which network its node is in."""
    (lone_worker, lone_node), *others = list(pairs())
    differing = {"volumes", "networks", "ports", "environment"}
    for worker, node in others:
        for alone, among in ((lone_worker, worker), (lone_node, node)):
            assert {k: v for k, v in alone.items() if k not in differing} == {
                k: v for k, v in among.items() if k not in differing
            }
            assert alone["environment"] == among["environment"]
            assert list(mounts(alone)) == list(mounts(among))


def test_sites_of_one_machine_meet_the_coordinator_and_nobody_else():
    content = yaml.safe_load((ROOT / "server/deploy/compose.yaml").read_text())
    of_nodes = [node["networks"] for _, node in pairs()][1:]
    assert sorted(network for networks in of_nodes for network in networks) == sorted(
        set(content["networks"]) - {"door"}
    )
    assert all(content["networks"][network] == {"internal": True} for networks in of_nodes for network in networks)


# --- nothing floats, nothing secret


def test_no_tag_floats_and_no_image_is_without_one():
    gpu = yaml.safe_load((DEPLOY[0] / "kubernetes/gpu/worker.yaml").read_text())
    images = [one["image"] for one in (*containers(), *gpu["spec"]["template"]["spec"]["containers"])]
    images += [content["image"] for _, _, content in SERVICES]
    for path in DOCKERFILES:
        images += re.findall(r"BASE=(\S+)", path.read_text())
        assert re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE) == ["${BASE}"] * 2
    assert len(images) > 15
    for image in images:
        bare = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", image)
        assert re.fullmatch(r"[a-z/-]+:[0-9][\w.-]*", bare), image


def test_an_image_runs_as_nobody_in_particular_and_can_tell_how_it_is():
    for path in DOCKERFILES:
        lines = path.read_text().splitlines()
        assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
        assert max(index for index, line in enumerate(lines) if line.startswith(("RUN", "COPY"))) < lines.index(
            "USER 10001:10001"
        )
        assert sum(line.startswith("HEALTHCHECK") for line in lines) == 1
        assert not any(line.startswith("ADD") for line in lines)
        assert sum(line.startswith("FROM") for line in lines) == 2


SECRET_WORDS = re.compile(r"(?i)pass(word|phrase)?|secret|token|api_?key|private")


def test_no_secret_is_in_an_image_or_an_environment():
    for path in DOCKERFILES:
        for line in path.read_text().splitlines():
            if re.match(r"\s*(ENV|ARG|COPY)\b|\s+\w+=", line):
                assert not SECRET_WORDS.search(line), line
    variables = [entry["name"] for one in containers() for entry in one.get("env", [])]
    variables += [key for _, _, content in SERVICES for key in content.get("environment", {})]
    assert set(variables) == {"VEILFED_METRICS", "PYTHONPATH"}
    assert not resources("Secret")
    assert not resources("ConfigMap")


def test_what_is_copied_into_an_image_is_the_package_alone():
    """An allow-list: a site's directory beside the sources, keys in it, never gets into a layer."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:].removesuffix("/**") for rule in rules if rule.startswith("!")}
    assert allowed == {
        "client",
        "common",
        "server",
        "scenarios",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.lock",
    }
    assert all((ROOT / entry).exists() for entry in allowed)


# --- what they speak of exists


def commands() -> list[list[str]]:
    """Everything that a container starts or that asks how it is."""
    found = [one["command"] for one in containers() if one["command"][0] != "sh"]
    for one in containers():
        found += [
            one[probe]["exec"]["command"] for probe in ("startupProbe", "livenessProbe") if "exec" in one.get(probe, {})
        ]
    for _, _, content in SERVICES:
        found += [content["command"]] if "command" in content else []
        found += [content["healthcheck"]["test"][1:]] if "test" in content["healthcheck"] else []
    for path in DOCKERFILES:
        found += [json.loads(line) for line in re.findall(r"CMD (\[.*\])", path.read_text())]
    return found


def test_every_command_is_a_module_of_ours_or_veilfed():
    for command in commands():
        if command[0] == "python":
            assert command[1] == "-m"
            assert command[2].split(".")[0] in ("client", "common", "server")
            assert (ROOT / f"{command[2].replace('.', '/')}.py").exists(), command
        else:
            assert command[0] == "veilfed"
            understood(command[1:])


def test_ports_are_the_same_everywhere():
    """8443 for the gateway, as in the example consortium, and 9464 for numbers; no other is spoken of."""
    assert load_table(ROOT / "server/deploy/consortium.toml")["address"].endswith(":8443")
    pattern = re.compile(r"(?:port|Port|EXPOSE):? *(\d+)|(?:[\w\"}.]):(\d{4,5})\b")
    found = {number for path in (*YAML, *DOCKERFILES) for pair in pattern.findall(path.read_text()) for number in pair}
    assert found - {"", "10001"} == {"8443", "9464"}


def test_services_and_budgets_and_policies_choose_pods_that_exist():
    for folder in DEPLOY:
        here = [one for path, one in manifests() if folder in path.parents]
        labels = [
            one["spec"]["template"]["metadata"]["labels"]
            for one in here
            if one["kind"] == "StatefulSet" and "serviceName" in one["spec"]
        ]
        assert labels

        def chosen(selector, labels=labels):
            return any(selector.items() <= each.items() for each in labels)

        for one in here:
            match one["kind"]:
                case "Service":
                    assert chosen(one["spec"]["selector"])
                case "PodDisruptionBudget":
                    assert chosen(one["spec"]["selector"]["matchLabels"])
                case "NetworkPolicy":
                    assert chosen(one["spec"]["podSelector"].get("matchLabels", {}))
                case "ServiceMonitor":
                    wanted = one["spec"]["selector"]["matchLabels"]
                    (service,) = [
                        it
                        for it in here
                        if it["kind"] == "Service" and wanted.items() <= it["metadata"]["labels"].items()
                    ]
                    assert one["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_nothing_goes_in_or_out_but_what_is_named():
    for folder, port, out in ((DEPLOY[0], 9464, [8443]), (DEPLOY[1], 8443, [])):
        policies = [
            one["spec"] for path, one in manifests() if folder in path.parents and one["kind"] == "NetworkPolicy"
        ]
        deny, ours = policies
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        assert ours["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
        assert [entry["port"] for rule in ours["egress"] for entry in rule["ports"]] == out
        for rule in ours["egress"]:
            assert rule["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]


def test_every_mount_has_its_volume_and_only_the_worker_has_records():
    for one in resources("StatefulSet"):
        if "serviceName" not in one["spec"]:
            continue
        pod = one["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]} | {
            claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]
        }
        used = {
            container["name"]: {mount["name"] for mount in container["volumeMounts"]}
            for container in (*pod["initContainers"], *pod["containers"])
        }
        assert set().union(*used.values()) == volumes
        if "worker" in used:
            assert not used["node"] & {"home", "records", "witnesses", "keys", "passphrase", "home-secret"}
            assert not used["worker"] & {"node-home", "node-secret"}
            assert used["worker"] & used["node"] == {"run"}


def test_the_examples_are_what_our_strict_readers_take():
    from client.policy import SitePolicy
    from client.site import SiteSettings
    from server.home import ConsortiumSettings

    site = fill(SiteSettings, load_table(DEPLOY[0] / "site.toml"))
    policy = fill(SitePolicy, load_table(DEPLOY[0] / "policy.toml"))
    assert policy.approval == "manual"
    assert (site.passphrase_file, site.witnesses) == ("/keys/passphrase", "/keys/witnesses")
    assert fill(ConsortiumSettings, load_table(DEPLOY[1] / "consortium.toml")).address.endswith(":8443")


# --- the dashboard and the pages


def test_every_number_on_the_dashboard_is_one_we_count_and_each_is_on_it():
    board = json.loads((ROOT / "server/deploy/grafana/veilfed.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = {word for expression in asked for word in re.findall(r"veilfed_\w+", expression)}
    assert named == set(METRICS)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            labels = {label for word in re.findall(r"veilfed_\w+", target["expr"]) for label in METRICS[word].labels}
            grouped = {label.strip() for by in re.findall(r"by \((.*?)\)", target["expr"]) for label in by.split(",")}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert grouped | shown <= labels, target
            assert target["expr"].count("(") == target["expr"].count(")")


def test_panels_lie_beside_one_another():
    board = json.loads((ROOT / "server/deploy/grafana/veilfed.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def told() -> list[tuple[str, list[str]]]:
    """Every `veilfed ...` of the pages' shell blocks: the service of compose.yaml has the same name."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "veilfed":
                    found.append((name(page), words[1:]))
    return found


@pytest.mark.parametrize(("page", "arguments"), told(), ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_every_command_on_the_pages_is_one_we_have(page, arguments):
    understood(arguments)


def understood(arguments: list[str]) -> None:
    """Raises ConfigError unless `veilfed` takes these."""
    from scenarios.cli import _parser

    _parser().parse_args(arguments)


def test_the_runbook_explains_every_reason_for_a_refusal():
    from common import errors

    text = RUNBOOK.read_text()
    reasons = {
        code
        for code, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.FederationError)
    } - {"FederationError"}
    assert {code for code in reasons if f"`{code}`" not in text} == set()


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), (page, link)
