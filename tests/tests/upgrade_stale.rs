//! What was complete, and is not any more: nobody may throw something away because of what was true before.

use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;

for_each_server!(
    partitions_that_are_attached,
    attached_behind_a_sweep,
    rows_of_old_versions,
    without_a_guard,
    a_child_that_comes_later,
    a_partition_that_was_away,
    an_index_that_was_there,
    an_index_that_came_and_went,
    the_guard_of_one_partition,
    snapshots_of_before,
);

/// A partitioned table of which an upgrade is complete, and its worker.
async fn parted(server: &Server) -> Result<(Session, Worker)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table parted (id int, part int, v text, w int, primary key (id, part)) partition by list (part);
             create table parted_1 partition of parted for values in (1);
             insert into parted select g, 1, g::text from generate_series(1, 2000) g;
             select migrator.register_upgrade('parted', 'w', '{\"w\": \"length(v)\"}', batch_size => 200)",
        )
        .await?;
    let mut worker = Worker::new(&database, "parted", "w").await?;
    worker.complete(&session).await?;
    Ok((session, worker))
}

/// A table with rows that no guard saw becomes a partition.
async fn attach(session: &Session, part: i32, names: &str) -> Result<()> {
    session
        .run(&format!(
            "create table parted_{part} (like parted including defaults);
             insert into parted_{part} select -g, {part}, 'abc', 3, '{names}' from generate_series(1, 300) g;
             alter table parted attach partition parted_{part} for values in ({part})"
        ))
        .await?;
    Ok(())
}

/// Articles whose `b` comes of `a`; `b` is declared so.
async fn articles(server: &Server, declared: &str) -> Result<(Session, Worker)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(&format!(
            "create table article (id int primary key, a text, b text {declared});
             insert into article select g, 'Title ' || g from generate_series(1, 500) g;
             select migrator.register_upgrade('article', 'b', '{{\"b\": \"lower(a)\"}}')"
        ))
        .await?;
    let worker = Worker::new(&database, "article", "w").await?;
    Ok((session, worker))
}

async fn sweeps(session: &Session) -> Result<i64> {
    session.number("select sweep from migrator.upgraded").await
}

async fn refused(session: &Session, call: &str, why: &str) -> Result<()> {
    let refusal = session.refusal(&format!("select migrator.{call}")).await?;
    let said = format!("{refusal} {} {}", refusal.detail, refusal.hint.clone().unwrap_or_default());
    ensure!(refusal.code == "55000" && said.contains(why), "{call}: {said}");
    Ok(())
}

async fn partitions_that_are_attached(server: Server) -> Result<()> {
    let (session, mut worker) = parted(&server).await?;
    let before = sweeps(&session).await?;
    // One that is new has nothing, or what the guard saw; one that is attached may have everything already.
    session
        .run("create table parted_2 partition of parted for values in (2); insert into parted values (1, 2, 'a')")
        .await?;
    attach(&session, 3, "{w}").await?;
    ensure!(worker.run().await?.state == "complete" && sweeps(&session).await? == before, "all rows were looked at");
    session.value("select migrator.ensure_upgraded('parted', 'w')").await?;

    attach(&session, 5, "{}").await?;
    for call in ["ensure_upgraded('parted', 'w')", "retire_upgrade('parted', 'w')"] {
        refused(&session, call, "rows of partition public.parted_5, which came later, may lack it").await?;
    }
    worker.complete(&session).await?;
    let wrong = session
        .number("select count(*) from parted where w is distinct from length(v) or applied_upgrades <> '{w}'")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not upgraded");
    session.value("select migrator.ensure_upgraded('parted', 'w')").await?;
    Ok(())
}

/// Its keys are those that the look at all rows has passed.
async fn attached_behind_a_sweep(server: Server) -> Result<()> {
    let (session, mut worker) = parted(&server).await?;
    session.run("select migrator.verify_upgrades('parted')").await?;
    let looked = worker.until(|step| step.state == "verifying" && step.rows > 0).await?;
    ensure!(looked.rows == 2000, "the sweep has not passed all rows: {looked:?}");
    session.run("create table parted_9 (like parted including defaults); insert into parted_9 select -g, 9, 'abc' from generate_series(1, 300) g; alter table parted attach partition parted_9 for values in (9)").await?;
    // And one far beyond the end.
    session.run("create table parted_8 (like parted including defaults); insert into parted_8 values (100000, 8, 'abc'); alter table parted attach partition parted_8 for values in (8)").await?;
    worker.complete(&session).await?;
    let wrong = session
        .number("select count(*) from parted where w is distinct from length(v) or applied_upgrades <> '{w}'")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not upgraded");
    Ok(())
}

