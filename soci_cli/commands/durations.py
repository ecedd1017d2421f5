"""Durations as Go writes and reads them: 1m30s, 250ms."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from soci_cli.errors import UsageError
from soci_cli.text import quote

# time.ParseDuration of Go
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_PART = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"\+?(?:{_PART})+", re.ASCII)
_MAX_LENGTH = 60
_MAX_SECONDS = 100 * 365 * 24 * 3600


def parse_duration(text: str) -> float:
    """Seconds from text such as "30s", "1m30s" or "0"; UsageError for anything else."""
    if text in ("0", "+0"):
        return 0.0
    if len(text) <= _MAX_LENGTH and _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
        if seconds <= _MAX_SECONDS:
            return seconds
    raise UsageError(f"not a duration: {quote(text)}; expected one such as 30s, 1m30s or 0")


def ago(time: datetime) -> str:
    """How long ago a time was, in whole seconds: 1h2m3s ago."""
    seconds = max(0, round((datetime.now(timezone.utc) - time).total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    text = f"{seconds % 60}s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return f"{text} ago"
