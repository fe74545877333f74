"""Comparing a device with the CPU in double precision, where a comparison means something.

What is compared makes decisions: which cell a sample falls into, which box is suppressed, which RoI is drawn. Where one
is on the edge, rounding alone decides, and a correct device may differ from the reference by any amount. So every case
is also run on the CPU with all its inputs moved a little to either side, by more than single precision rounds. What is
smooth there moves by opposite amounts; a number that does not is on an edge and is not compared; and a draw of inputs
in which that is more than a few numbers gives way to the next.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NOISE = 2e-6
"""Relative; single precision rounds by 6e-8, and sums of it by a few times that."""

PATTERNS = 2
"""Ways to move the inputs: in one of them the moves of two inputs may cancel."""

DRAWS = 8
"""Draws of inputs that are tried."""

UNSTABLE = 0.05
"""Largest share of numbers of a draw that may be on an edge."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where and how a case is run."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float64
    seed: int = 0
    noise: float = 0.0
    pattern: int = 0
    stored: torch.dtype | None = None
    """Features are rounded to this first, so that a reference sees what a half-precision kernel sees."""

    @property
    def geometry(self) -> torch.dtype:
        """Of positions, which half precision does not hold."""
        return torch.promote_types(self.dtype, torch.float32)

    def generator(self, salt: int = 0) -> torch.Generator:
        """Random numbers that are the same in every place of one draw."""
        return torch.Generator().manual_seed(1_000_000 * self.seed + salt)

    def moved(self, tensor: Tensor, salt: int) -> Tensor:
        """A floating tensor of the reference, moved if this place has noise; ``salt`` tells tensors apart."""
        if not self.noise:
            return tensor
        sign = torch.randint(0, 2, tensor.shape, generator=self.generator(salt + 100_000 * (1 + self.pattern)))
        return tensor * (1 + self.noise * (2 * sign - 1).to(tensor.dtype))

    def put(self, tensor: Tensor, salt: int) -> Tensor:
        """The same, as an input here."""
        return self.moved(tensor, salt).to(self.device, self.dtype)


Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Something to compare.

    Attributes:
        run: place → what comes out, by name. Drawn from the place's seed, so that every place has the same inputs.
        limits: dtype name → largest difference to the reference, relative to the output's largest value.
        floor: an output is measured by at least this part of the largest value of all: for gradients that vanish.
        against: what the reference runs, if it is not the same.
        exact: precision of the reference; single where something has no double.
    """

    run: Callable[[Place], Outputs]
    limits: dict[str, float] = field(default_factory=lambda: {"float64": 1e-10, "float32": 2e-5})
    floor: float = 0.0
    against: Callable[[Place], Outputs] | None = None
    exact: torch.dtype = torch.float64

    @property
    def expected(self) -> Callable[[Place], Outputs]:
        """What the reference runs."""
        return self.against or self.run


def difference(got: Tensor, expected: Tensor, scale: float, smooth: Tensor) -> float:
    """Largest difference, relative to ``scale``; infinite if shapes differ or a number is not finite."""
    got = got.detach().to(CPU, torch.float64)
    if got.shape != expected.shape or not got.isfinite().all():
        return math.inf
    apart = (got - expected).abs()[smooth]
    largest = float(apart.max()) if apart.numel() else 0.0
    return largest / scale if largest else 0.0


def scales(outputs: Outputs, floor: float) -> dict[str, float]:
    """What each output's differences are relative to."""
    largest = {name: float(value.abs().max()) if value.numel() else 0.0 for name, value in outputs.items()}
    least = floor * max(largest.values(), default=0.0)
    return {name: max(value, least) or 1.0 for name, value in largest.items()}


@dataclass(frozen=True)
class Reference:
    """A usable draw: its seed, what comes out on the CPU in double precision, and where that is not on an edge."""

    seed: int
    outputs: Outputs
    smooth: dict[str, Tensor]

    @property
    def share(self) -> float:
        """Of the numbers that are compared."""
        total = sum(mask.numel() for mask in self.smooth.values())
        return sum(int(mask.sum()) for mask in self.smooth.values()) / max(1, total)


def reference(case: Case, edge: float, stored: torch.dtype | None = None) -> Reference:
    """The first usable draw.

    Args:
        case: what to draw for.
        edge: a number whose moves to both sides cancel to this part of the output's largest value is smooth.
        stored: see :class:`Place`.

    Raises:
        RuntimeError: no draw is usable.
    """
    best = 0.0
    for seed in range(DRAWS):
        outputs = _double(case.expected(Place(dtype=case.exact, seed=seed, stored=stored)))
        smooth = _smooth(case, seed, outputs, edge, stored)
        if smooth is None:
            continue
        found = Reference(seed, outputs, smooth)
        if found.share >= 1 - UNSTABLE:
            return found
        best = max(best, found.share)
    raise RuntimeError(f"none of {DRAWS} draws is usable: at most {best:.0%} of the numbers are not on an edge")


