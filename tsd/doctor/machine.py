"""The GPUs that this process sees, and whether the driver fits torch's CUDA."""

import os
import re
import warnings
from collections import Counter
from pathlib import Path

from tsd.doctor.checks import AGAIN, Check, Context, ask
from tsd.errors import InputError, WorkError

MINIMUM_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version → the oldest driver that runs it, by NVIDIA's table of minor version compatibility.

https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

OLDER_BUILD = ("cu126", 12)
"""Build of torch for older drivers, and its CUDA."""

DRIVER_FILE = Path("/proc/driver/nvidia/version")


def gpus(context: Context) -> Check:
    """Whether torch can use the GPUs here, and whether the suite asks for any."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver; so do we, with the remedy
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda
    driver = driver_version()
    if count:
        return _present(context, count, f"CUDA {built} on driver {driver or 'unknown'}")
    if not built:
        return _without_cuda(context, driver)
    oldest = MINIMUM_DRIVER.get(int(built.split(".")[0]))
    if driver and oldest and int(driver.split(".")[0]) < oldest:
        finding = f"driver {driver} is too old for torch's CUDA {built}, which needs {oldest} or newer"
        return Check("GPU", "error" if context.gpus else "warning", finding, _for_driver(int(driver.split(".")[0])))
    return _absent(context, f"; driver {driver} is there" if driver else "")


def driver_version() -> str | None:
    """Version of the NVIDIA driver, None where there is none."""
    try:
        text = DRIVER_FILE.read_text()
    except OSError:
        try:
            text = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        except WorkError:
            return None
    found = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", text)
    return found[1] if found else None


def _present(context: Context, count: int, versions: str) -> Check:
    import torch

    shown = range(count)
    if context.here.world > 1:
        try:
            index = context.here.device(count)
        except InputError as error:
            remedy = f"Start as many processes on each node as it has GPUs: `{context.on_nodes}`."
            return Check("GPU", "error", str(error), remedy)
        shown = range(index, index + 1)
    properties = [torch.cuda.get_device_properties(index) for index in shown]
    kinds = Counter((device.name, round(device.total_memory / 2**30)) for device in properties)
    named = ", ".join(f"{number} × {name} ({memory} GiB)" for (name, memory), number in kinds.items())
    few = context.here.world == 1 and count < context.gpus_per_node
    if few:
        finding = f"{versions}; {named}; suite {context.suite.name} asks for {context.gpus_per_node} on a node"
        return Check("GPU", "warning", finding, f"Look at a whole node: `{context.on_nodes}`.")
    return Check("GPU", "ok", f"{versions}; {named}")


def _without_cuda(context: Context, driver: str | None) -> Check:
    if not context.gpus:
        return Check("GPU", "ok", f"torch is built without CUDA, and suite {context.suite.name} asks for no GPU")
    finding = f"torch is built without CUDA, and suite {context.suite.name} asks for {_number(context.gpus)}"
    older = f"`TORCH_BACKEND={OLDER_BUILD[0]} make setup`"
    remedy = f"Take one with CUDA: `{AGAIN} TORCH_BACKEND= make setup`, or for an older driver {older}."
    return Check("GPU", "error" if driver or _in_job() else "warning", finding, remedy)


def _absent(context: Context, driver: str) -> Check:
    name = context.suite.name
    if not context.gpus:
        return Check("GPU", "ok", f"none here, and suite {name} asks for none")
    asked = f"suite {name} asks for {_number(context.gpus)}"
    granted = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if _in_job() and granted:
        finding = f"Slurm gives {granted} to this process, and torch can use none{driver}; {asked}"
        older = f"`TORCH_BACKEND={OLDER_BUILD[0]} make setup`"
        return Check("GPU", "error", finding, f"See what the driver says: `nvidia-smi`; for an older one {older}.")
    if _in_job():
        finding = f"none in this Slurm job, and {asked}{driver}"
        return Check("GPU", "error", finding, f"Ask Slurm for them: `{context.on_nodes}`.")
    return Check("GPU", "warning", f"none here, and {asked}{driver}", f"Run it on a node: `{context.on_nodes}`.")


def _number(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _in_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def _for_driver(driver: int) -> str:
    build, cuda = OLDER_BUILD
    if driver >= MINIMUM_DRIVER[cuda]:
        return f"Take torch built for it: `TORCH_BACKEND={build} make setup`."
    return (
        f"Ask the administrators for driver {MINIMUM_DRIVER[cuda]} or newer, and then take torch built for it: "
        f"`TORCH_BACKEND={build} make setup`."
    )
