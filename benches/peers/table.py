"""Medians, ratios and Markdown tables, for both comparisons."""

import statistics


def median(values):
    """Returns the median, or None without measurements."""
    return statistics.median(values) if values else None


def ratio(ours, theirs, digits=2):
    """Returns our figure divided by theirs."""
    return "" if not ours or not theirs else f"{ours / theirs:.{digits}f}"


def number(value):
    """Formats a number with at least two significant digits and no meaningless decimals."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def markdown(head, rows):
    """Returns the lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
