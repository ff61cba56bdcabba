//! Between whom the room of sessions and the places of those that wait are shared.

use crate::request::Tenant;

/// Which tenants have shares of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// None: tenants are not checked, so clients could invent them, and get a further share with each.
    #[default]
    AsOne,
    /// Each: the server checks the keys that they stand for.
    ByTenant,
}

impl Sharing {
    /// Returns the tenant whose share a tenant uses.
    pub(super) fn share(self, tenant: Tenant) -> Tenant {
        match self {
            Self::AsOne => Tenant::ANONYMOUS,
            Self::ByTenant => tenant,
        }
    }
}
