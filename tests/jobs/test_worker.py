"""The process of a job: its packages, and the real trainer on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.version import Version

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.state import to_json
from lib_methods.jobs import packages
from lib_methods.jobs.files import JobFiles, Record, deliver_to, is_held, save_record
from lib_methods.jobs.job import Jobs
from lib_methods.jobs.packages import HOSTS_OWN, REQUIREMENTS, Requirement, ensure, missing
from lib_methods.jobs.process import STOPPED, WORKER
from lib_methods.pip import InstallError, Say
from standalone import ROOT
from tests.dreambooth.models import put
from tests.standalone import tiny
from tests.webui.hosts import HOSTS, Host, WebUIUnavailable

TOY = Requirement("toy-package", "2.1", "2.2")


def install(folder: Path, name: str, version: str) -> None:
    """What pip leaves of a package, without pip."""
    (folder / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    (folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
    )
    (folder / f"{name.replace('-', '_')}.py").write_text(f"version = {version!r}\n", encoding="utf-8")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "REQUIREMENTS", (TOY,))
    monkeypatch.setattr(sys, "path", list(sys.path))


def fake_pip(python: Path, arguments: list[str], log: Path, say: Say, **more: object) -> None:
    """Installs what it is told to."""
    target = Path(arguments[arguments.index("--target") + 1])
    for pin in arguments[arguments.index("--target") + 2 :]:
        install(target, *pin.split("=="))


def no_network(python: Path, arguments: list[str], log: Path, say: Say, **more: object) -> None:
    fake_pip(python, arguments, log, say)
    raise InstallError("no connection")


def quiet(text: str, done: int, total: int) -> None:
    """Nobody listens."""


@pytest.mark.parametrize(
    ("version", "needed"), [("2.0.9", True), ("2.1", False), ("2.10.0.dev1", False), ("3", False), ("junk", True)]
)
def test_only_what_is_missing_or_too_old_is_needed(toy: None, tmp_path: Path, version: str, needed: bool) -> None:
    assert missing(tmp_path) == [TOY]
    install(tmp_path, "toy-package", version)
    assert missing(tmp_path) == ([TOY] if needed else [])


def test_what_the_host_has_is_not_installed_again(toy: None, tmp_path: Path) -> None:
    install(tmp_path / "host", "toy-package", "2.1.0")
    sys.path.append(str(tmp_path / "host"))
    assert missing(tmp_path / "own") == []
    ensure(tmp_path / "own", quiet)
    assert not (tmp_path / "own").exists()
    assert str(tmp_path / "own") not in sys.path


def test_the_own_folder_comes_before_an_older_one_of_the_host(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "host", "toy-package", "1.0")
    sys.path.append(str(tmp_path / "host"))
    before = sorted(path.name for path in (tmp_path / "host").rglob("*"))
    monkeypatch.setattr(packages, "install", fake_pip)
    told: list[str] = []
    ensure(tmp_path / "own", lambda text, done, total: told.append(f"{text} {done}/{total}"))
    assert told[0].startswith("Installing toy-package 2.2")
    assert sys.path.index(str(tmp_path / "own")) < sys.path.index(str(tmp_path / "host"))
    assert sorted(path.name for path in (tmp_path / "host").rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".installing")] == []
    told.clear()
    ensure(tmp_path / "own", lambda text, done, total: told.append(text))
    assert told == [], "the second time there is nothing to do"


def test_what_an_older_pack_installed_is_brought_up_to_date_where_that_can_be(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Requirement("toy-package", "2.1", "2.3")
    monkeypatch.setattr(packages, "REQUIREMENTS", (newer,))
    install(tmp_path / "own", "toy-package", "2.2")
    monkeypatch.setattr(packages, "install", no_network)
    ensure(tmp_path / "own", quiet)
    assert packages.outdated(tmp_path / "own") == [newer]
    monkeypatch.setattr(packages, "install", fake_pip)
    ensure(tmp_path / "own", quiet)
    assert packages.outdated(tmp_path / "own") == []
    assert [path.name for path in (tmp_path / "own").glob("*.dist-info")] == ["toy_package-2.3.dist-info"]


def test_only_who_asks_for_prodigy_gets_its_package(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "REQUIREMENTS", ())
    monkeypatch.setattr(packages, "OPTIONAL", {"prodigy": TOY})
    monkeypatch.setattr(packages, "install", fake_pip)
    ensure(tmp_path / "own", quiet, also=["adamw"])
    assert not (tmp_path / "own").exists()
    ensure(tmp_path / "own", quiet, also=["prodigy", "LoRA"])
    assert packages.missing(tmp_path / "own", [TOY]) == []


def test_no_package_with_a_known_hole_is_installed() -> None:
    """CVE-2024-47081 in requests, CVE-2025-68146 and CVE-2026-22701 in filelock."""
    pins = {requirement.name: tuple(map(int, requirement.install.split("."))) for requirement in REQUIREMENTS}
    assert pins["requests"] >= (2, 32, 4)
    assert pins["filelock"] >= (3, 20, 3)


def test_a_failed_installation_leaves_nothing(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "install", no_network)
    with pytest.raises(InstallError):
        ensure(tmp_path / "own", quiet)
    assert list((tmp_path / "own").iterdir()) == []
    assert missing(tmp_path / "own") == [TOY]


def test_the_real_pip_without_an_index_ends_in_a_sentence(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    with pytest.raises(InstallError, match=r"toy-package 2\.2.*package index"):
        ensure(tmp_path / "own", quiet)
    assert not (tmp_path / "elsewhere").exists()
    assert "toy-package" in capfd.readouterr().out, "the console file keeps what pip said"


def test_a_python_that_is_no_webuis(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "HOSTS_OWN", ("no-such-thing",))
    with pytest.raises(InstallError, match="has no no-such-thing"):
        ensure(tmp_path / "own", quiet)


def test_pip_is_told_to_touch_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def remember(python: Path, arguments: list[str], *more: object, **named: object) -> None:
        told.extend(arguments)
        raise InstallError("enough")

    monkeypatch.setattr(packages, "install", remember)
    monkeypatch.setattr(packages, "missing", lambda folder, wanted: wanted)
    with pytest.raises(InstallError):
        ensure(tmp_path / "own", quiet)
    assert {"--no-deps", "--only-binary=:all:", "--target"} <= set(told)
    assert told[-len(REQUIREMENTS) :] == [f"{needed.name}=={needed.install}" for needed in REQUIREMENTS]
    assert all(Version(needed.install) >= Version(needed.least) for needed in REQUIREMENTS), "what is installed must do"
    assert not {requirement.name for requirement in REQUIREMENTS} & set(HOSTS_OWN)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.title)
def test_the_engine_and_the_trainer_import_in_the_real_webui(tmp_path: Path, host: Host) -> None:
    """With the WebUI's own interpreter, transformers and torch; diffusers from the pack's folder where it has none."""
    try:
        python = str(host.python())
    except WebUIUnavailable as reason:
        pytest.skip(str(reason))
    code = (
        (
            "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from lib_methods.jobs import packages\n"
            "before = [r.name for r in packages.missing(Path(sys.argv[2]))]\n"
            "packages.ensure(Path(sys.argv[2]), lambda *line: None)\n"
            "import diffusers, standalone.engine.checkpoint, standalone.dreambooth\n"
            "import lib_methods.dreambooth.run\n"
            "model = standalone.dreambooth.load_training_model(Path(sys.argv[3]), 'cpu', None)\n"
            "print(json.dumps({'missing': before, 'from': diffusers.__file__, 'family': model.family}))"
        )
        .replace("'cpu', None", "torch.device('cpu'), torch.float32")
        .replace("import json", "import torch, json")
    )
    shapes = ROOT / "models" / "shapes" / "shapes.safetensors"
    command = [python, "-I", "-c", code, str(ROOT), str(tmp_path / "own"), str(shapes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "no connection" in done.stderr or "package index" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["family"] == "sd1"
    if "diffusers" in told["missing"]:
        assert Path(told["from"]).is_relative_to(tmp_path / "own")


PATIENCE = 300.0  # a busy machine


class Room:
    def release(self, why: str) -> None:
        """There is no model."""

    def restore(self) -> None:
        """There is no model."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.safetensors"
    tiny.write_file(tiny.build("sd1"), path)
    return path


