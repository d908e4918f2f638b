//! One change as the catalog holds it: finding it, checking who may touch it, moving it from state to state.

use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use migrator_core::batch::Pace;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Name, plain};
use migrator_core::plan::Plan;
use migrator_core::sql::{Direction, Put, Tables};
use migrator_core::state::State;
use pgrx::JsonB;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::{Value, json};

/// A row of `migrator.change`.
#[derive(Debug, Clone, Deserialize)]
pub struct Change {
    pub id: i64,
    pub table_schema: String,
    pub table_name: String,
    pub live: u32,
    pub shadow: u32,
    pub on_ready: String,
    pub plan: Plan,
    pub state: State,
    pub paused: bool,
    pub postponed: bool,
    pub blocked: Option<String>,
    pub blocked_hint: Option<String>,
    /// The server's load holds it, as far as was noted.
    pub held: bool,
    pub capture: Option<String>,
    pub filenode: Option<u32>,
    pub rolled_back: i32,
    pub swap_xid: Option<String>,
    pub fence_xid: Option<String>,
    pub front_definitions: Option<String>,
    pub kept: Option<Value>,
    pub verify_rounds: i32,
    pub catch_up: Option<Pace>,
}

const SELECT: &str = "select c.id, c.table_schema, c.table_name, c.live::pg_catalog.int8 as live, c.shadow::pg_catalog.int8 as shadow, \
    c.on_ready, c.plan, c.state, c.paused_at is not null as paused, \
    coalesce(c.postponed_until > pg_catalog.clock_timestamp(), false) as postponed, c.blocked, c.blocked_hint, c.held_since is not null as held, \
    c.capture, c.filenode::pg_catalog.int8 as filenode, c.rolled_back, c.swap_xid::text, c.fence_xid::text, c.front_definitions, c.kept, c.verify_rounds, c.catch_up \
    from migrator.change c";

const ONE_OF_THEM: &str = "Give one of them: the table, or change => ID. select * from migrator.status; lists the changes under way with both.";

impl Change {
    /// The change with this id.
    pub fn get(id: i64) -> Result<Change, Failure> {
        spi::fetch_optional(&format!("{SELECT} where c.id = $1"), &[id.into()])?.ok_or_else(|| {
            Failure::new(code::UNDEFINED_OBJECT, format!("there is no change {id}"))
                .hint("select * from migrator.status; lists the changes under way, migrator.history the others.")
        })
    }

    /// The open change of a table: of the live one, its shadow or its backup.
    pub fn find_open(relation: u32) -> Result<Option<Change>, Failure> {
        spi::fetch_optional(
            &format!("{SELECT} where $1 in (c.live, c.shadow) and c.state not in ('finished', 'cancelled')"),
            &[pg_sys::Oid::from(relation).into()],
        )
    }

    /// All open changes, oldest first.
    pub fn all_open() -> Result<Vec<Change>, Failure> {
        spi::fetch(&format!("{SELECT} where c.state not in ('finished', 'cancelled') order by c.id"), &[])
    }

    /// The change that a caller means by table or id, exactly one of which is given.
    pub fn select(relation: Option<u32>, id: Option<i64>) -> Result<Change, Failure> {
        match (relation, id) {
            (Some(relation), None) => Self::find_open(relation)?.ok_or_else(|| {
                let name = Relation::find(relation).ok().flatten().map_or(relation.to_string(), |r| r.name.plain());
                Failure::new(code::UNDEFINED_OBJECT, format!("there is no change of table {name} under way"))
                    .hint(format!("Begin one with select migrator.create_shadow('{name}', 'alter …'); select * from migrator.history; shows those that are over."))
            }),
            (None, Some(id)) => Self::get(id),
            (Some(_), Some(_)) => Err(Failure::new(code::INVALID_PARAMETER, "both a table and a change were given")
                .detail("They may mean two changes. Nothing was changed.")
                .hint(ONE_OF_THEM)),
            (None, None) => Err(Failure::new(code::INVALID_PARAMETER, "neither a table nor a change was given")
                .detail("It would not be known which change is meant. Nothing was changed.")
                .hint(ONE_OF_THEM)),
        }
    }

