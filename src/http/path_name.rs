//! The name of a session or a model in the path of a request.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::app::App;
use super::error::{ApiError, shown};

/// The one name in a path, percent-decoded.
pub(super) struct PathName(pub String);

impl FromRequestParts<App> for PathName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let name = Path::from_request_parts(parts, app).await;
        name.map(|Path(name)| Self(name)).map_err(|_| {
            let path = shown(parts.uri.path());
            ApiError::invalid("id", format!("the name in the path {path} is not UTF-8"))
        })
    }
}
