//! A user's expressions, read with PostgreSQL's own parser: what they refer to, whether they are safe to
//! repeat, their type, and their text with everything qualified.
//!
//! An expression is evaluated again and again for one row (copy, catch-up, verify), in other sessions and on
//! other days, and has to give the same value each time. So it may read its own row only.

use crate::catalog::attempt::attempt;
use crate::catalog::walk::Found;
use crate::catalog::{role, volatility};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::plain;
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_void};

/// Which of the two shapes of a row an expression reads: its alias in the deparsed text (see `plan`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The live table's row, `l`.
    Old,
    /// The shadow's row, `s`.
    New,
}

impl Shape {
    fn alias(self) -> &'static CStr {
        match self {
            Shape::Old => c"l",
            Shape::New => c"s",
        }
    }
}

/// Where an expression stands: what it reads, whose rights and settings it is read with, and its name in messages.
pub struct Place<'a> {
    /// The relation whose columns it may use.
    pub relation: u32,
    /// Alias of that relation in the result.
    pub shape: Shape,
    /// Owner of the table: type input functions of literals run while parsing.
    pub owner: pg_sys::Oid,
    /// The caller's settings, `search_path` among them.
    pub settings: &'a [(String, String)],
    /// What it is, for messages: `transform of column x`.
    pub what: String,
    /// Whether it may use the row as a whole.
    pub whole_row: bool,
}

/// The type of a value: what an expression gives, or what a column takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type {
    /// pg_type.oid
    pub oid: u32,
    /// Modifier, -1 for none.
    pub modifier: i32,
}

/// A node of a parse tree, in the memory context in which it was parsed.
#[derive(Debug, Clone, Copy)]
pub struct Raw(pub(super) *mut pg_sys::Node);

/// An expression that was read.
#[derive(Debug, Clone)]
pub struct Expression {
    /// Deparsed text: columns under the alias, names qualified, not coerced to the target.
    pub sql: String,
    /// attnums of the columns that it reads.
    pub columns: Vec<i16>,
    /// pg_type.oid of its own type, before it is coerced.
    pub type_oid: u32,
}

/// Reads `text` as one expression over the place's relation that a column of type `target` can take by assignment.
pub fn read(place: &Place<'_>, text: &str, target: Type) -> Result<Expression, Failure> {
    within(place, || analyze(place, parse(text)?, target))
}

/// The same for an expression inside a statement that was parsed already (USING).
pub fn read_raw(place: &Place<'_>, raw: Raw, target: Type) -> Result<Expression, Failure> {
    within(place, || analyze(place, raw, target))
}

/// Reads deparsed text of an expression over a row of an open table (alias `l`) and prepares it for the executor: coerced to
/// `target`, constants folded. The tree is in the current memory context. Errors unwind.
///
/// # Safety
/// The relation is open and stays so during the call.
pub unsafe fn prepare(table: pg_sys::Relation, text: &str, target: Type) -> Result<*mut pg_sys::Expr, Failure> {
    let node = transform(Some(table), Some(c"l"), parse(text)?, pg_sys::ParseExprKind::EXPR_KIND_ALTER_COL_TRANSFORM);
    let node = assign(node, target).ok_or_else(|| mismatch(node, target))?;
    // SAFETY: a whole, analyzed expression tree.
    Ok(unsafe { pg_sys::expression_planner(node.cast::<pg_sys::Expr>()) })
}

/// Whether deparsed text of an expression over a row of one table (alias `l`) can be read over the place's relation, for a column of
/// type `target`.
pub fn fits(place: &Place<'_>, text: &str, target: Type) -> Result<(), Failure> {
    within(place, || {
        let table = Opened::open(place.relation);
        // SAFETY: the relation is open until the end of the scope.
        unsafe { prepare(table.0, text, target) }.map(|_| ())
    })
}

/// Whether a value of one type stays the same, byte for byte, as one of the other and back again.
pub fn is_same_value(one: u32, other: u32) -> bool {
    // SAFETY: catalog lookups by oids of types.
    unsafe {
        let one = pg_sys::getBaseType(pg_sys::Oid::from(one));
        let other = pg_sys::getBaseType(pg_sys::Oid::from(other));
        one == other || pg_sys::IsBinaryCoercible(one, other) && pg_sys::IsBinaryCoercible(other, one)
    }
}

