//! A file format that detects damage: a header with kind, fingerprint and length, and a checksum at
//! the end.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | the kind of file: `SKALDSES`, `SKALDORG`, `SKALDKVB` |
//! | 4 | version of the format; all numbers are little endian |
//! | 4 | zero |
//! | 32 | fingerprint of the tokenizer or model that the content depends on |
//! | 8 | length of the content |
//! | … | the content |
//! | 32 | BLAKE3 of everything before |
//!
//! A file is written to a temporary name and renamed, so a reader finds either the old or the new
//! file, never a part. A file that fails the check is set aside under a new name: it must not be
//! deleted, and must not replace another file.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::regular_file;

/// Extension of a file that is being written.
pub(super) const UNFINISHED: &str = "tmp";
const HEADER: usize = 56;
const CHECKSUM: usize = 32;
/// Size of the largest file that is read, in bytes: far above any history or block.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Bytes of a file other than its content.
pub(super) const OVERHEAD: usize = HEADER + CHECKSUM;

/// The identity of the tokenizer or model without which the content of a file is meaningless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// Formats the first 8 bytes, for paths. Files have all 32.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first_chunk().copied().unwrap_or_default();
        write!(f, "{:016x}", u64::from_be_bytes(first))
    }
}

/// The header fields that identify a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    pub kind: [u8; 8],
    pub version: u32,
    pub fingerprint: Fingerprint,
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is incomplete, or its bytes have changed.
    #[error("damaged file: {0}")]
    Corrupt(&'static str),
    /// The file is intact, but is not the one expected here.
    #[error("foreign file: {0}")]
    Foreign(&'static str),
}

impl Seal {
    /// Writes a file atomically. If `durable`, the file is synced to the disk when this returns.
    pub fn write(&self, path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
        let unfinished = unfinished(path);
        let written = self
            .write_to(&unfinished, content, durable)
            .and_then(|()| fs::rename(&unfinished, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        match path.parent() {
            Some(parent) if durable => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }

    fn write_to(&self, path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&self.kind);
        header.extend_from_slice(&self.version.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&self.fingerprint.0);
        header.extend_from_slice(&(content.len() as u64).to_le_bytes());
        let mut checksum = blake3::Hasher::new();
        checksum.update(&header).update(content);
        let mut file = File::create(path)?;
        file.write_all(&header)?;
        file.write_all(content)?;
        file.write_all(checksum.finalize().as_bytes())?;
        if durable { file.sync_all() } else { Ok(()) }
    }

    /// Reads the content of a file; `None` if the file does not exist.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
        let mut bytes = match regular_file::read(path, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if regular_file::is_another_kind(&error) => {
                return Err(Unreadable::Foreign("not a regular file"));
            }
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                return Err(Unreadable::Corrupt("too large"));
            }
            Err(error) => return Err(error.into()),
        };
        let length = self.check(&bytes)?;
        bytes.truncate(HEADER + length);
        bytes.drain(..HEADER);
        Ok(Some(bytes))
    }

    /// Returns whether a file's header has this kind and fingerprint. The rest is not checked.
    pub fn begins(&self, path: &Path) -> io::Result<bool> {
        let mut header = Vec::with_capacity(HEADER);
        let file = regular_file::open(path)?;
        file.take(HEADER as u64).read_to_end(&mut header)?;
        let (kind, fingerprint) = (header.get(..8), header.get(16..48));
        Ok(kind == Some(&self.kind) && fingerprint == Some(&self.fingerprint.0))
    }

    /// Checks the bytes of a file, and returns the length of its content.
    fn check(&self, bytes: &[u8]) -> Result<usize, Unreadable> {
        let Some((sealed, checksum)) = bytes
            .len()
            .checked_sub(CHECKSUM)
            .filter(|&end| end >= HEADER)
            .map(|end| bytes.split_at(end))
        else {
            return Err(Unreadable::Corrupt("too short"));
        };
        if blake3::hash(sealed).as_bytes() != checksum {
            return Err(Unreadable::Corrupt("checksum mismatch"));
        }
        let (header, content) = sealed.split_at(HEADER);
        let (kind, header) = header.split_at(8);
        let (version, header) = header.split_at(4);
        let (_zero, header) = header.split_at(4);
        let (fingerprint, length) = header.split_at(32);
        if kind != self.kind {
            return Err(Unreadable::Foreign("another kind of file"));
        }
        if version != self.version.to_le_bytes() {
            return Err(Unreadable::Foreign("another version of the format"));
        }
        if fingerprint != self.fingerprint.0 {
            return Err(Unreadable::Foreign("another tokenizer or model"));
        }
        if length != (content.len() as u64).to_le_bytes() {
            return Err(Unreadable::Corrupt("length mismatch"));
        }
        Ok(content.len())
    }
}

/// Renames an unreadable file to a free name, where it can be inspected.
///
/// # Errors
/// If the file could not be renamed; it is then unchanged.
pub(super) fn set_aside(path: &Path, why: &Unreadable) -> io::Result<()> {
    let ending = match why {
        Unreadable::Io(_) => return Ok(()),
        Unreadable::Corrupt(_) => "corrupt",
        Unreadable::Foreign(_) => "foreign",
    };
    let aside = reserve(path, ending);
    let moved = aside.as_ref().map_or_else(
        |error| Err(io::Error::from(error.kind())),
        |aside| fs::rename(path, aside).inspect_err(|_| release(aside)),
    );
    tracing::warn!(
        file = %path.display(),
        aside = aside.ok().map(|aside| tracing::field::display(aside.display().to_string())),
        %why,
        moved = moved.is_ok(),
        "unreadable file set aside"
    );
    moved
}

/// Creates an empty file (or directory, if `path` is one) under the first free name: `path.corrupt`,
/// `path.2.corrupt`, …, so that renaming to it overwrites nothing else.
fn reserve(path: &Path, ending: &str) -> io::Result<PathBuf> {
    let is_dir = fs::symlink_metadata(path)?.is_dir();
    for n in 1_u32.. {
        let mut name = path.as_os_str().to_owned();
        if n > 1 {
            name.push(format!(".{n}"));
        }
        name.push(format!(".{ending}"));
        let made = if is_dir {
            fs::create_dir(&name)
        } else {
            File::create_new(&name).map(drop)
        };
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => (),
            made => return made.map(|()| name.into()),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Frees a name created by [`reserve`].
fn release(aside: &Path) {
    let _ = fs::remove_file(aside).or_else(|_| fs::remove_dir(aside));
}

/// Returns a unique temporary name beside `path`.
fn unfinished(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{count}.{UNFINISHED}", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAL: Seal = Seal {
        kind: *b"SKALDSES",
        version: 1,
        fingerprint: Fingerprint([7; 32]),
    };

    #[test]
    fn what_was_written_is_read_and_no_other_file_remains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(SEAL.read(&path).unwrap(), None);
        for content in [&b""[..], b"abc", &[9; 5000]] {
            SEAL.write(&path, content, true).unwrap();
            assert_eq!(SEAL.read(&path).unwrap().unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        SEAL.write(&path, b"some content", false).unwrap();
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(matches!(SEAL.read(&path), Err(Unreadable::Corrupt(_))));
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&path, changed).unwrap();
            assert!(matches!(SEAL.read(&path), Err(Unreadable::Corrupt(_))));
        }
    }

    #[test]
    fn an_intact_file_of_another_model_kind_or_version_is_foreign_and_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let others = [
            Seal {
                fingerprint: Fingerprint([8; 32]),
                ..SEAL
            },
            Seal {
                kind: *b"SKALDKVB",
                ..SEAL
            },
            Seal { version: 2, ..SEAL },
        ];
        for (other, aside) in others.iter().zip(["file", "file.2", "file.3"]) {
            other.write(&path, b"content", false).unwrap();
            let why = SEAL.read(&path).unwrap_err();
            assert!(matches!(why, Unreadable::Foreign(_)));
            set_aside(&path, &why).unwrap();
            assert!(!path.exists());
            let aside = dir.path().join(format!("{aside}.foreign"));
            assert_eq!(other.read(&aside).unwrap().unwrap(), b"content");
        }
    }

    #[test]
    fn a_fifo_or_directory_is_set_aside_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (n, make) in ["mkfifo", "mkdir", "mkdir"].into_iter().enumerate() {
            let made = std::process::Command::new(make).arg(&path).status();
            assert!(made.unwrap().success());
            let why = SEAL.read(&path).unwrap_err();
            assert!(matches!(why, Unreadable::Foreign(_)), "{make}");
            set_aside(&path, &why).unwrap();
            assert!(!path.exists());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), n + 1);
        }
    }

    #[test]
    fn a_file_that_cannot_be_set_aside_stays() {
        let why = Unreadable::Corrupt("for a test");
        let dir = tempfile::tempdir().unwrap();
        let error = set_aside(&dir.path().join("none"), &why).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_header_of_a_file_identifies_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        SEAL.write(&path, b"content", false).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..HEADER]).unwrap();
        assert!(SEAL.begins(&path).unwrap());
        let other = Seal {
            fingerprint: Fingerprint([8; 32]),
            ..SEAL
        };
        assert!(!other.begins(&path).unwrap());
        fs::write(&path, &bytes[..40]).unwrap();
        assert!(!SEAL.begins(&path).unwrap());
    }
}
