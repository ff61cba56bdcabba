//! Reads the components of a `tokenizer.json`.
//!
//! A byte-pair encoding whose components are known here runs in [`Pipeline`]; all others in the
//! `tokenizers` library. None means that a component is not known, an error that it is not valid.

use std::collections::BTreeSet;

use serde_json::Value;
use tokenizers::Tokenizer as Inner;
use tokenizers::decoders::DecoderWrapper;

use super::added::{AddedToken, AddedTokens};
use super::bpe::{Bpe, Symbols, Unit};
use super::file::{ModelFile, TokenizerFile};
use super::library::Library;
use super::normalize::{Normalized, Place, Step};
use super::pipeline::Pipeline;
use super::spelling::{self, ByteStrings, First, MARK, Spelling};
use super::split::Splitter;
use super::table::PairTable;
use super::vocab::Vocab;
use super::{Encoder, Parts, Tokenizer};

/// Reads the content of a `tokenizer.json`.
///
/// # Errors
/// The reason why it can't be used.
pub(super) fn read(bytes: &[u8]) -> Result<Tokenizer, String> {
    let file: TokenizerFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.decoder.is_null() {
        return Err("it does not have a decoder".to_owned());
    }
    let first = first_token(&file.post_processor);
    let mut tokenizer = match own(&file)? {
        Some(tokenizer) => tokenizer,
        None => library(bytes)?,
    };
    tokenizer.bos = first.and_then(|first| tokenizer.id(&first));
    Ok(tokenizer)
}

fn library(bytes: &[u8]) -> Result<Tokenizer, String> {
    let library = Library::new(Inner::from_bytes(bytes).map_err(|error| error.to_string())?)?;
    let spelling = library.spelling()?;
    Ok(Tokenizer::new(Parts {
        encoder: Encoder::Library(Box::new(library)),
        spelling,
    }))
}

/// Reads a tokenizer that can run in a [`Pipeline`].
fn own(file: &TokenizerFile) -> Result<Option<Tokenizer>, String> {
    let model = &file.model;
    let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    let is_plain = model.kind.as_deref().is_none_or(|kind| kind == "BPE")
        && model.merges.is_some()
        && empty(&model.continuing_subword_prefix)
        && empty(&model.end_of_word_suffix);
    let components = components(&file.normalizer, &file.pre_tokenizer)?;
    let Some(components) = components.filter(|_| is_plain) else {
        return Ok(None);
    };
    let tokens = model.vocab.0.iter();
    let vocab = Vocab::new(tokens.map(|(text, id)| (&**text, *id)))?;
    let mut added = AddedTokens::default();
    for numbered in &file.added_tokens {
        // An id beside the vocabulary's is what the library gives, whatever the file says.
        let id = vocab.id(&numbered.token.content).unwrap_or(numbered.id);
        if id > super::MAX_ID {
            let largest = super::MAX_ID;
            return Err(format!(
                "it has the token id {id}; the largest possible is {largest}"
            ));
        }
        add(&mut added, id, numbered.token.clone(), &components.steps);
    }
    let decoder = decoder(&file.decoder)?;
    let spelling = spell(&vocab, &added, &decoder)?;
    let bpe = bpe(model, &vocab, components.byte_level)?;
    let mut splitters = components.splitters;
    if splitters.is_empty() && !model.ignore_merges {
        let merges = model.merges.iter().flatten();
        let merges = merges.map(|merge| (&*merge.0, &*merge.1));
        splitters = at_marks(&components.steps, &vocab, merges);
    }
    let pipeline = Pipeline {
        splitters,
        vocab,
        added,
        steps: components.steps,
        prefix_space: components.prefix_space,
        bpe,
    };
    Ok(Some(Tokenizer::new(Parts {
        encoder: Encoder::Own(Box::new(pipeline)),
        spelling,
    })))
}

/// Adds a token with its pattern in normalized text.
pub(super) fn add(added: &mut AddedTokens, id: u32, token: AddedToken, steps: &[Step]) {
    let content = token.content.clone();
    let pattern = Normalized::new(steps, &content, Place::Later);
    added.add(id, token, &pattern.text);
}

