"""Medians, ratios and Markdown tables, for both comparisons."""

import statistics


def median(values):
    """The median, or None where nothing was measured."""
    return statistics.median(values) if values else None


def ratio(ours, theirs, digits=2):
    """Ours over theirs."""
    return "" if not ours or not theirs else f"{ours / theirs:.{digits}f}"


def number(value):
    """At least two significant digits, no decimals where they say nothing."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def markdown(head, rows):
    """A table as lines."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
