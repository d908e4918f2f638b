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
    /// active_sql_transaction
    pub const ACTIVE_TRANSACTION: &str = "25001";
    /// invalid_transaction_state
    pub const TRANSACTION_STATE: &str = "25000";
    /// serialization_failure
    pub const SERIALIZATION: &str = "40001";
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
