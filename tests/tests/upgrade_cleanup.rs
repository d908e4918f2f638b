//! How often rows are written: once for all upgrades that are pending, once for all names that are retired; and in batches of which size.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;

for_each_server!(one_write_for_all_of_them, names_go_in_one_pass, names_of_every_kind);

/// `touched` counts the writes of a row.
const TABLE: &str = "create table t (id int primary key, n int, a int, b int, c int, touched int not null default 0);
    insert into t (id, n) select g, g from generate_series(1, 3000) g;
    create function count_writes() returns trigger language plpgsql as $$ begin new.touched := old.touched + 1; return new; end $$;
    create trigger count_writes before update on t for each row execute function count_writes();
    select migrator.register_upgrade('t', u, set => jsonb_build_object(u, 'n + 1'), batch_size => 1000, cleanup_batch_size => 50)
      from unnest('{a,b,c}'::text[]) u";

async fn one_write_for_all_of_them(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    worker.complete(&session).await?;
    let wrong = session
        .number("select count(*) from t where touched <> 1 or applied_upgrades <> '{a,b,c}' or (a, b, c) is distinct from (n + 1, n + 1, n + 1)")
        .await?;
    ensure!(wrong == 0, "{wrong} rows were not written once for all three");
    Ok(())
}

/// `cleanup_batch_size` counts though a live upgrade is there, for it is complete.
async fn names_go_in_one_pass(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    worker.complete(&session).await?;
    for name in ["a", "b"] {
        let way = session.value(&format!("select migrator.retire_upgrade('t', '{name}')")).await?;
        ensure!(way == "in batches", "{name}: {way}");
    }
    let before = session.number("select sweep from migrator.upgraded").await?;
    let mut most = 0;
    loop {
        let step = worker.step().await?;
        if step.state == "upgrading" {
            most = most.max(step.rows);
        }
        if step.done {
            ensure!(step.state == "complete", "{step:?}");
            break;
        }
    }
    ensure!(most == 50, "a batch took {most} names");
    let sweeps = session.number("select sweep from migrator.upgraded").await? - before;
    ensure!(sweeps == 2, "{sweeps} passes instead of one that writes and one that looks");
    let wrong = session.number("select count(*) from t where touched <> 2 or applied_upgrades <> '{c}'").await?;
    ensure!(wrong == 0, "{wrong} rows were not written once for both names");
    session
        .run("alter table t add column d int; select migrator.register_upgrade('t', 'a', set => '{\"d\": \"n\"}')")
        .await?;
    // It is pending: now it is the other size that counts.
    let step = worker.until(|step| step.rows > 0).await?;
    ensure!(step.rows == 1000, "{step:?}");
    Ok(())
}

/// A table and names that have to be quoted everywhere, in columns of names that others have written.
async fn names_of_every_kind(server: Server) -> Result<()> {
    let names =
        ["it's {open}", "back\\slash", "two\nlines", "a \"quoted\" one", "NULL", "x, y", &"long name ".repeat(12)];
    let list = names.map(session::literal).join(", ");
    let database = server.database().await?;
    let session = database.connect().await?;
    // Arrays as nobody of ours would write them: NULL, a NULL among the names, one twice, two dimensions, other bounds.
    session
        .run(
            "create table \"Order Items; --\" (id int primary key, n int, sum int, applied_upgrades text[]);
             insert into \"Order Items; --\" select g, g, null, (case g % 6 when 0 then null when 1 then '{}' when 2 then '{NULL,kept}' when 3 then '{kept,kept}'
               when 4 then '{{kept,other},{third,kept}}' else '[3:4]={kept,x}' end)::text[] from generate_series(1, 600) g",
        )
        .await?;
    for (number, name) in names.iter().enumerate() {
        session.run(&format!("alter table \"Order Items; --\" add column o{number} int")).await?;
        session
            .run(&format!(
                "select migrator.register_upgrade('\"Order Items; --\"', {}, set => '{{\"o{number}\": \"n * {number}\"}}')",
                session::literal(name)
            ))
            .await?;
    }
    session
        .run("select migrator.register_upgrade('\"Order Items; --\"', 'by code', inputs => '{n}', outputs => '{sum}')")
        .await?;
    let mut worker = Worker::new(&database, "\"Order Items; --\"", "w").await?;
    worker.run().await?;
    loop {
        let applied = session
            .number(
                "with handed as materialized (select key, \"row\", token from migrator.select_batch('\"Order Items; --\"', 'by code', 250))
                 select count(*) filter (where m.applied) from migrator.mark_applied('\"Order Items; --\"', 'by code', (select coalesce(jsonb_agg(jsonb_build_object('key', key,
                   'token', token, 'values', jsonb_build_object('sum', (\"row\" ->> 'n')::int + 1))), '[]') from handed)) m",
            )
            .await?;
        if applied == 0 {
            break;
        }
    }
    worker.complete(&session).await?;
    let outputs: Vec<String> =
        (0..names.len()).map(|number| format!("o{number} is distinct from n * {number}")).collect();
    let wrong = session
        .number(&format!(
            "select count(*) from \"Order Items; --\" where {} or sum is distinct from n + 1 or not applied_upgrades @> array[{list}, 'by code']
               or id % 6 > 1 and not applied_upgrades @> '{{kept}}'",
            outputs.join(" or ")
        ))
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not upgraded");

    for name in names {
        session
            .run(&format!("select migrator.retire_upgrade('\"Order Items; --\"', {})", session::literal(name)))
            .await?;
    }
    worker.complete(&session).await?;
    let left = session
        .number(&format!("select count(*) from \"Order Items; --\" where applied_upgrades && array[{list}] or not applied_upgrades @> '{{by code}}'"))
        .await?;
    ensure!(left == 0, "{left} rows have a retired name, or lost the other");
    let kept = session
        .number("select count(*) from \"Order Items; --\" where id % 6 > 1 and not applied_upgrades @> '{kept}'")
        .await?;
    ensure!(kept == 0, "{kept} rows lost what others had written");
    Ok(())
}
