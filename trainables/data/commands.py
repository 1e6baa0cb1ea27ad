"""The commands of `python -m trainables.data`, one function each.

Networks and Ray are imported after the flags have been checked.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.common.cluster import check_address
from trainables.common.devices import device_for, gpu_count
from trainables.common.errors import InputError, one_line
from trainables.common.machine import usable_cpus
from trainables.common.parquet import read_table
from trainables.common.paths import check_room, check_writable, is_uri, path_of, refuse_secrets
from trainables.common.units import byte_text, duration
from trainables.data.contact_sheet import write_contact_sheet
from trainables.data.preparation_progress import PreparationProgress
from trainables.data.stores.inventory import Shelved, remove, stores_below, to_prune
from trainables.data.stores.roots import local_root, store_root
from trainables.data.stores.shard_format import MANIFEST
from trainables.data.stores.store import Store
from trainables.images.names import photograph_of
from trainables.pretrained.base_model import find_base
from trainables.settings import TrialSettings, assignments, check_sections, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.settings.presets import preset
from trainables.settings.sources import check_sources, given_sources

_REASONS = 5  # rejected photographs to show


def prepare_command(flags: argparse.Namespace) -> int:
    """Makes the stores for trials of a method, and prints their paths."""
    settings = _trial(flags)
    if not flags.store:
        raise InputError("--store is empty; expected a folder or URI")
    root = store_root(flags.store)
    if not is_uri(root) and not Path(root).is_dir():
        check_writable("--store", Path(root))
    if flags.address:
        check_address(flags.address)
    _check_gpus(flags)
    if flags.dry_run and METHODS[settings.method].latents == "kl":  # a dry run downloads nothing
        find_base(settings.base.weights, settings.base.revision, allow_download=False)
    from trainables.data.estimate import seconds_of
    from trainables.data.prepare import bytes_to_come, make_stores, pairs_of, read_photographs, tested_photographs
    from trainables.data.stages.needed import needed_stages
    from trainables.images.sources.source import open_source
    from trainables.methods.build import method_class

    source = open_source(settings.data.source, settings.data.input)
    test = bool(tested_photographs(settings, source, local_root(root)))
    stages = needed_stages(settings, root, method_class(settings.method).columns(settings), source, test)
    missing = [stage for stage in stages if not stage.exists]
    if missing and not is_uri(root):
        check_writable("--store", Path(root))
    pairs = pairs_of(settings, read_photographs(settings, missing, local_root(root), source))
    for stage in stages:
        state = f"{stage.rows} rows, {byte_text(stage.bytes)}" if stage in missing else "already prepared"
        print(f"{stage.folder.name}: {state}")
    if not is_uri(root):
        check_room({"--store": (Path(root), bytes_to_come(missing))})
    if flags.dry_run:
        gpus = min(flags.gpus, gpu_count())  # of a cluster they may be on other machines
        seconds = seconds_of(settings, missing, pairs, device_for(gpus)) / (gpus or flags.cpus or usable_cpus())
        where = " on this machine alone" if flags.address else ""
        print(f"to be made: {byte_text(sum(s.bytes for s in missing))} in about {duration(seconds)}{where}")
        return 0
    if missing:
        from trainables.data.ray_pipeline import STORES, check_shared, connected_for_preparation, on_ray

        with connected_for_preparation(flags.address, flags.cpus, flags.gpus, flags.store):
            if flags.address:
                check_shared(root, "--store", STORES)
            progress = PreparationProgress(print)
            make_stores(settings, stages, progress=progress, run=on_ray(flags.gpus), source=source)
    for stage in stages:
        print(f"{root.rstrip('/')}/{stage.folder.name}")
    return 0


def _check_gpus(flags: argparse.Namespace) -> None:
    if flags.gpus and not flags.address and flags.gpus > gpu_count():
        raise InputError(f"--gpus {flags.gpus}: this machine has {gpu_count()}")


def _trial(flags: argparse.Namespace) -> TrialSettings:
    chosen = preset(flags.preset)
    assigned = assignments(flags.set, "pairs.train_pairs=5000")
    values: dict[str, object] = dict(assigned)
    method = flags.method or values.get("method", chosen.trial.method)
    check_sources(flags.data, flags.data_input, flags.data_target)
    for name in ("data", "data_input", "data_target", "store"):
        refuse_secrets(f"--{name.replace('_', '-')}", getattr(flags, name))
    values |= {"method": method} | given_sources(flags.data, flags.data_input, flags.data_target)
    settings = override(chosen.trial, {**chosen.methods.get(str(method), {}), **values})
    for name, how in chosen.needs:
        if name == "data.source" and not settings.data.source:
            raise InputError(f"--preset {flags.preset}: needs {how}")
    _check_read(settings, assigned)
    return settings


def _check_read(settings: TrialSettings, assigned: Sequence[tuple[str, str]]) -> None:
    """Refuses settings that have no effect on a trial, as a sweep does."""
    check_sections([name for name, _ in assigned], (settings.method,))
    for name, value in assigned:
        if reason := reason_unread(name, settings):
            raise InputError(f"--set {name}={value}: has no effect with {reason}")


def inspect_command(flags: argparse.Namespace) -> int:
    """Prints the content of a store, or of every store of a root; writes a sheet of a store's pairs."""
    path = path_of("STORE", flags.path)
    if not (path / MANIFEST).exists():
        if flags.sheet is not None:
            raise InputError(f"{path}: not a store, so it has no --sheet; give the folder of one store")
        stores = stores_below(path)
        if not stores:
            raise InputError(f"{path}: no store found; expected a store, or a folder of stores")
        for line in _table(stores):
            print(line)
        return 0
    store = Store(path)
    manifest = store.manifest
    print(f"{path.name}: {len(store)} rows in {len(manifest['shards'])} shards, {byte_text(manifest['bytes'])}")
    for name, column in store.columns.items():
        print(
            f"  {name:16} {column.dtype} {' x '.join(map(str, column.shape))}, {byte_text(column.bytes_per_row)} a row"
        )
    print("determined by")
    for name, value in _flat(manifest["key"]):
        print(f"  {name:32} {json.dumps(value)}")
    rejected = rejected_of(path)
    print(f"rejected: {len(rejected)} images" + (f", listed in {path / 'rejected.parquet'}" if rejected else ""))
    for name, reason in list(rejected.items())[:_REASONS]:
        print(f"  {name}: {reason}")
    if names := store.names:
        used = Counter(photograph_of(name) for name in names)
        print(f"from {len(used)} photographs, {min(used.values())} to {max(used.values())} pairs of each")
    if {"degraded", "target"} <= set(store.columns):
        sheet = path_of("--sheet", f"{path.name}.png" if flags.sheet is None else flags.sheet)
        try:
            print(f"{write_contact_sheet(store, sheet)} pairs, degraded and target, are in {sheet}")
        except (OSError, ValueError) as error:  # Pillow raises ValueError for an unknown suffix
            raise InputError(f"--sheet {sheet}: cannot be written ({one_line(error)}); expected a .png file") from None
    return 0


