//! No write escapes: every kind of statement, transaction and trigger, between the copy and the swap and after it.

use migrator_tests::application::Application;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::same_rows;
use migrator_tests::*;

for_each_server!(
    every_kind_of_write,
    commits_in_another_order,
    triggers_that_interfere,
    a_capture_that_was_switched_off,
    writes_while_a_batch_is_on_its_way,
    capture_comes_on_again_behind_a_reader,
    keys_that_could_not_be_told,
);

const TABLES: &str = "
    create table regions (id int primary key);
    create table items (id int primary key, name text, n int default 0, region int references regions on update cascade on delete cascade,
                        unique (name) deferrable);
    insert into regions select g from generate_series(1, 20) g;
    insert into items select g, 'item ' || g, g, g % 20 + 1 from generate_series(1, 1000) g;
    create table staged (id int, name text, n int);
    insert into staged select g, 'staged ' || g, g from generate_series(990, 1010) g";

/// Each must reach the table that is not in use. `{k}` is a number of the round.
const WRITES: [&str; 22] = [
    "insert into items values (2000 + {k}, 'new {k}', 1, 1)",
    "update items set n = n + 1 where id % 10 = {k}",
    "update items set id = id + 100000 * ({k} + 1) where id between 50 and 60",
    "update items set name = null where id = 61",
    "update items set name = '' where id = 62",
    "begin; set constraints all deferred; update items set name = 'item 71' where id = 70; update items set name = 'item 70' where id = 71; commit",
    "update items set name = case id when 72 then 'item 73' else 'item 72' end where id in (72, 73)",
    "merge into items i using staged s on i.id = s.id when matched then update set n = -{k} when not matched then insert values (s.id, s.name, s.n)",
    "insert into items select id, name || ' {k}', n from staged on conflict (id) do update set n = excluded.n + {k}",
    "update items set n = s.n + {k} from staged s where s.id = items.id",
    "with d as (delete from items where id between 100 and 105 + {k} returning *), u as (update items set n = -1 where id between 110 and 115) insert into items select id + 50000 * ({k} + 1), name || ' moved {k}', n from d",
    "update regions set id = id + 100 where id = 3 + {k}",
    "delete from regions where id = 5 + {k}",
    "begin; savepoint a; update items set n = 1 where id = 120; rollback to a; update items set n = 2 where id = 121; savepoint b; delete from items where id = 122; release b; commit",
    "begin; delete from items where id = 123; rollback",
    "do $$ begin for i in 1..100 loop begin update items set n = i where id = 130 + i; if i % 2 = 0 then raise exception 'no'; end if; exception when raise_exception then null; end; end loop; end $$",
    "begin; update items set n = 77 where id = 240; prepare transaction 'p{k}'; commit prepared 'p{k}'",
    "begin; update items set n = 78 where id = 241; prepare transaction 'q{k}'; rollback prepared 'q{k}'",
    "set session_replication_role = replica; update items set n = 79 where id = 242; delete from items where id = 243 + {k}; insert into items values (3000 + {k}, 'replica {k}'); reset session_replication_role",
    "begin isolation level serializable; update items set n = 80 where id = 250; commit",
    "begin; create temp table t on commit drop as select * from items where id = 251; delete from items where id = 251; insert into items select * from t; commit",
    "delete from items where id = 260; insert into items values (260, 'back {k}')",
];

