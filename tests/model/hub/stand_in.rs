//! A stand-in for the hub on a local socket: the model endpoint of its API, and file downloads; large files
//! by a redirect to another socket, as the real hub redirects to its content network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// Files of one commit.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A model on the hub.
pub struct Repository {
    /// Commits by branch or tag.
    revisions: BTreeMap<String, (String, Files)>,
    token: Option<String>,
}

impl Repository {
    /// Creates a repository with a main branch of one commit.
    pub fn new(commit: &str, files: Files) -> Self {
        let main = Self {
            revisions: BTreeMap::new(),
            token: None,
        };
        main.commit("main", commit, files)
    }

    pub fn commit(mut self, revision: &str, commit: &str, files: Files) -> Self {
        let commit = (commit.to_owned(), files);
        self.revisions.insert(revision.to_owned(), commit);
        self
    }

    /// Restricts the model to one token.
    pub fn gated(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    fn find(&self, revision: &str) -> Option<&(String, Files)> {
        let by_name = self.revisions.get(revision);
        by_name.or_else(|| {
            self.revisions
                .values()
                .find(|(commit, _)| commit == revision)
        })
    }
}

/// A fault of the hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Accepts requests and never answers.
    Silent,
    /// Answers everything with this status.
    Status(u16),
    /// Answers everything with 429 and a `Retry-After` of 12 seconds.
    Busy,
    /// Answers everything with a page, as the login page of a proxy does.
    WebPage,
    /// Redirects every request in a circle.
    Circle,
    /// Ends the weights halfway, whatever part of them is requested.
    CutShort,
    /// Ends every answer with weights after a few bytes.
    BreaksOften,
    /// Announces the weights and answers with an error.
    ErrorAsFile,
    /// Sends whole files, whatever part is requested.
    WithoutRanges,
    /// Changes a byte of the weights.
    WrongByte,
    /// Sends more bytes of the weights than announced.
    TooLong,
}

/// Bytes of an answer before it breaks off, with [`Fault::BreaksOften`].
pub const BREAKS_AFTER: usize = 1024;

/// A request to the content network.
#[derive(Debug, Clone, PartialEq)]
pub struct ContentRequest {
    /// First requested byte.
    pub from: usize,
    /// Whether the request had a token.
    pub authorized: bool,
}

#[derive(Default)]
struct Inner {
    repositories: BTreeMap<String, Repository>,
    /// New ids of renamed models by their old ones.
    renamed: BTreeMap<String, String>,
    requests: Vec<String>,
    content_requests: Vec<ContentRequest>,
    content_address: String,
    fault: Option<Fault>,
}

/// The running stand-in; dropping it closes its sockets.
pub struct StandIn {
    address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    runtime: Option<Runtime>,
}

