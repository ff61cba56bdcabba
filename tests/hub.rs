//! Models are fetched from a hub, once and whole, and served from the cache when there is none.
//! The hub is a stand-in that speaks as much of the protocol as a client needs.

mod tiny_model;

#[path = "hub/stand_in.rs"]
mod stand_in;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use skald::model::ModelFiles;
use skald::model::hub::HubSettings;
use tempfile::TempDir;

use stand_in::{Fault, Files, Repository, StandIn};

const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";

/// A hub with the tiny model as `org/tiny`, and an empty cache.
struct Fixture {
    hub: StandIn,
    cache: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with(tiny_model::files())
    }

    fn with(files: Files) -> Self {
        let hub = StandIn::start();
        hub.publish("org/tiny", Repository::new(FIRST, files));
        Self {
            hub,
            cache: TempDir::new().unwrap(),
        }
    }

    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.hub.endpoint(),
            token: Some("hf_right".to_owned()),
            cache_dir: self.cache.path().to_owned(),
            offline: false,
            answer_within: Duration::from_secs(10),
        }
    }

    fn pull(&self) -> Result<PathBuf, String> {
        pull(&self.settings(), "org/tiny", None)
    }

    fn reference(&self, revision: &str) -> Option<String> {
        let path = format!("models--org--tiny/refs/{revision}");
        std::fs::read_to_string(self.cache.path().join(path)).ok()
    }
}

fn pull(settings: &HubSettings, id: &str, revision: Option<&str>) -> Result<PathBuf, String> {
    let pulled = settings.pull(id, revision, false);
    pulled.map_err(|error| error.to_string())
}

/// The tiny model with other values, so that a later commit is another model.
fn other_files() -> Files {
    let mut files = tiny_model::files();
    let weights = tiny_model::tensors("transformer.", Dtype::F16);
    files.insert(
        "model.safetensors".to_owned(),
        tiny_model::safetensors(&weights),
    );
    files
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn assert_whole(snapshot: &Path) {
    let files = ModelFiles::open("org/tiny", snapshot).unwrap();
    files.checkpoint.validate(&files.config).unwrap();
}

/// Fails unless the message has all the words.
fn assert_names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn only_files_that_are_needed_are_fetched_and_only_once() {
    let mut files = tiny_model::files();
    for (name, content) in [
        ("generation_config.json", r#"{"temperature": 0.5}"#),
        ("tokenizer_config.json", "{}"),
        ("README.md", "# tiny"),
        ("vocab.json", "{}"),
        ("merges.txt", ""),
        ("pytorch_model.bin", "pickled"),
        ("onnx/config.json", "{}"),
    ] {
        files.insert(name.to_owned(), content.as_bytes().to_vec());
    }
    let fixture = Fixture::with(files);
    let snapshot = fixture.pull().unwrap();
    let needed = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&snapshot), needed);
    assert_eq!(fixture.hub.fetched(), needed);
    assert_whole(&snapshot);
    // The layout all Hugging Face tools share.
    let expected = format!("models--org--tiny/snapshots/{FIRST}");
    assert_eq!(snapshot, fixture.cache.path().join(expected));
    assert_eq!(fixture.reference("main").as_deref(), Some(FIRST));

    fixture.hub.forget_requests();
    assert_eq!(fixture.pull().unwrap(), snapshot);
    assert_eq!(
        fixture.hub.requests(),
        ["GET /api/models/org/tiny/revision/main"]
    );
}

#[test]
fn shards_are_fetched_as_their_index_names_them() {
    let mut files = tiny_model::files();
    files.remove("model.safetensors");
    files.extend(tiny_model::shards(&tiny_model::tensors("", Dtype::BF16)));
    files.insert(
        "model-00003-of-00002.safetensors".to_owned(),
        b"not named".to_vec(),
    );
    let fixture = Fixture::with(files);
    let snapshot = fixture.pull().unwrap();
    assert_whole(&snapshot);
    assert!(!snapshot.join("model-00003-of-00002.safetensors").exists());

    // A snapshot that lacks a shard is not one to use offline.
    let offline = HubSettings {
        offline: true,
        ..fixture.settings()
    };
    assert_eq!(pull(&offline, "org/tiny", None).unwrap(), snapshot);
    std::fs::remove_file(snapshot.join("model-00002-of-00002.safetensors")).unwrap();
    pull(&offline, "org/tiny", None).unwrap_err();
}

