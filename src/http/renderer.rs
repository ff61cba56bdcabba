//! The interface by which an endpoint renders what its generations report, in its dialect.

use super::error::ApiError;
use super::generation::{CompletedGeneration, GenerationStep};
use axum::response::Response;
use axum::response::sse::Event;

/// How an endpoint renders what its generations report.
pub(super) trait Renderer: Send + 'static {
    /// Returns whether the request asks for a stream.
    fn streams(&self) -> bool;

    /// Renders one step of the generation with this index.
    fn step(&mut self, generation: usize, step: GenerationStep) -> Vec<Event>;

    /// Renders the error that ends a stream.
    fn error(&self, error: &ApiError) -> Event;

    /// Returns whether the last event of the stream has been rendered.
    fn is_done(&self) -> bool;

    /// Renders the answer to a request that does not stream.
    ///
    /// # Errors
    /// If there is nothing to answer with, which is a fault of the server.
    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError>;
}
