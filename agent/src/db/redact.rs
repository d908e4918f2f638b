//! Keeps passwords out of everything that is written: a type for values that never print themselves,
//! and a filter for text that somebody else composed.

use std::fmt;

/// A password. It prints as dots; only a connection asks for what it holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }
    /// What it holds, for the server and nobody else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DOTS)
    }
}

const DOTS: &str = "***";

/// The text without the passwords of the connection strings in it: `scheme://user:PASSWORD@` and `password=…`.
pub fn redact(text: &str) -> String {
    settings(&urls(text))
}

/// Replaces what stands between `user:` and `@` of each URL.
fn urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        // The authority ends at the first slash, question mark or blank; a password may itself hold an @.
        let end = tail.find(|c: char| c == '/' || c == '?' || c.is_whitespace() || c == '\'').unwrap_or(tail.len());
        let authority = &tail[..end];
        match (authority.rfind('@'), authority.find(':')) {
            (Some(host), Some(colon)) if colon < host => {
                out.push_str(&authority[..=colon]);
                out.push_str(DOTS);
                out.push_str(&authority[host..]);
            }
            _ => out.push_str(authority),
        }
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Replaces the values of `password` and its relatives, quoted or not.
fn settings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        // ASCII folding keeps every byte's place.
        let lower = rest.to_ascii_lowercase();
        let Some(found) = ["password", "client_secret"].iter().filter_map(|k| Some((lower.find(k)?, k.len()))).min()
        else {
            out.push_str(rest);
            return out;
        };
        let (head, tail) = rest.split_at(found.0 + found.1);
        out.push_str(head);
        rest = tail;
        let blank = tail.len() - tail.trim_start().len();
        let Some(value) = tail[blank..].strip_prefix('=') else { continue };
        let lead = value.len() - value.trim_start().len();
        let value = &value[lead..];
        out.push('=');
        out.push_str(DOTS);
        rest = &value[value_length(value)..];
    }
}

/// How many bytes a value of a connection string takes: up to its closing quote, or to a blank or `&`.
fn value_length(value: &str) -> usize {
    let quoted = value.starts_with('\'');
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted && at > 0 => return at + 1,
            c if !quoted && (c.is_whitespace() || c == '&' || c == '\'') => return at,
            _ => {}
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_password_survives() {
        for (text, expected) in [
            ("postgres://me:hunter2@db/x", "postgres://me:***@db/x"),
            (
                "cannot use 'postgresql://me:p@ss:w@db:5432/x?sslmode=require'",
                "cannot use 'postgresql://me:***@db:5432/x?sslmode=require'",
            ),
            ("postgres://me@db/x", "postgres://me@db/x"),
            ("postgres://db:5432/x", "postgres://db:5432/x"),
            ("postgres://db/x?password=hunter2&port=1", "postgres://db/x?password=***&port=1"),
            ("host=db password=hunter2 user=me", "host=db password=*** user=me"),
            ("PGPASSWORD = 'it\\'s a secret' user=me", "PGPASSWORD=*** user=me"),
            ("password='never closed user=me", "password=***"),
            ("no password in here: nothing", "no password in here: nothing"),
            ("é://ü:hunter2@ß password=ö", "é://ü:***@ß password=***"),
        ] {
            assert_eq!(redact(text), expected);
        }
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }
}
