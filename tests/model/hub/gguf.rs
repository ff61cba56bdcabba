//! Models in GGUF: of a repository with many, one is fetched.

use std::path::Path;

use skald::checkpoint::gguf::GgufChoice;
use skald::checkpoint::{ModelFiles, ModelSource};

use super::{FIRST, Files, Fixture, HubSettings, assert_names, names};

/// Returns a repository as publishers of quantized models make them.
fn files() -> Files {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma/gguf/qwen2-f32.gguf");
    let model = std::fs::read(model).expect("the fixture");
    let mut files = Files::new();
    for name in [
        "README.md",
        "mmproj-tiny-F32.gguf",
        "tiny-Q8_0.gguf",
        "imatrix.gguf",
    ] {
        files.insert(name.to_owned(), name.as_bytes().to_vec());
    }
    files.insert("tiny-F32.gguf".to_owned(), model);
    for part in 1..=2 {
        let name = format!("big/tiny-Q6_K-0000{part}-of-00002.gguf");
        files.insert(name.clone(), name.into_bytes());
    }
    files
}

/// Fetches what the text of `--model` names.
fn pull(settings: &HubSettings, text: &str) -> Result<std::path::PathBuf, String> {
    let source: ModelSource = text.parse().map_err(|e| format!("{e}"))?;
    let ModelSource::Hub { id, revision, gguf } = source else {
        panic!("{text} is not of the hub")
    };
    let pulled = settings.pull(&id, revision.as_deref(), gguf.as_ref(), false);
    pulled.map_err(|error| error.to_string())
}

#[test]
fn a_quantization_names_one_file_and_only_that_is_fetched() {
    let fixture = Fixture::with(files());
    let settings = fixture.settings();
    let snapshot = fixture.cached(&format!("snapshots/{FIRST}"));
    let model = pull(&settings, "org/tiny:f32").unwrap();
    assert_eq!(model, snapshot.join("tiny-F32.gguf"));
    assert_eq!(fixture.hub.fetched(), ["tiny-F32.gguf"]);
    let files = ModelFiles::open("org/tiny:f32", &model).unwrap();
    files.checkpoint.validate(&files.config).unwrap();

    let parts = [
        "tiny-Q6_K-00001-of-00002.gguf",
        "tiny-Q6_K-00002-of-00002.gguf",
    ];
    fixture.hub.forget_requests();
    for text in [
        "org/tiny:Q6_K@main",
        "org/tiny/big/tiny-Q6_K-00002-of-00002.gguf",
    ] {
        let model = pull(&settings, text).unwrap();
        assert_eq!(model, snapshot.join("big").join(parts[0]), "{text}");
    }
    assert_eq!(names(&snapshot.join("big")), parts);
    assert_eq!(fixture.hub.fetched().len(), 2);
}

#[test]
fn a_choice_that_names_no_model_or_several_lists_them() {
    let fixture = Fixture::with(files());
    let settings = fixture.settings();
    let all = "big/tiny-Q6_K-00001-of-00002.gguf, tiny-F32.gguf, tiny-Q8_0.gguf";
    let message = pull(&settings, "org/tiny").unwrap_err();
    assert_names(
        &message,
        &["org/tiny@main has several", all, "`org/tiny:QUANTIZATION`"],
    );
    let message = pull(&settings, "org/tiny:Q4_K_M").unwrap_err();
    assert_names(&message, &["`Q4_K_M`", all]);
    let message = pull(&settings, "org/tiny/other.gguf").unwrap_err();
    assert_names(&message, &["no file `other.gguf`", all]);
    assert!(fixture.hub.fetched().is_empty());
}

#[test]
fn a_cached_model_is_served_without_the_hub_and_no_other() {
    let mut fixture = Fixture::with(files());
    let settings = fixture.settings();
    let model = pull(&settings, "org/tiny:Q8_0").unwrap();
    fixture.hub.stop();
    assert_eq!(pull(&settings, "org/tiny:q8_0").unwrap(), model);
    let offline = HubSettings {
        offline: true,
        ..settings
    };
    assert_eq!(pull(&offline, "org/tiny/tiny-Q8_0.gguf").unwrap(), model);
    // The only one there is.
    assert_eq!(pull(&offline, "org/tiny").unwrap(), model);
    let message = pull(&offline, "org/tiny:F32").unwrap_err();
    assert_names(&message, &["`org/tiny@main`", "is not in the cache"]);
}

#[test]
fn a_repository_with_one_model_needs_no_choice_and_other_weights_come_first() {
    let mut one = files();
    one.retain(|name, _| name == "tiny-F32.gguf" || name == "README.md");
    let fixture = Fixture::with(one);
    let model = pull(&fixture.settings(), "org/tiny").unwrap();
    assert!(model.ends_with("tiny-F32.gguf"));

    let mut both = crate::support::tiny_model::files();
    both.insert("tiny-Q8_0.gguf".to_owned(), b"GGUF".to_vec());
    let fixture = Fixture::with(both);
    let snapshot = pull(&fixture.settings(), "org/tiny").unwrap();
    assert!(snapshot.is_dir());
    let choice = GgufChoice::Quantization("Q8_0".to_owned());
    let model = fixture
        .settings()
        .pull("org/tiny", None, Some(&choice), false);
    assert!(model.unwrap().ends_with("tiny-Q8_0.gguf"));
}
