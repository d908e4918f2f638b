//! Judges a server's certificate by as much as the sslmode demands.

use super::conninfo::Bad;
use super::host_name::Names;
use super::tls::Trust;
use super::version_one;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

/// A judge of certificates.
#[derive(Debug)]
pub struct Checker {
    trust: Trust,
    trusted: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Checker {
    /// A judge that trusts these certificates.
    pub fn new(
        trust: Trust,
        trusted: Vec<CertificateDer<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Checker, Bad> {
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(trusted.iter().cloned());
        if usable == 0 && trust != Trust::Anyone {
            return Err(Bad::Together("none of the trusted certificates could be understood"));
        }
        Ok(Checker { trust, trusted, roots, algorithms })
    }

    /// Vouched for by an authority, or itself among the trusted ones: a self-signed server certificate that serves as
    /// its own root is common with PostgreSQL, and webpki alone refuses it for being an authority's.
    fn vouched(&self, end: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let parsed = match ParsedCertificate::try_from(end) {
            Ok(parsed) => parsed,
            Err(error) => {
                let certificate = read(end)?;
                if !version_one::is_version_one(&certificate) {
                    return Err(error);
                }
                return version_one::vouched(&certificate, &self.trusted, now, &self.algorithms);
            }
        };
        let is_itself_trusted = self.trusted.iter().any(|trusted| trusted.as_ref() == end.as_ref());
        match verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, self.algorithms.all) {
            // webpki looks at the dates before it looks at what the certificate is for.
            Err(Error::InvalidCertificate(
                error @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
            )) => Err(Error::InvalidCertificate(error)),
            Err(_) if is_itself_trusted => Ok(()),
            verdict => verdict,
        }
    }
}

fn made_out_to(certificate: &Certificate, host: &ServerName<'_>) -> Result<(), Error> {
    let names = Names::of(certificate).ok_or(CertificateError::BadEncoding)?;
    if names.are_for(&host.to_str()) {
        return Ok(());
    }
    let error = CertificateError::NotValidForNameContext { expected: host.to_owned(), presented: names.told() };
    Err(error.into())
}

impl ServerCertVerifier for Checker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.trust != Trust::Anyone {
            self.vouched(end_entity, intermediates, now)?;
        }
        if self.trust == Trust::Host {
            made_out_to(&read(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls12_signature(message, certificate, signature, &self.algorithms) {
            Err(_) if ParsedCertificate::try_from(certificate).is_err() => {
                let key = read(certificate)?.tbs_certificate.subject_public_key_info;
                version_one::signed_handshake(message, &key, signature, &self.algorithms)
            }
            verdict => verdict,
        }
    }

    /// Checked even where anyone is trusted: channel binding rests on the server having the certificate's key.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls13_signature(message, certificate, signature, &self.algorithms) {
            // What webpki cannot read was judged before, where that counts. Of the key it needs no more than the key.
            Err(_) if ParsedCertificate::try_from(certificate).is_err() => {
                let key = read(certificate)?.tbs_certificate.subject_public_key_info;
                let key = SubjectPublicKeyInfoDer::from(key.to_der().map_err(|_| CertificateError::BadEncoding)?);
                verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
            }
            verdict => verdict,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn read(certificate: &CertificateDer<'_>) -> Result<Certificate, CertificateError> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)
}
