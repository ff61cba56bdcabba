//! Tokenizers of GGUF files, rebuilt from the arrays of their metadata.
//!
//! Two kinds are read. `llama` is `SentencePiece`'s byte-pair encoding: the file has a score for each
//! token, and the pair whose joined text has the highest score is merged first. `gpt2` is byte-level
//! with merges, and the name of a pre-tokenizer. The result has the ids that the model's own
//! `tokenizer.json` gives.

use super::added::{AddedToken, AddedTokens};
use super::bpe::{Bpe, Symbols};
use super::file::pair;
use super::json::{Decoding, add, at_marks, spell, table, unit};
use super::normalize::Step;
use super::pipeline::Pipeline;
use super::spelling::{First, MARK};
use super::split::Splitter;
use super::table::PairTable;
use super::vocab::Vocab;
use super::{Encoder, MAX_ID, Parts, Tokenizer};

/// Types of tokens in the arrays.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Names of tokens that end an assistant's turn.
const ENDS_OF_TURN: [&str; 7] = [
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|eom_id|>",
    "<turn|>",
    "<|endofturn|>",
];

/// The vocabulary in the metadata of a GGUF file (`tokenizer.ggml.*`); what a file leaves out is
/// empty or `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VocabularyArrays {
    /// `model`: `llama` or `gpt2`.
    pub model: String,
    /// `pre`: name of the pre-tokenizer.
    pub pre: Option<String>,
    /// `tokens`: the text of each token.
    pub tokens: Vec<String>,
    /// `scores`: the score of each token; only of `llama`.
    pub scores: Vec<f32>,
    /// `token_type`: the type of each token.
    pub token_types: Vec<i32>,
    /// `merges`: two tokens with a space between them, by rank; only of `gpt2`.
    pub merges: Vec<String>,
    /// `add_bos_token`: whether a text begins with `bos`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`: whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether a space is put before a text.
    pub add_space_prefix: Option<bool>,
    /// `bos_token_id`
    pub bos: Option<u32>,
    /// `eos_token_id`
    pub eos: Option<u32>,
    /// `unknown_token_id`
    pub unknown: Option<u32>,
}

/// Rebuilds a tokenizer.
///
/// # Errors
/// The reason why the arrays can't be used.
pub(super) fn build(mut arrays: VocabularyArrays) -> Result<Tokenizer, String> {
    check(&arrays)?;
    let is_llama = arrays.model == "llama";
    if is_llama {
        mark_spaces(&mut arrays);
    }
    let vocab = Vocab::new(arrays.tokens.iter().map(String::as_str).zip(0..u32::MAX))?;
    let rules = if is_llama {
        sentence_piece(&arrays, &vocab)
    } else {
        byte_level(&arrays, &vocab)?
    };
    let mut added = AddedTokens::default();
    for ((text, &kind), id) in arrays.tokens.iter().zip(&arrays.token_types).zip(0..) {
        if !matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) {
            continue;
        }
        let token = AddedToken {
            content: text.clone(),
            special: kind != USER_DEFINED,
            ..AddedToken::default()
        };
        add(&mut added, id, token, &rules.steps);
    }
    let spelling = spell(&vocab, &added, &rules.decoding)?;
    let mut tokenizer = Tokenizer::new(Parts {
        encoder: Encoder::Own(Box::new(Pipeline {
            vocab,
            added,
            steps: rules.steps,
            splitters: rules.splitters,
            prefix_space: false,
            bpe: rules.bpe,
        })),
        spelling,
    });
    let known = |id: Option<u32>| id.filter(|id| (*id as usize) < arrays.tokens.len());
    // What llama.cpp takes for a file that does not say.
    let is_llama3 = arrays.pre.as_deref() == Some("llama-bpe");
    let adds_bos = arrays.add_bos.unwrap_or(is_llama || is_llama3);
    let bos = arrays.bos.or(is_llama.then_some(1));
    tokenizer.named_bos = known(bos);
    tokenizer.bos = known(bos).filter(|_| adds_bos);
    let eos = arrays.eos.or(is_llama.then_some(2));
    tokenizer.eos = known(eos);
    if tokenizer.end_of_text.is_none() {
        tokenizer.end_of_text = known(eos);
    }
    Ok(tokenizer)
}

/// Returns the tokens that end an assistant's turn, by their usual names.
pub(super) fn ends_of_turn(id: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    ENDS_OF_TURN.iter().filter_map(|name| id(name)).collect()
}