impl StandIn {
    pub fn start() -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inner = Arc::new(Mutex::new(Inner::default()));
        let hub = Router::new().fallback(answer);
        let content = Router::new().fallback(content);
        let address = serve(&runtime, hub.with_state(Arc::clone(&inner)));
        let content_address = serve(&runtime, content.with_state(Arc::clone(&inner)));
        inner.lock().unwrap().content_address = format!("http://{content_address}");
        Self {
            address,
            inner,
            runtime: Some(runtime),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn publish(&self, id: &str, repository: Repository) {
        self.inner().repositories.insert(id.to_owned(), repository);
    }

    pub fn rename(&self, old: &str, new: &str) {
        self.inner().renamed.insert(old.to_owned(), new.to_owned());
    }

    pub fn break_with(&self, fault: Fault) {
        self.inner().fault = Some(fault);
    }

    pub fn mend(&self) {
        self.inner().fault = None;
    }

    /// Returns method and path of every request to the hub itself so far.
    pub fn requests(&self) -> Vec<String> {
        self.inner().requests.clone()
    }

    /// Returns every request to the content network so far.
    pub fn content_requests(&self) -> Vec<ContentRequest> {
        self.inner().content_requests.clone()
    }

    pub fn forget_requests(&self) {
        let mut inner = self.inner();
        inner.requests.clear();
        inner.content_requests.clear();
    }

    /// Returns the sorted names of the downloaded files.
    pub fn fetched(&self) -> Vec<String> {
        let requests = self.requests();
        let file = |request: &String| {
            let (repository, file) = request.split_once("/resolve/")?;
            let (_, file) = file.split_once('/')?;
            repository.starts_with("GET ").then(|| file.to_owned())
        };
        let mut files: Vec<String> = requests.iter().filter_map(file).collect();
        files.sort();
        files
    }

    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // The runtime's threads close the socket with a delay.
        while std::net::TcpStream::connect(self.address).is_ok() {
            std::thread::yield_now();
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve(runtime: &Runtime, router: Router) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    address
}

async fn answer(State(inner): State<Arc<Mutex<Inner>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let fault = {
        let mut inner = inner.lock().unwrap();
        inner.requests.push(format!("{} {path}", request.method()));
        inner.fault
    };
    match fault {
        Some(Fault::Silent) => std::future::pending().await,
        Some(Fault::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Fault::Busy) => {
            let head = [("retry-after", "12"), ("x-error-message", "slow down")];
            (StatusCode::TOO_MANY_REQUESTS, head).into_response()
        }
        Some(Fault::WebPage) => "<html>Please log in</html>".into_response(),
        Some(Fault::Circle) => (StatusCode::FOUND, [(header::LOCATION, path)]).into_response(),
        _ => {
            let inner = inner.lock().unwrap();
            route(&inner, &request, &path).unwrap_or_else(IntoResponse::into_response)
        }
    }
}

/// Answers as the content network: files by name.
async fn content(State(inner): State<Arc<Mutex<Inner>>>, request: Request) -> Response {
    let mut inner = inner.lock().unwrap();
    let range = request.headers().get(header::RANGE);
    let range = range.map(|range| range.to_str().unwrap().to_owned());
    let first = range.as_ref().map(|range| {
        let first = range
            .strip_prefix("bytes=")
            .and_then(|r| r.strip_suffix('-'));
        first.expect("a range from some byte on").parse().unwrap()
    });
    inner.content_requests.push(ContentRequest {
        from: first.unwrap_or(0),
        authorized: request.headers().contains_key(header::AUTHORIZATION),
    });
    let name = request.uri().path().trim_start_matches('/');
    let commits = inner
        .repositories
        .values()
        .flat_map(|r| r.revisions.values());
    let mut files = commits.flat_map(|(_, files)| files.values());
    let Some(content) = files.find(|content| sha256(content) == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let first = first.filter(|_| inner.fault != Some(Fault::WithoutRanges));
    body(inner.fault, content.clone(), first)
}

type Refusal = (StatusCode, [(&'static str, &'static str); 2]);

fn refusal(status: StatusCode, code: &'static str, message: &'static str) -> Refusal {
    (
        status,
        [("x-error-code", code), ("x-error-message", message)],
    )
}

fn route(inner: &Inner, request: &Request, path: &str) -> Result<Response, Refusal> {
    let no_model = || {
        refusal(
            StatusCode::NOT_FOUND,
            "RepoNotFound",
            "Repository not found",
        )
    };
    for (old, new) in &inner.renamed {
        if path.contains(&format!("/{old}/")) {
            let location = path.replacen(old, new, 1);
            let moved = (
                StatusCode::TEMPORARY_REDIRECT,
                [(header::LOCATION, location)],
            );
            return Ok(moved.into_response());
        }
    }
    let info = path.strip_prefix("/api/models/");
    let (id, rest) = match info {
        Some(path) => path.split_once("/revision/"),
        None => path[1..].split_once("/resolve/"),
    }
    .ok_or_else(no_model)?;
    let repository = inner.repositories.get(id).ok_or_else(no_model)?;
    authorize(repository, request.headers())?;
    let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
    let revision = revision.replace("%2F", "/");
    let (commit, files) = repository
        .find(&revision)
        .ok_or_else(|| refusal(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id"))?;
    if info.is_some() {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let info = serde_json::json!({"id": id, "sha": commit, "siblings": siblings});
        return Ok(axum::Json(info).into_response());
    }
    let content = files
        .get(file)
        .ok_or_else(|| refusal(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found"))?;
    Ok(resolve(inner, request, commit, file, content))
}

fn authorize(repository: &Repository, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = &repository.token else {
        return Ok(());
    };
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(given) if given == token => Ok(()),
        Some("hf_stranger") => Err(refusal(
            StatusCode::FORBIDDEN,
            "GatedRepo",
            "You are not in the authorized list",
        )),
        _ => Err(refusal(
            StatusCode::UNAUTHORIZED,
            "GatedRepo",
            "Invalid credentials",
        )),
    }
}

/// Answers with small files directly, and with a redirect for weights.
fn resolve(inner: &Inner, request: &Request, commit: &str, file: &str, content: &[u8]) -> Response {
    let head = request.method() == Method::HEAD;
    let response = Response::builder().header("x-repo-commit", commit);
    let response = if file.ends_with(".safetensors") {
        let etag = sha256(content);
        let location = format!("{}/{etag}", inner.content_address);
        response
            .status(StatusCode::FOUND)
            .header(header::LOCATION, location)
            .header(header::ETAG, "\"of the redirect\"")
            .header("x-linked-etag", format!("\"{etag}\""))
            .header("x-linked-size", content.len())
            .body(Body::empty())
    } else {
        let response = response
            .header(header::ETAG, format!("\"{}\"", git_object(content)))
            .header(header::CONTENT_LENGTH, content.len());
        response.body(if head {
            Body::empty()
        } else {
            Body::from(content.to_vec())
        })
    };
    let fault = inner.fault;
    let refused = fault == Some(Fault::ErrorAsFile) && !head && file.ends_with(".safetensors");
    if refused {
        return (StatusCode::FORBIDDEN, "signature expired").into_response();
    }
    response.unwrap()
}

/// Returns an answer with a file's bytes from `first` on, or all of them.
fn body(fault: Option<Fault>, mut content: Vec<u8>, first: Option<usize>) -> Response {
    let size = content.len();
    let end = match fault {
        Some(Fault::CutShort) => size / 2,
        Some(Fault::BreaksOften) => first.unwrap_or(0) + BREAKS_AFTER,
        _ => size,
    };
    match fault {
        Some(Fault::WrongByte) => content[size - 1] ^= 1,
        Some(Fault::TooLong) => content.push(0),
        _ => (),
    }
    if first.is_some_and(|first| first >= size) {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let whole = end >= size;
    let from = first.unwrap_or(0);
    let end = end.min(size).max(from);
    let part = if whole {
        &content[from..]
    } else {
        &content[from..end]
    };
    let part = Ok(Bytes::copy_from_slice(part));
    let broken = async {
        // Flush the bytes before the error.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("the connection broke"))
    };
    let parts = stream::iter([part]);
    let body = if whole {
        Body::from_stream(parts)
    } else {
        Body::from_stream(parts.chain(stream::once(broken)))
    };
    match first {
        None => body.into_response(),
        Some(first) => {
            let range = format!("bytes {first}-{}/{size}", size - 1);
            let range = [(header::CONTENT_RANGE, range)];
            (StatusCode::PARTIAL_CONTENT, range, body).into_response()
        }
    }
}

/// Returns the name of a large file.
pub fn sha256(content: &[u8]) -> String {
    hex(&SHA256, content)
}

/// Returns the name of a small file.
pub fn git_object(content: &[u8]) -> String {
    let header = format!("blob {}\0", content.len());
    let object = [header.as_bytes(), content].concat();
    hex(&SHA1_FOR_LEGACY_USE_ONLY, &object)
}

fn hex(algorithm: &'static Algorithm, content: &[u8]) -> String {
    let digest = digest(algorithm, content);
    let bytes = digest.as_ref().iter();
    bytes
        .flat_map(|byte| {
            [byte >> 4, byte & 15]
                .map(|digit| char::from_digit(digit.into(), 16).expect("below 16"))
        })
        .collect()
}
