//! The server's certificate and private key, which can be read again while it serves.
//!
//! Connections that are open keep the certificate they began with; new ones get the latest that could
//! be read. A pair that can't be used never takes the place of one that can. The key must never be
//! logged, in an error either.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// The largest file that is read, in bytes. A chain of certificates has some kilobytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemFile {
    /// The certificate chain.
    Certificate,
    /// The private key.
    Key,
}

impl fmt::Display for PemFile {
    /// The setting that names the file.
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
    #[error("`{part}`: {} can't be read: {source}", file.display())]
    Read {
        /// Which.
        part: PemFile,
        /// Its path.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not PEM, or holds something else.
    #[error("`{part}`: {} has no {} in PEM: {reason}", file.display(), content(*part))]
    Malformed {
        /// Which.
        part: PemFile,
        /// Its path.
        file: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file is PEM, but what is in it can't be used.
    #[error("`{part}`: {} can't be used: {reason}", file.display())]
    Unusable {
        /// Which.
        part: PemFile,
        /// Its path.
        file: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The key is not the certificate's.
    #[error(
        "the key in {} (`tls-key`) does not belong to the first certificate in {} (`tls-cert`)",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate's path.
        certificate: PathBuf,
        /// The key's path.
        key: PathBuf,
    },
}

/// Returns what is wrong with a file that should be PEM. The library shows lines of it as numbers, and
/// these may be parts of a key.
pub(crate) fn pem_fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no line `-----END …-----`; the file may be truncated"
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins with `-----BEGIN` and does not end with `-----`"
        }
        pem::Error::Base64Decode(_) => {
            "what is between the lines `-----BEGIN …-----` and `-----END …-----` is not valid Base64"
        }
        pem::Error::NoItemsFound => "no section of the file is one",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it can't be read",
    }
}

fn content(part: PemFile) -> &'static str {
    match part {
        PemFile::Certificate => "certificate",
        PemFile::Key => "private key (PKCS #8, PKCS #1 or SEC 1, not encrypted)",
    }
}

/// The files, and what they held when they were last read. One lock, read once per handshake and
/// written when a new pair was read.
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
    /// [`IdentityError`] naming setting and file.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, IdentityError> {
        let current = RwLock::new(Arc::new(read(&certificate, &key)?));
        Ok(Self {
            certificate,
            key,
            current,
        })
    }

    /// Reads the files again. New handshakes use what they hold from then on.
    ///
    /// # Errors
    /// [`IdentityError`]; what was read before stays in use.
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

    /// Returns what accepts connections as this identity, in HTTP/2 or HTTP/1.1 as the client likes.
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
    let malformed = |part, file: &Path, error: &pem::Error| IdentityError::Malformed {
        part,
        file: file.to_owned(),
        reason: pem_fault(error),
    };
    let text = read_file(PemFile::Certificate, certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = match chain {
        Ok(chain) if chain.is_empty() => Err(pem::Error::NoItemsFound),
        chain => chain,
    };
    let chain = chain.map_err(|error| malformed(PemFile::Certificate, certificate, &error))?;
    let text = read_file(PemFile::Key, key)?;
    let private = PrivateKeyDer::from_pem_slice(&text);
    let private = private.map_err(|error| malformed(PemFile::Key, key, &error))?;
    let provider = rustls::crypto::ring::default_provider();
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|_| IdentityError::Unusable {
        part: PemFile::Key,
        file: key.to_owned(),
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
            part: PemFile::Certificate,
            file: certificate.to_owned(),
            reason: "its first certificate is not a valid X.509 certificate",
        }),
    }
}

/// Reads a regular file: a pipe would be waited for.
fn read_file(part: PemFile, file: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source| IdentityError::Read {
        part,
        file: file.to_owned(),
        source,
    };
    let metadata = fs::metadata(file).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    let mut opened = File::open(file).map_err(failed)?.take(LARGEST_FILE + 1);
    opened.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(failed(io::Error::other("it is larger than 1 MiB")));
    }
    Ok(bytes)
}
