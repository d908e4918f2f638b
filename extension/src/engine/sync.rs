//! Capture on, and the copy laid out: from `created` to `copying`, and back there when the copy is void.

use crate::capture::{log, switch};
use crate::catalog::lock::{self, Hold, Mode, Wanted};
use crate::catalog::spi;
use crate::engine::change::Change;
use crate::engine::{guard, recapture, shape};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Ident;
use migrator_core::sql::{Direction, Put};
use migrator_core::state::State;
use serde::Deserialize;
use serde_json::json;

/// Switches capture on, under a SHARE ROW EXCLUSIVE lock taken in short attempts: once it is granted, every
/// writer that capture did not see has ended; so each later snapshot sees their rows, and all later writes are in the log.
pub fn start(mut change: Change) -> Result<State, Failure> {
    guard::outside_transaction("migrator.start_sync")?;
    change.check_open()?;
    lock::change(change.id, Hold::Alone);
    change = change.again()?;
    let broken = change.capture.is_some() && recapture::is_broken(&change)?;
    let again = broken || (change.blocked.is_some() && change.state.may_become(State::Syncing));
    if change.state != State::Created && !again {
        return Err(change.not_now(&format!("it is {}, and capture is on already", change.state)));
    }
    let live = change.table(change.live)?;
    let key: Vec<Ident> = change.plan.key.iter().map(|column| column.old.clone()).collect();
    if change.state != State::Swapped && shape::structure(change.live)? != change.plan.structure {
        return Err(structure_changed(&change));
    }
    if change.put() == Put::Merged {
        // The rear has values that the front cannot give it: it is kept, and compared.
        return recapture::again(&mut change);
    }
    if again {
        clear_shadow(&change)?;
    }
    // A log that is there stays: the triggers of before still write to it, and writers would wait for whoever drops it.
    // What it holds does no harm, for a key without need costs a row written twice.
    if !log::is_there(change.id, Direction::Forward)? {
        log::drop_log(change.id, Direction::Forward)?;
        log::create_log(change.id, Direction::Forward, &live, &key)?;
    }
    let what = format!("capture could not be switched on for table {}", change.name().plain());
    lock::settle(&what, &[change.live])?;
    lock::series(
        &what,
        lock::ATTEMPTS,
        || {
            // Dropping the triggers of before takes the strongest lock.
            let mode = if again { Mode::AccessExclusive } else { Mode::ShareRowExclusive };
            Ok(vec![Wanted { relation: change.live, mode }])
        },
        || Ok(()),
        || {
            switch::switch_off(change.id, &live)?;
            switch::switch_on(change.id, Direction::Forward, &live, &key, None)
        },
    )?;
    let fingerprint = switch::fingerprint(change.id, &live)?;
    spi::execute(
        "update migrator.change set sync_xid = pg_catalog.pg_current_xact_id(), capture = $2, filenode = null, blocked = null, blocked_hint = null where id = $1",
        &[change.id.into(), fingerprint.into()],
    )?;
    change.set_state(State::Syncing)?;
    warn_of_standbys("While capture is on")?;
    Ok(State::Syncing)
}

/// Rule for failover: a standby whose server lacks the library would refuse every write once promoted. We cannot look there from here.
pub fn warn_of_standbys(when: &str) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Standbys {
        names: Option<String>,
    }
    let found: Standbys = spi::fetch_one(
        "select pg_catalog.string_agg(coalesce(nullif(r.application_name, ''), r.client_addr::text, r.pid::text), ', ') as names from pg_catalog.pg_stat_replication r",
        &[],
    )?;
    if let Some(names) = found.names {
        crate::raise::warn(
            Failure::new("01000", format!("standbys are connected ({names})"))
                .detail(format!("{when}, writes need migrator's library; a standby without it would refuse them after a failover."))
                .hint("Install the extension's files on every standby; migrator doctor --database STANDBY tells whether they are there."),
        );
    }
    Ok(())
}

/// Notes the blocks that the copy will read. In a later transaction than start_sync, so that every snapshot of the copy is newer than capture.
pub fn lay_out(change: &mut Change) -> Result<(), Failure> {
    not_in_sync_transaction(change)?;
    let name = change.table(change.live)?.name;
    // ACCESS SHARE, as the copy itself takes: from here to the end of the transaction the file stays the same.
    lock::relation(Wanted { relation: change.live, mode: Mode::AccessShare });
    spi::execute("delete from migrator.chunk where change = $1 and step = 'copy'", &[change.id.into()])?;
    spi::execute(
        "with size as (select pg_catalog.pg_relation_size($2::pg_catalog.oid, 'main') / pg_catalog.current_setting('block_size')::bigint as blocks, \
                              pg_catalog.pg_table_size($2::pg_catalog.oid) as bytes), \
              step as (select greatest(256, blocks / 32) as blocks from size) \
         insert into migrator.chunk (change, step, number, block_from, block_until, batch_blocks) \
         select $1, 'copy', n, n * step.blocks, least((n + 1) * step.blocks, size.blocks), \
                greatest(1, least(256, 4194304 / greatest(1, size.bytes / greatest(1, size.blocks)))) \
         from size, step, pg_catalog.generate_series(0, (greatest(size.blocks, 1) - 1) / step.blocks) n where size.blocks > 0",
        &[change.id.into(), pgrx::pg_sys::Oid::from(change.live).into()],
    )?;
    spi::execute(
        "update migrator.change set filenode = pg_catalog.pg_relation_filenode(live), rows_copied = 0, \
         blocks_total = (select coalesce(sum(block_until - block_from), 0) from migrator.chunk where change = $1 and step = 'copy') where id = $1",
        &[change.id.into()],
    )?;
    change.set_state(State::Copying)?;
    change.event("layout", &format!("copy of {name} laid out"), json!({}))
}

