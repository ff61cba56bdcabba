//! Draws that other implementations of the sampler are tested against: the page's (`web/src/sampler`).
//!
//! `tests/fixtures/sampler-vectors.json` holds settings and the tokens that they drew. The logits are not in the
//! file: they are made of a seed by [`logits`], which is the same few lines everywhere. After a change of the
//! sampler, `SKALD_WRITE_VECTORS=1 cargo test --lib sampler_vectors` writes the file anew.

use serde_json::{Value, json};

use super::candidates::Distribution;
use super::sampler::{Allowed, Sampler, Scratch, params};
use crate::request::SamplingParams;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/sampler-vectors.json"
);
const CASES: u32 = 1000;

/// Numbers of a linear congruential generator (Numerical Recipes).
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0
    }

    /// Returns a number in [0, 1) of 24 bits.
    fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 24) as f32
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u32) as usize]
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.next() >> 8) % end
    }
}

/// Returns logits like a model's: most of them low, a few high.
fn logits(seed: u32, vocab_size: usize) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let mut logit = || {
        let x = numbers.unit();
        let cubed = x * x * x;
        cubed * cubed * 18.0 - 6.0
    };
    (0..vocab_size).map(|_| logit()).collect()
}

fn case(number: u32) -> Value {
    let mut numbers = Numbers(number);
    let vocab_size = numbers.one_of(&[40, 1000, 8192]);
    let n = numbers.one_of(&[0, 1, 5, 8, 300]);
    let temperature = numbers.one_of(&[0.0, 0.3, 0.75, 1.0, 1.6]);
    let top_k = numbers.one_of(&[0, 0, 1, 7, 40, 500]);
    let top_p = numbers.one_of(&[1.0, 1.0, 0.1, 0.6, 0.92, 0.999]);
    let min_p = numbers.one_of(&[0.0, 0.0, 0.0, 0.02, 0.3]);
    let typical_p = numbers.one_of(&[1.0, 1.0, 0.2, 0.9]);
    let repetition_penalty = numbers.one_of(&[1.0, 1.15, 1.7, 0.8]);
    let presence_penalty = numbers.one_of(&[0.0, 0.0, 0.6, -0.4]);
    let frequency_penalty = numbers.one_of(&[0.0, 0.0, 0.35]);
    let seed = u64::from(numbers.next()) << 32 | u64::from(numbers.next());
    let mut ids = |most: u32| -> Vec<u32> {
        let len = numbers.below(most + 1);
        (0..len).map(|_| numbers.below(vocab_size as u32)).collect()
    };
    let (prompt, generated) = (ids(9), ids(6));
    let params = SamplingParams {
        temperature: temperature as f32,
        top_k,
        top_p: top_p as f32,
        min_p: min_p as f32,
        typical_p: typical_p as f32,
        repetition_penalty: repetition_penalty as f32,
        presence_penalty: presence_penalty as f32,
        frequency_penalty: frequency_penalty as f32,
        seed,
        ..params()
    };
    let mut sampler = Sampler::new(params, &prompt, vocab_size);
    for &token in &generated {
        sampler.accept(token);
    }
    let row = logits(number, vocab_size);
    let drawn = sampler.sample(&row, n, Allowed::AllBut(&[]), &mut Scratch::default());
    json!({
        "case": number, "vocab_size": vocab_size, "prompt": prompt, "generated": generated, "n": n,
        "seed": seed.to_string(), "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "typical_p": typical_p, "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty,
        "token": drawn.unwrap(),
    })
}

/// Returns the bits of weights of logits far from and near to the highest.
fn weights() -> Value {
    let mut row = logits(7, 1000);
    let mut distribution = Distribution::default();
    distribution.weigh(&mut row, 12.0, 0.75);
    json!(distribution.weight_bits())
}

#[test]
fn the_vectors_are_what_the_sampler_draws() {
    let cases: Vec<Value> = (0..CASES).map(case).collect();
    let made = json!({"weights": weights(), "cases": cases});
    if std::env::var_os("SKALD_WRITE_VECTORS").is_some() {
        let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
        let text = format!(
            "{{\"weights\":{},\n\"cases\":[\n{}\n]}}\n",
            made["weights"],
            lines.join(",\n")
        );
        std::fs::write(FILE, text).unwrap();
    }
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    assert!(kept == made, "{FILE} is not what the sampler draws");
}