async fn write_everything(database: &Database, change: &Change, round: u32) -> Result<()> {
    let session = database.connect().await?;
    for write in WRITES {
        let sql = write.replace("{k}", &round.to_string());
        for statement in sql.split("; ").map(str::to_owned).collect::<Vec<_>>().join(";\n").split(";\n") {
            // A DO block is one statement, whatever is in it.
            if sql.starts_with("do ") {
                break;
            }
            session.run(statement).await.with_context(|| format!("round {round}"))?;
        }
        if sql.starts_with("do ") {
            session.run(&sql).await?;
        }
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(
            &session,
            "select id, name, n, region from items",
            &format!("select id, name, n, region from {rear}"),
        )
        .await
        .with_context(|| format!("round {round}, after: {sql}"))?;
    }
    session
        .copy_in("copy items (id, name, n, region) from stdin", format!("{}\tcopied\t1\t\\N\n", 4000 + round))
        .await?;
    session.run(&format!("update items set name = 'copied {round}' where id = {}", 4000 + round)).await?;
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, "select id, name, n, region from items", &format!("select id, name, n, region from {rear}"))
        .await
}

async fn every_kind_of_write(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    let change = Change::create(&database, "public.items", "alter column id type bigint, add column m int").await?;
    change.until_ready().await?;
    write_everything(&database, &change, 0).await?;
    change.swap().await?;
    write_everything(&database, &change, 1).await?;
    change.rollback().await?;
    change.until_ready().await?;
    write_everything(&database, &change, 2).await?;

    // TRUNCATE, alone and with rows written in the same transaction, before and after the swap.
    for round in 0..2 {
        for truncate in [
            "truncate items",
            "begin; insert into items values (1, 'before'); truncate items; insert into items values (2, 'after'); commit",
            "begin; truncate items; rollback",
            "truncate regions cascade",
        ] {
            session.run("insert into items (id, name) select g, 'filled ' || g from generate_series(5000, 5100) g on conflict (id) do nothing").await?;
            change.until_in_step().await?;
            for statement in truncate.split("; ") {
                session.run(statement).await?;
            }
            session.run("insert into items (id, name) select g, 'later ' || g from generate_series(6000, 6010) g on conflict (id) do nothing").await?;
            change.until_in_step().await?;
            let rear = change.rear().await?;
            same_rows(
                &session,
                "select id, name, n, region from items",
                &format!("select id, name, n, region from {rear}"),
            )
            .await
            .context(truncate)?;
        }
        if round == 0 {
            change.swap().await?;
        }
    }
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// A transaction that wrote early and commits late must not be missed by a reader of the log that came in between.
async fn commits_in_another_order(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    let change = Change::create(&database, "public.items", "alter column id type bigint").await?;
    change.until_ready().await?;
    for round in 0..3 {
        let (early, late) = (database.connect().await?, database.connect().await?);
        early.run("begin").await?;
        early.run(&format!("update items set name = 'early {round}' where id = 10; insert into items values (7000 + {round}, 'too early {round}')")).await?;
        late.run(&format!("update items set name = 'late {round}' where id = 11")).await?;
        change.until_in_step().await?;
        late.run(&format!("update items set n = {round} where id = 12")).await?;
        change.until_in_step().await?;
        early.run("commit").await?;
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(&session, "table items", &format!("table {rear}")).await?;
    }
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn triggers_that_interfere(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    session
        .run(
            "create table heard (what text);
             create function meddle() returns trigger language plpgsql as $$
                 begin
                     if tg_op = 'DELETE' then
                         if old.id = 33 then return null; end if;
                         return old;
                     end if;
                     if new.id = 34 then return null; end if;
                     if new.n = 1234 then new.id := new.id + 300000; new.name := new.name || ' meddled'; end if;
                     return new;
                 end $$;
             create trigger meddle before insert or update or delete on items for each row execute function meddle();
             create function spread() returns trigger language plpgsql as $$
                 begin
                     insert into heard values (tg_op);
                     if pg_trigger_depth() = 1 then update items set n = n + 1 where id = 500; end if;
                     return null;
                 end $$;
             create trigger spread after insert or update or delete on items for each row execute function spread();
             create constraint trigger late after update on items deferrable initially deferred for each row execute function spread()",
        )
        .await?;
    let change = Change::create(&database, "public.items", "alter column id type bigint").await?;
    change.until_ready().await?;
    for round in 0..3 {
        let heard = session.number("select count(*) from heard").await?;
        session.run("delete from items where id in (33, 40)").await?;
        session.run("insert into items values (40, 'forty', 1234)").await?;
        session.run("delete from items where id = 300040").await?;
        session.run("insert into items values (40, 'forty', 1)").await?;
        session.run("update items set n = 5 where id in (33, 34, 35)").await?;
        let times = session.number("select count(*) from heard").await? - heard;
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(&session, "table items", &format!("table {rear}")).await.with_context(|| format!("round {round}"))?;
        ensure!(session.number("select count(*) from items where id = 33").await? == 1, "a trigger stopped working");
        ensure!(
            session.number("select count(*) from heard").await? == heard + times,
            "triggers fired on the table that is not in use"
        );
        match round {
            0 => change.swap().await?,
            1 => {
                change.rollback().await?;
                change.until_ready().await?;
            }
            _ => {}
        }
    }
    change.swap().await?;
    change.finish().await?;
    let triggers = session
        .value("select string_agg(tgname || tgenabled::text, ' ' order by tgname) from pg_trigger where tgrelid = 'items'::regclass and not tgisinternal")
        .await?;
    ensure!(triggers == "lateO meddleO spreadO", "the triggers are not what they were: {triggers}");
    nothing_left_behind(&database).await
}

/// Whoever switches the table's triggers off loses writes for the copy: the change notices, and never swaps in a hole.
async fn a_capture_that_was_switched_off(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    let change = Change::create(&database, "public.items", "alter column id type bigint").await?;
    change.until_ready().await?;
    session
        .run(
            "alter table items disable trigger all; update items set name = 'lost' where id = 1; delete from items where id = 2;
             alter table items enable trigger all",
        )
        .await?;
    // Either the swap refuses until the copy was made anew, or the copy is made anew: never a swap without those writes.
    let swapped = session.rows("select * from migrator.swap('items')").await;
    if swapped.is_err() {
        let state = change.until_done().await;
        if !state.as_ref().is_ok_and(|state| state == "ready") {
            // Blocked, then: the way out is in the hint.
            session.run("select migrator.start_sync('items')").await?;
            change.until_ready().await?;
        }
        change.swap().await?;
    }
    ensure!(session.value("select name from items where id = 1").await? == "lost", "an update was lost by the swap");
    ensure!(session.number("select count(*) from items where id = 2").await? == 0, "a deleted row rose again");
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// The copy has its snapshot, and has not written yet what it read: rows are changed, deleted and inserted there, and
/// committed. Nothing that it then writes may outlive that.
async fn writes_while_a_batch_is_on_its_way(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    // Rows are computed one by one; this one keeps the batch waiting in their midst, as long as somebody holds the lock.
    session
        .run(
            "create function slow(v int) returns int immutable language plpgsql as $$
                 begin
                     if v = 500 then perform pg_advisory_lock_shared(4711); perform pg_advisory_unlock_shared(4711); end if;
                     return v;
                 end $$",
        )
        .await?;
    let change = Change::create_with(
        &database,
        "public.items",
        &format!("actions => 'alter column id type bigint', {}", change::arguments(r#"{"n": "slow(n)"}"#, "{}")),
    )
    .await?;
    change.until(|advance| advance.state == "copying").await?;
    session.run("select pg_advisory_lock(4711)").await?;
    let worker = change.session().await?;
    let (pid, copying) = (worker.pid, change.clone());
    let batch = tokio::spawn(async move { copying.advance(&worker).await });
    let waits = format!("select count(*) from pg_locks where pid = {pid} and locktype = 'advisory' and not granted");
    let deadline = std::time::Instant::now() + change::PATIENCE;
    while session.number(&waits).await? == 0 {
        ensure!(
            std::time::Instant::now() < deadline && !batch.is_finished(),
            "the batch does not wait: this tests nothing"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    session
        .run(
            "update items set name = 'changed ' || id where id in (3, 903); delete from items where id in (4, 904);
             update items set id = -5 where id = 5; update items set id = 905000 where id = 905;
             insert into items values (4, 'risen', 4, 1); delete from items where id = 906; insert into items values (2000, 'new', 1, 1);
             update items set name = case id when 7 then 'item 907' else 'item 7' end where id in (7, 907)",
        )
        .await?;
    // Nobody replays those keys while older versions of their rows are on their way.
    let other = change.session().await?;
    let turn = change.advance(&other).await?;
    ensure!(turn.state == "copying" && turn.rows == 0, "beside a batch on its way: {turn:?}");
    session.run("select pg_advisory_unlock(4711)").await?;
    ensure!(batch.await??.step == "copy", "the step was not the one that waits");
    change.until_ready().await?;
    let rear = change.rear().await?;
    same_rows(&session, "table items", &format!("table {rear}")).await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// Switching capture on anew takes the strongest lock, for the triggers of before have to go: in attempts like any other.
async fn capture_comes_on_again_behind_a_reader(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLES).await?;
    let change = Change::create(&database, "public.items", "alter column id type bigint").await?;
    change.until_ready().await?;
    session.run("alter table items disable trigger all; update items set name = 'unseen' where id = 1; alter table items enable trigger all").await?;
    change.until(|advance| advance.step == "wait").await?;
    ensure!(change.state().await? == "blocked", "nobody noticed: {}", change.told().await?);
    let reader = database.connect_as("postgres", "reader").await?;
    reader.run("begin").await?;
    reader.run("select * from items limit 1").await?;
    let application = Application::start(
        &database,
        &["select count(*) from items where id < 50", "update items set n = n + 1 where id = 9"],
    )
    .await?;
    let worker = database.connect_as("postgres", "test:change").await?;
    worker.run("set statement_timeout = '1200ms'").await?;
    let refusal = worker.refusal("select migrator.start_sync('items')").await?;
    ensure!(matches!(refusal.code.as_str(), "57014" | "55P03"), "{refusal}");
    reader.run("commit").await?;
    session.run("select migrator.start_sync('items')").await?;
    change.until_ready().await?;
    application.never_waited().await?;
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(&session, "table items", &format!("table {rear}")).await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// The key's type changes and changes back in one transaction, and a row is written in between: its key does not fit into
/// the log, which says so. No exchange passes that over, however few rows wait, and whatever comes before it in the log.
async fn keys_that_could_not_be_told(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table odd (id int primary key, v int); insert into odd select g, g from generate_series(1, 200) g")
        .await?;
    let change = Change::create(&database, "public.odd", "alter column v type bigint").await?;
    change.until_ready().await?;
    let unseen = |row: i32, value: i32| {
        format!(
            "begin; alter table odd alter column id type numeric; update odd set v = {value} where id = {row};
             alter table odd alter column id type int; commit"
        )
    };
    session.run("update odd set v = -1 where id = 1").await?;
    session.run(&unseen(2, -2)).await?;
    let refusal = session.refusal("select * from migrator.swap('odd')").await?;
    ensure!(refusal.code == "55006" && refusal.hint.is_some(), "the swap does not know of the row: {refusal}");
    change.until_in_step().await?;
    change.swap().await?;
    ensure!(
        session.value("select string_agg(v::text, ' ' order by id) from odd where id < 3").await? == "-1 -2",
        "lost"
    );

    session.run("update odd set v = -3 where id = 3").await?;
    session.run(&unseen(4, -4)).await?;
    let refusal = session.refusal("select * from migrator.rollback('odd')").await?;
    ensure!(refusal.code == "55006" && refusal.hint.is_some(), "the rollback does not know of the row: {refusal}");
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(
        session.value("select string_agg(v::text, ' ' order by id) from odd where id in (3, 4)").await? == "-3 -4",
        "lost"
    );
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}