/// Throws away what was copied and begins anew; capture and its log stay.
pub fn start_over(change: &mut Change, why: &str) -> Result<(), Failure> {
    clear_shadow(change)?;
    spi::execute(
        "update migrator.change set filenode = null, rows_copied = 0, rows_verified = 0, verify_rounds = 0 where id = $1",
        &[change.id.into()],
    )?;
    change.event("restart", why, json!({}))?;
    change.set_state(State::Syncing)
}

fn clear_shadow(change: &Change) -> Result<(), Failure> {
    let shadow = change.table(change.shadow)?.name;
    // The owner could have put a trigger on the shadow: it must not run with our rights.
    let as_owner = |statement: String| change.as_owner(&[], || spi::execute(&statement, &[]));
    #[derive(Deserialize)]
    struct Built {
        name: String,
        attach: Option<String>,
        constraint: bool,
    }
    let built: Vec<Built> = spi::fetch(
        "select b.name, b.attach, exists (select from pg_catalog.pg_constraint c where c.conrelid = $2 and c.conname = b.name) as constraint \
         from migrator.build b where b.change = $1 and b.built_at is not null order by b.number desc",
        &[change.id.into(), pgrx::pg_sys::Oid::from(change.shadow).into()],
    )?;
    for build in built {
        let name = Ident::new(build.name);
        if build.constraint {
            as_owner(format!("alter table {shadow} drop constraint {name}"))?;
        } else {
            let _ = build.attach;
            as_owner(format!("drop index if exists {}.{name}", shadow.schema))?;
        }
    }
    as_owner(format!("truncate table {shadow}"))?;
    spi::execute("delete from migrator.chunk where change = $1", &[change.id.into()])?;
    spi::execute("update migrator.build set built_at = null, took = null where change = $1", &[change.id.into()])?;
    spi::execute("delete from migrator.bad_row where change = $1", &[change.id.into()])?;
    Ok(())
}

/// Refuses to copy in the transaction that switched capture on: its snapshot may be older than the lock that proved all writers gone.
pub fn not_in_sync_transaction(change: &Change) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Same {
        same: bool,
    }
    let same: Same = spi::fetch_one(
        "select coalesce(pg_catalog.pg_current_xact_id_if_assigned() = c.sync_xid, false) as same from migrator.change c where c.id = $1",
        &[change.id.into()],
    )?;
    if same.same {
        return Err(Failure::new(
            code::ACTIVE_TRANSACTION,
            format!("table {} cannot be copied in the transaction that ran start_sync", change.name().plain()),
        )
        .detail("Capture counts from its commit. Nothing was copied.")
        .hint("Commit, then call it again."));
    }
    Ok(())
}

/// Whether what capture and copy rely on still stands. Checked under a lock on the live table, in the transaction of the batch.
pub fn check_ground(change: &Change) -> Result<(), Failure> {
    if recapture::is_broken(change)? {
        let anew = if change.put() == Put::Merged {
            "Switch it on again, and all rows are compared"
        } else {
            "Begin the copy anew"
        };
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!("capture of table {} was switched off or replaced meanwhile", change.name().plain()),
        )
        .detail("Writes may have been missed, so the other table cannot be trusted.")
        .hint(format!("{anew}: {} Leave triggers named migrator_capture_* alone.", change.call("start_sync"))));
    }
    if change.direction() == Direction::Forward && shape::structure(change.live)? != change.plan.structure {
        return Err(structure_changed(change));
    }
    Ok(())
}

/// Whether the new shape is what the swap brought: what was added to it since, a rollback would lose without a word.
pub fn check_unchanged_since_swap(change: &Change) -> Result<(), Failure> {
    let now = front_as_it_is(change.shadow)?;
    if change.front_definitions.as_ref().is_none_or(|then| *then == now) {
        return Ok(());
    }
    Err(Failure::new(
        code::NOT_IN_STATE,
        format!(
            "columns, indexes, constraints or defaults of table {} were changed since the swap",
            change.name().plain()
        ),
    )
    .detail("The old table does not have them, and a rollback would lose them. Nothing was changed.")
    .hint(format!("Undo that and call this again, or keep the new table: {}", change.call("finish"))))
}

/// Columns and definitions of a table in one text, the same again when something was added and dropped.
pub fn front_as_it_is(table: u32) -> Result<String, Failure> {
    Ok(format!("{} {}", shape::columns_in_use(table)?, shape::definitions(table)?))
}

/// Whether the indexes, constraints and defaults of the old shape are those that the shadow was made with.
pub fn check_definitions(change: &Change) -> Result<(), Failure> {
    if change.plan.definitions.is_empty() || shape::definitions(change.live)? == change.plan.definitions {
        return Ok(());
    }
    Err(Failure::new(
        code::NOT_IN_STATE,
        format!(
            "indexes, constraints or defaults of table {} were changed since change {} was created",
            change.name().plain(),
            change.id
        ),
    )
    .detail("The shadow was made with those of that time, and a swap would lose the others. Nothing was changed.")
    .hint(format!("Undo that and call this again, or begin anew: {}", change.call("cancel"))))
}

fn structure_changed(change: &Change) -> Failure {
    Failure::new(
        code::NOT_IN_STATE,
        format!("the columns of table {} were changed since change {} was created", change.name().plain(), change.id),
    )
    .detail("The shadow was made for the columns as they were.")
    .hint(format!("Give it up and begin anew: {}", change.call("cancel")))
}
