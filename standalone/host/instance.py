"""Starts the standalone host: puts `modules` on the path, loads a checkpoint and the scripts, opens the job queue."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from lib_methods.errors import UserError, reason
from lib_methods.files import sweep
from standalone.engine.model import StableDiffusionModel
from standalone.engine.weights import check_not_pickled
from standalone.host import callbacks, checkpoints, devices, extra_networks, lora, paths, shared
from standalone.host.jobs.queue import Job, JobQueue
from standalone.host.sampling import registry
from standalone.host.scripts import loading

HERE = Path(__file__).resolve().parents[1]
REPO = HERE.parent
SETTINGS = "config.json"

_running: Host | None = None


@dataclass(eq=False)
class Host:
    """A running host. There is at most one in a process, since `modules` has one state."""

    checkpoint: Path
    data_dir: Path
    output_dir: Path
    extension_dirs: list[Path]

    def __post_init__(self) -> None:
        self.queue = JobQueue(before=lambda job: shared.state.begin(job=job.name), after=_end)
        self.closed = False

    @property
    def model(self) -> StableDiffusionModel:
        """The loaded model."""
        return shared.sd_model

    def save_settings(self) -> None:
        """Writes the settings to the data folder."""
        shared.opts.save(self.data_dir / SETTINGS)

    def stop(self) -> None:
        """Ends the running job at its next step and takes no more; does not wait, so a signal handler may call it."""
        shared.state.interrupt()
        self.queue.refuse()

    def close(self) -> None:
        """Ends the jobs, tells the scripts, frees the model. The process may then start another host."""
        global _running
        if self.closed:
            return
        self.closed = True
        self.stop()
        self.queue.close()
        callbacks.script_unloaded_callback()
        callbacks.clear_callbacks()
        checkpoints.reset()
        if _running is self:
            _running = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def running() -> Host | None:
    """The host of this process, if one runs."""
    return _running


def _end(job: Job) -> None:
    shared.state.end()
    shared.total_tqdm.clear()


def import_modules() -> None:
    """Makes `import modules` find the host's package. Raises UserError when another package of that name is in use."""
    for folder in (str(HERE), str(REPO)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    loaded = sys.modules.get("modules")
    if loaded is not None:
        where = [Path(path).resolve() for path in getattr(loaded, "__path__", [])]
        if HERE / "modules" not in where:
            raise UserError(
                "Another package named 'modules' is loaded in this Python process, so the host cannot start here."
            )
    import modules

    if HERE / "modules" not in [Path(path).resolve() for path in modules.__path__]:
        raise UserError(
            "Python finds another package named 'modules' before the host's own; start from another folder."
        )


def start(
    *,
    checkpoint: str | Path,
    data_dir: str | Path,
    output_dir: str | Path | None = None,
    extension_dirs: Sequence[str | Path] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[str], None] | None = None,
    as_chosen: bool = False,
) -> Host:
    """Starts the host, or returns the running one when it was started with the same folders and checkpoint.

    `data_dir` keeps settings and whatever scripts keep, `output_dir` (its subfolder `outputs`) the images.
    `extension_dirs` are the folders whose `scripts/` are loaded, by default this repository and what is in `extensions`
    of `data_dir`. `device` and `dtype` None:
    the GPU in half precision if there is one, else the CPU in single precision. `progress` gets lines of text.
    `as_chosen`: the checkpoint that the settings name is loaded instead of `checkpoint`, where that can be.
    Raises UserError, for a checkpoint that cannot be loaded CheckpointError: one sentence for the user.
    """
    global _running
    checkpoint, data_dir = Path(checkpoint).resolve(), Path(data_dir).resolve()
    outputs = Path(output_dir).resolve() if output_dir is not None else data_dir / "outputs"
    extension_dirs = [REPO, *paths.installed_extensions(data_dir)] if extension_dirs is None else extension_dirs
    folders = [Path(folder).resolve() for folder in extension_dirs]
    if _running is not None:
        known = (_running.checkpoint, _running.data_dir, _running.output_dir, _running.extension_dirs)
        if known == (checkpoint, data_dir, outputs, folders):
            return _running
        raise UserError("A host is already running in this process. Close it first.")
    import_modules()
    say = progress or (lambda text: None)
    try:
        paths.configure(data_dir, outputs)
    except OSError as error:
        raise UserError(f"The data folder cannot be created. {reason(error)}") from error
    sweep(data_dir)
    if not outputs.is_relative_to(data_dir):
        sweep(outputs)
    devices.configure(device, dtype)
    shared.device = devices.device
    paths.use_extensions(folders)

    _load_settings(data_dir, outputs)
    chosen = _register_checkpoints(checkpoint, data_dir)
    extra_networks.initialize()
    say("Loading scripts")
    loading.load_scripts()
    lora.register_default_extra_networks()
    callbacks.ui_settings_callback()
    registry.set_samplers()
    try:
        last = shared.opts.sd_model_checkpoint if as_chosen else None
        if not last or not _load_last(last, chosen, say):
            checkpoints.load_model(chosen, progress=say)
        shared.opts.onchange("sd_model_checkpoint", checkpoints.reload_model_weights, call=False)
        loading.prepare_headless()
    except BaseException:
        callbacks.clear_callbacks()
        checkpoints.reset()
        raise
    _running = Host(checkpoint, data_dir, outputs, folders)
    return _running


