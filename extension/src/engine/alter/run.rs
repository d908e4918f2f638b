//! One step of a plan, in the caller's transaction, with the swap's lock manners.

use super::{Request, check};
use crate::catalog::attempt::attempt;
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi, timeout};
use crate::crash;
use crate::engine::{guard, shape};
use migrator_core::alter::{Act, Step};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::literal;
use pgrx::pg_sys;
use serde::Deserialize;

/// Runs step `number` (from 0) of `steps`. What fails says what was done before it and what is left.
pub fn step(request: &Request, steps: &[Step], number: usize) -> Result<(), Failure> {
    let step = steps
        .get(number)
        .ok_or_else(|| Failure::new(code::INVALID_PARAMETER, format!("the plan has no step {number}")))?;
    guard::outside_transaction("migrator.alter_table")?;
    let live = check::table(request)?;
    shape::checks::no_open_change(&live)?;
    let done = match step.act {
        Act::Now => now(request, &live, step),
        Act::Validate => validate(request, &live, step),
        Act::Outside | Act::Shadow => {
            Err(Failure::new(code::INVALID_PARAMETER, format!("step {number} of the plan is not run by itself")))
        }
    };
    crash::point("alter_step");
    done.map_err(|failure| told(failure, request, &live, steps, number))
}

/// All statements of the step under one short lock.
fn now(request: &Request, live: &Relation, step: &Step) -> Result<(), Failure> {
    if step.texts.is_empty() {
        return Ok(());
    }
    let weak = step.lock != super::STRONG;
    let mode = if weak { Mode::ShareRowExclusive } else { Mode::AccessExclusive };
    let mut wanted = others(live, step)?;
    wanted.extend(tree(live)?.into_iter().map(|relation| Wanted { relation, mode }));
    // Autovacuum gives way to whoever waits longer than deadlock_timeout; the attempts below never do.
    let patience = patience()?;
    attempt(|| {
        role::with_settings(&[("lock_timeout", &patience)], || {
            lock::relation(Wanted { relation: live.oid, mode: Mode::ShareUpdateExclusive })
        });
        Ok(())
    })
    .map_err(|failure| busy(failure, live))?;
    let mut settings = request.session.settings.clone();
    // For locks that were not foreseen; those that were are held by now.
    settings.insert(0, ("lock_timeout".to_owned(), lock::DEADLINE.as_millis().to_string()));
    lock::series(
        &format!("alter_table of {} was not done", live.name.plain()),
        lock::ATTEMPTS,
        || Ok(wanted.clone()),
        || Ok(()),
        || {
            for text in &step.texts {
                // A statement before may have renamed it.
                let name = Relation::get(live.oid)?.name;
                role::as_owner(live.owner(), &settings, || spi::execute(&format!("alter table {name} {text}"), &[]))?;
            }
            Ok(())
        },
    )
}

/// The other tables of a step, as far as foreign keys give the owner a right to lock them: a plan may come from anybody.
fn others(live: &Relation, step: &Step) -> Result<Vec<Wanted>, Failure> {
    #[derive(Deserialize)]
    struct Right {
        refers: bool,
        may_refer: bool,
    }
    let mut wanted = vec![];
    for (other, strong) in &step.others {
        let right: Right = spi::fetch_one(
            "select exists (select from pg_catalog.pg_constraint n where n.conrelid = $1 and n.confrelid = $2 and n.contype = 'f') as refers, \
               coalesce(pg_catalog.has_any_column_privilege($3, $2, 'REFERENCES'), false) as may_refer",
            &[pg_sys::Oid::from(live.oid).into(), pg_sys::Oid::from(*other).into(), live.owner().into()],
        )?;
        if *strong && right.refers {
            wanted.push(Wanted { relation: *other, mode: Mode::AccessExclusive });
        } else if right.may_refer {
            wanted.push(Wanted { relation: *other, mode: Mode::ShareRowExclusive });
        }
    }
    Ok(wanted)
}

