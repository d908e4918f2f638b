//! `create_shadow`: from a user's wish to an empty table of the new shape and a plan for every row, all in the
//! caller's transaction. It reads the catalog only, never a row, and leaves nothing behind when it fails.

use crate::catalog::attempt::attempt;
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{actions, definition, dependants, spi};
use crate::crash;
use crate::engine::upgrade::fits;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Name;
use migrator_core::plan::Plan;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;

mod builds;
pub mod checks;
mod columns;
mod explain;
pub mod keys;
pub mod measure;
pub mod table;

pub use crate::catalog::definition::{columns_in_use, definitions, structure};
pub use explain::Row;

use columns::Work;
use table::Steps;

/// Who asks, and under which settings: read before anything is pinned.
pub struct Session {
    /// The role whose rights count.
    pub role: pg_sys::Oid,
    /// See `catalog::settings`.
    pub settings: Vec<(String, String)>,
}

/// What a user wants of a table.
pub struct Request {
    /// The live table.
    pub relation: u32,
    /// ALTER TABLE actions.
    pub actions: Option<String>,
    /// New column → expression over the old row.
    pub transform: serde_json::Value,
    /// Old column → expression over the new row.
    pub reverse: serde_json::Value,
    /// A table that the user made, instead of actions.
    pub shadow: Option<u32>,
    /// `wait` or `swap`.
    pub on_ready: String,
    /// Whether its transforms are those of an upgrade of rows, which the change brings.
    pub upgrade: bool,
    /// Who asks.
    pub session: Session,
}

/// A shadow as it was made.
struct Made {
    plan: Plan,
    shadow: Relation,
    /// What was run.
    statements: Vec<String>,
}

/// Makes the shadow and records the change; gives its id. Runs as the extension, in a subtransaction: on failure
/// nothing is left, whatever the caller makes of the error.
pub fn create_shadow(request: &Request) -> Result<i64, Failure> {
    attempt(|| {
        let live = checks::table(request)?;
        checks::wish(request, &live)?;
        let id = next_id()?;
        let made = make(request, &live, id)?;
        record(request, &live, id, &made)?;
        crash::point("create_shadow.recorded");
        Ok(id)
    })
}

/// What `create_shadow` and all later steps would do; all that was made for the answer is rolled back.
pub fn explain(request: &Request) -> Result<Vec<Row>, Failure> {
    let live = checks::table(request)?;
    checks::wish(request, &live)?;
    let mut rows = None;
    let undone = attempt(|| -> Result<(), Failure> {
        let made = make(request, &live, 0)?;
        rows = Some(explain::rows(&live, &made)?);
        Err(Failure::new(code::INTERNAL, "explain rolls back what it made"))
    });
    match (rows, undone) {
        (Some(rows), _) => Ok(rows),
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => unreachable!("the work above always fails"),
    }
}

fn make(request: &Request, live: &Relation, id: i64) -> Result<Made, Failure> {
    let name = Name { schema: format!("migrator_shadow_{id}").as_str().into(), name: live.name.name.clone() };
    let parts = match &request.actions {
        Some(text) => actions::read(&live.name, text)?,
        None => vec![],
    };
    checks::parts(live, &parts)?;
    fits::hold(live)?;
    // As LIKE does a moment later: the columns that are read here are those that it finds.
    lock::relation(Wanted { relation: live.oid, mode: Mode::AccessShare });
    let before = definition::columns(live.oid)?;
    let steps = Steps::default();
    let shadow = match request.shadow {
        Some(made) => table::adopt(&steps, live, &checks::made_by_user(request, live, made)?, &name)?,
        None => table::like(&steps, live, &name)?,
    };
    let history = match request.shadow {
        Some(_) => columns::history_of_names(&before, &definition::columns(shadow.oid)?),
        None => columns::history_of_like(&before),
    };
    let work = Work { request, live, shadow: &shadow, before: &before, steps: &steps, history };
    let mut frozen = work.alter(&parts)?;
    let after = definition::columns(shadow.oid)?;
    if request.shadow.is_some() {
        frozen = work.freeze_all(&after)?;
    }
    let unvalidated = table::set_aside(&steps, &shadow)?;
    let new_columns = work.forward(&after, &parts, &frozen)?;
    let shapes = keys::Shapes { live, shadow: &shadow, before: &before, after: &after, columns: &new_columns };
    let (key, carrier) = shapes.key()?;
    let old_columns = work.backward(&after, &key)?;
    let brings = request.upgrade;
    fits::Fits { brings, live, shadow: &shadow, after: &after, plan: &new_columns, before: &old_columns, key: &key }
        .check()?;
    table::assert_inert(live, &shadow)?;
    table::names_are_free(live, &shadow)?;
    let builds = builds::take(&steps, &shadow, carrier)?;
    let settings = request.session.settings.clone();
    let plan = Plan {
        new_columns,
        old_columns,
        key,
        settings,
        builds,
        unvalidated,
        structure: structure(live.oid)?,
        definitions: definitions(live.oid)?,
    };
    dependants::preflight(live.oid, &plan)?;
    // Its storage may have been changed by the actions.
    let shadow = Relation::get(shadow.oid)?;
    Ok(Made { plan, shadow, statements: steps.taken() })
}

