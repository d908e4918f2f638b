//! What a swap does with each thing that hangs on a table: carries it over, leaves it, or refuses.
//!
//! A swap gives the table's name to another table with another oid. Whatever PostgreSQL stores by oid and
//! nobody moves would silently keep pointing at the old table, so a dependency that is not known here is
//! refused as well.

use serde::Deserialize;
use std::fmt;

/// The part of the table on which something depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// The table itself or one of its columns.
    Table,
    /// Its row type, or the array type over that.
    RowType,
    /// One of its indexes.
    Index,
    /// One of its constraints.
    Constraint,
    /// A sequence that belongs to one of its columns and stays the same object (`serial`).
    Serial,
    /// A sequence behind an identity column: the other table has one of its own.
    Identity,
    /// Any other part: default, trigger, policy, rule, statistics object, TOAST table.
    Part,
}

/// One dependency, as pg_depend or pg_shdepend has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Dependency {
    /// The catalog of the dependent object: `pg_class`, …
    pub catalog: String,
    /// What it is within its catalog: relkind of pg_class, contype of pg_constraint; for pg_rewrite `view` (what
    /// makes a view a view), `view rule` (another rule on a view), `materialized view`, `temporary view` or `rule`; otherwise empty.
    pub kind: String,
    /// deptype
    pub deptype: char,
    /// Which part of the table it depends on.
    pub on: On,
    /// Whether it is itself a part of the table.
    pub own: bool,
}

/// What happens to a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It ends on the table that takes the place.
    Carried,
    /// It needs nothing.
    Harmless,
    /// The change cannot begin.
    Refused(Reason),
}

/// Why a dependency cannot be carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its rows were computed from the table's oid, and only REFRESH could follow.
    MaterializedView,
    /// A temporary view: of a session, perhaps another one's.
    TemporaryView,
    /// A rule on the table itself.
    Rule,
    /// A rule on another table.
    RuleElsewhere,
    /// A function, procedure or aggregate with the row type in its signature, or with a BEGIN ATOMIC body.
    Function,
    /// A policy of another table.
    PolicyElsewhere,
    /// A constraint trigger of another table that names this one.
    TriggerElsewhere,
    /// A column, domain, cast or the like of the row type.
    RowType,
    /// A default or generated column of another table that uses the identity column's sequence.
    IdentityShared,
    /// A check of something else.
    ConstraintElsewhere,
    /// A parent, child or partition.
    Inheritance,
    /// A publication.
    Publication,
    /// An extension.
    Extension,
    /// Nobody thought of it.
    Unknown,
}

