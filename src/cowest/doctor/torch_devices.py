"""What torch itself says of its devices, with one small product on each: seconds, and only if asked."""

from __future__ import annotations

from collections.abc import Iterator

from cowest.doctor.findings import Finding


def computed() -> Iterator[Finding]:
    """One finding for each device that torch has, and whether it multiplies in bfloat16."""
    try:
        import torch

        from cowest.models.precision import native_bfloat16
    except (ImportError, OSError) as error:  # OSError: a library that it needs is not there
        yield Finding(
            section="devices",
            name="import torch",
            state="broken",
            said=str(error).splitlines()[0],
            todo="pip install 'cowest[local]'",
        )
        return
    names = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        device = torch.device(name)
        kind = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        try:
            ones = torch.ones(64, 64, device=device)
            right = float((ones @ ones).sum()) == 64.0**3
            half = float((ones.to(torch.bfloat16) @ ones.to(torch.bfloat16))[0, 0]) == 64.0
        except RuntimeError as error:
            yield Finding(section="devices", name=name, state="broken", said=f"{str(error).splitlines()[0]}{kind}")
            continue
        native = "native" if native_bfloat16(device) else "not native"
        yield Finding(
            section="devices",
            name=name,
            state="ok" if right else "broken",
            said=f"computes{kind}; bfloat16 {native if half else 'does not work'}" if right else "computes wrongly",
        )
