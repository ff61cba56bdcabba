//! The engine from outside: a real model behind an `EngineHandle`, without HTTP.

mod beams;
mod embeddings;
mod exactness;
mod failures;
mod inspection;
mod invariance;
mod model;
#[path = "../support/pace.rs"]
mod pace;
mod preemption;
mod prefix;
mod quality;
mod schemas;
mod sessions;
mod sliding;
mod structured;
mod tiny;
mod window;
