//! A check of the user's own by HTTP: 2xx lets work go on, anything else holds it. What was heard is told to the database, where it
//! holds whoever works, shows in `migrator.signals`, and is forgotten when nobody tells it again.

use crate::db::{Class, Limits, Target};
use crate::store::{Store, Unfit};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// How often it is asked: as often as the server's own signals are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer is waited for. No answer is a no.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most of an answer's words that are passed on.
const WORDS: usize = 200;

/// What is asked, and what was heard last.
pub struct Check {
    url: String,
    /// The same without what may be secret: a user, a password, a query.
    address: String,
    http: ureq::Agent,
    target: Target,
    store: Option<Store>,
    /// What was told last; None: nothing yet.
    told: Option<Option<String>>,
}

/// Why an address cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("--http-check {0} is not an http:// or https:// address")]
pub struct NoAddress(String);

impl Check {
    /// Prepares to ask this address.
    pub fn of(url: &str, target: Target) -> Result<Check, NoAddress> {
        let address =
            without_secrets(url).ok_or_else(|| NoAddress(url.split('?').next().unwrap_or_default().to_owned()))?;
        // The certificates that this machine trusts, as for the database.
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<Certificate<'static>> =
            roots.iter().map(|root| Certificate::from_der(root.as_ref()).to_owned()).collect();
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).tls_config(tls).build();
        Ok(Check { url: url.to_owned(), address, http: config.into(), target, store: None, told: None })
    }

    /// Asks and tells once.
    pub async fn once(&mut self) -> Result<(), Unfit> {
        let said = self.ask().await;
        if self.told.as_ref() != Some(&said) {
            match &said {
                Some(said) => warn!(check = self.address, said, "the check says no: work holds"),
                None => info!(check = self.address, "the check says yes"),
            }
        } else if said.is_none() {
            return Ok(());
        }
        let store = match &self.store {
            Some(store) => store,
            None => self.store.insert(Store::open(&self.target, "check", Limits::Short).await?),
        };
        if let Err(trouble) = store.report_check(&self.address, said.as_deref()).await {
            self.store = None;
            return Err(trouble.into());
        }
        self.told = Some(said);
        Ok(())
    }

    /// Asks and tells until the drive stops.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            match stop.run_until_cancelled(self.once()).await {
                Some(Err(unfit)) if unfit.class() == Class::Stop => {
                    warn!(check = self.address, error = %unfit, "nobody can be told what the check says");
                }
                // The drive tells of a server that cannot be reached.
                Some(_) | None => {}
            }
        }
    }

    /// What is not well; None where all is.
    async fn ask(&self) -> Option<String> {
        let (http, url) = (self.http.clone(), self.url.clone());
        let asked = tokio::task::spawn_blocking(move || http.get(&url).call().map(|answer| answer.status()));
        match asked.await {
            Ok(Ok(status)) if status.is_success() => None,
            Ok(Ok(status)) => Some(format!("it answered {status}")),
            Ok(Err(ureq::Error::StatusCode(status))) => Some(format!("it answered {status}")),
            Ok(Err(ureq::Error::Timeout(_))) => Some(format!("it did not answer within {} s", TIMEOUT.as_secs())),
            Ok(Err(error)) => Some(format!("it cannot be asked: {error}").chars().take(WORDS).collect()),
            Err(_) => Some("it cannot be asked".to_owned()),
        }
    }
}

/// Scheme, host and path; None for what is no such address.
fn without_secrets(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    if !["http", "https"].contains(&scheme) {
        return None;
    }
    let plain = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = plain.find('/').map_or((plain, ""), |slash| plain.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (!host.is_empty()).then(|| format!("{scheme}://{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let shown = |url| without_secrets(url).unwrap_or_default();
        assert_eq!(
            shown("https://me:s3cret@status.example:8443/ready?token=s3cret#x"),
            "https://status.example:8443/ready"
        );
        assert_eq!(shown("http://localhost"), "http://localhost");
        for url in ["localhost:80", "ftp://x/", "http://", "http://?x", ""] {
            assert_eq!(without_secrets(url), None, "{url}");
        }
    }
}
