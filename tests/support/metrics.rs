//! Reading `/metrics`.

use std::collections::{BTreeMap, BTreeSet};

use super::{TestServer, client};

/// All series of a scrape in the Prometheus text format, by name and labels as written.
#[derive(Debug)]
pub struct Metrics {
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Scrapes a server without an `Accept` header.
    pub async fn of(server: &TestServer) -> Self {
        let answer = client().get(server.url("/metrics")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Self::parse(answer.text().await.unwrap())
    }

    #[track_caller]
    pub fn parse(text: String) -> Self {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let value = value.parse().expect("a number");
            let before = series.insert(name.to_owned(), value);
            assert_eq!(before, None, "{name} twice");
        }
        Self { text, series }
    }

    /// Returns the value of a series, which must exist.
    #[track_caller]
    pub fn get(&self, series: &str) -> f64 {
        let value = self.find(series);
        value.unwrap_or_else(|| panic!("no {series} in:\n{}", self.text))
    }

    pub fn find(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// Returns the requests to an endpoint by outcome, without zeros.
    pub fn outcomes(&self, endpoint: &str) -> BTreeMap<String, f64> {
        let start = format!("skald_requests_total{{endpoint=\"{endpoint}\",outcome=\"");
        let of_endpoint = self.series.iter().filter_map(|(name, &value)| {
            let outcome = name.strip_prefix(&start)?.strip_suffix("\"}")?;
            (value > 0.0).then(|| (outcome.to_owned(), value))
        });
        of_endpoint.collect()
    }

    /// Returns the names of all families, with their types.
    pub fn families(&self) -> BTreeSet<(&str, &str)> {
        let types = self.text.lines().filter_map(|line| {
            let line = line.strip_prefix("# TYPE ")?;
            line.split_once(' ')
        });
        types.collect()
    }
}
