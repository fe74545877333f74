"""Whether the cluster has what ``slurm/profile.yaml`` and the suite ask of it."""

import getpass
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsd.doctor.checks import Check, Context, ask, sentence
from tsd.doctor.cluster import FIELDS, Nodes, read_nodes
from tsd.doctor.request import PROFILE, Request, read_request, resources_of
from tsd.errors import InputError, WorkError
from tsd.files import read_yaml


def slurm(context: Context) -> list[Check]:
    """Partition, nodes, time limit and account that trainings of the suite ask for."""
    if shutil.which("sinfo") is None:
        return [Check("Slurm", "ok", "no Slurm here")]
    path = context.suite.root / PROFILE
    try:
        profile = read_yaml(path)
        if not isinstance(profile, dict):
            raise InputError(f"{path}: expected a mapping")
    except (InputError, OSError) as error:
        remedy = f"Mend that file, or take the repository's: `git checkout HEAD {PROFILE}`."
        return [Check("Slurm", "error", sentence(error), remedy)]
    asked = resources_of(profile)
    try:
        nodes = read_nodes(ask("sinfo", "--noheader", "--exact", "-o", FIELDS))
    except WorkError as error:
        remedy = "For `snakemake --profile slurm` see whether its controller answers: `scontrol ping`."
        return [
            Check("Slurm", "error" if context.gpus > 1 else "warning", str(error), remedy)
        ]  # one GPU may be this machine's
    name = asked.get("slurm_partition")
    lines = []
    if not name:
        default = next((group.partition for group in nodes if group.is_default), None)
        where = f"{PROFILE}: line {_line(path, 'slurm_partition')}: slurm_partition is not set"
        taken = f"Slurm's default, {default}, is taken" if default else "and Slurm has no default"
        remedy = f"Set it in {PROFILE} to one that `sinfo --summarize` lists."
        lines.append(Check("Slurm", "warning" if default else "error", f"{where}: {taken}", remedy))
        name = default
    if name:
        lines += _partitions(context, str(name), nodes, profile)
    return [*lines, _account(asked.get("slurm_account"), profile, path)]


def _partitions(context: Context, names: str, nodes: list[Nodes], profile: dict[str, Any]) -> list[Check]:
    """A line for each size of training."""
    lines: dict[Request, Check] = {}
    for experiment in (None, *context.suite.experiment_resources):
        try:
            request = read_request(context.suite, profile, experiment)
        except InputError as error:
            remedy = "Look yourself whether the nodes have it: `sinfo --Node --long`."
            return [Check("Slurm", "warning", sentence(error), remedy)]
        size = replace(request, source="")
        if size not in lines:
            lines[size] = _best_partition(names, nodes, request)
    return list(dict.fromkeys(lines.values()))


def _best_partition(names: str, nodes: list[Nodes], request: Request) -> Check:
    """One of several partitions will do, but sbatch refuses a name that it does not know."""
    listed = list(dict.fromkeys(name.strip() for name in names.split(",")))
    unknown = [name for name in listed if name not in {group.partition for group in nodes}]
    checks = [_partition(name, nodes, request) for name in unknown or listed]
    best = min(checks, key=lambda check: ("ok", "warning", "error").index(check.state))
    if best.state == "error" and len(checks) > 1:
        return Check("Slurm", "error", "; ".join(check.finding for check in checks), best.remedy)
    return best


def _partition(name: str, nodes: list[Nodes], request: Request) -> Check:
    own = [group for group in nodes if group.partition == name]
    choose = f"Set another slurm_partition in {PROFILE}; `sinfo --summarize` lists them."
    if not own:
        there = ", ".join(dict.fromkeys(group.partition for group in nodes)) or "none"
        return Check("Slurm", "error", f"no partition {name}; there are: {there}", choose)
    if not own[0].is_up:
        return Check("Slurm", "error", f"partition {name} is not up", choose)
    fitting = [group for group in own if request.lacks(group) is None]
    if sum(group.count for group in fitting) < request.nodes:
        lacking = list(dict.fromkeys(what for group in own if (what := request.lacks(group))))
        what = f" with {' and '.join(lacking)}" if lacking else ""
        has = ", ".join(f"{group.count} × {_describe(group)}" for group in own)
        finding = f"partition {name} has not {_number(request.nodes)}{what}: it has {has}"
        return Check("Slurm", "error", finding, f"Change {request.source}. {choose}")
    limit = own[0].limit
    if request.runtime > limit:
        finding = f"partition {name} ends jobs after {limit:g} minutes, and a training asks for {request.runtime}"
        remedy = f"Set `runtime: {limit:g}` of {request.source}: the next attempt goes on where one was ended."
        return Check("Slurm", "error", finding, remedy)
    usable = sum(group.count for group in fitting if group.is_usable)
    if usable < request.nodes:
        finding = (
            f"partition {name}: only {usable} of the {_number(request.nodes)} that a training asks for can be used now"
        )
        return Check("Slurm", "warning", finding, "See why: `sinfo --list-reasons`.")
    each = f"{request.gpus} GPUs, " if request.gpus else ""
    wanted = f"{each}{request.cpus} CPU{'s' if request.cpus > 1 else ''} and {request.memory} MB"
    has = "has" if usable == 1 else "have"
    fits = f"{_number(usable)} {has} the {wanted} that a training asks of {request.nodes}"
    time = "no time limit" if limit == float("inf") else f"time limit {limit:g} minutes, {request.runtime} asked for"
    return Check("Slurm", "ok", f"partition {name} is up; {fits}; {time}")


def _account(account: Any, profile: dict[str, Any], path: Path) -> Check:
    try:
        listed = ask(
            "sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}", "format=account"
        )
    except WorkError as error:
        if profile.get("slurm-status-command") != "squeue":
            finding = f"no accounting here, without which Snakemake waits for ever for its jobs ({error})"
            return Check("Slurm account", "warning", finding, f"Set `slurm-status-command: squeue` in {PROFILE}.")
        if not account:
            return Check("Slurm account", "ok", "none is asked for, and there is no accounting here")
        finding = f"account {account} could not be looked up ({error})"
        return Check("Slurm account", "warning", finding, "Look yourself: `sacctmgr show assoc user=$USER`.")
    accounts = sorted(set(listed.split()))
    if not account:
        return Check("Slurm account", "ok", f"your default one; yours are: {', '.join(accounts) or 'none'}")
    if str(account) in accounts:
        return Check("Slurm account", "ok", f"{account} is yours")
    finding = f"{PROFILE}: line {_line(path, 'slurm_account')}: {account} is not among yours: {', '.join(accounts)}"
    remedy = f"Set slurm_account in {PROFILE} to one that `sacctmgr show assoc user=$USER` lists."
    return Check("Slurm account", "error" if accounts else "warning", finding, remedy)


def _line(path: Path, key: str) -> int:
    """Where the profile speaks of a key, in a comment or not."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for wanted in (key, "default-resources"):
        for number, line in enumerate(lines, start=1):
            if wanted in line:
                return number
    return 1


def _describe(group: Nodes) -> str:
    gpus = ", ".join(f"{number} {model or 'GPUs'}" for model, number in group.gpus.items()) or "no GPU"
    return f"({gpus}, {group.cpus} CPUs, {group.memory} MB)"


def _number(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"
