//! Which way an ALTER TABLE goes: at once, through NOT VALID, through an index built concurrently, or through a shadow.
//!
//! What an action would do is not guessed from its kind: it was run on an empty clone before, and `Seen` says whether
//! PostgreSQL read or rewrote it. Kinds only say which way round a scan there is.

use crate::failure::{Failure, code};
use crate::ident::{Ident, literal, plain};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Up to this size (table, TOAST and indexes) a scan or an index build under a strong lock counts as short:
/// well below a second even on slow storage.
pub const SMALL_BYTES: i64 = 8 << 20;

/// What the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The cheapest way that a CALL can go by itself.
    Auto,
    /// No shadow: refused where that would keep a strong lock for long.
    InPlace,
    /// Like auto, for somebody who can run statements outside a transaction: indexes are built with CONCURRENTLY.
    Concurrently,
    /// A shadow, whatever it is.
    Shadow,
}

impl Strategy {
    /// The strategy that an argument names.
    pub fn parse(text: &str) -> Result<Strategy, Failure> {
        match text {
            "auto" => Ok(Strategy::Auto),
            "in_place" => Ok(Strategy::InPlace),
            "concurrently" => Ok(Strategy::Concurrently),
            "shadow" => Ok(Strategy::Shadow),
            other => Err(Failure::new(
                code::INVALID_PARAMETER,
                format!("strategy is {}, which is none of auto, in_place, concurrently and shadow", literal(other)),
            )
            .hint("auto takes the cheapest safe way; select * from migrator.alter_plan(…) shows it beforehand.")),
        }
    }
}

/// One of the ways. The text form is what users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// ALTER TABLE as it stands.
    InPlace,
    /// A constraint that is added NOT VALID, then validated while everybody reads and writes.
    NotValid,
    /// CREATE INDEX CONCURRENTLY, then a constraint on it.
    Concurrently,
    /// A second table that takes the first one's place.
    Shadow,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::InPlace => "in_place",
            Way::NotValid => "not_valid",
            Way::Concurrently => "concurrently",
            Way::Shadow => "shadow",
        })
    }
}

/// What an action is, as far as that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// ADD COLUMN
    AddColumn(String),
    /// ALTER COLUMN … TYPE
    Type(String),
    /// DROP COLUMN
    DropColumn(String),
    /// ALTER COLUMN … SET NOT NULL
    SetNotNull(String),
    /// ADD CHECK, and, from 18, ADD NOT NULL: a constraint that can be NOT VALID.
    AddCondition {
        /// Its name, where one was given.
        name: Option<String>,
        /// The user wrote NOT VALID.
        not_valid: bool,
    },
    /// ADD FOREIGN KEY
    AddForeignKey(ForeignKey),
    /// ADD UNIQUE, ADD PRIMARY KEY, ADD EXCLUDE
    AddIndexed(Indexed),
    /// VALIDATE CONSTRAINT
    Validate(String),
    /// DROP CONSTRAINT, RENAME CONSTRAINT
    Constraint(String),
    /// Whatever else can be tried on a clone.
    Other,
    /// Catalogue work on what a clone does not have: triggers, rules, inheritance, the table's name.
    Catalog,
}

/// A foreign key as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its name, where one was given.
    pub name: Option<String>,
    /// Referencing columns.
    pub columns: Vec<String>,
    /// The referenced table, as SQL.
    pub referenced: String,
    /// Referenced columns; empty for the primary key.
    pub referenced_columns: Vec<String>,
    /// pg_constraint's confmatchtype, confupdtype, confdeltype.
    pub codes: String,
    /// The user wrote NOT VALID.
    pub not_valid: bool,
}

/// A constraint that stands on an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    /// PRIMARY KEY
    pub primary: bool,
    /// EXCLUDE: its index cannot be built concurrently.
    pub exclude: bool,
    /// USING INDEX
    pub using: Option<String>,
}

/// What happened to the clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The table was read from end to end.
    pub scans: bool,
    /// The table got a new file.
    pub rewrites: bool,
    /// Indexes that got a new file, by name.
    pub rebuilds: Vec<String>,
}

impl Seen {
    /// Whether it was catalogue work only.
    pub fn is_clean(&self) -> bool {
        !self.scans && !self.rewrites && self.rebuilds.is_empty()
    }
    /// What an ALTER TABLE in place would do to the table, for messages.
    pub fn what(&self) -> String {
        if self.rewrites {
            "rewrites the whole table".to_owned()
        } else if self.rebuilds.is_empty() {
            "reads the whole table".to_owned()
        } else {
            format!("builds index {} anew", self.rebuilds.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", "))
        }
    }
}

