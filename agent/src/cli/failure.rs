//! How errors are shown: the server's words on separate lines, never a password.

use super::run::Blocked;
use super::upgrade::PickError;
use crate::db::{Answer, Trouble, redact};
use crate::store::{SelectorError, Unfit};
use serde_json::json;
use std::process::ExitCode;

/// Shows what clap says of the command line (or the help that was asked for), and its exit status.
pub fn of_usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // A connection string in the wrong place would be quoted with its password.
        let shown = if console::colors_enabled_stderr() {
            error.render().ansi().to_string()
        } else {
            error.render().to_string()
        };
        eprint!("{}", redact(&shown));
    } else if error.print().is_err() {
        return ExitCode::from(2);
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What is known about an error, in parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    sqlstate: Option<String>,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// Shows an error on stderr, and on stdout too where a machine reads it.
pub fn report(error: &anyhow::Error, json: bool) {
    let parts = parts(error);
    for line in lines(&parts) {
        eprintln!("{line}");
    }
    if json {
        let error = json!({"sqlstate": parts.sqlstate, "message": parts.message, "detail": parts.detail,
            "hint": parts.hint});
        super::output::document(&json!({ "error": error }));
    }
}

fn lines(parts: &Parts) -> Vec<String> {
    let mut lines = vec![format!("error: {}", parts.message)];
    for (label, value) in [("SQLSTATE", &parts.sqlstate), ("DETAIL", &parts.detail), ("HINT", &parts.hint)] {
        if let Some(value) = value {
            lines.push(format!("{label}: {value}"));
        }
    }
    lines
}

fn parts(error: &anyhow::Error) -> Parts {
    let answer = error.chain().find_map(|cause| {
        let trouble = cause.downcast_ref::<Trouble>().or(match cause.downcast_ref::<Unfit>() {
            Some(Unfit::Trouble(trouble)) => Some(trouble),
            _ => None,
        });
        trouble.and_then(Trouble::answer)
    });
    // Each cause once: an error that says only what its source says adds nothing.
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.ends_with(&cause) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&cause);
        }
    }
    let hint = error.chain().find_map(|cause| {
        let unfit = cause.downcast_ref::<Unfit>().and_then(Unfit::hint);
        let pick = || cause.downcast_ref::<PickError>().map(|error| error.hint().to_owned());
        let blocked = || cause.downcast_ref::<Blocked>().and_then(|blocked| blocked.remedy.clone());
        unfit
            .or_else(blocked)
            .or_else(pick)
            .or_else(|| cause.downcast_ref::<SelectorError>().map(|_| "See them with: migrator list --all".to_owned()))
    });
    let of = |part: fn(&Answer) -> &Option<String>| answer.and_then(|answer| part(answer).as_deref().map(redact));
    Parts {
        sqlstate: answer.map(|answer| answer.sqlstate.clone()),
        message: redact(&message),
        detail: of(|answer| &answer.detail),
        hint: of(|answer| &answer.hint).or(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_servers_words_stand_on_lines_of_their_own() {
        let answer = Answer {
            sqlstate: "55000".into(),
            message: "change 4 is blocked".into(),
            detail: Some("One row does not fit.".into()),
            hint: Some("Mend it.".into()),
            context: None,
        };
        let error =
            Err::<(), _>(Unfit::Trouble(Trouble::Answered(Box::new(answer)))).context("cannot swap").unwrap_err();
        assert_eq!(
            lines(&parts(&error)),
            [
                "error: cannot swap: change 4 is blocked",
                "SQLSTATE: 55000",
                "DETAIL: One row does not fit.",
                "HINT: Mend it."
            ]
        );
    }

    #[test]
    fn no_password_gets_out() {
        let error = anyhow::anyhow!("cannot use postgres://me:hunter2@db/x").context("password=hunter2");
        assert!(!lines(&parts(&error)).concat().contains("hunter2"));
    }
}
