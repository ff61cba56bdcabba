//! Properties of damaged, foreign and unexpected files in a session directory; for fuzzers.
//!
//! Each function gets an empty directory, and panics if a property is violated.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use tokio::runtime::{Builder, Runtime};

use super::dir::Directory;
use super::history::{self, History, NewHistory};
use super::sealed::UNFINISHED;
use super::snapshots::{SnapshotConfig, Snapshots};
use super::store::{HeldSession, Store};
use super::{Fingerprint, IfBusy, SessionKey};
use crate::engine::EvictedBlock;
use crate::engine::blocks::BLOCK_SIZE;
use crate::kernels::kv::KvPart;
use crate::request::{SessionId, Tenant};

const FINGERPRINT: Fingerprint = Fingerprint([7; 32]);
const TOKENS: [u32; 3] = [1, 2, u32::MAX];
const BLOCK_BYTES: usize = 64;
/// Maximum files created from one input.
const NAMES: usize = 16;

fn wait<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));
    RUNTIME.block_on(work)
}

fn key() -> SessionKey {
    SessionKey {
        tenant: Tenant::ANONYMOUS,
        id: SessionId::parse("s").expect("a name"),
    }
}

fn hold(dir: &Path) -> HeldSession {
    let sessions = Directory::open(dir, FINGERPRINT).expect("a session directory");
    wait(sessions.hold(&key(), IfBusy::Error)).expect("nothing else holds it")
}

/// Writes a history, and returns it and its file.
fn written(dir: &Path) -> (History, PathBuf) {
    let held = hold(dir);
    let created = Some(UNIX_EPOCH + Duration::from_secs(1));
    let history = wait(held.hold.write(NewHistory {
        created,
        ..NewHistory::first(TOKENS)
    }))
    .expect("it is written");
    let mut files = files(dir).into_keys();
    let file = files.find(|file| file.ends_with("history"));
    (history, file.expect("the file of the history"))
}

/// Returns all files below a directory, with their contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

/// Checks that an intact file of any content is read as that history, or set aside.
pub(crate) fn history_of_content(dir: &Path, content: &[u8]) {
    let (_, file) = written(dir);
    let seal = history::seal(FINGERPRINT);
    seal.write(&file, content, false).expect("it is written");
    let expected = History::decode(content);
    if let Some(history) = &expected {
        assert_eq!(history.encode(), content);
    }
    check_read(dir, &file, expected.as_ref());
}

/// Checks that a history whose file `damage` may change is read unchanged, or set aside.
pub(crate) fn damaged_history(dir: &Path, damage: impl Fn(&Path)) {
    let (history, file) = written(dir);
    let before = fs::read(&file).expect("it is read");
    damage(&file);
    let is_whole = fs::read(&file).is_ok_and(|after| after == before);
    check_read(dir, &file, Some(&history).filter(|_| is_whole));
}

/// Checks that the session has this history, or is lost and its file was set aside, and that the next
/// turn can be stored either way.
fn check_read(dir: &Path, file: &Path, expected: Option<&History>) {
    let content = fs::read(file).expect("it is read");
    let held = hold(dir);
    assert_eq!(held.history.as_ref(), expected);
    assert_eq!(held.lost, expected.is_none());
    let aside = file.with_extension("corrupt");
    let aside = fs::read(aside).or_else(|_| fs::read(file.with_extension("foreign")));
    assert_eq!(aside.ok(), held.lost.then_some(content));
    wait(held.hold.write(NewHistory::first([9]))).expect("it is written");
    drop(held);
    let next = hold(dir);
    assert!(!next.lost);
    assert_eq!(
        next.history.map(|history| history.tokens),
        Some(Arc::from([9]))
    );
}

fn snapshots(dir: &Path) -> Arc<Snapshots> {
    let config = SnapshotConfig {
        model: FINGERPRINT,
        block_bytes: BLOCK_BYTES,
        windows: None,
        size: ByteSize::mib(1),
        shared_prefixes: false,
    };
    Snapshots::open(dir, config)
        .expect("a directory of blocks")
        .0
}

/// Checks that a block whose file `damage` may change is read unchanged, or is missing.
pub(crate) fn damaged_block(dir: &Path, damage: impl Fn(&Path)) {
    let before = snapshots(dir);
    let prefix = before.chain(Tenant::ANONYMOUS, &[3; BLOCK_SIZE]);
    let block = EvictedBlock {
        prefix: prefix[0],
        part: KvPart::Global,
        bytes: (0..BLOCK_BYTES as u8).collect(),
    };
    before.write(&block).expect("it is written");
    let mut all = files(&dir.join("kv")).into_iter();
    let (file, whole) = all.next().expect("the file of the block");
    damage(&file);
    let is_whole = fs::read(&file).is_ok_and(|after| after == whole);
    let after = snapshots(dir);
    let read = after.read(KvPart::Global, prefix[0]);
    assert_eq!(read, is_whole.then(|| block.bytes.clone()));
    assert_eq!(after.has(KvPart::Global, prefix[0]), is_whole);
    after.write(&block).expect("it is written");
    let read = after.read(KvPart::Global, prefix[0]);
    assert_eq!(read, Some(block.bytes));
}

/// Checks that unrelated files in the directory are not deleted, and that sessions and blocks work
/// beside them. `names` are the paths of the files, one per line.
pub(crate) fn foreign_names(dir: &Path, names: &[u8]) {
    for name in names.split(|&byte| byte == b'\n').take(NAMES) {
        let name = String::from_utf8_lossy(name);
        let parts = name
            .split('/')
            .filter(|part| !["", ".", ".."].contains(part));
        let parts = parts.map(|part| part.replace('\0', "0"));
        let path: PathBuf = parts.take(6).filter(|part| part.len() < 200).collect();
        let path = dir.join(path);
        // Fails if a file is where a directory is needed.
        let _ = path.parent().map(fs::create_dir_all);
        let _ = fs::write(&path, name.as_bytes());
    }
    let contents = |dir: &Path| {
        let mut contents: Vec<Vec<u8>> = files(dir)
            .into_iter()
            .filter(|(path, _)| !is_ours(path))
            .map(|(_, content)| content)
            .collect();
        contents.sort();
        contents
    };
    let before = contents(dir);
    let Ok(sessions) = Directory::open(dir, FINGERPRINT) else {
        // A file is where a directory is needed.
        return;
    };
    let _ = wait(sessions.list(Tenant::ANONYMOUS)).expect("a list");
    wait(sessions.count()).expect("a number");
    wait(sessions.sweep(Some(Duration::from_secs(3600)))).expect("a number");
    if !dir.join("kv").is_file() {
        snapshots(dir);
    }
    let after = contents(dir);
    for content in before {
        assert!(
            after.contains(&content),
            "{:?}",
            String::from_utf8_lossy(&content)
        );
    }
}

/// Returns whether Skald may delete a file: a lock, a marker or an unfinished file, never a history or
/// a block.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "lock" || name == "lost" || name.ends_with(UNFINISHED) || name.starts_with("probe.")
}
