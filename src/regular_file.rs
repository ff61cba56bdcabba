//! Opens regular files and nothing else.
//!
//! A named pipe without a writer blocks its reader forever, and a device may be endless. So all files
//! of models, sessions, keys and certificates must be opened here. Opening never blocks: anything other
//! than a regular file is refused, with its kind in the error.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file, or a symbolic link to one, for reading.
///
/// # Errors
/// Those of the system, or [`ErrorKind::InvalidInput`] if `path` is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before opening, because opening some devices has side effects.
    check(fs::metadata(path)?.file_type())?;
    // The file may have been replaced since, and opening it must not block.
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    check(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Those of [`open`], or [`ErrorKind::FileTooLarge`].
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let too_large = || {
        let message = format!("the file is larger than the limit of {limit} bytes");
        io::Error::new(ErrorKind::FileTooLarge, message)
    };
    if length > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // The file may grow in the meantime.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Returns whether an error means that the path is not a regular file.
#[must_use]
pub fn is_another_kind(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<NotRegular>)
}

/// The kind of file found instead of a regular file.
#[derive(Debug, thiserror::Error)]
#[error("{0}, not a regular file")]
struct NotRegular(&'static str);

/// Checks that a file is a regular one.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with its kind if it is not.
pub fn check(found: FileType) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let kind = if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::new(ErrorKind::InvalidInput, NotRegular(kind)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_regular_file_is_read_through_a_link_and_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, b"content").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 7).unwrap(), b"content");
        let error = read(&file, 6).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("6 bytes"), "{error}");
        let error = read(&dir.path().join("none"), 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!is_another_kind(&error));
    }

    #[test]
    fn other_kinds_of_files_are_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (dir.path(), "a directory"),
            (&pipe, "a named pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read(path, 10).unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
            assert!(is_another_kind(&error));
        }
    }
}
