//! The actions of an ALTER TABLE, read with PostgreSQL's own grammar before any of them is run.
//!
//! Text from a user is pasted behind `alter table …` only after the parser has said that it is one statement of
//! an allowed kind, and on no other relation: `add column x int; drop table users` is none.

use crate::catalog::attempt::attempt;
use crate::catalog::expression::{Raw, length, nth, owned, word};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Name, plain};
use pgrx::pg_sys;
use pgrx::pg_sys::AlterTableType as At;
use pgrx::pg_sys::ConstrType as Constr;
use std::ffi::CString;

/// Stands for the table while parsing; no user has a reason to type it.
const PLACEHOLDER: &str = "migrator placeholder";
/// What a user's text is put behind. Positions that the parser reports count from its beginning.
pub(super) const HEAD: &str = "alter table \"migrator placeholder\" ";
/// What `refused` says of an action that it does not know.
pub(super) const UNKNOWN: &str = "this action";

/// One `alter table` statement: several actions, or one rename.
#[derive(Debug)]
pub struct Part {
    /// The actions as the user wrote them: what follows the table's name.
    pub text: String,
    /// Columns that get a type with USING, and its expression.
    pub using: Vec<(String, Raw)>,
    /// Columns that are added.
    pub added: Vec<Added>,
    /// Constraints that are dropped, by name.
    pub dropped: Vec<String>,
}

/// A column that is added.
#[derive(Debug)]
pub struct Added {
    /// Its name.
    pub name: String,
    /// Its DEFAULT clause.
    pub default: Option<Raw>,
    /// `serial` or `identity`, where its values come from a sequence.
    pub counted: Option<&'static str>,
}

/// Reads the user's text for `table`. Parts are separated by semicolons, because PostgreSQL does not mix a rename with other actions.
pub fn read(table: &Name, text: &str) -> Result<Vec<Part>, Failure> {
    attempt(|| split(text)?.into_iter().map(|part| read_part(table, part)).collect()).map_err(explained)
}

/// Says with a syntax error what the text is.
pub(super) fn explained(mut failure: Failure) -> Failure {
    if failure.code.starts_with("42601") {
        failure.message = format!("actions: {}", failure.message);
        failure.hint.get_or_insert_with(|| "Write what follows the table's name in ALTER TABLE, for instance: alter column id type bigint, add column note text.".into());
    }
    failure
}

