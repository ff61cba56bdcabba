//! The real Gemma 3 270M and `SmolLM2` 135M Instruct compute what transformers computes on their dequantized
//! weights. `tests/real.sh` fetches the files and runs this:
//!
//! ```text
//! SKALD_TEST_REAL=DIRECTORY cargo test --test model real
//! ```
//!
//! Without the variable the tests are skipped. The expectations are in `../shared/gemma/real`, not here: what
//! is made from Gemma's weights is under its terms.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;

use crate::runner::{Runner, load, without_tokenizer};

/// Files of expectations.
const GEMMA: &str = "gemma3-270m.json";
const SMOLLM: &str = "smollm2.json";
/// Text for perplexities: fairy tales that no model here was made for.
const TALES: &str = include_str!("../../assets/fairy-tales/validation.txt");
/// Tokens of the text of which the perplexity is measured.
const TOKENS: usize = 3000;
/// Log-probabilities may differ by this.
const TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the file")]
struct Prompt {
    name: String,
    text: String,
    /// With the token that begins a text, if the model has one.
    #[serde(rename = "evaluated_ids")]
    ids: Vec<u32>,
    prompt_logprobs: Vec<f64>,
    argmax_each_position: Vec<u32>,
    greedy32: Vec<u32>,
    greedy32_text: String,
    greedy32_logprobs: Vec<f64>,
}

/// Reads a file of expectations.
fn expected(file: &str) -> Reference {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/gemma/real");
    let json = std::fs::read(path.join(file)).expect("the expectations in ../shared");
    serde_json::from_slice(&json).expect("JSON")
}

/// Returns the path of a real model, or says why the test is skipped.
fn real(file: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("SKALD_TEST_REAL");
    if directory.is_none() {
        eprintln!("skipped: SKALD_TEST_REAL=DIRECTORY is not set");
    }
    directory.map(|directory| PathBuf::from(directory).join(file))
}

fn gemma() -> Option<PathBuf> {
    real("gemma-3-270m-q4_k_m.gguf")
}

fn smollm() -> Option<PathBuf> {
    real("smollm2-135m-instruct-q4_1.gguf")
}

fn open(path: &Path) -> ModelFiles {
    let source: ModelSource = path.to_str().expect("a path").parse().expect("a model");
    source.fetch(false).expect("its files")
}

fn largest_difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max)
}

fn check_texts(path: &Path, reference: &str, splits_digits: bool) {
    let reference = expected(reference);
    let tokenizer = open(path).tokenizer;
    for Prompt {
        name, text, ids, ..
    } in &reference.prompts
    {
        // transformers' reader of GGUF drops the digit split of this pre-tokenizer, so its tokens of spaces before
        // digits are not those of the model's own tokenizer.
        if splits_digits && name == "long600" {
            assert_eq!(&tokenizer.decode(ids), text);
            continue;
        }
        let found = tokenizer.encode_prompt(text, true).expect("ids");
        assert_eq!(&found, ids, "{name}");
    }
    for prompt in &reference.prompts {
        let found = tokenizer.decode(&prompt.greedy32);
        assert_eq!(found, prompt.greedy32_text, "{}", prompt.name);
    }
}

fn check_numbers(path: &Path, reference: &str) {
    let reference = expected(reference);
    let model = load(&without_tokenizer(path), WeightDtype::F32);
    for prompt in &reference.prompts {
        let name = &prompt.name;
        let mut runner = Runner::new(&model, KvDtype::F32, prompt.ids.len() + 32);
        let (logprobs, argmax) = runner.score(&prompt.ids);
        let largest = largest_difference(&logprobs, &prompt.prompt_logprobs);
        assert!(largest < TOLERANCE, "{name}: {largest}");
        assert_eq!(argmax, prompt.argmax_each_position, "{name}");
        let (greedy, logprobs) = runner.greedy(argmax[argmax.len() - 1], 32);
        assert_eq!(greedy, prompt.greedy32, "{name}");
        let greedy_largest = largest_difference(&logprobs, &prompt.greedy32_logprobs[1..]);
        assert!(greedy_largest < TOLERANCE, "{name}: {greedy_largest}");
        eprintln!(
            "{name}: largest differences {largest:.1e} (prompt), {greedy_largest:.1e} (greedy)"
        );
    }
}

#[test]
fn real_gemma_computes_what_transformers_computes() {
    if let Some(path) = gemma() {
        check_numbers(&path, GEMMA);
    }
}

#[test]
fn real_smollm_computes_what_transformers_computes() {
    if let Some(path) = smollm() {
        check_numbers(&path, SMOLLM);
    }
}

#[test]
fn real_texts_have_the_tokens_of_transformers() {
    if let (Some(gemma), Some(smollm)) = (gemma(), smollm()) {
        check_texts(&gemma, GEMMA, false);
        check_texts(&smollm, SMOLLM, true);
    }
}

#[test]
fn real_models_lose_at_most_half_a_percent_of_perplexity_in_the_precision_of_auto() {
    for (name, path) in [
        ("Gemma 3 270M Q4_K_M", gemma()),
        ("SmolLM2 135M Q4_1", smollm()),
    ] {
        let Some(path) = path else { return };
        let files = open(&path);
        let perplexity = |dtype: WeightDtype, kv| {
            let model = load(&files, dtype);
            let mut ids = files.tokenizer.encode_prompt(TALES, false).expect("ids");
            ids.truncate(TOKENS);
            let (logprobs, _) = Runner::new(&model, kv, ids.len()).score(&ids);
            (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
        };
        let exact = perplexity(WeightDtype::F32, KvDtype::F32);
        eprintln!("{name}: perplexity {exact:.4} in f32");
        for dtype in [WeightDtype::Bf16, WeightDtype::Q8] {
            let found = perplexity(dtype, KvDtype::Bf16);
            let change = 100.0 * (found / exact - 1.0);
            let dtype_name = dtype.name();
            eprintln!("{name}: perplexity {found:.4} in {dtype_name} ({change:+.3} %)");
            // What `auto` takes for quantized weights.
            if dtype == WeightDtype::Bf16 {
                assert!(change < 0.5, "{name}: {change} %");
            }
        }
    }
}

/// Returns a line of the process's status, in MiB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = number
        .and_then(|number| number.parse().ok())
        .expect("a number");
    kib / 1024.0
}

#[test]
#[ignore = "measures the memory of the process, so it has to run alone"]
fn real_gemma_takes_little_more_memory_to_load_than_stays() {
    let Some(path) = gemma() else { return };
    let files = without_tokenizer(&path);
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let model = load(&files, WeightDtype::Q8);
    let (peak, stays) = (memory("VmHWM:"), memory("VmRSS:"));
    eprintln!(
        "peak {peak:.0} MiB, stays {stays:.0} MiB: {:.2}",
        peak / stays
    );
    assert!(peak < 1.3 * stays, "{peak} {stays}");
    drop(model);
}
