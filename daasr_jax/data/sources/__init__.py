"""Sources of volumes, by layout name. A new layout is one module in this package.

A module of this package named like its layout holds a `SOURCE`; it is imported when
that layout is asked for.
"""

import importlib
import os
from pathlib import Path

from daasr_jax.data.settings import DataSettings
from daasr_jax.data.sources.base import ENDINGS, Source, Volume
from daasr_jax.data.sources.tree import walk
from daasr_jax.errors import ConfigError, DataError

__all__ = ["Source", "Volume", "check_root", "choose_source"]


def choose_source(settings: DataSettings) -> Source:
    """The source for these settings; `auto` goes by the files under the root.

    Raises:
        ConfigError: If there is no root (E201), or both kinds of files lie under it
            (E213).
        DataError: If the root does not exist or holds no known file (E301).
    """
    layout = settings.layout
    check_root(settings)
    if layout == "auto":
        layout = _detect(Path(settings.root))
    module = importlib.import_module(f"{__name__}.{layout}")
    return module.SOURCE


def check_root(settings: DataSettings) -> None:
    """Refuses a root that cannot be read; the template needs none.

    Raises:
        ConfigError: If there is none (E201).
        DataError: If it is no folder, or one that may not be read (E301).
    """
    if settings.layout == "template":
        return
    if not settings.root:
        raise ConfigError(
            "E201",
            "no data root: give --config.data.root=DIR "
            "(a fastMRI folder or a folder of NIfTI files)",
        )
    root = Path(settings.root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        if root.is_symlink() and not root.exists():
            what = f"is a link to {os.readlink(root)}, which is not there"
        raise DataError(
            "E301",
            f"the data root {settings.root} {what}: "
            "give --config.data.root=DIR, an existing folder",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(
            "E301",
            f"the data root {settings.root} cannot be read: correct its permissions or "
            "give another --config.data.root=DIR",
        )


def _detect(root: Path) -> str:
    """The layout by the files under the root; derived ones count only where alone."""
    tree = walk(root, tuple(e for endings in ENDINGS.values() for e in endings))
    files = [*tree.files, *tree.dangling]
    own = [f for f in files if "derivatives" not in f.relative_to(root).parts]
    found = {
        layout
        for layout, endings in ENDINGS.items()
        if any(path.name.lower().endswith(endings) for path in own or files)
    }
    if len(found) > 1:
        raise ConfigError(
            "E213",
            f"both .h5 and .nii files lie under {root}: "
            "say which with --config.data.layout=fastmri or nifti",
        )
    if not found:
        raise DataError(
            "E301",
            f"no .h5 or .nii files under {root}: give --config.data.root=DIR, a "
            f"fastMRI folder or a folder of NIfTI files{tree.remarks()}",
        )
    return found.pop()
