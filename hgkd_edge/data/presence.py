"""Whether a recipe's images are there: checked before torch is loaded, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["require_data"]


def require_data(config: DataConfig) -> None:
    """Check that `data.path` exists, without reading it.

    A name on the hub is accepted unchecked: looking it up would need network access.

    Raises:
        DataError: The path does not exist.
    """
    if config.path is None:
        return
    path = config.path.expanduser()
    if config.source == "webdataset":
        from hgkd_edge.data.shards import shard_files  # loads torch

        shard_files(str(config.path))
    elif not path.exists() and (config.source == "folder" or _is_local(config.path)):
        raise DataError(
            f"data.path = '{config.path}': no such file or folder",
            hint="--set data.path=FOLDER",
        )


def _is_local(path: Path) -> bool:
    """Whether a dataset's path cannot be a name on the hub (`name` or `owner/name`)."""
    return path.is_absolute() or str(path).startswith(("~", ".")) or len(path.parts) > 2
