//! The view of a table with upgrades, and what others make of it and beside it.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;

for_each_server!(
    what_was_given_to_the_view,
    another_view_of_that_name,
    a_view_that_was_dropped,
    names_that_came_since,
    a_column_that_is_gone,
    a_database_of_another_encoding,
    where_nothing_can_be_written,
);
for_newest_server!(a_writer_of_one_partition);

async fn article(server: &Server) -> Result<(Database, Session)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table article (id int primary key, a text, b text);
             insert into article select g, 'Title ' || g from generate_series(1, 300) g;
             select migrator.register_upgrade('article', 'b', '{\"b\": \"lower(a)\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    worker.complete(&session).await?;
    Ok((database, session))
}

/// Retiring the last upgrade makes the view anew: who might read it may do so still, and what cannot be made again keeps the names.
async fn what_was_given_to_the_view(server: Server) -> Result<()> {
    let (_, session) = article(&server).await?;
    session.run("create role of_the_view; grant select on article__current to of_the_view").await?;
    ensure!(session.value("select migrator.retire_upgrade('article', 'b')").await? == "at once", "it is not retired");
    let may = session.value("select has_table_privilege('of_the_view', 'article__current', 'select')").await?;
    ensure!(may == "t", "the view was given to a role, which lost it");
    session.run("drop owned by of_the_view; drop role of_the_view").await?;

    for added in [
        "comment on view article__current is 'articles as they are now'",
        "alter view article__current alter id set default 5",
        "create function noted() returns trigger language plpgsql as 'begin return null; end'; create trigger noted after update on article__current execute function noted()",
    ] {
        let (_, session) = article(&server).await?;
        session.run(added).await?;
        ensure!(
            session.value("select migrator.retire_upgrade('article', 'b')").await? == "in batches",
            "after {added}"
        );
    }
    Ok(())
}

/// It is nobody's business of ours.
async fn another_view_of_that_name(server: Server) -> Result<()> {
    let (_, session) = article(&server).await?;
    session.run("drop view article__current; create view article__current as select 1 as mine").await?;
    session.run("alter table article add column c text").await?;
    session.run("select migrator.register_upgrade('article', 'c', '{\"c\": \"upper(a)\"}')").await?;
    session.run("call migrator.run_upgrades('article')").await?;
    ensure!(session.number("select count(*) from article where c = upper(a)").await? == 300, "rows are not upgraded");
    session.run("select migrator.retire_upgrade('article', 'b'), migrator.retire_upgrade('article', 'c')").await?;
    session.run("call migrator.run_upgrades('article')").await?;
    session.run("select migrator.forget_upgrades('article')").await?;
    ensure!(session.value("select mine from article__current").await? == "1", "another's view is gone");
    Ok(())
}

/// As for a column that is to go with it.
async fn a_view_that_was_dropped(server: Server) -> Result<()> {
    let (_, session) = article(&server).await?;
    session.run("alter table article add column old int; select migrator.resume_upgrades('article')").await?;
    session.run("drop view article__current; alter table article drop column old").await?;
    session.run("insert into article values (1000, 'New'); select migrator.resume_upgrades('article')").await?;
    ensure!(session.value("select b from article__current where id = 1000").await? == "new", "the view shows nothing");
    Ok(())
}

/// The next version of the application writes them already.
async fn names_that_came_since(server: Server) -> Result<()> {
    let (_, session) = article(&server).await?;
    session.run("update article set applied_upgrades = applied_upgrades || '{next}' where id = 7").await?;
    ensure!(
        session.value("select migrator.retire_upgrade('article', 'b')").await? == "in batches",
        "names went at once"
    );
    session.run("call migrator.run_upgrades('article')").await?;
    session.run("select migrator.forget_upgrades('article')").await?;
    let names = session.value("select applied_upgrades from article where id = 7").await?;
    ensure!(names == "{next}", "the row has {names}");
    Ok(())
}