def _load_last(name: str, otherwise: checkpoints.CheckpointInfo, say: Callable[[str], None]) -> bool:
    """Loads the checkpoint that was chosen last; False, with a word, when it cannot be."""
    found = checkpoints.get_closet_checkpoint_match(name)
    try:
        if found is not None:
            checkpoints.load_model(found, progress=say)
            return True
        problem = f"The checkpoint chosen last, {name}, is no longer there."
    except UserError as error:
        problem = f"The checkpoint chosen last cannot be loaded: {error}"
    say(f"{problem} {otherwise.name} is loaded instead.")
    return False


def _load_settings(data_dir: Path, outputs: Path) -> None:
    shared.opts.data = {key: info.default for key, info in shared.opts.data_labels.items()}
    shared.config_filename = str(data_dir / SETTINGS)
    # always under the output folder: settings are data, and may come from elsewhere
    folders = {key: info.default for key, info in shared.opts.data_labels.items() if key.startswith("outdir_")}
    shared.opts.load(data_dir / SETTINGS, skip=folders)
    for key, name in folders.items():
        shared.opts.data[key] = str(outputs / name) if name else ""


def _register_checkpoints(checkpoint: Path, data_dir: Path) -> checkpoints.CheckpointInfo:
    """Lists the checkpoint to start with, which is returned, and those around it."""
    if not checkpoint.exists():
        check_not_pickled(checkpoint)
        raise UserError(f"There is no checkpoint named {checkpoint.name}.")
    chosen = checkpoints.CheckpointInfo(checkpoint)
    chosen.register()
    checkpoints.checkpoint_dirs[:] = [data_dir / "models", REPO / "models"]
    checkpoints.nearby_dirs[:] = [checkpoint.parent]
    checkpoints.list_models()
    return chosen


class QueueLock:
    """Holds the queue: while somebody is inside, no job runs, and who enters waits for the one that does.

    Within a job nothing happens, as the queue is the job's.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def __enter__(self) -> QueueLock:
        entered: list[tuple[threading.Event, Any] | None] = self._mine.__dict__.setdefault("entered", [])
        host = _running
        if host is None or host.queue.is_here or any(entered):
            entered.append(None)
            return self
        is_in, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            is_in.set()
            may_go.wait()

        job = host.queue.submit(hold, name="script")
        while not is_in.wait(0.05):
            if job.done:
                raise job.exception or RuntimeError("The queue was closed.")
        entered.append((may_go, job))
        return self

    def __exit__(self, *error: object) -> None:
        held = self._mine.entered.pop()
        if held is not None:
            may_go, job = held
            may_go.set()
            job.result()


queue_lock = QueueLock()


def wrap_queued_call(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, run while it holds `queue_lock`."""

    @wraps(func)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        with queue_lock:
            return func(*args, **kwargs)

    return in_turn