/// Where the default of a column is found.
#[derive(Debug, Clone, Copy)]
pub enum Default {
    /// A DEFAULT clause of a statement that was parsed.
    Clause(Raw),
    /// The column's type, where that is a domain with one.
    OfType,
    /// The catalog: the column of the place's relation with this attnum, or its type.
    Stored(i16),
}

/// Reads a column's default (which refers to no column), coerced to the column's type; None where there is none.
/// Volatile ones are refused.
pub fn read_default(place: &Place<'_>, default: Default, target: Type) -> Result<Option<String>, Failure> {
    within(place, || {
        let node = match default {
            Default::Clause(raw) => transform(None, None, raw, pg_sys::ParseExprKind::EXPR_KIND_COLUMN_DEFAULT),
            // SAFETY: a type's oid; NULL for a type without a default.
            Default::OfType => unsafe { pg_sys::get_typdefault(pg_sys::Oid::from(target.oid)) },
            Default::Stored(attnum) => {
                let table = Opened::open(place.relation);
                // SAFETY: the relation is open; build_column_default (rewriteHandler.c) gives a new tree or NULL.
                unsafe { pg_sys::build_column_default(table.0, i32::from(attnum)) }
            }
        };
        if node.is_null() {
            return Ok(None);
        }
        let node = assign(node, target).ok_or_else(|| mismatch(node, target))?;
        // SAFETY: a whole expression tree.
        if unsafe { pg_sys::contain_volatile_functions(node) } {
            return Err(Failure::new(
                code::NOT_SUPPORTED,
                "a volatile expression gives every row another value each time it is read",
            ));
        }
        Ok(Some(deparse(node, None)))
    })
}

/// Whether a value of one type is taken by a column of the other by assignment.
pub fn is_assignable(from: u32, to: u32) -> bool {
    let (from, to) = (pg_sys::Oid::from(from), pg_sys::Oid::from(to));
    // SAFETY: two arrays of one element each, read only during the call.
    unsafe { pg_sys::can_coerce_type(1, &from, &to, pg_sys::CoercionContext::COERCION_ASSIGNMENT) }
}

/// Deparses a stored expression (pg_attrdef.adbin, read by `build_column_default`) of a table's column, with
/// constants of type regclass as oids, which outlive every rename and move. None where the column has no default.
pub fn default_of(relation: u32, attnum: i16) -> Result<Option<String>, Failure> {
    attempt(|| {
        let table = Opened::open(relation);
        // SAFETY: the relation is open; build_column_default (rewriteHandler.c) gives a new tree or NULL.
        let node = unsafe { pg_sys::build_column_default(table.0, i32::from(attnum)) };
        if node.is_null() {
            return Ok(None);
        }
        // SAFETY: the tree is ours; a NextValueExpr (identity) is no other node.
        unsafe {
            if (*node).type_ == pg_sys::NodeTag::T_NextValueExpr {
                let sequence = (*node.cast::<pg_sys::NextValueExpr>()).seqid;
                return Ok(Some(format!("pg_catalog.nextval({}::pg_catalog.oid)", u32::from(sequence))));
            }
        }
        let mut found = Found { anchor: true, ..Found::default() };
        found.walk(node);
        Ok(Some(deparse(node, None)))
    })
}

/// Runs `work` as the owner under the caller's settings, and says in a failure what was being read.
fn within<T>(place: &Place<'_>, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    role::as_owner(place.owner, place.settings, || attempt(work)).map_err(|mut failure| {
        failure.message = format!("{}: {}", place.what, failure.message);
        failure
    })
}

/// An open relation; closed, with its lock kept, at the end of the scope.
struct Opened(pg_sys::Relation);

impl Opened {
    fn open(relation: u32) -> Self {
        let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
        // SAFETY: takes any oid; raises an error for one that is none.
        Self(unsafe { pg_sys::table_open(pg_sys::Oid::from(relation), mode) })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened above; an ERROR leaves it to the resource owner.
            unsafe { pg_sys::table_close(self.0, 0) }
        }
    }
}

