//! Whether a certificate is made out to a host, by libpq's rules, which differ from the web's: a certificate without
//! alternative names of the host's kind may name it in its subject.
//!
//! Source: "Client Verification of Server Certificates" of the libpq chapter, and
//! `pgtls_verify_peer_name_matches_certificate_guts`, PostgreSQL 18.

use std::net::IpAddr;
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Whom a certificate is made out to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    alternatives: Vec<Alternative>,
    /// The first one of the subject.
    common_name: Option<Vec<u8>>,
}

/// An alternative name of a kind that counts.
#[derive(Debug, PartialEq, Eq)]
enum Alternative {
    Dns(Vec<u8>),
    Address(Vec<u8>),
}

impl Names {
    /// The names in a certificate; none if they cannot be read.
    pub fn of(certificate: &Certificate) -> Option<Names> {
        let certificate = &certificate.tbs_certificate;
        let (_, alternatives) =
            certificate.get::<SubjectAltName>().ok()?.unwrap_or((false, SubjectAltName(Vec::new())));
        let alternatives = alternatives.0.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(Alternative::Dns(name.as_bytes().to_vec())),
            GeneralName::IpAddress(address) => Some(Alternative::Address(address.as_bytes().to_vec())),
            _ => None,
        });
        let mut subject = certificate.subject.0.iter().flat_map(|part| part.0.iter());
        let common_name = subject.find(|attribute| attribute.oid == COMMON_NAME);
        Some(Names {
            alternatives: alternatives.collect(),
            common_name: common_name.map(|attribute| attribute.value.value().to_vec()),
        })
    }

    /// Whether they are for this host. A name that only pretends to be one ends the search.
    pub fn are_for(&self, host: &str) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        let mut by_subject = true;
        for name in &self.alternatives {
            let fits = match name {
                Alternative::Dns(name) => is_name_of(name, host),
                Alternative::Address(bytes) => is_address_of(bytes, address),
            };
            match fits {
                Some(false) => {}
                Some(true) => return true,
                None => return false,
            }
            // One of the host's kind, and the subject does not count any more; libpq lets it count for an address
            // beside names.
            by_subject &= matches!(name, Alternative::Dns(_)) == address.is_some();
        }
        by_subject && self.common_name.as_deref().and_then(|name| is_name_of(name, host)).unwrap_or(false)
    }

    /// As a person reads them.
    pub fn told(&self) -> Vec<String> {
        let alternatives = self.alternatives.iter().map(|name| match name {
            Alternative::Dns(name) => String::from_utf8_lossy(name).into_owned(),
            Alternative::Address(bytes) => {
                let known = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
                let known = known.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from));
                known.map_or_else(|_| "an address of no known kind".to_owned(), |address| address.to_string())
            }
        });
        let subject = self.common_name.iter().map(|name| String::from_utf8_lossy(name).into_owned());
        alternatives.chain(subject).collect()
    }
}

/// A name, or `*.` and the rest of a name: the star stands for one label. None for a name with a NUL inside, which is
/// made to deceive (CVE-2009-4034).
fn is_name_of(name: &[u8], host: &str) -> Option<bool> {
    if name.contains(&0) {
        return None;
    }
    let of_all = |rest: &[u8]| {
        !rest.is_empty()
            && host
                .split_once('.')
                .is_some_and(|(label, domain)| !label.is_empty() && domain.as_bytes().eq_ignore_ascii_case(rest))
    };
    Some(name.eq_ignore_ascii_case(host.as_bytes()) || name.strip_prefix(b"*.").is_some_and(of_all))
}

/// None for an address that is of neither version of IP.
fn is_address_of(bytes: &[u8], host: Option<IpAddr>) -> Option<bool> {
    if !matches!(bytes.len(), 4 | 16) {
        return None;
    }
    Some(match host {
        Some(IpAddr::V4(host)) => host.octets() == bytes,
        Some(IpAddr::V6(host)) => host.octets() == bytes,
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(name: &str) -> Alternative {
        Alternative::Dns(name.as_bytes().to_vec())
    }

    fn names<const N: usize>(alternatives: [Alternative; N], common_name: &str) -> Names {
        Names { alternatives: alternatives.into(), common_name: Some(common_name.as_bytes().to_vec()) }
    }

    #[test]
    fn alternative_names_beat_the_subject() {
        let both = names([dns("db.example.com"), dns("db")], "old.example.com");
        assert!(both.are_for("db.example.com") && both.are_for("DB.Example.COM") && both.are_for("db"));
        assert!(!both.are_for("old.example.com") && !both.are_for("example.com"));
        let subject_only = names([], "db.example.com");
        assert!(subject_only.are_for("db.example.com") && !subject_only.are_for("db"));
        assert!(!Names::default().are_for("db"));
    }

    #[test]
    fn a_star_is_one_label_and_the_first() {
        let star = names([dns("*.example.com")], "");
        assert!(star.are_for("db.example.com") && star.are_for("db.EXAMPLE.com"));
        for host in ["a.db.example.com", "example.com", ".example.com", "db.example.com.", "dbexample.com"] {
            assert!(!star.are_for(host), "{host}");
        }
        for pattern in ["db.*.com", "d*.example.com", "*b.example.com", "*", "*.", "*.*.com"] {
            assert!(!names([dns(pattern)], "").are_for("db.example.com"), "{pattern}");
        }
        assert!(names([], "*.example.com").are_for("db.example.com"));
    }

    #[test]
    fn addresses_are_compared_as_addresses() {
        let four = || Alternative::Address(vec![127, 0, 0, 1]);
        let six = Alternative::Address([&[0; 15][..], &[1]].concat());
        let both = names([four(), six], "10.0.0.1");
        assert!(both.are_for("127.0.0.1") && both.are_for("::1") && both.are_for("0:0::1"));
        assert!(!both.are_for("10.0.0.1"), "there are addresses, so the subject does not count");
        assert!(names([four()], "db").are_for("db"), "but it does for a name");
        assert!(names([dns("db")], "10.0.0.1").are_for("10.0.0.1"), "and for an address beside names");
        assert!(names([dns("10.0.0.1")], "").are_for("10.0.0.1"), "libpq takes an address as a name, too");
        assert!(!names([Alternative::Address(vec![127, 0, 0, 1, 0]), dns("db")], "").are_for("db"), "of no kind");
    }

    #[test]
    fn a_name_with_a_nul_inside_is_for_nobody() {
        assert!(!names([dns("db\0.evil.com"), dns("db")], "db").are_for("db"));
        assert!(!names([], "db\0.evil.com").are_for("db"));
    }

    #[test]
    fn they_are_told_as_people_write_them() {
        assert_eq!(names([dns("db"), Alternative::Address(vec![10, 0, 0, 1])], "x").told(), ["db", "10.0.0.1", "x"]);
    }
}
