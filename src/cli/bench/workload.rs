//! What is asked: for every request its prompt and the length of its output.
//!
//! A request's number and the seed determine it: neither the order in which requests are sent nor
//! the number of warm-up requests changes what the others ask.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::lengths::{Lengths, below};

/// Prompts are made of these: in the vocabularies of GPT-2 and of the built-in model each is one
/// token, with a space before it and without; being common, it is in most others too.
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

/// What all requests of a run have in common.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    /// Draws everything.
    pub seed: u64,
    /// How long prompts are.
    pub prompt: Lengths,
    /// How long outputs are.
    pub output: Lengths,
    /// So many tokens at the head of all prompts are the same (as far as a prompt is that long).
    pub shared_prefix: usize,
}

/// Which request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// One that is not counted.
    Warmup(u64),
    /// One that is.
    Measured(u64),
}

/// One request, still in no dialect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    /// The prompt.
    pub prompt: String,
    /// Tokens in the prompt, as estimated: words.
    pub prompt_tokens: usize,
    /// Tokens to generate.
    pub output_tokens: usize,
}

impl Workload {
    /// The request with this number.
    pub fn ask(&self, number: Number) -> Ask {
        let mut own = self.rng(match number {
            Number::Measured(n) => 2 * n + 1,
            Number::Warmup(n) => 2 * n + 2,
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
        Ask {
            prompt: words.join(" "),
            prompt_tokens,
            output_tokens,
        }
    }

    /// Independent random numbers; stream 0 is that of the shared prefix.
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
        let ask = workload(0).ask(Number::Measured(3));
        assert_eq!(ask, workload(0).ask(Number::Measured(3)));
        assert_ne!(ask, workload(0).ask(Number::Measured(4)));
        assert_ne!(ask, workload(0).ask(Number::Warmup(3)));
        let other = Workload {
            seed: 8,
            ..workload(0)
        };
        assert_ne!(ask, other.ask(Number::Measured(3)));
    }

    #[test]
    fn prompts_have_as_many_words_as_asked_and_begin_differently() {
        let mut heads = HashSet::new();
        for number in 0..200 {
            let ask = workload(0).ask(Number::Measured(number));
            let words: Vec<&str> = ask.prompt.split(' ').collect();
            assert_eq!(words.len(), ask.prompt_tokens);
            assert!((20..=40).contains(&words.len()));
            heads.insert(words[..8].join(" "));
        }
        assert_eq!(heads.len(), 200);
    }

    #[test]
    fn a_shared_prefix_is_shared_and_no_more() {
        let words = |number| {
            let ask = workload(16).ask(Number::Measured(number));
            ask.prompt.split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        let (first, second) = (words(0), words(1));
        assert_eq!(first[..16], second[..16]);
        assert_ne!(first[16..20], second[16..20]);
        let all = Workload {
            prompt: Lengths::Fixed(4),
            ..workload(16)
        };
        assert_eq!(
            all.ask(Number::Measured(0)).prompt,
            all.ask(Number::Measured(1)).prompt
        );
    }
}
