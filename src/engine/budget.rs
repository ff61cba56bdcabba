//! The token budget of a step, which bounds the inter-token latency of running streams.
//!
//! Pure arithmetic over measured times; the scheduler decides the content of a step.

use std::time::Duration;

use crate::moving_average::MovingAverage;

/// Minimum tokens of a step from which the cost of a prefill token can be measured.
const MIN_MEASURED_TOKENS: usize = 16;

/// The token budget of steps, adapted to their measured cost.
#[derive(Debug, Clone)]
pub(super) struct StepBudget {
    /// Maximum tokens per step.
    max_tokens: usize,
    /// Target duration of a step while a stream decodes.
    target: Duration,
    /// Seconds per token in a step of many tokens; `None` before the first.
    seconds_per_token: MovingAverage,
}

impl StepBudget {
    pub fn new(max_tokens: usize, target: Duration) -> Self {
        Self {
            max_tokens,
            target,
            seconds_per_token: MovingAverage::default(),
        }
    }

    /// Records the cost of a step.
    pub fn measured(&mut self, tokens: usize, took: Duration) {
        if tokens < MIN_MEASURED_TOKENS {
            return;
        }
        self.seconds_per_token
            .add(took.as_secs_f64() / tokens as f64);
    }

    /// Returns the seconds per token in a step of many tokens, if known.
    pub fn seconds_per_token(&self) -> Option<f64> {
        self.seconds_per_token.get()
    }

    /// Returns the budget of the next step, in which `streams` requests decode. Without streams, prefill
    /// gets the largest steps.
    pub fn tokens(&self, streams: usize) -> usize {
        match self.seconds_per_token.get() {
            Some(seconds) if streams > 0 => {
                #[allow(clippy::cast_sign_loss)] // times are not negative
                let affordable = (self.target.as_secs_f64() / seconds) as usize;
                // The streams' own tokens count, but prefill must still make progress.
                affordable.clamp(
                    (streams + MIN_MEASURED_TOKENS).min(self.max_tokens),
                    self.max_tokens,
                )
            }
            _ => self.max_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_as_many_tokens_as_fit_the_target() {
        let mut budget = StepBudget::new(512, Duration::from_millis(100));
        assert_eq!(budget.tokens(3), 512);
        for _ in 0..50 {
            budget.measured(100, Duration::from_millis(100));
        }
        assert_eq!(budget.tokens(3), 100);
        assert_eq!(budget.tokens(0), 512);
        // The decode of a single row does not measure the cost of a prompt's tokens.
        budget.measured(1, Duration::from_secs(1));
        assert_eq!(budget.tokens(3), 100);
    }

    #[test]
    fn prompts_go_on_however_slow_the_machine_is() {
        let mut budget = StepBudget::new(512, Duration::from_millis(100));
        budget.measured(16, Duration::from_secs(16));
        assert_eq!(budget.tokens(40), 56);
        assert_eq!(StepBudget::new(8, Duration::ZERO).tokens(40), 8);
    }
}
