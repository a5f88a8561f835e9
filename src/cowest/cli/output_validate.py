"""What ``cowest validate`` prints of each task's data."""

from __future__ import annotations

from collections.abc import Mapping

from cowest.tasks.health import Health


def print_health(name: str, found: Health) -> None:
    """Sizes, classes, lengths, and what looks wrong, on stdout."""
    print(f"  {name}: " + ", ".join(f"{n} {split}" for split, n in found.splits.items()))
    kind = f"a classification: {', '.join(found.labels)}" if found.labels else "open answers"
    print(f"    {', '.join(found.metrics)}; {_plain(kind)}")
    for label in found.labels:
        counts = {split: found.classes[split][label] for split in found.splits}
        shares = ", ".join(f"{n} {split} ({_share(n, found.splits[split])})" for split, n in counts.items())
        print(f"      {_plain(label)}: {shares}")
    if found.lengths:
        print(f"    {_lengths(found)}")
    for finding in found.findings:
        print(f"    ! {_plain(finding.text)}")


def _share(n: int, total: int) -> str:
    return f"{n / total:.0%}" if total else "-"


def _lengths(found: Health) -> str:
    parts: Mapping[str, str] = {"question": "question", "context": "context", "learned": "what is learned"}
    said = [
        f"{parts[name]} {size.median} (19 of 20 at most {size.p95}, longest {size.longest})"
        for name, size in found.lengths.items()
    ]
    return f"lengths in {found.unit}: " + "; ".join(said)


def _plain(text: str) -> str:
    """Data is untrusted: a terminal must not read commands in it."""
    return "".join(c if c.isprintable() else " " for c in text)
