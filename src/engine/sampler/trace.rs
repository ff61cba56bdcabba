//! Samples a token and records every step, for inspections.
//!
//! The token must always be the one that [`Sampler::sample`] samples: both run the same steps.

use super::{Allowed, Sampler, highest_of, pick};
use crate::engine::candidates::{Candidate, Distribution, Filter, total_weight};
use crate::engine::event::GenerateError;
use crate::engine::inspection::{SamplingStep, SamplingTrace};
use crate::kernels::rows;

/// A step that changes logits.
type Penalty = fn(&Sampler, &mut [f32]);

/// Returns the record of a penalty that turned the logits `before` into `after`.
fn changes(parameter: &'static str, before: &[f32], after: &[f32]) -> SamplingStep {
    let changed = before.iter().zip(after);
    let changed = changed.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    SamplingStep {
        parameter,
        changed: Some(changed),
        left: after.len(),
        removed: None,
    }
}

impl Sampler {
    /// Samples the `n`-th token of the request (from 0) from its own row of logits, and returns the token and the
    /// record of every step.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn trace(
        &mut self,
        logits: &[f32],
        n: usize,
        allowed: Allowed<'_>,
    ) -> Result<SamplingTrace, GenerateError> {
        let mut row = logits.to_vec();
        let mut steps = self.penalties(&mut row);
        if !rows::all_finite(&row) {
            return Err(GenerateError::NotFinite);
        }
        allowed.apply(&mut row);
        let (best, highest) = highest_of(&row)?;
        let is_greedy = self.params.temperature <= 0.0;
        let left = row.iter().filter(|&&logit| logit > f32::NEG_INFINITY);
        steps.push(SamplingStep {
            parameter: "temperature",
            changed: None,
            left: if is_greedy { 1 } else { left.count() },
            removed: None,
        });
        if is_greedy {
            return Ok(SamplingTrace {
                steps,
                random: None,
                token: best,
                probability: 1.0,
            });
        }
        let u = self.uniform(n);
        let mut distribution = Distribution::default();
        distribution.weigh(&mut row, highest, self.params.temperature);
        let mut before = distribution.total();
        let kept = distribution.filtered_in_steps(&row, &self.params, |filter, left| {
            let weight = total_weight(left);
            steps.push(SamplingStep {
                parameter: filter.parameter(),
                changed: None,
                left: left.len(),
                removed: Some((1.0 - weight / before).max(0.0)),
            });
            before = weight;
        });
        let token = if self.filters() {
            pick(&kept, u)
        } else {
            distribution.walk(u)
        };
        let token = token.ok_or(GenerateError::NoCandidates)?;
        let weight = kept.iter().find(|candidate| candidate.id == token);
        Ok(SamplingTrace {
            steps,
            random: Some(u),
            token,
            probability: weight.map_or(0.0, |c: &Candidate| f64::from(c.weight)) / before,
        })
    }

    /// Applies penalties and bias to a row, and returns their records.
    fn penalties(&self, row: &mut [f32]) -> Vec<SamplingStep> {
        let params = &self.params;
        let penalties: [(_, _, Penalty); 3] = [
            (
                "repetition_penalty",
                !self.seen.is_empty(),
                Self::penalize_repetition,
            ),
            (
                "frequency_penalty",
                params.frequency_penalty != 0.0 || params.presence_penalty != 0.0,
                Self::penalize_occurrence,
            ),
            ("logit_bias", !params.logit_bias.is_empty(), Self::bias),
        ];
        let mut steps = Vec::new();
        for (parameter, acts, apply) in penalties {
            if acts {
                let before = row.to_vec();
                apply(self, row);
                steps.push(changes(parameter, &before, row));
            }
        }
        steps
    }
}

impl Filter {
    /// Returns the name of the parameter that sets the filter.
    fn parameter(self) -> &'static str {
        match self {
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::TypicalP => "typical_p",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Scratch, params};
    use super::*;
    use crate::request::SamplingParams;

    fn any_params() -> impl Strategy<Value = SamplingParams> {
        let share = || prop_oneof![Just(1.0f32), 0.01f32..1.0];
        (
            prop_oneof![Just(0.0f32), 0.1f32..3.0],
            0usize..40,
            share(),
            prop_oneof![Just(0.0f32), 0.0f32..0.5],
            share(),
            prop_oneof![Just(1.0f32), 0.5f32..2.0],
            -1f32..1.0,
            prop::collection::vec((0u32..200, -5f32..5.0), 0..3),
            any::<u64>(),
        )
            .prop_map(
                |(
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    repetition_penalty,
                    penalty,
                    logit_bias,
                    seed,
                )| {
                    SamplingParams {
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        typical_p,
                        repetition_penalty,
                        presence_penalty: penalty,
                        frequency_penalty: penalty / 2.0,
                        logit_bias,
                        seed,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn the_traced_token_is_the_sampled_one(
            params in any_params(),
            logits in prop::collection::vec(-12f32..12.0, 200),
            prompt in prop::collection::vec(0u32..200, 0..20),
            generated in prop::collection::vec(0u32..200, 0..20),
            n in 0usize..500,
        ) {
            let mut sampler = Sampler::new(params, &prompt, logits.len());
            for token in generated {
                sampler.accept(token);
            }
            let allowed = Allowed::AllBut(&[]);
            let sampled = sampler.sample(&logits, n, allowed, &mut Scratch::default()).unwrap();
            let trace = sampler.trace(&logits, n, allowed).unwrap();
            prop_assert_eq!(trace.token, sampled);
            prop_assert!(trace.probability > 0.0 && trace.probability <= 1.0 + 1e-9);
            let left = trace.steps.iter().map(|step| step.left);
            prop_assert!(left.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn every_step_says_what_it_left_and_removed() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at ids 3, 1, 4, 0, 2.
        let logits = [0.0625f32, 0.25, 0.0625, 0.5, 0.125].map(f32::ln);
        let mut sampler = Sampler::new(
            SamplingParams {
                top_k: 4,
                top_p: 0.9,
                min_p: 0.3,
                ..params()
            },
            &[],
            5,
        );
        let trace = sampler.trace(&logits, 0, Allowed::AllBut(&[])).unwrap();
        let left = |parameter| trace.steps.iter().find(|step| step.parameter == parameter);
        let left = |parameter| left(parameter).map(|step| (step.left, step.removed));
        assert_eq!(left("temperature"), Some((5, None)));
        let (left_of_top_k, removed) = left("top_k").unwrap();
        assert_eq!(left_of_top_k, 4);
        assert!((removed.unwrap() - 0.0625).abs() < 1e-6);
        assert_eq!(left("top_p").unwrap().0, 3);
        assert_eq!(left("min_p").unwrap().0, 2);
        assert_eq!(left("typical_p"), None);
        assert_eq!(left("repetition_penalty"), None);
        let expected = if trace.token == 3 {
            2.0 / 3.0
        } else {
            1.0 / 3.0
        };
        assert!((trace.probability - expected).abs() < 1e-6);
    }
}