/// Normalizer and pre-tokenizer.
#[derive(Debug, Default)]
pub(super) struct Components {
    pub(super) steps: Vec<Step>,
    pub(super) splitters: Vec<Splitter>,
    pub(super) byte_level: bool,
    pub(super) prefix_space: bool,
}

fn components(normalizer: &Value, pre_tokenizer: &Value) -> Result<Option<Components>, String> {
    let mut components = Components::default();
    for part in sequence(normalizer, "normalizers") {
        if !components.normalizer(part) {
            return Ok(None);
        }
    }
    for part in sequence(pre_tokenizer, "pretokenizers") {
        if components.byte_level || !components.pre_tokenizer(part)? {
            return Ok(None);
        }
    }
    Ok(Some(components))
}

/// Returns the parts of a component that may be a sequence.
fn sequence<'v>(component: &'v Value, parts: &str) -> Vec<&'v Value> {
    match component {
        Value::Null => Vec::new(),
        other if kind(other) == "Sequence" => {
            let list = other.get(parts).and_then(Value::as_array);
            let all = list.into_iter().flatten();
            all.flat_map(|part| sequence(part, parts)).collect()
        }
        other => vec![other],
    }
}

fn kind(component: &Value) -> &str {
    text(component, "type").unwrap_or_default()
}

fn text<'v>(component: &'v Value, field: &str) -> Option<&'v str> {
    component.get(field)?.as_str()
}

fn flag(component: &Value, field: &str, default: bool) -> bool {
    component
        .get(field)
        .and_then(Value::as_bool)
        .unwrap_or(default)
}

/// Returns the only character of a text.
fn character(text: Option<&str>) -> Option<char> {
    let mut characters = text?.chars();
    characters.next().filter(|_| characters.next().is_none())
}

impl Components {
    /// Adds a normalizer; returns whether it is known.
    fn normalizer(&mut self, part: &Value) -> bool {
        let step = match kind(part) {
            "NFC" if self.steps.is_empty() => Some(Step::Nfc),
            "Replace" => {
                let from = part
                    .get("pattern")
                    .and_then(|pattern| text(pattern, "String"));
                let pair = character(from).zip(character(text(part, "content")));
                pair.map(|(from, to)| Step::Replace(from, to))
            }
            "Prepend" => text(part, "prepend").map(|text| Step::Prepend(text.to_owned())),
            _ => None,
        };
        let is_known = step.is_some();
        self.steps.extend(step);
        is_known
    }

    /// Adds a pre-tokenizer; returns whether it is known.
    fn pre_tokenizer(&mut self, part: &Value) -> Result<bool, String> {
        match kind(part) {
            "ByteLevel" => {
                let prefix = flag(part, "add_prefix_space", true);
                if prefix && !self.splitters.is_empty() {
                    return Ok(false);
                }
                self.byte_level = true;
                self.prefix_space = prefix;
                if flag(part, "use_regex", true) {
                    self.splitters.push(Splitter::Gpt2);
                }
                Ok(true)
            }
            "Digits" => {
                let single = flag(part, "individual_digits", false);
                self.splitters.push(Splitter::Digits { single });
                Ok(true)
            }
            "Split" => self.split(part),
            "Metaspace" => Ok(self.metaspace(part)),
            _ => Ok(false),
        }
    }

    fn split(&mut self, part: &Value) -> Result<bool, String> {
        let pattern = part.get("pattern").unwrap_or(&Value::Null);
        if flag(part, "invert", false) {
            return Ok(false);
        }
        match (
            text(pattern, "Regex"),
            text(pattern, "String"),
            text(part, "behavior"),
        ) {
            (Some(expression), None, Some("Isolated")) => {
                self.splitters.push(Splitter::of_expression(expression)?);
                Ok(true)
            }
            // After all spaces are replaced it splits nothing.
            (None, Some(" "), Some(_)) => {
                let replaces = |step: &Step| matches!(step, Step::Replace(' ', to) if *to != ' ');
                Ok(self.steps.iter().any(replaces))
            }
            _ => Ok(false),
        }
    }

