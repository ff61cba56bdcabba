//! The server's certificate and private key, which can be reloaded while the server runs.
//!
//! Open connections keep their certificate; new ones get the last valid pair. An invalid pair must never
//! replace a valid one. The key must never be logged, not even in an error.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::regular_file;

/// Size of the largest file that is read, in bytes. A certificate chain has a few kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One of the two files of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityFile {
    /// The certificate chain.
    Certificate,
    /// The private key.
    Key,
}

impl fmt::Display for IdentityFile {
    /// Writes the setting that names the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "tls-cert",
            Self::Key => "tls-key",
        })
    }
}

/// Why a certificate and its key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read.
    #[error("`{kind}`: {} can't be read: {source}", path.display())]
    Read {
        /// Kind of file.
        kind: IdentityFile,
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not PEM, or has other content.
    #[error("`{kind}`: {} does not contain a {} in PEM format: {reason}", path.display(), content(*kind))]
    Malformed {
        /// Kind of file.
        kind: IdentityFile,
        /// Path of the file.
        path: PathBuf,
        /// The fault.
        reason: &'static str,
    },
    /// A file is PEM, but its content is not usable.
    #[error("`{kind}`: {} can't be used: {reason}", path.display())]
    Unusable {
        /// Kind of file.
        kind: IdentityFile,
        /// Path of the file.
        path: PathBuf,
        /// The fault.
        reason: &'static str,
    },
    /// The key does not match the certificate.
    #[error(
        "the key in {} (`tls-key`) does not belong to the first certificate in {} (`tls-cert`)",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// Path of the certificate.
        certificate: PathBuf,
        /// Path of the key.
        key: PathBuf,
    },
}

/// Describes the fault of a PEM file. The library's own messages quote lines of the file, which may be parts
/// of a key.
pub(crate) fn pem_fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no line `-----END …-----`; the file may be truncated"
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins with `-----BEGIN` and does not end with `-----`"
        }
        pem::Error::Base64Decode(_) => {
            "the text between the lines `-----BEGIN …-----` and `-----END …-----` is not valid Base64"
        }
        pem::Error::NoItemsFound => "the file has no such section",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "the file can't be parsed",
    }
}

fn content(kind: IdentityFile) -> &'static str {
    match kind {
        IdentityFile::Certificate => "certificate",
        IdentityFile::Key => "private key (PKCS #8, PKCS #1 or SEC 1, not encrypted)",
    }
}

/// The files, and the last valid pair read from them. The lock is read once per handshake, and written when a
/// new pair has been read.
#[derive(Debug)]
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Identity {
    /// Reads a certificate chain and its private key.
    ///
    /// # Errors
    /// [`IdentityError`], which names the setting and the file.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, IdentityError> {
        let current = RwLock::new(Arc::new(read(&certificate, &key)?));
        Ok(Self {
            certificate,
            key,
            current,
        })
    }

    /// Rereads the files. New handshakes use their content from then on.
    ///
    /// # Errors
    /// [`IdentityError`]; the previous pair stays in use.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let read = Arc::new(read(&self.certificate, &self.key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// Returns the paths of certificate and key.
    #[must_use]
    pub fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }

    /// Returns an acceptor that presents this identity and negotiates HTTP/2 or HTTP/1.1.
    #[must_use]
    pub fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        super::install_provider();
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, IdentityError> {
    let malformed = |kind, path: &Path, error: &pem::Error| IdentityError::Malformed {
        kind,
        path: path.to_owned(),
        reason: pem_fault(error),
    };
    let text = read_file(IdentityFile::Certificate, certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = match chain {
        Ok(chain) if chain.is_empty() => Err(pem::Error::NoItemsFound),
        chain => chain,
    };
    let chain = chain.map_err(|error| malformed(IdentityFile::Certificate, certificate, &error))?;
    let text = read_file(IdentityFile::Key, key)?;
    let private = PrivateKeyDer::from_pem_slice(&text);
    let private = private.map_err(|error| malformed(IdentityFile::Key, key, &error))?;
    let provider = rustls::crypto::ring::default_provider();
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|_| IdentityError::Unusable {
        kind: IdentityFile::Key,
        path: key.to_owned(),
        reason: "its private key is not a valid RSA (2048 to 4096 bits), ECDSA (P-256 or P-384) or Ed25519 key",
    })?;
    let pair = CertifiedKey::new(chain, private);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(_)) => Err(IdentityError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        }),
        Err(_) => Err(IdentityError::Unusable {
            kind: IdentityFile::Certificate,
            path: certificate.to_owned(),
            reason: "its first certificate is not a valid X.509 certificate",
        }),
    }
}

fn read_file(kind: IdentityFile, path: &Path) -> Result<Vec<u8>, IdentityError> {
    regular_file::read(path, MAX_FILE_BYTES).map_err(|source| IdentityError::Read {
        kind,
        path: path.to_owned(),
        source,
    })
}
