use std::time::SystemTime;

use super::testing::{history, key, open, put};
use super::*;
use crate::session::ForkedFrom;
use crate::session::history::NewHistory;

#[test]
fn every_allowed_name_has_its_own_directory() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    let longest = "x".repeat(SessionId::MAX_LENGTH);
    let names = [".", "..", "a", "a.session", "-", "a:b@c", longest.as_str()];
    for (n, name) in names.iter().enumerate() {
        put(&sessions, name, &[n as u32]);
    }
    for (n, name) in names.iter().enumerate() {
        let found = sessions.peek(&key(name)).unwrap().unwrap();
        assert_eq!(*found.tokens, [n as u32]);
    }
    assert_eq!(sessions.list(key("a").tenant).unwrap().len(), names.len());
    assert_eq!(sessions.count(key("a").tenant, None).unwrap(), names.len());
    assert_eq!(sessions.count(Tenant::ANONYMOUS, None).unwrap(), 0);
    assert_eq!(sessions.count_all().unwrap(), names.len());
}

#[test]
fn a_session_is_locked_by_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (open(dir.path()), open(dir.path()));
    let locked = here.lock(&key("a")).unwrap().unwrap();
    assert!(there.lock(&key("a")).unwrap().is_none());
    assert!(there.lock(&key("b")).unwrap().is_some());
    drop(locked);
    assert!(there.lock(&key("a")).unwrap().is_some());
}

#[test]
fn a_removed_session_can_be_created_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    put(&sessions, "a", &[1]);
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    assert!(SessionDir::remove(&locked).unwrap());
    // The old lock is still held, but no longer belongs to the session.
    let anew = sessions.lock(&key("a")).unwrap().unwrap();
    let found = sessions.read(&anew).unwrap();
    assert_eq!((found.history, found.lost), (None, false));
    assert!(!SessionDir::remove(&anew).unwrap());
    assert_eq!(
        entries(&sessions.tenant_dir(key("a").tenant))
            .unwrap()
            .len(),
        0
    );
}

/// Changes a byte of a history.
fn damage(sessions: &SessionDir, id: &str) -> PathBuf {
    let path = sessions.session_dir(&key(id)).join(HISTORY);
    let mut bytes = fs::read(&path).unwrap();
    bytes[60] ^= 1;
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn an_unreadable_history_is_set_aside_under_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    let lost = Found {
        history: None,
        lost: true,
    };
    for aside in ["history.corrupt", "history.2.corrupt"] {
        put(&sessions, "a", &[1, 2, 3]);
        let path = damage(&sessions, "a");
        assert_eq!(sessions.peek(&key("a")).unwrap(), None);
        assert!(path.exists());
        let locked = sessions.lock(&key("a")).unwrap().unwrap();
        // Every turn reports the loss until the session has a history again.
        assert_eq!(sessions.read(&locked).unwrap(), lost);
        assert_eq!(sessions.read(&locked).unwrap(), lost);
        assert!(path.with_file_name(aside).exists());
        drop(locked);
        assert_eq!(sessions.sweep(None).unwrap(), 0);
        let locked = sessions.lock(&key("a")).unwrap().unwrap();
        assert_eq!(sessions.read(&locked).unwrap(), lost);
        sessions.write(&locked, &history(&[4])).unwrap();
        assert!(!sessions.read(&locked).unwrap().lost);
        assert!(!path.with_file_name(LOST).exists());
    }
    // A deleted session is not a lost one.
    damage(&sessions, "a");
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    assert_eq!(sessions.read(&locked).unwrap(), lost);
    SessionDir::remove(&locked).unwrap();
    drop(locked);
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    assert!(!sessions.read(&locked).unwrap().lost);
}

#[test]
fn tokenizers_never_share_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (
        open(dir.path()),
        SessionDir::open(dir.path(), Fingerprint([2; 32])).unwrap(),
    );
    put(&one, "a", &[1]);
    let locked = one.lock(&key("a")).unwrap().unwrap();
    // The locks are different too.
    put(&two, "a", &[2]);
    drop(locked);
    for (sessions, token) in [(&one, 1), (&two, 2)] {
        let found = sessions.peek(&key("a")).unwrap().unwrap();
        assert_eq!(*found.tokens, [token]);
        assert_eq!(sessions.list(key("a").tenant).unwrap().len(), 1);
        assert_eq!(sessions.count_all().unwrap(), 1);
    }
}

