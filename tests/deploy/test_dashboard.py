"""docker/grafana: Grafana can provision the dashboard and lay it out."""

import itertools
import json

import yaml

from conftest import DOCKER

GRAFANA = DOCKER / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/skald.json").read_text())
PANELS = DASHBOARD["panels"]


def test_every_panel_has_a_title_a_place_and_a_query():
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"], f"{panel['title']} has no query"
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references), panel["title"]


def test_ids_and_titles_are_unique():
    for key in ("id", "title"):
        values = [panel[key] for panel in PANELS]
        assert len(set(values)) == len(values), f"a panel's {key} is used twice"


def test_panels_are_in_the_grid_and_do_not_overlap():
    def cells(panel):
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        return set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))

    taken = set()
    for panel in PANELS:
        here = cells(panel)
        assert all(column < 24 for column, _ in here), f"{panel['title']} is wider than the page"
        assert not here & taken, f"{panel['title']} overlaps another panel"
        taken |= here


def test_every_query_goes_to_the_data_source_that_the_page_selects():
    for panel in PANELS:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance"]


def test_grafana_finds_what_is_provisioned(compose):
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    inside = {target: DOCKER / source for source, target in mounts.items()}
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/skald.yaml").read_text())["providers"][0]
    assert (inside[provider["options"]["path"]] / "skald.json").is_file()
    assert (inside["/etc/grafana/provisioning"] / "datasources").is_dir()
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/skald.json"


def test_the_data_source_scrapes_as_often_as_prometheus():
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    prometheus = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert source["url"] == "http://prometheus:9090"
