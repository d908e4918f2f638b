//! Upgrades that make a column out of itself: nobody can tell from a row whether it had one, so nothing may apply it twice.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;

for_each_server!(
    two_in_place_on_one_column,
    while_its_column_is_away,
    while_its_column_is_away_after_an_exchange,
    a_column_that_was_added_again,
    in_a_table_that_becomes_a_partition,
);

async fn register(session: &Session, table: &str, name: &str, column: &str, expression: &str) -> Result<()> {
    session
        .run(&format!("select migrator.register_upgrade('{table}', '{name}', '{{\"{column}\": \"{expression}\"}}', safe_in_place => true)"))
        .await?;
    Ok(())
}

/// Each is applied once to what the one before made; what an application writes is in the new shape.
async fn two_in_place_on_one_column(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table twice (id int primary key, x int not null); insert into twice select g, g from generate_series(1, 300) g").await?;
    for (name, expression) in [("double", "x * 2"), ("more", "x + 1")] {
        session
            .run(&format!("select migrator.register_upgrade('twice', '{name}', '{{\"x\": \"{expression}\"}}', safe_in_place => true)"))
            .await?;
    }
    ensure!(
        session.number("select count(*) from twice__current where x <> 2 * id + 1").await? == 0,
        "the view shows something else"
    );
    session.run("update twice set x = 7 where id = 1; insert into twice values (1000, 2001)").await?;
    let mut worker = Worker::new(&database, "twice", "w").await?;
    worker.complete(&session).await?;
    let wrong = session.number("select count(*) from twice where x <> case id when 1 then 7 else 2 * id + 1 end or applied_upgrades <> '{double,more}'").await?;
    ensure!(wrong == 0, "{wrong} rows are wrong");
    Ok(())
}

/// What is written under another name is in the new shape; what was not written is still in the old one.
async fn while_its_column_is_away(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table priced (gone int, id int primary key, price int, note text); alter table priced drop column gone; \
              insert into priced select g, g from generate_series(1, 10) g")
        .await?;
    register(&session, "priced", "cents", "price", "price * 100").await?;
    session.run("alter table priced rename price to cost").await?;
    session
        .run("update priced set cost = 700 where id = 1; update priced set note = 'written' where id = 2; \
              update priced set note = 'written', cost = 800 where id = 3; insert into priced (id, cost) values (11, 1100)")
        .await?;
    let mut worker = Worker::new(&database, "priced", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("column price"), "{step:?}");
    session.run("alter table priced rename cost to price; select migrator.resume_upgrades('priced')").await?;
    worker.complete(&session).await?;
    let wrong = session
        .rows("select id, price from priced where price <> case id when 1 then 700 when 3 then 800 else id * 100 end or applied_upgrades <> '{cents}' order by id")
        .await?;
    ensure!(wrong.is_empty(), "not upgraded exactly once: {wrong:?}");
    Ok(())
}

/// The column is in another place of the row by then.
async fn while_its_column_is_away_after_an_exchange(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    for way in ["swap", "rollback"] {
        session
            .run("drop table if exists priced cascade; create table priced (gone int, id int primary key, price int, count int); \
                  alter table priced drop column gone; insert into priced select g, g, 0 from generate_series(1, 10) g")
            .await?;
        register(&session, "priced", "cents", "price", "price * 100").await?;
        let change = Change::create(&database, "priced", "alter column count type bigint").await?;
        change.until_ready().await?;
        change.swap().await?;
        if way == "rollback" {
            change.until_in_step().await?;
            change.rollback().await?;
            change.cancel().await?;
        } else {
            change.until_in_step().await?;
            change.finish().await?;
        }
        session.run("alter table priced rename price to cost").await?;
        session.run("update priced set cost = 700 where id = 1; update priced set count = 5 where id = 2").await?;
        session.run("alter table priced rename cost to price; select migrator.resume_upgrades('priced')").await?;
        let mut worker = Worker::new(&database, "priced", "w").await?;
        worker.complete(&session).await?;
        let wrong = session
            .rows("select id, price from priced where price <> case id when 1 then 700 else id * 100 end order by id")
            .await?;
        ensure!(wrong.is_empty(), "after a {way} not upgraded exactly once: {wrong:?}");
    }
    Ok(())
}

/// Added again it is another column, in another place: the upgrades stand still until the guard is told.
async fn a_column_that_was_added_again(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table priced (id int primary key, price int); insert into priced select g, g from generate_series(1, 10) g").await?;
    register(&session, "priced", "cents", "price", "price * 100").await?;
    session
        .run("drop view priced__current; alter table priced drop column price, add column price int; update priced set price = id where id > 5")
        .await?;
    let mut worker = Worker::new(&database, "priced", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("in another place than they were"), "{step:?}");
    session.run("select migrator.resume_upgrades('priced')").await?;
    session.run("alter table priced rename price to cost; update priced set cost = 700 where id = 1").await?;
    session.run("alter table priced rename cost to price; select migrator.resume_upgrades('priced')").await?;
    worker.complete(&session).await?;
    ensure!(session.number("select price from priced where id = 1").await? == 700, "it was upgraded twice");
    Ok(())
}

/// A row that leaves it before it was upgraded takes its values along, whatever keeps the upgrade back.
async fn in_a_table_that_becomes_a_partition(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table priced (id int, part int not null, price int, tax int, primary key (id, part)); insert into priced select g, 1, g, 1 from generate_series(1, 10) g; \
              select migrator.register_upgrade('priced', 'by hand', inputs => '{tax}')")
        .await?;
    register(&session, "priced", "net", "price", "price - tax").await?;
    session
        .run("alter table priced add column n int; select migrator.register_upgrade('priced', 'n', '{\"n\": \"id\"}')")
        .await?;
    session
        .run("create table above (id int, part int not null, price int, tax int, n int, applied_upgrades text[] not null default '{}', primary key (id, part)) partition by list (part); \
              create table other partition of above for values in (2); alter table above attach partition priced for values in (1)")
        .await?;
    session.run("update above set part = 2, tax = 3 where id = 5").await?;
    session.run("alter table above rename price to cost; update above set part = 2, tax = 3 where id = 6").await?;
    let moved = session.rows("select id, cost, tax from other order by id").await?;
    let noted = session.number("select count(*) from other where applied_upgrades <> '{}'").await?;
    ensure!(noted == 0, "rows took notes along that nobody takes off");
    ensure!(
        format!("{moved:?}") == r#"[[Some("5"), Some("5"), Some("3")], [Some("6"), Some("6"), Some("3")]]"#,
        "{moved:?}"
    );
    Ok(())
}
