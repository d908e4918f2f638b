//! The whole way of a change, twice, while clients write at random: through preparation, swap, rollback, swap and the
//! end. Each client knows what its rows must be; not one of its statements may fail because of the change.

use migrator_tests::ledger::Ledger;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::same_rows;
use migrator_tests::story::seconds;
use migrator_tests::*;
use std::time::Duration;

for_each_server!(swap_rollback_and_swap_again_under_random_writes, prepare_and_cancel_under_random_writes);
for_newest_server!(a_shadow_made_by_hand_under_random_writes);

/// The columns that both shapes have.
const COMMON: &str = "id, code, slot, customer, parent, amount, note, touched, span";

async fn swap_rollback_and_swap_again_under_random_writes(server: Server) -> Result<()> {
    let database = server.database().await?;
    let budget = seconds(6, 120);
    let session = database.connect().await?;
    let mut ledger = Ledger::lay_out(&database, 4, 800, 20_000).await?;
    ledger.start();
    ledger.more(20).await?;

    let change = Change::create_with(
        &database,
        "public.orders",
        &format!(
            "actions => {}, {}",
            session::literal(
                "alter column id type bigint, add column shout text, add column placed date default '2020-02-02'"
            ),
            change::arguments(r#"{"shout": "upper(note)"}"#, "{}")
        ),
    )
    .await?;
    let driver = change.keep_going(2);
    change.wait_for("ready").await?;
    ledger.live(budget / 4).await?;

    let shadow = format!("migrator_shadow_{}.orders", change.id);
    let backup = format!("migrator_backup_{}.orders", change.id);
    ledger.check(async || in_step(&change, &session, "public.orders", &shadow).await).await?;
    ledger.check(async || all_shouted(&session, &shadow).await).await?;

    change.swap().await?;
    ledger.live(budget / 4).await?;
    ensure!(session.value(TYPE_OF_KEY).await? == "bigint", "the new table is not in place");
    ledger.check(async || in_step(&change, &session, "public.orders", &backup).await).await?;

    change.rollback().await?;
    ledger.live(budget / 4).await?;
    ensure!(session.value(TYPE_OF_KEY).await? == "integer", "the old table is not back");
    ledger.check(async || Ok(())).await?;
    change.wait_for("ready").await?;
    ledger.check(async || in_step(&change, &session, "public.orders", &shadow).await).await?;

    change.swap().await?;
    ledger.live(budget / 4).await?;
    ledger.check(async || in_step(&change, &session, "public.orders", &backup).await).await?;
    driver.stop().await?;
    change.finish().await?;
    ledger.more(20).await?;
    ensure!(session.value(TYPE_OF_KEY).await? == "bigint", "the new table did not stay");

    let counts = ledger.stop().await?;
    println!("PostgreSQL {}: {counts:?}", server.major);
    nothing_left_behind(&database).await
}

/// A table that somebody made, with a column more, one less, others of another type and in another order.
async fn a_shadow_made_by_hand_under_random_writes(server: Server) -> Result<()> {
    let database = server.database().await?;
    let budget = seconds(1, 60);
    let session = database.connect().await?;
    let mut ledger = Ledger::lay_out(&database, 2, 200, 3_000).await?;
    session
        .run(
            "alter table orders disable trigger user; alter table orders add column extra text default 'none';
             update orders set extra = 'row ' || id; alter table orders enable trigger user;
             create table orders_by_hand (
                 shout text, note text, id bigint primary key, code varchar(40) unique, amount numeric(14,2) not null default 0,
                 parent bigint, customer int, slot int not null unique deferrable initially deferred,
                 touched int not null default 0,
                 span int4range generated always as (int4range(slot * 10, slot * 10 + 5)) stored,
                 exclude using gist (span with &&) deferrable initially deferred);
             create index on orders_by_hand (left(shout, 40))",
        )
        .await?;
    ledger.start();
    ledger.more(20).await?;
    let arguments =
        format!("shadow => 'public.orders_by_hand', {}", change::arguments(r#"{"shout": "upper(note)"}"#, "{}"));
    let change = Change::create_with(&database, "public.orders", &arguments).await?;
    let shadow = format!("migrator_shadow_{}.orders", change.id);
    let backup = format!("migrator_backup_{}.orders", change.id);
    let driver = change.keep_going(2);
    change.wait_for("ready").await?;
    ledger.check(async || in_step(&change, &session, "public.orders", &shadow).await).await?;
    ledger.check(async || all_shout(&session, &shadow).await).await?;

    let columns = "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attname) from pg_attribute \
                   where attrelid = 'orders'::regclass and attnum > 0 and not attisdropped and attname in ('id', 'code', 'amount', 'shout', 'extra')";
    let by_hand = "amount numeric(14,2), code character varying(40), id bigint, shout text";
    for turn in ["swap", "rollback", "swap"] {
        if turn == "swap" {
            change.swap().await?;
            ensure!(session.value(columns).await? == by_hand, "swapped: {}", session.value(columns).await?);
            ledger.live(budget / 2).await?;
            ledger.check(async || in_step(&change, &session, "public.orders", &backup).await).await?;
            continue;
        }
        change.rollback().await?;
        ensure!(session.value(columns).await?.contains("extra text, id integer"), "{}", session.value(columns).await?);
        // What only the old table has is as it was; rows that came since have the default.
        let kept =
            "select count(*) from orders where id >= 1000000 and extra is distinct from 'row ' || id or extra is null";
        ensure!(session.number(kept).await? == 0, "{} rows lost the dropped column", session.number(kept).await?);
        ledger.live(budget / 2).await?;
        change.wait_for("ready").await?;
        ledger.check(async || in_step(&change, &session, "public.orders", &shadow).await).await?;
    }
    driver.stop().await?;
    change.finish().await?;
    ledger.more(20).await?;
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

async fn prepare_and_cancel_under_random_writes(server: Server) -> Result<()> {
    let database = server.database().await?;
    let mut ledger = Ledger::lay_out(&database, 3, 300, 5_000).await?;
    ledger.start();
    for state in ["syncing", "copying", "catching_up", "ready"] {
        let change = Change::create(&database, "public.orders", "add column more text").await?;
        if state == "ready" {
            change.until_ready().await?;
        } else {
            change.until(|advance| advance.state == state || advance.done).await?;
        }
        ledger.more(5).await?;
        change.cancel().await?;
        ledger.check(async || nothing_left_behind(&database).await).await?;
    }
    ledger.live(Duration::from_millis(100)).await?;
    ledger.stop().await?;
    Ok(())
}

const TYPE_OF_KEY: &str = "select format_type(atttypid, null) from pg_attribute where attrelid = 'public.orders'::regclass and attname = 'id'";

/// While the clients rest: the table that is not in use is caught up, and holds the same.
async fn in_step(change: &Change, session: &Session, front: &str, rear: &str) -> Result<()> {
    change.until_in_step().await?;
    let same =
        same_rows(session, &format!("select {COMMON} from {front}"), &format!("select {COMMON} from {rear}")).await;
    if same.is_err() {
        // Whether the change knows of it is the first thing to ask.
        println!("status: {}", change.told().await?);
        println!("bad rows: {:?}", session.rows("select row_to_json(b)::text from migrator.bad_rows b").await?);
        println!("events: {:?}", session.rows("select kind, message from migrator.events order by id").await?);
    }
    same
}

async fn all_shouted(session: &Session, shadow: &str) -> Result<()> {
    let sql = format!("select count(*) from {shadow} where placed is distinct from '2020-02-02'");
    ensure!(session.number(&sql).await? == 0, "a default of the shadow is wrong");
    all_shout(session, shadow).await
}

async fn all_shout(session: &Session, shadow: &str) -> Result<()> {
    let sql = format!("select count(*) from {shadow} where shout is distinct from upper(note)");
    ensure!(session.number(&sql).await? == 0, "computed columns of the shadow are wrong");
    Ok(())
}
