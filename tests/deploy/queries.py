"""Metrics and labels in PromQL queries."""

import dataclasses
import json

import promql_parser
import yaml

#: Labels that Prometheus adds to every target.
TARGET_LABELS = {"instance", "job"}
#: Values for the variables that Grafana replaces.
GRAFANA = {"$__rate_interval": "1m", "$instance": ".*"}


@dataclasses.dataclass(frozen=True)
class Query:
    """A PromQL expression and its place."""

    where: str
    text: str

    def metrics(self):
        """Returns the selected metrics, each with the labels it matches on."""
        found = {}

        def visit(node):
            if isinstance(node, promql_parser.MatrixSelector):
                node = node.vector_selector
            if isinstance(node, promql_parser.VectorSelector):
                matched = {matcher.name for matcher in node.matchers.matchers}
                found.setdefault(node.name, set()).update(matched)

        promql_parser.walk(promql_parser.parse(self.text), visit)
        return found

    def grouped(self):
        """Returns pairs of an aggregated metric and the labels it is grouped by."""
        pairs = []

        def visit(node):
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                if node.modifier.type == promql_parser.AggModifierType.By:
                    inner = Query(self.where, node.expr.prettify())
                    pairs.extend((metric, set(node.modifier.labels)) for metric in inner.metrics())

        promql_parser.walk(promql_parser.parse(self.text), visit)
        return pairs


def of_dashboard(path):
    """Returns the queries of a Grafana dashboard, with its variables replaced."""
    dashboard = json.loads(path.read_text())
    queries = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for variable, value in GRAFANA.items():
                text = text.replace(variable, value)
            assert "$" not in text, f"an unknown variable in {target['expr']!r}"
            where = f"panel {panel['title']!r} {target['refId']}"
            queries.append(Query(where, text))
    return queries


def of_rules(path):
    """Returns the queries of a file of alerts."""
    groups = yaml.safe_load(path.read_text())["groups"]
    return [Query(f"alert {rule['alert']}", rule["expr"]) for group in groups for rule in group["rules"]]
