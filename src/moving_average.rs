//! Exponential moving averages of measurements.

use std::sync::atomic::{AtomicU64, Ordering};

/// Weight of a new measurement.
const WEIGHT: f64 = 0.2;

/// An exponential moving average: each new measurement has a weight of a fifth.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MovingAverage(Option<f64>);

impl MovingAverage {
    /// Adds a measurement; the first one is the average.
    pub fn add(&mut self, measurement: f64) {
        let before = self.0.unwrap_or(measurement);
        self.0 = Some(before + WEIGHT * (measurement - before));
    }

    /// Returns the average, `None` before the first measurement.
    #[must_use]
    pub fn get(self) -> Option<f64> {
        self.0
    }
}

/// A [`MovingAverage`] shared by threads. Of two simultaneous measurements, one may be lost.
#[derive(Debug)]
pub struct SharedAverage(AtomicU64);

impl Default for SharedAverage {
    fn default() -> Self {
        Self(AtomicU64::new(f64::NAN.to_bits()))
    }
}

impl SharedAverage {
    /// Adds a measurement; the first one is the average.
    pub fn add(&self, measurement: f64) {
        let mut average = MovingAverage(self.get());
        average.add(measurement);
        self.set(average.0.unwrap_or(f64::NAN));
    }

    /// Replaces the average.
    pub fn set(&self, average: f64) {
        self.0.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Returns the average, `None` before the first measurement.
    #[must_use]
    pub fn get(&self) -> Option<f64> {
        let average = f64::from_bits(self.0.load(Ordering::Relaxed));
        (!average.is_nan()).then_some(average)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_measurement_is_the_average_and_each_later_one_weighs_a_fifth() {
        let (mut average, shared) = (MovingAverage::default(), SharedAverage::default());
        assert_eq!((average.get(), shared.get()), (None, None));
        for (measurement, expected) in [(10.0, 10.0), (20.0, 12.0), (2.0, 10.0)] {
            average.add(measurement);
            shared.add(measurement);
            assert_eq!(
                (average.get(), shared.get()),
                (Some(expected), Some(expected))
            );
        }
        shared.set(3.0);
        assert_eq!(shared.get(), Some(3.0));
    }
}
