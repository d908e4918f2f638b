//! The calls. Each is one statement and so one transaction. Rows come back as JSON documents, so that a column that a
//! later version adds is no error. Every session's search_path is pg_catalog, but for what a person typed.

use super::change::{Advance, Change, Event, Finding, PlanStep, Turned, Verified};
use super::version;
use crate::db::session::Parameter;
use crate::db::{Answer, Canceller, Limits, Session, Target, Trouble};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::types::Type;

/// An open connection to a database whose extension fits this program.
pub struct Store {
    pub(super) session: Session,
}

/// A change that somebody wants.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The table, as typed.
    pub table: &'a str,
    /// ALTER TABLE actions.
    pub actions: Option<&'a str>,
    /// New column → expression over the old row.
    pub transform: &'a Value,
    /// Old column → expression over the new row.
    pub reverse: &'a Value,
    /// A table that the user made.
    pub shadow: Option<&'a str>,
}

/// Rows of a function as JSON documents.
fn document(call: &str) -> String {
    format!("select to_jsonb(r)::text from {call} r")
}

/// Status rows, with what this program computes from them.
fn changes_of(view: &str) -> String {
    format!(
        "select (to_jsonb(s) || jsonb_build_object('eta_seconds', extract(epoch from s.eta), \
         'relation_oid', to_regclass(s.relation)::oid::int8))::text from migrator.{view} s"
    )
}

impl Store {
    /// Connects as `migrator:NAME` and makes sure that program and extension fit.
    pub async fn open(target: &Target, name: &str, limits: Limits) -> Result<Store, super::Unfit> {
        let session = Session::open(target, name, limits).await?;
        version::check(&session).await?;
        Ok(Store { session })
    }

    /// Says what the connection does from now on.
    pub async fn rename(&mut self, name: &str) -> Result<(), Trouble> {
        self.session.rename(name).await
    }

    /// Whether commits return before they are on disk from now on; else the server's own setting holds.
    pub async fn relax(&mut self, relaxed: bool) -> Result<(), Trouble> {
        self.session.relax(relaxed).await
    }

    /// For ending what the connection is doing.
    pub fn canceller(&self) -> Canceller {
        self.session.canceller()
    }

    /// Runs a statement that `advance` handed out; outside a transaction.
    pub async fn run(&self, statement: &str) -> Result<(), Trouble> {
        self.session.run(statement).await
    }

    /// Every open change; with `over` those that are finished or cancelled as well. Oldest first.
    pub async fn changes(&self, over: bool) -> Result<Vec<Change>, Trouble> {
        let view = if over { "history" } else { "status" };
        self.session.rows(&format!("{} order by s.change", changes_of(view)), &[]).await
    }

    /// Open changes that were swapped before a time, as the server reads it.
    pub async fn swapped_before(&self, time: &str) -> Result<Vec<Change>, Trouble> {
        let rest = "where s.phase = 'swapped' and s.swapped_at < $1::timestamptz order by s.change";
        self.session.rows(&format!("{} {rest}", changes_of("status")), &[(&time, Type::TEXT)]).await
    }

    /// The oid of a table as a person writes its name.
    pub async fn table(&self, name: &str) -> Result<i64, Trouble> {
        let sql = "select pg_catalog.to_jsonb($1::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8)\
                   ::pg_catalog.text";
        match self.as_typed(sql, &[(&name, Type::TEXT)]).await {
            Ok(mut oids) => oids.pop().ok_or_else(|| Trouble::Unexpected("no oid".to_owned())),
            Err(Trouble::Answered(answer)) => Err(Trouble::Answered(Box::new(self.explained(name, *answer).await))),
            Err(trouble) => Err(trouble),
        }
    }

    /// PostgreSQL says of a name that it does not know just that; this adds where it was looked for and what there is instead.
    async fn explained(&self, name: &str, answer: Answer) -> Answer {
        #[derive(Deserialize)]
        struct Around {
            database: String,
            path: String,
            alike: Option<String>,
        }
        // undefined_table, invalid_schema_name, invalid_name: all else has reasons that are none of the name's.
        if !matches!(answer.sqlstate.as_str(), "42P01" | "3F000" | "42602") {
            return answer;
        }
        // The last part of the name, without quotes: whoever forgot them wrote the rest right.
        let last = name.rsplit('.').next().unwrap_or(name).trim().trim_matches('"');
        let sql = "select pg_catalog.jsonb_build_object('database', pg_catalog.current_database(), \
                   'path', pg_catalog.current_setting('search_path'), \
                   'alike', (select pg_catalog.string_agg(a.name, ', ') from ( \
                       select pg_catalog.format('%I.%I', n.nspname, c.relname) as name from pg_catalog.pg_class c \
                       join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace \
                       where c.relkind operator(pg_catalog.=) any (array['r', 'p']::pg_catalog.\"char\"[]) \
                       and pg_catalog.lower(c.relname::pg_catalog.text) operator(pg_catalog.=) pg_catalog.lower($1) \
                       and n.nspname operator(pg_catalog.!~) '^(pg_|migrator|information_schema)' \
                       order by 1 limit 5) a))::pg_catalog.text";
        let around: Result<Vec<Around>, Trouble> = self.as_typed(sql, &[(&last, Type::TEXT)]).await;
        let Some(around) = around.ok().and_then(|mut rows| rows.pop()) else { return answer };
        let hint = match around.alike {
            Some(alike) => format!("There is: {alike}. Write the name like that, between the shell's quotes."),
            None => {
                "Write it as in SQL: with its schema, and in double quotes where it has capitals or blanks.".to_owned()
            }
        };
        let place = format!("It was looked for in database {}, search_path {}.", around.database, around.path);
        Answer { detail: answer.detail.or(Some(place)), hint: answer.hint.or(Some(hint)), ..answer }
    }

