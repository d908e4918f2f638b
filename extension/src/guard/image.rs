//! Values of a row as they are stored: whether two are the same, and a copy of one.

use super::marks::is_plain;
use pgrx::pg_sys;

// pgrx does not bind them (utils/datum.h). The same in PostgreSQL 14 to 18.
unsafe extern "C-unwind" {
    fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i32) -> bool;
    fn datumCopy(value: pg_sys::Datum, by_value: bool, length: i32) -> pg_sys::Datum;
}

/// Whether two values that are not NULL are the same bytes, once they are detoasted: a value that a statement did not touch,
/// and not merely one that its type calls equal.
pub unsafe fn same(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i16) -> bool {
    // SAFETY: the caller passes two values of one type, whose length and passing these are.
    unsafe {
        if by_value {
            return a == b;
        }
        // Each row asks for several columns, and most values lie in the row as they are: nothing is called for those.
        if length == -1 {
            let (left, right) = (a.cast_mut_ptr(), b.cast_mut_ptr());
            if pgrx::varatt_is_1b_e(left) && pgrx::varatt_is_1b_e(right) {
                if bytes_of_pointer(a) == bytes_of_pointer(b) {
                    return true; // the same TOAST pointer: nothing is fetched
                }
            } else if is_plain(left) && is_plain(right) {
                return pgrx::varlena_to_byte_slice(left) == pgrx::varlena_to_byte_slice(right);
            }
        }
        pg_sys::ffi::pg_guard_ffi_boundary(|| datum_image_eq(a, b, by_value, i32::from(length)))
    }
}

/// A copy in the current memory context.
pub unsafe fn copy(value: pg_sys::Datum, by_value: bool, length: i32) -> pg_sys::Datum {
    // SAFETY: the caller passes a value of the type whose length and passing these are.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| datumCopy(value, by_value, length)) }
}

unsafe fn bytes_of_pointer<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: an external varlena is VARSIZE_EXTERNAL bytes long.
    unsafe {
        let pointer = value.cast_mut_ptr::<pg_sys::varlena>();
        std::slice::from_raw_parts(pointer.cast::<u8>(), pgrx::varsize_external(pointer))
    }
}