/// It can be forgotten all the same.
async fn a_column_that_is_gone(server: Server) -> Result<()> {
    let (database, session) = article(&server).await?;
    // A look at all rows is under way.
    session.run("select migrator.verify_upgrades('article')").await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    worker.until(|step| step.state == "verifying").await?;
    session.run("alter table article drop column applied_upgrades cascade").await?;
    session.run("insert into article values (1000, 'New')").await?;
    let said = session.value("select migrator.retire_upgrade('article', 'b', incomplete => true)").await?;
    ensure!(said == "at once", "it was retired {said}");
    let step = worker.run().await?;
    ensure!(step.state != "blocked", "{step:?}");
    session.run("select migrator.forget_upgrades('article')").await?;
    ensure!(
        session.number("select count(*) from pg_trigger where tgrelid = 'article'::regclass").await? == 0,
        "the guard is there"
    );
    Ok(())
}

/// Said before anything is there that a write could fail in.
async fn a_database_of_another_encoding(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let name = session.value("select current_database() || '_latin'").await?;
    session.run(&format!("create database {name} encoding latin1 locale 'C' template template0")).await?;
    let other = database.cluster().connect(&name).await?;
    let refusal = other.refusal("create extension migrator").await?;
    ensure!(
        refusal.code == "0A000" && refusal.to_string().contains("has the encoding LATIN1, and migrator needs UTF8"),
        "{refusal}"
    );
    drop(other);
    session.run(&format!("drop database {name} with (force)")).await?;
    Ok(())
}

/// He is told of, and nobody waits behind us for him.
async fn a_writer_of_one_partition(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table parted (id int, part int, v text, w int, primary key (id, part)) partition by list (part);
             create table parted_1 partition of parted for values in (1);
             create table parted_2 partition of parted for values in (2)",
        )
        .await?;
    let writer = database.connect_as("postgres", "a writer").await?;
    writer.run("begin; insert into parted_2 values (1, 2, 'x')").await?;
    let refusal = session.refusal("select migrator.register_upgrade('parted', 'w', '{\"w\": \"length(v)\"}')").await?;
    ensure!(refusal.code == "55P03" && refusal.to_string().contains("a writer"), "{refusal}");
    writer.run("commit").await?;
    session.run("select migrator.register_upgrade('parted', 'w', '{\"w\": \"length(v)\"}')").await?;
    Ok(())
}

/// It is read where nothing can be written, also for a row that an expression fails for; and what can be written through it.
async fn where_nothing_can_be_written(server: Server) -> Result<()> {
    let primary = server.cluster(&[]).await?;
    let database = Database::create(&primary, true).await?;
    let session = database.connect().await?;
    session
        .run(
            "create table part (id int primary key, a text, b int);
             insert into part values (1, '10'), (2, 'none'), (3, '30');
             select migrator.register_upgrade('part', 'b', '{\"b\": \"a::int\"}')",
        )
        .await?;
    let shown = "select string_agg(concat_ws(':', id, b, pending_upgrades), ' ' order by id) from part__current";
    let expected = "1:10:{} 2:{b} 3:30:{}";
    session.run("begin read only").await?;
    let seen = session.value(shown).await?;
    ensure!(seen == expected, "read only: {seen}");
    session.run("commit").await?;
    let standby = primary.standby().await?;
    standby.follows(&primary).await?;
    let there = standby.connect(&database.name).await?;
    let seen = there.value(shown).await?;
    ensure!(seen == expected, "on a standby: {seen}");

    session.run("insert into part__current (id, a) values (4, '40'); delete from part__current where id = 3").await?;
    session.run("update part__current set a = '11' where id = 1").await?;
    let written = session.value("select string_agg(concat_ws(':', id, a, b), ' ' order by id) from part").await?;
    ensure!(written == "1:11:11 2:none 4:40:40", "through the view: {written}");
    let refusal = session.refusal("insert into part__current (id, a, b) values (5, '50', 50)").await?;
    ensure!(refusal.code == "0A000", "{refusal}");
    Ok(())
}
