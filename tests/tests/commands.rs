//! The commands of the program `migrator`: each does what the function of its name does and says what came of it, a dry
//! run leaves nothing behind, and a wrong word gets an answer that helps.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::say;
use migrator_tests::*;

for_each_server!(a_change_by_commands, a_small_table_is_not_rewritten_in_place);

async fn a_change_by_commands(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table goods (id int primary key, v text); insert into goods select g, 'v' || g from generate_series(1, 20000) g").await?;
    let altered =
        say(&database, &["alter", "goods", "alter column id type bigint, add column w int", "--strategy", "shadow"])
            .await?
            .fine();
    altered.context("alter")?;
    let status = say(&database, &["status", "--json"]).await?.fine().context("status")?;
    ensure!(status.contains("ready"), "{status}");
    serde_json::from_str::<serde_json::Value>(&status).context("status --json is no JSON")?;
    for command in [
        vec!["list"],
        vec!["verify", "goods"],
        vec!["swap", "goods", "--dry-run"],
        vec!["swap", "goods"],
        vec!["rollback", "goods"],
        vec!["prepare", "goods"],
        vec!["swap", "--latest"],
        vec!["log", "goods"],
        vec!["finish", "goods"],
        vec!["doctor"],
    ] {
        say(&database, &command).await?.fine().with_context(|| command.join(" "))?;
    }
    ensure!(session.value("select pg_typeof(id) from goods limit 1").await? == "bigint", "the change is not there");
    ensure!(session.number("select count(*) from goods").await? == 20_000, "rows lost");
    nothing_left_behind(&database).await?;

    // Answers that are no: nothing to swap; and errors: no such table, nobody there.
    ensure!(say(&database, &["swap", "goods"]).await?.code != 0, "swap without a change says yes");
    ensure!(say(&database, &["alter", "nothing", "add column a int"]).await?.code == 2, "an error is exit code 2");
    let nobody = say(&database, &["status", "--database", "postgresql://127.0.0.1:1/none"]).await?;
    ensure!(nobody.code == 2 && !nobody.stderr.is_empty(), "exit code {}", nobody.code);
    Ok(())
}

/// However small: under a lock that stops everybody a table is rewritten for those only who ask for it.
async fn a_small_table_is_not_rewritten_in_place(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table small (id int primary key); insert into small select g from generate_series(1, 50) g")
        .await?;
    // This transaction would find the table empty after a rewrite.
    let old = database.connect_as("postgres", "old").await?;
    old.run("begin isolation level repeatable read; select 1").await?;
    let file = session.value("select pg_relation_filenode('small')").await?;
    say(&database, &["alter", "small", "add column note text"]).await?.fine().context("catalogue work")?;
    ensure!(session.number("select count(*) from migrator.history").await? == 0, "a column was added through a shadow");
    say(&database, &["alter", "small", "alter column id type bigint"]).await?.fine().context("a new type")?;
    ensure!(session.value("select pg_relation_filenode('small')").await? == file, "the table was rewritten in place");
    ensure!(old.number("select count(*) from small").await? == 50, "an older transaction finds the table empty");
    old.run("commit").await?;
    ensure!(session.value("select state from migrator.status").await? == "ready", "there should be a change, ready");
    say(&database, &["cancel", "small"]).await?.fine().context("cancel")?;
    say(&database, &["alter", "small", "alter column id type bigint", "--strategy", "in-place"])
        .await?
        .fine()
        .context("in place")?;
    ensure!(session.value("select pg_typeof(id) from small limit 1").await? == "bigint", "the change is not there");
    nothing_left_behind(&database).await
}