    /// The same row as it is now: after a lock was taken.
    pub fn again(&self) -> Result<Change, Failure> {
        Self::get(self.id)
    }

    /// The table's own name, where the application finds it.
    pub fn name(&self) -> Name {
        Name::new(self.table_schema.clone(), self.table_name.clone())
    }

    /// Which way rows flow now.
    pub fn direction(&self) -> Direction {
        if self.state == State::Swapped { Direction::Reverse } else { Direction::Forward }
    }

    /// How rows of the rear table are made now.
    pub fn put(&self) -> Put {
        if self.state == State::Swapped || self.rolled_back > 0 { Put::Merged } else { Put::Plain }
    }

    /// One of its two tables.
    pub fn table(&self, oid: u32) -> Result<Relation, Failure> {
        Relation::find(oid)?.ok_or_else(|| {
            let shape = if oid == self.live { "old" } else { "new" };
            let end = if self.state == State::Swapped { "finish" } else { "cancel" };
            Failure::new(
                code::UNDEFINED_OBJECT,
                format!("the table of the {shape} shape of change {} of {} was dropped", self.id, self.name().plain()),
            )
            .hint(format!("Nothing goes on without it. To clear up: select migrator.{end}(change => {});", self.id))
        })
    }

    /// The table that the application uses, and the other.
    pub fn front_and_rear(&self) -> Result<(Relation, Relation), Failure> {
        let (old, new) = (self.table(self.live)?, self.table(self.shadow)?);
        Ok(if self.state == State::Swapped { (new, old) } else { (old, new) })
    }

