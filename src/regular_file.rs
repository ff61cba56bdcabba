//! Opens regular files and nothing else.
//!
//! A named pipe that nothing writes to blocks its reader for ever, and a device can have no end. So
//! every file that names a model or holds a session is opened here. Opening never waits: what is not
//! a regular file is refused, with what it is.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file, or what a symbolic link to one leads to, for reading.
///
/// # Errors
/// The system's, or [`ErrorKind::InvalidInput`] if there is something else at `path`.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: opening some devices has an effect.
    check(fs::metadata(path)?.file_type())?;
    // It may be another one by now, and must not be waited for.
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
        let message = format!("the file has more than {limit} bytes, which is the limit");
        io::Error::new(ErrorKind::FileTooLarge, message)
    };
    if length > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // It may grow meanwhile.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Returns whether an error says that there is something else than a regular file.
#[must_use]
pub fn is_another_kind(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<NotRegular>)
}

/// What there is in place of a regular file.
#[derive(Debug, thiserror::Error)]
#[error("{0}, not a regular file")]
struct NotRegular(&'static str);

fn check(found: FileType) -> io::Result<()> {
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
    fn a_regular_file_is_read_also_through_a_link_and_up_to_a_limit() {
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
    fn what_is_not_a_regular_file_is_named_and_not_waited_for() {
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
