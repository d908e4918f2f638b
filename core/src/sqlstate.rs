//! What a SQLSTATE means for the one who got it. Decisions are made by code, never by text.

/// Whether the failure belongs to one row (a value that does not fit, a violated constraint, a function's own
/// complaint), so that the row can be set aside and the rest go on.
pub fn belongs_to_row(code: &str) -> bool {
    matches!(code.get(..2), Some("22" | "23" | "P0" | "21" | "2F" | "38" | "39"))
}

/// Whether the failure belongs to the moment: another session, a limit of the server's, a lost connection. Worth another try.
pub fn belongs_to_moment(code: &str) -> bool {
    // Of class 55 what has to do with locks and objects in use. 55000 is raised by PL/pgSQL for a record that has no value yet, and by
    // triggers that refuse a row as it is.
    matches!(code.get(..2), Some("08" | "25" | "40" | "53" | "57" | "58")) || code == "55006" || code.starts_with("55P")
}

/// Whether the failure belongs to the program: what was registered or written is wrong, and the next row would fail alike.
pub fn belongs_to_program(code: &str) -> bool {
    matches!(code.get(..2), Some("0A" | "26" | "2B" | "3D" | "3F" | "42" | "44" | "XX"))
}

/// Whether the failure may come from another row that is not reconciled yet: unique and exclusion constraints.
pub fn may_be_order(code: &str) -> bool {
    matches!(code, "23505" | "23P01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programming_errors_never_belong_to_a_row() {
        assert!(belongs_to_row("22003") && belongs_to_row("23514") && belongs_to_row("P0001"));
        for code in ["42P01", "42501", "XX000", "57014", "40001", "53100", "55P03", ""] {
            assert!(!belongs_to_row(code), "{code}");
        }
        assert!(belongs_to_moment("40001") && belongs_to_program("42883"));
        assert!(belongs_to_moment("55P03") && belongs_to_moment("55006"));
        for code in ["22012", "54000", "55000", "AB123"] {
            assert!(!belongs_to_moment(code) && !belongs_to_program(code), "{code} is a row's");
        }
        assert!(may_be_order("23505") && !may_be_order("23502"));
    }
}