    /// Both tables' present names, for SQL text.
    pub fn with_tables<T>(&self, work: impl FnOnce(Tables<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let (old, new) = (self.table(self.live)?, self.table(self.shadow)?);
        work(Tables { old: &old.name, new: &new.name })
    }

    /// Runs `work` as the table's owner, restricted, under the settings that the change recorded.
    pub fn as_owner<T>(&self, extra: &[(&str, &str)], work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        // The one who can have said so last: ALTER TABLE … OWNER TO is about the table that the application uses.
        let front = if self.state == State::Swapped { self.shadow } else { self.live };
        let owner = self.table(front)?.owner();
        let mut settings = settings(&self.plan);
        settings.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        role::as_owner(owner, &settings, work)
    }

    /// Refuses a caller who neither owns the table nor is a member of its owner.
    pub fn check_rights(&self, caller: pg_sys::Oid) -> Result<(), Failure> {
        if self.may_change(caller)? {
            return Ok(());
        }
        Err(Failure::new(
            code::INSUFFICIENT_PRIVILEGE,
            format!("must be owner of table {} for change {}", self.name().plain(), self.id),
        )
        .hint("Call it as the table's owner or as a member of that role."))
    }

    /// Whether a role may touch this change.
    pub fn may_change(&self, caller: pg_sys::Oid) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            may: bool,
        }
        // The table that the application uses counts; the other one only where that is gone.
        let swapped = matches!(self.state, State::Swapped | State::Finished);
        let (front, rear) = if swapped { (self.shadow, self.live) } else { (self.live, self.shadow) };
        let answer: Option<Answer> = spi::fetch_optional(
            "select pg_catalog.pg_has_role($1, c.relowner, 'usage') as may from pg_catalog.pg_class c where c.oid in ($2, $3) order by c.oid <> $2 limit 1",
            &[caller.into(), pg_sys::Oid::from(front).into(), pg_sys::Oid::from(rear).into()],
        )?;
        // Both tables gone: only a superuser may clear up.
        Ok(match answer {
            Some(answer) => answer.may,
            // SAFETY: a catalog look-up by role oid.
            None => unsafe { pg_sys::superuser_arg(caller) },
        })
    }

    /// Refuses a change that is over, with what can still be done.
    pub fn check_open(&self) -> Result<(), Failure> {
        if self.state.is_open() {
            return Ok(());
        }
        Err(self.not_now(&format!("it is {}", self.state)))
    }

    /// "change 7 of table public.orders …": the failure for a call at the wrong time, with the call that its state is waiting for.
    pub fn not_now(&self, why: &str) -> Failure {
        let table = plain_regclass(&self.name());
        Failure::new(
            code::NOT_IN_STATE,
            format!("change {} of table {} cannot do that: {why}", self.id, self.name().plain()),
        )
        .hint(match self.state {
            State::Created
            | State::Syncing
            | State::Copying
            | State::Indexing
            | State::CatchingUp
            | State::Verifying => {
                format!("Go on with it: call migrator.prepare('{table}'); or give it up: {}", self.call("cancel"))
            }
            State::Ready => {
                format!("Swap it: select * from migrator.swap('{table}'); or give it up: {}", self.call("cancel"))
            }
            State::Swapped => {
                format!("Keep it: {} or take it back: select * from migrator.rollback('{table}');", self.call("finish"))
            }
            State::Finished | State::Cancelled => {
                format!("Begin a new one: select migrator.create_shadow('{table}', 'alter …');")
            }
        })
    }

    /// The hint for one that is blocked, where nobody knows better.
    pub fn mended(&self) -> String {
        format!("When that is mended: {}", self.call("resume"))
    }

    /// Moves to the next state, if that is a legal step, and leaves an event.
    pub fn set_state(&mut self, next: State) -> Result<(), Failure> {
        if !self.state.may_become(next) {
            return Err(self.not_now(&format!("it is {} and cannot become {next}", self.state)));
        }
        spi::execute(
            "update migrator.change set state = $2, state_since = pg_catalog.clock_timestamp(), waiting = null, waiting_since = null where id = $1",
            &[self.id.into(), next.as_str().into()],
        )?;
        self.event("state", &format!("{} -> {next}", self.state), json!({"from": self.state, "to": next}))?;
        // Batches may be committed without waiting for the disk; what others go by may not.
        // SAFETY: sets a flag of this transaction.
        unsafe { pg_sys::ForceSyncCommit() };
        self.state = next;
        Ok(())
    }

    /// Marks the change as blocked: nothing goes on until somebody acts.
    pub fn block(&self, why: &str, hint: &str) -> Result<(), Failure> {
        spi::execute(
            "update migrator.change set blocked = $2, blocked_hint = $3 where id = $1 and blocked is distinct from $2",
            &[self.id.into(), why.into(), hint.into()],
        )?;
        self.event("blocked", why, json!({"hint": hint}))
    }

    /// Leaves a line in the log of the change.
    pub fn event(&self, kind: &str, message: &str, detail: Value) -> Result<(), Failure> {
        spi::execute(
            "insert into migrator.event (change, kind, message, detail) values ($1, $2, $3, $4)",
            &[self.id.into(), kind.into(), message.into(), JsonB(detail).into()],
        )
        .map(|_| ())
    }

    /// Schema that holds the table that is not live.
    pub fn backup_schema(&self) -> String {
        format!("migrator_backup_{}", self.id)
    }

    /// Schema in which the shadow was made and to which a rollback returns it.
    pub fn shadow_schema(&self) -> String {
        format!("migrator_shadow_{}", self.id)
    }

    /// The hint that every message about this table can end with.
    pub fn call(&self, function: &str) -> String {
        format!("select migrator.{function}('{}');", plain_regclass(&self.name()))
    }
}

/// The settings that a plan recorded, as its expressions are evaluated under them.
pub fn settings(plan: &Plan) -> Vec<(String, String)> {
    plan.settings
        .iter()
        .map(|(name, value)| {
            // Our own text names operators and functions without a schema; a path that hides pg_catalog must not change them.
            let value = if name == "search_path" && !value.is_empty() {
                format!("pg_catalog, {value}")
            } else if name == "search_path" {
                "pg_catalog".to_owned()
            } else {
                value.clone()
            };
            (name.clone(), value)
        })
        .collect()
}

/// A name as one would type it inside a regclass literal.
pub fn plain_regclass(name: &Name) -> String {
    format!("{}.{}", plain(name.schema.as_str()), plain(name.name.as_str())).replace('\'', "''")
}
