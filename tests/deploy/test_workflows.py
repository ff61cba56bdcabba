""".github/workflows: valid, with pinned actions and no more rights than a job needs."""

import re
import subprocess
import sys

import pytest
import yaml

from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs(path):
    return yaml.safe_load(path.read_text())["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
class TestWorkflow:
    """Tests of each workflow."""

    def test_it_keeps_to_the_schema_of_workflows(self, path):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr

    def test_actions_are_pinned(self, path):
        for step in steps(path):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w./-]+@v\d+(\.\d+\.\d+)?", step["uses"]), step["uses"]

    def test_it_may_read_and_no_more_unless_a_job_says_so(self, path):
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}

    def test_every_job_ends(self, path):
        for name, job in jobs(path).items():
            assert "timeout-minutes" in job or "uses" in job, f"{name} can hang for hours"

    def test_checkouts_leave_no_credentials_behind(self, path):
        for step in steps(path):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False

    def test_scripts_are_shell(self, path):
        for step in steps(path):
            if "run" in step:
                script = re.sub(r"\$\{\{.*?\}\}", "value", step["run"])
                outcome = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)
                assert outcome.returncode == 0, outcome.stderr


def test_ci_is_the_check_of_this_repository():
    (ci,) = [path for path in WORKFLOWS if path.name == "ci.yml"]
    assert ".ci/run" in [step.get("run") for step in steps(ci)]


def test_a_release_takes_its_notes_from_the_changelog(tmp_path):
    (release,) = [path for path in WORKFLOWS if path.name == "release.yml"]
    (script,) = [step["run"] for step in steps(release) if step.get("name") == "Release"]
    lines, kept = script.splitlines(), []
    for line in lines[: lines.index("test -s notes.md") + 1]:
        kept.append(line)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- a\n\n## 1.2.3, today\n\n- b\n\n## 1.2.2\n\n- c\n")
    environment = {"GITHUB_REF_NAME": "v1.2.3", "PATH": "/usr/bin:/bin"}
    script = "set -e\n" + "\n".join(kept)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=30)
    assert (tmp_path / "notes.md").read_text().split() == ["-", "b"]
    environment["GITHUB_REF_NAME"] = "v9.9.9"
    outcome = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=30)
    assert outcome.returncode != 0, "a version without notes is released"
