//! Something made from files, and made anew when they change. A change that cannot be used leaves the last good one in place.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::SetupError;

/// Bytes of one file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, SetupError> + Send + Sync>;

pub(crate) struct Watched<T> {
    files: Vec<PathBuf>,
    make: Make<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    /// Of what was last read, good or bad: a bad file is complained about once.
    digest: blake3::Hash,
}

/// What looking at the files again came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    Same,
    Changed,
    /// The last good one stays.
    Bad(SetupError),
}

impl<T> Watched<T> {
    /// # Errors
    /// A file that cannot be read, or contents that `make` refuses.
    pub(crate) fn load(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, SetupError> + Send + Sync + 'static,
    ) -> Result<Self, SetupError> {
        let contents = read(&files)?;
        let state = State { current: Arc::new(make(&contents)?), digest: digest(&contents) };
        Ok(Self { files, make: Box::new(make), state: Mutex::new(state) })
    }

    pub(crate) fn current(&self) -> Arc<T> {
        self.state.lock().current.clone()
    }

    /// Reads the files again.
    pub(crate) fn look(&self) -> Looked {
        let contents = read(&self.files);
        let found = contents.as_ref().map_or_else(|error| blake3::hash(error.to_string().as_bytes()), |c| digest(c));
        if found == self.state.lock().digest {
            return Looked::Same;
        }
        let made = contents.and_then(|contents| (self.make)(&contents));
        let mut state = self.state.lock();
        state.digest = found;
        match made {
            Ok(made) => {
                state.current = Arc::new(made);
                Looked::Changed
            }
            Err(error) => Looked::Bad(error),
        }
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Looks at the files for ever. `what` names them in the log.
    pub(crate) async fn keep_fresh(self: Arc<Self>, what: &'static str, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let watched = self.clone();
            match tokio::task::spawn_blocking(move || watched.look()).await {
                Ok(Looked::Changed) => tracing::info!(what, "files changed: certificate taken over"),
                Ok(Looked::Bad(error)) => {
                    tracing::warn!(what, %error, "files changed: the last good certificate stays")
                }
                Ok(Looked::Same) | Err(_) => {}
            }
        }
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, SetupError> {
    let one = |path: &PathBuf| {
        let failed = |reason: String| SetupError::File { path: path.clone(), reason };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(failed(format!("more than {FILE_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    files.iter().map(one).collect()
}

fn digest(contents: &[Vec<u8>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for bytes in contents {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_contents_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let make = {
            let path = path.clone();
            move |contents: &[Vec<u8>]| {
                let text = String::from_utf8_lossy(&contents[0]);
                let bad = |_| SetupError::Certificate { path: path.clone(), reason: "no number".into() };
                text.trim().parse::<u32>().map_err(bad)
            }
        };
        assert!(matches!(Watched::load(vec![path.clone()], make.clone()), Err(SetupError::File { .. })));
        write("1");
        let watched = Watched::load(vec![path.clone()], make).unwrap();
        assert_eq!((watched.look(), *watched.current()), (Looked::Same, 1));
        write("2");
        assert_eq!((watched.look(), *watched.current()), (Looked::Changed, 2));
        write("two");
        assert!(matches!(watched.look(), Looked::Bad(SetupError::Certificate { .. })));
        assert_eq!((watched.look(), *watched.current()), (Looked::Same, 2), "said once");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(watched.look(), Looked::Bad(SetupError::File { .. })));
        assert_eq!((watched.look(), *watched.current()), (Looked::Same, 2));
        write("3");
        assert_eq!((watched.look(), *watched.current()), (Looked::Changed, 3));
        write(&"3".repeat(2 << 20));
        assert!(matches!(watched.look(), Looked::Bad(SetupError::File { .. })), "too large");
    }
}
