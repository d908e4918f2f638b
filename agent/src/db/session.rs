//! A connection with the settings that every one of ours has: a name that says what it is doing, and limits on how long
//! it may wait, run, or sit in a transaction.
//!
//! Statements go out with the types of their parameters, so that nothing is prepared beyond one statement and a pooler
//! may stand between. Rows come back as one JSON document each.

use super::target::{Place, Server};
use super::tls::{Attempt, Negotiation, Trust};
use super::trouble::{Answer, Unreachable};
use super::{Target, Trouble, redact};
use migrator_core::ident::literal;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::future::poll_fn;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, NoTls, config::SslMode as Wire};
use tracing::{debug, info, warn};

/// How long a statement may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// A look at the state: a minute.
    Short,
    /// Work whose length depends on the table: no limit.
    Work,
}

/// Nothing that somebody put into another schema can be called by accident.
const PINNED: &str = "set search_path = pg_catalog, pg_temp";

/// A parameter with its type.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// An open connection.
pub struct Session {
    client: Client,
    pump: JoinHandle<()>,
    canceller: Canceller,
    name: String,
    relaxed: bool,
}

/// Asks the server to end what a session is doing.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    encrypted: Option<tokio_postgres_rustls::MakeRustlsConnect>,
}

impl Canceller {
    /// Sends the request; whether it arrives is not known.
    pub async fn cancel(&self) {
        let sent = match &self.encrypted {
            Some(connector) => self.token.cancel_query(connector.clone()).await,
            None => self.token.cancel_query(NoTls).await,
        };
        if let Err(error) = sent {
            debug!(%error, "cancel request not sent");
        }
    }
}

impl Session {
    /// Connects: each server in turn, each way that the sslmode allows. `name` becomes `migrator:NAME`.
    pub async fn open(target: &Target, name: &str, limits: Limits) -> Result<Session, Trouble> {
        let mut attempts = Vec::new();
        let mut answer: Option<Box<Answer>> = None;
        for server in &target.servers {
            let on_a_socket = matches!(server.place, Place::Unix(_));
            for attempt in target.tls.attempts(on_a_socket).map_err(|bad| Trouble::Unexpected(bad.to_string()))? {
                match try_once(target, server, attempt, name).await {
                    Ok(session) => {
                        session.settle(limits).await?;
                        return Ok(session);
                    }
                    Err(failed) => {
                        debug!(%server, ?attempt, reason = failed.reason, "connection attempt failed");
                        // libpq tries the other way when encryption or authentication failed (class 28), not when
                        // the server is there and says that it is full or starting.
                        let final_word = failed.answer.as_ref().is_some_and(|a| !a.sqlstate.starts_with("28"));
                        let reason = (server.to_string(), failed.reason);
                        if !attempts.contains(&reason) {
                            attempts.push(reason);
                        }
                        answer = failed.answer.or(answer);
                        if final_word {
                            break;
                        }
                    }
                }
            }
        }
        Err(Trouble::Unreachable(Box::new(Unreachable { attempts, answer })))
    }

    /// The settings of every session. They are set after connecting, because a pooler refuses most of them before.
    async fn settle(&self, limits: Limits) -> Result<(), Trouble> {
        let statement_timeout = match limits {
            Limits::Short => "60s",
            Limits::Work => "0",
        };
        let sql = format!(
            "set lock_timeout = '10s'; set statement_timeout = '{statement_timeout}'; \
             set idle_in_transaction_session_timeout = '60s'; \
             set client_min_messages = notice; {PINNED}; set application_name = {}",
            literal(&self.name)
        );
        self.run(&sql).await?;
        // So that a server notices within seconds that this program was killed. Not every platform can.
        if let Err(error @ Trouble::Answered(_)) = self.run("set client_connection_check_interval = '5s'").await {
            debug!(%error, "the server cannot watch for a vanished client");
        }
        Ok(())
    }

    /// Says what the session does from now on: `migrator:NAME`. Costs a round trip only when it changes.
    pub async fn rename(&mut self, name: &str) -> Result<(), Trouble> {
        let name = full_name(name);
        if name != self.name {
            self.run(&format!("set application_name = {}", literal(&name))).await?;
            self.name = name;
        }
        Ok(())
    }

    /// Whether commits return before they are on disk from now on; else the server's own setting holds. Costs a round trip
    /// only when it changes.
    pub async fn relax(&mut self, relaxed: bool) -> Result<(), Trouble> {
        if relaxed != self.relaxed {
            self.run(if relaxed { "set synchronous_commit = off" } else { "reset synchronous_commit" }).await?;
            self.relaxed = relaxed;
        }
        Ok(())
    }

    /// Until `pin_search_path`: names are read with the user's own search_path, because a person typed them.
    pub async fn use_own_search_path(&self) -> Result<(), Trouble> {
        self.run("reset search_path").await
    }

    /// Back to pg_catalog only, where every session begins.
    pub async fn pin_search_path(&self) -> Result<(), Trouble> {
        self.run(PINNED).await
    }

