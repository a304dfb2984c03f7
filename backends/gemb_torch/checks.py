"""What `gemb doctor` says of PyTorch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from gemb.backend import Check

LIBRARIES = ("torch", "tokenizers")
FIX = "pip install 'gemb[torch]'"


def checks() -> list[Check]:
    """Return one line for each library, and one for the device that `auto` would choose."""
    found = []
    for library in LIBRARIES:
        try:
            found.append(Check(library, True, version(library)))
        except PackageNotFoundError:
            # It is an extra: without it the other backend still embeds.
            found.append(Check(library, True, f"not installed (optional: {FIX})"))
    if all("optional" not in check.detail for check in found):
        found.append(_device())
    return found


def _device() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the system's that torch links is absent
        return Check("device", False, f"torch does not load: {error}", f"{FIX} --force-reinstall")
    if not torch.cuda.is_available():
        from gemb_torch.model.frozen import can_freeze

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        fast = " and ".join(name for name, dtype in dtypes.items() if can_freeze(dtype))
        detail = f"cpu, {torch.get_num_threads()} threads, oneDNN products in {fast or 'no type'}"
        return Check("device", True, detail)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("device", True, f"cuda: {', '.join(names)}")
