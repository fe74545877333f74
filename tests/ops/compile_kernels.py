"""Compile every kernel for GPUs that need not be here; a line for each. Not to be run in the interpreter's mode."""

import itertools

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsd.ops import triton_backend

PRECISIONS = {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32", "fp64": "fp64"}
"""Features → positions and sums."""

ARCHITECTURES = (70, 80, 90)


def compile_kernel(name: str, pointers: dict[str, str], constants: dict, architecture: int) -> None:
    """Down to the GPU's own code."""
    signature = {key: f"*{kind}" for key, kind in pointers.items()} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=getattr(triton_backend, name), signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    print(name, architecture, sorted(pointers.items())[0], len(compiled.asm["cubin"]), "bytes")


def main() -> None:
    for (features, real), architecture, shifted in itertools.product(PRECISIONS.items(), ARCHITECTURES, (True, False)):
        if features == "bf16" and architecture < 80:
            continue
        boxes = dict.fromkeys(("x1s", "y1s", "ws", "hs", "map_hs", "map_ws"), real) | {"bases": "i64"}
        boxes["offset"] = real if shifted else features
        options = {"GAMMA": 0.1, "P": 7, "SY": 2, "SX": 2, "SHIFTED": shifted, "C": 256, "BLOCK": 256}
        options["REAL"] = tl.float64 if real == "fp64" else tl.float32
        compile_kernel("_forward", {"table": features, "out": features} | boxes, options, architecture)
        backward = {"table": features, "gradient": features, "table_gradient": real, "offset_gradient": real} | boxes
        for to_table in (True, False):
            flags = {"TO_TABLE": to_table, "TO_OFFSET": shifted}
            compile_kernel("_backward", backward, options | flags, architecture)
        rows = {"gradient": features, "weights": real, "order": "i64", "bounds": "i64", "result": real}
        compile_kernel("_rows", rows, {"E": 16, "C": 256, "BLOCK": 256}, architecture)


if __name__ == "__main__":
    main()
