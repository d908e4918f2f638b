//! Encryption by libpq's rules: what each sslmode tries in which order, and what it demands of a certificate.

use super::certificate::Checker;
use super::conninfo::Bad;
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// libpq's sslmode, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only if the server insists.
    Allow,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted or not at all.
    Require,
    /// … and the certificate comes from a trusted authority.
    VerifyCa,
    /// … and is made out to the host.
    VerifyFull,
}

impl SslMode {
    /// The mode of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// How encryption begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negotiation {
    /// PostgreSQL's own question first.
    Postgres,
    /// At once (PostgreSQL 17 and later).
    Direct,
}

/// All that a connection string says about encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The mode.
    pub mode: SslMode,
    /// How it begins.
    pub negotiation: Negotiation,
    /// Whether the system's authorities are the trusted ones.
    pub system_roots: bool,
    /// A file of trusted authorities.
    pub root_file: Option<PathBuf>,
    /// This client's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// What is demanded of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Nothing.
    Anyone,
    /// A trusted authority vouches for it.
    Authority,
    /// … and it is made out to this host.
    Host,
}

/// One way to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Not encrypted.
    Plain,
    /// Encrypted if the server offers it.
    IfOffered(Trust),
    /// Encrypted.
    Encrypted(Trust),
}

impl Tls {
    /// What to try, in this order. A socket is never encrypted, whatever the mode. As in libpq, a file of authorities
    /// makes the weaker modes check against it too.
    pub fn attempts(&self, on_a_socket: bool) -> Result<Vec<Attempt>, Bad> {
        let trust = if self.root_file.is_some() || self.system_roots { Trust::Authority } else { Trust::Anyone };
        if on_a_socket {
            return Ok(vec![Attempt::Plain]);
        }
        Ok(match self.mode {
            SslMode::Disable => vec![Attempt::Plain],
            SslMode::Allow => vec![Attempt::Plain, Attempt::Encrypted(trust)],
            SslMode::Prefer => vec![Attempt::IfOffered(trust), Attempt::Plain],
            SslMode::Require => vec![Attempt::Encrypted(trust)],
            SslMode::VerifyCa | SslMode::VerifyFull if trust == Trust::Anyone => {
                return Err(Bad::Together(
                    "sslmode verify-ca and verify-full need sslrootcert, ~/.postgresql/root.crt or sslrootcert=system",
                ));
            }
            SslMode::VerifyCa => vec![Attempt::Encrypted(Trust::Authority)],
            SslMode::VerifyFull => vec![Attempt::Encrypted(Trust::Host)],
        })
    }

    /// A connector that demands this much.
    pub fn connector(&self, trust: Trust) -> Result<MakeRustlsConnect, Bad> {
        let provider = Arc::new(ring::default_provider());
        let trusted = if trust == Trust::Anyone { Vec::new() } else { self.trusted()? };
        let checker = Checker::new(trust, trusted, provider.signature_verification_algorithms)?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(checker));
        let mut config = match self.own_certificate(&provider)? {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        };
        if self.negotiation == Negotiation::Direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }

    /// The server judges it, so it is not parsed here: OpenSSL makes certificates of version 1 too.
    fn own_certificate(&self, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, Bad> {
        let Some(path) = &self.certificate else { return Ok(None) };
        let chain = certificates("client certificate", path)?;
        let key = self.key.as_deref().ok_or(Bad::Together("sslcert is given without sslkey"))?;
        let unusable = |error: &dyn std::fmt::Display| unreadable("client key", key, error);
        let pem = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(&error))?;
        let key = provider.key_provider.load_private_key(pem).map_err(|error| unusable(&error))?;
        Ok(Some(CertifiedKey::new(chain, key)))
    }

    fn trusted(&self) -> Result<Vec<CertificateDer<'static>>, Bad> {
        if let Some(path) = &self.root_file {
            return certificates("root certificate file", path);
        }
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            return Err(Bad::Together("the system has no trusted certificates (sslrootcert=system)"));
        }
        Ok(found.certs)
    }
}

fn unreadable(what: &'static str, path: &Path, error: &dyn std::fmt::Display) -> Bad {
    Bad::File { what, path: path.display().to_string(), reason: error.to_string() }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Bad> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(unreadable(what, path, &"it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(what, path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Attempt::{Encrypted, IfOffered, Plain};
    use Trust::{Anyone, Authority, Host};

    #[test]
    fn what_each_mode_tries() {
        let attempts = |mode, root: bool| {
            let tls = Tls {
                mode,
                negotiation: Negotiation::Postgres,
                system_roots: false,
                root_file: root.then(|| PathBuf::from("/root.crt")),
                certificate: None,
                key: None,
            };
            assert_eq!(tls.attempts(true), Ok(vec![Plain]), "a socket is never encrypted");
            tls.attempts(false)
        };
        for (mode, without, with) in [
            (SslMode::Disable, Some(vec![Plain]), vec![Plain]),
            (SslMode::Allow, Some(vec![Plain, Encrypted(Anyone)]), vec![Plain, Encrypted(Authority)]),
            (SslMode::Prefer, Some(vec![IfOffered(Anyone), Plain]), vec![IfOffered(Authority), Plain]),
            (SslMode::Require, Some(vec![Encrypted(Anyone)]), vec![Encrypted(Authority)]),
            (SslMode::VerifyCa, None, vec![Encrypted(Authority)]),
            (SslMode::VerifyFull, None, vec![Encrypted(Host)]),
        ] {
            assert_eq!(attempts(mode, false).ok(), without, "{mode:?}");
            assert_eq!(attempts(mode, true), Ok(with), "{mode:?} with a root file");
        }
    }
}
