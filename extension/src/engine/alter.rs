//! `alter_table`: the cheapest safe way from the table as it is to the table as it shall be.
//!
//! `plan` reads and tries, and leaves nothing behind; `run` takes one step of a plan in a transaction of its own.

use crate::catalog::commands::{self, Part, Piece};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::engine::shape::{self, Request};
use migrator_core::alter::{self, Act, Kind, Step, Strategy, Way};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{literal, plain};
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;

mod check;
mod parts;
mod probe;
pub mod run;
mod steps;
mod there;

/// What is planned for.
struct Work<'a> {
    request: &'a Request,
    live: &'a Relation,
    strategy: Strategy,
    /// Table, TOAST and indexes, of all its partitions.
    bytes: i64,
}

/// The steps of an ALTER TABLE. Writes nothing.
pub fn plan(request: &Request, strategy: &str) -> Result<Vec<Step>, Failure> {
    let strategy = Strategy::parse(strategy)?;
    let live = check::table(request)?;
    shape::checks::wish(request, &live)?;
    let text = request.actions.as_deref().unwrap_or_default();
    let parts = check::foreign_keys(&live, commands::read(&live.name, text)?)?;
    let size = check::size(&live)?;
    let work = Work { request, live: &live, strategy, bytes: size.bytes };
    if let Some(step) = work.begun()? {
        return Ok(vec![step]);
    }
    shape::checks::no_open_change(&live)?;
    let transforms = [&request.transform, &request.reverse]
        .iter()
        .any(|given| given.as_object().is_some_and(|object| !object.is_empty()));
    match strategy {
        Strategy::InPlace if transforms => {
            Err(Failure::new(code::INVALID_PARAMETER, "transform and reverse have no meaning in place")
                .detail("In place a column's new value comes from USING, and there is no way back.")
                .hint("Leave strategy out, or give 'shadow'."))
        }
        Strategy::Shadow => work.shadow(&parts, "strategy is shadow"),
        _ if transforms => work.shadow(&parts, "transform or reverse is given"),
        _ if size.is_empty => {
            Ok(vec![at_once(parts.iter().map(|part| part.text.clone()).collect(), "the table is empty")])
        }
        _ => work.cheapest(&parts),
    }
}

const STRONG: &str = "ACCESS EXCLUSIVE";
const SHORT: &str = "milliseconds; waited for at most 50 ms at a time";

fn at_once(texts: Vec<String>, reason: &str) -> Step {
    Step {
        way: Way::InPlace,
        act: Act::Now,
        texts,
        lock: STRONG.into(),
        held: SHORT.into(),
        reason: reason.into(),
        others: vec![],
        change: None,
    }
}

impl Work<'_> {
    fn settings(&self) -> &[(String, String)] {
        &self.request.session.settings
    }

    fn name(&self) -> String {
        self.live.name.plain()
    }

    /// The call that the user can make instead.
    fn call(&self, text: &str, strategy: &str) -> String {
        format!("call migrator.alter_table({}, {}, {});", literal(&self.name()), literal(text), literal(strategy))
    }

    /// In place where that is safe, otherwise through a shadow.
    fn cheapest(&self, parts: &[Part]) -> Result<Vec<Step>, Failure> {
        let plan = parts::Plan::of(self, parts)?;
        match &plan.shadow {
            None => plan.steps(self),
            Some(why) if self.strategy == Strategy::InPlace || self.live.kind == "p" => Err(self.refuse(&plan, why)),
            Some(why) => self.shadow(parts, why).map_err(|failure| match plan.needs_index {
                // A table without a key has no shadow, and the index that it lacks may be what is asked for.
                true if failure.hint.is_some() => {
                    let hint = failure.hint.clone().unwrap_or_default();
                    failure.hint(format!("{hint} {}", self.by_hand()))
                }
                _ => failure,
            }),
        }
    }

    fn refuse(&self, plan: &parts::Plan, why: &str) -> Failure {
        let text = self.request.actions.as_deref().unwrap_or_default();
        let mut failure = alter::refuse(&self.name(), why, self.bytes, &self.call(text, "shadow"));
        if plan.at_any_size {
            failure = failure.detail("Nothing was changed.");
        }
        match self.live.kind.as_str() {
            "p" if self.bytes <= alter::SMALL_BYTES && self.strategy != Strategy::InPlace => failure.hint(format!(
                "A partitioned table has no shadow. It is small: {} does it at once; transactions that began before would find it empty.",
                self.call(text, "in_place")
            )),
            "p" => failure.hint("A partitioned table has no shadow: make a new one, and move the rows partition by partition."),
            _ => failure,
        }
    }

    fn by_hand(&self) -> String {
        let text = self.request.actions.as_deref().unwrap_or_default();
        format!(
            "An index can be built without a copy, outside a transaction: select statement from migrator.alter_plan({}, {}, 'concurrently'); gives the statements.",
            literal(&self.name()),
            literal(text)
        )
    }

    /// A change through a shadow; what is no part of the shape is done in place before.
    fn shadow(&self, parts: &[Part], why: &str) -> Result<Vec<Step>, Failure> {
        let only = |wanted: fn(&Piece) -> bool| -> Vec<Part> {
            parts
                .iter()
                .filter(|part| part.pieces.iter().any(wanted))
                .map(|part| {
                    if part.pieces.iter().all(wanted) {
                        return part.clone();
                    }
                    let pieces: Vec<Piece> = part.pieces.iter().filter(|piece| wanted(piece)).cloned().collect();
                    Part { text: joined(&pieces), pieces }
                })
                .collect()
        };
        let (shape, rest) = (only(|piece| piece.is_shape), only(|piece| !piece.is_shape));
        if shape.is_empty() {
            return Err(Failure::new(
                code::INVALID_PARAMETER,
                format!("nothing in these actions changes the shape of {}", self.name()),
            )
            .hint("Leave strategy out: they are done in place."));
        }
        let mut steps = vec![];
        if !rest.is_empty() {
            let plan = parts::Plan::of(self, &rest)?;
            if let Some(why) = &plan.shadow {
                return Err(self.refuse(&plan, why));
            }
            steps = plan.steps(self)?;
        }
        let text = shape.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join("; ");
        shape::explain(&Request {
            relation: self.request.relation,
            actions: Some(text.clone()),
            transform: self.request.transform.clone(),
            reverse: self.request.reverse.clone(),
            shadow: None,
            on_ready: "swap".into(),
            upgrade: false,
            session: shape::Session {
                role: self.request.session.role,
                settings: self.request.session.settings.clone(),
            },
        })?;
        let by_hand = shape
            .iter()
            .flat_map(|part| &part.pieces)
            .all(|piece| matches!(&piece.kind, Kind::AddIndexed(indexed) if !indexed.exclude));
        let reason = if by_hand { format!("{why}. {}", self.by_hand()) } else { why.to_owned() };
        steps.push(shadow_step(text, reason, None));
        Ok(steps)
    }

    /// The change that an earlier call with the same words began and did not end.
    fn begun(&self) -> Result<Option<Step>, Failure> {
        #[derive(Deserialize)]
        struct Begun {
            id: i64,
            actions: String,
            state: String,
        }
        let open: Vec<Begun> = spi::fetch(
            "select c.id, c.actions, c.state from migrator.change c where c.live = $1 and c.on_ready = 'swap' and c.actions is not null \
               and c.state not in ('swapped', 'finished', 'cancelled') and c.transform = $2 and c.reverse = $3 \
               and exists (select from migrator.event e where e.change = c.id and e.kind = 'alter_table' and e.detail ->> 'asked' = $4)",
            &[
                pg_sys::Oid::from(self.live.oid).into(),
                JsonB(self.request.transform.clone()).into(),
                JsonB(self.request.reverse.clone()).into(),
                self.request.actions.as_deref().into(),
            ],
        )?;
        Ok(open.into_iter().next().map(|begun| {
            let reason = format!("change {} of these actions is {} and goes on", begun.id, begun.state);
            shadow_step(begun.actions, reason, Some(begun.id))
        }))
    }
}

