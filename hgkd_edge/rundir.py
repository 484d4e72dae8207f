"""A run is a folder: what it holds, how it is written. Plain data, no torch.

Everything is written to a temporary name, synced and renamed, so that a killed process never
leaves half a file under a final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hgkd_edge.errors import RecipeError, RunError
from hgkd_edge.recipe import Recipe, load_recipe

__all__ = [
    "RunDir",
    "atomic_write",
    "cache_dir",
    "differing_keys",
    "file_sha256",
    "write_json",
]

RUNS = Path("runs")


class RunDir:
    """`runs/<name>/` and the names inside it.

    Args:
        path: The folder; use `create` or `resolve` rather than this constructor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.manifest_file = path / "manifest.json"
        self.log_file = path / "log.jsonl"
        self.checkpoint_file = path / "checkpoints" / "last.pt"
        self.backbone_file = path / "backbone.safetensors"
        self.model_file = path / "model.safetensors"
        self.card_file = path / "model_card.md"
        self.finetune_file = path / "finetune.yaml"
        self.export_dir = path / "export"

    @classmethod
    def create(cls, recipe: Recipe, path: Path | None = None) -> RunDir:
        """Make a new run folder, `runs/<name>` or the first free `runs/<name>-2`, `-3`, ...

        Args:
            recipe: Fully resolved; written into it.
            path: The folder; new, empty, or one whose run ended before it trained anything.

        Raises:
            RunError: `path` is in use, or the folder cannot be written.
        """
        if path is not None and path.exists() and _in_use(path):
            raise RunError(
                f"run folder '{path}' is not empty",
                hint="add --resume to go on with it, or name another --run",
            )
        try:
            run = cls(path if path is not None else _make_first_free(RUNS / recipe.name))
            run.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(run.recipe_file) as temporary:
                temporary.write_text(recipe.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"run folder '{path or RUNS / recipe.name}' cannot be written: {error.strerror}",
                hint="name a folder you may write with --run",
            ) from error
        run._point_latest_here()
        return run

    @classmethod
    def resolve(cls, path: Path | str | None = None) -> RunDir:
        """An existing run: the named one, or the latest.

        Raises:
            RunError: There is none, or the folder is not a run.
        """
        given = Path(path) if path is not None else RUNS / "latest"
        if not given.is_dir() and (RUNS / given).is_dir():
            given = RUNS / given
        if not given.is_dir():
            what = f"run '{path}'" if path is not None else "any run (runs/latest)"
            raise RunError(f"cannot find {what}", hint="make one: hgkd-edge distill RECIPE")
        run = cls(given.resolve())
        with contextlib.suppress(ValueError):
            run = cls(run.path.relative_to(Path.cwd()))
        if not run.recipe_file.is_file():
            raise RunError(f"'{given}' is not a run: it has no recipe.yaml")
        return run

    @classmethod
    def unfinished(cls, recipe: Recipe) -> RunDir:
        """The newest run of this very recipe that has no backbone yet, else `runs/<name>`.

        Raises:
            RunError: There is no run of that name.
        """
        for folder in sorted(RUNS.glob(f"{recipe.name}*"), key=_begun_at, reverse=True):
            run = cls(folder)
            if folder.is_symlink() or not run.recipe_file.is_file() or run.backbone_file.is_file():
                continue
            with contextlib.suppress(RecipeError):  # of another version of this tool
                if run.recipe() == recipe:
                    return run
        return cls.resolve(RUNS / recipe.name)

    def branch(self, suffix: str) -> RunDir:
        """A new run `runs/<name>-<suffix>` with this one's recipe and backbone."""
        recipe = self.recipe()
        new = RunDir.create(recipe.model_copy(update={"name": f"{recipe.name}-{suffix}"}))
        with atomic_write(new.backbone_file) as temporary:
            shutil.copyfile(self.backbone_file, temporary)
        new.add_artefact(new.backbone_file, made_from=[self.backbone_file])
        return new

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; a killed one leaves no lock behind.

        Raises:
            RunError: Another process is training here.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"run '{self.path}': another process is training in it",
                    hint="wait for it, stop it, or begin a run of its own",
                ) from error
            except OSError:  # a file system without locks
                yield
                return
            # Checkpoints that a killed process did not finish: nobody else can be writing them.
            for half in self.checkpoint_file.parent.glob(".*.tmp"):
                half.unlink()
            yield

    def recipe(self) -> Recipe:
        """The fully resolved recipe this run was made from."""
        return load_recipe(self.recipe_file)

    def require_same_recipe(self, recipe: Recipe) -> None:
        """Refuse to go on with another recipe: the loss curve would not be one run's.

        Raises:
            RunError: `recipe` differs from the run's own; names the keys.
        """
        ours, theirs = (r.model_dump(mode="json") for r in (self.recipe(), recipe))
        changed = sorted(differing_keys(ours, theirs))
        if changed:
            raise RunError(
                f"run '{self.path}' was begun with other values of {', '.join(changed)}",
                hint="resume it with its own recipe "
                f"({self.resume_command}), "
                "or begin a new run without --resume",
            )

    def manifest(self) -> dict[str, Any]:
        """The manifest so far; empty for a run that has just begun.

        Raises:
            RunError: It is damaged.
        """
        if not self.manifest_file.is_file():
            return {}
        try:
            return json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{self.manifest_file}: is damaged: {error}",
                hint="mend it, or move it away: the rest of the run is whole",
            ) from error

    def update_manifest(self, **entries: Any) -> None:
        """Set top-level entries of the manifest."""
        write_json(self.manifest_file, {**self.manifest(), **entries})

    def add_artefact(self, file: Path, *, made_from: Sequence[Path] = ()) -> None:
        """Record a file's sha256 and what it was made from."""
        artefacts = self.manifest().get("artefacts", {})
        artefacts[self._name(file)] = {
            "sha256": file_sha256(file),
            "made_from": [self._name(source) for source in made_from],
        }
        self.update_manifest(artefacts=artefacts)

    @property
    def resume_command(self) -> str:
        """What a user types to go on with this run's distillation."""
        recipe, path = shlex.quote(str(self.recipe_file)), shlex.quote(str(self.path))
        return f"hgkd-edge distill {recipe} --run {path} --resume"

    def require(self, file: Path, *, mend: str) -> Path:
        """`file`, if it is there.

        Raises:
            RunError: It is not; `mend` says which command makes it.
        """
        if not file.is_file():
            raise RunError(f"run '{self.path}' has no {self._name(file)} yet", hint=mend)
        return file

    def _name(self, file: Path) -> str:
        file = file.resolve()
        root = self.path.resolve()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)

    def _point_latest_here(self) -> None:
        """Make `runs/latest` a link to this run, replacing the old link in one step."""
        temporary = RUNS / f".latest-{os.getpid()}"
        with contextlib.suppress(OSError):  # a file system without links loses only the default
            RUNS.mkdir(exist_ok=True)
            temporary.symlink_to(os.path.relpath(self.path, RUNS))
            os.replace(temporary, RUNS / "latest")


def differing_keys(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys at which two nested mappings differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differing_keys(a.get(key), b.get(key), f"{prefix}.{key}".lstrip("."))
    elif a != b:
        yield prefix


def _in_use(path: Path) -> bool:
    """Whether a folder holds more than what a run writes before it trains."""
    return any(p.name not in ("recipe.yaml", "manifest.json", ".lock") for p in path.iterdir())


def _make_first_free(path: Path) -> Path:
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def _begun_at(folder: Path) -> float:
    recipe = folder / "recipe.yaml"
    return recipe.stat().st_mtime if recipe.is_file() else 0.0


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, else removed.

    Raises:
        OSError: It cannot be written; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes files private; a run is to be shared
        os.replace(temporary, path)
    except Exception as error:
        # A full disk has no file name, and is no OSError where a library in Rust met it.
        number = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else number and int(number[1])
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where things made once are kept: $HGKD_EDGE_CACHE, else $XDG_CACHE_HOME/hgkd-edge."""
    named = os.environ.get("HGKD_EDGE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "hgkd-edge"
