//! Upgrades of rows: against one big UPDATE, against a keyset loop in PL/pgSQL, and against rows one by one behind an
//! anti-predicate with LIMIT, as a library in the application would do it.

use super::beside::Beside;
use super::sweep::{Longest, sweep};
use super::{Line, Wishes, median, timed};
use migrator_tests::*;

const MEGA: f64 = 1024.0 * 1024.0;
pub(super) const EXPRESSION: &str = "to_jsonb(content)";

/// News articles: a primary key and two more indexes, no room on their pages.
async fn fresh(session: &Session, rows: i64) -> Result<()> {
    articles(session, "article", rows).await
}

/// The same in any table.
pub(super) async fn articles(session: &Session, table: &str, rows: i64) -> Result<()> {
    session
        .run(&format!(
            "drop table if exists {table} cascade;
             create table {table} (id bigint primary key, headline text not null, content text, content2 jsonb, words int, slug text,
                 live boolean not null, published timestamptz not null, applied_upgrades text[] not null default '{{}}');
             insert into {table} (id, headline, content, live, published)
             select g, 'headline of article ' || g, repeat(md5(g::text), 4), g % 5 <> 0, timestamptz '2020-01-01' + g * interval '1 minute'
               from generate_series(1, {rows}) g;
             create index on {table} (published); create index on {table} (headline)"
        ))
        .await?;
    session.run(&format!("vacuum (freeze, analyze) {table}")).await?;
    session.run("checkpoint").await?;
    Ok(())
}

async fn register(session: &Session, name: &str, column: &str, expression: &str) -> Result<()> {
    session
        .run(&format!("select migrator.register_upgrade('article', '{name}', $${{\"{column}\": \"{expression}\"}}$$)"))
        .await?;
    Ok(())
}

/// The upgrade of which most is measured.
pub(super) async fn blocks(session: &Session, table: &str) -> Result<()> {
    session
        .run(&format!("select migrator.register_upgrade('{table}', 'blocks', $${{\"content2\": \"{EXPRESSION}\"}}$$)"))
        .await?;
    Ok(())
}

async fn wal(session: &Session) -> Result<f64> {
    Ok(session.value("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").await?.parse()?)
}

/// The heap that the same rows have where nothing was there before them.
async fn packed(session: &Session) -> Result<f64> {
    session.run("create table packed as select * from article").await?;
    let size = session.number("select pg_relation_size('packed')").await? as f64;
    session.run("drop table packed").await?;
    Ok(size)
}

async fn heap(session: &Session) -> Result<f64> {
    Ok(session.number("select pg_relation_size('article')").await? as f64)
}

