"""Each example starts and does its job, with the real framework: what is committed arrives, what is not never does."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import yaml

from outbox.testing import Receiver
from tests.examples.conftest import EXAMPLES, Start
from tests.story.process import eventually

pytestmark = pytest.mark.merge

PHOTO = b"\xff\xd8 bytes of a photo \xff\xd9"
Run = Callable[..., str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code < 500
    except requests.ConnectionError:
        return False


def inspect(url: str, device: str, severity: int) -> requests.Response:
    form = {"device": device, "severity": str(severity)}
    return requests.post(f"{url}/inspections", data=form, files={"photo": ("photo.jpg", PHOTO, "image/jpeg")}, timeout=30)


def arrived(receiver: Receiver) -> dict[str, list[str]]:
    """Devices, and the digests of the files that came with their events."""
    return {each.struct["assetId"]: [file.sha256 for file in each.files.values()] for each in receiver.accepted}


WHOLE = [hashlib.sha256(PHOTO).hexdigest()]


def test_fastapi_commits_both_or_none_and_delivers_in_the_same_process(receiver: Receiver, start: Start) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    app = start("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port), "fastapi_app:app")
    app.until(lambda: answers(f"{url}/outbox"))

    accepted, refused = inspect(url, "turbine-7", 3), inspect(url, " ", 3)

    assert (201, 422) == (accepted.status_code, refused.status_code), app.said
    assert "assetId" in refused.text
    app.until(lambda: receiver.accepted)
    assert {"turbine-7": WHOLE} == arrived(receiver)
    app.until(lambda: requests.get(f"{url}/outbox", timeout=5).json() == {"enos": 0})
    app.stop()
    assert "Application shutdown complete" in app.said


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_django_commits_both_or_none_and_a_worker_delivers(
    receiver: Receiver, start: Start, run: Run, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    place = {"SHOP_DIR": str(tmp_path)}
    if kind == "postgres":
        found = sa.make_url(request.getfixturevalue("postgres_url")).set(drivername="postgresql")
        place["SHOP_POSTGRES"] = found.render_as_string(hide_password=False)
    manage = str(EXAMPLES / "django_shop" / "manage.py")
    run(manage, "migrate", "--run-syncdb", **place)
    run("-m", "outbox", "--app", "shop.delivery:outbox", "db", "upgrade", **place)
    url = f"http://127.0.0.1:{(port := free_port())}"
    app = start(manage, "runserver", "--noreload", f"127.0.0.1:{port}", **place)
    app.until(lambda: answers(url))

    accepted, failed, again = inspect(url, "turbine-7", 3), inspect(url, "turbine-8", 11), inspect(url, "turbine-9", 4)

    assert [201, 500, 201] == [accepted.status_code, failed.status_code, again.status_code], app.said
    worker = start("-m", "outbox", "--app", "shop.delivery:outbox", "worker", **place)
    worker.until(lambda: len(receiver.accepted) == 2)
    assert {"turbine-7": WHOLE, "turbine-9": WHOLE} == arrived(receiver)
    assert 0 == worker.stop(), worker.said
    count = "from shop.models import Inspection; print(Inspection.objects.count())"
    assert "2" == run(manage, "shell", "-v", "0", "-c", count, **place).strip()


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    folder = tmp_path / "turbine-7"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(PHOTO)
    return folder


def local_settings(receiver: Receiver) -> dict[str, str]:
    """What outbox.toml does not say, or says of a real EnOS."""
    return {
        "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
        "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
    }


def test_the_gateway_takes_each_picture_once_however_it_ends(receiver: Receiver, start: Start, run: Run, camera: Path) -> None:
    local = local_settings(receiver)
    run("-m", "outbox", "init", **local)
    program = str(EXAMPLES / "gateway.py")
    first = start(program, str(camera), **local)
    first.until(lambda: len(receiver.accepted) == 1)
    first.kill()

    (camera / "2.jpg").write_bytes(PHOTO)
    second = start(program, str(camera), **local)
    second.until(lambda: len(receiver.accepted) == 2)

    assert 0 == second.stop(), second.said
    assert [WHOLE[0]] * 2 == [file.sha256 for each in receiver.accepted for file in each.files.values()]
    assert {"turbine-7"} == {each.struct["assetId"] for each in receiver.accepted}


def test_a_picture_that_is_refused_keeps_the_gateway_from_no_other(
    receiver: Receiver, start: Start, run: Run, camera: Path
) -> None:
    local = local_settings(receiver)
    run("-m", "outbox", "init", **local)
    (camera / "0-None.jpg").write_bytes(PHOTO)
    (camera / "0-gone.jpg").symlink_to(camera / "nowhere.jpg")

    program = start(str(EXAMPLES / "gateway.py"), str(camera), **local)
    program.until(lambda: len(receiver.accepted) == 1)

    assert 0 == program.stop(), program.said
    assert "0-None.jpg is left out: key: " in program.said


def test_the_containers_of_the_manifest_deliver_what_the_program_commits(
    receiver: Receiver, environment: dict[str, str], tmp_path: Path, camera: Path
) -> None:
    manifest = (EXAMPLES / "kubernetes.yaml").read_text("utf-8")
    pod = Pod(manifest, tmp_path, environment | local_settings(receiver), camera)
    try:
        pod.run("upgrade")
        worker = pod.start("worker")
        eventually(lambda: answers(f"{pod.health}/livez") and answers(f"{pod.health}/readyz"))

        pod.start("gateway")
        eventually(lambda: receiver.accepted)

        assert {"turbine-7": WHOLE} == arrived(receiver)
        worker.terminate()
        assert 0 == worker.wait(60)
    finally:
        pod.close()


class Pod:
    """The containers of a manifest as processes on this machine: mounted folders are folders here, ports are free ones."""

    def __init__(self, manifest: str, folder: Path, environment: dict[str, str], camera: Path) -> None:
        (settings, _claim, workload) = yaml.safe_load_all(manifest)
        spec = workload["spec"]["template"]["spec"]
        self.containers = {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}
        self.port = free_port()
        self.health = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self._folder = folder
        volumes = {each["name"] for each in spec["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for each in self.containers.values() for mount in each["volumeMounts"]}
        assert volumes == set(mounts.values())
        self._here = {path: str(camera if name == "camera" else folder / name) for path, name in mounts.items()}
        for name in volumes - {"camera"}:
            (folder / name).mkdir()
        (folder / "secret" / "app-secret").write_text("app-secret")
        for name, text in settings["data"].items():
            (folder / "settings" / name).write_text(self._moved(text))
        self._processes: list[subprocess.Popen[bytes]] = []

    def _moved(self, text: str) -> str:
        for path in sorted(self._here, key=len, reverse=True):
            text = text.replace(path, self._here[path])
        return text.replace("0.0.0.0:9464", f"127.0.0.1:{self.port}")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        container = self.containers[name]
        command = container.get("command") or ["python", "-m", "outbox"]
        given = [self._moved(each) for each in (*command, *container.get("args", []))]
        given[0] = sys.executable
        if given[1].endswith(".py"):
            given[1] = str(EXAMPLES / given[1])
        own = {
            each["name"]: self._moved(each.get("value", self._environment.get(each["name"], ""))) for each in container["env"]
        }
        self._processes.append(subprocess.Popen(given, cwd=self._folder, env=self._environment | own))
        return self._processes[-1]

    def run(self, name: str) -> None:
        assert 0 == self.start(name).wait(60)

    def close(self) -> None:
        for each in self._processes:
            each.kill()
            each.wait()


def test_the_probes_ask_where_the_worker_answers(tmp_path: Path) -> None:
    documents: list[Any] = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text("utf-8")))
    spec = documents[-1]["spec"]["template"]["spec"]
    (worker,) = [each for each in spec["initContainers"] if each["name"] == "worker"]

    ports = {each["name"]: each["containerPort"] for each in worker["ports"]}
    probes = {name: worker[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {"health": 9464} == ports
    assert {"/livez", "/readyz"} == {each["path"] for each in probes.values()}
    assert all(each["port"] in ports for each in probes.values())
    assert spec["terminationGracePeriodSeconds"] > 30
