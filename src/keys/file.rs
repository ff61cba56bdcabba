//! The key file: TOML that a person can read and edit. It stores hashes, never a secret.
//!
//! ```toml
//! [[key]]
//! id = "3f9a1c0b7d2e"
//! name = "ada"
//! hash = "…"
//! scopes = ["generate"]
//! created = 2026-11-27T10:00:00Z
//! requests-per-minute = 60
//! tokens-per-minute = 100000
//! concurrent-requests = 4
//! may-prioritize = false
//! ```
//!
//! Keys are added and removed as text, so that comments and order are kept.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::digits;
use super::invalid::InvalidKey;
use super::key::Key;
use super::parse::{self, Fault};
use crate::regular_file;

/// Maximum size of the file in bytes: some ten thousand keys.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Permissions of a new file.
const MODE: u32 = 0o600;
/// The beginning of a new file.
const HEADER: &str = "\
# API keys of Skald, written and read by `skald keys create`, `list` and `revoke`. This file stores hashes
# of keys, never a key itself. It can be edited: a running server reads it again when it changes.
";

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file can't be read.
    #[error("`keys`: {} can't be read: {source}", file.display())]
    Read {
        /// Path of the file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not TOML, or a key in it is not valid.
    #[error("`keys`: {}, {fault}", file.display())]
    Malformed {
        /// Path of the file.
        file: PathBuf,
        /// The fault and its line.
        fault: Fault,
    },
}

impl KeyFileError {
    /// Returns whether the file does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The text of a key file, and the keys in it.
#[derive(Debug, Clone, Default)]
pub struct KeyFile {
    text: String,
    /// The keys in the order of the file.
    pub keys: Vec<Key>,
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`KeyFileError`] with file, line and fault.
    pub fn read(file: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Read {
            file: file.to_owned(),
            source,
        };
        let bytes = regular_file::read(file, MAX_FILE_BYTES).map_err(failed)?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| failed(io::Error::other("it is not UTF-8")))?;
        Self::parse(text).map_err(|fault| KeyFileError::Malformed {
            file: file.to_owned(),
            fault,
        })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// The first fault in it.
    pub fn parse(text: String) -> Result<Self, Fault> {
        let keys = parse::keys(&text)?;
        Ok(Self { text, keys })
    }

    /// Returns the file with a key added at its end.
    ///
    /// # Errors
    /// If another key has the same id or name.
    pub fn with(mut self, key: Key) -> Result<Self, InvalidKey> {
        if self.keys.iter().any(|other| other.name == key.name) {
            return Err(InvalidKey::SameName(key.name.to_string()));
        }
        if self.keys.iter().any(|other| other.id == key.id) {
            return Err(InvalidKey::SameId);
        }
        if self.text.is_empty() {
            self.text.push_str(HEADER);
        } else if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push('\n');
        // Writing to a string does not fail.
        let _ = write!(self.text, "{}", Written(&key));
        self.keys.push(key);
        Ok(self)
    }

    /// Returns the file without the key of this id or else this name, and that key. `None` if no key has
    /// either, or if it can't be removed from the text.
    #[must_use]
    pub fn without(&self, id_or_name: &str) -> Option<(Self, Key)> {
        let by_id = |key: &Key| key.id.as_str() == id_or_name;
        let by_name = |key: &Key| key.name.as_str() == id_or_name;
        let keys = &self.keys;
        let at = keys.iter().position(by_id);
        let at = at.or_else(|| keys.iter().position(by_name))?;
        let without = Self::parse(self.text_without(at)?).ok()?;
        let (before, after) = (keys.get(..at)?, keys.get(at + 1..)?);
        // Removing lines does not work for every form that TOML allows.
        let as_wanted = without.keys.iter().eq(before.iter().chain(after));
        let key = keys.get(at)?.clone();
        as_wanted.then_some((without, key))
    }

    /// Returns the text without the table of a key. Comments right before the next table stay.
    fn text_without(&self, at: usize) -> Option<String> {
        let lines: Vec<&str> = self.text.split_inclusive('\n').collect();
        let is_table = |line: &&&str| line.trim_start().starts_with('[');
        let tables = lines.iter().enumerate();
        let tables = tables.filter(|(_, line)| is_table(line));
        let tables: Vec<usize> = tables.map(|(number, _)| number).collect();
        let begin = *tables.get(at)?;
        let next = tables.get(at + 1).copied().unwrap_or(lines.len());
        let says_something = |line: &&str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        };
        let body = lines.get(begin..next)?;
        let end = begin + 1 + body.iter().rposition(says_something)?;
        let mut before = lines.get(..begin)?.concat();
        before.truncate(before.trim_end_matches('\n').len());
        if !before.is_empty() {
            before.push('\n');
        }
        Some(before + &lines.get(end..)?.concat())
    }

    /// Replaces a file by the text atomically: a reader finds the old file or the new one. Only its owner can
    /// read a new file; owner and permissions of an existing one stay.
    ///
    /// # Errors
    /// The system's; then the old file is unchanged.
    pub fn replace(&self, file: &Path) -> io::Result<()> {
        // Replaces the target of a link, not the link.
        let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let random = digits::random_digits::<8>().map_err(|_| io::Error::other("no randomness"))?;
        let unfinished = directory.join(format!(".{name}.{random}"));
        let written = self
            .write(&unfinished, fs::metadata(&target).ok())
            .and_then(|()| fs::rename(&unfinished, &target));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        File::open(directory)?.sync_all()
    }

    fn write(&self, path: &Path, old: Option<fs::Metadata>) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
        if let Some(old) = old {
            // The server can run as another user that could read the old file. Changing the owner needs
            // privileges that this process may lack.
            let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))?;
        }
        file.write_all(self.text.as_bytes())?;
        file.sync_all()
    }
}

