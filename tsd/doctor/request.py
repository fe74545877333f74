"""What a training's job asks of Slurm: the suite's resources, and what ``slurm/profile.yaml`` puts before them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.doctor.cluster import Nodes, gpus_of
from tsd.engine.params import Suite
from tsd.errors import InputError

PROFILE = Path("slurm/profile.yaml")

RULE = "train_detector"
"""The rule whose jobs need GPUs."""


@dataclass(frozen=True)
class Request:
    """What a training asks of each of its nodes; ``source`` is where that is written."""

    nodes: int
    gpus: int
    model: str
    cpus: int
    memory: int
    runtime: int
    feature: str
    source: str

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


def read_request(suite: Suite, profile: dict[str, Any], experiment: str | None = None) -> Request:
    """What Snakemake hands to sbatch: ``set-resources`` and ``set-threads`` of the rule go before the suite's.

    Args:
        suite: the suite.
        profile: content of ``slurm/profile.yaml``.
        experiment: one that has resources of its own; None for those of all others.

    Raises:
        InputError: a resource of the profile that is no number, such as a formula, which is not computed here.
    """
    own, asked, resources = _of_rule(profile.get("set-resources")), resources_of(profile), suite.resources
    where = "resources"
    if experiment:
        resources, where = suite.resources_of(experiment), f"experiment_resources.{experiment}"

    def number(*names: str, default: int) -> int:
        name = next((name for name in names if name in asked and (name in own or name not in resources)), None)
        return default if name is None else _number(name, asked[name])

    nodes = max(1, number("nodes", default=resources.get("nodes", 1)))
    gpus, model = -(-number("gpu", default=resources["gpu"]) // nodes), str(asked.get("gpu_model") or "")
    for kind, count in gpus_of(str(asked.get("gres", ""))).items():
        gpus, model = count, kind
    threads = _of_rule(profile.get("set-threads"), alone=True).get("threads", resources["threads"])
    cpus = number("cpus_per_task", default=0)
    if not cpus and "cpus_per_gpu" in asked and gpus:
        cpus = number("cpus_per_gpu", default=0) * gpus
    cpus = max(cpus, 0) or _number("threads", threads)
    memory = number("mem_mb", default=resources["mem_mb"]) if "mem" not in own else _number("mem", own["mem"])
    if "mem_mib" in own:
        memory = round(_number("mem_mib", own["mem_mib"]) * 2**20 / 1e6)
    if asked.get("mem_mb_per_cpu"):
        memory = _number("mem_mb_per_cpu", asked["mem_mb_per_cpu"]) * cpus
    changed = own.keys() & {"nodes", "gpu", "gres", "mem", "mem_mb", "mem_mib", "runtime", "cpus_per_task"}
    return Request(
        nodes=nodes,
        gpus=gpus,
        model=model,
        cpus=cpus,
        memory=memory,
        runtime=number("runtime", default=resources["runtime"]),
        feature=str(asked.get("constraint") or ""),
        source=f"set-resources in {PROFILE}" if changed else f"{where} in params/suites/{suite.name}.yaml",
    )


def resources_of(profile: dict[str, Any]) -> dict[str, Any]:
    """Every resource that the profile gives the rule's jobs."""
    return _pairs(profile.get("default-resources")) | _of_rule(profile.get("set-resources"))


def _of_rule(content: Any, *, alone: bool = False) -> dict[str, Any]:
    """The rule's part: {rule: {key: value}}, or a list of ``rule:key=value``; ``alone`` for threads, without a key."""
    if isinstance(content, list):
        entries = [str(entry).partition(":" if not alone else "=") for entry in content]
        own = [rest for rule, _, rest in entries if rule == RULE]
        return {"threads": own[-1]} if alone and own else _pairs(own)
    found = content.get(RULE) if isinstance(content, dict) else None
    if alone:
        return {} if found is None else {"threads": found}
    return _pairs(found)


def _number(name: str, value: Any) -> int:
    """A size in MB, minutes, or a number, in the words that Snakemake takes: 200000, 200GB, 2d."""
    from snakemake.resources import Resource
    from snakemake_interface_common.exceptions import WorkflowError

    kind = {"mem_mb": "mem"}.get(name, name)
    try:
        found = Resource.parse_human_friendly(kind, value)
    except WorkflowError:
        found = value
    if isinstance(found, float) or (isinstance(found, str) and re.fullmatch(r"-?\d{1,15}", found)):
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool):
        raise InputError(f"{PROFILE}: {name} of {RULE} is {value!r}, which is compared with nothing: no number")
    return found


def _pairs(content: Any) -> dict[str, Any]:
    """A profile's resources: a mapping, or a list of ``key=value``."""
    if isinstance(content, list):
        return dict(str(entry).split("=", 1) for entry in content if "=" in str(entry))
    return content if isinstance(content, dict) else {}