def _flat(key: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in key.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def rejected_of(path: Path) -> dict[str, str]:
    """Image -> the reason why it is not in a store of pairs."""
    table = path / "rejected.parquet"
    try:
        return {row["name"]: row["reason"] for row in read_table(table).to_pylist()} if table.exists() else {}
    except (OSError, LookupError, ValueError) as error:
        raise InputError(f"{table}: cannot be read ({one_line(error)}); delete {path} to prepare it again") from None


def verify_command(flags: argparse.Namespace) -> int:
    """Compares the content of every store with its hashes."""
    damaged = 0
    for given in flags.paths:
        path = path_of("STORE", given)
        found = (
            [path]
            if (path / MANIFEST).exists()
            else [s.path for s in stores_below(path) if s.complete or (s.damaged and not s.window)]
        )
        if not found:
            raise InputError(f"{path}: no complete store found")
        for store in found:
            try:
                Store(store, verify=True)
                print(f"{store.name}: intact")
            except InputError as error:
                damaged += 1
                print(error)
    return 1 if damaged else 0


def prune_command(flags: argparse.Namespace) -> int:
    """Lists the stores of a root, marks those to delete, and deletes them after confirmation."""
    stores = stores_below(path_of("ROOT", flags.path))
    chosen = to_prune(stores, flags.older_than, None if flags.keep is None else flags.keep * 1e9)
    for line in _table(stores, chosen):
        print(line)
    if not chosen:
        print("nothing to delete" if stores else "no stores found")
        if flags.older_than is None and flags.keep is None:
            print("choose stores with --older-than DAYS or --keep GB")
        return 0
    size = byte_text(sum(store.bytes for store in chosen))
    if not flags.yes and not _confirmed(f"delete {len(chosen)} stores, {size}? [y/N] "):
        print("nothing was deleted")
        return 0
    kept = 0
    for store in chosen:
        if reason := remove(store):
            kept += 1
            print(f"kept {store.name}: {reason}")
        else:
            print(f"deleted {store.name}")
    return 1 if kept else 0


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except (EOFError, RuntimeError):  # the second one where standard input was closed from the start
        raise InputError("no answer on standard input, so nothing was deleted; give --yes to delete") from None


def _table(stores: Sequence[Shelved], chosen: Sequence[Shelved] = ()) -> list[str]:
    width = max((len(store.name) for store in stores), default=0)
    return [
        f"{store.name:{width}}  {store.state:>17}  {byte_text(store.bytes):>8}  "
        f"used {duration(86400 * store.days)} ago{'  delete' if store in chosen else ''}"
        for store in sorted(stores, key=lambda store: store.used)
    ]
