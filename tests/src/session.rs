//! One connection, spoken to in SQL text, with answers as text.

use futures_util::SinkExt;
use std::fmt;
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// One row: a text, or none for NULL, for each column.
pub type Row = Vec<Option<String>>;

/// What the server said no with, or that the connection was lost.
#[derive(Debug, Clone)]
pub struct SqlError {
    /// The SQLSTATE; `08006` when the connection broke without one.
    pub code: String,
    /// The server's message.
    pub message: String,
    /// The server's hint.
    pub hint: Option<String>,
    /// More from the server, and the statement.
    pub detail: String,
}

impl SqlError {
    fn of(error: &tokio_postgres::Error, statement: &str) -> SqlError {
        let statement: String = statement.chars().take(600).collect();
        match error.as_db_error() {
            Some(db) => SqlError {
                code: db.code().code().to_owned(),
                message: db.message().to_owned(),
                hint: db.hint().map(str::to_owned),
                detail: format!(
                    "{}{}\n  in: {statement}",
                    db.detail().map(|detail| format!("\n  detail: {detail}")).unwrap_or_default(),
                    db.where_().map(|context| format!("\n  context: {context}")).unwrap_or_default()
                ),
            },
            None => {
                let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
                SqlError {
                    code: "08006".to_owned(),
                    message: format!("{error}{source}"),
                    hint: None,
                    detail: format!("\n  in: {statement}"),
                }
            }
        }
    }

    /// There is no connection to speak through.
    pub fn lost() -> SqlError {
        SqlError { code: "08006".into(), message: "no connection".into(), hint: None, detail: String::new() }
    }

    /// Whether the connection is gone, so that nobody knows what became of an unacknowledged commit.
    pub fn is_lost(&self) -> bool {
        self.code.starts_with("08") || self.code.starts_with("57P0")
    }

    /// Whether the same transaction may be tried again.
    pub fn is_worth_retrying(&self) -> bool {
        matches!(self.code.as_str(), "40001" | "40P01" | "55P03")
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        f.write_str(&self.detail)
    }
}

impl std::error::Error for SqlError {}

/// One connection. It ends when the value is dropped.
pub struct Session {
    client: Client,
    pump: JoinHandle<()>,
    /// The process that serves it.
    pub pid: i32,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Session {
    /// Connects through a socket.
    pub async fn open(folder: &Path, port: u16, database: &str, user: &str, name: &str) -> Result<Session, SqlError> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(folder).port(port).dbname(database).user(user).application_name(name);
        Session::open_with(config).await
    }

    /// Connects as a configuration says.
    pub async fn open_with(mut config: tokio_postgres::Config) -> Result<Session, SqlError> {
        config.connect_timeout(Duration::from_secs(20));
        let (client, connection) = config.connect(NoTls).await.map_err(|error| SqlError::of(&error, "(connecting)"))?;
        let pump = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut session = Session { client, pump, pid: 0 };
        session.pid = session.value("select pg_backend_pid()").await?.parse().unwrap_or(0);
        Ok(session)
    }

    /// Runs statements and returns the rows of them all.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, SqlError> {
        let messages = self.client.simple_query(sql).await.map_err(|error| SqlError::of(&error, sql))?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// Runs statements and returns how many rows the last of them touched.
    pub async fn run(&self, sql: &str) -> Result<u64, SqlError> {
        let messages = self.client.simple_query(sql).await.map_err(|error| SqlError::of(&error, sql))?;
        Ok(messages
            .iter()
            .rev()
            .find_map(|message| match message {
                SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
                _ => None,
            })
            .unwrap_or(0))
    }

    /// The first column of the first row; an empty text for NULL or no row.
    pub async fn value(&self, sql: &str) -> Result<String, SqlError> {
        let row = self.rows(sql).await?.into_iter().next();
        Ok(row.and_then(|row| row.into_iter().next().flatten()).unwrap_or_default())
    }

    /// The first column of the first row as a number; 0 for NULL or no row.
    pub async fn number(&self, sql: &str) -> crate::Result<i64> {
        let text = self.value(sql).await?;
        Ok(if text.is_empty() { 0 } else { text.parse()? })
    }

    /// The first row as texts, NULL as an empty one.
    pub async fn row(&self, sql: &str) -> crate::Result<Vec<String>> {
        let row = self.rows(sql).await?.into_iter().next();
        let row = row.ok_or_else(|| anyhow::anyhow!("no row came of: {sql}"))?;
        Ok(row.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Runs a statement that must fail, and returns how.
    pub async fn refusal(&self, sql: &str) -> crate::Result<SqlError> {
        match self.rows(sql).await {
            Err(error) => Ok(error),
            Ok(_) => anyhow::bail!("this should have been refused: {sql}"),
        }
    }

    /// Sends rows in COPY's text form.
    pub async fn copy_in(&self, sql: &str, data: String) -> Result<(), SqlError> {
        let sent = async {
            let sink = self.client.copy_in::<_, Cursor<Vec<u8>>>(sql).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(Cursor::new(data.into_bytes())).await?;
            sink.finish().await.map(|_| ())
        };
        sent.await.map_err(|error| SqlError::of(&error, sql))
    }

    /// The client itself, for what text cannot do: prepared statements, COPY.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// A text as an SQL literal.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
