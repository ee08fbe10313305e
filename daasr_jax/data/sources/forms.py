"""Which person, visit and contrast a path names: BIDS, IXI, plain folders or a pattern.

A tree has one form. BIDS and IXI are known by their names. In any other tree the
subject is the first folder that names neither a contrast, a visit, a group nor a split.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from daasr_jax.data.sources.base import some
from daasr_jax.errors import DataError


class Place(NamedTuple):
    """What a path says of its volume.

    Attributes:
        subject: The person.
        study: The visit; empty where unknown.
        contrast: Such as `T1w`; empty where unknown.
        context: Folders above the subject that may tell people of one name apart.
    """

    subject: str
    study: str
    contrast: str
    context: str = ""


def _names(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE | re.VERBOSE)


_CONTRAST = _names(
    r"""(t1|t2|pd)(w|wi|c|ce|gd|n|f|s|post|pre|star|map|rho)? | (t2[-_]?)?flair
    | t2\* | mra | tof | angio | swi | dwi | adc | dti | stir | mprage | spgr | gre
    | mp2rage | unit1 | pdt2 | inplanet[12] | mese | fse | tse"""
)
# As fastMRI's attribute `acquisition` has it, such as `AXFLAIR` and `CORPDFS_FBK`.
_ACQUISITION = re.compile(r"(AX|COR|SAG)(T1|T2|PD|FLAIR)(PRE|POST|FS)?(_FBK)?")
# `IXI-T1`, `T1_images`; not `patient01_T1`
_CONTRAST_FOLDER = _names(
    rf"([a-z]+[-_.])?({_CONTRAST.pattern})([-_ ]?(weighted|images?|nii|nifti))?"
)
_SESSION = _names(
    r"""(ses|session|visit|study|time|timepoint|tp|scan|exam|follow-?up|fu|wave|month
    |week|day|year|run)[-_]?\d*[a-z]? | [vmy]\d+ | ses-.* | baseline | bl
    | (19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d.*"""
)
# Folders that say nothing of the person.
_NEUTRAL = _names(
    r"""anat\w* | structural | mri? | nii | nifti | raw | rawdata | images?(tr|ts)?
    | imaging | scans | subjects | data | dataset | train(ing)? | val(id(ation)?)?
    | test(ing)? | (train|val|test)_?(set|data) """
)
# Folders of several people: two of one name in two of them may be two people.
_GROUP = _names(
    r"""(site|cent(er|re)|scanner|hospital)[-_ ]?\w*
    | (group|cohort|batch|part|fold)[-_ ]?(\d+|[a-z])?
    | hgg | lgg | controls? | patients? | healthy | [123](\.\d)?t"""
)
_PERSON_FOLDER = _names(
    r"(sub|subj|subject|patient|pat|pt|participant|case|p)[-_]?\d.*"
)
# A name that means one person wherever it stands.
_PERSON = re.compile(
    r"(?<![a-z0-9])(sub-[a-z0-9]+|(?:sub|subj|subject|patient|participant)[-_]?\d+"
    r"|ixi\d+|oas\d{4,}|\d{3}_s_\d{4})(?![a-z0-9])",
    re.IGNORECASE,
)
_LABEL_FOLDER = _names(r"derivatives | (labels?|masks?|segmentations?)(tr|ts)?")
_LABEL = _names(
    r"(?:^|[-_.+])([a-z]*seg | segmentation | [a-z]*mask | label | labels | labelmap"
    r"| gt | ground-?truth)\d*$"
)
_BIDS_OTHER = _names(
    r"(func|dwi|fmap|fieldmap|perf|swi|meg|eeg|ieeg|beh|pet|micr|nirs|motion|mrs)\d*"
)
_BIDS_BESIDE = {"sourcedata", "code", "stimuli", "phenotype"}
_IXI = re.compile(
    r"(IXI\d+)-[^-/]+-(?:\d+-)?([A-Za-z][^-/.]*)[^/]*\.nii(?:\.gz)?$", re.IGNORECASE
)
_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def is_contrast(name: str) -> bool:
    """Whether it is a word for a contrast in general use, which tells of nobody."""
    return bool(_CONTRAST.fullmatch(name) or _ACQUISITION.fullmatch(name))


def without_ending(relative: str) -> str:
    """The path without `.nii` or `.nii.gz`, in any case."""
    return _ENDING.sub("", relative)


def is_label_map(relative: str) -> bool:
    """Whether a path says of its volume that it is a mask, a label map or derived."""
    *folders, name = without_ending(relative).split("/")
    return bool(
        _LABEL.search(name)
        or any(_LABEL_FOLDER.fullmatch(folder) for folder in folders)
    )


def place(paths: Sequence[str], pattern: str) -> tuple[str, dict[str, Place]]:
    """What each path names, and the form of the tree in words.

    Args:
        paths: Below the root, with `/`.
        pattern: `auto`, or a regular expression with the group `subject`.

    Returns:
        The form, and the places; paths that do not fit the form have none.
    """
    if pattern != "auto":
        return f"data.pattern {pattern!r}", _by_pattern(paths, re.compile(pattern))
    for name, known, form in (
        ("BIDS names", _is_bids, _bids),
        ("IXI names", _IXI.search, _ixi),
    ):
        if 2 * sum(known(path) is not None for path in paths) >= len(paths):
            found = {path: form(path) for path in paths if known(path)}
            return name, {path: spot for path, spot in found.items() if spot}
    return "folders", _by_folders(paths)


def check_people(places: Mapping[str, Place]) -> None:
    """Refuses subjects that cut one person in two, or make one of two.

    Raises:
        DataError: If a name such as `sub-01` occurs under several subjects, or one
            subject under several folders that may tell people apart (E321).
    """
    under: dict[str, set[str]] = defaultdict(set)
    contexts: dict[str, set[str]] = defaultdict(set)
    for path, spot in places.items():
        contexts[spot.subject].add(spot.context)
        for name in set(_PERSON.findall(path)):
            if not _tells_apart(spot.subject, name):
                under[name].add(spot.subject)
    for name, subjects in sorted(under.items()):
        if len(subjects) > 1:
            raise DataError(
                "E321",
                f"{name} occurs under {len(subjects)} subjects "
                f"({some(sorted(subjects))}), so a person would be in several splits: "
                "give --config.data.pattern, whose group (?P<subject>...) takes the "
                f"part of a path that {name} is",
            )
    for subject, above in sorted(contexts.items()):
        if len(above) > 1:
            raise DataError(
                "E321",
                f"subject {subject} lies in {len(above)} folders "
                f"({some([folder or '.' for folder in sorted(above)])}), as one person "
                "or as several: give --config.data.pattern, whose group "
                f"(?P<subject>...) takes {subject} alone, or the folder with it",
            )


def _tells_apart(subject: str, name: str) -> bool:
    """Whether a subject is the person `name` of some place, such as `site1/sub-01`."""
    if name not in subject:
        return False
    words = [word for word in re.split(r"[_/. ]", subject.replace(name, "")) if word]
    return not all(_SESSION.fullmatch(w) or _CONTRAST.fullmatch(w) for w in words)


def _by_pattern(paths: Sequence[str], pattern: re.Pattern[str]) -> dict[str, Place]:
    found = {}
    for path in paths:
        match = pattern.search(path)
        if match and match["subject"]:
            groups = match.groupdict()
            study, contrast = groups.get("study") or "", groups.get("contrast") or ""
            found[path] = Place(match["subject"], study, contrast)
    return found


def _is_bids(path: str) -> re.Match[str] | None:
    return re.search(r"(?:^|/)sub-[^/_]+[/_]", path)


def _bids(path: str) -> Place | None:
    *folders, name = without_ending(path).split("/")
    at = next((i for i, f in enumerate(folders) if f.startswith("sub-")), len(folders))
    if _BIDS_BESIDE & set(folders) or any(map(_BIDS_OTHER.fullmatch, folders[at:])):
        return None
    entity = re.match(r"sub-[^_]+", name)
    subject = folders[at] if at < len(folders) else entity and entity[0]
    session = next((f for f in folders if f.startswith("ses-")), "")
    if not session and (named := re.search(r"_(ses-[^_]+)", name)):
        session = named[1]
    if not subject:
        return None
    contrast = name.rpartition("_")[2]
    return Place(subject, session, contrast, _context(folders[:at]))


def _ixi(path: str) -> Place | None:
    match = _IXI.search(path)
    return Place(match[1], "", match[2]) if match else None


def _by_folders(paths: Sequence[str]) -> dict[str, Place]:
    split = {path: without_ending(path).split("/") for path in paths if "/" in path}
    shared = 0
    for names in zip(*(parts[:-1] for parts in split.values()), strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    found = {
        path: _in_folders(parts[:-1], parts[-1], shared)
        for path, parts in split.items()
    }
    return {path: spot for path, spot in found.items() if spot}


def _in_folders(folders: list[str], name: str, shared: int) -> Place | None:
    """The place of `folders/name`, whose first `shared` folders all paths have."""
    people = [i for i, folder in enumerate(folders) if not _is_known(folder)]
    while len(people) > 1 and people[0] < shared:
        first, second = folders[people[0]], folders[people[1]]
        if re.search(r"\d", first) and second not in name:
            break  # perhaps the only person
        people.pop(0)
    marked = [i for i in people if _PERSON_FOLDER.fullmatch(folders[i])]
    at = (marked or people or [len(folders)])[0]
    study, _, contrast = name.rpartition("_")
    if not _CONTRAST.fullmatch(contrast):
        contrast = _contrast_elsewhere(folders, name) or contrast
        study = "_".join(w for w in study.split("_") if not _CONTRAST.fullmatch(w))
    if people:
        subject = folders[at]
    else:
        subject = _person_of_name(name)
        if not subject:
            at = next((i for i, f in enumerate(folders) if _names_people(f)), -1)
            subject = folders[at] if at >= 0 else ""
        study = "_".join(w for w in study.split("_") if _SESSION.fullmatch(w))
    if not subject:
        return None
    visits = [f for i, f in enumerate(folders) if i != at and _SESSION.fullmatch(f)]
    visits = visits or [folders[i] for i in people if i > at]
    return Place(subject, (visits or [study])[0], contrast, _context(folders[:at]))


def _is_known(folder: str) -> bool:
    forms = (_CONTRAST_FOLDER, _SESSION, _NEUTRAL, _GROUP)
    if _PERSON_FOLDER.fullmatch(folder):
        return False
    return any(form.fullmatch(folder) for form in forms)


def _names_people(folder: str) -> bool:
    """Whether a folder may be a person where no other folder is."""
    return bool(_SESSION.fullmatch(folder) or _GROUP.fullmatch(folder))


def _context(above: Sequence[str]) -> str:
    kept = (_CONTRAST_FOLDER, _SESSION, _NEUTRAL)
    return "/".join(f for f in above if not any(form.fullmatch(f) for form in kept))


def _person_of_name(name: str) -> str:
    """A file's name without contrast and visit, where folders name only those."""
    words = [
        word
        for word in name.split("_")
        if not _CONTRAST.fullmatch(word) and not _SESSION.fullmatch(word)
    ]
    if len(words) > 1 and re.fullmatch(r"000\d", words[-1]):  # a channel of nnU-Net
        words.pop()
    return "_".join(words)


def _contrast_elsewhere(folders: Sequence[str], name: str) -> str:
    words = re.split(r"[-_. ]", name)
    found = [word for word in reversed(words) if _CONTRAST.fullmatch(word)]
    for folder in reversed(folders):
        if match := _CONTRAST_FOLDER.fullmatch(folder):
            found.append(match[2])
    return found[0] if found else ""