    /// One bounded step.
    pub async fn advance(&self, change: i64) -> Result<Advance, Trouble> {
        self.session.row(&document("migrator.advance($1)"), &[(&change, Type::INT8)]).await
    }

    /// Begins a change; its number.
    pub async fn create_shadow(&self, wish: &Wish<'_>, on_ready: &str) -> Result<i64, Trouble> {
        let sql = "select pg_catalog.to_jsonb(migrator.create_shadow($1::pg_catalog.regclass, $2, \
                   $3::pg_catalog.jsonb, $4::pg_catalog.jsonb, $5::pg_catalog.regclass, $6))::pg_catalog.text";
        let (transform, reverse) = (wish.transform.to_string(), wish.reverse.to_string());
        let with: [Parameter<'_>; 6] = [
            (&wish.table, Type::TEXT),
            (&wish.actions, Type::TEXT),
            (&transform, Type::TEXT),
            (&reverse, Type::TEXT),
            (&wish.shadow, Type::TEXT),
            (&on_ready, Type::TEXT),
        ];
        self.as_typed(sql, &with).await?.pop().ok_or_else(|| Trouble::Unexpected("no change".to_owned()))
    }

    /// What a change through a shadow would do. What is made to find out is undone again.
    pub async fn explain(&self, wish: &Wish<'_>) -> Result<Vec<PlanStep>, Trouble> {
        let sql = "select pg_catalog.to_jsonb(r)::pg_catalog.text from migrator.explain($1::pg_catalog.regclass, $2, \
                   $3::pg_catalog.jsonb, $4::pg_catalog.jsonb, $5::pg_catalog.regclass) r order by r.ordinal";
        let (transform, reverse) = (wish.transform.to_string(), wish.reverse.to_string());
        let with: [Parameter<'_>; 5] = [
            (&wish.table, Type::TEXT),
            (&wish.actions, Type::TEXT),
            (&transform, Type::TEXT),
            (&reverse, Type::TEXT),
            (&wish.shadow, Type::TEXT),
        ];
        self.as_typed(sql, &with).await
    }

