//! Certificates of version 1, which webpki does not read. Several releases of OpenSSL make one of a request unless told
//! otherwise, also by the commands in "Creating Certificates" of PostgreSQL's manual, and libpq takes it.
//!
//! Such a certificate has no extensions: nothing that limits it, and nothing that would make it an authority. So it is
//! taken where it is itself among the trusted ones or one of them signed it, and never further.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{BasicConstraints, NameConstraints};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{Certificate, Version};

/// Whether it is of version 1, and no more than that.
pub fn is_version_one(certificate: &Certificate) -> bool {
    let content = &certificate.tbs_certificate;
    content.version == Version::V1 && content.extensions.is_none()
}

/// Insists that it is trusted itself, or that a trusted authority signed it, and that it is valid now.
pub fn vouched(
    certificate: &Certificate,
    trusted: &[CertificateDer<'_>],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), Error> {
    let validity = &certificate.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    let mut issuer_found = false;
    for authority in trusted.iter().filter_map(|der| Certificate::from_der(der).ok()) {
        if authority == *certificate {
            return Ok(());
        }
        if authority.tbs_certificate.subject == certificate.tbs_certificate.issuer && may_sign(&authority) {
            issuer_found = true;
            if signed_by(certificate, &authority, algorithms.all).is_some() {
                return Ok(());
            }
        }
    }
    Err(if issuer_found { CertificateError::BadSignature } else { CertificateError::UnknownIssuer }.into())
}

/// Not one that says of itself that it is none, nor one that limits the names it signs for: those of version 1 cannot be
/// held against that.
fn may_sign(authority: &Certificate) -> bool {
    let content = &authority.tbs_certificate;
    let is_authority = match content.get::<BasicConstraints>() {
        Ok(constraints) => constraints.is_none_or(|(_, constraints)| constraints.ca),
        Err(_) => false,
    };
    is_authority && matches!(content.get::<NameConstraints>(), Ok(None))
}

fn signed_by(
    certificate: &Certificate,
    authority: &Certificate,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Option<()> {
    let key = &authority.tbs_certificate.subject_public_key_info;
    let how = content(&certificate.signature_algorithm)?;
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return None;
    }
    let message = certificate.tbs_certificate.to_der().ok()?;
    let signature = certificate.signature.as_bytes()?;
    let mut of_this_kind = algorithms.iter().filter(|algorithm| algorithm.signature_alg_id().as_ref() == how);
    of_this_kind.find_map(|algorithm| verified(*algorithm, key, &message, signature))
}

/// Whether the server that shows the certificate has its key, in TLS 1.2. (For 1.3 rustls itself takes a bare key.)
pub fn signed_handshake(
    message: &[u8],
    key: &SubjectPublicKeyInfoOwned,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
    let mut of_scheme = of_scheme.flat_map(|(_, algorithms)| algorithms.iter());
    match of_scheme.find_map(|algorithm| verified(*algorithm, key, message, signed.signature())) {
        Some(()) => Ok(HandshakeSignatureValid::assertion()),
        None => Err(CertificateError::BadSignature.into()),
    }
}

fn verified(
    algorithm: &dyn SignatureVerificationAlgorithm,
    key: &SubjectPublicKeyInfoOwned,
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    if algorithm.public_key_alg_id().as_ref() != content(&key.algorithm)? {
        return None;
    }
    algorithm.verify_signature(key.subject_public_key.as_bytes()?, message, signature).ok()
}

/// An algorithm's identifier without its outermost tag, as rustls keeps it.
fn content(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let mut content = algorithm.oid.to_der().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        content.extend(parameters.to_der().ok()?);
    }
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    /// CN=a, CA:TRUE.
    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBbTCCAROgAwIBAgIUQ+bfGrN4Fn1+Fj2KdWgnN6RZMVYwCgYIKoZIzj0EAwIw\n\
DDEKMAgGA1UEAwwBYTAeFw0yNjExMjIwODEwNTFaFw0zNjExMTkwODEwNTFaMAwx\n\
CjAIBgNVBAMMAWEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATcu5VzRNCaztnf\n\
dV+wi+L/+xhCNJmm/mfiTvmKsxK0DlRxk6DGRuBB23axHQ1izBEcMbI7I5CwKSkC\n\
+9vSx0+bo1MwUTAdBgNVHQ4EFgQUYHBr9NhvZtcptE3XJcKFccRrcUcwHwYDVR0j\n\
BBgwFoAUYHBr9NhvZtcptE3XJcKFccRrcUcwDwYDVR0TAQH/BAUwAwEB/zAKBggq\n\
hkjOPQQDAgNIADBFAiEA48MkWP2TIhMjjlOmZ4dJm/b0IqKKsM+HRG6wAaC4A6EC\n\
IGV8XcfwbcxWUBGyWZG0iiyxrJrUnCNEYjfEyeDweMF+\n\
-----END CERTIFICATE-----";
    /// The same name and key, CA:FALSE.
    const NO_AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBRDCB7KADAgECAhQ6kjZi878mIP5kthfyEtwXf61aLzAKBggqhkjOPQQDAjAM\n\
MQowCAYDVQQDDAFhMB4XDTI2MTEyMjA4MTA1MVoXDTM2MTExOTA4MTA1MVowDDEK\n\
MAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNy7lXNE0JrO2d91\n\
X7CL4v/7GEI0mab+Z+JO+YqzErQOVHGToMZG4EHbdrEdDWLMERwxsjsjkLApKQL7\n\
29LHT5ujLDAqMAkGA1UdEwQCMAAwHQYDVR0OBBYEFGBwa/TYb2bXKbRN1yXChXHE\n\
a3FHMAoGCCqGSM49BAMCA0cAMEQCIHwru4NtxbNxLWK2nMP+YkWvaQTPNW94b3tO\n\
ACQnaEW4AiAr8YXVYocB/+haDrqxEElqgOegTrbowgiHP/W96iYYzQ==\n\
-----END CERTIFICATE-----";
    /// The same name, another key.
    const NAMESAKE: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBbTCCAROgAwIBAgIUXda6kXh0NErrMMGKpW82u5PF8O0wCgYIKoZIzj0EAwIw\n\
DDEKMAgGA1UEAwwBYTAeFw0yNjExMjIwODEwNTFaFw0zNjExMTkwODEwNTFaMAwx\n\
CjAIBgNVBAMMAWEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASUIXVHLze0aOpt\n\
OPP4bebDJAh0siJJcw7HWI7r/k5FKvaVak9k+5Emk0vG5BIO90nW9jVoyYFb0mHj\n\
iITgrIw4o1MwUTAdBgNVHQ4EFgQUufI6FHAUKAKCJBkMmPKGTyzZEcMwHwYDVR0j\n\
BBgwFoAUufI6FHAUKAKCJBkMmPKGTyzZEcMwDwYDVR0TAQH/BAUwAwEB/zAKBggq\n\
hkjOPQQDAgNIADBFAiEAiEWKx3v2NLGtCPEg3SWA4K/R3g7iYqmBORZqc0LepSgC\n\
ICIiXy0lPUNEwiybxIXxgm9OgON+00NmCSzngIGWXtSd\n\
-----END CERTIFICATE-----";
    /// CN=db, of version 1, signed by the authority.
    const SERVER: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBATCBpwIBATAKBggqhkjOPQQDAjAMMQowCAYDVQQDDAFhMB4XDTI2MTEyMjA4\n\
MTA1MVoXDTM2MTExOTA4MTA1MVowDTELMAkGA1UEAwwCZGIwWTATBgcqhkjOPQIB\n\
BggqhkjOPQMBBwNCAASfE+CjyE2H1dGjrpcQ2cGUIdzws6WwVLmE4aSJtJ9rcKvF\n\
mzb9lGr0ayJQ04zF3RuGg+S63WAO9L3BGvA/PUB4MAoGCCqGSM49BAMCA0kAMEYC\n\
IQCQSD9YjHTbwckdoOf9F1eMHngQjn+2v+C5B9dTAZf7EgIhANcHsuYGYUUTpEcW\n\
Af/LfrQZCIIgaHdpQZBs1L9HvxPT\n\
-----END CERTIFICATE-----";

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn verdict(trusted: &[&str], days: u64) -> Result<(), Error> {
        let server = Certificate::from_der(&der(SERVER)).unwrap();
        assert!(is_version_one(&server));
        let begin = server.tbs_certificate.validity.not_before.to_unix_duration();
        let now = UnixTime::since_unix_epoch(begin + Duration::from_secs(days * 24 * 3600) - Duration::from_secs(1));
        let trusted: Vec<_> = trusted.iter().map(|pem| der(pem)).collect();
        vouched(&server, &trusted, now, &ring::default_provider().signature_verification_algorithms)
    }

    #[test]
    fn an_authority_or_itself_vouches() {
        assert_eq!(verdict(&[NAMESAKE, AUTHORITY], 1), Ok(()));
        assert_eq!(verdict(&[SERVER], 1), Ok(()));
        assert_eq!(verdict(&[], 1), Err(CertificateError::UnknownIssuer.into()));
        assert_eq!(verdict(&[NAMESAKE], 1), Err(CertificateError::BadSignature.into()));
        assert_eq!(verdict(&[NO_AUTHORITY], 1), Err(CertificateError::UnknownIssuer.into()));
    }

    #[test]
    fn in_its_time() {
        for trusted in [AUTHORITY, SERVER] {
            assert_eq!(verdict(&[trusted], 0), Err(CertificateError::NotValidYet.into()));
            assert_eq!(verdict(&[trusted], 3650), Ok(()));
            assert_eq!(verdict(&[trusted], 3651), Err(CertificateError::Expired.into()));
        }
    }

    #[test]
    fn those_of_version_three_are_none() {
        assert!(!is_version_one(&Certificate::from_der(&der(AUTHORITY)).unwrap()));
    }
}
