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

/// A `jsonb` that is only passed on: its text. Read as a value, a number beyond 64 bits would lose digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json(pub String);

pgrx::impl_sql_translatable!(Json, "jsonb");

impl FromDatum for Json {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _type: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: jsonb_out() takes a jsonb, toasted or not, and gives a C string of its own.
        let text: Option<&std::ffi::CStr> = unsafe { pgrx::direct_function_call(pg_sys::jsonb_out, &[Some(datum)]) };
        text.map(|text| Json(text.to_string_lossy().into_owned()))
    }
}

impl IntoDatum for Json {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let text = std::ffi::CString::new(self.0).expect("the text of a jsonb has no NUL");
        // SAFETY: jsonb_in() takes a C string, which lives over the call, and raises an error where it is no JSON.
        unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]) }
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

// SAFETY: read through FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for Json {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller's contract is passed on; the argument is declared jsonb.
        unsafe { arg.unbox_arg_using_from_datum().expect("a jsonb that is not NULL") }
    }
}

/// A `regprocedure`: the oid of a function that PostgreSQL has already looked up for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegProcedure(pub u32);

pgrx::impl_sql_translatable!(RegProcedure, "regprocedure");

impl FromDatum for RegProcedure {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, typoid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: as for RegClass.
        unsafe { pg_sys::Oid::from_polymorphic_datum(datum, is_null, typoid) }.map(|oid| RegProcedure(oid.to_u32()))
    }
}

// SAFETY: the same representation as Oid, read through FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for RegProcedure {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller's contract is passed on; the argument is declared regprocedure.
        unsafe { arg.unbox_arg_using_from_datum().expect("a regprocedure that is not NULL") }
    }
}

// SAFETY: an oid by value.
unsafe impl BoxRet for RegClass {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: an oid by value is a complete datum.
        unsafe { fcinfo.return_raw_datum(pg_sys::Oid::from(self.0).into_datum().expect("an oid is not null")) }
    }
}

// SAFETY: a complete datum, made in the memory context of the call.
unsafe impl BoxRet for Json {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: jsonb_in() gives a complete datum.
        unsafe { fcinfo.return_raw_datum(self.into_datum().expect("JSON is not null")) }
    }
}
