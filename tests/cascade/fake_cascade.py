"""In place of the cascade's process: makes grey images with the events of a run.

`python fake_cascade.py VERB RECORD [--resume]`, as worker.py is started. A prompt "slow" waits until it is cancelled.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from lib_methods.cascade.candidate import Candidate, read_candidate
from lib_methods.cascade.settings import from_json
from lib_methods.jobs.files import CASCADE, JobFiles
from lib_methods.jobs.log import Report
from lib_methods.jobs.process import STOPPED


def main() -> int:
    files = JobFiles.of(Path(sys.argv[2]), CASCADE)
    request = from_json(json.loads(files.settings.read_text("utf-8")))
    settings, taken_up = request.settings, [read_candidate(path) for path in request.resume_from]
    stage = 2 if taken_up else 1
    request.folder.mkdir(parents=True, exist_ok=True)
    report = Report(request.folder, print, tensorboard=False)
    report.event("start", name=request.name, stages=[stage], resumed="--resume" in sys.argv)
    (request.folder / "request.json").write_text("{}", encoding="utf-8")
    while settings.prompt == "slow" and "--resume" not in sys.argv:
        if files.cancel.exists():
            report.event("cancelled")
            return STOPPED
        time.sleep(0.05)
    names = []
    for number in range(len(taken_up) or settings.count):
        own = taken_up[number].continued(settings) if taken_up else replace(settings, seed=number)
        names.append(f"{number:03d}-stage{stage}.png")
        Candidate(Image.new("RGB", (16 * stage, 16 * stage)), stage, own).save(request.folder / names[-1])
    report.event("step", stage=stage, step=1, steps=1, seconds_left=0.0)
    report.event("sample", step=stage, files=names, prompts=[])
    report.event("done", files=names, seconds=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
