"""Mixed precision: which layers compute with 16 bits."""

import torch

from personlab.params import InferPrecision, Precision


def autocast(device: torch.device, precision: Precision | InferPrecision) -> torch.autocast:
    """The autocast context of a precision; `auto` is bfloat16 where the device computes it fast."""
    if precision == "auto":
        precision = "bfloat16" if is_fast(device) else "float32"
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


def is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bfloat16 (AVX512-BF16, AMX, or a GPU's)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
