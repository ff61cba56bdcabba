//! Models are fetched from a hub, once and completely, and loaded from the cache when the hub is not
//! available. The hub is a stand-in that implements the part of the protocol that clients need.

mod gguf;
mod stand_in;

use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::Dtype;
use skald::checkpoint::ModelFiles;
use skald::checkpoint::hub::{HubSettings, HubToken};
use tempfile::TempDir;

use crate::support::tiny_model;

use stand_in::{BREAKS_AFTER, Fault, Files, Repository, StandIn, git_object, sha256};

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
            token: Some(HubToken::from("hf_right")),
            cache_dir: self.cache.path().to_owned(),
            offline: false,
            // However slow the machine is: no test waits this long.
            answer_within: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
        }
    }

    /// Returns the path of a file in the cache of the model.
    fn cached(&self, path: &str) -> PathBuf {
        self.cache.path().join("models--org--tiny").join(path)
    }

    /// Returns the path of the blob of the model's weights.
    fn weights(&self) -> PathBuf {
        let weights = &tiny_model::files()["model.safetensors"];
        self.cached(&format!("blobs/{}", sha256(weights)))
    }

    /// Writes a partial download of the weights with these bytes.
    fn leave_partial(&self, bytes: &[u8]) {
        let weights = self.weights();
        std::fs::create_dir_all(weights.parent().unwrap()).unwrap();
        std::fs::write(weights.with_extension("incomplete"), bytes).unwrap();
    }

    fn pull(&self) -> Result<PathBuf, String> {
        pull(&self.settings(), "org/tiny", None)
    }

    fn reference(&self, revision: &str) -> Option<String> {
        std::fs::read_to_string(self.cached(&format!("refs/{revision}"))).ok()
    }
}

fn pull(settings: &HubSettings, id: &str, revision: Option<&str>) -> Result<PathBuf, String> {
    let pulled = settings.pull(id, revision, None, false);
    pulled.map_err(|error| error.to_string())
}

/// Returns the tiny model with other values, so that a later commit is another model.
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

/// Asserts that the message contains all the words.
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
    assert_eq!(snapshot, fixture.cached(&format!("snapshots/{FIRST}")));

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

    // A snapshot that lacks a shard can't be used offline.
    let offline = HubSettings {
        offline: true,
        ..fixture.settings()
    };
    assert_eq!(pull(&offline, "org/tiny", None).unwrap(), snapshot);
    std::fs::remove_file(snapshot.join("model-00002-of-00002.safetensors")).unwrap();
    let message = pull(&offline, "org/tiny", None).unwrap_err();
    assert_names(&message, &["`org/tiny@main`", "not in the cache"]);
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

    // A commit never changes, so cached files of it need no request.
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
    assert_eq!(message, format!("model `org/huge` not found at {endpoint}"));
    let message = pull(&fixture.settings(), "org/tiny", Some("v9")).unwrap_err();
    assert_names(&message, &["`org/tiny`", "revision `v9`", &endpoint]);
}