/// Writes a key as its table in the file.
struct Written<'a>(&'a Key);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key {
            id,
            name,
            hash,
            scopes,
            limits,
            may_prioritize,
            created,
        } = self.0;
        // Neither ids nor names contain characters that TOML escapes.
        writeln!(f, "[[key]]\nid = \"{id}\"\nname = \"{name}\"")?;
        writeln!(f, "hash = \"{hash}\"")?;
        let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
        writeln!(f, "scopes = {scopes:?}")?;
        if let Some(created) = created {
            writeln!(f, "created = {created}")?;
        }
        for (field, limit) in [
            ("requests-per-minute", limits.requests_per_minute),
            ("tokens-per-minute", limits.tokens_per_minute),
            ("concurrent-requests", limits.concurrent_requests),
        ] {
            if let Some(limit) = limit {
                writeln!(f, "{field} = {limit}")?;
            }
        }
        if *may_prioritize {
            writeln!(f, "may-prioritize = true")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::keys::{KeyId, KeyLimits, KeyScope, Secret};

    fn key(name: &str) -> Key {
        let id = KeyId::random().unwrap();
        Key {
            hash: Secret::random(&id).unwrap().hash(),
            id,
            name: name.parse().unwrap(),
            scopes: vec![KeyScope::Generate, KeyScope::Metrics],
            limits: KeyLimits {
                requests_per_minute: NonZeroU32::new(60),
                tokens_per_minute: NonZeroU32::new(u32::MAX),
                concurrent_requests: None,
            },
            may_prioritize: true,
            created: "2026-11-27T10:00:00Z".parse().ok(),
        }
    }

    fn of(keys: &[&Key]) -> KeyFile {
        let empty = KeyFile::default();
        keys.iter()
            .fold(empty, |file, key| file.with((*key).clone()).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let (ada, bob) = (key("ada"), key("bob@example"));
        let file = of(&[&ada, &bob]);
        let read = KeyFile::parse(file.text.clone()).unwrap();
        assert_eq!(read.keys, [ada.clone(), bob]);
        assert_eq!(
            file.with(key("ada")).unwrap_err(),
            InvalidKey::SameName("ada".to_owned())
        );
        assert!(KeyFile::parse(String::new()).unwrap().keys.is_empty());
    }

    #[test]
    fn a_key_is_taken_out_and_all_else_stays_as_it_was_written() {
        let (a, b, c) = (key("a"), key("b"), key("c"));
        let text = of(&[&a, &b, &c]).text;
        let text = text.replace(
            &format!("[[key]]\nid = \"{}\"", c.id),
            &format!("# Of the third\n[[key]] # c\nid = \"{}\"", c.id),
        );
        let file = KeyFile::parse(text.clone()).unwrap();
        let (without, taken) = file.without("b").unwrap();
        assert_eq!(taken, b);
        assert_eq!(without.keys, [a.clone(), c.clone()]);
        assert!(without.text.contains("# Of the third\n[[key]] # c\n"));
        assert!(without.text.starts_with(HEADER));
        // By id too; the text is the same as before it was added.
        let (without, _) = without.without(c.id.as_str()).unwrap();
        let (without, _) = without.with(b.clone()).unwrap().without("b").unwrap();
        assert_eq!(without.keys, [a]);
        assert!(file.without("d").is_none());
        // A form that can't be edited as lines.
        let inline = format!(
            "key = [{{id = \"{}\", name = \"x\", hash = \"{}\", scopes = [\"admin\"]}}]",
            b.id, b.hash
        );
        let file = KeyFile::parse(inline).unwrap();
        assert_eq!(file.keys.len(), 1);
        assert!(file.without("x").is_none());
    }

    #[test]
    fn a_file_is_replaced_at_once_and_keeps_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("keys.toml"), dir.path().join("link"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        of(&[&key("ada")]).replace(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        of(&[&key("bob")]).replace(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(mode(&path), 0o640);
        let read = KeyFile::read(&path).unwrap();
        assert_eq!(read.keys[0].name.as_str(), "bob");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let nowhere = dir.path().join("none/keys.toml");
        let error = of(&[]).replace(&nowhere).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(KeyFile::read(&nowhere).unwrap_err().is_not_found());
    }
}