/// The one expression in `text`, which is neither a list nor has any clause of a query behind it.
fn parse(text: &str) -> Result<Raw, Failure> {
    let text = CString::new(text).map_err(|_| Failure::new("22021", "the expression contains a NUL byte"))?;
    let not_one = || {
        Failure::new("42601", "this is not one expression")
            .hint("Write a single SQL expression, without FROM, WHERE, an alias or a comma outside of parentheses.")
    };
    // SAFETY: raw_parser copies what it keeps; the nodes that it returns are of the tags checked before each cast.
    unsafe {
        let statements = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let select = nth::<pg_sys::RawStmt>(statements, 0).map_or(std::ptr::null_mut(), |raw| (*raw).stmt);
        if select.is_null() || (*select).type_ != pg_sys::NodeTag::T_SelectStmt {
            return Err(not_one());
        }
        let select = &*select.cast::<pg_sys::SelectStmt>();
        let bare = select.distinctClause.is_null()
            && select.intoClause.is_null()
            && select.fromClause.is_null()
            && select.whereClause.is_null()
            && select.groupClause.is_null()
            && select.havingClause.is_null()
            && select.windowClause.is_null()
            && select.valuesLists.is_null()
            && select.sortClause.is_null()
            && select.limitOffset.is_null()
            && select.limitCount.is_null()
            && select.lockingClause.is_null()
            && select.withClause.is_null()
            && select.op == pg_sys::SetOperation::SETOP_NONE
            && length(select.targetList) == 1;
        if !bare {
            return Err(not_one());
        }
        let target = &*nth::<pg_sys::ResTarget>(select.targetList, 0).expect("the list has one element");
        if !target.name.is_null() || target.val.is_null() || is_star(target.val) {
            return Err(not_one());
        }
        Ok(Raw(target.val))
    }
}

/// `*` or `t.*`.
unsafe fn is_star(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node of the raw parser; cast after its tag was looked at.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_ColumnRef {
            return false;
        }
        let fields = (*node.cast::<pg_sys::ColumnRef>()).fields;
        nth::<pg_sys::Node>(fields, length(fields).saturating_sub(1))
            .is_some_and(|last| (*last).type_ == pg_sys::NodeTag::T_A_Star)
    }
}

/// Parse analysis, and every check that does not depend on the user's wish.
fn analyze(place: &Place<'_>, raw: Raw, target: Type) -> Result<Expression, Failure> {
    let table = Opened::open(place.relation);
    let mut node = transform(Some(table.0), None, raw, pg_sys::ParseExprKind::EXPR_KIND_ALTER_COL_TRANSFORM);
    // SAFETY: a whole expression tree.
    if unsafe { pg_sys::exprType(node) } == pg_sys::UNKNOWNOID {
        // A bare literal takes the column's type, but not its modifier: that is for assignment to enforce.
        node = assign(node, Type { modifier: -1, ..target }).ok_or_else(|| mismatch(node, target))?;
    }
    let mut found = Found::default();
    found.walk(node);
    if let Some(refused) = found.refused {
        return Err(repeatable(refused));
    }
    volatility::check(&found.functions)?;
    if !place.whole_row && found.columns.contains(&0) {
        return Err(Failure::new(code::NOT_SUPPORTED, "the whole row cannot be used")
            .hint("Name the columns that the expression needs."));
    }
    if found.columns.iter().any(|attnum| *attnum < 0) {
        return Err(
            Failure::new(code::NOT_SUPPORTED, "system columns cannot be used").detail("A copied row has others.")
        );
    }
    if assign(node, target).is_none() {
        return Err(mismatch(node, target));
    }
    // SAFETY: a whole expression tree.
    let type_oid = unsafe { pg_sys::exprType(node) }.to_u32();
    Ok(Expression { sql: deparse(node, Some(place)), columns: found.columns, type_oid })
}

fn repeatable(what: String) -> Failure {
    Failure::new(code::NOT_SUPPORTED, format!("{what} cannot be used: its value depends on more than the row"))
        .detail("It is evaluated for the same row again, in other sessions and at other times, and has to give the same value each time.")
}

fn mismatch(node: *mut pg_sys::Node, target: Type) -> Failure {
    // SAFETY: a whole expression tree; format_type_be returns a palloc'd string.
    let (is, wanted) =
        unsafe { (type_text(u32::from(pg_sys::exprType(node)), -1), type_text(target.oid, target.modifier)) };
    Failure::new(
        code::DATATYPE_MISMATCH,
        format!("the expression is of type {is}, which a column of type {wanted} does not take"),
    )
    .hint(format!("Cast it: (expression)::{wanted}."))
}

