//! The image hash: whether two rows hold the same bytes.
//!
//! Verify compares what is stored, not what the types call equal: `1.0` and `1.00`, `0` and `-0` differ, and
//! types without equality (json, point, xml) can be compared like any other. What storage does to a value is
//! undone first: TOAST, compression, short headers, expanded objects. So the hash of an expression's result
//! is that of the same value read back from a table.
//!
//! Inside a value nothing is undone. Elements of arrays and bounds of ranges are never compressed or
//! external. Fields of a composite are never external but may be compressed, and a composite within a
//! composite may carry its row's visibility bits: rows that differ in nothing else may hash differently. That
//! is an error on the safe side: they are copied once more, and as the bytes are copied then, hash alike.

use migrator_core::failure::{Failure, code};
use pgrx::{pg_guard, pg_sys};
use twox_hash::XxHash3_64;

pgrx::extension_sql!(
    r#"
create function migrator._image_hash(variadic "any") returns bigint
    immutable parallel safe called on null input
    language c as 'MODULE_PATHNAME', 'migrator_image_hash';
-- For everybody: it runs in queries that are executed as the owner of the compared table, and tells nobody anything but
-- what he passed in.
grant execute on function migrator._image_hash(variadic "any") to public;
comment on function migrator._image_hash(variadic "any") is
    'Internal: a hash of the stored bytes of its arguments, for comparing rows. Not stable across major versions.';
"#,
    name = "image_hash",
    requires = ["tables"]
);

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_migrator_image_hash() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// How the values of an argument lie in memory.
#[derive(Clone, Copy)]
enum Layout {
    /// In the Datum itself; this mask keeps the bytes that belong to the value.
    ByValue(u64),
    /// So many bytes behind a pointer.
    Fixed(usize),
    Varlena,
    /// A varlena that holds a row: its header also tells of transactions and positions.
    Composite,
    CString,
}

impl Layout {
    unsafe fn of(type_oid: pg_sys::Oid) -> Self {
        // SAFETY: look-ups in the system caches, of a type that the parser resolved.
        unsafe {
            let (mut length, mut by_value) = (0_i16, false);
            pg_sys::get_typlenbyval(type_oid, &mut length, &mut by_value);
            match length {
                1.. if by_value => Layout::ByValue(u64::MAX >> (64 - 8 * i32::from(length).min(8))),
                -1 if pg_sys::type_is_rowtype(type_oid) => Layout::Composite,
                -1 => Layout::Varlena,
                -2 => Layout::CString,
                fixed => Layout::Fixed(usize::try_from(fixed).expect("a fixed length is positive")),
            }
        }
    }
}

/// `migrator._image_hash(VARIADIC "any") returns bigint`
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn migrator_image_hash(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: fcinfo is valid for the call and has nargs arguments, whose layouts are looked up once for the
    // call's place in the query (fn_extra, allocated in fn_mcxt as fmgr.h asks for).
    unsafe {
        let count = usize::try_from((*fcinfo).nargs).expect("a number of arguments");
        let mut layouts = (*(*fcinfo).flinfo).fn_extra.cast::<Layout>();
        if layouts.is_null() {
            layouts = look_up((*fcinfo).flinfo, count);
        }
        let arguments = (*fcinfo).args.as_slice(count);
        let mut hash = 0;
        for (place, argument) in arguments.iter().enumerate() {
            hash = if argument.isnull { null(hash) } else { value(hash, argument.value, *layouts.add(place)) };
        }
        (*fcinfo).isnull = false;
        pg_sys::Datum::from(hash)
    }
}

#[cold]
unsafe fn look_up(call: *mut pg_sys::FmgrInfo, count: usize) -> *mut Layout {
    // SAFETY: the function manager's structure of a function that was called through the executor.
    unsafe {
        if pg_sys::get_fn_expr_variadic(call) {
            crate::raise::raise(
                Failure::new(code::NOT_SUPPORTED, "migrator._image_hash does not take an array as VARIADIC")
                    .hint("Pass the values one by one; an array without VARIADIC is one value."),
            );
        }
        let layouts = pg_sys::MemoryContextAlloc((*call).fn_mcxt, count.max(1) * size_of::<Layout>()).cast::<Layout>();
        for place in 0..count {
            let type_oid = pg_sys::get_fn_expr_argtype(call, i32::try_from(place).expect("a number of arguments"));
            if type_oid == pg_sys::InvalidOid {
                crate::raise::raise(Failure::new(
                    code::NOT_SUPPORTED,
                    "migrator._image_hash cannot tell the types of its arguments",
                ));
            }
            layouts.add(place).write(Layout::of(type_oid));
        }
        (*call).fn_extra = layouts.cast();
        layouts
    }
}

/// Goes on behind a NULL, which no value can stand for: values go through another function.
fn null(hash: u64) -> u64 {
    mixed(hash ^ 0x9e37_79b9_7f4a_7c15)
}

/// The finalizer of splitmix64: every bit of the input changes half of the output's.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Goes on behind a value: the hash so far is the seed, so that the order of values matters, and each has an
/// end of its own (`'a', 'bc'` is not `'ab', 'c'`).
#[inline]
unsafe fn value(hash: u64, value: pg_sys::Datum, layout: Layout) -> u64 {
    // SAFETY: the caller passes a value that is not null and the layout of its type.
    unsafe {
        match layout {
            Layout::ByValue(mask) => bytes(hash, &(value.value() as u64 & mask).to_le_bytes()),
            Layout::Fixed(length) => bytes(hash, std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length)),
            Layout::CString => bytes(hash, std::ffi::CStr::from_ptr(value.cast_mut_ptr()).to_bytes()),
            Layout::Varlena => {
                let stored = value.cast_mut_ptr::<pg_sys::varlena>();
                if pgrx::varatt_is_4b_u(stored) || (pgrx::varatt_is_1b(stored) && !pgrx::varatt_is_1b_e(stored)) {
                    bytes(hash, pgrx::varlena_to_byte_slice(stored))
                } else {
                    let plain = pg_sys::pg_detoast_datum_packed(stored);
                    let hash = bytes(hash, pgrx::varlena_to_byte_slice(plain));
                    pg_sys::pfree(plain.cast());
                    hash
                }
            }
            Layout::Composite => {
                let stored = value.cast_mut_ptr::<pg_sys::varlena>();
                let plain = pg_sys::pg_detoast_datum(stored);
                let hash = row(hash, plain);
                if plain != stored {
                    pg_sys::pfree(plain.cast());
                }
                hash
            }
        }
    }
}

/// A row's fields with their NULLs, without what its header says of transactions.
unsafe fn row(hash: u64, row: *mut pg_sys::varlena) -> u64 {
    // SAFETY: a composite Datum is a HeapTupleHeader (access/htup_details.h), aligned and of VARSIZE bytes.
    unsafe {
        let header = row.cast::<pg_sys::HeapTupleHeaderData>();
        let fields = u64::from((*header).t_infomask2) & u64::from(pg_sys::HEAP_NATTS_MASK);
        let nulls = u64::from((*header).t_infomask) & u64::from(pg_sys::HEAP_HASNULL);
        let from = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);
        let body = std::slice::from_raw_parts(row.cast::<u8>().add(from), pgrx::varsize_4b(row) - from);
        bytes(hash ^ mixed(fields << 1 | u64::from(nulls != 0)), body)
    }
}

#[inline]
fn bytes(hash: u64, image: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(hash, image)
}