def asked(root: Path, base: Path, steps: int) -> TrainingSettings:
    files = JobFiles(root, "rex")
    files.photos.mkdir(parents=True)
    for number in range(3):
        put(files.photos, f"{number}.png", 64, 64, number)
    return TrainingSettings(
        photos=files.photos, base=base, out=files.out, name="rex", class_noun="dog", steps=steps, resolution=64,
        sample_every=steps,
    )  # fmt: skip


@pytest.mark.slow
def test_a_lora_by_the_real_trainer(tmp_path: Path, base: Path) -> None:
    trainings = Jobs(tmp_path / "data", Room(), deliver_to(lambda kind: tmp_path / kind))
    wanted = asked(tmp_path / "data", base, 3)
    trainings.start(wanted.name, wanted.kind, to_json(wanted))
    assert trainings.wait(PATIENCE)
    state = trainings.state()
    assert state.record is not None
    assert (state.record.status, state.record.error) == ("done", "")
    assert state.record.results[0] == "rex.safetensors"
    assert state.record.prompt.startswith("a ") and state.record.prompt.endswith(" dog")
    assert (tmp_path / "LoRA" / "rex.safetensors").is_file()
    assert sorted(state.progress.losses) == [1, 2, 3]
    plan = state.progress.of("plan")
    assert plan["steps"] == 3 and plan["bytes"] > 0 and plan["device"]
    assert state.progress.samples and state.progress.samples[-1].files[0].is_file()


