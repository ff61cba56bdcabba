//! TLS: the cryptography provider for clients and the server, and the server's certificate
//! ([`Identity`]).
//!
//! The provider is `ring`: rustls' alternative compiles a large C library, which takes longer than any
//! other dependency. Clients verify certificates against the system's authorities.

mod identity;

pub(crate) use self::identity::pem_fault;
pub use self::identity::{Identity, IdentityError};

/// Installs `ring` as the process's provider, unless one is installed already. Must be called before any
/// library builds a TLS client; further calls have no effect.
pub fn install_provider() {
    // Fails only if another provider is installed, which works as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns a builder for HTTP clients with TLS.
pub fn http_client() -> reqwest::ClientBuilder {
    install_provider();
    reqwest::Client::builder()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_client_can_be_built_any_number_of_times() {
        for _ in 0..2 {
            super::http_client().build().unwrap();
        }
    }
}
