//! Sequences that belong to columns.
//!
//! The sequence of a serial column stays the same object, at the same place: applications and prepared
//! statements name it. It is set free before the move and given to the new front's column after it.
//! An identity column cannot lend its sequence; the other table has one, which takes over the value. From
//! reading it until the commit the front's sequence is locked, so that nextval waits and no value is given twice.

use super::Gathering;
use super::grants;
use crate::catalog::lock::Mode;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;

#[derive(Deserialize)]
struct Sequence {
    oid: u32,
    schema: Ident,
    name: Ident,
    column: Ident,
    identity: bool,
    /// Whether the column's default takes its values from it.
    used: bool,
    /// Whether anything but this column's default does.
    shared: bool,
    owner: u32,
    /// None where nextval was never called.
    value: Option<i64>,
    least: i64,
    greatest: i64,
}

impl Sequence {
    fn name(&self) -> Name {
        Name { schema: self.schema.clone(), name: self.name.clone() }
    }
}

fn read(relation: u32) -> Result<Vec<Sequence>, Failure> {
    spi::fetch(
        "select s.oid::pg_catalog.int8 as oid, n.nspname as schema, s.relname as name, a.attname as \"column\", d.deptype = 'i' as identity, \
             exists (select from pg_catalog.pg_depend u where u.refclassid = d.classid and u.refobjid = s.oid \
                       and u.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and u.objid = f.oid) as used, \
             exists (select from pg_catalog.pg_depend u where u.refclassid = d.classid and u.refobjid = s.oid and u.deptype = 'n' and u.objid is distinct from f.oid) as shared, \
             s.relowner::pg_catalog.int8 as owner, pg_catalog.pg_sequence_last_value(s.oid) as value, q.seqmin as least, q.seqmax as greatest \
         from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' \
         join pg_catalog.pg_sequence q on q.seqrelid = s.oid join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
         join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid \
         left join pg_catalog.pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum \
         where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           and d.refobjid = $1 and d.refobjsubid > 0 and d.deptype in ('a', 'i') order by s.oid",
        &[pg_sys::Oid::from(relation).into()],
    )
}

/// Whether the default of a column takes its values from the sequence.
fn uses(relation: u32, column: &Ident, sequence: u32) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    let found: Found = spi::fetch_one(
        "select exists (select from pg_catalog.pg_attribute a join pg_catalog.pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum \
             join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.objid = f.oid \
             where a.attrelid = $1 and a.attname = $2 and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $3) as found",
        &[pg_sys::Oid::from(relation).into(), column.as_str().into(), pg_sys::Oid::from(sequence).into()],
    )?;
    Ok(found.found)
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let (front, rear) = (g.swap.front, g.swap.rear);
    let fronts = read(front.oid)?;
    let rears = read(rear.oid)?;
    for sequence in &fronts {
        let to = g.columns.to(sequence.column.as_str()).cloned();
        let twin = to.as_ref().and_then(|to| rears.iter().find(|rear| rear.column == *to));
        if let Some(twin) = twin {
            hand_over(g, sequence, twin)?;
        }
        let wanted = match &to {
            Some(to) => !sequence.identity && (!sequence.used || uses(rear.oid, to, sequence.oid)?),
            None => false,
        };
        if wanted {
            let to = to.expect("a wanted sequence has a column to go to");
            free(g, sequence);
            g.after_move(format!("alter sequence {} owned by {}.{to}", sequence.name(), g.swap.public_name()));
        } else if !sequence.identity && sequence.shared {
            // Others take values from it: it must neither move to the backup nor be dropped with it.
            free(g, sequence);
            g.kept.unowned.push((sequence.oid, sequence.column.clone()));
        } else {
            // It goes where its table goes.
            g.lock_sequence(sequence.oid, Mode::AccessExclusive);
        }
    }
    for sequence in &rears {
        g.lock_sequence(sequence.oid, Mode::AccessExclusive);
    }
    take_back(g)
}

fn free(g: &mut Gathering<'_>, sequence: &Sequence) {
    // What ALTER SEQUENCE takes; nextval waits.
    g.lock_sequence(sequence.oid, Mode::ShareRowExclusive);
    g.before_move(format!("alter sequence {} owned by none", sequence.name()));
}

/// The rear's sequence goes on where the front's stands.
fn hand_over(g: &mut Gathering<'_>, from: &Sequence, to: &Sequence) -> Result<(), Failure> {
    if from.value.is_some_and(|value| value > to.greatest || value < to.least) {
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!(
                "sequence {} stands at {}, which the sequence {} of the table taking its place cannot hold",
                from.name().plain(),
                from.value.unwrap_or_default(),
                to.name().plain()
            ),
        )
        .detail(format!("Column {} has another type there.", plain(to.column.as_str())))
        .hint(format!(
            "Set it to a value that fits and is not in use: select setval({}, …);",
            literal(&from.name().to_string())
        )));
    }
    g.lock_sequence(from.oid, Mode::AccessExclusive);
    let mut name = to.name();
    if from.identity && to.identity {
        g.out.before_lock.extend(grants::align(
            &format!("sequence {name}"),
            &name.schema,
            to.owner,
            &grants::read(to.oid)?,
            &grants::read(from.oid)?,
        ));
        if from.name != to.name {
            g.before_lock(format!("alter sequence {name} rename to {}", from.name));
            name.name = from.name.clone();
        }
    }
    g.before_move(format!(
        "select pg_catalog.setval({}::pg_catalog.regclass, q.last_value, q.is_called) from {} q",
        literal(&name.to_string()),
        from.name()
    ));
    Ok(())
}

/// Sequences that the last swap set free because only the rear has their column.
fn take_back(g: &mut Gathering<'_>) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Free {
        schema: Ident,
        name: Ident,
    }
    let unowned = g.last.as_ref().map(|last| last.unowned.clone()).unwrap_or_default();
    for (oid, column) in unowned {
        let free: Option<Free> = spi::fetch_optional(
            "select n.nspname as schema, s.relname as name from pg_catalog.pg_class s join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
             where s.oid = $1 and s.relkind = 'S' and n.nspname = $2 \
               and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = s.oid and d.deptype in ('a', 'i') \
                                 and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)",
            &[pg_sys::Oid::from(oid).into(), g.swap.public_name().schema.as_str().into()],
        )?;
        if let Some(Free { schema, name }) = free {
            g.lock_sequence(oid, Mode::ShareRowExclusive);
            let name = Name { schema, name };
            g.after_move(format!("alter sequence {name} owned by {}.{column}", g.swap.public_name()));
        }
    }
    Ok(())
}