    fn metaspace(&mut self, part: &Value) -> bool {
        let Some(mark) = character(text(part, "replacement")) else {
            return false;
        };
        if !self.splitters.is_empty() {
            return false;
        }
        self.steps.push(Step::Replace(' ', mark));
        let legacy = flag(part, "add_prefix_space", true);
        let first_only = match text(part, "prepend_scheme").unwrap_or("always") {
            "always" if legacy => Some(false),
            "first" if legacy => Some(true),
            _ => None,
        };
        self.steps
            .extend(first_only.map(|first_only| Step::PrependMissing {
                text: mark.to_string(),
                first_only,
            }));
        if flag(part, "split", true) {
            self.splitters.push(Splitter::Before(mark));
        }
        true
    }
}

/// Returns the splitters of a tokenizer without any: one that splits before the marks of words, unless a
/// merge may reach over such a place. The tokens are the same, and words are short.
pub(super) fn at_marks<'m>(
    steps: &[Step],
    vocab: &Vocab,
    merges: impl Iterator<Item = (&'m str, &'m str)>,
) -> Vec<Splitter> {
    /// Maximum number of characters after which a word goes on.
    const MAX_EXCEPT: usize = 32;
    let replaces = |step: &Step| matches!(step, Step::Replace(' ', MARK));
    if !steps.iter().any(replaces) || vocab.id("\u{2581}").is_none() {
        return Vec::new();
    }
    let reaching = merges.filter(|(_, right)| right.starts_with(MARK));
    let before = reaching.filter_map(|(left, _)| left.chars().next_back());
    let except: BTreeSet<char> = before.filter(|before| *before != MARK).collect();
    if except.len() > MAX_EXCEPT {
        return Vec::new();
    }
    vec![Splitter::BeforeRuns {
        mark: MARK,
        except: except.into_iter().collect(),
    }]
}

fn bpe(model: &ModelFile, vocab: &Vocab, byte_level: bool) -> Result<Bpe, String> {
    let merges = model.merges.iter().flatten();
    let merges = merges.map(|merge| (&*merge.0, &*merge.1));
    let table = table(vocab, model.merges.as_ref().map_or(0, Vec::len), merges)?;
    let unknown = match &model.unk_token {
        Some(text) => vocab.id(text),
        None => None,
    };
    let symbols = Symbols {
        unit: unit(vocab, byte_level, model.byte_fallback),
        unknown,
        fuse_unknown: model.fuse_unk,
    };
    Ok(Bpe::new(table, symbols, model.ignore_merges))
}

/// Returns the table of merges that are given in the order of their ranks.
pub(super) fn table<'m>(
    vocab: &Vocab,
    length: usize,
    merges: impl Iterator<Item = (&'m str, &'m str)>,
) -> Result<PairTable, String> {
    let mut table = PairTable::with_capacity(length);
    let mut joined = String::new();
    for ((left, right), rank) in merges.zip(0..) {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id = |text: &str| {
            let id = vocab.id(text);
            id.ok_or_else(|| {
                format!("a merge has the token `{text}`, which is not in the vocabulary")
            })
        };
        table.insert(id(left)?, id(right)?, (rank, id(&joined)?));
    }
    Ok(table)
}

/// Returns the symbols of a vocabulary.
pub(super) fn unit(vocab: &Vocab, byte_level: bool, byte_fallback: bool) -> Unit {
    if byte_level {
        let mut tokens = Box::new([None; 256]);
        for (byte, id) in (0..=u8::MAX).zip(tokens.iter_mut()) {
            *id = vocab.id(&spelling::to_alphabet(&[byte]));
        }
        return Unit::Byte(tokens);
    }
    let mut ascii = Box::new([None; 128]);
    for (byte, id) in (0..128_u8).zip(ascii.iter_mut()) {
        *id = vocab.id(char::from(byte).encode_utf8(&mut [0; 4]));
    }
    let bytes = byte_fallback.then(|| {
        let mut tokens = Box::new([None; 256]);
        for (byte, id) in (0..=u8::MAX).zip(tokens.iter_mut()) {
            *id = vocab.id(&format!("<0x{byte:02X}>"));
        }
        tokens
    });
    Unit::Character {
        ascii,
        mark: vocab.id("\u{2581}"),
        bytes,
    }
}

