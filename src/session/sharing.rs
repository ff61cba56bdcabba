//! Which tenants share the memory for sessions and the places for waiting requests.

use crate::request::Tenant;

/// Which tenants have their own share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// All tenants use one share: keys are not checked, so clients could invent tenants to get more
    /// shares.
    #[default]
    AsOne,
    /// Each tenant has its own share: the server checks API keys.
    ByTenant,
}

impl Sharing {
    /// Returns the tenant whose share `tenant` uses.
    pub(super) fn share(self, tenant: Tenant) -> Tenant {
        match self {
            Self::AsOne => Tenant::ANONYMOUS,
            Self::ByTenant => tenant,
        }
    }
}
