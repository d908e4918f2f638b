//! What a step does that is slowed down: a part of what it did before.

use crate::watched::TABLE;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;

pub async fn a_slowed_step_does_a_part(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    // A query that cannot be asked is the plainest way to be slowed to a half.
    session.run(TABLE).await?;
    session.run("create table gauge as select 0 as level").await?;
    session.run("select migrator.set_own_query('select level from public.gauge')").await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    let driver = change.session().await?;
    change.until(|advance| advance.state == "copying").await?;
    let slow = |slow: bool| {
        let (session, rename) = (&session, if slow { "gauge rename to gone" } else { "gone rename to gauge" });
        async move { session.run(&format!("alter table {rename}; update migrator.load set sampled_at = '-infinity'")).await }
    };
    let chunk = format!("migrator.chunk where change = {} and done_at is null", change.id);

    // The copy: blocks.
    let copied = format!("select coalesce(sum(block_until - block_from), 0) from {chunk} and step = 'copy'");
    for (slowed, expected) in [(false, 20), (true, 10)] {
        if slowed {
            slow(true).await?;
        }
        session
            .run(&format!(
                "update migrator.chunk set batch_blocks = 20, rate = null, weight = null where change = {}",
                change.id
            ))
            .await?;
        let before = session.number(&copied).await?;
        let advance = change.advance(&driver).await?;
        let took = before - session.number(&copied).await?;
        ensure!(advance.step == "copy" && took == expected, "slowed: {slowed}, {took} blocks: {advance:?}");
        ensure!(advance.wait.is_zero() != slowed, "{advance:?}");
    }
    // What it goes by is not what it does: once nothing slows it, it is as fast as before.
    let size = session.number(&format!("select max(batch_blocks) from {chunk}")).await?;
    ensure!(size >= 20, "a slowed batch of 10 left {size}");
    slow(false).await?;

    // Catching up: blocks of the key log, 16 at a time.
    change.until(|advance| advance.state == "catching_up").await?;
    session.run("update busy set v = v where id <= 4000; insert into busy select g, 'n' from generate_series(5001, 25000) g").await?;
    // In one segment, whatever the clock said meanwhile: a batch ends with its segment.
    for segment in [1, 2] {
        session
            .run(&format!(
                "with moved as (delete from migrator.log_{id}_f_{segment} returning *) insert into migrator.log_{id}_f_0 select * from moved",
                id = change.id
            ))
            .await?;
    }
    let log = format!(
        "select count(*) from (select from migrator.log_{id}_f_0 union all select from migrator.log_{id}_f_1 union all select from migrator.log_{id}_f_2) l",
        id = change.id
    );
    let mut taken = vec![];
    for slowed in [false, true] {
        if slowed {
            slow(true).await?;
        }
        session.run(&format!("update migrator.change set catch_up = null where id = {}", change.id)).await?;
        let before = session.number(&log).await?;
        let advance = change.advance(&driver).await?;
        ensure!(advance.step == "catch_up", "slowed: {slowed}: {advance:?}");
        taken.push(before - session.number(&log).await?);
    }
    ensure!(
        taken[0] > 1000 && (taken[0] * 2 / 5..=taken[0] * 3 / 5).contains(&taken[1]),
        "of the log it took {taken:?}"
    );
    slow(false).await?;

    // The comparison: rows.
    change.until(|advance| advance.state == "verifying").await?;
    let compared = format!("select sum(rows) from migrator.chunk where change = {} and step = 'verify'", change.id);
    for (slowed, expected) in [(false, 20), (true, 10)] {
        if slowed {
            slow(true).await?;
        }
        session.run(&format!("update migrator.chunk set batch_rows = 20 where change = {}", change.id)).await?;
        let before = session.number(&compared).await?;
        let advance = change.advance(&driver).await?;
        let took = session.number(&compared).await? - before;
        ensure!(advance.step == "verify" && took == expected, "slowed: {slowed}, {took} rows: {advance:?}");
    }
    slow(false).await?;
    change.through().await?;
    nothing_left_behind(&database).await
}
