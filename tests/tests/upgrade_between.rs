//! A row that changes between the snapshot of a batch's statement and the lock on the row, where the guard leaves the upgrade to
//! batches: the row lacks it still, and is done once, as it is then.

use migrator_tests::upgrades::{Step, Worker};
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(
    a_row_that_is_written,
    a_key_that_moves_within_the_batch,
    a_key_that_moves_in_front_of_it,
    a_key_that_moves_beyond_it,
    a_row_that_is_deleted,
    a_row_of_a_partition_that_is_written,
    a_key_of_a_partition_that_moves,
);

/// `slug` and `n` are unique, so no application's write derives them; `n` must not be derived twice. What is written is told of.
const ARTICLES: &str = "create table article (id bigint primary key, title text not null, slug text unique, n bigint not null unique);
    insert into article select 10 * g, 'Title ' || g, null, 1000 + g from generate_series(1, 20) g;
    select migrator.register_upgrade('article', 'slug', '{\"slug\": \"lower(title)\"}', target => '1 minute');
    select migrator.register_upgrade('article', 'twice', '{\"n\": \"n * 2\"}', safe_in_place => true, target => '1 minute')";
const PARTED: &str = "create table article (id bigint, title text not null, slug text, n bigint, primary key (id), unique (id, slug)) partition by range (id);
    create table article_few partition of article for values from (0) to (100000);
    insert into article select 10 * g, 'Title ' || g, null, 2 * (1000 + g) from generate_series(1, 20) g;
    select migrator.register_upgrade('article', 'slug', '{\"slug\": \"lower(title)\"}', target => '1 minute')";
const MADE: &str = "create table made (slug text);
    create function tell() returns trigger language plpgsql as $$ begin
        if new.slug is distinct from old.slug then insert into public.made values (new.slug); end if; return null; end $$;
    create trigger tell after update on article for each row execute function tell()";

/// The first batch has its snapshot and has locked no row yet; somebody changes one, and commits. What the batch did then.
async fn meanwhile(server: &Server, table: &str, change: &str) -> Result<(Session, Worker, Step)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(table).await?;
    session.run(MADE).await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    let begun = worker.step().await?;
    ensure!(begun.state == "upgrading" && begun.rows == 0, "{begun:?}");
    session.run("select pg_advisory_lock(7331)").await?;
    worker.session().run("set migrator.crash_at = 'step.looked:wait'").await?;
    let pid = worker.session().pid;
    let batch = tokio::spawn(async move {
        let step = worker.step().await;
        (worker, step)
    });
    let deadline = Instant::now() + change::PATIENCE;
    let waits = format!("select count(*) from pg_locks where locktype = 'advisory' and not granted and pid = {pid}");
    while session.number(&waits).await? == 0 {
        ensure!(Instant::now() < deadline && !batch.is_finished(), "the batch never looked at a row");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ensure!(session.run(change).await? == 1, "nothing was changed");
    ensure!(session.number("select count(*) from article where slug is not null").await? == 0, "the guard derived it");
    session.run("select pg_advisory_unlock(7331)").await?;
    let (worker, step) = batch.await?;
    let step = step?;
    ensure!(step.state == "upgrading" && step.failed == 0, "{step:?}");
    Ok((session, worker, step))
}

/// Rows that are not done as they are now, or whose value was made more than once.
const WRONG: &str = "select count(*) from article a where slug is distinct from lower(title) or not applied_upgrades @> '{slug}' \
    or (select count(*) from made m where m.slug = a.slug) <> 1 or n is distinct from 2 * (1000 + substr(title, 7)::int)";

/// All rows that are there were done by the batch.
async fn done_at_once(session: &Session, worker: &mut Worker, step: &Step, rows: i64) -> Result<()> {
    ensure!(step.rows == rows, "of {rows} rows the batch wrote {}", step.rows);
    ensure!(session.number(WRONG).await? == 0, "{:?}", session.rows("select * from article order by id").await?);
    at_the_end(session, worker, rows).await
}

async fn at_the_end(session: &Session, worker: &mut Worker, rows: i64) -> Result<()> {
    worker.session().run("set migrator.crash_at = ''").await?;
    worker.complete(session).await?;
    ensure!(session.number("select count(*) from article").await? == rows, "rows are missing");
    ensure!(session.number(WRONG).await? == 0, "{:?}", session.rows("select * from article order by id").await?);
    let made = session.number("select count(*) from made").await?;
    ensure!(made == rows, "{made} values were made for {rows} rows");
    Ok(())
}

/// The lock follows the row to a version that the statement does not see: it is taken by its key.
async fn a_row_that_is_written(server: Server) -> Result<()> {
    let change = "update article set title = 'Other 10' where id = 100";
    let (session, mut worker, step) = meanwhile(&server, ARTICLES, change).await?;
    ensure!(
        session.value("select slug from article where id = 100").await? == "other 10",
        "it was made of the old title"
    );
    done_at_once(&session, &mut worker, &step, 20).await
}

async fn a_key_that_moves_within_the_batch(server: Server) -> Result<()> {
    let (session, mut worker, step) =
        meanwhile(&server, ARTICLES, "update article set id = 105, title = 'Other 10' where id = 100").await?;
    done_at_once(&session, &mut worker, &step, 20).await
}

/// To a place that the scan has passed, or has not come to: in the same range all the same.
async fn a_key_that_moves_in_front_of_it(server: Server) -> Result<()> {
    let (session, mut worker, step) = meanwhile(&server, ARTICLES, "update article set id = -5 where id = 200").await?;
    done_at_once(&session, &mut worker, &step, 20).await
}

/// Behind the end of the sweep. It lacks the upgrade until the look at all rows finds it.
async fn a_key_that_moves_beyond_it(server: Server) -> Result<()> {
    let (session, mut worker, step) =
        meanwhile(&server, ARTICLES, "update article set id = 1000, title = 'Other 10' where id = 100").await?;
    ensure!(step.rows == 19, "{step:?}");
    let row = session.row("select slug, n, applied_upgrades from article where id = 1000").await?;
    ensure!(row == ["", "1010", "{}"], "a batch that is not its own wrote it: {row:?}");
    ensure!(session.number(WRONG).await? == 1, "{:?}", session.rows("select * from article order by id").await?);
    at_the_end(&session, &mut worker, 20).await
}

async fn a_row_that_is_deleted(server: Server) -> Result<()> {
    let (session, mut worker, step) = meanwhile(&server, ARTICLES, "delete from article where id = 100").await?;
    done_at_once(&session, &mut worker, &step, 19).await
}

/// Rows of a partitioned table are written by their keys from the beginning.
async fn a_row_of_a_partition_that_is_written(server: Server) -> Result<()> {
    let change = "update article set title = 'Other 10' where id = 100";
    let (session, mut worker, step) = meanwhile(&server, PARTED, change).await?;
    done_at_once(&session, &mut worker, &step, 20).await
}

async fn a_key_of_a_partition_that_moves(server: Server) -> Result<()> {
    let (session, mut worker, step) =
        meanwhile(&server, PARTED, "update article set id = 105, title = 'Other 10' where id = 100").await?;
    done_at_once(&session, &mut worker, &step, 20).await
}
