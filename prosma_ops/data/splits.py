"""Which cases are trained on, validated on, and tested on.

In this order: what a `splits.json` says; what the folders or lists say; a seeded split, 70, 10 and 20 %. Where train
and test are given and val is not, val is a seeded part of train. Cases of one subject stay together in what is seeded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .case import SPLITS, BadFileError, Case, Collection, File, Problem
from .reading import stem_of

SHARES = (0.7, 0.1, 0.2)
FILES = ("splits.json", "splits_final.json")


@dataclass(frozen=True)
class Splits:
    """Cases by split, and where the splits come from."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]
    origin: str
    left_out: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __getitem__(self, name: str) -> tuple[Case, ...]:
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")
        cases: tuple[Case, ...] = getattr(self, name)
        return cases

    def required(self, name: str) -> tuple[Case, ...]:
        """The cases of a split that must have some; raises ValueError."""
        if not self[name]:
            raise ValueError(f"the split {name} is empty (splits: {self.origin}): {self._sizes()}")
        return self[name]

    def _sizes(self) -> str:
        return ", ".join(f"{name} {len(self[name])}" for name in SPLITS)

    def as_json(self) -> dict[str, Any]:
        """What `splits.json` holds."""
        return {name: [case.name for case in self[name]] for name in SPLITS}


def split(collection: Collection, seed: int = 0, shares: Sequence[float] = SHARES) -> Splits:
    """The splits of a collection; only cases with labels are in them. Raises `BadFileError` for a bad splits.json."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be three parts of 1 (train, val, test), got {tuple(shares)}")
    paths = [collection.folder / name for name in FILES] if collection.folder is not None else []
    path = next((path for path in paths if path.exists()), None)
    if path is not None:
        return _from_file(collection, path, seed, shares)
    labelled = collection.labelled()
    given: dict[str, list[Case]] = {name: [case for case in labelled if case.split == name] for name in SPLITS}
    if given["train"]:
        return _complete(_make(given, "the folder's own train, val and test"), seed, shares)
    rest = [case for case in labelled if case.split is None]
    if given["test"] or given["val"]:
        rest_shares = [0.0 if given[name] else share for name, share in zip(SPLITS, shares, strict=True)]
        seeded = _seeded(rest, seed, [share / sum(rest_shares) for share in rest_shares])
        both = {name: given[name] + seeded[name] for name in SPLITS}
        return _complete(_make(both, f"the folder's own, the rest by seed {seed}"), seed, shares)
    by = ", whole subjects" if any(case.subject for case in rest) else ""
    return _complete(_make(_seeded(rest, seed, shares), f"seed {seed}{by}"), seed, shares)


def _make(cases: Mapping[str, Iterable[Case]], origin: str, **more: Any) -> Splits:
    return Splits(tuple(cases["train"]), tuple(cases["val"]), tuple(cases["test"]), origin, **more)


def _complete(splits: Splits, seed: int, shares: Sequence[float]) -> Splits:
    """Validation cases are taken from train where none are given; and what is wrong with the splits is told."""
    train, val, origin = splits.train, splits.val, splits.origin
    if not val and len(train) > 1 and shares[1] > 0:
        whole = shares[0] + shares[1]
        seeded = _seeded(train, seed, (shares[0] / whole, shares[1] / whole, 0.0))
        train, val = tuple(seeded["train"]), tuple(seeded["val"])
        origin += f"; val is a part of train by seed {seed}"
    made = Splits(train, val, splits.test, origin, splits.left_out)
    return Splits(train, val, splits.test, origin, splits.left_out, (*splits.problems, *_problems(made)))


def _problems(splits: Splits) -> list[Problem]:
    empty = [name for name in ("train", "val") if not splits[name]]
    problems = [Problem("error", splits.origin, f"the split {name} is empty") for name in empty]
    if not splits.test:
        problems.append(Problem("warning", splits.origin, "the split test is empty: nothing to evaluate on but val"))
    seen: dict[str, str] = {}
    shared = Counter[str]()
    for name in SPLITS:
        for subject in {case.subject for case in splits[name] if case.subject}:
            if seen.setdefault(subject, name) != name:
                shared[f"{seen[subject]} and {name}"] += 1
    for pair, count in shared.items():
        message = f"{count} subjects are in {pair}: what is measured there may be memory"
        problems.append(Problem("warning", splits.origin, message))
    return problems


def _order(seed: int, name: str) -> str:
    """A place in an order that is random and the same everywhere, and does not depend on which others there are."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _seeded(cases: Iterable[Case], seed: int, shares: Sequence[float]) -> dict[str, list[Case]]:
    """Whole subjects are dealt to the split that lacks most of its share; every share above 0 gets one, if it can."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.subject or case.name, []).append(case)
    total = sum(len(group) for group in groups.values())
    dealt: dict[str, list[Case]] = {name: [] for name in SPLITS}
    wanted = dict(zip(SPLITS, (share * total for share in shares), strict=True))
    if len(groups) >= sum(share > 0 for share in shares):
        wanted = {name: max(want, 1.0) if want else 0.0 for name, want in wanted.items()}
    for group in sorted(groups, key=lambda group: _order(seed, group)):
        poorest = max(SPLITS, key=lambda name: (wanted[name] - len(dealt[name])) / max(wanted[name], 1e-9))
        dealt[poorest] += groups[group]
    return {name: sorted(found, key=lambda case: case.name) for name, found in dealt.items()}


def subset(cases: Sequence[Case], share: float, seed: int = 0) -> tuple[Case, ...]:
    """A seeded part of the cases, at least one; whole subjects. That of a smaller share is in that of a larger."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.subject or case.name, []).append(case)
    chosen: list[Case] = []
    for group in sorted(groups, key=lambda group: _order(seed, group)):
        if chosen and len(chosen) + len(groups[group]) > share * len(cases) + 0.5:
            break
        chosen += groups[group]
    return tuple(sorted(chosen, key=lambda case: case.name))


