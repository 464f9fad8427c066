"""Continuing a session with other versions of streamprep or of plugins than it began with: `streamprep upgrade`.

The versions are part of the plan that results are made with, so that nobody mixes them without knowing. Here somebody
does know: where nothing else differs, the results become those of the plan of today. What they were made with is kept
in the ledger, and the log of commits is written anew by the next start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamprep.committer import STATE_FOLDER
from streamprep.config import Config
from streamprep.ledger import Ledger
from streamprep.ledger_upgrade import upgrade
from streamprep.model import ConfigError
from streamprep.pipeline import Plan
from streamprep.session import LEDGER, find_output, lock_output, write_plan
from streamprep.watcher import file_system_of, is_remote


def other_versions(config: Config, plan: Plan) -> tuple[Path, list[str]]:
    """The output folder that was made with other versions, and what differs; nothing where it is of this plan already.

    Raises
    ------
    ConfigError
        There is none, more than versions differs, or there are several.
    """
    output, exists = find_output(config, plan)
    if exists:
        return output, []
    reason = "nothing was processed so far"
    found: list[tuple[Path, list[str]]] = []
    for folder, former in _former_plans(config, output):
        try:
            found.append((folder, list(_differences(former, plan))))
        except ValueError as error:
            reason = f"{folder}: {error}"
    if len(found) > 1:
        names = ", ".join(folder.name for folder, _ in found)
        last = Path(config.session.output).with_name(found[-1][0].name)
        raise ConfigError(
            f"{config.file}: {names} differ from the configuration in versions alone; say which of them is to go on, "
            f"for example: streamprep upgrade --set session.output={last}"
        )
    if found:
        return found[0]
    raise ConfigError(
        f"{config.file}: there are no results that differ in versions alone: {reason}. Give the configuration that "
        "they were made with, or --new-set to streamprep run"
    )


def _former_plans(config: Config, free: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Output folders with the plan of each; ``free`` is the first name without one."""
    wanted, number = config.resolve(config.session.output), 1
    while (folder := wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")) != free:
        yield folder, json.loads((folder / STATE_FOLDER / "plan.json").read_text())
        number += 1


def _differences(former: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What differs; a ValueError where it is more than versions, and new parameters that have their defaults."""
    now = json.loads(json.dumps(plan.describe()))
    for key in {*former, *now} - {"hash", "steps"}:
        if former.get(key) != now.get(key):
            raise ValueError(f"{key} was {json.dumps(former.get(key))}, and is {json.dumps(now.get(key))}")
    names = [[f"{step['table']}.{step['operation']}" for step in described["steps"]] for described in (former, now)]
    if names[0] != names[1]:
        raise ValueError(f"it has {', '.join(names[0])}; asked for is {', '.join(names[1])}")
    for name, old, new, step in zip(names[0], former["steps"], now["steps"], plan.steps, strict=True):
        for key in ("order", "distribution"):
            if old[key] != new[key]:
                raise ValueError(f"{name}: {key} was {old[key]}, and is {new[key]}")
        if old["version"] != new["version"]:
            yield f"{name}: {new['distribution']} {old['version']}, now {new['version']}"
        defaults = json.loads(json.dumps(_defaults(step.params)))
        for key in {*old["parameters"], *new["parameters"]}:
            before, after = old["parameters"].get(key), new["parameters"].get(key)
            if key not in old["parameters"] and key in defaults and defaults[key] == after:
                yield f"{name}: {key} = {json.dumps(after)} is new, and its default"
            elif before != after:
                raise ValueError(f"{name}: {key} was {json.dumps(before)}, and is {json.dumps(after)}")


def _defaults(params: Any) -> dict[str, Any]:
    fields = type(params).model_fields
    plain = {name: field.default for name, field in fields.items() if not field.is_required()}
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float | None)}


def continue_with(config: Config, plan: Plan, output: Path, changes: list[str]) -> None:
    """Make the results of a folder those of this plan; see `other_versions`. Safe to be interrupted and repeated.

    Raises
    ------
    ConfigError
        A daemon is at work there, or the ledger is of yet another plan.
    LedgerError
        The ledger is damaged, or of a newer version.
    """
    state = output / STATE_FOLDER
    former = json.loads((state / "plan.json").read_text())
    with lock_output(output):
        remote = is_remote(file_system_of(output))
        ledger = Ledger(state / LEDGER, remote=remote, suffixes=config.matching.suffixes, upgrade=upgrade)
        try:
            if ledger.get("plan") not in (former["hash"], plan.hash):
                raise ConfigError(f"{output}: its ledger and its plan.json are of different plans; restore one of them")
            said = "the results were made with other versions, which the ledger keeps: " + "; ".join(changes)
            with ledger.transaction():
                ledger.put(f"plan {former['hash']}", json.dumps(former))
                ledger.put("plan", plan.hash)
                ledger.put("upgraded", "; ".join(filter(None, (ledger.get("upgraded"), said))))
            write_plan(output, plan)
        finally:
            ledger.close()
