//! TLS: one cryptography provider, chosen once, for the program's own requests and for the server.
//!
//! It is `ring`: rustls' other one compiles a large C library, which takes longer than any other
//! dependency. Certificates of others are checked against those of the system. The server's own
//! certificate is an [`Identity`].

mod identity;

pub(crate) use self::identity::pem_fault;
pub use self::identity::{Identity, IdentityError};

/// Makes `ring` the provider of every TLS connection of the process, unless there is one already.
/// Must have been called before a client of any library is built; calling it again does nothing.
pub fn install_provider() {
    // An error says that another provider was there first, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns a builder of HTTP clients that can speak TLS.
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
