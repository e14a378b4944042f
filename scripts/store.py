"""python scripts/store.py [--store FOLDER] list | explain KEY | verify | export FILE KEY... | import FILE | clean ...

Looks after a store: what is in it, what made a thing and what uses it, whether its files are what they were when they
were made, bundles of things to carry to another store, and what may be thrown away. Nothing is deleted but by
`clean --delete`; without it, `clean` says what it would.
"""

import argparse
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from unlearn.lease import Lease, held
from unlearn.row import readable
from unlearn.settings import SettingError
from unlearn.store import FORMAT, BusyError, Store, Stored, fault, key_of

KEY = re.compile(r"[0-9a-f]{12}")
MODELS = ("originals", "retrained", "unlearned")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--store", type=Path, default=Path("outputs/store"), metavar="FOLDER")
    commands = result.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every thing, with its size")
    explain = commands.add_parser("explain", help="what made a thing, what it was made from, and what uses it")
    explain.add_argument("key")
    commands.add_parser("verify", help="compare every file with its checksum; status 1 if one is damaged")
    export = commands.add_parser("export", help="write things, and all that they were made from, to a .tar file")
    export.add_argument("file", type=Path)
    export.add_argument("keys", nargs="*", help="all rows if none is given")
    bring = commands.add_parser("import", help="take things from a .tar file, each verified")
    bring.add_argument("file", type=Path)
    clean = commands.add_parser("clean", help="name what may go; delete it with --delete")
    clean.add_argument("--partial", action="store_true", help="what is not complete, and nobody is at")
    clean.add_argument("--set-aside", action="store_true", help="damaged things")
    clean.add_argument("--unused", action="store_true", help="models of no row, and what was made from them")
    clean.add_argument("--references", action="store_true", help="with --unused: reference models and oracles too")
    clean.add_argument("--delete", action="store_true", help="do it")
    return result


# What there is


def places(root: Path) -> list[Stored]:
    """Every thing of the store, and whatever else lies where one should."""
    folders = (folder for kind in FORMAT for folder in sorted((root / kind).glob("*")) if KEY.fullmatch(folder.name))
    return [Stored(folder.parent.name, folder.name, folder) for folder in folders]


def things(root: Path) -> list[Stored]:
    """Every complete thing of the store."""
    return [thing for thing in places(root) if (thing.folder / "done.json").exists()]


@contextmanager
def reading(thing: Stored) -> Iterator[None]:
    """Inside the block, whatever is wrong with what a thing's files say is one line: a `SettingError`."""
    try:
        yield
    except SettingError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        allowed = f"cannot be read ({type(error).__name__}: {error}); `verify` names all that is damaged"
        raise SettingError(thing.kind, thing.key, allowed) from error


def recipe(thing: Stored) -> dict[str, Any]:
    """What determined a thing. Raises `SettingError` for one whose recipe cannot be read."""
    with reading(thing):
        return dict(thing.json("recipe.json").items())


def label(thing: Stored) -> str:
    """A thing in a few words. Raises `SettingError` for one whose recipe cannot be read."""
    with reading(thing):
        its = recipe(thing)
        whole = its.get("original", its)
        parts = [whole.get("dataset"), whole.get("model"), whole.get("train"), its.get("method"), its.get("name")]
        targets = [part.get("_target_") if isinstance(part, dict) else part for part in parts]
        names = [str(target or "").rpartition(".")[2] for target in targets if not KEY.fullmatch(str(target))]
        seed = f"seed {whole['seed']}" if "seed" in whole else ""
        return " ".join(word for word in [*names, seed] if word)


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def sources(found: Iterable[Stored]) -> dict[str, set[str]]:
    """Key -> the keys of what it was made from or speaks of, as far as they are in the store.

    Raises `SettingError` for a thing whose recipe or row cannot be read: what it needs is not known.
    """
    all_of_them = list(found)
    by_content = {thing.content: thing.key for thing in all_of_them if thing.kind in MODELS}
    edges: dict[str, set[str]] = defaultdict(set)
    for thing in all_of_them:
        with reading(thing):
            edges[thing.key] |= _sources(thing, by_content)
    there = {thing.key for thing in all_of_them}
    return {key: edges[key] & there for key in there}


def _sources(thing: Stored, by_content: dict[str, str]) -> set[str]:
    its, found = recipe(thing), set()
    if "original" in its:
        found.add(key_of("originals", its["original"]))
        if len(its["forget"]) > 1:
            found.add(key_of("unlearned", {**its, "forget": its["forget"][:-1]}))
    if "model" in its and isinstance(its["model"], str):
        found.add(its["model"])
    for role in ("subject", "reference"):
        found |= {by_content[content] for content in its.get(role, ()) if content in by_content}
    if thing.kind == "rows":
        models = readable(thing.json("row.json"), thing.folder / "row.json")["models"]
        found |= {key for keys in models.values() for key in keys}
    return found