fn shadow_step(actions: String, reason: String, change: Option<i64>) -> Step {
    Step {
        way: Way::Shadow,
        act: Act::Shadow,
        texts: vec![actions],
        lock: STRONG.into(),
        held: "milliseconds, at the swap; waited for at most 50 ms at a time".into(),
        reason,
        others: vec![],
        change,
    }
}

/// The actions of one statement.
fn joined(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect::<Vec<_>>().join(", ")
}

/// One row of `alter_plan`.
pub struct Row {
    /// See `Way`.
    pub way: Way,
    /// What is run.
    pub statement: String,
    /// The strongest lock.
    pub lock: String,
    /// How long.
    pub held: String,
    /// Why.
    pub reason: String,
}

/// A plan as the statements that it comes to.
pub fn rows(request: &Request, steps: &[Step]) -> Result<Vec<Row>, Failure> {
    let live = Relation::get(request.relation)?;
    let mut rows = vec![];
    for step in steps {
        let row = |statement: String, lock: &str, held: &str| Row {
            way: step.way,
            statement,
            lock: lock.to_owned(),
            held: held.to_owned(),
            reason: step.reason.clone(),
        };
        match step.act {
            Act::Now | Act::Validate => {
                rows.extend(
                    step.texts
                        .iter()
                        .map(|text| row(format!("alter table {} {text};", live.name.plain()), &step.lock, &step.held)),
                );
            }
            Act::Outside => rows.extend(step.texts.iter().map(|text| row(text.clone(), &step.lock, &step.held))),
            Act::Shadow => {
                let table = literal(&live.name.plain());
                let actions = step.texts.iter().map(|text| literal(text)).collect::<String>();
                let mut arguments = String::new();
                for (name, given) in [("transform", &request.transform), ("reverse", &request.reverse)] {
                    if given.as_object().is_some_and(|object| !object.is_empty()) {
                        arguments.push_str(&format!(", {name} => {}", literal(&given.to_string())));
                    }
                }
                if step.change.is_none() {
                    rows.push(row(
                        format!("select migrator.create_shadow({table}, {actions}{arguments});"),
                        "ACCESS SHARE",
                        "milliseconds",
                    ));
                }
                rows.push(row(
                    format!("call migrator.prepare({table});"),
                    "SHARE ROW EXCLUSIVE",
                    "milliseconds, when capture is switched on; then none that stops anybody",
                ));
                rows.push(row(format!("select * from migrator.swap({table});"), &step.lock, &step.held));
                rows.push(row(
                    format!("select migrator.validate({table});"),
                    "SHARE UPDATE EXCLUSIVE",
                    "while foreign keys are checked; stops neither readers nor writers",
                ));
            }
        }
    }
    Ok(rows)
}

/// A sentence for a column or constraint that is there already.
fn there(what: &str, name: &str) -> String {
    format!("{what} {} is there already", plain(name))
}
