//! Summary statistics.

use serde::Serialize;

/// The distribution of a measurement. Percentiles are interpolated between the two nearest samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl Summary {
    /// Summarizes samples in any order; `None` if there are none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        Some(Self {
            mean: samples.iter().sum::<f64>() / samples.len() as f64,
            p50: percentile(&samples, 50)?,
            p90: percentile(&samples, 90)?,
            p95: percentile(&samples, 95)?,
            p99: percentile(&samples, 99)?,
            max: *samples.last()?,
        })
    }
}

/// Returns a percentile of samples in ascending order.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    // In hundredths of a sample, so that a percentile that falls on a sample is exact.
    let position = sorted.len().checked_sub(1)? * percent;
    let (below, above) = (position / 100, position.div_ceil(100));
    let part = (position % 100) as f64 / 100.0;
    Some(sorted[below] + (sorted[above] - sorted[below]) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_or_between_them() {
        let of = |n: u32| Summary::of((1..=n).rev().map(f64::from)).unwrap();
        let hundred = of(101);
        assert_eq!((hundred.p50, hundred.p90, hundred.p99), (51.0, 91.0, 100.0));
        assert_eq!((hundred.mean, hundred.max), (51.0, 101.0));
        let two = of(2);
        assert_eq!((two.p50, two.p90, two.p95), (1.5, 1.9, 1.95));
    }

    #[test]
    fn one_sample_is_every_figure_and_none_has_no_summary() {
        let one = Summary::of([3.0]).unwrap();
        assert_eq!((one.mean, one.p50, one.p99, one.max), (3.0, 3.0, 3.0, 3.0));
        assert_eq!(Summary::of([]), None);
    }
}
