//! PostgreSQL servers with a directory each, which tests can stop and restart.
//!
//! If PostgreSQL is not installed, [`Cluster::start`] reports it and the test is skipped; with
//! `SKALD_TEST_POSTGRES=1` it fails instead.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_postgres::{Client, NoTls};

/// Password of the only role.
pub const PASSWORD: &str = "s3cret-of-the-database";

/// A PostgreSQL server; it stops when this is dropped or this process ends.
pub struct Cluster {
    /// Stops the server when its input ends, which happens however this process ends.
    watch: Child,
    programs: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    /// User and group of the server's programs: PostgreSQL refuses to run as root.
    user: Option<(u32, u32)>,
}

impl Cluster {
    /// Creates a cluster and starts it; `None` if PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            return skipped("PostgreSQL is not installed (no initdb)");
        };
        let directory = tempfile::tempdir().expect("a directory");
        let is_root = std::fs::metadata(directory.path()).expect("it").uid() == 0;
        let user = is_root.then(|| (id("-u"), id("-g")));
        if let Some((user, group)) = user {
            chown(directory.path(), Some(user), Some(group)).expect("root may");
        }
        let watch = as_user(Command::new("sh"), user)
            .args([
                "-c",
                "cat > /dev/null; \"$0\" stop --mode immediate --pgdata \"$1\"",
            ])
            .args([programs.join("pg_ctl"), directory.path().join("data")])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let cluster = Self {
            watch,
            programs,
            port: free_port(),
            directory,
            user,
        };
        cluster.initialize();
        cluster.resume();
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn initialize(&self) {
        let password = self.path("password");
        std::fs::write(&password, PASSWORD).expect("a file");
        let arguments = [
            OsStr::new("--auth=scram-sha-256"),
            OsStr::new("--username=skald"),
            OsStr::new("--encoding=UTF8"),
            OsStr::new("--locale=C"),
            OsStr::new("--pwfile"),
            password.as_os_str(),
            OsStr::new("--pgdata"),
        ];
        let data = self.path("data");
        self.run("initdb", arguments.into_iter().chain([data.as_os_str()]));
    }

    fn run<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) {
        let mut command = as_user(Command::new(self.programs.join(program)), self.user);
        command.args(arguments).stdin(Stdio::null());
        command.current_dir(self.directory.path());
        // A process that keeps running must not hold a pipe of this one.
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("programs.log"))
            .expect("a log");
        command.stdout(log.try_clone().expect("it")).stderr(log);
        let status = command.status().expect("it runs");
        let log = || std::fs::read_to_string(self.path("programs.log")).unwrap_or_default();
        assert!(status.success(), "{program}: {status}\n{}", log());
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let data = self.path("data");
        let fixed = [
            OsStr::new("--wait"),
            OsStr::new("--pgdata"),
            data.as_os_str(),
        ];
        let arguments = arguments.iter().map(OsStr::new);
        self.run("pg_ctl", fixed.into_iter().chain(arguments));
    }

    /// Starts the server again after [`stop`](Self::stop).
    pub fn resume(&self) {
        let log = self.path("log");
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='{}'",
            self.port,
            self.directory.path().display()
        );
        let log = log.to_str().expect("a path");
        self.pg_ctl(&["start", "--log", log, "--options", &options]);
    }

    /// Stops the server at once, as a crash does: uncommitted changes are lost.
    pub fn stop(&self) {
        self.pg_ctl(&["stop", "--mode", "immediate"]);
    }

    /// Crashes the server and starts it again.
    pub fn restart(&self) {
        self.stop();
        self.resume();
    }

    /// Returns the address of the server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the directory where the server keeps its data.
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// Changes the owner of a file to the user of the server.
    pub fn give(&self, file: &Path) {
        if let Some((user, group)) = self.user {
            chown(file, Some(user), Some(group)).expect("root may");
        }
    }

    /// Returns the URL of a database, with the password.
    pub fn url(&self, database: &str) -> String {
        self.url_with(PASSWORD, database)
    }

    /// Returns the URL of a database, with another password.
    pub fn url_with(&self, password: &str, database: &str) -> String {
        format!(
            "postgres://skald:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Creates a database and returns its URL.
    pub async fn create(&self, database: &str) -> String {
        let client = self.connect("postgres").await;
        let create = format!("CREATE DATABASE {database}");
        client.batch_execute(&create).await.expect("it is made");
        self.url(database)
    }

    /// Creates a database and returns its URL, for callers that are not async.
    pub fn create_now(&self, database: &str) -> String {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
        };
        // A thread of its own, because this one may be in a runtime.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| runtime().block_on(self.create(database)));
            made.join().expect("it is made")
        })
    }

    /// Connects to a database.
    pub async fn connect(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), NoTls)
            .await
            .expect("it is there");
        tokio::spawn(connection);
        client
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watch.stdin.take());
        let _ = self.watch.wait();
    }
}

/// Makes a program run as another user, if this process has the right to.
fn as_user(mut program: Command, user: Option<(u32, u32)>) -> Command {
    if let Some((user, group)) = user {
        program.uid(user).gid(group);
    }
    program
}

/// Prints why a test is skipped.
///
/// # Panics
/// If tests must not be skipped.
pub fn skipped<T>(why: &str) -> Option<T> {
    let required = std::env::var_os("SKALD_TEST_POSTGRES").is_some_and(|v| v == "1");
    assert!(!required, "SKALD_TEST_POSTGRES=1, and {why}");
    println!("skipped: {why}");
    None
}

/// Returns the directory of PostgreSQL's programs: from the path, or from where distributions install them,
/// the newest first.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|found| found.flatten().map(|e| e.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    places.extend(versions.into_iter().rev());
    let initdb = places.into_iter().map(|place| place.join("initdb"));
    let initdb = initdb.filter_map(|found| found.canonicalize().ok());
    initdb
        .filter_map(|found| Some(found.parent()?.to_owned()))
        .find(|place| place.join("pg_ctl").exists() && place.join("postgres").exists())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Returns an id of the user that PostgreSQL's package creates.
fn id(of: &str) -> u32 {
    let output = Command::new("id").args([of, "postgres"]).output();
    let text = String::from_utf8(output.expect("id runs").stdout).expect("a number");
    text.trim().parse().expect("the user postgres")
}