/// A type's name for people and for SQL, as qualified as the search_path in force asks for.
pub fn type_text(oid: u32, modifier: i32) -> String {
    // SAFETY: format_type_with_typemod returns a palloc'd string, `???` for an unknown oid.
    unsafe { owned(pg_sys::format_type_with_typemod(pg_sys::Oid::from(oid), modifier)) }
}

fn transform(
    table: Option<pg_sys::Relation>,
    alias: Option<&CStr>,
    raw: Raw,
    kind: pg_sys::ParseExprKind::Type,
) -> *mut pg_sys::Node {
    // SAFETY: the sequence of cookDefault and ATPrepAlterColumnType (catalog/heap.c, commands/tablecmds.c).
    // transformExpr may scribble on its input, so it gets a copy.
    unsafe {
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        if let Some(table) = table {
            let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
            let alias =
                alias.map_or(std::ptr::null_mut(), |alias| pg_sys::makeAlias(alias.as_ptr(), std::ptr::null_mut()));
            let item = pg_sys::addRangeTableEntryForRelation(state, table, mode, alias, false, true);
            pg_sys::addNSItemToQuery(state, item, false, true, true);
        }
        let copy = pg_sys::copyObjectImpl(raw.0.cast::<c_void>()).cast::<pg_sys::Node>();
        let node = pg_sys::transformExpr(state, copy, kind);
        pg_sys::assign_expr_collations(state, node);
        pg_sys::free_parsestate(state);
        node
    }
}

/// The node coerced by assignment; None where there is no such cast.
fn assign(node: *mut pg_sys::Node, target: Type) -> Option<*mut pg_sys::Node> {
    // SAFETY: a whole expression tree; a NULL ParseState only loses error positions (parse_coerce.c).
    let coerced = unsafe {
        pg_sys::coerce_to_target_type(
            std::ptr::null_mut(),
            node,
            pg_sys::exprType(node),
            pg_sys::Oid::from(target.oid),
            target.modifier,
            pg_sys::CoercionContext::COERCION_ASSIGNMENT,
            pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
            -1,
        )
    };
    (!coerced.is_null()).then_some(coerced)
}

/// The node as text that reads the same under the settings recorded with a change: names qualified, constants in
/// the forms that every DateStyle and IntervalStyle reads alike.
fn deparse(node: *mut pg_sys::Node, place: Option<&Place<'_>>) -> String {
    let settings = [
        ("search_path", "pg_catalog, pg_temp"),
        ("DateStyle", "ISO"),
        ("IntervalStyle", "postgres"),
        ("extra_float_digits", "3"),
    ];
    role::with_settings(&settings, || {
        // SAFETY: a whole expression tree over the relation of the context; the result is palloc'd.
        unsafe {
            let context = place.map_or(std::ptr::null_mut(), |place| {
                pg_sys::deparse_context_for(place.shape.alias().as_ptr(), pg_sys::Oid::from(place.relation))
            });
            owned(pg_sys::deparse_expression(node, context, place.is_some(), false))
        }
    })
}

/// The nth pointer of a list, if it has so many.
pub(super) unsafe fn nth<T>(list: *mut pg_sys::List, at: usize) -> Option<*mut T> {
    if at >= length(list) {
        return None;
    }
    // SAFETY: within the list's bounds; the caller knows what it holds.
    Some(unsafe { pg_sys::list_nth(list, i32::try_from(at).expect("lists are short")).cast::<T>() })
}

/// The nth string of a list of names, if it has so many.
pub(super) unsafe fn word(list: *mut pg_sys::List, at: usize) -> Option<String> {
    // SAFETY: the caller's: a list of String nodes, which are Value nodes before 15.
    unsafe {
        #[cfg(feature = "pg14")]
        return nth::<pg_sys::Value>(list, at).map(|node| owned((*node).val.str_));
        #[cfg(not(feature = "pg14"))]
        return nth::<pg_sys::String>(list, at).map(|node| owned((*node).sval));
    }
}

/// Length of a list; NIL is a null pointer.
pub(super) fn length(list: *mut pg_sys::List) -> usize {
    // SAFETY: null or a List.
    unsafe { list.as_ref() }.map_or(0, |list| usize::try_from(list.length).unwrap_or(0))
}

/// A C string of PostgreSQL's, copied.
pub(super) unsafe fn owned(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NUL-terminated like every C string of PostgreSQL's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// `column x`, for messages.
pub fn column(name: &str) -> String {
    format!("column {}", plain(name))
}
