"""Measurements, for people and for docs/performance.md; `scripts/bench` runs them. Nothing here passes or fails."""
