//! The one way in which a name or a literal reaches SQL text.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An SQL identifier, as stored in the catalog (unquoted). `Display` quotes it, always:
/// a quoted identifier is right wherever an unquoted one is, and no keyword list can grow stale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ident(pub String);

impl Ident {
    /// Wraps a name as the catalog holds it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
    /// The bare name, for messages and for binding as a value; never for SQL text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl From<&str> for Ident {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// A relation's schema and name. `Display` is the quoted, qualified form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// Schema.
    pub schema: Ident,
    /// Name within the schema.
    pub name: Ident,
}

impl Name {
    /// A name from its two catalog strings.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: Ident::new(schema), name: Ident::new(name) }
    }
    /// The form that people read in messages: quotes only where SQL needs them.
    pub fn plain(&self) -> String {
        format!("{}.{}", plain(&self.schema.0), plain(&self.name.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A name for messages: quoted only where it is not a plain lower-case word.
pub fn plain(name: &str) -> String {
    let simple = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if simple { name.to_owned() } else { Ident::new(name).to_string() }
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_one_identifier() {
        let name = Name::new("Order Items; --", "a\"b");
        assert_eq!(name.to_string(), "\"Order Items; --\".\"a\"\"b\"");
        assert_eq!(Name::new("public", "orders").plain(), "public.orders");
        assert_eq!(Name::new("public", "Order Items").plain(), "public.\"Order Items\"");
    }

    #[test]
    fn a_literal_cannot_be_left() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
