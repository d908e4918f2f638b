//! The column `applied_upgrades` of a row: reading its names, and the array that is put there.

use migrator_core::upgrade::Marks;
use pgrx::varlena::{vardata_any, varsize_any_exhdr};
use pgrx::{FromDatum, IntoDatum, PgMemoryContexts, pg_sys};
use std::cell::RefCell;

/// The names in a text[], whatever its dimensions, and whether it was as it should be.
///
/// # Safety
/// The value is a text[], and lives as long as this call.
pub unsafe fn read(value: Option<pg_sys::Datum>) -> (Marks, bool) {
    let Some(value) = value else { return (Marks::default(), false) };
    // SAFETY: the caller's value.
    if unsafe { is_empty(value) } {
        return (Marks::default(), true);
    }
    // SAFETY: an array of text; deconstruct_array() gives elements in order for any number of dimensions.
    unsafe {
        let array = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        let align = i8::try_from(b'i').expect("a letter");
        pg_sys::deconstruct_array(
            array,
            pg_sys::TEXTOID,
            -1,
            false,
            align as std::ffi::c_char,
            &raw mut elements,
            &raw mut nulls,
            &raw mut count,
        );
        let names: Vec<Option<String>> = (0..usize::try_from(count).unwrap_or(0))
            .map(|place| String::from_datum(*elements.add(place), *nulls.add(place)))
            .collect();
        let (marks, clean) = Marks::read(names.iter().map(Option::as_deref));
        (marks, clean && (*array).ndim <= 1)
    }
}

/// An array of no dimensions, as nearly every row has that was never upgraded: seen without taking it apart.
unsafe fn is_empty(value: pg_sys::Datum) -> bool {
    // SAFETY: the caller's value. Neither compressed nor stored elsewhere, so its bytes follow its header, which may leave
    // them at any address: the number of dimensions comes first (utils/array.h).
    unsafe {
        let value: *const pg_sys::varlena = value.cast_mut_ptr::<pg_sys::varlena>();
        is_plain(value)
            && varsize_any_exhdr(value) >= size_of::<i32>()
            && vardata_any(value).cast::<i32>().read_unaligned() == 0
    }
}

/// Whether the bytes of a value follow its header.
///
/// # Safety
/// A value of variable length.
pub unsafe fn is_plain(value: *const pg_sys::varlena) -> bool {
    // SAFETY: reads the header.
    unsafe { !pgrx::varlena::varatt_is_1b_e(value) && !pgrx::varlena::varatt_is_4b_c(value) }
}

/// An array of these names in the current memory context.
pub fn array(marks: &Marks) -> pg_sys::Datum {
    marks.names().to_vec().into_datum().expect("an array of names, perhaps empty")
}

/// The array that was put into a row last: the rows after it mostly get the same.
#[derive(Default)]
pub struct Written(RefCell<Option<(Marks, pg_sys::Datum)>>);

impl Written {
    /// The array of these names. It lives as long as the context, unless it is asked for other names.
    pub fn array(&self, context: pg_sys::MemoryContext, marks: Marks) -> pg_sys::Datum {
        let mut last = self.0.borrow_mut();
        if let Some((_, array)) = last.as_ref().filter(|(names, _)| *names == marks) {
            return *array;
        }
        // SAFETY: the caller's context; the array before was made there, and is in no row that is still to be formed.
        unsafe {
            let array = PgMemoryContexts::For(context).switch_to(|_| array(&marks));
            if let Some((_, before)) = last.replace((marks, array)) {
                pg_sys::pfree(before.cast_mut_ptr());
            }
            array
        }
    }
}
