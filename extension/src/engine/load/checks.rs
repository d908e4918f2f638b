//! What checks by HTTP said. Agents ask them, for the server makes no connections of its own; what was said stands for as long as
//! the agent that asked says, and no longer, so that one that is gone holds nobody for ever.

use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::load::Check;
use serde::Deserialize;
use std::time::Duration;

/// An answer does not stand for longer than this: whoever asks, asks again.
const LONGEST: Duration = Duration::from_secs(600);
/// The most bytes of an address or an answer.
const MOST: usize = 1000;

/// Notes what a check said: what is not well, or (None) that all is.
pub fn report(address: &str, said: Option<&str>, stands: Duration) -> Result<(), Failure> {
    if address.is_empty() || address.len() > MOST || said.is_some_and(|said| said.len() > MOST) {
        return Err(Failure::new(
            code::INVALID_PARAMETER,
            format!("an address and what was said there have 1 to {MOST} bytes"),
        )
        .detail("Nothing was changed.")
        .hint(
            "For instance: select migrator.report_check('https://status.example/ready', '503 Service Unavailable');",
        ));
    }
    if stands.is_zero() || stands > LONGEST {
        return Err(Failure::new(
            code::INVALID_PARAMETER,
            "what a check said stands for an interval of up to ten minutes",
        )
        .detail("Nothing was changed.")
        .hint("Call it again before that is over; 10 seconds if it is left out."));
    }
    match said {
        None => spi::execute("delete from migrator.http_check where address = $1", &[address.into()]),
        Some(said) => spi::execute(
            "insert into migrator.http_check (address, said, until) values ($1, $2, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3)) \
             on conflict (address) do update set said = excluded.said, until = excluded.until, role = excluded.role",
            &[address.into(), said.into(), stands.as_secs_f64().into()],
        ),
    }
    .map(|_| ())
}

/// The checks that said no, and whose answer stands.
pub fn refusals() -> Result<Vec<Check>, Failure> {
    #[derive(Deserialize)]
    struct Row {
        address: String,
        said: String,
    }
    let rows: Vec<Row> = spi::fetch(
        "select c.address, c.said from migrator.http_check c where c.until > pg_catalog.clock_timestamp() order by c.address",
        &[],
    )?;
    Ok(rows.into_iter().map(|row| Check { address: row.address, said: row.said }).collect())
}
