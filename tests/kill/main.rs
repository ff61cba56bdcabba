//! Kills, torn files and second servers: none of them may have a visible effect on durable sessions.
//!
//! | module | purpose |
//! |---|---|
//! | [`kills`] | SIGKILL at random times under load, on one directory |
//! | [`torn`] | damaged and foreign files |
//! | [`shared`] | two servers on one directory |
//! | [`two_servers`] | two servers that share a session store of any kind |
//! | [`clock`] | a clock that is set back and forward |
//! | [`disk`] | a disk that is full, read-only or gone |
//! | [`load`] | the load, and the checks after each kill |
//! | [`client`] | one client of the load |
//! | [`ledger`] | expected state of a session, from all that a client has seen |
//! | [`postgres`] | servers, databases and networks that fail, with sessions in PostgreSQL |
//! | [`reference`] | results of the model without a cache |
//! | [`random`] | random choices from a seed |
//!
//! `SKALD_KILLS=100 cargo test --release --test kill` is the long run. A failure names the `SKALD_KILL_SEED`
//! that repeats its choices.

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
