//! The engine from outside: a real model behind an `EngineHandle`, no HTTP.

mod beams;
mod exactness;
mod failures;
mod invariance;
mod model;
mod quality;
mod sessions;
mod window;
