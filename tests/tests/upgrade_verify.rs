//! What the program finds where somebody went round the guard, and what it says of the time to go.

use migrator_tests::program::{Outcome, say};
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use serde_json::Value;

for_each_server!(rows_that_lost_a_name);
for_newest_server!(the_time_to_go);

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("this is no JSON: {text}"))
}

/// So many articles, and an upgrade in batches of 500.
async fn articles(session: &Session, rows: u32) -> Result<()> {
    session
        .run(&format!(
            "create table article (id int primary key, content text, size int);
             insert into article select g, g::text from generate_series(1, {rows}) g; analyze article;
             select migrator.register_upgrade('article', 'size', '{{\"size\": \"content::int\"}}', batch_size => 500)"
        ))
        .await?;
    Ok(())
}

/// Changes rows behind the guard's back, and puts it back as it was.
async fn without_guard(session: &Session, sql: &str) -> Result<()> {
    session
        .run(&format!(
            "alter table article disable trigger \"~migrator_guard\"; {sql}; alter table article enable always trigger \"~migrator_guard\""
        ))
        .await?;
    Ok(())
}

async fn rows_that_lost_a_name(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    articles(&session, 2000).await?;
    say(&database, &["upgrade", "run", "article"]).await?.fine()?;

    // One row loses the name with a new input, one the name alone: nobody has seen it, and `run` finds nothing to do.
    let lost = "update article set content = '70', applied_upgrades = '{}' where id = 7; \
                update article set size = null, applied_upgrades = array_remove(applied_upgrades, 'size') where id = 1900";
    without_guard(&session, lost).await?;
    let said = say(&database, &["upgrade", "run", "article"]).await?.fine()?;
    ensure!(said == "upgrades of public.article are complete: size\n", "{said}");
    let lacking = "select count(*) from article where applied_upgrades <> '{size}'";
    ensure!(session.number(lacking).await? == 2, "somebody has looked already: this test shows nothing");
    let written = "select string_agg(id || ' ' || size, ', ' order by id) from article where id in (7, 1900)";
    let said = say(&database, &["upgrade", "verify", "article", "--workers", "2"]).await?.fine()?;
    ensure!(said == "upgrades of public.article are complete: size\n", "{said}");
    ensure!(session.number(lacking).await? == 0, "rows that lack it were not found");
    ensure!(session.value(written).await? == "7 70, 1900 1900", "{}", session.value(written).await?);
    ensure!(states(&session, "article").await? == "size=complete", "{}", states(&session, "article").await?);

    // What cannot be upgraded again is told of.
    without_guard(&session, "update article set content = 'bad', size = null, applied_upgrades = '{}' where id = 7")
        .await?;
    let Outcome { code, stdout, stderr } = say(&database, &["upgrade", "verify", "article"]).await?;
    ensure!(code == 1, "it ended with {code}: {stdout}{stderr}");
    ensure!(
        stdout.contains("upgrades of public.article are not complete, waiting: 1 row(s) are set aside")
            && stdout.contains("HINT: select migrator.retry_failed('public.article', 'size');"),
        "{stdout}"
    );
    let Outcome { code, stdout, stderr } = say(&database, &["upgrade", "verify", "article", "--json"]).await?;
    let told = json(&stdout)?;
    ensure!(code == 1 && told["state"] == "waiting" && told["upgrades"][0]["failed"] == 1, "{code}: {told}{stderr}");
    session.run("update article set content = '7' where id = 7").await?;
    let told = json(&say(&database, &["upgrade", "verify", "article", "--json"]).await?.fine()?)?;
    ensure!(told["state"] == "complete" && told["upgrades"][0]["state"] == "complete", "{told}");

    // While the guard is away nothing can be said of any row.
    session.run("alter table article disable trigger \"~migrator_guard\"; update article set applied_upgrades = '{}' where id = 9").await?;
    let Outcome { code, stdout, stderr } = say(&database, &["upgrade", "verify", "article"]).await?;
    ensure!(code == 1, "it ended with {code}: {stdout}{stderr}");
    ensure!(
        stdout.contains("not complete, blocked: ")
            && stdout.contains("select migrator.resume_upgrades('public.article');"),
        "{stdout}"
    );
    ensure!(session.number(lacking).await? == 1, "rows were written without a guard");
    say(&database, &["upgrade", "resume", "article"]).await?.fine()?;
    say(&database, &["upgrade", "verify", "article"]).await?.fine()?;
    ensure!(session.number(lacking).await? == 0, "rows that lack it were not found");
    let Outcome { code, stdout, stderr } = say(&database, &["upgrade", "verify", "nothing"]).await?;
    ensure!(code == 2 && stderr.contains("nothing"), "it ended with {code}: {stdout}{stderr}");
    Ok(())
}

/// An eighth was passed within an hour: seven more hours.
async fn the_time_to_go(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    articles(&session, 8000).await?;
    let none = json(&say(&database, &["upgrade", "status", "article", "--json"]).await?.fine()?)?;
    ensure!(none["upgrades"][0]["eta_seconds"].is_null(), "before the first batch: {none}");
    let mut worker = Worker::new(&database, "article", "w").await?;
    // The program goes on with its chunk as soon as its lease is over.
    worker.session().run("set migrator.lease = '100 ms'").await?;
    for _ in 0..2 {
        let step = worker.until(|step| step.rows > 0).await?;
        ensure!(step.rows == 500, "{step:?}");
    }
    let begun = "update migrator.upgraded set sweep_began = clock_timestamp() - interval '1 hour'";
    session.run(begun).await?;
    let status = json(&say(&database, &["upgrade", "status", "article", "--json"]).await?.fine()?)?;
    let most = session
        .value("select extract(epoch from clock_timestamp() - sweep_began) * 7 + 1 from migrator.upgraded")
        .await?;
    let told = status["upgrades"][0]["eta_seconds"].as_f64().context("no time to go")?;
    ensure!((25_200.0..=most.parse()?).contains(&told), "{told} seconds to go, and not 25,200 to {most}");
    session.run(begun).await?;
    let shown = say(&database, &["upgrade", "status", "article", "--name", "size"]).await?.fine()?;
    let line = shown.lines().find(|line| line.starts_with("time to go")).context("no time to go")?;
    ensure!(line.contains(" 07:0"), "{line}");
    session.run(begun).await?;
    let all = say(&database, &["upgrade", "status"]).await?.fine()?;
    ensure!(all.contains(" 07:0"), "{all}");
    // And while it is driven: the first line is of what there was before the first batch.
    session.run(begun).await?;
    let ran = say(&database, &["upgrade", "run", "article", "--workers", "1"]).await?;
    let line = ran.stderr.lines().find(|line| line.starts_with("public.article running: ")).context("no progress")?;
    ensure!(ran.code == 0 && line.contains(", 07:0") && line.contains(" to go"), "{}: {}", ran.code, ran.stderr);
    let none = json(&say(&database, &["upgrade", "status", "article", "--json"]).await?.fine()?)?;
    ensure!(none["upgrades"][0]["eta_seconds"].is_null(), "when it is complete: {none}");
    Ok(())
}
