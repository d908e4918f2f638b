//! alter_table: the plan, and the functions that its procedure is made of.

use crate::api::answer::{ALTER, ALTER_ON, LOOK, answer};
use crate::api::arguments::RegClass;
use crate::catalog::{role, settings, timeout};
use crate::engine::alter::{self, run};
use crate::engine::change::Change;
use crate::engine::guard;
use crate::engine::shape::{self, Request, Session};
use migrator_core::alter::{Act, Step};
use migrator_core::failure::{Ending, Failure, code};
use pgrx::JsonB;
use pgrx::prelude::*;

/// What alter_table would do, statement by statement. Writes nothing.
// No `set search_path`: the actions are read under the caller's.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn alter_plan(
    relation: Option<RegClass>,
    actions: Option<&str>,
    strategy: default!(Option<&str>, "'auto'"),
    transform: default!(Option<JsonB>, "'{}'"),
    reverse: default!(Option<JsonB>, "'{}'"),
) -> TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(way, String),
        name!(statement, String),
        name!(lock, String),
        name!(held, String),
        name!(reason, String),
    ),
> {
    let request = request(relation, actions, transform, reverse);
    let rows = answer(LOOK, || {
        role::as_extension(|| {
            let request = request?;
            let steps = alter::plan(&request, strategy.unwrap_or("auto"))?;
            alter::rows(&request, &steps)
        })
    });
    TableIterator::new(
        (1..)
            .zip(rows)
            .map(|(ordinal, row)| (ordinal, row.way.to_string(), row.statement, row.lock, row.held, row.reason)),
    )
}

/// The steps of alter_table, for its procedure.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn _alter_steps(
    relation: Option<RegClass>,
    actions: Option<&str>,
    strategy: Option<&str>,
    transform: Option<JsonB>,
    reverse: Option<JsonB>,
) -> JsonB {
    let request = request(relation, actions, transform, reverse);
    let strategy = strategy.unwrap_or("auto");
    answer(ALTER, || {
        guard::commits("migrator.alter_table")?;
        role::as_extension(|| {
            guard::fresh_snapshots("migrator.alter_table")?;
            let request = request?;
            let steps = alter::plan(&request, strategy)?;
            timeout::outlast_call();
            if let Some(step) = steps.iter().find(|step| step.act == Act::Outside) {
                return Err(Failure::new(code::NOT_SUPPORTED, "CREATE INDEX CONCURRENTLY cannot run inside CALL")
                    .detail("It needs to be a statement of its own, outside a transaction.")
                    .hint(format!("Run these one after the other: {}", step.texts.join(" "))));
            }
            serde_json::to_value(&steps)
                .map(JsonB)
                .map_err(|error| Failure::new(code::INTERNAL, format!("a plan cannot be stored: {error}")))
        })
    })
}

/// Runs one step of alter_table, counted from 0.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn _alter_step(relation: RegClass, actions: &str, steps: JsonB, number: i32) {
    let request = request(Some(relation), Some(actions), None, None);
    answer(ending(number), || {
        role::as_extension(|| {
            let (steps, number) = read(steps, number)?;
            run::step(&request?, &steps, number)
        })
    });
}

/// Begins the change of a shadow step, or finds the one that was begun; gives its id.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn _alter_shadow(
    relation: RegClass,
    actions: &str,
    transform: Option<JsonB>,
    reverse: Option<JsonB>,
    steps: JsonB,
    number: i32,
) -> i64 {
    let asked = request(Some(relation), Some(actions), transform, reverse);
    answer(ending(number), || {
        role::as_extension(|| {
            let asked = asked?;
            let (steps, number) = read(steps, number)?;
            let step = steps.get(number).filter(|step| step.act == Act::Shadow);
            let step = step.ok_or_else(|| {
                Failure::new(code::INVALID_PARAMETER, format!("step {number} of the plan is no shadow"))
            })?;
            if let Some(id) = step.change {
                let change = Change::get(id)?;
                change.check_rights(asked.session.role)?;
                return Ok(id);
            }
            let text = step.texts.concat();
            let id = shape::create_shadow(&Request {
                relation: asked.relation,
                actions: Some(text),
                transform: asked.transform.clone(),
                reverse: asked.reverse.clone(),
                shadow: None,
                on_ready: "swap".into(),
                upgrade: false,
                session: Session { role: asked.session.role, settings: asked.session.settings.clone() },
            })?;
            run::note(id, &asked, &steps, number)?;
            Ok(id)
        })
    })
}

/// The first step leaves nothing behind when it fails; those after it leave what was done before.
fn ending(number: i32) -> Ending {
    if number > 0 { ALTER_ON } else { ALTER }
}

fn read(steps: JsonB, number: i32) -> Result<(Vec<Step>, usize), Failure> {
    let invalid =
        |error: String| Failure::new(code::INVALID_PARAMETER, format!("this is no plan of alter_table: {error}"));
    let steps = serde_json::from_value(steps.0).map_err(|error| invalid(error.to_string()))?;
    Ok((steps, usize::try_from(number).map_err(|error| invalid(error.to_string()))?))
}

fn request(
    relation: Option<RegClass>,
    actions: Option<&str>,
    transform: Option<JsonB>,
    reverse: Option<JsonB>,
) -> Result<Request, Failure> {
    let object = |given: Option<JsonB>| given.map_or_else(|| serde_json::json!({}), |given| given.0);
    let relation = relation.ok_or_else(|| {
        Failure::new(code::INVALID_PARAMETER, "no table is named")
            .hint("For instance: call migrator.alter_table('public.orders', 'alter column id type bigint');")
    })?;
    Ok(Request {
        relation: relation.0,
        actions: actions.map(str::to_owned),
        transform: object(transform),
        reverse: object(reverse),
        shadow: None,
        on_ready: "swap".to_owned(),
        upgrade: false,
        session: Session { role: role::caller(), settings: settings::of_session() },
    })
}
