//! What a query would return if one of its tables were another: asked of PostgreSQL's own parser.

use crate::catalog::attempt::attempt;
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Name;
use pgrx::pg_sys;
use serde::Deserialize;
use std::ffi::{CStr, CString};
use std::ptr;

/// One column of a query's result.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Output {
    /// Name
    pub name: String,
    /// Oid of its type.
    pub type_oid: u32,
    /// Type modifier, -1 without.
    pub modifier: i32,
    /// Oid of its collation, 0 without.
    pub collation: u32,
}

/// The columns that `query` would return if the table `from` in it were `to`. `query` has every name qualified (as
/// pg_get_viewdef writes it under a pinned search_path). The query is not executed, and no lock outlives the call.
///
/// Parsing evaluates literals, which may run functions of the view's owner: it is done as `owner`. `grants`, what that
/// role lacks to name all that is in the query, hold for the call only.
pub fn outputs(
    query: &str,
    from: &Name,
    to: &Name,
    owner: pg_sys::Oid,
    grants: &[String],
) -> Result<Vec<Output>, Failure> {
    let mut found = None;
    let rolled_back = attempt(|| {
        for grant in grants {
            spi::execute(grant, &[])?;
        }
        found = Some(role::as_owner(owner, &[], || analyze(query, from, to)));
        // Rolling back takes the grants back and releases the locks on the tables of the query.
        Err::<(), _>(Failure::new(code::INTERNAL, "done"))
    });
    match (found, rolled_back) {
        (Some(outputs), _) => Ok(outputs),
        (None, Err(failure)) => Err(Failure {
            message: format!(
                "a view over table {} does not fit the table taking its place: {}",
                from.plain(),
                failure.message
            ),
            detail: Some(format!("The view is: {query}")),
            ..failure
        }
        .hint("Drop the view before, and create it as it shall be after the swap.")),
        (None, Ok(())) => Ok(vec![]),
    }
}

/// The names to look for and to put in their place, as the tree walker gets them.
struct Exchange {
    schema: CString,
    name: CString,
    new_schema: CString,
    new_name: CString,
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("text from the catalog has no NUL")
}

fn analyze(query: &str, from: &Name, to: &Name) -> Vec<Output> {
    let text = c_string(query);
    let mut exchange = Exchange {
        schema: c_string(from.schema.as_str()),
        name: c_string(from.name.as_str()),
        new_schema: c_string(to.schema.as_str()),
        new_name: c_string(to.name.as_str()),
    };
    let mut outputs = vec![];
    // SAFETY: raw_parser (parser/parser.h) returns a palloc'd List of RawStmt, which raw_expression_tree_walker may walk
    // and whose RangeVars belong to nobody else; parse_analyze_fixedparams (tcop/tcopprot.h, parser/analyze.h) takes one
    // of them. All lives in the current memory context, `text` and `exchange` over both calls; the strings put into the
    // tree are copied by pstrdup. Errors unwind to the caller's subtransaction.
    unsafe {
        let statements = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let raw = pg_sys::list_nth(statements, 0).cast::<pg_sys::RawStmt>();
        exchange_names((*raw).stmt, (&raw mut exchange).cast());
        #[cfg(feature = "pg14")]
        let query = pg_sys::parse_analyze(raw, text.as_ptr(), ptr::null_mut(), 0, ptr::null_mut());
        #[cfg(not(feature = "pg14"))]
        let query = pg_sys::parse_analyze_fixedparams(raw, text.as_ptr(), ptr::null(), 0, ptr::null_mut());
        let targets = (*query).targetList;
        for place in 0..(*targets).length {
            let target = pg_sys::list_nth(targets, place).cast::<pg_sys::TargetEntry>();
            if (*target).resjunk {
                continue;
            }
            let expression = (*target).expr.cast::<pg_sys::Node>();
            outputs.push(Output {
                name: CStr::from_ptr((*target).resname).to_string_lossy().into_owned(),
                type_oid: pg_sys::exprType(expression).to_u32(),
                modifier: pg_sys::exprTypmod(expression),
                collation: pg_sys::exprCollation(expression).to_u32(),
            });
        }
    }
    outputs
}

/// A walker of raw parse trees (nodes/nodeFuncs.h): exchanges the table in every RangeVar, in subqueries and CTEs too.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn exchange_names(node: *mut pg_sys::Node, context: *mut core::ffi::c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: `node` is a node of the raw tree (its tag says which), `context` the Exchange that analyze() passed.
    unsafe {
        if (*node).type_ == pg_sys::NodeTag::T_RangeVar {
            let table = node.cast::<pg_sys::RangeVar>();
            let exchange = &*context.cast::<Exchange>();
            let is = |text: *mut core::ffi::c_char, name: &CStr| !text.is_null() && CStr::from_ptr(text) == name;
            if is((*table).schemaname, &exchange.schema) && is((*table).relname, &exchange.name) {
                // Columns may be qualified by the table's name: it stays as an alias.
                if (*table).alias.is_null() {
                    let alias = pg_sys::makeAlias((*table).relname, ptr::null_mut());
                    (*table).alias = alias;
                }
                (*table).schemaname = pg_sys::pstrdup(exchange.new_schema.as_ptr());
                (*table).relname = pg_sys::pstrdup(exchange.new_name.as_ptr());
            }
        }
        walk(node, context)
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn walk(node: *mut pg_sys::Node, context: *mut core::ffi::c_void) -> bool {
    // SAFETY: as exchange_names(), which the walker calls for each child; up to 15 it is declared without a prototype.
    unsafe {
        let walker: unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut core::ffi::c_void) -> bool = exchange_names;
        pg_sys::raw_expression_tree_walker(node, Some(std::mem::transmute(walker)), context)
    }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn walk(node: *mut pg_sys::Node, context: *mut core::ffi::c_void) -> bool {
    // SAFETY: as exchange_names(), which the walker calls for each child.
    unsafe { pg_sys::raw_expression_tree_walker_impl(node, Some(exchange_names), context) }
}