/// A version that knows of no upgrade goes on writing, and what it writes only application code or a batch can upgrade.
async fn rows_of_old_versions(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table article (id int primary key, a text, b text, slug text unique);
             insert into article select g, 'Title ' || g from generate_series(1, 500) g;
             select migrator.register_upgrade('article', 'slug', '{\"slug\": \"lower(a)\"}');
             select migrator.register_upgrade('article', 'code', inputs => '{a}', outputs => '{b}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    worker.run().await?;
    session.run("update article set b = 'b', applied_upgrades = '{slug,code}'").await?;
    session.run("select migrator.verify_upgrades('article')").await?;
    worker.complete(&session).await?;
    for name in ["slug", "code"] {
        session.value(&format!("select migrator.ensure_upgraded('article', '{name}')")).await?;
    }
    session.run("insert into article (id, a) values (1000, 'Old')").await?;
    ensure!(states(&session, "article").await? == "slug=complete code=complete", "somebody has looked already");
    for name in ["slug", "code"] {
        let why = "rows lack it that were written since";
        refused(&session, &format!("ensure_upgraded('article', '{name}')"), why).await?;
        refused(&session, &format!("retire_upgrade('article', '{name}')"), why).await?;
    }
    ensure!(states(&session, "article").await? == "slug=complete code=complete", "a refused call changed something");
    // What batches can do is done by the call itself.
    session.value("select migrator.ensure_upgraded('article', 'slug', drive => true, wait => '1 minute')").await?;
    ensure!(session.value("select slug from article where id = 1000").await? == "old", "it was not driven");
    session.run("update article set b = 'b', applied_upgrades = '{slug,code}' where id = 1000").await?;
    session.run("select migrator.verify_upgrades('article')").await?;
    session.value("select migrator.ensure_upgraded('article', 'code', drive => true, wait => '1 minute')").await?;
    for name in ["slug", "code"] {
        session.value(&format!("select migrator.retire_upgrade('article', '{name}')")).await?;
    }
    Ok(())
}

async fn without_a_guard(server: Server) -> Result<()> {
    let (session, mut worker) = articles(&server, "").await?;
    worker.complete(&session).await?;
    session
        .run("alter table article disable trigger \"~migrator_guard\"; insert into article values (1000, 'New')")
        .await?;
    for call in ["ensure_upgraded('article', 'b')", "retire_upgrade('article', 'b')"] {
        refused(&session, call, "was switched off").await?;
    }
    session.run("select migrator.resume_upgrades('article')").await?;
    worker.complete(&session).await?;
    ensure!(session.value("select b from article where id = 1000").await? == "new", "it was not found");
    Ok(())
}

/// Its rows have no guard, and no key of the table's.
async fn a_child_that_comes_later(server: Server) -> Result<()> {
    let (session, mut worker) = articles(&server, "").await?;
    worker.until(|step| step.rows > 0).await?;
    session.run("create table child () inherits (article); insert into child values (7, 'Child')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("inherits from table public.article"), "{step:?}");
    let told = session.row("select state, waits_for, next_step from migrator.upgrades").await?;
    ensure!(told[2].contains("alter table public.child no inherit"), "{told:?}");
    session.run("alter table child no inherit article; select migrator.resume_upgrades('article')").await?;
    worker.complete(&session).await?;
    Ok(())
}

/// Detached, written to, attached again: meanwhile it had no guard. Its rows lack what application code does, too.
async fn a_partition_that_was_away(server: Server) -> Result<()> {
    let (session, mut worker) = parted(&server).await?;
    session.run("alter table parted add column c text; select migrator.register_upgrade('parted', 'code', inputs => '{v}', outputs => '{c}')").await?;
    worker.run().await?;
    session.run("update parted set c = 'c', applied_upgrades = '{w,code}'").await?;
    session.run("select migrator.verify_upgrades('parted')").await?;
    worker.complete(&session).await?;
    session
        .run(
            "alter table parted detach partition parted_1;
             insert into parted_1 (id, part, v) values (5000, 1, 'abc');
             alter table parted attach partition parted_1 for values in (1)",
        )
        .await?;
    for name in ["w", "code"] {
        refused(&session, &format!("ensure_upgraded('parted', '{name}')"), "which came later, may lack it").await?;
        refused(&session, &format!("retire_upgrade('parted', '{name}')"), "which came later, may lack it").await?;
    }
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("application code has rows"), "{step:?}");
    ensure!(states(&session, "parted").await? == "w=complete code=running", "{}", states(&session, "parted").await?);
    ensure!(session.number("select w from parted where id = 5000").await? == 3, "it was not upgraded");
    Ok(())
}

/// What a guard left to batches because of it is still there when it is dropped, and nobody has looked yet.
async fn an_index_that_was_there(server: Server) -> Result<()> {
    let (session, mut worker) = articles(&server, "unique").await?;
    worker.complete(&session).await?;
    session
        .run("insert into article (id, a) values (1000, 'Old'); alter table article drop constraint article_b_key")
        .await?;
    for call in ["ensure_upgraded('article', 'b')", "retire_upgrade('article', 'b')"] {
        refused(&session, call, "rows lack it that were written since").await?;
    }
    session.run("update migrator.upgraded set verified_at = '-infinity'").await?;
    worker.complete(&session).await?;
    ensure!(session.value("select b from article where id = 1000").await? == "old", "it was not found");
    session.value("select migrator.ensure_upgraded('article', 'b')").await?;
    ensure!(session.value("select may_be_left from migrator.upgraded").await? == "f", "it is looked for for ever");
    Ok(())
}

/// Nothing says any more that rows may have been left: who throws the upgrade away looks nevertheless.
async fn an_index_that_came_and_went(server: Server) -> Result<()> {
    let (session, mut worker) = articles(&server, "").await?;
    worker.complete(&session).await?;
    session
        .run("create unique index came on article (b); insert into article (id, a) values (1000, 'Old'); drop index came")
        .await?;
    refused(&session, "retire_upgrade('article', 'b')", "rows lack it that were written since").await?;
    session.run("select migrator.verify_upgrades('article')").await?;
    worker.complete(&session).await?;
    ensure!(session.value("select b from article where id = 1000").await? == "old", "it was not found");
    ensure!(session.value("select migrator.retire_upgrade('article', 'b')").await? == "at once", "it is not retired");
    Ok(())
}

/// It is switched off, as for a load of many rows; or a trigger of the partition's own fires behind it.
async fn the_guard_of_one_partition(server: Server) -> Result<()> {
    let (session, mut worker) = parted(&server).await?;
    session
        .run("alter table parted_1 disable trigger all; insert into parted values (5000, 1, 'loaded'); alter table parted_1 enable trigger all")
        .await?;
    let off = "the guard of table public.parted_1, trigger \"~migrator_guard\", was switched off";
    session.run("alter table parted_1 disable trigger all").await?;
    for call in ["ensure_upgraded('parted', 'w')", "retire_upgrade('parted', 'w')"] {
        refused(&session, call, off).await?;
    }
    let found = session.rows("select subject, problem from migrator.doctor() where subject like 'guard of %'").await?;
    ensure!(format!("{found:?}").contains("public.parted_1"), "doctor says {found:?}");
    session.run("select migrator.resume_upgrades('parted')").await?;
    worker.complete(&session).await?;
    let found = session.row("select w, applied_upgrades from parted where id = 5000").await?;
    ensure!(found == ["6", "{w}"], "what was loaded is {found:?}");

    session
        .run(
            "create function late() returns trigger language plpgsql as 'begin return new; end';
              create trigger \"~~late\" before insert on parted_1 for each row execute function late()",
        )
        .await?;
    let behind = "trigger \"~~late\" of table public.parted_1 would fire after migrator's";
    refused(&session, "ensure_upgraded('parted', 'w')", behind).await?;
    let refusal = session.refusal("select migrator.register_upgrade('parted', 'u', inputs => '{v}')").await?;
    ensure!(refusal.code == "0A000" && refusal.to_string().contains(behind), "{refusal}");
    Ok(())
}

/// What they do not show is there all the same.
async fn snapshots_of_before(server: Server) -> Result<()> {
    let (session, mut worker) = articles(&server, "").await?;
    worker.complete(&session).await?;
    for call in [
        "retire_upgrade('article', 'b')",
        "forget_upgrades('article')",
        "register_upgrade('article', 'b', '{\"b\": \"a\"}')",
    ] {
        session.run("begin isolation level repeatable read; select 1 as taken").await?;
        let refusal = session.refusal(&format!("select migrator.{call}")).await?;
        session.run("rollback").await?;
        let expected = if call.starts_with("retire") { "25001" } else { "55000 42710" };
        ensure!(expected.contains(refusal.code.as_str()), "{call}: {refusal}");
    }
    session.run("select migrator.retire_upgrade('article', 'b')").await?;
    for call in ["forget_upgrades('article')", "register_upgrade('article', 'b', '{\"b\": \"a\"}')"] {
        session.run("begin isolation level repeatable read; select 1 as taken").await?;
        let refusal = session.refusal(&format!("select migrator.{call}")).await?;
        session.run("rollback").await?;
        ensure!(refusal.code == "25001" && refusal.to_string().contains("READ COMMITTED"), "{call}: {refusal}");
    }
    Ok(())
}