/// How one action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// In the first transaction, as the user wrote it; why that is short.
    AtOnce(String),
    /// NOT VALID in the first transaction, validated afterwards.
    NotValid,
    /// SET NOT NULL on the strength of a validated CHECK.
    NotNull,
    /// PRIMARY KEY USING INDEX, its columns made NOT NULL in the same way before.
    KeyFromIndex,
    /// Its index has to be built outside a transaction.
    Concurrently,
    /// Not in place; why.
    Shadow(String),
}

/// Chooses for one action. `bytes` is the size of the table with its indexes.
pub fn choose(kind: &Kind, seen: &Seen, bytes: i64, strategy: Strategy) -> Choice {
    let small = bytes <= SMALL_BYTES;
    match kind {
        Kind::AddForeignKey(key) if !key.not_valid => return Choice::NotValid,
        _ if seen.is_clean() => return Choice::AtOnce("catalogue work only".to_owned()),
        Kind::AddCondition { .. } => return Choice::NotValid,
        Kind::SetNotNull(_) => return Choice::NotNull,
        Kind::AddIndexed(indexed) if indexed.using.is_some() => return Choice::KeyFromIndex,
        Kind::AddIndexed(indexed) if strategy == Strategy::Concurrently && !indexed.exclude => {
            return Choice::Concurrently;
        }
        _ => {}
    }
    let why = format!("ALTER TABLE {} under a lock that stops everybody", seen.what());
    // A rewrite is more than a lock: transactions with an older snapshot would find the table empty afterwards.
    if small && (!seen.rewrites || strategy == Strategy::InPlace) {
        return Choice::AtOnce(format!("it {}, which is short at {}", seen.what(), size(bytes)));
    }
    Choice::Shadow(why)
}

/// The failure for a strategy that forbids the shadow which is needed.
pub fn refuse(table: &str, why: &str, bytes: i64, call: &str) -> Failure {
    Failure::new(code::NOT_SUPPORTED, format!("table {table} cannot be changed so in place: {why}"))
        .detail(format!("The table has {} with its indexes; with up to {} the strategy in_place would do it all the same. Nothing was changed.", size(bytes), size(SMALL_BYTES)))
        .hint(format!("Let a shadow take its place: {call}"))
}

/// Bytes for people.
pub fn size(bytes: i64) -> String {
    match bytes {
        ..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} kB", bytes >> 10),
        _ => format!("{} MB", bytes >> 20),
    }
}

/// Longest name that PostgreSQL keeps, in bytes.
const NAME_BYTES: usize = 63;

/// The CHECK that stands in for NOT NULL until that is set. Its name is the same in every run, so that a second one finds it.
pub fn stand_in(column: &str) -> Ident {
    fitting("migrator_not_null_", column, "")
}

/// The name that PostgreSQL would give a foreign key, with a number behind it from the second try on.
pub fn foreign_key_name(table: &str, columns: &[String], attempt: u32) -> Ident {
    let number = if attempt == 0 { String::new() } else { attempt.to_string() };
    fitting("", &format!("{table}_{}", columns.join("_")), &format!("_fkey{number}"))
}

/// A name of at most 63 bytes; where the middle has to be cut, a checksum keeps names apart.
fn fitting(head: &str, middle: &str, tail: &str) -> Ident {
    let room = NAME_BYTES - head.len() - tail.len();
    if middle.len() <= room {
        return Ident::new(format!("{head}{middle}{tail}"));
    }
    // FNV-1a: short, and the same in every version.
    let sum = middle.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut end = room - 9;
    while !middle.is_char_boundary(end) {
        end -= 1;
    }
    Ident::new(format!("{head}{}_{sum:08x}{tail}", &middle[..end]))
}

/// In which order PostgreSQL works through the actions of one statement, as far as one can depend on another.
pub fn rank(kind: &Kind) -> u8 {
    match kind {
        Kind::DropColumn(_) | Kind::Constraint(_) => 0,
        Kind::Type(_) => 1,
        Kind::AddColumn(_) => 2,
        Kind::Other | Kind::Catalog => 3,
        Kind::SetNotNull(_) => 4,
        Kind::AddCondition { .. } | Kind::AddForeignKey(_) | Kind::AddIndexed(_) | Kind::Validate(_) => 5,
    }
}

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// All its statements in one short transaction under a strong lock.
    Now,
    /// One VALIDATE CONSTRAINT, beside readers and writers.
    Validate,
    /// Nothing: a statement for somebody else to run outside a transaction.
    Outside,
    /// A whole change through a shadow.
    Shadow,
}