    /// Runs statements that return nothing, outside any transaction of ours.
    pub async fn run(&self, sql: &str) -> Result<(), Trouble> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// The rows of a query whose only column is one JSON document as text.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<T>, Trouble> {
        let rows = self.client.query_typed(sql, with).await?;
        rows.iter()
            .map(|row| {
                let text: &str = row.try_get(0)?;
                serde_json::from_str(text).map_err(|error| Trouble::Unexpected(error.to_string()))
            })
            .collect()
    }

    /// The only row of such a query.
    pub async fn row<T: DeserializeOwned>(&self, sql: &str, with: &[Parameter<'_>]) -> Result<T, Trouble> {
        let mut rows = self.rows(sql, with).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(Trouble::Unexpected("not exactly one row".to_owned())),
        }
    }

    /// A statement with parameters whose rows nobody wants.
    pub async fn call(&self, sql: &str, with: &[Parameter<'_>]) -> Result<(), Trouble> {
        self.client.query_typed(sql, with).await?;
        Ok(())
    }

    /// For ending what this session is doing.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

struct Failed {
    reason: String,
    answer: Option<Box<Answer>>,
}

async fn try_once(target: &Target, server: &Server, attempt: Attempt, name: &str) -> Result<Session, Failed> {
    let config = config(target, server, attempt, name);
    let trust = match attempt {
        Attempt::Plain => None,
        Attempt::IfOffered(trust) | Attempt::Encrypted(trust) => Some(trust),
    };
    let connecting = async {
        match trust {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(|error| failed(&error))?;
                Ok(session(client, connection, None, name))
            }
            Some(trust) => {
                let connector = connector(target, trust)?;
                let (client, connection) = config.connect(connector.clone()).await.map_err(|error| failed(&error))?;
                Ok(session(client, connection, Some(connector), name))
            }
        }
    };
    tokio::time::timeout(target.connect_timeout, connecting)
        .await
        .unwrap_or_else(|_| Err(Failed { reason: "no answer in time".to_owned(), answer: None }))
}

fn connector(target: &Target, trust: Trust) -> Result<tokio_postgres_rustls::MakeRustlsConnect, Failed> {
    target.tls.connector(trust).map_err(|bad| Failed { reason: bad.to_string(), answer: None })
}

fn failed(error: &tokio_postgres::Error) -> Failed {
    let answer = error.as_db_error().map(|answer| Box::new(Answer::from(answer)));
    // The innermost source says what happened; the outer ones say only that something did.
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    if let Some(answer) = &answer {
        reason.clone_from(&answer.message);
    }
    Failed { reason: redact(&reason), answer }
}

fn config(target: &Target, server: &Server, attempt: Attempt, name: &str) -> Config {
    let mut config = Config::new();
    config.user(&target.user).dbname(&target.dbname).application_name(full_name(name)).port(server.port);
    match &server.place {
        Place::Unix(path) => {
            config.host_path(path);
        }
        Place::Tcp { name, address } => {
            config.host(name);
            if let Some(address) = address {
                config.hostaddr(*address);
            }
        }
    }
    if let Some(password) = &server.password {
        config.password(password.reveal());
    }
    if let Some(options) = &target.options {
        config.options(options);
    }
    let alive = target.liveness;
    config.connect_timeout(target.connect_timeout).channel_binding(target.channel_binding);
    config.keepalives(alive.on).keepalives_idle(alive.idle).keepalives_interval(alive.interval);
    config.keepalives_retries(alive.count);
    config.tcp_user_timeout(alive.user_timeout.unwrap_or(Duration::ZERO));
    if target.must_write {
        config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    }
    config.ssl_mode(match attempt {
        Attempt::Plain => Wire::Disable,
        Attempt::IfOffered(_) => Wire::Prefer,
        Attempt::Encrypted(_) => Wire::Require,
    });
    if target.tls.negotiation == Negotiation::Direct {
        config.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
    }
    config
}

fn full_name(name: &str) -> String {
    // PostgreSQL keeps 63 bytes and only printable ASCII.
    format!("migrator:{name}").chars().filter(|c| c.is_ascii_graphic()).take(63).collect()
}

/// Starts the task that moves bytes; it ends with the connection.
fn session<S, T>(
    client: Client,
    mut connection: tokio_postgres::Connection<S, T>,
    encrypted: Option<tokio_postgres_rustls::MakeRustlsConnect>,
    name: &str,
) -> Session
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let canceller = Canceller { token: client.cancel_token(), encrypted };
    let pump = tokio::spawn(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) if notice.severity() == "WARNING" => {
                    warn!(target: "server", sqlstate = notice.code().code(), "{}", notice.message());
                }
                Ok(AsyncMessage::Notice(notice)) => {
                    info!(target: "server", severity = notice.severity(), "{}", notice.message());
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "connection ended");
                    break;
                }
            }
        }
    });
    Session { client, pump, canceller, name: full_name(name), relaxed: false }
}
