//! The prompt and the output length of each request.
//!
//! A request is determined by its number and the seed: neither the order of sending nor the number of
//! warm-up requests changes the others.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::lengths::{Lengths, below};

/// The words of prompts. In the vocabularies of GPT-2 and of the built-in model each is one token, with
/// and without a leading space; the words are common, so they are in most other vocabularies too.
#[rustfmt::skip]
const WORDS: [&str; 128] = [
    "able", "act", "add", "age", "air", "all", "and", "anger", "any", "app", "are", "arm",
    "arrow", "art", "ash", "ask", "ate", "band", "body", "boy", "but", "cause", "chief", "come",
    "crow", "day", "door", "ear", "ears", "edge", "end", "ended", "ever", "eyes", "fall",
    "fast", "father", "for", "form", "fort", "get", "hat", "head", "held", "hen", "her", "here",
    "hold", "house", "how", "ice", "ill", "its", "joy", "keep", "key", "king", "land", "lay",
    "led", "less", "let", "lie", "light", "lock", "looking", "maid", "man", "men", "most",
    "mother", "night", "not", "now", "nut", "one", "ones", "other", "ought", "our", "out",
    "own", "pen", "place", "read", "ready", "red", "rest", "right", "ring", "room", "sand",
    "set", "she", "side", "sing", "sit", "stairs", "take", "ten", "that", "the", "there",
    "they", "thing", "though", "together", "top", "tree", "under", "upon", "use", "used", "van",
    "vent", "very", "way", "ways", "well", "what", "when", "where", "while", "white", "wise",
    "with", "wood", "you",
];

/// The parameters that determine all requests of a run.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    /// Seed of all random choices.
    pub seed: u64,
    /// Lengths of prompts.
    pub prompt: Lengths,
    /// Lengths of outputs.
    pub output: Lengths,
    /// Leading tokens shared by all prompts.
    pub shared_prefix: usize,
}

/// The number of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestNumber {
    /// A warm-up request, which is not counted.
    Warmup(u64),
    /// A measured request.
    Measured(u64),
}

/// A request, independent of the dialect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestSpec {
    /// The prompt.
    pub prompt: String,
    /// Estimated tokens in the prompt: its words.
    pub prompt_tokens: usize,
    /// Tokens to generate.
    pub output_tokens: usize,
}

impl Workload {
    /// Returns the request with a number.
    pub fn request(&self, number: RequestNumber) -> RequestSpec {
        let mut own = self.rng(match number {
            RequestNumber::Measured(n) => 2 * n + 1,
            RequestNumber::Warmup(n) => 2 * n + 2,
        });
        let prompt_tokens = self.prompt.draw(&mut own);
        let output_tokens = self.output.draw(&mut own);
        let mut shared = self.rng(0);
        let words: Vec<&str> = (0..prompt_tokens)
            .map(|place| {
                let rng = if place < self.shared_prefix {
                    &mut shared
                } else {
                    &mut own
                };
                WORDS[below(rng, WORDS.len())]
            })
            .collect();
        RequestSpec {
            prompt: words.join(" "),
            prompt_tokens,
            output_tokens,
        }
    }

    /// Returns an independent random number generator; stream 0 is that of the shared prefix.
    fn rng(&self, stream: u64) -> ChaCha20Rng {
        let mut rng = ChaCha20Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn workload(shared_prefix: usize) -> Workload {
        Workload {
            seed: 7,
            prompt: Lengths::Uniform(20, 40),
            output: Lengths::Uniform(1, 1000),
            shared_prefix,
        }
    }

    #[test]
    fn words_are_distinct() {
        assert_eq!(WORDS.iter().collect::<HashSet<_>>().len(), WORDS.len());
    }

    #[cfg(feature = "builtin-model")]
    #[test]
    fn words_are_tokens_of_the_built_in_model() {
        let files = crate::checkpoint::ModelSource::Builtin
            .fetch(false)
            .unwrap();
        for word in WORDS {
            for text in [word.to_owned(), format!(" {word}")] {
                let ids = files.tokenizer.encode(&text, false).unwrap();
                assert_eq!(ids.len(), 1, "{text:?}");
            }
        }
    }

    #[test]
    fn a_request_depends_on_seed_and_number_alone() {
        let request = workload(0).request(RequestNumber::Measured(3));
        assert_eq!(request, workload(0).request(RequestNumber::Measured(3)));
        assert_ne!(request, workload(0).request(RequestNumber::Measured(4)));
        assert_ne!(request, workload(0).request(RequestNumber::Warmup(3)));
        let other = Workload {
            seed: 8,
            ..workload(0)
        };
        assert_ne!(request, other.request(RequestNumber::Measured(3)));
    }

    #[test]
    fn prompts_have_the_requested_length_and_different_beginnings() {
        let mut heads = HashSet::new();
        for number in 0..200 {
            let request = workload(0).request(RequestNumber::Measured(number));
            let words: Vec<&str> = request.prompt.split(' ').collect();
            assert_eq!(words.len(), request.prompt_tokens);
            assert!((20..=40).contains(&words.len()));
            heads.insert(words[..8].join(" "));
        }
        assert_eq!(heads.len(), 200);
    }

    #[test]
    fn only_the_shared_prefix_is_shared() {
        let words = |number| {
            let request = workload(16).request(RequestNumber::Measured(number));
            request
                .prompt
                .split(' ')
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (first, second) = (words(0), words(1));
        assert_eq!(first[..16], second[..16]);
        assert_ne!(first[16..20], second[16..20]);
        let all = Workload {
            prompt: Lengths::Fixed(4),
            ..workload(16)
        };
        assert_eq!(
            all.request(RequestNumber::Measured(0)).prompt,
            all.request(RequestNumber::Measured(1)).prompt
        );
    }
}