/// Everything about upgrades.
pub async fn measure(database: &Database, session: &Session, wishes: &Wishes) -> Result<Vec<Line>> {
    let rows = wishes.rows;
    let (mut single, mut one, mut two, mut three, mut looped, mut verified) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    let (mut single_wal, mut one_wal, mut growth, mut plain_growth, mut wider) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut longest = Longest::default();
    let (mut longest_looped, mut beside_looped, mut usual_looped) = (0_f64, 0_f64, 0_f64);
    let (mut beside_single, mut usual_single) = (0_f64, 0_f64);
    for round in 1..=wishes.rounds {
        fresh(session, rows).await?;
        let (begun, size) = (wal(session).await?, heap(session).await?);
        let update = format!(
            "update article set content2 = {EXPRESSION}, applied_upgrades = array_append(applied_upgrades, 'blocks')"
        );
        let beside = Beside::begin(database).await?;
        single.push(timed(async { Ok(session.run(&update).await?) }).await?.0);
        let writes = beside.end().await?;
        (beside_single, usual_single) = (beside_single.max(writes.longest()), usual_single.max(writes.usual()));
        single_wal.push((wal(session).await? - begun) / rows as f64);
        plain_growth.push(heap(session).await? / packed(session).await?);
        wider.push(packed(session).await? / size);

        fresh(session, rows).await?;
        blocks(session, "article").await?;
        let swept = sweep(database, "article", 1).await?;
        let after = heap(session).await?;
        growth.push((after, packed(session).await?));
        one.push(swept.seconds);
        verified.push(swept.verified);
        longest = longest.or(swept.longest);
        check(session).await?;

        // WAL without that of VACUUM: the same without it.
        fresh(session, rows).await?;
        blocks(session, "article").await?;
        let begun = wal(session).await?;
        session.run("call migrator.run_upgrades('article')").await?;
        one_wal.push((wal(session).await? - begun) / rows as f64);

        fresh(session, rows).await?;
        blocks(session, "article").await?;
        let swept = sweep(database, "article", 2).await?;
        two.push(swept.seconds);
        longest = longest.or(swept.longest);
        check(session).await?;

        fresh(session, rows).await?;
        blocks(session, "article").await?;
        register(session, "words", "words", "length(content)").await?;
        register(session, "slug", "slug", "lower(replace(headline, ' ', '-'))").await?;
        let swept = sweep(database, "article", 1).await?;
        three.push(swept.seconds);
        longest = longest.or(swept.longest);
        check(session).await?;

        fresh(session, rows).await?;
        let beside = Beside::begin(database).await?;
        let (seconds, longest_batch) = timed(keyset_loop(session)).await?;
        let writes = beside.end().await?;
        (beside_looped, usual_looped) = (beside_looped.max(writes.longest()), usual_looped.max(writes.usual()));
        looped.push(seconds);
        longest_looped = longest_looped.max(longest_batch);
        eprintln!(
            "round {round}: one UPDATE {:.1} s; upgrade by one worker {:.1} s, by two {:.1} s, three upgrades {:.1} s; loop in PL/pgSQL {:.1} s",
            single[round - 1],
            one[round - 1],
            two[round - 1],
            three[round - 1],
            looped[round - 1]
        );
    }
    let (one_by_one, sample) = one_by_one(session, rows).await?;
    let (before, after) = as_wide_as_before(database, session, rows).await?;
    let seconds = |name, ours: &[f64], theirs: &[f64], limit, note: String| Line {
        name,
        ours: median(ours),
        theirs: Some(median(theirs)),
        unit: "s",
        limit,
        note,
    };
    Ok(vec![
        seconds(
            "upgrade, one worker / one UPDATE",
            &one,
            &single,
            1.0 / 0.7,
            format!("VACUUM beside it; looking at all rows again takes {:.1} s more", median(&verified)),
        ),
        seconds("upgrade, two workers / one UPDATE", &two, &single, 1.0 / 0.85, String::new()),
        seconds(
            "upgrade, one worker / loop in PL/pgSQL",
            &one,
            &looped,
            f64::INFINITY,
            "keyset batches of 5,000, FOR NO KEY UPDATE SKIP LOCKED, commits that do not wait for the disk".into(),
        ),
        Line {
            name: "rows a second / one by one with LIMIT",
            ours: rows as f64 / median(&one),
            theirs: Some(one_by_one),
            unit: "/s",
            limit: f64::INFINITY,
            note: format!("the others' first {sample} rows only; larger is better"),
        },
        seconds("three upgrades at once / one", &three, &one, 1.3, String::new()),
        Line {
            name: "longest transaction, the disk's standstills apart",
            ours: longest.alone * 1000.0,
            theirs: None,
            unit: "ms",
            limit: 250.0,
            note: format!(
                "of all rounds: one worker, two, and three upgrades; while {}. With them {:.0} ms, and the loop's longest {:.0} ms",
                longest.what,
                longest.whole * 1000.0,
                longest_looped * 1000.0
            ),
        },
        Line {
            name: "write of one row beside, upgrades / loop",
            ours: longest.usual * 1000.0,
            theirs: Some(usual_looped * 1000.0),
            unit: "ms",
            limit: 4.0,
            note: format!(
                "in another table, every 10 ms; all but one in a thousand, {:.0} ms beside one UPDATE. Longest: {:.0} ms, the loop's {:.0} ms, the UPDATE's {:.0} ms",
                usual_single * 1000.0,
                longest.beside * 1000.0,
                beside_looped * 1000.0,
                beside_single * 1000.0
            ),
        },
        Line {
            name: "heap after / the same rows in a new table",
            ours: median(&growth.iter().map(|(after, _)| after / MEGA).collect::<Vec<_>>()),
            theirs: Some(median(&growth.iter().map(|(_, packed)| packed / MEGA).collect::<Vec<_>>())),
            unit: "MB",
            limit: 1.35,
            note: format!(
                "after one UPDATE {:.2}; the rows themselves become {:.2} times as wide",
                median(&plain_growth),
                median(&wider)
            ),
        },
        Line {
            name: "heap after / before, the name alone added",
            ours: after / MEGA,
            theirs: Some(before / MEGA),
            unit: "MB",
            limit: 1.35,
            note: "an upgrade in place; VACUUM beside it".into(),
        },
        Line {
            name: "WAL a row / of one UPDATE",
            ours: median(&one_wal),
            theirs: Some(median(&single_wal)),
            unit: "B",
            limit: 1.15,
            note: "without VACUUM".into(),
        },
    ])
}

