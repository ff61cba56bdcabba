//! SIGKILL at random times under load, repeated on one directory.

use std::path::Path;

use crate::load::{Place, no_turn_is_lost};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_turn_is_lost_and_no_history_torn_by_kills() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path in UTF-8");
    let place = Place {
        // So little memory that sessions evict each other's KV blocks: 128 blocks.
        flags: &["--session-dir", path, "--kv-memory", "24MiB"],
        is_whole: &|_| nothing_is_set_aside(directory.path()),
    };
    no_turn_is_lost(&place).await;
}

/// Asserts that no file was set aside: after a kill, files are complete or do not exist.
fn nothing_is_set_aside(directory: &Path) {
    for file in files(directory) {
        let name = file.to_string_lossy();
        assert!(
            !name.ends_with(".corrupt") && !name.ends_with(".foreign"),
            "{name}"
        );
    }
}

/// Returns all files under a directory.
pub fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