/// Checks that the arrays are of one vocabulary.
fn check(arrays: &VocabularyArrays) -> Result<(), String> {
    let tokens = arrays.tokens.len();
    if tokens == 0 {
        return Err("`tokenizer.ggml.tokens` has no tokens".to_owned());
    }
    if tokens > MAX_ID as usize {
        return Err(format!(
            "`tokenizer.ggml.tokens` has {tokens} tokens; at most {MAX_ID} are supported"
        ));
    }
    let length = |name: &str, length: usize| match length {
        0 => Ok(()),
        length if length == tokens => Ok(()),
        length => Err(format!(
            "`tokenizer.ggml.{name}` has {length} entries and `tokenizer.ggml.tokens` {tokens}, expected the same number"
        )),
    };
    length("scores", arrays.scores.len())?;
    length("token_type", arrays.token_types.len())?;
    let missing = match arrays.model.as_str() {
        "llama" if arrays.scores.is_empty() => "scores",
        "gpt2" if arrays.merges.is_empty() => "merges",
        "llama" | "gpt2" => return Ok(()),
        other => {
            return Err(format!(
                "`tokenizer.ggml.model` is `{other}`; supported are llama and gpt2"
            ));
        }
    };
    let model = &arrays.model;
    Err(format!(
        "`tokenizer.ggml.{missing}` is missing, which a tokenizer of type {model} needs"
    ))
}

/// What the two kinds of tokenizers differ in.
struct Rules {
    steps: Vec<Step>,
    splitters: Vec<Splitter>,
    bpe: Bpe,
    decoding: Decoding,
}

/// Writes runs of spaces as runs of marks, as the merges have them.
fn mark_spaces(arrays: &mut VocabularyArrays) {
    let mark = MARK.to_string();
    for (text, &kind) in arrays.tokens.iter_mut().zip(&arrays.token_types) {
        if kind == USER_DEFINED && !text.is_empty() && text.bytes().all(|byte| byte == b' ') {
            *text = text.replace(' ', &mark);
        }
    }
}

fn sentence_piece(arrays: &VocabularyArrays, vocab: &Vocab) -> Rules {
    let prefix = arrays.add_space_prefix.unwrap_or(true);
    let prepend = prefix.then(|| Step::Prepend(MARK.to_string()));
    let replace = Step::Replace(' ', MARK);
    let steps: Vec<Step> = prepend.into_iter().chain([replace]).collect();
    let merges = merges_of_scores(arrays, vocab);
    let texts = merges.iter().filter_map(|merge| {
        let [left, right, _] = *merge;
        vocab.text(left).zip(vocab.text(right))
    });
    let splitters = at_marks(&steps, vocab, texts);
    let mut table = PairTable::with_capacity(merges.len());
    for ([left, right, merged], rank) in merges.into_iter().zip(0..) {
        table.insert(left, right, (rank, merged));
    }
    let mut unknown = arrays.token_types.iter().zip(0..);
    let unknown = unknown
        .find(|(kind, _)| **kind == UNKNOWN)
        .map(|(_, id)| id);
    let symbols = Symbols {
        unit: unit(vocab, false, true),
        unknown: arrays
            .unknown
            .filter(|id| (*id as usize) < arrays.tokens.len())
            .or(unknown),
        fuse_unknown: true,
    };
    let first = if prefix {
        First::WithoutSpaces(1)
    } else {
        First::Alike
    };
    Rules {
        bpe: Bpe::new(table, symbols, false),
        decoding: Decoding::Marked { bytes: true, first },
        steps,
        splitters,
    }
}

/// Returns the merges that the scores amount to, by rank: left token, right token, and the token of
/// both. Runs of one character that are user-defined come first, the longest first, because a run is
/// never split; then each piece by its score, in all ways that it can be split into two tokens.
fn merges_of_scores(arrays: &VocabularyArrays, vocab: &Vocab) -> Vec<[u32; 3]> {
    let pieces = arrays.tokens.iter().zip(&arrays.scores).zip(0_u32..);
    let kind = |id: u32| {
        arrays
            .token_types
            .get(id as usize)
            .copied()
            .unwrap_or(NORMAL)
    };
    let mut runs = Vec::new();
    let mut scored = Vec::new();
    for ((text, &score), id) in pieces {
        let mut characters = text.chars();
        let first = characters.next();
        if characters.next().is_none() {
            continue;
        }
        match kind(id) {
            USER_DEFINED if text.chars().all(|c| Some(c) == first) => runs.push((text, id)),
            NORMAL => scored.push((text, score, id)),
            _ => (),
        }
    }
    runs.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));
    scored.sort_by(|(_, a, first), (_, b, second)| b.total_cmp(a).then(first.cmp(second)));
    let scored = scored.into_iter().map(|(text, _, id)| (text, id));
    let mut merges = Vec::with_capacity(arrays.tokens.len() * 2);
    for (text, id) in runs.into_iter().chain(scored) {
        let first = merges.len();
        for (at, _) in text.char_indices().skip(1) {
            let Some((left, right)) = text.split_at_checked(at) else {
                continue;
            };
            if let (Some(left), Some(right)) = (vocab.id(left), vocab.id(right)) {
                merges.push([left, right, id]);
            }
        }
        if let Some(own) = merges.get_mut(first..) {
            own.sort_unstable();
        }
    }
    merges
}

