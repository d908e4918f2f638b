//! The actions of an ALTER TABLE one by one, for the ways that take them apart: what each is, and its own text.
//!
//! `actions` reads the same text for a shadow and refuses what a shadow cannot have; here everything is taken that
//! ALTER TABLE does to one table, except what changes whose it is or which partitions it has.

use crate::catalog::actions::{self, Token, c_string, explained, is_placeholder, not_actions};
use crate::catalog::attempt::attempt;
use crate::catalog::expression::{length, nth, owned, word};
use migrator_core::alter::{ForeignKey, Indexed, Kind};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name};
use pgrx::pg_sys;
use pgrx::pg_sys::AlterTableType as At;
use pgrx::pg_sys::ConstrType as Constr;

/// One ALTER TABLE statement.
#[derive(Debug, Clone)]
pub struct Part {
    /// What follows the table's name, as the user wrote it.
    pub text: String,
    /// Its actions.
    pub pieces: Vec<Piece>,
}

/// One action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it is part of the table's shape, so that create_shadow takes it.
    pub is_shape: bool,
}

impl Piece {
    /// Whether it can be tried on an empty clone. A foreign key would lock the table that it refers to.
    pub fn runs_on_clone(&self) -> bool {
        !matches!(self.kind, Kind::Catalog | Kind::AddForeignKey(_) | Kind::Validate(_))
    }
}

/// Reads the user's text for `table`: semicolons separate parts, commas actions.
pub fn read(table: &Name, text: &str) -> Result<Vec<Part>, Failure> {
    attempt(|| {
        actions::split(text)?
            .into_iter()
            .map(|part| {
                let mut pieces = vec![];
                for piece in split(part)? {
                    pieces.extend(take_apart(read_piece(table, piece)?));
                }
                Ok(Part { text: closed(part), pieces })
            })
            .collect()
    })
    .map_err(explained)
}

/// A text behind which another can be put: a comment at its end does not swallow it.
fn closed(text: &str) -> String {
    let text = text.trim();
    if text.contains("--") { format!("{text}\n") } else { text.to_owned() }
}

/// Cuts at the commas that stand outside parentheses and brackets, after the parser has read the whole.
fn split(text: &str) -> Result<Vec<&str>, Failure> {
    let wanted = count(text)?;
    let mut depth = 0i32;
    let mut pieces = vec![];
    let mut from = 0;
    for token in actions::tokens(text)? {
        match u8::try_from(token.kind).map(char::from) {
            Ok('(' | '[') => depth += 1,
            Ok(')' | ']') => depth -= 1,
            Ok(',') if depth == 0 => {
                pieces.push(text[from..token.at].trim());
                from = token.at + 1;
            }
            _ => {}
        }
    }
    pieces.push(text[from..].trim());
    if pieces.len() == wanted {
        Ok(pieces)
    } else {
        Err(Failure::new(code::NOT_SUPPORTED, "these actions cannot be told apart")
            .hint("Give them one by one, each in a call of its own."))
    }
}

/// How many actions the parser finds.
fn count(text: &str) -> Result<usize, Failure> {
    parse(text, |node| {
        // SAFETY: cast after the tag was looked at.
        unsafe {
            Ok(match (*node).type_ {
                pg_sys::NodeTag::T_AlterTableStmt => length((*node.cast::<pg_sys::AlterTableStmt>()).cmds),
                _ => 1,
            })
        }
    })
}

fn parse<T>(text: &str, read: impl FnOnce(*mut pg_sys::Node) -> Result<T, Failure>) -> Result<T, Failure> {
    let statement = c_string(&format!("{}{text}", actions::HEAD))?;
    // SAFETY: raw_parser's nodes stay in the current memory context.
    unsafe {
        let statements = pg_sys::raw_parser(statement.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let node = nth::<pg_sys::RawStmt>(statements, 0).map_or(std::ptr::null_mut(), |raw| (*raw).stmt);
        if node.is_null() || length(statements) != 1 {
            return Err(not_actions());
        }
        read(node)
    }
}

fn read_piece(table: &Name, text: &str) -> Result<(Piece, Vec<Inline>), Failure> {
    parse(text, |node| {
        // SAFETY: each node is cast after its tag was looked at; the grammar fills the fields that each kind needs.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_AlterTableStmt => {
                    let alter = &*node.cast::<pg_sys::AlterTableStmt>();
                    if alter.objtype != pg_sys::ObjectType::OBJECT_TABLE
                        || alter.missing_ok
                        || !is_placeholder(alter.relation)
                    {
                        return Err(not_actions());
                    }
                    let command = &*nth::<pg_sys::AlterTableCmd>(alter.cmds, 0).ok_or_else(not_actions)?;
                    let (kind, is_shape) = read_command(table, command)?;
                    let inline = match command.subtype {
                        At::AT_AddColumn => inline_constraints(&*command.def.cast::<pg_sys::ColumnDef>(), text),
                        _ => vec![],
                    };
                    Ok((Piece { text: closed(text), kind, is_shape }, inline))
                }
                pg_sys::NodeTag::T_RenameStmt => {
                    let rename = &*node.cast::<pg_sys::RenameStmt>();
                    let ours = rename.relationType == pg_sys::ObjectType::OBJECT_TABLE
                        || matches!(
                            rename.renameType,
                            pg_sys::ObjectType::OBJECT_TABCONSTRAINT | pg_sys::ObjectType::OBJECT_TABLE
                        );
                    if !ours || !is_placeholder(rename.relation) || rename.missing_ok {
                        return Err(not_actions());
                    }
                    let (kind, is_shape) = match rename.renameType {
                        pg_sys::ObjectType::OBJECT_TABLE => (Kind::Catalog, false),
                        pg_sys::ObjectType::OBJECT_TABCONSTRAINT => (Kind::Constraint(owned(rename.subname)), true),
                        pg_sys::ObjectType::OBJECT_COLUMN => (Kind::Other, true),
                        _ => return Err(not_actions()),
                    };
                    Ok((Piece { text: closed(text), kind, is_shape }, vec![]))
                }
                pg_sys::NodeTag::T_AlterObjectSchemaStmt => {
                    Err(refused(table, "SET SCHEMA changes where a table is, not what it is"))
                }
                _ => Err(not_actions()),
            }
        }
    })
}