def _from_file(collection: Collection, path: Path, seed: int, shares: Sequence[float]) -> Splits:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"is no JSON ({error})") from None
    if isinstance(content, list) and content:
        content = content[0]  # nnU-Net's folds; the first is its default
    if not isinstance(content, dict) or not isinstance(content.get("train"), list):
        raise BadFileError(path, 'holds no splits; {"train": [...], "val": [...], "test": [...]} is needed')
    known = _by_name(collection)
    problems: list[Problem] = []
    chosen: dict[str, str] = {}
    cases: dict[str, list[Case]] = {name: [] for name in SPLITS}
    for name in SPLITS:
        for entry in content.get(name) or (name == "val" and content.get("validation")) or ():
            case, problem = _resolve(known, str(entry))
            if case is not None and chosen.setdefault(case.name, name) != name:
                problem = f"lists {entry} in {chosen[case.name]} and in {name}"
            elif case is not None and case.label is None:
                problem = f"lists {entry} in {name}, which has no mask"
            elif case is not None:
                cases[name].append(case)
            if problem:
                problems.append(Problem("error", str(path), problem))
    left_out = tuple(case.name for case in collection.cases if case.name not in chosen)
    made = _make(cases, path.name, left_out=left_out, problems=tuple(problems))
    part = shares if "val" not in content and "validation" not in content else (1.0, 0.0, 0.0)
    return _complete(made, seed, part)


def _by_name(collection: Collection) -> dict[str, list[Case]]:
    """Cases by each name that a list may call them: the case's own, its file's with suffix or without, its path's."""
    known: dict[str, list[Case]] = {}
    for case in collection.cases:
        keys = {case.name}
        for source in case.images:
            if isinstance(source, File):
                keys |= {source.path.name, stem_of(source.path)}
                if collection.folder is not None:
                    keys.add(source.path.relative_to(collection.folder).as_posix())
        for key in keys:
            known.setdefault(key, []).append(case)
    return known


def _resolve(known: Mapping[str, Sequence[Case]], entry: str) -> tuple[Case | None, str]:
    found = known.get(entry) or known.get(entry.removeprefix("./")) or known.get(Path(entry).name) or []
    found = found or known.get(stem_of(Path(entry)), [])
    if not found:
        return None, f"lists {entry}, but there is no such image"
    if len(found) > 1:
        return None, f"lists {entry}, which may be {' or '.join(case.name for case in found[:3])}: name it like this"
    return found[0], ""