    /// What a change without a shadow would do, in the same form; refused where it cannot be. Likewise undone.
    pub async fn explain_in_place(&self, wish: &Wish<'_>) -> Result<Vec<PlanStep>, Trouble> {
        let sql = "select pg_catalog.jsonb_build_object('ordinal', p.ordinal, 'step', p.way, 'statement', p.statement, \
                   'lock', p.lock, 'held', p.held, 'note', p.reason)::pg_catalog.text \
                   from migrator.alter_plan($1::pg_catalog.regclass, $2, 'in_place', $3::pg_catalog.jsonb, \
                   $4::pg_catalog.jsonb) p order by p.ordinal";
        let (transform, reverse) = (wish.transform.to_string(), wish.reverse.to_string());
        let with: [Parameter<'_>; 4] =
            [(&wish.table, Type::TEXT), (&wish.actions, Type::TEXT), (&transform, Type::TEXT), (&reverse, Type::TEXT)];
        self.as_typed(sql, &with).await
    }

    /// Whether the server would choose a shadow. What is made to find out is undone again.
    pub async fn takes_shadow(&self, wish: &Wish<'_>) -> Result<bool, Trouble> {
        let sql = "select pg_catalog.to_jsonb(coalesce(pg_catalog.bool_or(p.way operator(pg_catalog.=) 'shadow'), false))::pg_catalog.text \
                   from migrator.alter_plan($1::pg_catalog.regclass, $2, 'auto', $3::pg_catalog.jsonb, $4::pg_catalog.jsonb) p";
        let (transform, reverse) = (wish.transform.to_string(), wish.reverse.to_string());
        let with: [Parameter<'_>; 4] =
            [(&wish.table, Type::TEXT), (&wish.actions, Type::TEXT), (&transform, Type::TEXT), (&reverse, Type::TEXT)];
        Ok(self.as_typed(sql, &with).await?.pop().unwrap_or(true))
    }

    /// A change without a shadow, where the server can do it so; refused otherwise.
    pub async fn alter_in_place(&self, wish: &Wish<'_>) -> Result<(), Trouble> {
        let sql = "call migrator.alter_table($1::pg_catalog.regclass, $2, 'in_place', $3::pg_catalog.jsonb, \
                   $4::pg_catalog.jsonb)";
        let (transform, reverse) = (wish.transform.to_string(), wish.reverse.to_string());
        let with: [Parameter<'_>; 4] =
            [(&wish.table, Type::TEXT), (&wish.actions, Type::TEXT), (&transform, Type::TEXT), (&reverse, Type::TEXT)];
        self.session.use_own_search_path().await?;
        let called = self.session.call(sql, &with).await;
        self.session.pin_search_path().await?;
        called
    }

    /// Swaps one change, or every one that is ready.
    pub async fn swap(&self, change: Option<i64>, dry_run: bool) -> Result<Vec<Turned>, Trouble> {
        self.turn("migrator.swap(change => $1, dry_run => $2)", change, dry_run).await
    }

    /// Takes a swapped change back.
    pub async fn rollback(&self, change: i64, dry_run: bool) -> Result<Vec<Turned>, Trouble> {
        self.turn("migrator.rollback(change => $1, dry_run => $2)", Some(change), dry_run).await
    }

    async fn turn(&self, call: &str, change: Option<i64>, dry_run: bool) -> Result<Vec<Turned>, Trouble> {
        self.session.rows(&document(call), &[(&change, Type::INT8), (&dry_run, Type::BOOL)]).await
    }

    /// Compares both tables.
    pub async fn verify(&self, change: i64) -> Result<Verified, Trouble> {
        self.session.row(&document("migrator.verify(change => $1)"), &[(&change, Type::INT8)]).await
    }

    /// Calls `pause`, `resume`, `finish` or `cancel`; the change's new state.
    pub async fn order(&self, order: Order, change: i64) -> Result<String, Trouble> {
        let sql = format!("select to_jsonb(migrator.{}(change => $1))::text", order.as_str());
        self.session.row(&sql, &[(&change, Type::INT8)]).await
    }

    /// Whether `finish` or `cancel` would work now, without doing it: refused as the call itself would be.
    pub async fn foresee(&self, order: Order, change: i64) -> Result<String, Trouble> {
        let sql = format!("select to_jsonb(migrator.{}(change => $1, dry_run => true))::text", order.as_str());
        self.session.row(&sql, &[(&change, Type::INT8)]).await
    }

    /// What happened to a change after the event of this number.
    pub async fn log(&self, change: i64, after: i64) -> Result<Vec<Event>, Trouble> {
        let sql = "select to_jsonb(e)::text from migrator.log(change => $1) e where e.id > $2 order by e.id";
        self.session.rows(sql, &[(&change, Type::INT8), (&after, Type::INT8)]).await
    }

    /// Writes an event of this program's into a change's log.
    pub async fn note(&self, change: i64, kind: &str, message: &str, detail: &Value) -> Result<(), Trouble> {
        let sql = "select migrator.note_event($1, $2, $3, $4::jsonb)";
        let detail = detail.to_string();
        let with: [Parameter<'_>; 4] =
            [(&change, Type::INT8), (&kind, Type::TEXT), (&message, Type::TEXT), (&detail, Type::TEXT)];
        self.session.call(sql, &with).await
    }

    /// Says what a check by HTTP answered: what is not well, or nothing.
    pub async fn report_check(&self, address: &str, said: Option<&str>) -> Result<(), Trouble> {
        let with: [Parameter<'_>; 2] = [(&address, Type::TEXT), (&said, Type::TEXT)];
        self.session.call("select migrator.report_check($1, $2)", &with).await
    }

    /// What is wrong with this server.
    pub async fn doctor(&self) -> Result<Vec<Finding>, Trouble> {
        self.session.rows(&document("migrator.doctor()"), &[]).await
    }

    /// A query that reads names with the user's own search_path; all else in it is qualified.
    async fn as_typed<T: DeserializeOwned>(&self, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<T>, Trouble> {
        self.session.use_own_search_path().await?;
        let rows = self.session.rows(sql, with).await;
        if !matches!(rows, Err(Trouble::Lost(_))) {
            self.session.pin_search_path().await?;
        }
        rows
    }
}

/// A call that changes a change's state and returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Let it rest; its capture goes on.
    Pause,
    /// Go on.
    Resume,
    /// Drop the backup; there is no way back afterwards.
    Finish,
    /// Drop the shadow.
    Cancel,
}

impl Order {
    /// The function's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Order::Pause => "pause",
            Order::Resume => "resume",
            Order::Finish => "finish",
            Order::Cancel => "cancel",
        }
    }
}
