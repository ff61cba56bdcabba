//! What the files beside a tokenizer ask for, and a tokenizer of `vocab.json` and `merges.txt`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::added::{AddedToken, AddedTokens};
use super::bpe::{Bpe, Symbols};
use super::file::{VocabFile, pair};
use super::json::{Decoding, add, spell, table, unit};
use super::pipeline::Pipeline;
use super::split::Splitter;
use super::vocab::Vocab;
use super::{Encoder, Parts, Tokenizer};

/// GPT-2's only special token.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// What `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json` ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerSettings {
    /// Tokens beside the vocabulary, with their ids.
    pub added: Vec<(u32, AddedToken)>,
    /// Texts of tokens that are special.
    pub special: Vec<String>,
    /// `bos_token`
    pub bos: Option<String>,
    /// `eos_token`
    pub eos: Option<String>,
    /// `add_bos_token`: whether a text begins with `bos`; `None` leaves it to the tokenizer.
    pub add_bos: Option<bool>,
    /// `add_prefix_space`: whether a space is put before a text that does not begin with one;
    /// `None` leaves it to the tokenizer. Only of byte-level tokenizers.
    pub add_prefix_space: Option<bool>,
}

impl Tokenizer {
    /// Applies the settings of the files beside the tokenizer's own.
    ///
    /// # Errors
    /// If a token has an id that another one has.
    pub(super) fn apply(&mut self, settings: &TokenizerSettings) -> Result<(), String> {
        let mut added: Vec<&(u32, AddedToken)> = settings.added.iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let known = self.added_ids();
        let mut changed = false;
        for (id, token) in added {
            if !known.contains(id) && !token.content.is_empty() {
                self.add_token(*id, token)?;
                changed = true;
            }
        }
        for text in &settings.special {
            if let Some(id) = self.id(text) {
                changed |= self.make_special(id, text)?;
            }
        }
        if let (Some(prefix), Encoder::Own(pipeline)) =
            (settings.add_prefix_space, &mut self.encoder)
            && pipeline.bpe.is_byte_level()
        {
            pipeline.prefix_space = prefix;
        }
        if changed {
            self.refresh()?;
        }
        self.named_bos = settings
            .bos
            .as_ref()
            .and_then(|text| self.id(text))
            .or(self.named_bos);
        match settings.add_bos {
            Some(true) => self.bos = self.named_bos.or(self.bos),
            Some(false) => self.bos = None,
            None => (),
        }
        self.eos = settings
            .eos
            .as_ref()
            .and_then(|text| self.id(text))
            .or(self.eos);
        self.end_of_text = self.end_of_text.or(self.eos);
        Ok(())
    }

    fn added_ids(&self) -> BTreeSet<u32> {
        match &self.encoder {
            Encoder::Own(pipeline) => pipeline.added.iter().map(|(id, _)| id).collect(),
            Encoder::Library(library) => library.added().into_iter().map(|(id, _)| id).collect(),
        }
    }

    fn add_token(&mut self, id: u32, token: &AddedToken) -> Result<(), String> {
        if id > super::MAX_ID {
            let largest = super::MAX_ID;
            return Err(format!(
                "it has the token id {id}; the largest possible is {largest}"
            ));
        }
        match self.id(&token.content) {
            Some(known) if known != id => {
                return Err(format!(
                    "the token `{}` has the id {known} in the tokenizer and {id} in a file beside it",
                    token.content
                ));
            }
            _ => (),
        }
        if let Some(other) = self.token_name(id).filter(|name| *name != token.content) {
            return Err(format!(
                "the token id {id} is `{other}` in the tokenizer and `{}` in a file beside it",
                token.content
            ));
        }
        match &mut self.encoder {
            Encoder::Own(pipeline) => {
                add(&mut pipeline.added, id, token.clone(), &pipeline.steps);
                Ok(())
            }
            Encoder::Library(library) => library.add(token),
        }
    }

    /// Makes a token special; returns whether it was not.
    fn make_special(&mut self, id: u32, text: &str) -> Result<bool, String> {
        if self.is_special(id) {
            return Ok(false);
        }
        let special = AddedToken {
            content: text.to_owned(),
            special: true,
            ..AddedToken::default()
        };
        match &mut self.encoder {
            Encoder::Own(pipeline) => {
                let known = pipeline.added.get(id).cloned();
                let token = known.map(|known| AddedToken {
                    special: true,
                    ..known
                });
                add(
                    &mut pipeline.added,
                    id,
                    token.unwrap_or(special),
                    &pipeline.steps,
                );
            }
            Encoder::Library(library) => library.add(&special)?,
        }
        Ok(true)
    }
}

/// Reads `vocab.json` and `merges.txt`, as OpenAI published them.
///
/// # Errors
/// The reason why a file can't be used.
pub(super) fn vocab_and_merges(vocab: &Path, merges: &Path) -> Result<Tokenizer, String> {
    let in_merges = |reason: String| format!("{}: {reason}", merges.display());
    let vocab = fs::read(vocab).map_err(|error| error.to_string())?;
    let merges = fs::read_to_string(merges).map_err(|error| in_merges(error.to_string()))?;
    let tokens: VocabFile = serde_json::from_slice(&vocab).map_err(|error| error.to_string())?;
    let tokens = tokens.0;
    if tokens.is_empty() {
        return Err("it has no tokens, expected a map from tokens to ids".to_owned());
    }
    let vocab = Vocab::new(tokens.iter().map(|(text, id)| (&**text, *id)))?;
    let lines = merges.lines().zip(1..);
    let lines = lines.filter(|(line, _)| !line.starts_with("#version") && !line.is_empty());
    let pairs = lines.map(|(line, number)| {
        let merge = pair(line);
        merge.ok_or_else(|| in_merges(format!("line {number} is `{line}`, expected two tokens")))
    });
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    let table = table(&vocab, pairs.len(), pairs.into_iter()).map_err(in_merges)?;
    let mut added = AddedTokens::default();
    if let Some(id) = vocab.id(END_OF_TEXT) {
        let end_of_text = AddedToken {
            content: END_OF_TEXT.to_owned(),
            special: true,
            ..AddedToken::default()
        };
        add(&mut added, id, end_of_text, &[]);
    }
    let symbols = Symbols {
        unit: unit(&vocab, true, false),
        unknown: None,
        fuse_unknown: false,
    };
    let spelling = spell(&vocab, &added, &Decoding::ByteLevel)?;
    Ok(Tokenizer::new(Parts {
        encoder: Encoder::Own(Box::new(Pipeline {
            vocab,
            added,
            steps: Vec::new(),
            splitters: vec![Splitter::Gpt2],
            prefix_space: false,
            bpe: Bpe::new(table, symbols, false),
        })),
        spelling,
    }))
}
