//! Files of bounded size, read whole and replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::check::MAX_FILE_BYTES;
use crate::{Error, Problem};

/// The text of a rank-table file.
///
/// # Errors
/// The file cannot be read, is larger than the limit, or is no text.
pub fn read(path: &Path) -> Result<String, Error> {
    let fail = |problem| Error::new(path.display().to_string(), "", problem);
    let unreadable = |error: io::Error| fail(Problem::Unreadable { message: error.to_string() });
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(Problem::TooLarge));
    }
    String::from_utf8(bytes).map_err(|error| fail(Problem::NotJson { message: error.to_string() }))
}

/// Replaces `path` by `bytes` with mode 0600. After a crash the old or the new content is there, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes)
        .map_err(|error| Error::new(path.display().to_string(), "", Problem::Unwritable { message: error.to_string() }))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (mut file, temporary) = Temporary::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    temporary.rename(path)?;
    // The rename itself must survive a crash, too.
    File::open(directory)?.sync_all()
}

/// Removes the file when dropped, so that a failed write leaves nothing behind.
struct Temporary(PathBuf);

impl Temporary {
    /// Creates a new file beside `path`, readable by the owner only.
    fn create(path: &Path) -> io::Result<(File, Self)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let mut attempt = 0;
        loop {
            let temporary = path.with_file_name(format!(".{name}.{}.{attempt}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
                Ok(file) => return Ok((file, Self(temporary))),
                // Left by a process of the same number that was killed, or being written by another thread.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)?;
        // The name is free again and may already be another writer's: it must not be removed.
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.json");
        fs::write(&path, "a longer text than the one that follows").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        // A directory of the same name cannot be replaced by a file.
        let path = directory.path().join("table.json");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"new").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
