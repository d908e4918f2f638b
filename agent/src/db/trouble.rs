//! What went wrong with a server, told apart by SQLSTATE and never by text.

use std::fmt;
use tokio_postgres::error::DbError;

/// A server's own words about a failure.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// SQLSTATE.
    pub sqlstate: String,
    /// What happened.
    pub message: String,
    /// More facts.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Where in a function it happened.
    #[serde(skip)]
    pub context: Option<String>,
}

/// A statement or a connection that failed.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The server said no.
    #[error("{}", .0.message)]
    Answered(Box<Answer>),
    /// The connection broke while something was under way: whether it was done is not known.
    #[error("the connection to the server was lost")]
    Lost(#[source] tokio_postgres::Error),
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Unreachable(Box<Unreachable>),
    /// The server's answer makes no sense to this program.
    #[error("the server answered something unexpected: {0}")]
    Unexpected(String),
}

/// Every attempt that was made, and what became of it.
#[derive(Debug)]
pub struct Unreachable {
    /// Place and reason; the last one is the latest.
    pub attempts: Vec<(String, String)>,
    /// The server's own words, if one was reached.
    pub answer: Option<Box<Answer>>,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (place, reason)) in self.attempts.iter().enumerate() {
            write!(f, "{}{place}: {reason}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Connect again, waiting longer each time.
    Reconnect,
    /// The same again later: a lock or a resource was not to be had.
    BackOff,
    /// The same again: the transaction lost a race.
    Retry,
    /// Nothing that this program can do by itself.
    Stop,
}

/// What an SQLSTATE asks for. Source: appendix A of the PostgreSQL manual.
pub fn class_of(sqlstate: &str) -> Class {
    match sqlstate {
        // statement_completion_unknown: a look at the state tells, and that is what the next call begins with.
        "40003" => Class::Reconnect,
        "40001" | "40P01" => Class::Retry,
        // lock_not_available; query_canceled: somebody or a time-out ended the call, the state did not change.
        "55P03" | "57014" => Class::BackOff,
        // read_only_sql_transaction: this is a standby now. The time-outs of class 25 end the session.
        "25006" | "25P03" | "25P04" => Class::Reconnect,
        _ => match sqlstate.get(..2) {
            // 57P01 to 57P05: shutdown, crash, starting up, database dropped, idle session.
            Some("08" | "57") => Class::Reconnect,
            // disk full, out of memory, too many connections
            Some("53") => Class::BackOff,
            _ => Class::Stop,
        },
    }
}

impl Trouble {
    /// What can be done about it.
    pub fn class(&self) -> Class {
        match self {
            Trouble::Answered(answer) => class_of(&answer.sqlstate),
            Trouble::Lost(_) => Class::Reconnect,
            // A server that was reached and refuses (wrong password, no such database) will refuse again, unless it
            // is only starting or full.
            Trouble::Unreachable(unreachable) => match unreachable.answer.as_ref().map(|a| class_of(&a.sqlstate)) {
                Some(Class::Stop) => Class::Stop,
                Some(Class::Reconnect | Class::BackOff | Class::Retry) | None => Class::Reconnect,
            },
            Trouble::Unexpected(_) => Class::Stop,
        }
    }

    /// The server's own words, if it had any.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Trouble::Answered(answer) => Some(answer),
            Trouble::Unreachable(unreachable) => unreachable.answer.as_deref(),
            Trouble::Lost(_) | Trouble::Unexpected(_) => None,
        }
    }

    /// The SQLSTATE, if the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.answer().map(|answer| answer.sqlstate.as_str())
    }
}

impl From<&DbError> for Answer {
    fn from(error: &DbError) -> Self {
        Answer {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            context: error.where_().map(str::to_owned),
        }
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        use std::error::Error;
        if let Some(answer) = error.as_db_error() {
            return Trouble::Answered(Box::new(answer.into()));
        }
        let broken = error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>());
        if broken { Trouble::Lost(error) } else { Trouble::Unexpected(error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_say_what_to_do() {
        for (sqlstate, class) in [
            ("08006", Class::Reconnect),
            ("57P01", Class::Reconnect),
            ("57P02", Class::Reconnect),
            ("57P03", Class::Reconnect),
            ("25006", Class::Reconnect),
            ("40003", Class::Reconnect),
            ("55P03", Class::BackOff),
            ("57014", Class::BackOff),
            ("53100", Class::BackOff),
            ("40001", Class::Retry),
            ("40P01", Class::Retry),
            ("55000", Class::Stop),
            ("42501", Class::Stop),
            ("42P01", Class::Stop),
            ("XX000", Class::Stop),
            ("23505", Class::Stop),
            ("", Class::Stop),
        ] {
            assert_eq!(class_of(sqlstate), class, "{sqlstate}");
        }
    }
}
