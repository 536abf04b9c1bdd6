"""How old something is, as kubectl writes it.

Stands for k8s.io/apimachinery/pkg/util/duration (HumanDuration).
"""

from __future__ import annotations

import datetime

from labs.cluster.resources import Object


def age(item: Object, now: datetime.datetime | None = None) -> str:
    """How old an object is, as kubectl writes it (k8s.io/apimachinery/pkg/util/duration, HumanDuration)."""
    created = datetime.datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    return human_duration(int(((now or datetime.datetime.now(datetime.UTC)) - created).total_seconds()))


def ago(moment: str | None) -> str:
    """How long ago something was."""
    return age({"metadata": {"creationTimestamp": moment}}) if moment else "<unknown>"


def human_duration(seconds: int) -> str:
    """Two units at most, fewer the longer it is."""
    if seconds < 0:
        return "0s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large}{unit}{small}{small_unit}" if small else f"{large}{unit}"
