//! Checksums in a file's `ETag`.
//!
//! The hub uses the Git object id of a file in Git, and the SHA-256 of a large file. Other forms,
//! which some mirrors send, are ignored.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// Checks a file's content against its `ETag`.
///
/// # Errors
/// If the file can't be read.
pub(super) fn matches(etag: &str, path: &Path) -> io::Result<bool> {
    if !etag.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(true);
    }
    let mut contexts = match etag.len() {
        64 => vec![Context::new(&SHA256)],
        // A mirror without a Git repository uses the SHA-1 of the content alone.
        40 => vec![git_object(path)?, Context::new(&SHA1_FOR_LEGACY_USE_ONLY)],
        _ => return Ok(true),
    };
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        for context in &mut contexts {
            context.update(&buffer[..n]);
        }
    }
    let mut digests = contexts.into_iter().map(Context::finish);
    Ok(digests.any(|digest| hex(&digest).eq_ignore_ascii_case(etag)))
}

/// Returns the Git object id of a file: the hash of the object's kind and length, then its content.
fn git_object(path: &Path) -> io::Result<Context> {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    let header = format!("blob {}\0", path.metadata()?.len());
    context.update(header.as_bytes());
    Ok(context)
}

fn hex(digest: &Digest) -> String {
    let digits = "0123456789abcdef".as_bytes();
    let digit = |value: u8| char::from(digits[usize::from(value)]);
    let bytes = digest.as_ref().iter();
    bytes
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_that_is_a_hash_is_checked_and_no_other() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        for (etag, expected) in [
            // `git hash-object`, `sha1sum` and `sha256sum` of the file.
            ("ce013625030ba8dba906f756967f9e9ca394464a", true),
            ("f572d396fae9206628714fb2ce00f72e94f2258f", true),
            ("f572d396fae9206628714fb2ce00f72e94f22580", false),
            (
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                true,
            ),
            (
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be04",
                false,
            ),
            ("b1946ac92492d2347c6235b4d2611184", true),
            ("a-name-of-a-mirror", true),
        ] {
            assert_eq!(matches(etag, &path).unwrap(), expected, "{etag}");
        }
    }
}