fn byte_level(arrays: &VocabularyArrays, vocab: &Vocab) -> Result<Rules, String> {
    let pre = arrays.pre.as_deref().unwrap_or("gpt-2");
    let (steps, splitters, whole_words) = match pre {
        "gpt-2" => (Vec::new(), vec![Splitter::Gpt2], false),
        "smollm" => {
            let digits = Splitter::Digits { single: true };
            (Vec::new(), vec![digits, Splitter::Gpt2], false)
        }
        "llama-bpe" => (Vec::new(), vec![Splitter::Llama3 { digits: 3 }], true),
        "qwen2" => (vec![Step::Nfc], vec![Splitter::Llama3 { digits: 1 }], false),
        other => {
            return Err(format!(
                "`tokenizer.ggml.pre` is `{other}`; supported are gpt-2, smollm, llama-bpe and qwen2"
            ));
        }
    };
    let merges = arrays.merges.iter().map(|both| {
        let merge = pair(both).filter(|(left, right)| !left.is_empty() && !right.is_empty());
        merge.ok_or_else(|| format!("`tokenizer.ggml.merges` has `{both}`, expected two tokens"))
    });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    let table = table(vocab, merges.len(), merges.into_iter())?;
    let symbols = Symbols {
        unit: unit(vocab, true, false),
        unknown: None,
        fuse_unknown: false,
    };
    Ok(Rules {
        bpe: Bpe::new(table, symbols, whole_words),
        decoding: Decoding::ByteLevel,
        steps,
        splitters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a small vocabulary of `SentencePiece`'s kind.
    fn llama() -> VocabularyArrays {
        let mut arrays = VocabularyArrays {
            model: "llama".to_owned(),
            ..VocabularyArrays::default()
        };
        let mut add = |text: &str, score: f32, kind: i32| {
            arrays.tokens.push(text.to_owned());
            arrays.scores.push(score);
            arrays.token_types.push(kind);
        };
        add("<unk>", 0.0, UNKNOWN);
        add("<s>", 0.0, CONTROL);
        add("</s>", 0.0, CONTROL);
        for byte in 0..=u8::MAX {
            add(&format!("<0x{byte:02X}>"), 0.0, 6);
        }
        for (n, text) in [
            "\u{2581}a",
            "ab",
            "\u{2581}ab",
            "abc",
            "\u{2581}",
            "a",
            "b",
            "c",
        ]
        .into_iter()
        .enumerate()
        {
            add(text, -(n as f32), NORMAL);
        }
        add("  ", 0.0, USER_DEFINED);
        add("\n", 0.0, USER_DEFINED);
        arrays
    }

    const A: u32 = 259;

    #[test]
    fn the_highest_score_is_merged_first() {
        let tokenizer = build(llama()).unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap();
        // "▁a" has a higher score than "ab".
        assert_eq!(ids("abc"), [A + 2, A + 7]);
        assert_eq!(ids("é\n"), [A + 4, 3 + 0xc3, 3 + 0xa9, A + 9]);
        assert_eq!(ids("  a"), [A + 8, A]);
        assert_eq!(ids("<s>c"), [1, A + 4, A + 7]);
        assert_eq!(tokenizer.decode(&ids("abc é")), "abc é");
        assert_eq!(
            (tokenizer.bos(), tokenizer.end_of_text()),
            (Some(1), Some(2))
        );
        let mut without = llama();
        without.add_space_prefix = Some(false);
        without.add_bos = Some(false);
        let tokenizer = build(without).unwrap();
        assert_eq!(tokenizer.encode("abc", true).unwrap(), [A + 3]);
        assert_eq!(tokenizer.decode(&[A, A + 1]), " aab");
        assert_eq!(tokenizer.bos(), None);
    }

    #[test]
    fn arrays_that_are_not_a_vocabulary_are_refused() {
        let refused = |change: fn(&mut VocabularyArrays)| {
            let mut arrays = llama();
            change(&mut arrays);
            build(arrays).err().expect("an error")
        };
        for (said, part) in [
            (
                refused(|a| a.model = "bert".to_owned()),
                "`bert`; supported are llama and gpt2",
            ),
            (refused(|a| a.scores.clear()), "scores` is missing"),
            (refused(|a| a.scores.truncate(3)), "has 3 entries"),
            (refused(|a| a.tokens.clear()), "no tokens"),
            (
                refused(|a| {
                    a.model = "gpt2".to_owned();
                    a.merges = vec!["a b".to_owned()];
                    a.pre = Some("viking".to_owned());
                }),
                "`viking`; supported are gpt-2, smollm, llama-bpe and qwen2",
            ),
            (
                refused(|a| {
                    a.model = "gpt2".to_owned();
                    a.merges = vec!["ab".to_owned()];
                }),
                "`ab`, expected two tokens",
            ),
            (
                refused(|a| {
                    a.model = "gpt2".to_owned();
                    a.merges = vec!["a nothing".to_owned()];
                }),
                "`nothing`, which is not in the vocabulary",
            ),
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