/// One step of a plan; each is a transaction of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which way it belongs to.
    pub way: Way,
    /// What it does.
    pub act: Act,
    /// Now, Validate: what follows the table's name in ALTER TABLE, one entry a statement. Outside: whole statements.
    /// Shadow: the actions.
    pub texts: Vec<String>,
    /// The strongest lock that it takes.
    pub lock: String,
    /// How long it is kept.
    pub held: String,
    /// Why this way.
    pub reason: String,
    /// Other tables that are locked, and whether against everybody.
    #[serde(default)]
    pub others: Vec<(u32, bool)>,
    /// The change that an earlier call began.
    #[serde(default)]
    pub change: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIG: i64 = SMALL_BYTES + 1;

    fn scans() -> Seen {
        Seen { scans: true, ..Seen::default() }
    }

    fn rewrites() -> Seen {
        Seen { scans: true, rewrites: true, rebuilds: vec!["k".into()] }
    }

    fn unique(using: Option<&str>) -> Kind {
        Kind::AddIndexed(Indexed { primary: false, exclude: false, using: using.map(Into::into) })
    }

    #[test]
    fn what_touches_no_row_is_done_at_once_whatever_the_size() {
        for kind in [Kind::Other, Kind::AddColumn("x".into()), Kind::SetNotNull("x".into()), unique(Some("i"))] {
            assert!(matches!(choose(&kind, &Seen::default(), i64::MAX, Strategy::Auto), Choice::AtOnce(_)), "{kind:?}");
        }
    }

    #[test]
    fn a_scan_that_can_be_had_without_a_strong_lock_never_takes_one() {
        let check = Kind::AddCondition { name: None, not_valid: false };
        for bytes in [0, BIG] {
            assert_eq!(choose(&check, &scans(), bytes, Strategy::Auto), Choice::NotValid);
            assert_eq!(choose(&Kind::SetNotNull("x".into()), &scans(), bytes, Strategy::InPlace), Choice::NotNull);
            assert_eq!(choose(&unique(Some("i")), &scans(), bytes, Strategy::Auto), Choice::KeyFromIndex);
        }
    }

    #[test]
    fn an_index_is_built_at_once_only_on_a_small_table() {
        assert!(matches!(choose(&unique(None), &scans(), 4096, Strategy::Auto), Choice::AtOnce(_)));
        assert!(matches!(choose(&unique(None), &scans(), BIG, Strategy::Auto), Choice::Shadow(_)));
        assert_eq!(choose(&unique(None), &scans(), BIG, Strategy::Concurrently), Choice::Concurrently);
        let exclude = Kind::AddIndexed(Indexed { primary: false, exclude: true, using: None });
        assert!(matches!(choose(&exclude, &scans(), BIG, Strategy::Concurrently), Choice::Shadow(_)));
    }

    #[test]
    fn auto_never_rewrites_because_older_snapshots_would_see_nothing() {
        let kind = Kind::Type("id".into());
        assert!(matches!(choose(&kind, &rewrites(), 4096, Strategy::Auto), Choice::Shadow(_)));
        assert!(matches!(choose(&kind, &rewrites(), 4096, Strategy::InPlace), Choice::AtOnce(_)));
        assert!(matches!(choose(&kind, &rewrites(), BIG, Strategy::InPlace), Choice::Shadow(_)));
    }

    #[test]
    fn names_fit_and_stay_apart() {
        let long = "ä".repeat(31);
        let (one, two) = (stand_in(&format!("{long}1")), stand_in(&format!("{long}2")));
        assert!(one != two && one.as_str().len() <= 63 && two.as_str().len() <= 63);
        assert_eq!(stand_in("note").as_str(), "migrator_not_null_note");
        assert_eq!(foreign_key_name("orders", &["customer".into()], 0).as_str(), "orders_customer_fkey");
        assert_eq!(foreign_key_name("orders", &["customer".into()], 2).as_str(), "orders_customer_fkey2");
    }

    #[test]
    fn strategies_are_words() {
        assert_eq!(Strategy::parse("in_place"), Ok(Strategy::InPlace));
        assert_eq!(Strategy::parse("fast").unwrap_err().code, "22023");
    }
}
