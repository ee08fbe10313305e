"""The files under a data root: links within it followed once, hidden names left out.

Nothing is lost without a word: folders that cannot be read stop the scan, and what is
skipped is named with its number.
"""

import dataclasses
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from daasr_jax.data.sources.base import (
    log,
    report_dangling,
    some,
    system_words,
)
from daasr_jax.errors import DataError

# Folders that a system or a file server keeps for itself, deleted files among them.
_SYSTEM = {"lost+found", "$recycle.bin", "#recycle", "@eadir", "__macosx"}
_SYSTEM.add("system volume information")
# Images in forms that are not read, and what makes NIfTI of them.
_FOREIGN = {
    ".dcm": "dcm2niix",
    ".ima": "dcm2niix",
    ".mgz": "mri_convert of FreeSurfer, or nibabel",
    ".mgh": "mri_convert of FreeSurfer, or nibabel",
    ".img": "fslchfiletype NIFTI_GZ, or nibabel",
    ".nrrd": "SimpleITK",
    ".mha": "SimpleITK",
    ".mhd": "SimpleITK",
    ".mnc": "nibabel",
}


@dataclasses.dataclass
class Tree:
    """What lies under a root.

    Attributes:
        root: Where the walk began.
        files: Data files, sorted; links to files among them.
        folders: Folders that were read, without the root.
        dangling: Data files that are links to nothing.
        lost: Other links to nothing, whose names are those of folders.
        unreadable: Folders that could not be read, and what the system said.
        hidden: Hidden folders and data files, which are skipped.
        repeated: Links to folders that were read already, which are skipped.
        outside: Links that lead out of the root.
        foreign: Number of images of each ending that is not read.
    """

    root: Path
    files: list[Path] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)
    dangling: list[Path] = dataclasses.field(default_factory=list)
    lost: list[Path] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    hidden: list[Path] = dataclasses.field(default_factory=list)
    repeated: list[Path] = dataclasses.field(default_factory=list)
    outside: list[Path] = dataclasses.field(default_factory=list)
    foreign: Counter[str] = dataclasses.field(default_factory=Counter)

    def report(self, *, links_out: bool) -> None:
        """Says what was skipped, and which links lead elsewhere.

        Args:
            links_out: Links may lead out of the root.

        Raises:
            DataError: If a folder could not be read (E302), is a link to nothing
                (E320), or a link leads out of the root and may not (E323).
        """
        if self.unreadable:
            named = some([f"{path} ({why})" for path, why in self.unreadable])
            raise DataError(
                "E302",
                f"{len(self.unreadable)} folders under {self.root} cannot be read: "
                f"{named}; correct their permissions (chmod -R u+rX), or give another "
                "--config.data.root=DIR",
            )
        report_dangling(self.root, self.lost)
        if self.hidden:
            log.info(
                "skipped %d hidden folders and files: %s",
                len(self.hidden),
                self._some(self.hidden),
            )
        if self.outside:
            first = self.outside[0]
            if not links_out:
                raise DataError(
                    "E323",
                    f"{len(self.outside)} links under {self.root} lead out of it, the "
                    f"first is {first} -> {os.path.realpath(first)}: "
                    "--config.data.links_out=True follows them, or give the folder "
                    "that they lead to as --config.data.root=DIR",
                )
            log.info("followed %d links that lead out of the root", len(self.outside))
        if self.repeated:
            log.warning(
                "skipped %d links to folders that are read already: %s",
                len(self.repeated),
                self._some(self.repeated),
            )
        if self.foreign:
            log.warning("not read: %s", self._foreign())

    def remarks(self) -> str:
        """What was not read, as the end of a message; empty where nothing was."""
        parts = [f"{path} cannot be read ({why})" for path, why in self.unreadable]
        parts += [self._foreign()] * bool(self.foreign)
        hidden = f"skipped as hidden: {self._some(self.hidden)}"
        parts += [hidden] * bool(self.hidden)
        return f" ({'; '.join(parts)})" if parts else ""

    def _foreign(self) -> str:
        return ", ".join(
            f"{count} {ending} files (to NIfTI by {_FOREIGN[ending]})"
            for ending, count in sorted(self.foreign.items())
        )

    def _some(self, paths: Sequence[Path]) -> str:
        return some([path.relative_to(self.root).as_posix() for path in paths])


def walk(root: Path, endings: tuple[str, ...], *, depth: int | None = None) -> Tree:
    """Finds the data files under a root.

    Names that begin with a dot are skipped, and the folders that systems keep for
    themselves. Links to folders are followed once, after all real folders, so a real
    folder is never passed over for a link to it.

    Args:
        root: An existing folder.
        endings: Of the data files, in small letters; compared without case.
        depth: How many floors below the root are read; None reads all.

    Returns:
        The tree; nothing has been said or raised yet.
    """
    tree = Tree(root)
    top = os.path.realpath(root)
    seen = {top}
    plain, links = [(root, top, 0)], list[tuple[Path, int]]()
    while plain or links:
        if plain:
            folder, real, level = plain.pop()
        else:
            folder, level = links.pop(0)
            real = os.path.realpath(folder)
            if real in seen or _holds(real, top):
                tree.repeated.append(folder)
                continue
            seen.add(real)
            if not _holds(top, real):
                tree.outside.append(folder)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            tree.unreadable.append((folder, system_words(error)))
            continue
        if level:
            tree.folders.append(folder)
        for entry in entries:
            path = folder / entry.name
            if not _is_folder(entry, endings):
                _sort_in(tree, entry, path, endings, top)
            elif entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                tree.hidden.append(path)
            elif depth is not None and level >= depth:
                continue
            elif entry.is_symlink():
                links.append((path, level + 1))
            elif (inner := os.path.join(real, entry.name)) in seen:
                tree.repeated.append(path)
            else:
                seen.add(inner)
                plain.append((path, inner, level + 1))
    for paths in (tree.files, tree.folders, tree.dangling, tree.hidden):
        paths.sort()
    return tree


def _sort_in(
    tree: Tree, entry: os.DirEntry[str], path: Path, endings: tuple[str, ...], top: str
) -> None:
    name = entry.name.lower()
    if not name.endswith(endings):
        if _named_as_folder(name) and entry.is_symlink() and not _is_here(path):
            tree.lost.append(path)
        ending = os.path.splitext(name)[1]
        if ending in _FOREIGN and not name.startswith("."):
            tree.foreign[ending] += 1
    elif name.startswith("._"):  # what macOS writes beside each file; no image
        return
    elif name.startswith("."):
        tree.hidden.append(path)
    elif not entry.is_symlink():
        if entry.is_file():
            tree.files.append(path)
    elif not _leads_to_file(path):
        tree.dangling.append(path)
    else:
        tree.files.append(path)
        if not _holds(top, os.path.realpath(path)):
            tree.outside.append(path)


def _is_folder(entry: os.DirEntry[str], endings: tuple[str, ...]) -> bool:
    try:
        return entry.is_dir()
    except PermissionError:  # a link into a closed folder; reading it will say so
        name = entry.name.lower()
        return _named_as_folder(name) and not name.endswith(endings)
    except OSError:  # a link to itself
        return False


def _named_as_folder(name: str) -> bool:
    return not name.startswith(".") and not re.search(r"\.[a-z0-9]{1,5}$", name)


def _leads_to_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        return True  # it is reported when it is opened
    except OSError:
        return False


def _is_here(path: Path) -> bool:
    """False for a link to nothing, but for one into an annex or a circle of links."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP or "annex/objects" in os.readlink(path)
    return True


def _holds(folder: str, path: str) -> bool:
    """Whether the real path lies in the real folder, or is that folder."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