unsafe fn read_command(table: &Name, command: &pg_sys::AlterTableCmd) -> Result<(Kind, bool), Failure> {
    // SAFETY: as read_piece says; `name` may be NULL where it is not used.
    unsafe {
        let name = || owned(command.name);
        Ok(match command.subtype {
            At::AT_AddColumn => (Kind::AddColumn(owned((*command.def.cast::<pg_sys::ColumnDef>()).colname)), true),
            At::AT_AlterColumnType => (Kind::Type(name()), true),
            At::AT_DropColumn => (Kind::DropColumn(name()), true),
            At::AT_SetNotNull => (Kind::SetNotNull(name()), true),
            At::AT_AddConstraint => {
                let constraint = &*command.def.cast::<pg_sys::Constraint>();
                let kind = read_constraint(constraint);
                let is_shape = !matches!(kind, Kind::AddForeignKey(_));
                (kind, is_shape)
            }
            At::AT_ValidateConstraint => (Kind::Validate(name()), false),
            At::AT_DropConstraint => (Kind::Constraint(name()), true),
            At::AT_ChangeOwner => return Err(refused(table, "OWNER TO changes whose a table is, not what it is")),
            At::AT_AttachPartition => {
                return Err(refused(table, "attaching a partition is not a change of one table").hint(
                    "Give the partition-to-be a CHECK that implies its bounds: call migrator.alter_table('partition', 'add check (…)'); then ATTACH PARTITION reads no row.",
                ));
            }
            At::AT_DetachPartition | At::AT_DetachPartitionFinalize => {
                return Err(refused(table, "detaching a partition is not a change of one table")
                    .hint("Run ALTER TABLE … DETACH PARTITION … CONCURRENTLY, which stops nobody."));
            }
            subtype if actions::refused(subtype).is_none() => (Kind::Other, true),
            subtype if actions::refused(subtype) == Some(actions::UNKNOWN) => {
                return Err(refused(table, "this action is not known here"));
            }
            _ => (Kind::Catalog, false),
        })
    }
}

unsafe fn read_constraint(constraint: &pg_sys::Constraint) -> Kind {
    // SAFETY: a Constraint of the grammar; a foreign key has its table and lists of String nodes.
    unsafe {
        let name = (!constraint.conname.is_null()).then(|| owned(constraint.conname));
        let code = |letter: std::ffi::c_char| char::from(letter.to_ne_bytes()[0]);
        match constraint.contype {
            Constr::CONSTR_FOREIGN => {
                let table = &*constraint.pktable;
                let relation = Ident::new(owned(table.relname));
                Kind::AddForeignKey(ForeignKey {
                    name,
                    columns: strings(constraint.fk_attrs),
                    referenced: if table.schemaname.is_null() {
                        relation.to_string()
                    } else {
                        format!("{}.{relation}", Ident::new(owned(table.schemaname)))
                    },
                    referenced_columns: strings(constraint.pk_attrs),
                    codes: [constraint.fk_matchtype, constraint.fk_upd_action, constraint.fk_del_action]
                        .into_iter()
                        .map(code)
                        .collect(),
                    not_valid: constraint.skip_validation,
                })
            }
            Constr::CONSTR_PRIMARY | Constr::CONSTR_UNIQUE | Constr::CONSTR_EXCLUSION => Kind::AddIndexed(Indexed {
                primary: constraint.contype == Constr::CONSTR_PRIMARY,
                exclude: constraint.contype == Constr::CONSTR_EXCLUSION,
                using: (!constraint.indexname.is_null()).then(|| owned(constraint.indexname)),
            }),
            _ => Kind::AddCondition { name, not_valid: constraint.skip_validation },
        }
    }
}

unsafe fn strings(list: *mut pg_sys::List) -> Vec<String> {
    // SAFETY: a list of String nodes.
    unsafe { (0..length(list)).filter_map(|at| word(list, at)).collect() }
}

