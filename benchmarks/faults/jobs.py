"""The commands under test, each with how it is continued and what must come out the same."""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.faults import child, whole
from hgkd_edge.data.folder import BUNDLED

__all__ = ["JOBS", "NEXT", "Job", "Next", "Stage", "prepare"]

RUN = "runs/tiny"
CLASSES, PER_CLASS = 3, 12
RECIPE = {
    "name": "tiny",
    "data": {"source": "folder", "path": "photos", "image_size": 64},
    "teacher": {
        "name": "vit_tiny_patch16_224",
        "weights": "pretrain",
        "args": {"patch_size": 8, "depth": 2, "embed_dim": 48},
        "pretrain": {"epochs": 4, "batch_size": 16, "decoder_width": 32, "decoder_depth": 1},
    },
    "student": {
        "name": "resnet18",
        "args": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
        "stem_stride": 2,
        "decoder_width": 16,
    },
    "train": {
        "epochs": 6,
        "batch_size": 8,
        "warmup_epochs": 1,
        "precision": "fp32",
        "checkpoint_every": 1,
        "trackers": [],
    },
}


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: Its verb.
        arguments: What follows the verb.
        resumes: File that exists once `--resume` continues it; '' if it has no `--resume`.
        results: Pattern of the files that must be the same, bit for bit, after an interruption.
    """

    name: str
    arguments: tuple[str, ...]
    resumes: str = ""
    results: str = ""

    def command(self, folder: Path | None = None) -> list[str]:
        """The command line; in a `folder` in which it was interrupted, the one that continues."""
        again = folder is not None and self.resumes and (folder / self.resumes).is_file()
        return [self.name, *self.arguments, *(["--resume"] if again else [])]


FINETUNE = ("--set", "train.epochs=4", "--set", "train.batch_size=8")
JOBS = (
    Job("pretrain", ("tiny.yaml",), results="cache/teachers/*/model.safetensors"),
    Job("distill", ("tiny.yaml", "--run", RUN), f"{RUN}/recipe.yaml", f"{RUN}/*.safetensors"),
    Job("finetune", (RUN, *FINETUNE), f"{RUN}/finetune.yaml", f"{RUN}/model.safetensors"),
    Job("export", (RUN, "--onnx"), results=f"{RUN}/export/*.onnx"),
    Job("bench", (RUN, "--duration", "0.2")),
    Job("predict", (f"{RUN}/export/tiny.fp32.onnx", "photos/test"), results="predictions/*.png"),
    Job("evaluate", (RUN, "--features")),
    Job("embed", (RUN, "photos/test"), results="*.npz"),
    Job("compare", (RUN,)),
    Job("report", (RUN,)),
)


@dataclass(frozen=True)
class Next:
    """A command that a user may run next, after a job or after its interruption.

    Attributes:
        arguments: The command line.
        needs: Name of the job after which it works.
    """

    arguments: tuple[str, ...]
    needs: str

    def works_after(self, job: Job) -> bool:
        names = [each.name for each in JOBS]
        return names.index(self.needs) <= names.index(job.name)


NEXT = (
    Next(("report", RUN), "distill"),
    Next(("embed", RUN, "photos/test"), "distill"),
    Next(("evaluate", RUN, "--features"), "distill"),
    Next(("export", RUN, "--onnx"), "distill"),
    Next(("predict", RUN, "photos/test"), "finetune"),
    Next(("bench", RUN, "--duration", "0.1"), "export"),
    Next(("compare", RUN), "export"),
)


@dataclass
class Stage:
    """A folder before and after one job that nothing interrupted.

    Attributes:
        before: A copy of the folder as the job found it.
        seconds: How long the job took.
        written: Bytes by which its files grew.
        wanted: Digest by name of its results.
    """

    job: Job
    before: Path
    seconds: float
    written: int
    wanted: dict[str, str]

    def reset(self, folder: Path) -> Path:
        """Make the folder what it was before the job; always at one path, as runs record paths."""
        if folder.exists():
            for entry in folder.iterdir():
                shutil.rmtree(
                    entry
                ) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(self.before, folder, symlinks=True, dirs_exist_ok=True)
        return folder


def prepare(root: Path, now: Path) -> list[Stage]:
    """Run every job once in the folder `now`, and keep what each began with below `root`.

    Raises:
        RuntimeError: A job failed, or what it wrote is not whole.
    """
    _write_photos(now / "photos")
    (now / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    asked = ("distill", "tiny.yaml", "--run", "runs/hub", "--set", "teacher.weights=hub")
    ended = child.run(asked, now, root / "log.txt")
    if ended.code != child.OPENED_A_SOCKET:
        raise RuntimeError(f"the watch of sockets missed a download: {ended}")
    shutil.rmtree(now / "runs", ignore_errors=True)
    stages = []
    for number, job in enumerate(JOBS):
        before = root / f"{number}-{job.name}"
        shutil.copytree(now, before, symlinks=True)
        began = time.monotonic()
        ended = child.run(job.command(), now, root / "log.txt")
        seconds = time.monotonic() - began
        if ended.code or (found := whole.problems(now)):
            raise RuntimeError(f"{job.name} ended with {ended.code}: {ended.printed}{found}")
        written = max(_size(now) - _size(before), 0)
        wanted = whole.results(now, job.results or "-")
        if job.results and not wanted:
            raise RuntimeError(f"{job.name} left no {job.results}")
        stages.append(Stage(job, before, seconds, written, wanted))
    return stages


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _write_photos(to: Path) -> None:
    with zipfile.ZipFile(BUNDLED) as archive:
        names = sorted(archive.namelist())
        labels = sorted({name.split("/")[1] for name in names})[:CLASSES]
        for split, count in (("train", PER_CLASS), ("test", 3)):
            for label in labels:
                for name in [n for n in names if n.startswith(f"{split}/{label}/")][:count]:
                    file = (to / name).with_suffix(".png")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.open(io.BytesIO(archive.read(name))).resize((64, 64)).save(file)