impl Reason {
    /// Why, as the end of a message of the form "*object* …".
    pub fn why(self) -> &'static str {
        match self {
            Reason::MaterializedView => "is computed from the table by its identity",
            Reason::TemporaryView => "is a temporary view over the table",
            Reason::Rule => "is a rule on the table",
            Reason::RuleElsewhere => "is a rule that names the table by its identity",
            Reason::Function => "uses the table, or its row type, by its identity",
            Reason::PolicyElsewhere => "is a policy that names the table by its identity",
            Reason::TriggerElsewhere => "is a trigger that names the table by its identity",
            Reason::RowType => "uses the table's row type",
            Reason::IdentityShared => "uses the sequence of the table's identity column",
            Reason::ConstraintElsewhere => "is a constraint that names the table by its identity",
            Reason::Inheritance => "belongs to the same inheritance or partition tree",
            Reason::Publication => "publishes the table by its identity",
            Reason::Extension => "owns the table",
            Reason::Unknown => "depends on the table in a way that is not known to migrator",
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Reason::MaterializedView => {
                "Drop the materialized view and create it again after the swap, or let it read from a plain view over the table, which is carried over."
            }
            Reason::TemporaryView => "Wait until its session has ended, or drop it there.",
            Reason::Rule => "Drop the rule, or turn it into a trigger; triggers are carried over.",
            Reason::RuleElsewhere => {
                "Drop the rule, or turn it into a trigger, whose function finds the table by its name."
            }
            Reason::Function => {
                "Drop the function and create it again after the swap; a function whose body is a string and whose arguments are not the row type is no dependant."
            }
            Reason::PolicyElsewhere => {
                "Let the policy ask a plain view over the table, or a function with a string body, then begin again."
            }
            Reason::TriggerElsewhere => "Drop the trigger and create it without FROM, then begin again.",
            Reason::RowType => "Give it a type of its own (create type … as), then begin again.",
            Reason::IdentityShared => "Give it a sequence of its own, then begin again.",
            Reason::ConstraintElsewhere => "Drop the constraint, then begin again.",
            Reason::Inheritance => {
                "Inheritance and partition trees cannot be changed this way; detach the table first."
            }
            Reason::Publication => {
                "Take the table out of the publication (alter publication … drop table …), and add it again after finish."
            }
            Reason::Extension => {
                "Change the table through a new version of the extension, or take it out: alter extension … drop table …"
            }
            Reason::Unknown => "Drop it and create it again after finish, and please report it.",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

/// What a swap does with a dependency on the table.
pub fn judge(dependency: &Dependency) -> Verdict {
    use Verdict::{Carried, Harmless, Refused};
    let Dependency { catalog, kind, deptype, on, own } = dependency;
    let on = *on;
    match (catalog.as_str(), kind.as_str(), *deptype, *own) {
        // Parts of the table: the other table has its own, or gets it in the swap.
        ("pg_class", "r" | "i" | "I" | "t", 'a' | 'i' | 'n', true) => Carried,
        ("pg_class", "S", 'a' | 'i', true) => Carried,
        ("pg_type", _, 'i', true) => Carried,
        ("pg_attrdef", _, 'a' | 'i' | 'n', true) => match on {
            On::RowType => Refused(Reason::RowType),
            _ => Carried,
        },
        ("pg_constraint", "c" | "f" | "p" | "u" | "x" | "t" | "n", 'a' | 'i' | 'n', true) => match on {
            On::RowType => Refused(Reason::RowType),
            _ => Carried,
        },
        ("pg_trigger", _, 'a' | 'i' | 'n', true) => Carried,
        ("pg_policy", _, 'a' | 'n', true) => Carried,
        ("pg_statistic_ext", _, 'a' | 'n', true) => Carried,
        ("pg_rewrite", _, 'a' | 'i' | 'n', true) => Refused(Reason::Rule),

        // Foreign keys that point here, and the triggers that serve foreign keys.
        ("pg_constraint", "f", 'n', false) if matches!(on, On::Table | On::Index | On::Constraint) => Carried,
        ("pg_trigger", _, 'i', false) if on == On::Constraint => Carried,

        // Views keep their oid and get their text again.
        ("pg_rewrite", "view" | "view rule", 'n', false) => match on {
            On::Table | On::RowType | On::Constraint | On::Index => Carried,
            On::Serial => Harmless,
            On::Identity => Refused(Reason::IdentityShared),
            On::Part => Refused(Reason::Unknown),
        },

        // A serial column's sequence stays what it is; whoever else uses it will not notice.
        (_, _, 'n', false) if on == On::Serial => Harmless,
        (_, _, 'n', false) if on == On::Identity => Refused(Reason::IdentityShared),

        ("pg_rewrite", "materialized view", 'n', false) => Refused(Reason::MaterializedView),
        ("pg_rewrite", "temporary view", 'n', false) => Refused(Reason::TemporaryView),
        ("pg_rewrite", _, 'n', false) => Refused(Reason::RuleElsewhere),
        ("pg_proc", _, 'n', false) => Refused(Reason::Function),
        ("pg_policy", _, 'n', false) => Refused(Reason::PolicyElsewhere),
        ("pg_trigger", _, 'a' | 'n', false) => Refused(Reason::TriggerElsewhere),
        ("pg_constraint", _, 'n', false) => Refused(Reason::ConstraintElsewhere),
        ("pg_publication_rel", _, 'a' | 'n', _) => Refused(Reason::Publication),
        ("pg_class", _, 'a' | 'i' | 'n' | 'P' | 'S', _) if on != On::RowType => Refused(Reason::Inheritance),
        (
            "pg_class" | "pg_type" | "pg_cast" | "pg_attrdef" | "pg_operator" | "pg_opclass" | "pg_range",
            _,
            'a' | 'i' | 'n',
            _,
        ) if on == On::RowType => Refused(Reason::RowType),
        _ => Refused(Reason::Unknown),
    }
}

/// What a swap does with an entry of pg_shdepend about the table or a part of it: owner, privileges, the roles
/// of policies and the tablespace are carried over.
pub fn judge_shared(catalog: &str, deptype: char) -> Verdict {
    match (catalog, deptype) {
        ("pg_class", 'o' | 'a' | 't') | ("pg_policy", 'r' | 'o') | ("pg_statistic_ext", 'o') => Verdict::Carried,
        // Privileges on the row type itself are looked at where they are stored.
        ("pg_type", 'o' | 'a') => Verdict::Harmless,
        ("pg_class", 'i') => Verdict::Refused(Reason::Extension),
        _ => Verdict::Refused(Reason::Unknown),
    }
}

/// What the table or a part of it depends on. Almost all of that is the business of the copy of the table;
/// here is what would tie this one table by its identity.
pub fn judge_upward(catalog: &str, deptype: char, on_catalog: &str) -> Verdict {
    match (catalog, deptype, on_catalog) {
        // DEPENDS ON EXTENSION of a trigger, index or the like
        ("pg_trigger" | "pg_class", 'x', "pg_extension") => Verdict::Carried,
        (_, 'e', "pg_extension") => Verdict::Refused(Reason::Extension),
        (_, 'P' | 'S', _) => Verdict::Refused(Reason::Inheritance),
        (_, 'a' | 'i' | 'n', _) => Verdict::Harmless,
        _ => Verdict::Refused(Reason::Unknown),
    }
}

/// What the dropping and re-creating of a view (because the types of its columns change) does with a dependency
/// on that view. Only other views, which are dropped and created with it, can follow.
pub fn judge_on_view(catalog: &str, kind: &str, deptype: char, own: bool) -> Verdict {
    match (catalog, kind, deptype, own) {
        ("pg_rewrite", "view", 'n', false) => Verdict::Carried,
        ("pg_rewrite", "view", 'i' | 'n', true) => Verdict::Carried,
        ("pg_type", _, 'i', true) => Verdict::Carried,
        ("pg_attrdef", _, 'a' | 'i', true) => Verdict::Carried,
        ("pg_rewrite", "materialized view", ..) => Verdict::Refused(Reason::MaterializedView),
        ("pg_rewrite", ..) => Verdict::Refused(if own { Reason::Rule } else { Reason::RuleElsewhere }),
        ("pg_proc", ..) => Verdict::Refused(Reason::Function),
        ("pg_policy", ..) => Verdict::Refused(Reason::PolicyElsewhere),
        _ => Verdict::Refused(Reason::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(catalog: &str, kind: &str, deptype: char, on: On, own: bool) -> Verdict {
        judge(&Dependency { catalog: catalog.into(), kind: kind.into(), deptype, on, own })
    }

    #[test]
    fn a_tables_own_parts_are_carried() {
        for (catalog, kind, deptype, on) in [
            ("pg_class", "i", 'a', On::Table),
            ("pg_class", "i", 'i', On::Constraint),
            ("pg_class", "t", 'i', On::Table),
            ("pg_class", "S", 'a', On::Table),
            ("pg_class", "S", 'i', On::Table),
            ("pg_class", "r", 'a', On::Table),
            ("pg_type", "c", 'i', On::Table),
            ("pg_type", "b", 'i', On::RowType),
            ("pg_attrdef", "", 'a', On::Table),
            ("pg_attrdef", "", 'n', On::Serial),
            ("pg_constraint", "f", 'a', On::Table),
            ("pg_constraint", "n", 'a', On::Table),
            ("pg_trigger", "", 'a', On::Table),
            ("pg_policy", "", 'n', On::Table),
            ("pg_statistic_ext", "", 'a', On::Table),
        ] {
            assert_eq!(
                verdict(catalog, kind, deptype, on, true),
                Verdict::Carried,
                "{catalog} {kind} {deptype} on {on:?}"
            );
        }
    }

    #[test]
    fn foreign_keys_and_views_follow() {
        assert_eq!(verdict("pg_constraint", "f", 'n', On::Index, false), Verdict::Carried);
        assert_eq!(verdict("pg_trigger", "", 'i', On::Constraint, false), Verdict::Carried);
        assert_eq!(verdict("pg_rewrite", "view", 'n', On::Table, false), Verdict::Carried);
        assert_eq!(verdict("pg_rewrite", "view", 'n', On::Constraint, false), Verdict::Carried);
    }

    #[test]
    fn a_serials_sequence_may_be_shared_and_an_identitys_may_not() {
        assert_eq!(verdict("pg_attrdef", "", 'n', On::Serial, false), Verdict::Harmless);
        assert_eq!(verdict("pg_attrdef", "", 'n', On::Identity, false), Verdict::Refused(Reason::IdentityShared));
    }

    #[test]
    fn what_is_bound_to_the_oid_elsewhere_is_refused_by_kind() {
        for (catalog, kind, deptype, on, reason) in [
            ("pg_rewrite", "materialized view", 'n', On::Table, Reason::MaterializedView),
            ("pg_rewrite", "rule", 'n', On::Table, Reason::RuleElsewhere),
            ("pg_proc", "", 'n', On::RowType, Reason::Function),
            ("pg_proc", "", 'n', On::Table, Reason::Function),
            ("pg_policy", "", 'n', On::Table, Reason::PolicyElsewhere),
            ("pg_trigger", "", 'a', On::Table, Reason::TriggerElsewhere),
            ("pg_class", "r", 'n', On::RowType, Reason::RowType),
            ("pg_class", "r", 'n', On::Table, Reason::Inheritance),
            ("pg_class", "r", 'a', On::Table, Reason::Inheritance),
            ("pg_type", "d", 'n', On::RowType, Reason::RowType),
            ("pg_publication_rel", "", 'a', On::Table, Reason::Publication),
        ] {
            assert_eq!(verdict(catalog, kind, deptype, on, false), Verdict::Refused(reason), "{catalog} {kind}");
        }
        assert_eq!(verdict("pg_rewrite", "rule", 'a', On::Table, true), Verdict::Refused(Reason::Rule));
    }

    #[test]
    fn what_nobody_thought_of_is_refused() {
        let unknown = Verdict::Refused(Reason::Unknown);
        assert_eq!(verdict("pg_horoscope", "", 'n', On::Table, false), unknown);
        assert_eq!(verdict("pg_horoscope", "", 'a', On::Part, true), unknown);
        assert_eq!(verdict("pg_trigger", "", 'Q', On::Table, true), unknown);
        assert_eq!(judge_shared("pg_class", 'Q'), unknown);
        assert_eq!(judge_upward("pg_class", 'Q', "pg_extension"), unknown);
        assert_eq!(judge_on_view("pg_horoscope", "", 'n', false), unknown);
    }

    #[test]
    fn members_of_extensions_are_refused() {
        assert_eq!(judge_upward("pg_class", 'e', "pg_extension"), Verdict::Refused(Reason::Extension));
        assert_eq!(judge_upward("pg_trigger", 'x', "pg_extension"), Verdict::Carried);
    }
}
