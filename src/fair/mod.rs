//! Tenants, and the fair sharing of bounded resources (places, bytes, turns) between them.
//!
//! | type | purpose |
//! |---|---|
//! | [`Tenant`] | identifies the holder of an API key |
//! | [`FairQueue`] | orders waiting items: the tenant with the least service comes first |
//! | [`Shares`] | bounds an amount: a single tenant can hold all of it, and later tenants still get their share |
//! | [`Holds`] | the same, with parts that are released when they are dropped |
//! | [`Turns`] | a semaphore that serves its waiters in the order of a [`FairQueue`] |
//!
//! The order is that of the virtual token counter (Sheng et al., "Fairness in Serving Large
//! Language Models", OSDI 2024): each tenant's service is counted as it is spent, and a tenant that
//! returns from being idle begins at the count of the waiting tenants, so idle time is not saved
//! up. Deficit round robin (Shreedhar & Varghese 1996) needs the size of an item before it is
//! served, but the length of an answer is known only at its end.
//!
//! This module must never know what is shared. Its memory is bounded by the number of tenants that
//! have work or have received more service than the waiting ones.

mod holds;
mod queue;
mod shares;
mod tenant;
mod turns;

pub use holds::{Hold, Holds};
pub use queue::{FairQueue, Waiting};
pub use shares::Shares;
pub use tenant::Tenant;
pub use turns::{Turn, Turns};
