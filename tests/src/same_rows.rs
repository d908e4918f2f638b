//! Whether two tables hold the same rows, bit for bit as far as a user can see.

use crate::{Result, Session};
use anyhow::ensure;

/// Insists that two queries give the same rows, however often each, in any order, by their text.
pub async fn same_rows(session: &Session, left: &str, right: &str) -> Result<()> {
    let difference = |here: &str, there: &str| {
        format!(
            "select count(*)::text || coalesce(': ' || string_agg(left(r, 300), ' | '), '') from \
             (select r from (select x::text r from ({here}) x) a except all select x::text from ({there}) x limit 5) d"
        )
    };
    let missing = session.value(&difference(left, right)).await?;
    let extra = session.value(&difference(right, left)).await?;
    ensure!(
        missing == "0" && extra == "0",
        "different rows\n  only in {left}\n    {missing}\n  only in {right}\n    {extra}"
    );
    Ok(())
}

/// The rows of a table as one text for comparing before and after: their number and a hash of all of them.
pub async fn fingerprint(session: &Session, query: &str) -> Result<String> {
    let sql = format!(
        "select count(*) || ':' || coalesce(md5(string_agg(md5(x::text), '' order by md5(x::text))), '') from ({query}) x"
    );
    Ok(session.value(&sql).await?)
}
