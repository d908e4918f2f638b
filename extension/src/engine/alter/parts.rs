//! Statement by statement, and where needed action by action: what is done at once, what is validated, what is set last.

use super::there::{self, There};
use super::{Work, joined, probe};
use crate::catalog::commands::{self, Part, Piece};
use crate::catalog::definition;
use crate::catalog::spi;
use migrator_core::alter::{self, Choice, Indexed, Kind, Seen};
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use pgrx::pg_sys;
use serde::Deserialize;

/// How all the actions are done in place, or why they cannot be.
#[derive(Default)]
pub struct Plan {
    /// Why a shadow is needed.
    pub shadow: Option<String>,
    /// It is needed however small the table is.
    pub at_any_size: bool,
    /// An index is among what stands in the way.
    pub needs_index: bool,
    /// Statements of the first transaction.
    pub(super) first: Vec<String>,
    /// The same as far as a clone can take them: to know what they come to, and to try the next part behind them.
    tried: Vec<String>,
    /// The first transaction stops writers only.
    pub(super) first_is_weak: bool,
    /// Constraints to be validated, with the table that a foreign key refers to.
    pub(super) validates: Vec<(String, Option<String>)>,
    /// Statements of the last transaction.
    pub(super) last: Vec<String>,
    /// Indexes to be built outside.
    pub(super) outside: Vec<String>,
    /// The actions with those indexes.
    pub(super) with_indexes: Vec<String>,
    /// Other tables that the first transaction locks, and whether against everybody.
    pub(super) others: Vec<(u32, bool)>,
    pub(super) reasons: Vec<String>,
    /// Names given to constraints that had none.
    taken: Vec<String>,
    live_constraints: Vec<There>,
}

/// The stages into which one statement is taken apart.
#[derive(Default)]
struct Stages {
    first: Vec<String>,
    tried: Vec<String>,
    set_not_null: Vec<String>,
    attach: Vec<String>,
    drop: Vec<String>,
    only_foreign_keys: bool,
}

impl Plan {
    /// Works the parts out one after the other.
    pub fn of(work: &Work<'_>, parts: &[Part]) -> Result<Plan, Failure> {
        let mut plan = Plan { first_is_weak: true, live_constraints: there::constraints(work)?, ..Plan::default() };
        plan.lock_dropped(work, parts)?;
        for part in parts {
            plan.part(work, part)?;
            if plan.shadow.is_some() {
                break;
            }
        }
        Ok(plan)
    }