#[test]
fn a_repository_without_weights_is_refused_before_anything_is_fetched() {
    let mut files = tiny_model::files();
    files.remove("model.safetensors");
    files.insert("tf_model.h5".to_owned(), b"hierarchical".to_vec());
    let fixture = Fixture::with(files);
    let message = fixture.pull().unwrap_err();
    assert_names(
        &message,
        &["org/tiny@main", "only tf_model.h5", "save_pretrained"],
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
        token: Some(HubToken::from(token)),
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
    let message = pull(&offline, "org/tiny", Some("v1")).unwrap_err();
    assert_names(&message, &["`org/tiny@v1`", "not in the cache"]);
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn a_hub_that_asks_for_patience_is_quoted_and_its_password_is_not_shown() {
    let fixture = Fixture::new();
    fixture.hub.break_with(Fault::Busy);
    let endpoint = fixture
        .hub
        .endpoint()
        .replace("http://", "http://ann:s3cret@");
    let settings = HubSettings {
        endpoint,
        answer_within: Duration::from_secs(10),
        ..fixture.settings()
    };
    // The hub asks for more time than the limit, so there is no retry.
    let message = pull(&settings, "org/tiny", None).unwrap_err();
    assert_names(&message, &["429", "slow down"]);
    assert!(!message.contains("s3cret"), "{message}");
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
    assert_eq!(pull(&settings, "org/tiny", None).unwrap(), snapshot);
    let message = pull(&settings, "org/other", None).unwrap_err();
    assert_names(&message, &["no response within 200ms"]);
}

#[test]
fn a_hub_that_fails_or_is_not_a_hub_leaves_the_cache_usable() {
    for (fault, words) in [
        (Fault::Status(503), "503"),
        (Fault::WebPage, "expected value"),
        (Fault::Circle, "more than 10 redirects"),
    ] {
        let fixture = Fixture::new();
        let snapshot = fixture.pull().unwrap();
        fixture.hub.break_with(fault);
        assert_eq!(fixture.pull().unwrap(), snapshot);
        let message = pull(&fixture.settings(), "org/other", None).unwrap_err();
        assert_names(&message, &["can't fetch", words]);
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

        // A later attempt does not trust the partial file.
        fixture.hub.mend();
        assert_whole(&fixture.pull().unwrap());

        // With an older commit in the cache, that one is used, and the reference stays.
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

#[test]
fn the_cache_has_the_layout_that_all_hugging_face_tools_share() {
    let files = tiny_model::files();
    let fixture = Fixture::new();
    let snapshot = fixture.pull().unwrap();
    assert_eq!(fixture.reference("main").as_deref(), Some(FIRST));
    let mut blobs: Vec<String> = names(&snapshot)
        .into_iter()
        .map(|name| {
            let content = &files[&name];
            let etag = if name.ends_with(".safetensors") {
                sha256(content)
            } else {
                git_object(content)
            };
            let link = std::fs::read_link(snapshot.join(name)).unwrap();
            assert_eq!(link, Path::new(&format!("../../blobs/{etag}")));
            etag
        })
        .collect();
    blobs.sort();
    assert_eq!(names(&fixture.cached("blobs")), blobs);
    assert_eq!(names(&fixture.cached("")), ["blobs", "refs", "snapshots"]);
    let locks = fixture.cache.path().join(".locks/models--org--tiny");
    let lock = |etag: &String| format!("{etag}.lock");
    assert_eq!(names(&locks), blobs.iter().map(lock).collect::<Vec<_>>());
}

#[test]
fn a_connection_that_breaks_is_resumed_where_it_broke() {
    let fixture = Fixture::new();
    fixture.hub.break_with(Fault::BreaksOften);
    assert_whole(&fixture.pull().unwrap());
    let size = tiny_model::files()["model.safetensors"].len();
    let requests = fixture.hub.content_requests();
    let asked: Vec<usize> = requests.iter().map(|request| request.from).collect();
    assert!(
        asked.len() > 3,
        "it breaks off more often than a request is repeated"
    );
    assert!(asked.is_sorted(), "{asked:?}");
    assert!(*asked.last().unwrap() + BREAKS_AFTER >= size);
}

#[test]
fn a_later_process_resumes_a_download() {
    let weights = &tiny_model::files()["model.safetensors"];
    let half = weights.len() / 2;
    let whole = weights.len();
    let too_long = [&weights[..], b"more"].concat();
    let mut wrong = weights[..half].to_vec();
    wrong[0] ^= 1;
    for (left, fault, asked) in [
        (&weights[..half], None, vec![half]),
        (&weights[..], None, vec![]),
        // The hub sends more than was requested.
        (&weights[..half], Some(Fault::WithoutRanges), vec![half]),
        // The partial file is not the beginning of this file.
        (&wrong, None, vec![half, 0]),
        (&too_long, None, vec![0]),
    ] {
        let fixture = Fixture::new();
        fixture.leave_partial(left);
        if let Some(fault) = fault {
            fixture.hub.break_with(fault);
        }
        assert_whole(&fixture.pull().unwrap());
        let requests = fixture.hub.content_requests();
        let requests: Vec<usize> = requests.iter().map(|request| request.from).collect();
        assert_eq!(
            requests,
            asked,
            "{} of {whole} bytes, {fault:?}",
            left.len()
        );
        assert_eq!(&std::fs::read(fixture.weights()).unwrap(), weights);
        assert!(!fixture.weights().with_extension("incomplete").exists());
    }
}

#[test]
fn content_that_is_not_what_the_hub_announced_never_becomes_a_model() {
    for (fault, reason) in [
        (Fault::WrongByte, "checksum mismatch"),
        (Fault::TooLong, "bytes or more, expected"),
    ] {
        let fixture = Fixture::new();
        fixture.hub.break_with(fault);
        let message = fixture.pull().unwrap_err();
        assert_names(&message, &["model.safetensors", "org/tiny@main", reason]);
        assert!(!fixture.weights().exists());
        assert_eq!(fixture.reference("main"), None);
        fixture.hub.mend();
        assert_whole(&fixture.pull().unwrap());
    }
}

#[test]
fn only_the_hub_itself_is_shown_the_token() {
    let fixture = Fixture::new();
    let repository = Repository::new(FIRST, tiny_model::files());
    fixture
        .hub
        .publish("org/tiny", repository.gated("hf_right"));
    assert_whole(&fixture.pull().unwrap());
    let requests = fixture.hub.content_requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| !request.authorized));
}

#[test]
fn a_model_that_was_renamed_is_found_under_its_old_name() {
    let fixture = Fixture::new();
    fixture.hub.rename("org/old", "org/tiny");
    let snapshot = pull(&fixture.settings(), "org/old", None).unwrap();
    assert_whole(&snapshot);
    assert!(snapshot.starts_with(fixture.cache.path().join("models--org--old")));
}

#[test]
fn a_token_that_is_none_is_refused_before_anything_is_sent() {
    let fixture = Fixture::new();
    let settings = HubSettings {
        token: Some(HubToken::from("hf_\nX-Injected: 1")),
        ..fixture.settings()
    };
    let message = pull(&settings, "org/tiny", None).unwrap_err();
    assert_names(&message, &["HF_TOKEN", "not valid"]);
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn an_endpoint_that_is_not_an_address_is_named() {
    let fixture = Fixture::new();
    for endpoint in ["huggingface.co", "ftp://hub", ""] {
        let settings = HubSettings {
            endpoint: endpoint.to_owned(),
            ..fixture.settings()
        };
        let message = pull(&settings, "org/tiny", None).unwrap_err();
        assert_names(&message, &["HF_ENDPOINT", endpoint, "not a valid address"]);
    }
}

/// Processes on one cache, with the settings that all of Hugging Face's tools read.
#[test]
fn processes_that_fetch_the_same_model_at_once_fetch_it_once() {
    let fixture = Fixture::new();
    let home = fixture.cache.path();
    let pull = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_skald"))
            .args(["pull", "org/tiny"])
            .env("HF_ENDPOINT", fixture.hub.endpoint())
            .env("HF_HOME", home)
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..4).map(|_| pull()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(Path::new(printed.trim()).starts_with(home.join("hub/models--org--tiny")));
        assert_whole(Path::new(printed.trim()));
    }
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(fixture.hub.fetched(), files);
}

#[tokio::test]
async fn a_model_can_be_fetched_where_an_async_runtime_runs() {
    let fixture = Fixture::new();
    assert_whole(&fixture.pull().unwrap());
    let settings = fixture.settings();
    let elsewhere = tokio::task::spawn_blocking(move || pull(&settings, "org/tiny", None));
    assert_whole(&elsewhere.await.unwrap().unwrap());
}
