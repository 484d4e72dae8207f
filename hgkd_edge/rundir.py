"""Run folders: their content, and how it is written. Plain data, no torch.

Everything is written to a temporary name, synced and renamed, so that a killed process never leaves
a partial file under a final name. A command that fails before training starts does not change the
folder or `runs/latest`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from hgkd_edge.console import console
from hgkd_edge.errors import RecipeError, RunError, UserError
from hgkd_edge.files import atomic_write, open_regular, remove_leftovers, take_lock
from hgkd_edge.processes import is_main
from hgkd_edge.recipe import Recipe
from hgkd_edge.run_files import FOLDERS, RunFiles
from hgkd_edge.stopping import sigterm_cleans_up
from hgkd_edge.yaml_settings import differing_keys

__all__ = ["RUNS", "RunDir"]

RUNS = Path("runs")


class RunDir(RunFiles):
    """`runs/<name>/`: creating, finding, locking and finishing a run.

    Args:
        path: The folder; use `create` or `resolve` rather than this constructor.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Set for a new folder from `create` until training has started in it.
        self._taken = False
        self._held_before: frozenset[str] | None = None  # None: it did not exist
        self._instead_of: Path | None = None

    @classmethod
    def create(cls, recipe: Recipe, path: Path | None = None) -> RunDir:
        """Make a new run folder, `runs/<name>` or the first free `runs/<name>-2`, `-3`, ...

        Args:
            recipe: Fully resolved; written into it.
            path: The folder; new, empty, or with a run that ended before training started.

        Raises:
            RunError: `path` is in use, or the folder cannot be written.
        """
        if path is None:
            return cls._take(recipe, RUNS / recipe.name, number_it=True)
        if path.exists() and not path.is_dir():
            raise RunError(f"'{path}' is not a folder", hint="choose another --run")
        if path.exists() and _in_use(path):
            raise RunError(
                f"run folder '{path}' is not empty",
                hint="add --resume to continue that run, or choose another --run",
            )
        return cls._take(recipe, path, number_it=False)

    @classmethod
    def resolve(cls, path: Path | str | None = None) -> RunDir:
        """An existing run: the named one, or the latest.

        Raises:
            RunError: There is none, the folder is not a run, or a link in it leads out of it.
        """
        given = Path(path) if path is not None else RUNS / "latest"
        # A folder of images may have the same name as their run.
        if not _is_run(given) and (_is_run(RUNS / given) or not given.is_dir()):
            given = RUNS / given
        if not given.is_dir():
            what = f"run '{path}'" if path is not None else "any run (runs/latest)"
            raise RunError(f"cannot find {what}", hint=_hint_for_missing())
        run = cls(_from_here(given.resolve()))
        if not _is_run(run.path):
            raise RunError(f"'{given}' is not a run: it has no recipe.yaml")
        run.require_own_files()
        for folder in ("", *FOLDERS):
            remove_leftovers(run.path / folder)
        return run

    @classmethod
    def unfinished(cls, recipe: Recipe) -> RunDir:
        """The run for `--resume`: the newest of exactly this recipe that is not distilled yet.

        If all are distilled, the newest of them; if there is none, `runs/<name>`.

        Raises:
            RunError: There is no run of that name.
        """
        chosen: Path | None = None
        for folder in sorted(RUNS.glob(f"{recipe.name}*"), key=_begun_at, reverse=True):
            if folder.is_symlink():
                continue
            run = cls(folder)
            with contextlib.suppress(RecipeError, RunError):  # of another version, or damaged
                if not run.recipe_file.is_file() or run.recipe() != recipe:
                    continue
                if not run.is_distilled:
                    if run.backbone_file.is_file() and not run.checkpoint_file.is_file():
                        continue  # a branch: its backbone is a copy
                    chosen = folder
                    break
                chosen = chosen or folder
        return cls.resolve(chosen or RUNS / recipe.name)

    def branch(self, suffix: str) -> RunDir:
        """A new run next to this one, `<folder>-<suffix>`, with its recipe and backbone."""
        home = self.path.resolve()
        path = _from_here(home.with_name(f"{home.name}-{suffix}"))
        recipe = self.recipe()
        try:
            new = RunDir._take(recipe, path, number_it=True)
        except RunError as error:  # the commands that branch have no --run
            raise RunError(error.message, hint="make the folder writable") from error
        try:
            self.require_recorded(self.own(self.backbone_file))
            with atomic_write(new.backbone_file) as temporary:
                shutil.copyfile(self.backbone_file, temporary)
            new.enter(new.backbone_file, [self.backbone_file])
        except BaseException:
            new._undo()
            raise
        return new

    def why_this_folder(self) -> str:
        """Why a new folder got its suffix; '' for the plain name."""
        if self._instead_of is None:
            return ""
        earlier = RunDir(self._instead_of)
        with contextlib.suppress(UserError):
            if earlier.recipe() == self.recipe() and not earlier.backbone_file.is_file():
                return f"{earlier.path} is unfinished; to continue it: {earlier.resume_command}"
        return f"{earlier.path} already exists"

    def announce(self, because: str = "") -> None:
        """Print the folder's name, and why it is this one."""
        line = f"run folder: {self.path}" + (f" ({because})" if because else "")
        console.print(line, soft_wrap=True)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Lock the folder for training; a failure before the first step leaves no trace.

        A folder newly made by `create` or `branch` is removed, and an existing run keeps no
        settings of a training that never started. SIGTERM counts as a failure. Of several
        processes, the main one sees to the folder.

        Raises:
            RunError: Another process is training here.
        """
        with sigterm_cleans_up(), self._kept_tidy() if is_main() else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _kept_tidy(self) -> Iterator[None]:
        with self.locked():
            before, settled = self._progress(), self._names()
            self._taken = self._taken and not before
            try:
                yield
            except BaseException as error:
                to_be_resumed = self.resume_command in getattr(error, "hint", "")
                if self._progress() == before and not to_be_resumed:
                    self._undo(settled)
                raise
            self._taken = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; a killed one leaves no lock behind.

        Raises:
            RunError: Another process is training here.
        """
        self.require_own_files()
        with open_regular(self.lock_file, os.O_RDWR | os.O_CREAT) as lock:
            taken = take_lock(lock)
            if taken is False:
                raise RunError(
                    f"run '{self.path}': another process is training in it",
                    hint="wait for it, stop it, or start a separate run",
                )
            if taken:
                # Checkpoints that a killed process did not finish: no other process can be writing
                # them.
                for half in self.checkpoint_file.parent.glob(".*.tmp"):
                    half.unlink()
            yield

    def require_same_recipe(self, recipe: Recipe) -> None:
        """Reject resuming with another recipe: the loss curve would mix two trainings.

        Raises:
            RunError: `recipe` differs from the run's own; names the keys.
        """
        ours, theirs = (r.model_dump(mode="json") for r in (self.recipe(), recipe))
        changed = sorted(differing_keys(ours, theirs))
        if changed:
            raise RunError(
                f"run '{self.path}' was started with other values of {', '.join(changed)}",
                hint="resume it with its own recipe "
                f"({self.resume_command}), "
                "or start a new run without --resume",
            )

    def require_resumable(self) -> None:
        """Reject distilling over a backbone without a checkpoint, such as a branch's copy.

        Raises:
            RunError: It is such a run.
        """
        if self.backbone_file.is_file() and not self.checkpoint_file.is_file():
            raise RunError(
                f"run '{self.path}' has a backbone and no checkpoint: nothing to resume",
                hint="start a new run without --resume",
            )

    def add_artifact(self, file: Path, *, made_from: Sequence[Path] = ()) -> None:
        """Record a file's sha256 and what it was made from; the run becomes the latest."""
        self.enter(file, made_from)
        self.become_latest()

    def become_latest(self) -> None:
        """Make `runs/latest` a link to this run, replacing the old link in one step."""
        temporary = RUNS / f".latest-{os.getpid()}"
        with contextlib.suppress(OSError):  # a file system without links has no `latest`
            RUNS.mkdir(exist_ok=True)
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(self.path.resolve(), RUNS.resolve()))
            os.replace(temporary, RUNS / "latest")

    @classmethod
    def _take(cls, recipe: Recipe, path: Path, *, number_it: bool) -> RunDir:
        """Start a run in `path`, or in the first free `path-2`, `path-3`, ..., atomically."""
        try:
            run = cls(_make_first_free(path) if number_it else path)
            run._taken = True
            run._instead_of = path if run.path != path else None
            if not number_it and path.exists():
                run._held_before = run._names()
            run.path.mkdir(parents=True, exist_ok=True)
            with run.locked() if not number_it else contextlib.nullcontext():
                try:
                    with atomic_write(run.recipe_file) as temporary:
                        temporary.write_text(recipe.to_yaml(), encoding="utf-8")
                except BaseException:
                    run._undo()
                    raise
        except OSError as error:
            raise RunError(
                f"run folder '{path}' cannot be written: {error.strerror}",
                hint="choose a folder you can write to with --run",
            ) from error
        return run

    def _names(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self.path.iterdir())

    def _progress(self) -> set[tuple[str, int, int]]:
        """Results of a training: checkpoints, models, and logs with at least one line."""
        files = [
            *self.checkpoint_file.parent.glob("[!.]*.pt"),
            self.log_file,
            self.finetune_log_file,
            self.model_file,
        ]
        stats = [(file.name, file.stat()) for file in files if file.is_file()]
        return {(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats if stat.st_size}

    def _undo(self, settled: frozenset[str] = frozenset()) -> None:
        """Remove the files of a training that never started.

        Args:
            settled: Names that an existing run already had; a new folder records its own.
        """
        with contextlib.suppress(OSError, RunError):  # the first error is the one to report
            if not self._taken:
                if self.finetune_file.name not in settled:
                    self.finetune_file.unlink(missing_ok=True)
                    self.finetune_log_file.unlink(missing_ok=True)
                    self.drop_from_manifest("finetune")
                return
            for entry in self.path.iterdir():
                if entry.name in (self._held_before or ()):
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            if self._held_before is None:
                self.path.rmdir()


def _is_run(folder: Path) -> bool:
    return RunDir(folder).recipe_file.is_file()


def _from_here(path: Path) -> Path:
    """A path relative to the working folder, if it lies below."""
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path


def _hint_for_missing() -> str:
    runs = [file.parent for file in RUNS.glob("*/recipe.yaml") if not file.parent.is_symlink()]
    if runs:
        return f"name a run, such as {max(runs, key=_begun_at)}"
    return "make one: hgkd-edge distill RECIPE"


def _in_use(path: Path) -> bool:
    """Whether a folder holds more than what a run writes before it trains, also if it is killed."""
    remove_leftovers(path)
    return any(p.name not in ("recipe.yaml", "manifest.json", ".lock") for p in path.iterdir())


def _make_first_free(path: Path) -> Path:
    # First, so that an error of the parent does not look like a name in use, of all numbers.
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def _begun_at(folder: Path) -> float:
    recipe = folder / "recipe.yaml"
    return recipe.stat().st_mtime if recipe.is_file() else 0.0
