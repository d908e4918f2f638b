//! Upgrades of rows: against one big UPDATE, against a keyset loop in PL/pgSQL, and against rows one by one behind an
//! anti-predicate with LIMIT, as a library in the application would do it.

use super::beside::{Beside, Writes};
use super::sweep::{Longest, Sweep};
use super::turns::{Gated, Turns, in_turns};
use super::{Line, median, timed};
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
    // Its segments of the log can be used once more: three servers that keep all of theirs need much of the disk.
    session.run("checkpoint").await?;
    session.run("create table packed as select * from article").await?;
    let size = session.number("select pg_relation_size('packed')").await? as f64;
    session.run("drop table packed").await?;
    Ok(size)
}

async fn heap(session: &Session) -> Result<f64> {
    Ok(session.number("select pg_relation_size('article')").await? as f64)
}

/// Figures of all rounds.
#[derive(Default)]
struct Figures {
    /// Ours and theirs, in seconds: what was done in turn.
    one: Vec<(f64, f64)>,
    looped: Vec<(f64, f64)>,
    two: Vec<(f64, f64)>,
    three: Vec<(f64, f64)>,
    verified: Vec<f64>,
    /// Bytes for each row.
    wal: Vec<(f64, f64)>,
    /// The heap after it, and the same rows in a new table.
    heap: Vec<(f64, f64)>,
    plain_growth: Vec<f64>,
    wider: Vec<f64>,
    longest: Longest,
    /// Seconds: its longest batch; the longest write beside it, and what all but one in a thousand took.
    the_loop: (f64, f64, f64),
    the_update: (f64, f64),
}

/// One worker, one UPDATE of all rows, and a loop by hand, in turns; and what their tables are like afterwards.
async fn one_worker(places: &Places<'_>, figures: &mut Figures) -> Result<()> {
    let Places { database, session, others: [update, hand], rows } = *places;
    let (updated, by_hand) = (update.connect().await?, hand.connect().await?);
    for session in [&updated, &by_hand, session] {
        fresh(session, rows).await?;
    }
    let size = heap(&updated).await?;
    blocks(session, "article").await?;
    let beside = Beside::begin(database).await?;
    let mut sweep = Sweep::new(database, "article", 1).await?;
    let mut single = single(update).await?;
    let mut looping = Gated::new(hand, BY_HAND, "call by_hand(0)").await?;
    in_turns!(single, sweep, looping);
    let writes = beside.end().await?;
    let (swept, single, looping) = (sweep.end(&writes).await?, single.end(&writes).await?, looping.end(&writes).await?);
    check(session).await?;
    by_hand.run("drop table article").await?;
    figures.one.push((swept.seconds, single.seconds));
    figures.looped.push((swept.seconds, looping.seconds));
    figures.verified.push(swept.verified);
    figures.heap.push((heap(session).await?, packed(session).await?));
    figures.plain_growth.push(heap(&updated).await? / packed(&updated).await?);
    figures.wider.push(packed(&updated).await? / size);
    figures.longest = std::mem::take(&mut figures.longest).or(swept.longest);
    let batch: f64 = looping.rows[0][0].as_deref().context("the loop tells of its batches")?.parse()?;
    let (most, beside, usual) = figures.the_loop;
    figures.the_loop = (most.max(batch), beside.max(looping.beside), usual.max(looping.usual));
    figures.the_update = (figures.the_update.0.max(single.beside), figures.the_update.1.max(single.usual));

    // WAL without that of VACUUM: the same without it.
    fresh(session, rows).await?;
    blocks(session, "article").await?;
    let begun = wal(session).await?;
    session.run("call migrator.run_upgrades('article')").await?;
    figures.wal.push(((wal(session).await? - begun) / rows as f64, single.wal / rows as f64));
    Ok(())
}

/// One UPDATE of all rows.
async fn single(database: &Database) -> Result<Gated> {
    let sql = format!(
        "update article set content2 = {EXPRESSION}, applied_upgrades = array_append(applied_upgrades, 'blocks') where id % 500 <> 0 or gate()"
    );
    Gated::new(database, "select 1", &sql).await
}

async fn two_workers(places: &Places<'_>, figures: &mut Figures) -> Result<()> {
    let Places { database, session, others: [update, _], rows } = *places;
    fresh(&update.connect().await?, rows).await?;
    fresh(session, rows).await?;
    blocks(session, "article").await?;
    let beside = Beside::begin(database).await?;
    let mut sweep = Sweep::new(database, "article", 2).await?;
    let mut single = single(update).await?;
    in_turns!(single, sweep);
    let swept = sweep.end(&beside.end().await?).await?;
    let single = single.end(&Writes::default()).await?;
    check(session).await?;
    figures.two.push((swept.seconds, single.seconds));
    figures.longest = std::mem::take(&mut figures.longest).or(swept.longest);
    Ok(())
}

async fn three_upgrades(places: &Places<'_>, figures: &mut Figures) -> Result<()> {
    let Places { database, session, rows, .. } = *places;
    const OTHER: &str = "article_too";
    for table in ["article", OTHER] {
        articles(session, table, rows).await?;
        blocks(session, table).await?;
    }
    register(session, "words", "words", "length(content)").await?;
    register(session, "slug", "slug", "lower(replace(headline, ' ', '-'))").await?;
    let beside = Beside::begin(database).await?;
    let (mut three, mut one) = (Sweep::new(database, "article", 1).await?, Sweep::new(database, OTHER, 1).await?);
    in_turns!(one, three);
    let writes = beside.end().await?;
    let (three, one) = (three.end(&writes).await?, one.end(&writes).await?);
    check(session).await?;
    session.run(&format!("drop table {OTHER} cascade")).await?;
    figures.three.push((three.seconds, one.seconds));
    figures.longest = std::mem::take(&mut figures.longest).or(three.longest).or(one.longest);
    Ok(())
}

