//! What becomes of each column when the front table's name passes to the rear table.

use crate::ident::Ident;
use crate::plan::Plan;
use std::collections::BTreeMap;

/// What becomes of one column of the front table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// Its name in the rear table; None where the rear table has no such column.
    pub to: Option<Ident>,
    /// Its type there, where type or modifier differ.
    pub retyped: Option<String>,
}

/// The columns of the front table by name, in the direction of one swap or rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    fates: BTreeMap<String, Fate>,
    /// Whether both tables have the same columns at the same places, whatever their types.
    pub same_places: bool,
}

impl Columns {
    /// From the old shape to the new one.
    pub fn forward(plan: &Plan) -> Self {
        let types: BTreeMap<_, _> = plan.new_columns.iter().map(|column| (&column.name, &column.type_name)).collect();
        let fates = plan.old_columns.iter().map(|old| {
            let type_name = old.new.as_ref().and_then(|new| types.get(new));
            let retyped =
                type_name.filter(|type_name| **type_name != &old.type_name).map(|type_name| (*type_name).clone());
            (old.name.0.clone(), Fate { to: old.new.clone(), retyped })
        });
        Self { fates: fates.collect(), same_places: same_places(plan) }
    }

    /// From the new shape to the old one.
    pub fn reverse(plan: &Plan) -> Self {
        let back: BTreeMap<_, _> =
            plan.old_columns.iter().filter_map(|old| old.new.as_ref().map(|new| (new, old))).collect();
        let fates = plan.new_columns.iter().map(|new| {
            let old = back.get(&new.name);
            let retyped = old.filter(|old| old.type_name != new.type_name).map(|old| old.type_name.clone());
            (new.name.0.clone(), Fate { to: old.map(|old| old.name.clone()), retyped })
        });
        Self { fates: fates.collect(), same_places: same_places(plan) }
    }

    /// The name in the rear table, None where that has no such column (or this is none of the front's).
    pub fn to(&self, column: &str) -> Option<&Ident> {
        self.fates.get(column).and_then(|fate| fate.to.as_ref())
    }

    /// Whether this column of the rear table has a counterpart in the front table.
    pub fn is_target(&self, column: &str) -> bool {
        self.fates.values().any(|fate| fate.to.as_ref().is_some_and(|to| to.as_str() == column))
    }

    /// Whether an expression over this column can be used for the rear table as it is written.
    pub fn keeps_name(&self, column: &str) -> bool {
        self.to(column).is_some_and(|to| to.as_str() == column)
    }

    /// Whether the column has another type in the rear table.
    pub fn retyped(&self, column: &str) -> bool {
        self.new_type(column).is_some()
    }

    /// The column's type in the rear table, where that is another.
    pub fn new_type(&self, column: &str) -> Option<&str> {
        self.fates.get(column).and_then(|fate| fate.retyped.as_deref())
    }
}

fn same_places(plan: &Plan) -> bool {
    plan.old_columns.len() == plan.new_columns.len()
        && plan.old_columns.iter().zip(&plan.new_columns).all(|(old, new)| old.new.as_ref() == Some(&new.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{NewColumn, OldColumn, Source};

    fn old(name: &str, type_name: &str, new: Option<&str>) -> OldColumn {
        OldColumn {
            name: name.into(),
            type_name: type_name.into(),
            bare_type: None,
            generated: false,
            new: new.map(Ident::from),
            reverse: None,
            otherwise: "NULL".into(),
        }
    }

    fn new(name: &str, type_name: &str) -> NewColumn {
        NewColumn {
            name: name.into(),
            type_name: type_name.into(),
            bare_type: None,
            generated: false,
            old: None,
            source: Source::Same,
            upgraded: false,
        }
    }

    #[test]
    fn each_direction_knows_what_is_renamed_retyped_and_gone() {
        let plan = Plan {
            old_columns: vec![old("id", "integer", Some("id")), old("a", "text", Some("b")), old("gone", "text", None)],
            new_columns: vec![new("id", "bigint"), new("b", "text"), new("note", "text")],
            key: vec![],
            settings: vec![],
            builds: vec![],
            unvalidated: vec![],
            structure: String::new(),
            definitions: String::new(),
        };
        let forward = Columns::forward(&plan);
        assert!(forward.retyped("id") && forward.keeps_name("id"));
        assert_eq!(forward.to("a"), Some(&Ident::from("b")));
        assert!(!forward.keeps_name("a") && !forward.retyped("a"));
        assert_eq!(forward.to("gone"), None);
        let reverse = Columns::reverse(&plan);
        assert!(reverse.retyped("id"));
        assert_eq!(reverse.to("b"), Some(&Ident::from("a")));
        assert_eq!(reverse.to("note"), None);
        assert_eq!(reverse.to("never heard of"), None);
        assert!(!forward.same_places);
    }
}