    fn part(&mut self, work: &Work<'_>, part: &Part) -> Result<(), Failure> {
        let mut found = vec![];
        for piece in &part.pieces {
            found.push(there::find(work, &self.live_constraints, piece)?);
        }
        let resumes = found.iter().flatten().any(|there| !there.is_valid);
        let mut left = vec![];
        for (piece, there) in part.pieces.iter().zip(found) {
            match there {
                Some(there) if is_not_valid(piece) && !there.is_valid => {
                    self.because(&super::there("constraint", &there.name))
                }
                Some(there) if there.is_valid => self.because(&super::there("constraint", &there.name)),
                Some(there) => {
                    self.because(&format!("{} but not validated", super::there("constraint", &there.name)));
                    self.validate(&there.name, piece);
                }
                None if resumes && self.is_done(work, piece)? => {
                    self.because("what an earlier call has done is left out")
                }
                None => left.push(piece.clone()),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let whole = if left.len() == part.pieces.len() { part.text.clone() } else { joined(&left) };
        let runnable: Vec<Piece> = left.iter().filter(|piece| piece.runs_on_clone()).cloned().collect();
        let mut seen = Seen::default();
        if !runnable.is_empty() {
            let text = if runnable.len() == part.pieces.len() { part.text.clone() } else { joined(&runnable) };
            seen = self.probe(work, &[text])?.remove(0).seen;
        }
        if let Some(what) = read_type(work, &left)? {
            self.shadow = Some(what);
            self.at_any_size = true;
            return Ok(());
        }
        let stand_in = left
            .iter()
            .any(|piece| matches!(&piece.kind, Kind::SetNotNull(column) if self.has(alter::stand_in(column).as_str())));
        let apart = left.iter().any(|piece| {
            matches!(&piece.kind, Kind::Validate(_))
                || matches!(&piece.kind, Kind::AddForeignKey(key) if !key.not_valid)
        });
        if seen.is_clean() && !apart && !stand_in {
            self.because("catalogue work only");
            self.first_is_weak &= left.iter().all(|piece| matches!(piece.kind, Kind::AddForeignKey(_)));
            self.others_of(work, &left)?;
            if !runnable.is_empty() {
                self.tried.push(joined(&runnable));
            }
            self.with_indexes.push(whole.clone());
            self.first.push(whole);
            return Ok(());
        }
        self.apart(work, &left, &seen)
    }

    /// One statement taken apart.
    fn apart(&mut self, work: &Work<'_>, pieces: &[Piece], whole: &Seen) -> Result<(), Failure> {
        let mut pieces = pieces.to_vec();
        pieces.sort_by_key(|piece| alter::rank(&piece.kind));
        let texts: Vec<String> =
            pieces.iter().filter(|piece| piece.runs_on_clone()).map(|piece| piece.text.clone()).collect();
        let Ok(found) = self.probe(work, &texts) else {
            // Taken together it works, one by one it does not: it stays one statement.
            match alter::choose(&Kind::Other, whole, work.bytes, work.strategy) {
                Choice::AtOnce(reason) => {
                    self.because(&reason);
                    self.first_is_weak = false;
                    self.first.push(joined(&pieces));
                    self.tried.push(texts.join(", "));
                }
                _ => self.shadow = Some(format!("ALTER TABLE {} under a lock that stops everybody", whole.what())),
            }
            return Ok(());
        };
        let mut found = found.into_iter();
        let mut stages = Stages { only_foreign_keys: true, ..Stages::default() };
        let mut with_indexes = vec![];
        let outside = self.outside.len();
        for piece in &pieces {
            let found = if piece.runs_on_clone() { found.next().unwrap_or_default() } else { probe::Found::default() };
            let before = self.outside.len();
            self.piece(work, piece, &found, &mut stages)?;
            if self.shadow.is_some() {
                return Ok(());
            }
            match found.indexes.first().filter(|_| self.outside.len() > before) {
                Some(index) => with_indexes.push(using(&piece.kind, index)),
                None => with_indexes.push(piece.text.clone()),
            }
        }
        self.with_indexes.push(with_indexes.join(", "));
        self.others_of(work, &pieces)?;
        if self.outside.len() > outside {
            return Ok(());
        }
        self.stage(work, stages)
    }

    fn piece(
        &mut self,
        work: &Work<'_>,
        piece: &Piece,
        found: &probe::Found,
        stages: &mut Stages,
    ) -> Result<(), Failure> {
        if let Kind::Validate(name) = &piece.kind {
            self.validate(name, piece);
            return Ok(());
        }
        if let Kind::SetNotNull(column) = &piece.kind
            && self.has(alter::stand_in(column).as_str())
        {
            self.set_not_null(column, stages);
            stages.set_not_null.push(piece.text.clone());
            return Ok(());
        }
        stages.only_foreign_keys &= matches!(piece.kind, Kind::AddForeignKey(_));
        match alter::choose(&piece.kind, &found.seen, work.bytes, work.strategy) {
            Choice::AtOnce(reason) => {
                self.because(&reason);
                stages.first.push(piece.text.clone());
                if piece.runs_on_clone() {
                    stages.tried.push(piece.text.clone());
                }
            }
            Choice::NotValid => {
                let name = self.name_of(work, piece, found);
                let text = commands::not_valid(&piece.text, &name)?;
                self.because("a constraint is added NOT VALID, which reads no row");
                if piece.runs_on_clone() {
                    stages.tried.push(text.clone());
                }
                stages.first.push(text);
                self.validate(&name, piece);
            }
            Choice::NotNull => {
                let Kind::SetNotNull(column) = &piece.kind else { unreachable!("chosen for SET NOT NULL only") };
                self.set_not_null(column, stages);
                stages.set_not_null.push(piece.text.clone());
            }
            Choice::KeyFromIndex => {
                if let Kind::AddIndexed(Indexed { using: Some(index), .. }) = &piece.kind {
                    for column in there::nullable_columns(work, index)? {
                        self.set_not_null(&column, stages);
                        stages.set_not_null.push(format!("alter column {} set not null", Ident::new(column)));
                    }
                }
                stages.attach.push(piece.text.clone());
            }
            Choice::Concurrently => {
                let Some(index) = found.indexes.first() else {
                    self.shadow = Some("its index cannot be built concurrently".into());
                    return Ok(());
                };
                self.because("an index is built without stopping anybody by CREATE INDEX CONCURRENTLY, which runs outside a transaction only");
                if is_broken(work, index)? {
                    let name = definition::quoted(index.name.as_str());
                    self.outside.push(format!(
                        "drop index concurrently {}.{name};",
                        definition::quoted(work.live.name.schema.as_str())
                    ));
                }
                self.outside.push(format!(
                    "{};",
                    index.create.replacen("create UNIQUE index ", "create unique index concurrently ", 1)
                ));
            }
            Choice::Shadow(why) => {
                self.needs_index |= matches!(piece.kind, Kind::AddIndexed(_));
                self.shadow = Some(why);
            }
        }
        Ok(())
    }

    /// Puts the stages of one statement behind those of the parts before it, if they hold together.
    fn stage(&mut self, work: &Work<'_>, stages: Stages) -> Result<(), Failure> {
        if !stages.tried.is_empty() && self.probe(work, &[stages.tried.join(", ")]).is_err() {
            self.at_any_size = true;
            self.shadow = Some("the actions depend on each other and cannot be done one after the other".into());
            return Ok(());
        }
        if !stages.first.is_empty() {
            self.first_is_weak &= stages.only_foreign_keys;
            self.first.push(stages.first.join(", "));
        }
        if !stages.tried.is_empty() {
            self.tried.push(stages.tried.join(", "));
        }
        for texts in [stages.set_not_null, stages.attach, stages.drop] {
            // A statement drops first, so what NOT NULL rests on is dropped by one of its own.
            if !texts.is_empty() {
                self.last.push(texts.join(", "));
            }
        }
        Ok(())
    }

    fn set_not_null(&mut self, column: &str, stages: &mut Stages) {
        let name = alter::stand_in(column);
        self.because("SET NOT NULL goes through a CHECK that is added NOT VALID");
        if !self.has(name.as_str()) {
            let text = format!("add constraint {name} check ({} is not null) not valid", Ident::new(column));
            stages.tried.push(text.clone());
            stages.first.push(text);
        }
        let valid = self.live_constraints.iter().any(|there| there.name == name.as_str() && there.is_valid);
        if !valid {
            self.validates.push((name.as_str().to_owned(), None));
        }
        stages.drop.push(format!("drop constraint {name}"));
    }

    fn probe(&self, work: &Work<'_>, texts: &[String]) -> Result<Vec<probe::Found>, Failure> {
        probe::run(work.live, work.settings(), &self.tried, texts)
    }

    fn because(&mut self, reason: &str) {
        if !self.reasons.iter().any(|known| known == reason) {
            self.reasons.push(reason.to_owned());
        }
    }

    fn has(&self, constraint: &str) -> bool {
        self.live_constraints.iter().any(|there| there.name == constraint)
    }

    fn validate(&mut self, name: &str, piece: &Piece) {
        let referenced = match &piece.kind {
            Kind::AddForeignKey(key) => Some(key.referenced.clone()),
            _ => None,
        };
        if !self.validates.iter().any(|(known, _)| known == name) {
            self.validates.push((name.to_owned(), referenced));
        }
    }

    fn name_of(&mut self, work: &Work<'_>, piece: &Piece, found: &probe::Found) -> String {
        let name = match &piece.kind {
            Kind::AddCondition { name: Some(name), .. } => name.clone(),
            Kind::AddForeignKey(key) => {
                key.name.clone().unwrap_or_else(|| there::name_for(work, &self.live_constraints, key, &self.taken))
            }
            _ => found.constraints.first().map_or_else(String::new, |(name, _)| name.clone()),
        };
        self.taken.push(name.clone());
        name
    }

    /// What a first transaction has done is not done again when a constraint of the same call is there.
    fn is_done(&self, work: &Work<'_>, piece: &Piece) -> Result<bool, Failure> {
        let has_column = |name: &str| -> Result<bool, Failure> {
            Ok(definition::columns(work.live.oid)?.iter().any(|column| column.name.as_str() == name))
        };
        match &piece.kind {
            Kind::AddColumn(name) => has_column(name),
            Kind::DropColumn(name) => Ok(!has_column(name)?),
            _ => Ok(false),
        }
    }

    /// Tables that foreign keys refer to: writers there wait too.
    fn others_of(&mut self, work: &Work<'_>, pieces: &[Piece]) -> Result<(), Failure> {
        for piece in pieces {
            if let Kind::AddForeignKey(key) = &piece.kind {
                let other = there::referenced(work, key)?;
                if other != work.live.oid && !self.others.iter().any(|(known, _)| *known == other) {
                    self.others.push((other, false));
                }
            }
        }
        Ok(())
    }

    /// Dropping a foreign key locks the table that it refers to against everybody.
    fn lock_dropped(&mut self, work: &Work<'_>, parts: &[Part]) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Other {
            oid: u32,
            name: String,
        }
        let others: Vec<Other> = spi::fetch(
            "select n.confrelid::pg_catalog.int8 as oid, pg_catalog.quote_ident(n.conname) as name from pg_catalog.pg_constraint n \
             where n.conrelid = $1 and n.contype = 'f' and n.confrelid <> n.conrelid",
            &[pg_sys::Oid::from(work.live.oid).into()],
        )?;
        let texts = parts
            .iter()
            .flat_map(|part| &part.pieces)
            .filter(|piece| piece.kind == Kind::Catalog)
            .map(|piece| piece.text.as_str());
        for text in texts {
            // A name inside another only locks one table more.
            for other in others.iter().filter(|other| text.starts_with("drop") && text.contains(&other.name)) {
                if !self.others.contains(&(other.oid, true)) {
                    self.others.push((other.oid, true));
                }
            }
        }
        Ok(())
    }
}

fn is_not_valid(piece: &Piece) -> bool {
    match &piece.kind {
        Kind::AddForeignKey(key) => key.not_valid,
        Kind::AddCondition { not_valid, .. } => *not_valid,
        _ => false,
    }
}

/// `add constraint NAME unique using index NAME`
fn using(kind: &Kind, index: &probe::NewIndex) -> String {
    let word = if matches!(kind, Kind::AddIndexed(Indexed { primary: true, .. })) { "primary key" } else { "unique" };
    format!("add constraint {} {word} using index {}{}", index.name, index.name, index.deferrable)
}

/// Why a type cannot be changed in place although its bytes could stay.
fn read_type(work: &Work<'_>, pieces: &[Piece]) -> Result<Option<String>, Failure> {
    for piece in pieces {
        if let Kind::Type(column) = &piece.kind
            && let Some(what) = there::is_read(work, column)?
        {
            return Ok(Some(format!("ALTER TABLE cannot change the type of a column that is used by {what}")));
        }
    }
    Ok(None)
}

/// Whether a CREATE INDEX CONCURRENTLY of that name failed before.
fn is_broken(work: &Work<'_>, index: &probe::NewIndex) -> Result<bool, Failure> {
    Ok(definition::indexes(work.live.oid)?.iter().any(|there| there.name == index.name && !there.is_valid))
}