#[test]
fn a_missing_directory_is_an_error_and_is_not_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(&dir.path().join("mounted"));
    put(&sessions, "a", &[1]);
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    let away = dir.path().join("away");
    fs::rename(dir.path().join("mounted"), &away).unwrap();
    let failures = [
        sessions.lock(&key("a")).map(drop),
        sessions.peek(&key("a")).map(drop),
        sessions.list(key("a").tenant).map(drop),
        sessions.count_all().map(drop),
        sessions.sweep(None).map(drop),
    ];
    for failure in failures {
        let error = failure.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let message = error.to_string();
        assert!(message.contains("is gone: it was removed"), "{message}");
    }
    let error = sessions.write(&locked, &history(&[1, 2])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!dir.path().join("mounted").exists());
    fs::rename(&away, dir.path().join("mounted")).unwrap();
    drop(locked);
    let found = sessions.peek(&key("a")).unwrap().unwrap();
    assert_eq!(*found.tokens, [1]);
}

#[test]
fn a_session_dated_in_the_future_is_not_swept_and_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    put(&sessions, "a", &[1]);
    let tomorrow = SystemTime::now() + Duration::from_secs(86400);
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    let dated = History {
        created: tomorrow,
        last_used: tomorrow,
        ..history(&[1])
    };
    sessions.write(&locked, &dated).unwrap();
    let path = sessions.session_dir(&key("a")).join(HISTORY);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(tomorrow).unwrap();
    drop(locked);
    let ttl = Some(Duration::from_secs(1));
    assert_eq!(sessions.sweep(ttl).unwrap(), 0);
    assert_eq!(sessions.count(key("a").tenant, ttl).unwrap(), 1);
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    let found = sessions.read(&locked).unwrap().history.unwrap();
    assert!(!found.has_expired(ttl));
    let next = NewHistory {
        created: Some(found.created),
        ..NewHistory::first([1, 2])
    }
    .used_now();
    assert!(next.last_used >= next.created);
}

#[test]
fn only_expired_sessions_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    for id in ["old", "new", "used"] {
        put(&sessions, id, &[1]);
    }
    let long_ago = SystemTime::now() - Duration::from_secs(100);
    let old = History {
        last_used: long_ago,
        ..history(&[1])
    };
    let locked = sessions.lock(&key("old")).unwrap().unwrap();
    sessions.write(&locked, &old).unwrap();
    let path = sessions.session_dir(&key("old")).join(HISTORY);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(long_ago).unwrap();
    // A locked session is not removed.
    assert_eq!(sessions.sweep(Some(Duration::from_secs(50))).unwrap(), 0);
    drop(locked);
    assert_eq!(sessions.sweep(None).unwrap(), 0);
    assert_eq!(sessions.sweep(Some(Duration::from_secs(50))).unwrap(), 1);
    assert_eq!(sessions.count_all().unwrap(), 2);
}

#[test]
fn the_origin_of_a_fork_is_kept_beside_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = open(dir.path());
    let from = |name: &str, at| {
        Some(ForkedFrom {
            id: SessionId::parse(name).unwrap(),
            at,
        })
    };
    let forked = NewHistory {
        forked_from: from("source", 2),
        ..NewHistory::first([1, 2])
    }
    .used_now();
    let locked = sessions.lock(&key("a")).unwrap().unwrap();
    sessions.write(&locked, &forked).unwrap();
    assert_eq!(sessions.read(&locked).unwrap().history, Some(forked));
    // What a server that knows no origins leaves: another session of the same name.
    let origin = locked.dir.join(ORIGIN);
    sessions.write(&locked, &history(&[3])).unwrap();
    assert!(origin.exists());
    assert_eq!(sessions.peek(&key("a")).unwrap().unwrap().forked_from, None);
    let again = NewHistory {
        forked_from: from("other", 1),
        ..NewHistory::first([1])
    }
    .used_now();
    sessions.write(&locked, &again).unwrap();
    assert_eq!(sessions.peek(&key("a")).unwrap(), Some(again));
    // A damaged one takes nothing else with it.
    fs::write(&origin, b"damaged").unwrap();
    let found = sessions.peek(&key("a")).unwrap().unwrap();
    assert_eq!((found.forked_from, &*found.tokens), (None, &[1][..]));
    assert!(SessionDir::remove(&locked).unwrap());
    assert!(!locked.dir.exists());
}
