//! A stand-in for the hub on a local socket: the model endpoint of its API, and file downloads,
//! large files by way of a redirect as the real one sends them to its content network.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// The files of one commit.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A model on the hub.
pub struct Repository {
    /// Commits by the branch or tag that names them.
    revisions: BTreeMap<String, (String, Files)>,
    token: Option<String>,
}

impl Repository {
    /// One with a main branch of one commit.
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

    /// Gives the model to one token alone.
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

/// What is wrong with the hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// It takes requests and never answers.
    Silent,
    /// It answers everything with this status.
    Status(u16),
    /// It answers everything with a page, as a proxy's log-in does.
    WebPage,
    /// The weights break off halfway.
    CutShort,
    /// It answers the weights with an error, after having announced them.
    ErrorAsFile,
}

#[derive(Default)]
struct Inner {
    repositories: BTreeMap<String, Repository>,
    requests: Vec<String>,
    fault: Option<Fault>,
}

/// The running stand-in; dropping it closes its socket.
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
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&inner));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
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

    pub fn break_with(&self, fault: Fault) {
        self.inner().fault = Some(fault);
    }

    pub fn mend(&self) {
        self.inner().fault = None;
    }

    /// Method and path of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.inner().requests.clone()
    }

    pub fn forget_requests(&self) {
        self.inner().requests.clear();
    }

    /// The files that were asked for with their content, sorted.
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
        // The socket is closed by the runtime's threads, soon.
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
        Some(Fault::WebPage) => "<html>Please log in</html>".into_response(),
        _ => {
            let inner = inner.lock().unwrap();
            route(&inner, &request, &path).unwrap_or_else(IntoResponse::into_response)
        }
    }
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
    if let Some(file) = path.strip_prefix("/content/") {
        let files = inner
            .repositories
            .values()
            .flat_map(|r| r.revisions.values());
        let mut files = files.flat_map(|(_, files)| files.values());
        let content = files.find(|content| etag(content) == file);
        return Ok(body(inner.fault, content.ok_or_else(no_model)?.clone()));
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
    Ok(resolve(inner.fault, request, commit, file, content))
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

/// A file's address: small ones are answered at once, weights by a redirect.
fn resolve(
    fault: Option<Fault>,
    request: &Request,
    commit: &str,
    file: &str,
    content: &[u8],
) -> Response {
    let etag = etag(content);
    let head = request.method() == Method::HEAD;
    let response = Response::builder().header("x-repo-commit", commit);
    let response = if file.ends_with(".safetensors") {
        let host = request.headers()[header::HOST].to_str().unwrap();
        response
            .status(StatusCode::FOUND)
            .header(header::LOCATION, format!("http://{host}/content/{etag}"))
            .header("x-linked-etag", format!("\"{etag}\""))
            .header("x-linked-size", content.len())
            .body(Body::empty())
    } else {
        let response = response
            .header(header::ETAG, format!("\"{etag}\""))
            .header(header::CONTENT_LENGTH, content.len());
        response.body(if head {
            Body::empty()
        } else {
            Body::from(content.to_vec())
        })
    };
    let refused = fault == Some(Fault::ErrorAsFile) && !head && file.ends_with(".safetensors");
    if refused {
        return (StatusCode::FORBIDDEN, "signature expired").into_response();
    }
    response.unwrap()
}

fn body(fault: Option<Fault>, content: Vec<u8>) -> Response {
    if fault != Some(Fault::CutShort) {
        return content.into_response();
    }
    let half = Bytes::copy_from_slice(&content[..content.len() / 2]);
    let broken = std::io::Error::other("the connection broke");
    let parts = tokio_stream::iter([Ok(half), Err(broken)]);
    Body::from_stream(parts).into_response()
}

fn etag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
