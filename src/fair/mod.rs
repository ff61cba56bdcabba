//! Tenants, and fair shares between them of what is bounded: places, bytes, turns.
//!
//! | type | what it shares |
//! |---|---|
//! | [`Tenant`] | nothing: it is between tenants that the others share |
//! | [`FairQueue`] | an order: the waiting items of the tenant with the least service come first |
//! | [`Shares`] | a room: a tenant may fill all of it, and one that comes later still gets its share |
//! | [`Holds`] | the same, whose pieces are given back when they are dropped |
//! | [`Turns`] | an amount that is used at a time, given out in the order of a [`FairQueue`] |
//!
//! The order is that of the virtual token counter (Sheng et al., "Fairness in Serving Large Language
//! Models", OSDI 2024): each tenant's service is counted as it is spent, and a tenant that comes back from
//! having nothing to do begins at the count of those that wait, so idle time is not saved up. Deficit round
//! robin (Shreedhar & Varghese 1996) needs the size of an item before it is served; the length of an answer
//! is known only at its end.
//!
//! Nothing here may know what is shared, and memory is bounded by the tenants that have work, or have had
//! more service than those that wait.

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
