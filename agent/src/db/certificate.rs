//! Judges a server's certificate by as much as the sslmode demands.

use super::conninfo::Bad;
use super::tls::Trust;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
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
    fn vouched(
        &self,
        end: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let is_itself_trusted = self.trusted.iter().any(|trusted| trusted.as_ref() == end.as_ref());
        match verify_server_cert_signed_by_trust_anchor(parsed, &self.roots, between, now, self.algorithms.all) {
            // webpki looks at the dates before it looks at what the certificate is for.
            Err(Error::InvalidCertificate(
                error @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
            )) => Err(Error::InvalidCertificate(error)),
            Err(_) if is_itself_trusted => Ok(()),
            verdict => verdict,
        }
    }
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
            let parsed = ParsedCertificate::try_from(end_entity)?;
            self.vouched(end_entity, &parsed, intermediates, now)?;
            if self.trust == Trust::Host {
                verify_server_name(&parsed, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    /// Checked even where anyone is trusted: channel binding rests on the server having the certificate's key.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls13_signature(message, certificate, signature, &self.algorithms) {
            // webpki reads certificates of version 3 only; the recipe in PostgreSQL's manual makes version 1 with
            // older OpenSSL. Where nothing but the key counts, the key is taken out by other means.
            Err(_) if self.trust == Trust::Anyone && ParsedCertificate::try_from(certificate).is_err() => {
                let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
                verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
            }
            verdict => verdict,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let key = parsed.tbs_certificate.subject_public_key_info.to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}