/// Where it is measured: the upgrades' database and a session in it; databases, in servers of their own, of those that they are compared with.
pub struct Places<'a> {
    pub database: &'a Database,
    pub session: &'a Session,
    pub others: [&'a Database; 2],
    pub rows: i64,
}

/// Everything about upgrades.
pub async fn measure(places: &Places<'_>, rounds: usize) -> Result<Vec<Line>> {
    let Places { database, session, rows, .. } = *places;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        one_worker(places, &mut figures).await?;
        two_workers(places, &mut figures).await?;
        three_upgrades(places, &mut figures).await?;
        let [one, looped, two, three] =
            [&figures.one, &figures.looped, &figures.two, &figures.three].map(|all| all[round - 1]);
        eprintln!(
            "round {round}: one worker {:.1} s, in turns with one UPDATE {:.1} s and a loop in PL/pgSQL {:.1} s; two workers {:.1} s, with one UPDATE {:.1} s; three upgrades {:.1} s, with one {:.1} s",
            one.0, one.1, looped.1, two.0, two.1, three.0, three.1
        );
    }
    let (one_by_one, sample) = one_by_one(session, rows).await?;
    let (before, after) = as_wide_as_before(database, session, rows).await?;
    let Figures { longest, the_loop, the_update, .. } = &figures;
    let pair = |name, all: &[(f64, f64)], unit, limit, note: String| Line {
        name,
        ours: median(&all.iter().map(|(ours, _)| *ours).collect::<Vec<_>>()),
        theirs: Some(median(&all.iter().map(|(_, theirs)| *theirs).collect::<Vec<_>>())),
        unit,
        limit,
        note,
    };
    Ok(vec![
        pair(
            "upgrade, one worker / one UPDATE",
            &figures.one,
            "s",
            1.0 / 0.7,
            format!(
                "in turns of 2 s. VACUUM beside the worker; its look at all rows again takes {:.1} s more",
                median(&figures.verified)
            ),
        ),
        pair("upgrade, two workers / one UPDATE", &figures.two, "s", 1.0 / 0.85, "in turns".into()),
        pair(
            "upgrade, one worker / loop in PL/pgSQL",
            &figures.looped,
            "s",
            f64::INFINITY,
            "in turns. Keyset batches of 5,000, FOR NO KEY UPDATE SKIP LOCKED, commits that do not wait for the disk"
                .into(),
        ),
        Line {
            name: "rows a second / one by one with LIMIT",
            ours: rows as f64 / median(&figures.one.iter().map(|(ours, _)| *ours).collect::<Vec<_>>()),
            theirs: Some(one_by_one),
            unit: "/s",
            limit: f64::INFINITY,
            note: format!("the others' first {sample} rows only; larger is better"),
        },
        pair("three upgrades at once / one", &figures.three, "s", 1.3, "in turns".into()),
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
                the_loop.0 * 1000.0
            ),
        },
        Line {
            name: "write of one row beside, upgrades / loop",
            ours: longest.usual * 1000.0,
            theirs: Some(the_loop.2 * 1000.0),
            unit: "ms",
            limit: 4.0,
            note: format!(
                "in another table, every 10 ms; all but one in a thousand, {:.0} ms beside one UPDATE. Longest: {:.0} ms, the loop's {:.0} ms, the UPDATE's {:.0} ms",
                the_update.1 * 1000.0,
                longest.beside * 1000.0,
                the_loop.1 * 1000.0,
                the_update.0 * 1000.0
            ),
        },
        pair(
            "heap after / the same rows in a new table",
            &figures.heap.iter().map(|(after, packed)| (after / MEGA, packed / MEGA)).collect::<Vec<_>>(),
            "MB",
            1.35,
            format!(
                "after one UPDATE {:.2}; the rows themselves become {:.2} times as wide",
                median(&figures.plain_growth),
                median(&figures.wider)
            ),
        ),
        Line {
            name: "heap after / before, the name alone added",
            ours: after / MEGA,
            theirs: Some(before / MEGA),
            unit: "MB",
            limit: 1.35,
            note: "an upgrade in place; VACUUM beside it".into(),
        },
        pair("WAL a row / of one UPDATE", &figures.wal, "B", 1.15, "without VACUUM".into()),
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

/// What a careful hand would write. It tells the seconds of its longest batch.
const BY_HAND: &str = "set synchronous_commit = off; -- as our batches do
     create or replace procedure by_hand(inout longest float8) language plpgsql as $$
     declare at bigint := 0; upto bigint; keys bigint[]; began timestamptz;
     begin
         loop
             perform gate();
             began := clock_timestamp();
             select max(id) into upto from (select id from article where id > at order by id limit 5000) q;
             exit when upto is null;
             select array_agg(id) into keys from (select id from article where id > at and id <= upto
                 and not applied_upgrades @> '{blocks}' for no key update skip locked) q;
             update article set content2 = to_jsonb(content), applied_upgrades = array_append(applied_upgrades, 'blocks') where id = any (keys);
             at := upto;
             commit;
             longest := greatest(longest, extract(epoch from clock_timestamp() - began));
         end loop;
     end $$";

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
    let mut sweep = Sweep::new(database, "article", 1).await?;
    in_turns!(sweep);
    sweep.end(&Writes::default()).await?;
    Ok((before, heap(session).await?))
}
