//! Upgrades that are done by writing the table anew: the same for every row as batches, whoever writes meanwhile, before and
//! after the swap and after it was taken back.

use migrator_tests::program::say;
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

for_each_server!(written_anew_beside_writers, driven_by_the_program, waited_for);

const TABLE: &str = "create table article (id int primary key, headline text not null, words int, shouted text);
    insert into article (id, headline) select g, 'headline ' || g from generate_series(1, 3000) g; analyze article";
const REGISTER: &str = r#"select migrator.register_upgrade('article', 'shout', set => '{"words": "length(headline)", "shouted": "upper(headline)"}', strategy => 'rewrite')"#;
const WRONG: &str = "select count(*) from article where words is distinct from length(headline) or shouted is distinct from upper(headline) or applied_upgrades <> '{shout}'";

/// Old writers: they know nothing of the new columns. What they wrote last of each row.
fn writer(
    database: &Database,
    number: i32,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Result<Vec<(i32, String)>>> {
    let database = database.clone();
    tokio::spawn(async move {
        let session = database.connect_as("postgres", "writer").await?;
        let mut written = vec![];
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let text = format!("by {number} the {n}th");
            let (id, sql) = if n % 3 == 0 {
                let id = 10_000 * number + n;
                (id, format!("insert into article (id, headline) values ({id}, '{text}')"))
            } else {
                let id = 1 + (n * 7 + number) % 1500 * 2 + number % 2;
                (id, format!("update article set headline = '{text}' where id = {id}"))
            };
            match session.run(&sql).await {
                Ok(_) => written.push((id, text)),
                // It waited for the swap with a plan of before.
                Err(error) if error.is_worth_retrying() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    })
}

async fn written_anew_beside_writers(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run(REGISTER).await?;
    let stop = Arc::new(AtomicBool::new(false));
    // Each has rows of its own: what it wrote last is what is there.
    let writers: Vec<_> = (1..3).map(|number| writer(&database, number, Arc::clone(&stop))).collect();
    let mut worker = Worker::new(&database, "article", "worker").await?;
    let id = session.number("select change from migrator.upgrades").await?;
    let step = worker.step().await?;
    ensure!(step.done && step.reason.contains(&format!("change {id} writes the table anew")), "{step:?}");
    let change = Change::of(&database, id);
    change.until(|advance| advance.state == "swapped").await?;
    ensure!(session.value("select change from migrator.upgrades").await?.is_empty(), "it is written anew already");

    // Batches have nothing to write: all rows have it, and that is what they find.
    let last = worker.run().await?;
    ensure!(last.state == "complete" && last.rows == 0, "{last:?}");
    ensure!(session.number(WRONG).await? == 0, "after the swap: {} rows", session.value(WRONG).await?);
    ensure!(states(&session, "article").await? == "shout=complete", "{}", states(&session, "article").await?);

    // Taken back beside the writers: the rows are in their old form, and the view shows them in the new one.
    change.rollback().await?;
    let wrong = WRONG.replace("from article", "from article__current").replace(" or applied_upgrades <> '{shout}'", "");
    ensure!(session.number(&wrong).await? == 0, "read through the view: {} rows", session.value(&wrong).await?);
    let refusal = session.refusal("select migrator.ensure_upgraded('article', 'shout')").await?;
    ensure!(refusal.code == "55000", "rows in their old form pass for upgraded: {refusal}");
    let step = worker.step().await?;
    ensure!(step.done && step.reason.contains(&format!("change {id} writes the table anew")), "{step:?}");
    // And swapped once more.
    change.until_ready().await?;
    change.swap().await?;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let written = writer.await??;
        ensure!(written.len() > 20, "it hardly wrote: {}", written.len());
        let last: std::collections::BTreeMap<i32, String> = written.into_iter().collect();
        for (id, text) in last {
            let found = session.value(&format!("select headline from article where id = {id}")).await?;
            ensure!(found == text, "row {id}: {text} was written, {found} is there");
        }
    }
    change.until_in_step().await?;
    change.finish().await?;
    session.run("select migrator.verify_upgrades('article')").await?;
    ensure!(worker.run().await?.state == "complete");
    ensure!(session.number(WRONG).await? == 0, "at the end: {} rows", session.value(WRONG).await?);
    Ok(())
}

async fn driven_by_the_program(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run(REGISTER).await?;
    let said = say(&database, &["upgrade", "run", "article"]).await?.fine()?;
    ensure!(said.contains("which wrote public.article anew, is swapped; next: "), "{said}");
    ensure!(said.contains("upgrades of public.article are complete: shout"), "{said}");
    ensure!(session.number(WRONG).await? == 0, "{} rows", session.value(WRONG).await?);
    Ok(())
}

/// Who waits for the upgrade in one statement does not hold up the swap that he waits for, and knows the upgrade again behind it.
async fn waited_for(server: Server) -> Result<()> {
    for how in ["wait => '1 hour'", "wait => '1 hour', drive => true"] {
        let database = server.database().await?;
        let session = database.connect().await?;
        session.run(TABLE).await?;
        session.run(REGISTER).await?;
        let waiting = {
            let waiter = database.connect_as("postgres", "waiter").await?;
            let call = format!("select migrator.ensure_upgraded('article', 'shout', {how})");
            // In a transaction that goes on: its later snapshots are like everybody's.
            tokio::spawn(async move {
                waiter.run("begin").await?;
                waiter.run(&call).await?;
                Result::<Session>::Ok(waiter)
            })
        };
        let waits = "select count(*) from pg_locks l join pg_stat_activity a using (pid) where a.application_name = 'waiter' and a.datname = current_database() \
             and l.locktype = 'object' and l.classid = 'migrator.upgraded'::regclass and l.mode = 'AccessShareLock'";
        let deadline = std::time::Instant::now() + change::PATIENCE;
        while session.number(waits).await? == 0 {
            ensure!(!waiting.is_finished() && std::time::Instant::now() < deadline, "{how}: nobody waits");
            tokio::task::yield_now().await;
        }
        let change = Change::of(&database, session.number("select change from migrator.upgrades").await?);
        change.until(|advance| advance.state == "swapped").await?;
        let mut worker = Worker::new(&database, "article", "worker").await?;
        if !how.contains("drive") {
            worker.until(|step| step.state == "complete").await?;
        }
        let waiter = waiting.await?.with_context(|| how.to_owned())?;
        ensure!(session.number(waits).await? == 0, "{how}: it waits for nothing any more");
        waiter.run("commit").await?;
        worker.until(|step| step.state == "complete").await?;
        ensure!(session.number(WRONG).await? == 0, "{how}: {} rows", session.value(WRONG).await?);
    }
    Ok(())
}