async fn check(session: &Session) -> Result<()> {
    let wrong = session
        .number(&format!(
            "select count(*) from article where content2 is distinct from {EXPRESSION} or applied_upgrades = '{{}}'"
        ))
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not as they should be");
    Ok(())
}

/// What a careful hand would write. The seconds of its longest batch.
async fn keyset_loop(session: &Session) -> Result<f64> {
    session
        .run(&format!(
            "create or replace procedure by_hand(inout longest float8) language plpgsql as $$
             declare at bigint := 0; upto bigint; keys bigint[]; began timestamptz := clock_timestamp();
             begin
                 loop
                     select max(id) into upto from (select id from article where id > at order by id limit 5000) q;
                     exit when upto is null;
                     select array_agg(id) into keys from (select id from article where id > at and id <= upto
                         and not applied_upgrades @> '{{blocks}}' for no key update skip locked) q;
                     update article set content2 = {EXPRESSION}, applied_upgrades = array_append(applied_upgrades, 'blocks') where id = any (keys);
                     at := upto;
                     commit;
                     longest := greatest(longest, extract(epoch from clock_timestamp() - began));
                     began := clock_timestamp();
                 end loop;
             end $$"
        ))
        .await?;
    // As our batches do.
    session.run("set synchronous_commit = off").await?;
    let longest = session.value("call by_hand(0)").await?.parse()?;
    session.run("reset synchronous_commit").await?;
    Ok(longest)
}

/// Rows one after the other, each found by what it lacks: rows a second, and how many were done.
async fn one_by_one(session: &Session, rows: i64) -> Result<(f64, i64)> {
    fresh(session, rows).await?;
    let sample = 3000.min(rows);
    session
        .run(&format!(
            "create or replace procedure one_by_one() language plpgsql as $$
             declare one bigint;
             begin
                 for n in 1 .. {sample} loop
                     select id into one from article where not ('blocks' = any (applied_upgrades)) limit 1 for update;
                     update article set content2 = {EXPRESSION}, applied_upgrades = array_append(applied_upgrades, 'blocks') where id = one;
                     commit;
                 end loop;
             end $$"
        ))
        .await?;
    session.run("set synchronous_commit = off").await?;
    let (seconds, ()) = timed(async { Ok(session.run("call one_by_one()").await.map(|_| ())?) }).await?;
    session.run("reset synchronous_commit").await?;
    Ok((sample as f64 / seconds, sample))
}

/// The heap before and after an upgrade that gives rows nothing but its name.
async fn as_wide_as_before(database: &Database, session: &Session, rows: i64) -> Result<(f64, f64)> {
    fresh(session, rows).await?;
    let before = heap(session).await?;
    session
        .run("select migrator.register_upgrade('article', 'other', '{\"live\": \"not live\"}', safe_in_place => true)")
        .await?;
    sweep(database, "article", 1).await?;
    Ok((before, heap(session).await?))
}