fn read_part(table: &Name, text: &str) -> Result<Part, Failure> {
    let statement = c_string(&format!("{HEAD}{text}"))?;
    let mut part = Part { text: text.trim().to_owned(), using: vec![], added: vec![], dropped: vec![] };
    // SAFETY: raw_parser's nodes, each cast after its tag was looked at; they stay in the current memory context.
    unsafe {
        let statements = pg_sys::raw_parser(statement.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let node = nth::<pg_sys::RawStmt>(statements, 0).map_or(std::ptr::null_mut(), |raw| (*raw).stmt);
        if node.is_null() || length(statements) != 1 {
            return Err(not_actions());
        }
        match (*node).type_ {
            pg_sys::NodeTag::T_AlterTableStmt => {
                let alter = &*node.cast::<pg_sys::AlterTableStmt>();
                if alter.objtype != pg_sys::ObjectType::OBJECT_TABLE
                    || alter.missing_ok
                    || !is_placeholder(alter.relation)
                {
                    return Err(not_actions());
                }
                for at in 0..length(alter.cmds) {
                    let command = &*nth::<pg_sys::AlterTableCmd>(alter.cmds, at).expect("within the list");
                    read_command(table, text, command, &mut part)?;
                }
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                let ours = rename.relationType == pg_sys::ObjectType::OBJECT_TABLE
                    || rename.renameType == pg_sys::ObjectType::OBJECT_TABCONSTRAINT;
                let kind = matches!(
                    rename.renameType,
                    pg_sys::ObjectType::OBJECT_COLUMN | pg_sys::ObjectType::OBJECT_TABCONSTRAINT
                );
                if !is_placeholder(rename.relation) || rename.missing_ok {
                    return Err(not_actions());
                }
                if !ours || !kind {
                    return Err(in_place(table, text, "renaming the table"));
                }
            }
            pg_sys::NodeTag::T_AlterObjectSchemaStmt => return Err(in_place(table, text, "SET SCHEMA")),
            _ => return Err(not_actions()),
        }
    }
    Ok(part)
}

pub(super) unsafe fn is_placeholder(relation: *mut pg_sys::RangeVar) -> bool {
    // SAFETY: null or a RangeVar of the parser.
    unsafe {
        relation.as_ref().is_some_and(|range| {
            range.catalogname.is_null() && range.schemaname.is_null() && owned(range.relname) == PLACEHOLDER
        })
    }
}

unsafe fn read_command(
    table: &Name,
    text: &str,
    command: &pg_sys::AlterTableCmd,
    part: &mut Part,
) -> Result<(), Failure> {
    // SAFETY: the grammar (gram.y, alter_table_cmd) fills name and def as each subtype needs them.
    unsafe {
        match command.subtype {
            At::AT_AddColumn => {
                let column = &*command.def.cast::<pg_sys::ColumnDef>();
                part.added.push(read_added(table, text, column)?);
            }
            At::AT_AlterColumnType => {
                let column = &*command.def.cast::<pg_sys::ColumnDef>();
                if !column.raw_default.is_null() {
                    part.using.push((owned(command.name), Raw(column.raw_default)));
                }
            }
            At::AT_AddConstraint => {
                let constraint = &*command.def.cast::<pg_sys::Constraint>();
                if constraint.contype == Constr::CONSTR_FOREIGN {
                    return Err(foreign_key(table, text));
                }
            }
            At::AT_DropConstraint => part.dropped.push(owned(command.name)),
            _ => match refused(command.subtype) {
                None => {}
                Some(what) => return Err(in_place(table, text, what)),
            },
        }
    }
    Ok(())
}

unsafe fn read_added(table: &Name, text: &str, column: &pg_sys::ColumnDef) -> Result<Added, Failure> {
    let mut added = Added { name: String::new(), default: None, counted: None };
    // SAFETY: a ColumnDef of the grammar: colname is set, constraints holds Constraint nodes, typeName names of String nodes.
    unsafe {
        added.name = owned(column.colname);
        for at in 0..length(column.constraints) {
            let constraint = &*nth::<pg_sys::Constraint>(column.constraints, at).expect("within the list");
            match constraint.contype {
                Constr::CONSTR_FOREIGN => return Err(foreign_key(table, text)),
                Constr::CONSTR_DEFAULT => added.default = Some(Raw(constraint.raw_expr)),
                Constr::CONSTR_IDENTITY => added.counted = Some("identity"),
                _ => {}
            }
        }
        if let Some(kind) = column.typeName.as_ref().filter(|kind| length(kind.names) == 1) {
            let word = word(kind.names, 0).expect("the list has one element");
            // The names that transformColumnDefinition (parse_utilcmd.c) makes sequences of.
            if ["smallserial", "serial2", "serial", "serial4", "bigserial", "serial8"].contains(&word.as_str()) {
                added.counted = Some("serial");
            }
        }
    }
    Ok(added)
}

/// Why an action is refused; None for those that are taken.
pub(super) fn refused(subtype: At::Type) -> Option<&'static str> {
    #[cfg(not(feature = "pg14"))]
    if subtype == At::AT_SetAccessMethod {
        return None;
    }
    #[cfg(not(any(feature = "pg14", feature = "pg15", feature = "pg16")))]
    if subtype == At::AT_SetExpression {
        return None;
    }
    match subtype {
        At::AT_ColumnDefault
        | At::AT_DropNotNull
        | At::AT_SetNotNull
        | At::AT_DropExpression
        | At::AT_SetStatistics
        | At::AT_SetOptions
        | At::AT_ResetOptions
        | At::AT_SetStorage
        | At::AT_SetCompression
        | At::AT_DropColumn
        | At::AT_ValidateConstraint
        | At::AT_SetLogged
        | At::AT_SetUnLogged
        | At::AT_SetTableSpace
        | At::AT_SetRelOptions
        | At::AT_ResetRelOptions
        | At::AT_AddIdentity
        | At::AT_SetIdentity
        | At::AT_DropIdentity => None,
        At::AT_AlterConstraint => Some("ALTER CONSTRAINT"),
        At::AT_ChangeOwner => Some("OWNER TO"),
        At::AT_ClusterOn | At::AT_DropCluster => Some("CLUSTER"),
        At::AT_EnableTrig
        | At::AT_EnableAlwaysTrig
        | At::AT_EnableReplicaTrig
        | At::AT_DisableTrig
        | At::AT_EnableTrigAll
        | At::AT_DisableTrigAll
        | At::AT_EnableTrigUser
        | At::AT_DisableTrigUser => Some("enabling or disabling triggers"),
        At::AT_EnableRule | At::AT_EnableAlwaysRule | At::AT_EnableReplicaRule | At::AT_DisableRule => {
            Some("enabling or disabling rules")
        }
        At::AT_AddInherit | At::AT_DropInherit => Some("INHERIT"),
        At::AT_AddOf | At::AT_DropOf => Some("OF"),
        At::AT_ReplicaIdentity => Some("REPLICA IDENTITY"),
        At::AT_EnableRowSecurity | At::AT_DisableRowSecurity | At::AT_ForceRowSecurity | At::AT_NoForceRowSecurity => {
            Some("ROW LEVEL SECURITY")
        }
        At::AT_AttachPartition | At::AT_DetachPartition | At::AT_DetachPartitionFinalize => {
            Some("attaching or detaching partitions")
        }
        _ => Some(UNKNOWN),
    }
}

