//! Argument types that pgrx does not have.

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// A `regclass`: the oid of a relation that PostgreSQL has already looked up for us, without opening or locking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegClass(pub u32);

pgrx::impl_sql_translatable!(RegClass, "regclass");

impl FromDatum for RegClass {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, typoid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: a regclass is an oid by value; the contract is the caller's, as for Oid itself.
        unsafe { pg_sys::Oid::from_polymorphic_datum(datum, is_null, typoid) }.map(|oid| RegClass(oid.to_u32()))
    }
}

impl IntoDatum for RegClass {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        pg_sys::Oid::from(self.0).into_datum()
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::REGCLASSOID
    }
}

// SAFETY: the same representation as Oid, read through FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for RegClass {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller's contract is passed on; the argument is declared regclass.
        unsafe { arg.unbox_arg_using_from_datum().expect("a regclass that is not NULL") }
    }
}

// SAFETY: an oid by value.
unsafe impl BoxRet for RegClass {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: an oid by value is a complete datum.
        unsafe { fcinfo.return_raw_datum(pg_sys::Oid::from(self.0).into_datum().expect("an oid is not null")) }
    }
}
