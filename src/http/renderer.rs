//! The interface by which an endpoint renders the steps of its generations in its dialect.

use super::error::ApiError;
use super::generation::{CompletedGeneration, GenerationStep};
use axum::response::Response;
use axum::response::sse::Event;

/// Renders the steps of an endpoint's generations.
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
    /// If `generations` is empty, which is a fault of the server.
    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError>;
}