@pytest.mark.slow
def test_what_the_trainer_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    broken = tmp_path / "base.safetensors"
    broken.write_bytes(b"no weights")
    trainings = Jobs(tmp_path / "data", Room(), deliver_to(lambda kind: tmp_path / kind))
    wanted = asked(tmp_path / "data", broken, 3)
    trainings.start(wanted.name, wanted.kind, to_json(wanted))
    assert trainings.wait(PATIENCE)
    record = trainings.state().record
    assert record is not None and record.status == "failed"
    assert "base.safetensors" in record.error
    assert str(tmp_path) not in record.error and "internal" not in record.error


@pytest.mark.slow
def test_a_training_ends_with_its_host_and_keeps_its_state(tmp_path: Path, base: Path) -> None:
    files = JobFiles(tmp_path, "rex")
    settings = asked(tmp_path, base, 100_000)
    save_record(files, Record("rex", "LoRA", "running", started=time.time()))
    files.settings.write_text(json.dumps(to_json(settings)), encoding="utf-8")
    command = [sys.executable, str(WORKER), "train-dreambooth", str(files.record)]
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=console, stderr=console, cwd=tmp_path, env=dict(os.environ)
        )
    try:
        end = time.monotonic() + PATIENCE
        while not (files.log.is_file() and '"event": "step"' in files.log.read_text(encoding="utf-8")):
            assert process.poll() is None, (tmp_path / "console").read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.2)
        assert is_held(files.lock)
        assert process.stdin is not None
        process.stdin.close()  # as when the host ends
        assert process.wait(PATIENCE) == STOPPED
    finally:
        process.kill()
        process.wait(10)
    assert not is_held(files.lock)
    assert (files.folder / "state.safetensors").is_file()
    trainings = Jobs(tmp_path, Room(), deliver_to(lambda kind: tmp_path / kind))
    assert trainings.state().can_resume


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(timeout=0); print(True, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "True"
        assert is_held(path)
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
    assert not is_held(path)
