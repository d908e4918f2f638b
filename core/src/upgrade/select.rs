//! Which rows still need something, as SQL over a table under the alias `l`.

use super::{COLUMN, Definition, Upgrade};
use crate::ident::{Ident, literal};

/// The row has every name of these.
pub fn all_marked<'a>(upgrades: impl IntoIterator<Item = &'a Upgrade>) -> String {
    format!("coalesce({} @> {}, false)", column(), array(upgrades.into_iter().map(|upgrade| upgrade.name.as_str())))
}

/// A batch has something to do for the row: an expression that is not applied yet, with no application code pending before it; or
/// a NULL where the array of names should be.
pub fn pending(definition: &Definition) -> String {
    let mut barriers: Vec<&Upgrade> = vec![];
    let mut cases = vec![];
    let mut run: Vec<&Upgrade> = vec![];
    for upgrade in &definition.upgrades {
        if upgrade.is_application() {
            cases.extend(case(&barriers, &run));
            run.clear();
            barriers.push(upgrade);
        } else {
            run.push(upgrade);
        }
    }
    cases.extend(case(&barriers, &run));
    if cases.is_empty() { "false".to_owned() } else { format!("({})", cases.join(" or ")) }
}

fn case(barriers: &[&Upgrade], run: &[&Upgrade]) -> Option<String> {
    if run.is_empty() {
        return None;
    }
    let missing = format!("not {}", all_marked(run.iter().copied()));
    Some(if barriers.is_empty() {
        missing
    } else {
        format!("({} and {missing})", all_marked(barriers.iter().copied()))
    })
}

fn column() -> String {
    format!("l.{}", Ident::from(COLUMN))
}

fn array<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("array[{}]::pg_catalog.text[]", names.map(literal).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(name: &str, expression: bool) -> Upgrade {
        Upgrade {
            id: 1,
            name: name.into(),
            set: if expression { vec![(Ident::new("b"), "l.a".into())] } else { vec![] },
            inputs: vec![],
            outputs: vec![],
            settings: 0,
            in_place: false,
            numbers: vec![],
            deferred: false,
        }
    }

    fn definition(upgrades: Vec<Upgrade>) -> Definition {
        Definition { key: vec![Ident::new("id")], upgrades, retired: vec![], names_at: None, settings: vec![vec![]] }
    }

    #[test]
    fn nothing_behind_pending_application_code_is_selected() {
        let text = pending(&definition(vec![upgrade("a", true), upgrade("app", false), upgrade("b'", true)]));
        assert_eq!(
            text,
            "(not coalesce(l.\"applied_upgrades\" @> array['a']::pg_catalog.text[], false) or \
             (coalesce(l.\"applied_upgrades\" @> array['app']::pg_catalog.text[], false) and \
             not coalesce(l.\"applied_upgrades\" @> array['b''']::pg_catalog.text[], false)))"
        );
        assert_eq!(pending(&definition(vec![upgrade("app", false)])), "false");
    }
}
