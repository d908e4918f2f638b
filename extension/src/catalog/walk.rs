//! A walk over an expression tree: its columns, its functions, and what no expression of a change may have.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::c_void;

/// What a walk over an expression finds. The walk itself raises no error.
#[derive(Default)]
pub struct Found {
    /// attnums of the columns; 0 for the whole row, negative for system columns.
    pub columns: Vec<i16>,
    /// Oids of the functions that it calls, also through operators and casts.
    pub functions: Vec<u32>,
    /// Something that is no function and not repeatable, by name.
    pub refused: Option<String>,
    /// Turn constants of type regclass into oids.
    pub anchor: bool,
}

impl Found {
    /// Visits every node; the tree itself changes only where `anchor` is set.
    pub fn walk(&mut self, node: *mut pg_sys::Node) {
        // SAFETY: the tree and `self` outlive the walk.
        unsafe {
            visit(node, std::ptr::from_mut(self).cast::<c_void>());
        }
    }
}

// pgrx does not bind it. PostgreSQL 16 put the function behind a macro of the old name (nodes/nodeFuncs.h).
unsafe extern "C-unwind" {
    #[cfg_attr(not(any(feature = "pg14", feature = "pg15")), link_name = "expression_tree_walker_impl")]
    fn expression_tree_walker(
        node: *mut pg_sys::Node,
        walker: Option<unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool>,
        context: *mut c_void,
    ) -> bool;
}

#[pg_guard]
unsafe extern "C-unwind" fn visit(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: called with a node of an expression tree and the Found of `walk`; casts follow the tag.
    unsafe {
        let found = &mut *context.cast::<Found>();
        match (*node).type_ {
            pg_sys::NodeTag::T_Var => found.columns.push((*node.cast::<pg_sys::Var>()).varattno),
            pg_sys::NodeTag::T_SQLValueFunction => {
                found.refused = Some(value_function(&*node.cast::<pg_sys::SQLValueFunction>()).to_owned())
            }
            pg_sys::NodeTag::T_NextValueExpr => found.refused = Some("nextval".to_owned()),
            pg_sys::NodeTag::T_Const if found.anchor => {
                let constant = &mut *node.cast::<pg_sys::Const>();
                if constant.consttype == pg_sys::REGCLASSOID {
                    constant.consttype = pg_sys::OIDOID;
                }
            }
            _ => {}
        }
        pg_sys::check_functions_in_node(node, Some(note_function), context);
        pg_sys::ffi::pg_guard_ffi_boundary(|| expression_tree_walker(node, Some(visit), context))
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn note_function(function: pg_sys::Oid, context: *mut c_void) -> bool {
    // SAFETY: the context is the Found of `walk`.
    unsafe { (*context.cast::<Found>()).functions.push(u32::from(function)) };
    false
}

fn value_function(node: &pg_sys::SQLValueFunction) -> &'static str {
    use pg_sys::SQLValueFunctionOp as Op;
    match node.op {
        Op::SVFOP_CURRENT_DATE => "current_date",
        Op::SVFOP_CURRENT_TIME | Op::SVFOP_CURRENT_TIME_N => "current_time",
        Op::SVFOP_CURRENT_TIMESTAMP | Op::SVFOP_CURRENT_TIMESTAMP_N => "current_timestamp",
        Op::SVFOP_LOCALTIME | Op::SVFOP_LOCALTIME_N => "localtime",
        Op::SVFOP_LOCALTIMESTAMP | Op::SVFOP_LOCALTIMESTAMP_N => "localtimestamp",
        Op::SVFOP_CURRENT_ROLE => "current_role",
        Op::SVFOP_CURRENT_USER => "current_user",
        Op::SVFOP_USER => "user",
        Op::SVFOP_SESSION_USER => "session_user",
        Op::SVFOP_CURRENT_CATALOG => "current_catalog",
        Op::SVFOP_CURRENT_SCHEMA => "current_schema",
        _ => "this value of the session",
    }
}
