"""Whether the cluster has what ``slurm/profile.yaml`` and the suite ask of it."""

import getpass
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.doctor.checks import Check, Context, ask
from tsd.errors import InputError, WorkError
from tsd.files import read_yaml

PROFILE = Path("slurm/profile.yaml")

RULE = "train_detector"
"""The rule whose jobs need GPUs."""

FIELDS = "%P|%a|%l|%D|%T|%c|%m|%f|%G"
"""Of sinfo: partition, availability, time limit, nodes, their state, CPUs, MB, features, GPUs of each."""

_OUT_OF_USE = ("down", "drain", "fail", "error", "maint", "unknown", "inval", "future")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    partition: str
    is_default: bool
    is_up: bool
    limit: float
    count: int
    state: str
    cpus: int
    memory: int
    features: tuple[str, ...]
    gpus: dict[str, int]

    @property
    def is_usable(self) -> bool:
        """Whether jobs start there."""
        return not self.state.startswith(_OUT_OF_USE) and not self.state.endswith("*")


@dataclass(frozen=True)
class Request:
    """What a training asks of each of its nodes."""

    nodes: int
    gpus: int
    model: str
    cpus: int
    memory: int
    runtime: int
    feature: str

    def lacks(self, node: Nodes) -> str | None:
        """What a node has too little of."""
        own = node.gpus.get(self.model, 0) if self.model else sum(node.gpus.values())
        if self.gpus > own:
            return f"{self.gpus} GPUs{f' of type {self.model}' if self.model else ''}"
        if self.cpus > node.cpus:
            return f"{self.cpus} CPUs"
        if self.memory > node.memory:
            return f"{self.memory} MB of memory"
        if re.fullmatch(r"[\w.-]+", self.feature) and self.feature not in node.features:
            return f"the feature {self.feature}"
        return None


def slurm(context: Context) -> list[Check]:
    """Partition, nodes, time limit and account that trainings of the suite ask for."""
    if shutil.which("sinfo") is None:
        return [Check("Slurm", "ok", "no Slurm here")]
    path = context.suite.root / PROFILE
    profile = read_yaml(path)
    if not isinstance(profile, dict):
        raise InputError(f"{path}: expected a mapping")
    asked = _pairs(profile.get("default-resources")) | _pairs(_pairs(profile.get("set-resources")).get(RULE))
    try:
        nodes = read_nodes(ask("sinfo", "--noheader", "--exact", "-o", FIELDS))
    except WorkError as error:
        remedy = "See whether its controller answers: `scontrol ping`."
        return [Check("Slurm", "error" if context.gpus else "warning", str(error), remedy)]
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
        lines.append(_partition(context, str(name), nodes, _request(context, asked)))
    return [*lines, _account(asked.get("slurm_account"), profile, path)]


def read_nodes(text: str) -> list[Nodes]:
    """What sinfo prints by :data:`FIELDS`.

    Raises:
        InputError: a line that is of another form.
    """
    groups = []
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|")
        if len(fields) != FIELDS.count("|") + 1:
            raise InputError(f"sinfo printed {line!r}, expected {FIELDS}")
        partition, available, limit, count, state, cpus, memory, features, gres = fields
        groups.append(
            Nodes(
                partition=partition.rstrip("*"),
                is_default=partition.endswith("*"),
                is_up=available == "up",
                limit=minutes(limit),
                count=int(count),
                state=state,
                cpus=int(cpus.rstrip("+")),
                memory=int(memory.rstrip("+")),
                features=tuple(features.split(",")),
                gpus=gpus_of(gres),
            )
        )
    return groups


def minutes(limit: str) -> float:
    """Slurm's days-hours:minutes:seconds, as sinfo prints it; infinite for any other word."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return float("inf")
    days, hours, whole, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + whole + seconds / 60


def gpus_of(gres: str) -> dict[str, int]:
    """``gpu:a100:8(S:0-1),…`` → {type: number}; the type is empty where Slurm knows none."""
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *rest = entry.split(":")
        if kind == "gpu":
            number = int(rest.pop()) if rest and rest[-1].isdecimal() else 1
            model = rest[0] if rest else ""
            found[model] = found.get(model, 0) + number
    return found


def _partition(context: Context, name: str, nodes: list[Nodes], request: Request) -> Check:
    own = [group for group in nodes if group.partition == name]
    suite = f"params/suites/{context.suite.name}.yaml"
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
        return Check("Slurm", "error", finding, f"Change `resources:` in {suite}. {choose}")
    limit = own[0].limit
    if request.runtime > limit:
        finding = f"partition {name} ends jobs after {limit:g} minutes, and a training asks for {request.runtime}"
        remedy = f"Set `resources: {{runtime: {limit:g}}}` in {suite}: the next attempt goes on where one was ended."
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


def _request(context: Context, asked: dict[str, Any]) -> Request:
    """Per node; ``gres`` of the profile goes before the suite's number of GPUs."""
    resources = context.suite.resources
    gpus, model = context.gpus_per_node, str(asked.get("gpu_model", ""))
    for kind, number in gpus_of(str(asked.get("gres", ""))).items():
        gpus, model = number, kind
    sizes = {"cpus": resources["threads"], "memory": resources["mem_mb"], "runtime": resources["runtime"]}
    feature = str(asked.get("constraint", ""))
    return Request(nodes=resources.get("nodes", 1), gpus=gpus, model=model, feature=feature, **sizes)


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


def _pairs(content: Any) -> dict[str, Any]:
    """A profile's resources: a mapping, or a list of ``key=value``."""
    if isinstance(content, list):
        return dict(str(entry).split("=", 1) for entry in content if "=" in str(entry))
    return content if isinstance(content, dict) else {}


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