def _smooth(
    case: Case, seed: int, outputs: Outputs, edge: float, stored: torch.dtype | None
) -> dict[str, Tensor] | None:
    """Which numbers are not on an edge; None if even their count is."""
    scale = scales(outputs, case.floor)
    smooth = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in outputs.items()}
    for pattern in range(PATTERNS):
        up, down = (
            _double(case.expected(Place(CPU, case.exact, seed, noise, pattern, stored))) for noise in (NOISE, -NOISE)
        )
        for name, value in outputs.items():
            if not value.shape == up[name].shape == down[name].shape:
                return None
            smooth[name] &= (up[name] + down[name] - 2 * value).abs() <= edge * scale[name]
    return smooth


def _double(outputs: Outputs) -> Outputs:
    return {name: value.detach().to(CPU, torch.float64) for name, value in outputs.items()}


References = dict[tuple[Callable[[Place], Outputs], torch.dtype | None], Reference]
"""What has been worked out, by what was run and how features were stored."""


def compare(case: Case, device: torch.device, known: References) -> dict[str, Any]:
    """The device in each precision against the CPU in double precision.

    Args:
        case: what to compare.
        device: where.
        known: references of cases before, and of this one after.

    Returns:
        By precision: ``worst`` difference, the ``output`` that has it, ``limit``, whether that is ``correct``, the
        ``share`` of numbers that were compared, and for single precision what the ``cpu``'s own rounding is.
    """
    found = {}
    edge = case.limits.get("float32", max(case.limits.values()))
    for name, limit in case.limits.items():
        dtype = getattr(torch, name)
        stored = dtype if dtype in (torch.float16, torch.bfloat16) else None
        if (case.expected, stored) not in known:
            known[case.expected, stored] = reference(case, edge, stored)
        expected = known[case.expected, stored]
        got = worst(case.run(Place(device, dtype, expected.seed, stored=stored)), expected, case.floor)
        correct = got["worst"] is not None and got["worst"] <= limit
        found[name] = got | {"limit": limit, "correct": correct, "share": round(expected.share, 4)}
        if name == "float32":
            found[name]["cpu"] = worst(case.expected(Place(CPU, dtype, expected.seed)), expected, case.floor)["worst"]
    return found


def worst(outputs: Outputs, expected: Reference, floor: float) -> dict[str, Any]:
    """The output that differs most; ``worst`` is None if one is missing, misshapen or not finite."""
    scale = scales(expected.outputs, floor)
    apart = {
        name: difference(outputs[name], value, scale[name], expected.smooth[name]) if name in outputs else math.inf
        for name, value in expected.outputs.items()
    }
    name = max(apart, key=apart.__getitem__)
    return {"worst": apart[name] if math.isfinite(apart[name]) else None, "output": name}


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Products of single precision in single precision: no TF32."""
    old = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = old


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made from numbers have this type."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


Special = Callable[[torch.device], dict[str, Any]]
"""A check of its own kind: device → what :func:`compare` returns."""


def check_all(
    cases: Mapping[str, Case | Special], device: torch.device, has_time: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Compare every case while there is time; one that fails is recorded, and the others go on."""
    found: dict[str, Any] = {}
    known: References = {}
    with exact():
        for name, case in cases.items():
            if not has_time():
                found[name] = {"not run": "no time left"}
                continue
            try:
                found[name] = compare(case, device, known) if isinstance(case, Case) else case(device)
            except Exception as error:
                found[name] = {"error": {"correct": False, "message": f"{type(error).__name__}: {error}"[:600]}}
            print(f"  {name:56s} {_line(found[name])}", flush=True)
    return found


def _line(entry: dict[str, Any]) -> str:
    if "not run" in entry:
        return f"not run: {entry['not run']}"
    if "error" in entry:
        return f"WRONG: {entry['error']['message'].splitlines()[0]}"
    parts = []
    for name, figures in entry.items():
        size = "not finite or of another shape" if figures["worst"] is None else f"{figures['worst']:.0e}"
        parts.append(f"{name} {size}" + ("" if figures["correct"] else f" WRONG, in {figures['output']}"))
    return ", ".join(parts)


def wrong(found: dict[str, Any]) -> list[str]:
    """Names of the checks that are not correct."""
    return [
        f"{name}, {precision}"
        for name, entry in found.items()
        for precision, figures in entry.items()
        if precision != "not run" and not figures["correct"]
    ]
