//! The keywords of a connection string, the environment variable of each, and which of them this program honours.
//!
//! Source: "Parameter Key Words" and "Environment Variables" of the libpq chapter, PostgreSQL 18.

/// What this program does with a keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regard {
    /// Does what libpq does.
    Honoured,
    /// Without consequence here: it may be given and changes nothing.
    Ignored,
    /// Whoever gives it counts on it, and it is not kept: said so, unless the value asks for nothing.
    Refused,
}

/// A keyword of libpq.
#[derive(Debug)]
pub struct Keyword {
    /// As in a connection string.
    pub name: &'static str,
    /// The variable that stands in for it.
    pub variable: Option<&'static str>,
    /// What becomes of it.
    pub regard: Regard,
}

const fn row(name: &'static str, variable: &'static str, regard: Regard) -> Keyword {
    Keyword { name, variable: if variable.is_empty() { None } else { Some(variable) }, regard }
}

use Regard::{Honoured, Ignored, Refused};

/// Every keyword that libpq knows.
pub const KEYWORDS: &[Keyword] = &[
    row("host", "PGHOST", Honoured),
    row("hostaddr", "PGHOSTADDR", Honoured),
    row("port", "PGPORT", Honoured),
    row("dbname", "PGDATABASE", Honoured),
    row("user", "PGUSER", Honoured),
    row("password", "PGPASSWORD", Honoured),
    row("passfile", "PGPASSFILE", Honoured),
    row("service", "PGSERVICE", Honoured),
    row("servicefile", "PGSERVICEFILE", Honoured),
    row("sslmode", "PGSSLMODE", Honoured),
    row("sslrootcert", "PGSSLROOTCERT", Honoured),
    row("sslcert", "PGSSLCERT", Honoured),
    row("sslkey", "PGSSLKEY", Honoured),
    row("sslnegotiation", "PGSSLNEGOTIATION", Honoured),
    row("sslsni", "PGSSLSNI", Honoured),
    row("channel_binding", "PGCHANNELBINDING", Honoured),
    row("options", "PGOPTIONS", Honoured),
    row("connect_timeout", "PGCONNECT_TIMEOUT", Honoured),
    row("target_session_attrs", "PGTARGETSESSIONATTRS", Honoured),
    row("keepalives", "", Honoured),
    row("keepalives_idle", "", Honoured),
    row("keepalives_interval", "", Honoured),
    row("keepalives_count", "", Honoured),
    row("tcp_user_timeout", "", Honoured),
    // Hosts are tried in their order, which is what one agent wants.
    row("load_balance_hosts", "PGLOADBALANCEHOSTS", Ignored),
    // Each connection says by its name what it is doing.
    row("application_name", "PGAPPNAME", Ignored),
    row("fallback_application_name", "", Ignored),
    row("client_encoding", "PGCLIENTENCODING", Ignored),
    row("sslcompression", "PGSSLCOMPRESSION", Ignored),
    row("krbsrvname", "PGKRBSRVNAME", Ignored),
    row("gsslib", "PGGSSLIB", Ignored),
    row("gssdelegation", "PGGSSDELEGATION", Ignored),
    row("min_protocol_version", "PGMINPROTOCOLVERSION", Ignored),
    row("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    row("gssencmode", "PGGSSENCMODE", Refused),
    row("sslcrl", "PGSSLCRL", Refused),
    row("sslcrldir", "PGSSLCRLDIR", Refused),
    row("sslpassword", "", Refused),
    row("sslcertmode", "PGSSLCERTMODE", Refused),
    row("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Refused),
    row("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Refused),
    row("requirepeer", "PGREQUIREPEER", Refused),
    row("require_auth", "PGREQUIREAUTH", Refused),
    row("scram_client_key", "", Refused),
    row("scram_server_key", "", Refused),
    row("oauth_issuer", "", Refused),
    row("oauth_client_id", "", Refused),
    row("oauth_client_secret", "", Refused),
    row("oauth_scope", "", Refused),
    row("sslkeylogfile", "", Refused),
    row("replication", "", Refused),
];

/// The keyword of this name.
pub fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

impl Keyword {
    /// Whether a value asks for something that would not be kept.
    pub fn refuses(&self, value: &str) -> bool {
        let harmless = match self.name {
            "gssencmode" => matches!(value, "disable" | "prefer"),
            "sslcertmode" => value == "allow",
            // rustls speaks TLS 1.2 and 1.3 and nothing older.
            "ssl_min_protocol_version" => matches!(value, "TLSv1" | "TLSv1.1" | "TLSv1.2"),
            "ssl_max_protocol_version" => value == "TLSv1.3",
            _ => false,
        };
        self.regard == Regard::Refused && !value.is_empty() && !harmless
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_asks_for_nothing_is_no_reason_to_refuse() {
        let refuses = |name, value| find(name).unwrap().refuses(value);
        assert!(!refuses("gssencmode", "prefer") && refuses("gssencmode", "require"));
        assert!(!refuses("ssl_min_protocol_version", "TLSv1.2") && refuses("ssl_min_protocol_version", "TLSv1.3"));
        assert!(refuses("requirepeer", "postgres") && !refuses("requirepeer", ""));
        assert!(!refuses("host", "anything"));
    }
}