/// The table and whatever inherits from it, in one fixed order.
fn tree(live: &Relation) -> Result<Vec<u32>, Failure> {
    #[derive(Deserialize)]
    struct Member {
        oid: u32,
    }
    let members: Vec<Member> = spi::fetch(
        "with recursive tree(relation, level) as ( \
           select $1::pg_catalog.oid, 0 union select i.inhrelid, t.level + 1 from tree t join pg_catalog.pg_inherits i on i.inhparent = t.relation) \
         select pg_catalog.to_jsonb(q) from (select t.relation::pg_catalog.int8 as oid from tree t group by t.relation order by max(t.level), t.relation) q",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    Ok(members.into_iter().map(|member| member.oid).collect())
}

/// VALIDATE reads the whole table beside readers and writers: however long it takes, only its lock is waited for briefly.
fn validate(request: &Request, live: &Relation, step: &Step) -> Result<(), Failure> {
    lock::settle(&format!("a constraint of {} was not validated", live.name.plain()), &tree(live)?)?;
    // A referenced table is asked for while these are held, by whoever has it and asks for these: for less time than it takes
    // until the server ends one of the two.
    let mut settings = request.session.settings.clone();
    settings.insert(0, ("lock_timeout".to_owned(), lock::DEADLINE.as_millis().to_string()));
    let all = || {
        for text in &step.texts {
            role::as_owner(live.owner(), &settings, || {
                spi::execute(&format!("alter table {} {text}", live.name), &[])
            })?;
        }
        Ok(())
    };
    timeout::unbounded(|| attempt(all)).map_err(|failure| busy(failure, live))
}

/// Longer than autovacuum holds out.
fn patience() -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Time {
        ms: i64,
    }
    let time: Time = spi::fetch_one(
        "select setting::pg_catalog.int8 + 2000 as ms from pg_catalog.pg_settings where name = 'deadlock_timeout'",
        &[],
    )?;
    Ok(time.ms.to_string())
}

fn busy(failure: Failure, live: &Relation) -> Failure {
    if failure.code != code::LOCK_NOT_AVAILABLE {
        return failure;
    }
    Failure::new(code::LOCK_NOT_AVAILABLE, format!("another session runs DDL or VACUUM on {}", live.name.plain()))
        .detail("Readers and writers were not kept waiting for it.")
        .hint("Call it again when that is over.")
}

/// The failure with the state in which the table is left.
fn told(mut failure: Failure, request: &Request, live: &Relation, steps: &[Step], number: usize) -> Failure {
    let name = live.name.plain();
    let list = |steps: &[Step]| -> String {
        steps
            .iter()
            .flat_map(|step| &step.texts)
            .map(|text| format!("alter table {name} {text};"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    if number > 0 {
        let detail = failure.detail.take().unwrap_or_default();
        let detail = detail.replace("Nothing was changed, and no session", "No session");
        let told = format!("{detail} Done: {} Left: {}", list(&steps[..number]), list(&steps[number..]));
        failure.detail = Some(told.trim().to_owned());
    }
    let again = format!(
        "call migrator.alter_table({}, {});",
        literal(&name),
        literal(request.actions.as_deref().unwrap_or_default())
    );
    let constraint = steps[number].texts.first().and_then(|text| text.strip_prefix("validate constraint "));
    let hint = match constraint {
        Some(constraint) if failure.code.starts_with("23") => format!(
            "New rows are checked already. Mend the old ones and call it again: {again} Or take it back: alter table {name} drop constraint {constraint};"
        ),
        _ if number > 0 => format!("Calling it again goes on from here: {again}"),
        _ => return failure,
    };
    failure.hint = Some(failure.hint.take().map_or_else(|| hint.clone(), |given| format!("{given} {hint}")));
    failure
}

/// Leaves word in the log of a change that `alter_table` began, so that a call with the same words goes on with it.
pub fn note(id: i64, request: &Request, steps: &[Step], number: usize) -> Result<(), Failure> {
    let reason = steps.get(number).map_or("", |step| step.reason.as_str());
    spi::execute(
        "insert into migrator.event (change, kind, message, detail) values ($1, 'alter_table', $2, $3)",
        &[
            id.into(),
            format!("way shadow: {reason}").into(),
            pgrx::JsonB(serde_json::json!({"way": "shadow", "reason": reason, "asked": request.actions})).into(),
        ],
    )?;
    Ok(())
}
