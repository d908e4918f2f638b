//! What the text of copy, reconcile and verify must and must not contain. That it works is shown by the tests with servers.

use super::verify::row_hash;
use super::*;
use crate::plan::{NewColumn, OldColumn};

fn plan() -> Plan {
    Plan {
        new_columns: vec![
            NewColumn {
                name: "id".into(),
                type_name: "bigint".into(),
                bare_type: Some("bigint".into()),
                generated: false,
                old: Some("id".into()),
                source: Source::Expression { sql: "l.\"id\"".into(), given: false },
                upgraded: false,
            },
            NewColumn {
                name: "name".into(),
                type_name: "text".into(),
                bare_type: Some("text".into()),
                generated: false,
                old: Some("title".into()),
                source: Source::Same,
                upgraded: false,
            },
            NewColumn {
                name: "note".into(),
                type_name: "text".into(),
                bare_type: Some("text".into()),
                generated: false,
                old: None,
                source: Source::Constant { sql: "NULL".into() },
                upgraded: false,
            },
            NewColumn {
                name: "size".into(),
                type_name: "integer".into(),
                bare_type: Some("integer".into()),
                generated: true,
                old: None,
                source: Source::Generated,
                upgraded: false,
            },
        ],
        old_columns: vec![
            OldColumn {
                name: "id".into(),
                type_name: "integer".into(),
                bare_type: Some("integer".into()),
                generated: false,
                new: Some("id".into()),
                reverse: Some("s.\"id\"".into()),
                otherwise: "NULL".into(),
            },
            OldColumn {
                name: "title".into(),
                type_name: "text".into(),
                bare_type: Some("text".into()),
                generated: false,
                new: Some("name".into()),
                reverse: Some("s.\"name\"".into()),
                otherwise: "NULL".into(),
            },
            OldColumn {
                name: "gone".into(),
                type_name: "text".into(),
                bare_type: Some("text".into()),
                generated: false,
                new: None,
                reverse: None,
                otherwise: "'none'::text".into(),
            },
        ],
        key: vec![KeyColumn {
            old: "id".into(),
            old_type: "integer".into(),
            new: "id".into(),
            new_type: "bigint".into(),
            same_order: true,
            operators: "pg_catalog".into(),
        }],
        settings: vec![],
        builds: vec![],
        unvalidated: vec![],
        structure: String::new(),
        definitions: String::new(),
    }
}

fn names() -> (Name, Name) {
    (Name::new("public", "Order Items; --"), Name::new("migrator_shadow_1", "Order Items; --"))
}

fn segments() -> Vec<Name> {
    (0..3).map(|number| Name::new("migrator", format!("log_1_f_{number}"))).collect()
}

fn marker() -> Name {
    Name::new("migrator", "log_1_f_truncated")
}

#[test]
fn the_copy_writes_no_generated_column_and_casts_nothing() {
    let (old, new) = names();
    let text = copy(&plan(), Tables { old: &old, new: &new }, 0, 8);
    assert!(
        text.starts_with("insert into \"migrator_shadow_1\".\"Order Items; --\" (\"id\", \"name\", \"note\")"),
        "{text}"
    );
    assert!(!text.contains("size"), "generated columns are computed, not written: {text}");
    assert!(!text.contains("::bigint"), "an explicit cast would cut what assignment refuses: {text}");
    assert!(text.contains("l.ctid >= '(0,0)' and l.ctid < '(8,0)'"), "{text}");
}

