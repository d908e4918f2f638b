//! Turns a `Failure` into a PostgreSQL error.

use migrator_core::failure::Failure;
use pgrx::pg_sys::elog::PgLogLevel;
use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportWithLevel};

/// Packs five characters the way PostgreSQL's `MAKE_SQLSTATE` does (elog.h): six bits each.
pub fn pack(code: &str) -> i32 {
    code.bytes().take(5).enumerate().fold(0, |packed, (place, byte)| {
        packed | ((i32::from(byte).wrapping_sub(i32::from(b'0'))) & 0x3f) << (6 * place)
    })
}

/// The five characters of a packed SQLSTATE.
pub fn unpack(packed: i32) -> String {
    (0..5u8)
        .map(|place| {
            let six = u8::try_from((packed >> (6 * i32::from(place))) & 0x3f).unwrap_or(0);
            char::from(six + b'0')
        })
        .collect()
}

/// Raises the failure as an ERROR; does not return.
pub fn raise(failure: Failure) -> ! {
    report(failure, PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Tells the client, and goes on.
pub fn warn(failure: Failure) {
    report(failure, PgLogLevel::WARNING);
}

fn report(failure: Failure, level: PgLogLevel) {
    let mut report = ErrorReport::new(PgSqlErrorCode::from(pack(&failure.code)), failure.message, "migrator");
    if let Some(detail) = failure.detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = failure.hint {
        report = report.set_hint(hint);
    }
    report.report(level);
}

/// An error of PostgreSQL's, or of ours, that was caught.
pub fn caught(report: &ErrorReportWithLevel) -> Failure {
    Failure {
        code: unpack(report.sql_error_code() as i32).into(),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
    }
}