/// A constraint inside ADD COLUMN: where its text is, and what it is.
struct Inline {
    from: usize,
    until: usize,
    /// CHECK or REFERENCES: can be a constraint of the table instead.
    moves: bool,
    references: bool,
    name: Option<Ident>,
}

unsafe fn inline_constraints(column: &pg_sys::ColumnDef, text: &str) -> Vec<Inline> {
    // SAFETY: a ColumnDef's list of Constraint nodes, in the order of the text (gram.y, ColQualList).
    let constraints: Vec<&pg_sys::Constraint> = unsafe {
        (0..length(column.constraints))
            .filter_map(|at| nth::<pg_sys::Constraint>(column.constraints, at))
            .map(|node| &*node)
            .collect()
    };
    let start = |constraint: &pg_sys::Constraint| {
        usize::try_from(constraint.location).ok().and_then(|at| at.checked_sub(actions::HEAD.len()))
    };
    let mut all: Vec<Inline> = vec![];
    for (at, constraint) in constraints.iter().enumerate() {
        let Some(from) = start(constraint).filter(|from| text.is_char_boundary(*from)) else { return vec![] };
        let until = constraints.get(at + 1).and_then(|next| start(next)).unwrap_or(text.len());
        // DEFERRABLE and the like are nodes of their own, and belong to the constraint before them.
        let is_attribute = matches!(
            constraint.contype,
            Constr::CONSTR_ATTR_DEFERRABLE
                | Constr::CONSTR_ATTR_NOT_DEFERRABLE
                | Constr::CONSTR_ATTR_DEFERRED
                | Constr::CONSTR_ATTR_IMMEDIATE
        ) || actions::is_enforcement(constraint.contype);
        match all.last_mut() {
            Some(last) if is_attribute => last.until = until,
            _ => {
                let references = constraint.contype == Constr::CONSTR_FOREIGN;
                // SAFETY: a C string of the parser's.
                let name = (!constraint.conname.is_null()).then(|| Ident::new(unsafe { owned(constraint.conname) }));
                all.push(Inline {
                    from,
                    until,
                    moves: references || constraint.contype == Constr::CONSTR_CHECK,
                    references,
                    name,
                });
            }
        }
    }
    all
}

/// ADD COLUMN with a CHECK or a reference as the column alone and constraints of the table, which can be NOT VALID.
/// What does not parse as such stays as it was.
fn take_apart((piece, inline): (Piece, Vec<Inline>)) -> Vec<Piece> {
    let Kind::AddColumn(column) = &piece.kind else { return vec![piece] };
    if !inline.iter().any(|constraint| constraint.moves) {
        return vec![piece];
    }
    let column = Ident::new(column.as_str());
    let mut alone = String::new();
    let mut from = 0;
    let mut texts = vec![];
    for constraint in inline.iter().filter(|constraint| constraint.moves) {
        alone.push_str(&piece.text[from..constraint.from]);
        from = constraint.until;
        let text = &piece.text[constraint.from..constraint.until];
        let Ok(body) = body(text, false) else { return vec![piece] };
        let name = constraint.name.as_ref().map_or_else(String::new, |name| format!("constraint {name} "));
        let key = if constraint.references { format!("foreign key ({column}) ") } else { String::new() };
        texts.push(closed(&format!("add {name}{key}{body}")));
    }
    alone.push_str(&piece.text[from..]);
    texts.insert(0, closed(&alone));
    // The text was cut by positions: it counts only if it reads as what it is meant to be.
    let nowhere = Name::new("", "");
    let read: Result<Vec<(Piece, Vec<Inline>)>, Failure> =
        texts.iter().map(|text| attempt(|| read_piece(&nowhere, text))).collect();
    match read {
        Ok(pieces)
            if pieces.iter().all(|(found, inline)| {
                (found.kind == piece.kind && !inline.iter().any(|i| i.moves)) || is_constraint(&found.kind)
            }) =>
        {
            pieces.into_iter().map(|(piece, _)| piece).collect()
        }
        _ => vec![piece],
    }
}

fn is_constraint(kind: &Kind) -> bool {
    matches!(kind, Kind::AddForeignKey(_) | Kind::AddCondition { .. })
}

/// What stands behind `[add] [constraint NAME]`.
fn body(text: &str, with_add: bool) -> Result<&str, Failure> {
    let tokens = actions::tokens(text)?;
    let first = usize::from(with_add);
    let word =
        |token: &Token| text[token.at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let is_named = tokens.get(first).is_some_and(|token| word(token).eq_ignore_ascii_case("constraint"));
    let begin = tokens.get(first + if is_named { 2 } else { 0 }).ok_or_else(not_actions)?;
    Ok(&text[begin.at..])
}

/// The text of an ADD constraint under a given name, NOT VALID.
pub fn not_valid(text: &str, name: &str) -> Result<String, Failure> {
    Ok(format!("add constraint {} {} not valid", Ident::new(name), body(text, true)?))
}

fn refused(table: &Name, what: &str) -> Failure {
    Failure::new(code::NOT_SUPPORTED, format!("{what}, and cannot be one of the actions for {}", table.plain()))
        .hint("It is catalogue work only: use ALTER TABLE, with a short lock_timeout.")
}