def reached(keys: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    """These things and all that they were made from."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += edges[key]
    return found


def belongs(thing: Stored, keys: set[str], edges: dict[str, set[str]]) -> bool:
    """Whether a thing is one of `keys`, or was worked out from these alone, as signals and audits are."""
    derived = thing.kind not in (*MODELS, "rows") and edges[thing.key]
    return thing.key in keys or bool(derived and edges[thing.key] <= keys)


def chosen(keys: list[str], found: list[Stored]) -> list[str]:
    """Whole keys for keys or their beginnings. Raises `SettingError` for none and for several."""
    whole = []
    for key in keys:
        fitting = [thing.key for thing in found if thing.key.startswith(key)]
        if len(fitting) != 1:
            raise SettingError("key", key, f"must be a thing of the store, or its beginning; {len(fitting)} things fit")
        whole += fitting
    return whole


# What can be done


def listed(root: Path) -> Iterator[str]:
    """A line for each thing, and one for each kind. Raises `SettingError` at the end if a recipe cannot be read."""
    counts: dict[str, list[int]] = defaultdict(list)
    unreadable = None
    for thing in things(root):
        counts[thing.kind].append(size(thing.folder))
        try:
            said = label(thing)
        except SettingError as error:
            unreadable, said = error, "?"
        yield f"{thing.kind:<12} {thing.key}  {counts[thing.kind][-1] / 2**20:>8.1f} MiB  {said}"
    for kind, sizes in counts.items():
        yield f"{kind}: {len(sizes)} things, {sum(sizes) / 2**20:.1f} MiB"
    if unreadable:
        raise unreadable


def explained(root: Path, key: str) -> Iterator[str]:
    """What made a thing, what it was made from, and what uses it."""
    found = things(root)
    edges, names = sources(found), {thing.key: thing for thing in found}
    thing = names[chosen([key], found)[0]]
    yield f"{thing.kind} {thing.key}: {label(thing)}"
    yield yaml.safe_dump(recipe(thing), sort_keys=False, allow_unicode=True).rstrip()
    users = [other for other, its in edges.items() if thing.key in its]
    for title, keys in (("made from", edges[thing.key]), ("used by", users)):
        yield f"{title}: {'nothing in this store' if not keys else ''}".rstrip()
        yield from sorted(f"  {names[other].kind} {other}: {label(names[other])}" for other in keys)


def wrong_with(thing: Stored) -> str | None:
    """What is wrong with a thing; None if it is what its name says."""
    try:
        its = recipe(thing)
    except SettingError:
        its = {}
    named = key_of(thing.kind, its) == thing.key
    return fault(thing.folder, its) or (None if named else "has another recipe than its name says")


def verified(root: Path) -> Iterator[str]:
    """A line for each place whose thing is not what it was, or not there."""
    for thing in places(root):
        if wrong := wrong_with(thing):
            yield f"{thing.folder} {wrong}"


def exported(root: Path, file: Path, keys: list[str]) -> str:
    """Write a bundle; the last thing written is its name. Raises `SettingError` where it cannot be written."""
    found = things(root)
    edges = sources(found)
    wanted = reached(chosen(keys, found) or [thing.key for thing in found if thing.kind == "rows"], edges)
    if not wanted:
        raise SettingError("keys", "none", "there is no row in this store to export")
    kept = [thing for thing in found if belongs(thing, wanted, edges)]
    try:
        with tempfile.TemporaryDirectory(dir=file.resolve().parent) as beside:
            with tarfile.open(Path(beside) / "bundle", "w") as bundle:
                for thing in kept:
                    for each in sorted(thing.folder.iterdir()):
                        bundle.add(each, f"{thing.kind}/{thing.key}/{each.name}")
            (Path(beside) / "bundle").replace(file)
    except OSError as error:
        raise SettingError("file", file, f"cannot be written ({error.strerror})") from error
    return f"{len(kept)} things in {file}"


def imported(root: Path, file: Path) -> Iterator[str]:
    """Take what is in a bundle and not yet here. Raises `SettingError` for a bundle that is not one."""
    Store(root).check_writable()
    with tempfile.TemporaryDirectory(dir=root) as beside:
        try:
            with tarfile.open(file) as bundle:
                for member in bundle:
                    _unpack(bundle, member, Path(beside))
        except (OSError, tarfile.TarError, EOFError) as error:
            raise SettingError("file", file, f"must be a bundle of `store.py export` ({error})") from error
        taken = 0
        for thing in things(Path(beside)):
            place = root / thing.kind / thing.key
            wrong = wrong_with(thing)
            if wrong is None and not os.path.lexists(place):
                try:
                    with Lease(root / "locks", f"{thing.kind}-{thing.key}", _busy):
                        place.parent.mkdir(exist_ok=True)
                        thing.folder.rename(place)
                    taken += 1
                except BusyError as error:
                    wrong = str(error)
            if wrong:
                yield f"left out: {thing.kind}/{thing.key} {wrong}"
    yield f"{taken} things taken"


def _busy(holder: str) -> None:
    raise BusyError(f"is being made by {holder}")


def _unpack(bundle: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """One file of a bundle, if its name is that of a file of a thing; no link and no path leads out of the folder."""
    kind, _, rest = member.name.partition("/")
    key, _, name = rest.partition("/")
    plain = member.isfile() and kind in FORMAT and KEY.fullmatch(key) and re.fullmatch(r"[\w.-]+", name)
    if not plain or name in (".", ".."):
        raise SettingError("file", member.name, "has no place in a bundle")
    source = bundle.extractfile(member) or io.BytesIO()
    (folder / kind / key).mkdir(parents=True, exist_ok=True)
    with (folder / kind / key / name).open("wb") as target:
        shutil.copyfileobj(source, target)


def garbage(root: Path, options: argparse.Namespace) -> Iterator[Path]:
    """Folders that may go. Raises `SettingError` if it cannot be known now what is used."""
    if options.partial:
        incomplete = (thing.folder for thing in places(root) if not (thing.folder / "done.json").exists())
        yield from (folder for folder in (*sorted(root.glob("*/*.partial")), *incomplete) if not claims(root, folder))
    if options.set_aside:
        yield from sorted((root / "set_aside").glob("*"))
    if options.unused:
        if working := held(root / "locks"):
            allowed = f"must wait for {working[0]}, which is being made: what no row names may be for it"
            remedy = f"if nobody is at it any more, delete {root / 'locks' / working[0]}.lease.*"
            raise SettingError("clean", "--unused", f"{allowed}; {remedy}")
        found = things(root)
        edges = sources(found)
        used = reached([thing.key for thing in found if thing.kind == "rows"], edges)
        for thing in found:
            relatives = {thing.key} | edges[thing.key]
            relative = any(_relative(other) for other in found if other.key in relatives)
            if not belongs(thing, used, edges) and (options.references or not relative):
                yield thing.folder


def claims(root: Path, folder: Path) -> list[str]:
    """The living leases that forbid to delete a folder: its own, or any if it is complete, for a row may be at it."""
    complete = KEY.fullmatch(folder.name) and (folder / "done.json").exists()
    return [name for name in held(root / "locks") if complete or name == f"{folder.parent.name}-{folder.stem}"]


def _relative(thing: Stored) -> bool:
    """Whether a model was made for audits only: a reference, an oracle or a repeat, whose seed is text."""
    whole = recipe(thing).get("original", recipe(thing))
    return isinstance(whole.get("seed"), str) or "repeat" in recipe(thing)


def cleaned(root: Path, options: argparse.Namespace) -> Iterator[str]:
    """Name, or delete, what may go."""
    if not (options.partial or options.set_aside or options.unused):
        raise SettingError("clean", "nothing", "must be told what: --partial, --set-aside, --unused")
    total = 0
    for folder in list(garbage(root, options)):
        if working := claims(root, folder):  # which has begun since it was found
            yield f"kept {folder}: {working[0]} is being made"
            continue
        total += size(folder)
        yield f"{'deleted' if options.delete else 'would delete'} {folder}"
        if options.delete and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        elif options.delete:
            folder.unlink()
    yield f"{total / 2**20:.1f} MiB" + ("" if options.delete else "; --delete does it")


def main() -> None:
    """Do what is asked."""
    options = parser().parse_args()
    root: Path = options.store
    try:
        if not root.is_dir() and options.command != "import":
            raise SettingError("--store", root, "must be the folder of a store")
        if options.command == "export":
            print(exported(root, options.file, options.keys))
        elif options.command == "verify":
            damaged = list(verified(root))
            print("\n".join([*damaged, f"{len(damaged)} of {len(places(root))} things are damaged"]))
            sys.exit(bool(damaged))
        else:
            actions = {"list": lambda: listed(root), "explain": lambda: explained(root, options.key)}
            actions |= {"import": lambda: imported(root, options.file), "clean": lambda: cleaned(root, options)}
            for line in actions[options.command]():
                print(line)
    except (SettingError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