pub(super) fn not_actions() -> Failure {
    Failure::new("42601", "this is not a list of ALTER TABLE actions on the table itself")
}

fn in_place(table: &Name, text: &str, what: &str) -> Failure {
    Failure::new(
        code::NOT_SUPPORTED,
        format!("{what} is not part of a table's shape and cannot be one of the actions for {}", table.plain()),
    )
    .hint(format!("It is catalogue work only. Run it by itself: {}", call(table, text)))
}

fn foreign_key(table: &Name, text: &str) -> Failure {
    Failure::new(
        code::NOT_SUPPORTED,
        format!("a foreign key cannot be added together with a new shape of {}", table.plain()),
    )
    .detail("The shadow never has foreign keys: they would fire while rows are being copied.")
    .hint(format!("Add it in place, before or after this change: {}", call(table, text)))
}

fn call(table: &Name, text: &str) -> String {
    let literal = migrator_core::ident::literal;
    format!("call migrator.alter_table({}, {});", literal(&table.plain()), literal(text.trim()))
}

/// What to say when a foreign key of the live table is to be dropped: the shadow has none.
pub fn drop_foreign_key(table: &Name, name: &str) -> Failure {
    Failure::new(
        code::NOT_SUPPORTED,
        format!("foreign key {} of {} cannot be dropped together with a new shape", plain(name), table.plain()),
    )
    .hint(format!("Drop it in place first: {}", call(table, &format!("drop constraint {}", plain(name)))))
}

/// ENFORCED and NOT ENFORCED behind a constraint of a column (18).
pub(super) fn is_enforcement(kind: Constr::Type) -> bool {
    #[cfg(feature = "pg18")]
    let words: &[Constr::Type] = &[Constr::CONSTR_ATTR_ENFORCED, Constr::CONSTR_ATTR_NOT_ENFORCED];
    #[cfg(not(feature = "pg18"))]
    let words: &[Constr::Type] = &[];
    words.contains(&kind)
}

/// One token of PostgreSQL's scanner.
pub(super) struct Token {
    /// The character itself, or a number above 255.
    pub kind: i32,
    /// Where it begins, in bytes.
    pub at: usize,
}

/// The tokens of a text. PostgreSQL's scanner knows quotes, comments and dollar signs.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Failure> {
    let source = c_string(text)?;
    let mut tokens = vec![];
    // SAFETY: the sequence of raw_parser (parser.c): the scanner copies the text, and the extra data outlives it.
    unsafe {
        let mut extra = pg_sys::core_yy_extra_type::default();
        let scanner = pg_sys::scanner_init(
            source.as_ptr(),
            &mut extra,
            &raw const pg_sys::ScanKeywords,
            (&raw const pg_sys::ScanKeywordTokens).cast(),
        );
        loop {
            let mut value = pg_sys::core_YYSTYPE::default();
            let mut location = 0;
            let kind = pg_sys::core_yylex(&mut value, &mut location, scanner);
            if kind == 0 {
                break;
            }
            tokens.push(Token { kind, at: usize::try_from(location).expect("an offset into the text") });
        }
        pg_sys::scanner_finish(scanner);
    }
    Ok(tokens)
}

/// Cuts the text at its semicolons.
pub(super) fn split(text: &str) -> Result<Vec<&str>, Failure> {
    let cuts: Vec<usize> =
        tokens(text)?.into_iter().filter(|token| token.kind == i32::from(b';')).map(|token| token.at).collect();
    let mut parts = vec![];
    let mut from = 0;
    for cut in cuts {
        parts.push(&text[from..cut]);
        from = cut + 1;
    }
    parts.push(&text[from..]);
    // Behind the last semicolon there may be a comment, which is no part.
    if parts.len() > 1 && tokens(parts.last().expect("there is more than one"))?.is_empty() {
        parts.pop();
    }
    Ok(parts)
}

pub(super) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new("22021", "the actions contain a NUL byte"))
}
