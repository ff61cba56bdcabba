//! How many tokens a step may have, so that those who wait for their next token don't wait long.
//!
//! Pure arithmetic over measured times; what is in a step is the scheduler's business.

use std::time::Duration;

use crate::moving_average::MovingAverage;

/// Steps with fewer tokens say little about what a token of a prompt costs.
const TELLING_TOKENS: usize = 16;

/// The token budget of steps, adapted to what they cost.
#[derive(Debug, Clone)]
pub(super) struct StepBudget {
    /// Tokens in a step at most, whatever they cost.
    max_tokens: usize,
    /// How long a step should take at most while someone waits for a next token.
    target: Duration,
    /// Seconds a token costs in a step of many; `None` before the first.
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

    /// Takes in what a step cost.
    pub fn measured(&mut self, tokens: usize, took: Duration) {
        if tokens < TELLING_TOKENS {
            return;
        }
        self.seconds_per_token
            .add(took.as_secs_f64() / tokens as f64);
    }

    /// What a token costs in a step of many, once there was one.
    pub fn seconds_per_token(&self) -> Option<f64> {
        self.seconds_per_token.get()
    }

    /// Tokens for the next step, in which `streams` requests get their next token. A prompt that
    /// nobody else waits for is read in steps as large as can be.
    pub fn tokens(&self, streams: usize) -> usize {
        match self.seconds_per_token.get() {
            Some(seconds) if streams > 0 => {
                #[allow(clippy::cast_sign_loss)] // times are not negative
                let affordable = (self.target.as_secs_f64() / seconds) as usize;
                // The streams' own tokens are in the budget; prompts must go on all the same.
                affordable.clamp(
                    (streams + TELLING_TOKENS).min(self.max_tokens),
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
        // A decode of a single row is no measure of what a prompt's tokens cost.
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
