//! Encryption by libpq's rules: what each sslmode tries in which order, and what it demands of a certificate.

use super::certificate::Checker;
use super::conninfo::Bad;
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
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
    /// Whose word about the server's certificate counts.
    pub roots: Roots,
    /// Where libpq looks for a list of revoked certificates by itself.
    pub revoked: Option<PathBuf>,
    /// Where this client's certificate is, if it has one.
    pub certificate: Option<PathBuf>,
    /// Where its key is.
    pub key: Option<PathBuf>,
    /// Whether the server is told under which name it was asked for, before anything is encrypted.
    pub server_name: bool,
}

/// Where the trusted authorities are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The operating system's.
    System,
    /// In this file. One that is not there trusts nobody.
    File(PathBuf),
    /// There is not even a home to look in.
    Nowhere,
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
    /// makes the weaker modes check against it too, and whether it is there is looked up for each connection.
    pub fn attempts(&self, on_a_socket: bool) -> Result<Vec<Attempt>, Bad> {
        if on_a_socket || self.mode == SslMode::Disable {
            return Ok(vec![Attempt::Plain]);
        }
        let trust = match &self.roots {
            Roots::System => Trust::Authority,
            Roots::File(path) if path.exists() => Trust::Authority,
            Roots::File(_) | Roots::Nowhere => Trust::Anyone,
        };
        // libpq reads it whenever it reads a file of authorities.
        let revoked = self.revoked.as_deref().filter(|path| path.exists());
        if let (Roots::File(_), Trust::Authority, Some(list)) = (&self.roots, trust, revoked) {
            return Err(Bad::RevocationList { path: list.display().to_string() });
        }
        Ok(match self.mode {
            SslMode::Disable => vec![Attempt::Plain],
            SslMode::Allow => vec![Attempt::Plain, Attempt::Encrypted(trust)],
            SslMode::Prefer => vec![Attempt::IfOffered(trust), Attempt::Plain],
            SslMode::Require => vec![Attempt::Encrypted(trust)],
            SslMode::VerifyCa | SslMode::VerifyFull if trust == Trust::Anyone => return Err(self.nobody_to_trust()),
            SslMode::VerifyCa => vec![Attempt::Encrypted(Trust::Authority)],
            SslMode::VerifyFull => vec![Attempt::Encrypted(Trust::Host)],
        })
    }

    fn nobody_to_trust(&self) -> Bad {
        match &self.roots {
            Roots::File(path) => Bad::NoRoots { path: path.display().to_string() },
            Roots::System | Roots::Nowhere => Bad::Together(
                "sslmode verify-ca and verify-full need sslrootcert, and there is no home directory with .postgresql/root.crt",
            ),
        }
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
        config.enable_sni = self.server_name;
        Ok(MakeRustlsConnect::new(config))
    }

    /// None where the file is not there: as in libpq, the server says whether it insists on one. The server judges it too,
    /// so it is not parsed here: OpenSSL makes certificates of version 1.
    fn own_certificate(&self, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, Bad> {
        let Some(path) = &self.certificate else { return Ok(None) };
        match path.metadata() {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(unreadable("client certificate", path, &error)),
            Ok(_) => {}
        }
        let chain = certificates("client certificate", path)?;
        let key = self.key.as_deref().ok_or(Bad::Together("there is a client certificate, but no sslkey"))?;
        let key = provider.key_provider.load_private_key(private_key(key)?);
        let key = key.map_err(|error| unreadable("client key", self.key.as_deref().unwrap_or(path), &error))?;
        Ok(Some(CertifiedKey::new(chain, key)))
    }

    fn trusted(&self) -> Result<Vec<CertificateDer<'static>>, Bad> {
        if let Roots::File(path) = &self.roots {
            return certificates("root certificate file", path);
        }
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            return Err(Bad::Together("the system has no trusted certificates (sslrootcert=system)"));
        }
        Ok(found.certs)
    }
}

/// A private key, in PEM or DER, from a file that nobody else can read: libpq uses no other.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Bad> {
    let unusable = |why: &dyn std::fmt::Display| unreadable("client key", path, why);
    let about = path.metadata().map_err(|error| unusable(&error))?;
    if !about.is_file() {
        return Err(unusable(&"it is not a regular file"));
    }
    // Of root's own files the group may read, as with certificates of the whole system.
    let forbidden = if about.uid() == 0 { 0o037 } else { 0o077 };
    if about.mode() & forbidden != 0 {
        return Err(unusable(&"group or others have access to it; chmod 600 takes it away"));
    }
    PrivateKeyDer::from_pem_file(path).or_else(|error| {
        let der = std::fs::read(path).ok().and_then(|bytes| PrivateKeyDer::try_from(bytes).ok());
        der.ok_or_else(|| unusable(&error))
    })
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

    fn tls(mode: SslMode, roots: Roots) -> Tls {
        let negotiation = Negotiation::Postgres;
        Tls { mode, negotiation, roots, revoked: None, certificate: None, key: None, server_name: true }
    }

    #[test]
    fn what_each_mode_tries() {
        // Any file that exists will do: what is in it counts only when it is read.
        let here = Roots::File(std::env::current_exe().unwrap());
        let nobody = [Roots::Nowhere, Roots::File(PathBuf::from("/nowhere/root.crt"))];
        for (mode, without, with) in [
            (SslMode::Disable, Some(vec![Plain]), vec![Plain]),
            (SslMode::Allow, Some(vec![Plain, Encrypted(Anyone)]), vec![Plain, Encrypted(Authority)]),
            (SslMode::Prefer, Some(vec![IfOffered(Anyone), Plain]), vec![IfOffered(Authority), Plain]),
            (SslMode::Require, Some(vec![Encrypted(Anyone)]), vec![Encrypted(Authority)]),
            (SslMode::VerifyCa, None, vec![Encrypted(Authority)]),
            (SslMode::VerifyFull, None, vec![Encrypted(Host)]),
        ] {
            for roots in &nobody {
                assert_eq!(tls(mode, roots.clone()).attempts(false).ok(), without, "{mode:?} without");
            }
            let with_file = tls(mode, here.clone());
            assert_eq!(with_file.attempts(false), Ok(with), "{mode:?} with a root file");
            assert_eq!(with_file.attempts(true), Ok(vec![Plain]), "a socket is never encrypted");
        }
    }

    #[test]
    fn a_list_of_revoked_certificates_is_not_passed_over() {
        let file = std::env::current_exe().unwrap();
        let revoked = |mode, roots| Tls { revoked: Some(file.clone()), ..tls(mode, roots) }.attempts(false);
        let refused = revoked(SslMode::Prefer, Roots::File(file.clone())).unwrap_err();
        assert!(refused.to_string().contains(file.to_str().unwrap()), "{refused}");
        assert!(revoked(SslMode::Disable, Roots::File(file.clone())).is_ok());
        assert!(revoked(SslMode::VerifyFull, Roots::System).is_ok(), "libpq does not read it then");
        assert!(revoked(SslMode::Require, Roots::Nowhere).is_ok(), "nothing is checked");
    }
}
