//! The tenant that a request belongs to.

use std::fmt;

/// The owner of one API key. Sessions belong to a tenant, and response times do not reveal one
/// tenant's prompts to another.
///
/// A hash of the key, so that it can be part of file names and logs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tenant([u8; 16]);

impl Tenant {
    /// The tenant of all requests without a key.
    pub const ANONYMOUS: Self = Self([0; 16]);

    /// Returns the tenant of an API key that the server does not check.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Self {
        Self::derived("skald 2026-11 tenant", key)
    }

    /// Returns the tenant of a key that the server checks, by the key's id.
    #[must_use]
    pub fn of_key_id(id: &str) -> Self {
        Self::derived("skald 2026-11 tenant of a key id", id.as_bytes())
    }

    fn derived(context: &str, from: &[u8]) -> Self {
        let hash = blake3::derive_key(context, from);
        let mut tenant = [0; 16];
        tenant.copy_from_slice(&hash[..16]);
        Self(tenant)
    }

    /// Returns the bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Writes hexadecimal digits, or `anonymous`.
impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANONYMOUS {
            return f.write_str("anonymous");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_own_tenant_whose_name_does_not_reveal_the_key() {
        let tenant = Tenant::of_key(b"sk-secret");
        assert_eq!(tenant, Tenant::of_key(b"sk-secret"));
        assert_ne!(tenant, Tenant::of_key(b"sk-secret2"));
        assert_ne!(tenant, Tenant::of_key_id("sk-secret"));
        assert_eq!(tenant.to_string().len(), 32);
        assert!(!tenant.to_string().contains("secret"));
        assert_eq!(Tenant::default().to_string(), "anonymous");
    }
}
