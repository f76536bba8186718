"""In place of the trainer's process: writes the events of a run without a model. Standard library only.

`python fake_trainer.py VERB RECORD [--resume]`, as worker.py is started. What it does is in the training's class noun.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STOPPED = 130
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def main() -> int:
    record = Path(sys.argv[2])
    root, name = record.parent.parent, record.name.removesuffix(".json")
    settings = json.loads((root / "jobs" / f"{name}.settings").read_text(encoding="utf-8"))
    out, folder = root / "trainings", root / "trainings" / name
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    noun, resumed = settings["class_noun"], "--resume" in sys.argv

    def tell(event: str, **values: Any) -> None:
        with (folder / "training.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    if noun == "silent death":
        print("Traceback (most recent call last):\n  File '/secret/place/x.py', line 1\nValueError: /secret/place")
        return 1
    if noun == "no memory":
        print("torch.cuda.OutOfMemoryError: CUDA out of memory.")
        return 1
    tell("start", name=name, kind=settings["kind"], subject=f"ohwx {noun}", resumed=resumed, pid=os.getpid())
    tell("plan", steps=40, seconds=None, bytes=3 * 2**30, result_bytes=5 * 2**20, device="the CPU", notes=["a note"])
    if noun == "mistake":
        tell("error", text="The base model is of another family.")
        return 1
    (folder / "training.json").write_text("{}", encoding="utf-8")
    first = 1 + (int((folder / "at").read_text()) if resumed and (folder / "at").exists() else 0)
    for step in range(first, 41):
        if (folder / "cancel").exists() and noun != "stubborn thing":
            tell("cancelled", step=step - 1)
            return STOPPED
        tell("step", step=step, steps=40, loss=1 / step, subject=1 / step, prior=0.5 / step, seconds_left=40.0 - step)
        (folder / "at").write_text(str(step))
        if step % 20 == 0:
            (folder / "samples" / f"{step}.png").write_bytes(PNG)
            tell("sample", step=step, files=[f"samples/{step}.png"], prompts=["a ohwx dog"], seeds=[1])
        time.sleep(0.25 if noun in ("slow thing", "stubborn thing") else 0.001)
    result = f"{name}.safetensors"
    if Path(settings["base"]).is_dir():
        result = f"{name}-cascade"
        (out / result / "IF-I").mkdir(parents=True)
    else:
        for ending in (".safetensors", ".json", ".preview.png"):
            (out / f"{name}{ending}").write_bytes(b"result")
    tell("done", files=[result], identifier="ohwx", subject=f"ohwx {noun}", seconds=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