/// What a decoder does.
pub(super) enum Decoding {
    /// Byte-level notation.
    ByteLevel,
    /// Marks for spaces, perhaps bytes, and what it does with the first token.
    Marked {
        /// Whether `<0xNN>` is a byte.
        bytes: bool,
        /// How the first token is written.
        first: First,
    },
    /// Anything else.
    Other(Box<DecoderWrapper>),
}

fn decoder(component: &Value) -> Result<Decoding, String> {
    let parts = sequence(component, "decoders");
    let kinds: Vec<&str> = parts.iter().map(|part| kind(part)).collect();
    if kinds == ["ByteLevel"] {
        return Ok(Decoding::ByteLevel);
    }
    if let Some(marked) = marked(&parts) {
        return Ok(marked);
    }
    let decoder: DecoderWrapper = serde_json::from_value(component.clone())
        .map_err(|error| format!("its decoder is not valid: {error}"))?;
    Ok(Decoding::Other(Box::new(decoder)))
}

/// Returns what a sequence of decoders for marks does; `None` if it has others.
fn marked(parts: &[&Value]) -> Option<Decoding> {
    let (mut has_marks, mut bytes, mut fused) = (false, false, false);
    let mut first = First::Alike;
    for part in parts {
        match kind(part) {
            "Replace" if !has_marks => {
                let pattern = text(part.get("pattern")?, "String");
                let is_mark =
                    character(pattern) == Some(MARK) && text(part, "content") == Some(" ");
                has_marks = is_mark.then_some(true)?;
            }
            "Metaspace" if !has_marks => {
                has_marks = (character(text(part, "replacement")) == Some(MARK)).then_some(true)?;
                let never = text(part, "prepend_scheme") == Some("never");
                if !never && flag(part, "add_prefix_space", true) {
                    first = First::WithoutSpaces(usize::MAX);
                }
            }
            "ByteFallback" => bytes = true,
            "Fuse" => fused = true,
            "Strip" if fused && has_marks => {
                let count = |field| part.get(field).and_then(Value::as_u64);
                let is_known = text(part, "content") == Some(" ") && count("stop") == Some(0);
                let spaces = count("start").filter(|_| is_known)?;
                first = First::WithoutSpaces(usize::try_from(spaces).unwrap_or(usize::MAX));
            }
            _ => return None,
        }
    }
    has_marks.then_some(Decoding::Marked { bytes, first })
}

/// Returns the spelling of a vocabulary.
pub(super) fn spell(
    vocab: &Vocab,
    added: &AddedTokens,
    decoding: &Decoding,
) -> Result<Spelling, String> {
    let last = added
        .iter()
        .map(|(id, _)| id as usize + 1)
        .max()
        .unwrap_or(0);
    let ids = 0..u32::try_from(vocab.len().max(last)).unwrap_or(u32::MAX);
    let name = |id: u32| match added.get(id) {
        Some(token) => Some((token.content.as_str(), true)),
        None => vocab.text(id).map(|text| (text, false)),
    };
    let (bytes, first) = match decoding {
        Decoding::Other(decoder) => {
            let names = ids.map(|id| name(id).map(|(text, added)| (text.to_owned(), added)));
            return super::library::spelled(decoder, names);
        }
        Decoding::ByteLevel => (false, &First::Alike),
        Decoding::Marked { bytes, first } => (*bytes, first),
    };
    let is_byte_level = matches!(decoding, Decoding::ByteLevel);
    let mut tokens = ByteStrings::default();
    for id in ids {
        tokens.push(&match name(id) {
            None => Vec::new(),
            Some((text, true)) if is_byte_level => text.as_bytes().to_vec(),
            Some((text, false)) if is_byte_level => spelling::byte_level(text),
            Some((text, added)) => spelling::marked(text, bytes && !added),
        });
    }
    Ok(Spelling::new(tokens, first.clone()))
}

/// Returns the token that a post-processor puts before a text.
fn first_token(post_processor: &Value) -> Option<String> {
    let parts = sequence(post_processor, "processors");
    let mut templates = parts
        .iter()
        .filter(|part| kind(part) == "TemplateProcessing");
    let single = templates.next()?.get("single")?.as_array()?;
    let first = single.first()?.get("SpecialToken")?;
    text(first, "id").map(str::to_owned)
}
