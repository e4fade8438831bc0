"""Mixed precision: which parts of a step compute in bfloat16."""

import torch

from personlab.params import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a precision; `auto` is bfloat16 where the device computes it fast."""
    enabled = precision == "bfloat16" or (precision == "auto" and is_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bfloat16 (AVX512-BF16, AMX, or a GPU's)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