#[test]
fn an_old_repository_has_vocab_and_merges() {
    let mut files = tiny_model::files();
    files.remove("tokenizer.json");
    let vocab = r#"{"a": 0, "b": 1, "ab": 2, "c": 3, "<|endoftext|>": 4}"#;
    files.insert("vocab.json".to_owned(), vocab.into());
    files.insert("merges.txt".to_owned(), b"#version: 0.2\na b\n".to_vec());
    assert_whole(&Fixture::with(files).pull().unwrap());
}

#[test]
fn a_model_may_have_no_organization() {
    let fixture = Fixture::new();
    fixture
        .hub
        .publish("tiny", Repository::new(FIRST, other_files()));
    let snapshot = pull(&fixture.settings(), "tiny", None).unwrap();
    assert_whole(&snapshot);
    assert!(snapshot.starts_with(fixture.cache.path().join("models--tiny")));
}

#[test]
fn a_revision_is_a_model_of_its_own() {
    let fixture = Fixture::new();
    let repository = Repository::new(FIRST, tiny_model::files());
    let repository = repository.commit("refs/pr/1", SECOND, other_files());
    fixture.hub.publish("org/tiny", repository);
    let settings = fixture.settings();
    let main = pull(&settings, "org/tiny", None).unwrap();
    let request = pull(&settings, "org/tiny", Some("refs/pr/1")).unwrap();
    assert!(main.ends_with(FIRST) && request.ends_with(SECOND));
    assert_eq!(fixture.reference("refs/pr/1").as_deref(), Some(SECOND));
    assert_whole(&request);

    // A commit never changes: what the cache has of it needs no question.
    fixture.hub.forget_requests();
    assert_eq!(pull(&settings, "org/tiny", Some(SECOND)).unwrap(), request);
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn a_branch_that_moved_is_fetched_anew_where_files_differ() {
    let fixture = Fixture::new();
    fixture.pull().unwrap();
    fixture
        .hub
        .publish("org/tiny", Repository::new(SECOND, other_files()));
    fixture.hub.forget_requests();
    let snapshot = fixture.pull().unwrap();
    assert!(snapshot.ends_with(SECOND));
    assert_whole(&snapshot);
    assert_eq!(fixture.hub.fetched(), ["model.safetensors"]);
    assert_eq!(fixture.reference("main").as_deref(), Some(SECOND));
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let fixture = Fixture::new();
    let endpoint = fixture.hub.endpoint();
    let message = pull(&fixture.settings(), "org/huge", None).unwrap_err();
    assert_eq!(message, format!("{endpoint} has no model `org/huge`"));
    let message = pull(&fixture.settings(), "org/tiny", Some("v9")).unwrap_err();
    assert_names(&message, &["`org/tiny`", "no revision `v9`", &endpoint]);
}

#[test]
fn a_repository_without_safetensors_is_refused_before_anything_is_fetched() {
    let mut files = tiny_model::files();
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".to_owned(), b"pickled".to_vec());
    let fixture = Fixture::with(files);
    let message = fixture.pull().unwrap_err();
    assert_names(
        &message,
        &["org/tiny@main", "only pytorch_model.bin", "save_pretrained"],
    );
    assert!(fixture.hub.fetched().is_empty());
}

#[test]
fn a_gated_model_needs_the_right_token() {
    let fixture = Fixture::new();
    let repository = Repository::new(FIRST, tiny_model::files());
    fixture
        .hub
        .publish("org/tiny", repository.gated("hf_right"));
    let with_token = |token: &str| HubSettings {
        token: Some(token.to_owned()),
        ..fixture.settings()
    };
    let message = pull(&with_token("hf_wrong"), "org/tiny", None).unwrap_err();
    assert_names(&message, &["`org/tiny`", "Invalid credentials", "HF_TOKEN"]);
    let message = pull(&with_token("hf_stranger"), "org/tiny", None).unwrap_err();
    let terms = format!("{}/org/tiny", fixture.hub.endpoint());
    assert_names(&message, &["not in the authorized list", &terms]);
    assert!(!message.contains("hf_stranger"), "a token is a secret");
    assert_whole(&pull(&with_token("hf_right"), "org/tiny", None).unwrap());
}

#[test]
fn offline_only_the_cache_is_used() {
    let fixture = Fixture::new();
    let offline = HubSettings {
        offline: true,
        ..fixture.settings()
    };
    let message = pull(&offline, "org/tiny", None).unwrap_err();
    assert_names(
        &message,
        &["`org/tiny@main`", "not in the cache", "HF_HUB_OFFLINE"],
    );
    assert!(fixture.hub.requests().is_empty());

    let snapshot = fixture.pull().unwrap();
    fixture.hub.forget_requests();
    assert_eq!(pull(&offline, "org/tiny", None).unwrap(), snapshot);
    assert_eq!(pull(&offline, "org/tiny", Some(FIRST)).unwrap(), snapshot);
    pull(&offline, "org/tiny", Some("v1")).unwrap_err();
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn a_hub_that_is_gone_leaves_what_is_in_the_cache() {
    let mut fixture = Fixture::new();
    let settings = fixture.settings();
    let snapshot = fixture.pull().unwrap();
    fixture.hub.stop();
    assert_eq!(pull(&settings, "org/tiny", None).unwrap(), snapshot);
    let message = pull(&settings, "org/other", None).unwrap_err();
    assert_names(
        &message,
        &[&settings.endpoint, "`org/other@main`", "refused"],
    );
}

#[test]
fn a_hub_that_does_not_answer_is_not_waited_for_without_end() {
    let fixture = Fixture::new();
    let snapshot = fixture.pull().unwrap();
    fixture.hub.break_with(Fault::Silent);
    let settings = HubSettings {
        answer_within: Duration::from_millis(200),
        ..fixture.settings()
    };
    let start = Instant::now();
    assert_eq!(pull(&settings, "org/tiny", None).unwrap(), snapshot);
    let message = pull(&settings, "org/other", None).unwrap_err();
    assert_names(&message, &["none within 200ms"]);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_hub_that_fails_or_is_no_hub_leaves_what_is_in_the_cache() {
    for (fault, words) in [
        (Fault::Status(503), "503"),
        (Fault::WebPage, "expected value"),
    ] {
        let fixture = Fixture::new();
        let snapshot = fixture.pull().unwrap();
        fixture.hub.break_with(fault);
        assert_eq!(fixture.pull().unwrap(), snapshot);
        let message = pull(&fixture.settings(), "org/other", None).unwrap_err();
        assert_names(&message, &["no usable answer", words]);
    }
}

#[test]
fn a_download_that_breaks_off_never_becomes_a_model() {
    for fault in [Fault::CutShort, Fault::ErrorAsFile] {
        let fixture = Fixture::new();
        fixture.hub.break_with(fault);
        let message = fixture.pull().unwrap_err();
        assert_names(&message, &["org/tiny@main"]);
        assert_eq!(fixture.reference("main"), None);

        // A later attempt does not trust the remains.
        fixture.hub.mend();
        assert_whole(&fixture.pull().unwrap());

        // With an older commit in the cache, that one is used, and stays what the name means.
        fixture
            .hub
            .publish("org/tiny", Repository::new(SECOND, other_files()));
        fixture.hub.break_with(fault);
        assert!(fixture.pull().unwrap().ends_with(FIRST));
        assert_eq!(fixture.reference("main").as_deref(), Some(FIRST));
        fixture.hub.mend();
        let snapshot = fixture.pull().unwrap();
        assert!(snapshot.ends_with(SECOND));
        assert_whole(&snapshot);
    }
}

#[tokio::test]
async fn a_model_can_be_fetched_where_an_async_runtime_runs() {
    let fixture = Fixture::new();
    assert_whole(&fixture.pull().unwrap());
    let settings = fixture.settings();
    let elsewhere = tokio::task::spawn_blocking(move || pull(&settings, "org/tiny", None));
    assert_whole(&elsewhere.await.unwrap().unwrap());
}
