//! Foreign keys around a change: dropped by somebody after the swap, broken by rows that nobody checked, and between two
//! tables that refer to each other and are swapped together.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;

for_each_server!(
    foreign_keys_that_go_after_the_swap,
    orphans_are_reported,
    tables_that_refer_to_each_other_are_swapped_together
);

/// A foreign key that somebody drops between the swap and its validation, or the rollback, is gone: nothing stumbles
/// over it and nothing brings it back.
async fn foreign_keys_that_go_after_the_swap(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table above (id int primary key); insert into above values (1);
             create table middle (id int primary key, up int constraint out references above, also int constraint stays references above, n int);
             insert into middle values (1, 1, 1, 1);
             create table below (id int primary key, m int constraint in_ references middle, k int constraint kept references middle);
             insert into below values (1, 1, 1)",
        )
        .await?;
    let keys = "select string_agg(conname || case when convalidated then '' else ' not valid' end, ' ' order by conname) \
                from pg_constraint where contype = 'f' and conparentid = 0 \
                and conrelid in ('middle'::regclass, 'below'::regclass)";
    for end in ["finish", "rollback"] {
        let change = Change::create(&database, "public.middle", "alter column n type bigint").await?;
        change.until_ready().await?;
        change.swap().await?;
        session.run("alter table middle drop constraint out; alter table below drop constraint in_").await?;
        if end == "finish" {
            session.run("select migrator.validate('middle')").await?;
            change.until_in_step().await?;
            change.finish().await?;
        } else {
            change.rollback().await?;
            change.until_ready().await?;
            change.cancel().await?;
        }
        let left = session.value(keys).await?;
        ensure!(left == "kept stays", "after {end} the foreign keys are: {left}");
        session.refusal("insert into middle values (2, 5, 5, 5)").await?;
        session.run("insert into middle values (3, 5, 1, 5); delete from middle where id = 3").await?;
        nothing_left_behind(&database).await?;
        session
            .run("alter table middle add constraint out foreign key (up) references above; alter table below add constraint in_ foreign key (m) references middle")
            .await?;
    }
    Ok(())
}

/// A row without the one that it refers to got past the old key: the validation says so, and nothing pretends otherwise.
async fn orphans_are_reported(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table above (id int primary key); insert into above values (1);
             create table below (id int primary key, up int constraint up references above, n int);
             insert into below select g, 1, g from generate_series(1, 50) g;
             set session_replication_role = replica; update below set up = 4711 where id = 7; reset session_replication_role",
        )
        .await?;
    let change = Change::create(&database, "public.below", "alter column n type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    for call in ["validate", "finish"] {
        let refusal = session.refusal(&format!("select migrator.{call}('below')")).await?;
        ensure!(refusal.code == "23503" && refusal.to_string().contains("4711"), "{call}: {refusal}");
    }
    ensure!(change.state().await? == "swapped", "{}", change.told().await?);
    session.refusal("insert into below values (51, 4712, 1)").await?;
    session.run("update below set up = 1 where id = 7").await?;
    change.finish().await?;
    let valid = session.value("select convalidated from pg_constraint where conname = 'up'").await?;
    ensure!(valid == "t", "the foreign key stayed NOT VALID");
    nothing_left_behind(&database).await
}

async fn tables_that_refer_to_each_other_are_swapped_together(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table hen (id int primary key, egg int);
             create table egg (id int primary key, hen int constraint hen references hen on delete cascade deferrable initially deferred);
             alter table hen add constraint egg foreign key (egg) references egg on update cascade deferrable initially deferred;
             begin; insert into hen select g, g from generate_series(1, 100) g; insert into egg select g, g from generate_series(1, 100) g; commit",
        )
        .await?;
    let keys = "select string_agg(pg_get_constraintdef(oid) || conrelid::regclass || confrelid::regclass, '; ' order by conname) from pg_constraint where contype = 'f'";
    let before = session.value(keys).await?;
    let (hen, egg) = (
        Change::create(&database, "public.hen", "alter column id type bigint, alter column egg type bigint").await?,
        Change::create(&database, "public.egg", "alter column id type bigint, alter column hen type bigint").await?,
    );
    hen.until_ready().await?;
    egg.until_ready().await?;
    let write = "begin; delete from hen where id = 5; update egg set id = 1000 where id = 6; insert into hen values (200, 200); insert into egg values (200, 200); commit";
    session.run(write).await?;
    // Without a name: all that are ready, in one transaction.
    let swapped = session.rows("select swapped from migrator.swap()").await?;
    ensure!(swapped.len() == 2 && swapped.iter().all(|row| row[0].as_deref() == Some("t")), "{swapped:?}");
    session
        .run(&write.replace("= 5", "= 15").replace("= 6", "= 16").replace("1000", "1001").replace("200", "201"))
        .await?;
    for change in [&hen, &egg] {
        change.until_in_step().await?;
        change.rollback().await?;
    }
    for change in [&egg, &hen] {
        change.until_ready().await?;
        change.swap().await?;
    }
    for change in [&hen, &egg] {
        change.until_in_step().await?;
        change.finish().await?;
    }
    let after = session.value(keys).await?;
    ensure!(after == before, "the foreign keys were {before}\nand are {after}");
    let rows =
        session.value("select count(*) || ' ' || (select count(*) from egg) || ' ' || sum(egg) from hen").await?;
    let wanted = 5050 - 5 - 15 - 6 - 16 + 1000 + 1001 + 200 + 201;
    ensure!(rows == format!("100 100 {wanted}"), "rows lost: {rows}, not {wanted}");
    nothing_left_behind(&database).await
}
