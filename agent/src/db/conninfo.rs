//! Connection strings: a URI, `keyword = value` pairs, or the bare name of a database.

use super::{keyword, uri};
use std::collections::BTreeMap;

/// Keyword to value, only keywords that libpq knows.
pub type Settings = BTreeMap<&'static str, String>;

/// What is wrong with a connection string or what surrounds it. Never quotes a value: it may be a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Bad {
    /// Not of the form.
    #[error("invalid connection string: {0}")]
    Syntax(&'static str),
    /// libpq would refuse it too.
    #[error("invalid connection option \"{0}\"")]
    Unknown(String),
    /// libpq could, this program cannot.
    #[error("connection option \"{0}\" asks for something that this program does not do")]
    Refused(&'static str),
    /// A value of the wrong kind.
    #[error("connection option \"{name}\" must be {expected}")]
    Value {
        /// The keyword.
        name: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// A service that no file defines.
    #[error("definition of service \"{0}\" not found")]
    NoService(String),
    /// A file that cannot be read.
    #[error("cannot read {what} {path}: {reason}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// Where it was looked for.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// Certificates are to be checked, and there is nothing to check them against.
    #[error(
        "root certificate file {path} does not exist: provide it, use the system's authorities with \
         sslrootcert=system, or choose an sslmode that does not check the server's certificate"
    )]
    NoRoots {
        /// Where it was looked for.
        path: String,
    },
    /// libpq would look into it.
    #[error(
        "there is a list of revoked certificates, {path}, and this program cannot read it: move it away, or use the \
         system's authorities with sslrootcert=system"
    )]
    RevocationList {
        /// Where it is.
        path: String,
    },
    /// A combination that libpq refuses as well.
    #[error("{0}")]
    Together(&'static str),
}

/// Adds a setting, if the keyword exists and can be honoured.
pub fn put(settings: &mut Settings, name: &str, value: String) -> Result<(), Bad> {
    let keyword = keyword::find(name).ok_or_else(|| Bad::Unknown(name.to_owned()))?;
    if keyword.refuses(&value) {
        return Err(Bad::Refused(keyword.name));
    }
    settings.insert(keyword.name, value);
    Ok(())
}

/// The settings of a connection string of any form.
pub fn parse(text: &str) -> Result<Settings, Bad> {
    let text = text.trim();
    if uri::is_uri(text) {
        uri::parse(text)
    } else if text.contains('=') {
        pairs(text)
    } else if text.is_empty() {
        Ok(Settings::new())
    } else if text.contains("://") {
        Err(Bad::Syntax("a URI begins with postgresql://"))
    } else {
        Ok(Settings::from([("dbname", text.to_owned())]))
    }
}

/// `host = db user='o''brien' …`: blanks around the sign are free, quotes hold blanks, a backslash takes the next
/// character as it is.
fn pairs(text: &str) -> Result<Settings, Bad> {
    let mut settings = Settings::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            break;
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(Bad::Syntax("a keyword lacks its \"=\""));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let value = value(&mut chars)?;
        put(&mut settings, &name, value)?;
    }
    settings.retain(|_, value| !value.is_empty());
    Ok(settings)
}

fn value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, Bad> {
    let quoted = chars.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match chars.peek() {
            None if quoted => return Err(Bad::Syntax("a quoted value lacks its closing quote")),
            None => return Ok(value),
            Some('\'') if quoted => {
                chars.next();
                return Ok(value);
            }
            Some(c) if !quoted && c.is_whitespace() => return Ok(value),
            Some('\\') => {
                chars.next();
                value.extend(chars.next());
            }
            Some(c) => {
                value.push(*c);
                chars.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_with_quotes_blanks_and_backslashes() {
        let settings = parse(r"host = db  password='it\'s = a \\ secret' user=o\'brien dbname='' ").unwrap();
        assert_eq!(settings["host"], "db");
        assert_eq!(settings["password"], r"it's = a \ secret");
        assert_eq!(settings["user"], "o'brien");
        assert!(!settings.contains_key("dbname"), "an empty value counts as none");
    }

    #[test]
    fn a_bare_word_names_a_database() {
        assert_eq!(parse(" shop ").unwrap(), Settings::from([("dbname", "shop".to_owned())]));
        assert_eq!(parse("").unwrap(), Settings::new());
        assert!(parse("mysql://db").is_err());
    }

    #[test]
    fn mistakes_are_named_without_values() {
        assert_eq!(parse("hoost=db").unwrap_err(), Bad::Unknown("hoost".to_owned()));
        assert_eq!(parse("host=db require_auth=scram-sha-256").unwrap_err(), Bad::Refused("require_auth"));
        assert!(matches!(parse("password='hunter2").unwrap_err(), Bad::Syntax(_)));
        let broken = parse("password=hunter2 hunter3").unwrap_err().to_string();
        assert!(!broken.contains("hunter"), "{broken}");
    }
}
