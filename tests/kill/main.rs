//! What a kill, a torn file or a second server may do to durable sessions: nothing that shows.
//!
//! | module | what it is for |
//! |---|---|
//! | [`kills`] | SIGKILL at random moments under load, on one directory |
//! | [`torn`] | files that are not as they were written |
//! | [`shared`] | two servers on one directory |
//! | [`two_servers`] | what must be true of two servers in one place, wherever it is |
//! | [`clock`] | a clock that is set back and forward |
//! | [`disk`] | a disk that is full, read-only or gone |
//! | [`load`] | kills under load, and what must be true after each |
//! | [`client`] | one client of the load |
//! | [`ledger`] | what must be true of a session after all that a client has seen |
//! | [`postgres`] | servers, databases and networks that fail, with sessions in PostgreSQL |
//! | [`reference`] | what the model says without any cache |
//! | [`random`] | random choices from a seed |
//!
//! `SKALD_KILLS=100 cargo test --release --test kill` is the long run; a failure names the
//! `SKALD_KILL_SEED` to choose the same again.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod clock;
mod disk;
mod kills;
mod ledger;
mod load;
mod postgres;
mod random;
mod reference;
mod shared;
mod torn;
mod two_servers;