#[test]
fn a_reconcile_names_its_operators_and_waits_for_its_delete() {
    let (old, new) = names();
    let segments = segments();
    let tables = Tables { old: &old, new: &new };
    let take = Take::Blocks { segment: &segments[0], from: 3, until: 19 };
    let text = reconcile(&plan(), tables, Direction::Forward, Put::Plain, take, &marker(), false);
    assert_eq!(
        text.matches("not (select truncated from halt)").count(),
        2,
        "after a TRUNCATE nothing is read or taken: {text}"
    );
    assert!(text.contains("s.\"id\" operator(\"pg_catalog\".=) d.\"id\"::bigint"), "{text}");
    assert!(text.contains("(select count(*) from del) >= 0"), "{text}");
    assert_eq!(
        text.matches("ctid >= '(3,0)' and ctid < '(19,0)'").count(),
        2,
        "the same rows are read and taken: {text}"
    );
    let text =
        reconcile(&plan(), tables, Direction::Forward, Put::Plain, Take::All { segments: &segments }, &marker(), false);
    assert_eq!(text.matches("delete from \"migrator\".\"log_1_f_").count(), 3, "{text}");
    let take = Take::Rest { segments: &segments, at_most: 1000 };
    let text = reconcile(&plan(), tables, Direction::Forward, Put::Plain, take, &marker(), false);
    assert_eq!(text.matches("delete from \"migrator\".\"log_1_f_").count(), 3, "{text}");
    assert!(text.contains("limit 1000 + 1) c) > 1000 or exists (select from ("), "{text}");
    assert!(text.contains("u where u.\"id\" is null) as truncated"), "{text}");
}

#[test]
fn the_way_back_keeps_what_only_the_old_shape_has() {
    let (old, new) = names();
    let segments = segments();
    let text = reconcile(
        &plan(),
        Tables { old: &old, new: &new },
        Direction::Reverse,
        Put::Merged,
        Take::All { segments: &segments },
        &marker(),
        false,
    );
    assert!(text.contains("case when l.\"id\" is not null then l.\"gone\" else ('none'::text)::text end"), "{text}");
    assert!(text.contains("left join \"public\".\"Order Items; --\" l"), "{text}");
    assert!(text.contains("m as materialized"), "merged rows are read before they are deleted: {text}");
}

#[test]
fn what_an_upgrade_made_goes_back_with_its_names() {
    let (old, new) = names();
    let (segments, marker) = (segments(), marker());
    let mut plan = plan();
    plan.new_columns[1].source = Source::Expression { sql: "upper(l.\"title\")".into(), given: true };
    let text = |plan: &Plan, direction| {
        let take = Take::All { segments: &segments };
        reconcile(plan, Tables { old: &old, new: &new }, direction, Put::Merged, take, &marker, false)
    };
    let kept = "then l.\"title\" else (s.\"name\")::text end";
    assert!(text(&plan, Direction::Reverse).contains(kept), "a transform may lose something: {kept}");
    plan.new_columns[1].upgraded = true;
    let back = text(&plan, Direction::Reverse);
    assert!(back.contains(", s.\"name\" as c1, ") && !back.contains("upper("), "{back}");
    let again = text(&plan, Direction::Forward);
    assert!(again.contains(", upper(l.\"title\") as c1, "), "{again}");
}

#[test]
fn a_range_may_name_leading_columns_only() {
    let mut plan = plan();
    plan.key.push(KeyColumn {
        old: "b".into(),
        old_type: "public.citext".into(),
        new: "b".into(),
        new_type: "public.citext".into(),
        same_order: true,
        operators: "public".into(),
    });
    let range = KeyRange { from: Some(vec!["5".into()]), until: Some(vec!["7".into(), "it's".into()]) };
    let text = range.filter(&plan, Direction::Forward);
    assert!(text.starts_with("l.\"id\" operator(\"pg_catalog\".>=) '5'::integer and "), "{text}");
    assert!(text.contains("l.\"b\" operator(\"public\".<) 'it''s'::public.citext"), "{text}");
    let text = range.filter(&plan, Direction::Reverse);
    assert!(text.contains("('5'::integer)::bigint"), "{text}");
}

#[test]
fn more_columns_than_a_function_takes_are_hashed_in_parts() {
    let many: Vec<String> = (0..1600).map(|number| format!("l.c{number}")).collect();
    let text = row_hash(&many);
    assert_eq!(text.matches("_image_hash").count(), 1600usize.div_ceil(90) + 1);
}

#[test]
fn a_sample_computes_every_column_and_writes_none() {
    let (old, new) = (Name::new("public", "t"), Name::new("migrator_shadow_0", "t"));
    let sql = sample(&plan(), Tables { old: &old, new: &new }, 3, 5);
    assert_eq!(
        sql,
        "select count(*) as rows, coalesce(sum(pg_column_size(row((l.\"id\")::bigint, l.\"title\", (NULL)::text))), 0)::bigint as bytes \
         from \"public\".\"t\" l where l.ctid >= '(3,0)' and l.ctid < '(5,0)'"
    );
}
