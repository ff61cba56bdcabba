//! Session stores.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::Setup;
use crate::support::postgres::Cluster;
use crate::support::process::Process;

/// One PostgreSQL server for all tests, with a database for each.
static CLUSTER: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::start);

/// A session store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Memory,
    Directory,
    Database,
}

/// An empty store for one test.
pub struct Fresh {
    pub place: Place,
    flags: Vec<String>,
    /// Removed when this is dropped.
    directory: Option<tempfile::TempDir>,
}

/// Creates a database; `None` if PostgreSQL is not installed.
fn database() -> Option<String> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let cluster = CLUSTER.as_ref()?;
    let n = MADE.fetch_add(1, Ordering::Relaxed);
    Some(cluster.create_now(&format!("test_{n}")))
}

impl Place {
    /// Returns an empty store of each kind that this machine supports.
    pub fn all() -> impl Iterator<Item = Fresh> {
        let places = [Self::Memory, Self::Directory, Self::Database];
        places.into_iter().filter_map(Self::fresh)
    }

    /// Returns an empty store of each kind that outlives a server.
    pub fn durable() -> impl Iterator<Item = Fresh> {
        Self::all().filter(|fresh| fresh.place != Self::Memory)
    }

    fn fresh(self) -> Option<Fresh> {
        let mut fresh = Fresh {
            place: self,
            flags: Vec::new(),
            directory: None,
        };
        match self {
            Self::Memory => (),
            Self::Directory => {
                let directory = tempfile::tempdir().expect("a directory");
                let path = directory.path().to_str().expect("a path").to_owned();
                fresh.flags = vec!["--session-dir".to_owned(), path];
                fresh.directory = Some(directory);
            }
            Self::Database => {
                fresh.flags = vec!["--session-store".to_owned(), database()?];
            }
        }
        Some(fresh)
    }

    /// Configures a server in this process to use the store. Without PostgreSQL the tests of the database run
    /// in memory instead, where they add nothing.
    pub fn prepare(self, setup: &mut Setup) {
        match self {
            Self::Memory => (),
            Self::Directory => {
                // Statics are never dropped, so the directory stays with the other remains of tests.
                let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
                setup.sessions.dir = Some(directory.expect("a directory").keep());
            }
            Self::Database => setup.store = database(),
        }
    }
}

impl Fresh {
    /// Starts a server that uses the store.
    #[track_caller]
    pub fn start(&self, flags: &[&str]) -> Process {
        let there: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        Process::start(&[&there, flags].concat())
    }
}
