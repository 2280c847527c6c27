"""The files in deploy/ fit the code: every metric, option, setting and path that they name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outbox import telemetry
from outbox.cli import group
from outbox.cli.work import worker
from outbox.model import Outcome
from outbox.patience import Stop
from outbox.policy import STOP_GRACE
from outbox.settings import Settings, load
from tests.conftest import missing

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "outbox-worker.service").read_text("utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def yaml_of(name: str) -> Any:
    try:
        import yaml
    except ImportError:
        missing("no PyYAML: pip install -e '.[dev]' brings it")
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def alerts() -> list[dict[str, Any]]:
    (rules,) = yaml_of("alerts.yaml")["groups"]
    return list(rules["rules"])


def test_every_metric_in_an_alert_is_one_that_is_served() -> None:
    served = {metric.name for metric in telemetry.METRICS}
    for metric in telemetry.METRICS:
        if metric.kind == "histogram":
            served |= {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}

    named = {name for rule in alerts() for name in re.findall(r"\boutbox_\w+", rule["expr"])}

    assert set() == named - served
    assert len(named) >= 8


def test_every_label_that_an_alert_speaks_of_is_one_of_its_metric() -> None:
    labels = {metric.name: set(metric.labels) for metric in telemetry.METRICS}
    for rule in alerts():
        of_rule = set().union(*(labels[name] for name in re.findall(r"\boutbox_\w+", rule["expr"])))
        spoken_of = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        grouped = {each.strip() for by in re.findall(r"by \(([^)]*)\)", rule["expr"]) for each in by.split(",")}

        assert spoken_of <= grouped <= of_rule, rule["alert"]
        if "outcome=" in rule["expr"]:
            assert set(re.findall(r'outcome="(\w+)"', rule["expr"])) <= {each.value for each in Outcome}


def test_there_is_an_alert_for_whatever_wakes_a_person() -> None:
    named = " ".join(rule["expr"] for rule in alerts())

    for metric in (
        telemetry.WORKERS,
        telemetry.OLDEST_DUE,
        telemetry.DEAD,
        telemetry.STOPPED,
        telemetry.SPOOL_FULL_IN,
        telemetry.DATABASE_UP,
    ):
        assert metric.name in named
    assert all(rule["annotations"]["summary"] and rule["annotations"]["description"] for rule in alerts())
    assert {"pause", "credentials", "reject_streak"} == {each.value for each in Stop}


def test_every_command_that_is_named_exists() -> None:
    pages = [*DEPLOY.glob("*.md"), *DEPLOY.glob("*.yaml"), DEPLOY / "outbox-worker.service"]
    named = {
        tuple(words.split())
        for page in pages
        for words in re.findall(r"(?:`|bin/)outbox ([a-z]+(?: (?:stop|upgrade))?)", page.read_text("utf-8"))
    }
    context = group.make_context("outbox", [], resilient_parsing=True)

    assert ("worker", "stop") in named
    for first, *rest in named:
        command: Any = group.get_command(context, first)
        assert command is not None, first
        for each in rest:
            assert each in command.commands, (first, each)


def test_every_option_of_the_worker_in_them_is_one(tmp_path: Path) -> None:
    known = {name for parameter in worker.params for name in (*parameter.opts, *parameter.secondary_opts)}
    started = [line.partition("outbox worker")[2] for line in UNIT.splitlines() if line.startswith("ExecStart=")]
    compose = " ".join(yaml_of("compose.yaml")["services"]["worker"]["command"])

    for command in (*started, compose, DOCKERFILE.partition("CMD [")[2].partition("]")[0]):
        options = set(re.findall(r"--[a-z-]+", command))
        assert options
        assert set() == options - known


def test_the_settings_that_they_make_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    environment = yaml_of("compose.yaml")["services"]["worker"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))

    settings, _ = load()

    enos = settings.destinations["enos"]
    assert ("file:/run/secrets/enos_app_secret", "enos-events") == (enos.token and enos.token.app_secret, enos.type)
    assert "file:/run/secrets/postgres_password" == settings.database_password
    assert "@postgres/" in settings.database


def test_every_variable_in_the_unit_is_a_setting() -> None:
    named = re.findall(r"^Environment=OUTBOX_([A-Z_]+)=", UNIT, re.MULTILINE)

    assert {"CONFIG", "DATABASE", "SPOOL", "DESTINATIONS__ENOS__TOKEN__APP_SECRET"} == set(named)
    assert {"database", "spool", "destinations"} <= set(Settings.model_fields)


def seconds_of(name: str) -> int:
    return int(re.search(rf"^{name}=(\d+)$", UNIT, re.MULTILINE).group(1))  # type: ignore[union-attr]


def test_the_service_manager_waits_longer_than_the_worker_does() -> None:
    grace = int(re.search(r"--stop-grace (\d+)", UNIT).group(1))  # type: ignore[union-attr]
    compose = yaml_of("compose.yaml")["services"]["worker"]

    assert STOP_GRACE == grace
    assert seconds_of("TimeoutStopSec") >= grace + 30
    assert int(compose["stop_grace_period"].removesuffix("s")) >= int(compose["command"][-1]) + 30
    assert "Type=notify" in UNIT
    assert seconds_of("WatchdogSec") > 0


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    unit = tmp_path / "outbox-worker.service"
    # The command is not where a user will have put it.
    unit.write_text(
        UNIT.replace("/opt/outbox/bin/outbox", sys.executable)
        .replace("User=outbox", "User=root")
        .replace("Group=outbox", "Group=root")
    )

    run = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)

    complaints = [line for line in (run.stdout + run.stderr).splitlines() if unit.name in line]
    assert [] == complaints


def test_no_secret_is_in_them_only_places_of_secrets() -> None:
    compose = yaml_of("compose.yaml")
    for name, value in compose["services"]["worker"]["environment"].items():
        if name.endswith(("PASSWORD", "SECRET", "KEY")):
            assert value.startswith("file:/run/secrets/"), name
            assert value.removeprefix("file:/run/secrets/") in compose["services"]["worker"]["secrets"]
    assert set(compose["secrets"]) == {Path(each["file"]).name for each in compose["secrets"].values()}
    assert "POSTGRES_PASSWORD" not in compose["services"]["postgres"]["environment"]


def test_the_migration_has_run_before_a_worker_begins() -> None:
    services = yaml_of("compose.yaml")["services"]

    assert ["db", "upgrade"] == services["migrate"]["command"]
    assert "service_completed_successfully" == services["worker"]["depends_on"]["migrate"]["condition"]
    assert "service_healthy" == services["migrate"]["depends_on"]["postgres"]["condition"]
    assert "no" == services["migrate"]["restart"]


def test_the_image_runs_as_nobody_special_and_without_a_shell() -> None:
    lines = DOCKERFILE.splitlines()

    assert any(re.fullmatch(r"USER \d+:\d+", line) for line in lines)
    assert 'ENTRYPOINT ["outbox"]' in lines
    assert all(line.split(" ", 1)[1].startswith("[") for line in lines if line.startswith(("CMD ", "ENTRYPOINT ")))
    assert all("-slim" in line for line in lines if line.startswith("FROM "))
    copied = [word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]]
    assert all((ROOT / each).exists() for each in copied)
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert set(copied) == kept


def test_what_the_health_check_says_is_python() -> None:
    (program,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE)
    in_compose = yaml_of("compose.yaml")["services"]["worker"]["healthcheck"]["test"]

    compile(program, "HEALTHCHECK", "exec")
    assert program == in_compose[-1]
