//! Every failure that a user can meet: SQLSTATE, what happened to which object, and the call that helps.
//!
//! Only SQLSTATEs that PostgreSQL itself defines are used: others would become XX000 on their way out.

use std::borrow::Cow;
use std::fmt;

/// A failure with all that its reader needs. Built by the functions of the module that finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Five-character SQLSTATE.
    pub code: Cow<'static, str>,
    /// Lower case, no full stop, names the object.
    pub message: String,
    /// More facts: full sentences.
    pub detail: Option<String>,
    /// What to do next: a sentence with the exact call.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with code and message.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), detail: None, hint: None }
    }
    /// The same with a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What a call says of a failure that does not say it itself, PostgreSQL's own among them. Full sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// What became of what the call was to do.
    pub left: &'static str,
    /// What its caller does next, if the fault is in what somebody wrote: an argument, an expression, a row.
    pub next: &'static str,
}

/// What most calls leave behind.
pub const NOTHING_CHANGED: &str = "Nothing was changed.";

impl Failure {
    /// The same with all that its reader needs: a detail that says what was left behind, and a hint.
    #[must_use]
    pub fn ended(mut self, ending: Ending) -> Self {
        self.detail = Some(match self.detail {
            None => ending.left.to_owned(),
            Some(detail) if says_what_is_left(&detail) => detail,
            Some(detail) => format!("{}. {}", detail.trim_end_matches('.'), ending.left),
        });
        if self.code == code::DEPENDENTS && self.hint.as_ref().is_some_and(|hint| hint.contains("CASCADE")) {
            self.hint = Some(NO_CASCADE.to_owned());
        }
        self.hint.get_or_insert_with(|| next(&self.code, ending).to_owned());
        self
    }
}

/// Instead of PostgreSQL's own advice, which would take along what somebody made.
const NO_CASCADE: &str =
    "Move what depends on it elsewhere, or drop it, then call this again: nothing is ever dropped with CASCADE.";

/// Whether a detail of ours tells already what was done and what was not.
fn says_what_is_left(detail: &str) -> bool {
    ["Nothing was ", "Done: "].iter().any(|words| detail.contains(words))
}

fn next(code: &str, ending: Ending) -> &'static str {
    match (code, code.get(..2).unwrap_or_default()) {
        (code::SERIALIZATION | code::DEADLOCK | code::LOCK_NOT_AVAILABLE, _) => "Call it again.",
        (code::INSUFFICIENT_PRIVILEGE, _) => {
            "A table is changed with its owner's rights: call it as that role or as a member of it, or grant that role what is missing."
        }
        ("53100", _) => "Make room, then call it again.",
        ("53400", _) => "Raise that limit for the session or the role, then call it again.",
        (_, "53") => "Call it again when the server has room for it.",
        (_, "0A" | "21" | "22" | "23" | "2B" | "2F" | "38" | "39" | "42" | "54" | "P0") => ending.next,
        (_, "25" | "55") => "select * from migrator.status; has the next call for each change under next_step.",
        _ => {
            "Call it again; where it was, the change goes on. If it fails again, please report it, with select * from migrator.log(change => ID);"
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The SQLSTATEs in use, by the names that PostgreSQL gives them.
pub mod code {
    /// invalid_parameter_value
    pub const INVALID_PARAMETER: &str = "22023";
    /// undefined_object
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// undefined_column
    pub const UNDEFINED_COLUMN: &str = "42703";
    /// wrong_object_type
    pub const WRONG_OBJECT_TYPE: &str = "42809";
    /// duplicate_object
    pub const DUPLICATE_OBJECT: &str = "42710";
    /// insufficient_privilege
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// feature_not_supported
    pub const NOT_SUPPORTED: &str = "0A000";
    /// object_not_in_prerequisite_state
    pub const NOT_IN_STATE: &str = "55000";
    /// object_in_use
    pub const IN_USE: &str = "55006";
    /// lock_not_available
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// query_canceled
    pub const QUERY_CANCELED: &str = "57014";
    /// active_sql_transaction
    pub const ACTIVE_TRANSACTION: &str = "25001";
    /// invalid_transaction_state
    pub const TRANSACTION_STATE: &str = "25000";
    /// serialization_failure
    pub const SERIALIZATION: &str = "40001";
    /// 40P01: deadlock detected.
    pub const DEADLOCK: &str = "40P01";
    /// dependent_objects_still_exist
    pub const DEPENDENTS: &str = "2BP01";
    /// datatype_mismatch
    pub const DATATYPE_MISMATCH: &str = "42804";
    /// invalid_table_definition
    pub const INVALID_TABLE_DEFINITION: &str = "42P16";
    /// not_null_violation
    pub const NOT_NULL: &str = "23502";
    /// data_corrupted
    pub const CORRUPTED: &str = "XX001";
    /// internal_error
    pub const INTERNAL: &str = "XX000";
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDING: Ending = Ending { left: NOTHING_CHANGED, next: "Correct that." };

    #[test]
    fn what_is_left_behind_is_said_once() {
        let detail = |given: Option<&str>| {
            let failure = Failure { detail: given.map(str::to_owned), ..Failure::new("42703", "no") };
            failure.ended(ENDING).detail.unwrap()
        };
        assert_eq!(detail(None), "Nothing was changed.");
        assert_eq!(detail(Some("It is red.")), "It is red. Nothing was changed.");
        assert_eq!(detail(Some("view v depends on it")), "view v depends on it. Nothing was changed.");
        assert_eq!(detail(Some("Nothing was copied.")), "Nothing was copied.");
        assert_eq!(detail(Some("Done: a; Left: b;")), "Done: a; Left: b;");
    }

    #[test]
    fn a_hint_is_kept_or_follows_from_the_code() {
        let hint = |code: &'static str| Failure::new(code, "no").ended(ENDING).hint.unwrap();
        assert_eq!(Failure::new("42703", "no").hint("Mine.").ended(ENDING).hint.as_deref(), Some("Mine."));
        for written in ["0A000", "22P02", "23505", "42P01", "P0001"] {
            assert_eq!(hint(written), "Correct that.", "{written}");
        }
        for (code, word) in
            [("42501", "owner"), ("40001", "again"), ("53100", "room"), ("55000", "status"), ("XX000", "report")]
        {
            assert!(hint(code).contains(word), "{code}: {}", hint(code));
        }
        let cascade = Failure::new("2BP01", "no").hint("Use DROP ... CASCADE to drop the dependent objects too.");
        assert!(cascade.ended(ENDING).hint.unwrap().starts_with("Move what depends on it"));
    }
}