/// The next id whose schemas nobody has: an extension that was dropped and made again counts from 1 again, while
/// schemas of its first life may still be there (`doctor` names them).
fn next_id() -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Id {
        id: i64,
        taken: bool,
    }
    loop {
        let next: Id = spi::fetch_one(
            "select i.id, exists (select from pg_catalog.pg_namespace n where n.nspname in \
               (pg_catalog.concat('migrator_shadow_', i.id), pg_catalog.concat('migrator_backup_', i.id), \
                pg_catalog.concat('migrator_shadow_', i.id, '_views'), pg_catalog.concat('migrator_backup_', i.id, '_views'))) as taken \
             from (select pg_catalog.nextval('migrator.change_id_seq') as id offset 0) i",
            &[],
        )?;
        if !next.taken {
            return Ok(next.id);
        }
    }
}

/// Writes the change, its builds and its first event.
fn record(request: &Request, live: &Relation, id: i64, made: &Made) -> Result<(), Failure> {
    let plan = serde_json::to_value(&made.plan)
        .map_err(|error| Failure::new(code::INTERNAL, format!("a plan cannot be stored: {error}")))?;
    insert(request, live, id, made, &plan)?;
    for (number, build) in (1i32..).zip(&made.plan.builds) {
        spi::execute(
            "insert into migrator.build (change, number, name, sql, attach, is_key) values ($1, $2, $3::pg_catalog.name, $4, $5, $6)",
            &[
                id.into(),
                number.into(),
                build.name.as_str().into(),
                build.sql.as_str().into(),
                build.attach.as_deref().into(),
                build.is_key.into(),
            ],
        )?;
    }
    spi::execute(
        "insert into migrator.event (change, kind, message, detail) values ($1, 'created', $2, $3)",
        &[
            id.into(),
            format!("made the shadow {} of {}", made.shadow.name.plain(), live.name.plain()).into(),
            JsonB(serde_json::json!({"actions": request.actions, "transform": request.transform, "reverse": request.reverse})).into(),
        ],
    )?;
    Ok(())
}

/// The row of the change. The caller may have set a role: the one whose rights counted is recorded.
fn insert(request: &Request, live: &Relation, id: i64, made: &Made, plan: &serde_json::Value) -> Result<(), Failure> {
    // Two sessions may begin a change of one table at once: the second waits here for the first, and is told.
    let inserted = attempt(|| {
        spi::execute(
            "insert into migrator.change (id, started_ms, requested_by, table_schema, table_name, live, shadow, actions, transform, reverse, on_ready, plan, state) \
             overriding system value \
             select $1, greatest((extract(epoch from pg_catalog.clock_timestamp()) * 1000)::pg_catalog.int8, \
                                 (select coalesce(pg_catalog.max(c.started_ms), 0) + 1 from migrator.change c)), \
               pg_catalog.pg_get_userbyid($2), $3::pg_catalog.name, $4::pg_catalog.name, $5, $6, $7, $8, $9, $10, $11, 'created'",
            &[
                id.into(),
                request.session.role.into(),
                live.name.schema.as_str().into(),
                live.name.name.as_str().into(),
                pg_sys::Oid::from(live.oid).into(),
                pg_sys::Oid::from(made.shadow.oid).into(),
                request.actions.as_deref().into(),
                JsonB(request.transform.clone()).into(),
                JsonB(request.reverse.clone()).into(),
                request.on_ready.as_str().into(),
                JsonB(plan.clone()).into(),
            ],
        )
    });
    match inserted {
        Ok(_) => Ok(()),
        Err(failure) if failure.code == "23505" => {
            checks::no_open_change(live)?;
            Err(Failure::new(
                code::SERIALIZATION,
                format!("another change began in the same millisecond as this one of {}", live.name.plain()),
            )
            .hint("Call create_shadow again."))
        }
        Err(failure) => Err(failure),
    }
}

/// The relation that was named, if one was.
pub fn given(relation: Option<u32>) -> Result<u32, Failure> {
    relation.ok_or_else(|| {
        Failure::new(code::INVALID_PARAMETER, "no table is named")
            .hint("For instance: select migrator.create_shadow('public.orders', 'alter column id type bigint');")
    })
}
